"""Thresholds that adapt until every channel of a layer fires about as often: threshold regularisation, Lee et al. 2016.

Of the C channels of a layer (maps of a convolution, neurons of a dense layer) f_bc is the share of the neurons of
channel c that fire in a training window on record b, and q_b the mean of f_bc over the channels. After the window

    theta_c <- max(theta_c + rho theta mean over b of (f_bc - q_b), theta / 10)        q_b = 1 where q_b < 1/20

with theta the layer's threshold, where all theta_c begin. A channel that fires where others do not becomes harder to
drive, one that does not fire easier, and their mean stays, but on records on which fewer than one neuron in twenty
fires: there thresholds fall. They are state, kept as factors of theta, and no gradient passes to them.

Of Lee, Delbruck and Pfeiffer 2016, as far as we know it (their text was not at hand), is the rule for n neurons that
compete: those that fire gain rho n on their threshold, then all lose rho times the number that fired, down to a least
one. Ours: the channels at one position are what competes, and a map moves by the mean over its positions and the batch;
rho is their rho n in units of theta, thresholds fall where hardly a neuron fires, and the least is a tenth of theta.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfspike.checks import check_fraction, may_adapt
from tfspike.errors import UserError

_LEAST = 0.1  # of the first threshold
_ENOUGH = 0.05  # share of the neurons that should fire on a record


def check_homeostasis(homeostasis: Any, learn: tuple[str, ...], start: float, running_start: bool,
                      gradient: str) -> float:
    """rho as a float.

    Raises:
      UserError: it is none, or does not go with neurons of these options.
    """
    homeostasis = check_fraction("homeostasis", homeostasis)
    check_by_channel("homeostasis", homeostasis, learn, start, running_start, gradient)
    return homeostasis


def check_by_channel(name: str, value: Any, learn: tuple[str, ...], start: float, running_start: bool,
                     gradient: str) -> None:
    """Refuses the option `name`, which gives every channel a threshold of its own, where neurons of these options have
    one for the layer.

    Raises:
      UserError: naming what does not go together.
    """
    if value and not may_adapt(learn, start, running_start, gradient):
        raise UserError(f"`{name}` is of neurons that learn no constants and begin at 0, with gradient='event' or "
                        f"'rate'. Received: {name}={value!r}, learn={learn!r}, start={start:g}, "
                        f"running_start={running_start!r}, gradient={gradient!r}.")


def adapted(factor: tf.Tensor, count: tf.Tensor, homeostasis: float) -> tf.Tensor:
    """theta_c / theta after a training window, `[C]` float32.

    Args:
      factor: theta_c / theta before.
      count: spikes of every neuron in the window, `[B, ..., C]`.
      homeostasis: rho.
    """
    fired = tf.reduce_mean(tf.cast(count > 0.0, tf.float32), axis=list(range(1, count.shape.rank - 1)))
    share = tf.reduce_mean(fired, axis=-1, keepdims=True)
    competing = tf.where(share >= _ENOUGH, share, 1.0)
    moved = factor + homeostasis * tf.reduce_mean(fired - competing, axis=0)
    # The last batch of an epoch may leave a replica without a record, whose mean is NaN
    moved = tf.where(tf.shape(count)[0] > 0, moved, factor)
    return tf.stop_gradient(tf.maximum(moved, _LEAST))


def longest_fall(homeostasis: float) -> int:
    """Training windows without any spike until thresholds are at their least; 0 where they stay as they are."""
    return round((1.0 - _LEAST) / homeostasis) if homeostasis else 0
