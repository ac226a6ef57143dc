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
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from tfspike.errors import UserError

VERSION = 1
PARTS = ("model", "optimizer")
_NAME = re.compile(r"step_(\d{9,})")

Arrays = dict[str, np.ndarray]

# What reading an archive of arbitrary bytes can raise: a checksum proves that a file is as it was written, not by whom.
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, OverflowError, SyntaxError,
               RuntimeError, MemoryError, struct.error, zipfile.BadZipFile, zlib.error)


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
        _sync_folder(aside)
        if os.path.lexists(path):  # of a part of the run that is being repeated
            _remove(path)
        os.rename(aside, path)
        _sync_folder(folder)
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
    _sync_folder(folder)


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


def checksum(path: str) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else \
            hashlib.sha256(file.read()).hexdigest()


def write_file(path: str, text: str) -> None:
    """Writes a small text file whole or not at all, and synced."""
    aside = f"{path}.writing"
    try:
        write_bytes(aside, lambda file: file.write(text.encode()))
    except OSError:
        with contextlib.suppress(OSError):
            os.remove(aside)
        raise
    os.replace(aside, path)
    _sync_folder(os.path.dirname(path) or ".")


def disk_is_full(error: BaseException) -> bool:
    """Whether an error of the operating system (or of TensorFlow's writers) says that there is no room."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return "No space left" in str(error) or "Disk quota" in str(error)


def _unwritable(folder: str, error: OSError) -> UserError:
    if disk_is_full(error):
        return UserError(f"The disk that holds {folder} is full ({error.strerror}). The checkpoints written before are "
                         "intact: make room and start the same command again.")
    return UserError(f"Cannot write a checkpoint into {folder}: {error.strerror or error}. Checkpoints written before "
                     "are intact; give a --workdir that can be written.")


def write_arrays(arrays: Mapping[str, np.ndarray], file: Any, compressed: bool = False) -> None:
    """Writes `{variable path: array}` into an open file; `read_arrays` gives them back."""
    # Paths hold "/", so members have plain names and the paths are an array of bytes of their own.
    members: dict[str, Any] = {f"a{i}": np.asarray(array) for i, array in enumerate(arrays.values())}
    save_into = np.savez_compressed if compressed else np.savez
    save_into(file, names=np.frombuffer(json.dumps(list(arrays)).encode(), np.uint8), **members)


def write_bytes(path: str, write: Callable[[Any], Any]) -> None:
    """Opens a file, lets `write` fill it, and syncs it."""
    with open(path, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: str) -> None:
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot sync folders
                raise
        finally:
            os.close(handle)


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


def read_arrays(path: str, advice: str) -> Arrays:
    """`{variable path: array}` of a file that `write_arrays` wrote.

    Raises:
      UserError: it cannot be read; ends in `advice`.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = json.loads(archive["names"].tobytes().decode())
            if not isinstance(names, list):
                raise ValueError("the names are no list")
            return {name: archive[f"a{i}"] for i, name in enumerate(names)}
    except _UNREADABLE as error:
        raise UserError(f"The weights in {path} cannot be read ({type(error).__name__}); {advice}.") from error


def _followed(path: str) -> str:
    """The folder that a pointer file names; links are followed by the operating system."""
    if os.path.isfile(path):
        step = target_of(os.path.dirname(path), os.path.basename(path))
        return path if step is None else os.path.join(os.path.dirname(path), name_of(step))
    return os.path.realpath(path) if os.path.islink(path) else path


# ---- variables ---------------------------------------------------------------------------------------------------


def collect(variables: Iterable[Any]) -> Arrays:
    """Values of Keras variables by their name."""
    return {name: np.array(variable.value.numpy()) for name, variable in named(variables)}


def learnt(model: Any) -> list[Any]:
    """What training has learnt: trainable variables in the order of the forward pass, then running statistics."""
    return [*model.trainable_variables,
            *(v for v in model.non_trainable_variables if v.name in ("moving_mean", "moving_variance"))]


def restore(variables: Iterable[Any], arrays: Mapping[str, np.ndarray], source: str) -> None:
    """Assigns values to Keras variables; all are checked before the first one is changed.

    Raises:
      UserError: a variable is missing, left over, or has another shape or type.
    """
    pairs = named(variables)
    check_shapes({name: (tuple(v.shape), str(np.dtype(v.dtype))) for name, v in pairs}, arrays, source)
    for name, variable in pairs:
        variable.assign(arrays[name])


def check_shapes(wanted: Mapping[str, tuple[tuple[int, ...], str]], arrays: Mapping[str, np.ndarray],
                 source: str) -> None:
    """Compares `{name: (shape, type)}` with arrays.

    Raises:
      UserError: naming the first difference.
    """
    for name in wanted:
        if name not in arrays:
            raise UserError(f"{source} has no {name}, which this network has: it is of another network.")
    for name, array in arrays.items():
        if name not in wanted:
            raise UserError(f"{source} has {name}, which this network has not: it is of another network.")
        if (array.shape, array.dtype.name) != wanted[name]:
            shape, kind = wanted[name]
            raise UserError(f"In {source}, {name} is {array.dtype.name} of shape {array.shape}, and this network needs "
                            f"{kind} of shape {shape}: it is of another network.")


def named(variables: Iterable[Any]) -> list[tuple[str, Any]]:
    """Keras variables with the names they have in a checkpoint: their paths, equal ones told apart by a number."""
    seen: dict[str, int] = {}
    pairs = []
    for variable in variables:
        count = seen[variable.path] = seen.get(variable.path, -1) + 1
        pairs.append((f"{variable.path}#{count}" if count else variable.path, variable))
    return pairs
