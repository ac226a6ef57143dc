"""Checks of constants that cells, layers and models share: refused at construction, before minutes are lost."""

from __future__ import annotations

import math
import numbers
from typing import Any

from tfspike.errors import UserError


def number(value: Any) -> float:
    """A number of Python or NumPy as a float; NaN, which no comparison holds for, in place of anything else."""
    return float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan


def is_count(value: Any, least: int = 1) -> bool:
    """Whether this is an integer of Python or NumPy, of at least `least`."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= least


def check_leak(leak: Any) -> float:
    """Returns `leak` as a float; raises UserError outside (0, 1]."""
    if not 0.0 < number(leak) <= 1.0:
        raise UserError("`leak`, the share of the membrane potential kept per step, must be in (0, 1]. "
                        f"Received: leak={leak!r}.")
    return float(leak)


def check_positive(name: str, value: Any) -> float:
    """Returns `value` as a float; raises UserError unless it is finite and above 0."""
    if not 0.0 < number(value) < math.inf:
        raise UserError(f"`{name}` must be a finite number above 0. Received: {name}={value!r}.")
    return float(value)


def check_threshold(threshold: Any) -> float:
    """Returns `threshold` as a float; raises UserError unless it is finite and above 0."""
    return check_positive("threshold", threshold)


def check_choice(name: str, value: Any, legal: tuple[Any, ...]) -> Any:
    """Returns `value`; raises UserError that lists what is legal."""
    if value not in legal:
        raise UserError(f"`{name}` must be one of {', '.join(map(repr, legal))}. Received: {name}={value!r}.")
    return value


def check_count(name: str, value: Any, least: int = 1) -> int:
    """Returns `value` as an int; raises UserError unless it is an integer of at least `least`."""
    if not is_count(value, least):
        raise UserError(f"`{name}` must be an integer of at least {least}. Received: {name}={value!r}.")
    return int(value)


def check_share(name: str, value: Any) -> float:
    """Returns `value` as a float; raises UserError outside [0, 1)."""
    if not 0.0 <= number(value) < 1.0:
        raise UserError(f"`{name}` must be in [0, 1). Received: {name}={value!r}.")
    return float(value)
