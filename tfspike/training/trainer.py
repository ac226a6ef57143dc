"""The training loop of a run."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfspike import datasets, distribution
from tfspike.analysis import simulation
from tfspike.config.config import Config
from tfspike.datasets import streams
from tfspike.distribution import Place
from tfspike.errors import UserError
from tfspike.evaluation.evaluator import Evaluator
from tfspike.models import diagnosis, variables
from tfspike.models.initialisation import initialise_rates
from tfspike.runs import checkpoints, initial_weights, provenance, workdir
from tfspike.runs import loading as run_loading
from tfspike.runs.run_log import RunLog
from tfspike.training.optimisation import learning_rate, make_optimizer
from tfspike.training.pace import Pace, clock
from tfspike.training.profiling import Profile
from tfspike.training.signals import Signals, Stopped
from tfspike.training.step import Sums, TrainStep

_LAG = 8  # steps whose numbers may wait on the device before they are looked at
_LOGGED = 4  # training images that membranes are logged of: the cost of an epoch's pictures must not show
_METERED = 32  # held-out images that energy is logged of: it differs by a third from image to image
_RATE_SAMPLES = 32  # images that the rate-targeted initialisation looks at


class Trainer:
    """Everything one run needs, built; `train` runs it.

    Args:
      config: resolved settings.
      strategy: of the run.
      where: this worker.
      say: takes lines for the user.
    """

    def __init__(self, config: Config, strategy: tf.distribute.Strategy, where: Place, say: workdir.Say):
        self.config, self.strategy, self.where, self.say = config, strategy, where, say
        distribution.check_batch(config.batch_size, strategy.num_replicas_in_sync)
        self.data = datasets.load(config.dataset, "train", config.data_dir, config.timesteps, config.extra)
        self.train_index, self.val_index = streams.split_indices(len(self.data), config.val_fraction, config.seed,
                                                                 self.data.name)
        self.info = datasets.describe(self.data, self.train_index, config.augment)
        self.stream = streams.TrainStream(self.data.images, self.data.labels, self.train_index, config.batch_size,
                                          config.seed, self.info, shard=(where.worker, where.workers))
        self.steps_per_epoch = config.steps_per_epoch or max(self.stream.steps_per_epoch, config.min_steps_per_epoch)
        keras.utils.set_random_seed(config.seed)  # nothing here draws from it; a layer of the user's might
        with strategy.scope():
            self.model = run_loading.build_model(config, self.info)
            self.optimizer = make_optimizer(config)
            self.optimizer.build(self.model.trainable_variables)
        self.train_step = TrainStep(self.model, self.optimizer, strategy, config)
        self.evaluator = Evaluator(self.model, self.data.images, self.data.labels, self.info, config.batch_size,
                                   self.val_index, strategy, where, config.loss) if len(self.val_index) else None
        self.step = 0
        self._rate: float | None = None  # what the optimiser was told last
        self.epoch_sums, self.interval = Sums(), Sums()
        self.best: dict[str, float] | None = None
        self.last_saved: str | None = None
        self.log: Any = None
        self.watch: Any = None
        self._lock: Any = None

    def example(self, count: int = 1) -> np.ndarray:
        """The first training images, as the model takes them, for pictures, the graph and what is counted exactly."""
        return self.info.normalise(self.data.images[self.train_index[:count]])

    def describe(self, log: RunLog) -> None:
        """What TensorBoard shows of the run apart from its numbers."""
        log.text("config", "\n".join(["| setting | value |", "|---|---|", *(
            f"| {name} | {value} |" for name, value in dataclasses.asdict(self.config).items())]))
        log.text("command", f"`{provenance.continuing_command(self.config)}`")
        # of what distinguishes experiments: the dashboard shows a handful of columns, in the order of the alphabet
        log.hyperparameters({field.name: getattr(self.config, field.name) for field in dataclasses.fields(self.config)
                             if field.metadata["experiment"] and not field.metadata["path"]})
        log.graph(self.model, self.example())

    def most_frequent(self) -> float:
        """Share of the most frequent class among the validation records: the accuracy of who looks at no image."""
        return float(np.bincount(self.data.labels[self.val_index]).max() / len(self.val_index))

    # ---- first weights and checkpoints -------------------------------------------------------------------------

    @property
    def folder(self) -> str:
        """The checkpoints' folder."""
        return os.path.join(str(self.config.workdir), workdir.CHECKPOINTS)

    @property
    def last_step(self) -> int:
        return self.config.epochs * self.steps_per_epoch

    def data_record(self) -> dict[str, Any]:
        """What config.json keeps of the data."""
        split = streams.split_record(self.data.name, self.config.val_fraction, self.config.seed, self.train_index,
                                     self.val_index)
        return {"info": self.info.to_dict(), "split": split, "steps_per_epoch": self.steps_per_epoch}

    def initialise(self, init_from: str | None) -> None:
        """First weights of a new run."""
        if init_from is not None:
            initial_weights.load(self.model, init_from, self.say)
        elif self.config.init == "rate":
            first = streams.TrainStream(self.data.images, self.data.labels, self.train_index, self.config.batch_size,
                                        self.config.seed, self.info).batch(0)[0]
            rates = initialise_rates(self.model, first[:_RATE_SAMPLES], self.config.target_rate, self.config.seed)
            self.say(f"First weights scaled to {self.config.target_rate:g} spikes per step in {len(rates)} layers.")

    def restore(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Goes back to where a checkpoint was written."""
        source = f"The checkpoint {checkpoint.path}"
        progress: Any = checkpoint.meta.get("progress")
        try:
            self.epoch_sums, self.interval = (Sums(**progress[name]) for name in ("epoch_sums", "interval"))
            self.best, saved_length = progress["best"], progress["steps_per_epoch"]
        except (TypeError, KeyError):
            raise UserError(f"{source} lacks the progress of its run; use another one.") from None
        if saved_length != self.steps_per_epoch:
            raise UserError(f"{source} is of a run with {saved_length} steps per epoch, and the data now give "
                            f"{self.steps_per_epoch}: they have changed. Restore them, or give another --workdir.")
        variables.restore(self.model.variables, checkpoint.arrays("model"), source)
        variables.restore(self.optimizer.variables, checkpoint.arrays("optimizer"), source)
        self.step, self.last_saved = checkpoint.step, checkpoint.path

    def save(self, best: bool = False) -> None:
        """Writes a checkpoint of this moment; only of finite weights."""
        if not self.where.is_chief:
            return
        broken = diagnosis.nonfinite_layer(self.model)
        if broken is not None:
            raise diagnosis.Diverged(
                f"The weights of {broken} are no longer finite numbers (step {self.step}): training has diverged. The "
                f"last good checkpoint is {self.last_saved}; start again with a smaller --learning_rate or "
                "--clip_norm=1.")
        if self.log is not None:
            lock = workdir.settle_again(self.config, self.data_record(), self.say)
            if lock is not None:  # the best so far went with the old folder
                self._lock, self.best, best = lock, self.best if best else None, True
            self.log.flush()
        progress = {"epoch_sums": dataclasses.asdict(self.epoch_sums), "interval": dataclasses.asdict(self.interval),
                    "best": self.best, "steps_per_epoch": self.steps_per_epoch}
        parts = {"model": variables.collect(self.model.variables),
                 "optimizer": variables.collect(self.optimizer.variables)}
        self.last_saved = checkpoints.save(self.folder, self.step, parts,
                                           {"config": dataclasses.asdict(self.config), "progress": progress},
                                           self.config.keep_checkpoints, best or self.evaluator is None,
                                           spare=self.watch and self.watch.last_living)
        if self.watch is not None:
            self.watch.saved(self.last_saved)

    def share_state(self) -> None:
        """Gives every worker the first one's weights and step."""
        if self.where.workers == 1:
            return
        variables = [*self.model.variables, *self.optimizer.variables]
        step = np.asarray(self.step, np.int32)
        mine = [*(v.value.numpy() for v in variables), step]
        *values, step = distribution.from_chief(self.strategy, self.where, mine)
        for variable, value in zip(variables, values):
            variable.assign(value)
        self.step = int(step)

    # ---- the loop ----------------------------------------------------------------------------------------------

    def train(self, log: RunLog, stop: Signals) -> None:
        """Runs the steps that are left.

        Raises:
          Stopped: after a signal, with everything saved.
          diagnosis.Diverged: NaN or Inf, or a collapse.
          WorkerLost: another worker is gone.
        """
        self.log = log
        self.watch = diagnosis.Watch(self.model, self.config)
        self.watch.last_checkpoint = self.last_saved
        if self.step >= self.last_step:
            return
        batches = iter(distribution.distribute(self.strategy, self.stream.dataset(self.step), self.where))
        self._clock, self._first_step, self._shown = time.monotonic(), self.step, (time.monotonic(), self.step)
        wanted = self.config.profile and self.where.is_chief
        with Profile(str(self.config.workdir), self.step, self.last_step, wanted, self.say) as profile:
            self._loop(batches, stop, profile)

    def _loop(self, batches: Iterator[Any], stop: Signals, profile: Profile) -> None:
        pending: list[tuple[int, tf.Tensor]] = []
        pace = Pace(self.last_step, self.config.epochs)
        while self.step < self.last_step:
            self._set_learning_rate()
            images, labels = next(batches)
            profile.before(self.step)
            values = self.train_step(images, labels, stop.received is not None)
            self.step += 1
            profile.after(self.step, values)
            pending.append((self.step, values))
            asked = self._asked_to_stop(stop, values)
            ends = self.step % self.steps_per_epoch == 0
            logs = ends or self.step % self.config.log_every == 0
            saves = self.config.checkpoint_every > 0 and self.step % self.config.checkpoint_every == 0
            if len(pending) >= _LAG or logs or saves or asked:
                self._look_at(pending)
            for line in pace.after(self.step):
                self.say(line)
            if logs:
                self._report()
            if ends:
                self._end_epoch()
            elif saves or asked:
                self.save()
            if asked:
                raise Stopped(stop.received or signal.SIGTERM)
        self.watch.refuse_collapsed_end(self.step)

    def _set_learning_rate(self) -> None:
        rate = learning_rate(self.config, self.step, self.steps_per_epoch)
        if rate != self._rate:
            self.optimizer.learning_rate = self._rate = rate

    def _asked_to_stop(self, stop: Signals, values: tf.Tensor) -> bool:
        """Whether to stop after this step. Several workers stop after the same one: the flag went through it."""
        if self.where.workers == 1:
            return stop.received is not None
        return self.train_step.numbers(values)["stop"] > 0

    def _look_at(self, pending: list[tuple[int, tf.Tensor]]) -> None:
        """Takes the numbers of past steps from the device, in order."""
        for step, values in pending:
            numbers = self.train_step.numbers(values)
            del numbers["stop"]
            numbers["accuracy"] = numbers.pop("correct") / self.config.batch_size
            rate = learning_rate(self.config, step - 1, self.steps_per_epoch)
            for warning in self.watch.update(step, {**numbers, "learning_rate": rate}):
                self.say(f"Warning: {warning}")
            self.epoch_sums.add(numbers)
            self.interval.add(numbers)
        pending.clear()

    def _report(self) -> None:
        """Line of progress and metrics: means over the steps since the last one."""
        now, (then, before) = time.monotonic(), self._shown
        speed = (self.step - before) / max(now - then, 1e-9)
        self._shown = now, self.step
        means = self.interval.means()
        self.interval = Sums()
        epoch = (self.step - 1) // self.steps_per_epoch
        left = (self.last_step - self.step) * (now - self._clock) / (self.step - self._first_step)
        self.say(f"epoch {epoch + 1}/{self.config.epochs}  step {self.step - epoch * self.steps_per_epoch}/"
                 f"{self.steps_per_epoch}  loss {means['loss']:.4f}  accuracy {100 * means['accuracy']:5.1f} %  "
                 f"{speed * self.config.batch_size:.0f} images/s  {clock(left)} left")
        self.log.scalars(self.step, {
            "train/loss": means.pop("loss"), "train/accuracy": means.pop("accuracy"),
            "learning_rate": learning_rate(self.config, self.step - 1, self.steps_per_epoch), **means,
            "time/images_per_second": speed * self.config.batch_size, "time/seconds_per_step": 1.0 / speed},
            event="train")

    def _end_epoch(self) -> None:
        """Validation, records, checkpoint: in this order, so that a kill in between repeats all of it."""
        epoch = self.step // self.steps_per_epoch
        means = self.epoch_sums.means()
        record = {"epoch/train_loss": means["loss"], "epoch/train_accuracy": means["accuracy"]}
        rates = {name.removeprefix("rate/"): value for name, value in means.items() if name.startswith("rate/")}
        text, best = "", False
        if self.evaluator is not None:
            result = self.evaluator.run()
            record |= {"epoch/val_loss": result.loss, "epoch/val_accuracy": result.accuracy}
            best = self.best is None or result.accuracy > self.best["val_accuracy"]
            if best:
                self.best = {"step": self.step, "epoch": epoch, "val_accuracy": result.accuracy}
            text = f"  validation loss {result.loss:.4f}  accuracy {100 * result.accuracy:.2f} %" + " (best)" * best
        self.say(f"epoch {epoch} done  training loss {means['loss']:.4f}  accuracy {100 * means['accuracy']:.2f} %"
                 + text)
        if rates:
            self.say("  spikes per step: " + "  ".join(f"{name} {rate:.4f}" for name, rate in rates.items()))
        energy = self._energy() if self.where.is_chief else {}
        by_layer = {f"epoch_rate/{name}": rate for name, rate in rates.items()}
        self.log.scalars(self.step, {**record, **by_layer, **energy},
                         dict.fromkeys(energy, self._energy_note), event="epoch", epoch=epoch)
        if self.log.pictured:
            self.log.histograms(self.step, simulation.distributions(self.model, self.example(_LOGGED)))
            self.log.images(self.step, self._pictures())
        self.epoch_sums = Sums()
        self.save(best)
        self._shown = time.monotonic(), self.step  # validation does not count as training time

    def _pictures(self) -> dict[str, np.ndarray]:
        """The filters of the first convolution, and a spike raster of every layer for the first training image."""
        from tfspike.evaluation import plots  # matplotlib: only where TensorBoard is written

        pictures = {}
        filters = simulation.first_filters(self.model)
        if filters is not None:
            pictures["first_layer_filters"] = plots.filter_sheet(filters)
        if self.model.plan is not None:
            train = simulation.spike_trains(self.model, tf.convert_to_tensor(self.example()))
            pictures["spike_raster"] = plots.raster_picture(train)
        return pictures

    @property
    def _metered(self) -> np.ndarray:
        """Indices of the images that energy is logged of: unseen ones, as a report's are, where there are any."""
        return (self.val_index if len(self.val_index) else self.train_index)[:_METERED]

    @property
    def _energy_note(self) -> str:
        kind = "held-out" if len(self.val_index) else "training"
        return (f"45 nm model, mean over {len(self._metered)} {kind} images: within some 5 % of the whole set. "
                "eval.py --report has that of the test set.")

    def _energy(self) -> dict[str, float]:
        """Energy of an image in the 45 nm model, and as a share of that of an ANN; {} of an ANN itself."""
        if self.model.plan is None:
            return {}
        from tfspike import analysis
        from tfspike.analysis.energy import EnergyModel

        images = self.info.normalise(self.data.images[self._metered])
        snn, ann = (EnergyModel().picojoules(operations) for operations in analysis.operations(self.model, images))
        return {"energy/snn_pj_per_image": snn, "energy/share_of_ann": snn / ann}
