"""What a network costs before it runs: every layer's shape, parameters, multiply-accumulates and memory.

The memory estimate follows the engine (`tfspike.engine`): states and packed spikes live through the window, everything
else lives for one chunk of steps, and either the forward or the backward pass sets the peak. It was fitted to and is
tested against the resident memory of whole training processes; it holds within 25 %.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import cast

import keras

from tfspike.analysis.free_memory import free_memory
from tfspike.engine import kernels
from tfspike.engine import plan as plans
from tfspike.engine.convolution import macs_of
from tfspike.models.ann import ReluModel
from tfspike.models.network import Network
from tfspike.models.spiking_model import SpikingModel
from tfspike.neurons.layers import SpikingLayer
from tfspike.neurons.over_time import OverTime, WindowDropout, may_be_trained
from tfspike.neurons.slopes import SlopeRule, kind_of

# Bytes that do not follow from shapes, fitted to measured processes: allocator, thread pools, traced and optimised
# graphs (which grow with the layers, and more with a backward pass over steps).
FRAMEWORK = 55e6
FRAMEWORK_PER_LAYER = {"rate": 3e6, "event": 6e6}
# The compiler of the kernel "xla" and what it holds, once per process.
COMPILER = 60e6
# Tensors the size of the largest layer's chunk that exist at once in a pass: currents, spikes, and the steps before
# they are joined. In float32 under mixed precision as well, as neurons add up currents in float32.
CHUNK_TENSORS = 3
# More of them where a normalisation needs a window of more than 8 steps in one chunk: currents before and behind it,
# and the spikes of 8 steps each before they are joined.
LONG_CHUNK_TENSORS = 4
# A window's recorded spikes exist twice while the chunks' parts are joined to one tensor.
RECORD_COPIES = 2
# Bytes per neuron and step that training layer by layer keeps besides the spikes: currents in front of a normalisation,
# in float32, and with a surrogate those behind it and the membranes. "rate" needs their means alone.
LAYERED_BYTES = {"rate": 0, "event": 4}
LAYERED_SURROGATE_BYTES = {"rate": 0, "event": 8}
OPTIMIZER_SLOTS = {"sgd": 0, "adam": 2, "adamw": 2}  # float32 values per weight


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """One layer of the forward pass.

    Attributes:
      name: of the layer.
      kind: its class; for `OverTime` that of the layer inside.
      output_shape: of one sample at one step (of one sample behind the readout).
      parameters: numbers that are trained or frozen.
      macs_per_step: multiply-accumulates of the synapses per image and step, all inputs taken as active.
      memory: bytes for the whole batch by part: "weights" (with gradients and optimiser), "states" (membrane, count,
        trace; dropout masks), "record" (packed spikes of the window, and a surrogate's values), "chunk" (spikes of a
        chunk that its backward pass keeps).
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    macs_per_step: int
    memory: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Memory:
    """Estimated memory of a process above that of one that has only imported TensorFlow, bytes.

    Attributes:
      weights: parameters, gradients, optimiser slots, and copies in another precision.
      states: membrane, count and trace of every neuron, and dropout masks.
      record: spikes of the window, one bit per neuron-step, kept for the backward pass ("event").
      forward: the largest chunk on its way through a layer.
      backward: chunk of spikes, slopes and carried gradients in the backward pass; 0 in inference.
      framework: graphs, allocator and threads.
    """

    weights: int
    states: int
    record: int
    forward: int
    backward: int
    framework: int

    @property
    def peak(self) -> int:
        """The largest sum that exists at once. The backward pass no longer needs all states: what it needs is in it."""
        return self.weights + self.record + self.framework + max(self.states + self.forward, self.backward)


