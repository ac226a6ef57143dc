"""Layers of neurons over a whole window: those that fire, and the readout.

A spike train is one tensor, time-major, `[T, B, ...]`. A net without delays is computed layer by layer, and only the
neurons loop over time (`tfspike.neurons.over_time` has what does not). State is an explicit value (`initial_state`,
`return_state`): there is no reset function.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfspike.checks import check_choice, check_fraction, check_leak, check_positive, check_threshold, check_time_first
from tfspike.errors import UserError
from tfspike.neurons import gradients, learnt, moving_start, slopes
from tfspike.neurons.gradients import NeuronState
from tfspike.neurons.homeostasis import adapted, check_by_channel, check_homeostasis
from tfspike.neurons.over_time import OverTime as OverTime  # handed on, as tfspike.layers.OverTime
from tfspike.neurons.over_time import TimeMajor, WholeWindow
from tfspike.neurons.over_time import WindowDropout as WindowDropout
from tfspike.neurons.surrogates import LEAK_AWARE


class SpikingLayer(TimeMajor):
    """Neurons that fire, over a whole window.

    A neuron of other constants is a subclass with a `neuron` of its own, and everything in the library goes by that:
    the fast path, exports, analysis.

        class HalfLeak(SpikingLayer):
            @property
            def neuron(self):
                return gradients.Neuron.lif(leak=0.5, threshold=2.0)

    What cannot be said in constants, such as a leak of each channel's own, is a subclass with a `call` of its own. A
    `SpikingModel` that holds one is computed layer by layer:

        class LeakByChannel(SpikingLayer):
            def build(self, shape):
                self.logit = self.add_weight(shape=(shape[-1],), initializer=keras.initializers.Constant(2.0))

            def call(self, currents):                               # [T, B, ...] to spikes [T, B, ...]
                leak, v, train = tf.sigmoid(self.logit), tf.zeros_like(currents[0]), []
                for current in tf.unstack(currents):
                    u = v + current
                    train.append(surrogates.spike("arctan", u - 1.0))   # the threshold is 1
                    v = leak * u * (1.0 - tf.stop_gradient(train[-1]))
                return tf.stack(train)

    Args:
      gradient: "event" or "rate" (`tfspike.gradients`), or "eprop", which a `SpikingModel` alone has
        (`tfspike.engine.eprop`).
      surrogate: what stands for the derivative of a spike: "leak_aware" (the paper's slope), "rectangular",
        "triangular", "arctan", "sigmoid", "tandem", "tandem_clipped", or one of your own
        (`tfspike.surrogates.register`).
      surrogate_width: stretches the surrogate; above 0.
      credit: how "rate" takes a surrogate: its "mean" over the window, or with what a lasting drive does in "time".
      feedback: how "eprop" tells a layer of the error: "symmetric", through the weights behind it, or "random".
      activity_regularizer: a penalty of the spike train `[T, B, ...]`, per record of the batch, in `model.losses`:
        `keras.regularizers.L1(c)` is c times the spikes that a record makes the layer fire. L1, L2 and L1L2 keep the
        fast path.
    """

    def __init__(self, gradient: str = "event", surrogate: str = LEAK_AWARE, surrogate_width: float = 1.0,
                 credit: str = "mean", feedback: str = "symmetric", **kwargs: Any):
        # autocast would round a float32 state to bfloat16 on the way in
        super().__init__(autocast=False, **kwargs)
        gradients.check_options(gradient, surrogate, "zero", credit, feedback)
        self.gradient, self.surrogate, self.credit, self.feedback = gradient, surrogate, credit, feedback
        self.surrogate_width = check_positive("surrogate_width", surrogate_width)
        self.learnt: dict[str, keras.Variable] = {}  # constants of the neuron that are weights, by name
        self.moving_start: keras.Variable | None = None  # share of the threshold that takes the place of its start
        self.threshold_factor: keras.Variable | None = None  # of every channel, where it has its own
        self.homeostasis = 0.0  # how fast they adapt

    @property
    def neuron(self) -> gradients.Neuron:
        """The neuron's constants."""
        raise NotImplementedError

    def get_initial_state(self, shape: tuple[int, ...] | tf.Tensor) -> NeuronState:
        """The state before the first step for currents of shape `[B, ...]` at each step."""
        neuron = self.neuron
        state = gradients.initial_state(shape, neuron)
        if self.moving_start is None:
            return state
        begin = tf.stop_gradient(tf.convert_to_tensor(self.moving_start.value) * neuron.threshold)
        return state._replace(membrane=tf.fill(shape, begin))

    def follow(self, state: NeuronState) -> None:
        """Moves what follows training windows, after one that ended in this state: the start of later windows, and
        thresholds that adapt."""
        if self.threshold_factor is not None and self.homeostasis:
            factor = tf.convert_to_tensor(self.threshold_factor.value)
            self.threshold_factor.assign(adapted(factor, state.count, self.homeostasis))
        if self.moving_start is not None:
            start = tf.convert_to_tensor(self.moving_start.value)
            self.moving_start.assign(moving_start.after(start, state, self.neuron.threshold))

    def call(self, currents: tf.Tensor, initial_state: NeuronState | None = None, return_state: bool = False,
             training: bool | None = None) -> Any:
        """Currents to spikes.

        Args:
          currents: `[T, B, ...]`.
          initial_state: state after an earlier window; that before the first step unless given.
          return_state: also return the state after the last step.
          training: let starts that move and thresholds that adapt follow this window.

        Returns:
          spikes `[T, B, ...]` in the layer's compute dtype, or `(spikes, NeuronState)`.
        """
        whole = initial_state is None
        begin = self.get_initial_state(tf.shape(currents)[1:]) if initial_state is None else NeuronState(*initial_state)
        currents = tf.cast(currents, self.compute_dtype)
        spikes, state = gradients.spike_window(currents, begin, self.neuron, self.gradient)
        if training and whole:
            self.follow(state)
        return (spikes, state) if return_state else spikes

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def compute_output_spec(self, currents: Any, initial_state: Any = None, return_state: bool = False,
                            training: Any = None) -> Any:
        check_time_first(type(self).__name__, currents.shape)
        spikes = keras.KerasTensor(currents.shape, dtype=self.compute_dtype)
        one = currents.shape[1:]
        parts = self.neuron.slope_rule.parts if return_state else 1  # a layer with a `call` of its own may have none
        shapes = one, one, (parts, *one) if parts > 1 else one  # of membrane, count and trace
        state = NeuronState(*(keras.KerasTensor(shape, dtype="float32") for shape in shapes))
        return (spikes, state) if return_state else spikes

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "gradient": self.gradient, "surrogate": self.surrogate,
                "surrogate_width": self.surrogate_width, "credit": self.credit, "feedback": self.feedback}


