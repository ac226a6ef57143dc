"""Block functions, spike train to spike train: what VGG and residual networks are stacked from."""

from __future__ import annotations

import math

import keras

from tfspike.models.settings import LayerSettings
from tfspike.neurons import noise
from tfspike.neurons.layers import LIF, PoolingIF
from tfspike.neurons.normalisation import ThresholdNorm
from tfspike.neurons.over_time import OverTime, WindowDropout


class Builder:
    """What every block of one network shares, and the count that gives each layer a seed of its own.

    Args:
      settings: of all layers.
    """

    def __init__(self, settings: LayerSettings):
        self.settings = settings
        self._drawn = 0

    def next_seed(self) -> int:
        """A seed for the next layer: layers of one network, and networks of neighbouring seeds, never share one."""
        self._drawn += 1
        return (self.settings.seed * 10_007 + self._drawn) % noise.LARGEST_SEED

    def weights(self) -> keras.initializers.Initializer:
        """Normal with standard deviation sqrt(kappa / fan_in) (He et al. 2015 for kappa = 2)."""
        return keras.initializers.VarianceScaling(self.settings.kappa, "fan_in", "untruncated_normal",
                                                  seed=self.next_seed())


def conv(x: keras.KerasTensor, b: Builder, filters: int, kernel: int, stride: int, name: str) -> keras.KerasTensor:
    """A convolution without bias at every step; (kernel - 1) / 2 pixels of padding on every side at any stride."""
    padding, dtype = "same" if stride == 1 else "valid", b.settings.dtype
    if stride > 1 and kernel > 1:
        # "same" would pad one side only, and centre the windows off the pixels that a strided shortcut picks
        x = OverTime(keras.layers.ZeroPadding2D((kernel - 1) // 2, dtype=dtype), name=f"{name}_pad")(x)
    layer = keras.layers.Conv2D(filters, kernel, stride, padding, use_bias=False, kernel_initializer=b.weights(),
                                dtype=dtype, name="conv")
    return OverTime(layer, name=name)(x)


def neurons(x: keras.KerasTensor, b: Builder, name: str) -> keras.KerasTensor:
    """LIF neurons, or those in their place."""
    s = b.settings
    kind = LIF if isinstance(s.neuron, str) else s.neuron
    return kind(s.leak, s.threshold, s.gradient, s.surrogate, s.surrogate_width, s.credit, s.reset, s.start, s.learn,
                s.running_start, s.homeostasis, feedback=s.feedback, dtype=s.dtype, name=f"{name}_lif")(x)


def lif(x: keras.KerasTensor, b: Builder, name: str) -> keras.KerasTensor:
    """Neurons and, where the network has it, dropout on their spikes."""
    s, x = b.settings, neurons(x, b, name)
    if s.dropout:
        x = WindowDropout(s.dropout, seed=b.next_seed(), dtype=s.dtype, name=f"{name}_dropout")(x)
    return x


def norm(x: keras.KerasTensor, b: Builder, name: str, paths: int = 1) -> keras.KerasTensor:
    """Where the network has it, normalisation of currents, of which `paths` add up in front of the neurons."""
    s = b.settings
    if s.norm is None:
        return x
    return ThresholdNorm(s.threshold, 1 / math.sqrt(paths), s.gradient, dtype=s.dtype, name=f"{name}_norm")(x)


def conv_norm(x: keras.KerasTensor, b: Builder, filters: int, kernel: int, stride: int, name: str,
              paths: int = 1) -> keras.KerasTensor:
    """Convolution and normalisation: the currents of a layer."""
    return norm(conv(x, b, filters, kernel, stride, name), b, name, paths)


def conv_lif(x: keras.KerasTensor, b: Builder, filters: int, kernel: int, name: str) -> keras.KerasTensor:
    """Convolution, normalisation and LIF neurons."""
    return lif(conv_norm(x, b, filters, kernel, 1, name), b, name)


def pool(x: keras.KerasTensor, b: Builder, name: str) -> keras.KerasTensor:
    """2x2 average pooling and, where the network has them, pooling neurons; an odd last row or column is dropped."""
    s = b.settings
    average = keras.layers.AveragePooling2D(2, dtype=s.dtype)
    if s.pooling == "average":
        return OverTime(average, name=name)(x)
    x = OverTime(average, name=f"{name}_average")(x)
    return PoolingIF(gradient=s.gradient, surrogate=s.surrogate, surrogate_width=s.surrogate_width, credit=s.credit,
                     feedback=s.feedback, dtype=s.dtype, name=name)(x)


def residual_block(x: keras.KerasTensor, b: Builder, filters: int, strides: tuple[int, int],
                   name: str) -> keras.KerasTensor:
    """conv a - LIF - conv b, the shortcut's current added to the current of the second LIF (no neuron on it).

    Main path and shortcut see the same, masked, spikes. The shortcut is a 1x1 convolution where the channels change,
    else the spikes themselves, subsampled by the block's stride.
    """
    main = _branch(x, b, filters, strides, name, paths=2)
    return lif(_joined(main, x, x, b, strides, name, paths=2), b, f"{name}_b")


def current_block(x: keras.KerasTensor, b: Builder, filters: int, strides: tuple[int, int], name: str,
                  fires: bool = False) -> keras.KerasTensor:
    """LIF - conv a - LIF - conv b, whose current is added to the current that came in: no neuron is on the shortcut.

    From the first block to the last a current is only ever added to (pre-activation: He et al. 2016b; Hu et al. 2021,
    MS-ResNet), so that the gradient reaches every block without having passed the slope of a neuron. The shortcut is a
    1x1 convolution of the block's spikes where the channels change, else the current, subsampled by the stride.

    Args:
      x: currents, or with `fires` a spike train, which needs no neurons in front of the block.

    Returns:
      Currents.
    """
    spikes = x if fires else lif(x, b, f"{name}_in")
    return _joined(_branch(spikes, b, filters, strides, name), x, spikes, b, strides, name)


def _branch(spikes: keras.KerasTensor, b: Builder, filters: int, strides: tuple[int, int], name: str,
            paths: int = 1) -> keras.KerasTensor:
    """conv a - LIF - conv b: the currents of a block's main path."""
    a = lif(conv_norm(spikes, b, filters, 3, strides[0], f"{name}_conv_a"), b, f"{name}_a")
    return conv_norm(a, b, filters, 3, strides[1], f"{name}_conv_b", paths)


def _joined(main: keras.KerasTensor, x: keras.KerasTensor, spikes: keras.KerasTensor, b: Builder,
            strides: tuple[int, int], name: str, paths: int = 1) -> keras.KerasTensor:
    """The main path's currents and the shortcut's: a 1x1 convolution of `spikes` where the channels change, else `x`,
    subsampled by the block's stride."""
    stride, filters, dtype = strides[0] * strides[1], main.shape[-1], b.settings.dtype
    if x.shape[-1] != filters:
        x = conv_norm(spikes, b, filters, 1, stride, f"{name}_shortcut", paths)
    elif stride > 1:
        x = OverTime(keras.layers.AveragePooling2D(1, stride, dtype=dtype), name=f"{name}_shortcut")(x)
    return keras.layers.Add(dtype=dtype, name=f"{name}_current")([main, x])


def dense(x: keras.KerasTensor, b: Builder, units: int, name: str) -> keras.KerasTensor:
    """A dense layer without bias at every step."""
    layer = keras.layers.Dense(units, use_bias=False, kernel_initializer=b.weights(), dtype=b.settings.dtype,
                               name="dense")
    return OverTime(layer, name=name)(x)
