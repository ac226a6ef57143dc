"""Flags of `python -m tfspike.conversion`. Nothing here imports TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tfspike.config import commands, flags
from tfspike.config.settings import COUNT, data_dir_setting, normalise_all, setting, verbose_setting
from tfspike.conversion.methods import METHODS, chosen, listing
from tfspike.errors import UserError


@dataclasses.dataclass(frozen=True)
class ConversionOptions:
    """What the command does with a finished run of `train.py --neuron=relu`.

    Raises:
      UserError: a value is illegal.
    """

    run: str = setting("", "Folder of the ANN's run.", group="What to convert", legal="the folder of a run", path=True)
    checkpoint: str = setting("best", "The weights: best by validation, or last.", group="What to convert",
                              choices=("best", "last"))
    data_dir: str | None = data_dir_setting("What to convert")
    method: str = setting("data", f"How thresholds are balanced: {listing()}. The last two reset by subtraction and "
                          "need few steps; quantised takes an ANN of train.py --levels.", group="How", choices=METHODS)
    percentile: float | None = setting(None, "Which of a layer's positive activations or currents its scale is; none "
                                       "means 99.9, or 100, the maximum, for spike_norm.", group="How",
                                       legal="a number above 0 and up to 100", check=lambda v: 0 < v <= 100)
    calibration: int = setting(128, "Training images that scales are found on.", group="How", **COUNT)
    start: float | None = setting(None, "Share of the threshold that membranes begin a window with; none means 0, or "
                                  ".5 for quantised.", group="How",
                                  legal="a number from 0 up to, but not including, 1", check=lambda v: 0 <= v < 1)
    bipolar: bool = setting(False, "Spikes that came too early are taken back by spikes of -1 (after Gao et al. 2023); "
                            "for methods that reset by subtraction.", group="How")
    encoder: str | None = setting(None, "How pixels become spikes; none means poisson for data and spike_norm, and "
                                  "direct, a constant current, for the others.", group="How",
                                  choices=("poisson", "direct"))
    timesteps: int = setting(100, "Length of the window, in steps.", group="How", **COUNT)
    seed: int = setting(0, "Of the input noise.", group="How", legal="a whole number of at least 0",
                        check=lambda v: 0 <= v < 2**31)
    out: str | None = setting(None, "Folder of the converted network; none means one in the run's.", group="Output",
                              legal="a folder", path=True)
    images: int | None = setting(None, "Test images that accuracy and spikes are measured on; none means all.",
                                 group="Output", **COUNT)
    steps: tuple[int, ...] = setting((10, 25, 50, 100), "Steps at which accuracy and spikes are printed.",
                                     group="Output", **COUNT)
    record: str | None = setting(None, "JSON lines file that the measurement is added to, without places of this "
                                 "machine, such as results/conversions.jsonl.", group="Output", legal="a file",
                                 path=True)
    json: bool = setting(False, "Print the JSON line and nothing else.", group="Output")
    verbose: bool = verbose_setting("Output")

    def __post_init__(self) -> None:
        if not self.run:
            raise UserError("--run is missing; give the folder of a run of train.py --neuron=relu.")
        normalise_all(self)
        chosen(self.method, self.encoder, self.start, self.bipolar)
        if self.percentile is not None and METHODS[self.method].percentile is None:
            raise UserError(f"--percentile={self.percentile:g} is of methods that look at images, and "
                            f"--method={self.method} takes what the network has learnt; leave it out.")


def parse(argv: Sequence[str] | None = None) -> ConversionOptions:
    """Reads the command line; arguments and errors as for `tfspike.flags.parse`."""
    return flags.parse_as(ConversionOptions, argv, commands.usage("convert", "--run=FOLDER [--flag=value ...]"))
