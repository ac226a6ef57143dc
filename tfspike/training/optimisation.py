"""Optimiser and weight decay of a run."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from tfspike.config.config import Config


def make_optimizer(config: Config, variables: Sequence[keras.Variable]) -> keras.optimizers.Optimizer:
    """The configured optimiser of these variables, built. L2 weight decay of SGD and Adam is part of the gradient
    (`TrainStep`), not of it."""
    rate = config.learning_rate
    if config.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(rate, name="sgd")
    elif config.optimizer == "adam":
        optimizer = keras.optimizers.Adam(rate, name="adam")
    else:
        optimizer = keras.optimizers.AdamW(rate, weight_decay=config.weight_decay, name="adamw")
        optimizer.exclude_from_weight_decay([variable for variable in variables if not decays(variable)])
    optimizer.build(variables)
    return optimizer


def decays(variable: keras.Variable) -> bool:
    """Whether weight decay applies: to the weights of synapses, not to biases, factors and offsets of a normalisation,
    learnt constants of neurons, or the ceiling of a quantised ReLU."""
    return len(variable.shape) > 1
