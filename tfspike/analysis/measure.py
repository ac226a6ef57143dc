"""What a trained network does: spikes, operations and energy by layer, and accuracy at every time step, from one pass.

    result = analysis.analyse(model, images, labels)
    result.to_dict()                                    # plain numbers, fit for JSON, units in the names
    result.energy(EnergyModel(memory_pj=5.0))           # other constants, no second pass

Images are processed in batches and time in chunks, so memory grows neither with the data set nor with the window.
Spikes are counted with the signed ones: a spike of -1 is a spike. The encoder's spikes are the first layer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from tfspike.analysis.energy import EnergyModel, Operations, Synapse, synapses
from tfspike.analysis.simulation import Simulation
from tfspike.checks import check_count
from tfspike.engine.stepper import State
from tfspike.errors import UserError
from tfspike.models.spiking_model import SpikingModel
from tfspike.neurons import noise
from tfspike.neurons.encoders import DirectEncoder
from tfspike.neurons.over_time import may_be_trained

SHARES = (0.9, 0.95, 0.99, 1.0)


@dataclasses.dataclass(frozen=True)
class LayerActivity:
    """One layer of neurons and the synapses that drive it. All numbers are means per image, over the whole window.

    Attributes:
      name: of the Keras layer; the encoder comes first, the readout last.
      kind: "input", "lif", "pooling" or "readout".
      shape: of its neurons.
      spikes: spikes per image.
      rate: spikes per neuron and step.
      silent: share of the neurons that did not fire for any image; 0 for the readout, which never does.
      operations: accumulates and multiply-accumulates in the synapses into it, and its membrane updates.
      ann: the same for an ANN of the same shape.
      spikes_by_step: spikes per image until and with every step, `[T]`.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    spikes: float
    rate: float
    silent: float
    operations: Operations
    ann: Operations
    spikes_by_step: tuple[float, ...] = ()

    @property
    def neurons(self) -> int:
        return int(np.prod(self.shape))


@dataclasses.dataclass(frozen=True)
class EarlyExit:
    """What stopping each image as soon as it is clear costs and saves.

    Attributes:
      margin: an image stops at the first step at which the largest membrane potential V_t of the readout leads the
        second largest by at least this much (in units of the LIF threshold of 1).
      accuracy: share of the images that are right then.
      steps: mean steps per image.
      spikes: mean spikes per image.
    """

    margin: float
    accuracy: float
    steps: float
    spikes: float


