"""The time axis: `OverTime` applies any stateless layer at every step, `WindowDropout` holds one mask for all of them.

A spike train is one tensor, time-major, `[T, B, ...]`. Synapses are linear and stateless, so time joins the batch, and
one convolution serves all T * B images.
"""

from __future__ import annotations

import contextvars
import zlib
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfspike.checks import check_fraction
from tfspike.neurons import noise


class WholeWindow(keras.layers.Layer):
    """Layers that take a whole spike train, and say nothing of a single step."""


_CALLED: contextvars.ContextVar[tuple[Any, ...]] = contextvars.ContextVar("_CALLED", default=())


class TimeMajor(WholeWindow):
    """What layers of spike trains share: `activity_regularizer` is the penalty of one record of the batch.

    Keras divides a penalty by the length of the first axis, which is time here, and adds those of returned states.
    """

    _regularizer: Any = None

    @property
    def activity_regularizer(self) -> Any:
        """The penalty; None while Keras calls the layer, in the thread that does: replicas have one each."""
        return None if self in _CALLED.get() else self._regularizer

    @activity_regularizer.setter
    def activity_regularizer(self, regularizer: Any) -> None:
        self._regularizer = regularizer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        regularizer = self.activity_regularizer
        if regularizer is None:
            return super().__call__(*args, **kwargs)
        token = _CALLED.set((*_CALLED.get(), self))
        try:
            outputs = super().__call__(*args, **kwargs)
        finally:
            _CALLED.reset(token)
        train = keras.tree.flatten(outputs)[0]
        if tf.is_tensor(train):
            records = tf.maximum(tf.shape(train)[1], 1)  # a replica may have none of the last batch of an epoch
            self.add_loss(regularizer(tf.cast(train, tf.float32)) / tf.cast(records, tf.float32))
        return outputs


