"""What goes into a functional model and what comes out of it: in the shapes that its graph declares, or as a file."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfspike.errors import UserError

Shape = tuple[int | None, ...]


def one_input(inputs: Any, declared: Any) -> tf.Tensor:
    """The one input as the graph declares it: out of a list or dict, of its type, with an axis for the channel.

    Raises:
      UserError: there are several, or one of another shape.
    """
    parts = keras.tree.flatten(inputs)
    if isinstance(inputs, dict) and len(parts) != 1:
        raise UserError(f"The model takes one input. Received: {len(parts)}.")
    found = parts[0] if isinstance(inputs, dict) or len(parts) == 1 else inputs  # rows in a list are one tensor
    return _with_rank(tf.cast(tf.convert_to_tensor(found), declared.dtype), declared.shape)


def _with_rank(x: Any, declared: Shape) -> Any:
    """An array or a tensor as declared, with or without an axis for the channel; refuses what `refuse_shape` does."""
    refuse_shape(tuple(x.shape), declared)
    more = len(x.shape) - len(declared)
    return x[..., 0] if more > 0 else x[..., np.newaxis] if more < 0 else x


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


def declared_data(x: Any, declared: Shape) -> Any:
    """The `x` of `fit`, `evaluate` or `predict` in the shape that a model declares, where it is a list, an array, a
    tensor, a generator or a `tf.data.Dataset`, whose batches may be `x` or `(x, ...)`; anything else as it is.

    Keras takes a list as one array for each input. A function that it has traced for images with an axis for the
    channel and without knows no shape any more, and so fails, as it does somewhere within its graph at a third shape.

    Raises:
      UserError: the shape is another one (`refuse_shape`).
    """
    if isinstance(x, (list, tuple)):
        if len(x) != 1:
            raise UserError("Keras takes a list as one array for each input, and the model has one input. Received: a "
                            f"list of {len(x)}; give one array, np.stack(x).")
        x = x[0]
    if isinstance(x, tf.data.Dataset):
        return _declared_batches(x, declared)
    if isinstance(x, types.GeneratorType):
        return _declared_one_by_one(x, declared)
    return _with_rank(x, declared) if isinstance(x, np.ndarray) or tf.is_tensor(x) else x


def _declared_batches(x: tf.data.Dataset, declared: Shape) -> tf.data.Dataset:
    parts = x.element_spec if isinstance(x.element_spec, tuple) else (x.element_spec,)
    images = parts[0] if parts else None
    if not isinstance(images, tf.TensorSpec) or images.shape.rank is None:
        return x
    refuse_shape(tuple(images.shape), declared)
    if images.shape.rank == len(declared):
        return x
    if not isinstance(x.element_spec, tuple):
        return x.map(lambda batch: _with_rank(batch, declared))
    return x.map(lambda batch, *others: (_with_rank(batch, declared), *others))


def _declared_one_by_one(batches: Iterator[Any], declared: Shape) -> Iterator[Any]:
    """A generator's batches, which may be with an axis for the channel and without in turn; Keras takes the first two
    for the shape of all."""
    for batch in batches:
        x, *others = batch if isinstance(batch, tuple) and batch else (None,)
        known = isinstance(x, np.ndarray) or tf.is_tensor(x)
        yield (_with_rank(x, declared), *others) if known else batch


def declared_arguments(method: Callable[..., Any], model: Any, args: tuple[Any, ...], kwargs: dict[str, Any],
                       declared: Shape) -> inspect.BoundArguments:
    """Arguments of `fit`, `evaluate` or `predict` of a model, with `declared_data` for `x` and `validation_data`."""
    bound = inspect.signature(method).bind(model, *args, **kwargs)
    given = bound.arguments
    if "x" in given:
        given["x"] = declared_data(given["x"], declared)
    held_out = given.get("validation_data")
    if isinstance(held_out, (list, tuple)) and held_out:
        given["validation_data"] = (declared_data(held_out[0], declared), *held_out[1:])
    elif isinstance(held_out, (tf.data.Dataset, types.GeneratorType)):
        given["validation_data"] = declared_data(held_out, declared)
    return bound


def with_time_exchanged(outputs: Any, declared: Any) -> Any:
    """Outputs, arrays or tensors; those declared `[T, B, ...]` with time and batch exchanged."""

    def exchanged(x: Any, of: Any) -> Any:
        if of.shape[0] is None:
            return x
        axes = (1, 0, *range(2, len(x.shape)))
        return tf.transpose(x, axes) if tf.is_tensor(x) else np.transpose(x, axes)

    return keras.tree.map_structure(exchanged, outputs, declared)


def refuse_format(model: keras.Model, format: str) -> None:
    """Refuses what `keras.Model.export` would write and call an artifact.

    Raises:
      UserError: a file of that format would not load, or not compute what the model does.
    """
    if format == "openvino":
        why, other = "OpenVINO rounds to 16 bits unless told not to, and so to other spikes", "onnx"
    elif format not in ("onnx", "litert"):
        return
    elif any(getattr(layer, "draws", False) for layer in model.layers):
        why, other = "the format has no counterpart of the random numbers that the encoder draws", format
    elif any(layer.compute_dtype != "float32" for layer in model.layers):
        why, other = "the format computes in float32 alone", format
    else:
        return
    raise UserError(f"format={format!r} would not compute what {model.name!r} does: {why}. python -m tfspike.export "
                    f"--workdir=RUN --format={other} (in Python: tfspike.export.save) writes a file that does, and "
                    "runs it first.")
