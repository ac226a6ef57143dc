"""Which settings make an experiment: the folder that follows from them, and what may continue what."""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import Any

from tfspike.config import versions
from tfspike.config.config import FIELDS, OWN_DATASETS, Config
from tfspike.config.settings import plain
from tfspike.errors import UserError


def digest(config: Config) -> str:
    """Returns eight digits that follow from the settings of an experiment: the `config_hash` of results.csv."""
    keys = {name: getattr(config, name) for name, field in FIELDS.items() if field.metadata["experiment"]}
    return hashlib.sha256(json.dumps(versions.without_added(keys), sort_keys=True).encode()).hexdigest()[:8]


def default_workdir(config: Config) -> str:
    """Returns the folder that follows from a resolved configuration alone: the same experiment, the same folder."""
    dataset = config.dataset
    if dataset in OWN_DATASETS and config.data_dir is not None:  # so that two folders do not meet in one run
        dataset += f"-{os.path.basename(os.path.abspath(config.data_dir)).removesuffix('.npz')}"
    dataset = re.sub(r"[^a-z0-9_.]", "-", dataset.lower())[:80]
    kind = config.gradient if config.is_spiking else config.neuron
    return os.path.join("runs", f"{config.model}-{dataset}-{kind}-{digest(config)}")


def diff(saved: Config, wanted: Config, experiment_only: bool = True) -> dict[str, tuple[Any, Any]]:
    """Returns {field: (saved value, wanted value)} of the fields that differ.

    Args:
      saved: the configuration of an earlier run.
      wanted: the configuration of this one.
      experiment_only: leave out what may change between the parts of one run (paths, logging, checkpoints, export).
        `epochs` may be raised but not lowered, and with a cosine, which falls over all of them, not changed.
    """
    return {name: (getattr(saved, name), getattr(wanted, name)) for name, field in FIELDS.items()
            if getattr(saved, name) != getattr(wanted, name)
            and (not experiment_only or field.metadata["experiment"]
                 or (name == "epochs" and (wanted.epochs < saved.epochs or wanted.lr_schedule == "cosine")))}


def check_resumable(saved: Config, wanted: Config) -> None:
    """Returns if `wanted` can continue the run of `saved`.

    Raises:
      UserError: it cannot; names every differing key with both values.
    """
    changes = diff(saved, wanted)
    if changes:
        listed = ", ".join(f"{name} (was {plain(old)}, now {plain(new)})" for name, (old, new) in changes.items())
        rule = ("The cosine falls over all epochs, so they cannot change." if wanted.lr_schedule == "cosine"
                else "Epochs may be raised, not lowered.")
        more = f" {rule}" if "epochs" in changes else ""
        raise UserError(f"The run in {saved.workdir} has other settings: {listed}.{more} "
                        "Give the old values to continue it, or another --workdir to start anew.")
