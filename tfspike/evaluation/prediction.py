"""Classes of image files: what `eval.py --predict=...` prints."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tfspike.checks import check_count
from tfspike.datasets import DatasetInfo
from tfspike.datasets.image_files import load_images
from tfspike.errors import UserError
from tfspike.models import losses
from tfspike.models.spiking_model import SpikingModel

_BATCH = 32


class Prediction(NamedTuple):
    """One file's result.

    Attributes:
      path: of the file.
      label, class_name: the class with the largest mean score.
      confidence: its share of the scores, see `predict_files`; in [0, 1].
    """

    path: str
    label: int
    class_name: str
    confidence: float


def predict_files(model: SpikingModel, info: DatasetInfo, paths: Sequence[str | os.PathLike[str]] | str,
                  seeds: int = 1, resize: bool = False, loss: str = "squared") -> list[Prediction]:
    """Classifies PNG and JPEG files, and folders of them, read as `tfspike.image_files` says.

    Confidence is the probability that the scores V_T / T stand for (`tfspike.losses.probabilities`).

    Args:
      model: a `tfspike.models.SpikingModel` for images.
      info: the data set's `DatasetInfo`.
      paths: files and folders.
      seeds: draws of the input's noise whose scores are averaged.
      resize: scale images of another size instead of refusing them.
      loss: what the network was trained with.

    Returns:
      One prediction per file, in the order found.

    Raises:
      UserError: nothing found, an unreadable file or one of another size, a network for event data.
    """
    check_count("seeds", seeds)
    if info.event_based:
        raise UserError(f"this network takes event recordings ({info.name}), not image files.")
    images, files = load_images(paths, info.image_shape, resize, info.dark_ground)
    scores = np.concatenate([_scores(model, info.normalise(images[i:i + _BATCH]), seeds)
                             for i in range(0, len(images), _BATCH)])
    shares = losses.probabilities(loss, scores)
    return [Prediction(file, int(label), info.class_names[label], float(row[label]))
            for file, label, row in zip(files, scores.argmax(axis=1), shares)]


def _scores(model: SpikingModel, images: np.ndarray, seeds: int) -> np.ndarray:
    return np.mean([np.asarray(model(images, training=False, seed=seed)) for seed in range(seeds)], axis=0)
