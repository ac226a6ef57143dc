"""The record of a run: `metrics.jsonl` for programs, TensorBoard for the eye; both without gaps or doubles on resume.

A run that is killed leaves events behind the checkpoint it will continue from, and perhaps half an event at the end of
a file. Opening the log again at the checkpoint's step cuts both: every file is rewritten without them under another
name and put in place by one rename, so that a second kill at any moment leaves either the old file or the new one.

Every line says when it was written ("time", seconds since 1970), and what the run had cost by then
("time/processor_seconds": user and system seconds of all threads of its processes, each from its start; what a kill
lost is not counted). Where other work runs beside it, the latter compares runs and the clock does not.
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
from typing import Any, TextIO

import keras
import numpy as np
import tensorflow as tf

from tfspike.errors import UserError
from tfspike.models.network import window_of
from tfspike.runs.results import METRICS, PROCESSOR_SECONDS
from tfspike.runs.workdir import TENSORBOARD

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
        self._metrics: TextIO | None = None
        self._writer: tf.summary.SummaryWriter | None = None
        self._written: set[tuple[str, int]] = set()
        self._before = 0.0  # processor seconds of this run's earlier processes
        if not chief:
            return
        with self._explained():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._cut()
            self._before = _processor_seconds(self._folder / METRICS)
        self._open(tensorboard)

    def _open(self, tensorboard: bool) -> None:
        with self._explained():
            self._metrics = open(self._folder / METRICS, "a", encoding="utf-8")
            if tensorboard:
                self._writer = tf.summary.create_file_writer(str(self._folder / TENSORBOARD), flush_millis=10_000)

    # ---- public ------------------------------------------------------------------------------------------------

    def scalars(self, step: int, values: Mapping[str, float], notes: Mapping[str, str] | None = None,
                **about: Any) -> None:
        """One event: a line of `metrics.jsonl`, and a TensorBoard scalar for every number.

        Args:
          step: training steps so far.
          values: numbers by name, such as "train/loss"; NaN and Inf become null in the file.
          notes: what TensorBoard says of them, a sentence by name.
          about: further JSON values for the line alone, such as `event="epoch"`.
        """
        if self._metrics is None:  # not the chief, or closed
            return
        numbers = {name: float(value) for name, value in values.items()}
        line = {"step": int(step), **about, "time": round(time.time(), 3),
                PROCESSOR_SECONDS: round(self._before + time.process_time(), 3),
                **{name: value if math.isfinite(value) else None for name, value in numbers.items()}}
        with self._explained():
            self._metrics.write(json.dumps(line, allow_nan=False) + "\n")
            self._metrics.flush()
        if self._writer is None:
            return
        with self._tensorboard():
            for name, value in numbers.items():
                tf.summary.scalar(name, value, step=step, description=(notes or {}).get(name))

    @property
    def pictured(self) -> bool:
        """Whether `histograms` and `images` write anything: what they are made of need not be computed otherwise."""
        return self._writer is not None

    def histograms(self, step: int, values: Mapping[str, np.ndarray | tf.Tensor]) -> None:
        """A histogram of every array, by name, such as "membrane/conv1_lif".

        Args:
          step: training steps so far.
          values: arrays of any shape; large ones are thinned evenly.
        """
        if self._writer is None:
            return
        with self._tensorboard():
            for name, array in values.items():
                tf.summary.histogram(name, _sampled(array), step=step)

    def images(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Pictures `[height, width, 3]` uint8, by name."""
        if self._writer is None:
            return
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

    def graph(self, model: keras.Model, example: np.ndarray | tf.Tensor) -> None:
        """The network's graph, layer by layer (`call_layers`); not for models whose graph cannot be traced.

        Args:
          model: a spiking model.
          example: an input `[B, ...]`; only shape and dtype are used.
        """
        if window_of(model) is None or not self._once(_GRAPH):
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
        if self._metrics is None:
            return
        with self._explained():
            self._metrics.flush()
            os.fsync(self._metrics.fileno())
            if self._writer is not None:
                self._writer.flush()

    def begin_anew(self) -> None:
        """Goes on in new files, where the folder that held the others was moved or deleted and made again."""
        if self._metrics is None:
            return
        self._metrics.close()
        if self._writer is not None:
            with contextlib.suppress(tf.errors.OpError):  # the last lines of a file that may be gone
                self._writer.close()
        self._written.clear()
        self._open(self._writer is not None)

    def close(self) -> None:
        """Writes what is left and closes the files."""
        if self._metrics is None:
            return
        try:
            self.flush()
        finally:
            metrics, self._metrics = self._metrics, None
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
        assert self._writer is not None, "whoever writes has asked"
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


def _processor_seconds(path: pathlib.Path) -> float:
    """What the last line of metrics says that the run had cost; 0 where it begins, and after earlier versions."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    return float(json.loads(lines[-1]).get(PROCESSOR_SECONDS) or 0.0) if lines else 0.0


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


def _sampled(values: np.ndarray | tf.Tensor) -> tf.Tensor:
    flat = tf.reshape(tf.convert_to_tensor(values), [-1])
    return flat[::max(1, int(flat.shape[0]) // _HISTOGRAM_VALUES)]
