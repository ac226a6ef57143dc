"""Small data sets of many kinds, to learn from: grey and colour, 8 to 96 pixels, 2 to 100 classes, 60 to 10,000 images,
dark, bright, on a constant background, out of balance, and events. All are made here or from the embedded digits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tfspike import datasets

PALETTE = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 255], [0, 255, 255], [255, 255, 255],
                    [255, 128, 0], [128, 0, 255], [100, 100, 100]], float)


def digits(count: int, pad: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`[N, 28 + 2 pad, 28 + 2 pad]` uint8, white on black."""
    data = datasets.load("mnist_subset", "train").first(count)
    return np.pad(data.images[..., 0], ((0, 0), (pad, pad), (pad, pad))), data.labels


def inked(images: np.ndarray, ink: np.ndarray, paper: np.ndarray) -> np.ndarray:
    """Grey images in two colours per image, `[N, H, W, 3]`."""
    share = images[..., None] / 255.0
    return (share * ink[:, None, None, :] + (1 - share) * paper[:, None, None, :]).round().astype(np.uint8)


def gratings(count: int, size: int, classes: int, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Waves of random phase and colour in noise; the class is their direction."""
    rng = np.random.default_rng(1)
    labels = np.arange(count) % classes
    y, x = np.mgrid[:size, :size] / size
    angles = np.pi * labels[:, None, None] / classes
    waves = np.sin(6 * np.pi * (x * np.cos(angles) + y * np.sin(angles)) + rng.uniform(0, 6.28, (count, 1, 1)))
    images = waves[..., None] * rng.uniform(0.5, 1, (count, 1, 1, channels))
    images = images + rng.normal(0, 0.3, (count, size, size, channels))
    return np.clip(127 + 100 * images, 0, 255).astype(np.uint8), labels


def moving(count: int, size: int = 34, steps: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """What an event camera sees of a bar that moves left, right, up or down, `[N, T, H, W, 2]`."""
    rng = np.random.default_rng(2)
    labels = np.arange(count) % 4
    frames = np.zeros((count, steps, size, size, 2), np.uint8)
    for train, label in zip(frames, labels):
        start, length = rng.integers(0, size - 2 * steps), rng.integers(8, size)
        for t in range(steps):
            at = start + 2 * (t if label % 2 else steps - 1 - t)
            plane = train[t] if label < 2 else train[t].swapaxes(0, 1)
            plane[:length, at, 0], plane[:length, at + 1, 1] = 1, 1
        train |= (rng.random(train.shape) < 0.01).astype(np.uint8)
    return frames, labels


def _hundred() -> tuple[np.ndarray, np.ndarray]:
    images, labels = digits(6000, 2)
    again = np.arange(10_000) % 6000
    colours = np.random.default_rng(3).integers(0, 10, 10_000)
    return inked(images[again], PALETTE[colours], np.full((10_000, 3), 20.0)), labels[again] * 10 + colours


def _on_grey() -> tuple[np.ndarray, np.ndarray]:
    images, labels = digits(2000, 2)
    return inked(images, np.random.default_rng(4).uniform(0, 255, (2000, 3)), np.full((2000, 3), 128.0)), labels


def _ones_and_few_others() -> tuple[np.ndarray, np.ndarray]:
    images, labels = digits(4000, 2)
    kept = (labels == 1) | (np.random.default_rng(5).random(4000) < 0.03)
    return images[kept], (labels[kept] == 1).astype(int)


def _dark() -> tuple[np.ndarray, np.ndarray]:
    images, labels = digits(2000)
    return images // 12, labels


def _bright() -> tuple[np.ndarray, np.ndarray]:
    images, labels = digits(2000)
    return 255 - images // 8, labels


KINDS: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
    "tiny": lambda: gratings(300, 8, 3),             # 8x8x3, 3 classes
    "small_grey": lambda: gratings(500, 16, 5, 1),   # 16x16x1, 5 classes
    "few": lambda: gratings(60, 32, 2),              # 60 images
    "digits": lambda: digits(1400, 2),               # 32x32x1
    "dark": _dark,                                   # pixels up to 21 of 255
    "bright": _bright,                               # pixels from 224 of 255
    "on_grey": _on_grey,                             # a constant background
    "imbalanced": _ones_and_few_others,              # four of five records are of one class
    "hundred": _hundred,                             # 100 classes, 10,000 images
    "large": lambda: gratings(200, 96, 4),           # 96x96x3
    "events": lambda: moving(300),                   # spike trains
}


def _halved(made: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Half the height and width: means of 2 x 2 pixels."""
    images, labels = made
    blocks = images.reshape(len(images), images.shape[1] // 2, 2, images.shape[2] // 2, 2, *images.shape[3:])
    return blocks.mean((2, 4)).round().astype(np.uint8), labels


# Kinds of the table above that a network learns in seconds, because their images are smaller
SMALL: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
    "tiny": KINDS["tiny"],
    "imbalanced": lambda: _halved(_ones_and_few_others()),    # 16x16x3
}


def load(kind: str, small: bool = False) -> datasets.Arrays:
    """A kind of `KINDS`, or of `SMALL`, as a training split."""
    images, labels = (SMALL if small else KINDS)[kind]()
    if kind == "events":
        classes = int(labels.max()) + 1
        return datasets.Arrays(images, labels.astype(np.int32), "nmnist", tuple(map(str, range(classes))), len(labels),
                               0, True)
    return datasets.from_arrays(images if images.ndim == 4 else images[..., None], labels, name=kind)