@keras.saving.register_keras_serializable("tfspike")
class OverTime(TimeMajor):
    """Applies a stateless Keras layer at every step: time joins the batch, `[T, B, ...]` to `[T * B, ...]`.

    Args:
      layer: any layer without state and without random numbers: Conv2D, Dense, pooling, padding, Flatten, ...

    Raises:
      ValueError: `layer` is not a Keras layer, or it keeps state (batch statistics, a seed) which would see the steps
        of one window as a batch of independent samples.
    """

    def __init__(self, layer: keras.layers.Layer, **kwargs: Any):
        if not isinstance(layer, keras.layers.Layer):
            raise ValueError(f"`layer` must be a Keras layer. Received: layer={layer!r}.")
        if isinstance(layer, WholeWindow):
            raise ValueError(f"OverTime applies a layer to every step alone, and {type(layer).__name__} needs the "
                             "whole window: put it on the spike train itself, without OverTime.")
        kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(**kwargs)
        self.layer = layer
        self._refuse_state()

    def _refuse_state(self) -> None:
        rounded = {id(variable) for layer in with_layers_inside(self.layer) if layer.quantization_mode is not None
                   for variable in layer.variables}  # by Keras' quantize, to integers and their scale
        kept = [variable.name for variable in self.layer.variables
                if id(variable) not in rounded and not may_be_trained(variable, self.layer)]
        if kept:
            raise ValueError(f"OverTime takes stateless layers, and {type(self.layer).__name__} keeps {kept}. For "
                             "dropout use WindowDropout, which holds one mask for the whole window, and to normalise "
                             "ThresholdNorm.")

    def build(self, input_shape: Any) -> None:
        if not self.layer.built:
            self.layer.build((None, *input_shape[2:]))
        self._refuse_state()

    def call(self, train: tf.Tensor) -> tf.Tensor:
        """`[T, B, ...]` to `[T, B, ...]`."""
        return self.at_all_steps(train, self.layer)

    @staticmethod
    def at_all_steps(train: tf.Tensor, function: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
        """A function of `[N, ...]` on a train `[T, B, ...]`, all T * B at once."""
        steps, batch = train.shape[0], train.shape[1]
        dynamic = tf.shape(train)
        outputs = function(tf.reshape(train, [-1, *_sizes(train, 2)]))
        if steps is None and batch is None:
            steps, batch = dynamic[0], dynamic[1]
        return tf.reshape(outputs, [-1 if steps is None else steps, -1 if batch is None else batch,
                                    *_sizes(outputs, 1)])

    def compute_output_shape(self, input_shape: Any) -> Any:
        one = keras.KerasTensor((None, *input_shape[2:]), dtype=self.compute_dtype)
        shape = self.layer.compute_output_spec(one).shape  # Keras runs the `call` of a layer that does not say it
        self._refuse_state()  # of layers inside, which that may have built
        return (*input_shape[:2], *shape[1:])

    def compute_output_spec(self, train: Any) -> keras.KerasTensor:
        return keras.KerasTensor(self.compute_output_shape(train.shape), dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "layer": keras.saving.serialize_keras_object(self.layer)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> OverTime:
        config = dict(config)
        layer = keras.saving.deserialize_keras_object(config.pop("layer"))
        return cls(layer, **config)


def _sizes(values: tf.Tensor, first: int) -> list[Any]:
    """The lengths of the axes from `first` on, as numbers where a graph knows them."""
    return [tf.shape(values)[axis] if size is None else size for axis, size in enumerate(values.shape) if axis >= first]


def may_be_trained(variable: keras.Variable, layer: keras.layers.Layer) -> bool:
    """Whether a variable of this layer is a weight, frozen or not, in place of a statistic or a seed."""
    value = variable.value
    if isinstance(value, tf.Variable):
        return value.trainable  # as it was made: freezing a layer changes Keras' flag alone
    return variable.trainable or not layer.trainable  # cast, as everything is in a model's `call` of mixed precision


def with_layers_inside(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """A layer, and those of a model, the outer ones first."""
    inside = layer.layers if isinstance(layer, keras.Model) else []
    return [layer, *(inner for part in inside for inner in with_layers_inside(part))]


@keras.saving.register_keras_serializable("tfspike")
class WindowDropout(TimeMajor, noise.NoisyLayer):
    """Inverted dropout with one mask per sample and neuron, held for the whole window (Lee et al. 2020, "Dropout").

    Args:
      rate: share of neurons silenced, in [0, 1).
      seed: keys the masks together with the training step, the replica and the layer's name; give layers names of
        their own where masks must repeat.

    Raises:
      UserError: `rate` out of range.
    """

    def __init__(self, rate: float, seed: int = 0, **kwargs: Any):
        super().__init__(seed=seed, **kwargs)
        self.rate = check_fraction("rate", rate)

    def draw_mask(self, shape: tf.Tensor | tuple[int, ...]) -> tf.Tensor:
        """A fresh mask for this training call, `[B, ...]` float32: 0 or 1 / (1 - rate). Advances the step counter."""
        key = noise.derive(self.training_key(), zlib.crc32(self.name.encode()) % 2**31)  # layers may share a seed
        kept = noise.uniform(shape, key) >= self.rate
        return tf.cast(kept, tf.float32) / (1.0 - self.rate)

    def call(self, spikes: tf.Tensor, training: bool | None = None, window_mask: tf.Tensor | None = None) -> tf.Tensor:
        """Spikes `[T, B, ...]` to masked spikes.

        Args:
          spikes: the train.
          training: draw a mask; without it nothing is silenced.
          window_mask: use this mask `[B, ...]` instead of drawing one.
        """
        if window_mask is None:
            if not training or self.rate == 0.0:
                return spikes
            window_mask = self.draw_mask(tf.shape(spikes)[1:])
        return spikes * tf.cast(window_mask, spikes.dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def compute_output_spec(self, spikes: Any, training: Any = None, window_mask: Any = None) -> keras.KerasTensor:
        return keras.KerasTensor(spikes.shape, dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate}
