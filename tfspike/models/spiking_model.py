"""A functional Keras model whose window of time is run by the engine."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import tensorflow as tf

from tfspike.checks import check_choice, check_count
from tfspike.engine import kernels
from tfspike.engine import plan as plans
from tfspike.engine.engine import Engine
from tfspike.engine.events.choice import Choice, choose
from tfspike.errors import UserError
from tfspike.models import callbacks, constants, edges, losses, nesting, windows
from tfspike.models.traced_once import TracedOnce
from tfspike.neurons.encoders import (
    Encoder,
    SpikeInput,
    largest_of,
    nan_where_not_finite,
    refuse_gradient,
    warn_of_values,
)
from tfspike.neurons.layers import SpikingLayer


@keras.saving.register_keras_serializable("tfspike")
class SpikingModel(TracedOnce):
    """`SpikingModel(inputs, outputs)`: a functional model with one encoder and one readout, computed in chunks of time.

    It is an ordinary Keras model in every other way: `fit`, `predict`, `summary`, `.keras` files. `call_layers` is the
    reference path, layer by layer; both give the same spikes and the same gradients (to rounding). What the fast path
    would not do as it is written (a layer with a `call` of its own, one that mixes steps, a graph without one window
    between one encoder and one readout) is computed layer by layer, and `engine` is None: one warning names the layer.
    Functional and sequential models on its spike trains are as if their layers stood in their place.
    `tfspike.layers.SpikingLayer` shows how neurons of one's own keep the fast path.

    A constant of a layer that is assigned later, such as `layer.threshold = 0.5`, counts from the next call on, in
    `fit`, `evaluate` and `predict` from the next batch on. They are traced anew then, which takes seconds: a callback
    should change one at the beginning of an epoch.

    Gradients are those of the weights. `call_layers` also has those of the input, for encoders that pass them on
    (`DirectEncoder`). An output that is a spike train is time-major, `[T, B, ...]`.

    Raises:
      UserError: there is no graph from inputs to outputs.
    """

    _is_made_here = True
    _chunk: int | None = None
    _kernel: str = "auto"

    def __init__(self, inputs: Any = None, outputs: Any = None, name: str | None = None, **kwargs: Any):
        if inputs is None or outputs is None:
            raise UserError(f"{type(self).__name__} is a functional model, made of inputs and outputs, and was given "
                            "none. A model that calls its layers in a `call` of its own is a subclass of keras.Model: "
                            "the layers of tfspike work there too, layer by layer.")
        super().__init__(inputs, outputs, name=name, **kwargs)

    @property
    def plan(self) -> plans.Plan | None:
        """The model's layer calls in order; None where the graph has no single window."""
        found = self._read()
        return found if isinstance(found, plans.Plan) else None

    def required_plan(self) -> plans.Plan:
        """`plan`; raises UserError, which says why, where there is none."""
        found = self._read()
        if isinstance(found, str):
            raise UserError(f"{self.name} is not one window between one encoder and one Readout, so it has no time "
                            f"steps to look at: {found}.")
        return found

    @property
    def engine_options(self) -> tuple[int | None, str]:
        """`chunk` and `kernel`, as `configure_engine` was given them."""
        return self._chunk, self._kernel

    @property
    def engine(self) -> Engine | None:
        """What runs the window; None where the model is computed layer by layer, which is said once, with the cause."""
        found = self._read()
        self._follow_constants()
        why = plans.hindrance(found) if isinstance(found, plans.Plan) else found
        if isinstance(why, str) or isinstance(found, str):
            self._say(f"{self.name} is computed layer by layer, which takes more time and memory: {why}.")
            return None
        if "engine" not in self._lazy():
            self._lazy()["engine"] = Engine(found, found.spiking[0].layer.gradient, self._chunk, self._kernel)
        return self._lazy()["engine"]

    def configure_engine(self, chunk: int | None = None, kernel: str = "auto") -> None:
        """Sets how the window is computed; not the values, but for float32 sums in another order.

        Args:
          chunk: steps per chunk; None chooses by size.
          kernel: "dense" convolutions, for which "plain" and "xla" name the kernel of the neurons; "events" adds rows
            of weights where spikes are, on CPUs, and takes numba (`pip install numba`); "auto" is "dense",
            until `choose_kernel` is asked.
        """
        if chunk is not None:
            check_count("chunk", chunk)
        self._chunk, self._kernel = chunk, check_choice("kernel", kernel, kernels.KERNELS)
        self._lazy().pop("engine", None)

    def choose_kernel(self, inputs: Any, training: bool = True) -> Choice:
        """Takes `kernel="events"` or "dense" from here on: the faster one, for such inputs and these weights, on this
        machine. What it takes to measure them is about a second; where it cannot be "events", nothing is measured.

        Args:
          inputs: a batch of what the model takes; its size counts, and its first images are computed.
          training: whether the model will be trained.

        Returns:
          The kernel and the reason, in words.
        """
        engine = self.engine
        if engine is None:
            return Choice("dense", "computed layer by layer")
        into = engine.plan.into_encoder(self._one_input(inputs), plans.in_phase(False))
        found = choose(engine.plan, engine.gradient, into, training)
        self.configure_engine(self._chunk, found.kernel)
        return found

    @property
    def is_spiking(self) -> bool:
        """True: its neurons fire, over a window of time steps."""
        return True

    @property
    def timesteps(self) -> int:
        """T, steps in the window."""
        return self.required_plan().encoder.layer.timesteps

    @property
    def spiking_layers(self) -> list[str]:
        """Names of the layers whose neurons fire, in the order of the forward pass."""
        return [call.name for call in self.required_plan().spiking]

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: Any = None,
             seed: int | tf.Tensor | None = None, counts: bool = False, count_gradients: bool = True) -> Any:
        """Images `[B, H, W, C]` (or spike trains `[B, T, ...]`) to V_T / T `[B, classes]`.

        Args:
          inputs: what the encoder takes.
          training: fresh noise and dropout; advances the step counters.
          mask: not used.
          seed: keys the encoder's noise in inference; 0 unless given, so that `predict` repeats.
          counts: return what `observe` returns.
          count_gradients: as of `observe`.
        """
        engine = self.engine
        if self.plan is None and not counts and seed is None:
            return super().call(inputs, training=training, mask=mask)
        if self.plan is not None and training and nesting.has_weights_in_front(inputs):
            encoder = self.plan.encoder.layer
            if encoder.refuses_gradient:
                inputs = nesting.watched(inputs, lambda: self._say(nesting.cause_of_nan(self.name, encoder)))
            elif engine is not None:
                self._say(nesting.by_layers(self.name))
                engine = None
        output, activity = self._observe(engine, inputs, training, seed, counts and count_gradients)
        return (output, activity) if counts else output

    @edges.in_a_sentence()
    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """`keras.Model.fit`; gives arrays, tensors, generators and data sets `x` the axis for the channel that the
        model's inputs have, refuses those of another shape, and warns of an array that holds NaN, or unscaled pixels
        where an encoder codes them.

        It also warns, once, of a loss that takes scores for probabilities, and if other data than arrays are unscaled,
        a layer is silent, no gradient reaches any weight, or the loss or a weight is no finite number;
        `tfspike.Diagnosis` among the callbacks says more.
        """
        self._warn_of_loss()
        args, kwargs, not_finite = self._looked_at(keras.Model.fit, args, kwargs)
        if not not_finite:
            args, kwargs = callbacks.watched(self, self._lazy(), args, kwargs, scale_is_known=not_finite is not None)
        return super().fit(*args, **kwargs)

    @edges.in_a_sentence()
    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """`keras.Model.evaluate`; looks at `x` as `fit` does."""
        args, kwargs, _ = self._looked_at(keras.Model.evaluate, args, kwargs)
        return super().evaluate(*args, **kwargs)

    @edges.in_a_sentence()
    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """`keras.Model.predict`; looks at `x` as `fit` does. Outputs that are spike trains are `[T, N, ...]`."""
        args, kwargs, _ = self._looked_at(keras.Model.predict, args, kwargs)
        return self._swapped(super().predict(*args, **kwargs))

    def train_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """`keras.Model.train_on_batch`."""
        return super().train_on_batch(self._as_taken(x), *args, **kwargs)

    def test_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """`keras.Model.test_on_batch`."""
        return super().test_on_batch(self._as_taken(x), *args, **kwargs)

    def predict_on_batch(self, x: Any) -> Any:
        """`keras.Model.predict_on_batch`."""
        return self._swapped(super().predict_on_batch(self._as_taken(x)))

    def predict_step(self, data: Any) -> Any:
        """`keras.Model.predict_step`; spike trains are batch-major, as Keras joins batches along the first axis."""
        return self._swapped(super().predict_step(data))

    def _swapped(self, outputs: Any) -> Any:
        """Outputs with the axes of time and batch of spike trains exchanged."""
        trains = any(declared.shape[0] is not None for declared in self.outputs)
        if not trains or type(self).call is not SpikingModel.call or self.inputs[0].shape[0] is not None:
            return outputs
        return edges.with_time_exchanged(outputs, self.output)

    def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None,
                     training: bool = True) -> Any:
        """`keras.Model.compute_loss`.

        Raises:
          UserError: there are no targets; the loss compares numbers, and they are labels or of another number than the
            outputs; or they are `[B, T, ...]` and the output is a train `[T, B, ...]`.
        """
        batch = losses.compared(self._loss, y, y_pred, self)
        losses.refuse_targets(batch)
        if self.inputs[0].shape[0] is None:
            losses.refuse_swapped_time(batch)
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def _warn_of_loss(self) -> None:
        if self.plan is None or self.plan.after:
            return
        if any(map(losses.takes_probabilities, keras.tree.flatten(self._loss))):
            self._say(losses.SCORES_FOR_PROBABILITIES)

    @property
    def _loss(self) -> Any:
        """What `compile` was given; Keras has a method in its place where that was none."""
        return vars(self).get("loss")

    def _looked_at(self, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, bool | None]:
        """Arguments of `fit`, `evaluate` or `predict` with data in the shape that the model declares, and
        `warn_of_values` of `x` where the encoder codes it as it is."""
        if self.plan is None:
            return args, kwargs, None
        if type(self).call is SpikingModel.call:
            bound = edges.declared_arguments(method, self, args, kwargs, self.plan)
            args, kwargs = bound.args[1:], bound.kwargs
            losses.refuse_unknown_classes(self._loss, bound.arguments.get("y"), self.outputs)
        if self.plan.before:
            return args, kwargs, None
        x = kwargs.get("x", args[0] if args else None)
        return args, kwargs, warn_of_values(x, isinstance(self.plan.encoder.layer, SpikeInput))

    def _as_taken(self, x: Any) -> Any:
        if self.plan is None or type(self).call is not SpikingModel.call:
            return x
        return edges.declared_data(x, self.plan)

    def train_step(self, data: Any) -> Any:
        """`keras.Model.train_step`; keeps what `activity_statistics` tells, but under a distribution strategy.

        Raises:
          UserError: a layer in front of the encoder is trained, and no gradient comes through the encoder.
        """
        if self.plan is not None:
            self.plan.refuse_trained_front()  # a graph would train it with NaN
        if tf.distribute.has_strategy():  # whose replicas share what is noted here, and have a part of the counts each
            return super().train_step(data)
        heard = self._lazy()["heard"] = dict[str, tf.Tensor]()
        try:
            if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):  # needs its replica
                logs = super().train_step(data)
            else:  # out of the only replica: there optimisers sum gradients, in a way that holds this graph for good
                replica = tf.distribute.get_replica_context()
                logs = replica.merge_call(lambda _: super(SpikingModel, self).train_step(data))
        finally:
            del self._lazy()["heard"]
        if heard:
            callbacks.keep_statistics(self._lazy(), heard, self.timesteps)
        return logs

    def activity_statistics(self) -> dict[str, float]:
        """What `tfspike.diagnosis.layer_statistics` counts of every spiking layer, of the last batch of `fit` or
        `train_on_batch`, and the largest |x| that came to the encoder, `input/largest`; {} before the first."""
        return callbacks.kept_statistics(self._lazy())

    def observe(self, inputs: tf.Tensor, training: bool | None = None, seed: int | tf.Tensor | None = None,
                count_gradients: bool = True) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """The output and the spike count of every neuron, from one pass.

        Counts pass gradient as outputs do, under both gradients of the neurons, so that spikes can be penalised: dL/dN
        adds to dL/ds of every step. `count_gradients=False` saves the time that this takes in the backward pass.

        Raises:
          UserError: the model's class has a `call` of its own; or, in training in a graph, as `train_step`.

        Returns:
          `(output [B, classes], {layer name: spikes per window [B, ...]})`, in the order of the forward pass.
        """
        self.refuse_own_call("`observe`")
        if self.plan is not None:
            inputs = self._one_input(inputs)
            if training and not tf.executing_eagerly():
                self.plan.refuse_trained_front()
        return self(inputs, training=training, seed=seed, counts=True, count_gradients=count_gradients)

    def call_layers(self, inputs: tf.Tensor, training: bool | None = None,
                    seed: int | tf.Tensor | None = None) -> tf.Tensor:
        """The same, layer by layer with whole windows in memory: slower, larger, and easy to read."""
        self.required_plan()
        return self._observe_layers(inputs, training, seed)[0]

    def with_timesteps(self, timesteps: int) -> SpikingModel:
        """The same network, of the same layers, weights and counters, over a window of `timesteps` steps: training one
        trains both. Only the encoder is another.

        Raises:
          UserError: the model takes spike trains, which have a length of their own.
        """
        return windows.of_length(self, timesteps)

    def _observe(self, engine: Engine | None, inputs: Any, training: bool | None, seed: Any,
                 counted: bool) -> tuple[Any, dict[str, tf.Tensor]]:
        if self.plan is not None and not training:
            inputs = self._one_input(inputs)
            if inputs.shape[0] == 0:  # with which TensorFlow's convolutions fail on CPUs
                of_one = self._observe(engine, tf.zeros([1, *inputs.shape[1:]], inputs.dtype), training, seed, counted)
                return keras.tree.map_structure(lambda x: x[:0], of_one)
        if engine is not None and training and not engine.can_train:
            self._say(f"{self.name} is trained layer by layer, which takes more time and memory: gradient='event' with "
                      "normalisations needs a window of at most 8 steps; take gradient='rate' or fewer steps.")
        if engine is None or training and not engine.can_train:
            output, activity = self._observe_layers(inputs, training, seed)
            self._hear(activity)
            return output, activity if counted else {name: tf.stop_gradient(x) for name, x in activity.items()}
        refusal = engine.refusal_of_events(bool(training))
        if refusal is not None:
            self._say(f"{self.name} is computed by dense convolutions in place of kernel=\"events\": {refusal}.")
        plan, around = engine.plan, plans.in_phase(training)
        inputs = self._one_input(inputs)
        into = plan.into_encoder(inputs, around)
        record = engine.run(into, bool(training), seed, self.trainable_variables, counted)
        for call, penalty in zip(engine.penalised, record.penalties):
            call.layer.add_loss(penalty)
        # Of the model's input, not the encoder's: a tape may watch frozen weights in between
        output = nan_where_not_finite(record.output, into)
        output = refuse_gradient(output, inputs, nesting.INSTEAD)
        activity = {call.name: state.count for call, state in zip(plan.spiking, record.states)}
        self._hear(activity)
        self._hear_input(plan.encoder.layer, into)
        return self._as_declared(plan.behind_readout(output, around)), activity

    def _observe_layers(self, inputs: Any, training: bool | None, seed: Any) -> tuple[Any, dict[str, tf.Tensor]]:
        """Layer by layer; of any graph, with or without a window."""
        plan = self.plan
        symbols, calls, ends = (plan.inputs, plan.calls, plan.outputs) if plan is not None else plans.calls_of(self)
        given = [self._one_input(inputs)] if plan is not None else [
            tf.cast(tf.convert_to_tensor(x), symbol.dtype) for x, symbol in zip(keras.tree.flatten(inputs), symbols)]
        around = plans.in_phase(training) if plan is not None else plans.as_keras(training)
        activity: dict[str, tf.Tensor] = {}
        into: list[tf.Tensor] = []  # the encoder of a plan, which is called once

        def handler(call: plans.Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if plan is not None and call is plan.encoder:
                into.extend(args)
                self._hear_input(call.layer, args[0])
            if isinstance(call.layer, Encoder) and seed is not None and kwargs.get("seed") is None:
                kwargs = {**kwargs, "seed": seed}
            if plan is not None and call is plan.encoder and call.layer.refuses_gradient and not plan.trained_front:
                # only of the model's input: a tape watches frozen weights in between, too
                train = around(call, tuple(map(tf.stop_gradient, args)), kwargs)
                return call.layer.with_gradient(train, given[0])
            outputs = around(call, args, kwargs)
            if isinstance(call.layer, SpikingLayer):
                spikes = tf.cast(keras.tree.flatten(outputs)[0], tf.float32)  # a state may follow
                taken_back = tf.stop_gradient(2.0 * tf.nn.relu(-spikes))  # those of -1 are spikes, too
                activity[call.name] = tf.reduce_sum(spikes + taken_back, axis=0)
            return nan_where_not_finite(outputs, *into) if plan is not None and call is plan.readout else outputs

        values = plans.run(calls, dict(zip(symbols, given)), handler)
        return self._as_declared([values[end] for end in ends]), activity

    def refuse_own_call(self, what: str) -> None:
        """Raises UserError where the model's class has a `call` of its own, which `what` would not run."""
        if type(self).call is not SpikingModel.call:
            raise UserError(f"{what} runs the layers of a model, and {type(self).__name__} has a `call` of its own: "
                            "put that code into a layer behind the Readout of a SpikingModel.")

    def _hear(self, activity: dict[str, tf.Tensor]) -> None:
        """Gives spike counts to the `train_step` that asked for this pass, if one did."""
        self._lazy().get("heard", {}).update(activity)

    def _hear_input(self, encoder: Encoder, inputs: tf.Tensor) -> None:
        """The same of the size of pixels, in front of an encoder that codes them."""
        if "heard" in self._lazy() and not isinstance(encoder, SpikeInput):
            self._hear({callbacks.LARGEST_INPUT: largest_of(inputs)})

    def _one_input(self, inputs: Any) -> tf.Tensor:
        return edges.one_input(inputs, self.required_plan())

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
        edges.refuse_format(self, format)
        if format == "onnx" and input_signature is None:  # Keras' own way wants a model that was called
            input_signature = [tf.TensorSpec(x.shape, x.dtype, x.name) for x in self.inputs]
        kernel = self._kernel
        self.configure_engine(self._chunk, "plain")
        try:
            return super().export(filepath, format, verbose, input_signature, **kwargs)
        finally:
            self.configure_engine(self._chunk, kernel)

    def _follow_constants(self) -> None:
        """Drops an engine that was made of constants that have been changed since, such as `layer.threshold`."""
        now = constants.of(self, self._lazy())
        if self._lazy().setdefault("constants", now) != now:
            self._lazy()["constants"] = now
            self._lazy().pop("engine", None)

    def _read(self) -> plans.Plan | str:
        if "plan" not in self._lazy():
            self._lazy()["plan"] = plans.read(self)
        return self._lazy()["plan"]

    def _say(self, what: str) -> None:
        """Warns of this, once for a model."""
        said = self._lazy().setdefault("said", set())
        if what not in said:
            said.add(what)
            warnings.warn(what, stacklevel=3)
