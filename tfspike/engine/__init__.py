"""How is a whole network run: its calls in order, in chunks of steps, with fused kernels."""

from typing import TYPE_CHECKING

from tfspike.faces import on_use

if TYPE_CHECKING:  # what _HOME says, for type checkers
    from tfspike.engine.engine import Engine as Engine

_HOME = {"Engine": "engine"}

__all__ = sorted(_HOME)

__getattr__ = on_use(__name__, _HOME)
