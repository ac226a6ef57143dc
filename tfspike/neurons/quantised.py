"""The activation of an ANN that an integrate-and-fire neuron computes in L steps (QCFS).

    q(z) = a clip(floor(z L / a + 1/2) / L, 0, 1)

Source: T. Bu et al., "Optimal ANN-SNN conversion for high-accuracy and ultra-low-latency spiking neural networks",
ICLR 2022: quantisation, clip, floor, shift. A neuron with threshold a, reset by subtraction and no leak, whose membrane
begins at a/2, fires clip(floor(T z / a + 1/2), 0, T) times in T steps of a constant current z: for T = L its rate times
a is q(z). The ceiling a > 0 is learnt, one number per layer. Backward the floor counts as the identity:

    dq/dz = 1[0 < z < a]        dq/da = q(z)/a - 1[0 < z < a] z/a        (1 where z > a, 0 where z < 0)
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfspike.checks import check_count, check_positive

LEAST = 1e-3  # of the ceiling: nothing else keeps an optimiser from carrying it past 0


def quantise(z: tf.Tensor, ceiling: tf.Tensor, levels: int) -> tf.Tensor:
    """q(z), float32 of the shape of z, with the gradient of the module's text by both arguments."""
    share = tf.clip_by_value(tf.cast(z, tf.float32) / ceiling, 0.0, 1.0)
    rounded = tf.floor(share * levels + 0.5) / levels
    return ceiling * (share + tf.stop_gradient(rounded - share))


@keras.saving.register_keras_serializable("tfspike")
class QuantisedReLU(keras.layers.Layer):
    """A ReLU of `levels` + 1 values, 0 to a learnt ceiling.

    Args:
      levels: L, and the steps in which a spiking neuron computes the same.
      start: what the ceiling begins with, above 0. Bu et al. begin with 8, for hundreds of epochs; from 4, currents of
        a standard deviation of 1 use more of the levels at once.

    Raises:
      UserError: a constant out of range.
    """

    def __init__(self, levels: int, start: float = 4.0, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)  # autocast would round the ceiling to bfloat16
        self.levels = check_count("levels", levels)
        self.start = check_positive("start", start)

    def build(self, input_shape: Any) -> None:
        self.ceiling = self.add_weight((), keras.initializers.Constant(self.start), "float32", autocast=False,
                                       constraint=_at_least, name="ceiling")

    def call(self, activations: tf.Tensor) -> tf.Tensor:
        """Activations `[B, ...]` to as many in the layer's compute dtype."""
        return tf.cast(quantise(activations, self.ceiling.value, self.levels), self.compute_dtype)

    def compute_output_spec(self, activations: keras.KerasTensor) -> keras.KerasTensor:
        return keras.KerasTensor(activations.shape, dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "levels": self.levels, "start": self.start}


def _at_least(ceiling: Any) -> Any:
    return keras.ops.maximum(ceiling, LEAST)
