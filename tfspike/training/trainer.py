"""The training loop: small, and its own, because exact resume, several workers and signals need every step in hand.

A run is a function of its configuration, and a run killed anywhere ends with the bits of one that was not: see
`tfspike.training.progress`.
"""

from __future__ import annotations

import functools
import re
import signal
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfspike import datasets, distribution, export
from tfspike.analysis import summary
from tfspike.config.config import Config
from tfspike.datasets import streams
from tfspike.distribution import Worker
from tfspike.errors import UserError
from tfspike.evaluation.evaluator import Evaluator
from tfspike.models import diagnosis, own
from tfspike.models.advice import known_by_heart
from tfspike.models.initialisation import initialise_rates
from tfspike.models.network import window_of
from tfspike.neurons.over_time import WindowDropout
from tfspike.output import counted
from tfspike.runs import initial_weights, workdir
from tfspike.runs import loading as run_loading
from tfspike.runs.run_log import RunLog
from tfspike.training.board import Board
from tfspike.training.optimisation import make_optimizer
from tfspike.training.pace import Pace, Speed, clock
from tfspike.training.profiling import Profile
from tfspike.training.progress import Progress, Sums
from tfspike.training.schedule import learning_rate
from tfspike.training.signals import Signals, Stopped
from tfspike.training.windows import Window, Windows

_LAG = 8  # steps whose numbers may wait on the device before they are looked at
_DESCRIBED = 32  # first images of training and validation that pictures and energy are made of
_NAMELESS = re.compile(r"variable(_\d+)?")  # Keras' own name, with a number that counts what a process made
_KERNELS = {"dense": "dense convolutions", "events": "event-driven"}
_RATE_SAMPLES = 32  # images that the rate-targeted initialisation looks at
_KNOWN = 3  # times that an image must have been seen before it may be known by heart
_REACHED = 0.8  # share of the wanted rate below which a layer has not reached it


def _refuse_nameless(config: Config, model: Any) -> None:
    """Says before hours of training what would not be found in a checkpoint."""
    plan = window_of(model)
    calls = plan.own_neurons if plan is not None else []
    if any(_NAMELESS.fullmatch(variable.name) for call in calls for variable in call.layer.variables):
        raise UserError(f"--neuron={config.neuron} has a weight without a name, which no checkpoint could give back; "
                        "name it, as in add_weight(..., name=\"leak\").")


def _refuse_exports(config: Config, model: Any) -> None:
    """The same of what could not be exported."""
    try:
        export.refuse(model, config.export)
    except UserError as error:
        raise UserError(f"{error} To train without exports, give --export=none.") from None


