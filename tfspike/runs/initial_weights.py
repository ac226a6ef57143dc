"""Weights from elsewhere to begin a new run with: a .keras file, a SavedModel, a checkpoint or a workdir.

Only weights are taken: no optimiser state, no step; where the number of classes differs, those of the output layer are
not. Nothing of the source is executed beyond what building its layers needs; `.keras` files are read in Keras' safe
mode.
"""

from __future__ import annotations

import os
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfspike.errors import UserError, first_line
from tfspike.models import variables
from tfspike.runs import standing, workdir


def load(model: Any, path: str, say: workdir.Say) -> bool:
    """Sets the weights of `model`, and the running statistics of its normalisations, from the file or folder `path`.

    Returns:
      Whether they are known to be of an ANN twin, whose weights say nothing of firing rates.

    Raises:
      UserError: it holds no weights, or they are of another network, but for the number of its classes.
    """
    source = f"--init_from={path}"
    kind, found, of_twin = _read(path, say)
    wanted = variables.learnt(model)
    held = {name.split(":")[0].split("/")[-1] for name in found}
    # constants that the source's neurons do not learn begin with the values that the settings say
    wanted = [variable for variable in wanted if variable.name not in variables.CONSTANTS or variable.name in held]
    named = variables.named(wanted)
    if kind == "by path":
        lost = [name for name in found if name.split("#")[0].endswith("/moving_variance") and name not in dict(named)]
        if lost:
            raise UserError(f"{source} is of a normalised network ({lost[0]}), and this one is not; give --norm=tdbn.")
        adapted = [name for name in found if name.split("#")[0].endswith("/threshold_factor")
                   and name not in dict(named)]
        if adapted:
            raise UserError(f"{source} has thresholds that adapted ({adapted[0]}), and those of this network do not; "
                            "give --homeostasis.")
        homes = {name: name if name in found else _in_twin(name) for name, _ in named}
        of_twin = any(home in found and home != name for name, home in homes.items())
        found = {name: found[home] for name, home in homes.items() if home in found}
    else:
        found = _matched(named, found, source)
    anew = {name: variable.numpy() for name, variable in named
            if name in found and _is_of_other_classes(name, variable, found[name])}
    variables.restore(wanted, {**found, **anew}, source)
    say(f"First weights from the {kind_of(path)} {path}.")
    if anew:
        name, own = next(iter(anew.items()))
        say(f"Its output layer is of {found[name].shape[-1]} classes, so that of this network, of {own.shape[-1]}, "
            "begins with weights of its own.")
    return of_twin


def _is_of_other_classes(name: str, variable: Any, value: np.ndarray) -> bool:
    """Whether a value for this variable of the output layer is for another number of output neurons."""
    there, here = value.shape, tuple(variable.shape)
    return name.startswith("output") and there[-1:] != here[-1:] and there[:-1] == here[:-1]


def _in_twin(name: str) -> str:
    """The name that a weight of a spiking network has in its ANN twin, whose layers are not wrapped in `OverTime`."""
    return "/".join(part for i, part in enumerate(name.split("/")) if i != 1)


def kind_of(path: str) -> str:
    """What kind of source a path is, in words."""
    if path.endswith(".keras"):
        return ".keras file"
    if os.path.exists(os.path.join(path, "saved_model.pb")):
        return "SavedModel"
    return "checkpoint"


def _read(path: str, say: workdir.Say) -> tuple[str, dict[str, np.ndarray], bool]:
    """How its weights find those of the network, the weights, and whether a file says that it is of an ANN twin."""
    kind = kind_of(path)
    if kind == "checkpoint":
        return "by path", standing.open_checkpoint(path, say, "best").arrays("model"), False
    try:
        if kind == ".keras file":
            import tfspike.models  # noqa: F401 (registers the layers that the file names)

            loaded = keras.models.load_model(path, compile=False, safe_mode=True)
            found = {f"{i}/{v.path}": v.value.numpy() for i, v in enumerate(variables.learnt(loaded))}
            return "by order", found, not getattr(loaded, "is_spiking", True)
        loaded = tf.saved_model.load(path)  # a module of variables and graphs; no graph is run
        held: Any = getattr(loaded, "weights", None) or getattr(loaded, "variables", ())
        return "by order", {f"{i}/{variable.name}": variable.numpy() for i, variable in enumerate(held)}, False
    except UserError:
        raise
    except Exception as error:  # whatever a damaged archive makes Keras and TensorFlow raise
        raise UserError(f"--init_from={path} cannot be read as a {kind} ({first_line(error)}); give a .keras file, "
                        "SavedModel, checkpoint or workdir.") from error


def _matched(named: list[tuple[str, Any]], found: dict[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """Variables of a file by name, or, where it has other names, by order: that of the forward pass, as everywhere."""
    floats = [(name.split("/", 1)[1].split(":")[0], value) for name, value in found.items()
              if np.issubdtype(value.dtype, np.floating)]
    by_name = dict(floats)
    if len(by_name) == len(floats) and all(name in by_name for name, _ in named):
        return {name: by_name[name] for name, _ in named}
    if len(floats) != len(named):
        raise UserError(f"{source} holds {len(floats)} weights, and this network has {len(named)}: it is of another "
                        "network.")
    return {name: value for (name, _), (_, value) in zip(named, floats)}
