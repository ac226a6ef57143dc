"""The window of a model as a pure function with explicit state: what every TensorFlow export is made of.

Only ordinary TensorFlow operations (no XLA kernel, which would tie a file to this machine), any batch, and state as
named tensors, so that a recording may be given at once or piece by piece with the same result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfspike.engine import plan as plans
from tfspike.errors import UserError
from tfspike.neurons import gradients
from tfspike.neurons.layers import SpikingLayer, WindowDropout

State = dict[str, tf.Tensor]

_MAX_CHUNK = 8  # steps folded into one convolution; more only takes memory


class Window:
    """Runs the part of a model between encoder and readout, some steps at a time.

    Args:
      model: a `tfspike.models.SpikingModel`.

    Raises:
      UserError: the model is not one window, or has more than one output.
    """

    def __init__(self, model: Any):
        plan = model.plan
        if plan is None:
            model._required_plan()  # says why it has none
        if len(plan.outputs) != 1 or len(plan.inputs) != 1:
            raise UserError(f"Only a model with one input and one output can be exported; {model.name!r} has "
                            f"{len(plan.inputs)} and {len(plan.outputs)}.")
        model.refuse_own_call("An export")
        why = plan.whole()
        if why is not None:
            raise UserError(f"Exports run a window step by step, and {why}. `model.export(folder)` writes Keras' own "
                            "SavedModel, which runs whole windows.")
        self.plan: plans.Plan = plan
        self.timesteps: int = plan.encoder.layer.timesteps
        self.layer_names = [call.name for call in plan.spiking]
        self.spike_shape = tuple(plan.encoder.outputs[0].shape[2:])
        self.num_classes = int(plan.readout.args[0].shape[-1])
        self._shapes = {_key(call): tuple(call.args[0].shape[2:]) for call in plan.spiking}
        self._shapes["readout_membrane"] = (self.num_classes,)

    # ---- state -------------------------------------------------------------------------------------------------

    def initial_state(self, batch: Any) -> State:
        """The state before the first step: membranes `[B, ...]`, `layer_spikes` `[B, layers]`, `steps` `[]`."""
        state = {name: tf.zeros((batch, *shape), tf.float32) for name, shape in self._shapes.items()}
        state["layer_spikes"] = tf.zeros((batch, len(self.layer_names)), tf.int32)
        return {**state, "steps": tf.constant(0)}

    def state_specs(self, batch: int | None = None) -> dict[str, tf.TensorSpec]:
        """The type of every tensor of the state."""
        specs = {name: tf.TensorSpec((batch, *shape), tf.float32, name) for name, shape in self._shapes.items()}
        specs["layer_spikes"] = tf.TensorSpec((batch, len(self.layer_names)), tf.int32, "layer_spikes")
        return {**specs, "steps": tf.TensorSpec((), tf.int32, "steps")}

    # ---- time --------------------------------------------------------------------------------------------------

    def advance(self, train: tf.Tensor, state: State) -> tuple[State, tf.Tensor]:
        """A few steps.

        Args:
          train: encoded input, `[k, B, ...]` with k known.
          state: before them.

        Returns:
          `(state after, V_t of the readout at each step [k, B, classes])`.
        """
        after, counts = dict(state), []

        def handler(call: plans.Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if isinstance(call.layer, SpikingLayer):
                spikes, after[_key(call)], count = _fire(tf.cast(args[0], call.layer.compute_dtype),
                                                         state[_key(call)], call.layer.neuron)
                counts.append(count)
                return spikes
            return args[0] if isinstance(call.layer, WindowDropout) else plans.plain(call, args, kwargs)

        train = tf.cast(train, self.plan.encoder.layer.compute_dtype)
        values = plans.run(self.plan.window, {id(self.plan.encoder.outputs[0]): train}, handler)
        current = tf.cast(values[id(self.plan.readout.args[0])], tf.float32)
        membrane, membranes = state["readout_membrane"], []
        for t in range(train.shape[0]):
            membrane = self.plan.readout.layer.leak * (membrane + current[t])
            membranes.append(membrane)
        after["readout_membrane"] = membrane
        after["layer_spikes"] = state["layer_spikes"] + tf.stack(counts, axis=1)
        after["steps"] = state["steps"] + train.shape[0]
        return after, tf.stack(membranes)

    def run(self, encode: Callable[[tf.Tensor, int], tf.Tensor], count: Any, chunk: int, state: State) -> State:
        """`count` chunks of `chunk` steps; `encode(start, steps)` gives the input of a chunk, `[steps, B, ...]`."""
        names = sorted(state)

        def body(i: tf.Tensor, *values: tf.Tensor) -> Any:
            after, _ = self.advance(encode(i * chunk, chunk), dict(zip(names, values)))
            return (i + 1, *[tf.ensure_shape(after[name], value.shape) for name, value in zip(names, values)])

        loop = (tf.constant(0), *[state[name] for name in names])
        done = tf.while_loop(lambda i, *_: i < count, body, loop, parallel_iterations=1)
        return dict(zip(names, done[1:]))

    def every_step(self, encode: Callable[[tf.Tensor, int], tf.Tensor], batch: Any) -> tf.Tensor:
        """V_t / t for every t, `[B, T, classes]`: the prediction had the window ended there."""
        state, names = self.initial_state(batch), sorted(self.state_specs())

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
        values = plans.run(self.plan.before, {id(self.plan.inputs[0]): inputs})
        layer, source = self.plan.encoder.layer, values[id(self.plan.encoder.args[0])]
        key = layer.key(seed=seed)
        return lambda start, steps: layer.encode(source, key, start, steps)

    @property
    def chunk(self) -> int:
        """Steps per chunk of a whole window: the largest divisor of T up to 8."""
        return max(k for k in range(1, min(self.timesteps, _MAX_CHUNK) + 1) if self.timesteps % k == 0)

    def outputs(self, state: State) -> dict[str, tf.Tensor]:
        """`scores` V_t/t `[B, classes]`, `label` `[B]`, `spikes` `[B]` and `layer_spikes` `[B, layers]` of a state."""
        scores = state["readout_membrane"] / tf.cast(tf.maximum(state["steps"], 1), tf.float32)
        values = plans.run(self.plan.after, {id(self.plan.readout.outputs[0]): scores})
        scores = values[id(self.plan.outputs[0])]
        return {"scores": scores, "label": tf.argmax(scores, -1, output_type=tf.int32),
                "spikes": tf.reduce_sum(state["layer_spikes"], -1), "layer_spikes": tf.identity(state["layer_spikes"])}


def _key(call: plans.Call) -> str:
    return f"{call.name}_membrane"


def _fire(currents: tf.Tensor, membrane: tf.Tensor, neuron: gradients.Neuron) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """`(spikes [k, B, ...], membrane, spikes per sample [B] int32)`."""
    train = []
    for t in range(currents.shape[0]):
        fired, membrane = gradients.fire(membrane, currents[t], neuron)
        train.append(fired)
    spikes = tf.stack(train)
    axes = [0, *range(2, len(spikes.shape))]
    # int32: float32 would lose count at 16.7 million spikes, which a VGG reaches
    return tf.cast(spikes, currents.dtype), membrane, tf.reduce_sum(tf.cast(spikes, tf.int32), axes)
