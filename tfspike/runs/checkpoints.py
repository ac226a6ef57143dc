"""Checkpoints that survive being killed: plain arrays and JSON, written aside, synced, then renamed.

    checkpoints/
      step_000000000/  meta.json  model.npz  optimizer.npz  checksums.json      one folder per checkpoint
      last -> step_...                                                          the newest
      best -> step_...                                                          best by validation

A folder of that name is complete or damaged by others: the rename comes after everything in it was synced, and SHA-256
sums tell damage. Nothing in a file is executed when it is read (no pickle, no objects). Needs no TensorFlow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tfspike.errors import UserError, disk_is_full
from tfspike.files import Arrays, checksum, read_arrays, sync_folder, write_arrays, write_bytes

VERSION = 1
PARTS = ("model", "optimizer")
_NAME = re.compile(r"step_(\d{9,})")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    Attributes:
      path: its folder.
      step: training steps done.
      meta: what was saved beside the arrays, plain JSON.
    """

    path: str
    step: int
    meta: dict[str, Any]

    def arrays(self, part: str) -> Arrays:
        """`{variable path: array}` of "model" or "optimizer". Raises UserError where the file cannot be read."""
        return read_arrays(os.path.join(self.path, f"{part}.npz"), "use another checkpoint")

    @property
    def weights_sha256(self) -> str:
        """Of the file of its weights; two networks in one folder, one after the other, may agree in all else."""
        return checksum(os.path.join(self.path, "model.npz"))


def name_of(step: int) -> str:
    """The folder's name of the checkpoint after `step` steps."""
    return f"step_{step:09d}"


# ---- writing -----------------------------------------------------------------------------------------------------


def save(folder: str, step: int, parts: Mapping[str, Mapping[str, np.ndarray]], meta: Mapping[str, Any],
         keep: int = 3, best: bool = False, spare: str | None = None) -> str:
    """Writes a checkpoint and points `last` (and `best`) to it; afterwards removes all but the newest `keep` and best.

    Killed at any moment, the folder holds the checkpoints from before, and this one either whole or not at all.

    Args:
      folder: `checkpoints/` of a run.
      step: training steps done.
      parts: `{"model": {variable path: array}, "optimizer": {...}}`.
      meta: anything JSON holds.
      keep: newest checkpoints that stay.
      best: also point `best` to it.
      spare: path of one more checkpoint that stays.

    Returns:
      The checkpoint's folder.

    Raises:
      UserError: the disk is full or the folder cannot be written; earlier checkpoints are intact.
    """
    path = os.path.join(folder, name_of(step))
    aside = os.path.join(folder, f".writing_{name_of(step)}")
    try:
        os.makedirs(folder, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        os.mkdir(aside)
        for part in PARTS:
            write_bytes(os.path.join(aside, f"{part}.npz"), functools.partial(write_arrays, parts[part]))
        text = json.dumps({"version": VERSION, "step": step, **meta}, indent=1)
        write_bytes(os.path.join(aside, "meta.json"), lambda file: file.write(text.encode()))
        sums = {name: checksum(os.path.join(aside, name)) for name in sorted(os.listdir(aside))}
        write_bytes(os.path.join(aside, "checksums.json"), lambda file: file.write(json.dumps(sums, indent=1).encode()))
        sync_folder(aside)
        if os.path.lexists(path):  # of a part of the run that is being repeated
            _remove(path)
        os.rename(aside, path)
        sync_folder(folder)
        point(folder, "last", step)
        if best:
            point(folder, "best", step)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise _unwritable(folder, error) from error
    _prune(folder, keep, spare)
    return path


def point(folder: str, pointer: str, step: int) -> None:
    """Makes `pointer` ("last" or "best") name the checkpoint after `step` steps, in one move."""
    aside, target = os.path.join(folder, f".pointing_{pointer}"), os.path.join(folder, pointer)
    if target_of(folder, pointer) == step:
        return
    with contextlib.suppress(FileNotFoundError):
        os.unlink(aside)
    try:
        os.symlink(name_of(step), aside)
    except (OSError, NotImplementedError):  # a file system without links: a file that holds the name
        write_bytes(aside, lambda file: file.write(name_of(step).encode()))
    if os.path.isdir(target) and not os.path.islink(target):
        _remove(target)
    os.replace(aside, target)
    sync_folder(folder)


def target_of(folder: str, pointer: str) -> int | None:
    """The step that `last` or `best` names; None where there is no such pointer. Where a copy of the run has the
    checkpoint itself in place of a link, it is that checkpoint's."""
    path = os.path.join(folder, pointer)
    if os.path.isdir(path) and not os.path.islink(path):
        try:
            return read(path).step
        except UserError:
            return None
    try:
        name = os.readlink(path)
    except OSError:
        try:
            with open(path, encoding="ascii") as file:
                name = file.read(40)
        except (OSError, ValueError):
            return None
    match = _NAME.fullmatch(os.path.basename(name.strip()))
    return int(match[1]) if match else None


def set_aside_after(folder: str, step: int) -> None:
    """Renames checkpoints beyond `step` to `discarded_*`: the run goes on from `step` and will write them again."""
    for later in steps(folder):
        if later > step:
            aside = os.path.join(folder, f"discarded_{name_of(later)}")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(os.path.join(folder, name_of(later)), aside)


def _unwritable(folder: str, error: OSError) -> UserError:
    if disk_is_full(error):
        return UserError(f"The disk that holds {folder} is full ({error.strerror}). The checkpoints written before are "
                         "intact: make room and start the same command again.")
    return UserError(f"Cannot write a checkpoint into {folder}: {error.strerror or error}. Checkpoints written before "
                     "are intact; give a --workdir that can be written.")


def _remove(path: str) -> None:
    """Removes a checkpoint so that a kill in between leaves nothing that looks like one."""
    aside = os.path.join(os.path.dirname(path), f".removing_{os.path.basename(path)}")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def _prune(folder: str, keep: int, spare: str | None) -> None:
    pointed = {target_of(folder, "last"), target_of(folder, "best")}
    for step in steps(folder)[:-keep]:
        if step not in pointed and name_of(step) != os.path.basename(spare or ""):
            with contextlib.suppress(OSError):
                _remove(os.path.join(folder, name_of(step)))
    for name in os.listdir(folder):
        if name.startswith((".removing_", ".writing_", "discarded_")):  # left by a kill, or superseded by now
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)


