"""A functional Keras model whose window of time is run by the engine."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfspike import kernels
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
        if "engine" not in self._lazy():
            self._lazy()["engine"] = self._make_engine()
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
        return [call.layer.name for call in self._required_plan().spiking]

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

    def observe(self, inputs: tf.Tensor, training: bool | None = None,
                seed: int | tf.Tensor | None = None) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """The output and the spike count of every neuron, from one pass.

        Returns:
          `(output [B, classes], {layer name: spikes per window [B, ...]})`, in the order of the forward pass.
        """
        engine = self._required_engine()
        if training and not engine.can_train:
            return self._observe_layers(inputs, training, seed)
        plan = engine.plan
        values = plans.run(plan.before, {id(plan.inputs[0]): tf.convert_to_tensor(inputs)})
        source = next(x for x in keras.tree.flatten(plan.encoder.args) if isinstance(x, keras.KerasTensor))
        record = engine.run(values[id(source)], bool(training), seed, self.trainable_variables)
        values = plans.run(plan.after, {**values, id(plan.readout.outputs[0]): record.output})
        activity = {call.layer.name: state.count for call, state in zip(plan.spiking, record.states)}
        outputs = [values[id(output)] for output in plan.outputs]
        return outputs[0] if len(outputs) == 1 else outputs, activity

    def call_layers(self, inputs: tf.Tensor, training: bool | None = None,
                    seed: int | tf.Tensor | None = None) -> tf.Tensor:
        """The same, layer by layer with whole windows in memory: slower, larger, and easy to read."""
        return self._observe_layers(inputs, training, seed)[0]

    def _observe_layers(self, inputs: tf.Tensor, training: bool | None,
                        seed: Any) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        plan = self._required_plan()
        activity: dict[str, tf.Tensor] = {}

        def handler(call: plans.Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if call is plan.encoder:
                return call.layer(*args, training=training, seed=seed)
            if isinstance(call.layer, (WindowDropout, ThresholdNorm)):
                return call.layer(*args, training=training)
            if isinstance(call.layer, SpikingLayer):
                spikes, state = call.layer(*args, return_state=True)
                activity[call.layer.name] = tf.stop_gradient(state.count)
                return spikes
            return plans.plain(call, args, kwargs)

        values = plans.run((*plan.before, plan.encoder, *plan.window, plan.readout, *plan.after),
                           {id(plan.inputs[0]): tf.convert_to_tensor(inputs)}, handler)
        outputs = [values[id(output)] for output in plan.outputs]
        return (outputs[0] if len(outputs) == 1 else outputs), activity

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

    def _make_engine(self) -> Engine | None:
        plan = self.plan
        if plan is None or any(call.layer.trainable_variables for call in plan.before):
            return None  # the engine passes no gradient to its input
        rules = {call.layer.gradient for call in (*plan.spiking, *plan.norms)}
        if len(rules) > 1:
            return None
        rule = rules.pop()
        if rule == "rate" and not plan.is_linear:
            return None  # one pass through means is exact for linear synapses alone
        return Engine(plan, rule, self._chunk, self._kernel)

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
