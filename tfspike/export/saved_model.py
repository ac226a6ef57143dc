"""SavedModel: named endpoints for TensorFlow Serving, from raw images or from spikes, at once or as a stream."""

from __future__ import annotations

import json
import os
from typing import Any

import tensorflow as tf

from tfspike.export.window import State, Window
from tfspike.neurons.encoders import SpikeInput


class Served(tf.Module):
    """The endpoints of one model; its weights stay variables.

    Args:
      model: the network.
      info: has `scale` and `offset`, one number per channel: x = p * scale + offset for pixels p of 0 to 255.
    """

    def __init__(self, model: Any, info: Any):
        super().__init__(name="tfspike")
        self.window = Window(model)
        # tf.Module looks into lists of variables, not into Keras models
        self.weights = [variable.value for variable in model.variables]
        self._scale = [float(value) for value in info.scale]
        self._offset = [float(value) for value in info.offset]
        self.from_events = isinstance(self.window.plan.encoder.layer, SpikeInput)

    def signatures(self, batch: int | None = None) -> dict[str, Any]:
        """Concrete functions by endpoint; see docs/exports.md for what each takes and gives."""
        window, spec = self.window, tf.TensorSpec
        spikes = spec((batch, None, *window.spike_shape), tf.float32, "spikes")
        found = {"from_spikes": tf.function(self._from_spikes, input_signature=[spikes]),
                 "initial_state": tf.function(window.initial_state, input_signature=[spec((), tf.int32, "batch")])}
        found = {name: function.get_concrete_function() for name, function in found.items()}
        found["stream"] = tf.function(self._stream).get_concrete_function(spikes=spikes, **window.state_specs(batch))
        if self.from_events:
            fixed = spec((batch, window.timesteps, *window.spike_shape), tf.float32, "spikes")
            found["serving_default"] = tf.function(self._from_spikes, input_signature=[fixed]).get_concrete_function()
            found["every_step"] = tf.function(self._every_step, input_signature=[fixed]).get_concrete_function()
            return found
        images = spec((batch, *window.plan.inputs[0].shape[1:]), tf.float32, "images")
        seed = spec((), tf.int32, "seed")
        found["serving_default"] = tf.function(
            lambda images: self._from_images(images, 0), input_signature=[images]).get_concrete_function()
        found["stochastic"] = tf.function(self._from_images, input_signature=[images, seed]).get_concrete_function()
        found["every_step"] = tf.function(self._every_step, input_signature=[images]).get_concrete_function()
        return found

    def normalise(self, images: tf.Tensor) -> tf.Tensor:
        """Pixels of 0 to 255 to the x that the encoder takes."""
        return images * tf.constant(self._scale) + tf.constant(self._offset)

    def _from_images(self, images: tf.Tensor, seed: Any, chunk: int | None = None) -> dict[str, tf.Tensor]:
        window, chunk = self.window, chunk or self.window.chunk
        encode = window.encoder_of(self.normalise(images), seed)
        return window.outputs(window.run(encode, window.timesteps // chunk, chunk, self._start(images)))

    def _from_spikes(self, spikes: tf.Tensor) -> dict[str, tf.Tensor]:
        return self._stream(spikes, **self.window.initial_state(tf.shape(spikes)[0]), only_outputs=True)

    def _stream(self, spikes: tf.Tensor, only_outputs: bool = False, **state: tf.Tensor) -> dict[str, tf.Tensor]:
        state = self.window.marked(state, spikes)
        after = self.window.run(lambda t, _: step_of(spikes, t), tf.shape(spikes)[1], 1, state)
        outputs = self.window.outputs(after)
        return outputs if only_outputs else {**after, **outputs}

    def _every_step(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        encode = ((lambda t, _: step_of(inputs, t)) if self.from_events else
                  self.window.encoder_of(self.normalise(inputs), 0))
        return {"scores": self.window.every_step(encode, self._start(inputs))}

    def _start(self, inputs: tf.Tensor) -> State:
        """The state before the first step, for images or spikes `[B, ...]`."""
        return self.window.marked(self.window.initial_state(tf.shape(inputs)[0]), inputs)


def step_of(spikes: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
    """Step t of `[B, T, ...]`, `[1, B, ...]`."""
    return tf.gather(spikes, t, axis=1)[tf.newaxis]


def describe(model: Any, info: Any) -> dict[str, Any]:
    """What a user of the file needs to know and the graph does not say."""
    window = Window(model)
    return {"model": model.name, "timesteps": window.timesteps, "layers": window.layer_names,
            "class_names": list(info.class_names), "scale": list(map(float, info.scale)),
            "offset": list(map(float, info.offset)), "encoder": type(window.plan.encoder.layer).__name__,
            "readout_leak": window.plan.readout.layer.factor, "input_shape": list(window.spike_shape)}


def write(model: Any, info: Any, path: str) -> None:
    """Writes the folder `path`; the description lies in `assets.extra`, where TensorFlow Serving expects extras."""
    served = Served(model, info)
    tf.saved_model.save(served, path, signatures=served.signatures())
    os.makedirs(os.path.join(path, "assets.extra"), exist_ok=True)
    with open(os.path.join(path, "assets.extra", "tfspike.json"), "w", encoding="utf-8") as file:
        json.dump(describe(model, info), file, indent=2)
