"""The event-driven path through a window: from a graph of TensorFlow into the compiled loops, and back.

Only rows of weights are added where spikes are, so that the time follows the spikes: the values are those of the dense
path, float32 sums in another order. Under 16 bits the weights are rounded, with the factors that lie in front and
behind, and currents are not. One image after the other goes through the whole window; images are shared among as many
threads as TensorFlow would take for one of its operations, which waits meanwhile. What is kept of a window does not
grow with T, but for two bits per step and pixel of the encoded input, and with `spikes` one bit per step and neuron.
"""

from __future__ import annotations

import concurrent.futures
import functools
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfspike import distribution
from tfspike.engine import kernels, known
from tfspike.engine import plan as plans
from tfspike.engine.events import columns as col
from tfspike.engine.events.parts import Operation, Synapse, Unsupported
from tfspike.engine.events.program import Program
from tfspike.neurons.gradients import NeuronState
from tfspike.neurons.over_time import OverTime

MISSING = "it needs numba: pip install numba"
_PACKED = 8  # steps of ternary input in one byte


class Passed(NamedTuple):
    """What a window leaves behind.

    Attributes:
      output: V_T / T, `[B, classes]` float32.
      states: count and trace of every spiking layer, in the order of `Plan.spiking`; membranes are left out.
      input_rate: mean of the encoded input over the window, `[B, ...]`.
      train, packed: the encoded input, see `kernels.forward`.
      spikes: recorded spikes, `[B, T, words]` uint16, 16 neurons to a word; nothing unless asked for.
      count, trace: of all neurons, with padding, `[B, states]` float32.
    """

    output: tf.Tensor
    states: list[NeuronState]
    input_rate: tf.Tensor
    train: tf.Tensor
    packed: tf.Tensor
    spikes: tf.Tensor
    count: tf.Tensor
    trace: tf.Tensor


