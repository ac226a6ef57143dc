"""An ANN brought into the form that spiking neurons follow: synapses with a bias, ReLU, pooling, and nothing else.

Three things of a network as it was trained are none of a spiking one, and are computed by it all the same:

* **Batch normalisation** in inference is one factor f and one offset o per channel, which go into the layer with
  weights in front of it:

      f = gamma / sqrt(variance + epsilon)        o = beta - f mean        W <- W f        b <- b f + o

  A bias is a constant current, the same at every step. (Forgetting to fold is the commonest failure of conversions.)
* **An activation of a layer's own**, `Conv2D(..., activation="relu")`, becomes a ReLU layer behind it.
* **A softmax at the end** changes no order of the scores, so the membranes of the readout answer as it does.

Source: B. Rueckauer et al., "Conversion of continuous-valued deep networks to efficient event-driven networks for image
classification", Front. Neurosci. 11:682 (2017).
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tfspike.engine import known
from tfspike.engine import plan as plans
from tfspike.engine.folding import joined_once, merged
from tfspike.errors import UserError
from tfspike.neurons.normalisation import ThresholdNorm

WEIGHTED = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)
_NORMS = (ThresholdNorm, keras.layers.BatchNormalization)
_RELU, _SOFTMAX = keras.activations.relu, keras.activations.softmax


def simplified(model: keras.Model) -> keras.Model:
    """The same function but for a softmax at the end, without normalisations and activations within layers.

    Args:
      model: a functional Keras model.

    Returns:
      A copy, whose ReLU of `Conv2D(activation="relu", name="x")` is called "x_relu"; `model` itself where nothing
      changes.

    Raises:
      UserError: it is no functional model of one input and one output, or a normalisation does not follow a layer with
        weights that nothing else reads.
    """
    try:
        inputs, calls, outputs = plans.calls_of(model)
    except (AttributeError, ValueError, TypeError):
        raise UserError("The network to convert must be a functional Keras model such as models.create(..., "
                        f"neuron='relu'). Received: a {type(model).__name__}.") from None
    if len(inputs) != 1 or len(outputs) != 1:
        raise UserError("The network to convert must have one input and one output. "
                        f"Received: {len(inputs)} and {len(outputs)}.")
    norms = {call.source: call.layer for call in calls if isinstance(call.layer, _NORMS)}
    last = next(call for call in calls if call.output is outputs[0])
    if not norms and not any(_activation(call) for call in calls) and not _is_softmax(last.layer):
        return model
    _refuse_unfoldable(calls, norms)
    copies: dict[Any, keras.layers.Layer] = {}

    def handler(call: plans.Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layer, norm = call.layer, norms.get(call.output)
        if isinstance(layer, _NORMS) or (call is last and _is_softmax(layer)):
            return args[0]
        if not isinstance(layer, keras.layers.Layer):
            return layer(*args, **kwargs)  # an operation
        activation = _activation(call)
        if layer not in copies:
            changes: dict[str, Any] = {"activation": None} if activation else {}
            copies[layer] = plans.copy_of(layer, **changes, **({} if norm is None else {"use_bias": True}))
        x = copies[layer](*args, **kwargs)
        if activation is _RELU:
            x = keras.layers.ReLU(dtype=layer.dtype_policy, name=f"{call.name}_relu")(x)
        elif activation is _SOFTMAX and call is not last:
            x = keras.layers.Softmax(dtype=layer.dtype_policy, name=f"{call.name}_softmax")(x)
        return x

    image = keras.Input(inputs[0].shape[1:], dtype=inputs[0].dtype, name=inputs[0].name)
    values = plans.run(calls, {inputs[0]: image}, handler)
    result = keras.Model(image, values[outputs[0]], name=model.name)
    for call in calls:
        if call.layer in copies:
            norm = norms.get(call.output)
            copies[call.layer].set_weights(call.layer.get_weights() if norm is None
                                           else merged(call.layer, *_affine(norm)))
    return result


def _activation(call: plans.Call) -> Any:
    """The ReLU or softmax that a layer with weights ends with, or None."""
    found = getattr(call.layer, "activation", None) if isinstance(call.layer, WEIGHTED) else None
    return found if found in (_RELU, _SOFTMAX) else None


def _is_softmax(layer: Any) -> bool:
    return isinstance(layer, keras.layers.Softmax) or (
        isinstance(layer, keras.layers.Activation) and layer.activation is _SOFTMAX)


def _affine(norm: keras.layers.Layer) -> tuple[np.ndarray, np.ndarray]:
    """Factor and offset per channel `[C]` of inference."""
    if isinstance(norm, ThresholdNorm):
        factor, offset = norm.folded()
        return factor.numpy(), offset.numpy()
    mean, variance, gamma, beta = (None if x is None else keras.ops.convert_to_numpy(x) for x in (
        norm.moving_mean, norm.moving_variance, norm.gamma, norm.beta))
    factor = (1.0 if gamma is None else gamma) / np.sqrt(variance + norm.epsilon)
    return factor, (0.0 if beta is None else beta) - factor * mean


def _refuse_unfoldable(calls: tuple[plans.Call, ...], norms: dict[Any, keras.layers.Layer]) -> None:
    foldable = {call.output for call in joined_once(calls) if isinstance(call.layer, WEIGHTED)
                and call.layer.activation is keras.activations.linear and not known.own_synapse(call.layer)}
    for source, norm in norms.items():
        axis = getattr(norm, "axis", -1)
        if source not in foldable or axis not in (-1, len(source.shape) - 1):
            raise UserError(f"The normalisation {norm.name!r} cannot be folded into weights: it must follow a Conv2D, "
                            "DepthwiseConv2D or Dense layer without activation that is used once and that nothing else "
                            "reads, and normalise its channels.")
