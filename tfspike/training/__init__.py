"""What train.py does."""

from tfspike.faces import on_use

_HOME = {"WorkerLost": "command", "run": "command",
         "Trainer": "trainer",
         "TrainStep": "step"}

__all__ = sorted(_HOME)

__getattr__ = on_use(__name__, _HOME)
