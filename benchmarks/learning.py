"""What the workers of `benchmarks.accuracy` share: the work as data, the loop over it, the report."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

EVALUATIONS = 2  # per epoch


@dataclasses.dataclass(frozen=True)
class Work:
    """What every library learns, in the same way.

    Attributes:
      net: a name of `tfspike.variants.VARIANTS`.
      dataset: a name of `tfspike.datasets`.
      timesteps: length of the window, steps.
      batch: images per step.
      epochs: passes over the training images.
      train_images, test_images: the first ones are taken; 0 for all.
      deep: normalised currents (tdBN), an arctangent surrogate, constant currents as input, averages in place of
        pooling neurons, cross entropy and AdamW with a cosine; else the paper's way, with Poisson spikes, squared
        error and the optimiser of `OPTIMIZERS`.
      shortcut: what the shortcut of a residual block carries, of `tfspike.variants.SHORTCUTS`.
      seconds: of training, in place of `epochs`; 0 for none.
    """

    net: str
    dataset: str
    timesteps: int
    batch: int
    epochs: int
    train_images: int
    test_images: int
    deep: bool = False
    shortcut: str = "spikes"
    seconds: float = 0.0


WORKS = {
    "lenet": Work("lenet", "mnist", 25, 64, 4, 12_000, 2_000),
    "resnet20": Work("resnet20", "svhn_cropped", 4, 64, 8, 0, 0, deep=True),
    "resnet20-cifar10": Work("resnet20", "cifar10", 4, 64, 8, 0, 4_000, deep=True, shortcut="currents"),
    "resnet20-cifar10-spikes": Work("resnet20", "cifar10", 4, 64, 8, 0, 4_000, deep=True),
    "smoke": Work("lenet", "mnist_subset", 25, 16, 1, 320, 64),
    "smoke-deep": Work("resnet20", "svhn_cropped", 2, 8, 2, 64, 16, deep=True, shortcut="currents"),
}

# The rule and the learning rate (for the loss averaged over the batch) of each gradient where the work is not deep. The
# authors' is the paper's for batches of 64; arctangent surrogates have slopes of another size, and their libraries'
# tutorials take Adam.
OPTIMIZERS = {"authors": ("sgd", 0.544), "tfspike": ("sgd", 0.544), "snntorch": ("adam", 1e-3),
              "spikingjelly": ("adam", 1e-3)}
DEEP_RATE, DEEP_DECAY = 0.004, 0.01  # of AdamW


def optimizer_of(library: str) -> tuple[str, float]:
    """`(rule, learning rate)` of a library or of one of its variants."""
    return OPTIMIZERS[library.partition("-")[0]]


def cosine(done: float, whole: float, warmup: float) -> float:
    """Share of the learning rate of the deep work: a rise, then half a cosine to 0. All in steps, or all in seconds."""
    after = max(0.0, (done - warmup) / max(1.0, whole - warmup))
    return min(1.0, (done + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * min(1.0, after)))


def batches(count: int, batch: int, seed: int) -> Iterator[np.ndarray]:
    """Indices of one training step after the other, without end, the same for every library; what is left of an epoch
    is dropped."""
    for epoch in itertools.count():
        order = np.random.default_rng((seed, epoch)).permutation(count)
        yield from order[:count // batch * batch].reshape(-1, batch)


def learn(given: dict[str, Any], train: Callable[[np.ndarray, np.ndarray, float], Any],
          predict: Callable[[np.ndarray], np.ndarray], versions: dict[str, str]) -> None:
    """Trains and prints one JSON line.

    Args:
      given: the order: fields of `Work`, "library", "precision", "seed", and "data", an .npz of x, y, test_x, test_y.
      train: does a whole step on images `[B, H, W, C]` and labels `[B]` at a share of the learning rate, and returns
        when its work is done.
      predict: images `[B, H, W, C]` to classes `[B]`.
      versions: of framework and library.
    """
    with np.load(given["data"]) as data:
        x, y, test_x, test_y = (data[name] for name in ("x", "y", "test_x", "test_y"))
    steps, budget = len(x) // given["batch"] * given["epochs"], given["seconds"]
    whole = budget or steps
    epoch = whole / given["epochs"]  # or its share of the seconds
    curve: list[list[float]] = []
    seconds, done = 0.0, 0.0
    for step, chosen in enumerate(batches(len(x), given["batch"], given["seed"]), start=1):
        share = cosine(done, whole, epoch) if given["deep"] else 1.0
        begin = time.perf_counter()
        train(x[chosen], y[chosen], share)
        seconds += time.perf_counter() - begin  # the first step with its compilation: a user waits for it, too
        done = seconds if budget else step
        if done >= whole or done >= epoch * (len(curve) + 1) / EVALUATIONS:
            right = [predict(test_x[i:i + 100]) == test_y[i:i + 100] for i in range(0, len(test_x), 100)]
            curve.append([step, round(seconds, 2), float(np.mean(np.concatenate(right)))])
        if done >= whole:
            break
    print(json.dumps({"status": "ok", "curve": curve, "versions": versions, "threads": given["threads"]}), flush=True)
