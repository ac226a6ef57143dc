"""From images to spike trains: Poisson, direct, latency, and the input that is a spike train already.

Every encoder turns `[B, ...]` into a time-major train `[T, B, ...]`. `encode` gives any stretch of the window on its
own, so a long window never has to exist at once; stretches joined are the window.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfspike import noise
from tfspike.checks import check_choice, check_count
from tfspike.errors import UserError

NAMES = ("poisson", "direct", "latency", None)


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
        """Steps start..start+steps-1 of the window, `[steps, B, ...]` (0 is the first)."""
        raise NotImplementedError

    def call(self, inputs: tf.Tensor, training: bool | None = None, seed: int | tf.Tensor | None = None) -> tf.Tensor:
        """The whole window, `[T, B, ...]`; inference repeats for the same `seed` (0 unless given)."""
        return self.encode(inputs, self.key(training, seed), 0, self.timesteps)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        return (self.timesteps, *input_shape)

    def compute_output_spec(self, inputs: Any, training: Any = None, seed: Any = None) -> keras.KerasTensor:
        return keras.KerasTensor(self.compute_output_shape(inputs.shape), dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "timesteps": self.timesteps}


@keras.saving.register_keras_serializable("tfspike")
class PoissonEncoder(Encoder):
    """Signed Poisson (Bernoulli) coding: at each step a spike of value sign(x) with probability min(|x|, 1).

    Drawn afresh at every step, in training and in inference (Lee et al. 2020, "Input encoding"; the authors' code for
    the sign). A training call takes its numbers from (seed, step, replica), an inference call from an explicit seed.

    Examples:
      >>> train = PoissonEncoder(timesteps=100)(tf.constant([[0.0, 1.0, -1.0]]), seed=7)    # [T=100, B=1, 3]
      >>> tf.reduce_sum(train, axis=(0, 1)).numpy().tolist()
      [0.0, 100.0, -100.0]
    """

    def encode(self, inputs: tf.Tensor, key: tf.Tensor, start: int | tf.Tensor, steps: int) -> tf.Tensor:
        probability = tf.abs(inputs)
        sign = tf.cast(tf.sign(inputs), self.compute_dtype)

        def step(t: int) -> tf.Tensor:
            uniform = noise.uniform(tf.shape(inputs), noise.fold(key, start + t))
            return tf.cast(uniform < tf.cast(probability, tf.float32), self.compute_dtype) * sign

        return tf.stack([step(t) for t in range(steps)])


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

    |x| >= 1 spikes at the first step, the faintest input at the last one.

    Examples:
      >>> LatencyEncoder(timesteps=4)(tf.constant([[1.0, 0.5, 0.01, 0.0]])).numpy()[:, 0].T.tolist()
      [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]
    """

    draws = False

    def encode(self, inputs: tf.Tensor, key: tf.Tensor, start: int | tf.Tensor, steps: int) -> tf.Tensor:
        strength = tf.minimum(tf.abs(tf.cast(inputs, tf.float32)), 1.0)
        when = tf.cast(tf.floor((1.0 - strength) * self.timesteps), tf.int32)
        when = tf.minimum(when, self.timesteps - 1)
        sign = tf.cast(tf.sign(inputs), self.compute_dtype)
        return tf.stack([tf.cast(tf.equal(when, start + t), self.compute_dtype) * sign for t in range(steps)])


@keras.saving.register_keras_serializable("tfspike")
class SpikeInput(Encoder):
    """The input is a spike train already, `[B, T, ...]` (event data): only the axes are exchanged."""

    draws = False

    def encode(self, inputs: tf.Tensor, key: tf.Tensor, start: int | tf.Tensor, steps: int) -> tf.Tensor:
        self._check_length(inputs.shape)
        rank = len(inputs.shape)
        # tf.slice: its size is static, as XLA needs it, where that of inputs[:, start:start + steps] is not
        stretch = tf.slice(inputs, [0, start] + [0] * (rank - 2), [-1, steps] + [-1] * (rank - 2))
        train = tf.transpose(stretch, (1, 0, *range(2, rank)))
        train = tf.cast(train, self.compute_dtype)
        return tf.ensure_shape(train, (steps, *train.shape[1:]))

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        self._check_length(input_shape)
        return (self.timesteps, input_shape[0], *input_shape[2:])

    def _check_length(self, shape: Any) -> None:
        if len(shape) < 2 or shape[1] is not None and shape[1] != self.timesteps:
            raise UserError(f"The input must be a spike train `[B, T, ...]` with T = {self.timesteps} steps. "
                            f"Received: shape {tuple(shape)}.")


_CLASSES: dict[str | None, type[Encoder]] = {
    "poisson": PoissonEncoder, "direct": DirectEncoder, "latency": LatencyEncoder, None: SpikeInput}


def create(kind: str | None, timesteps: int, seed: int = 0, **kwargs: Any) -> Encoder:
    """The encoder called `kind`, one of `NAMES`."""
    return _CLASSES[check_choice("encoder", kind, NAMES)](timesteps, seed=seed, **kwargs)
