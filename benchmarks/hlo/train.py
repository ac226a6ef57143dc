"""Trains a run of train.py that `benchmarks.hlo.pack` packed, where JAX is and TensorFlow is not.

    python3 -m benchmarks.hlo.train packed/RUN --data packed/data --out RUN        # the run's epochs
    python3 -m benchmarks.hlo.train packed/RUN --data packed/data --out RUN --minutes 5
    python3 -m benchmarks.hlo.train packed/RUN packed/OTHER --data packed/data --out RUN --rates 0.0003,0.001

A step is the step of train.py as XLA is given it; batches, crops, flips and learning rates are the same functions of
seed and step (`tfspike.datasets.sampling`, `tfspike.training.schedule`), so this is the run that train.py would make
with `--jit=on`, to rounding. Weights stay on the device. With --minutes, as many epochs are planned as fit, from the
time of a few steps that are then forgotten, and the schedule of the learning rate is that of so many. Of several packed
runs, which differ in their first weights alone, and of several learning rates, all pairs are tried for some hundred
steps, and the one with the best validation accuracy is trained from its beginning.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.hlo import pictures, runner
from tfspike.datasets import sampling
from tfspike.training.schedule import learning_rate

_PACED = 20  # steps that are timed before the first one that counts
_SPARE = 0.93  # share of the time that epochs are planned for
_AHEAD = 16  # steps that may wait on the device
_POLL = 0.2  # seconds between two looks at whether the others are ready


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
    """

    def __init__(self, folder: Path, data: Path, platform: str):
        client = runner.connect(platform)
        import jax

        self._jax, self.device = jax, client.local_devices()[0]
        self.plan = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        self.config = SimpleNamespace(**self.plan["config"])
        images, labels = pictures.read(data)
        self.images = self._put(images)
        self.labels = labels.astype(np.int32)
        self.train_index, self.val_index = sampling.split_indices(
            len(labels), self.config.val_fraction, self.config.seed, self.plan["info"]["name"])
        self.begin_with(folder)
        begin = time.perf_counter()
        self.step, self.validation = (Program(client, folder, name, self.plan[name]) for name in ("step", "validation"))
        self.compile_s = time.perf_counter() - begin
        self._batch = jax.jit(self._pixels)

    def begin_with(self, folder: Path) -> None:
        """Takes the first weights of a packed run."""
        with np.load(folder / "start.npz") as start:
            values = [start[f"v{i}"] for i in range(len(start.files))]
        self.state = [self._put(value.astype(np.float32) if value.dtype == np.float16 else value) for value in values]

    def _put(self, value: Any) -> Any:
        return self._jax.device_put(value, self.device)

    def _pixels(self, images: Any, chosen: Any, tops: Any, lefts: Any, flips: Any) -> Any:
        """Bytes [N, H, W, C] to what the network sees of some of them, cropped and mirrored: float32 [B, H, W, C]."""
        lax, numpy = self._jax.lax, self._jax.numpy
        info, (height, width, channels) = self.plan["info"], images.shape[1:]
        above, before = height // sampling.SIDE_PER_SHIFT, width // sampling.SIDE_PER_SHIFT
        padded = numpy.pad(images[chosen], ((0, 0), (above, above), (before, before), (0, 0)))

        def crop(image: Any, top: Any, left: Any, flip: Any) -> Any:
            part = lax.dynamic_slice(image, (top, left, numpy.int32(0)), (height, width, channels))
            return numpy.where(flip, part[:, ::-1], part)

        found = self._jax.vmap(crop)(padded, tops, lefts, flips).astype(numpy.float32)
        return found * np.asarray(info["scale"], np.float32) + np.asarray(info["offset"], np.float32)

    @property
    def steps_per_epoch(self) -> int:
        return int(self.plan["steps_per_epoch"])

    def batches(self, epoch: int) -> Iterator[tuple[Any, Any]]:
        """Images and labels of every step of an epoch, as `tfspike.datasets.streams.TrainStream` has them."""
        size, config = self.config.batch_size, self.config
        passes = len(self.train_index) // size
        for step in range(epoch * self.steps_per_epoch, (epoch + 1) * self.steps_per_epoch):
            of_data, place = divmod(step, passes)
            order = sampling.epoch_order(len(self.train_index), config.seed, of_data)
            chosen = self.train_index[order[place * size:(place + 1) * size]]
            shifts = self._shifts(step) if self.plan["augment"] else self._unmoved(size)
            yield self._batch(self.images, chosen, *shifts), self.labels[chosen]

    def _shifts(self, step: int) -> tuple[np.ndarray, ...]:
        height, width = self.images.shape[1:3]
        return sampling.shifts(self.plan["mirrored"], self.config.seed, step, self.config.batch_size, height, width)

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
            right += int((np.asarray(output).argmax(axis=1) == self.labels[chosen])[:real].sum())
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


def travelling(value: np.ndarray, half: bool) -> np.ndarray:
    """A variable as it is written: weights in half precision, if that is wanted."""
    return value.astype(np.float16) if half and value.dtype == np.float32 and value.ndim > 1 else value


