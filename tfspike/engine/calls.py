"""The calls of a functional Keras model's layers, in the order of the forward pass."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import keras


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer. Its tensors are symbolic; they, and calls themselves, are keys of dictionaries by identity.

    `name` is the layer's, or "layer_call2" for the second call of one that is called more than once.
    """

    layer: keras.layers.Layer
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Any, ...]
    name: str

    @property
    def sources(self) -> list[keras.KerasTensor]:
        """The symbolic tensors that it reads."""
        return [x for x in keras.tree.flatten((self.args, self.kwargs)) if isinstance(x, keras.KerasTensor)]

    @property
    def source(self) -> keras.KerasTensor:
        """The first of them: the only one, of layers of ours."""
        return self.sources[0]

    @property
    def output(self) -> keras.KerasTensor:
        """The first of its outputs."""
        return self.outputs[0]


class _Standing:
    """What stands for layers and operations share. They are called with the symbolic tensors alone, in a row: Keras
    would take a state and `return_state=True` for one nested argument, which must not mix tensors and others."""

    given: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]  # the arguments of the present call, as they were
    stands_for: tuple[Any]

    def compute_output_spec(self, *tensors: Any) -> Any:
        ahead = iter(tensors)
        args, kwargs = keras.tree.map_structure(lambda x: next(ahead) if isinstance(x, keras.KerasTensor) else x,
                                                self.given())
        return self.stands_for[0].compute_output_spec(*args, **kwargs)


class _Stand(_Standing, keras.layers.Layer):
    """Stands for a layer while the graph is read: same output shapes, no weights, no trace left on the layer."""

    def __init__(self, layer: keras.layers.Layer):
        super().__init__(name=layer.name, dtype=layer.dtype_policy)
        self.stands_for = (layer,)
        self.built = True


def calls_of(model: keras.Model) -> tuple[tuple[Any, ...], tuple[Call, ...], tuple[Any, ...]]:
    """`(inputs, calls, outputs)` of a functional model, calls in the order of the forward pass.

    Those of functional and sequential models within it, of one input and one output, stand in its place, but
    not where two layers have one name: whoever makes a model of the calls could not tell them apart.
    """
    inputs, found, outputs = _recorded(model)
    inside = [part for call in found for part in _parts(call)]
    layers = {id(call.layer): call.layer.name for call in inside}
    calls = inside if len(set(layers.values())) == len(layers) else found
    taken, times = {call.layer.name for call in calls}, collections.Counter[int]()
    named = []
    for call in calls:
        times[id(call.layer)] += 1
        name, number = call.layer.name, times[id(call.layer)]
        while number > 1 and name in taken:
            name, number = f"{call.layer.name}_call{number}", number + 1
        taken.add(name)
        named.append(dataclasses.replace(call, name=name))
    return inputs, tuple(named), outputs


def _recorded(model: keras.Model, inputs: list[Any] | None = None) -> tuple[Any, list[Call], Any]:
    """The same without names and without a look into models within, for symbolic inputs like the model's own."""
    calls: list[Call] = []

    def record(stand: Any, *args: Any, **kwargs: Any) -> Any:
        # A call with training=True would make that the default of whatever Keras call this happens within
        shown = {name: value for name, value in kwargs.items() if name != "training"}
        stand.given = lambda: (args, shown)
        outputs = stand(*[x for x in keras.tree.flatten((args, shown)) if isinstance(x, keras.KerasTensor)])
        layer, args = _as_layer(stand.stands_for[0], args)
        calls.append(Call(layer, args, kwargs, tuple(keras.tree.flatten(outputs)), ""))
        return outputs

    graph = keras.Model(model.inputs, model.outputs)
    clone = keras.models.clone_model(graph, inputs, clone_function=_stand, call_function=record)
    return tuple(clone.inputs), calls, tuple(clone.outputs)


def _parts(call: Call) -> list[Call]:
    """The calls within the call of a model that does what its graph says, no more; of anything else the call itself."""
    model = call.layer
    if not isinstance(model, keras.Model) or any(value is not None for value in call.kwargs.values()):
        return [call]
    if not type(model).__module__.startswith("keras.") or len(call.args) != 1 or len(model.inputs) != 1:
        return [call]  # a class of the user's own, or of several inputs
    ends, declared = (call.source, *call.outputs), model.inputs[0]
    if len(ends) != 2 or (len(declared.shape), declared.dtype) != (len(ends[0].shape), ends[0].dtype):
        return [call]  # which Keras would adapt
    inputs, calls, outputs = _recorded(model, [keras.Input(batch_shape=ends[0].shape, dtype=ends[0].dtype)])
    stand_for = dict(zip((*inputs, *outputs), ends))

    def joined(x: Any) -> Any:
        return stand_for.get(x, x) if isinstance(x, keras.KerasTensor) else x

    within = [dataclasses.replace(inner, **{name: keras.tree.map_structure(joined, getattr(inner, name))
                                            for name in ("args", "kwargs", "outputs")}) for inner in calls]
    return [part for inner in within for part in _parts(inner)]


class _OperationStand(_Standing, keras.Operation):
    """The same for an operation of `keras.ops` in the graph."""

    def __init__(self, operation: keras.Operation):
        super().__init__(name=operation.name)
        self.stands_for = (operation,)


def _as_layer(operation: Any, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """A sum of two trains that was written a + b as the layer that is known to keep steps apart; all else as it is."""
    kind = type(operation)
    if (kind.__name__, kind.__module__) != ("Add", keras.ops.add.__module__) or len(args) != 2:
        return operation, args
    if not all(isinstance(x, keras.KerasTensor) and "float" in x.dtype for x in args):
        return operation, args
    if args[0].shape != args[1].shape or args[0].dtype != args[1].dtype:
        return operation, args
    return keras.layers.Add(name=operation.name, dtype=args[0].dtype), (list(args),)


def _stand(layer: Any) -> Any:
    return _Stand(layer) if isinstance(layer, keras.layers.Layer) else _OperationStand(layer)
