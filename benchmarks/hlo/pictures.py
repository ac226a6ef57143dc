"""Pictures of a data set as lossless WebP, ten thousand in one mosaic: half their bytes. NumPy and Pillow."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

_SIDE = 100  # pictures along a side of a mosaic


def write(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Writes uint8 [N, H, W, 1 or 3] and labels [N]."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "labels.npz", labels=labels, shape=images.shape)

    def part(number: int) -> None:
        chosen = images[number * _SIDE**2:(number + 1) * _SIDE**2]
        count, height, width, channels = chosen.shape
        full = np.zeros((_SIDE**2, height, width, channels), np.uint8)
        full[:count] = chosen
        mosaic = full.reshape(_SIDE, _SIDE, height, width, channels).transpose(0, 2, 1, 3, 4)
        mosaic = mosaic.reshape(_SIDE * height, _SIDE * width, channels)
        Image.fromarray(np.broadcast_to(mosaic, (*mosaic.shape[:2], 3))).save(
            folder / f"part-{number:03d}.webp", lossless=True, quality=80, method=4)

    with ThreadPoolExecutor() as pool:
        list(pool.map(part, range(-(-len(images) // _SIDE**2))))


def read(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """What was written: images and labels."""
    with np.load(folder / "labels.npz") as kept:
        labels, (count, height, width, channels) = kept["labels"], kept["shape"].tolist()

    def part(path: Path) -> np.ndarray:
        with Image.open(path) as picture:
            mosaic = np.asarray(picture)[..., :channels]
        return mosaic.reshape(_SIDE, height, _SIDE, width, channels).transpose(0, 2, 1, 3, 4).reshape(
            _SIDE**2, height, width, channels)

    Image.MAX_IMAGE_PIXELS = None
    with ThreadPoolExecutor() as pool:
        parts = list(pool.map(part, sorted(folder.glob("part-*.webp"))))
    return np.concatenate(parts)[:count], labels
