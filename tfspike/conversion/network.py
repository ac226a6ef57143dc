"""A ReLU network read as neurons and the synapses between them, and rebuilt with spiking ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import keras

from tfspike.conversion.methods import Method
from tfspike.conversion.simplified import WEIGHTED, simplified
from tfspike.engine import plan as plans
from tfspike.engine.precision import in_float32
from tfspike.errors import UserError
from tfspike.models.spiking_model import SpikingModel
from tfspike.neurons import encoders
from tfspike.neurons.bipolar import BipolarIF
from tfspike.neurons.gate import MaxPoolGate
from tfspike.neurons.layers import LIF, PoolingIF, Readout
from tfspike.neurons.over_time import OverTime
from tfspike.neurons.quantised import QuantisedReLU

INPUT = ""  # where a path begins that comes from the encoder
SHARED = "\0shared"  # the target of currents that several layers of neurons read: they keep the ANN's own units

_PASSING = (keras.layers.ZeroPadding2D, keras.layers.Flatten, keras.layers.Identity)
_LEGAL = ("Conv2D, DepthwiseConv2D and Dense, normalisation behind them, ReLU, AveragePooling2D and MaxPooling2D "
          "behind a ReLU, Add, ZeroPadding2D, Flatten and dropout")

_NEURONS = ("relu", "pool", "gate")  # kinds of steps that need the spikes in front of them


@dataclasses.dataclass(frozen=True)
class Step:
    """One call of a layer.

    Attributes:
      call: the call.
      kind: "weights", "relu", "pool" (an average of several, which gets a neuron), "gate" (a maximum), "sum", "pass" or
        "drop".
      target: the ReLU that its current goes to, None for the readout, or `SHARED`. Meaningless where no current comes
        out.
    """

    call: plans.Call
    kind: str
    target: str | None


@dataclasses.dataclass(frozen=True)
class Neurons:
    """A layer of neurons, ReLU or pooling, or a gate, and what drives it.

    Attributes:
      step: the layer's step.
      path: calls from the rates in front to what enters the layer (of a pooling: the average itself, too).
      roots: the tensors that the path begins with: those of other neurons, or the input.
    """

    step: Step
    path: tuple[plans.Call, ...]
    roots: frozenset[Any]


class Network:
    """A ReLU network, read.

    Args:
      model: a functional Keras model from images to logits, such as `tfspike.models.ReluModel`.
      pooling: "neuron" puts a neuron behind every average pooling, "average" none.

    Attributes:
      input, output: symbolic tensors.
      steps: calls in the order of the forward pass.
      neurons: layers of neurons, in that order.
      origin: the ReLU (or `INPUT`) whose rates a symbolic tensor carries.

    Raises:
      UserError: a layer or an arrangement that spiking neurons cannot follow.
    """

    def __init__(self, model: keras.Model, pooling: str = "neuron"):
        model = simplified(model)
        inputs, calls, outputs = plans.calls_of(model)
        self.name: str = model.name
        self._pooling = pooling
        self.input, self.output = inputs[0], outputs[0]
        self.origin: dict[Any, str | None] = {self.input: INPUT}
        kinds = [self._kind(call) for call in calls]
        if self.origin[self.output] is not None:
            raise UserError("The network to convert must end with logits, the sums of a layer with weights; it ends "
                            f"with the rates of {calls[-1].layer.name!r}. Leave its last activation out.")
        targets = self._targets(calls, kinds)
        self.steps = [Step(call, kind, targets.get(call.output)) for call, kind in zip(calls, kinds)]
        self.neurons = self._neurons()
        if not self.relus:
            raise UserError("The network to convert has no ReLU, so nothing in it could fire.")

    @property
    def relus(self) -> list[str]:
        """Names of the ReLU layers, in the order of the forward pass."""
        return [neurons.step.call.name for neurons in self.neurons if neurons.step.kind == "relu"]

    def _kind(self, call: plans.Call) -> str:
        """What a call is; notes whose rates its output carries."""
        layer, sources = call.layer, [self.origin[x] for x in call.sources]
        kind = _kind_of(layer)
        if kind == "relu":
            if sources != [None]:
                raise UserError(f"ReLU {layer.name!r} must follow a layer with weights or a sum; leave it out.")
            self.origin[call.output] = call.name
            return kind
        if kind in ("pool", "gate") and math.prod(layer.pool_size) == 1:
            kind = "pass"
        if kind == "pool" and self._pooling == "average":
            kind = "pass"
        if kind in ("pool", "gate") and sources in ([None], [INPUT]):
            what = "Average pooling" if kind == "pool" else "Max pooling"
            raise UserError(f"{what} {layer.name!r} must follow a ReLU, because it is spikes that are pooled; move it "
                            "behind the next ReLU.")
        self.origin[call.output] = None if kind in ("weights", "sum") else sources[0]
        return kind

    def _targets(self, calls: tuple[plans.Call, ...], kinds: list[str]) -> dict[Any, str | None]:
        """Where each current goes: the one ReLU, None for the readout, or `SHARED`.

        Currents that are added up have one unit, whatever else they go to.
        """
        group = {x: {x} for call in calls for x in (*call.sources, call.output)}  # currents of one unit
        for call, kind in zip(calls, kinds):
            if kind != "weights" and self.origin[call.output] is None:  # sums, and what passes currents on
                joined = set().union(*(group[x] for x in (*call.sources, call.output) if self.origin[x] is None))
                group.update(dict.fromkeys(joined, joined))
        readers: dict[Any, set[str | None]] = {self.output: {None}}
        for call, kind in zip(calls, kinds):
            if kind == "relu":
                readers.setdefault(call.sources[0], set()).add(call.name)
        found: dict[Any, str | None] = {}
        for call in calls:
            ends = set().union(*(readers.get(x, set()) for x in group[call.output]))
            found[call.output] = next(iter(ends), None) if len(ends) < 2 else SHARED
        return found

    def _neurons(self) -> list[Neurons]:
        made: list[Neurons] = []
        producers = {step.call.output: step for step in self.steps}
        for step in self.steps:
            if step.kind not in _NEURONS:
                continue
            wanted = set(step.call.sources)
            path: list[plans.Call] = [step.call] if step.kind == "pool" else []
            for earlier in reversed(self.steps[:self.steps.index(step)]):
                if earlier.call.output in wanted and earlier.kind not in _NEURONS:
                    path.insert(0, earlier.call)
                    wanted |= set(earlier.call.sources)
            roots = {x for x in wanted if x not in producers or producers[x].kind in _NEURONS}
            made.append(Neurons(step, tuple(path), frozenset(roots)))
        return made

    def spiking(self, scales: Mapping[str, float], timesteps: int, method: Method, gradient: str,
                seed: int) -> SpikingModel:
        """The same network of spiking neurons.

        Args:
          scales, timesteps, gradient, seed: as for `tfspike.conversion.build`.
          method: what its neurons are.
        """
        image = keras.Input(tuple(self.input.shape[1:]), dtype="float32", name="input")
        x = encoders.create(method.encoder, timesteps, seed=seed, name="encoder")(image)
        units = _Units(self, scales)
        weights: list[tuple[Any, list[Any]]] = []
        steps = {step.call: step for step in self.steps}

        def handler(call: plans.Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            step, layer = steps[call], call.layer
            if step.kind == "drop":
                return args[0]
            if step.kind == "relu":
                name = f"{call.name.removesuffix('_relu')}_lif"
                threshold = units.of_rates(call.name) if units.target(call.source) == SHARED else 1.0
                if method.bipolar:
                    return BipolarIF(threshold, method.start, gradient, dtype=layer.dtype_policy, name=name)(*args)
                return LIF(1.0, threshold, gradient, reset=method.reset, start=method.start, dtype=layer.dtype_policy,
                           name=name)(*args)
            if step.kind == "gate":
                return MaxPoolGate.like(layer, dtype=layer.dtype_policy, name=call.name)(*args)
            if step.kind == "sum":
                parts = zip(keras.tree.flatten(args), call.sources)
                return plans.copy_of(layer)([_rescaled(x, units.factor(source, call.output), layer, i)
                                             for i, (x, source) in enumerate(parts)])
            if isinstance(layer, keras.layers.Activation):  # a linear one, in front of the readout
                return args[0]
            inner = plans.copy_of(layer, name="dense" if isinstance(layer, keras.layers.Dense) else "conv")
            short = call.name.removesuffix("_average")
            averages = isinstance(layer, keras.layers.AveragePooling2D) and step.kind == "pass"
            out = OverTime(inner, name=short if averages else call.name)(*args)
            if step.kind == "weights":
                kernel, *bias = map(keras.ops.convert_to_numpy, layer.weights)
                weights.append((inner, [kernel * units.factor(call.source, call.output),
                                        *(value / units.of(call.output) for value in bias)]))
            if step.kind == "pool":
                out = PoolingIF(pooling_threshold(layer.pool_size), gradient, dtype=layer.dtype_policy,
                                name=short if short != call.name else f"{short}_if")(out)
            return out

        values = plans.run([step.call for step in self.steps], {self.input: x}, handler)
        model = SpikingModel(image, Readout(1.0, name="readout")(values[self.output]), name=self.name)
        for layer, of_layer in weights:
            layer.set_weights(of_layer)
        # in 16 bits a current would be rounded before and after its bias
        return in_float32(model) if any(len(of_layer) > 1 for _, of_layer in weights) else model


class _Units:
    """What a value of 1 of each tensor of the spiking network stands for in the ANN.

    Args:
      network: that was read.
      scales: of its ReLU layers.
    """

    def __init__(self, network: Network, scales: Mapping[str, float]):
        self._origin, self._scales = network.origin, {INPUT: 1.0, **scales}
        self._targets = {step.call.output: step.target for step in network.steps}

    def of_rates(self, relu: str) -> float:
        """Of a spike per step of this ReLU's neurons."""
        return float(self._scales[relu])

    def target(self, current: Any) -> str | None:
        """The ReLU that a current goes to, None, or `SHARED`."""
        return self._targets[current]

    def of(self, x: Any) -> float:
        """Of a symbolic tensor: a rate's is its scale, a current's that of the neurons it goes to."""
        relu = self._origin[x]
        if relu is None:
            relu = self._targets[x]
            if relu is None or relu == SHARED:
                return 1.0
        return self.of_rates(relu)

    def factor(self, source: Any, output: Any) -> float:
        """What brings values of one tensor into the unit of another."""
        return self.of(source) / self.of(output)


