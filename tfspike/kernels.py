"""A chunk of steps of one layer's neurons, forward and on record: the inner loops of the engine.

`gradients.fire` and `gradients.event_credit` are the definitions; these are the same recursions, unrolled over the few
steps of a chunk, with spikes packed one bit per neuron and step.

Kernels: "plain" runs as ordinary TensorFlow operations; "xla" compiles each chunk to one pass over memory. "auto" is
"plain" for now: "xla" is faster (VGG9, T = 100, batch 16, "rate", bfloat16, 2 cores of an AMD EPYC: .88 s against
1.10 s per step) but compiles for seconds per shape, and a compiled kernel would tie an exported file to one kind of
machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfspike import gradients
from tfspike.gradients import Neuron, NeuronState

KERNELS = ("auto", "plain", "xla")

# Elements of the largest layer in one chunk. Measured on 2 cores with 32 MB of last-level cache: benchmarks/README.md.
CHUNK_ELEMENTS = 4_000_000
# Steps in one chunk: the bits of one byte.
MOST_STEPS = 8


def choose_chunk(timesteps: int, neurons: int) -> int:
    """Steps per chunk: about `CHUNK_ELEMENTS`, a divisor of the window where one is near."""
    wanted = max(1, min(timesteps, CHUNK_ELEMENTS // max(neurons, 1), MOST_STEPS))
    near = [steps for steps in range((wanted + 1) // 2, min(2 * wanted, MOST_STEPS) + 1) if timesteps % steps == 0]
    return min(near, key=lambda steps: abs(steps - wanted)) if near else wanted


def fire(currents: tf.Tensor, state: NeuronState, neuron: Neuron, keep_bits: bool,
         kernel: str) -> tuple[tf.Tensor, NeuronState, tf.Tensor]:
    """A chunk of steps.

    Args:
      currents: `[steps, B, ...]`, at most 8 steps.
      state: the state before.
      neuron: the neuron's constants.
      keep_bits: also pack the spikes.
      kernel: "plain", "xla" or "auto".

    Returns:
      `(spikes [steps, B, ...] in the dtype of currents, state after, bits [B, ...] uint8)`.
    """
    steps = currents.shape[0]

    def chunk(currents: tf.Tensor, membrane: tf.Tensor, count: tf.Tensor, trace: tf.Tensor):
        train, bits = [], tf.zeros_like(membrane, tf.uint8)
        for t in range(steps):
            fired, membrane = gradients.fire(membrane, currents[t], neuron)
            spikes = tf.cast(fired, tf.float32)
            count, trace = count + spikes, neuron.leak * trace + spikes
            train.append(tf.cast(fired, currents.dtype))
            if keep_bits:
                bits = tf.bitwise.bitwise_or(bits, tf.cast(fired, tf.uint8) * tf.constant(1 << t, tf.uint8))
        return tf.stack(train), membrane, count, trace, bits

    spikes, membrane, count, trace, bits = _compiled(chunk, kernel)(currents, *state)
    return spikes, NeuronState(membrane, count, trace), bits


def unpack(bits: tf.Tensor, steps: int, dtype: tf.DType) -> tf.Tensor:
    """Packed spikes `[B, ...]` uint8 to a train `[steps, B, ...]`."""
    return tf.stack([tf.cast(tf.bitwise.bitwise_and(bits, tf.constant(1 << t, tf.uint8)) > 0, dtype)
                     for t in range(steps)])


def replay_rate(currents: tf.Tensor, rate: tf.Tensor, slope: tf.Tensor) -> tf.Tensor:
    """The recorded rate in place of what the currents would give; gradient dL/dd = slope dL/dr. All `[1, B, ...]`."""

    @tf.custom_gradient
    def replay(currents: tf.Tensor):
        def grad(upstream):
            return tf.cast(slope * tf.cast(upstream, tf.float32), currents.dtype)
        return rate, grad

    return replay(currents)


def replay_event(currents: tf.Tensor, bits: tf.Tensor, slope: tf.Tensor, carry: tf.Tensor,
                 give: Callable[[tf.Tensor], Any], kernel: str) -> tf.Tensor:
    """The recorded spikes of a chunk in place of what the currents would give; gradient "event".

    Args:
      currents: `[steps, B, ...]`; only shape and dtype are used.
      bits: the packed spikes, `[B, ...]` uint8.
      slope: `[B, ...]` float32.
      carry: delta of the step behind the chunk, `[B, ...]` float32.
      give: called in the backward pass with delta of the chunk's first step.
      kernel: "plain", "xla" or "auto".
    """
    steps, dtype = currents.shape[0], currents.dtype

    def credit(bits: tf.Tensor, slope: tf.Tensor, carry: tf.Tensor, upstream: tf.Tensor):
        deltas = [carry] * steps
        for t in reversed(range(steps)):
            spiked = tf.bitwise.bitwise_and(bits, tf.constant(1 << t, tf.uint8)) > 0
            carry = tf.where(spiked, slope * tf.cast(upstream[t], tf.float32), carry)
            deltas[t] = tf.cast(carry, dtype)
        return tf.stack(deltas), carry

    @tf.custom_gradient
    def replay(currents: tf.Tensor):
        def grad(upstream):
            delta, first = _compiled(credit, kernel)(bits, slope, carry, upstream)
            give(first)
            return delta
        return unpack(bits, steps, dtype), grad

    return replay(currents)


def _compiled(function: Callable, kernel: str) -> Callable:
    return tf.function(function, jit_compile=True) if kernel == "xla" else function
