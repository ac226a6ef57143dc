"""Files that survive a kill, written aside, synced and renamed, and archives that others may have damaged.

Nothing in a file is executed when it is read (no pickle, no objects). Needs no TensorFlow.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfspike.errors import UserError, first_line

PACKAGE = os.path.dirname(os.path.abspath(__file__))  # where data/, weights/ and templates/ lie

Arrays = dict[str, np.ndarray]
# What reading an archive of arbitrary bytes can raise: a checksum proves that a file is as it was written, not by whom.
UNREADABLE = (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, OverflowError, SyntaxError,
               RuntimeError, MemoryError, struct.error, zipfile.BadZipFile, zlib.error)


def checksum(path: str) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else \
            hashlib.sha256(file.read()).hexdigest()


def write_file(path: str, content: str | bytes) -> None:
    """Writes a small file whole or not at all, and synced; text in UTF-8."""
    aside = f"{path}.writing"
    try:
        write_bytes(aside, lambda file: file.write(content.encode() if isinstance(content, str) else content))
        os.replace(aside, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.remove(aside)
        raise
    sync_folder(os.path.dirname(path) or ".")


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


def sync_folder(path: str) -> None:
    """Makes the names in a folder survive a loss of power, where the file system can."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot sync folders
                raise
        finally:
            os.close(handle)


def take_lock(handle: Any, wait: bool) -> bool:
    """Whether the lock of an open file or folder is this process's now, until it is closed; True without locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
    """One process at a time is within it, the others wait; where there are no locks, all are."""
    handle = os.open(folder, os.O_RDONLY) if hasattr(os, "O_DIRECTORY") else None
    try:
        if handle is not None:
            take_lock(handle, wait=True)
        yield
    finally:
        if handle is not None:
            os.close(handle)


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
    except UNREADABLE as error:
        raise UserError(f"The weights in {path} cannot be read ({type(error).__name__}); {advice}.") from error


def names_in_npz(path: str | os.PathLike[str], advice: str) -> list[str]:
    """Names of the arrays in an .npz file; arguments and errors as for `read_npz`."""
    with _opened_npz(path, advice) as archive:
        return list(archive.files)


def read_npz(path: str | os.PathLike[str], fields: Sequence[str], advice: str) -> dict[str, np.ndarray]:
    """Returns `{field: array}` of an .npz file; executes nothing that is in it.

    Args:
      path: the file.
      fields: arrays that it must have.
      advice: what to do if it cannot be read, as the end of a sentence.

    Raises:
      UserError: the file cannot be read, or lacks a field.
    """
    with _opened_npz(path, advice) as archive:
        missing = [field for field in fields if field not in archive]
        if not missing:
            return {field: archive[field] for field in fields}
        has = ", ".join(archive.files) or "none"
    raise UserError(f"{path} lacks the fields {', '.join(missing)}, it has {has}; {advice}.")


@contextlib.contextmanager
def _opened_npz(path: str | os.PathLike[str], advice: str) -> Iterator[Any]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            yield archive
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}); {advice}.") from error
