"""The configuration of a run: every setting defined once, checked early, and the same for flags, files and resume.

`Config` holds what makes the experiment, `RunOptions` how this one command runs it. `resolve` puts a `Config`
together: dataclass defaults < recipe < preset < config file < flags, and what is still None after that comes from
the network's row in the variant table. Nothing here imports TensorFlow, so a wrong setting is refused at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tfspike.config import files as config_files
from tfspike.config import presets as configs
from tfspike.config import recipes
from tfspike.config.settings import closest, normalise, normalise_all, setting, shown
from tfspike.datasets import catalogue
from tfspike.errors import UserError
from tfspike.variants import VARIANTS

DATASETS, DATASET_ALIASES = catalogue.KNOWN, catalogue.ALIASES
EVENT_DATASETS, EXTRA_DATASETS = catalogue.WITH_EVENTS, catalogue.WITH_EXTRA
SURROGATES = ("leak_aware", "rectangular", "triangular", "arctan", "sigmoid")
RESUME_WORDS = ("auto", "never", "must")
NEURONS = ("lif", "relu")
# Settings that only spiking networks have. A ReLU network keeps their defaults, whatever recipes and presets say.
SPIKING_ONLY = ("timesteps", "gradient", "encoder", "leak", "threshold", "target_rate", "surrogate",
                "surrogate_width", "pooling", "spike_penalty")
# Settings that runs of earlier versions do not name, with the value that says what those did.
_ADDED: dict[str, Any] = {"neuron": "lif", "extra": False, "surrogate": "leak_aware", "surrogate_width": 1.0,
                          "norm": "none", "pooling": "neuron", "loss": "squared", "label_smoothing": 0.0,
                          "lr_schedule": "milestones", "warmup_epochs": 0, "min_steps_per_epoch": 0,
                          "spike_penalty": 0.0}
# Settings of earlier versions, with what became of them.
_REPLACED: dict[str, Callable[[Any], dict[str, Any]]] = {
    "stop_on_collapse": lambda stop: {"on_collapse": "stop" if stop else "continue"},
}
_TFDS_NAME = re.compile(r"[a-z][a-z0-9_]*([/:.][a-z0-9_]+)*")
_LARGEST_INT = 2**31 - 1  # TensorFlow counts steps and seeds in int32


def _at_least(bound: int) -> dict[str, Any]:
    return {"legal": f"a whole number from {bound} to {_LARGEST_INT}", "check": lambda v: bound <= v <= _LARGEST_INT}


# Within what float32 holds, with room for products: beyond it, numbers would be 0 or infinite where they are used.
_POSITIVE: dict[str, Any] = {"legal": "a number above 0, from 1e-30 to 1e30", "check": lambda v: 1e-30 <= v <= 1e30}
_NOT_NEGATIVE: dict[str, Any] = {"legal": "a number of at least 0, up to 1e30", "check": lambda v: 0 <= v <= 1e30}
_SHARE: dict[str, Any] = {"legal": "a number from 0 up to, but not including, 1", "check": lambda v: 0 <= v < 1}


@dataclasses.dataclass(frozen=True)
class Config:
    """What makes an experiment. Frozen, checked on construction; see `--help` for every field.

    Raises:
      UserError: a value is illegal or contradicts another one.
    """

    model: str = setting("lenet", "The network.", group="What to train", choices=VARIANTS)
    dataset: str = setting(
        "mnist_subset", f"The data: {', '.join(DATASETS[:-2])}, svhn, nmnist, or any TFDS image-classification set.",
        group="What to train", legal="the name of a data set: small letters, digits and _ / : .",
        check=lambda v: len(v) <= 200 and _TFDS_NAME.fullmatch(v) is not None, aliases=DATASET_ALIASES)
    data_dir: str | None = setting(None,
                                   "Folder of the prepared data sets; none means TFDS' own folder, with download.",
                                   group="What to train", legal="a folder", path=True, experiment=False)
    extra: bool = setting(False, "Train on the split extra as well, which SVHN has.", group="What to train")
    workdir: str | None = setting(None, "Folder of the run; none means one under runs/ that follows from the settings.",
                                  group="What to train", legal="a folder", path=True, experiment=False)

    neuron: str = setting("lif", "Spiking neurons (lif), or the same network as an ordinary ANN (relu), without time.",
                          group="Network", choices=NEURONS)
    timesteps: int = setting(50, "Length of the window, in steps.", group="Network", **_at_least(1))
    gradient: str = setting("rate", "The gradient: resolved in time (event) or over the window's rates (rate).",
                            group="Network", choices=("event", "rate"))
    surrogate: str = setting("leak_aware", "What stands for the derivative of a spike: the paper's slope (leak_aware), "
                             "or a function of the membrane potential.", group="Network", choices=SURROGATES)
    surrogate_width: float = setting(1.0, "Stretches a surrogate; the leak-aware slope has no width.", group="Network",
                                     **_POSITIVE)
    norm: str = setting("none", "Normalisation of currents over time and batch (tdbn), which deep networks need.",
                        group="Network", choices=("none", "tdbn"))
    pooling: str = setting("neuron", "What follows an average pooling: neurons, or nothing (average), for windows of "
                           "few steps.", group="Network", choices=("neuron", "average"))
    encoder: str = setting("poisson", "How pixels become spikes; none takes spike trains as they are.",
                           group="Network", choices=("poisson", "direct", "latency", "none"))
    leak: float = setting(0.99, "What is kept of the membrane potential per step.", group="Network",
                          legal="a number above 0 and up to 1", check=lambda v: 0 < v <= 1)
    threshold: float = setting(1.0, "Threshold of the LIF neurons; pooling neurons keep 0.75.", group="Network",
                               **_POSITIVE)
    hidden: int | None = setting(None, "Neurons of the hidden dense layer, 0 for no such layer; none means the "
                                 "network's own.", group="Network", **_at_least(0))
    dropout: float | None = setting(None, "Share of neurons silenced for a window; none means the network's own.",
                                    group="Network", **_SHARE)
    init: str | None = setting(None,
                               "First weights: normal, or scaled until every layer fires at --target_rate (rate); "
                               "none means the network's own.", group="Network", choices=("normal", "rate"))
    kappa: float | None = setting(None, "Weights start with standard deviation sqrt(kappa / fan_in); none means the "
                                  "network's own.", group="Network", **_POSITIVE)
    target_rate: float = setting(0.1, "Mean firing rate that --init=rate aims at, in spikes per step.", group="Network",
                                 legal="a number above 0 and below .5", check=lambda v: 0 < v < 0.5)

    epochs: int = setting(10, "Passes over the training data; a run can be continued with more, but for "
                          "--lr_schedule=cosine.", group="Training",
                          experiment=False, **_at_least(1))
    steps_per_epoch: int | None = setting(None, "Steps that count as an epoch; none means all of the training data.",
                                          group="Training", **_at_least(1))
    min_steps_per_epoch: int = setting(0, "Least steps of an epoch: fewer training data count several times.",
                                       group="Training", **_at_least(0))
    batch_size: int = setting(32, "Images per step, over all devices.", group="Training", **_at_least(1))
    loss: str = setting("squared", "What is minimised: the squared error of the scores, or their cross entropy.",
                        group="Training", choices=("squared", "cross_entropy"))
    label_smoothing: float = setting(0.0, "Share of the target that is spread over all classes.", group="Training",
                                     **_SHARE)
    spike_penalty: float = setting(0.0, "Added to the loss: this times the mean firing rate of all spiking neurons, in "
                                   "spikes per neuron and step. More of it, fewer spikes.", group="Training",
                                   **_NOT_NEGATIVE)
    learning_rate: float = setting(0.1, "For the loss summed over classes and averaged over the batch.",
                                   group="Training", **_POSITIVE)
    lr_schedule: str = setting("milestones", "How the learning rate falls: at --lr_milestones, or to 0 over all epochs "
                               "(cosine).", group="Training", choices=("milestones", "cosine"))
    warmup_epochs: int = setting(0, "Epochs over which the learning rate rises from 0.", group="Training",
                                 **_at_least(0))
    lr_milestones: tuple[int, ...] = setting((), "Finished epochs after which the learning rate is multiplied by "
                                             "--lr_factor.", group="Training", **_at_least(1))
    lr_factor: float = setting(0.2, "What a milestone multiplies the learning rate by.", group="Training", **_POSITIVE)
    optimizer: str = setting("sgd", "The optimiser; sgd has no momentum.", group="Training",
                             choices=("sgd", "adam", "adamw"))
    weight_decay: float = setting(0.0, "L2 in the gradient (sgd, adam) or decoupled (adamw).", group="Training",
                                  **_NOT_NEGATIVE)
    clip_norm: float = setting(0.0, "Largest global norm of the gradient; 0 turns clipping off.", group="Training",
                               **_NOT_NEGATIVE)
    val_fraction: float = setting(0.1, "Share of the training data held out for validation.", group="Training",
                                  **_SHARE)
    augment: bool | None = setting(None, "Random crops, and flips but of digits; none means on for CIFAR only.",
                                   group="Training")
    on_collapse: str = setting("stop", "When no gradient reaches any weight any more: stop with exit code 4, or "
                               "continue.", group="Training", experiment=False, choices=("stop", "continue"))

    seed: int = setting(0, "Seed of weights, order, noise and dropout.", group="Machine", **_at_least(0))
    precision: str = setting("float32", "Arithmetic of the synapses; membrane potentials are always float32.",
                             group="Machine", choices=("float32", "mixed_bfloat16"))
    strategy: str = setting("auto", "Devices: all of this host (auto), one, mirrored or multi_worker.", group="Machine",
                            choices=("auto", "one", "mirrored", "multi_worker"))
    deterministic: bool = setting(False, "Bit-identical runs also where that costs speed.", group="Machine")

    checkpoint_every: int = setting(0, "Steps between checkpoints; 0 means the end of each epoch.", group="Output",
                                    experiment=False, **_at_least(0))
    keep_checkpoints: int = setting(3, "Newest checkpoints that are kept.", group="Output", experiment=False,
                                    **_at_least(1))
    log_every: int = setting(50, "Steps between lines of progress.", group="Output", experiment=False, **_at_least(1))
    tensorboard: bool = setting(True, "Write TensorBoard logs.", group="Output", experiment=False)
    export: tuple[str, ...] = setting(("saved_model",), "Formats written at the end.", group="Output", experiment=False,
                                      choices=("saved_model", "litert", "nir", "keras", "onnx", "none"))
    profile: bool = setting(False, "Profile steps 4 to 8 of this command for TensorBoard.", group="Output",
                            experiment=False)

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Checks every field and brings it into its one form; runs on construction.

        Raises:
          UserError: naming the flag, what is legal, what was received and what to do.
        """
        normalise_all(self)
        if any(a >= b for a, b in zip(self.lr_milestones, self.lr_milestones[1:])):
            raise UserError(f"--lr_milestones must increase; received {shown(self.lr_milestones)}. "
                            "Give each epoch once, the earliest first.")
        if self.lr_schedule == "cosine" and self.lr_milestones:
            raise UserError("--lr_milestones belong to --lr_schedule=milestones; received --lr_schedule=cosine and "
                            f"{shown(self.lr_milestones)}. Leave one of them out, e.g. with --lr_milestones=none.")
        if self.surrogate == "leak_aware" and self.surrogate_width != 1.0:
            raise UserError(f"--surrogate_width={self.surrogate_width:g} stretches a surrogate, and "
                            "--surrogate=leak_aware is none; leave it out or give e.g. --surrogate=arctan.")
        if self.norm != "none" and self.init == "rate":
            raise UserError(f"--init=rate scales weights, which --norm={self.norm} undoes; use "
                            "--init=normal or --norm=none.")
        if len(set(self.export)) < len(self.export) or ("none" in self.export and len(self.export) > 1):
            raise UserError(f"--export takes each format once, and none only alone; received {','.join(self.export)}.")
        if self.export == ("none",):
            object.__setattr__(self, "export", ())
        if self.neuron == "relu":
            self._validate_relu()
        if self.dataset in EVENT_DATASETS and self.encoder != "none":
            raise UserError(f"--encoder={self.encoder} codes pixels, but {self.dataset} holds spikes; "
                            "use --encoder=none.")
        if self.dataset in EVENT_DATASETS and self.augment:
            raise UserError(f"--augment crops images, but {self.dataset} holds events; use --noaugment.")
        if self.encoder == "none" and self.dataset in DATASETS and self.dataset not in EVENT_DATASETS:
            raise UserError(f"--encoder=none takes spike trains, but {self.dataset} holds images; "
                            "use --encoder=poisson, direct or latency.")
        if self.extra and self.dataset in DATASETS and self.dataset not in EXTRA_DATASETS:
            raise UserError(f"--extra adds the split extra, which {', '.join(EXTRA_DATASETS)} has and {self.dataset} "
                            "has not; use --noextra.")

    def _validate_relu(self) -> None:
        """Refuses what an ANN cannot have; a setting that it ignores would be believed to have mattered."""
        if self.dataset in EVENT_DATASETS:
            raise UserError(f"--neuron=relu takes images, but {self.dataset} holds spike trains; use --neuron=lif.")
        for name in SPIKING_ONLY:
            if getattr(self, name) != FIELDS[name].default:
                raise UserError(f"--{name}={_plain(getattr(self, name))} is for spiking neurons, and --neuron=relu has "
                                "none; leave it out.")
        if self.init is None:
            object.__setattr__(self, "init", "normal")
        if self.init != "normal":
            raise UserError(f"--init={self.init} aims at a firing rate, and --neuron=relu has none; use --init=normal.")
        if set(self.export) - {"keras"}:
            raise UserError(f"--export={_plain(self.export)} writes spiking networks; --neuron=relu takes keras or "
                            "none.")

    @property
    def random_input(self) -> bool:
        """Whether answers depend on a draw of the input's noise."""
        return self.neuron == "lif" and self.encoder == "poisson"

    def warnings(self) -> list[str]:
        """Returns sentences about legal settings that are probably not meant."""
        found = []
        if self.surrogate == "leak_aware" and self.leak < 1 / math.e:
            found.append(f"--leak={self.leak} is below 1/e = 0.368, where the leak-aware slope can turn negative; "
                         "training may go uphill.")
        if self.init != "rate" and self.target_rate != FIELDS["target_rate"].default:
            found.append(f"--target_rate={self.target_rate:g} is for --init=rate and changes nothing under "
                         f"--init={self.init}.")
        if self.warmup_epochs >= self.epochs:
            found.append(f"--warmup_epochs={self.warmup_epochs} covers all --epochs={self.epochs}, so the learning "
                         "rate only rises; give more epochs or --warmup_epochs=0.")
        if self.dataset not in DATASETS:
            names = DATASETS + tuple(DATASET_ALIASES)
            found.append(f"{self.dataset!r} is none of the sets known here, so TFDS is asked for it."
                         + closest(self.dataset, names))
        return found


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How this command runs the experiment; nothing here is part of it.

    Raises:
      UserError: a value is illegal, contradicts another one, or names a path that is not there.
    """

    preset: str | None = setting(None, "A named experiment, below --config and flags; list shows them and ends.",
                                 group="This command", choices=(configs.LIST, *configs.EXPERIMENTS))
    method: str | None = setting(None, "Settings of a training method in place of the recipe that works best in "
                                 "hours: lee is the paper's.", group="This command", choices=recipes.METHODS)
    config: str | None = setting(None, "JSON file of settings, below flags; a run's config.json works.",
                                 group="This command", legal="a JSON file", path=True)
    resume: str = setting("auto", "Continue the run in the workdir if there is one (auto), never, must, or from the "
                          "checkpoint or workdir at this path.", group="This command", path=True,
                          legal="auto, never, must or a path")
    init_from: str | None = setting(None, "Start from these weights: a .keras file, SavedModel, checkpoint or workdir.",
                                    group="This command", legal="a file or folder of weights", path=True)
    dry_run: bool = setting(False,
                            "Build, show the layers, try two steps and every later stage, and leave nothing behind.",
                            group="This command")

    def __post_init__(self) -> None:
        normalise_all(self)
        if self.resume not in RESUME_WORDS and not _is_there(self.resume):
            raise UserError(f"--resume takes auto, never, must or the path of a checkpoint or workdir; there is no "
                            f"{shown(self.resume)}.{closest(self.resume, RESUME_WORDS)}")
        if self.init_from is not None and not _is_there(self.init_from):
            raise UserError(f"--init_from takes a file or folder of weights; there is no {shown(self.init_from)}.")
        if self.method is not None and self.preset is not None:
            raise UserError(f"--method={self.method} and --preset={self.preset} both choose settings; give only one.")
        if self.init_from is not None and self.resume not in ("auto", "never"):
            raise UserError("--init_from starts a new run and --resume continues one; give only one of them.")


def _is_there(path: str) -> bool:
    return "://" in path or os.path.exists(path)  # remote file systems are TensorFlow's to look into


FIELDS: dict[str, dataclasses.Field] = {field.name: field for field in dataclasses.fields(Config)}


class Resolved(NamedTuple):
    """A configuration, and sentences about where it comes from that its user should know."""

    config: Config
    notes: list[str]


def resolve(given: Mapping[str, Any] | None = None, *, preset: str | None = None,
            config_file: str | None = None, method: str | None = None) -> Config:
    """Puts a configuration together: defaults < recipe < preset < config file < `given`, then the variant table.

    Args:
      given: settings given on the command line (or by a caller), by field name.
      preset: a key of `configs.EXPERIMENTS`.
      config_file: path of a JSON file of settings. The config.json of a run stands for the run in its folder, wherever
        that was moved to since.
      method: one of `recipes.METHODS`, whose settings stand in for the recipe; None for the recipe.

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
    if preset == configs.LIST:
        raise UserError(f"--preset={configs.LIST} shows the presets and names no settings; give one of "
                        f"{', '.join(configs.EXPERIMENTS)}.")
    bundle = _checked(configs.EXPERIMENTS[preset].settings if preset is not None else {}, f"preset {preset}")
    from_file = read_settings(config_file) if config_file is not None else {}
    given = _checked(given or {}, "the settings")
    asked = {**from_file, **given}
    defaults = {name: field.default for name, field in FIELDS.items()}
    names = {**defaults, **bundle, **asked}
    settings = {**defaults, **recipes.recipe(names["model"], names["dataset"], method), **bundle}
    if names["neuron"] == "relu":
        settings.update({name: defaults[name] for name in SPIKING_ONLY}, init="normal", export=("keras",))
        if settings["optimizer"] == "sgd" and not {"optimizer", "learning_rate"} & asked.keys():
            settings = recipes.with_optimizer(settings, recipes.ANN_OPTIMIZER)
    if method is not None and _is_whole(from_file):
        raise UserError(f"--method={method} chooses settings, and --config={shown(config_file)} has all of them; give "
                        "only one of the two.")
    notes = _recipe_notes(names, method) if preset is None and not _is_whole(from_file) else []
    for source in (from_file, given):  # a learning rate belongs to the optimiser and batch size it was given with
        if source.get("optimizer") not in (None, settings["optimizer"]):
            settings = recipes.with_optimizer(settings, source["optimizer"])
        elif "batch_size" in source and "learning_rate" not in source:
            scaled = {**recipes.with_batch_size(settings, source["batch_size"]), **source}
            notes += _batch_notes(settings, scaled)
            settings = scaled
        settings = {**settings, **source}
    if "surrogate_width" not in asked and (asked.get("surrogate") == "leak_aware" or asked.get("gradient") == "event"):
        # the paper's slope has none, and through time a width that suits "rate" makes gradients explode (docs/depth.md)
        settings["surrogate_width"] = defaults["surrogate_width"]
    if asked.get("lr_milestones") and "lr_schedule" not in asked:
        settings["lr_schedule"] = "milestones"  # whoever gives milestones wants them, whatever the recipe has
    if asked.get("lr_schedule") == "cosine" and "lr_milestones" not in asked:
        settings["lr_milestones"] = ()
    config = Config(**settings)
    variant = VARIANTS[config.model]
    missing = {name: getattr(variant, name) for name in ("hidden", "kappa", "dropout", "init")
               if getattr(config, name) is None}
    config = dataclasses.replace(config, **missing)
    if config.workdir is None:
        config = dataclasses.replace(config, workdir=default_workdir(config))
    if config_file is not None and "workdir" not in given:
        config = _at_home(config, config_file)
    return Resolved(config, notes)


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
    text = config_files.read_text(config_file)
    if "about" not in json.loads(text):  # not written by a run
        return config
    saved = from_json(text, config_file)
    if saved.workdir == default_workdir(saved) and digest(saved) != digest(config):
        return config
    here = os.path.realpath(folder) == os.path.realpath(str(config.workdir))
    return config if here else dataclasses.replace(config, workdir=folder)


