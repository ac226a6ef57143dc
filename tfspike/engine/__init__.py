"""How is a whole network run: its calls in order, in chunks of steps, with fused kernels."""

from tfspike.faces import on_use

_HOME = {"Engine": "engine"}

__all__ = sorted(_HOME)

__getattr__ = on_use(__name__, _HOME)
