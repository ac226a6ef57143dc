"""A trained network's window of time, open to look at: every spike and every membrane, in stretches that fit memory.

`SpikingModel.observe` is the fast road and tells counts; this one runs the same layers with the same noise and shows
what happens at every step. Analysis and reports are made from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfspike.checks import check_count
from tfspike.engine import plan as plans
from tfspike.engine.engine import Engine
from tfspike.errors import UserError
from tfspike.neurons import gradients
from tfspike.neurons.encoders import SpikeInput
from tfspike.neurons.gradients import NeuronState
from tfspike.neurons.layers import SpikingLayer

CHUNK_ELEMENTS = 8_000_000  # values of the largest layer that exist at once


class Chunk(NamedTuple):
    """What a stretch of the window leaves behind."""

    values: dict[int, tf.Tensor]  # of every symbolic tensor of the window, `[steps, B, ...]`
    membranes: list[tf.Tensor]  # of every spiking layer before firing, `[steps, B, ...]`
    after: list[tf.Tensor]  # of every spiking layer at the end, `[B, ...]`
    changes: list[tf.Tensor]  # membrane updates of every spiking layer, one number each
    readout: tf.Tensor  # V_t, `[steps, B, classes]`


class Simulation:
    """A model's window in stretches, with everything that happens in it open to look at.

    Args:
      model: a `SpikingModel`.
      timesteps: length of the window; None takes the model's.

    Raises:
      UserError: the model has no single window of time, or neurons with a `call` of their own, whose membranes nobody
        else knows.
    """

    def __init__(self, model: Any, timesteps: int | None = None):
        plan = getattr(model, "plan", None)
        if plan is None:
            if hasattr(model, "_required_plan"):
                model._required_plan()  # says why it has none
            raise UserError("The model must be a SpikingModel with one window between one encoder and one Readout. "
                            f"Received: a {type(model).__name__}.")
        model.refuse_own_call("A simulation")
        plan.refuse_own_neurons("A simulation")
        self.plan: plans.Plan = plan
        encoder = plan.encoder.layer
        self.timesteps = encoder.timesteps if timesteps is None else check_count("timesteps", timesteps)
        # A copy: how latency coding spreads its spikes depends on the window's length
        self.encoder = plans.copy_of(encoder, timesteps=self.timesteps)

    @property
    def neurons(self) -> list[plans.Call]:
        """Calls of the layers with a membrane: spiking layers in order, then the readout."""
        return [*self.plan.spiking, self.plan.readout]

    def start(self, images: Any, seed: int) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        """What enters the encoder `[B, ...]`, the key of its noise, and membranes of 0 `[B, ...]`."""
        inputs = tf.convert_to_tensor(images, tf.float32)
        values = plans.run(self.plan.before, {id(self.plan.inputs[0]): inputs})
        source = next(x for x in keras.tree.flatten(self.plan.encoder.args) if isinstance(x, keras.KerasTensor))
        inputs = values[id(source)]
        if isinstance(self.encoder, SpikeInput) and inputs.shape[1] < self.timesteps:
            raise UserError(f"Spike trains must have at least as many steps as the window, {self.timesteps}. "
                            f"Received: {inputs.shape[1]} steps; choose a shorter window.")
        batch = inputs.shape[0]
        return inputs, self.encoder.key(False, seed), [
            tf.zeros((batch, *call.args[0].shape[2:]), tf.float32) for call in self.neurons]

    def chunks(self, batch: int) -> Iterator[tuple[int, int]]:
        """`(first step, steps)` of stretches that fit into memory; the whole window where a layer may need it."""
        if self.plan.whole() is not None:
            yield 0, self.timesteps
            return
        largest = max(int(np.prod(call.outputs[0].shape[2:])) for call in self.plan.spiking)
        length = max(1, min(self.timesteps, CHUNK_ELEMENTS // (largest * batch)))
        for first in range(0, self.timesteps, length):
            yield first, min(length, self.timesteps - first)

    def run(self, inputs: tf.Tensor, key: tf.Tensor, first: Any, steps: int, membranes: list[tf.Tensor]) -> Chunk:
        """Steps first..first+steps-1 of the window, from these membranes on."""
        train = self.encoder.encode(inputs, key, first, steps)
        before = iter(membranes)
        seen: list[list[tf.Tensor]] = []

        def handler(call: plans.Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not isinstance(call.layer, SpikingLayer):
                return plans.plain(call, args, kwargs)
            currents = tf.cast(args[0], call.layer.compute_dtype)
            spikes, *record = _fire(currents, next(before), call.layer.neuron, first)
            seen.append(record)
            return spikes

        values = plans.run(self.plan.window, {id(self.plan.encoder.outputs[0]): train}, handler)
        membrane, readout = next(before), []
        current = tf.cast(values[id(self.plan.readout.args[0])], tf.float32)
        for t in range(steps):
            membrane = self.plan.readout.layer.leak * (membrane + current[t])
            readout.append(membrane)
        potentials, after, changes = (list(column) for column in zip(*seen))
        return Chunk(values, potentials, after, changes, tf.stack(readout))


def _fire(currents: tf.Tensor, membrane: tf.Tensor, neuron: gradients.Neuron, first: Any) -> tuple[tf.Tensor, ...]:
    """Spikes, membranes before firing, the membrane at the end, and how many membrane updates there were."""
    spikes, potentials, changes = [], [], tf.zeros((), tf.float64)
    for t in range(currents.shape[0]):
        fired, after = gradients.fire(membrane, currents[t], neuron)
        changed = tf.logical_or(tf.not_equal(after, membrane), tf.equal(first + t, 0))
        changes += tf.cast(tf.math.count_nonzero(changed), tf.float64)
        potentials.append(membrane + tf.cast(currents[t], tf.float32))
        spikes.append(tf.cast(fired, currents.dtype))
        membrane = after
    return tf.stack(spikes), tf.stack(potentials), membrane, changes


@dataclasses.dataclass(frozen=True)
class LayerTrace:
    """Some neurons of one layer during one window.

    Attributes:
      name: of the Keras layer.
      neurons: how many the layer has.
      active: how many of them fired.
      spikes: trains of some active neurons, in the order of their place in the layer, `[T, neurons shown]`, -1, 0, 1.
      membrane: potential before firing of one of them, a neuron of middling activity, `[T]`; None for the input.
      fired: the spikes of that neuron, `[T]`.
      threshold: of the layer; None for the input.
    """

    name: str
    neurons: int
    active: int
    spikes: np.ndarray
    membrane: np.ndarray | None
    fired: np.ndarray
    threshold: float | None


@dataclasses.dataclass(frozen=True)
class Trace:
    """One image's window: every layer, the input first, and the readout's membrane potentials V_t, `[T, classes]`."""

    layers: tuple[LayerTrace, ...]
    readout: np.ndarray


def trace(model: Any, image: Any, seed: int = 0, timesteps: int | None = None, shown: int = 48) -> Trace:
    """Runs one image and keeps what some neurons of every layer did.

    Args:
      model: a `SpikingModel`.
      image: `[H, W, C]`, or a spike train `[T, H, W, C]`.
      seed: of the input noise.
      timesteps: length of the window; None takes the model's.
      shown: neurons kept per layer, at most.

    Raises:
      UserError: the model has no single window of time.
    """
    simulation = Simulation(model, timesteps)
    calls = [simulation.plan.encoder, *simulation.plan.spiking]
    # Twice through the window: what is worth keeping is known only after the first time
    totals = [np.zeros(int(np.prod(call.outputs[0].shape[2:]))) for call in calls]
    for chunk in _windows(simulation, image, seed):
        for total, call in zip(totals, calls):
            total += np.abs(_flat(chunk.values[id(call.outputs[0])])).sum(axis=0)
    kept = [_spread(np.flatnonzero(total), shown) for total in totals]
    middling = [_middling(total) for total in totals]
    spikes: list[list[np.ndarray]] = [[] for _ in calls]
    single: list[list[np.ndarray]] = [[] for _ in calls]
    membranes: list[list[np.ndarray]] = [[] for _ in calls]
    readout = []
    for chunk in _windows(simulation, image, seed):
        readout.append(chunk.readout[:, 0].numpy())
        for i, call in enumerate(calls):
            train = _flat(chunk.values[id(call.outputs[0])])
            spikes[i].append(train[:, kept[i]])
            single[i].append(train[:, middling[i]])
            if i:
                membranes[i].append(_flat(chunk.membranes[i - 1])[:, middling[i]])
    layers = tuple(
        LayerTrace(call.name, len(totals[i]), int(np.count_nonzero(totals[i])), np.concatenate(spikes[i]),
                   np.concatenate(membranes[i]) if i else None, np.concatenate(single[i]),
                   call.layer.neuron.threshold if i else None) for i, call in enumerate(calls))
    return Trace(layers, np.concatenate(readout))


def _windows(simulation: Simulation, image: Any, seed: int) -> Iterator[Chunk]:
    inputs, key, membranes = simulation.start(np.asarray(image)[np.newaxis], seed)
    for first, steps in simulation.chunks(1):
        chunk = simulation.run(inputs, key, first, steps, membranes)
        membranes = [*chunk.after, chunk.readout[-1]]
        yield chunk


def _flat(values: tf.Tensor) -> np.ndarray:
    """`[steps, 1, ...]` to `[steps, neurons]` float32."""
    return tf.reshape(tf.cast(values, tf.float32), (values.shape[0], -1)).numpy()


def _middling(total: np.ndarray) -> int:
    """The neuron whose count is the median of those that fired; the first one where none did."""
    order = np.argsort(total, kind="stable")
    silent = int(np.count_nonzero(total == 0))
    return int(order[(silent + len(total)) // 2 if silent < len(total) else 0])


def _spread(places: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of these, evenly spread."""
    return places if len(places) <= most else places[np.linspace(0, len(places) - 1, most).astype(int)]

