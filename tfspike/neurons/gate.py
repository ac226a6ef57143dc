"""Max pooling of spikes in a converted network: in every window the position that has fired most so far passes.

    c_t = c_(t-1) + s_t        out_t = s_t[argmax over the window of c_t], the first one at ties

The count includes the step itself. With M_t = max over the window of c_t, at every step

    out_t >= M_t - M_(t-1),   so that   sum of out_t >= M_T

since where M rises, every position with the highest count has just fired. The window never sends fewer spikes than its
most active position, and one more whenever a position draws level with a later one: about the rate of the maximum.
A maximum over the spikes of each step alone is another function: one spike anywhere in the window makes it 1, so that
its rate comes near the sum of the rates. (In a network trained with it that is right.)

Both hold behind neurons that take spikes back, too (`tfspike.neurons.bipolar`): counts are net and never below 0, and
a spike of -1 passes only where M falls. Not wherever it falls: where an earlier position of the window is level with
what remains, it is chosen and was silent, so that a spike sent too early stays.

Source: B. Rueckauer et al., "Conversion of continuous-valued deep networks to efficient event-driven networks for image
classification", Front. Neurosci. 11:682 (2017); that the count includes the step is the way of the authors' toolbox.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfspike.neurons.over_time import TimeMajor


@keras.saving.register_keras_serializable("tfspike")
class MaxPoolGate(TimeMajor):
    """Spike trains `[T, B, H, W, C]` to those of the position of each window that fired most, `[T, B, h, w, C]`.

    It looks at a whole window of time, so a model that holds one is computed layer by layer; no gradient is defined for
    the choice, and a converted network is not trained further.

    Args:
      pool_size, strides, padding: as of `keras.layers.MaxPooling2D`.
    """

    def __init__(self, pool_size: tuple[int, int] = (2, 2), strides: tuple[int, int] | None = None,
                 padding: str = "valid", **kwargs: Any):
        super().__init__(**kwargs)
        self.pool_size, self.padding = tuple(pool_size), padding
        self.strides = tuple(strides or pool_size)

    @classmethod
    def like(cls, layer: keras.layers.MaxPooling2D, **kwargs: Any) -> MaxPoolGate:
        """The gate of the same windows as a layer of an ANN."""
        return cls(layer.pool_size, layer.strides, layer.padding, **kwargs)

    def call(self, spikes: tf.Tensor) -> tf.Tensor:
        """Spikes, or any values that count as activity, of a whole window from its first step on."""
        counts = tf.cumsum(tf.cast(spikes, tf.float32), axis=0)
        chosen = tf.one_hot(tf.argmax(self._windows(counts), axis=3), self._places, axis=3, dtype=spikes.dtype)
        passed = tf.reduce_sum(chosen * self._windows(spikes), axis=3)
        return tf.reshape(passed, [*tf.unstack(tf.shape(spikes)[:2]), *self.compute_output_shape(spikes.shape)[2:]])

    @property
    def _places(self) -> int:
        return self.pool_size[0] * self.pool_size[1]

    def _windows(self, values: tf.Tensor) -> tf.Tensor:
        """`[T * B, h, w, places, C]` of values `[T, B, H, W, C]`; padding counts 0, which no spike loses to."""
        images = tf.reshape(values, [-1, *values.shape[2:]])
        parts = tf.image.extract_patches(images, [1, *self.pool_size, 1], [1, *self.strides, 1], [1, 1, 1, 1],
                                         self.padding.upper())
        return tf.reshape(parts, [-1, *parts.shape[1:3], self._places, values.shape[-1]])

    def compute_output_shape(self, input_shape: Any) -> Any:
        pooled = keras.layers.MaxPooling2D(self.pool_size, self.strides, self.padding)
        return (*input_shape[:2], *pooled.compute_output_shape((None, *input_shape[2:]))[1:])

    def compute_output_spec(self, spikes: Any) -> keras.KerasTensor:
        return keras.KerasTensor(self.compute_output_shape(spikes.shape), dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "pool_size": self.pool_size, "strides": self.strides, "padding": self.padding}
