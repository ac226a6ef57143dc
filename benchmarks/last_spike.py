"""The gradient "rate" with a factor on its slope: the time of a neuron's last spike over T.

It makes "rate" more like "event", which credits no input behind the last spike. Tried here and left out of the library:
see docs/results.md.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfspike.neurons import gradients
from tfspike.neurons.layers import SpikingLayer


def with_last_spike(model: keras.Model) -> keras.Model:
    """The same network and weights, layer by layer, with the factor in every spiking layer."""

    def clone(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(layer, SpikingLayer):
            return _LastSpike(layer.neuron, name=layer.name)(args[0])
        return layer(*args, **kwargs)

    return keras.models.clone_model(model, clone_function=lambda layer: layer, call_function=clone)


class _LastSpike(keras.layers.Layer):
    def __init__(self, neuron: gradients.Neuron, **kwargs: Any):
        super().__init__(**kwargs)
        self.neuron = neuron

    def call(self, currents: tf.Tensor) -> tf.Tensor:
        @tf.custom_gradient
        def window(currents: tf.Tensor):
            start = gradients.zero_state(tf.shape(currents)[1:])
            spikes, final = gradients.simulate(currents, start, self.neuron)

            def grad(upstream: tf.Tensor) -> tf.Tensor:
                steps = tf.shape(spikes)[0]
                when = tf.reshape(tf.range(1, steps + 1), [-1] + [1] * (spikes.shape.rank - 1))
                last = tf.reduce_max(tf.where(spikes > 0, when, 0), axis=0) / steps
                slope = gradients.slope(final.count, final.trace, self.neuron) * tf.cast(last, tf.float32)
                mean = tf.reduce_mean(tf.cast(upstream, tf.float32), axis=0)
                return tf.broadcast_to(tf.cast(slope * mean, upstream.dtype), tf.shape(upstream))

            return spikes, grad

        return window(currents)

    def compute_output_shape(self, shape: Any) -> Any:
        return shape
