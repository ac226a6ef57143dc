"""The variables of a model as plain arrays by name, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from tfspike.errors import UserError
from tfspike.files import Arrays

if TYPE_CHECKING:
    import keras


CONSTANTS = ("leak", "threshold", "moving_start", "threshold_factor")
"""Names of the weights that are constants of neurons, which not every network has."""


def collect(variables: Iterable[keras.Variable]) -> Arrays:
    """Values of Keras variables by their name."""
    return {name: np.array(variable.value.numpy()) for name, variable in named(variables)}


def learnt(model: keras.Model) -> list[keras.Variable]:
    """What training has learnt: trainable variables in the order of the forward pass, then what followed windows."""
    followed = ("moving_mean", "moving_variance", "moving_start", "threshold_factor")
    return [*model.trainable_variables, *(v for v in model.non_trainable_variables if v.name in followed)]


def restore(variables: Iterable[keras.Variable], arrays: Mapping[str, np.ndarray], source: str) -> None:
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


def named(variables: Iterable[keras.Variable]) -> list[tuple[str, keras.Variable]]:
    """Keras variables with the names they have in a checkpoint: their paths, equal ones told apart by a number."""
    seen: dict[str, int] = {}
    pairs = []
    for variable in variables:
        count = seen[variable.path] = seen.get(variable.path, -1) + 1
        pairs.append((f"{variable.path}#{count}" if count else variable.path, variable))
    return pairs
