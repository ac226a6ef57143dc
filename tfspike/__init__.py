"""Train deep spiking neural networks from spikes, in TensorFlow/Keras (Lee et al. 2020).

Importing this package is cheap: TensorFlow is loaded when the first of the names below is used, so that a command
can check its flags before. Where Keras is loaded already, so are our layers and models, which `keras.models.load_model`
can then find.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "LIFCell": "cells", "PoolingIFCell": "cells", "LeakyIntegratorCell": "cells",
    "LIF": "layers", "PoolingIF": "layers", "Readout": "layers", "LeakAware": "layers", "OverTime": "layers",
    "WindowDropout": "layers", "ThresholdNorm": "normalisation",
    "PoissonEncoder": "encoders", "DirectEncoder": "encoders", "LatencyEncoder": "encoders", "SpikeInput": "encoders",
    "SpikingModel": "models", "Diagnosis": "callbacks", "UserError": "errors",
}
_MODULES = ("analysis", "callbacks", "cells", "checkpoints", "comparison", "config", "conversion", "datasets",
            "encoders", "energy", "engine", "errors", "evaluation", "export", "folding", "gradients",
            "initialisation", "layers", "losses", "models", "normalisation", "plan", "plots", "precision",
            "prediction", "pretrained", "recipes", "report", "results", "simulation", "streams", "summary",
            "surrogates", "training", "variants")

__all__ = sorted([*_HOME, "datasets", "gradients", "layers", "models"])


def __getattr__(name: str) -> Any:
    if name in _HOME:
        if _HOME[name] != "errors":
            _register()
        return getattr(importlib.import_module(f"tfspike.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"tfspike.{name}")
    raise AttributeError(f"module 'tfspike' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES})


def _register() -> None:
    """Loads every class that a .keras file may name."""
    for module in ("cells", "models"):
        importlib.import_module(f"tfspike.{module}")


if "keras" in sys.modules:
    _register()
