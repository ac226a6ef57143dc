"""Membranes that begin a window where those that fired in earlier ones ended, on average (MP-Init, Kook et al. 2025).

One number mu per layer, a share of the threshold, in training and in inference; no gradient passes to or through it:

    v_0 = mu theta        mu <- .9 mu + .1 mean of v_T / theta over the neurons and records that fired in the window

The mean is kept within [0, .99], where a membrane may begin; a window without a spike changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tensorflow as tf

if TYPE_CHECKING:
    from tfspike.neurons.gradients import NeuronState

_KEPT = 0.9
_MOST = 0.99


def after(start: tf.Tensor, state: NeuronState, threshold: Any) -> tf.Tensor:
    """mu after a training window that ended in this state.

    Args:
      start: mu before, `[]`.
      state: membranes and counts `[B, ...]` at the window's end.
      threshold: of the neurons.
    """
    fired = tf.cast(state.count > 0.0, tf.float32)
    number, total = tf.reduce_sum(fired), tf.reduce_sum(fired * state.membrane)
    replica = tf.distribute.get_replica_context()
    if replica is not None and replica.num_replicas_in_sync > 1:  # not a mean of means: others fired elsewhere
        number, total = replica.all_reduce(tf.distribute.ReduceOp.SUM, [number, total])
    mean = total / (tf.maximum(number, 1.0) * threshold)
    moved = _KEPT * start + (1.0 - _KEPT) * tf.clip_by_value(mean, 0.0, _MOST)
    return tf.stop_gradient(tf.where(number > 0.0, moved, start))
