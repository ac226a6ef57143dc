"""What training minimises, per record, from the scores V_T / T: in TensorFlow for steps, in NumPy for reports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfspike.errors import UserError

LOSSES = ("squared", "cross_entropy")
_OF_PROBABILITIES = (keras.losses.binary_crossentropy, keras.losses.binary_focal_crossentropy,
                     keras.losses.categorical_crossentropy, keras.losses.categorical_focal_crossentropy,
                     keras.losses.sparse_categorical_crossentropy)


# What compares targets with outputs number by number, and would repeat a label for every class
_BY_NUMBER = (keras.losses.MeanSquaredError, keras.losses.MeanAbsoluteError, keras.losses.MeanSquaredLogarithmicError,
              keras.losses.MeanAbsolutePercentageError, keras.losses.Huber, keras.losses.LogCosh, keras.losses.Hinge,
              keras.losses.SquaredHinge, keras.losses.Poisson, keras.losses.BinaryCrossentropy)
_FUNCTIONS_BY_NUMBER = (keras.losses.mean_squared_error, keras.losses.mean_absolute_error,
                        keras.losses.mean_squared_logarithmic_error, keras.losses.mean_absolute_percentage_error,
                        keras.losses.huber, keras.losses.log_cosh, keras.losses.hinge, keras.losses.squared_hinge,
                        keras.losses.poisson, keras.losses.binary_crossentropy)


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


def refuse_labels(loss: Any, targets: Any, outputs: Any) -> None:
    """Raises UserError where targets are class labels `[B]` or `[B, 1]`, outputs scores `[B, classes]`, and the loss is
    one of Keras' that compare number by number: every score would become the number of the class, without a word.

    Args:
      loss: as `keras.Model.compile` takes it.
      targets, outputs: of a batch, in the same structure.
    """
    kinds, targets, outputs = map(keras.tree.flatten, (loss, targets, outputs))
    if len(targets) != len(outputs) or len(kinds) not in (1, len(outputs)):
        return
    for kind, target, output in zip(kinds if len(kinds) > 1 else kinds * len(outputs), targets, outputs):
        wanted, found = tuple(target.shape), tuple(output.shape)
        are_labels = (len(wanted), len(found)) == (1, 2) or (len(wanted) == len(found) > 1 and wanted[-1] == 1)
        if are_labels and (found[-1] or 0) > 1 and _is_by_number(kind):
            raise UserError(f"The targets are one number each, of shape {_shown(wanted)}, and the outputs are "
                            f"{_shown(found)}: the loss would compare every output with that number. Give labels as "
                            f"keras.utils.to_categorical(labels, {found[-1]}), or take the loss "
                            "keras.losses.SparseCategoricalCrossentropy(from_logits=True).")


def _shown(shape: tuple[Any, ...]) -> str:
    return f"[{', '.join('B' if size is None else str(size) for size in shape)}]"


def _is_by_number(loss: Any) -> bool:
    found = _found(loss)
    return isinstance(found, _BY_NUMBER) or any(found is function for function in _FUNCTIONS_BY_NUMBER)


def refuse_swapped_time(loss: Any, targets: Any, outputs: Any, declared: Any) -> None:
    """Raises UserError where an output is a train `[T, B, ...]` and its targets are `[B, T, ...]`, under losses of
    Keras' own: with T records in a batch, or one, they would compare other records and steps, and say nothing.

    Args:
      loss: as `keras.Model.compile` takes it.
      targets, outputs: of a batch, in the same structure.
      declared: the symbolic outputs, whose first axis is known where it is time.
    """
    kinds = keras.tree.flatten(loss)
    if not all(kind is None or isinstance(kind, str) or _of_keras(kind) for kind in kinds):
        return  # a user's own may know
    sparse = any("sparse" in str(getattr(kind, "name", getattr(kind, "__name__", kind))) for kind in kinds)
    targets, outputs, declared = map(keras.tree.flatten, (targets, outputs, declared))
    for target, output, symbol in zip(targets, outputs, declared) if len(targets) == len(outputs) else ():
        steps, wanted, found = symbol.shape[0], tuple(target.shape), tuple(output.shape)
        short = sparse or found[-1] == 1 and steps != 1  # one step of one number broadcasts as it should
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
