"""Flags of `python -m tfspike.export`. Nothing here imports TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tfspike.config import commands, flags
from tfspike.config.settings import normalise_all, setting, verbose_setting
from tfspike.errors import UserError
from tfspike.export.formats import FORMATS


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Which run the command exports, and how.

    Raises:
      UserError: a value is illegal.
    """

    workdir: str = setting("", "Folder of the run.", group="What to export", legal="the folder of a run", path=True)
    format: tuple[str, ...] = setting(("saved_model",), "Formats to write.", group="What to export", choices=FORMATS)
    weights: str = setting("float32", "How a LiteRT file stores weights.", group="How",
                           choices=("float32", "float16", "dynamic_range"))
    target: str = setting("nir", "Which simulator's conventions a NIR file follows.", group="How",
                          choices=("nir", "norse", "snntorch", "spikingjelly"))
    out: str | None = setting(None, "Folder to write into; none means the run's export/.", group="Output",
                              legal="a folder", path=True)
    verbose: bool = verbose_setting("Output")

    def __post_init__(self) -> None:
        if not self.workdir:
            raise UserError("--workdir is missing; give the folder of a run, as training named it.")
        normalise_all(self)
        if not self.format:
            raise UserError(f"--format takes one or more of {', '.join(FORMATS)}; received none.")


def parse(argv: Sequence[str] | None = None) -> ExportOptions:
    """Reads the command line; arguments and errors as for `tfspike.flags.parse`."""
    return flags.parse_as(ExportOptions, argv, commands.usage("export", "--workdir=RUN [--flag=value ...]"))
