"""From a trained ReLU network to a spiking one: threshold balancing.

    converted = conversion.convert(ann, training_images, method="data", timesteps=100)
    converted.model                                    # a SpikingModel of integrate-and-fire neurons

    python -m tfspike.conversion --run=FOLDER --method=spike_norm --timesteps=100

`tfspike.conversion.balance` has the mathematics and what is lost.
"""

from tfspike.faces import on_use

__all__ = ["METHODS", "Conversion", "build", "convert"]

__getattr__ = on_use(__name__, {"METHODS": "options", **dict.fromkeys(__all__[1:], "balance")})
