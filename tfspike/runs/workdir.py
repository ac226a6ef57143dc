"""The folder of a run: who may write it, where the run in it stands, and its network again from it.

    workdir/
      config.json       settings, versions, commit, commands, data: `tfspike.config.to_json`
      metrics.jsonl tb/ what happened, step by step
      checkpoints/      `tfspike.checkpoints`
      saved_model/      and other exports
      finished.json     written last; names the epochs and exports that are done
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from tfspike.runs import checkpoints
from tfspike.config import files as config_files
from tfspike import files
from tfspike import config as config_lib
from tfspike.runs.checkpoints import Checkpoint
from tfspike.config.config import Config, RunOptions
from tfspike.errors import UserError
from tfspike.runs.provenance import command, commit, machine, versions

CHECKPOINTS, FINISHED = "checkpoints", "finished.json"
CONVERTED = "model.keras"  # of a folder that `tfspike.conversion` wrote
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Start:
    """How a command begins.

    Attributes:
      kind: "new", "resume" or "finished".
      sentence: the first line of the log.
      checkpoint: where to go on from; None for "new" and "finished".
    """

    kind: str
    sentence: str
    checkpoint: Checkpoint | None = None


@contextlib.contextmanager
def held(workdir: str) -> Iterator[None]:
    """`prepare` for the time of a command; one that ends before config.json is written leaves nothing on the disk."""
    path, made = os.path.abspath(workdir), []
    while not os.path.lexists(path):
        made.append(path)
        path = os.path.dirname(path)
    lock, lock_file = None, os.path.join(workdir, ".lock")
    first = not os.path.lexists(lock_file)
    try:
        lock = prepare(workdir)
        yield
    finally:
        if not os.path.lexists(os.path.join(workdir, "config.json")):
            with contextlib.suppress(OSError):  # of a folder that is not there, or holds what others wrote
                if lock is not None and first:
                    os.remove(lock_file)
                for folder in made:
                    os.rmdir(folder)
        if lock is not None:
            lock.close()


@dataclasses.dataclass(frozen=True)
class Standing:
    """What a checkpoint is of its run, and how far the run is.

    Attributes:
      which: "best" by validation, or "last"; "last" too where nothing has been validated yet.
      step: training steps behind the checkpoint.
      trained: training steps that the run has done.
      wanted: those of all its epochs; None where nobody trains (converted networks, weights of the library).
    """

    which: str
    step: int
    trained: int
    wanted: int | None = None

    @property
    def finished(self) -> bool:
        """Whether every epoch has been trained."""
        return self.wanted is None or self.trained >= self.wanted

    @property
    def unfinished(self) -> str:
        """"unfinished, at step 30 of 120"; empty of a finished run."""
        return "" if self.finished else f"unfinished, at step {self.trained:,} of {self.wanted:,}"

    def describe(self) -> str:
        """Of which step the weights are, in words."""
        more = f"; the run is {self.unfinished}" if self.unfinished else ""
        return f"{self.which} checkpoint{' so far' if more and self.which == 'best' else ''} (step {self.step}{more})"


def prepare(workdir: str) -> Any:
    """Makes the folder and locks it for this process; keep what is returned.

    Raises:
      UserError: it cannot be written, or another process trains in it.
    """
    try:
        os.makedirs(workdir, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir) as file:
            file.write(b"x")
            file.flush()
        lock = open(os.path.join(workdir, ".lock"), "w")  # noqa: SIM115 (held until the process ends)
    except OSError as error:
        raise UserError(f"Cannot write into the workdir {workdir}: {error.strerror or error}. Give a --workdir that "
                        "can be written and has room.") from None
    try:
        import fcntl
    except ImportError:  # Windows
        return lock
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"Another process is training in {workdir}; wait for it, or give another --workdir.") from None
    except OSError:  # a file system without locks
        pass
    return lock


def decide(config: Config, options: RunOptions, say: Say) -> Start:
    """Says whether this command starts, continues or has nothing to do. Changes nothing on the disk.

    Raises:
      UserError: the workdir, the settings and `--resume` contradict one another.
    """
    workdir, resume = str(config.workdir), options.resume
    exists = os.path.isfile(os.path.join(workdir, "config.json"))
    if resume not in config_lib.RESUME_WORDS:
        return _from_path(resume, exists, config, say)
    found = checkpoints.steps(os.path.join(workdir, CHECKPOINTS))
    if not exists:
        if found:
            raise UserError(f"{workdir} has checkpoints but no config.json, so nobody knows what was trained there; "
                            "restore it or give another --workdir.")
        if resume == "must":
            raise UserError(f"--resume=must, but there is no run in {workdir}; leave it out to start one.")
        return Start("new", f"New run in {workdir}.")
    if resume == "never":
        raise UserError(f"--resume=never, but {workdir} holds a run; delete that folder or give another --workdir.")
    saved = config_lib.read_run(workdir)
    config_lib.check_resumable(saved, config)
    if "converted" in about(workdir):
        raise UserError(f"{workdir} holds a converted network, not a run to continue; to train it further, give "
                        f"{shlex.quote(f'--init_from={os.path.join(workdir, CONVERTED)}')} and another --workdir.")
    _check_init(workdir, options)
    if _is_finished(workdir, config):
        if checkpoints.steps(os.path.join(workdir, CHECKPOINTS)):
            check_unedited(saved, open_checkpoint(workdir, say, "last"))
        more = "" if config.lr_schedule == "cosine" else " Raise --epochs to continue."
        return Start("finished", f"Finished already: {config.epochs} epochs in {workdir}.{more}")
    checkpoint = checkpoints.newest(os.path.join(workdir, CHECKPOINTS), say)
    if checkpoint is None:
        if resume == "must":
            raise UserError(f"--resume=must, but the run in {workdir} has no checkpoint yet; leave it out to "
                            "start anew.")
        return Start("new", f"New run in {workdir}: the one begun there had no checkpoint yet.")
    check_unedited(saved, checkpoint)
    return Start("resume", f"Resuming from step {checkpoint.step} of the run in {workdir}.", checkpoint)


def _from_path(path: str, exists: bool, config: Config, say: Say) -> Start:
    """`--resume=PATH`: a checkpoint or a workdir, this run's own or another's."""
    path, workdir = os.path.abspath(path), os.path.abspath(str(config.workdir))
    inside = os.path.commonpath([os.path.realpath(path), os.path.realpath(workdir)]) == os.path.realpath(workdir)
    if exists and not inside:
        raise UserError(f"--resume={path} is not of the run in {workdir}; give an empty --workdir to continue it "
                        "there, or --resume=auto.")
    checkpoint = open_checkpoint(path, say)
    saved = _settings_of(checkpoint)
    if saved is None:
        raise UserError(f"The checkpoint {path} does not say which settings it was trained with; use another one.")
    config_lib.check_resumable(dataclasses.replace(saved, workdir=path), config)
    return Start("resume", f"Resuming from step {checkpoint.step} of {checkpoint.path} in {workdir}.", checkpoint)


def _settings_of(checkpoint: Checkpoint) -> Config | None:
    """The settings that a checkpoint was trained with; None where it does not say."""
    saved = checkpoint.meta.get("config")
    if not isinstance(saved, dict):
        return None
    return config_lib.from_json(json.dumps({"format": config_files.FORMAT, "config": saved}), checkpoint.path)


def check_unedited(config: Config, checkpoint: Checkpoint) -> None:
    """Refuses a config.json that says another experiment than the one which left the checkpoint."""
    saved = _settings_of(checkpoint)
    changes = {} if saved is None else config_lib.diff(saved, config)
    if changes:
        listed = ", ".join(f"{name} (trained with {was}, now {now})" for name, (was, now) in changes.items())
        raise UserError(f"The config.json of {config.workdir} was changed since its run was trained: {listed}. Put the "
                        "old values back; for another experiment, copy the file elsewhere and give --workdir.")


def open_checkpoint(path: str, say: Say, which: str | None = None) -> Checkpoint:
    """The verified checkpoint at `path`, which is a checkpoint, a `checkpoints` folder or a workdir.

    Args:
      path: where to look.
      say: takes sentences about damaged ones passed over.
      which: "best" or "last"; None means the newest that is whole.

    Raises:
      UserError: there is none, or it is damaged.
    """
    if os.path.exists(os.path.join(path, "meta.json")) or os.path.isfile(path):
        return checkpoints.read(path)
    inner = os.path.join(path, CHECKPOINTS)
    folder = inner if os.path.isdir(inner) else path
    step = checkpoints.target_of(folder, which) if which else None
    if which == "best" and step is None:  # a copy without links, or nothing validated yet
        step = _best_step(checkpoints.newest(folder, lambda line: None))
    if step is not None:
        try:
            return checkpoints.read(os.path.join(folder, checkpoints.name_of(step)))
        except UserError as error:
            if which == "best":
                raise UserError(f"{error} The newest one is --checkpoint=last.") from None
    checkpoint = checkpoints.newest(folder, say)
    if checkpoint is None:
        raise UserError(f"There is no checkpoint in {path}; give a checkpoint's folder or the workdir of a run.")
    return checkpoint


def _best_step(checkpoint: Checkpoint | None) -> int | None:
    """The step of the best weights when this checkpoint was written; None where validation had chosen none."""
    try:
        return checkpoint.meta["progress"]["best"]["step"]  # type: ignore[union-attr]
    except (AttributeError, KeyError, TypeError):
        return None


def _check_init(workdir: str, options: RunOptions) -> None:
    """The same command again may name the weights that the run began with; others would be silently ignored."""
    if options.init_from is None:
        return
    begun_with = about(workdir).get("init_from")
    if begun_with != os.path.abspath(options.init_from):
        raise UserError(f"--init_from starts a new run, but {workdir} holds one already; leave it out to continue that "
                        "run, or give another --workdir.")


def _is_finished(workdir: str, config: Config) -> bool:
    try:
        with open(os.path.join(workdir, FINISHED), encoding="utf-8") as file:
            done = json.loads(file.read(100_000))
        return done["epochs"] == config.epochs and set(config.export) <= set(done["export"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def standing(config: Config, which: str, checkpoint: Checkpoint) -> Standing:
    """What a checkpoint, asked for as `which`, is of the run that `config` is of; its workdir is where the run is."""
    progress = checkpoint.meta.get("progress")
    length = progress.get("steps_per_epoch") if isinstance(progress, dict) else None
    if type(length) is not int:
        return Standing(which, checkpoint.step, checkpoint.step)
    folder = os.path.join(str(config.workdir), CHECKPOINTS)
    chosen = which == "best" and checkpoint.step in (checkpoints.target_of(folder, which), _best_step(checkpoint))
    return Standing("best" if chosen else "last", checkpoint.step, max([checkpoint.step, *checkpoints.steps(folder)]),
                    config.epochs * length)


def mark_finished(workdir: str, config: Config, step: int) -> None:
    """Writes finished.json: every epoch trained, every export written."""
    text = json.dumps({"epochs": config.epochs, "step": step, "export": list(config.export)})
    files.write_file(os.path.join(workdir, FINISHED), text + "\n")


# ---- config.json -------------------------------------------------------------------------------------------------


def write_config(config: Config, data: dict[str, Any], init_from: str | None) -> None:
    """Writes config.json; of an earlier part of the run it keeps commands, machines and the weights it began with.

    Args:
      config: resolved settings.
      data: what the run must remember of its data; the same on every part of a run.
      init_from: weights that the run begins with.
    """
    workdir = str(config.workdir)
    before = about(workdir) if os.path.isfile(os.path.join(workdir, "config.json")) else {}
    commands = [*before.get("commands", []), command()]
    machines = list(dict.fromkeys([*before.get("machines", []), machine()]))
    record = {"versions": versions(), "commit": commit(), "machines": machines, "commands": commands, "data": data,
              "init_from": os.path.abspath(init_from) if init_from else before.get("init_from")}
    files.write_file(os.path.join(workdir, "config.json"), config_lib.to_json(config, record))


def settle_again(config: Config, data: dict[str, Any], say: Say) -> Any:
    """Where the folder of a run is gone while it trains: makes it again, so that nothing that is trained is lost.

    Args:
      config, data: as for `write_config`.
      say: takes the sentence about it.

    Returns:
      What `prepare` returns; None where the folder is still there.
    """
    workdir = str(config.workdir)
    if os.path.isfile(os.path.join(workdir, "config.json")):
        return None
    say(f"Warning: {workdir} was moved or deleted while its run was training. The run goes on there, in a new folder; "
        "checkpoints and logs until now are where the old one was moved to.")
    lock = prepare(workdir)
    write_config(config, data, None)
    return lock


def about(workdir: str) -> dict[str, Any]:
    """What config.json keeps beside the settings; {} where it cannot be read."""
    try:
        with open(os.path.join(workdir, "config.json"), encoding="utf-8-sig") as file:
            record = json.loads(file.read(1_000_001))["about"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}














# ---- the network -------------------------------------------------------------------------------------------------








