"""One tracing in a process for each kind of argument."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfspike.neurons.shared_function import shared


def test_a_shared_function_is_traced_once_for_all_graphs() -> None:
    traced: list[Any] = []

    @shared
    def double(x: tf.Tensor, factor: float) -> tf.Tensor:
        traced.append((x.shape, factor))
        return factor * x

    for _ in range(3):
        out = tf.function(lambda x: double(x, 2.0) + double(x, 2.0), autograph=False)(tf.ones(3))
        np.testing.assert_array_equal(out, np.full(3, 4.0))
    np.testing.assert_array_equal(double(tf.ones(3), 3.0), np.full(3, 3.0))
    assert traced == [((3,), 2.0), ((3,), 3.0)]


def test_a_shared_function_for_any_batch_keeps_the_shapes_of_each() -> None:
    traced: list[Any] = []

    def negative(x: tf.Tensor) -> tf.Tensor:
        traced.append(x.shape)
        return -x

    function = shared(negative, any_batch=True)
    shapes = []
    for batch in (1, 5, None):
        tf.function(lambda x: shapes.append(function(x).shape.as_list()), autograph=False).get_concrete_function(
            tf.TensorSpec((batch, 3)))
    assert shapes == [[1, 3], [5, 3], [None, 3]] and len(traced) == 1
    np.testing.assert_array_equal(function(tf.ones((4, 3))), -np.ones((4, 3)))


def test_callers_hold_one_operation_and_no_gradient() -> None:
    call = shared(lambda x: 2.0 * x, compiled=True)
    graph = tf.function(call, autograph=False).get_concrete_function(tf.TensorSpec((2, 3))).graph
    assert not [op for op in graph.get_operations() if op.type == "Mul"]
    assert sum("PartitionedCall" in op.type for op in graph.get_operations()) == 1
    with tf.GradientTape() as tape:
        tape.watch(x := tf.ones((2, 3)))
        y = call(x)
    np.testing.assert_array_equal(y, np.full((2, 3), 2.0))
    assert tape.gradient(y, x) is None
