"""Whether inputs fit a model of one input: said in a sentence, before TensorFlow says it of a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfspike.errors import UserError

Shape = tuple[int | None, ...]


def refuse_shape(shape: Shape, declared: Shape) -> None:
    """Raises UserError where inputs of this shape, batch first, are not what a model declares.

    An axis of size 1 for the channel may be missing, or be one too many.
    """
    found = shape
    if len(shape) == len(declared) + 1 and shape[-1] == 1:
        found = shape[:-1]
    elif len(shape) == len(declared) - 1 and declared[-1] == 1:
        found = (*shape, 1)
    if tf.TensorShape(declared).is_compatible_with([None, *found[1:]]):
        return
    hint = "."
    if declared[1:] in (shape, (*shape, 1)):
        hint = ", of one alone: give it an axis for the batch, x[np.newaxis]."
    elif len(shape) > 2 and declared[1:] == (*shape[2:], shape[1]):
        hint = ", with channels in front of the pixels: give np.moveaxis(x, 1, -1)."
    raise UserError(f"The model takes inputs of shape [{', '.join(['B', *map(str, declared[1:])])}]. "
                    f"Received: shape {shape}{hint}")


def refuse_data(x: Any, declared: Shape) -> None:
    """Raises UserError where the `x` of `fit`, `evaluate` or `predict` does not fit; looks at lists and arrays alone.

    Keras takes a list as one array for each input, and a function that it has traced for two shapes fails at a third
    one somewhere within its graph.
    """
    if isinstance(x, (list, tuple)):
        if len(x) != 1:
            raise UserError("Keras takes a list as one array for each input, and the model has one input. Received: a "
                            f"list of {len(x)}; give one array, np.stack(x).")
        x = x[0]
    if isinstance(x, np.ndarray) or tf.is_tensor(x):
        refuse_shape(tuple(x.shape), declared)
