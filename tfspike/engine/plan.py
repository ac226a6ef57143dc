"""A functional Keras model as an ordered list of layer calls, split where the window of time begins and ends.

Everything that runs a model in another way than layer by layer (the chunked engine, analysis, export) walks this list
instead of the model's own `call`, with a handler that says what to do at each layer.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import keras

from tfspike.engine import known
from tfspike.engine.calls import Call as Call  # handed on
from tfspike.engine.calls import calls_of as calls_of
from tfspike.errors import UserError
from tfspike.neurons.encoders import Encoder
from tfspike.neurons.layers import OpenNeurons, Readout, SpikingLayer
from tfspike.neurons.normalisation import ThresholdNorm
from tfspike.neurons.over_time import OverTime, WindowDropout, with_layers_inside


def _said(call: Call) -> str:
    """A call by its name and the kind of its layer."""
    return f"{call.name} ({type(call.layer).__name__})"


Values = dict[keras.KerasTensor, Any]  # what symbolic tensors stand for
Handler = Callable[[Call, tuple[Any, ...], dict[str, Any]], Any]


def in_phase(training: bool | None) -> Handler:
    """The handler that calls the layer, in training or in inference.

    A graph holds every layer's default in place of that: `training=True` of Keras' augmentation, for one, and nothing
    where the default is None.
    """

    def handler(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if "training" in inspect.signature(call.layer.call).parameters:
            kwargs = {**kwargs, "training": bool(training)}
        return call.layer(*args, **kwargs)

    return handler


def as_keras(training: bool | None) -> Handler:
    """The handler that calls the layer as a functional Keras model does: without a phase, as the graph says."""
    told = in_phase(training)
    return told if training is not None else lambda call, args, kwargs: call.layer(*args, **kwargs)


plain = in_phase(False)  # what stands in a window does the same in both phases, but for dropout and normalisation


def run(calls: Iterable[Call], values: Values, handler: Handler = plain) -> Values:
    """Runs calls in order.

    Args:
      calls: part of a plan.
      values: of every symbolic tensor known so far; not changed.
      handler: what to do at each call, `(call, args, kwargs) -> output`.

    Returns:
      `values` with the outputs of the calls added.
    """
    values = dict(values)

    def value(x: Any) -> Any:
        return values[x] if isinstance(x, keras.KerasTensor) else x

    for call in calls:
        args, kwargs = keras.tree.map_structure(value, (call.args, call.kwargs))
        outputs = handler(call, args, kwargs)
        values.update(zip(call.outputs, keras.tree.flatten(outputs)))
    return values


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The calls of a model with one encoder and one readout.

    Attributes:
      inputs: the model's symbolic inputs.
      outputs: its symbolic outputs.
      before: calls in front of the encoder.
      encoder: the encoder's call.
      window: calls on spike trains, in the order of the forward pass.
      readout: the readout's call.
      after: calls behind the readout.
    """

    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    before: tuple[Call, ...]
    encoder: Call
    window: tuple[Call, ...]
    readout: Call
    after: tuple[Call, ...]

    @property
    def spiking(self) -> list[Call]:
        """Calls of spiking layers, in the order of the forward pass."""
        return [call for call in self.window if isinstance(call.layer, SpikingLayer)]

    @property
    def norms(self) -> list[Call]:
        """Calls of normalisations that are not frozen, in the order of the forward pass; in training they look at a
        whole window."""
        return [call for call in self.window if isinstance(call.layer, ThresholdNorm) and call.layer.trainable]

    @property
    def dropouts(self) -> list[Call]:
        """Calls of dropout layers, in the order of the forward pass."""
        return [call for call in self.window if isinstance(call.layer, WindowDropout)]

    @property
    def calls(self) -> tuple[Call, ...]:
        """All calls, in the order of the forward pass."""
        return (*self.before, *self.ours, *self.after)

    @property
    def ours(self) -> tuple[Call, ...]:
        """The encoder, the window and the readout: what is run on spike trains."""
        return (self.encoder, *self.window, self.readout)

    def into_encoder(self, inputs: Any, handler: Handler = plain) -> Any:
        """What enters the encoder, `[B, ...]`, for what the model takes."""
        return run(self.before, {self.inputs[0]: inputs}, handler)[self.encoder.source]

    def run_window(self, train: Any, handler: Handler = plain) -> Values:
        """All values of the window for an encoded train `[steps, B, ...]`; `readout.source` stands for its current."""
        return run(self.window, {self.encoder.output: train}, handler)

    def behind_readout(self, prediction: Any, handler: Handler = plain) -> list[Any]:
        """The model's outputs for what the readout gives, `[B, classes]`."""
        values = run(self.after, {self.readout.output: prediction}, handler)
        return [values[output] for output in self.outputs]

    def whole(self) -> str | None:
        """Why the window must be run in one piece by its layers' own `call`, in a sentence that names the layer; None
        where it may be run in stretches of steps."""
        for call in self.ours:
            method = known.own_code(call.layer)
            if method is not None:
                return (f"{_said(call)} has a `{method}` of its own, which only the layer itself can run "
                        "(a SpikingLayer with a `neuron`, an encoder with an `encode` or a WindowDropout with a "
                        "`draw_mask` of its own would keep the fast path)")
        for call in self.window:
            remedy = known.remedy_for_mixing(call.layer)
            if remedy is not None:
                return f"{_said(call)} may mix the steps of a window: {remedy}"
        for call in self.spiking:
            call.layer.neuron.checked(call.layer.gradient)
        return None

    @property
    def trained_front(self) -> list[Call]:
        """Calls in front of the encoder that are trained now: layers may be frozen and freed at any time."""
        return [call for call in self.before if getattr(call.layer, "trainable_variables", ())]

    def refuse_trained_front(self) -> None:
        """Raises UserError where a layer in front of the encoder is trained and the encoder passes it no gradient."""
        for call in self.trained_front if self.encoder.layer.refuses_gradient else ():
            raise UserError(f"{_said(call)}, in front of the encoder, cannot be trained, because {_said(self.encoder)} "
                            "passes no gradient to it: freeze it (layer.trainable = False), or take encoder=\"direct\" "
                            "or PoissonEncoder(..., straight_through=True).")

    @property
    def own_neurons(self) -> list[Call]:
        """Calls of an encoder, of neurons and of a readout that have code of their own and do not show their window."""
        return [call for call in (self.encoder, *self.spiking, self.readout)
                if known.own_code(call.layer) is not None and not isinstance(call.layer, OpenNeurons)]

    def refuse_own_neurons(self, what: str) -> None:
        """Raises UserError where encoder, neurons or readout have code of their own, which `what` would not run."""
        for call in self.own_neurons:
            raise UserError(f"{what} cannot look into {_said(call)}, which has a `{known.own_code(call.layer)}` of "
                            "its own. `SpikingModel.observe` counts its spikes; constants of a neuron belong into its "
                            "`neuron`.")

    @property
    def open_size(self) -> str | None:
        """The first layer whose size is open, and what to do, in a sentence; None where all sizes are known."""
        for call in (self.encoder, *self.spiking, *self.dropouts):
            if None in call.output.shape[2:]:
                return (f"{_said(call)} gives [T, B, {', '.join(map(str, call.output.shape[2:]))}], and membranes are "
                        "laid out before an image is seen: give keras.Input the size of images")
        return None

    def refuse_open_size(self, what: str) -> None:
        """Raises UserError where the size of images is open, with which `what` could not begin."""
        if self.open_size is not None:
            raise UserError(f"{what} needs the size of every layer, but {self.open_size}.")


