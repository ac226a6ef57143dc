"""The presets: one experiment per file, each a page of a lab notebook.

    python train.py --preset=list                        # the table of them
    python train.py --preset=paper_vgg9_cifar10          # one of them; other flags change single settings

A file says which row of which table it repeats, with which settings, what the paper reached and what was measured
here. `paper_*` are the paper's experiments as on a GPU, `cpu_*` one per data set that two CPU cores finish, and
`deep_*` train the like of them with normalised currents in four steps. A new file in this folder with an `EXPERIMENT`
in it is a new preset. Nothing here imports TensorFlow.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping

from tfspike.config.presets.experiment import Experiment, Measured, Settings

__all__ = ["EXPERIMENTS", "LIST", "Experiment", "Measured", "Settings", "listing"]

LIST = "list"
"""The word that `--preset` takes in place of a name, to show the names."""


def _all() -> dict[str, Experiment]:
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "experiment")
    return {name: importlib.import_module(f"{__name__}.{name}").EXPERIMENT for name in names}


EXPERIMENTS: Mapping[str, Experiment] = _all()
"""`{name of the preset: its experiment}`, in the order of the alphabet."""


def listing() -> str:
    """Returns the table that `--preset=list` prints: every preset with its main settings, and its accuracies in %."""
    head: tuple[str, ...] = ("preset", "network", "data", "T", "epochs", "gradient", "paper %", "measured %")
    rows = [head]
    for name, experiment in EXPERIMENTS.items():
        settings, measured = experiment.settings, experiment.measured
        words = [settings.get(key, "any") for key in ("model", "dataset", "timesteps", "epochs", "gradient")]
        words[1] = f"{words[1]} + extra" if settings.get("extra") else words[1]
        expected = "" if experiment.expected is None else f"{experiment.expected:.2f}"
        rows.append((name, *map(str, words), expected, "not yet" if measured is None else f"{measured.accuracy:.2f}"))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(word.ljust(width) for word, width in zip(row, widths)).rstrip() for row in rows)
