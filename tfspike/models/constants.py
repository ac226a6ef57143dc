"""Constants of layers, such as `layer.threshold`, that are changed after Keras has traced a model with them."""

from __future__ import annotations

import numbers
from typing import Any

from tfspike.models.network import window_of
from tfspike.neurons.encoders import Encoder
from tfspike.neurons.layers import Readout, SpikingLayer
from tfspike.neurons.normalisation import ThresholdNorm
from tfspike.neurons.over_time import WindowDropout, with_layers_inside

_WITH_CONSTANTS = (Encoder, SpikingLayer, Readout, WindowDropout, ThresholdNorm)


def of(model: Any, told: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Thresholds, leaks, steps and whatever else layers of ours have as plain attributes, as they are now.

    Args:
      model: a `SpikingModel`, of which `told` keeps where they are: they are asked for at every batch.
    """
    if "places" not in told:
        window = window_of(model)
        layers = model.layers if window is None else [call.layer for call in window.ours]
        told["places"] = [_place(inner) for layer in layers for inner in with_layers_inside(layer)
                          if isinstance(inner, _WITH_CONSTANTS)]
    return [tuple(map(attributes.get, names)) for attributes, names in told["places"]]


def _place(layer: Any) -> tuple[Any, list[str]]:
    return vars(layer), [name for name, value in vars(layer).items()
                         if name[0] != "_" and isinstance(value, (numbers.Real, str, tuple))]
