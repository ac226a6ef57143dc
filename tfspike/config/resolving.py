"""Puts a configuration together: dataclass defaults < recipe < preset < config file < flags.

What is still None after that comes from the network's row in the variant table.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from tfspike.config import presets, recipes
from tfspike.config.config import FIELDS, SPIKING_ONLY, WITHOUT_WIDTH, Config, RunOptions, pairs
from tfspike.config.files import checked, from_json, is_whole, read_settings, read_text
from tfspike.config.identity import default_workdir, digest
from tfspike.config.methods import fixed
from tfspike.config.settings import plain, shown
from tfspike.errors import UserError
from tfspike.variants import VARIANTS


class Resolved(NamedTuple):
    """A configuration, and sentences about where it comes from that its user should know."""

    config: Config
    notes: list[str]


def resolve(given: Mapping[str, Any] | None = None, *, preset: str | None = None,
            config_file: str | None = None, method: str | None = None) -> Config:
    """Puts a configuration together: defaults < recipe < preset < config file < `given`, then the variant table.

    Args:
      given: settings given on the command line (or by a caller), by field name.
      preset: a key of `presets.EXPERIMENTS`.
      config_file: path of a JSON file of settings. The config.json of a run stands for the run in its folder, wherever
        that was moved to since.
      method: a key of `methods.METHODS`, whose settings stand in for the recipe; None for the recipe.

    Returns:
      A `Config` in which workdir, hidden, kappa, dropout and init are filled in.

    Raises:
      UserError: a name or value is illegal, or the file cannot be used.
    """
    return resolve_with_notes(given, preset=preset, config_file=config_file, method=method).config


def resolve_with_notes(given: Mapping[str, Any] | None = None, *, preset: str | None = None,
                       config_file: str | None = None, method: str | None = None) -> Resolved:
    """What `resolve` does, and what should be said about it; arguments and errors as there."""
    RunOptions(preset=preset, method=method)  # refuses an unknown name
    if preset == presets.LIST:
        raise UserError(f"--preset={presets.LIST} shows the presets and names no settings; give one of "
                        f"{', '.join(presets.EXPERIMENTS)}.")
    bundle = checked(presets.EXPERIMENTS[preset].settings if preset is not None else {}, f"preset {preset}")
    from_file = read_settings(config_file) if config_file is not None else {}
    given = checked(given or {}, "the settings")
    asked = {**from_file, **given}
    defaults = {name: field.default for name, field in FIELDS.items()}
    names = {**defaults, **bundle, **asked}
    if method is not None:
        names = {**names, **fixed(method, names["dataset"]), **asked}
    settings = {**defaults, **recipes.recipe(names["model"], names["dataset"], method), **bundle}
    if names["neuron"] == "relu":
        settings.update({name: defaults[name] for name in SPIKING_ONLY}, init="normal", export=("keras",))
        if settings["optimizer"] == "sgd" and not {"optimizer", "learning_rate"} & asked.keys():
            settings = recipes.with_optimizer(settings, recipes.ANN_OPTIMIZER)
    planned_epochs = settings["epochs"]
    if method is not None and is_whole(from_file):
        raise UserError(f"--method={method} chooses settings, and --config={shown(config_file)} has all of them; give "
                        "only one of the two.")
    if method is not None:
        _refuse_contradictions(method, names, asked)
    notes = _recipe_notes(names, method) if preset is None and not is_whole(from_file) else []
    for source in (from_file, given):  # a learning rate belongs to the optimiser and batch size it was given with
        if source.get("optimizer") not in (None, settings["optimizer"]):
            settings = recipes.with_optimizer(settings, source["optimizer"])
        elif "batch_size" in source and "learning_rate" not in source:
            scaled = {**recipes.with_batch_size(settings, source["batch_size"]), **source}
            notes += _batch_notes(settings, scaled)
            settings = scaled
        settings = {**settings, **source}
    config = Config(**_scheduled(_implied(settings, asked), asked, planned_epochs))
    variant = VARIANTS[config.model]
    missing = {name: getattr(variant, name) for name in ("hidden", "kappa", "dropout", "init")
               if getattr(config, name) is None}
    config = dataclasses.replace(config, **missing)
    if config.workdir is None:
        config = dataclasses.replace(config, workdir=default_workdir(config))
    if config_file is not None and "workdir" not in given:
        config = _at_home(config, config_file)
    return Resolved(config, notes)


def _refuse_contradictions(method: str, names: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """A flag that takes from a method what it is made of would leave its name on something else."""
    for name, value in fixed(method, names["dataset"]).items():
        if name in asked and asked[name] != value:
            raise UserError(f"--method={method} is --{name}={plain(value)} (see tfspike.config.methods); received "
                            f"--{name}={plain(asked[name])}. Leave one of the two out.")


def _implied(settings: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with what follows from those that were asked for, where the recipe's would not go with them."""
    settings = dict(settings)
    if "surrogate_width" not in asked and (asked.get("surrogate") in WITHOUT_WIDTH or asked.get("credit") == "time"
                                           or asked.get("gradient") in ("event", "eprop")):
        # the paper's slope has none, and through time a width that suits the mean of "rate" makes gradients explode
        # (docs/depth.md)
        settings["surrogate_width"] = FIELDS["surrogate_width"].default
    if asked.get("lr_milestones") and "lr_schedule" not in asked:
        settings["lr_schedule"] = "milestones"  # whoever gives milestones wants them, whatever the recipe has
    if asked.get("lr_schedule") == "cosine" and "lr_milestones" not in asked:
        settings["lr_milestones"] = ()
    return settings


