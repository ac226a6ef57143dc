"""From images to spike trains: Poisson, direct, latency, and the input that is a spike train already.

Every encoder turns `[B, ...]` into a time-major train `[T, B, ...]`. `encode` gives any stretch of the window on its
own, so a long window never has to exist at once; stretches joined are the window.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfspike.checks import check_choice, check_count, check_positive
from tfspike.errors import UserError
from tfspike.neurons import noise
from tfspike.neurons.custom_gradient import WithGradient, custom_gradient
from tfspike.neurons.shared_function import shared, watched


class Encoder(noise.NoisyLayer):
    """What the encoders share.

    Args:
      timesteps: T, steps in the window.
      seed: keys the random numbers, where there are any.

    Attributes:
      draws: whether `encode` takes random numbers from its `key`; formats without such numbers ask.

    Raises:
      UserError: `timesteps` is not a positive integer.
    """

    draws = True

    def __init__(self, timesteps: int, seed: int = 0, **kwargs: Any):
        # Pixels stay float32 under a mixed policy, as the engine has them: only what leaves the encoder is cast.
        super().__init__(seed=seed, autocast=False, **kwargs)
        self.timesteps = check_count("timesteps", timesteps)

    def key(self, training: bool | None = None, seed: int | tf.Tensor | None = None) -> tf.Tensor:
        """The key of one call's random numbers; a training call advances the step counter."""
        if training:
            return self.training_key()
        return self.inference_key(0 if seed is None else seed) if self.draws else tf.zeros(2, tf.int32)

    def encode(self, inputs: tf.Tensor, key: tf.Tensor, start: int | tf.Tensor, steps: int) -> tf.Tensor:
        """Steps start..start+steps-1 of the window, `[steps, B, ...]` (0 is the first). An encoder of one's own
        overrides this alone, and remembers nothing from one call to the next; `start` may be a tensor."""
        raise NotImplementedError

    def stretch(self, inputs: tf.Tensor, key: tf.Tensor, start: int | tf.Tensor, steps: int) -> tf.Tensor:
        """`encode`, of a length that graphs know: that of `tf.range(start, start + steps)` they do not.

        Raises:
          UserError: it is of another length.
        """
        train = self.encode(inputs, key, start, steps)
        if train.shape[0] is None:
            return tf.ensure_shape(train, (steps, *train.shape[1:]))
        if train.shape[0] != steps:
            raise UserError(f"`encode` of {type(self).__name__} must give the steps that it is asked for, of [steps, "
                            f"B, ...]: {steps} from `start` on. Received: shape {tuple(train.shape)}.")
        return train

    def call(self, inputs: tf.Tensor, training: bool | None = None, seed: int | tf.Tensor | None = None) -> tf.Tensor:
        """The whole window, `[T, B, ...]`; inference repeats for the same `seed` (0 unless given)."""
        return self.with_gradient(self.stretch(inputs, self.key(training, seed), 0, self.timesteps), inputs)

    def with_gradient(self, train: tf.Tensor, inputs: tf.Tensor) -> tf.Tensor:
        """The train `[T, B, ...]` of `inputs`, with the gradient that the encoder passes on to them."""
        return train

    @property
    def refuses_gradient(self) -> bool:
        """Whether `with_gradient` is `refuse_gradient`, so that nothing in front of the encoder can learn."""
        return False

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (self.timesteps, *input_shape)

    def compute_output_spec(self, inputs: keras.KerasTensor, training: bool | None = None,
                            seed: int | tf.Tensor | None = None) -> keras.KerasTensor:
        return keras.KerasTensor(self.compute_output_shape(inputs.shape), dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "timesteps": self.timesteps}


