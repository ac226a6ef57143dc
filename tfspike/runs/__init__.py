"""What lies in the folder of a run, and how to get its network back. Needs no TensorFlow until a network is built.

    model, config, info, _ = runs.load_run("runs/mine")                  # for inference, as eval.py has it
    model = runs.load_run("runs/mine", fold=False)[0]                    # to go on training, or to take apart
"""

from typing import TYPE_CHECKING

from tfspike.faces import on_use

if TYPE_CHECKING:  # what _HOME says, for type checkers
    from tfspike.runs.loading import load_run as load_run

_HOME = {"load_run": "loading"}

__all__ = sorted(_HOME)

__getattr__ = on_use(__name__, _HOME)
