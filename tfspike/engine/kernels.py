"""A chunk of steps of one layer's neurons, forward and on record: the inner loops of the engine.

`gradients.fire` and `gradients.event_credit` are the definitions; these are the same recursions, unrolled over the few
steps of a chunk, with spikes packed one bit per neuron and step.

Kernels: "plain" runs as ordinary TensorFlow operations, one pass over memory each. "xla" compiles a chunk into four
passes, each of which goes over memory once: membranes and packed spikes; spikes, unpacked; counts and traces, from the
packed spikes; and the backward recursion (what a surrogate derivative needs of the membranes is a pass of its own).
Compiled in one piece, the compiler recomputes the chain of steps for every one of its results (LeNet's first layer,
float32, 8 steps, 2 cores: 1.6 ns per neuron and step in one piece, .9 in three; plain 1.6). "dense" is "xla" on CPUs,
but for inference at sizes that are seldom seen (`BatchSizes`), and "plain" where there is a GPU: there the whole step
is compiled (`--jit`), or runs operation by operation, each of which has a GPU kernel (`tests/test_gpu.py`). "events"
leaves out convolutions, too, and adds rows of weights where spikes are (`tfspike.engine.events`); where that cannot be,
it is "dense". Which of the two is faster depends on how much a network fires: `tfspike.engine.events.choice` measures
it where it is asked to (train.py, `SpikingModel.choose_kernel`), and until then "auto" is "dense".
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tfspike import distribution
from tfspike.neurons import gradients
from tfspike.neurons.custom_gradient import custom_gradient
from tfspike.neurons.gradients import Neuron, NeuronState
from tfspike.neurons.shared_function import shared
from tfspike.neurons.surrogates import registered

KERNELS = ("auto", "dense", "plain", "xla", "events")
CHOSEN_BY_DEVICE = ("auto", "dense", "events")  # where "events" cannot be taken, it is "dense"
# What "auto" is on a machine without a GPU.
ON_CPU = "xla"

# Elements of the largest layer in one chunk. Measured on 2 cores with 32 MB of last-level cache: benchmarks/README.md.
CHUNK_ELEMENTS = 5_000_000
# Steps in one chunk: the bits of one byte, and as few as are still worth the passes over counts, traces and membranes.
MOST_STEPS, FEWEST_STEPS = 8, 4
# Elements of all layers in one chunk on GPUs, of which a backward pass keeps about 12 bytes each: 3 GB. Not measured.
GPU_CHUNK_ELEMENTS = 250_000_000


def choose_chunk(timesteps: int, largest: int, total: int = 0) -> int:
    """Steps per chunk, a divisor of the window if one is near: by the cache of a CPU, by the memory of a GPU.

    A GPU has no use for more than 8 steps either: with 16 unrolled, XLA takes nearly twice as long to compile a step of
    LeNet and launches as many kernels (benchmarks/README.md).

    Args:
      timesteps: of the window.
      largest: neurons of the largest layer, in the whole batch.
      total: those of all layers.
    """
    if distribution.has_gpu():
        most = wanted = max(1, min(GPU_CHUNK_ELEMENTS // max(total, 1), MOST_STEPS))
    else:
        most, wanted = MOST_STEPS, max(FEWEST_STEPS, min(CHUNK_ELEMENTS // max(largest, 1), MOST_STEPS))
    wanted = min(timesteps, wanted)
    near = [steps for steps in range((wanted + 1) // 2, min(2 * wanted, most) + 1) if timesteps % steps == 0]
    return min(near, key=lambda steps: abs(steps - wanted)) if near else wanted


class Fired(NamedTuple):
    """What a chunk of steps leaves behind.

    Attributes:
      spikes: `[steps, B, ...]` in the dtype of the currents.
      state: after the last step.
      bits: the spikes, packed, `[B, ...]` uint8; None unless asked for "event".
      derivatives: the surrogate derivative h(x_t) of every step, `[steps, B, ...]` in the dtype of the currents (where
        constants are learnt, the potentials u_t, float32); None unless asked for "event", and without a surrogate.
    """

    spikes: tf.Tensor
    state: NeuronState
    bits: tf.Tensor | None
    derivatives: tf.Tensor | None


def fire(currents: tf.Tensor, state: NeuronState, neuron: Neuron, gradient: str | None, kernel: str) -> Fired:
    """A chunk of steps.

    Args:
      currents: `[steps, B, ...]`; at most 8 steps for the gradient "event".
      state: the state before.
      neuron: the neuron's constants.
      gradient: what will be asked for: "event" keeps packed spikes and surrogate derivatives, "rate" their sum in the
        trace, and None neither. The leak-aware trace is kept in any case.
      kernel: "plain" or "xla".
    """
    steps = currents.shape[0]
    if steps > MOST_STEPS:  # a window that a normalisation needs in one piece
        parts = []
        for start in range(0, steps, MOST_STEPS):
            spikes, state, *_ = fire(currents[start:start + MOST_STEPS], state, neuron, gradient, kernel)
            parts.append(spikes)
        return Fired(tf.concat(parts, axis=0), state, None, None)
    compiled = kernel == "xla" and not neuron.varies
    return (_fire_xla if compiled else _fire_plain)(currents, state, neuron, gradient)


def _fire_xla(currents: tf.Tensor, state: NeuronState, neuron: Neuron, gradient: str | None) -> Fired:
    steps, rule = currents.shape[0], neuron.slope_rule
    bits, membrane = _integrate_xla(currents, state.membrane, neuron)
    spikes, trace, derivatives = _unpack_xla(bits, steps, currents.dtype), state.trace, None
    if rule.needs_potential:
        count = _count_xla(bits, state.count, steps)
        if gradient == "rate":
            add_up = _sum_in_time_xla if neuron.credit == "time" else _sum_xla
            trace = add_up(currents, state.membrane, state.count, trace, registered(neuron.surrogate), neuron)
        elif gradient == "event":
            derivatives = _derivatives_xla(currents, state.membrane, registered(neuron.surrogate), neuron)
    else:
        count, trace = _tally_xla(bits, state.count, trace, steps, neuron)
    return Fired(spikes, NeuronState(membrane, count, trace), bits if gradient == "event" else None, derivatives)


def _fire_plain(currents: tf.Tensor, state: NeuronState, neuron: Neuron, gradient: str | None) -> Fired:
    """With as few operations as there can be: on a GPU each is a launch, which costs more than its arithmetic."""
    membrane, rule = state.membrane, neuron.slope_rule
    each, potentials = [], []
    for current in tf.unstack(currents):
        u, fired, membrane = gradients.fire(membrane, current, neuron)
        each.append(fired)
        potentials.append(u)
    train, derivatives = tf.stack(each), None
    u = tf.stack(potentials) if gradient is not None and rule.needs_potential else None
    if rule.needs_potential and gradient != "rate":
        count, trace = state.count + tf.reduce_sum(tf.cast(train, tf.float32), axis=0), state.trace
    else:
        count, trace = rule.tally_all(state.count, state.trace, u, train)
    if gradient == "event" and rule.needs_potential:
        derivatives = rule.recorded(u, currents.dtype)
    return Fired(tf.cast(train, currents.dtype), NeuronState(membrane, count, trace),
                 _packed(train) if gradient == "event" else None, derivatives)


def _packed(train: tf.Tensor) -> tf.Tensor:
    """Packed spikes of a train `[steps, B, ...]` bool: a sum of powers of 2, which float32 holds."""
    of_step = tf.reshape(tf.constant([2.0**t for t in range(train.shape[0])]), [-1] + [1] * (train.shape.rank - 1))
    return tf.cast(tf.reduce_sum(tf.cast(train, tf.float32) * of_step, axis=0), tf.uint8)


def stored(bits: tf.Tensor, kernel: str) -> tf.Tensor:
    """Packed spikes as a loop keeps them: "plain", four neurons' bytes as one float32 `[N]`.

    TensorFlow has no lists of bytes on GPUs: it would take them to the host and back.
    """
    if kernel == "xla":
        return bits
    flat, missing = tf.reshape(bits, [-1]), -tf.size(bits) % 4
    if bits.shape.num_elements() is None or bits.shape.num_elements() % 4:
        flat = tf.pad(flat, [[0, missing]])
    return tf.bitcast(tf.reshape(flat, [-1, 4]), tf.float32)


def restored(kept: tf.Tensor, like: tf.Tensor, kernel: str) -> tf.Tensor:
    """Packed spikes of the shape of `like`, from what `stored` made of them."""
    if kernel == "xla":
        return kept
    return tf.reshape(tf.reshape(tf.bitcast(kept, tf.uint8), [-1])[:tf.size(like)], tf.shape(like))


STORED = {"plain": tf.float32, "xla": tf.uint8}


def with_bit(bits: tf.Tensor, t: int, fired: tf.Tensor) -> tf.Tensor:
    """Packed spikes with those of step t, which have the bits' shape."""
    return tf.bitwise.bitwise_or(bits, tf.cast(fired, tf.uint8) * tf.constant(1 << t, tf.uint8))


