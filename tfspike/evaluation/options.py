"""The flags of eval.py. Needs no TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from tfspike.config import commands, flags
from tfspike.config.settings import COUNT, data_dir_setting, normalise, setting, verbose_setting
from tfspike.errors import UserError

# Up to one joule: beyond it, sums over a network would overflow before they meant anything.
_ENERGY: dict[str, Any] = {"group": "Energy in --report and --compare (defaults: 45 nm CMOS, 32-bit; Horowitz 2014)"}
_ABOVE_0_PJ: dict[str, Any] = {**_ENERGY, "legal": "a number above 0 and up to 1e12, in pJ",
                               "check": lambda v: 0 < v <= 1e12}
_FROM_0_PJ: dict[str, Any] = {**_ENERGY, "legal": "a number from 0 to 1e12, in pJ", "check": lambda v: 0 <= v <= 1e12}


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """What eval.py does with a finished run.

    Raises:
      UserError: a value is illegal.
    """

    workdir: str = setting("", "Folder of the run; may be left out when --compare names two or more.",
                           group="What to evaluate", legal="the folder of a run", path=True)
    checkpoint: str = setting("best", "The weights: best by validation, or last.", group="What to evaluate",
                              choices=("best", "last"))
    data_dir: str | None = data_dir_setting("What to evaluate")
    seeds: int = setting(3, "Draws of the random input to average over.", group="How",
                         legal="a whole number from 1 to 10000",
                         check=lambda v: 1 <= v <= 10_000)
    batch_size: int | None = setting(None, "Images at a time; none means the run's.", group="How", **COUNT)
    timesteps: int | None = setting(None, "Length of the window, in steps; none means the run's.", group="How", **COUNT)
    report: bool = setting(False, "Write an HTML report and its pictures into the workdir.", group="Output")
    compare: tuple[str, ...] = setting((), "Folders of other runs to put beside this one, separated by commas.",
                                       group="Output", legal="folders of runs", path=True)
    predict: tuple[str, ...] = setting((), "Image files or folders to classify, separated by commas.", group="Output",
                                       legal="image files or folders", path=True)
    json: bool = setting(False, "Print the JSON line and nothing else.", group="Output")
    energy_mac: float = setting(4.6, "pJ of one multiply-accumulate.", **_ABOVE_0_PJ)
    energy_ac: float = setting(0.9, "pJ of one accumulate.", **_ABOVE_0_PJ)
    energy_update: float = setting(0.0, "pJ of the arithmetic of one membrane update; that of energy_mac is fair.",
                                   **_FROM_0_PJ)
    energy_memory: float = setting(0.0, "pJ of one access to a 32-bit word: about 5 for on-chip SRAM, 640 for DRAM.",
                                   **_FROM_0_PJ)
    weights: str | None = setting(None, "Trained weights that come with the library, in place of a run; docs/models.md "
                                  "lists them.", group="What to evaluate", legal="a name from docs/models.md")
    resize: bool = setting(False, "Scale image files of another size, for --predict.", group="How")
    images: int | None = setting(None, "Test images to use, the first ones, or evenly spread ones of data of your own; "
                                 "none means all.", group="How", **COUNT)
    verbose: bool = verbose_setting("Output")
    kernel: str | None = setting(None, "How synapses are computed, in accuracy and --predict: dense, or on CPUs where "
                                 "spikes are (events); auto measures both, for accuracy; none means the run's.",
                                 group="How", choices=("auto", "dense", "events"))

    def __post_init__(self) -> None:
        if self.weights is not None:
            self._check_weights()
        elif not self.workdir and len(self.compare) > 1:
            object.__setattr__(self, "workdir", self.compare[0])
            object.__setattr__(self, "compare", self.compare[1:])
        if not self.workdir and self.weights is None:
            raise UserError("--workdir is missing; give the folder of a run, as training named it.")
        for field in dataclasses.fields(self):
            if field.name == "workdir" and self.weights is not None:
                continue  # "" stands for none
            object.__setattr__(self, field.name, normalise(field, getattr(self, field.name)))
        self._check_together()

    def _check_together(self) -> None:
        """Refuses flags that another one would make without effect."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        energy = [name for name in defaults if name.startswith("energy_")]
        given = [name for name, default in defaults.items() if getattr(self, name) != default]
        for names, needed, why in (
                (("report", "compare", "images", "batch_size", *energy), not self.predict,
                 "is of the test set, and --predict classifies image files"),
                (("resize",), bool(self.predict), "is for --predict"),
                (energy, bool(self.report or self.compare), "is for --report and --compare")):
            wrong = [name for name in names if name in given]
            if wrong and not needed:
                raise UserError(f"--{wrong[0]} {why}; leave one of them out." if self.predict else
                                f"--{wrong[0]} {why}; give one of these too, or leave it out.")

    def _check_weights(self) -> None:
        if self.workdir:
            raise UserError("--workdir and --weights both name a network to evaluate; give only one of them.")
        if self.report or self.compare or self.checkpoint != "best":
            flag = "report" if self.report else "compare" if self.compare else "checkpoint"
            raise UserError(f"--{flag} needs the folder of a run, which --weights={self.weights} has not; leave one of "
                            "them out.")


def parse_eval(argv: Sequence[str] | None = None, whole_name: Callable[[str], str] = str) -> EvalOptions:
    """Reads the command line of eval.py.

    Args:
      argv: as for `flags.parse`.
      whole_name: of trained weights, from what the user calls them; raises UserError where there are none.

    Raises:
      UserError: as for `flags.parse`.
      SystemExit: with code 0, after `--help` was printed.
    """
    options = flags.parse_as(EvalOptions, argv, commands.usage("eval", "--workdir=FOLDER [--flag=value ...]"))
    return dataclasses.replace(options, weights=whole_name(options.weights)) if options.weights else options
