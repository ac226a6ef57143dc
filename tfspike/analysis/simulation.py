"""A trained network's window of time, open to look at: every spike and every membrane, in stretches that fit memory.

`SpikingModel.observe` is the fast path and tells counts; this one runs the same layers with the same noise and shows
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
from tfspike.engine import stepper
from tfspike.engine.stepper import State, Stretch
from tfspike.errors import UserError
from tfspike.models.network import window_of
from tfspike.neurons.encoders import SpikeInput

CHUNK_ELEMENTS = 8_000_000  # values of the largest layer that exist at once


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
        plan = window_of(model)
        if plan is None:
            if hasattr(model, "required_plan"):
                model.required_plan()  # says why it has none
            raise UserError("The model must be a SpikingModel with one window between one encoder and one Readout. "
                            f"Received: a {type(model).__name__}.")
        model.refuse_own_call("A simulation")
        plan.refuse_own_neurons("A simulation")
        plan.refuse_open_size("A simulation")
        self.plan: plans.Plan = plan
        encoder = plan.encoder.layer
        self.timesteps = encoder.timesteps if timesteps is None else check_count("timesteps", timesteps)
        # A copy: how latency coding spreads its spikes depends on the window's length
        self.encoder = plans.copy_of(encoder, timesteps=self.timesteps)

    @property
    def neurons(self) -> list[plans.Call]:
        """Calls of the layers with a membrane: spiking layers in order, then the readout."""
        return [*self.plan.spiking, self.plan.readout]

    def start(self, images: Any, seed: int) -> tuple[tf.Tensor, tf.Tensor, State]:
        """What enters the encoder `[B, ...]`, the key of its noise, and the state before the first step."""
        inputs = self.plan.into_encoder(tf.convert_to_tensor(images, tf.float32))
        if isinstance(self.encoder, SpikeInput) and inputs.shape[1] < self.timesteps:
            raise UserError(f"Spike trains must have at least as many steps as the window, {self.timesteps}. "
                            f"Received: {inputs.shape[1]} steps; choose a shorter window.")
        return inputs, self.encoder.key(False, seed), stepper.initial_state(self.plan, inputs.shape[0])

    def window(self, images: Any, seed: int = 0) -> Stretch:
        """The whole window of some images at once, with all its spikes and membranes; `record` takes less memory."""
        inputs, key, state = self.start(images, seed)
        return self.run(inputs, key, 0, self.timesteps, state)

    def chunks(self, batch: int) -> Iterator[tuple[int, int]]:
        """`(first step, steps)` of stretches that fit into memory; the whole window where a layer may need it."""
        if self.plan.whole() is not None:
            yield 0, self.timesteps
            return
        largest = max(int(np.prod(call.output.shape[2:])) for call in self.plan.spiking)
        length = max(1, min(self.timesteps, CHUNK_ELEMENTS // (largest * batch)))
        for first in range(0, self.timesteps, length):
            yield first, min(length, self.timesteps - first)

    def run(self, inputs: tf.Tensor, key: tf.Tensor, first: Any, steps: int, state: State) -> Stretch:
        """Steps first..first+steps-1 of the window, from this state on."""
        return stepper.advance(self.plan, self.encoder.stretch(inputs, key, first, steps), state)


@dataclasses.dataclass(frozen=True)
class LayerRecording:
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
class Recording:
    """One image's window: every layer, the input first, and the readout's membrane potentials V_t, `[T, classes]`."""

    layers: tuple[LayerRecording, ...]
    readout: np.ndarray


def record(model: Any, image: Any, seed: int = 0, timesteps: int | None = None, shown: int = 48) -> Recording:
    """Runs one image and keeps what some neurons of every layer did.

    Args:
      model: a `SpikingModel`.
      image: `[H, W, C]`, or a spike train `[T, H, W, C]`.
      seed: of the input noise.
      timesteps: length of the window; None takes the model's.
      shown: neurons kept per layer, at most.

    Raises:
      UserError: the model has no single window of time, or `image` is none of its images.
    """
    simulation = Simulation(model, timesteps)
    shape = tuple(model.input_shape[1:])
    if np.ndim(image) != len(shape):
        raise UserError(f"One image is recorded, of shape {shape} without a batch axis, such as images[0]; received "
                        f"shape {np.shape(image)}.")
    calls = [simulation.plan.encoder, *simulation.plan.spiking]
    # Twice through the window: what is worth keeping is known only after the first time
    totals = [np.zeros(int(np.prod(call.output.shape[2:]))) for call in calls]
    for stretch in _windows(simulation, image, seed):
        for total, call in zip(totals, calls):
            total += np.abs(_flat(stretch.values[call.output])).sum(axis=0)
    kept = [_spread(np.flatnonzero(total), shown) for total in totals]
    middling = [_middling(total) for total in totals]
    spikes: list[list[np.ndarray]] = [[] for _ in calls]
    single: list[list[np.ndarray]] = [[] for _ in calls]
    membranes: list[list[np.ndarray]] = [[] for _ in calls]
    readout = []
    for stretch in _windows(simulation, image, seed):
        readout.append(stretch.readout[:, 0].numpy())
        for i, call in enumerate(calls):
            train = _flat(stretch.values[call.output])
            spikes[i].append(train[:, kept[i]])
            single[i].append(train[:, middling[i]])
            if i:
                membranes[i].append(_flat(tf.stack(stretch.layers[call.name].potentials))[:, middling[i]])
    layers = tuple(
        LayerRecording(call.name, len(totals[i]), int(np.count_nonzero(totals[i])), np.concatenate(spikes[i]),
                       np.concatenate(membranes[i]) if i else None, np.concatenate(single[i]),
                       _threshold(call, middling[i]) if i else None) for i, call in enumerate(calls))
    return Recording(layers, np.concatenate(readout))


def _threshold(call: plans.Call, neuron: int) -> float:
    """Of one neuron of a layer, whose channels may have thresholds of their own."""
    thresholds = np.ravel(call.layer.neuron.threshold)
    return float(thresholds[neuron % len(thresholds)])


def _windows(simulation: Simulation, image: Any, seed: int) -> Iterator[Stretch]:
    inputs, key, _ = simulation.start(np.asarray(image)[np.newaxis], seed)
    trains = (simulation.encoder.stretch(inputs, key, first, steps) for first, steps in simulation.chunks(1))
    return stepper.through(simulation.plan, trains, 1)


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
_STEPS = 8  # that a raster or a histogram is made of at once


class Final(NamedTuple):
    """A layer at the end of the window: membranes and spikes per window, `[B, ...]` float32."""

    membrane: tf.Tensor
    count: tf.Tensor


def final_states(model: keras.Model, example: Any) -> dict[str, Final]:
    """Membranes and spike counts at the end of the window, `{layer: Final}`, from one inference pass.

    {} for a model without a plan, and for one whose window must be run in one piece by its layers' own `call`.
    """
    plan = window_of(model)
    if plan is None or plan.whole() is not None:
        return {}
    inputs = plan.into_encoder(tf.convert_to_tensor(example))
    counts: dict[str, Any] = dict.fromkeys((call.name for call in plan.spiking), 0.0)
    for stretch in stepper.through(plan, _encoded(plan, inputs, _STEPS), inputs.shape[0]):
        for name, layer in stretch.layers.items():
            counts[name] += tf.reduce_sum(tf.cast(layer.spikes, tf.float32), axis=0)
    return {name: Final(stretch.state[name], count) for name, count in counts.items()}


def _encoded(plan: plans.Plan, inputs: tf.Tensor, length: int) -> Iterator[tf.Tensor]:
    """The encoder's train in stretches of so many steps, in inference, with seed 0."""
    encoder = plan.encoder.layer
    key = encoder.key(False, 0)
    for first in range(0, encoder.timesteps, length):
        yield encoder.stretch(inputs, key, first, min(length, encoder.timesteps - first))


