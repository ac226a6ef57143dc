"""Variables that Keras makes while it traces a model's first step, made before.

TensorFlow traces a function that made variables a second time. Keras leaves the moments of an optimiser and the sums of
metrics to the first step, so that one would wait for it twice: seconds, of a deep network.
"""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import tensorflow as tf

from tfspike.models import callbacks
from tfspike.models.network import window_of


def prepare(model: Any, told: dict[str, Any], batches: Any, trains: bool) -> None:
    """Builds the optimiser and the metrics of a compiled model, and what keeps its statistics.

    Args:
      model: a `TracedOnce` whose steps and metrics are those of its class.
      told: what is told of it, as of `callbacks.keep_statistics`.
      batches: what its step will be given; its targets are known where it is an iterator of `tf.data`.
      trains: whether it will be trained.
    """
    optimizer, weights = model.optimizer, model.trainable_variables
    window = window_of(model)
    if trains and window is not None:
        callbacks.make_room(told, window)
    if trains and weights and optimizer is not None and not optimizer.built:
        optimizer.build(weights)
    specs = getattr(batches, "element_spec", None)
    unbuilt = [metric for metric in model.metrics if not getattr(metric, "built", True)]
    if specs is None or not unbuilt:
        return
    _, targets, _ = keras.utils.unpack_x_y_sample_weight(specs)
    found = keras.tree.flatten(targets)
    if not found or not all(isinstance(spec, tf.TensorSpec) and spec.shape.rank is not None for spec in found):
        return
    symbols = keras.tree.map_structure(lambda spec: keras.KerasTensor(spec.shape, spec.dtype.name), targets)
    with contextlib.suppress(Exception):  # targets of another structure: the step itself says so, in better words
        for metric in unbuilt:
            metric.build(symbols, model.output)


def forget(model: Any) -> None:
    """Has metrics built anew by the next step: those of a step that failed are of its targets."""
    for metric in model.metrics:
        if getattr(metric, "built", False):
            metric.built = False
