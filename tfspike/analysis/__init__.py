"""What a network did: spikes, operations, energy, and every step of a window."""

from typing import TYPE_CHECKING

from tfspike.faces import on_use

if TYPE_CHECKING:  # what _HOME says, for type checkers
    from tfspike.analysis.energy import EnergyModel as EnergyModel
    from tfspike.analysis.energy import Operations as Operations
    from tfspike.analysis.measure import Analysis as Analysis
    from tfspike.analysis.measure import EarlyExit as EarlyExit
    from tfspike.analysis.measure import LayerActivity as LayerActivity
    from tfspike.analysis.measure import analyse as analyse
    from tfspike.analysis.measure import operations as operations
    from tfspike.analysis.measure import settled as settled

_HOME = {"EnergyModel": "energy", "Operations": "energy",
         "Analysis": "measure", "EarlyExit": "measure", "LayerActivity": "measure",
         "analyse": "measure", "operations": "measure", "settled": "measure"}

__all__ = sorted(_HOME)

__getattr__ = on_use(__name__, _HOME)