@keras.saving.register_keras_serializable("tfspike")
class PoissonEncoder(Encoder):
    """Signed Poisson (Bernoulli) coding: at each step a spike of value sign(x) with probability min(|x|, 1).

    Drawn afresh at every step, in training and in inference (Lee et al. 2020, "Input encoding"; the authors' code for
    the sign). A training call takes its numbers from (seed, step, replica), an inference call from an explicit seed.

    Args:
      timesteps, seed: see `Encoder`.
      straight_through: pass a gradient on to the input, that of the expected spike train: d E[s_t] / dx = 1 within
        [-1, 1], and 0 outside, where |x| is cut off. For adversarial examples and for layers in front that learn.
        Without it a gradient asked for is refused (in a graph: NaN), as random spikes have none.

    Examples:
      >>> train = PoissonEncoder(timesteps=100)(tf.constant([[0.0, 1.0, -1.0]]), seed=7)    # [T=100, B=1, 3]
      >>> tf.reduce_sum(train, axis=(0, 1)).numpy().tolist()
      [0.0, 100.0, -100.0]
    """

    def __init__(self, timesteps: int, seed: int = 0, straight_through: bool = False, **kwargs: Any):
        super().__init__(timesteps, seed=seed, **kwargs)
        self.straight_through = bool(straight_through)

    def encode(self, inputs: tf.Tensor, key: tf.Tensor, start: int | tf.Tensor, steps: int) -> tf.Tensor:
        if noise.in_one_program():
            return _signed(inputs, noise.uniform_of_steps(tf.shape(inputs), key, start, steps), self.compute_dtype)
        return tf.stack([_poisson_step(inputs, noise.derive(key, start + t), self.compute_dtype) for t in range(steps)])

    def with_gradient(self, train: tf.Tensor, inputs: tf.Tensor) -> tf.Tensor:
        if not self.straight_through:
            return refuse_gradient(train, inputs, "use PoissonEncoder(..., straight_through=True) or "
                                                  "encoder=\"direct\", with model.call_layers(x)")

        @custom_gradient
        def expected(inputs: tf.Tensor) -> WithGradient:
            def grad(upstream: tf.Tensor) -> tf.Tensor:
                total = tf.reduce_sum(tf.cast(upstream, tf.float32), axis=0)
                return tf.cast(tf.where(tf.abs(inputs) <= 1.0, total, 0.0), inputs.dtype)
            return tf.identity(train), grad

        return expected(inputs)

    @property
    def refuses_gradient(self) -> bool:
        return not self.straight_through and type(self).with_gradient is PoissonEncoder.with_gradient

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "straight_through": self.straight_through}


@functools.partial(shared, any_batch=True)
def _poisson_step(inputs: tf.Tensor, key: tf.Tensor, dtype: str) -> tf.Tensor:
    """One step of signed Poisson spikes in `dtype`, of the shape of `inputs`."""
    return _signed(inputs, noise.uniform(tf.shape(inputs), key), dtype)


def _signed(inputs: tf.Tensor, uniform: tf.Tensor, dtype: str) -> tf.Tensor:
    """Spikes of the inputs' sign where their size exceeds the uniform numbers, `[B, ...]` or `[steps, B, ...]`."""
    fired = uniform < tf.cast(tf.abs(inputs), tf.float32)
    return tf.cast(fired, dtype) * tf.cast(tf.sign(inputs), dtype)


@keras.saving.register_keras_serializable("tfspike")
class DirectEncoder(Encoder):
    """The image as a constant current: the same real values at every step (the first synapse multiplies)."""

    draws = False

    def encode(self, inputs: tf.Tensor, key: tf.Tensor, start: int | tf.Tensor, steps: int) -> tf.Tensor:
        inputs = tf.cast(inputs, self.compute_dtype)
        return tf.repeat(inputs[tf.newaxis], steps, axis=0)


