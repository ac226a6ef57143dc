"""The same network for inference: normalisations become biases, learnt leaks and thresholds become constants."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from tfspike.engine import known
from tfspike.engine import plan as plans
from tfspike.engine.precision import in_float32
from tfspike.errors import UserError
from tfspike.neurons.layers import LIF
from tfspike.neurons.normalisation import ThresholdNorm
from tfspike.neurons.over_time import OverTime


def fold(model: Any) -> Any:
    """A copy of `model` for inference in which every `ThresholdNorm` is part of the synapse in front of it, and learnt
    leaks and thresholds, and starts that move, are constants.

    In inference a normalisation is one factor and one offset per channel: the factor scales the weights, the offset
    becomes a bias, a constant current. What remains is driven by spikes alone. Outputs agree to rounding. The copy
    computes in float32: in 16 bits a current would be rounded before and after its bias, and deep networks amplify it.

    Args:
      model: a `tfspike.models.SpikingModel`.

    Returns:
      A `SpikingModel` with the same layer names but those of the normalisations; `model` itself where it has neither.

    Raises:
      UserError: the model has no single window of time, or a normalisation does not follow a convolution (depthwise,
        separable and transposed ones included) or a dense layer that nothing else reads.
    """
    plan = model.required_plan()
    norms = {call.source: call.layer for call in plan.window if isinstance(call.layer, ThresholdNorm)}
    if not norms and not any(_varies(call.layer) for call in plan.spiking):
        return model
    copies: dict[Any, keras.layers.Layer] = {}

    def handler(call: plans.Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(call.layer, ThresholdNorm):
            return args[0]
        layer, norm = call.layer, norms.get(call.output)
        if not isinstance(layer, keras.layers.Layer):
            return layer(*args, **kwargs)  # an operation
        if layer not in copies:
            copies[layer] = (_with_bias(layer) if norm is not None else
                             plans.copy_of(layer, **(layer.constants() if _varies(layer) else {})))
        return copies[layer](*args, **kwargs)

    calls = plan.calls
    _refuse_unfoldable(calls, norms)
    inputs = [keras.Input(x.shape[1:], dtype=x.dtype, name=x.name) for x in plan.inputs]
    values = plans.run(calls, dict(zip(plan.inputs, inputs)), handler)
    outputs = keras.tree.pack_sequence_as(model.output, [values[output] for output in plan.outputs])
    folded = plans.rebuilt(model, inputs[0] if len(inputs) == 1 else inputs, outputs)
    for call in calls:
        if call.layer in copies and copies[call.layer].weights:
            norm = norms.get(call.output)
            copies[call.layer].set_weights(call.layer.get_weights() if norm is None
                                           else merged(call.layer.layer, *norm.folded()))
    folded = in_float32(folded)
    folded.configure_engine(*model.engine_options)
    return folded


def _varies(layer: Any) -> bool:
    """Whether these are neurons whose constants are learnt or move."""
    return isinstance(layer, LIF) and bool(layer.learn or layer.running_start)


def _with_bias(layer: OverTime) -> OverTime:
    inner = plans.copy_of(layer.layer, use_bias=True)
    return OverTime(inner, name=layer.name, dtype=layer.dtype_policy)


def merged(layer: keras.layers.Layer, factor: Any, offset: Any) -> list[np.ndarray]:
    """Weights, with a bias, of a dense layer or a convolution with y -> factor y + offset behind it, per channel `[C]`.

    Of the two kernels of a separable convolution the second one takes the factor.
    """
    factor, offset = np.asarray(factor), np.asarray(offset)
    *others, kernel = layer.get_weights()
    if layer.use_bias:
        offset = offset + factor * kernel
        *others, kernel = others
    shape: tuple[int, ...] = (-1,)
    if isinstance(layer, known.DEPTHWISE):
        shape = kernel.shape[-2:]  # which has its channels on two axes
    elif isinstance(layer, known.TRANSPOSED):
        shape = (-1, 1)  # and this one in front of those of its input
    return [*others, kernel * factor.reshape(shape), offset]


def joined_once(calls: Iterable[plans.Call]) -> list[plans.Call]:
    """Calls of layers that are called once, and whose output one other call alone reads."""
    calls = list(calls)
    used = collections.Counter(call.layer for call in calls)
    readers = collections.Counter(x for call in calls for x in call.sources)
    return [call for call in calls if used[call.layer] == 1 and readers[call.output] == 1]


def _refuse_unfoldable(calls: tuple[plans.Call, ...], norms: dict[Any, ThresholdNorm]) -> None:
    foldable = {call.output for call in joined_once(calls) if isinstance(call.layer, OverTime)
                and isinstance(call.layer.layer, (*known.WEIGHTED, *known.SEPARABLE))
                and call.layer.layer.activation is keras.activations.linear
                and getattr(call.layer.layer, "data_format", None) != "channels_first"  # channels are normalised last
                and not known.own_code(call.layer) and not known.own_synapse(call.layer.layer)}
    for source, norm in norms.items():
        method = known.own_code(norm)
        if method is not None:
            raise UserError(f"The normalisation {norm.name!r} cannot be folded: it has a `{method}` of its own.")
        if source not in foldable:
            raise UserError(f"The normalisation {norm.name!r} cannot be folded: it must follow an OverTime with a "
                            "Dense layer or a convolution of Keras' own, its channels last and without activation, "
                            "that is used once and that nothing else reads.")