def layers(model: keras.Model, batch_size: int, training: bool = True, optimizer: str = "sgd") -> list[LayerRow]:
    """Every layer from encoder to readout, in the order of the forward pass.

    Args:
      model: a spiking model with one window (`SpikingModel.plan`).
      batch_size: images per step and device.
      training: count what a training step keeps; else inference.
      optimizer: "sgd", "adam" or "adamw".

    Raises:
      UserError: the model is not one window between one encoder and one readout.
    """
    context = _Context(model, batch_size, training, optimizer)
    plan = context.plan
    encoder = LayerRow(plan.encoder.layer.name, type(plan.encoder.layer).__name__, _sample(plan.encoder), 0, 0, {})
    readout = LayerRow(plan.readout.layer.name, type(plan.readout.layer).__name__,
                       tuple(plan.readout.outputs[0].shape[1:]), 0, 0, {})
    return [encoder, *[_row(call, context) for call in plan.window], readout]


def memory(model: keras.Model, batch_size: int, training: bool = True, optimizer: str = "sgd") -> Memory:
    """The estimate for a whole process; arguments as for `layers`. Data held in memory come on top."""
    context = _Context(model, batch_size, training, optimizer)
    rows = layers(model, batch_size, training, optimizer)

    def total(part: str) -> int:
        return sum(row.memory.get(part, 0) for row in rows)

    neurons = batch_size * sum(math.prod(_sample(call)) for call in context.plan.spiking)
    largest = batch_size * max(math.prod(_sample(call)) for call in context.plan.window)
    long = not context.by_layers and context.chunk > kernels.MOST_STEPS
    forward = (CHUNK_TENSORS + LONG_CHUNK_TENSORS * long) * 4 * context.chunk * largest
    backward = 0
    if training and context.gradient == "event":
        # slopes, and delta carried from one chunk to the one before (old and new)
        backward = total("chunk") + context.masks(rows) + 3 * 4 * neurons + forward
    elif training and context.gradient == "eprop":
        # a second pass, with traces of every train, and what it keeps of a chunk
        backward = total("chunk") + context.masks(rows) + 2 * 4 * neurons + forward
    elif training:
        # counts, slopes, mean rates; one step in place of a chunk
        backward = total("chunk") + context.masks(rows) + 2 * 4 * neurons + CHUNK_TENSORS * 4 * largest
    per_layer = FRAMEWORK_PER_LAYER["event" if training and context.gradient == "event" else "rate"]
    engine = getattr(model, "engine", None)
    compiler = COMPILER if engine is not None and engine.kernel == "xla" else 0
    return Memory(total("weights"), total("states"), RECORD_COPIES * total("record"), forward, backward,
                  int(FRAMEWORK + compiler + per_layer * len(context.plan.spiking)))


def layer_table(model: Network, batch_size: int, training: bool = True, optimizer: str = "sgd",
                rates: Mapping[str, float] | None = None) -> str:
    """The layers as text, with totals and the memory estimate below.

    Args:
      model, batch_size, training, optimizer: as for `layers`.
      rates: mean firing rates by layer, spikes per step, to be shown beside.
    """
    if not model.is_spiking:
        return _ann_table(cast(ReluModel, model))
    rows = layers(model, batch_size, training, optimizer)
    head = ["layer", "kind", "output", "parameters", "MACs/step", "memory"] + (["spikes/step"] if rates else [])
    lines = [head]
    for row in rows:
        cells = [row.name, row.kind, "x".join(map(str, row.output_shape)), _whole(row.parameters),
                 _short(row.macs_per_step), _bytes(sum(row.memory.values()))]
        lines.append(cells + ([f"{rates[row.name]:.4f}" if row.name in rates else ""] if rates else []))
    macs = sum(row.macs_per_step for row in rows)
    totals = ["total", "", "", _whole(sum(row.parameters for row in rows)), _short(macs),
              _bytes(sum(sum(row.memory.values()) for row in rows))] + ([""] if rates else [])
    return "\n".join([*_aligned([*lines, totals]), "", _sentence(memory(model, batch_size, training, optimizer),
                                                                   cast(SpikingModel, model), batch_size, training,
                                                                   macs)])