@keras.saving.register_keras_serializable("tfspike")
class LatencyEncoder(Encoder):
    """Time to first spike: one spike of value sign(x) per input, the earlier the larger |x|; none where x is 0.

    |x| >= `largest` spikes at the first step, the faintest input at the last one.

    Args:
      timesteps: T, steps in the window.
      largest: the |x| from which on an input spikes at the first step, above 0. Where inputs never are so large, the
        first steps of a window hold no spike.

    Examples:
      >>> LatencyEncoder(timesteps=4)(tf.constant([[1.0, 0.5, 0.01, 0.0]])).numpy()[:, 0].T.tolist()
      [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]
    """

    draws = False

    def __init__(self, timesteps: int, seed: int = 0, largest: float = 1.0, **kwargs: Any):
        super().__init__(timesteps, seed, **kwargs)
        self.largest = check_positive("largest", largest)

    def encode(self, inputs: tf.Tensor, key: tf.Tensor, start: int | tf.Tensor, steps: int) -> tf.Tensor:
        strength = tf.minimum(tf.abs(tf.cast(inputs, tf.float32)) / self.largest, 1.0)
        # in float32, which holds every step: on GPUs int32 is compared on the host
        when = tf.minimum(tf.floor((1.0 - strength) * self.timesteps), float(self.timesteps - 1))
        sign = tf.cast(tf.sign(inputs), self.compute_dtype)
        return tf.stack([tf.cast(tf.equal(when, tf.cast(start + t, tf.float32)), self.compute_dtype) * sign
                         for t in range(steps)])

    def with_gradient(self, train: tf.Tensor, inputs: tf.Tensor) -> tf.Tensor:
        return refuse_gradient(train, inputs, "use encoder=\"direct\", with model.call_layers(x)")

    @property
    def refuses_gradient(self) -> bool:
        return type(self).with_gradient is LatencyEncoder.with_gradient

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "largest": self.largest}


@keras.saving.register_keras_serializable("tfspike")
class SpikeInput(Encoder):
    """The input is a spike train already, `[B, T, ...]` (event data): only the axes are exchanged."""

    draws = False

    def encode(self, inputs: tf.Tensor, key: tf.Tensor, start: int | tf.Tensor, steps: int) -> tf.Tensor:
        self._check_length(inputs.shape)
        inputs = self._of_length(inputs)
        rank = len(inputs.shape)
        # tf.slice: its size is static, as XLA needs it, where that of inputs[:, start:start + steps] is not
        stretch = tf.slice(inputs, [0, start] + [0] * (rank - 2), [-1, steps] + [-1] * (rank - 2))
        train = tf.transpose(stretch, (1, 0, *range(2, rank)))
        train = tf.cast(train, self.compute_dtype)
        return tf.ensure_shape(train, (steps, *train.shape[1:]))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        self._check_length(input_shape)
        return (self.timesteps, input_shape[0], *input_shape[2:])

    def _of_length(self, inputs: tf.Tensor) -> tf.Tensor:
        """`inputs`, whose length is checked when they come where a graph does not know it: of longer trains the first
        steps would be taken for the whole."""
        if inputs.shape[1] is not None:
            return inputs
        shape = tf.shape(inputs)
        right = tf.debugging.Assert(tf.equal(shape[1], self.timesteps),
                                    [f"{self._wanted()} Received: shape", shape, self._remedy()])
        with tf.control_dependencies([right]):
            return tf.ensure_shape(inputs, (inputs.shape[0], self.timesteps, *inputs.shape[2:]))

    def _wanted(self) -> str:
        return f"The input must be a spike train `[B, T, ...]` with T = {self.timesteps} steps."

    def _remedy(self) -> str:
        return f": give trains of {self.timesteps} steps, or build the network for the length of these."

    def _check_length(self, shape: tuple[int | None, ...]) -> None:
        if len(shape) < 2 or shape[1] is not None and shape[1] != self.timesteps:
            raise UserError(f"{self._wanted()} Received: shape {tuple(shape)}{self._remedy()}")


def refuse_gradient(outputs: tf.Tensor, inputs: tf.Tensor, instead: str) -> tf.Tensor:
    """`outputs`, which were computed from `inputs`; who asks for a gradient between the two is told what to do.

    TensorFlow would answer None or 0. In a graph the gradient is NaN: there TensorFlow computes it whether it is asked
    for or not, when the graph is called under a tape, and traces it when a model is saved.

    Raises:
      UserError: in eager execution, when the gradient is computed, if a tape watches `inputs`.
    """
    message = (f"No gradient with respect to the input comes through here: {instead}; or let the tape not watch the "
               "input, where gradients of the weights alone are wanted.")

    @custom_gradient
    def refused(inputs: tf.Tensor) -> WithGradient:
        def grad(upstream: tf.Tensor) -> tf.Tensor:
            if tf.executing_eagerly():
                raise UserError(message)
            return tf.fill(tf.shape(upstream), tf.constant(float("nan"), upstream.dtype))
        return tf.identity(inputs), grad

    @custom_gradient
    def joined(outputs: tf.Tensor, inputs: tf.Tensor) -> WithGradient:
        return tf.identity(outputs), lambda upstream: (upstream, tf.zeros_like(inputs))

    return joined(outputs, refused(inputs)) if inputs.dtype.is_floating else outputs


