"""The learning rate of every step, a function of a run's settings. Needs neither TensorFlow nor Keras."""

from __future__ import annotations

import math
from typing import Any


def learning_rate(config: Any, step: int, steps_per_epoch: int) -> float:
    """The learning rate of the step after `step` finished ones.

    "milestones" multiplies it after some epochs; "cosine" lowers it to 0 at the end of the last epoch, along half a
    cosine (Loshchilov and Hutter 2017). Either begins with `warmup_epochs` of a straight rise from 0.

    Args:
      config: a `Config`, or what has its settings.
      step: steps done.
      steps_per_epoch: of the run.
    """
    warmup = config.warmup_epochs * steps_per_epoch
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if config.lr_schedule == "cosine":
        done = max(0, step - warmup) / max(1, config.epochs * steps_per_epoch - warmup)
        return config.learning_rate * rise * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    epochs_done = step // steps_per_epoch
    return config.learning_rate * rise * config.lr_factor ** sum(epochs_done >= at for at in config.lr_milestones)
