"""Which networks are there: `create` builds any row of `tfspike.variants.VARIANTS`."""

from tfspike.faces import on_use

_HOME = {"available": "networks", "create": "networks",
         "ReluModel": "ann",
         "SpikingModel": "spiking_model"}

__all__ = sorted(_HOME)

__getattr__ = on_use(__name__, _HOME)