def nan_where_not_finite(outputs: tf.Tensor, inputs: tf.Tensor) -> tf.Tensor:
    """`outputs` `[B, ...]`, NaN in the records whose `inputs` `[B, ...]`, which were encoded, hold NaN or infinity.

    Any other network does so by itself. A neuron fires where u > threshold, which NaN never is: it would end as
    silence, and scores and loss would look like those of an image.

    Graphs in which TensorFlow itself looks for NaN are left alone: it would find the constant that marks such records.
    """
    if not inputs.dtype.is_floating or not tf.executing_eagerly() and watched():
        return outputs
    # Not tf.math.is_finite, for which LiteRT has no operation
    finite = tf.reduce_all(tf.abs(inputs) <= inputs.dtype.max, axis=list(range(1, len(inputs.shape))))
    finite = tf.reshape(finite, [-1] + [1] * (len(outputs.shape) - 1))
    return tf.where(finite, outputs, tf.constant(float("nan"), outputs.dtype))


# Pixels of about [-1, 1] are expected; normalised with a small deviation they can be a few times larger.
_FAR_OUTSIDE = 16.0
_SAMPLES = 64  # that are looked at for their scale
_AT_ONCE = 1024  # samples that are looked at for NaN, which one alone may hold


def unscaled(largest: float, received: str) -> list[str]:
    """Says that pixels are unscaled, where `largest`, of their sizes, is far outside of what encoders are meant for."""
    return [] if not largest > _FAR_OUTSIDE else [
        "Encoders expect pixels of about [-1, 1], as tfspike.datasets.describe(...).normalise gives them. Received: "
        f"values {received}; scale them, x / 127.5 - 1 for example."]


def largest_of(inputs: tf.Tensor) -> tf.Tensor:
    """The largest |x| of the first records of a batch, float32."""
    return tf.reduce_max(tf.abs(tf.cast(inputs[:_SAMPLES], tf.float32)))


def warn_of_values(inputs: Any, of_spikes: bool) -> bool | None:
    """Warns once, in one sentence, of inputs that no encoder is meant for; looks at arrays alone.

    Args:
      inputs: images or spike trains as `fit` takes them.
      of_spikes: the encoder is `SpikeInput`, whose values may be counts of events.

    Returns:
      Whether there are values that are not finite; None where there was no array to look at.
    """
    if not (isinstance(inputs, np.ndarray) or tf.is_tensor(inputs) and hasattr(inputs, "numpy")):
        return None
    first = np.asarray(inputs[:_SAMPLES])
    if first.dtype.kind not in "fiu" or not first.size:
        return None
    bad = _not_finite(inputs) if first.dtype.kind == "f" else 0
    if bad:
        warnings.warn(f"The input has NaN or infinite values in {bad:,} of {len(inputs):,} samples, which make every "
                      "output wrong: remove them.", stacklevel=4)
    elif not of_spikes:
        for text in unscaled(np.abs(first.astype("float32")).max(), f"from {first.min():g} to {first.max():g}"):
            warnings.warn(text, stacklevel=4)
    return bad > 0


def _not_finite(inputs: Any) -> int:
    """How many samples hold a value that is not finite."""
    parts = (np.asarray(inputs[start:start + _AT_ONCE]) for start in range(0, len(inputs), _AT_ONCE))
    return sum(int(np.sum(~np.isfinite(part).reshape(len(part), -1).all(axis=1))) for part in parts)


_CLASSES: dict[str | None, type[Encoder]] = {
    "poisson": PoissonEncoder, "direct": DirectEncoder, "latency": LatencyEncoder, None: SpikeInput}
NAMES = tuple(_CLASSES)


def create(kind: str | None, timesteps: int, seed: int = 0, **kwargs: Any) -> Encoder:
    """The encoder called `kind`, one of `NAMES`."""
    return _CLASSES[check_choice("encoder", kind, NAMES)](timesteps, seed=seed, **kwargs)