def _ann_table(model: ReluModel) -> str:
    """The layers of a network without time. Its memory is not estimated: it is that of any Keras model."""
    rows = []
    for layer in model.layers:
        shape, parameters = tuple(layer.output.shape[1:]), _parameters(layer)
        given = [tuple(x.shape[1:]) for x in keras.tree.flatten(layer.input)] or [shape]  # an InputLayer is given none
        rows.append((layer.name, type(layer).__name__, shape, parameters, macs_of(layer, given[0], shape)))
    cells = [[name, kind, "x".join(map(str, shape)), _whole(parameters), _short(macs)]
             for name, kind, shape, parameters, macs in rows]
    macs = sum(row[-1] for row in rows)
    totals = ["total", "", "", _whole(sum(row[-2] for row in rows)), _short(macs)]
    return "\n".join([*_aligned([["layer", "kind", "output", "parameters", "MACs"], *cells, totals]), "",
                      f"{_short(macs)} multiply-accumulates per image; no time steps (--neuron=relu)."])


def _sentence(estimate: Memory, model: SpikingModel, batch_size: int, training: bool, macs: int) -> str:
    parts = [("weights", estimate.weights), ("states", estimate.states), ("recorded spikes", estimate.record),
             ("a chunk forward", estimate.forward), ("a chunk backward", estimate.backward),
             ("framework", estimate.framework)]
    listed = ", ".join(f"{name} {_bytes(size)}" for name, size in parts if size)
    what = "training" if training else "inference"
    return (f"{_short(macs)} multiply-accumulates per image and step, {_short(macs * model.timesteps)} per image "
            f"(T = {model.timesteps}).\nEstimated peak memory of {what} at batch {batch_size}: "
            f"{_bytes(estimate.peak)} above TensorFlow itself ({listed}).")


def memory_warning(model: keras.Model, batch_size: int, optimizer: str = "sgd",
                   available: int | None = None) -> str | None:
    """A sentence where training will probably not fit into `available` bytes (None: `free_memory`)."""
    available = free_memory() if available is None else available
    peak = memory(model, batch_size, True, optimizer).peak
    if available is None or peak <= available:
        return None
    fitting = batch_size
    while fitting > 1 and memory(model, fitting, True, optimizer).peak > available:
        fitting //= 2
    ways = [f"--batch_size={fitting}"] if fitting < batch_size else ["a smaller --timesteps or --hidden"]
    context = _Context(model, batch_size, True, optimizer)
    if context.by_layers and context.plan.norms and context.timesteps > kernels.MOST_STEPS:
        ways.append("--gradient=rate (with event, normalised windows of more than "
                    f"{kernels.MOST_STEPS} steps are trained layer by layer)")
    elif context.gradient == "event":
        ways.append("--gradient=rate (its memory does not grow with --timesteps)")
    return (f"Training needs about {_bytes(peak)} and {_bytes(available)} are free, so it may be killed for want of "
            f"memory. What helps: {' or '.join(ways)}.")


# ---- one layer ---------------------------------------------------------------------------------------------------


class _Context:
    """What the rows of one model share."""

    def __init__(self, model: SpikingModel, batch_size: int, training: bool, optimizer: str) -> None:
        self.timesteps: int = model.timesteps  # raises UserError where there is no plan
        self.plan = model.required_plan()
        self.batch, self.training = batch_size, training
        self.slots = OPTIMIZER_SLOTS.get(optimizer, 2)
        engine = model.engine
        # layer by layer: whole windows, with what autodiff keeps of them, instead of a record
        used = engine if engine is None or engine.can_train or not training else None
        self.by_layers = used is None
        self.rule = "event" if engine is None else engine.gradient
        self.gradient = "event" if used is None else used.gradient
        self.chunk = self.timesteps if used is None else used.chunks(batch_size, training)[0]
        steps = math.ceil(self.timesteps / self.chunk) * math.ceil(self.chunk / 8)
        self.record_bytes = 0 if self.by_layers else steps

    def kept_steps(self) -> int:
        """Steps whose spikes the backward pass holds at once."""
        if not self.training:
            return 0
        return 1 if self.gradient == "rate" else self.chunk

    def masks(self, rows: Iterable[LayerRow]) -> int:
        return sum(row.memory["states"] for row in rows if row.kind == WindowDropout.__name__)


