"""What a layer is to paths that do not call it: linear, with code of its own, or one that may mix steps.

The engine, analysis and exports put their own code in place of the `call` of the layers that are known here.
"""

from __future__ import annotations

from typing import Any

import keras

from tfspike.neurons.encoders import Encoder
from tfspike.neurons.gate import MaxPoolGate
from tfspike.neurons.layers import Readout, SpikingLayer
from tfspike.neurons.normalisation import ThresholdNorm
from tfspike.neurons.over_time import OverTime, WindowDropout

# Keras' layers that treat every step alone and need no help: they may be given any stretch of a window.
_MERGES = (keras.layers.Add, keras.layers.Subtract, keras.layers.Average, keras.layers.Concatenate,
           keras.layers.Identity, keras.layers.Activation)

# The layers whose methods other paths than the readable one put their own code in place of, and of those methods the
# ones that every path calls. A subclass that overrides any other is run by its own `call` alone.
_BASES: tuple[tuple[type, frozenset[str]], ...] = (
    (Encoder, frozenset({"encode", "draws", "with_gradient", "refuses_gradient"})),
    (SpikingLayer, frozenset({"neuron"})), (Readout, frozenset()), (WindowDropout, frozenset({"draw_mask"})),
    (ThresholdNorm, frozenset()), (OverTime, frozenset()), *((merge, frozenset()) for merge in _MERGES))
_ON_EVERY_PATH = frozenset({"build", "quantize", "get_config", "from_config", "compute_output_shape",
                            "compute_output_spec", "get_build_config", "build_from_config"})

# Keras' linear layers by kind
DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)
SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)  # of two kernels
WEIGHTED = (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D,
            *DEPTHWISE, *TRANSPOSED)  # of one kernel
POOLINGS = (keras.layers.AveragePooling1D, keras.layers.AveragePooling2D, keras.layers.AveragePooling3D)
GLOBAL_POOLINGS = (keras.layers.GlobalAveragePooling1D, keras.layers.GlobalAveragePooling2D,
                   keras.layers.GlobalAveragePooling3D)
_LINEAR = (*WEIGHTED, *SEPARABLE, *POOLINGS, *GLOBAL_POOLINGS, keras.layers.ZeroPadding1D, keras.layers.ZeroPadding2D,
           keras.layers.ZeroPadding3D, keras.layers.Cropping1D, keras.layers.Cropping2D, keras.layers.Cropping3D,
           keras.layers.UpSampling1D, keras.layers.UpSampling2D, keras.layers.UpSampling3D, keras.layers.Flatten,
           keras.layers.Reshape, keras.layers.Permute, keras.layers.Identity, keras.layers.Rescaling)

_REMEDIES = ((MaxPoolGate, "which position of a window passes follows from all steps until then"),
             (keras.layers.BatchNormalization, "tfspike.ThresholdNorm normalises a spike train or its currents"),
             (keras.layers.Dropout, "tfspike.WindowDropout holds one mask for the window"),
             (keras.Model, "models within a window are looked into where they are functional or sequential, of one "
                           "input and one output, and no two layers of the whole network have one name"),
             (keras.layers.Layer, "tfspike.OverTime around a layer applies it to every step alone"),
             (keras.Operation, "a layer that does the same, within tfspike.OverTime, is applied to every step alone"))


def is_linear(layer: keras.layers.Layer) -> bool:
    """Whether a layer, not of neurons, gives the mean of its outputs for the mean of its inputs."""
    if isinstance(layer, keras.layers.Activation):
        return False
    if not isinstance(layer, OverTime):
        return True
    return _is_linear_synapse(layer.layer)


def _is_linear_synapse(inner: keras.layers.Layer) -> bool:
    if type(inner) is keras.Sequential:
        return all(map(_is_linear_synapse, inner.layers))
    if isinstance(inner, keras.layers.MaxPooling2D) and set(inner.pool_size) == {1}:
        return True  # picks pixels
    if not isinstance(inner, _LINEAR) or _own_method(inner):
        return False
    return getattr(inner, "activation", None) in (None, keras.activations.linear)


def own_synapse(layer: keras.layers.Layer) -> str | None:
    """The first method that a subclass of one of Keras' linear layers has of its own, or what Keras does in place of
    multiplying with `layer.kernel.value`; None where it does no more than that."""
    return _own_method(layer) or altered(layer)


def _own_method(layer: keras.layers.Layer) -> str | None:
    kind = next((kind for kind in _LINEAR if isinstance(layer, kind)), None)
    return None if kind is None else own_code(layer, kind)


def altered(layer: keras.layers.Layer) -> str | None:
    """The method of Keras that has put other weights in place of a layer's kernel, or None."""
    if layer.quantization_mode is not None:
        return "quantize"
    return "enable_lora" if getattr(layer, "lora_enabled", False) else None


def own_code(layer: Any, base: type | None = None) -> str | None:
    """The first method of a layer that is its own where a path other than the reference path would not call it.

    Args:
      layer: any layer or operation.
      base: the class whose methods another path replaces; None looks it up.
    """
    bases = _BASES if base is None else ((base, frozenset[str]()),)
    for kind, shared in bases:
        if isinstance(layer, kind):
            return "call" if "call" in vars(layer) else _overridden(type(layer).__mro__, kind, shared)
    return None


def _overridden(order: tuple[type, ...], base: type, shared: frozenset[str]) -> str | None:
    """The first attribute of `base` that a class in front of it has of its own, but for those `shared`."""
    for part in order[:order.index(base)]:
        for name in vars(part):
            special = name.startswith("__") and name != "__call__"
            if not special and name not in _ON_EVERY_PATH | shared and hasattr(base, name):
                return name
    return None


def remedy_for_mixing(layer: Any) -> str | None:
    """What to do about a layer of the window that may mix its steps; None where it treats every step alone."""
    if not _mixes_steps(layer):
        return None
    return next(remedy for kind, remedy in _REMEDIES if isinstance(layer, kind))


def _mixes_steps(layer: Any) -> bool:
    """Whether a layer of the window is not known to treat every step alone."""
    if isinstance(layer, keras.layers.Concatenate):
        return layer.axis in (0, 1)
    if isinstance(layer, keras.layers.Activation):  # a function of the user's own may do anything
        return getattr(keras.activations, getattr(layer.activation, "__name__", ""), None) is not layer.activation
    return not any(isinstance(layer, base) for base, _ in _BASES)