# ---- reading -----------------------------------------------------------------------------------------------------


def steps(folder: str) -> list[int]:
    """Steps of the checkpoints in a folder, oldest first; they are not verified."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))


def read(path: str) -> Checkpoint:
    """Verifies the checkpoint in the folder `path` (or what a pointer names).

    Raises:
      UserError: it is damaged, incomplete, or of another version.
    """
    path = _followed(path)
    try:
        with open(os.path.join(path, "checksums.json"), "rb") as file:
            sums = json.loads(file.read(1_000_000))
        whole = set(sums) == {"meta.json", *(f"{part}.npz" for part in PARTS)}
        wrong = [name for name, value in sums.items() if checksum(os.path.join(path, os.path.basename(name))) != value]
        with open(os.path.join(path, "meta.json"), "rb") as file:
            meta = json.loads(file.read(100_000_000))
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"The checkpoint {path} is incomplete or damaged ({type(error).__name__}); use another "
                        "one.") from error
    if wrong or not whole:
        raise UserError(f"The checkpoint {path} is damaged: {', '.join(wrong) or 'checksums.json'} does not match its "
                        "checksum; use another one.")
    if not isinstance(meta, dict) or meta.get("version") != VERSION or type(meta.get("step")) is not int:
        found = meta.get("version") if isinstance(meta, dict) else None
        raise UserError(f"The checkpoint {path} has version {found}, and this tfspike reads version {VERSION}; use the "
                        "tfspike that wrote it.")
    return Checkpoint(path, meta["step"], meta)


def newest(folder: str, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole; None where there is none at all.

    Args:
      folder: `checkpoints/` of a run.
      say: takes the sentence about every damaged one that was passed over.

    Raises:
      UserError: there are checkpoints, and all are damaged.
    """
    found = steps(folder)
    error: UserError | None = None
    for step in reversed(found):
        try:
            return read(os.path.join(folder, name_of(step)))
        except UserError as reason:
            error = error or reason
            earlier = "the one before is used" if step != found[0] else "there is no earlier one"
            say(f"Warning: {str(reason).rsplit(';', 1)[0]}; {earlier}.")
    if error is not None:
        raise UserError(f"All {len(found)} checkpoints in {folder} are damaged; give another --workdir to start anew.")
    return None


def _followed(path: str) -> str:
    """The folder that a pointer file names; links are followed by the operating system."""
    if os.path.isfile(path):
        step = target_of(os.path.dirname(path), os.path.basename(path))
        return path if step is None else os.path.join(os.path.dirname(path), name_of(step))
    return os.path.realpath(path) if os.path.islink(path) else path
