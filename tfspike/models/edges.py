"""What goes into a functional model and what comes out of it: in the shapes that its graph declares, or as a file."""

from __future__ import annotations

import contextlib
import inspect
import re
import types
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfspike.engine.plan import Plan
from tfspike.errors import UserError
from tfspike.neurons.encoders import SpikeInput

Shape = tuple[int | None, ...]


def one_input(inputs: Any, plan: Plan) -> tf.Tensor:
    """The one input as the graph declares it: out of a list or dict, of its type, with an axis for the channel.

    Raises:
      UserError: there are several, or one of another shape.
    """
    parts = keras.tree.flatten(inputs)
    if isinstance(inputs, dict) and len(parts) != 1:
        raise UserError(f"The model takes one input. Received: {len(parts)}.")
    found = parts[0] if isinstance(inputs, dict) or len(parts) == 1 else inputs  # rows in a list are one tensor
    return _with_rank(tf.cast(tf.convert_to_tensor(found), plan.inputs[0].dtype), plan)


def _with_rank(x: Any, plan: Plan) -> Any:
    """An array or a tensor as declared, with or without an axis for the channel; refuses what `refuse_shape` does."""
    refuse_shape(tuple(x.shape), plan)
    more = len(x.shape) - len(plan.inputs[0].shape)
    return x[..., 0] if more > 0 else x[..., np.newaxis] if more < 0 else x


def _takes_trains(plan: Plan) -> bool:
    """Whether a model's input is the spike train itself, `[B, T, ...]`."""
    return isinstance(plan.encoder.layer, SpikeInput) and plan.encoder.source is plan.inputs[0]


def refuse_shape(shape: Shape, plan: Plan) -> None:
    """Raises UserError where inputs of this shape, batch first, are not what a model of this plan declares.

    An axis of size 1 for the channel may be missing, or be one too many. The steps of spike trains are those that the
    network was built for, also where its `keras.Input` leaves them open.
    """
    declared = tuple(plan.inputs[0].shape)
    sizes = [str(size) for size in declared[1:]]
    if _takes_trains(plan):
        steps = plan.encoder.layer.timesteps
        declared = (declared[0], steps, *declared[2:])
        sizes[0] = f"T={steps}"
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
    elif _takes_trains(plan) and len(found) == len(declared) and found[1] != declared[1]:
        hint = f": give trains of {declared[1]} steps, or build the network for {found[1]}."
    elif len(shape) > 2 and declared[1:] == (*shape[2:], shape[1]):
        hint = ", with channels in front of the pixels: give np.moveaxis(x, 1, -1)."
    raise UserError(f"The model takes inputs of shape [{', '.join(['B', *sizes])}]. Received: shape {shape}{hint}")


def declared_data(x: Any, plan: Plan) -> Any:
    """The `x` of `fit`, `evaluate` or `predict` in the shape that a model declares, where it is a list, an array, a
    tensor, a generator, a `keras.utils.PyDataset` or a `tf.data.Dataset`, whose batches may be `x` or `(x, ...)`;
    anything else as it is.

    Keras takes a list as one array for each input. A function that it has traced for images with an axis for the
    channel and without knows no shape any more, and so fails, as it does somewhere within its graph at a third shape.

    Raises:
      UserError: the shape is another one (`refuse_shape`); where it shows with later batches alone, when these come.
    """
    if isinstance(x, (list, tuple)):
        if len(x) != 1:
            raise UserError("Keras takes a list as one array for each input, and the model has one input. Received: a "
                            f"list of {len(x)}; give one array, np.stack(x).")
        x = x[0]
    if isinstance(x, tf.data.Dataset):
        return _declared_batches(x, plan)
    if isinstance(x, types.GeneratorType):
        return (_declared_batch(batch, plan) for batch in x)
    if isinstance(x, keras.utils.PyDataset):
        return _DeclaredBatches(x, plan)
    return _declared_array(x, plan)


