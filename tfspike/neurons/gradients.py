"""The mathematics: leaky integrate-and-fire neurons and the two gradients of Lee et al. 2020.

Source: C. Lee, S. S. Sarwar, P. Panda, G. Srinivasan, K. Roy, "Enabling Spike-Based Backpropagation for Training
Deep Neural Network Architectures", Front. Neurosci. 14:119 (2020). Time is counted in steps t = 1..T.

| symbol  | here        | meaning                                                                   |
|---------|-------------|---------------------------------------------------------------------------|
| I_t     | `current`   | current into a neuron at step t: weighted spikes of the layer below       |
| u_t     | `u`         | membrane potential before firing, u_t = v_(t-1) + I_t                     |
| v_t     | `membrane`  | membrane potential after firing: 0 if it fired, else lambda u_t           |
| s_t     | `spikes`    | 1 if u_t > theta (strict), else 0                                         |
| theta   | `threshold` | firing threshold                                                          |
| lambda  | `leak`      | share of the membrane kept per step, exp(-1/tau)                          |
| N       | `count`     | spikes in the window, sum of s_t                                          |
| F       | `trace`     | leaky trace at the window's end, sum of lambda^(T-t) s_t                  |
| r       | rate        | N / T, spikes per step                                                    |
| g_t     | `upstream`  | dL/ds_t                                                                   |
| delta_t | `delta`     | dL/dI_t                                                                   |

One step, in the order integrate, fire, reset, leak:

    u_t = v_(t-1) + I_t        s_t = 1[u_t > theta]        v_t = 0 if s_t else lambda u_t

With `reset="subtract"` a spike takes the threshold away and leaves the rest, v_t = lambda (u_t - theta s_t), and with
`start` the membrane begins at v_0 = start theta instead of 0 (neither is the paper's). With `reset="silent"` a neuron
fires once in a window: v_t is minus infinity behind a spike (`tfspike.neurons.once`).

Leak-aware slope, one number per neuron and sample, constant over the window (0 where N = 0):

    slope = (1/theta) (1[N > 0] + ln(lambda) F / N)

Gradient "event", resolved in time (the authors' code): every input is credited to the neuron's next output spike,
nothing crosses a reset, input after the last spike gets nothing, the leak is ignored in the carry:

    delta_t = s_t slope g_t + (1 - s_t) delta_(t+1)

Gradient "rate", accumulated over the window (the paper's equations), with the drive d = mean over t of I_t:

    dL/dd = slope dL/dr,   that is   delta_t = slope mean over t of g_t,   the same for every step

Both with a surrogate derivative h in place of the leak-aware slope (`tfspike.surrogates`; not in the paper), x_t =
gain (u_t - theta) / width. "event" is then backpropagation through time with the reset held constant (STBP, Wu et al.
2018), and "rate" one slope for the window (rate-based backpropagation, Yu et al. 2024):

    event    delta_t = gain h(x_t) g_t + k_t delta_(t+1)       k_t = lambda (1 - s_t); lambda with "subtract"
    rate     slope   = gain mean over t of h(x_t) e_t          e_1 = 1,  e_(t+1) = 1 + k_t e_t

e_t is du_t/dd, what a lasting drive does to the potential. With it (`credit="time"`, Yu et al.) the delta of "rate" is
the sum over t of that of "event", exactly, wherever g_t does not change in time. `credit="mean"`, the default, takes
e_t = 1, which would be right where nothing is kept from step to step: what earlier inputs still do is left out.

What the leak-aware slope and surrogates answer differently stands in `tfspike.neurons.slopes`.

Membrane, count and trace are float32 whatever the dtype of currents and spikes: bfloat16 cannot integrate small
currents. Spike trains are time-major, `[T, B, ...]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tfspike.checks import check_choice, check_fraction, check_leak, check_positive, check_threshold
from tfspike.errors import UserError
from tfspike.neurons import learnt, slopes, surrogates
from tfspike.neurons.custom_gradient import custom_gradient
from tfspike.neurons.surrogates import LEAK_AWARE

GRADIENTS = ("event", "rate")
OF_NETWORKS = ("eprop",)  # gradients that no layer has by itself
FEEDBACKS = ("symmetric", "random")
RESETS = ("zero", "subtract", "silent")
CREDITS = ("mean", "time")


def check_options(gradient: str, surrogate: str, reset: str, credit: str, feedback: str = "symmetric") -> None:
    """Refuses words that are none, and those that say nothing together.

    Raises:
      UserError: naming what is legal, and what was received.
    """
    check_choice("gradient", gradient, (*GRADIENTS, *OF_NETWORKS))
    surrogates.check_name(surrogate)
    check_choice("reset", reset, RESETS)
    check_choice("credit", credit, CREDITS)
    check_choice("feedback", feedback, FEEDBACKS)
    kind = slopes.kind_of(surrogate)
    if reset == "subtract" and gradient == "event" and kind.needs_spikes:
        raise UserError("The leak-aware gradient 'event' credits an input to the next spike, and the reset to 0 ends "
                        "its credit: with reset='subtract' take gradient='rate' or a surrogate.")
    if gradient == "eprop" and kind is not slopes.Surrogate:
        raise UserError("gradient='eprop' takes a surrogate of the membrane potential, such as 'triangular'. "
                        f"Received: surrogate={surrogate!r}.")
    if feedback != "symmetric" and gradient != "eprop":
        raise UserError(f"feedback={feedback!r} is of gradient='eprop'. Received: gradient={gradient!r}.")
    if gradient == "event" and kind is slopes.Tandem:
        raise UserError(f"surrogate={surrogate!r} is the slope of a whole window: take gradient='rate'.")
    if credit == "time" and (gradient != "rate" or not kind.has_width):
        raise UserError("credit='time' is of gradient='rate' with a surrogate. "
                        f"Received: gradient={gradient!r}, surrogate={surrogate!r}.")


class Neuron(NamedTuple):
    """Constants of a spiking neuron.

    `gain` is what the slope is scaled with: 1/theta for a LIF neuron, 1 for a pooling neuron, so that a LIF neuron
    without leak and with threshold .75 is not a pooling neuron. `surrogate` is what stands for the derivative of a
    spike: one of `surrogates.names()`, stretched by `width` where it has one. `reset` is what a spike does to the
    membrane, "zero", "subtract" or "silent"; `start` is the share of the threshold that the membrane begins a window
    with, in [0, 1); `credit` is how "rate" takes a surrogate, "mean" or "time". `learn` names which of leak and
    threshold are tensors `[]` that pass gradient (`tfspike.neurons.learnt`); then `gain`, 1/theta, may be one. With
    `by_channel` threshold and gain are tensors `[C]` that pass none (`tfspike.neurons.homeostasis`).
    """

    leak: float
    threshold: float
    gain: float
    surrogate: str = LEAK_AWARE
    width: float = 1.0
    reset: str = "zero"
    start: float = 0.0
    credit: str = "mean"
    learn: tuple[str, ...] = ()
    by_channel: bool = False

    @classmethod
    def lif(cls, leak: float, threshold: float, surrogate: str = LEAK_AWARE, width: float = 1.0, reset: str = "zero",
            start: float = 0.0, credit: str = "mean", learn: tuple[str, ...] = (), by_channel: bool = False) -> Neuron:
        return cls(leak, threshold, 1.0 / threshold, surrogate, width, reset, start, credit, learn, by_channel)

    @classmethod
    def pooling(cls, threshold: float = 0.75, surrogate: str = LEAK_AWARE, width: float = 1.0,
                credit: str = "mean") -> Neuron:
        return cls(1.0, threshold, 1.0, surrogate, width, credit=credit)

    @property
    def slope_rule(self) -> slopes.SlopeRule:
        """What stands for the derivative of its spikes, by `surrogate`, `credit` and `learn`."""
        if self.learn:
            kind = learnt.LearntInTime if self.credit == "time" else learnt.LearntConstants
            return kind(self.leak, self.threshold, self.gain, self.surrogate, self.width, self.reset, self.learn)
        return slopes.rule(self)

    @property
    def varies(self) -> bool:
        """Whether a constant is a tensor, which no compiled function can be kept for."""
        return bool(self.learn) or self.by_channel

    @property
    def learnt(self) -> list[tf.Tensor]:
        """The constants that pass gradient, in the order of `learn`."""
        return [tf.convert_to_tensor(getattr(self, name)) for name in self.learn]

    def checked(self, gradient: str) -> Neuron:
        """This neuron; raises UserError where a constant is out of range, or is none (a tensor, a variable, an array),
        and where `gradient` is not defined for it.

        No gradient reaches a constant that `learn` does not name, so that a variable in its place would look learnable
        and stay as it is.
        """
        learnt.check_options(self.learn, gradient, self.surrogate, self.credit, self.start, self.reset)
        if "leak" not in self.learn:
            check_leak(self.leak)
        if "threshold" not in self.learn and not self.by_channel:
            check_threshold(self.threshold)
            check_positive("gain", self.gain)
        check_positive("width", self.width)
        check_fraction("start", self.start)
        check_options(gradient, self.surrogate, self.reset, self.credit)
        is_tandem = slopes.kind_of(self.surrogate) is slopes.Tandem  # whose constants are numbers
        if is_tandem and (self.leak, self.reset, self.start) != (1, "subtract", 0):
            raise UserError(f"surrogate={self.surrogate!r} is of neurons that lose nothing: leak=1, reset='subtract', "
                            "start=0, and pooling='average' in place of pooling neurons. Received: "
                            f"leak={self.leak:g}, reset={self.reset!r}, start={self.start:g}.")
        return self


class NeuronState(NamedTuple):
    """What a neuron carries from one step to the next, each `[B, ...]`, float32.

    `trace` is what the slope is made from at the window's end: F, or with a surrogate the sum of h(x_t); where the rule
    has several `parts`, `[parts, B, ...]`.
    """

    membrane: tf.Tensor
    count: tf.Tensor
    trace: tf.Tensor


def zero_state(shape: tf.Tensor | tuple[int, ...]) -> NeuronState:
    """The state before the first step: membrane, count and trace all 0."""
    zeros = tf.zeros(shape, tf.float32)
    return NeuronState(zeros, zeros, zeros)


def initial_state(shape: tf.Tensor | tuple[int, ...], neuron: Neuron) -> NeuronState:
    """The state of a neuron before its first step: the membrane at its start, nothing counted."""
    zeros = tf.zeros(shape, tf.float32)
    return NeuronState(initial_membrane(shape, neuron), zeros, neuron.slope_rule.new_trace(zeros))


def initial_membrane(shape: tf.Tensor | tuple[int, ...], neuron: Neuron) -> tf.Tensor:
    """v_0, `[B, ...]` float32."""
    return tf.fill(shape, tf.cast(neuron.start * neuron.threshold if neuron.start else 0.0, tf.float32))


def slope(count: tf.Tensor, trace: tf.Tensor, neuron: Neuron, steps: tf.Tensor | int = 1) -> tf.Tensor:
    """Pseudo-derivative of a neuron's activity with respect to its net input (leak-aware: paper, Eqs. 19-26).

    Args:
      count: N, spikes in the window, `[B, ...]`.
      trace: of the state at the window's end, `[B, ...]`.
      neuron: the neuron's constants. Below a leak of 1/e the leak-aware slope can turn negative.
      steps: T, which a surrogate's sum is divided by; the leak-aware slope does not ask.

    Returns:
      `[B, ...]` float32; leak-aware, it is 0 where the neuron never fired.

    Examples:
      >>> neuron = Neuron.lif(leak=0.5, threshold=2.0)
      >>> print(slope(tf.constant([0.0, 2.0]), tf.constant([0.0, 1.5]), neuron).numpy().round(2))  # (1 - .69 * .75) / 2
      [0.   0.24]
    """
    return neuron.slope_rule.slope(count, trace, steps)


def fire(membrane: tf.Tensor, current: tf.Tensor, neuron: Neuron) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """One step without gradient: the definition that every other path is tested against.

    Args:
      membrane: v_(t-1), `[B, ...]` float32.
      current: I_t, `[B, ...]`.
      neuron: the neuron's constants.

    Returns:
      `(u_t, fired, v_t)`: the potential before firing, float32, whether it fired, and what the reset and the leak left.
    """
    u = membrane + tf.cast(current, tf.float32)
    fired = u > neuron.threshold
    if neuron.reset == "subtract":
        return u, fired, neuron.leak * tf.where(fired, u - neuron.threshold, u)
    return u, fired, tf.where(fired, -math.inf if neuron.reset == "silent" else 0.0, neuron.leak * u)


def integrate(membrane: tf.Tensor, current: tf.Tensor, factor: float) -> tf.Tensor:
    """One step of the readout, which never fires: V_t = factor (V_(t-1) + I_t), `[B, classes]` float32."""
    return factor * (membrane + tf.cast(current, tf.float32))


def spike_step(current: tf.Tensor, membrane: tf.Tensor, neuron: Neuron) -> tuple[tf.Tensor, tf.Tensor]:
    """One step with the authors' per-step gradient.

    Forward: `fire`. Backward: a spike passes its gradient to the current times `gain` (1/theta for LIF); where there
    was none, the gradient of the membrane is carried on with 1, not with the leak; nothing crosses a reset.

    Args:
      current: `[B, ...]`.
      membrane: `[B, ...]` float32.
      neuron: the neuron's constants.

    Returns:
      `(spikes, membrane)`, spikes in the dtype of `current`.
    """
    rule = slopes.LeakAware(neuron.leak, neuron.threshold, neuron.gain)

    @custom_gradient
    def step(current: tf.Tensor, membrane: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor], Callable]:
        _, fired, after = fire(membrane, current, neuron)

        def grad(upstream: tf.Tensor, carry: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            delta = rule.credit(fired, neuron.gain, tf.cast(upstream, tf.float32), carry)
            return tf.cast(delta, current.dtype), delta

        return (tf.cast(fired, current.dtype), after), grad

    return step(current, membrane)


def simulate(currents: tf.Tensor, state: NeuronState, neuron: Neuron) -> tuple[tf.Tensor, NeuronState]:
    """Steps a neuron through a window, without gradient.

    Args:
      currents: `[T, B, ...]`.
      state: the state before the window's first step.
      neuron: the neuron's constants.

    Returns:
      `(spikes [T, B, ...] in the dtype of currents, state after the last step)`.
    """
    steps = tf.shape(currents)[0]

    def body(t, membrane, count, trace, train):
        u, fired, membrane = fire(membrane, currents[t], neuron)
        count, trace = neuron.slope_rule.tally(count, trace, u, fired)
        return t + 1, membrane, count, trace, train.write(t, tf.cast(fired, currents.dtype))

    train = tf.TensorArray(currents.dtype, size=steps, element_shape=currents.shape[1:])
    _, membrane, count, trace, train = tf.while_loop(
        lambda t, *_: t < steps, body, (0, *state, train), maximum_iterations=steps)
    spikes = train.stack()
    spikes.set_shape(currents.shape)
    return spikes, NeuronState(membrane, count, trace)


def potentials(currents: tf.Tensor, membrane: tf.Tensor, neuron: Neuron) -> tf.Tensor:
    """u_t, the membrane potential before firing, at every step of currents `[T, B, ...]`; `[T, B, ...]` float32."""

    def step(before: tuple[tf.Tensor, tf.Tensor], current: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        u, _, after = fire(before[1], current, neuron)
        return u, after

    return tf.scan(step, currents, initializer=(membrane, membrane))[0]


def event_credit(spikes: tf.Tensor, known: tf.Tensor, upstream: tf.Tensor, carry: tf.Tensor,
                 neuron: Neuron) -> tuple[tf.Tensor, tf.Tensor]:
    """Gradient "event" on given spikes, from the last step to the first (`SlopeRule.credit`).

    Args:
      spikes: s, `[T, B, ...]`, 0 or 1.
      known: the leak-aware slope `[B, ...]`, or what was `recorded` of every step, `[T, B, ...]`, float32.
      upstream: g, `[T, B, ...]`.
      carry: delta_(T+1), `[B, ...]` float32; 0 at the end of a window.
      neuron: the neuron's constants.

    Returns:
      `(delta [T, B, ...] in the dtype of upstream, delta_1 [B, ...] float32)`.
    """
    steps, rule = tf.shape(spikes)[0], neuron.slope_rule

    def body(t, carry, deltas):
        carry = rule.credit(spikes[t] > 0, rule.factor(known, t), tf.cast(upstream[t], tf.float32), carry)
        return t - 1, carry, deltas.write(t, tf.cast(carry, upstream.dtype))

    deltas = tf.TensorArray(upstream.dtype, size=steps, element_shape=upstream.shape[1:])
    _, carry, deltas = tf.while_loop(lambda t, *_: t >= 0, body, (steps - 1, carry, deltas), maximum_iterations=steps)
    delta = deltas.stack()
    delta.set_shape(upstream.shape)
    return delta, carry


def spike_window(currents: tf.Tensor, state: NeuronState, neuron: Neuron,
                 gradient: str) -> tuple[tf.Tensor, NeuronState]:
    """Steps a neuron through a window, with the gradient of the whole window.

    Forward: `simulate`. Backward: "event" or "rate" (module docstring). The leak-aware slope is taken at the window's
    end from the counts and traces of the final state, so a window that continues another continues its slope; those of
    a surrogate and of tandem learning are of this window's own steps.

    Args:
      currents: `[T, B, ...]`.
      state: the state before the window; the gradient with respect to its membrane is delta_1 ("event") or 0 ("rate").
      neuron: the neuron's constants.
      gradient: "event" or "rate".

    Returns:
      `(spikes [T, B, ...], final state)`. The final membrane passes gradient in "event"; counts and traces do not: take
      the sum of the spikes over time instead.

    Raises:
      UserError: a constant of the neuron is out of range, or none; or, for its gradient, if that is one of whole
        networks.
    """
    rule = neuron.checked(gradient).slope_rule

    @custom_gradient
    def window(currents: tf.Tensor, membrane: tf.Tensor, count: tf.Tensor, trace: tf.Tensor, *_learnt: tf.Tensor):
        spikes, final = simulate(currents, NeuronState(membrane, count, rule.opened(trace)), neuron)

        def grad(upstream, carry, _count, _trace):
            if gradient in OF_NETWORKS:
                raise UserError(f"gradient={gradient!r} is of a whole SpikingModel: call the model, not its layers one "
                                "by one.")
            known = rule.slope(final.count, rule.of_window(final.trace, trace), tf.shape(currents)[0])
            if gradient == "event":
                if rule.needs_potential:
                    known = rule.recorded(potentials(currents, membrane, neuron), tf.float32)
                delta, first = event_credit(spikes, known, upstream, carry, neuron)
                of_constants = rule.credit_constants(known, spikes, upstream, delta, carry)
            else:
                mean = tf.reduce_mean(tf.cast(upstream, tf.float32), axis=0)
                delta = tf.broadcast_to(tf.cast(known * mean, upstream.dtype), tf.shape(upstream))
                first = tf.zeros_like(membrane)
                steps = tf.cast(tf.shape(currents)[0], tf.float32)
                of_constants = [tf.reduce_sum(of_rate * steps * mean)
                                for of_rate in rule.sensitivities(final.trace, steps)]
            return (delta, first, None, None, *of_constants)

        return (spikes, *final), grad

    spikes, *final = window(currents, *state, *neuron.learnt)
    return spikes, NeuronState(*final)


def leak_aware(spikes: tf.Tensor, neuron: Neuron, time_axis: int) -> tf.Tensor:
    """Identity whose gradient is multiplied by slope / gain: the leak's share of the slope, known at the window's end.

    Behind neurons that were stepped with `spike_step` it gives the gradient "event" of the whole window.

    Args:
      spikes: `[B, T, ...]` or `[T, B, ...]`.
      neuron: the constants of the neuron that fired them.
      time_axis: the axis of T.
    """

    @custom_gradient
    def identity(spikes: tf.Tensor):
        def grad(upstream):
            train = tf.cast(spikes, tf.float32)
            steps = tf.shape(train)[time_axis]
            age = tf.cast(steps - 1 - tf.range(steps), tf.float32)
            shape = [1] * spikes.shape.rank
            shape[time_axis] = -1
            decay = tf.reshape(tf.pow(tf.constant(neuron.leak, tf.float32), age), shape)
            count, trace = tf.reduce_sum(train, time_axis), tf.reduce_sum(decay * train, time_axis)
            factor = slope(count, trace, neuron) / neuron.gain
            return tf.cast(tf.expand_dims(factor, time_axis) * tf.cast(upstream, tf.float32), upstream.dtype)

        return tf.identity(spikes), grad

    return identity(spikes)


def readout_window(currents: tf.Tensor, membrane: tf.Tensor, leak: float, growth: float = 1.0) -> tf.Tensor:
    """Leaky integrator that never fires: `integrate`, at every step.

    Forward: all membranes. Backward: dL/dI_t = dL/dV_T for every t, the leak ignored (Lee et al. 2020, output layer);
    the gradient of an earlier V_t reaches the inputs up to t in the same way. A growth is not ignored.

    Args:
      currents: `[T, B, classes]`.
      membrane: V_0, `[B, classes]` float32.
      leak: share of the membrane kept per step.
      growth: what every step multiplies it with besides.

    Returns:
      V_1..V_T, `[T, B, classes]` float32.
    """

    @custom_gradient
    def window(currents: tf.Tensor, membrane: tf.Tensor):
        membranes = tf.scan(lambda v, current: integrate(v, current, leak * growth), currents, initializer=membrane)

        def grad(upstream):
            if growth == 1.0:
                delta = tf.cumsum(upstream, axis=0, reverse=True)
            else:
                delta = tf.scan(lambda later, g: growth * (later + g), upstream, tf.zeros_like(membrane), reverse=True)
            return tf.cast(delta, currents.dtype), delta[0]

        return membranes, grad

    return window(currents, membrane)
