"""Checks of constants that cells, layers and models share: refused at construction, before minutes are lost."""

from __future__ import annotations

import math
import numbers
from typing import Any

from tfspike.errors import UserError


def is_number(value: Any) -> bool:
    """Whether this is a real number of Python or NumPy; a tensor, a variable and an array of any size are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def number(value: Any) -> float:
    """A number of Python or NumPy as a float; NaN, which no comparison holds for, in place of anything else."""
    return float(value) if is_number(value) else math.nan


def received(name: str, value: Any) -> str:
    """The end of a refusal, on one line: what came, and where it is no number at all, what to do instead."""
    text = f" Received: {name}={_one_line(value)}."
    if (hasattr(value, "shape") or isinstance(value, (list, tuple))) and not is_number(value):
        return (f" It is a constant, one number of Python or NumPy for a whole layer: give float({name}) where it "
                "stays as it is; one that is learnt, or differs between neurons, takes a layer with its own `call`. "
                f"The docstring of tfspike.layers.SpikingLayer has a recipe.{text}")
    return text


def _one_line(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 120 else f"{text[:117]}..."


def is_count(value: Any, least: int = 1) -> bool:
    """Whether this is an integer of Python or NumPy, of at least `least`."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= least


def check_leak(leak: Any) -> float:
    """Returns `leak` as a float; raises UserError outside (0, 1]."""
    if not 0.0 < number(leak) <= 1.0:
        raise UserError("`leak`, the share of the membrane potential kept per step, must be a number in (0, 1]."
                        + received("leak", leak))
    return float(leak)


def check_positive(name: str, value: Any) -> float:
    """Returns `value` as a float; raises UserError unless it is finite and above 0."""
    if not 0.0 < number(value) < math.inf:
        raise UserError(f"`{name}` must be a finite number above 0." + received(name, value))
    return float(value)


def check_threshold(threshold: Any) -> float:
    """Returns `threshold` as a float; raises UserError unless it is finite and above 0."""
    return check_positive("threshold", threshold)


def check_choice(name: str, value: Any, legal: tuple[Any, ...]) -> Any:
    """Returns `value`; raises UserError that lists what is legal."""
    if not isinstance(value, (str, numbers.Integral, type(None))) or value not in legal:
        raise UserError(f"`{name}` must be one of {', '.join(map(repr, legal))}. Received: {name}={_one_line(value)}.")
    return value


def check_count(name: str, value: Any, least: int = 1) -> int:
    """Returns `value` as an int; raises UserError unless it is an integer of at least `least`."""
    if not is_count(value, least):
        raise UserError(f"`{name}` must be an integer of at least {least}. Received: {name}={_one_line(value)}.")
    return int(value)


def check_time_first(layer: str, shape: tuple[int | None, ...]) -> None:
    """Raises UserError where a symbolic tensor begins with the batch, which would be taken for time.

    Keras leaves the length of the batch open, `(None, 20, 8)`; a train whose length is open leaves both.
    """
    if len(shape) > 1 and shape[0] is None and shape[1] is not None:
        raise UserError(f"{layer} takes trains `[T, B, ...]`, time first. Received: shape {shape}, which begins with "
                        "the batch: put an encoder in front, such as tfspike.PoissonEncoder(timesteps), or "
                        "tfspike.SpikeInput(timesteps) where the input is a spike train `[B, T, ...]` already.")


def check_fraction(name: str, value: Any) -> float:
    """Returns `value` as a float; raises UserError outside [0, 1)."""
    if not 0.0 <= number(value) < 1.0:
        raise UserError(f"`{name}` must be a number in [0, 1)." + received(name, value))
    return float(value)


def may_adapt(learn: Any, start: float, running_start: bool, gradient: str) -> bool:
    """Whether neurons of these options may have thresholds that adapt (`tfspike.neurons.homeostasis`)."""
    return not (learn or start or running_start or gradient == "eprop")


def check_backend(name: str) -> None:
    """Raises UserError unless this is the backend of Keras that the library computes with."""
    if name != "tensorflow":
        raise UserError("tfspike computes with TensorFlow, so Keras must have the backend \"tensorflow\". Received: "
                        f"{name!r}, from KERAS_BACKEND or ~/.keras/keras.json; set KERAS_BACKEND=tensorflow.")
