"""LiteRT (.tflite): the window as built-in operations only, for phones and microcontrollers.

A loop over time whose state are tensors converts to a built-in WHILE; TensorArrays and TensorFlow's random numbers do
not, so a Poisson model takes its spikes from outside and the other encoders are part of the graph.
"""

from __future__ import annotations

import tempfile
from typing import Any

import tensorflow as tf

from tfspike.engine.precision import in_float32
from tfspike.errors import UserError, first_line
from tfspike.export.saved_model import Served, step_of

WEIGHTS = ("float32", "float16", "dynamic_range")


class _Fixed(Served):
    """Endpoints of fixed shape: batch 1."""

    def signatures(self, batch: int | None = 1) -> dict[str, Any]:
        window, spec = self.window, tf.TensorSpec
        spikes = spec((1, window.timesteps, *window.spike_shape), tf.float32, "spikes")
        one = spec((1, 1, *window.spike_shape), tf.float32, "spikes")
        found = {"from_spikes": tf.function(self._at_once, input_signature=[spikes]).get_concrete_function(),
                 "stream": tf.function(self._one_step).get_concrete_function(spikes=one, **window.state_specs(1))}
        if not self.from_events and not window.plan.encoder.layer.draws:
            images = spec((1, *window.plan.inputs[0].shape[1:]), tf.float32, "images")
            found["serving_default"] = tf.function(self._image, input_signature=[images]).get_concrete_function()
        return found

    def _at_once(self, spikes: tf.Tensor) -> dict[str, tf.Tensor]:
        state = self.window.marked(self.window.initial_state(1), spikes)
        return self.window.outputs(self.window.run(lambda t, _: step_of(spikes, t), self.window.timesteps, 1, state))

    def _one_step(self, spikes: tf.Tensor, **state: tf.Tensor) -> dict[str, tf.Tensor]:
        state = self.window.marked(state, spikes)
        after, _ = self.window.advance(tf.transpose(spikes, (1, 0, *range(2, len(spikes.shape)))), state)
        return {**{f"{name}_out": value for name, value in after.items()}, **self.window.outputs(after)}

    def _image(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        encode = self.window.encoder_of(self.normalise(images), 0)
        state = self.window.marked(self.window.initial_state(1), images)
        return self.window.outputs(self.window.run(encode, self.window.timesteps, 1, state))


def refuse_starts(model: Any) -> None:
    """Raises UserError where membranes begin a window, or may after training, elsewhere than at 0."""
    for call in model.required_plan().spiking:
        start = call.layer.neuron.start
        if call.layer.moving_start is not None or start != 0.0:
            where = f"at {start:g} of the threshold" if start else "where earlier windows ended"
            raise UserError(f"A stream in LiteRT begins with zeros, and the membranes of {call.name!r} begin {where}: "
                            "export saved_model.")


def convert(model: Any, info: Any, weights: str = "float32") -> bytes:
    """The content of the file.

    Args:
      model, info: as for `tfspike.export.save`; another precision than float32 is converted to it.
      weights: how they are stored: "float32", "float16", or "dynamic_range" (int8 with float arithmetic).

    Raises:
      UserError: unknown `weights`, or a layer without a built-in counterpart.
    """
    if weights not in WEIGHTS:
        raise UserError(f"`weights` must be one of {', '.join(WEIGHTS)}. Received: weights={weights!r}.")
    served = _Fixed(in_float32(model), info)
    for call in served.window.plan.spiking:
        if call.layer.moving_start is not None:
            raise UserError(f"The start of {call.name!r} moves: export tfspike.folding.fold(model), where it is "
                            "constant.")
    refuse_starts(model)
    with tempfile.TemporaryDirectory() as folder:
        signatures = served.signatures()
        tf.saved_model.save(served, folder, signatures=signatures)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=sorted(signatures))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if weights != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if weights == "float16":
            converter.target_spec.supported_types = [tf.float16]
        try:
            return converter.convert()
        except Exception as error:  # the converter has no public class for "this operation needs Flex"
            raise UserError(f"{model.name!r} has no form of built-in LiteRT operations ({first_line(error)}); export "
                            "it as saved_model.") from error