def _row(call: plans.Call, context: _Context) -> LayerRow:
    layer = call.layer
    inner = layer.layer if isinstance(layer, OverTime) else layer
    shape = _sample(call)
    neurons = context.batch * math.prod(shape)
    parameters = _parameters(layer)
    sizes = {"weights": _weight_bytes(parameters, layer, inner, context), "states": 0, "record": 0, "chunk": 0}
    if isinstance(layer, SpikingLayer):
        sizes["states"] = 3 * 4 * neurons
        if context.training and context.gradient == "event":
            sizes["record"] = context.record_bytes * neurons
            if _rule(layer).needs_potential and not context.by_layers:  # its derivative of every step
                sizes["record"] += context.timesteps * _width(layer) * neurons
    if isinstance(layer, WindowDropout) and layer.rate and context.training:
        sizes["states"] = 4 * neurons
    if isinstance(layer, SpikingLayer) or isinstance(layer, WindowDropout) and layer.rate:
        kept = 0
        if context.by_layers and isinstance(layer, SpikingLayer):
            kept = LAYERED_BYTES[context.rule] + LAYERED_SURROGATE_BYTES[context.rule] * _rule(layer).needs_potential
        sizes["chunk"] = context.kept_steps() * neurons * (_width(layer) + kept)
    macs = macs_of(inner, tuple(call.source.shape[2:]), shape)
    return LayerRow(layer.name, type(inner).__name__, shape, parameters, macs, sizes)


def _parameters(layer: keras.layers.Layer) -> int:
    """Of a layer's weights; one that is frozen holds as many."""
    return sum(math.prod(variable.shape) for variable in layer.variables if may_be_trained(variable, layer))


def _weight_bytes(parameters: int, layer: keras.layers.Layer, inner: keras.layers.Layer, context: _Context) -> int:
    trained = sum(math.prod(variable.shape) for variable in layer.trainable_variables) if context.training else 0
    # the gradient, and its sum over chunks ("event") or the step's copy of the weights ("rate")
    size = 4 * parameters + 4 * (2 + context.slots) * trained
    if inner.compute_dtype != "float32":
        size += 2 * parameters + 6 * trained  # weights and gradients in 16 bits, and their way back to 32
    return size


def _sample(call: plans.Call) -> tuple[int, ...]:
    """Shape of one sample at one step."""
    return tuple(call.outputs[0].shape[2:])


def _rule(layer: SpikingLayer) -> type[SlopeRule]:
    """Of its `surrogate`: a layer with a `call` of its own may have no `neuron`."""
    return kind_of(layer.surrogate)


def _width(layer: keras.layers.Layer) -> int:
    return 2 if layer.compute_dtype in ("bfloat16", "float16") else 4


# ---- text --------------------------------------------------------------------------------------------------------


def _aligned(lines: list[list[str]]) -> list[str]:
    """Columns of equal width: words to the left, numbers to the right; a rule below the head and above the sum."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    padded = [[cell.ljust(width) if i < 3 else cell.rjust(width) for i, (cell, width) in enumerate(zip(line, widths))]
              for line in lines]
    text = ["  ".join(cells).rstrip() for cells in padded]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return [text[0], rule, *text[1:-1], rule, text[-1]]


def _whole(number: int) -> str:
    return f"{number:,}" if number else ""


def _short(number: float) -> str:
    """Three digits and a unit: 5.78 M."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(int(number)) if number else ""


def _bytes(number: float) -> str:
    return f"{_short(number)}B" if number >= 1e3 else f"{int(number)} B" if number else ""
