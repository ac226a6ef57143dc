"""A convolution's gradient by products of matrices against TensorFlow's own."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfspike.engine import convolution


@pytest.mark.parametrize(("size", "stride", "padding"), [
    (3, 1, "same"), (5, 1, "same"), (2, 1, "same"), (1, 1, "valid"), (3, 1, "valid"), (3, 2, "valid"), (1, 2, "valid"),
    (2, 3, "valid")])
@pytest.mark.parametrize("image", [(8, 8), (7, 5), (3, 4)])
def test_value_and_both_gradients_are_those_of_conv2d(size: int, stride: int, padding: str, image: tuple) -> None:
    random = np.random.default_rng(0)
    x, kernel = (tf.constant(random.normal(size=shape), tf.float32) for shape in ((4, *image, 3), (size, size, 3, 6)))
    found = []
    for convolve in (lambda: convolution.convolve(x, kernel, stride, padding),
                     lambda: tf.nn.conv2d(x, kernel, stride, padding.upper())):
        with tf.GradientTape() as tape:
            tape.watch([x, kernel])
            y = convolve()
        delta = tf.constant(np.random.default_rng(1).normal(size=y.shape), tf.float32)
        found.append((y, *tape.gradient(y, [x, kernel], output_gradients=delta)))
    for got, expected in zip(*found):
        assert got.shape == expected.shape and np.abs(expected).max() > 0.5
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_a_tap_out_of_place_would_be_seen() -> None:
    """Two taps exchanged is the error to fear; the comparison above must not forgive it."""
    random = np.random.default_rng(0)
    x, delta = (tf.constant(random.normal(size=(4, 8, 8, channels)), tf.float32) for channels in (3, 6))
    right = convolution._into_kernel(x, delta, (3, 3), 1, "same").numpy()
    assert not np.allclose(right, right[:, ::-1], atol=1e-2) and not np.allclose(right, right[::-1], atol=1e-2)


SMALL, LARGE = (None, 5, 8, 8, 128), (None, 5, 16, 16, 128)


@pytest.mark.parametrize(("options", "shape", "dtype", "expected"), [
    ({}, SMALL, "bfloat16", True),
    ({}, SMALL, "float32", False),
    ({}, LARGE, "bfloat16", False),
    ({"strides": 2, "padding": "valid"}, LARGE, "bfloat16", True),
    ({"strides": 2}, LARGE, "bfloat16", False),  # TensorFlow's padding of strided kernels is not centred
    ({"strides": (1, 2), "padding": "valid"}, SMALL, "bfloat16", False),
    ({"filters": 64}, SMALL, "bfloat16", False),
    ({"use_bias": True}, SMALL, "bfloat16", False),
    ({"activation": "relu"}, SMALL, "bfloat16", False),
    ({"dilation_rate": 2}, SMALL, "bfloat16", False),
    ({"groups": 2}, SMALL, "bfloat16", False),
    ({"data_format": "channels_first"}, SMALL, "bfloat16", False),
    ({}, (None, 5, None, None, 128), "bfloat16", False),
])
def test_it_is_taken_where_it_gains_and_means_the_same(options: dict[str, Any], shape: tuple, dtype: str,
                                                       expected: bool) -> None:
    layer = keras.layers.Conv2D(**{"filters": 128, "kernel_size": 3, "padding": "same", "use_bias": False, **options})
    assert convolution.is_faster(layer, shape, dtype) is expected


def test_layers_that_may_compute_otherwise_are_left_alone() -> None:
    class Standardised(keras.layers.Conv2D):
        def convolution_op(self, inputs: Any, kernel: Any) -> Any:
            return super().convolution_op(inputs, kernel - tf.reduce_mean(kernel))

    assert not convolution.is_faster(Standardised(128, 3, padding="same", use_bias=False), SMALL, "bfloat16")
    assert not convolution.is_faster(keras.layers.Dense(128, use_bias=False), SMALL, "bfloat16")