def _declared_array(x: Any, plan: Plan) -> Any:
    return _with_rank(x, plan) if isinstance(x, np.ndarray) or tf.is_tensor(x) else x


def _declared_batch(batch: Any, plan: Plan) -> Any:
    """A batch of a generator, which may be with an axis for the channel or without; Keras takes the first two for the
    shape of all."""
    if not isinstance(batch, tuple) or not batch:
        return batch
    return _declared_array(batch[0], plan), *batch[1:]


class _DeclaredBatches(keras.utils.PyDataset):
    """The batches of another one in the shape that a model declares."""

    def __init__(self, batches: keras.utils.PyDataset, plan: Plan):
        super().__init__(batches.workers, batches.use_multiprocessing, batches.max_queue_size)
        self._batches, self._plan = batches, plan

    @property
    def num_batches(self) -> int | None:
        return self._batches.num_batches

    def __getitem__(self, index: int) -> Any:
        batch = self._batches[index]  # a list or an array is a tuple to Keras
        batch = tuple(batch) if isinstance(batch, list) else (batch,) if isinstance(batch, np.ndarray) else batch
        return _declared_batch(batch, self._plan)

    def on_epoch_begin(self) -> None:
        self._batches.on_epoch_begin()

    def on_epoch_end(self) -> None:
        self._batches.on_epoch_end()


def _declared_batches(x: tf.data.Dataset, plan: Plan) -> tf.data.Dataset:
    parts = x.element_spec if isinstance(x.element_spec, tuple) else (x.element_spec,)
    images = parts[0] if parts else None
    if not isinstance(images, tf.TensorSpec):
        return x
    if images.shape.rank is not None:
        refuse_shape(tuple(images.shape), plan)
        if images.shape.rank == len(plan.inputs[0].shape):
            return x
    if not isinstance(x.element_spec, tuple):
        return x.map(lambda batch: _declared_tensor(batch, plan))
    return x.map(lambda batch, *others: (_declared_tensor(batch, plan), *others))


def _declared_tensor(x: tf.Tensor, plan: Plan) -> tf.Tensor:
    """A batch of a data set, whose rank may be unknown: `tf.py_function` and `tf.io.decode_image` give such."""
    if x.shape.rank is not None:
        return _with_rank(x, plan)
    known = tf.numpy_function(lambda batch: _with_rank(batch, plan), [x], x.dtype, stateful=False)
    known.set_shape([None, *plan.inputs[0].shape[1:]])
    return known


# Of `_with_rank` within a data set, and of an encoder within a graph
_REFUSALS = (re.compile(r"UserError: (.+)"), re.compile(r"assertion failed: \[(.+ shape)\] \[([\d ]*)\] \[(.+?)\]"))


@contextlib.contextmanager
def in_a_sentence() -> Iterator[None]:
    """Within it, a refusal that a graph or a data set raises is the `UserError` that it is, without TensorFlow's pages
    around it."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        for match in filter(None, (pattern.search(error.message) for pattern in _REFUSALS)):
            words, *rest = match.groups()
            shape, after = rest or ("", "")
            raise UserError(f"{words} ({', '.join(shape.split())}){after}" if rest else words) from None
        raise


def declared_arguments(method: Callable[..., Any], model: Any, args: tuple[Any, ...], kwargs: dict[str, Any],
                       plan: Plan) -> inspect.BoundArguments:
    """Arguments of `fit`, `evaluate` or `predict` of a model, with `declared_data` for `x` and `validation_data`."""
    bound = inspect.signature(method).bind(model, *args, **kwargs)
    given = bound.arguments
    if "x" in given:
        given["x"] = declared_data(given["x"], plan)
    held_out = given.get("validation_data")
    if isinstance(held_out, (list, tuple)) and held_out:
        given["validation_data"] = (declared_data(held_out[0], plan), *held_out[1:])
    elif held_out is not None:
        given["validation_data"] = declared_data(held_out, plan)
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
