"""`tf.custom_gradient` that ends with the graph it was used in.

TensorFlow enters the gradient of every call of a `tf.custom_gradient` function in a graph into a table of the process,
for good, and with it all tensors that it refers to, so their whole graph: 20 MiB for each LeNet that was trained and
dropped. Here the table holds a weak reference, and the graph itself holds the gradient.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import tensorflow as tf

_COLLECTION = "tfspike/custom_gradients"
WithGradient = tuple[Any, Callable[..., Any]]  # a tensor or a tuple of tensors, and their gradient


def custom_gradient(function: Callable[..., WithGradient]) -> Callable[..., Any]:
    """The decorator `tf.custom_gradient` for functions of tensors, which read no variables.

    Args:
      function: takes tensors; returns `(a tensor or a tuple of tensors, gradient)`, as `tf.custom_gradient` has it.

    Returns:
      A function of tensors: what `function` returns first, with that gradient.
    """

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        if tf.executing_eagerly():  # the tape holds the gradient, and the table stays as it is
            return tf.custom_gradient(function)(*args)
        graph = tf.compat.v1.get_default_graph()
        results: list[Any] = []
        single = False

        def weakly(*args: Any) -> tuple[list[Any], Callable[..., Any]]:
            nonlocal single
            outputs, grad = function(*args)
            graph.add_to_collection(_COLLECTION, grad)
            held = weakref.ref(grad)
            single = tf.is_tensor(outputs)
            results.extend([outputs] if single else outputs)
            return results, lambda *upstream: held()(*upstream)  # type: ignore[misc]

        outputs = tf.custom_gradient(weakly)(*args)
        results[:] = [0.0] * len(results)  # the table holds this list too, of which only the length is asked for
        return outputs[0] if single else tuple(outputs)

    return call
