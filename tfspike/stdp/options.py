"""Flags of `python -m tfspike.stdp`. Nothing here imports TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tfspike.config import commands, flags, resolving
from tfspike.config.config import EVENT_DATASETS, Config, RunOptions
from tfspike.config.settings import COUNT, normalise_all, plain, setting, verbose_setting
from tfspike.errors import UserError

RULES = ("kheradpisheh", "lee")
_GROUP = "Before training"
_NOTES = ("Takes every flag of train.py, and has the convolutions of the network that they make learn from training "
          "images before train.py does. These are its own:")


def _of_train(name: str) -> Any:
    """An option of train.py, which means the same here."""
    field = RunOptions.__dataclass_fields__[name]
    return dataclasses.field(default=field.default, metadata={**field.metadata, "group": _GROUP})


@dataclasses.dataclass(frozen=True)
class StdpOptions:
    """How convolutions learn before training.

    Raises:
      UserError: a value is illegal.
    """

    rule: str = setting("kheradpisheh", "Whose rule: that of Kheradpisheh et al. 2018, or one after Lee et al. 2018.",
                        group=_GROUP, choices=RULES)
    images: int = setting(3000, "Training images that every layer is shown, again from the first one where there are "
                          "fewer.", group=_GROUP, **COUNT)
    steps: int = setting(15, "Length of the window in which layers learn, in steps.", group=_GROUP, **COUNT)
    method: str | None = _of_train("method")
    config: str | None = _of_train("config")
    verbose: bool = verbose_setting(_GROUP)

    def __post_init__(self) -> None:
        normalise_all(self)


def parse(argv: Sequence[str] | None = None) -> tuple[Config, StdpOptions, dict[str, str]]:
    """Reads the command line.

    Args:
      argv: the arguments without the program's name; None means those of this process.

    Returns:
      The settings of the network, with the folder to write to as workdir; how it learns; and the flags of the train.py
      that goes on, but for --init_from.

    Raises:
      UserError: as for `tfspike.flags.parse`, or the network does not learn from images with spikes.
    """
    given, options = flags.parse_with_settings(StdpOptions, argv, commands.usage("stdp"), _NOTES)
    config = resolving.resolve(given, config_file=options.config, method=options.method)
    if not config.is_spiking:
        raise UserError("STDP learns from spikes, and --neuron=relu has none; leave it out.")
    if config.dataset in EVENT_DATASETS or config.encoder == "none":
        raise UserError(f"STDP codes images as spikes of its own, and {config.dataset} with --encoder={config.encoder} "
                        "comes as spike trains; take a data set of images.")
    named = {name: value for name in ("method", "config") if (value := getattr(options, name)) is not None}
    training = {**named, **{name: plain(value) for name, value in given.items() if name != "workdir"}}
    if "workdir" not in given:
        config = dataclasses.replace(config, workdir=f"{config.workdir}-stdp")
    return config, options, training
