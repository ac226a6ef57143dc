"""A plan as a list of operations on spike lists, and as the table of numbers that the compiled kernels walk.

Everything that a window does on the event-driven path is one of these:

* `ENCODE` lists what the encoder gives at each step: places and values other than 0.
* `SYNAPSE` adds, for every output pixel, the weight rows of the spikes under its window, and a current that was kept
  (`base`); the sum goes into neurons that fire (`FIRE`), into memory (`STORE`: what several layers read, and the
  shortcuts of residual blocks), or into the readout (`READ`).
* `MASK` lists the spikes that dropout leaves.

A convolution, a dense layer (its window is the whole map), a pooling (no weights: every channel by itself) and a
shortcut are all synapses. Padding, average pooling in front of a convolution, `Flatten` and the factors of dropout and
of a normalisation in inference are properties of a synapse, not operations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from tfspike.engine import plan as plans
from tfspike.engine.events import columns as col
from tfspike.engine.events.parts import Current, Kept, Operation, SpikeList, Spikes, Synapse, Unsupported, padded
from tfspike.neurons.encoders import DirectEncoder, LatencyEncoder, PoissonEncoder
from tfspike.neurons.gradients import Neuron
from tfspike.neurons.layers import SpikingLayer
from tfspike.neurons.normalisation import ThresholdNorm
from tfspike.neurons.over_time import OverTime, WindowDropout
from tfspike.neurons.surrogates import LEAK_AWARE

RULES = {LEAK_AWARE: col.LEAK, "rectangular": col.RECTANGULAR, "triangular": col.TRIANGULAR, "arctan": col.ARCTAN,
         "sigmoid": col.SIGMOID}


class Program:
    """What a window does on the event-driven path, in training or in inference.

    Args:
      plan: of a model that the engine runs (`plan.hindrance`).
      gradient: "event" or "rate".
      training: with dropout, and without the statistics that normalisations take from a window.

    Attributes:
      operations: in order.
      lists: spike lists.
      layout: how the encoded input lies in memory.
      states, words, masks, floats, entries, starts, weights, transposed, gradients: sizes of the flat arrays, per image
        but for weights and transposed ones: of membranes, counts and traces; of recorded spikes per step, 16 to a word;
        of dropout masks; of membranes and kept currents; of entries and starts of all spike lists; of weights; of their
        transposed; and of what the backward pass of "event" keeps of each synapse.

    Raises:
      Unsupported: a layer has no counterpart.
    """

    def __init__(self, plan: plans.Plan, gradient: str, training: bool):
        self.plan, self.gradient, self.training = plan, gradient, training
        self.operations: list[Operation] = []
        self.lists: list[SpikeList] = []
        self._readers = _readers(plan)
        self.layout = inputs_of(plan.encoder.layer)
        self._run()
        self.links = np.array([(op.base.writer, i) for i, op in enumerate(self.operations) if op.base is not None],
                              np.int64).reshape(-1, 2)
        if gradient == "event" and training:
            self._list_jumps()
        self._lay_out()

    # ---- from calls to operations ------------------------------------------------------------------------------

    def _run(self) -> None:
        encoder = self.plan.encoder
        constant = self.layout == col.CONSTANT
        shape = _map(encoder.output.shape[2:])
        values: dict[Any, Any] = {encoder.output: Spikes(self._list(shape, constant, valued=True), shape)}
        self.operations.append(Operation(col.ENCODE, once=constant, out=0, shape=shape))
        for call in self.plan.window:
            try:
                found = self._handle(call, [values[source] for source in call.sources])
                if isinstance(found, Current) and self._readers[call.output] > 1:
                    found = self._keep(found)
            except Unsupported as why:
                raise Unsupported(f"{call.name} ({type(call.layer).__name__}) {why}") from None
            values[call.output] = found
        if self.plan.readout.layer.growth != 1.0:
            raise Unsupported(f"{self.plan.readout.name} (Readout) grows")
        self._emit(self._as_current(values[self.plan.readout.source]), col.READ, self.plan.readout)

    def _handle(self, call: plans.Call, given: list[Any]) -> Any:
        layer, x = call.layer, given[0]
        if isinstance(layer, SpikingLayer):
            self._check(layer.neuron)
            if layer.moving_start is not None:
                raise Unsupported("begins where earlier windows ended")
            return self._emit(self._as_current(x), col.FIRE, call)
        if isinstance(layer, WindowDropout):
            return self._dropout(call, x)
        if isinstance(layer, ThresholdNorm):
            return self._normalised(layer, x)
        if type(layer) is keras.layers.Add:
            return self._sum([self._as_current(value) for value in given])
        if type(layer) is keras.layers.Identity:
            return x
        if isinstance(layer, OverTime):
            return self._over_time(layer, x)
        raise Unsupported("has no event-driven counterpart")

    def _check(self, neuron: Neuron) -> None:
        if neuron.surrogate not in RULES:
            raise Unsupported(f"has the surrogate {neuron.surrogate!r}, and the event-driven path has "
                              f"{', '.join(RULES)}")
        if self.gradient == "event" and neuron.slope_rule.needs_potential and self.training:
            raise Unsupported("has a surrogate, for which gradient='event' needs every membrane potential")
        if self.gradient == "eprop" and self.training:
            raise Unsupported("has gradient='eprop', whose traces the event-driven path does not follow")
        if neuron.learn:
            raise Unsupported(f"learns its {' and its '.join(neuron.learn)}")
        if neuron.by_channel:
            raise Unsupported("has a threshold for every channel")
        if (neuron.reset, neuron.start, neuron.credit) != ("zero", 0.0, "mean"):
            raise Unsupported("has neurons of another reset than 'zero', another start than 0 or credit='time'")

    def _over_time(self, over: OverTime, x: Any) -> Any:
        layer = over.layer
        kind = type(layer)
        if getattr(layer, "data_format", None) == "channels_first":
            raise Unsupported("has its channels first")
        if kind in (keras.layers.AveragePooling2D, keras.layers.MaxPooling2D):
            return self._pooled(layer, x)
        if not isinstance(x, Spikes):
            raise Unsupported("reads currents, where the event-driven path reads spikes")
        if kind is keras.layers.ZeroPadding2D and not x.flat:
            (top, bottom), (left, right) = layer.padding
            return dataclasses.replace(x, top=x.top + top, bottom=x.bottom + bottom, left=x.left + left,
                                       right=x.right + right)
        if kind is keras.layers.Flatten:
            if x.top or x.left or x.bottom or x.right:
                raise Unsupported("follows a padding")
            return dataclasses.replace(x, flat=True)
        if kind in (keras.layers.Conv2D, keras.layers.Dense) and layer.activation is keras.activations.linear:
            return Current((self._weighted(over, x),), None, self._shape_behind(layer, x))
        raise Unsupported("has no event-driven counterpart")

    def _shape_behind(self, layer: keras.layers.Layer, x: Spikes) -> tuple[int, int, int]:
        if isinstance(layer, keras.layers.Dense):
            return (1, 1, layer.units) if x.flat else (*x.shape[:2], layer.units)
        height, width, channels = x.shape
        seen = (None, height + x.top + x.bottom, width + x.left + x.right, channels)
        return layer.compute_output_shape(seen)[1:]

    def _weighted(self, over: OverTime, x: Spikes) -> Synapse:
        layer, shape = over.layer, self._shape_behind(over.layer, x)
        if isinstance(layer, keras.layers.Dense):
            if x.top or x.left or x.bottom or x.right:
                raise Unsupported("follows a padding")
            synapse = Synapse(x, over, x.shape[:2] if x.flat else (1, 1), (1, 1), shape)
        else:
            if layer.groups != 1 or tuple(layer.dilation_rate) != (1, 1) or x.flat:
                raise Unsupported("has groups or a dilation")
            if layer.padding == "same":
                sides = (x.shape[0] + x.top + x.bottom, x.shape[1] + x.left + x.right)
                missing = [max((out - 1) * step + size - side, 0) for out, step, size, side
                           in zip(shape, layer.strides, layer.kernel_size, sides)]
                x = dataclasses.replace(x, top=x.top + missing[0] // 2, left=x.left + missing[1] // 2)
            synapse = Synapse(x, over, layer.kernel_size, layer.strides, shape)
        if (synapse.rows + 1) * padded(shape[2]) >= 2**31:
            raise Unsupported("has too many weights")
        return synapse

    def _pooled(self, layer: Any, x: Any) -> Any:
        (pool, other), (pick, down) = layer.pool_size, layer.strides
        if pool != other or pick != down or layer.padding != "valid" or pool not in (1, pick):
            raise Unsupported("pools over rectangles or overlapping squares")
        if pool > 1 and not isinstance(layer, keras.layers.AveragePooling2D):
            raise Unsupported("takes a maximum")
        if isinstance(x, Current):
            if pool > 1:
                raise Unsupported("averages currents")
            kept = self._keep(x).kept
            assert kept is not None
            shape = (-(-x.shape[0] // pick), -(-x.shape[1] // pick), x.shape[2])
            return Current((), dataclasses.replace(kept, pick=kept.pick * pick, shape=shape), shape)
        if not x.as_listed or x.flat:
            raise Unsupported("follows another pooling or a padding")
        height, width = ((side - pool) // pick + 1 for side in x.shape[:2])
        return dataclasses.replace(x, shape=(height, width, x.shape[2]), pool=pool, pick=pick,
                                   scale=x.scale / pool**2)

    def _dropout(self, call: plans.Call, x: Any) -> Any:
        layer = call.layer
        if not self.training or layer.rate == 0.0:
            return x
        if type(layer).draw_mask is not WindowDropout.draw_mask:
            raise Unsupported("draws masks of its own")
        if not isinstance(x, Spikes) or not x.as_listed or self.lists[x.source].constant:
            raise Unsupported("silences other than spikes of neurons")
        shape = self.lists[x.source].shape
        out = self._list(shape, valued=self.lists[x.source].valued)
        self.operations.append(Operation(col.MASK, source=x.source, out=out, shape=shape, call=call))
        return dataclasses.replace(x, source=out, scale=x.scale / (1.0 - layer.rate))

    def _normalised(self, layer: ThresholdNorm, x: Any) -> Current:
        if not isinstance(x, Current) or len(x.synapses) != 1 or x.kept or x.synapses[0].layer is None \
                or x.synapses[0].norm is not None:
            raise Unsupported("does not follow a convolution or a dense layer that nothing else reads")
        return dataclasses.replace(x, synapses=(dataclasses.replace(x.synapses[0], norm=layer),))

    def _as_current(self, x: Any) -> Current:
        """Spikes as the currents that they are where no weight is in between."""
        if isinstance(x, Current):
            return x
        if x.top or x.left or x.bottom or x.right or x.flat and x.shape[:2] != (1, 1):
            raise Unsupported("reads spikes behind a padding or a Flatten without weights")
        return Current((Synapse(x, None, (1, 1), (1, 1), x.shape),), None, x.shape)

    def _sum(self, terms: list[Current]) -> Current:
        """A sum, of which at most one current is in memory: synapses are added to it."""
        kept = [term.kept for term in terms if term.kept]
        if len({term.shape for term in terms}) > 1 or len(kept) > 1:
            raise Unsupported("adds several currents that other layers read, or of several shapes")
        return Current(tuple(synapse for term in terms for synapse in term.synapses), kept[0] if kept else None,
                       terms[0].shape)

    def _keep(self, current: Current) -> Current:
        """The same current, in memory."""
        if current.synapses:
            current = Current((), self._emit(current, col.STORE), current.shape)
        return current

    def _emit(self, current: Current, target: int, call: plans.Call | None = None) -> Any:
        """Operations for one current: the list of the spikes, or the current in memory, that come of it."""
        base, synapses = current.kept, sorted(current.synapses, key=lambda one: not self._constant(one))
        while len(synapses) > 1 or synapses and self._constant(synapses[0]) and target != col.STORE:
            base = self._store(synapses.pop(0), base, current.shape)
        if target == col.STORE:
            return self._store(synapses[0], base, current.shape)
        operation = Operation(col.SYNAPSE, base=base, target=target, shape=current.shape, call=call)
        if synapses:
            operation.synapse, operation.source = synapses[0], synapses[0].spikes.source
            operation.encoded = self.lists[operation.source].valued
        self.operations.append(operation)
        if target == col.READ:
            return None
        operation.out = self._list(current.shape)
        return Spikes(operation.out, current.shape)

    def _store(self, synapse: Synapse, base: Kept | None, shape: tuple[int, int, int]) -> Kept:
        once = self._constant(synapse) and (base is None or base.constant)
        self.operations.append(Operation(col.SYNAPSE, once=once, source=synapse.spikes.source, synapse=synapse,
                                         base=base, target=col.STORE, shape=shape))
        return Kept(len(self.operations) - 1, shape, constant=once)

    def _constant(self, synapse: Synapse) -> bool:
        return self.lists[synapse.spikes.source].constant

    def _list(self, shape: tuple[int, int, int], constant: bool = False, valued: bool = False,
              times: int = 1) -> int:
        if shape[1] * shape[2] > 2**16:
            raise Unsupported("has more than 65,536 channels times columns")
        self.lists.append(SpikeList(shape, constant, valued, times))
        return len(self.lists) - 1

    # ---- from operations to numbers ----------------------------------------------------------------------------

    @property
    def neurons(self) -> list[Operation]:
        """Operations with membranes, in the order of `plan.spiking`, and the readout, which is the last."""
        return [op for op in self.operations if op.target in (col.FIRE, col.READ)]

    @property
    def weighted(self) -> list[Operation]:
        """Operations with weights."""
        return [op for op in self.operations if op.synapse is not None and op.synapse.layer is not None]

    def _list_jumps(self) -> None:
        """Lists of what happens to currents in the backward pass: of neurons, beside their spikes."""
        times = [1] * len(self.operations)  # how many lists of neurons come together in one
        for i in reversed(range(len(self.operations))):
            times[i] = max(1, sum(times[reader] for writer, reader in self.links if writer == i))
        for i, op in enumerate(self.operations):
            if op.target in (col.STORE, col.READ):
                op.jumps = self._list(op.shape, times=times[i])
            elif op.target == col.FIRE:
                op.jumps = op.out

    def _lay_out(self) -> None:
        self.states = self.words = self.masks = self.weights = self.transposed = self.gradients = 0
        for op in self.neurons:
            op.place, self.states = self.states, self.states + op.neurons
            if op.target == col.FIRE:
                op.words, self.words = self.words, self.words + op.neurons // col.LANES
        self.floats = self.states
        for op in self.operations:
            if op.target == col.STORE:
                op.place, self.floats = self.floats, self.floats + op.neurons * (1 if op.once else col.STEPS)
            if op.kind == col.MASK:
                op.place, self.masks = self.masks, self.masks + int(np.prod(op.shape))
            if op.synapse is not None:
                op.gradient, self.gradients = self.gradients, self.gradients + int(np.prod(op.synapse.spikes.shape))
        for op in self.weighted:
            assert op.synapse is not None
            op.weights, self.weights = self.weights, self.weights + (op.synapse.rows + 1) * op.padded
            op.transposed, self.transposed = self.transposed, self.transposed + (op.synapse.rows + 1) * op.shape[2]
        self.most_rows = max([1, *(op.synapse.rows * op.synapse.spikes.pool**2 + 1 for op in self.operations
                                   if op.synapse is not None)])

    def tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`(operations, numbers, lists)`: what the kernels walk."""
        ops = np.full((len(self.operations), col.OP_COLUMNS), -1, np.int64)
        numbers = np.ones((len(self.operations), col.NUMBER_COLUMNS), np.float32)
        for row, constants, op in zip(ops, numbers, self.operations):
            height, width, channels = op.shape
            _fill(row, {col.KIND: op.kind, col.ONCE: op.once, col.SOURCE: op.source, col.OUT: op.out, col.OH: height,
                        col.OW: width, col.COUT: channels, col.PADDED: op.padded, col.TARGET: op.target,
                        col.PLACE: op.place, col.WORDS: op.words, col.JUMPS: op.jumps})
            if op.synapse is not None:
                spikes, (high, wide), (down, across) = op.synapse.spikes, op.synapse.window, op.synapse.stride
                _fill(row, {col.KH: high, col.KW: wide, col.SY: down, col.SX: across, col.PY: spikes.top,
                            col.PX: spikes.left, col.HEIGHT: spikes.shape[0], col.WIDTH: spikes.shape[1],
                            col.CHANNELS: spikes.shape[2], col.POOL: spikes.pool, col.PICK: spikes.pick,
                            col.WEIGHTED: op.synapse.layer is not None, col.WEIGHTS: op.weights,
                            col.TRANSPOSED: op.transposed, col.GRADIENT: op.gradient, col.SCATTERED: op.scattered})
                constants[col.SCALE] = spikes.scale
            if op.base is not None:
                writer = self.operations[op.base.writer]
                _fill(row, {col.BASE: writer.place, col.BASE_WIDTH: writer.shape[1], col.BASE_PICK: op.base.pick,
                            col.BASE_PIXELS: writer.pixels, col.BASE_STEPS: not writer.once})
            if op.target == col.FIRE:
                assert op.call is not None
                neuron = op.call.layer.neuron
                _fill(constants, {col.LEAKS: neuron.leak, col.THRESHOLD: neuron.threshold, col.GAIN: neuron.gain,
                                  col.STRETCH: neuron.width})
                row[col.RULE] = RULES[neuron.surrogate]
            elif op.target == col.READ:
                constants[col.LEAKS] = self.plan.readout.layer.leak
        return ops, numbers, self._table_of_lists()

    def _table_of_lists(self) -> np.ndarray:
        table = np.full((len(self.lists), col.LIST_COLUMNS), -1, np.int64)
        self.starts = self.entries = 0
        for row, found in zip(table, self.lists):
            height, width, channels = found.shape
            steps = 1 if found.constant else col.STEPS
            _fill(row, {col.STARTS: self.starts, col.ENTRIES: self.entries, col.LIST_HEIGHT: height,
                        col.LIST_WIDTH: width, col.LIST_CHANNELS: channels, col.VALUED: found.valued,
                        col.CONSTANT_LIST: found.constant})
            self.starts += steps * height * width + 1
            self.entries += steps * height * width * channels * found.times
        return table

    def of_layers(self) -> Iterator[tuple[Operation, Synapse]]:
        """Operations with weights, and those."""
        for op in self.weighted:
            assert op.synapse is not None
            yield op, op.synapse