@dataclasses.dataclass(frozen=True)
class Analysis:
    """Result of `analyse`; T steps, N images, C classes.

    Attributes:
      layers: in the order of the forward pass.
      labels: `[N]`.
      predictions: class predicted from the readout at every step, `[N, T]`.
      margins: lead of the largest over the second largest membrane potential of the readout, `[N, T]`.
      spikes: spikes of all layers, the input included, until and with every step, `[N, T]`.
      num_classes: C.
      parameters: weights of the model, trained or frozen; statistics and counters are none.
      zero_parameters: how many of them are exactly 0.
      footprint_bytes: memory of the weights as stored.
      effective: operations of the synapses with weights alone, as NeuroBench counts them.
      dense: connections of these, times T: NeuroBench's "dense" synaptic operations per image.
      seed: of the input noise.
    """

    layers: tuple[LayerActivity, ...]
    labels: np.ndarray
    predictions: np.ndarray
    margins: np.ndarray
    spikes: np.ndarray
    num_classes: int
    parameters: int
    zero_parameters: int
    footprint_bytes: int
    effective: Operations
    dense: float
    seed: int

    @property
    def images(self) -> int:
        return len(self.labels)

    @property
    def timesteps(self) -> int:
        return self.predictions.shape[1]

    @property
    def accuracy(self) -> float:
        """Share of images that are right after the whole window."""
        return float(self.accuracy_by_step[-1])

    @functools.cached_property
    def accuracy_by_step(self) -> np.ndarray:
        """Accuracy of the readout at every step, `[T]`."""
        return np.asarray(np.mean(self.predictions == self.labels[:, np.newaxis], axis=0))

    @functools.cached_property
    def spikes_by_step(self) -> np.ndarray:
        """Spikes per image until and with every step, `[T]`."""
        return np.asarray(np.mean(self.spikes, axis=0, dtype=np.float64))

    @property
    def operations(self) -> Operations:
        """All operations per image."""
        return sum((layer.operations for layer in self.layers), Operations())

    @property
    def ann(self) -> Operations:
        """Operations per image of an ANN of the same shape."""
        return sum((layer.ann for layer in self.layers), Operations())

    @functools.cached_property
    def confusion(self) -> np.ndarray:
        """Images of every class (rows) by what was predicted (columns), `[C, C]`."""
        table = np.zeros((self.num_classes, self.num_classes), np.int64)
        np.add.at(table, (self.labels, self.predictions[:, -1]), 1)
        return table

    def energy(self, model: EnergyModel | None = None) -> dict[str, float]:
        """Energy per image, pJ, of the network ("snn_pj") and of an ANN of the same shape ("ann_pj")."""
        model = model or EnergyModel()
        return {"snn_pj": model.picojoules(self.operations), "ann_pj": model.picojoules(self.ann)}

    def steps_to(self, share: float) -> dict[str, float]:
        """The first step from which accuracy stays at `share` of its final value or above, and the spikes until then.

        Raises:
          UserError: `share` outside (0, 1].
        """
        if not 0.0 < share <= 1.0:
            raise UserError(f"`share` of the final accuracy must be in (0, 1]. Received: share={share!r}.")
        step = settled(self.accuracy_by_step, share * self.accuracy)
        return {"share": share, "steps": step + 1, "accuracy": float(self.accuracy_by_step[step]),
                "spikes_per_image": float(self.spikes_by_step[step])}

    def early_exit(self, margins: np.ndarray | None = None) -> list[EarlyExit]:
        """Accuracy, steps and spikes if each image stops at a margin, for every margin of a sweep.

        Args:
          margins: the sweep; None takes up to 82, from stopping at the first step to never stopping early.
        """
        if margins is None:
            # Evenly by effect, not by value: leads that part of the images have at steps all over the window
            steps = np.unique(np.geomspace(1, self.timesteps, 16).astype(int)) - 1
            leads = np.quantile(self.margins[:, steps], (0.1, 0.3, 0.5, 0.7, 0.9), axis=0)
            margins = np.unique([0.0, *leads.flat, np.nextafter(self.margins.max(), np.inf)])
        rows, sweep = np.arange(self.images), []
        for margin in np.asarray(margins, np.float64):
            clear = self.margins >= margin
            clear[:, -1] = True
            stop = np.argmax(clear, axis=1)
            sweep.append(EarlyExit(float(margin), float(np.mean(self.predictions[rows, stop] == self.labels)),
                                   float(np.mean(stop + 1)), float(np.mean(self.spikes[rows, stop]))))
        return sweep

    def best_exit(self, loss: float = 0.005) -> EarlyExit:
        """The exit with the fewest steps whose accuracy is at most `loss` below that of the whole window.

        It is chosen on the images it is measured on: choose the margin on validation data to quote it.
        """
        fair = [point for point in self.early_exit() if point.accuracy >= self.accuracy - loss - 1e-12]
        return min(fair, key=lambda point: point.steps)

    def energy_record(self, model: EnergyModel) -> dict[str, Any]:
        """`snn_pj_per_image`, `ann_pj_per_image` and the `constants` (pJ) they follow from."""
        return {**{f"{name}_per_image": value for name, value in self.energy(model).items()},
                "constants": dataclasses.asdict(model)}

    def to_dict(self, energy: EnergyModel | None = None) -> dict[str, Any]:
        """Plain numbers, fit for JSON; units are in the names, everything is per image unless named otherwise.

        Args:
          energy: constants; None takes those of 45 nm.
        """
        best = self.best_exit()
        return {
            "images": self.images, "timesteps": self.timesteps, "seed": self.seed, "accuracy": self.accuracy,
            "spikes_per_image": float(self.spikes_by_step[-1]),
            "macs_per_image": self.operations.macs, "acs_per_image": self.operations.acs,
            "membrane_updates_per_image": self.operations.updates,
            "ann_macs_per_image": self.ann.macs, "ann_acs_per_image": self.ann.acs,
            "ann_activations_per_image": self.ann.updates,
            "energy": self.energy_record(energy or EnergyModel()),
            "layers": [layer_record(layer) for layer in self.layers],
            "accuracy_by_step": [float(value) for value in self.accuracy_by_step],
            "spikes_per_image_until_step": [float(value) for value in self.spikes_by_step],
            "steps_to_share": [self.steps_to(share) for share in SHARES],
            "early_exit": [dataclasses.asdict(point) for point in self.early_exit()],
            "early_exit_best": dataclasses.asdict(best),
            "confusion": self.confusion.tolist(),
            "neurobench": self.neurobench()}

    def neurobench(self) -> dict[str, float]:
        """Metrics as defined by NeuroBench: pooling and identity shortcuts are no synaptic operations there."""
        firing = [layer for layer in self.layers if layer.kind in ("lif", "pooling")]
        places = sum(layer.neurons for layer in firing) * self.timesteps
        return {"footprint_bytes": self.footprint_bytes, "parameter_count": self.parameters,
                "connection_sparsity": self.zero_parameters / max(self.parameters, 1),
                "activation_sparsity": 1.0 - sum(layer.spikes for layer in firing) / places,
                "membrane_updates_per_image": self.operations.updates,
                "effective_macs_per_image": self.effective.macs, "effective_acs_per_image": self.effective.acs,
                "dense_operations_per_image": self.dense, "classification_accuracy": self.accuracy}


