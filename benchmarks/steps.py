"""The training step of a case as a GPU takes it, for the tools that look at its graph or its HLO."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from benchmarks import cases, measure
from tfspike import config, distribution
from tfspike.training.step import TrainStep


def as_on_a_gpu() -> None:
    """From here on, the process takes the kernels, chunks and normalisations of a GPU."""
    distribution.has_gpu = lambda: True


def optimizer(model: Any, learning_rate: float = measure.LEARNING_RATE) -> keras.optimizers.Optimizer:
    """SGD for the weights of a model."""
    found = keras.optimizers.SGD(learning_rate)
    found.build(model.trainable_variables)
    return found


def training_step(model: Any, optimizer: keras.optimizers.Optimizer, case: cases.Case, jit: str) -> TrainStep:
    """The whole step: encode, forward, backward, update.

    Args:
      model: of `benchmarks.network`.
      optimizer: of `optimizer`.
      case: which.
      jit: "on" for one program of XLA, "off" for operation by operation.
    """
    settings = config.resolve({"model": case.net, "batch_size": case.batch, "jit": jit, "workdir": "unused"},
                              method="lee")
    return TrainStep(model, optimizer, tf.distribute.get_strategy(), settings)