def inputs_of(encoder: Any) -> int:
    """How the encoded input is given to the kernels: as spikes of -1 and 1, packed (`TERNARY`); `[B, ...]`, the same
    at every step (`CONSTANT`); or `[T, B, ...]` (`STEPWISE`), of any other encoder."""
    encode = type(encoder).encode
    known: tuple[tuple[Any, int], ...] = ((PoissonEncoder, col.TERNARY), (LatencyEncoder, col.TERNARY),
                                        (DirectEncoder, col.CONSTANT))
    return next((layout for kind, layout in known if encode is kind.encode), col.STEPWISE)


def _readers(plan: plans.Plan) -> dict[Any, int]:
    """How many calls read each symbolic tensor of the window."""
    readers: dict[Any, int] = {}
    for call in (*plan.window, plan.readout):
        for source in call.sources:
            readers[source] = readers.get(source, 0) + 1
    return {**{output: 0 for call in plan.window for output in call.outputs}, **readers}


def _map(shape: tuple[Any, ...]) -> tuple[int, int, int]:
    """Features as a map of pixels."""
    if len(shape) not in (1, 3) or None in shape:
        raise Unsupported(f"the encoder gives features of shape {shape}, and the event-driven path takes vectors and "
                          "images")
    height, width, channels = shape if len(shape) == 3 else (1, 1, *shape)
    return height, width, channels


def _fill(row: np.ndarray, numbers: dict[int, Any]) -> None:
    for column, number in numbers.items():
        row[column] = number