def hindrance(plan: Plan) -> str | None:
    """Why the engine cannot run a plan, in a sentence that names the layer; None where it can.

    Raises:
      UserError: a constant of a neuron is out of range, or none (`Neuron.checked`).
    """
    why = plan.whole()
    if why is not None:
        return why
    for call in plan.trained_front:
        return f"{_said(call)}, in front of the encoder, is trained, and the engine passes no gradient to its input: " \
               "freeze it"
    for call in plan.ours:
        if isinstance(call.layer, (Encoder, SpikingLayer, Readout, WindowDropout)) and _own_weights(call.layer):
            return f"{_said(call)} has a trained weight of its own, to which the engine passes no gradient"
        inside = with_layers_inside(call.layer.layer) if isinstance(call.layer, OverTime) else []
        for layer in (call.layer, *inside):
            if layer.activity_regularizer is not None and not isinstance(call.layer, SpikingLayer):
                return (f"{_said(call)} has an `activity_regularizer`, which the engine computes for spiking layers "
                        "alone")
    open_size = plan.open_size
    if open_size is not None:
        return open_size
    for call in plan.spiking:
        if not _is_counted(call.layer.activity_regularizer):
            return (f"the `activity_regularizer` of {_said(call)} needs the whole spike train: from counts alone come "
                    "keras.regularizers.L1, L2 and L1L2")
    rules = {call.layer.gradient: call.name for call in (*plan.spiking, *plan.norms)}
    if len(rules) > 1:
        return " and ".join(f"{name} has gradient={rule!r}" for rule, name in rules.items())
    rule, = rules
    bent = next((call.name for call in plan.window if not known.is_linear(call.layer)), None)
    if rule != "event" and bent is not None:
        return (f"{bent} is not linear, and gradient={rule!r}, which passes means or traces through synapses, is exact "
                "for linear layers alone: take gradient='event'")
    ways = {call.layer.feedback: call.name for call in plan.spiking}
    if len(ways) > 1:
        return " and ".join(f"{name} has feedback={way!r}" for way, name in ways.items())
    return None