_RASTER_NEURONS = 48  # rows per layer: more would be thinner than a pixel


def final_states(model: keras.Model, example: Any) -> dict[str, NeuronState]:
    """Membranes, spike counts and traces at the end of the window, `{layer: state}`, from one inference pass.

    {} for a model without engine, and for one with layers in front of its encoder.
    """
    engine = getattr(model, "engine", None)
    if engine is None or engine.plan.before:
        return {}
    # for a few inputs, once: compiling kernels for their shape would take longer than running them
    plain = Engine(engine.plan, engine.gradient, engine.chunk, "plain")
    record = plain.run(tf.convert_to_tensor(example), training=False)
    return {call.name: state for call, state in zip(engine.plan.spiking, record.states)}


def distributions(model: keras.Model, example: Any) -> dict[str, Any]:
    """What is worth a histogram, `{name: array}`: every weight, and of a few inputs `[B, ...]` the spikes per window of
    every neuron and the membrane potentials at the window's end."""
    found = {f"weights/{variable.path}": variable.value for variable in model.trainable_variables}
    for layer, state in final_states(model, example).items():
        found[f"spikes_per_window/{layer}"] = state.count
        found[f"membrane/{layer}"] = state.membrane
    return found


def spike_trains(model: keras.Model, example: Any, neurons: int = _RASTER_NEURONS) -> dict[str, np.ndarray]:
    """Spikes of some neurons of every layer, the encoder first, from one inference pass.

    Args:
      model: a spiking model with a plan.
      example: one input `[1, ...]`.
      neurons: at most so many per layer, evenly spread over the map.

    Returns:
      `{layer: [T, neurons]}`, float32. The window is run in short stretches where its layers allow that: memory does
      not grow with T then.
    """
    plan = model.plan
    start = plans.run(plan.before, {id(plan.inputs[0]): example})
    source = start[id(keras.tree.flatten(plan.encoder.args)[0])]
    encoder, states, whole = plan.encoder.layer, dict[str, Any](), plan.whole() is not None
    pieces: dict[str, list[np.ndarray]] = {}

    def keep(layer: str, train: tf.Tensor) -> None:
        flat = np.asarray(tf.cast(train, tf.float32)).reshape(train.shape[0], -1)
        chosen = np.unique(np.linspace(0, flat.shape[1] - 1, min(neurons, flat.shape[1])).astype(int))
        pieces.setdefault(layer, []).append(flat[:, chosen])

    def handler(call: plans.Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not isinstance(call.layer, SpikingLayer):
            return plans.plain(call, args, kwargs)
        if whole:
            train = call.layer(*args)
        else:
            train, states[call.name] = call.layer(*args, initial_state=states.get(call.name), return_state=True)
        keep(call.name, train)
        return train

    length = encoder.timesteps if whole else 8
    for t in range(0, encoder.timesteps, length):
        train = encoder.encode(source, encoder.key(False, 0), t, min(length, encoder.timesteps - t))
        keep(encoder.name, train)
        plans.run(plan.window, {id(plan.encoder.outputs[0]): train}, handler)
    return {layer: np.concatenate(parts) for layer, parts in pieces.items()}


def first_filters(model: keras.Model) -> np.ndarray | None:
    """The first convolution's kernel, `[height, width, channels, filters]`; None where the net has none."""
    for variable in model.trainable_variables:
        if len(variable.shape) == 4:
            return np.asarray(tf.cast(tf.convert_to_tensor(variable.value), tf.float32))
    return None
