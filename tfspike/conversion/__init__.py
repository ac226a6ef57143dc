"""From a trained ReLU network to a spiking one: balanced thresholds.

    converted = conversion.convert(ann, training_images, method="data", timesteps=100)
    converted.model                                    # a SpikingModel of integrate-and-fire neurons

    python -m tfspike.conversion --run=FOLDER --method=rueckauer --timesteps=32

`tfspike.conversion.methods` has the methods, `balance` the mathematics and what is lost.
"""

from typing import TYPE_CHECKING

from tfspike.faces import on_use

if TYPE_CHECKING:  # what _HOME says, for type checkers
    from tfspike.conversion.balance import Conversion as Conversion
    from tfspike.conversion.balance import build as build
    from tfspike.conversion.balance import convert as convert
    from tfspike.conversion.methods import METHODS as METHODS

_HOME = {"METHODS": "methods",
         "Conversion": "balance", "build": "balance", "convert": "balance"}

__all__ = sorted(_HOME)

__getattr__ = on_use(__name__, _HOME)