def _bit(bits: tf.Tensor, t: int) -> tf.Tensor:
    return tf.bitwise.bitwise_and(bits, tf.constant(1 << t, tf.uint8)) > 0


def _integrate(currents: tf.Tensor, membrane: tf.Tensor, neuron: Neuron) -> tuple[tf.Tensor, tf.Tensor]:
    """`(packed spikes, membrane after)` of a chunk."""
    bits = tf.zeros_like(membrane, tf.uint8)
    for t in range(currents.shape[0]):
        _, fired, membrane = gradients.fire(membrane, currents[t], neuron)
        bits = with_bit(bits, t, fired)
    return bits, membrane


def _tally(bits: tf.Tensor, count: tf.Tensor, trace: tf.Tensor, steps: int,
           neuron: Neuron) -> tuple[tf.Tensor, tf.Tensor]:
    """`(count, trace)` after the packed spikes of a chunk, by a rule that needs no potentials."""
    for t in range(steps):
        count, trace = neuron.slope_rule.tally(count, trace, None, _bit(bits, t))
    return count, trace


def _count(bits: tf.Tensor, count: tf.Tensor, steps: int) -> tf.Tensor:
    """The count after the packed spikes of a chunk."""
    for t in range(steps):
        count = count + tf.cast(_bit(bits, t), tf.float32)
    return count


