"""How a training command begins: anew, from a checkpoint, or not at all because the run is finished."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shlex

from tfspike import config as config_lib
from tfspike.config import files as config_files
from tfspike.config.config import Config, RunOptions
from tfspike.errors import UserError
from tfspike.output import counted
from tfspike.runs import checkpoints
from tfspike.runs.checkpoints import Checkpoint
from tfspike.runs.results import METRICS
from tfspike.runs.standing import open_checkpoint
from tfspike.runs.workdir import (
    CHECKPOINTS,
    CONVERTED,
    TENSORBOARD,
    Say,
    is_finished,
    place_of_weights,
    run_metadata,
)


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


def plan_start(config: Config, options: RunOptions, say: Say) -> Start:
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
        _refuse_others_logs(workdir)
        if resume == "must":
            raise UserError(f"--resume=must, but there is no run in {workdir}; leave it out to start one.")
        return Start("new", f"New run in {workdir}.")
    if resume == "never":
        raise UserError(f"--resume=never, but {workdir} holds a run; delete that folder or give another --workdir.")
    saved = config_lib.read_run(workdir)
    config_lib.check_resumable(saved, config)
    if "converted" in run_metadata(workdir):
        raise UserError(f"{workdir} holds a converted network, not a run to continue; to train it further, give "
                        f"{shlex.quote(f'--init_from={os.path.join(workdir, CONVERTED)}')} and another --workdir.")
    _check_init(workdir, options)
    if is_finished(workdir, config):
        if checkpoints.steps(os.path.join(workdir, CHECKPOINTS)):
            check_unedited(saved, open_checkpoint(workdir, say, "last"))
        more = "" if config.lr_schedule == "cosine" else " Raise --epochs to continue."
        return Start("finished", f"Finished already: {counted(config.epochs, 'epoch')} in {workdir}.{more}")
    checkpoint = checkpoints.newest(os.path.join(workdir, CHECKPOINTS), say)
    if checkpoint is None:
        if resume == "must":
            raise UserError(f"--resume=must, but the run in {workdir} has no checkpoint yet; leave it out to "
                            "start anew.")
        return Start("new", f"New run in {workdir}: the one begun there had no checkpoint yet.")
    check_unedited(saved, checkpoint)
    return Start("resume", f"Resuming from step {checkpoint.step} of the run in {workdir}.", checkpoint)


def _refuse_others_logs(workdir: str) -> None:
    """Raises UserError where a folder without a run has what the log of a new one would replace."""
    others = [name for name in (METRICS, TENSORBOARD) if os.path.lexists(os.path.join(workdir, name))]
    if others:
        raise UserError(f"{workdir} has {' and '.join(others)} but no config.json, so they are of no run here, and a "
                        "new one would replace them. Move them, or give another --workdir.")


def _from_path(path: str, exists: bool, config: Config, say: Say) -> Start:
    """`--resume=PATH`: a checkpoint or a workdir, this run's own or another's."""
    path, workdir = os.path.abspath(path), os.path.abspath(str(config.workdir))
    if not pathlib.Path(path).resolve().is_relative_to(pathlib.Path(workdir).resolve()):
        if exists:
            raise UserError(f"--resume={path} is not of the run in {workdir}; give an empty --workdir to continue it "
                            "there, or --resume=auto.")
        _refuse_others_logs(workdir)
    checkpoint = open_checkpoint(path, say)
    saved = settings_of(checkpoint)
    if saved is None:
        raise UserError(f"The checkpoint {path} does not say which settings it was trained with; use another one.")
    config_lib.check_resumable(dataclasses.replace(saved, workdir=path), config)
    return Start("resume", f"Resuming from step {checkpoint.step} of {checkpoint.path} in {workdir}.", checkpoint)


def settings_of(checkpoint: Checkpoint) -> Config | None:
    """The settings that a checkpoint was trained with; None where it does not say."""
    saved = checkpoint.meta.get("config")
    if not isinstance(saved, dict):
        return None
    return config_lib.from_json(json.dumps({"format": config_files.FORMAT, "config": saved}), checkpoint.path)


def check_unedited(config: Config, checkpoint: Checkpoint) -> None:
    """Refuses a config.json that says another experiment than the one which left the checkpoint."""
    saved = settings_of(checkpoint)
    changes = {} if saved is None else config_lib.diff(saved, config)
    if changes:
        listed = ", ".join(f"{name} (trained with {was}, now {now})" for name, (was, now) in changes.items())
        raise UserError(f"The config.json of {config.workdir} was changed since its run was trained: {listed}. Put the "
                        "old values back; for another experiment, copy the file elsewhere and give --workdir.")


def _check_init(workdir: str, options: RunOptions) -> None:
    """The same command again may name the weights that the run began with; others would be silently ignored."""
    if options.init_from is None:
        return
    begun_with = run_metadata(workdir).get("init_from")
    if begun_with != place_of_weights(options.init_from):
        raise UserError(f"--init_from starts a new run, but {workdir} holds one already; leave it out to continue that "
                        "run, or give another --workdir.")
