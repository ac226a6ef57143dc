"""The record of a run: `metrics.jsonl` for programs, TensorBoard for the eye; both without gaps or doubles on resume.

A run that is killed leaves events behind the checkpoint it will continue from, and perhaps half an event at the end of
a file. Opening the log again at the checkpoint's step cuts both: every file is rewritten without them under another
name and put in place by one rename, so that a second kill at any moment leaves either the old file or the new one.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfspike import plan as plans
from tfspike.engine import Engine
from tfspike.errors import UserError
from tfspike.gradients import NeuronState
from tfspike.layers import SpikingLayer

METRICS = "metrics.jsonl"
TENSORBOARD = "tb"
_RASTER_NEURONS = 48  # rows per layer: more would be thinner than a pixel
_HISTOGRAM_VALUES = 100_000  # per histogram, evenly spaced: the picture is the same and costs milliseconds


class RunLog:
    """Writes what happens in a run.

    Args:
      workdir: folder of the run; `metrics.jsonl` and `tb/` inside it.
      tensorboard: also write TensorBoard events.
      start_step: the step the run continues from: later events of an earlier process are cut off. 0 starts anew.
      chief: False on workers that must not write; every method then does nothing.

    Raises:
      UserError: the folder cannot be written, or the disk is full (from any method).
    """

    def __init__(self, workdir: str | os.PathLike[str], tensorboard: bool = True, start_step: int = 0,
                 chief: bool = True):
        self._folder = pathlib.Path(workdir)
        self._start = int(start_step)
        self._chief = chief
        self._metrics: Any = None
        self._writer: Any = None
        self._written: set[tuple[str, int]] = set()
        if not chief:
            return
        with self._explained():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._cut()
            self._metrics = open(self._folder / METRICS, "a", encoding="utf-8")
        if tensorboard:
            with self._explained():
                self._writer = tf.summary.create_file_writer(str(self._folder / TENSORBOARD), flush_millis=10_000)

    # ---- public ------------------------------------------------------------------------------------------------

    def scalars(self, step: int, values: Mapping[str, Any], notes: Mapping[str, str] | None = None,
                **about: Any) -> None:
        """One event: a line of `metrics.jsonl`, and a TensorBoard scalar for every number.

        Args:
          step: training steps so far.
          values: numbers by name, such as "train/loss"; NaN and Inf become null in the file.
          notes: what TensorBoard says of them, a sentence by name.
          about: further JSON values for the line alone, such as `event="epoch"`.
        """
        if not self._chief:
            return
        numbers = {name: float(value) for name, value in values.items()}
        line = {"step": int(step), **about, "time": round(time.time(), 3),
                **{name: value if math.isfinite(value) else None for name, value in numbers.items()}}
        with self._explained():
            self._metrics.write(json.dumps(line, allow_nan=False) + "\n")
            self._metrics.flush()
        if self._writer is None:
            return
        with self._tensorboard():
            for name, value in numbers.items():
                tf.summary.scalar(name, value, step=step, description=(notes or {}).get(name))

    def histograms(self, step: int, model: keras.Model, activity: Mapping[str, Any] | None = None,
                   example: Any = None) -> None:
        """Histograms of every weight and, where given, of activity and membranes.

        Args:
          step: training steps so far.
          model: whose weights.
          activity: spikes per window of every neuron, `{layer: [B, ...]}` (`SpikingModel.observe`); None takes those
            of `example`.
          example: a few inputs `[B, ...]`, to be run for the membrane potentials at the end of the window.
        """
        if self._writer is None:
            return
        ends = {} if example is None else final_states(model, example)
        potentials = {layer: state.membrane for layer, state in ends.items()}
        if activity is None:
            activity = {layer: state.count for layer, state in ends.items()}
        with self._tensorboard():
            for variable in model.trainable_variables:
                tf.summary.histogram(f"weights/{variable.path}", _sampled(variable.value), step=step)
            for layer, count in activity.items():
                tf.summary.histogram(f"spikes_per_window/{layer}", _sampled(count), step=step)
            for layer, membrane in potentials.items():
                tf.summary.histogram(f"membrane/{layer}", _sampled(membrane), step=step)

    def images(self, step: int, model: keras.Model, example: Any = None) -> None:
        """The filters of the first convolution, and a spike raster of every layer for the first input of `example`."""
        if self._writer is None:
            return
        pictures = {}
        filters = first_filters(model)
        if filters is not None:
            pictures["first_layer_filters"] = _filter_sheet(filters)
        if example is not None and getattr(model, "plan", None) is not None:
            pictures["spike_raster"] = _raster_picture(spike_trains(model, tf.convert_to_tensor(example)[:1]))
        with self._tensorboard():
            for name, picture in pictures.items():
                tf.summary.image(name, picture[np.newaxis], step=step)

    def text(self, name: str, markdown: str) -> None:
        """A text such as the command or the settings, at the step this process began with."""
        if self._once(f"{name}/text"):
            with self._tensorboard():
                tf.summary.text(f"{name}/text", markdown, step=self._start)

    def hyperparameters(self, values: Mapping[str, Any]) -> None:
        """The settings for TensorBoard's HParams dashboard, which compares the runs of a sweep."""
        from tensorboard.plugins.hparams import api

        if self._once(_HPARAMS):
            plain = {name: value if isinstance(value, (bool, int, float, str)) else str(value)
                     for name, value in values.items()}
            with self._tensorboard():
                api.hparams(plain, trial_id=self._folder.name or "run")

    def graph(self, model: keras.Model, example: Any) -> None:
        """The network's graph, layer by layer (`call_layers`); not for models whose graph cannot be traced.

        Args:
          model: a spiking model.
          example: an input `[B, ...]`; only shape and dtype are used.
        """
        if getattr(model, "plan", None) is None or not self._once(_GRAPH):
            return
        example = tf.convert_to_tensor(example)
        signature = tf.TensorSpec([None, *example.shape[1:]], example.dtype, "images")
        traced = tf.function(lambda images: model.call_layers(images, training=False), autograph=False)
        graph = traced.get_concrete_function(signature).graph.as_graph_def()
        with self._tensorboard():
            tf.summary.graph(_tidied(graph, [layer.name for layer in model.layers]))

    def flush(self) -> None:
        """Everything so far is on the disk when this returns: call it before a checkpoint is written.

        A checkpoint that outlives its metrics would leave a gap in them.
        """
        if not self._chief:
            return
        with self._explained():
            self._metrics.flush()
            os.fsync(self._metrics.fileno())
            if self._writer is not None:
                self._writer.flush()

    def close(self) -> None:
        """Writes what is left and closes the files."""
        if self._metrics is None:
            return
        try:
            self.flush()
        finally:
            metrics, self._metrics, self._chief = self._metrics, None, False
            with self._explained():
                metrics.close()
                if self._writer is not None:
                    self._writer.close()
            self._writer = None

    # ---- resume ------------------------------------------------------------------------------------------------

    def _cut(self) -> None:
        metrics, events = self._folder / METRICS, self._folder / TENSORBOARD
        for leftover in (*self._folder.glob(f"{METRICS}.cut"), *events.glob("*.cut")):
            leftover.unlink()
        if self._start == 0:
            metrics.unlink(missing_ok=True)
            shutil.rmtree(events, ignore_errors=True)
            return
        if metrics.exists():
            _cut_metrics(metrics, self._start)
        for path in sorted(events.glob("events.out.tfevents.*")):
            self._written.update(_cut_events(path, self._start))

    def _once(self, tag: str) -> bool:
        """Whether TensorBoard has nothing under this tag from this step (graph and settings: from any step)."""
        if self._writer is None:
            return False
        key = (tag, 0 if tag in (_GRAPH, _HPARAMS) else self._start)
        if key in self._written:
            return False
        self._written.add(key)
        return True

    # ---- helpers -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _tensorboard(self) -> Iterator[None]:
        with self._explained(), self._writer.as_default(), tf.summary.record_if(True):
            yield

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0].split("; ")[-1]
            raise UserError(f"The log of the run in {self._folder} cannot be written ({reason}); free some space or "
                            "give another --workdir; the same command, started again, continues from the last "
                            "checkpoint.") from error