def distributions(model: keras.Model, example: Any) -> dict[str, Any]:
    """What is worth a histogram, `{name: array}`: every weight, and of a few inputs `[B, ...]` the spikes per window of
    every neuron and the membrane potentials at the window's end."""
    found = {f"weights/{variable.path}": variable.value for variable in model.trainable_variables}
    for layer, final in final_states(model, example).items():
        found[f"spikes_per_window/{layer}"] = final.count
        lasting = tf.math.is_finite(final.membrane)  # not where a neuron fired that fires once
        found[f"membrane/{layer}"] = tf.boolean_mask(final.membrane, lasting)
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
    inputs = plan.into_encoder(example)
    if plan.whole() is None:
        parts = (stretch.values for stretch in stepper.through(plan, _encoded(plan, inputs, _STEPS), 1))
    else:  # by the layers' own `call`
        parts = (plan.run_window(train) for train in _encoded(plan, inputs, plan.encoder.layer.timesteps))
    pieces: dict[str, list[np.ndarray]] = {}
    for values in parts:
        for call in (plan.encoder, *plan.spiking):
            train = values[call.output]
            flat = np.asarray(tf.cast(train, tf.float32)).reshape(train.shape[0], -1)
            chosen = np.unique(np.linspace(0, flat.shape[1] - 1, min(neurons, flat.shape[1])).astype(int))
            pieces.setdefault(call.name, []).append(flat[:, chosen])
    return {layer: np.concatenate(trains) for layer, trains in pieces.items()}


def first_filters(model: keras.Model) -> np.ndarray | None:
    """The first convolution's kernel, `[height, width, channels, filters]`; None where the net has none."""
    for variable in model.variables:  # also of a frozen layer
        if len(variable.shape) == 4:
            return np.asarray(tf.cast(tf.convert_to_tensor(variable.value), tf.float32))
    return None
