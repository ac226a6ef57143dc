"""Flags of `python -m tfspike.conversion`. Nothing here imports TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tfspike.config import commands, flags
from tfspike.config.settings import normalise_all, setting, verbose_setting
from tfspike.errors import UserError

METHODS = ("data", "spike_norm")
_COUNT: dict[str, Any] = {"legal": "a whole number above 0", "check": lambda v: 0 < v < 2**31}


@dataclasses.dataclass(frozen=True)
class ConversionOptions:
    """What the command does with a finished run of `train.py --neuron=relu`.

    Raises:
      UserError: a value is illegal.
    """

    run: str = setting("", "Folder of the ANN's run.", group="What to convert", legal="the folder of a run", path=True)
    checkpoint: str = setting("best", "The weights: best by validation, or last.", group="What to convert",
                              choices=("best", "last"))
    data_dir: str | None = setting(None, "Where the data are, as for train.py; none means where the run found them.",
                                   group="What to convert", legal="a folder, or an .npz file", path=True)
    method: str = setting("data", "How thresholds are balanced: data (Diehl et al. 2015) or spike_norm (Sengupta et "
                          "al. 2019).", group="How", choices=METHODS)
    percentile: float | None = setting(None, "Which of a layer's positive activations or currents its scale is; none "
                                       "means 99.9 for data and 100, the maximum, for spike_norm.", group="How",
                                       legal="a number above 0 and up to 100", check=lambda v: 0 < v <= 100)
    calibration: int = setting(128, "Training images that thresholds are balanced on.", group="How", **_COUNT)
    encoder: str = setting("poisson", "How pixels become spikes.", group="How", choices=("poisson", "direct"))
    timesteps: int = setting(100, "Length of the window, in steps.", group="How", **_COUNT)
    seed: int = setting(0, "Of the input noise.", group="How", legal="a whole number of at least 0",
                        check=lambda v: 0 <= v < 2**31)
    out: str | None = setting(None, "Folder of the converted network; none means one in the run's.", group="Output",
                              legal="a folder", path=True)
    images: int | None = setting(None, "Test images that accuracy and spikes are measured on; none means all.",
                                 group="Output", **_COUNT)
    steps: tuple[int, ...] = setting((10, 25, 50, 100), "Steps at which accuracy and spikes are printed.",
                                     group="Output", **_COUNT)
    record: str | None = setting(None, "JSON lines file that the measurement is added to, without places of this "
                                 "machine, such as results/conversions.jsonl.", group="Output", legal="a file",
                                 path=True)
    json: bool = setting(False, "Print the JSON line and nothing else.", group="Output")
    verbose: bool = verbose_setting("Output")

    def __post_init__(self) -> None:
        if not self.run:
            raise UserError("--run is missing; give the folder of a run of train.py --neuron=relu.")
        normalise_all(self)


def parse(argv: Sequence[str] | None = None) -> ConversionOptions:
    """Reads the command line; arguments and errors as for `tfspike.flags.parse`."""
    return flags.parse_as(ConversionOptions, argv, commands.usage("convert", "--run=FOLDER [--flag=value ...]"))
