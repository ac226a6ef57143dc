"""Optimiser, learning rate and weight decay of a run, each a function of its configuration."""

from __future__ import annotations

import math

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


def learning_rate(config: Config, step: int, steps_per_epoch: int) -> float:
    """The learning rate of the step after `step` finished ones.

    "milestones" multiplies it after some epochs; "cosine" lowers it to 0 at the end of the last epoch, along half a
    cosine (Loshchilov and Hutter 2017). Either begins with `warmup_epochs` of a straight rise from 0.
    """
    warmup = config.warmup_epochs * steps_per_epoch
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if config.lr_schedule == "cosine":
        done = max(0, step - warmup) / max(1, config.epochs * steps_per_epoch - warmup)
        return config.learning_rate * rise * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    epochs_done = step // steps_per_epoch
    return config.learning_rate * rise * config.lr_factor ** sum(epochs_done >= at for at in config.lr_milestones)