def settled(accuracy_by_step: Sequence[float] | np.ndarray, accuracy: float) -> int:
    """Index of the first step from which the accuracy stays at `accuracy` or above; the last one's must be."""
    below = np.flatnonzero(np.asarray(accuracy_by_step) < accuracy - 1e-12)
    return int(below[-1]) + 1 if len(below) else 0


class Images(Protocol):
    """An array `[N, ...]`, or what is read a slice at a time."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> np.ndarray: ...


def layer_record(layer: LayerActivity) -> dict[str, Any]:
    """A layer as plain numbers, fit for JSON."""
    return {"name": layer.name, "kind": layer.kind, "shape": list(layer.shape), "neurons": layer.neurons,
            "spikes_per_image": layer.spikes, "rate_spikes_per_step": layer.rate, "silent_share": layer.silent,
            "macs_per_image": layer.operations.macs, "acs_per_image": layer.operations.acs,
            "membrane_updates_per_image": layer.operations.updates, "ann_macs_per_image": layer.ann.macs,
            "ann_acs_per_image": layer.ann.acs, "spikes_per_image_until_step": list(layer.spikes_by_step)}


def analyse(model: SpikingModel, images: Images, labels: np.ndarray | Sequence[int], batch_size: int = 100,
            seed: int = 0, timesteps: int | None = None) -> Analysis:
    """Runs a network once over images and counts everything.

    Args:
      model: a `SpikingModel`.
      images: what it takes, `[N, H, W, C]` (spike trains `[N, T, H, W, C]`); a slice at a time is read.
      labels: classes, `[N]` integers.
      batch_size: images at a time; results depend on it only through the noise of the input.
      seed: number of the draw of the input noise.
      timesteps: length of the window, steps; None takes the model's.

    Raises:
      UserError: the model has no single window of time, images and labels do not match, a class is not among the
        model's outputs, or a layer's operations cannot be counted.
    """
    check_count("batch_size", batch_size)
    labels = np.asarray(labels)
    if not len(images) or len(images) != len(labels) or labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UserError("`labels` must be one integer per image, and there must be an image. "
                        f"Received: {len(images)} images and labels of shape {labels.shape} and type {labels.dtype}.")
    simulation = Simulation(model, timesteps)
    classes = int(model.outputs[0].shape[-1])
    if labels.min() < 0 or labels.max() >= classes:
        raise UserError(f"`labels` must lie between 0 and {classes - 1}, the model's outputs. "
                        f"Received: labels from {labels.min()} to {labels.max()}.")
    tally = _Tally(simulation)
    for start in range(0, len(images), batch_size):
        tally.add(images[start:start + batch_size], (seed * noise.DRAW + start // batch_size) % noise.LARGEST_SEED)
    return tally.result(model, labels.astype(np.int64), classes, seed)


def operations(model: SpikingModel, images: Images, seed: int = 0) -> tuple[Operations, Operations]:
    """Operations per image of the network and of an ANN of the same shape, from a handful of images.

    Nothing is compiled, which for a few images would take longer than running them does.

    Args:
      model, images, seed: as for `analyse`; all images at once.

    Raises:
      UserError: the model has no single window of time, or a layer's operations cannot be counted.
    """
    tally = _Tally(Simulation(model), compiled=False)
    tally.add(images, seed)
    layers = tally.layers(len(images))
    return sum((layer.operations for layer in layers), Operations()), sum((layer.ann for layer in layers), Operations())


class _Tally:
    """Sums over the data set."""

    def __init__(self, simulation: Simulation, compiled: bool = True):
        self.simulation = simulation
        self.synapses = synapses(simulation.plan)
        # The tensors whose events are counted: what fires, and what enters a synapse
        plan = simulation.plan
        self.firing = [plan.encoder.output, *(call.output for call in plan.spiking)]
        self.mixed = {synapse.source for synapse in self.synapses if synapse.events == "mixed"}
        self.sources = dict.fromkeys([*self.firing, *(synapse.source for synapse in self.synapses)])
        self.events = {x: np.zeros(x.shape[2:], np.float64) for x in self.sources}
        self.unit = {x: np.zeros(x.shape[2:], np.float64) for x in self.mixed}
        self.updates = np.zeros(len(simulation.neurons), np.float64)
        self._real = type(simulation.encoder).encode is DirectEncoder.encode  # a subclass may have its own
        self._counted_layers = self.firing[1:] if self._real else self.firing  # whose events are spikes
        self.fired = np.zeros((len(self._counted_layers), simulation.timesteps), np.float64)
        self.columns: list[tuple[np.ndarray, ...]] = []
        self._compiled = tf.function(self._chunk, reduce_retracing=False) if compiled else None
        self._traced: dict[tuple[Any, ...], Any] = {}

    def add(self, images: Images, seed: int) -> None:
        """Runs a batch, its noise keyed by `seed`."""
        inputs, key, state = self.simulation.start(images, seed)
        spikes, potentials = [], []
        for first, steps in self.simulation.chunks(len(inputs)):
            events, unit, fired, updates, state, readout = self._step(inputs, key, tf.constant(first), steps, state)
            for total, new in ((self.events, events), (self.unit, unit)):
                for x, value in zip(total, new):
                    total[x] += value.numpy()
            self.updates += updates.numpy()
            spikes.append(fired.numpy())
            potentials.append(readout)
        fired = np.concatenate(spikes, axis=1)
        self.fired += fired.sum(axis=2, dtype=np.float64)
        self.columns.append(self._columns(tf.concat(potentials, 0), fired.sum(axis=0)))

    def _step(self, inputs: tf.Tensor, key: tf.Tensor, first: tf.Tensor, steps: int, state: State) -> tuple[Any, ...]:
        """`_chunk`, compiled once for every size of a batch and of a stretch."""
        if self._compiled is None:
            return self._chunk(inputs, key, first, steps, state)
        size = tuple(inputs.shape), steps
        if size not in self._traced:  # called directly, TensorFlow would warn of retracing after a few analyses
            self._traced[size] = self._compiled.get_concrete_function(inputs, key, first, steps, state)
        return self._traced[size](inputs, key, first, steps, state)

    def _chunk(self, inputs: tf.Tensor, key: tf.Tensor, first: tf.Tensor, steps: int, state: State) -> tuple[Any, ...]:
        stretch = self.simulation.run(inputs, key, first, steps, state)
        nonzero = {x: tf.cast(tf.not_equal(stretch.values[x], 0), tf.float32) for x in self.sources}
        events = [tf.reduce_sum(nonzero[x], (0, 1)) for x in self.events]
        unit = [tf.reduce_sum(tf.cast(tf.equal(tf.abs(stretch.values[x]), 1), tf.float32), (0, 1)) for x in self.unit]
        fired = tf.stack([tf.reduce_sum(tf.reshape(nonzero[x], (steps, inputs.shape[0], -1)), -1)
                          for x in self._counted_layers])
        updates = [_updates(state[name], layer.membranes, first) for name, layer in stretch.layers.items()]
        updates.append(_updates(state[self.simulation.plan.readout.name], tf.unstack(stretch.readout), first))
        return events, unit, fired, tf.stack(updates), stretch.state, stretch.readout

    def _columns(self, potentials: tf.Tensor, spikes: np.ndarray) -> tuple[np.ndarray, ...]:
        """Per image of a batch: predictions `[B, T]`, margins `[B, T]`, spikes so far `[B, T]`."""
        steps = tf.reshape(tf.range(1, len(potentials) + 1, dtype=tf.float32), (-1, 1, 1))
        flat = tf.reshape(potentials / steps, (-1, potentials.shape[-1]))
        outputs = self.simulation.plan.behind_readout(flat)[0]
        predictions = tf.reshape(tf.argmax(outputs, -1), potentials.shape[:2]).numpy()
        top = tf.math.top_k(potentials, min(2, potentials.shape[-1])).values.numpy()
        return (predictions.T.astype(np.int32), (top[..., 0] - top[..., -1]).T,
                np.cumsum(spikes, 0, dtype=np.float64).T)

    def result(self, model: SpikingModel, labels: np.ndarray, classes: int, seed: int) -> Analysis:
        predictions, margins, spikes = (np.concatenate(column) for column in zip(*self.columns))
        counted = self._counted(len(labels))
        weighted = [(synapse, ops) for synapse, ops in counted if synapse.kind == "weights"]
        weights = [tf.convert_to_tensor(weight.value).numpy() for weight in model.weights
                   if may_be_trained(weight, model)]  # a frozen layer computes with its weights as any other
        return Analysis(
            self.layers(len(labels)), labels, predictions, margins, spikes, num_classes=classes,
            parameters=sum(weight.size for weight in weights),
            zero_parameters=sum(int(np.sum(weight == 0)) for weight in weights),
            footprint_bytes=sum(weight.nbytes for weight in weights),
            effective=sum((ops for _, ops in weighted), Operations()),
            dense=float(sum(synapse.connections for synapse, _ in weighted) * self.simulation.timesteps), seed=seed)

    def layers(self, images: int) -> tuple[LayerActivity, ...]:
        """Every layer's activity and operations, the input first, after so many images."""
        return tuple(self._layers(self._counted(images), images))

    def _counted(self, images: int) -> list[tuple[Synapse, Operations]]:
        return [(synapse, _scaled(synapse.operations(self.events[synapse.source],
                                                     self.unit.get(synapse.source)), images))
                for synapse in self.synapses]

    def _layers(self, counted: list[tuple[Synapse, Operations]], images: int) -> Iterator[LayerActivity]:
        plan, timesteps = self.simulation.plan, self.simulation.timesteps
        for i, call in enumerate([plan.encoder, *self.simulation.neurons]):
            shape = tuple(call.args[0].shape[2:]) if i else tuple(call.output.shape[2:])
            size = int(np.prod(shape))
            into = [(synapse, ops) for synapse, ops in counted if i and synapse.target == call.name]
            operations = sum((ops for _, ops in into), Operations())
            ann = sum((synapse.ann for synapse, _ in into), Operations())
            spikes, silent, by_step = 0.0, 0.0, (0.0,) * timesteps
            if call is not plan.readout and (i or not self._real):
                events = self.events[call.output]
                spikes, silent = float(events.sum()) / images, float(np.mean(events == 0))
                by_step = tuple(np.cumsum(self.fired[i - self._real] / images).tolist())
            kinds = {synapse.kind for synapse, _ in into}  # of LIF neurons behind an average without neurons: both
            kind = ("input" if i == 0 else "readout" if call is plan.readout
                    else "pooling" if "pooling" in kinds and "weights" not in kinds else "lif")
            updates = float(self.updates[i - 1]) / images if i else 0.0
            yield LayerActivity(call.name, kind, shape, spikes, spikes / (size * timesteps), silent,
                                dataclasses.replace(operations, updates=updates),
                                dataclasses.replace(ann, updates=float(size) if i else 0.0), by_step)


def _updates(before: tf.Tensor, membranes: Sequence[tf.Tensor], first: tf.Tensor) -> tf.Tensor:
    """Membrane updates of a layer from step `first` on: a membrane that changed, and all of them at the first step."""
    updates = tf.zeros((), tf.float64)
    for t, after in enumerate(membranes):
        changed = tf.logical_or(tf.not_equal(after, before), tf.equal(first + t, 0))
        updates += tf.cast(tf.math.count_nonzero(changed), tf.float64)
        before = after
    return updates


def _scaled(operations: Operations, images: int) -> Operations:
    return Operations(operations.macs / images, operations.acs / images, operations.updates / images)