def _scheduled(settings: dict[str, Any], asked: Mapping[str, Any], planned_epochs: int) -> dict[str, Any]:
    """The settings with a schedule of windows that fits them.

    One that was asked for says how many epochs there are and which window is the last, where that was not asked for.
    One of a recipe follows what was: in proportion to the epochs, and without windows that are no shorter.

    Args:
      settings: all of them.
      asked: those that were asked for.
      planned_epochs: of the recipe.
    """
    schedule = pairs(settings["timesteps_schedule"])
    if not schedule:
        return settings
    if "timesteps_schedule" in asked:
        total, last = sum(epochs for _, epochs in schedule), schedule[-1][0]
        if "timesteps" not in asked and asked.get("epochs", total) == total:
            settings = {**settings, "timesteps": last}
        return {**settings, "epochs": total} if "epochs" not in asked and settings["timesteps"] == last else settings
    share = settings["epochs"] / planned_epochs
    scaled = [(steps, round(epochs * share)) for steps, epochs in schedule if steps < settings["timesteps"]]
    fits = settings["encoder"] != "none" and sum(epochs for _, epochs in scaled) < settings["epochs"]
    return {**settings, "timesteps_schedule": tuple(f"{steps}:{epochs}" for steps, epochs in scaled if epochs)
            if fits else ()}


def _recipe_notes(names: Mapping[str, Any], method: str | None) -> list[str]:
    if method is not None or recipes.is_measured(names["model"], names["dataset"]):
        return []
    return [f"No recipe was measured for {names['model']} on {names['dataset']}: it gets the one that learns "
            "everywhere (normalised currents, a surrogate gradient, AdamW). The paper's method is --method=lee."]


def _batch_notes(settings: Mapping[str, Any], scaled: Mapping[str, Any]) -> list[str]:
    changes = [f"--{name}={scaled[name]:g} (at {settings['batch_size']}: {settings[name]:g})"
               for name in ("learning_rate", "weight_decay", "clip_norm") if scaled[name] != settings[name]]
    if not changes:
        return []
    return [f"What belongs to the batch size follows --batch_size={scaled['batch_size']}: {', '.join(changes)}."]


def _at_home(config: Config, config_file: str) -> Config:
    """The configuration with the folder that holds `config_file` as workdir, if that is the config.json of a run: the
    folder may have been moved or copied since the file was written. Other settings under a name that follows from them
    are an experiment of their own, in a folder of its own."""
    folder = os.path.dirname(config_file) or os.curdir
    if os.path.basename(config_file) != "config.json" or not any(
            os.path.exists(os.path.join(folder, name)) for name in ("checkpoints", ".lock")):
        return config
    text = read_text(config_file)
    if "about" not in json.loads(text):  # not written by a run
        return config
    saved = from_json(text, config_file)
    if saved.workdir == default_workdir(saved) and digest(saved) != digest(config):
        return config
    here = os.path.realpath(folder) == os.path.realpath(str(config.workdir))
    return config if here else dataclasses.replace(config, workdir=folder)
