"""The decorator gives what TensorFlow's own gives; that it ends with its graph is shown in test_memory.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfspike.neurons.custom_gradient import custom_gradient


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("graph", [True, False])
def test_a_custom_gradient_is_that_of_tensorflow(single: bool, graph: bool) -> None:
    def function(x: tf.Tensor, y: tf.Tensor) -> Any:
        return (x * y if single else (x * y, x + y)), lambda *up: (3.0 * up[0], 5.0 * up[-1])

    def gradients(decorator: Any, x: tf.Tensor) -> Any:
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            found = tf.nest.flatten(decorator(function)(x, 2.0 * x))
        return [found, [tape.gradient(part, x) for part in found], tape.gradient(found, x)]  # asked for repeatedly

    run = tf.function(gradients, autograph=False) if graph else gradients
    ours, theirs = (run(decorator, tf.constant([1.0, 2.0])) for decorator in (custom_gradient, tf.custom_gradient))
    tf.nest.map_structure(np.testing.assert_array_equal, ours, theirs)


def test_a_custom_gradient_in_a_loop_is_that_of_tensorflow() -> None:
    def through(decorator: Any) -> np.ndarray:
        @tf.function(autograph=False)
        def run(x: tf.Tensor) -> tf.Tensor:
            square = decorator(lambda x: (x * x, lambda up: 7.0 * x * up))
            with tf.GradientTape() as tape:
                tape.watch(x)
                out = tf.while_loop(lambda i, _: i < 3, lambda i, x: (i + 1, square(x)), (0, x))[1]
            return tape.gradient(out, x)
        return run(tf.constant([1.1, -0.5])).numpy()

    np.testing.assert_array_equal(through(custom_gradient), through(tf.custom_gradient))
    assert np.abs(through(custom_gradient)).min() > 0
