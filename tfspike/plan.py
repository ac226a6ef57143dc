"""A functional Keras model as an ordered list of layer calls, split where the window of time begins and ends.

Everything that runs a model in another way than layer by layer (the chunked engine, analysis, export) walks this list
instead of the model's own `call`, with a handler that says what to do at each layer.
"""

from __future__ import annotations

import collections
import dataclasses
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import keras

from tfspike.encoders import Encoder
from tfspike.layers import OverTime, Readout, SpikingLayer, WindowDropout
from tfspike.normalisation import ThresholdNorm

# Layers that treat every step alone and need no help: they may be given any stretch of a window.
_STEPWISE = (OverTime, keras.layers.Add, keras.layers.Subtract, keras.layers.Average, keras.layers.Concatenate,
             keras.layers.Identity, keras.layers.Activation)


_LINEAR = (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D,
           keras.layers.DepthwiseConv2D, keras.layers.Conv2DTranspose, keras.layers.AveragePooling1D,
           keras.layers.AveragePooling2D, keras.layers.AveragePooling3D, keras.layers.GlobalAveragePooling2D,
           keras.layers.ZeroPadding2D, keras.layers.Cropping2D, keras.layers.UpSampling2D, keras.layers.Flatten,
           keras.layers.Reshape, keras.layers.Permute, keras.layers.Identity, keras.layers.Rescaling)


