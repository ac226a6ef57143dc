"""The one kind of error a user can cause: it ends a command with one sentence and exit code 2. And what errors of
others say: in a line, or that a disk or the memory is full. Needs no TensorFlow."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator, Sequence
from typing import Any


class UserError(ValueError):
    """A flag, file, data set or checkpoint is unusable; the message says what is legal, what came, what to do."""


def first_line(error: BaseException) -> str:
    """Another library's error as part of a sentence: its kind, and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no details').splitlines()[0][:200]}"


def disk_is_full(error: BaseException) -> bool:
    """Whether an error of the operating system (or of TensorFlow's writers) says that there is no room."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return "No space left" in str(error) or "Disk quota" in str(error)


def memory_is_full(error: BaseException) -> bool:
    """Whether an error, Python's or TensorFlow's, says that there is no memory left."""
    if isinstance(error, MemoryError):
        return True
    tf = sys.modules.get("tensorflow")
    return tf is not None and isinstance(error, tf.errors.ResourceExhaustedError) and not disk_is_full(error)


@contextlib.contextmanager
def explained_where_memory_is_full(advice: str) -> Iterator[None]:
    """Within it, running out of memory is a `UserError` that ends in `advice`."""
    try:
        yield
    except Exception as error:
        if not memory_is_full(error):
            raise
        raise UserError(f"Out of memory. {advice}") from error


def listed(values: Sequence[Any], most: int = 10) -> str:
    """The first values as part of a sentence, with ", ..." where there are more."""
    return ", ".join(map(str, values[:most])) + ", ..." * (len(values) > most)
