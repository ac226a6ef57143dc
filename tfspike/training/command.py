"""What train.py does: starts or continues a run, exports its best weights, and ends with an exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import numpy as np
import tensorflow as tf

from tfspike import distribution, output
from tfspike.config.config import Config, RunOptions
from tfspike.distribution import Worker
from tfspike.errors import UserError, disk_is_full, explained_where_memory_is_full
from tfspike.models import diagnosis, variables
from tfspike.runs import checkpoints, provenance, standing, starting, workdir
from tfspike.runs import loading as run_loading
from tfspike.runs.run_log import RunLog
from tfspike.training import dry_run
from tfspike.training.progress import Progress
from tfspike.training.signals import Signals, Stopped
from tfspike.training.trainer import Trainer

_EXAMPLES = 8  # images that exports are compared on
_GOES_ON, _FINISHED, _REFUSED = range(3)  # what the first worker, who alone sees the workdir, tells the others
_PATIENCE = 60  # seconds in which they must have come to be told


class WorkerLost(RuntimeError):
    """Another worker of the cluster is gone, so that no step can be completed."""


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
    worker = distribution.this_worker(config.strategy)
    say = say or (output.line if worker.is_chief else lambda line: None)
    try:
        with explained_where_memory_is_full("Give a smaller --batch_size, fewer --timesteps or --gradient=rate; "
                                                  "--dry_run shows what a setting needs."):
            return dry_run.run(config, options, say) if options.dry_run else _run(config, options, worker, say)
    except diagnosis.Diverged as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    except Stopped as stopped:
        say(f"Stopped by {stopped}, and saved. To continue:\n  {provenance.continuing_command(config)}")
        return stopped.exit_code
    except KeyboardInterrupt:  # twice, or while nothing could be saved: before the first step or during the export
        begun = not options.dry_run and os.path.isfile(os.path.join(str(config.workdir), "config.json"))
        say("Stopped by Ctrl-C" + (". To continue from the last checkpoint:\n  "
                                   f"{provenance.continuing_command(config)}" if begun else "; nothing was trained."))
        return 130
    except WorkerLost:
        print("Error: another worker is gone, so no step can be completed. The last checkpoint is kept: start "
              "the same command on every host again to continue from it.", file=sys.stderr)
        return 5
    except (OSError, tf.errors.ResourceExhaustedError) as error:
        if disk_is_full(error):
            raise _full(config) from error
        raise


def _full(config: Config) -> UserError:
    return UserError(f"The disk that holds {config.workdir} is full. The last good checkpoint is intact: make room and "
                     "start the same command again.")


def _run(config: Config, options: RunOptions, worker: Worker, say: workdir.Say) -> int:
    with workdir.held(str(config.workdir)) if worker.is_chief else contextlib.nullcontext():
        return _run_held(config, options, worker, say)


def _run_held(config: Config, options: RunOptions, worker: Worker, say: workdir.Say) -> int:
    try:
        start = starting.plan_start(config, options, say) if worker.is_chief else starting.Start("new", "")
    except UserError as error:
        if worker.count > 1:
            print(f"Error: {error}", file=sys.stderr)  # now: the others may keep this one waiting
            _tell(config, _REFUSED)
            return 2
        raise
    say(start.sentence)
    if start.kind == "finished":
        if worker.count > 1:
            _tell(config, _FINISHED)
        return 0
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = distribution.make_strategy(config.strategy)
    told = _from_first(strategy, worker, _GOES_ON)
    if told == _REFUSED:
        raise UserError("The first worker could not begin; its own output says why. Put that right, and start the same "
                        "command on every host again.")
    if told == _FINISHED:
        return 0
    trainer = Trainer(config, strategy, worker, say)
    with Signals() as stop:
        _begin(trainer, start, options)
        trainer.say_layers(config.batch_size // strategy.num_replicas_in_sync)
        log = RunLog(str(config.workdir), config.tensorboard, trainer.progress.step, worker.is_chief)
        try:
            trainer.train(log, stop)
        except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError,
                tf.errors.InternalError, tf.errors.CancelledError) as error:
            if worker.count == 1:
                raise
            raise WorkerLost from error
        finally:
            log.close()
    if worker.is_chief:
        _finish(trainer, config, say)
    return 0


def _tell(config: Config, what: int) -> None:
    """Has the other workers end, which would wait for this one, the first, for ever.

    In a process of its own: until all workers are there TensorFlow waits in a way that no signal but 9 ends, and who
    gave this command on one host alone is to get it back.
    """
    code = f"from tfspike.training import command; command.tell({config.strategy!r}, {what})"
    path = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, check=False,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def tell(strategy: str, what: int) -> None:
    """Says, as the first worker of this strategy, what becomes of the run, to workers in `_run_held`; the process dies
    where they do not come."""
    signal.alarm(_PATIENCE)
    _from_first(distribution.make_strategy(strategy), distribution.this_worker(strategy), what)


def _from_first(strategy: tf.distribute.Strategy, worker: Worker, what: int) -> int:
    """What the first worker says, on every worker."""
    return int(distribution.from_chief(strategy, worker, [np.asarray(what, np.int32)])[0])


def _begin(trainer: Trainer, start: starting.Start, options: RunOptions) -> None:
    """First weights, or those of the checkpoint; writes config.json."""
    config, progress = trainer.config, trainer.progress
    if trainer.worker.is_chief:
        if start.checkpoint is not None:
            _refuse_other_data(trainer, str(config.workdir))
            _refuse_other_code(config)
            progress.restore(start.checkpoint)
            checkpoints.set_aside_after(progress.folder, progress.step)
        else:
            # of a run that was killed before its first checkpoint config.json alone knows them
            trainer.initialise(options.init_from or workdir.run_metadata(str(config.workdir)).get("init_from"))
        trainer.choose_kernel(restored=start.checkpoint is not None)
        workdir.write_config(config, trainer.data_record, options.init_from)
        source = None if start.checkpoint is None else os.path.dirname(os.path.realpath(start.checkpoint.path))
        if source != os.path.realpath(progress.folder):
            best = None if source is None else _best_of(progress, source, trainer.say)
            progress.save(progress.best is not None and progress.best["step"] == progress.step)
            if best is not None:  # second: stopped in between, the run goes on from where it is
                checkpoints.save(progress.folder, best.step, {part: best.arrays(part) for part in checkpoints.PARTS},
                                 best.meta, config.keep_checkpoints, best=True)
                checkpoints.point(progress.folder, "last", progress.step)
        else:
            # A kill may have come between the two
            checkpoints.point(progress.folder, "last", progress.step)
            wanted = progress.step if trainer.evaluator is None else (progress.best or {}).get("step")
            if wanted in checkpoints.steps(progress.folder):
                checkpoints.point(progress.folder, "best", int(wanted))
    progress.share(trainer.strategy, trainer.worker)
    trainer.use_kernel()


def _best_of(progress: Progress, source: str, say: workdir.Say) -> checkpoints.Checkpoint | None:
    """The best checkpoint so far of a run that goes on in another folder, where it is another one; if it is gone, the
    best is looked for anew."""
    if progress.best is None or progress.best["step"] == progress.step:
        return None
    path = os.path.join(source, checkpoints.name_of(int(progress.best["step"])))
    try:
        return checkpoints.read(path)
    except UserError:
        say(f"The best checkpoint so far, {path}, is not there or damaged: the best is looked for anew.")
        progress.best = None
        return None


def _refuse_other_data(trainer: Trainer, folder: str) -> None:
    """Data that changed between the parts of a run would make it another experiment."""
    before = workdir.run_metadata(folder).get("data")
    now = trainer.data_record
    if before and before != now:
        keys = ", ".join(key for key in now if before.get(key) != now[key])
        raise UserError(f"The data are not those that the run in {folder} began with ({keys} differ); restore them, or "
                        "give another --workdir.")


def _refuse_other_code(config: Config) -> None:
    """A surrogate or a neuron of the user's that was edited would make it another experiment, too."""
    changed = run_loading.changed_code(config)
    if changed:
        raise UserError(f"The module of {changed[0]} is not as it was when the run in {config.workdir} began; restore "
                        "it, or give another --workdir.")