def _own_weights(layer: Any) -> list[keras.Variable]:
    """Trained weights of a layer but for learnt constants of its neurons."""
    constants = {id(variable) for variable in getattr(layer, "learnt", {}).values()}
    return [variable for variable in layer.trainable_variables if id(variable) not in constants]


def _is_counted(regularizer: Any) -> bool:
    return regularizer is None or type(regularizer) in (keras.regularizers.L1, keras.regularizers.L2,
                                                        keras.regularizers.L1L2)


def read(model: keras.Model) -> Plan | str:
    """The plan of `model`, or why it has none: it is not one window between one encoder and one readout, each with
    nothing around it that bypasses it.

    Several inputs rule a plan out, and so do calls that say more than their input (`initial_state`, `return_state`,
    `every_step`, `training`, `seed`): such a model is computed layer by layer, as Keras computes it.
    """
    inputs, calls, outputs = calls_of(model)
    if len(inputs) != 1:
        return f"it has {len(inputs)} inputs, and a window has one"
    special = next((call for call in calls if _is_special(call)), None)
    if special is not None:
        return f"{_said(special)} is called with more than its input (a state, `return_state`, `training`, `seed`, ...)"
    encoders = [call for call in calls if isinstance(call.layer, Encoder)]
    readouts = [call for call in calls if isinstance(call.layer, Readout)]
    if len(encoders) != 1:
        return f"it has {_listed(encoders, 'encoder')}, and a window has one"
    if len(readouts) != 1:
        instead = "let it have the outputs of both, and split them behind it" if readouts else "scores come out of one"
        return f"it has {_listed(readouts, 'Readout')}, and a window has one: {instead}"
    encoder, readout = encoders[0], readouts[0]
    in_window = {encoder.output}
    behind: set[keras.KerasTensor] = set()
    before, window, after = [], [], []
    for call in calls:
        sources = set(call.sources)
        if call is encoder:
            continue
        if call is readout:
            if not sources & in_window:
                return f"{_said(call)} does not read what the encoder's spikes lead to"
            behind.add(call.output)
        elif sources & behind:
            if sources - behind:
                return f"{_said(call)}, behind the Readout, also reads what lies in front of it"
            after.append(call)
            behind.update(call.outputs)
        elif sources & in_window:
            if sources - in_window:
                return f"{_said(call)} reads spike trains and also what does not come out of the encoder"
            if any(output.shape[0] not in (None, encoder.layer.timesteps) for output in call.outputs):
                return f"{_said(call)} changes the number of steps"
            window.append(call)
            in_window.update(call.outputs)
        else:
            before.append(call)
    if not behind.issuperset(outputs):
        return "an output of it does not come out of its Readout"
    if not any(isinstance(call.layer, SpikingLayer) for call in window):
        return "there is no spiking layer between its encoder and its Readout"
    return Plan(inputs, outputs, tuple(before), encoder, tuple(window), readout, tuple(after))


def _listed(calls: list[Call], kind: str) -> str:
    return f"{len(calls)} {kind}s ({', '.join(call.name for call in calls)})" if calls else f"no {kind}"


def _is_special(call: Call) -> bool:
    """Whether a layer of ours is called with more than its input."""
    ours = isinstance(call.layer, (Encoder, SpikingLayer, Readout, WindowDropout, ThresholdNorm))
    return ours and (len(call.args) != 1 or any(value is not None and value is not False
                                                for value in call.kwargs.values()))


def copy_of(layer: keras.layers.Layer, **changes: Any) -> keras.layers.Layer:
    """A new layer of the same configuration but for `changes`; its weights are its own."""
    return type(layer).from_config({**layer.get_config(), **changes})


def rebuilt(model: keras.Model, inputs: Any, outputs: Any) -> Any:
    """A functional model of the name and the class of `model`, for another graph; where that class has a constructor
    that takes none, of the nearest one in front of it that does."""
    return next(kind for kind in type(model).__mro__ if _takes_graph(kind))(inputs, outputs, name=model.name)


def _takes_graph(kind: type) -> bool:
    signature = inspect.signature(kind.__init__)  # type: ignore[misc]
    try:
        signature.bind(None, None, None, name="")
    except TypeError:
        return False
    _, first, *_ = signature.parameters.values()
    return first.kind is inspect.Parameter.VAR_POSITIONAL or list(signature.parameters)[1:3] == ["inputs", "outputs"]
