"""Block functions, spike train to spike train: what VGG and residual networks are stacked from."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras

from tfspike.neurons.layers import LIF, OverTime, PoolingIF, WindowDropout
from tfspike.neurons.normalisation import ThresholdNorm
from tfspike.neurons.surrogates import LEAK_AWARE


@dataclasses.dataclass
class Builder:
    """What every block of one network shares, and the count that gives each layer a seed of its own.

    Attributes:
      leak, threshold: of the LIF neurons.
      gradient: "event" or "rate".
      dropout: share of neurons silenced per window.
      kappa: weights start normal with standard deviation sqrt(kappa / fan_in).
      seed: of the network.
      dtype: dtype policy; None for the global one.
      surrogate, surrogate_width: what stands for the derivative of a spike (`tfspike.surrogates`).
      norm: "tdbn" normalises the currents of every spiking convolution and dense layer; None does not.
      pooling: "neuron" puts pooling neurons behind every average pooling; "average" leaves them out.
    """

    leak: float
    threshold: float
    gradient: str
    dropout: float
    kappa: float
    seed: int
    dtype: Any = None
    surrogate: str = LEAK_AWARE
    surrogate_width: float = 1.0
    norm: str | None = None
    pooling: str = "neuron"
    drawn: int = 0

    def next_seed(self) -> int:
        """A seed for the next layer: layers of one network, and networks of neighbouring seeds, never share one."""
        self.drawn += 1
        return (self.seed * 10_007 + self.drawn) % (2**31 - 1)

    def weights(self) -> keras.initializers.Initializer:
        """Normal with standard deviation sqrt(kappa / fan_in) (He et al. 2015 for kappa = 2)."""
        return keras.initializers.VarianceScaling(self.kappa, "fan_in", "untruncated_normal", seed=self.next_seed())


def conv(x: Any, b: Builder, filters: int, kernel: int, stride: int, name: str) -> Any:
    """A convolution without bias at every step; (kernel - 1) / 2 pixels of padding on every side at any stride."""
    padding = "same" if stride == 1 else "valid"
    if stride > 1 and kernel > 1:
        # "same" would pad one side only, and centre the windows off the pixels that a strided shortcut picks
        x = OverTime(keras.layers.ZeroPadding2D((kernel - 1) // 2, dtype=b.dtype), name=f"{name}_pad")(x)
    layer = keras.layers.Conv2D(filters, kernel, stride, padding, use_bias=False, kernel_initializer=b.weights(),
                                dtype=b.dtype, name="conv")
    return OverTime(layer, name=name)(x)


def lif(x: Any, b: Builder, name: str) -> Any:
    """LIF neurons and, where the network has it, dropout on their spikes."""
    x = LIF(b.leak, b.threshold, b.gradient, b.surrogate, b.surrogate_width, dtype=b.dtype, name=f"{name}_lif")(x)
    if b.dropout:
        x = WindowDropout(b.dropout, seed=b.next_seed(), dtype=b.dtype, name=f"{name}_dropout")(x)
    return x


def norm(x: Any, b: Builder, name: str, paths: int = 1) -> Any:
    """Where the network has it, normalisation of currents, of which `paths` add up in front of the neurons."""
    if b.norm is None:
        return x
    return ThresholdNorm(b.threshold, 1 / math.sqrt(paths), b.gradient, dtype=b.dtype, name=f"{name}_norm")(x)


def conv_lif(x: Any, b: Builder, filters: int, kernel: int, name: str) -> Any:
    """Convolution, normalisation and LIF neurons."""
    return lif(norm(conv(x, b, filters, kernel, 1, name), b, name), b, name)


def pool(x: Any, b: Builder, name: str) -> Any:
    """2x2 average pooling and, where the network has them, pooling neurons; an odd last row or column is dropped."""
    if b.pooling == "average":
        return OverTime(keras.layers.AveragePooling2D(2, dtype=b.dtype), name=name)(x)
    x = OverTime(keras.layers.AveragePooling2D(2, dtype=b.dtype), name=f"{name}_average")(x)
    return PoolingIF(gradient=b.gradient, surrogate=b.surrogate, surrogate_width=b.surrogate_width, dtype=b.dtype,
                     name=name)(x)


def residual_block(x: Any, b: Builder, filters: int, strides: tuple[int, int], name: str) -> Any:
    """conv a - LIF - conv b, the shortcut's current added to the current of the second LIF (no neuron on it).

    Main path and shortcut see the same, masked, spikes. The shortcut is a 1x1 convolution where the channels change,
    else the spikes themselves, subsampled by the block's stride.
    """
    stride = strides[0] * strides[1]
    main = lif(norm(conv(x, b, filters, 3, strides[0], f"{name}_conv_a"), b, f"{name}_conv_a"), b, f"{name}_a")
    main = norm(conv(main, b, filters, 3, strides[1], f"{name}_conv_b"), b, f"{name}_conv_b", paths=2)
    if x.shape[-1] != filters:
        shortcut = norm(conv(x, b, filters, 1, stride, f"{name}_shortcut"), b, f"{name}_shortcut", paths=2)
    elif stride > 1:
        shortcut = OverTime(keras.layers.AveragePooling2D(1, stride, dtype=b.dtype), name=f"{name}_shortcut")(x)
    else:
        shortcut = x
    current = keras.layers.Add(dtype=b.dtype, name=f"{name}_current")([main, shortcut])
    return lif(current, b, f"{name}_b")


def dense(x: Any, b: Builder, units: int, name: str) -> Any:
    """A dense layer without bias at every step."""
    layer = keras.layers.Dense(units, use_bias=False, kernel_initializer=b.weights(), dtype=b.dtype, name="dense")
    return OverTime(layer, name=name)(x)