def _finish(trainer: Trainer, config: Config, say: workdir.Say) -> None:
    """Exports the best weights and marks the run as finished."""
    if config.export:
        from tfspike import export

        best = standing.open_checkpoint(str(config.workdir), say, "best")
        variables.restore(trainer.model.variables, best.arrays("model"), f"The checkpoint {best.path}")
        say(f"Exporting the weights of step {best.step} ({', '.join(config.export)}).")
        example = trainer.data.images[trainer.train_index[:_EXAMPLES]]
        export.save(trainer.model, trainer.info, config.export, str(config.workdir), example)
    workdir.mark_finished(str(config.workdir), config, trainer.progress.step)
    test = provenance.to_copy("eval", workdir=str(config.workdir))
    best_epoch = trainer.progress.best
    if best_epoch is not None:
        usual = trainer.most_frequent()
        if best_epoch["val_accuracy"] <= usual and not trainer.by_heart:  # which more epochs make worse
            say(f"The network has learnt nothing yet that shows: to answer {100 * usual:.2f} % of the "
                "validation records rightly, the most frequent class is enough. Give more --epochs, or the recipe's "
                "settings.")
        say(f"Finished: best validation accuracy {100 * best_epoch['val_accuracy']:.2f} % after epoch "
            f"{int(best_epoch['epoch'])}. Test it: {test}")
    else:
        say(f"Finished. Test it: {test}")
