"""A chunk of steps of one layer's neurons, forward and on record: the inner loops of the engine.

`gradients.fire` and `gradients.event_credit` are the definitions; these are the same recursions, unrolled over the few
steps of a chunk, with spikes packed one bit per neuron and step.

Kernels: "plain" runs as ordinary TensorFlow operations, one pass over memory each. "xla" compiles a chunk into four
passes, each of which goes over memory once: membranes and packed spikes; spikes, unpacked; counts and traces, from the
packed spikes; and the backward recursion (a surrogate's sum, which needs the membranes, is a pass of its own).
Compiled in one piece, the compiler recomputes the chain of steps for every one of its results (LeNet's first layer,
float32, 8 steps, 2 cores: 1.6 ns per neuron and step in one piece, .9 in three; plain 1.6). "auto" is "xla" on CPUs,
but for inference at sizes that are seldom seen (`BatchSizes`), and "plain" where there is a GPU, on which "xla" has not
been tried.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfspike.neurons import gradients
from tfspike.neurons.custom_gradient import custom_gradient
from tfspike.neurons.gradients import Neuron, NeuronState
from tfspike.neurons.shared_function import shared
from tfspike.neurons.surrogates import LEAK_AWARE

KERNELS = ("auto", "plain", "xla")
# What "auto" is on a machine without a GPU.
ON_CPU = "xla"

# Elements of the largest layer in one chunk. Measured on 2 cores with 32 MB of last-level cache: benchmarks/README.md.
CHUNK_ELEMENTS = 5_000_000
# Steps in one chunk: the bits of one byte, and as few as are still worth the passes over counts, traces and membranes.
MOST_STEPS, FEWEST_STEPS = 8, 4


def choose_chunk(timesteps: int, neurons: int) -> int:
    """Steps per chunk for a largest layer of so many neurons in a batch: a divisor of the window if one is near."""
    wanted = min(timesteps, max(FEWEST_STEPS, min(CHUNK_ELEMENTS // max(neurons, 1), MOST_STEPS)))
    near = [steps for steps in range((wanted + 1) // 2, min(2 * wanted, MOST_STEPS) + 1) if timesteps % steps == 0]
    return min(near, key=lambda steps: abs(steps - wanted)) if near else wanted


def fire(currents: tf.Tensor, state: NeuronState, neuron: Neuron, keep_bits: bool, kernel: str,
         sense: bool = True) -> tuple[tf.Tensor, NeuronState, tf.Tensor]:
    """A chunk of steps.

    Args:
      currents: `[steps, B, ...]`; at most 8 steps where bits are kept.
      state: the state before.
      neuron: the neuron's constants.
      keep_bits: also pack the spikes.
      kernel: "plain" or "xla".
      sense: False leaves the trace of a neuron with a surrogate as it is; the gradient "rate" alone asks for it.

    Returns:
      `(spikes [steps, B, ...] in the dtype of currents, state after, bits [B, ...] uint8)`; of more than 8 steps the
      bits are those of the last.
    """
    steps = currents.shape[0]
    if steps > MOST_STEPS:  # a window that a normalisation needs in one piece
        parts = []
        for start in range(0, steps, MOST_STEPS):
            spikes, state, bits = fire(currents[start:start + MOST_STEPS], state, neuron, keep_bits, kernel, sense)
            parts.append(spikes)
        return tf.concat(parts, axis=0), state, bits
    if kernel == "xla":
        bits, membrane = _integrate_xla(currents, state.membrane, neuron)
        spikes = _unpack_xla(bits, steps, currents.dtype)
        if neuron.surrogate == LEAK_AWARE:
            count, trace = _tally_xla(bits, state.count, state.trace, steps, neuron.leak)
        else:
            count = _count_xla(bits, state.count, steps)
            trace = _sense_xla(currents, state.membrane, state.trace, neuron) if sense else state.trace
        return spikes, NeuronState(membrane, count, trace), bits
    membrane, count, trace = state
    train, bits = [], tf.zeros_like(membrane, tf.uint8)
    for t in range(steps):
        u = membrane + tf.cast(currents[t], tf.float32)
        fired, membrane = gradients.fire(membrane, currents[t], neuron)
        if neuron.surrogate == LEAK_AWARE or sense:
            count, trace = gradients.tally(count, trace, u, fired, neuron)
        else:
            count = count + tf.cast(fired, tf.float32)
        train.append(tf.cast(fired, currents.dtype))
        if keep_bits:
            bits = _with_bit(bits, t, fired)
    return tf.stack(train), NeuronState(membrane, count, trace), bits


def _with_bit(bits: tf.Tensor, t: int, fired: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.bitwise_or(bits, tf.cast(fired, tf.uint8) * tf.constant(1 << t, tf.uint8))


def _bit(bits: tf.Tensor, t: int) -> tf.Tensor:
    return tf.bitwise.bitwise_and(bits, tf.constant(1 << t, tf.uint8)) > 0


def _integrate(currents: tf.Tensor, membrane: tf.Tensor, neuron: Neuron) -> tuple[tf.Tensor, tf.Tensor]:
    """`(packed spikes, membrane after)` of a chunk."""
    bits = tf.zeros_like(membrane, tf.uint8)
    for t in range(currents.shape[0]):
        fired, membrane = gradients.fire(membrane, currents[t], neuron)
        bits = _with_bit(bits, t, fired)
    return bits, membrane


def _tally(bits: tf.Tensor, count: tf.Tensor, trace: tf.Tensor, steps: int, leak: float) -> tuple[tf.Tensor, tf.Tensor]:
    """`(count, trace)` after the packed spikes of a chunk."""
    for t in range(steps):
        spikes = tf.cast(_bit(bits, t), tf.float32)
        count, trace = count + spikes, leak * trace + spikes
    return count, trace


def _count(bits: tf.Tensor, count: tf.Tensor, steps: int) -> tf.Tensor:
    """The count after the packed spikes of a chunk."""
    for t in range(steps):
        count = count + tf.cast(_bit(bits, t), tf.float32)
    return count


def _sense(currents: tf.Tensor, membrane: tf.Tensor, trace: tf.Tensor, neuron: Neuron) -> tf.Tensor:
    """The trace of a neuron with a surrogate after a chunk: the sum of h at every step."""
    for t in range(currents.shape[0]):
        u = membrane + tf.cast(currents[t], tf.float32)
        trace = trace + gradients.sensitivity(u, neuron)
        _, membrane = gradients.fire(membrane, currents[t], neuron)
    return trace


def unpack(bits: tf.Tensor, steps: int, dtype: tf.DType) -> tf.Tensor:
    """Packed spikes `[B, ...]` uint8 to a train `[steps, B, ...]`."""
    of_step = tf.constant([[1 << t] for t in range(steps)], tf.uint8)
    spikes = tf.cast(tf.bitwise.bitwise_and(tf.reshape(bits, [1, -1]), of_step) > 0, dtype)
    return tf.reshape(spikes, tf.concat([[steps], tf.shape(bits)], axis=0))


def replay_rate(currents: tf.Tensor, rate: tf.Tensor, slope: tf.Tensor) -> tf.Tensor:
    """The recorded rate in place of what the currents would give; gradient dL/dd = slope dL/dr. All `[1, B, ...]`."""

    @custom_gradient
    def replay(currents: tf.Tensor):
        def grad(upstream):
            return tf.cast(slope * tf.cast(upstream, tf.float32), currents.dtype)
        return rate, grad

    return replay(currents)


def sensitivities(currents: tf.Tensor, membrane: tf.Tensor, neuron: Neuron, kernel: str) -> tf.Tensor:
    """h(x_t) of a neuron with a surrogate at every step of a chunk: what the gradient "event" needs besides the spikes.

    Args:
      currents: `[steps, B, ...]`.
      membrane: before the chunk, `[B, ...]` float32.
      neuron: the neuron's constants.
      kernel: "plain" or "xla".

    Returns:
      `[steps, B, ...]` in the dtype of currents.
    """
    return (_sensitivities_xla if kernel == "xla" else _sensitivities)(currents, membrane, neuron)


def _sensitivities(currents: tf.Tensor, membrane: tf.Tensor, neuron: Neuron) -> tf.Tensor:
    found = []
    for t in range(currents.shape[0]):
        u = membrane + tf.cast(currents[t], tf.float32)
        found.append(tf.cast(gradients.sensitivity(u, neuron), currents.dtype))
        _, membrane = gradients.fire(membrane, currents[t], neuron)
    return tf.stack(found)


def replay_through_time(currents: tf.Tensor, bits: tf.Tensor, sensed: tf.Tensor, neuron: Neuron, carry: tf.Tensor,
                        give: Callable[[tf.Tensor], Any], kernel: str) -> tf.Tensor:
    """`replay_event` for a neuron with a surrogate, whose `sensitivities` are `sensed`, `[steps, B, ...]`."""
    through = _through_xla if kernel == "xla" else _through
    return _replay(currents, bits, lambda upstream: through(bits, sensed, carry, upstream, neuron), give, kernel)


def _through(bits: tf.Tensor, sensed: tf.Tensor, carry: tf.Tensor, upstream: tf.Tensor,
             neuron: Neuron) -> tuple[tf.Tensor, tf.Tensor]:
    """`gradients.through_time` on a record: `(delta [steps, B, ...], delta of the first step)`."""
    steps = upstream.shape[0]
    deltas = [carry] * steps
    for t in reversed(range(steps)):
        direct = neuron.gain * tf.cast(sensed[t], tf.float32) * tf.cast(upstream[t], tf.float32)
        carry = direct + tf.where(_bit(bits, t), 0.0, neuron.leak * carry)
        deltas[t] = tf.cast(carry, upstream.dtype)
    return tf.stack(deltas), carry


def replay_event(currents: tf.Tensor, bits: tf.Tensor, slope: tf.Tensor, carry: tf.Tensor,
                 give: Callable[[tf.Tensor], Any], kernel: str) -> tf.Tensor:
    """The recorded spikes of a chunk in place of what the currents would give; gradient "event".

    Args:
      currents: `[steps, B, ...]`; only shape and dtype are used.
      bits: the packed spikes, `[B, ...]` uint8.
      slope: `[B, ...]` float32.
      carry: delta of the step behind the chunk, `[B, ...]` float32.
      give: called in the backward pass with delta of the chunk's first step.
      kernel: "plain" or "xla".
    """
    credit = _credit_xla if kernel == "xla" else _credit
    return _replay(currents, bits, lambda upstream: credit(bits, slope, carry, upstream), give, kernel)


def _replay(currents: tf.Tensor, bits: tf.Tensor, credit: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
            give: Callable[[tf.Tensor], Any], kernel: str) -> tf.Tensor:
    """Recorded spikes, with the gradient that `credit` makes of dL/ds: `(delta, delta of the first step)`."""
    steps, dtype = currents.shape[0], currents.dtype

    @custom_gradient
    def replay(currents: tf.Tensor):
        def grad(upstream):
            delta, first = credit(upstream)
            give(first)
            return delta
        train = (_unpack_xla if kernel == "xla" else unpack)(bits, steps, dtype)
        train.set_shape(currents.shape)
        return train, grad

    return replay(currents)


def _credit(bits: tf.Tensor, slope: tf.Tensor, carry: tf.Tensor, upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """`gradients.event_credit` on packed spikes: `(delta [steps, B, ...], delta of the first step)`."""
    steps = upstream.shape[0]
    deltas = [carry] * steps
    for t in reversed(range(steps)):
        carry = tf.where(_bit(bits, t), slope * tf.cast(upstream[t], tf.float32), carry)
        deltas[t] = tf.cast(carry, upstream.dtype)
    return tf.stack(deltas), carry


_integrate_xla, _unpack_xla = shared(_integrate, compiled=True), shared(unpack, compiled=True)
_tally_xla, _count_xla = shared(_tally, compiled=True), shared(_count, compiled=True)
_credit_xla, _sense_xla = shared(_credit, compiled=True), shared(_sense, compiled=True)
_sensitivities_xla, _through_xla = shared(_sensitivities, compiled=True), shared(_through, compiled=True)


class BatchSizes:
    """Which batch sizes "auto" compiles inference for: a served model may see any.

    Compiling takes seconds for each size, and megabytes for good. Spikes, counts and membranes are the same in both
    kernels, to the bit, so inference may choose; the leaky traces, which training alone reads, may differ in the last
    one, so training is always compiled.
    """

    MOST, CALLS = 4, 3

    def __init__(self) -> None:
        self._calls: collections.Counter[int] = collections.Counter()
        self._usual: set[int] = set()

    def are_usual(self, size: int | None) -> bool:
        """Whether to compile for a call with so many samples; None, a graph for any number, is never compiled.

        A size is, when a graph is made for it or at its third call; the first `MOST` of them.
        """
        if size is not None and size not in self._usual and len(self._usual) < self.MOST:
            self._calls[size] += 1
            if not tf.executing_eagerly() or self._calls[size] >= self.CALLS:
                self._usual.add(size)
        return size in self._usual


def choose(kernel: str) -> str:
    """"plain" or "xla" for "auto"; itself otherwise."""
    if kernel != "auto":
        return kernel
    return "plain" if tf.config.list_logical_devices("GPU") else ON_CPU