def wait(together: Path | None, name: str, others: int) -> None:
    """Waits, for a minute at most, until all runs on the card are ready, so that none looks how fast it is alone."""
    if together is None:
        return
    together.mkdir(parents=True, exist_ok=True)
    (together / name).touch()
    begin = time.perf_counter()
    while len(list(together.iterdir())) < others and time.perf_counter() - begin < 60:
        time.sleep(_POLL)


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


def train(run: Run, out: Path, seconds: float, tried: list[dict[str, Any]]) -> dict[str, Any]:
    """Trains, validates after every epoch and writes what `benchmarks.hlo.pack take` reads.

    Args:
      run: the run.
      out: folder to write.
      seconds: for all of it; 0 for the run's own epochs.
      tried: of `choose`, which is kept in the record.
    """
    begin = time.perf_counter()
    config, names = run.config, run.plan["names"]
    step_s, validation_s = run.pace()
    if seconds:
        left = _SPARE * seconds - (time.perf_counter() - begin)
        config.epochs = max(1, min(config.epochs, int(left / (run.steps_per_epoch * step_s + validation_s))))
    card = run.device.device_kind
    print(f"{out.name}: {card}, compiled in {run.compile_s:.0f} s; {1e3 * step_s:.2f} ms a step, {validation_s:.1f} s "
          f"a validation; {config.epochs} epochs", flush=True)
    best, kept, model = -1.0, {}, run.plan["model"]
    record = {"card": card, "jax": run._jax.__version__, "epochs": config.epochs, "best_epoch": 0,
              "compile_s": run.compile_s, "half": run.plan["half"], "tried": tried, "init_from": run.plan["init_from"],
              "commit": run.plan["commit"], "versions": run.plan["versions"], "config": vars(config)}
    with open(out / "metrics.jsonl", "w", encoding="utf-8") as log:
        def line(epoch: int, event: dict[str, Any]) -> None:
            log.write(json.dumps({"step": epoch * run.steps_per_epoch, "time": round(time.time(), 3), **event}) + "\n")
            log.flush()

        for epoch in range(1, config.epochs + 1):
            means, step_s = run.train(epoch - 1)
            numbers = dict(zip(names, means.tolist()))
            accuracy = numbers.pop("correct") / config.batch_size
            rates = {name.removeprefix("rate/"): value for name, value in numbers.items() if name.startswith("rate/")}
            line(epoch, {"event": "train", "train/loss": numbers["loss"], "train/accuracy": accuracy,
                         "learning_rate": learning_rate(config, epoch * run.steps_per_epoch - 1, run.steps_per_epoch),
                         **{name: value for name, value in numbers.items() if "/" in name},
                         "time/seconds_per_step": step_s})
            validated = run.validate()
            line(epoch, {"event": "epoch", "epoch": epoch, "epoch/train_loss": numbers["loss"],
                         "epoch/train_accuracy": accuracy, "epoch/val_accuracy": validated,
                         **{f"epoch_rate/{name}": value for name, value in rates.items()}})
            if validated > best:
                best, kept = validated, {str(i): value for i, value in zip(model, run.weights(model))}
                record |= {"best_epoch": epoch, "val_accuracy": validated}
            print(f"{out.name} {epoch}/{config.epochs}  {1e3 * step_s:.2f} ms  loss {numbers['loss']:.4f}  training "
                  f"{100 * accuracy:.2f} %  validation {100 * validated:.2f} %", flush=True)
            if not np.isfinite(numbers["loss"]):
                break
    np.savez_compressed(out / "weights.npz", **{name: travelling(value, run.plan["half"])
                                                for name, value in kept.items()})
    (out / "record.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    return record


def main(argv: list[str] | None = None) -> int:
    """The command; 2 where nothing can be trained here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folder of a packed run; of others, their first weights")
    parser.add_argument("--data", type=Path, required=True, help="folder of the packed pictures")
    parser.add_argument("--out", type=Path, required=True, help="folder for log and weights")
    parser.add_argument("--minutes", type=float, default=0.0, help="plan as many epochs as fit; default: the run's own")
    parser.add_argument("--epochs", type=int, help="at most; default: the run's own")
    parser.add_argument("--rates", default="", help="learning rates to try; default: the run's own")
    parser.add_argument("--tried", type=int, default=300, help="steps of a trial; default: %(default)s")
    parser.add_argument("--together", type=Path, help="folder where several runs on one card wait for each other")
    parser.add_argument("--others", type=int, default=1, help="how many they are; default: %(default)s")
    parser.add_argument("--platform", choices=("gpu", "cpu"), default="gpu", help="default: %(default)s")
    given = parser.parse_args(argv)
    begin = time.perf_counter()
    try:
        run = Run(given.runs[0], given.data, given.platform)
    except runner.Unusable as error:
        print(error, file=sys.stderr)
        return runner.UNUSABLE
    given.out.mkdir(parents=True, exist_ok=True)
    run.config.epochs = given.epochs or run.config.epochs
    wait(given.together, given.out.name, given.others)
    tried = choose(run, given.runs, [float(rate) for rate in given.rates.split(",") if rate], given.tried)
    left = max(1.0, 60 * given.minutes - (time.perf_counter() - begin)) if given.minutes else 0.0
    train(run, given.out, left, tried)
    return 0


if __name__ == "__main__":
    sys.exit(main())