def _sum(currents: tf.Tensor, membrane: tf.Tensor, count: tf.Tensor, trace: tf.Tensor, _registered: int,
         neuron: Neuron) -> tf.Tensor:
    """The trace after a chunk, by a rule that needs potentials.

    What is compiled is kept by its arguments: `_registered` tells functions of one name apart (`surrogates.register`).
    """
    for t in range(currents.shape[0]):
        u, fired, membrane = gradients.fire(membrane, currents[t], neuron)
        count, trace = neuron.slope_rule.tally(count, trace, u, fired)
    return trace


def _derivatives(currents: tf.Tensor, membrane: tf.Tensor, _registered: int, neuron: Neuron) -> tf.Tensor:
    """The surrogate derivative at every step of a chunk, in the dtype of currents; `_registered` as in `_sum`."""
    found = []
    for t in range(currents.shape[0]):
        u, _, membrane = gradients.fire(membrane, currents[t], neuron)
        found.append(neuron.slope_rule.recorded(u, currents.dtype))
    return tf.stack(found)


def unpack(bits: tf.Tensor, steps: int, dtype: tf.DType) -> tf.Tensor:
    """Packed spikes `[B, ...]` uint8 to a train `[steps, B, ...]`."""
    of_step = tf.constant([[1 << t] for t in range(steps)], tf.uint8)
    spikes = tf.cast(tf.bitwise.bitwise_and(tf.reshape(bits, [1, -1]), of_step) > 0, dtype)
    return tf.reshape(spikes, tf.concat([[steps], tf.shape(bits)], axis=0))


def replay_rate(currents: tf.Tensor, rate: tf.Tensor, state: NeuronState, neuron: Neuron, timesteps: int) -> tf.Tensor:
    """The recorded rate in place of what the currents would give, gradient "rate".

    Args:
      currents: `[1, B, ...]`; only shape and dtype are used.
      rate: N / T, `[1, B, ...]`.
      state: at the window's end.
      neuron: the neuron's constants.
      timesteps: T.
    """
    rule = neuron.slope_rule
    slope = rule.slope(state.count, state.trace, timesteps)

    @custom_gradient
    def replay(currents: tf.Tensor, *_learnt: tf.Tensor):
        def grad(upstream):
            asked = tf.cast(upstream, tf.float32)
            return (tf.cast(slope * asked, currents.dtype),
                    *[tf.reduce_sum(of_rate * asked) for of_rate in rule.sensitivities(state.trace, timesteps)])
        return rate, grad

    return replay(currents, *neuron.learnt)