class Window(NamedTuple):
    """What a layer of neurons did, step by step.

    Attributes:
      spikes: `[steps, B, ...]` in the layer's compute dtype.
      potentials: u_t before firing, for every step `[B, ...]` float32.
      membranes: v_t behind it, for every step `[B, ...]` float32.
    """

    spikes: tf.Tensor
    potentials: tuple[tf.Tensor, ...]
    membranes: tuple[tf.Tensor, ...]


class OpenNeurons(SpikingLayer):
    """Neurons with code of their own that show their membranes: they can be analysed, which a `call` alone cannot be.

    No gradient is defined, and a model that holds some is computed layer by layer.
    """

    def window(self, currents: tf.Tensor) -> Window:
        """What the neurons do in a whole window of currents `[T, B, ...]`, T known."""
        raise NotImplementedError

    def call(self, currents: tf.Tensor) -> tf.Tensor:  # type: ignore[override]
        """Currents `[T, B, ...]` to spikes of the same shape."""
        return self.window(currents).spikes

    def compute_output_spec(self, currents: Any) -> Any:  # type: ignore[override]
        return keras.KerasTensor(currents.shape, dtype=self.compute_dtype)


@keras.saving.register_keras_serializable("tfspike")
class LIF(SpikingLayer):
    """Leaky integrate-and-fire neurons over a whole window, with the leak-aware gradient unless told otherwise.

        u_t = v_(t-1) + I_t        s_t = 1[u_t > threshold]        v_t = 0 if s_t else leak u_t

    Args:
      leak: leak factor (membrane decay), the share of the membrane potential kept per step, in (0, 1]; 1.0 = no leak,
        and exp(-1/tau) for a time constant of tau steps.
      threshold: firing threshold, above 0.
      gradient: "event" or "rate".
      surrogate, surrogate_width, credit, feedback: see `SpikingLayer`.
      reset: what a spike leaves of the membrane: "zero", or "subtract", u_t - threshold, before the leak; "silent": the
        neuron fires no more in this window (`tfspike.neurons.once`).
      start: share of the threshold that the membrane begins a window with, in [0, 1).
      learn: which of "leak" and "threshold" are weights, one for the layer, that begin with the value given here and
        are trained with the others (`tfspike.neurons.learnt`). They take a surrogate, and under "rate" credit="time".
      running_start: begin where membranes that fired in earlier windows ended, on average, and with `start` before the
        first (`tfspike.neurons.moving_start`).
      homeostasis: how fast thresholds adapt in training until every channel fires about as often, in [0, 1), such as
        .01; 0 keeps them (`tfspike.neurons.homeostasis`).
      by_channel: every channel has a threshold of its own: `threshold` times its entry in the weight `threshold_factor`
        `[C]`, which begins at 1 and which training leaves as it is. Implied by `homeostasis`.

    Raises:
      UserError: a constant out of range, or options that say nothing together.

    Examples:
      >>> import numpy as np
      >>> spikes = LIF(leak=0.5)(np.array([[[0.8]], [[0.8]], [[0.8]]], "float32"))    # [T=3, B=1, 1]
      >>> spikes.numpy().ravel().tolist()                                              # u = .8, 1.2, .8
      [0.0, 1.0, 0.0]
    """

    def __init__(self, leak: float = 0.99, threshold: float = 1.0, gradient: str = "event",
                 surrogate: str = LEAK_AWARE, surrogate_width: float = 1.0, credit: str = "mean", reset: str = "zero",
                 start: float = 0.0, learn: Sequence[str] = (), running_start: bool = False, homeostasis: float = 0.0,
                 by_channel: bool = False, **kwargs: Any):
        super().__init__(gradient, surrogate, surrogate_width, credit, **kwargs)
        self.leak = check_leak(leak)
        self.threshold = check_threshold(threshold)
        self.reset, self.start = reset, check_fraction("start", start)
        self.learn = learnt.check_learn(learn)
        self.running_start = bool(running_start)
        if self.running_start and (reset == "silent" or slopes.kind_of(surrogate) is slopes.Tandem):
            raise UserError("running_start=True is of membranes that go on after a spike and may begin anywhere. "
                            f"Received: reset={reset!r}, surrogate={surrogate!r}.")
        self.homeostasis = check_homeostasis(homeostasis, self.learn, self.start, self.running_start, gradient)
        self.by_channel = bool(by_channel)
        check_by_channel("by_channel", self.by_channel, self.learn, self.start, self.running_start, gradient)
        self._constants().checked(gradient)

    def build(self, input_shape: Any) -> None:
        if self.homeostasis or self.by_channel:
            self.threshold_factor = self.add_weight((input_shape[-1],), "ones", "float32", trainable=False,
                                                    autocast=False, aggregation="mean", name="threshold_factor")
        if self.running_start:
            self.moving_start = self.add_weight((), keras.initializers.Constant(self.start), "float32", trainable=False,
                                                autocast=False, aggregation="mean", name="moving_start")
        self.learnt = {name: self.add_weight((), keras.initializers.Constant(getattr(self, name)), "float32",
                                             autocast=False, constraint=learnt.Bounded(name), name=name)
                       for name in self.learn}

    @property
    def neuron(self) -> gradients.Neuron:
        return self._constants()

    def _constants(self) -> gradients.Neuron:
        found = {"leak": self.leak, "threshold": self.threshold,
                 **{name: tf.convert_to_tensor(variable.value) for name, variable in self.learnt.items()}}
        if self.threshold_factor is not None:
            found["threshold"] *= tf.stop_gradient(tf.convert_to_tensor(self.threshold_factor.value))
        return gradients.Neuron.lif(found["leak"], found["threshold"], self.surrogate, self.surrogate_width, self.reset,
                                    self.start, self.credit, self.learn, self.threshold_factor is not None)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "leak": self.leak, "threshold": self.threshold, "reset": self.reset,
                "start": self.start, "learn": self.learn, "running_start": self.running_start,
                "homeostasis": self.homeostasis, "by_channel": self.by_channel}

    def constants(self) -> dict[str, Any]:
        """The configuration of a layer that has as constants what is learnt or moves here, as it is now."""
        found = {name: float(variable.numpy()) for name, variable in self.learnt.items()}
        if self.moving_start is not None:
            found["start"] = float(self.moving_start.numpy())
        return {**found, "learn": (), "running_start": False}


