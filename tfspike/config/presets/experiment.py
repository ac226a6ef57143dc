"""What the files of this folder consist of, and the settings that all of the paper's experiments share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

Settings = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Measured:
    """The outcome of one finished run of a preset without other flags; its row in results/results.csv has the rest.

    Attributes:
      accuracy: on the test set, in %; the mean over draws of the Poisson input.
      std: standard deviation over these draws, in percentage points; None for one draw.
      draws: how many there were.
      date: of the end of the run, as 2026-01-31.
      commit: of the source that trained.
      seed: of weights, order, noise and dropout.
      hours: of training.
      machine: processor and threads, or GPUs.
    """

    accuracy: float
    std: float | None
    draws: int
    date: str
    commit: str
    seed: int
    hours: float
    machine: str


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One preset.

    Attributes:
      settings: fields of `tfspike.config.Config`; what is left out comes from the recipe of network and data set.
      expected: test accuracy that the paper reports for this row, in %; None where the experiment is not the paper's.
      ann: accuracy of the ANN of the same shape in the paper's table, in %; None where it gives none.
      converted: accuracy of that ANN converted to spikes (Sengupta et al. 2019) in the same table, in %.
      measured: what came out here; None as long as nobody has run it to its end.
    """

    settings: Settings
    expected: float | None = None
    ann: float | None = None
    converted: float | None = None
    measured: Measured | None = None


_METHOD: Settings = {
    "surrogate": "leak_aware", "surrogate_width": 1.0, "norm": "none", "pooling": "neuron", "leak": 0.99,
    "threshold": 1.0, "init": "normal",
    "loss": "squared", "label_smoothing": 0.0, "optimizer": "sgd", "lr_schedule": "milestones", "lr_factor": 0.2,
    "warmup_epochs": 0, "clip_norm": 0.0,
    # The authors chose the best epoch on the test set. Here a tenth of the training data is held out for that.
    "val_fraction": 0.1,
}

PAPER: Settings = {
    **_METHOD,
    "gradient": "event",  # what the authors' code computes
    "encoder": "poisson", "precision": "float32",
}
"""What the experiments of Lee et al. 2020 have in common. A file adds network, data, window and schedule.

The paper's learning rates are for the loss summed over the batch, here it is averaged: with a batch of B the same
updates need `learning_rate` = rate * B and `weight_decay` = decay / B.
"""

CPU: Settings = {**_METHOD, "gradient": "rate", "precision": "mixed_bfloat16", "augment": False}
"""What the experiments for two CPU cores have in common: the cheaper gradient, and synapses in bfloat16."""

DEEP: Settings = {
    "surrogate": "arctan", "surrogate_width": 2.0, "norm": "tdbn", "pooling": "average", "encoder": "direct",
    "leak": 0.99, "threshold": 1.0, "timesteps": 4, "init": "normal", "kappa": 2.0, "dropout": 0.0,
    "loss": "cross_entropy", "label_smoothing": 0.0, "optimizer": "adamw", "learning_rate": 0.003,
    "weight_decay": 0.01, "lr_schedule": "cosine", "warmup_epochs": 1, "lr_milestones": (), "lr_factor": 0.1,
    "clip_norm": 0.0, "val_fraction": 0.1, "gradient": "rate", "precision": "mixed_bfloat16",
}
"""The way of the deep networks (docs/depth.md), not the paper's: normalised currents, constant input and four steps."""