def replay_event(currents: tf.Tensor, bits: tf.Tensor, known: tf.Tensor, carry: tf.Tensor, neuron: Neuron,
                 give: Callable[[tf.Tensor], Any], kernel: str) -> tf.Tensor:
    """The recorded spikes of a chunk in place of what the currents would give; gradient "event".

    Args:
      currents: `[steps, B, ...]`; only shape and dtype are used.
      bits: the packed spikes, `[B, ...]` uint8.
      known: the slope `[B, ...]` float32, or what was recorded of every step, `[steps, B, ...]`.
      carry: delta of the step behind the chunk, `[B, ...]` float32.
      neuron: the neuron's constants.
      give: called in the backward pass with delta of the chunk's first step.
      kernel: "plain" or "xla".
    """
    steps, dtype = currents.shape[0], currents.dtype

    @custom_gradient
    def replay(currents: tf.Tensor, *_learnt: tf.Tensor):
        def grad(upstream):
            credit = _credit_xla if kernel == "xla" and not neuron.varies else _credit
            delta, first = credit(bits, known, carry, upstream, neuron)
            give(first)
            return (delta, *neuron.slope_rule.credit_constants(known, train, upstream, delta, carry))
        train = (_unpack_xla if kernel == "xla" else unpack)(bits, steps, dtype)
        train.set_shape(currents.shape)
        return train, grad

    return replay(currents, *neuron.learnt)


def _credit(bits: tf.Tensor, known: tf.Tensor, carry: tf.Tensor, upstream: tf.Tensor,
            neuron: Neuron) -> tuple[tf.Tensor, tf.Tensor]:
    """`gradients.event_credit` on packed spikes: `(delta [steps, B, ...], delta of the first step)`."""
    steps, rule = upstream.shape[0], neuron.slope_rule
    deltas = [carry] * steps
    for t in reversed(range(steps)):
        carry = rule.credit(_bit(bits, t), rule.factor(known, t), tf.cast(upstream[t], tf.float32), carry)
        deltas[t] = tf.cast(carry, upstream.dtype)
    return tf.stack(deltas), carry


def _for_all(function: Callable[..., Any], constants: tuple[str, ...]) -> Callable[..., Any]:
    """A function whose last argument is a neuron, compiled once for all neurons that differ in these constants alone.

    What is compiled stays for good: with the constants in it, a search for the best leak would take a second and
    megabytes for every value that it tries. No function here reads `start`.
    """
    def of_values(*args: Any) -> Any:
        *others, neuron = args
        others, values = others[:-len(constants)], others[-len(constants):]
        return function(*others, neuron._replace(**dict(zip(constants, values))))

    compiled = shared(of_values, compiled=True)

    def call(*args: Any) -> Any:
        *others, neuron = args
        values = [tf.constant(getattr(neuron, name), tf.float32) for name in constants]
        return compiled(*others, *values, neuron._replace(**dict.fromkeys(constants, 1.0), start=0.0))

    return call


_unpack_xla, _count_xla = shared(unpack, compiled=True), shared(_count, compiled=True)
_integrate_xla, _tally_xla, _credit_xla = (_for_all(function, ("leak", "threshold", "gain"))
                                           for function in (_integrate, _tally, _credit))
# The compiler makes one number of the gain and what a surrogate multiplies with, and of the leak and what it knows of
# credit in time: with tensors in place of these constants the last bits would be others.
_sum_xla, _derivatives_xla = (_for_all(function, ("leak", "threshold")) for function in (_sum, _derivatives))
_sum_in_time_xla = _for_all(_sum, ("threshold",))


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
    """The kernel of the dense path: "plain" or "xla" where the device says which; itself otherwise."""
    if kernel not in CHOSEN_BY_DEVICE:
        return kernel
    return "plain" if distribution.has_gpu() else ON_CPU