@keras.saving.register_keras_serializable("tfspike")
class PoolingIF(SpikingLayer):
    """The neurons behind an average pooling: integrate and fire without leak; slope 1[N > 0], without 1/threshold.

    Args:
      threshold: firing threshold, above 0.
      gradient: "event" or "rate".
      surrogate, surrogate_width, credit, feedback: see `SpikingLayer`.

    Raises:
      UserError: a constant out of range.
    """

    def __init__(self, threshold: float = 0.75, gradient: str = "event", surrogate: str = LEAK_AWARE,
                 surrogate_width: float = 1.0, credit: str = "mean", **kwargs: Any):
        super().__init__(gradient, surrogate, surrogate_width, credit, **kwargs)
        self.threshold = check_threshold(threshold)
        self._constants().checked(gradient)

    @property
    def neuron(self) -> gradients.Neuron:
        return self._constants()

    def _constants(self) -> gradients.Neuron:
        return gradients.Neuron.pooling(self.threshold, self.surrogate, self.surrogate_width, self.credit)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "threshold": self.threshold}


@keras.saving.register_keras_serializable("tfspike")
class Readout(WholeWindow):
    """Output neurons that never fire: V_t = leak (V_(t-1) + I_t); the prediction is V_T / T.

    Args:
      leak: leak factor (membrane decay), the share of the membrane potential kept per step, in (0, 1]; 1.0 = no leak.
      growth: at least 1: what every step multiplies the membrane with in place of a leak, so that early input counts
        more; for output neurons that fire once (`tfspike.neurons.once`).

    Raises:
      UserError: a constant out of range, or a leak and a growth together.
    """

    def __init__(self, leak: float = 0.99, growth: float = 1.0, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        self.leak, self.growth = check_leak(leak), check_positive("growth", growth)
        if self.growth < 1.0 or self.growth > 1.0 and self.leak < 1.0:
            raise UserError("`growth` must be at least 1, and leak=1 where it is more. "
                            f"Received: growth={growth:g}, leak={leak:g}.")

    @property
    def factor(self) -> float:
        """What a step multiplies the membrane with."""
        return self.leak * self.growth

    def call(self, currents: tf.Tensor, initial_state: tuple[tf.Tensor, tf.Tensor] | None = None,
             return_state: bool = False, every_step: bool = False) -> Any:
        """Currents to predictions.

        Args:
          currents: `[T, B, classes]`.
          initial_state: `(V [B, classes], steps so far [])`, float32; zeros unless given.
          return_state: also return the state after the last step.
          every_step: V_t / t for every t instead of the last one alone.

        Returns:
          float32 `[B, classes]`, or `[T, B, classes]` with `every_step`, or the pair of that and the state.
        """
        if initial_state is None:
            initial_state = (tf.zeros(tf.shape(currents)[1:], tf.float32), tf.zeros((), tf.float32))
        membrane, before = initial_state
        membranes = gradients.readout_window(currents, membrane, self.leak, self.growth)
        steps = before + tf.cast(tf.range(1, tf.shape(currents)[0] + 1), tf.float32)
        if every_step:
            output = membranes / tf.reshape(steps, [-1] + [1] * (len(currents.shape) - 1))
        else:
            output = membranes[-1] / steps[-1]
        return (output, (membranes[-1], steps[-1])) if return_state else output

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape[1:]

    def compute_output_spec(self, currents: Any, initial_state: Any = None, return_state: bool = False,
                            every_step: bool = False) -> Any:
        check_time_first(type(self).__name__, currents.shape)
        output = keras.KerasTensor(currents.shape if every_step else currents.shape[1:], dtype="float32")
        state = keras.KerasTensor(currents.shape[1:], dtype="float32"), keras.KerasTensor((), dtype="float32")
        return (output, state) if return_state else output

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "leak": self.leak, "growth": self.growth}


@keras.saving.register_keras_serializable("tfspike")
class LeakAware(WholeWindow):
    """Identity whose gradient is multiplied by threshold x slope, the share of the slope that the leak takes.

    Behind `keras.layers.RNN(LIFCell(n), return_sequences=True)` it completes the gradient "event".

    Args:
      leak: the leak of the neurons in front, in (0, 1].
      threshold: their threshold.
      time_axis: 1 for `[B, T, ...]` as Keras' RNN returns it, 0 for `[T, B, ...]`.

    Raises:
      UserError: a constant out of range.
    """

    def __init__(self, leak: float = 0.99, threshold: float = 1.0, time_axis: int = 1, **kwargs: Any):
        super().__init__(**kwargs)
        self.leak = check_leak(leak)
        self.threshold = check_threshold(threshold)
        self.time_axis = check_choice("time_axis", time_axis, (0, 1))

    def call(self, spikes: tf.Tensor) -> tf.Tensor:
        """Spikes `[B, T, ...]` (or `[T, B, ...]`), unchanged."""
        return gradients.leak_aware(spikes, gradients.Neuron.lif(self.leak, self.threshold), self.time_axis)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "leak": self.leak, "threshold": self.threshold, "time_axis": self.time_axis}
