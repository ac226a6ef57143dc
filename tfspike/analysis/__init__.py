"""What a network did: spikes, operations, energy, and every step of a window."""

from tfspike.faces import on_use

_HOME = {"EnergyModel": "energy", "Operations": "energy",
         "Analysis": "measure", "EarlyExit": "measure", "LayerActivity": "measure",
         "analyse": "measure", "operations": "measure", "settled": "measure"}

__all__ = sorted(_HOME)

__getattr__ = on_use(__name__, _HOME)