def is_linear(layer: keras.layers.Layer) -> bool:
    """Whether a layer, not of neurons, gives the mean of its outputs for the mean of its inputs."""
    if isinstance(layer, keras.layers.Activation):
        return False
    if not isinstance(layer, OverTime):
        return True
    inner = layer.layer
    if isinstance(inner, keras.layers.MaxPooling2D) and set(inner.pool_size) == {1}:
        return True  # picks pixels
    return isinstance(inner, _LINEAR) and getattr(inner, "activation", None) in (None, keras.activations.linear)


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a layer; tensors are symbolic and stand for values by identity.

    `name` is the layer's, or "layer_call2" for the second call of one that is called more than once.
    """

    layer: keras.layers.Layer
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Any, ...]
    name: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """The calls of a model with one encoder and one readout.

    Attributes:
      inputs: the model's symbolic inputs.
      outputs: its symbolic outputs.
      before: calls in front of the encoder.
      encoder: the encoder's call.
      window: calls on spike trains, in the order of the forward pass.
      readout: the readout's call.
      after: calls behind the readout.
    """

    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    before: tuple[Call, ...]
    encoder: Call
    window: tuple[Call, ...]
    readout: Call
    after: tuple[Call, ...]

    @property
    def spiking(self) -> list[Call]:
        """Calls of spiking layers, in the order of the forward pass."""
        return [call for call in self.window if isinstance(call.layer, SpikingLayer)]

    @property
    def norms(self) -> list[Call]:
        """Calls of normalisations that are not frozen, in the order of the forward pass; in training they look at a
        whole window."""
        return [call for call in self.window if isinstance(call.layer, ThresholdNorm) and call.layer.trainable]

    @property
    def dropouts(self) -> list[Call]:
        """Calls of dropout layers, in the order of the forward pass."""
        return [call for call in self.window if isinstance(call.layer, WindowDropout)]


class _Stand(keras.layers.Layer):
    """Stands for a layer while the graph is read: same output shapes, no weights, no trace left on the layer."""

    def __init__(self, layer: keras.layers.Layer):
        super().__init__(name=layer.name, dtype=layer.dtype_policy)
        self.stands_for = (layer,)
        self.built = True

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        return self.stands_for[0].compute_output_spec(*args, **kwargs)


Handler = Callable[[Call, tuple[Any, ...], dict[str, Any]], Any]


def calls_of(model: keras.Model) -> tuple[tuple[Any, ...], tuple[Call, ...], tuple[Any, ...]]:
    """`(inputs, calls, outputs)` of a functional model, calls in the order of the forward pass."""
    calls: list[Call] = []
    taken = {layer.name for layer in model.layers}
    times: collections.Counter[int] = collections.Counter()

    def record(stand: Any, *args: Any, **kwargs: Any) -> Any:
        # A call with training=True would make that the default of whatever Keras call this happens within
        outputs = stand(*args, **{name: value for name, value in kwargs.items() if name != "training"})
        times[id(stand)] += 1
        name, number = stand.name, times[id(stand)]
        while number > 1 and name in taken:
            name, number = f"{stand.name}_call{number}", number + 1
        taken.add(name)
        calls.append(Call(stand.stands_for[0], args, kwargs, tuple(keras.tree.flatten(outputs)), name))
        return outputs

    graph = keras.Model(model.inputs, model.outputs)
    clone = keras.models.clone_model(graph, clone_function=_stand, call_function=record)
    return tuple(clone.inputs), tuple(calls), tuple(clone.outputs)


class _OperationStand(keras.Operation):
    """The same for an operation of `keras.ops` in the graph."""

    def __init__(self, operation: keras.Operation):
        super().__init__(name=operation.name)
        self.stands_for = (operation,)

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        return self.stands_for[0].compute_output_spec(*args, **kwargs)


def _stand(layer: Any) -> Any:
    return _Stand(layer) if isinstance(layer, keras.layers.Layer) else _OperationStand(layer)


def in_phase(training: bool | None) -> Handler:
    """The handler that calls the layer, in training or in inference.

    A graph holds every layer's default in place of that: `training=True` of Keras' augmentation, for one, and nothing
    where the default is None.
    """

    def handler(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if "training" in inspect.signature(call.layer.call).parameters:
            kwargs = {**kwargs, "training": bool(training)}
        return call.layer(*args, **kwargs)

    return handler


def trace(model: keras.Model) -> Plan | None:
    """The plan of `model`, or None where it is not one window between one encoder and one readout, each with nothing
    around it that bypasses it.

    Layers that mix steps (anything but `OverTime`, merges, spiking layers, dropout and `ThresholdNorm`) rule a plan
    out, and so do several inputs and calls that say more than their input (`initial_state`, `return_state`,
    `every_step`, `training`, `seed`): such a model is computed layer by layer, as Keras computes it.
    """
    inputs, calls, outputs = calls_of(model)
    if len(inputs) != 1 or any(_is_special(call) for call in calls):
        return None
    encoders = [call for call in calls if isinstance(call.layer, Encoder)]
    readouts = [call for call in calls if isinstance(call.layer, Readout)]
    if len(encoders) != 1 or len(readouts) != 1:
        return None
    encoder, readout = encoders[0], readouts[0]
    in_window = {id(encoder.outputs[0])}
    behind: set[int] = set()
    before, window, after = [], [], []
    for call in calls:
        sources = {id(x) for x in keras.tree.flatten((call.args, call.kwargs)) if isinstance(x, keras.KerasTensor)}
        if call is encoder:
            continue
        if call is readout:
            behind.add(id(call.outputs[0]))
        elif sources & behind:
            if sources - behind:
                return None  # it reads spikes, or what is in front of the encoder, as well
            after.append(call)
            behind.update(map(id, call.outputs))
        elif sources & in_window:
            if sources - in_window or not isinstance(
                    call.layer, (*_STEPWISE, SpikingLayer, WindowDropout, ThresholdNorm)):
                return None
            window.append(call)
            in_window.update(map(id, call.outputs))
        else:
            before.append(call)
    if any(id(output) not in behind for output in outputs) or not any(
            isinstance(call.layer, SpikingLayer) for call in window):
        return None
    return Plan(inputs, outputs, tuple(before), encoder, tuple(window), readout, tuple(after))


def _is_special(call: Call) -> bool:
    """Whether a layer of ours is called with more than its input."""
    ours = isinstance(call.layer, (Encoder, SpikingLayer, Readout, WindowDropout, ThresholdNorm))
    return ours and (len(call.args) != 1 or any(value is not None and value is not False
                                                for value in call.kwargs.values()))


plain = in_phase(False)  # what stands in a window does the same in both phases, but for dropout and normalisation


def copy_of(layer: keras.layers.Layer, **changes: Any) -> keras.layers.Layer:
    """A new layer of the same configuration but for `changes`; its weights are its own."""
    return type(layer).from_config({**layer.get_config(), **changes})


def run(calls: Iterable[Call], values: dict[int, Any], handler: Handler = plain) -> dict[int, Any]:
    """Runs calls in order.

    Args:
      calls: part of a plan.
      values: the value of every symbolic tensor known so far, by its `id`; not changed.
      handler: what to do at each call, `(call, args, kwargs) -> output`.

    Returns:
      `values` with the outputs of the calls added.
    """
    values = dict(values)

    def value(x: Any) -> Any:
        return values[id(x)] if isinstance(x, keras.KerasTensor) else x

    for call in calls:
        args, kwargs = keras.tree.map_structure(value, (call.args, call.kwargs))
        outputs = handler(call, args, kwargs)
        values.update(zip(map(id, call.outputs), keras.tree.flatten(outputs)))
    return values
