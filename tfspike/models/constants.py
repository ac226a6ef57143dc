"""Constants of layers, such as `layer.threshold`, that are changed after Keras has traced a model with them."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

from tfspike.models import first_trace
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


def keep_up(model: Any, told: dict[str, Any], name: str, make: Callable[..., Any], force: bool,
            prepared: bool = False) -> Any:
    """Gives a model a function of Keras' that is traced anew whenever constants have changed, between two batches too,
    and otherwise once.

    Args:
      model, told: as of `of`.
      name: of the attribute that holds the function, which Keras sets to None where it must be made again.
      make: makes it, `keras.Model.make_train_function` or its like.
      force: make it again in any case.
      prepared: make before what Keras would make in its first step.
    """
    if getattr(model, name) is not None and not force:
        return getattr(model, name)
    traced: Any = None
    traced_for: list[Any] = []

    def function(*args: Any) -> Any:
        nonlocal traced, traced_for
        now = of(model, told)
        if traced is None and prepared:
            first_trace.prepare(model, told, args[0], name == "train_function")
        if traced is None or now != traced_for:
            make(force=True)
            traced, traced_for = getattr(model, name), now
            setattr(model, name, function)
        return traced(*args)

    setattr(model, name, function)
    return function
