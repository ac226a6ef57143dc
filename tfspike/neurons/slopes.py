"""What stands for the derivative of a spike, over a window: the slope of Lee et al. 2020, a surrogate derivative, or a
ReLU's.

Both gradients of `tfspike.gradients` ask the same four things, and everything that they answer differently stands here:

1. what a neuron counts after each step (`tally`),
2. the slope that comes of it at the window's end (`slope`),
3. what the gradient "event" must know of each step besides its spike (`needs_potential`, `derivative`),
4. the recursion of "event" from step to step (`credit`).

A rule is a constant of a neuron (`Neuron.slope_rule`): hashable, equal to another of the same numbers. Counts, traces
and slopes are float32, `[B, ...]`. Neurons whose leak or threshold is learnt have a rule of their own
(`tfspike.neurons.learnt`), which answers for the gradient of these, too.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, ClassVar

import tensorflow as tf

from tfspike.neurons import surrogates
from tfspike.neurons.surrogates import LEAK_AWARE, TANDEM

if TYPE_CHECKING:
    from tfspike.neurons.gradients import Neuron


@dataclasses.dataclass(frozen=True)
class SlopeRule:
    """What all rules share.

    Attributes:
      leak, threshold, gain: of the neuron.
      needs_potential: whether it looks at the membrane potential u of every step. If so, "rate" takes the trace from
        potentials, not from spikes, and "event" must know the surrogate derivative of every step.
      needs_spikes: whether a neuron that never fired gets no gradient.
      has_width: whether a width stretches it.
      parts: how many numbers a neuron's trace has; a trace of several is `[parts, B, ...]`.
    """

    leak: float
    threshold: float
    gain: float

    needs_potential: ClassVar[bool]
    needs_spikes: ClassVar[bool]
    has_width: ClassVar[bool]
    parts: ClassVar[int] = 1

    def new_trace(self, zeros: tf.Tensor) -> tf.Tensor:
        """The trace before the first step of a neuron, from zeros `[B, ...]`."""
        return zeros

    def opened(self, trace: tf.Tensor) -> tf.Tensor:
        """The trace at the begin of a window, where an earlier one left `trace`."""
        raise NotImplementedError

    def of_window(self, trace: tf.Tensor, before: tf.Tensor) -> tf.Tensor:
        """What `slope` is told of a window that ended in `trace`, where an earlier one left `before`."""
        return trace

    def tally(self, count: tf.Tensor, trace: tf.Tensor, u: tf.Tensor | None,
              fired: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """`(count, trace)` after a step in which the membrane reached `u`; None does where `needs_potential` is not."""
        raise NotImplementedError

    def tally_all(self, count: tf.Tensor, trace: tf.Tensor, u: tf.Tensor | None,
                  fired: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """`(count, trace)` after several steps, u and fired `[steps, B, ...]`: `tally`, in few operations if it can."""
        for at, spikes in zip([None] * fired.shape[0] if u is None else tf.unstack(u), tf.unstack(fired)):
            count, trace = self.tally(count, trace, at, spikes)
        return count, trace

    def slope(self, count: tf.Tensor, trace: tf.Tensor, steps: tf.Tensor | int) -> tf.Tensor:
        """The slope at the end of a window of so many steps."""
        raise NotImplementedError

    def derivative(self, u: tf.Tensor) -> tf.Tensor:
        """The surrogate derivative h(x), x = gain (u - threshold) / width, for membrane potentials of any shape."""
        raise NotImplementedError(f"{type(self).__name__} has no surrogate derivative")

    def recorded(self, u: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        """What "event" keeps of steps besides their spikes where `needs_potential` is: h(x_t), in this type."""
        return tf.cast(self.derivative(u), dtype)

    def factor(self, known: tf.Tensor, t: tf.Tensor | int) -> tf.Tensor:
        """What step t multiplies dL/ds_t with, `[B, ...]`.

        Args:
          known: the slope `[B, ...]`; where `needs_potential` is, what was `recorded`, `[T, B, ...]`.
          t: the step.
        """
        raise NotImplementedError

    def credit(self, fired: tf.Tensor, factor: tf.Tensor, upstream: tf.Tensor, later: tf.Tensor) -> tf.Tensor:
        """delta_t of the gradient "event" from dL/ds_t (`upstream`) and delta_(t+1) (`later`), all `[B, ...]`."""
        raise NotImplementedError

    def credit_constants(self, known: tf.Tensor, spikes: tf.Tensor, upstream: tf.Tensor, delta: tf.Tensor,
                         carry: tf.Tensor) -> list[tf.Tensor]:
        """dL/d(constant) of the gradient "event" for every learnt constant; none here.

        Args:
          known, spikes, upstream, delta: of some steps, `[steps, B, ...]`.
          carry: delta of the step behind them, `[B, ...]` float32.
        """
        return []

    def sensitivities(self, trace: tf.Tensor, steps: tf.Tensor | int) -> list[tf.Tensor]:
        """dr/d(constant) `[B, ...]` of the gradient "rate" for every learnt constant; none here."""
        return []


class LeakAware(SlopeRule):
    """One number per neuron and window, from its spikes alone (Lee et al. 2020, Eqs. 19-26); 0 where it never fired.

    The trace is F, the sum of leak^(T-t) s_t. Below a leak of 1/e the slope can turn negative.
    """

    needs_potential, needs_spikes, has_width = False, True, False

    def opened(self, trace: tf.Tensor) -> tf.Tensor:
        """As it is: a window that continues another continues its slope."""
        return trace

    def tally(self, count: tf.Tensor, trace: tf.Tensor, u: tf.Tensor | None,
              fired: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        spikes = tf.cast(fired, tf.float32)
        return count + spikes, self.leak * trace + spikes

    def tally_all(self, count: tf.Tensor, trace: tf.Tensor, u: tf.Tensor | None,
                  fired: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        spikes, steps = tf.cast(fired, tf.float32), fired.shape[0]
        decay = tf.reshape(tf.constant([self.leak ** (steps - 1 - t) for t in range(steps)], tf.float32),
                           [-1] + [1] * (fired.shape.rank - 1))
        return (count + tf.reduce_sum(spikes, axis=0),
                self.leak**steps * trace + tf.reduce_sum(decay * spikes, axis=0))

    def slope(self, count: tf.Tensor, trace: tf.Tensor, steps: tf.Tensor | int) -> tf.Tensor:
        """gain (1[N > 0] + ln(leak) F / N); of the number of steps it does not depend."""
        fired = tf.cast(count > 0.0, tf.float32)
        return self.gain * (fired + math.log(self.leak) * trace / tf.maximum(count, 1.0))

    def factor(self, known: tf.Tensor, t: tf.Tensor | int) -> tf.Tensor:
        return known

    def credit(self, fired: tf.Tensor, factor: tf.Tensor, upstream: tf.Tensor, later: tf.Tensor) -> tf.Tensor:
        """s_t slope g_t + (1 - s_t) delta_(t+1): to the next output spike, the leak ignored on the way."""
        return tf.where(fired, factor * upstream, later)


@dataclasses.dataclass(frozen=True)
class Surrogate(SlopeRule):
    """A surrogate derivative h at every step (`tfspike.surrogates`); a neuron that came near its threshold learns.

    The trace is the sum of h(x_t).
    """

    name: str
    width: float
    reset: str

    needs_potential, needs_spikes, has_width = True, False, True

    def opened(self, trace: tf.Tensor) -> tf.Tensor:
        """Empty: the slope of a window is of its own steps."""
        return self.new_trace(tf.zeros_like(trace))

    def tally(self, count: tf.Tensor, trace: tf.Tensor, u: tf.Tensor | None,
              fired: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return count + tf.cast(fired, tf.float32), trace + self.derivative(u)

    def tally_all(self, count: tf.Tensor, trace: tf.Tensor, u: tf.Tensor | None,
                  fired: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return (count + tf.reduce_sum(tf.cast(fired, tf.float32), axis=0),
                trace + tf.reduce_sum(self.derivative(u), axis=0))

    def slope(self, count: tf.Tensor, trace: tf.Tensor, steps: tf.Tensor | int) -> tf.Tensor:
        """gain times the mean of h over the window: what `SurrogateInTime` has where nothing is kept of a potential."""
        return self.gain * trace / tf.cast(steps, tf.float32)

    def derivative(self, u: tf.Tensor) -> tf.Tensor:
        return surrogates.derivative(self.name, self.gain * (u - self.threshold), self.width)

    def factor(self, known: tf.Tensor, t: tf.Tensor | int) -> tf.Tensor:
        return self.gain * tf.cast(known[t], tf.float32)

    def credit(self, fired: tf.Tensor, factor: tf.Tensor, upstream: tf.Tensor, later: tf.Tensor) -> tf.Tensor:
        """gain h(x_t) g_t + leak (1 - s_t) delta_(t+1): backpropagation through time (STBP, Wu et al. 2018).

        The reset is held constant: what it would do to the gradient makes training worse (Zenke and Vogels 2021). With
        a reset by subtraction a spike then ends no credit, leak delta_(t+1).
        """
        return factor * upstream + self._kept(fired, later)

    def _kept(self, fired: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """dv_t/du_t times x."""
        return self.leak * x if self.reset == "subtract" else tf.where(fired, 0.0, self.leak * x)


class SurrogateInTime(Surrogate):
    """A surrogate whose "rate" knows what a lasting drive does to the potential (Yu et al. 2024).

    The trace is `[2, B, ...]`: the sum of h(x_t) e_t, and e = du/dd of the next step.
    """

    parts = 2

    def new_trace(self, zeros: tf.Tensor) -> tf.Tensor:
        return tf.stack([zeros, tf.ones_like(zeros)])

    def opened(self, trace: tf.Tensor) -> tf.Tensor:
        return self.new_trace(tf.zeros_like(trace[0]))

    def tally(self, count: tf.Tensor, trace: tf.Tensor, u: tf.Tensor | None,
              fired: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        total, reach = tf.unstack(trace)
        after = tf.stack([total + self.derivative(u) * reach, 1.0 + self._kept(fired, reach)])
        return count + tf.cast(fired, tf.float32), after

    tally_all = SlopeRule.tally_all  # step by step: e depends on the spikes before

    def slope(self, count: tf.Tensor, trace: tf.Tensor, steps: tf.Tensor | int) -> tf.Tensor:
        """gain times the mean over the window of h(x_t) e_t."""
        return super().slope(count, trace[0], steps)


@dataclasses.dataclass(frozen=True)
class Tandem(SlopeRule):
    """The slope of a ReLU of the mean current, as if an ANN of the same weights stood beside the network (tandem
    learning, Wu et al. 2021): gain where the sum of currents is above 0, clipped only if also below T thresholds.

    For neurons that lose nothing (no leak, a reset by subtraction, a start at 0), whose currents add up to what is left
    and what was fired, v_T + threshold N. The trace is that sum.
    """

    clipped: bool

    needs_potential, needs_spikes, has_width = True, False, False

    def opened(self, trace: tf.Tensor) -> tf.Tensor:
        """As it is: potential and count go on from the window before."""
        return trace

    def of_window(self, trace: tf.Tensor, before: tf.Tensor) -> tf.Tensor:
        """The sum of its own currents, which `slope` compares with its own steps."""
        return trace - before

    def tally(self, count: tf.Tensor, trace: tf.Tensor, u: tf.Tensor | None,
              fired: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return count + tf.cast(fired, tf.float32), u + self.threshold * count

    def slope(self, count: tf.Tensor, trace: tf.Tensor, steps: tf.Tensor | int) -> tf.Tensor:
        passes = trace > 0.0
        if self.clipped:
            passes &= trace < self.threshold * tf.cast(steps, tf.float32)
        return self.gain * tf.cast(passes, tf.float32)


def kind_of(surrogate: str) -> type[SlopeRule]:
    """The rule that a `surrogate` names: the one place where that text is compared."""
    return LeakAware if surrogate == LEAK_AWARE else Tandem if surrogate in TANDEM else Surrogate


def rule(neuron: Neuron) -> SlopeRule:
    """The rule of a neuron."""
    kind, constants = kind_of(neuron.surrogate), (neuron.leak, neuron.threshold, neuron.gain)
    if kind is LeakAware:
        return LeakAware(*constants)
    if kind is Tandem:
        return Tandem(*constants, clipped=neuron.surrogate == TANDEM[1])
    in_time = SurrogateInTime if neuron.credit == "time" else Surrogate
    return in_time(*constants, neuron.surrogate, neuron.width, neuron.reset)
