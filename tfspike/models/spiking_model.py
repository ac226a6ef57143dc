"""A functional Keras model whose window of time is run by the engine."""

from __future__ import annotations

import warnings
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
        return self._as_declared([values[id(output)] for output in plan.outputs]), activity

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

    def export(self, filepath: Any, format: str = "tf_saved_model", verbose: bool | None = None,
               input_signature: Any = None, **kwargs: Any) -> Any:
        """`keras.Model.export` with the plain kernel, because a compiled one would tie the file to a machine.

        `tfspike.export.save` writes files that do more, and runs them before it is content with them.

        Raises:
          UserError: a file of that format would not load, or not compute what the model does.
        """
        self._check_export(format)
        if format == "onnx" and input_signature is None:  # Keras' own way wants a model that was called
            input_signature = [tf.TensorSpec(x.shape, x.dtype, x.name) for x in self.inputs]
        kernel = self._kernel
        self.configure_engine(self._chunk, "plain")
        try:
            return super().export(filepath, format, verbose, input_signature, **kwargs)
        finally:
            self.configure_engine(self._chunk, kernel)

    def _check_export(self, format: str) -> None:
        """Refuses what Keras would write and call an artifact."""
        if format == "openvino":
            why, other = "OpenVINO rounds to 16 bits unless told not to, and so to other spikes", "onnx"
        elif format not in ("onnx", "litert"):
            return
        elif any(getattr(layer, "draws", False) for layer in self.layers):
            why, other = "the format has no counterpart of the random numbers that the encoder draws", format
        elif any(layer.compute_dtype != "float32" for layer in self.layers):
            why, other = "the format computes in float32 alone", format
        else:
            return
        raise UserError(f"format={format!r} would not compute what {self.name!r} does: {why}. python -m tfspike.export "
                        f"--workdir=RUN --format={other} (in Python: tfspike.export.save) writes a file that does, and "
                        "runs it first.")

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
