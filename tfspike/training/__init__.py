"""What train.py does."""

from typing import TYPE_CHECKING

from tfspike.faces import on_use

if TYPE_CHECKING:  # what _HOME says, for type checkers
    from tfspike.training.command import WorkerLost as WorkerLost
    from tfspike.training.command import run as run
    from tfspike.training.step import TrainStep as TrainStep
    from tfspike.training.trainer import Trainer as Trainer

_HOME = {"WorkerLost": "command", "run": "command",
         "Trainer": "trainer",
         "TrainStep": "step"}

__all__ = sorted(_HOME)

__getattr__ = on_use(__name__, _HOME)
