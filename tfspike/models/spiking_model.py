"""A functional Keras model whose window of time is run by the engine."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import tensorflow as tf

from tfspike import callbacks, diagnosis, kernels
from tfspike import plan as plans
from tfspike.checks import check_choice, check_count
from tfspike.engine import Engine
from tfspike.errors import UserError
from tfspike.layers import SpikingLayer, WindowDropout
from tfspike.normalisation import ThresholdNorm


@keras.saving.register_keras_serializable("tfspike")
class SpikingModel(keras.Model):
    """`SpikingModel(inputs, outputs)`: a functional model with one encoder and one readout, computed in chunks of time.

    It is an ordinary Keras model in every other way: `fit`, `predict`, `summary`, `.keras` files. `call_layers` is the
    readable road, layer by layer; both give the same spikes and the same gradients (to rounding). A graph that is not
    one window between one encoder and one readout is computed layer by layer, and `engine` is None.

    Gradients are those of the weights. `call_layers` also has those of the input, for encoders that pass them on
    (`DirectEncoder`). An output that is a spike train is time-major: call such a model, as `predict` joins its batches
    along the first axis.
    """

    _chunk: int | None = None
    _kernel: str = "auto"

    @property
    def plan(self) -> plans.Plan | None:
        """The model's layer calls in order; None where the graph has no single window."""
        if "plan" not in self._lazy():
            self._lazy()["plan"] = plans.trace(self)
        return self._lazy()["plan"]

    @property
    def engine(self) -> Engine | None:
        """What runs the window; None where the model is computed layer by layer."""
        if self.plan is None or any(getattr(call.layer, "trainable_variables", ()) for call in self.plan.before):
            return None  # the engine passes no gradient to its input; layers may be frozen and freed at any time
        if "engine" not in self._lazy():
            self._lazy()["engine"] = self._make_engine(self.plan)
        return self._lazy()["engine"]

    def configure_engine(self, chunk: int | None = None, kernel: str = "auto") -> None:
        """Sets steps per chunk (None: by size) and the kernel ("auto", "plain", "xla"); not the values."""
        if chunk is not None:
            check_count("chunk", chunk)
        self._chunk, self._kernel = chunk, check_choice("kernel", kernel, kernels.KERNELS)
        self._lazy().pop("engine", None)

    @property
    def timesteps(self) -> int:
        """T, steps in the window."""
        return self._required_plan().encoder.layer.timesteps

    @property
    def spiking_layers(self) -> list[str]:
        """Names of the layers whose neurons fire, in the order of the forward pass."""
        return [call.name for call in self._required_plan().spiking]

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: Any = None,
             seed: int | tf.Tensor | None = None) -> tf.Tensor:
        """Images `[B, H, W, C]` (or spike trains `[B, T, ...]`) to V_T / T `[B, classes]`.

        Args:
          inputs: what the encoder takes.
          training: fresh noise and dropout; advances the step counters.
          mask: not used.
          seed: keys the encoder's noise in inference; 0 unless given, so that `predict` repeats.
        """
        if self.plan is None:
            return super().call(inputs, training=training, mask=mask)
        if self.engine is None:
            return self.call_layers(inputs, training=training, seed=seed)
        return self.observe(inputs, training=training, seed=seed)[0]

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """`keras.Model.fit`, with one warning if a layer is silent or no gradient reaches any weight; with
        `tfspike.Diagnosis` among the callbacks, that one says more."""
        args, kwargs = callbacks.watched(self, args, kwargs)
        return super().fit(*args, **kwargs)

    def train_step(self, data: Any) -> Any:
        """`keras.Model.train_step`; keeps what `activity_statistics` tells, but under a distribution strategy."""
        heard = self._lazy()["heard"] = dict[str, tf.Tensor]()
        try:
            logs = super().train_step(data)
        finally:
            del self._lazy()["heard"]
        if heard and not tf.distribute.has_strategy():
            stats = diagnosis.layer_statistics(heard, self.timesteps, [], [])
            if "statistics" not in self._lazy():
                with tf.init_scope():  # outlives the graph that is being traced
                    self._lazy()["statistics"] = list(stats), tf.Variable(tf.zeros(len(stats)), trainable=False)
            self._lazy()["statistics"][1].assign(tf.stack(list(stats.values())))
        return logs

    def activity_statistics(self) -> dict[str, float]:
        """What `tfspike.diagnosis.layer_statistics` counts of every spiking layer, of the last batch of `fit` or
        `train_on_batch`; {} before the first."""
        names, kept = self._lazy().get("statistics", ((), None))
        return {} if kept is None else dict(zip(names, kept.numpy().tolist()))

    def observe(self, inputs: tf.Tensor, training: bool | None = None,
                seed: int | tf.Tensor | None = None) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """The output and the spike count of every neuron, from one pass.

        Returns:
          `(output [B, classes], {layer name: spikes per window [B, ...]})`, in the order of the forward pass.
        """
        engine = self._required_engine()
        if training and not engine.can_train:
            return self._observe_layers(inputs, training, seed)
        plan, around = engine.plan, plans.in_phase(training)
        values = plans.run(plan.before, {id(plan.inputs[0]): self._one_input(inputs)}, around)
        source = next(x for x in keras.tree.flatten(plan.encoder.args) if isinstance(x, keras.KerasTensor))
        record = engine.run(values[id(source)], bool(training), seed, self.trainable_variables)
        values = plans.run(plan.after, {**values, id(plan.readout.outputs[0]): record.output}, around)
        activity = {call.name: state.count for call, state in zip(plan.spiking, record.states)}
        self._hear(activity)
        return self._as_declared([values[id(output)] for output in plan.outputs]), activity

    def call_layers(self, inputs: tf.Tensor, training: bool | None = None,
                    seed: int | tf.Tensor | None = None) -> tf.Tensor:
        """The same, layer by layer with whole windows in memory: slower, larger, and easy to read."""
        return self._observe_layers(inputs, training, seed)[0]

    def _observe_layers(self, inputs: tf.Tensor, training: bool | None,
                        seed: Any) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        plan, around = self._required_plan(), plans.in_phase(training)
        activity: dict[str, tf.Tensor] = {}

        def handler(call: plans.Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if call is plan.encoder:
                return call.layer(*args, training=training, seed=seed)
            if isinstance(call.layer, (WindowDropout, ThresholdNorm)):
                return call.layer(*args, training=training)
            if isinstance(call.layer, SpikingLayer):
                spikes, state = call.layer(*args, return_state=True)
                activity[call.name] = tf.stop_gradient(state.count)
                return spikes
            return around(call, args, kwargs)

        values = plans.run((*plan.before, plan.encoder, *plan.window, plan.readout, *plan.after),
                           {id(plan.inputs[0]): self._one_input(inputs)}, handler)
        self._hear(activity)
        return self._as_declared([values[id(output)] for output in plan.outputs]), activity

    def _hear(self, activity: dict[str, tf.Tensor]) -> None:
        """Gives spike counts to the `train_step` that asked for this pass, if one did."""
        self._lazy().get("heard", {}).update(activity)

    def _one_input(self, inputs: Any) -> tf.Tensor:
        """The one input as the graph declares it: out of a list or dict, of its type, with an axis for the channel."""
        declared, parts = self._required_plan().inputs[0], keras.tree.flatten(inputs)
        if isinstance(inputs, dict) and len(parts) != 1:
            raise UserError(f"The model takes one input. Received: {len(parts)}.")
        found = parts[0] if isinstance(inputs, dict) or len(parts) == 1 else inputs  # rows in a list are one tensor
        found = tf.cast(tf.convert_to_tensor(found), declared.dtype)
        if found.shape.rank == len(declared.shape) + 1 and found.shape[-1] == 1:
            found = found[..., 0]
        elif found.shape.rank == len(declared.shape) - 1 and declared.shape[-1] == 1:
            found = found[..., tf.newaxis]
        if not tf.TensorShape(declared.shape).is_compatible_with([None, *found.shape[1:]]):
            raise UserError(f"The model takes inputs of shape {_written(declared.shape)}. "
                            f"Received: shape {tuple(found.shape)}.")
        return found

    def _as_declared(self, outputs: list[tf.Tensor]) -> Any:
        """Outputs in the structure that the model was made with: one, a list or a dict."""
        return keras.tree.pack_sequence_as(self.output, outputs)

    def export(self, *args: Any, **kwargs: Any) -> Any:
        """`keras.Model.export` with the plain kernel, because a compiled one would tie the file to a machine.

        `tfspike.export.save` writes files that do more, and runs them before it is content with them.
        """
        kernel = self._kernel
        self.configure_engine(self._chunk, "plain")
        try:
            return super().export(*args, **kwargs)
        finally:
            self.configure_engine(self._chunk, kernel)

    def _make_engine(self, plan: plans.Plan) -> Engine | None:
        rules = {call.layer.gradient: call.name for call in (*plan.spiking, *plan.norms)}
        bent = next((call.name for call in plan.window if not plans.is_linear(call.layer)), None)
        if len(rules) > 1:
            why = " and ".join(f"{name} has gradient={rule!r}" for rule, name in rules.items())
        elif rules.keys() == {"rate"} and bent is not None:
            why = f"{bent} is not linear, and gradient='rate', one pass through means, is exact for linear layers alone"
        else:
            return Engine(plan, next(iter(rules)), self._chunk, self._kernel)
        warnings.warn(f"{self.name} is computed layer by layer, which takes more time and memory: {why}.", stacklevel=2)
        return None

    def _required_plan(self) -> plans.Plan:
        if self.plan is None:
            raise UserError("This model is not one window between one encoder and one Readout (with spiking layers, "
                            "OverTime, merges and WindowDropout between them), so it has no time steps to look at.")
        return self.plan

    def _required_engine(self) -> Engine:
        if self.engine is None:
            self._required_plan()
            raise UserError("Spike counts come from the engine, which needs the same `gradient` in all spiking layers "
                            "and normalisations, no trainable layer in front of the encoder and, for \"rate\", "
                            "linear synapses.")
        return self.engine

    def _lazy(self) -> dict[str, Any]:
        # Keras tracks attributes of a model; a plan refers to layers that are tracked already
        return self.__dict__.setdefault("_derived", {})


def _written(shape: Any) -> str:
    return f"[{', '.join(['B', *map(str, shape[1:])])}]"