def pooling_threshold(pool_size: tuple[int, ...], exact: bool = True) -> float:
    """Of neurons that fire with the n-th spike of n pixels: what the sum of n spikes, over n, exceeds and n - 1 do not.

    Args:
      pool_size: of the average in front, n pixels in all.
      exact: multiples of 1/n are added up without rounding where n is a power of 2: the threshold is 1 - 1/n then, .75
        of 2x2. Elsewhere a rounded sum of n - 1 spikes might exceed that, and it lies halfway to the sum of n.
    """
    pixels = math.prod(pool_size)
    return 1.0 - (1.0 if exact and pixels & (pixels - 1) == 0 else 0.5) / pixels


def drops(layer: Any) -> bool:
    """Whether this is dropout, Keras' or the library's, which inference leaves out."""
    return isinstance(layer, keras.layers.Dropout) or hasattr(layer, "draw_mask")


def _kind_of(layer: keras.layers.Layer) -> str:
    """What a layer is to the conversion; refuses what it cannot be anything to."""
    name, kind = layer.name, type(layer).__name__
    if isinstance(layer, WEIGHTED) and type(layer) in WEIGHTED:
        if layer.activation is not keras.activations.linear:
            raise UserError(f"Layer {name!r} has an activation of its own; give it a ReLU layer behind it instead.")
        return "weights"
    plain = isinstance(layer, keras.layers.ReLU) and layer.max_value is None and not (
        layer.negative_slope or layer.threshold)
    rectifies = isinstance(layer, keras.layers.Activation) and layer.activation is keras.activations.relu
    if plain or rectifies or isinstance(layer, QuantisedReLU):
        return "relu"
    if isinstance(layer, keras.layers.AveragePooling2D):
        return "pool"
    if isinstance(layer, keras.layers.MaxPooling2D):
        return "gate"
    if isinstance(layer, keras.layers.Add):
        return "sum"
    if drops(layer):
        return "drop"
    if isinstance(layer, _PASSING) or (
            isinstance(layer, keras.layers.Activation) and layer.activation is keras.activations.linear):
        return "pass"
    raise UserError(f"Layer {name!r}, a {kind}, has no counterpart among integrate-and-fire neurons. Conversion takes "
                    f"{_LEGAL}.")


def _rescaled(x: Any, factor: float, layer: keras.layers.Layer, position: int) -> Any:
    """The factor of an identity shortcut, which has no weights to take it; a current has its factor already (1)."""
    if factor == 1.0:
        return x
    scale = keras.layers.Rescaling(factor, dtype=layer.dtype_policy, name="rescaling")
    return OverTime(scale, name=f"{layer.name}_identity{position}")(x)