class Runner:
    """Runs the window of a plan event-driven.

    Args:
      plan: that the engine can run.
      gradient: "event" or "rate".
    """

    def __init__(self, plan: plans.Plan, gradient: str):
        self.plan = plan
        self.gradient = gradient
        self.timesteps: int = plan.encoder.layer.timesteps
        self._programs: dict[bool, _Loaded | str] = {}

    def hindrance(self, training: bool) -> str | None:
        """Why this path cannot be taken, in a sentence that names the layer; None where it can."""
        if importlib.util.find_spec("numba") is None:
            return MISSING
        if distribution.has_gpu():
            return "it is made for CPUs, and there is a GPU"
        found = self._loaded(training)
        return found if isinstance(found, str) else None

    def _loaded(self, training: bool) -> _Loaded | str:
        if training and self.plan.norms:  # asked every time: layers may be frozen and freed
            return f"{self.plan.norms[0].name} (ThresholdNorm) looks at the currents of a whole window in training"
        for call in self.plan.window:
            method = known.altered(call.layer.layer) if isinstance(call.layer, OverTime) else None
            if method is not None:
                return f"Keras' `{method}` has put other weights in place of the kernel of {call.name}"
        if training not in self._programs:
            try:
                self._programs[training] = _Loaded(Program(self.plan, self.gradient, training), self.timesteps)
            except Unsupported as why:
                self._programs[training] = str(why)
        return self._programs[training]

    def _runnable(self, training: bool) -> _Loaded:
        loaded = self._loaded(training)
        assert isinstance(loaded, _Loaded), loaded
        return loaded

    def forward(self, inputs: tf.Tensor, key: tf.Tensor, masks: dict[plans.Call, tf.Tensor], training: bool,
                traced: bool, recorded: bool) -> Passed:
        """The window, for weights as the layers' variables read now.

        Args:
          inputs: of the encoder, `[B, ...]`.
          key: of its noise.
          masks: of dropout layers, `[B, ...]`.
          training: which program.
          traced: keep the traces of surrogates.
          recorded: keep all spikes.
        """
        loaded = self._runnable(training)
        given, input_rate = self._given(loaded.program, inputs, key, masks)
        membrane, count, trace, spikes = tf.numpy_function(
            functools.partial(loaded.forward, traced, recorded), given, [tf.float32, tf.float32, tf.float32, tf.uint16])
        nothing = tf.zeros([0], tf.float32)
        states = [NeuronState(nothing, *(_of_neurons(x, op, call) for x in (count, trace)))
                  for op, call in zip(loaded.program.neurons, self.plan.spiking)]
        _, train, packed, *_ = given
        output = tf.reshape(membrane, [-1, *self.plan.readout.source.shape[2:]]) / self.timesteps
        return Passed(output, states, input_rate, train, packed, spikes, count, trace)

    def loops(self, inputs: tf.Tensor) -> Callable[[], list[np.ndarray]]:
        """The compiled loops of a window in inference, and nothing around them: what `choice` takes the time of.

        Returns:
          A function that gives what `_Loaded.forward` does.
        """
        loaded = self._runnable(False)
        given, _ = self._given(loaded.program, inputs, self.plan.encoder.layer.key(False, 0), {})
        return functools.partial(loaded.forward, False, False, *(value.numpy() for value in given))

    def backward(self, passed: Passed, masks: dict[plans.Call, tf.Tensor], upstream: tf.Tensor,
                 of_count: dict[plans.Call, tf.Tensor], of_spikes: dict[plans.Call, tf.Tensor],
                 values: Sequence[tf.Tensor], substituted: Any) -> list[tf.Tensor]:
        """Gradient "event" of a training window.

        Args:
          passed: what it left behind, with its spikes.
          masks: of dropout layers.
          upstream: dL/do, `[B, classes]`.
          of_count, of_spikes: see `records.Demand`; of the layers of which the loss asks something directly.
          values: what the gradient is wanted of.
          substituted: a context in which layers read `values`.
        """
        loaded = self._runnable(True)
        program, batch = loaded.program, tf.shape(upstream)[0]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            with substituted:
                transposed = [tf.reshape(tf.transpose(_matrix(synapse)), [-1]) for _, synapse in program.of_layers()]
                transposed = tf.concat(transposed, axis=0) if transposed else tf.zeros([0], tf.float32)
        asked = tf.zeros([batch, 0], tf.float32)
        if of_count:
            asked = tf.concat([_with_padding(of_count[op.call], op) if op.call in of_count
                               else tf.zeros([batch, op.neurons]) for op in program.neurons], axis=1)
        found = tf.numpy_function(
            loaded.backward, [batch, passed.train, passed.packed, self._masks(program, masks, batch), passed.spikes,
                              transposed, self._slopes(program, passed), upstream / self.timesteps, asked,
                              tf.stack([tf.zeros([]) if op.call is None else of_spikes.get(op.call, tf.zeros([]))
                        for op in program.operations])],
            tf.float32)
        return tape.gradient(transposed, values, output_gradients=tf.ensure_shape(found, transposed.shape),
                             unconnected_gradients=tf.UnconnectedGradients.ZERO)

    def _slopes(self, program: Program, passed: Passed) -> tf.Tensor:
        """Of all neurons, with padding, `[B, states]`."""
        parts = []
        for op in program.neurons:
            count, trace = (x[:, op.place:op.place + op.neurons] for x in (passed.count, passed.trace))
            if op.target == col.FIRE and op.call is not None:
                parts.append(op.call.layer.neuron.slope_rule.slope(count, trace, self.timesteps))
            else:
                parts.append(tf.zeros_like(count))
        return tf.concat(parts, axis=1)

    # ---- what the kernels are given ----------------------------------------------------------------------------

    def _given(self, program: Program, inputs: tf.Tensor, key: tf.Tensor,
               masks: dict[plans.Call, tf.Tensor]) -> tuple[list[tf.Tensor], tf.Tensor]:
        """`(arguments of _Loaded.forward, mean of the encoded input over the window)`."""
        batch = tf.shape(inputs)[0]
        train, packed, input_rate = self._encoded(inputs, key, program.layout)
        return [batch, train, packed, self._masks(program, masks, batch), self._weights(program)], input_rate

    def _encoded(self, inputs: tf.Tensor, key: tf.Tensor, layout: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """`(train, packed, mean over the window)`; one of the first two is empty."""
        encoder, nothing = self.plan.encoder.layer, tf.zeros([0], tf.uint8)
        if layout == col.TERNARY:
            packed, total = self._packed(inputs, key)
            return tf.zeros([0], tf.float32), packed, total / self.timesteps
        if layout == col.CONSTANT:
            train = tf.cast(encoder.stretch(inputs, key, 0, 1)[0], tf.float32)
            return tf.reshape(train, [-1]), nothing, train
        train = tf.cast(encoder.stretch(inputs, key, 0, self.timesteps), tf.float32)
        return tf.reshape(train, [-1]), nothing, tf.reduce_mean(train, axis=0)

    def _packed(self, inputs: tf.Tensor, key: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """`(spikes of 1 and of -1 as bits of 8 steps, [chunks, 2, B, ...] uint8; their sum over time)`."""
        encode, count, rest = self.plan.encoder.layer.stretch, *divmod(self.timesteps, _PACKED)

        def body(i: tf.Tensor, steps: int, total: tf.Tensor, array: tf.TensorArray) -> tuple[Any, Any, Any]:
            train = encode(inputs, key, i * _PACKED, steps)
            planes = tf.stack([train > 0, train < 0], axis=1)
            bits = tf.zeros(tf.shape(planes)[1:], tf.uint8)
            for t in range(steps):
                bits = kernels.with_bit(bits, t, planes[t])
            return i + 1, total + tf.reduce_sum(tf.cast(train, tf.float32), axis=0), array.write(i, bits)

        loop = (tf.constant(0), tf.zeros(tf.shape(inputs), tf.float32),
                tf.TensorArray(tf.uint8, size=count + (rest > 0)))
        if count:
            loop = tf.while_loop(lambda i, *_: i < count, lambda i, *carried: body(i, _PACKED, *carried), loop,
                                 maximum_iterations=count, parallel_iterations=1)
        if rest:
            loop = body(loop[0], rest, *loop[1:])
        total = tf.ensure_shape(loop[1], inputs.shape)
        return tf.reshape(loop[2].stack(), [-1]), total

    @staticmethod
    def _masks(program: Program, masks: dict[plans.Call, tf.Tensor], batch: tf.Tensor) -> tf.Tensor:
        """Which neurons dropout leaves, `[B, masks]` uint8."""
        kept = [tf.reshape(tf.cast(masks[op.call] > 0, tf.uint8), [batch, -1]) for op in program.operations
                if op.kind == col.MASK and op.call is not None]
        return tf.concat(kept, axis=1) if kept else tf.zeros([batch, 0], tf.uint8)

    @staticmethod
    def _weights(program: Program) -> tf.Tensor:
        """All synapses, channels padded, one after the other; in bfloat16 where all layers compute in it, for half the
        memory traffic."""
        parts = [tf.zeros([0], tf.float32)]
        for op, synapse in program.of_layers():
            rows = tf.pad(_matrix(synapse), [[0, 0], [0, op.padded - op.shape[2]]])
            if op.scattered:
                taps = tf.reshape(rows[:-1], [*synapse.window, synapse.spikes.shape[2], op.padded])
                parts.append(tf.reshape(tf.transpose(tf.reverse(taps, [1]), [0, 2, 1, 3]), [-1]))
                rows = rows[-1]
            parts.append(tf.reshape(rows, [-1]))
        narrow = {synapse.layer.compute_dtype for _, synapse in program.of_layers() if synapse.layer} == {"bfloat16"}
        return tf.cast(tf.concat(parts, axis=0), tf.bfloat16 if narrow else tf.float32)


def _matrix(synapse: Synapse) -> tf.Tensor:
    """Weight rows of a synapse and its bias, `[rows + 1, channels]` float32: its layer, the normalisation behind it,
    and the factor of the spikes in front of it, rounded together to the type that the layer computes in."""
    over, norm = synapse.layer, synapse.norm
    assert over is not None
    rows = tf.reshape(tf.cast(over.layer.kernel.value, tf.float32), [synapse.rows, synapse.shape[2]])
    bias = tf.zeros([synapse.shape[2]], tf.float32)
    if over.layer.use_bias:
        bias = tf.cast(over.layer.bias.value, tf.float32)
    if norm is not None:
        factor, offset = norm.folded()
        rows, bias = rows * factor, bias * factor + offset
    if synapse.spikes.scale != 1.0:
        rows = rows * synapse.spikes.scale
    return tf.cast(tf.cast(tf.concat([rows, bias[tf.newaxis]], axis=0), over.compute_dtype), tf.float32)


def _of_neurons(values: tf.Tensor, op: Operation, call: plans.Call) -> tf.Tensor:
    """What one layer's neurons have of values `[B, states]`, `[B, ...]`."""
    part = tf.reshape(values[:, op.place:op.place + op.neurons], [-1, op.pixels, op.padded])
    return tf.reshape(part[..., :op.shape[2]], [-1, *call.source.shape[2:]])


def _with_padding(values: tf.Tensor, op: Operation) -> tf.Tensor:
    """The inverse: values of a layer's neurons, `[B, ...]`, as `[B, neurons]`."""
    maps = tf.reshape(values, [-1, op.pixels, op.shape[2]])
    return tf.reshape(tf.pad(maps, [[0, 0], [0, 0], [0, op.padded - op.shape[2]]]), [-1, op.neurons])


class _Room:
    """Memory for one image; a thread takes one that is free."""

    def __init__(self, program: Program):
        self.floats = np.empty(program.floats, np.float32)
        self.starts = np.empty(program.starts, np.int32)
        self.entries = np.empty(program.entries + col.LANES, np.uint16)  # vectors may begin at the last one
        self.values = np.empty(program.entries + col.LANES, np.float32)
        self.rows = np.empty(program.most_rows + col.LANES, np.int32)
        self.factors = np.empty(program.most_rows + col.LANES, np.float32)


class _Loaded:
    """A program with what the compiled loops need: tables and memory."""

    def __init__(self, program: Program, timesteps: int):
        self.program, self.timesteps = program, timesteps
        self.ops, self.numbers, self.lists = program.tables()
        age = np.arange(timesteps - 1, -1, -1)
        self.decays = (self.numbers[:, col.LEAKS, None].astype("d") ** age).astype(np.float32)
        self._rooms: list[_Room] = []

    def _room(self) -> _Room:
        try:
            return self._rooms.pop()
        except IndexError:  # asked for beforehand, another thread might take the last one in between
            return _Room(self.program)

    def forward(self, traced: bool, recorded: bool, batch: Any, train: np.ndarray, packed: np.ndarray,
                masks: np.ndarray, weights: np.ndarray) -> list[np.ndarray]:
        """`(membranes of the readout [B, classes], counts, traces [B, states], spikes [B, T, words])`."""
        from tfspike.engine.events.kernels import forward

        batch, program = int(batch), self.program
        count, trace = np.zeros((2, batch, program.states), np.float32)
        readout = program.neurons[-1]
        membrane = np.empty((batch, readout.pixels, readout.shape[2]), np.float32)
        if weights.dtype != np.float32:
            weights = weights.view(np.uint16)
        spikes = np.empty((batch, self.timesteps, program.words) if recorded else (batch, 0, 0), np.uint16)

        def run(image: int) -> None:
            room = self._room()
            room.floats[:program.states] = 0.0
            forward(self.ops, self.numbers, self.lists, self.decays, program.layout, image, batch, self.timesteps,
                    train, packed, masks[image], weights, room.floats, room.starts, room.entries, room.values,
                    room.rows, room.factors, count[image], trace[image], traced, spikes[image], recorded)
            last = room.floats[readout.place:readout.place + readout.neurons]
            membrane[image] = last.reshape(readout.pixels, readout.padded)[:, :readout.shape[2]]
            self._rooms.append(room)

        for_each(run, batch)
        return [membrane, count, trace, spikes]

    def backward(self, batch: Any, train: np.ndarray, packed: np.ndarray, masks: np.ndarray, spikes: np.ndarray,
                 transposed: np.ndarray, slope: np.ndarray, upstream: np.ndarray, of_count: np.ndarray,
                 of_spikes: np.ndarray) -> np.ndarray:
        """dL/dW as `transposed`, the sum over the batch: image after image within a share of it, and share after
        share, so that the same number of threads gives the same sum."""
        from tfspike.engine.events.backward import backward

        program, batch = self.program, int(batch)
        shares = max(1, min(threads(), batch))
        sums = np.zeros((shares, len(transposed)), np.float32)

        def run(share: int) -> None:
            room = self._room()
            delta = np.empty(program.states, np.float32)
            given, seen = np.empty((2, program.gradients), np.float32)
            for image in range(share, batch, shares):
                for values in (delta, given, seen):
                    values[:] = 0.0
                backward(self.ops, self.numbers, self.lists, program.links, program.layout, image, batch,
                         self.timesteps, train, packed, masks[image], spikes[image], transposed, slope[image],
                         upstream[image].ravel(), of_count[image], of_spikes, room.starts, room.entries, room.values,
                         delta, given, seen, sums[share])
            self._rooms.append(room)

        for_each(run, shares)
        return functools.reduce(np.add, sums)


def threads() -> int:
    """How many images are computed at once: as many threads as one of TensorFlow's operations may take, which are idle
    meanwhile."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = tf.config.threading.get_intra_op_parallelism_threads() or os.environ.get("TF_NUM_INTRAOP_THREADS", "")
    return int(asked or 0) or cores


def for_each(function: Callable[[int], None], count: int) -> None:
    """Calls a function of 0..count-1, in several threads; raises what it raises."""
    if count <= 1 or threads() == 1:
        for i in range(count):
            function(i)
        return
    list(_pool(threads(), os.getpid()).map(function, range(count)))


@functools.lru_cache(maxsize=1)
def _pool(size: int, process: int) -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(size, "tfspike-events")  # of this process: threads survive no fork