def digest(config: Config) -> str:
    """Returns eight digits that follow from the settings of an experiment: the `config_hash` of results.csv."""
    keys = {name: getattr(config, name) for name, field in FIELDS.items() if field.metadata["experiment"]}
    keys = {name: value for name, value in keys.items() if name not in _ADDED or value != _ADDED[name]}
    return hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()[:8]


def default_workdir(config: Config) -> str:
    """Returns the folder that follows from a resolved configuration alone: the same experiment, the same folder."""
    dataset = re.sub(r"[^a-z0-9_.]", "-", config.dataset)[:80]
    kind = config.gradient if config.neuron == "lif" else config.neuron
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
        listed = ", ".join(f"{name} (was {_plain(old)}, now {_plain(new)})" for name, (old, new) in changes.items())
        rule = ("The cosine falls over all epochs, so they cannot change." if wanted.lr_schedule == "cosine"
                else "Epochs may be raised, not lowered.")
        more = f" {rule}" if "epochs" in changes else ""
        raise UserError(f"The run in {saved.workdir} has other settings: {listed}.{more} "
                        "Give the old values to continue it, or another --workdir to start anew.")


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) or "none" if isinstance(value, tuple) else "none" if value is None else str(value)


def to_json(config: Config, about: Mapping[str, Any] | None = None) -> str:
    """Returns a configuration as versioned JSON; `about` (versions, commit, command) is kept beside it, unread."""
    return config_files.encode(dataclasses.asdict(config), about)


