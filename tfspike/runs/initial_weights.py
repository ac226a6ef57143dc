"""Weights from elsewhere to begin a new run with: a .keras file, a SavedModel, a checkpoint, a workdir, or those that
come with the library.

Only weights are taken: no optimiser state, no step; where the number of classes differs, those of the output layer are
not. Nothing of the source is executed beyond what building its layers needs; `.keras` files are read in Keras' safe
mode.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfspike import weights
from tfspike.config.config import Config
from tfspike.config.settings import plain
from tfspike.errors import UserError, first_line
from tfspike.models import variables
from tfspike.runs import library, standing, starting, workdir

# What decides how a network of given weights answers, beside its window
_OF_A_NETWORK = ("model", "neuron", "hidden", "norm", "pooling", "shortcut", "encoder", "earliest", "leak", "threshold",
                 "reset", "readout", "start", "running_start", "levels", "learn")


@dataclasses.dataclass(frozen=True)
class _Source:
    """Weights as they were found.

    Attributes:
      kind: what holds them, in words.
      arrays: by the names of a checkpoint, or, of a file, numbered in their order.
      by_name: which of both.
      of_twin: whether a file says that they are of an ANN twin.
      config: settings of the network that they are of, where that is known.
      image_shape: of the images that it was trained on, where that is known.
    """

    kind: str
    arrays: dict[str, np.ndarray]
    by_name: bool
    of_twin: bool = False
    config: Config | None = None
    image_shape: tuple[int, ...] = ()


def load(model: Any, path: str, say: workdir.Say, config: Config | None = None) -> bool:
    """Sets the weights of `model`, and the running statistics of its normalisations.

    Args:
      model: whose weights they become.
      path: a file or folder, or a name of `tfspike.weights.available()`.
      say: takes lines for the user.
      config: settings of `model`; what was otherwise in the network that the weights are of is said.

    Returns:
      Whether they are known to be of an ANN twin, whose weights say nothing of firing rates.

    Raises:
      UserError: it holds no weights, or they are of another network, but for the number of its classes.
    """
    source = _read(path, say)
    others = "" if config is None or source.config is None else _other_settings(source.config, config)
    try:
        of_twin, anew = _assign(model, source, f"--init_from={path}")
    except UserError as error:
        if source.image_shape and source.image_shape != tuple(model.input_shape[-len(source.image_shape):]):
            others = f"{others} for images of {' x '.join(map(str, source.image_shape))}".lstrip()
        of = "of " if others.startswith("--") else ""
        raise UserError(f"{error} They are {of}{others}." if others else str(error)) from None
    say(f"First weights from the {source.kind} {path}.")
    if others and not of_twin:
        say(f"They were trained in a network of {others}.")
    if anew is not None:
        say(f"Its output layer is of {anew[0]} classes, so that of this network, of {anew[1]}, "
            "begins with weights of its own.")
    return of_twin


def _other_settings(of_weights: Config, here: Config) -> str:
    """Flags of a network, as far as they differ; those of an ANN twin are meant to."""
    if of_weights.is_spiking != here.is_spiking:
        return ""
    return " ".join(f"--{name}={plain(getattr(of_weights, name))}" for name in _OF_A_NETWORK
                    if getattr(of_weights, name) != getattr(here, name))


def _assign(model: Any, taken: _Source, source: str) -> tuple[bool, tuple[int, int] | None]:
    """Whether the weights are of a twin; and numbers of classes, there and here, where the output layer keeps its own.

    All are checked before the first one is changed.
    """
    found, of_twin = taken.arrays, taken.of_twin
    wanted = variables.learnt(model)
    held = {name.split(":")[0].split("/")[-1] for name in found}
    # constants that the source's neurons do not learn begin with the values that the settings say
    wanted = [variable for variable in wanted if variable.name not in variables.CONSTANTS or variable.name in held]
    named = variables.named(wanted)
    if taken.by_name:
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
    return of_twin, next(((found[name].shape[-1], own.shape[-1]) for name, own in anew.items()), None)


def _is_of_other_classes(name: str, variable: Any, value: np.ndarray) -> bool:
    """Whether a value for this variable of the output layer is for another number of output neurons."""
    there, here = value.shape, tuple(variable.shape)
    return name.startswith("output") and there[-1:] != here[-1:] and there[:-1] == here[:-1]


def _in_twin(name: str) -> str:
    """The name that a weight of a spiking network has in its ANN twin, whose layers are not wrapped in `OverTime`."""
    return "/".join(part for i, part in enumerate(name.split("/")) if i != 1)


def _read(path: str, say: workdir.Say) -> _Source:
    if weights.is_meant(path):
        entry = library.read(path)
        return _Source("library's", entry.arrays(), True, config=entry.config,
                       image_shape=tuple(entry.info.image_shape))
    kind = ".keras file" if path.endswith(".keras") else \
        "SavedModel" if os.path.exists(os.path.join(path, "saved_model.pb")) else "checkpoint"
    if kind == "checkpoint":
        checkpoint = standing.open_checkpoint(path, say, "best")
        config = None
        with contextlib.suppress(UserError):  # of settings that this version cannot read, the weights will do
            config = starting.settings_of(checkpoint)
        return _Source(kind, checkpoint.arrays("model"), True, config=config)
    try:
        if kind == ".keras file":
            import tfspike.models  # noqa: F401 (registers the layers that the file names)

            loaded = keras.models.load_model(path, compile=False, safe_mode=True)
            found = {f"{i}/{v.path}": v.value.numpy() for i, v in enumerate(variables.learnt(loaded))}
            return _Source(kind, found, False, not getattr(loaded, "is_spiking", True))
        loaded = tf.saved_model.load(path)  # a module of variables and graphs; no graph is run
        held: Any = getattr(loaded, "weights", None) or getattr(loaded, "variables", ())
        return _Source(kind, {f"{i}/{variable.name}": variable.numpy() for i, variable in enumerate(held)}, False)
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
