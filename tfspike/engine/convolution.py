"""A convolution whose weights get their gradient from products of matrices: the faster way on CPUs for small maps.

dL/dW[i, j] is the product of the pixels of x that the kernel's tap (i, j) saw and of delta = dL/dy, over all images. In
bfloat16 TensorFlow's operation reaches 100 to 600 GFLOP/s on maps of 2x2 to 8x8 and on strided kernels, the products
600 to 900 (2 cores of an AMD EPYC, 128 to 512 channels, 40 to 256 images). On larger maps the copies of shifted pixels
cost more than they save, and in float32 there is nothing to save.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from tfspike.engine import known
from tfspike.neurons.custom_gradient import custom_gradient

_LARGEST_MAP = 64  # pixels of y
_FEWEST_CHANNELS = 128


def is_faster(layer: keras.layers.Layer, shape: tuple[int | None, ...], dtype: Any) -> bool:
    """Whether `convolve` is the faster way through a layer.

    Args:
      layer: any layer.
      shape: of its input, `[..., H, W, C]`.
      dtype: that it computes in.
    """
    if type(layer) is not keras.layers.Conv2D or tf.as_dtype(dtype) != tf.bfloat16:  # a subclass may compute otherwise
        return False
    if known.altered(layer):
        return False
    plain = (layer.dilation_rate == (1, 1) and layer.groups == 1 and not layer.use_bias
             and layer.activation is keras.activations.linear and layer.data_format == "channels_last"
             and (layer.padding == "valid" or layer.strides == (1, 1)) and layer.strides[0] == layer.strides[1])
    if not plain or None in shape[-3:]:
        return False
    _, height, width, filters = layer.compute_output_shape((None, *shape[-3:]))
    return height * width <= _LARGEST_MAP and min(shape[-1], filters) >= _FEWEST_CHANNELS


def macs_of(layer: keras.layers.Layer, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of a sample: every number of a kernel is used once per position of the output (dense layers
    and convolutions, depthwise, grouped and separable ones too), of a transposed convolution once per position of the
    input. Layers without a kernel have none.

    Args:
      layer: a built layer, or a `keras.Sequential` of some.
      input_shape, output_shape: of one sample.
    """
    if type(layer) is keras.Sequential:
        total = 0
        for part in layer.layers:
            behind = part.compute_output_shape((None, *input_shape))[1:]
            total, input_shape = total + macs_of(part, input_shape, behind), behind
        return total
    kernels = [kernel.shape for name in ("kernel", "depthwise_kernel", "pointwise_kernel")
               if (kernel := getattr(layer, name, None)) is not None]
    if not kernels:
        return 0
    shape, channels = output_shape, getattr(layer, "filters", None) or getattr(layer, "units", None) or output_shape[-1]
    if isinstance(layer, known.DEPTHWISE):
        channels = math.prod(kernels[0][-2:])
    elif isinstance(layer, known.TRANSPOSED):
        shape, channels = input_shape, kernels[0][-1]
    return sum(map(math.prod, kernels)) * math.prod(shape) // channels


def convolve(x: tf.Tensor, kernel: tf.Tensor, stride: int = 1, padding: str = "valid") -> tf.Tensor:
    """`tf.nn.conv2d`, in value and in gradient.

    Args:
      x: `[N, H, W, C]`; H, W and C are known.
      kernel: `[h, w, C, filters]`.
      stride: in both directions.
      padding: "valid", or "same" where stride is 1.
    """

    @custom_gradient
    def convolution(x: tf.Tensor, kernel: tf.Tensor) -> Any:
        def grad(delta: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            into_x = tf.nn.conv2d_transpose(delta, kernel, tf.shape(x), stride, padding.upper())
            return into_x, _into_kernel(x, delta, kernel.shape[:2], stride, padding)

        return tf.nn.conv2d(x, kernel, stride, padding.upper()), grad

    return convolution(x, kernel)


def _into_kernel(x: tf.Tensor, delta: tf.Tensor, size: Any, stride: int, padding: str) -> tf.Tensor:
    """dL/dW `[h, w, C, filters]` from x `[N, H, W, C]` and delta `[N, H', W', filters]`."""
    _, height, width, filters = delta.shape
    channels = x.shape[-1]
    if padding == "same":
        x = tf.pad(x, [[0, 0], *([(side - 1) // 2, side // 2] for side in size), [0, 0]])
    if stride > 1:  # pixels that one tap sees lie next to each other then
        x = tf.pad(x, [[0, 0], *([0, -side % stride] for side in x.shape[1:3]), [0, 0]])
        x = tf.nn.space_to_depth(x, stride)
    delta = tf.reshape(delta, [-1, filters])
    taps = []
    for i in range(size[0]):
        for j in range(size[1]):
            top, left, phase = i // stride, j // stride, (i % stride * stride + j % stride) * channels
            seen = x[:, top:top + height, left:left + width, phase:phase + channels]
            taps.append(tf.matmul(tf.reshape(seen, [-1, channels]), delta, transpose_a=True))
    return tf.reshape(tf.stack(taps), [*size, channels, filters])
