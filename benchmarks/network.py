"""The network of a benchmark in tfspike, structured as those of its peers."""

from __future__ import annotations

from typing import Any

from benchmarks.cases import CLASSES, LEAK, THRESHOLD, image_shape


def create(net: str, timesteps: int, gradient: str, **options: Any) -> Any:
    """The network `net` for images of `benchmarks.cases`, without dropout.

    Args:
      net: a name of `tfspike.variants.VARIANTS`.
      timesteps: length of the window, steps.
      gradient: "rate" or "event".
      options: of `tfspike.models.create`, in place of the benchmarks' own.
    """
    from tfspike import models  # here: workers measure what TensorFlow takes without it

    return models.create(net, image_shape(net), CLASSES, timesteps, gradient=gradient,
                         **{"leak": LEAK, "threshold": THRESHOLD, "dropout": 0.0, **options})


def use_threads(count: int) -> None:
    """Before TensorFlow computes anything."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(count)
    tf.config.threading.set_inter_op_parallelism_threads(count)
