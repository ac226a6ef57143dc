"""Train deep spiking neural networks from spikes, in TensorFlow/Keras (Lee et al. 2020).

Importing this package is cheap: TensorFlow is loaded when the first of the names below is used, so that a command
can check its flags before. Where Keras is loaded, before or after, so are our layers and models, which
`keras.models.load_model` can then find: it looks among registered classes alone.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import typing
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from tfspike.faces import Moved

if typing.TYPE_CHECKING:  # what _HOME and _MODULES say, for type checkers
    from tfspike.errors import UserError as UserError
    from tfspike.models.callbacks import Diagnosis as Diagnosis
    from tfspike.models.callbacks import FiringRates as FiringRates
    from tfspike.models.spiking_model import SpikingModel as SpikingModel
    from tfspike.neurons import gradients as gradients
    from tfspike.neurons import layers as layers
    from tfspike.neurons.cells import LeakyIntegratorCell as LeakyIntegratorCell
    from tfspike.neurons.cells import LIFCell as LIFCell
    from tfspike.neurons.cells import PoolingIFCell as PoolingIFCell
    from tfspike.neurons.encoders import DirectEncoder as DirectEncoder
    from tfspike.neurons.encoders import LatencyEncoder as LatencyEncoder
    from tfspike.neurons.encoders import PoissonEncoder as PoissonEncoder
    from tfspike.neurons.encoders import SpikeInput as SpikeInput
    from tfspike.neurons.layers import LIF as LIF
    from tfspike.neurons.layers import LeakAware as LeakAware
    from tfspike.neurons.layers import PoolingIF as PoolingIF
    from tfspike.neurons.layers import Readout as Readout
    from tfspike.neurons.normalisation import ThresholdNorm as ThresholdNorm
    from tfspike.neurons.over_time import OverTime as OverTime
    from tfspike.neurons.over_time import WindowDropout as WindowDropout

__version__ = "1.0.0"

_HOME = {
    "LIFCell": "neurons.cells", "PoolingIFCell": "neurons.cells", "LeakyIntegratorCell": "neurons.cells",
    "LIF": "neurons.layers", "PoolingIF": "neurons.layers", "Readout": "neurons.layers", "LeakAware": "neurons.layers",
    "OverTime": "neurons.over_time", "WindowDropout": "neurons.over_time", "ThresholdNorm": "neurons.normalisation",
    "PoissonEncoder": "neurons.encoders", "DirectEncoder": "neurons.encoders", "LatencyEncoder": "neurons.encoders",
    "SpikeInput": "neurons.encoders", "SpikingModel": "models.spiking_model", "Diagnosis": "models.callbacks",
    "FiringRates": "models.callbacks", "UserError": "errors",
}
# Modules under the names of their first home: `tfspike.layers` is `tfspike.neurons.layers`, for good.
_MODULES = {
    **dict.fromkeys(("cells", "encoders", "gradients", "layers", "noise", "normalisation", "surrogates"), "neurons"),
    **dict.fromkeys(("convolution", "folding", "kernels", "plan", "precision"), "engine"),
    **dict.fromkeys(("callbacks", "diagnosis", "initialisation", "losses"), "models"),
    **dict.fromkeys(("events", "image_files", "streams"), "datasets"),
    **dict.fromkeys(("flags", "recipes", "settings"), "config"),
    **dict.fromkeys(("energy", "simulation", "summary"), "analysis"),
    **dict.fromkeys(("checkpoints", "initial_weights", "results", "run_log", "workdir"), "runs"),
    **dict.fromkeys(("comparison", "plots", "prediction", "report"), "evaluation"),
}
_ROOMS = ("analysis", "config", "conversion", "datasets", "engine", "evaluation", "export", "models", "neurons",
          "pretrained", "runs", "stdp", "training")

__all__ = sorted([*_HOME, "datasets", "gradients", "layers", "models"])


def __getattr__(name: str) -> Any:
    if name in _HOME:
        if _HOME[name] != "errors":
            _register()
        return getattr(importlib.import_module(f"tfspike.{_HOME[name]}"), name)
    if name in _MODULES or name in _ROOMS or name in ("checks", "distribution", "errors", "variants"):
        return importlib.import_module(f"tfspike.{name}")
    raise AttributeError(f"module 'tfspike' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES, *_ROOMS})


def _register() -> None:
    """Loads every class that a .keras file may name."""
    for module in ("neurons.bipolar", "neurons.cells", "neurons.gate", "models.networks"):
        importlib.import_module(f"tfspike.{module}")


class _AfterKeras:
    """Calls `_register` when Keras has been loaded and no part of this package is half loaded: an import hook."""

    def __init__(self) -> None:
        self._loading = 0

    def find_spec(self, name: str, path: Sequence[str] | None = None,
                  target: ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:
        spec = None
        if name == "keras" or name.startswith("tfspike."):
            spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None  # whoever is asked next may find it
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            self._loading += 1
            try:
                load(module)
            finally:
                self._loading -= 1
            keras = sys.modules.get("keras")
            if self._loading == 0 and keras is not None and self in sys.meta_path:
                sys.meta_path.remove(self)
                if keras.backend.backend() == "tensorflow":  # with another one Keras may be used beside us, not with us
                    _register()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Moved({f"tfspike.{name}": f"tfspike.{room}.{name}" for name, room in _MODULES.items()}))
if "keras" in sys.modules:
    if sys.modules["keras"].backend.backend() == "tensorflow":
        _register()
else:
    sys.meta_path.insert(0, _AfterKeras())
