"""Settings that train each network on each data set, as data.

Source: Lee et al. 2020, Table 1 and the authors' public code. They state learning rates for the loss summed
over the batch; here the loss is averaged over it. With a batch of B the same updates need

    learning_rate = lr * B        and        weight_decay = wd / B

    network    data        T    batch   lr (batch sum)   epochs (milestones)
    lenet      mnist       50   64      .0085            125 (75)             the authors' code has T = 100
    vgg9       cifar10     100  16      .0033            150 (70, 100, 125)
    resnet9    cifar10     100  16      .0025            150 (70, 100, 125)   no rate is given: ResNet11's
    resnet11   cifar10     100  16      .0025            150 (70, 100, 125)

All of them: SGD without momentum, L2 weight decay 5e-4, learning rate x 0.2 at each milestone, gradient "event".
The presets `paper_*` (tfspike/configs/) are these rows and nothing else. The recipes start from them with the default
gradient, and deviate where a comment says so. A pair without a row of its own takes the row of its family.

Deep networks (resnet20, vgg11, vgg16) do not learn this way: without normalisation the gradient grows thousands of
times from the last layer to the first, and a neuron that never fired passes none on. They take normalised currents
(tdBN), a surrogate of the membrane potential in place of the paper's slope, and, because then four steps are enough,
constant currents as input and averages in place of pooling neurons.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Settings = Mapping[str, Any]


def _sgd(batch_size: int, batch_sum_lr: float, **others: Any) -> dict[str, Any]:
    """The paper's optimiser, converted from the batch-sum to the batch-mean loss."""
    return {"optimizer": "sgd", "batch_size": batch_size, "learning_rate": batch_sum_lr * batch_size,
            "weight_decay": 5e-4 / batch_size, "lr_factor": 0.2, "clip_norm": 0.0, **others}


_LONG = {"timesteps": 100, "epochs": 150, "lr_milestones": (70, 100, 125)}

FAMILIES: dict[str, Settings] = {
    # The paper's LeNet, over 10 epochs in place of 125: minutes in place of hours.
    "small": _sgd(64, 0.0085, timesteps=50, epochs=10, lr_milestones=(7,)),
    "plain": _sgd(16, 0.0033, **_LONG),
    "residual": _sgd(16, 0.0025, **_LONG),
    # Not the paper's: see the head of this file.
    "deep": {"optimizer": "adamw", "batch_size": 32, "learning_rate": 0.003, "weight_decay": 0.01, "clip_norm": 0.0,
             "lr_schedule": "cosine", "warmup_epochs": 1, "loss": "cross_entropy", "kappa": 2.0, "init": "normal",
             "norm": "tdbn", "surrogate": "arctan", "surrogate_width": 2.0, "pooling": "average", "encoder": "direct",
             "gradient": "rate", "dropout": 0.0, "timesteps": 4, "epochs": 20},
}

FAMILY_OF: dict[str, str] = {
    "lenet": "small",
    "vgg5": "plain", "vgg7": "plain", "vgg9": "plain",
    "resnet7": "residual", "resnet9": "residual", "resnet11": "residual",
    "vgg11": "deep", "vgg16": "deep", "resnet20": "deep",
}

# What a data set asks for whatever the network.
DATASETS: dict[str, Settings] = {
    "nmnist": {"encoder": "none"},  # events are spikes already
}

# Rows of their own, on top of the family's. Pairs of the paper, and resnet20 on SVHN, equal
# their family's row and are listed for the reader.
RECIPES: dict[tuple[str, str], Settings] = {
    # The embedded job: 6,000 images, so half the batch for as many updates, and half the window for the time.
    ("lenet", "mnist_subset"): _sgd(32, 0.0085, timesteps=25, epochs=6, lr_milestones=(4,), gradient="rate"),
    ("lenet", "mnist"): FAMILIES["small"],
    # At batches of 64 and 64 times the rate the network falls silent for good in its first epochs.
    ("lenet", "nmnist"): _sgd(16, 0.0085, timesteps=25, epochs=10, lr_milestones=(7,), gradient="rate"),
    ("vgg9", "cifar10"): FAMILIES["plain"],
    ("resnet9", "cifar10"): FAMILIES["residual"],
    ("resnet11", "cifar10"): FAMILIES["residual"],
    ("resnet20", "svhn_cropped"): FAMILIES["deep"],
    # Six times the images: twice the batch, whose steps cost less per image, and fewer passes.
    ("resnet20", "cifar10"): {**FAMILIES["deep"], "batch_size": 64, "learning_rate": 0.004, "epochs": 16},
    ("vgg11", "cifar10"): {**FAMILIES["deep"], "batch_size": 64, "epochs": 10},
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


def recipe(model: str, dataset: str) -> dict[str, Any]:
    """Returns the documented settings for a network on a data set; settings it leaves out keep their defaults.

    Args:
      model: name of a network; one without a family gets no settings.
      dataset: canonical name of a data set.
    """
    return {**FAMILIES.get(FAMILY_OF.get(model, ""), {}), **DATASETS.get(dataset, {}),
            **RECIPES.get((model, dataset), {})}


def with_optimizer(settings: Settings, optimizer: str | None) -> dict[str, Any]:
    """Returns a recipe's or preset's settings for the optimiser that was asked for (None: the settings' own).

    Where it is another one, learning rate and weight decay come from `OPTIMIZERS`.
    """
    if optimizer is None or optimizer == settings.get("optimizer"):
        return dict(settings)
    return {**settings, **OPTIMIZERS[optimizer], "optimizer": optimizer}