class Trainer:
    """Everything one run needs, built; `train` runs it.

    Args:
      config: resolved settings.
      strategy: of the run.
      worker: this worker.
      say: takes lines for the user.
    """

    def __init__(self, config: Config, strategy: tf.distribute.Strategy, worker: Worker, say: workdir.Say):
        self.config, self.strategy, self.worker, self.say = config, strategy, worker, say
        distribution.check_batch(config.batch_size, strategy.num_replicas_in_sync)
        own.load(config.surrogate, config.neuron)  # what is wrong with them is said before the data are read
        self.data = datasets.load(config.dataset, "train", config.data_dir, config.timesteps, config.extra,
                                  config.image_size, sensor_size=config.sensor_size, window_ms=config.window_ms)
        self.train_index, self.val_index = streams.split_indices(len(self.data), config.val_fraction, config.seed,
                                                                 self.data.name)
        self.info = datasets.describe(self.data, self.train_index, config.augment)
        self.stream = streams.TrainStream(self.data.images, self.data.labels, self.train_index, config.batch_size,
                                          config.seed, self.info, shard=(worker.index, worker.count))
        steps_per_epoch = config.steps_per_epoch or max(self.stream.steps_per_epoch, config.min_steps_per_epoch)
        keras.utils.set_random_seed(config.seed)  # nothing here draws from it; a layer of the user's might
        with strategy.scope():
            self.model = run_loading.build_model(config, self.info)
            _refuse_nameless(config, self.model)
            self.optimizer = make_optimizer(config, self.model.trainable_variables)
        if worker.is_chief:  # who exports
            _refuse_exports(config, self.model)
        self.windows = Windows(config, self.model, self.optimizer, strategy,
                               self._evaluator if len(self.val_index) else None)
        self.progress = Progress(config, self.model, self.optimizer, steps_per_epoch, len(self.val_index) > 0)
        self.by_heart = False  # whether it was said at the end that the training images are known by heart
        self._window: Window | None = None
        self._open_window()
        self.board = Board(config, self.model, *(self.info.normalise(self.data.images[part[:_DESCRIBED]])
                                                 for part in (self.train_index, self.val_index)))
        self._rate: float | None = None  # what the optimiser was told last
        self._lock: Any = None

    def _evaluator(self, model: Any) -> Evaluator:
        config, replicas = self.config, self.strategy.num_replicas_in_sync
        return Evaluator(model, self.data.images, self.data.labels, self.info, config.batch_size, self.val_index,
                         self.strategy, self.worker, config.loss,
                         distribution.compiles(config.jit, replicas, config.deterministic))

    def _open_window(self) -> None:
        """Takes the window of the epoch that the next step is in, if it is another."""
        window = self.windows.at(self.progress.step // self.progress.steps_per_epoch)
        if window is not self._window:
            self._window = window
            self.train_step, self.evaluator = window

    def most_frequent(self) -> float:
        """Share of the most frequent class among the validation records: the accuracy of who looks at no image."""
        return float(np.bincount(self.data.labels[self.val_index]).max() / len(self.val_index))

    @functools.cached_property
    def data_record(self) -> dict[str, Any]:
        """What config.json keeps of the data; the same throughout."""
        split = streams.split_record(self.data.name, self.config.val_fraction, self.config.seed, self.train_index,
                                     self.val_index)
        return {"info": self.info.to_dict(), "split": split, "steps_per_epoch": self.progress.steps_per_epoch,
                **self.data.fingerprint()}

    def say_layers(self, batch_size: int, rates: Mapping[str, float] | None = None) -> None:
        """Says the table of layers for so many images per device, with firing rates where they are known; and warns
        where training will probably not fit into this machine's memory."""
        optimizer = self.config.optimizer
        self.say(summary.layer_table(self.model, batch_size, optimizer=optimizer, rates=rates))
        if self.model.is_spiking and not distribution.has_gpu():
            warning = summary.memory_warning(self.model, batch_size, optimizer)
            if warning is not None:
                self.say(f"Warning: {warning}")

    def initialise(self, init_from: str | None) -> None:
        """First weights of a new run; `--init=rate` scales an ANN twin's as well, which know no firing rate."""
        self._say_of_empty_steps()
        to_be_scaled = init_from is None or initial_weights.load(self.model, init_from, self.say, self.config)
        if to_be_scaled and self.config.init == "rate":
            first = streams.TrainStream(self.data.images, self.data.labels, self.train_index, self.config.batch_size,
                                        self.config.seed, self.info).batch(0)[0]
            rates = initialise_rates(self.model, first[:_RATE_SAMPLES], self.config.target_rate, self.config.seed)
            target = self.config.target_rate
            below = {name: rate for name, rate in rates.items() if rate < _REACHED * target}
            self.say(f"First weights scaled to {target:g} spikes per step in "
                     f"{counted(len(rates) - len(below), 'layer')}."
                     + "".join(f" No scale brings {name} there: {rate:.3g}." for name, rate in below.items()))

    def _say_of_empty_steps(self) -> None:
        """Images that are scaled to less than 1, as digits are, leave the first steps of a latency code empty."""
        config, largest = self.config, self.info.largest
        if config.encoder == "latency" and config.earliest == "one":
            empty = int((1.0 - largest) * config.timesteps)
            if empty > 0:
                self.say(f"No pixel of {self.info.name} exceeds {largest:g}, so that none spikes in the first "
                         f"{counted(empty, 'step')} of {config.timesteps}; with --earliest=largest the brightest spike "
                         "at the first.")

    def choose_kernel(self, restored: bool) -> None:
        """What --kernel=auto is: in a new run measured, on its first batch with its first weights, and then the same in
        all parts of the run, wherever they run. Follows `initialise` or `Progress.restore`."""
        config, at = self.config, self.progress
        if config.kernel != "auto" or not config.is_spiking:
            return
        if restored:
            reason = "as this run began"
        elif self.strategy.num_replicas_in_sync > 1:
            reason = "several devices train together"
        elif self.train_step.compiled:
            reason = "steps are compiled as a whole"
        elif config.deterministic:
            reason = "a measurement would not be --deterministic"
        else:
            at.kernel, reason = self.model.choose_kernel(self.stream.batch(0)[0])
        self.say(f"Synapses: {_KERNELS[at.kernel]} (--kernel=auto: {reason}).")

    def use_kernel(self) -> None:
        """Has every window computed as `choose_kernel` found on the first worker."""
        if self.progress.kernel == "events":
            self.windows.use_kernel("events")

    # ---- the loop ----------------------------------------------------------------------------------------------

    def train(self, log: RunLog, stop: Signals) -> None:
        """Runs the steps that are left.

        Raises:
          Stopped: after a signal, with everything saved.
          diagnosis.Diverged: NaN or Inf, or a collapse.
          WorkerLost: another worker is gone.
        """
        at = self.progress
        self.log = log
        self.board.describe(log)
        self.watch = diagnosis.Watch(self.model, self.config)
        if at.watched is not None:
            self.watch.restore(at.watched)
        self.watch.saved(at.last_saved)
        if at.step >= at.last_step:
            self.watch.refuse_collapsed_end(at.step)
            return
        if schedule := self.windows.said():
            self.say(schedule)
        self._open_window()
        batches = iter(distribution.distribute(self.strategy, self.stream.dataset(at.step), self.worker))
        self.speed = Speed(at.step)
        wanted = self.config.profile and self.worker.is_chief
        with Profile(str(self.config.workdir), at.step, at.last_step, wanted, self.say) as profile:
            self._loop(batches, stop, profile)

    def _loop(self, batches: Iterator[Any], stop: Signals, profile: Profile) -> None:
        config, at = self.config, self.progress
        pending: list[tuple[int, tf.Tensor]] = []
        pace = Pace(at.last_step, config.epochs)
        while at.step < at.last_step:
            if at.step % at.steps_per_epoch == 0:
                self._open_window()
            self._set_learning_rate()
            images, labels = next(batches)
            profile.before(at.step)
            values = self.train_step(images, labels, stop.received is not None)
            at.step += 1
            profile.after(at.step, values)
            pending.append((at.step, values))
            asked = self._asked_to_stop(stop, values)
            ends = at.step % at.steps_per_epoch == 0
            logs = ends or at.step % config.log_every == 0
            saves = config.checkpoint_every > 0 and at.step % config.checkpoint_every == 0
            if len(pending) >= _LAG or logs or saves or asked:
                self._look_at(pending)
            for line in pace.after(at.step):
                self.say(line)
            if logs:
                self._report()
            if ends:
                self._end_epoch()
            elif saves or asked:
                self._save()
            if asked:
                raise Stopped(stop.received or signal.SIGTERM)
        self.watch.refuse_collapsed_end(at.step)

    def _set_learning_rate(self) -> None:
        rate = learning_rate(self.config, self.progress.step, self.progress.steps_per_epoch)
        if rate != self._rate:
            self.optimizer.learning_rate = self._rate = rate

    def _asked_to_stop(self, stop: Signals, values: tf.Tensor) -> bool:
        """Whether to stop after this step. Several workers stop after the same one: the flag went through it."""
        if self.worker.count == 1:
            return stop.received is not None
        return self.train_step.numbers(values)["stop"] > 0

    def _look_at(self, pending: list[tuple[int, tf.Tensor]]) -> None:
        """Takes the numbers of past steps from the device, in order."""
        for step, values in pending:
            numbers = self.train_step.numbers(values)
            del numbers["stop"]
            numbers["accuracy"] = numbers.pop("correct") / self.config.batch_size
            rate = learning_rate(self.config, step - 1, self.progress.steps_per_epoch)
            for warning in self.watch.update(step, {**numbers, "learning_rate": rate}):
                self.say(f"Warning: {warning}")
            self.progress.epoch_sums.add(numbers)
            self.progress.interval.add(numbers)
        pending.clear()

    def _settle(self) -> bool:
        """Goes on in a new folder, with new logs, where that of the run is gone; whether it was."""
        lock = workdir.settle_again(self.config, self.data_record, self.say) if self.worker.is_chief else None
        if lock is not None:
            self._lock, self.progress.best = lock, None  # the best so far went with the old folder
            self.log.begin_anew()
            self.board.describe(self.log)
        return lock is not None

    def _report(self) -> None:
        """Line of progress and metrics: means over the steps since the last one."""
        self._settle()
        at, means = self.progress, self.progress.interval.means()
        at.interval = Sums()
        per_second, left = self.speed.look(at.step), self.speed.left(at.step, at.last_step)
        epoch, step = divmod(at.step - 1, at.steps_per_epoch)
        self.say(f"epoch {epoch + 1}/{self.config.epochs}  step {step + 1}/{at.steps_per_epoch}  "
                 f"loss {means['loss']:.4f}  accuracy {100 * means['accuracy']:5.1f} %  "
                 f"{per_second * self.config.batch_size:.0f} images/s  {clock(left)} left")
        self.log.scalars(at.step, {
            "train/loss": means.pop("loss"), "train/accuracy": means.pop("accuracy"),
            "learning_rate": learning_rate(self.config, at.step - 1, at.steps_per_epoch), **means,
            "time/images_per_second": per_second * self.config.batch_size, "time/seconds_per_step": 1.0 / per_second},
            event="train")

    def _end_epoch(self) -> None:
        """Validation, records, checkpoint: in this order, so that a kill in between repeats all of it."""
        self._settle()
        at = self.progress
        epoch, means = at.step // at.steps_per_epoch, at.epoch_sums.means()
        record = {"epoch/train_loss": means["loss"], "epoch/train_accuracy": means["accuracy"]}
        rates = {name.removeprefix("rate/"): value for name, value in means.items() if name.startswith("rate/")}
        text, best, advice = "", False, None
        if self.evaluator is not None:
            result = self.evaluator.run()
            record |= {"epoch/val_loss": result.loss, "epoch/val_accuracy": result.accuracy}
            best = at.note_validation(result.accuracy)
            seen = at.step * self.config.batch_size / len(self.train_index)
            if at.step >= at.last_step and seen >= _KNOWN:
                has_dropout = any(isinstance(layer, WindowDropout) for layer in self.model.layers)
                advice = known_by_heart(means["accuracy"], result.accuracy, len(self.val_index), self.info,
                                        has_dropout)
            text = f"  validation loss {result.loss:.4f}  accuracy {100 * result.accuracy:.2f} %" + " (best)" * best
        self.say(f"epoch {epoch} done  training loss {means['loss']:.4f}  accuracy {100 * means['accuracy']:.2f} %"
                 + text)
        if rates:
            self.say("  spikes per step: " + "  ".join(f"{name} {rate:.4f}" for name, rate in rates.items()))
        energy = self.board.energy() if self.worker.is_chief else {}
        by_layer = {f"epoch_rate/{name}": rate for name, rate in rates.items()}
        self.log.scalars(at.step, {**record, **by_layer, **energy}, dict.fromkeys(energy, self.board.energy_note),
                         event="epoch", epoch=epoch)
        self.board.pictures(self.log, at.step)
        at.epoch_sums = Sums()
        self.by_heart = advice is not None
        if advice is not None:
            self.say(advice)
        self._save(best)
        self.speed.restart(at.step)  # validation does not count as training time

    def _save(self, best: bool = False) -> None:
        """Writes a checkpoint of this moment, and all that was logged until now."""
        if not self.worker.is_chief:
            return
        validated = self.progress.best if best else None
        if self._settle():
            self.progress.best, best = validated, True
        self.log.flush()
        living = self.watch.last_living
        self.watch.saved(self.progress.save(best, None if living is None else str(living), self.watch.state()))
