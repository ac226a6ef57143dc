"""The window of a model as functions of named state tensors: what every TensorFlow export is made of.

`tfspike.engine.stepper` steps it: ordinary TensorFlow operations (no XLA kernel, which would tie a file to this
machine) and any batch. State is named, so that a recording may be given at once or piece by piece with the same result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfspike.engine import plan as plans
from tfspike.engine import stepper
from tfspike.errors import UserError
from tfspike.neurons.encoders import nan_where_not_finite

State = dict[str, tf.Tensor]

_MAX_CHUNK = 8  # steps joined in one convolution; more only takes memory


class Window:
    """Runs the part of a model between encoder and readout, some steps at a time.

    Args:
      model: a `tfspike.models.SpikingModel`.

    Raises:
      UserError: the model is not one window, or has more than one output.
    """

    def __init__(self, model: Any):
        plan: plans.Plan = model.required_plan()
        if len(plan.outputs) != 1 or len(plan.inputs) != 1:
            raise UserError(f"Only a model with one input and one output can be exported; {model.name!r} has "
                            f"{len(plan.inputs)} and {len(plan.outputs)}.")
        model.refuse_own_call("An export")
        why = plan.whole()
        if why is not None:
            raise UserError(f"Exports run a window step by step, and {why}. `model.export(folder)` writes Keras' own "
                            "SavedModel, which runs whole windows.")
        self.plan = plan
        self.timesteps: int = plan.encoder.layer.timesteps
        self.layer_names = [call.name for call in plan.spiking]
        self.spike_shape = tuple(plan.encoder.output.shape[2:])
        self._names = {call.name: f"{call.name}_membrane" for call in plan.spiking}  # in files, of the stepper's state
        self._names[plan.readout.name] = "readout_membrane"

    # ---- state -------------------------------------------------------------------------------------------------

    def initial_state(self, batch: Any) -> State:
        """The state before the first step: membranes `[B, ...]`, `layer_spikes` `[B, layers]`, `steps` `[]`."""
        membranes = stepper.initial_state(self.plan, batch)
        state = {self._names[name]: membrane for name, membrane in membranes.items()}
        state["layer_spikes"] = tf.zeros((batch, len(self.layer_names)), tf.int32)
        return {**state, "steps": tf.constant(0)}

    def state_specs(self, batch: int | None = None) -> dict[str, tf.TensorSpec]:
        """The type of every tensor of the state."""
        specs = {self._names[name]: tf.TensorSpec((batch, *shape), tf.float32, self._names[name])
                 for name, shape in stepper.shapes(self.plan).items()}
        specs["layer_spikes"] = tf.TensorSpec((batch, len(self.layer_names)), tf.int32, "layer_spikes")
        return {**specs, "steps": tf.TensorSpec((), tf.int32, "steps")}

    def marked(self, state: State, inputs: tf.Tensor) -> State:
        """The state from which scores are NaN of the records whose `inputs` `[B, ...]` hold NaN or infinity: the
        membrane of the readout is, as of then. Neurons alone would take them for silence."""
        name = self._names[self.plan.readout.name]
        return {**state, name: nan_where_not_finite(state[name], inputs)}

    # ---- time --------------------------------------------------------------------------------------------------

    def advance(self, train: tf.Tensor, state: State) -> tuple[State, tf.Tensor]:
        """A few steps.

        Args:
          train: encoded input, `[k, B, ...]` with k known.
          state: before them.

        Returns:
          `(state after, V_t of the readout at each step [k, B, classes])`.
        """
        stretch = stepper.advance(self.plan, train, {name: state[named] for name, named in self._names.items()})
        counts = [_spikes_per_sample(layer.spikes) for layer in stretch.layers.values()]
        after = {self._names[name]: membrane for name, membrane in stretch.state.items()}
        return {**after, "layer_spikes": state["layer_spikes"] + tf.stack(counts, axis=1),
                "steps": state["steps"] + train.shape[0]}, stretch.readout

    def run(self, encode: Callable[[tf.Tensor, int], tf.Tensor], count: Any, chunk: int, state: State) -> State:
        """`count` chunks of `chunk` steps; `encode(start, steps)` gives the input of a chunk, `[steps, B, ...]`."""
        names = sorted(state)

        def body(i: tf.Tensor, *values: tf.Tensor) -> Any:
            after, _ = self.advance(encode(i * chunk, chunk), dict(zip(names, values)))
            return (i + 1, *[tf.ensure_shape(after[name], value.shape) for name, value in zip(names, values)])

        loop = (tf.constant(0), *[state[name] for name in names])
        done = tf.while_loop(lambda i, *_: i < count, body, loop, parallel_iterations=1)
        return dict(zip(names, done[1:]))

    def every_step(self, encode: Callable[[tf.Tensor, int], tf.Tensor], state: State) -> tf.Tensor:
        """V_t / t for every t, `[B, T, classes]`: the prediction had the window ended there; `state` is that before
        the first step."""
        names = sorted(state)

        def body(t: tf.Tensor, membranes: tf.TensorArray, *values: tf.Tensor) -> Any:
            after, v = self.advance(encode(t, 1), dict(zip(names, values)))
            return (t + 1, membranes.write(t, v[0]),
                    *[tf.ensure_shape(after[name], value.shape) for name, value in zip(names, values)])

        array = tf.TensorArray(tf.float32, size=self.timesteps)
        done = tf.while_loop(lambda t, *_: t < self.timesteps, body,
                             (tf.constant(0), array, *[state[name] for name in names]), parallel_iterations=1)
        steps = tf.reshape(tf.range(1, self.timesteps + 1, dtype=tf.float32), (-1, 1, 1))
        return tf.transpose(done[1].stack() / steps, (1, 0, 2))

    # ---- edges -------------------------------------------------------------------------------------------------

    def encoder_of(self, inputs: tf.Tensor, seed: Any) -> Callable[[tf.Tensor, int], tf.Tensor]:
        """What `run` asks for input: the model's own encoder on normalised images or event data `[B, ...]`."""
        layer, source = self.plan.encoder.layer, self.plan.into_encoder(inputs)
        key = layer.key(seed=seed)
        return lambda start, steps: layer.stretch(source, key, start, steps)

    @property
    def chunk(self) -> int:
        """Steps per chunk of a whole window: the largest divisor of T up to 8."""
        return max(k for k in range(1, min(self.timesteps, _MAX_CHUNK) + 1) if self.timesteps % k == 0)

    def outputs(self, state: State) -> dict[str, tf.Tensor]:
        """`scores` V_t/t `[B, classes]`, `label` `[B]`, `spikes` `[B]` and `layer_spikes` `[B, layers]` of a state."""
        scores = state["readout_membrane"] / tf.cast(tf.maximum(state["steps"], 1), tf.float32)
        scores, = self.plan.behind_readout(scores)
        return {"scores": scores, "label": tf.argmax(scores, -1, output_type=tf.int32),
                "spikes": tf.reduce_sum(state["layer_spikes"], -1), "layer_spikes": tf.identity(state["layer_spikes"])}


def _spikes_per_sample(spikes: tf.Tensor) -> tf.Tensor:
    """Of a train `[steps, B, ...]`: `[B]` int32, as float32 would lose count at 16.7 million, which a VGG reaches."""
    return tf.reduce_sum(tf.cast(spikes, tf.int32), [0, *range(2, len(spikes.shape))])