def _tidied(graph: tf.compat.v1.GraphDef, layers: Sequence[str]) -> tf.compat.v1.GraphDef:
    """The graph with the layers' own names: TensorFlow numbers them, as `conv1_1_lif_3`; and its output named."""
    known = set(layers)

    def renamed(name: str) -> str:
        first, slash, rest = name.partition("/")
        layer, _, number = first.rpartition("_")
        if number.isdigit() and layer in known:
            first = layer
        return "scores" + rest if first == "Identity" else first + slash + rest

    tidy = tf.compat.v1.GraphDef()
    tidy.versions.CopyFrom(graph.versions)
    tidy.library.CopyFrom(graph.library)
    for node in graph.node:
        if node.op == "NoOp":  # only says when reading a weight is over
            continue
        copy = tidy.node.add()
        copy.CopyFrom(node)
        copy.name = renamed(node.name)
        copy.ClearField("input")
        copy.input.extend(renamed(source) for source in node.input if not source.startswith("^"))
    return tidy


_GRAPH, _HPARAMS = "graph", "_hparams_/session_start_info"


def _cut_metrics(path: pathlib.Path, start_step: int) -> None:
    """Keeps the whole lines with a step of at most `start_step`."""
    content = path.read_bytes()
    kept = b"".join(line for line in content.splitlines(keepends=True) if _step_of(line) <= start_step)
    if kept != content:
        _replace(path, kept)


