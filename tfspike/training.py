"""The training loop: small, and its own, because exact resume, several workers and signals need every step in hand.

A run is a function of its configuration: batch k follows from (seed, k), noise and dropout from step counters that are
weights, the learning rate from the steps done. So weights, optimiser state and step are all that a checkpoint needs,
and a run killed anywhere ends with the bits of one that was not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfspike import checkpoints, datasets, diagnosis, distribution, initial_weights, output, streams, summary, workdir
from tfspike.config import Config, RunOptions
from tfspike.distribution import Place
from tfspike.errors import UserError
from tfspike.evaluation import Evaluator
from tfspike.initialisation import initialise_rates
from tfspike.optimisation import learning_rate, make_optimizer
from tfspike.pace import Pace, clock
from tfspike.profiling import Profile
from tfspike.run_log import RunLog
from tfspike.signals import Signals, Stopped
from tfspike.train_step import Sums, TrainStep

_LAG = 8  # steps whose numbers may wait on the device before they are looked at
_EXAMPLES = 8  # images that exports are compared on
_LOGGED = 4  # training images that membranes are logged of: the cost of an epoch's pictures must not show
_METERED = 32  # held-out images that energy is logged of: it differs by a third from image to image
_RATE_SAMPLES = 32  # images that the rate-targeted initialisation looks at


class WorkerLost(RuntimeError):
    """Another worker of the cluster is gone, so that no step can be completed."""


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
            self.model = workdir.build_model(config, self.info)
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
        log.text("command", f"`{workdir.continuing_command(self.config)}`")
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
        checkpoints.restore(self.model.variables, checkpoint.arrays("model"), source)
        checkpoints.restore(self.optimizer.variables, checkpoint.arrays("optimizer"), source)
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
        parts = {"model": checkpoints.collect(self.model.variables),
                 "optimizer": checkpoints.collect(self.optimizer.variables)}
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
        self.log.histograms(self.step, self.model, example=self.example(_LOGGED))
        self.log.images(self.step, self.model, self.example())
        self.epoch_sums = Sums()
        self.save(best)
        self._shown = time.monotonic(), self.step  # validation does not count as training time

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
        from tfspike.energy import EnergyModel

        images = self.info.normalise(self.data.images[self._metered])
        snn, ann = (EnergyModel().picojoules(operations) for operations in analysis.operations(self.model, images))
        return {"energy/snn_pj_per_image": snn, "energy/share_of_ann": snn / ann}


# ---- the command -------------------------------------------------------------------------------------------------


def run(config: Config, options: RunOptions | None = None, say: workdir.Say | None = None) -> int:
    """What train.py does: starts or continues the run of `config`, and exports its best weights.

    Args:
      config: resolved settings (`tfspike.config.resolve`).
      options: how this command runs it.
      say: takes lines for the user; None prints them.

    Returns:
      The exit code: 0 finished, 4 diverged or collapsed, 5 another worker is gone, 129 after SIGHUP, 130 after Ctrl-C,
      143 after SIGTERM.

    Raises:
      UserError: something the user can put right (exit code 2).
    """
    options = options or RunOptions()
    where = distribution.place(config.strategy)
    say = say or (output.line if where.is_chief else lambda line: None)
    from tfspike import dry_run  # which imports this module

    try:
        return dry_run.run(config, options, say) if options.dry_run else _run(config, options, where, say)
    except diagnosis.Diverged as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    except Stopped as stopped:
        say(f"Stopped by {stopped}, and saved. To continue:\n  {workdir.continuing_command(config)}")
        return stopped.exit_code
    except KeyboardInterrupt:  # twice, or while nothing could be saved: before the first step or during the export
        say(f"Stopped by Ctrl-C. To continue from the last checkpoint:\n  {workdir.continuing_command(config)}")
        return 130
    except WorkerLost:
        print("Error: another worker is gone, so no step can be completed. The last checkpoint is kept: start "
              "the same command on every host again to continue from it.", file=sys.stderr)
        return 5
    except tf.errors.ResourceExhaustedError as error:
        if checkpoints.disk_is_full(error):
            raise UserError(f"The disk that holds {config.workdir} is full. The last good checkpoint is intact: make "
                            "room and start the same command again.") from error
        raise UserError("Out of memory. Give a smaller --batch_size, fewer --timesteps or --gradient=rate; "
                        "--dry_run shows what a setting needs.") from error
    except OSError as error:
        if checkpoints.disk_is_full(error):
            raise UserError(f"The disk that holds {config.workdir} is full. The last good checkpoint is intact: make "
                            "room and start the same command again.") from error
        raise


def _run(config: Config, options: RunOptions, where: Place, say: workdir.Say) -> int:
    with workdir.held(str(config.workdir)) if where.is_chief else contextlib.nullcontext():
        return _run_held(config, options, where, say)


def _run_held(config: Config, options: RunOptions, where: Place, say: workdir.Say) -> int:
    start = workdir.decide(config, options, say) if where.is_chief else workdir.Start("new", "")
    say(start.sentence)
    if start.kind == "finished":
        return 0
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = distribution.make_strategy(config.strategy)
    trainer = Trainer(config, strategy, where, say)
    with Signals() as stop:
        _begin(trainer, start, options)
        say(summary.layer_table(trainer.model, config.batch_size // strategy.num_replicas_in_sync,
                                optimizer=config.optimizer))
        log = RunLog(str(config.workdir), config.tensorboard, trainer.step, where.is_chief)
        try:
            trainer.describe(log)
            trainer.train(log, stop)
        except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError,
                tf.errors.InternalError, tf.errors.CancelledError) as error:
            if where.workers == 1:
                raise
            raise WorkerLost from error
        finally:
            log.close()
    if where.is_chief:
        _finish(trainer, config, say)
    return 0


def _begin(trainer: Trainer, start: workdir.Start, options: RunOptions) -> None:
    """First weights, or those of the checkpoint; writes config.json."""
    if trainer.where.is_chief:
        if start.checkpoint is not None:
            _refuse_other_data(trainer, str(trainer.config.workdir))
            trainer.restore(start.checkpoint)
            checkpoints.set_aside_after(trainer.folder, trainer.step)
        else:
            trainer.initialise(options.init_from)
        workdir.write_config(trainer.config, trainer.data_record(), options.init_from)
        source = None if start.checkpoint is None else os.path.dirname(os.path.realpath(start.checkpoint.path))
        if source != os.path.realpath(trainer.folder):
            best = None if source is None else _best_of(trainer, source)
            trainer.save(trainer.best is not None and trainer.best["step"] == trainer.step)
            if best is not None:  # second: stopped in between, the run goes on from where it is
                checkpoints.save(trainer.folder, best.step, {part: best.arrays(part) for part in checkpoints.PARTS},
                                 best.meta, trainer.config.keep_checkpoints, best=True)
                checkpoints.point(trainer.folder, "last", trainer.step)
        else:
            # A kill may have come between the two
            checkpoints.point(trainer.folder, "last", trainer.step)
            wanted = trainer.step if trainer.evaluator is None else (trainer.best or {}).get("step")
            if wanted in checkpoints.steps(trainer.folder):
                checkpoints.point(trainer.folder, "best", int(wanted))
    trainer.share_state()


def _best_of(trainer: Trainer, source: str) -> checkpoints.Checkpoint | None:
    """The best checkpoint so far of a run that goes on in another folder, where it is another one; if it is gone, the
    best is looked for anew."""
    if trainer.best is None or trainer.best["step"] == trainer.step:
        return None
    path = os.path.join(source, checkpoints.name_of(int(trainer.best["step"])))
    try:
        return checkpoints.read(path)
    except UserError:
        trainer.say(f"The best checkpoint so far, {path}, is not there or damaged: the best is looked for anew.")
        trainer.best = None
        return None


def _refuse_other_data(trainer: Trainer, folder: str) -> None:
    """Data that changed between the parts of a run would make it another experiment."""
    before = workdir.about(folder).get("data")
    if before and before != trainer.data_record():
        now = trainer.data_record()
        keys = ", ".join(key for key in now if before.get(key) != now[key])
        raise UserError(f"The data are not those that the run in {folder} began with ({keys} differ); restore them, or "
                        "give another --workdir.")


def _finish(trainer: Trainer, config: Config, say: workdir.Say) -> None:
    """Exports the best weights and marks the run as finished."""
    if config.export:
        from tfspike import export

        best = workdir.open_checkpoint(str(config.workdir), say, "best")
        checkpoints.restore(trainer.model.variables, best.arrays("model"), f"The checkpoint {best.path}")
        say(f"Exporting the weights of step {best.step} ({', '.join(config.export)}).")
        example = trainer.data.images[trainer.train_index[:_EXAMPLES]]
        export.save(trainer.model, trainer.info, config.export, str(config.workdir), example)
    workdir.mark_finished(str(config.workdir), config, trainer.step)
    test = workdir.to_copy("eval.py", workdir=str(config.workdir))
    if trainer.best is not None:
        usual = trainer.most_frequent()
        if trainer.best["val_accuracy"] <= usual:
            say(f"The network has learnt nothing yet that shows: to answer {100 * usual:.2f} % of the "
                "validation records rightly, the most frequent class is enough. Give more --epochs, or the recipe's "
                "settings.")
        say(f"Finished: best validation accuracy {100 * trainer.best['val_accuracy']:.2f} % after epoch "
            f"{int(trainer.best['epoch'])}. Test it: {test}")
    else:
        say(f"Finished. Test it: {test}")

