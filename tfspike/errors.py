"""The one kind of error a user can cause: it ends a command with one sentence and exit code 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class UserError(ValueError):
    """A flag, file, data set or checkpoint is unusable; the message says what is legal, what came, what to do."""


def first_line(error: BaseException) -> str:
    """Another library's error as part of a sentence: its kind, and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no details').splitlines()[0][:200]}"


def listed(values: Sequence[Any], most: int = 10) -> str:
    """The first values as part of a sentence, with ", ..." where there are more."""
    return ", ".join(map(str, values[:most])) + ", ..." * (len(values) > most)
