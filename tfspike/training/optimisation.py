"""Optimiser and weight decay of a run, each a function of its configuration."""

from __future__ import annotations

import keras

from tfspike.config.config import Config


def make_optimizer(config: Config) -> keras.optimizers.Optimizer:
    """The configured optimiser. L2 weight decay of SGD and Adam is part of the gradient (`TrainStep`), not of it."""
    rate = config.learning_rate
    if config.optimizer == "sgd":
        return keras.optimizers.SGD(rate, name="sgd")
    if config.optimizer == "adam":
        return keras.optimizers.Adam(rate, name="adam")
    optimizer = keras.optimizers.AdamW(rate, weight_decay=config.weight_decay, name="adamw")
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "ceiling", "leak", "threshold"])
    return optimizer


def decays(variable: keras.Variable) -> bool:
    """Whether weight decay applies: to weights, not to the factors and offsets of a normalisation, learnt constants of
    neurons, or the ceiling of a quantised ReLU."""
    return len(variable.shape) > 1
