"""Thresholds that let every channel of a layer fire about as often (threshold regularisation, Lee et al. 2016).

Of the C channels of a layer (maps of a convolution, neurons of a dense layer) q_b is the share that fires anywhere in
its map on record b of a training window, and f_bc is 1 where channel c does. After the window, with rho the option:

    theta_c <- max(theta_c + rho theta_0 mean over b of (f_bc - q_b), theta_0 / 10)       q_b = 1 where nothing fires

Channels that fire where others do not become harder to drive, those that do not fire easier, and the mean threshold
stays, until a record makes no channel fire at all: then all thresholds fall, by rho theta_0. The thresholds are state,
one number per channel, and no gradient passes to them.

The rule is that of Lee, Delbruck and Pfeiffer 2016 for a group of neurons that compete, of which those that fired gain
rho n on their threshold and all n lose rho times the number that fired. Ours: the group is a layer's channels, rho is
in units of 1/n and of the first threshold, a batch counts as the mean of its records, silence lowers thresholds, and
their least is a tenth of the first.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfspike.checks import number, received
from tfspike.errors import UserError

_LEAST = 0.1  # of the first threshold


def check(homeostasis: Any, learn: tuple[str, ...], start: float, running_start: bool) -> float:
    """rho as a float.

    Raises:
      UserError: it is none, or does not go with neurons that learn their threshold or begin above 0.
    """
    if not 0.0 <= number(homeostasis) < 1.0:
        raise UserError("`homeostasis` must be a number in [0, 1)." + received("homeostasis", homeostasis))
    if homeostasis and ("threshold" in learn or start != 0.0 or running_start):
        raise UserError("`homeostasis` is of thresholds that are not learnt and membranes that begin at 0. Received: "
                        f"homeostasis={homeostasis:g}, learn={learn!r}, start={start:g}, "
                        f"running_start={running_start!r}.")
    return float(homeostasis)


def after(thresholds: tf.Tensor, count: tf.Tensor, first: float, homeostasis: float) -> tf.Tensor:
    """The thresholds after a training window.

    Args:
      thresholds: before, `[C]` float32.
      count: spikes of every neuron in the window, `[B, ..., C]`.
      first: theta_0.
      homeostasis: rho.
    """
    places = list(range(1, count.shape.rank - 1))
    fired = tf.cast(tf.reduce_max(count, axis=places) > 0.0, tf.float32)
    share = tf.reduce_mean(fired, axis=-1, keepdims=True)
    share = tf.where(share > 0.0, share, 1.0)
    moved = thresholds + homeostasis * first * tf.reduce_mean(fired - share, axis=0)
    return tf.stop_gradient(tf.maximum(moved, _LEAST * first))


def longest_fall(homeostasis: float) -> int:
    """Training windows without a spike until thresholds are at their least."""
    return round((1.0 - _LEAST) / homeostasis) if homeostasis else 0