def from_json(text: str, source: str = "the configuration") -> Config:
    """Returns the configuration that `to_json` wrote.

    Raises:
      UserError: the text is no such configuration, one of another format, or lacks a setting.
    """
    values = {**_ADDED, **_checked(config_files.decode(text, source), source)}
    missing = [name for name in FIELDS if name not in values]
    if missing:
        raise UserError(f"{source} lacks {', '.join(missing[:5])}{' and more' if len(missing) > 5 else ''}; "
                        "it is damaged or was not written by a run.")
    return Config(**values)


def read_run(workdir: str) -> Config:
    """Returns the configuration of the run in `workdir`, from its config.json; its workdir is this folder, wherever the
    run was begun.

    Raises:
      UserError: there is no run, or its configuration cannot be read.
    """
    path = os.path.join(workdir, "config.json")
    if not os.path.isfile(path):
        raise UserError(f"--workdir takes the folder of a run, with a config.json in it; {shown(workdir)} has none. "
                        "Train first, or give the folder that training named.")
    return dataclasses.replace(from_json(config_files.read_text(path), path), workdir=workdir)


def read_settings(path: str) -> dict[str, Any]:
    """Returns the settings in a JSON file: a plain object of them, or a run's config.json. Executes nothing.

    A workdir that followed from the file's other settings is left out, so that it follows from the new ones.

    Raises:
      UserError: the file cannot be read, is not JSON, or holds an unknown name or an illegal value.
    """
    source = f"config file {shown(path)}"
    values = _checked(config_files.decode(config_files.read_text(path), source), source)
    if _is_whole(values):  # of a run: what it does not name it did as `_ADDED` says, whatever recipes say now
        values = {**_ADDED, **values}
        if values.get("workdir") == default_workdir(Config(**values)):
            del values["workdir"]
    return values


def _is_whole(values: Mapping[str, Any]) -> bool:
    """Whether these are all settings of a run, of this version or an earlier one."""
    return all(name in values or name in _ADDED or name == "workdir" for name in FIELDS)


def _checked(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    checked = {}
    values = {new: its for name, value in values.items()
              for new, its in (_REPLACED[name](value) if name in _REPLACED else {name: value}).items()}
    for name, value in values.items():
        if name in RunOptions.__dataclass_fields__:
            raise UserError(f"{source} has {name!r}, which is no part of an experiment; give it as a flag, --{name}.")
        if name not in FIELDS:
            raise UserError(f"{source} names an unknown setting, {shown(name)}."
                            f"{closest(str(name), FIELDS) or ' See --help for all settings.'}")
        try:
            checked[name] = normalise(FIELDS[name], value)
        except UserError as error:
            raise UserError(str(error) if source == "the settings" else f"In {source}: {error}") from None
    return checked
