"""Which networks are there: `create` builds any row of `tfspike.variants.VARIANTS`."""

from typing import TYPE_CHECKING

from tfspike.faces import on_use

if TYPE_CHECKING:  # what _HOME says, for type checkers
    from tfspike.models.ann import ReluModel as ReluModel
    from tfspike.models.networks import available as available
    from tfspike.models.networks import create as create
    from tfspike.models.spiking_model import SpikingModel as SpikingModel

_HOME = {"available": "networks", "create": "networks",
         "ReluModel": "ann",
         "SpikingModel": "spiking_model"}

__all__ = sorted(_HOME)

__getattr__ = on_use(__name__, _HOME)
