"""Trained weights that come with the library, and the command that packs a finished run into them.

    model, config, info, _ = pretrained.load("lenet_mnist")              # for inference, like a run's network
    model = models.create("lenet", (28, 28, 1), 10, 50, weights="mnist")  # to go on training
    python eval.py --weights=lenet_mnist --data_dir=DIR                  # the model card's accuracy again
    python -m tfspike.pretrained --workdir=RUN                           # a run becomes an entry, with its card

docs/models.md has the cards.
"""

from __future__ import annotations

import sys
from typing import Any

from tfspike import run_loading, variables, weight_files
from tfspike.checkpoints import Checkpoint
from tfspike.config import Config
from tfspike.pack import main
from tfspike.weight_files import FOLDER


def available(folder: str = FOLDER) -> list[str]:
    """Names of the trained weights, `<network>_<data set>`."""
    return weight_files.available(folder)


def load(name: str, timesteps: int | None = None, folder: str = FOLDER) -> tuple[Any, Config, Any, Checkpoint]:
    """A trained network, ready for inference.

    Args:
      name: one of `available()`, or its data set where that leaves no choice.
      timesteps: another window than that of the training, steps.
      folder: of the weights; the library's own unless another is given.

    Returns:
      The same as `run_loading.load_run`: the model, from images `[B, H, W, C]` of about [-1, 1] to V_T / T `[B, classes]`,
      with normalisation folded into its weights; its configuration; its `datasets.DatasetInfo`, whose `normalise`
      makes such images of pixels; and a checkpoint that names the file and, as `meta`, has the model card.

    Raises:
      UserError: there is no such name, or its files are damaged.
    """
    from tfspike.folding import fold

    entry = weight_files.read(name, folder)
    model = run_loading.build_model(entry.config, entry.info, timesteps)
    variables.restore(variables.learnt(model), entry.arrays(), f"The trained weights {entry.name}")
    return fold(model), entry.config, entry.info, Checkpoint(entry.path, int(entry.card.get("step") or 0), entry.card)




# ---- packing a run -------------------------------------------------------------------------------------------------




















if __name__ == "__main__":
    sys.exit(main())
