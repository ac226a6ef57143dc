"""Leak and threshold as weights, one of each per layer (DIET-SNN, Rathi and Roy 2021).

With u_t, s_t, g_t, delta_t, h and k_t as in `tfspike.gradients`, b_t what a spike leaves of u_t (u_t - theta s_t, or
u_t (1 - s_t)), sums over steps, neurons and batch, and s_t held constant where the membrane is reset:

    event    dL/dlambda = sum of delta_(t+1) b_t
             dL/dtheta  = sum of -h(x_t) u_t / theta^2 g_t - lambda s_t delta_(t+1)      (the last part: subtraction)

"rate" follows what lasting changes of the drive, the leak and the threshold do to the potential, from step to step:

    e_t = du_t/dd        e_1 = 1   e_(t+1) = 1 + k_t e_t
    q_t = du_t/dlambda   q_1 = 0   q_(t+1) = b_t + k_t q_t
    a_t = du_t/dtheta    a_1 = 0   a_(t+1) = k_t a_t - lambda s_t                        (the last part: subtraction)
    dr/dlambda = gain mean over t of h(x_t) q_t
    dr/dtheta  = gain mean over t of h(x_t) (a_t - u_t / theta)

so that wherever g_t does not change in time, "rate" has the sums of "event", as it has for the drive.

The authors take the triangular surrogate times .3, subtraction and "event", keep the leak at most 1 after every update
and bound nothing else. Here a leak stays in [.001, 1] and a threshold at least .001.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from tfspike.checks import check_choice
from tfspike.errors import UserError
from tfspike.neurons import slopes

LEARNABLE = ("leak", "threshold")
_LEAST = 1e-3
_MOST = {"leak": 1.0, "threshold": float("inf")}


class Bounded(keras.constraints.Constraint):
    """Keeps a learnt constant where neurons are defined, after every update.

    Args:
      name: one of `LEARNABLE`.
    """

    def __init__(self, name: str):
        self.name = check_choice("name", name, LEARNABLE)

    def __call__(self, w: Any) -> Any:
        return tf.clip_by_value(tf.convert_to_tensor(w), _LEAST, _MOST[self.name])

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name}


def check_learn(learn: Any) -> tuple[str, ...]:
    """Returns what is learnt, each once, in the order of `LEARNABLE`; raises UserError for anything else."""
    if isinstance(learn, str) or not isinstance(learn, (list, tuple)):
        raise UserError("`learn` must be a tuple of what is learnt, some of 'leak', 'threshold'. "
                        f"Received: learn={learn!r}.")
    for name in learn:
        check_choice("learn", name, LEARNABLE)
    return tuple(name for name in LEARNABLE if name in learn)


def check_options(learn: tuple[str, ...], gradient: str, surrogate: str, credit: str, start: float, reset: str) -> None:
    """Refuses neurons whose constants have no gradient.

    Raises:
      UserError: naming what is missing.
    """
    if not learn:
        return
    if slopes.kind_of(surrogate) is not slopes.Surrogate:
        raise UserError("A learnt leak or threshold takes a surrogate of the membrane potential, such as 'triangular'. "
                        f"Received: learn={learn!r}, surrogate={surrogate!r}.")
    if (gradient, credit) not in (("event", "mean"), ("rate", "time")):
        raise UserError("A learnt leak or threshold takes gradient='event', or gradient='rate' with credit='time'. "
                        f"Received: learn={learn!r}, gradient={gradient!r}, credit={credit!r}.")
    if start != 0.0 or reset == "silent":
        raise UserError("A learnt leak or threshold takes membranes that begin at 0 and go on after a spike. "
                        f"Received: learn={learn!r}, start={start:g}, reset={reset!r}.")


@dataclasses.dataclass(frozen=True)
class LearntConstants(slopes.Surrogate):
    """A surrogate whose leak, threshold or both are tensors that pass gradient, under "event"."""

    learn: tuple[str, ...]

    def recorded(self, u: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        """The potentials, float32."""
        return u

    def factor(self, known: tf.Tensor, t: tf.Tensor | int) -> tf.Tensor:
        return self.gain * self.derivative(known[t])

    def credit_constants(self, known: tf.Tensor, spikes: tf.Tensor, upstream: tf.Tensor, delta: tf.Tensor,
                         carry: tf.Tensor) -> list[tf.Tensor]:
        g, s = tf.cast(upstream, tf.float32), tf.cast(spikes, tf.float32)
        later = tf.concat([tf.cast(delta[1:], tf.float32), carry[tf.newaxis]], axis=0)
        direct = -self.gain * self.derivative(known) * known / self.threshold
        return self._learnt(leak=tf.reduce_sum(later * self._left(known, s)),
                            threshold=tf.reduce_sum(direct * g + self._by_threshold(s) * later))

    def _left(self, u: tf.Tensor, spikes: tf.Tensor) -> tf.Tensor:
        """b_t: what a spike leaves of the potential, before the leak."""
        return u - self.threshold * spikes if self.reset == "subtract" else u * (1.0 - spikes)

    def _by_threshold(self, spikes: tf.Tensor) -> tf.Tensor:
        """dv_t/dtheta at a given u_t."""
        return -self.leak * spikes if self.reset == "subtract" else tf.zeros_like(spikes)

    def _learnt(self, **of: tf.Tensor) -> list[tf.Tensor]:
        return [of[name] for name in self.learn]


class LearntInTime(LearntConstants, slopes.SurrogateInTime):
    """The same under "rate".

    The trace is `[6, B, ...]`: of drive, leak and threshold in turn, the sum over t of h(x_t) times what the potential
    gains on its threshold, and du/d(...) of the next step.
    """

    parts = 6

    def new_trace(self, zeros: tf.Tensor) -> tf.Tensor:
        return tf.stack([zeros, tf.ones_like(zeros), zeros, zeros, zeros, zeros])

    def tally(self, count: tf.Tensor, trace: tf.Tensor, u: tf.Tensor | None,
              fired: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        of_drive, e, of_leak, q, of_threshold, a = tf.unstack(trace)
        assert u is not None  # as it needs potentials
        h, spikes = self.derivative(u), tf.cast(fired, tf.float32)
        after = [of_drive + h * e, 1.0 + self._kept(fired, e),
                 of_leak + h * q, self._left(u, spikes) + self._kept(fired, q),
                 of_threshold + h * (a - u / self.threshold), self._kept(fired, a) + self._by_threshold(spikes)]
        return count + spikes, tf.stack(after)

    def sensitivities(self, trace: tf.Tensor, steps: tf.Tensor | int) -> list[tf.Tensor]:
        share = self.gain / tf.cast(steps, tf.float32)
        return self._learnt(leak=share * trace[2], threshold=share * trace[4])
