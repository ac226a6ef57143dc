"""What training minimises, per record, from the scores V_T / T: in TensorFlow for steps, in NumPy for reports."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfspike.errors import UserError

LOSSES = ("squared", "cross_entropy")
_OF_PROBABILITIES = (keras.losses.binary_crossentropy, keras.losses.binary_focal_crossentropy,
                     keras.losses.categorical_crossentropy, keras.losses.categorical_focal_crossentropy,
                     keras.losses.sparse_categorical_crossentropy)
SCORES_FOR_PROBABILITIES = (
    "The loss takes probabilities, and what the Readout gives are scores of any size and sign, with which it hardly "
    "learns: give it from_logits=True, as in keras.losses.SparseCategoricalCrossentropy(from_logits=True).")
_OF_LABELS = ("sparse", "generalized", "ctc", "circle")  # in the names of losses whose targets are classes


def per_record(kind: str, scores: tf.Tensor, labels: tf.Tensor, smoothing: float = 0.0) -> tf.Tensor:
    """The loss of every record, `[B]` float32.

    Args:
      kind: "squared", summed over classes (Lee et al. 2020, the authors' code; the paper has half of it), or
        "cross_entropy" of the softmax of the scores.
      scores: V_T / T, `[B, classes]`.
      labels: `[B]`, integers.
      smoothing: share of the target that is spread over all classes (Szegedy et al. 2016).
    """
    classes = scores.shape[-1]
    wanted = tf.one_hot(labels, classes) * (1.0 - smoothing) + smoothing / classes
    if kind == "squared":
        return tf.reduce_sum(tf.square(scores - wanted), axis=-1)
    return tf.nn.softmax_cross_entropy_with_logits(wanted, scores)


def firing_rate(activity: Mapping[str, tf.Tensor], timesteps: int, records: int) -> tf.Tensor:
    """Mean firing rate of all spiking neurons of a network, one number, in spikes per neuron and step.

    Args:
      activity: spikes per window of every neuron, `{layer: [B, ...]}` (`SpikingModel.observe`).
      timesteps: T, steps in the window.
      records: divides the sum over B: the global batch, where this replica has a part of it.
    """
    neurons = sum(math.prod(count.shape[1:]) for count in activity.values())
    return tf.add_n([tf.reduce_sum(count) for count in activity.values()]) / float(records * neurons * timesteps)


def _found(loss: Any) -> Any:
    """A loss of Keras by its name; all else as it is."""
    return keras.losses.get(loss) if isinstance(loss, str) else loss


def takes_probabilities(loss: Any) -> bool:
    """Whether a loss, as `keras.Model.compile` takes it, is a cross entropy of probabilities, not of scores."""
    found = _found(loss)
    if isinstance(found, keras.losses.Loss):
        return found.get_config().get("from_logits") is False
    return any(found is function for function in _OF_PROBABILITIES)


class Compared(NamedTuple):
    """An output of a batch that has a loss.

    Attributes:
      loss: as `keras.Model.compile` takes it.
      target, output: of the batch.
      symbol: the symbolic output, whose first axis is known where it is time.
    """

    loss: Any
    target: Any
    output: Any
    symbol: Any


def compared(loss: Any, targets: Any, outputs: Any, model: Any) -> list[Compared]:
    """The outputs that have a loss, paired as Keras pairs them; [] where it will refuse them.

    Args:
      loss: as `keras.Model.compile` takes it; by name where it is a dict, and so are targets.
      targets, outputs: of a batch.
      model: a functional one, whose outputs these are.

    Raises:
      UserError: there is a loss, and no target.
    """
    if loss is None:
        return []
    if targets is None:
        raise UserError("The loss compares outputs with targets, and none were given: fit and evaluate take them as y, "
                        "fit(x, y), and data sets and generators as pairs (x, y).")
    names = sorted(outputs) if isinstance(outputs, dict) else model.output_names
    parts = []
    for part in (loss, targets, outputs):
        if isinstance(part, dict):
            if set(part) != set(names):
                return []
            part = [part[name] for name in names]
        parts.append(keras.tree.flatten(part))
    kinds = parts[0] * len(parts[2]) if len(parts[0]) == 1 else parts[0]
    if not len(kinds) == len(parts[1]) == len(parts[2]) == len(model.outputs):
        return []
    found = [Compared(*part) for part in zip(kinds, *parts[1:], model.outputs)]
    return [one for one in found if one.loss is not None and one.target is not None]


def refuse_targets(batch: Iterable[Compared]) -> None:
    """Raises UserError where the targets have no known rank, or where a loss of Keras' own compares them with outputs
    number by number, and these are class labels `[B]` or `[B, 1]` and scores `[B, classes]`, or have last axes of other
    lengths: Keras repeats an axis of length 1, without a word, and of other lengths it is an operation of TensorFlow
    that fails."""
    for kind, target, output, _ in batch:
        if getattr(target.shape, "rank", 0) is None:
            like = [None, *output.shape[1:]] if _is_by_number(kind) else [None]
            raise UserError("Targets need a known number of axes, and those of the data set have none, as what comes "
                            f"out of tf.py_function: tell it in the data set's map, y = tf.ensure_shape(y, {like}).")
        wanted, found = tuple(target.shape), tuple(output.shape)
        classes = found[-1] if len(found) > 1 else None
        if classes is None or not _is_by_number(kind):
            continue
        if classes > 1 and ((len(wanted), len(found)) == (1, 2) or len(wanted) == len(found) and wanted[-1] == 1):
            raise UserError(f"The targets are one number each, of shape {_shown(wanted)}, and the outputs are "
                            f"{_shown(found)}: the loss would compare every output with that number. Give labels as "
                            f"keras.utils.to_categorical(labels, {classes}), or take the loss "
                            "keras.losses.SparseCategoricalCrossentropy(from_logits=True).")
        if len(wanted) == len(found) and wanted[-1] not in (None, classes):
            raise UserError(f"The targets are {_shown(wanted)}, and the outputs are {_shown(found)}: the loss compares "
                            f"them number by number. Give targets of {classes}, as keras.utils.to_categorical(labels, "
                            f"{classes}) has them, or let the layer in front of the Readout have {wanted[-1]} units.")


def refuse_unknown_classes(loss: Any, labels: Any, outputs: Any) -> None:
    """Raises UserError where labels, an array of whole numbers, are of classes that a model has no output for, under
    Keras' cross entropy of labels: on GPUs that is NaN, and on CPUs an operation within a graph fails.

    Args:
      loss: as `keras.Model.compile` takes it.
      labels: of all records, if they are labels.
      outputs: the symbolic ones.
    """
    kind = _found(loss)
    sparse = isinstance(kind, keras.losses.SparseCategoricalCrossentropy)
    if not sparse and kind is not keras.losses.sparse_categorical_crossentropy:
        return
    if len(outputs) != 1 or not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu" or not labels.size:
        return
    if sparse and kind.get_config().get("ignore_class") is not None:
        return
    least, most, classes = int(labels.min()), int(labels.max()), outputs[0].shape[-1]
    if least < 0 or most >= classes:
        hint = "; where they begin with 1, give labels - 1" if (least, most) == (1, classes) else ""
        raise UserError(f"The model has {classes} outputs, for labels from 0 to {classes - 1}. Received: labels from "
                        f"{least} to {most}{hint}.")


def _shown(shape: tuple[Any, ...]) -> str:
    return f"[{', '.join('B' if size is None else str(size) for size in shape)}]"


def _is_by_number(loss: Any) -> bool:
    """Whether a loss is Keras' own and its targets have the shape of the outputs."""
    found = _found(loss)
    name = type(found).__name__ if isinstance(found, keras.losses.Loss) else getattr(found, "__name__", "")
    return _of_keras(found) and not any(part in name.lower() for part in _OF_LABELS)


def refuse_swapped_time(batch: Iterable[Compared]) -> None:
    """Raises UserError where an output is a train `[T, B, ...]` and its targets are `[B, T, ...]`, under losses of
    Keras' own: with T records in a batch, or one, they would compare other records and steps, and say nothing."""
    for kind, target, output, symbol in batch:
        if not _of_keras(_found(kind)):
            continue  # a user's own may know
        steps, wanted, found = symbol.shape[0], tuple(target.shape), tuple(output.shape)
        # one step of one number broadcasts as it should
        short = not _is_by_number(kind) or found[-1] == 1 and steps != 1
        ranks = (len(found), len(found) - short)
        if steps is not None and len(wanted) in ranks and wanted[1:2] == (steps,) and found[0] == steps:
            raise UserError(f"The targets are [B, T={steps}, ...], and the output is a train [T, B, ...]: Keras "
                            "would compare other records and steps. Let the model give its output by records, with "
                            "keras.ops.swapaxes(output, 0, 1) as its last operation.")


def _of_keras(loss: Any) -> bool:
    kind = type(loss) if isinstance(loss, keras.losses.Loss) else loss
    return str(getattr(kind, "__module__", "")).partition(".")[0] == "keras"


def mean(kind: str, scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean loss over records in float64, without smoothing: that is training's aim, not a measure of answers."""
    scores = scores.astype(np.float64)
    if kind == "squared":
        return float(np.mean(np.sum((scores - np.eye(scores.shape[1])[labels])**2, axis=1)))
    shifted = scores - scores.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]))


def probabilities(kind: str, scores: np.ndarray) -> np.ndarray:
    """Scores `[N, classes]` read as the classes' probabilities.

    The squared error trains them towards 1 for the true class and 0 for the others, so they are taken as they are,
    clipped to [0, 1], over their sum; cross entropy trains their softmax.
    """
    if kind == "squared":
        shares = np.clip(scores, 0.0, 1.0)
        total = shares.sum(axis=1, keepdims=True)
        return np.where(total > 0, shares / np.maximum(total, np.finfo(shares.dtype).tiny), 1.0 / scores.shape[1])
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)
