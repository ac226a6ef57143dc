"""`train.py --dry_run`: every stage of a run once, small, in a temporary folder; the real workdir is not touched."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time

import numpy as np
import tensorflow as tf

from tfspike import distribution
from tfspike.config.config import Config, RunOptions
from tfspike.errors import UserError
from tfspike.evaluation.evaluator import Evaluator
from tfspike.models import diagnosis, variables
from tfspike.runs import checkpoints, starting, workdir
from tfspike.training.schedule import learning_rate
from tfspike.training.trainer import Trainer

_BATCH, _RECORDS = 4, 8  # images per device and step; records of the evaluation


def run(config: Config, options: RunOptions, say: workdir.Say) -> int:
    """Builds, trains two steps, evaluates, saves, restores and exports.

    Args:
      config: resolved settings of the real run.
      options: of the command.
      say: takes lines for the user.

    Returns:
      0, the exit code.

    Raises:
      UserError: what the real run would stop on.
      tfspike.diagnosis.Diverged: NaN or Inf within the two steps.
    """
    began = time.monotonic()
    _require_writable(str(config.workdir))
    say(f"Dry run. The real one would say: {starting.plan_start(config, options, say).sentence}")
    if config.strategy == "multi_worker":
        distribution.this_worker(config.strategy)
        say("Only this worker is tried: the others would have to start with it.")
    strategy = distribution.make_strategy("one" if config.strategy == "multi_worker" else config.strategy)
    replicas = strategy.num_replicas_in_sync
    real_batch = distribution.check_batch(config.batch_size, replicas)
    with tempfile.TemporaryDirectory(prefix="tfspike-dry-run-") as folder:
        small = dataclasses.replace(config, batch_size=replicas * min(_BATCH, real_batch), workdir=folder,
                                    steps_per_epoch=1, lr_milestones=())
        trainer = Trainer(small, strategy, distribution.Worker(), say)
        if config.batch_size > len(trainer.train_index):
            raise UserError(f"a batch of {config.batch_size} is larger than the {len(trainer.train_index)} training "
                            f"records; choose a batch size of at most {len(trainer.train_index)}.")
        trainer.initialise(options.init_from)
        rates = _two_steps(trainer, say)
        trainer.say_layers(real_batch, rates)
        _evaluate(trainer, say)
        _round_trip(trainer, say)
        _export(trainer, folder, say)
    say(f"Dry run finished in {time.monotonic() - began:.0f} s; nothing was left behind.")
    return 0


def _require_writable(path: str) -> None:
    """Refuses a workdir that could not be made, without making it."""
    parent = os.path.abspath(path)
    while not os.path.exists(parent):
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent) or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"Cannot write into the workdir {path}: {parent} is not a folder that can be written. Give "
                        "another --workdir.")


def _two_steps(trainer: Trainer, say: workdir.Say) -> dict[str, float]:
    """The first step, and one with the network's own window; returns the mean firing rate of every layer."""
    watch, length = diagnosis.Watch(trainer.model, trainer.config), trainer.progress.steps_per_epoch
    batches = iter(distribution.distribute(trainer.strategy, trainer.stream.dataset(), trainer.worker))
    for step in (1, 2):
        train_step = trainer.train_step if step == 1 else trainer.windows.at(trainer.config.epochs - 1).train_step
        began = time.monotonic()
        trainer.optimizer.learning_rate = rate = learning_rate(trainer.config, step - 1, length)
        numbers = train_step.numbers(train_step(*next(batches)))
        took = time.monotonic() - began
        say(f"step {step}: loss {numbers['loss']:.4f}, {trainer.config.batch_size} images in {took:.1f} s"
            f"{' (with compilation)' if step == 1 or train_step is not trainer.train_step else ''}")
        for warning in watch.update(step, {**numbers, "learning_rate": rate}):
            say(f"Warning: {warning}")
    trainer.progress.step = 2
    return {name.removeprefix("rate/"): value for name, value in numbers.items() if name.startswith("rate/")}


def _evaluate(trainer: Trainer, say: workdir.Say) -> None:
    held_out = trainer.val_index if len(trainer.val_index) else trainer.train_index
    evaluator = Evaluator(trainer.model, trainer.data.images, trainer.data.labels, trainer.info,
                          trainer.config.batch_size, held_out[:_RECORDS], trainer.strategy,
                          loss=trainer.config.loss, compiled=trainer.train_step.compiled)
    say(f"evaluation of {len(held_out[:_RECORDS])} records: loss {evaluator.run().loss:.4f}")


def _round_trip(trainer: Trainer, say: workdir.Say) -> None:
    """Saves, spoils the weights, restores, and compares."""
    path = trainer.progress.save()
    before = variables.collect([*trainer.model.variables, *trainer.optimizer.variables])
    for variable in trainer.model.variables:
        variable.assign(tf.zeros(variable.shape, variable.dtype))
    trainer.progress.restore(checkpoints.read(os.path.join(trainer.progress.folder, "last")))
    after = variables.collect([*trainer.model.variables, *trainer.optimizer.variables])
    if any(not np.array_equal(before[name], after[name]) for name in before):
        raise RuntimeError("a checkpoint did not restore what was saved; please report this")
    size = sum(os.path.getsize(os.path.join(path, name)) for name in os.listdir(path))
    say(f"checkpoint: {size / 1e6:.1f} MB, restored as it was saved")


def _export(trainer: Trainer, folder: str, say: workdir.Say) -> None:
    if trainer.config.export:
        from tfspike import export

        example = trainer.data.images[trainer.train_index[:2]]
        export.save(trainer.model, trainer.info, trainer.config.export, os.path.join(folder, "export"), example)
        say(f"export: {', '.join(trainer.config.export)} written and compared")
