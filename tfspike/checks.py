"""Checks of constants that cells, layers and models share: refused at construction, before minutes are lost."""

from __future__ import annotations

import math
from typing import Any

from tfspike.errors import UserError


def check_leak(leak: Any) -> float:
    """Returns `leak` as a float; raises UserError outside (0, 1]."""
    if isinstance(leak, bool) or not isinstance(leak, (int, float)) or not 0.0 < leak <= 1.0:
        raise UserError("`leak`, the share of the membrane potential kept per step, must be in (0, 1]. "
                        f"Received: leak={leak!r}.")
    return float(leak)


def check_positive(name: str, value: Any) -> float:
    """Returns `value` as a float; raises UserError unless it is finite and above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0.0 or math.isinf(value):
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
    """Returns `value`; raises UserError unless it is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"`{name}` must be an integer of at least {least}. Received: {name}={value!r}.")
    return value


def check_share(name: str, value: Any) -> float:
    """Returns `value` as a float; raises UserError outside [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value < 1.0:
        raise UserError(f"`{name}` must be in [0, 1). Received: {name}={value!r}.")
    return float(value)