def _step_of(line: bytes) -> float:
    """The step of a line of metrics; infinite for a line that is no whole event."""
    try:
        event = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return math.inf
    step = event.get("step") if isinstance(event, dict) else None
    return step if isinstance(step, int) else math.inf


def _cut_events(path: pathlib.Path, start_step: int) -> set[tuple[str, int]]:
    """Keeps the whole events with a step of at most `start_step`; returns what they hold, as (tag, step)."""
    records: list[bytes] = []
    kept: list[bytes] = []
    found: set[tuple[str, int]] = set()
    try:
        for record in tf.data.TFRecordDataset([str(path)]):
            records.append(record.numpy())
    except tf.errors.DataLossError:
        pass  # the last event was cut off by the kill; those before it are whole
    for record in records:
        event = tf.compat.v1.Event.FromString(record)
        if event.step > start_step:
            continue
        kept.append(record)
        found.update((value.tag, 0 if value.tag == _HPARAMS else event.step) for value in event.summary.value)
        if event.graph_def:
            found.add((_GRAPH, 0))
    size = sum(len(record) + 16 for record in kept)  # a record's length, two checksums and the bytes themselves
    if size != path.stat().st_size:
        cut = path.with_name(f"{path.name}.cut")
        with tf.io.TFRecordWriter(str(cut)) as writer:
            for record in kept:
                writer.write(record)
        _put(cut, path)
    return found


def _replace(path: pathlib.Path, content: bytes) -> None:
    cut = path.with_name(f"{path.name}.cut")
    cut.write_bytes(content)
    _put(cut, path)


def _put(new: pathlib.Path, path: pathlib.Path) -> None:
    """Moves a finished file into the place of another one: on the disk first, then under its name."""
    with open(new, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(new, path)


# ---- what a window looks like ------------------------------------------------------------------------------------


def _sampled(values: Any) -> tf.Tensor:
    flat = tf.reshape(tf.convert_to_tensor(values), [-1])
    return flat[::max(1, int(flat.shape[0]) // _HISTOGRAM_VALUES)]


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


# ---- pictures ----------------------------------------------------------------------------------------------------


def _filter_sheet(filters: np.ndarray) -> np.ndarray:
    """Every filter as a tile, `[height, width, 3]` uint8: RGB for three channels, else blue (> 0) to red (< 0), as in
    reports.
    """
    from matplotlib import colormaps

    scale = max(float(np.abs(filters).max()), 1e-12)
    tiles = np.moveaxis(filters, -1, 0) / (2 * scale) + 0.5
    if tiles.shape[-1] != 3:
        tiles = colormaps["RdBu"](tiles.mean(axis=-1))[..., :3]
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    tiles = np.pad(tiles, ((0, rows * columns - len(tiles)), (1, 1), (1, 1), (0, 0)), constant_values=1.0)
    height, width = tiles.shape[1:3]
    sheet = tiles.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    zoom = max(1, 480 // max(sheet.shape[:2]))
    return (255 * sheet.repeat(zoom, axis=0).repeat(zoom, axis=1)).astype(np.uint8)


def _raster_picture(trains: Mapping[str, np.ndarray]) -> np.ndarray:
    """Time to the right, a band of neurons per layer, the input on top; `[height, width, 3]` uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    gap = 4
    bands, middles, top = [], [], 0
    for train in trains.values():
        middles.append(top + train.shape[1] / 2)
        bands += [np.sign(train).T, np.full((gap, train.shape[0]), 2.0)]
        top += train.shape[1] + gap
    # TensorBoard shows pictures 350 pixels wide: half of this, so that letters are still some 9 pixels high there
    figure = Figure(figsize=(5, 0.9 + 0.5 * len(trains)), dpi=140, layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    # colours told apart by the colour-blind: negative spikes orange, none white, spikes dark blue, gaps grey
    colours = ListedColormap(["#d55e00", "#ffffff", "#003f5c", "#dddddd"])
    steps = next(iter(trains.values())).shape[0]
    axes.imshow(np.concatenate(bands[:-1]), colours, vmin=-1, vmax=2, aspect="auto", interpolation="nearest",
                extent=(0.5, steps + 0.5, top - gap, 0))
    axes.set_yticks(middles, list(trains), fontsize=9)
    rates = axes.secondary_yaxis("right")
    rates.set_yticks(middles, [f"{abs(train).mean():.3f}" for train in trains.values()], fontsize=9)
    for side in (axes, rates):
        side.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=9)
    axes.set_xlabel("time step", fontsize=9)
    axes.set_title("spikes of one image; right: mean rate", fontsize=9)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
