"""Threshold-dependent batch normalisation of currents (tdBN)."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfspike import distribution
from tfspike.checks import check_choice, check_fraction, check_positive
from tfspike.errors import UserError
from tfspike.neurons import gradients
from tfspike.neurons.custom_gradient import WithGradient, custom_gradient

_FUSED = ("float32", "bfloat16", "float16")  # what the fused operation takes
_LEAST = 1e-5
_CUDNN = 1.001e-5  # TensorFlow gives cuDNN no smaller epsilon; beside a variance that matters it is 1e-5


@keras.saving.register_keras_serializable("tfspike")
class ThresholdNorm(keras.layers.Layer):
    """Normalises the currents of each channel over time, batch and space to the size of the threshold (tdBN).

        y = gamma alpha threshold (I - mean) / sqrt(variance + epsilon) + beta

    Source: Zheng et al. 2021, "Going Deeper With Directly-Trained Larger Spiking Neural Networks". Mean and variance
    are those of the batch and the whole window in training, over all replicas of a distribution strategy. In inference,
    and in training while the layer is frozen (`trainable=False`), they are the running ones, so that the layer is one
    factor and one offset per channel, which `tfspike.folding.fold` merges into the weights in front of it.

    Under the gradient "rate" the mean current passes it once, as everything else does: the gradient is that of the
    normalised mean current d (the mean over t of I), the statistics being those of the currents.

    Args:
      threshold: of the neurons behind it.
      alpha: standard deviation of the output at the start, in thresholds; 1 / sqrt(2) where two paths add up.
      gradient: "event" or "rate", that of the neurons.
      momentum: share of the running statistics kept per training step.
      epsilon: added to the variance, at least 1e-5.

    Raises:
      UserError: a constant out of range.
    """

    def __init__(self, threshold: float = 1.0, alpha: float = 1.0, gradient: str = "event", momentum: float = 0.9,
                 epsilon: float = 1e-5, **kwargs: Any):
        # autocast would round gamma, beta and the statistics to bfloat16
        super().__init__(autocast=False, **kwargs)
        self.threshold = check_positive("threshold", threshold)
        self.alpha = check_positive("alpha", alpha)
        self.gradient = check_choice("gradient", gradient, gradients.GRADIENTS)
        self.momentum = check_fraction("momentum", momentum)
        self.epsilon = check_positive("epsilon", epsilon)
        if self.epsilon < _LEAST:
            raise UserError(f"`epsilon` must be at least {_LEAST:g}, the least of the fused normalisation of GPUs. "
                            f"Received: epsilon={epsilon!r}.")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        shape = (input_shape[-1],)

        def add(start: str, name: str, trainable: bool) -> keras.Variable:
            return self.add_weight(shape, start, "float32", trainable=trainable, autocast=False, aggregation="mean",
                                   name=name)

        self.gamma, self.beta = add("ones", "gamma", True), add("zeros", "beta", True)
        self.moving_mean = add("zeros", "moving_mean", False)
        self.moving_variance = add("ones", "moving_variance", False)

    def call(self, currents: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Currents `[T, B, ..., C]` (of an ANN: activations `[B, ..., C]`) to as many of the same dtype.

        Args:
          currents: of a whole window in training, of any stretch of one in inference.
          training: use the statistics of these currents, and let the running ones follow them.
        """
        if not training or not self.trainable:
            return self.normalise(currents, self.moving_mean.value, self.moving_variance.value)
        whole, mean, variance = self.standardise(currents)
        self.update_moving_statistics(mean, variance)
        if self.gradient == "event":
            return whole
        once = self.normalise_rate(tf.reduce_mean(tf.cast(currents, tf.float32), axis=0, keepdims=True), variance)
        return _with_gradient_of(tf.stop_gradient(whole), once)

    def standardise(self, currents: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Currents `[T, B, ..., C]` with their own statistics: `(normalised, mean [C], variance [C])`.

        One replica takes TensorFlow's fused operation, which is four to six times faster than the arithmetic of
        `moments` and `normalise` (2 cores, bfloat16, forward and backward) and gives the same.
        """
        if not self._alone:
            mean, variance = self.moments(currents)
            return self.normalise(currents, mean, variance), mean, variance
        maps = list(currents.shape[2:])
        is_image = len(maps) == 3 and None not in maps  # a shape that the operation takes as it is
        images = tf.reshape(currents, [-1, *maps] if is_image else [-1, 1, 1, currents.shape[-1]])
        nothing = tf.zeros([0], tf.float32)
        y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=tf.cast(images, self.compute_dtype), scale=self._gain, offset=self.beta.value, mean=nothing,
            variance=nothing, epsilon=max(self.epsilon, _CUDNN), is_training=True)
        count = tf.cast(tf.size(images) // currents.shape[-1], tf.float32)
        # the operation divides by count - 1, unlike `moments`
        return tf.reshape(y, tf.shape(currents)), mean, variance * (count - 1.0) / count

    @property
    def _alone(self) -> bool:
        """Whether the fused operation can be taken, which knows of one replica and of these types only."""
        if tf.distribute.has_strategy():
            replica = tf.distribute.get_replica_context()
            if replica is None or replica.num_replicas_in_sync > 1:
                return False
        return self.compute_dtype in _FUSED

    def moments(self, currents: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean and variance per channel `[C]`, float32, over everything else and over all replicas."""
        currents = tf.cast(currents, tf.float32)
        axes = list(range(len(currents.shape) - 1))
        replica = tf.distribute.get_replica_context()
        if replica is None or replica.num_replicas_in_sync == 1:
            return tf.nn.moments(currents, axes)

        def over_replicas(own: tf.Tensor) -> tf.Tensor:
            return replica.all_reduce(tf.distribute.ReduceOp.SUM, own)

        # Sums, not means of means: the last batch of an epoch gives replicas unequal shares, and some of them none
        count = over_replicas(tf.cast(tf.size(currents) // currents.shape[-1], tf.float32))
        mean = over_replicas(tf.reduce_sum(currents, axes)) / count
        return mean, over_replicas(tf.reduce_sum(tf.square(currents - mean), axes)) / count

    def normalise(self, currents: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor) -> tf.Tensor:
        """Currents `[T, B, ..., C]` with these statistics, in the layer's compute dtype."""
        return self._applied(currents, self._gain, self.beta.value, mean, variance)

    def _applied(self, currents: tf.Tensor, gain: tf.Tensor, beta: tf.Tensor, mean: tf.Tensor,
                 variance: tf.Tensor) -> tf.Tensor:
        scale, offset = self._affine(gain, beta, mean, variance)
        return tf.cast(tf.cast(currents, tf.float32) * scale + offset, self.compute_dtype)

    def normalise_rate(self, mean_current: tf.Tensor, variance: tf.Tensor) -> tf.Tensor:
        """Mean currents `[1, B, ..., C]` with the variance of the currents themselves, whose gradient is that of
        the mean currents' variance: the derivative of either by the mean current is 2 (d - mean) / n."""
        if self._alone and not distribution.has_gpu():
            return self._normalise_rate_fused(mean_current, variance)
        mean, spread = self.moments(mean_current)
        return self.normalise(mean_current, mean, spread + tf.stop_gradient(variance - spread))

    def _normalise_rate_fused(self, mean_current: tf.Tensor, variance: tf.Tensor) -> tf.Tensor:
        """`normalise_rate` with the gradient of TensorFlow's fused operation: three to five times faster.

        That gradient takes mean and variance as given, as it must be here. On GPUs the operation expects the inverse
        of the standard deviation in place of the variance, so there the arithmetic is written out.
        """

        @custom_gradient
        def once(currents: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> WithGradient:
            flat = tf.reshape(currents, [-1, 1, 1, currents.shape[-1]])
            mean = tf.reduce_mean(tf.cast(flat, tf.float32), axis=[0, 1, 2])
            factor = self.alpha * self.threshold

            def grad(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
                upstream = tf.cast(tf.reshape(upstream, tf.shape(flat)), flat.dtype)
                inner, of_scale, of_offset, *_ = tf.raw_ops.FusedBatchNormGradV3(
                    y_backprop=upstream, x=flat, scale=factor * gamma, reserve_space_1=mean, reserve_space_2=variance,
                    reserve_space_3=tf.zeros([0], tf.float32), epsilon=self.epsilon, is_training=True)
                return tf.reshape(inner, tf.shape(currents)), factor * of_scale, of_offset

            return self._applied(currents, factor * gamma, beta, mean, variance), grad

        return once(mean_current, tf.convert_to_tensor(self.gamma.value), tf.convert_to_tensor(self.beta.value))

    def update_moving_statistics(self, mean: tf.Tensor, variance: tf.Tensor) -> None:
        """Moves the running statistics towards these; once per training step."""
        for running, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
            running.assign(self.momentum * running.value + (1.0 - self.momentum) * tf.stop_gradient(new))

    @property
    def _gain(self) -> tf.Tensor:
        return (self.alpha * self.threshold) * self.gamma.value

    def _affine(self, gain: tf.Tensor, beta: tf.Tensor, mean: tf.Tensor,
                variance: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        scale = gain * tf.math.rsqrt(variance + self.epsilon)
        return scale, beta - mean * scale

    def folded(self) -> tuple[tf.Tensor, tf.Tensor]:
        """`(factor, offset)` per channel `[C]` of inference: y = factor I + offset."""
        return self._affine(self._gain, self.beta.value, self.moving_mean.value, self.moving_variance.value)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape

    def compute_output_spec(self, currents: keras.KerasTensor, training: bool | None = None) -> keras.KerasTensor:
        return keras.KerasTensor(currents.shape, dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "threshold": self.threshold, "alpha": self.alpha, "gradient": self.gradient,
                "momentum": self.momentum, "epsilon": self.epsilon}


@custom_gradient
def _with_gradient_of(train: tf.Tensor, mean: tf.Tensor) -> WithGradient:
    """The train `[T, B, ...]` in value, its mean `[1, B, ...]` in gradient."""

    def grad(upstream: tf.Tensor) -> tuple[None, tf.Tensor]:
        total = tf.reduce_sum(tf.cast(upstream, tf.float32), axis=0, keepdims=True)
        return None, tf.cast(total, mean.dtype)

    return tf.identity(train), grad
