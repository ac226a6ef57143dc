"""Settings that train each network on each data set, as data.

Three kinds, and `recipe` says which one a pair of network and data set gets:

* `RECIPES`: pairs that were measured (docs/results.md).
* `ROBUST`: every other pair. It learns on any image data set, whatever its size, contrast and number of classes, with
  every network (tests/test_matrix.py): currents normalised over time and batch (tdBN) make it indifferent to the scale
  of pixels and weights, a surrogate of the membrane potential lets silent neurons learn, AdamW is indifferent to the
  scale of gradients, and constant currents as input make do with four steps.
* `LEE`: the paper's own, for `--method=lee`; what other methods are made of stands in `tfspike.config.methods`.

Source of the latter: Lee et al. 2020, Table 1 and the authors' public code. They state learning rates for the loss
summed over the batch; here the loss is averaged over it. With a batch of B the same updates need

    learning_rate = lr * B        and        weight_decay = wd / B

    network    data        T    batch   lr (batch sum)   epochs (milestones)
    lenet      mnist       50   64      .0085            125 (75)             the authors' code has T = 100
    vgg9       cifar10     100  16      .0033            150 (70, 100, 125)
    resnet9    cifar10     100  16      .0025            150 (70, 100, 125)   no rate is given: ResNet11's
    resnet11   cifar10     100  16      .0025            150 (70, 100, 125)

All of them: SGD without momentum, L2 weight decay 5e-4, learning rate x 0.2 at each milestone, gradient "event".
The presets `paper_*` are these rows and nothing else; they take days on two cores. `LEE` has them for every network and
data set, with the default gradient. Networks deeper than the paper's (resnet18 to 56, vgg11, vgg16) do not learn this
way: without normalisation the gradient grows thousands of times from the last layer to the first, and a neuron that
never fired passes none on (docs/depth.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tfspike.config.methods import OF_THE_PAPER, fixed
from tfspike.datasets import catalogue

Settings = Mapping[str, Any]


def _sgd(batch_size: int, batch_sum_lr: float, **others: Any) -> dict[str, Any]:
    """The paper's optimiser, converted from the batch-sum to the batch-mean loss."""
    return {"optimizer": "sgd", "batch_size": batch_size, "learning_rate": batch_sum_lr * batch_size,
            "weight_decay": 5e-4 / batch_size, "lr_factor": 0.2, "clip_norm": 0.0, **others}


# The paper's LeNet, over 10 epochs in place of 125: minutes in place of hours.
_LENET = _sgd(64, 0.0085, timesteps=50, epochs=10, lr_milestones=(7,))

# The way of the deep networks (docs/depth.md)
_DEEP: Settings = {
    "optimizer": "adamw", "batch_size": 32, "learning_rate": 0.003, "weight_decay": 0.01, "clip_norm": 0.0,
    "lr_schedule": "cosine", "warmup_epochs": 1, "loss": "cross_entropy", "kappa": 2.0, "init": "normal",
    "norm": "tdbn", "surrogate": "arctan", "surrogate_width": 2.0, "pooling": "average", "encoder": "direct",
    "gradient": "rate", "dropout": 0.0, "timesteps": 4, "epochs": 20,
}

# A few dozen images would make an epoch of one update, and a training of twenty
ROBUST: Settings = {**_DEEP, "min_steps_per_epoch": 40}

_PLAIN = _sgd(16, 0.0033, timesteps=100, epochs=150, lr_milestones=(70, 100, 125))
_RESIDUAL = _sgd(16, 0.0025, timesteps=100, epochs=150, lr_milestones=(70, 100, 125))

LEE: dict[str, Settings] = {
    "lenet": _LENET,
    "vgg5": _PLAIN, "vgg7": _PLAIN, "vgg9": _PLAIN, "vgg11": _PLAIN, "vgg16": _PLAIN,
    "resnet7": _RESIDUAL, "resnet9": _RESIDUAL, "resnet11": _RESIDUAL,
    "resnet18": _RESIDUAL, "resnet20": _RESIDUAL, "resnet56": _RESIDUAL,
}

# What a data set asks for; a row of a pair's own stands above it.
DATASETS: dict[str, Settings] = {
    # events are spikes already, and tell more in more steps than four
    **dict.fromkeys(catalogue.WITH_EVENTS, {"encoder": "none", "timesteps": 10}),
}

# What a network asks for, on data that it was not measured on. Many layers learn where currents pass the neurons; where
# nothing does, they want smaller updates and neurons that forget nothing.
NETWORKS: dict[str, Settings] = {
    **dict.fromkeys(("resnet18", "resnet20", "resnet56"), {"shortcut": "currents"}),
    "vgg16": {"learning_rate": 0.001, "reset": "subtract", "leak": 1.0},
}

