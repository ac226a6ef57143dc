"""Trains a run of train.py that `benchmarks.hlo.pack` packed, where JAX is and TensorFlow is not.

    python3 -m benchmarks.hlo.train packed/RUN --data packed/data --out RUN        # the run's epochs
    python3 -m benchmarks.hlo.train packed/RUN --data packed/data --out RUN --minutes 5
    python3 -m benchmarks.hlo.train packed/RUN packed/OTHER --data packed/data --out RUN --rates 0.0003,0.001

A step is the step of train.py as XLA is given it; batches, crops, flips and learning rates are the same functions of
seed and step (`tfspike.datasets.streams`, `tfspike.training.schedule`), so this is the run that train.py would make
with `--jit=on`, to rounding. Weights stay on the device. With --minutes, as many epochs are planned as fit, from the
time of a few steps that are then forgotten, and the schedule of the learning rate is that of so many. Of several packed
runs, which differ in their first weights alone, and of several learning rates, all pairs are tried for some hundred
steps, and the one with the best validation accuracy is trained from its beginning.

Where a card is lent by the minute, a run compiles beside another and then waits for its turn (--after), and begins with
the best weights of one that ended there (--begin_with), as --init_from has it:

    (python3 -m benchmarks.hlo.train packed/SHORT --data packed/data --out SHORT; touch SHORT.done) &
    python3 -m benchmarks.hlo.train packed/LONG --data packed/data --out LONG --after SHORT.done --begin_with SHORT
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.hlo import pictures, runner
from tfspike.datasets import sampling, streams
from tfspike.datasets.arrays import DatasetInfo
from tfspike.training.schedule import learning_rate

DIVERGED = 4  # exit code
_PACED = 20  # steps that are timed before the first one that counts
_SPARE = 0.93  # share of the time that epochs are planned for
_AHEAD = 16  # steps that may wait on the device
_POLLED = 0.2  # seconds between two looks for a file


class Program:
    """A compiled program and which variables are its arguments.

    Args:
      client: of `runner.connect`.
      folder: of the packed run.
      name: "step" or "validation".
      described: its entry in run.json.
    """

    def __init__(self, client: Any, folder: Path, name: str, described: dict[str, Any]):
        self.executable = runner.compiled(client, gzip.decompress((folder / f"{name}.hlo.gz").read_bytes()))
        self.variables: list[int] = described["variables"]
        self.updates: list[tuple[int, int]] = [tuple(pair) for pair in described.get("updates", [])]

    def __call__(self, inputs: list[Any], state: list[Any]) -> list[Any]:
        """Runs it on inputs and on the variables of `state`, where their new values go."""
        found = self.executable.execute([*inputs, *(state[i] for i in self.variables)])
        for result, variable in self.updates:
            state[variable] = found[result]
        return found


class Run:
    """A packed run on a device: weights, data and what trains them.

    Args:
      folder: of the packed run.
      data: folder of the pictures.
      platform: "gpu" or "cpu".
      after: files to wait for once the programs are compiled; data and first weights are read then.
      trained: what this command wrote of another run of the same layers, whose best weights this one begins with.
    """

    def __init__(self, folder: Path, data: Path, platform: str, after: Iterable[Path] = (),
                 trained: Path | None = None):
        client = runner.connect(platform)
        import jax

        self._jax, self.device, self.jax_version = jax, client.local_devices()[0], jax.__version__
        self.plan = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        self.config, self._trained = SimpleNamespace(**self.plan["config"]), trained
        begin = time.perf_counter()
        self.step, self.validation = (Program(client, folder, name, self.plan[name]) for name in ("step", "validation"))
        self.compile_s = time.perf_counter() - begin
        for path in after:
            while not path.exists():
                time.sleep(_POLLED)
        images, labels = pictures.read(data)
        self.images = self._put(images)
        self.info, config = DatasetInfo.from_dict(self.plan["info"]), self.config
        train_index, self.val_index = streams.split_indices(len(labels), config.val_fraction, config.seed,
                                                            self.info.name)
        self.stream = streams.TrainStream(images, labels, train_index, config.batch_size, config.seed, self.info)
        self.begin_with(folder)
        self._batch = jax.jit(self._pixels)

    def begin_with(self, folder: Path) -> None:
        """Takes the first weights of a packed run, the model's of the run that this one goes on from."""
        values = _arrays(folder / "start.npz", "v")
        if self._trained is not None:
            values |= _arrays(self._trained / "weights.npz")
            self.plan["init_from"] = str(self._trained)
        self.state = [self._put(values[i].astype(np.float32) if values[i].dtype == np.float16 else values[i])
                      for i in range(len(values))]

    def _put(self, value: Any) -> Any:
        return self._jax.device_put(value, self.device)

    def _pixels(self, images: Any, chosen: Any, tops: Any, lefts: Any, flips: Any) -> Any:
        """Bytes [N, H, W, C] to what the network sees of some of them, cropped and mirrored: float32 [B, H, W, C]."""
        lax, numpy = self._jax.lax, self._jax.numpy
        height, width, channels = images.shape[1:]
        above, before = height // sampling.SIDE_PER_SHIFT, width // sampling.SIDE_PER_SHIFT
        padded = numpy.pad(images[chosen], ((0, 0), (above, above), (before, before), (0, 0)))

        def crop(image: Any, top: Any, left: Any, flip: Any) -> Any:
            part = lax.dynamic_slice(image, (top, left, numpy.int32(0)), (height, width, channels))
            return numpy.where(flip, part[:, ::-1], part)

        found = self._jax.vmap(crop)(padded, tops, lefts, flips).astype(numpy.float32)
        return found * np.asarray(self.info.scale, np.float32) + np.asarray(self.info.offset, np.float32)

    @property
    def steps_per_epoch(self) -> int:
        return int(self.plan["steps_per_epoch"])

    def batches(self, epoch: int) -> Iterator[tuple[Any, Any]]:
        """Images and labels of every step of an epoch, as `tfspike.datasets.streams.TrainStream` has them."""
        size = self.config.batch_size
        for step in range(epoch * self.steps_per_epoch, (epoch + 1) * self.steps_per_epoch):
            chosen = self.stream.records(step)
            moved = self._unmoved(size) if not self.stream.augment else sampling.shifts(
                self.info.mirrored, self.config.seed, step, size, *self.images.shape[1:3])
            yield self._batch(self.images, chosen, *moved), self.stream.labels[chosen]

    def _unmoved(self, size: int) -> tuple[np.ndarray, ...]:
        height, width = self.images.shape[1:3]
        tops, lefts = (np.full(size, side // sampling.SIDE_PER_SHIFT, np.int32) for side in (height, width))
        return tops, lefts, np.zeros(size, np.int32)

    def train(self, epoch: int, steps: int | None = None) -> tuple[np.ndarray, float]:
        """Takes the steps of an epoch (or the first few).

        Returns:
          Means of what `TrainStep` counts, and the seconds of a step.
        """
        rate, size = self.plan["learning_rate"], self.steps_per_epoch
        total, waiting = None, []
        begin, taken = time.perf_counter(), 0
        for number, (images, labels) in enumerate(self.batches(epoch)):
            if number == steps:
                break
            self.state[rate] = self._put(np.float32(learning_rate(self.config, epoch * size + number, size)))
            counted = self.step([images, self._put(labels), self._put(np.float32(0))], self.state)[0]
            total, taken = counted if total is None else total + counted, number + 1
            waiting.append(counted)
            if len(waiting) > _AHEAD:
                waiting.pop(0).block_until_ready()
        means = np.asarray(total, np.float64) / taken
        return means, (time.perf_counter() - begin) / taken

    def validate(self, records: int | None = None) -> float:
        """Share of the validation records (or the first few) that are answered rightly."""
        size = min(self.config.batch_size, len(self.val_index))
        right, index = 0, self.val_index[:records]
        for part, first in enumerate(range(0, len(index), size)):
            real = len(index[first:first + size])
            chosen = np.concatenate([index[first:first + size], np.full(size - real, self.val_index[0])])
            weights = (np.arange(size) < real).astype(np.float32)
            pixels = self._batch(self.images, chosen, *self._unmoved(size))
            output = self.validation([pixels, self._put(weights), self._put(np.int64(part))], self.state)[0]
            right += int((np.asarray(output).argmax(axis=1) == self.stream.labels[chosen])[:real].sum())
        return right / len(index)

    def pace(self) -> tuple[float, float]:
        """Seconds of a step and of a validation; weights and counters are as before."""
        kept = self.weights(range(len(self.state)))
        self.train(0, 3)
        seconds = self.train(0, _PACED)[1]
        self.validate(self.config.batch_size)
        begin = time.perf_counter()
        self.validate()
        took = time.perf_counter() - begin
        self.state = [self._put(value) for value in kept]
        return seconds, took

    def weights(self, which: Any) -> list[np.ndarray]:
        """Values of some variables."""
        return [np.asarray(self.state[i]) for i in which]


def _arrays(path: Path, prefix: str = "") -> dict[int, np.ndarray]:
    """The arrays of a file, by the number of the variable."""
    with np.load(path) as kept:
        return {int(name.removeprefix(prefix)): kept[name] for name in kept.files}


def travelling(value: np.ndarray, half: bool) -> np.ndarray:
    """A variable as it is written: weights in half precision, if that is wanted."""
    return value.astype(np.float16) if half and value.dtype == np.float32 and value.ndim > 1 else value


def choose(run: Run, starts: list[Path], rates: list[float], steps: int) -> list[dict[str, Any]]:
    """Tries first weights and learning rates, and leaves the best of them in `run`.

    Returns:
      What was tried, the best first: `{"start", "learning_rate", "loss", "val_accuracy"}`; nothing where there is
      nothing to choose.
    """
    rates = rates or [run.config.learning_rate]
    pairs, tried, schedule = [(start, rate) for start in starts for rate in rates], [], run.config.lr_schedule
    if len(pairs) == 1:
        run.config.learning_rate = rates[0]
        return []
    run.config.lr_schedule, run.config.lr_milestones, milestones = "milestones", [], run.config.lr_milestones
    for start, rate in pairs:
        run.begin_with(start)
        run.config.learning_rate = rate
        means, _ = run.train(0, steps)
        tried.append({"start": start.name, "learning_rate": rate, "loss": float(means[0]),
                      "val_accuracy": run.validate()})
        print(f"tried {tried[-1]}", flush=True)
    tried.sort(key=lambda one: -one["val_accuracy"])
    run.config.lr_schedule, run.config.lr_milestones = schedule, milestones
    run.config.learning_rate = tried[0]["learning_rate"]
    run.begin_with(next(start for start in starts if start.name == tried[0]["start"]))
    return tried


class Diary:
    """What `benchmarks.hlo.pack take` reads, written after every epoch: a run that is killed leaves its best so far.

    Args:
      run: that is trained.
      out: folder.
      tried: of `choose`, which is kept.
    """

    def __init__(self, run: Run, out: Path, tried: list[dict[str, Any]]):
        self.run, self.out = run, out
        (out / "metrics.jsonl").write_text("", encoding="utf-8")
        self.record = {"card": run.device.device_kind, "jax": run.jax_version, "epochs": run.config.epochs,
                       "trained": 0, "best_epoch": 0, "val_accuracy": -1.0, "tried": tried, "config": vars(run.config),
                       **{name: run.plan[name] for name in ("half", "init_from", "commit", "versions")}}

    def note(self, epoch: int, means: np.ndarray, step_s: float, validated: float) -> str:
        """Takes down an epoch; returns a line for the user."""
        config, size = self.run.config, self.run.steps_per_epoch
        numbers = dict(zip(self.run.plan["names"], means.tolist()))
        accuracy, loss = numbers.pop("correct") / config.batch_size, numbers["loss"]
        rates = {f"epoch_{name}": value for name, value in numbers.items() if name.startswith("rate/")}
        self._line(epoch * size, {
            "event": "train", "train/loss": loss, "train/accuracy": accuracy,
            "learning_rate": learning_rate(config, epoch * size - 1, size),
            **{name: value for name, value in numbers.items() if "/" in name}, "time/seconds_per_step": step_s})
        self._line(epoch * size, {"event": "epoch", "epoch": epoch, "epoch/train_loss": loss,
                                  "epoch/train_accuracy": accuracy, "epoch/val_accuracy": validated, **rates})
        self.record["trained"] = epoch
        if validated > self.record["val_accuracy"]:
            self.record |= {"best_epoch": epoch, "val_accuracy": validated}
            model = self.run.plan["model"]
            np.savez(self.out / "weights.npz", **{
                str(i): travelling(value, self.run.plan["half"]) for i, value in zip(model, self.run.weights(model))})
        (self.out / "record.json").write_text(json.dumps(self.record, indent=1), encoding="utf-8")
        return (f"{self.out.name} {epoch}/{config.epochs}  {1e3 * step_s:.2f} ms  loss {loss:.4f}  training "
                f"{100 * accuracy:.2f} %  validation {100 * validated:.2f} %")

    def _line(self, step: int, event: dict[str, Any]) -> None:
        with open(self.out / "metrics.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps({"step": step, "time": round(time.time(), 3), **event}) + "\n")


def train(run: Run, out: Path, seconds: float, tried: list[dict[str, Any]]) -> int:
    """Trains, and validates after every epoch.

    Args:
      run: the run.
      out: folder to write.
      seconds: for all of it; 0 for the run's own epochs.
      tried: of `choose`.

    Returns:
      The exit code: 4 where the loss is no finite number any more.
    """
    begin, config = time.perf_counter(), run.config
    step_s, validation_s = run.pace()
    if seconds:
        left = _SPARE * seconds - (time.perf_counter() - begin)
        config.epochs = max(1, min(config.epochs, int(left / (run.steps_per_epoch * step_s + validation_s))))
    print(f"{out.name}: {run.device.device_kind}, compiled in {run.compile_s:.0f} s; {1e3 * step_s:.2f} ms a step, "
          f"{validation_s:.1f} s a validation; {config.epochs} epochs", flush=True)
    diary = Diary(run, out, tried)
    for epoch in range(1, config.epochs + 1):
        means, step_s = run.train(epoch - 1)
        if not np.isfinite(means).all():
            print(f"{out.name} diverged in epoch {epoch}; give a smaller --learning_rate, or --clip_norm=1.",
                  file=sys.stderr)
            return DIVERGED
        print(diary.note(epoch, means, step_s, run.validate()), flush=True)
    return 0


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code: 0, 2 where nothing can be trained here, 4 where it diverged."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folder of a packed run; of others, their first weights")
    parser.add_argument("--data", type=Path, required=True, help="folder of the packed pictures")
    parser.add_argument("--out", type=Path, required=True, help="folder for log and weights")
    parser.add_argument("--minutes", type=float, default=0.0, help="plan as many epochs as fit; default: the run's own")
    parser.add_argument("--epochs", type=int, help="at most; default: the run's own")
    parser.add_argument("--rates", default="", help="learning rates to try; default: the run's own")
    parser.add_argument("--tried", type=int, default=300, help="steps of a trial; default: %(default)s")
    parser.add_argument("--after", type=Path, nargs="+", default=[], metavar="FILE",
                        help="compile, and then wait for these files; the time of --minutes begins with them")
    parser.add_argument("--begin_with", type=Path, metavar="OUT", help="best weights of a run that was trained there")
    parser.add_argument("--platform", choices=("gpu", "cpu"), default="gpu", help="default: %(default)s")
    given = parser.parse_args(argv)
    begin = time.perf_counter()
    try:
        run = Run(given.runs[0], given.data, given.platform, given.after, given.begin_with)
    except runner.Unusable as error:
        print(error, file=sys.stderr)
        return runner.UNUSABLE
    if given.after:
        begin = time.perf_counter()
    given.out.mkdir(parents=True, exist_ok=True)
    run.config.epochs = given.epochs or run.config.epochs
    tried = choose(run, given.runs, [float(rate) for rate in given.rates.split(",") if rate], given.tried)
    left = max(1.0, 60 * given.minutes - (time.perf_counter() - begin)) if given.minutes else 0.0
    return train(run, given.out, left, tried)


if __name__ == "__main__":
    sys.exit(main())
