"""Operations of a spiking network, counted exactly, and what they cost in energy.

An input event (a spike, or any non-zero value) costs one operation for each of its synapses: its fan-out. Fan-outs are
those of the actual graph: a pixel at the border of a convolution has fewer targets than one in the middle, one that a
stride skips has fewer still, and one in a dropped odd row of a pooling has none. They are computed by sending ones
backwards through a copy of each synapse whose weights are ones, which counts targets instead of summing weights.

Conventions, following NeuroBench (Yik et al. 2025, "The NeuroBench framework for benchmarking neuromorphic computing
algorithms and systems") where it has one. All numbers are per image, over the whole window:

* A spike of value 1 or -1 costs an accumulate (AC) per target: the weight is added or subtracted.
* A real value costs a multiply-accumulate (MAC) per target, at every step (direct encoding; currents that reach a
  further synapse without a neuron between).
* Zeros cost nothing: neither silent inputs nor weights that are exactly 0. Biases are not synaptic operations.
* Average pooling of spikes costs one AC per spike: its factor, 1/4 for 2x2, is the same for all synapses of the
  neuron and folds into the threshold. A spike on an identity shortcut costs one AC. NeuroBench leaves both out; here
  they count, and are listed apart.
* A max-pooling gate of a converted network (`tfspike.neurons.gate`) passes spikes on; its comparisons are not counted.
* A current that a shortcut carries past neurons (`--shortcut=currents`) costs one AC per value and step where it is
  added to that of its block: it is stored for other neurons to read and cannot be accumulated in place, as the current
  of a convolution is. Its values are real, but nothing is multiplied. In the ANN it is one addition, as every identity.
* A membrane update is a step that changes a neuron's membrane potential; the first step counts for every neuron.
* The ANN of the same shape does one MAC for every connection, pooling one addition (AC) for every input; connections
  to padding, always zero, count in neither network.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfspike.checks import number
from tfspike.engine import known
from tfspike.engine import plan as plans
from tfspike.errors import UserError
from tfspike.neurons.encoders import DirectEncoder, Encoder, LatencyEncoder, PoissonEncoder
from tfspike.neurons.layers import SpikingLayer
from tfspike.neurons.normalisation import ThresholdNorm
from tfspike.neurons.over_time import OverTime, WindowDropout

# A normalisation folds into the weights in front of it (`tfspike.folding`), and a bias is no synaptic operation.
_NO_SYNAPSES = (WindowDropout, ThresholdNorm)
_SUMS = (keras.layers.Add, keras.layers.Subtract, keras.layers.Average)


@dataclasses.dataclass(frozen=True)
class Operations:
    """Operations per image.

    Attributes:
      macs: multiply-accumulates.
      acs: accumulates.
      updates: membrane updates; for an ANN, activations computed.
    """

    macs: float = 0.0
    acs: float = 0.0
    updates: float = 0.0

    def __add__(self, other: Operations) -> Operations:
        return Operations(self.macs + other.macs, self.acs + other.acs, self.updates + other.updates)


@dataclasses.dataclass(frozen=True)
class EnergyModel:
    """Energy of operations in pJ; the defaults are those of 45 nm CMOS, 32-bit floating point (Horowitz, ISSCC 2014).

    The two optional terms are off, as in most of the literature. For the memory term, every operation reads a weight,
    every membrane update reads and writes a membrane (of an ANN: writes and reads an activation), all of 32 bits, and
    sums stay in registers; 5 pJ is an on-chip SRAM access in the same technology, 640 pJ one of DRAM.

    Args:
      mac_pj: one multiply-accumulate (3.7 pJ multiplication and .9 pJ addition).
      ac_pj: one accumulate.
      update_pj: arithmetic of one membrane update; with the leak's multiplication, `mac_pj` is a fair value.
      memory_pj: one access to a 32-bit word.

    Raises:
      UserError: a value is negative or not finite.

    Examples:
      >>> EnergyModel().picojoules(Operations(macs=10, acs=100))
      136.0
    """

    mac_pj: float = 4.6
    ac_pj: float = 0.9
    update_pj: float = 0.0
    memory_pj: float = 0.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 0.0 <= number(value) < math.inf:
                raise UserError(f"`{field.name}` must be a finite number of at least 0, in pJ. "
                                f"Received: {field.name}={value!r}.")

    def describe(self) -> str:
        """The constants in words; those of 45 nm are named as such."""
        text = f"{self.mac_pj:g} pJ per multiply-accumulate, {self.ac_pj:g} pJ per accumulate"
        if self.update_pj:
            text += f", {self.update_pj:g} pJ per membrane update"
        if self.memory_pj:
            text += f", {self.memory_pj:g} pJ per access to a 32-bit word"
        return text + " (45 nm CMOS, 32-bit floating point)" * (self == EnergyModel())

    def picojoules(self, operations: Operations) -> float:
        """Energy per image, pJ."""
        words = operations.macs + operations.acs + 2.0 * operations.updates
        return (operations.macs * self.mac_pj + operations.acs * self.ac_pj + operations.updates * self.update_pj
                + words * self.memory_pj)


@dataclasses.dataclass(frozen=True)
class Synapse:
    """One group of connections: a layer with weights, a pooling, or an identity shortcut.

    Attributes:
      name: of the Keras layer.
      kind: "weights", "pooling" or "shortcut".
      source: the symbolic tensor that enters; its value is `[steps, B, *positions]`.
      events: "spikes" (all values -1, 0 or 1), "real", "mixed" (decided value by value), or "added" (real values that
        are added up and multiplied with nothing).
      fan_out: targets of every presynaptic position over weights that are not 0, int64 `[*positions]`.
      connections: of the whole group, weights that are 0 included and padding left out.
      target: name of the spiking layer or readout whose neurons it drives.
    """

    name: str
    kind: str
    source: keras.KerasTensor
    events: str
    fan_out: np.ndarray
    connections: int
    target: str

    def operations(self, events: np.ndarray, unit: np.ndarray | None = None) -> Operations:
        """Operations for these inputs.

        Args:
          events: non-zero values at every position, `[*positions]`.
          unit: those of them that are 1 or -1; only needed for mixed values.
        """
        total = float(np.sum(np.asarray(events, np.float64) * self.fan_out))
        if self.events == "mixed":
            acs = float(np.sum(np.asarray(unit, np.float64) * self.fan_out))
            return Operations(macs=total - acs, acs=acs)
        return Operations(macs=total) if self.events == "real" else Operations(acs=total)

    @property
    def ann(self) -> Operations:
        """What the same connections cost in an ANN, activations left out."""
        if self.kind == "weights":
            return Operations(macs=float(self.connections))
        return Operations(acs=float(self.connections))


def synapses(plan: plans.Plan) -> list[Synapse]:
    """Every group of connections of a network, in the order of the forward pass.

    Raises:
      UserError: a layer has weights but is none whose operations can be counted, Keras has quantised them or
        added to them (LoRA), or an operation of Keras makes one train of several.
    """
    found: list[dict[str, Any]] = []
    events = {plan.encoder.output: _encoded(plan.encoder.layer)}
    # 1 where a value can be other than 0: padding is not
    present = {plan.encoder.output: np.ones(plan.encoder.output.shape[2:], np.float32)}
    pending: dict[Any, list[dict[str, Any]]] = {}  # groups whose current has not reached a neuron yet
    readers = collections.Counter(x for call in plan.calls for x in call.sources)
    for call in (*plan.window, plan.readout):
        waiting = [group for x in call.sources for group in pending.get(x, [])]
        if isinstance(call.layer, SpikingLayer) or call is plan.readout:
            for group in waiting:
                group.setdefault("target", call.name)
            kind, there, waiting = "spikes", np.ones(call.args[0].shape[2:], np.float32), []
        else:
            kinds = ["stored" if events[x] == "current" and readers[x] > 1 else events[x] for x in call.sources]
            groups, kind, there = _through(call, call.sources, kinds, [present[x] for x in call.sources])
            found += groups
            waiting = waiting + groups
        for output in call.outputs:
            events[output], present[output], pending[output] = kind, there, waiting
    return [Synapse(**group) for group in found if "target" in group]


def _encoded(encoder: Encoder) -> str:
    encode = type(encoder).encode  # a subclass may have its own
    if encode is DirectEncoder.encode:
        return "real"
    return "spikes" if encode in (PoissonEncoder.encode, LatencyEncoder.encode) else "mixed"


def _through(call: plans.Call, sources: list[keras.KerasTensor], events: list[str],
             present: list[np.ndarray]) -> tuple[list[dict[str, Any]], str, np.ndarray]:
    """What a call without neurons adds: its groups of connections, the kind of values it gives, and where."""
    layer = call.layer.layer if isinstance(call.layer, OverTime) else call.layer
    name = call.name
    if isinstance(layer, _SUMS):
        groups = [_group(name, "shortcut", x, "added" if kind == "stored" else kind, np.ones(there.shape, np.int64),
                         there) for x, kind, there in zip(sources, events, present) if kind != "current"]
        sums = "current" if {"current", "stored", "real"} & set(events) else "mixed"
        return groups, sums, np.ones(call.output.shape[2:], np.float32)
    events = ["current" if kind == "stored" else kind for kind in events]  # what is not added up is like any other
    if isinstance(layer, (*known.WEIGHTED, *known.POOLINGS, *known.GLOBAL_POOLINGS)):
        if method := known.altered(layer):
            raise UserError(f"The operations of layer {name!r}, whose weights Keras' {method} has changed, cannot be "
                            "counted: look at the network before, which has the same connections.")
        shape = present[0].shape
        dense = fan_out(layer, shape, zero_weights=True)
        kernel = getattr(layer, "kernel", None)  # counted anew only where a weight is exactly 0: once costs a graph
        effective = dense if kernel is None or np.all(kernel.numpy()) else fan_out(layer, shape)
        if isinstance(layer, known.WEIGHTED):
            kind = "weights"
        else:
            kind = "shortcut" if math.prod(getattr(layer, "pool_size", (0,))) == 1 else "pooling"
        real = "added" if kind == "shortcut" else "real"  # a pooling of one pixel picks values, and multiplies none
        group = _group(name, kind, sources[0], real if events[0] == "current" else events[0], effective, present[0],
                       dense)
        return [group], "current", np.ones(call.output.shape[2:], np.float32)
    if getattr(layer, "weights", ()) and not isinstance(call.layer, _NO_SYNAPSES):
        instead = (", and in place of this one a depthwise convolution with one of 1x1 behind it"
                   if hasattr(layer, "depthwise_kernel") else "")
        raise UserError(f"The operations of layer {name!r}, a {type(layer).__name__}, cannot be counted; dense, "
                        f"convolution and average pooling layers can{instead}.")
    is_operation = not isinstance(layer, keras.layers.Layer)
    if is_operation and len(sources) > 1:
        raise UserError(f"The operations of {name!r}, which makes one train of several, cannot be counted; those of a "
                        "layer in its place can, such as keras.layers.Subtract()([a, b]) for a - b.")
    found = next((kind for kind in ("current", "real", "mixed") if kind in events), None)
    kind = found or ("mixed" if is_operation else "spikes")  # which an operation may make any values of
    if isinstance(call.layer, _NO_SYNAPSES):
        return [], kind, present[0]
    ones = {x: tf.constant(there[np.newaxis, np.newaxis]) for x, there in zip(sources, present)}  # [1, 1, *positions]
    args, kwargs = keras.tree.map_structure(lambda x: ones[x] if isinstance(x, keras.KerasTensor) else x,
                                            (call.args, call.kwargs))
    passed = call.layer(*args, **kwargs)
    return [], kind, (keras.ops.convert_to_numpy(passed)[0, 0] != 0).astype(np.float32)


def _group(name: str, kind: str, source: keras.KerasTensor, events: str, effective: np.ndarray, there: np.ndarray,
           dense: np.ndarray | None = None) -> dict[str, Any]:
    connections = int(np.sum((effective if dense is None else dense) * (there != 0)))
    return {"name": name, "kind": kind, "source": source, "events": events, "fan_out": effective,
            "connections": connections}


def fan_out(layer: keras.layers.Layer, shape: tuple[int, ...], zero_weights: bool = False) -> np.ndarray:
    """Targets of every presynaptic position of a linear layer, int64 `[*shape]`.

    Args:
      layer: a built dense, convolution or average pooling layer.
      shape: of its input, without the batch.
      zero_weights: also count connections whose weight is exactly 0.
    """
    if isinstance(layer, known.GLOBAL_POOLINGS):
        return np.ones(shape, np.int64)
    if isinstance(layer, known.POOLINGS):
        return _windows(layer, shape)
    # A copy, because activations would bend the count, and float32, because bfloat16 counts to 256 only
    counter = type(layer).from_config({**layer.get_config(), "activation": None, "use_bias": False, "dtype": "float32"})
    counter.build((None, *shape))
    kernel = tf.convert_to_tensor(layer.kernel.value).numpy()
    counter.kernel.assign(np.ones_like(kernel) if zero_weights else (kernel != 0).astype(kernel.dtype))

    # A graph leaves out the gradient of the kernel, which nobody asks for; and oneDNN's, of a strided 1x1 kernel of few
    # channels, writes beyond its memory (uxlfoundation/oneDNN#6035)
    @tf.function(autograph=False)
    def targets_of() -> tf.Tensor:
        inputs = tf.ones((1, *shape))
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(inputs)
            total = tf.reduce_sum(counter(inputs))
        return tape.gradient(total, inputs, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    # Traced once and run once, for this layer: called directly, TensorFlow would warn of retracing after five layers
    targets = targets_of.get_concrete_function()()
    return np.rint(targets.numpy()[0]).astype(np.int64)


def _windows(layer: keras.layers.Layer, shape: tuple[int, ...]) -> np.ndarray:
    """In how many windows of a pooling every position is, int64 `[*shape]`."""
    channels_last = layer.data_format == "channels_last"
    counts = np.ones((), np.int64)
    for size, pool, stride in zip(shape[:-1] if channels_last else shape[1:], layer.pool_size, layer.strides):
        same = layer.padding == "same"
        places = -(-size // stride) if same else (size - pool) // stride + 1
        padding = max((places - 1) * stride + pool - size, 0) // 2 if same else 0
        along = np.zeros(size, np.int64)
        for first in range(-padding, places * stride - padding, stride):
            along[max(first, 0):max(first + pool, 0)] += 1
        counts = np.multiply.outer(counts, along)
    return np.array(np.broadcast_to(counts[..., np.newaxis] if channels_last else counts, shape))