# Pairs that were measured.
RECIPES: dict[tuple[str, str], Settings] = {
    # The embedded job: 6,000 images, so half the batch for as many updates, and half the window for the time.
    ("lenet", "mnist_subset"): _sgd(32, 0.0085, timesteps=25, epochs=6, lr_milestones=(4,), gradient="rate"),
    ("lenet", "mnist"): _LENET,
    # At batches of 64 and 64 times the rate the network falls silent for good in its first epochs.
    ("lenet", "nmnist"): _sgd(16, 0.0085, timesteps=25, epochs=10, lr_milestones=(7,), gradient="rate"),
    ("vgg7", "svhn_cropped"): {**_DEEP, "epochs": 12},
    ("resnet7", "svhn_cropped"): {**_DEEP, "epochs": 12},
    # Twice the batch, whose steps cost less per image.
    ("resnet20", "svhn_cropped"): {**_DEEP, "shortcut": "currents", "augment": True, "batch_size": 64,
                                   "learning_rate": 0.004, "epochs": 40},
    # Less than three hours of two cores in bfloat16; 8 epochs, in one, have four points less (deep_vgg9_cifar10).
    ("vgg9", "cifar10"): {**_DEEP, "batch_size": 64, "epochs": 20},
    # Six times the images, and fewer passes.
    ("resnet9", "cifar10"): {**_DEEP, "batch_size": 64, "epochs": 6},
    ("resnet20", "cifar10"): {**_DEEP, "shortcut": "currents", "batch_size": 64, "learning_rate": 0.004, "epochs": 40},
    ("vgg11", "cifar10"): {**_DEEP, "batch_size": 64, "epochs": 10},
}

# A learning rate belongs to its optimiser: asked for another one than the recipe's, a run has these instead.
OPTIMIZERS: dict[str, Settings] = {
    "sgd": {"learning_rate": 0.01, "weight_decay": 0.0},
    "adam": {"learning_rate": 0.001, "weight_decay": 0.0},
    "adamw": {"learning_rate": 0.001, "weight_decay": 0.01},
}

# The paper's learning rates are for slopes of spikes and outputs divided by T. A ReLU has slope 1: LeNet's twin on
# MNIST is thrown out by its second step of .544 and stays at chance.
ANN_OPTIMIZER = "adam"


def recipe(model: str, dataset: str, method: str | None = None) -> dict[str, Any]:
    """Returns the settings for a network on a data set; settings it leaves out keep their defaults.

    Args:
      model: name of a network.
      dataset: canonical name of a data set.
      method: a key of `methods.METHODS`; None for the settings that are known to work best in hours.
    """
    asked_for = DATASETS.get(dataset, {})
    if method is not None and method in OF_THE_PAPER:
        return {**asked_for, **LEE[model], **fixed(method, dataset)}
    row = RECIPES.get((model, dataset))
    if method is not None and row is not None and row["optimizer"] == "sgd":
        row = None  # its learning rate belongs to the paper's slope
    found = {**ROBUST, **NETWORKS.get(model, {}), **asked_for} if row is None else {**asked_for, **row}
    return found if method is None else {**found, **fixed(method, dataset)}


def is_measured(model: str, dataset: str) -> bool:
    """Whether the pair has a recipe of its own."""
    return (model, dataset) in RECIPES


def with_optimizer(settings: Settings, optimizer: str | None) -> dict[str, Any]:
    """Returns a recipe's or preset's settings for the optimiser that was asked for (None: the settings' own).

    Where it is another one, learning rate and weight decay come from `OPTIMIZERS`.
    """
    if optimizer is None or optimizer == settings.get("optimizer"):
        return dict(settings)
    return {**settings, **OPTIMIZERS[optimizer], "optimizer": optimizer}


def with_batch_size(settings: Settings, batch_size: int) -> dict[str, Any]:
    """Returns settings for another batch size than theirs: the learning rate follows it.

    SGD, smaller batches: in proportion, so that a pass over the data moves the weights as far, and the weight decay
    inversely (head of this file). Larger ones: with the square root (Hoffer et al. 2017), and the gradient's norm
    clipped at 1: how large an update the network survives does not grow with the batch. Adam and AdamW: with the
    square root either way (Malladi et al. 2022).
    """
    factor = batch_size / settings["batch_size"]
    if factor == 1.0:
        return dict(settings)
    changed = {**settings, "batch_size": batch_size}
    if settings["optimizer"] == "sgd":
        rate = min(factor, math.sqrt(factor))
        changed["weight_decay"] = _rounded(settings["weight_decay"] / factor)
        if factor > 1.0:
            changed["clip_norm"] = min(settings["clip_norm"] or 1.0, 1.0)
    else:
        rate = math.sqrt(factor)
    changed["learning_rate"] = _rounded(settings["learning_rate"] * rate)
    return changed


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
