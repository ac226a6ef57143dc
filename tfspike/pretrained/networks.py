"""The networks of the trained weights that come with the library."""

from __future__ import annotations

import dataclasses
from typing import Any

from tfspike.config.config import Config
from tfspike.models import variables
from tfspike.runs import library, loading
from tfspike.runs.checkpoints import Checkpoint
from tfspike.weights import FOLDER


def load(name: str, timesteps: int | None = None, folder: str = FOLDER,
         fold: bool = True) -> tuple[Any, Config, Any, Checkpoint]:
    """A trained network, as it was built for its training: nothing of that need be said again. It computes in float32.

    Args:
      name: one of `available()`, or its data set where that leaves no choice.
      timesteps: another window than that of the training, steps.
      folder: of the weights; the library's own unless another is given.
      fold: whether normalisation is folded into the weights, for inference; False keeps its layers and their running
        statistics, so that training can go on.

    Returns:
      The same as `loading.load_run`: the model, from images `[B, H, W, C]` of about [-1, 1] to V_T / T `[B, classes]`;
      its configuration; its `datasets.DatasetInfo`, whose `normalise` makes such images of pixels; and a checkpoint
      that names the file and, as `meta`, has the model card.

    Raises:
      UserError: there is no such name, or its files are damaged.
    """
    from tfspike.engine import folding

    entry = library.read(name, folder)
    model = loading.build_model(dataclasses.replace(entry.config, precision="float32"), entry.info, timesteps)
    variables.restore(variables.learnt(model), entry.arrays(), f"The trained weights {entry.name}")
    checkpoint = Checkpoint(entry.path, int(entry.card.get("step") or 0), entry.card)
    return folding.fold(model) if fold else model, entry.config, entry.info, checkpoint
