"""What the workers of `benchmarks.accuracy` share: the work as data, the loop over it, the report."""

from __future__ import annotations

import dataclasses
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
    """

    net: str
    dataset: str
    timesteps: int
    batch: int
    epochs: int
    train_images: int
    test_images: int
    deep: bool = False


WORKS = {
    "lenet": Work("lenet", "mnist", 25, 64, 4, 12_000, 2_000),
    "resnet20": Work("resnet20", "svhn_cropped", 4, 64, 8, 0, 0, deep=True),
    "smoke": Work("lenet", "mnist_subset", 25, 16, 1, 320, 64),
    "smoke-deep": Work("resnet20", "svhn_cropped", 2, 8, 2, 64, 16, deep=True),
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


def cosine(step: int, steps: int, epochs: int) -> float:
    """Share of the learning rate at a step of the deep work: an epoch's rise, then half a cosine to 0."""
    warmup = steps / epochs
    done = max(0.0, (step - warmup) / max(1.0, steps - warmup))
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * done))


def batches(count: int, batch: int, epochs: int, seed: int) -> Iterator[np.ndarray]:
    """Indices of every training step, the same for every library; what is left of an epoch is dropped."""
    for epoch in range(epochs):
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
    plan = list(batches(len(x), given["batch"], given["epochs"], given["seed"]))
    every = max(1, len(plan) // given["epochs"] // EVALUATIONS)
    curve, seconds = [], 0.0
    for step, chosen in enumerate(plan):
        share = cosine(step, len(plan), given["epochs"]) if given["deep"] else 1.0
        begin = time.perf_counter()
        train(x[chosen], y[chosen], share)
        seconds += time.perf_counter() - begin  # the first step with its compilation: a user waits for it, too
        if (step + 1) % every == 0 or step + 1 == len(plan):
            right = [predict(test_x[i:i + 100]) == test_y[i:i + 100] for i in range(0, len(test_x), 100)]
            curve.append([step + 1, round(seconds, 2), float(np.mean(np.concatenate(right)))])
    print(json.dumps({"status": "ok", "curve": curve, "versions": versions, "threads": given["threads"]}), flush=True)
