"""A function of tensors, traced once in a process for each kind of argument, whatever models and graphs call it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf


def shared(function: Callable[..., Any], compiled: bool = False, any_batch: bool = False) -> Callable[..., Any]:
    """`function` as a graph of its own, of which every caller holds one operation that refers to it.

    TensorFlow keeps what it compiles under the name of a traced function, for good. A `tf.function` for every model
    would be compiled again for each, and hold the graph that it was first called in.

    Args:
      function: of tensors, and of hashable constants; it has no gradient, and reads no variables.
      compiled: with XLA.
      any_batch: one tracing for every length of the first axis of the first argument, which the results share.
    """
    traced: dict[Any, Any] = {}

    def call(*args: Any) -> Any:
        args = tuple(tf.convert_to_tensor(arg) if isinstance(arg, np.ndarray) else arg for arg in args)
        key = tuple(tf.TensorSpec(_shape(arg, any_batch and i == 0), arg.dtype) if tf.is_tensor(arg) else arg
                    for i, arg in enumerate(args))
        if key not in traced:
            if watched():
                return function(*args)

            def of_tensors(*tensors: tf.Tensor) -> Any:
                given = iter(tensors)
                return function(*(next(given) if isinstance(part, tf.TensorSpec) else part for part in key))

            with tf.init_scope():
                traced[key] = tf.function(of_tensors, jit_compile=compiled or None, autograph=False)\
                    .get_concrete_function(*(part for part in key if isinstance(part, tf.TensorSpec)))
        # No gradient passes through: TensorFlow would prepare one for every call
        result = traced[key](*(tf.stop_gradient(arg) for arg in args if tf.is_tensor(arg)))
        if any_batch and not tf.executing_eagerly():
            tf.nest.map_structure(lambda x: x.set_shape([args[0].shape[0], *x.shape[1:]]), result)
        return result

    return call


def watched() -> bool:
    """Whether TensorFlow adds operations of its own to graphs (`tf.debugging.enable_check_numerics`).

    XLA does not know them, and what is traced now would keep them for good.
    """
    with tf.Graph().as_default() as graph:
        tf.add(tf.constant(1.0), 1.0)
    return any("Debug" in operation.type or "CheckNumerics" in operation.type for operation in graph.get_operations())


def _shape(tensor: tf.Tensor, any_batch: bool) -> list[int | None]:
    return [None, *tensor.shape[1:]] if any_batch else list(tensor.shape)
