"""A `SpikingModel` within another Keras model: what lies in front of it there, which its own graph does not show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfspike.neurons.custom_gradient import WithGradient, custom_gradient

_READS = ("ReadVariableOp", "ResourceGather")

INSTEAD = ("use model.call_layers(x), with encoder=\"direct\" or PoissonEncoder(..., straight_through=True); within "
           "another model, behind layers with weights, compile that one with run_eagerly=False")


def has_weights_in_front(inputs: Any) -> bool:
    """Whether a graph computes one of these tensors from a weight, be it trained or frozen: a tape watches both.

    Variables of whole numbers are no weights: they are the seeds of layers that augment images.

    Not in eager execution, where nothing tells what a value was computed from.
    """
    if tf.executing_eagerly():
        return False
    ahead, seen = [x.op for x in keras.tree.flatten(inputs) if tf.is_tensor(x) and not hasattr(x, "numpy")], set[str]()
    while ahead:
        operation = ahead.pop()
        if operation.type in _READS and operation.outputs[0].dtype.is_floating:
            return True
        if operation.name not in seen:
            seen.add(operation.name)
            ahead += [x.op for x in operation.inputs]
    return False


def watched(inputs: Any, say: Callable[[], None]) -> Any:
    """`inputs`; `say` is called if a tape within the graph wants a gradient of them.

    Not where TensorFlow computes one for a tape around the graph, asked for or not (`encoders.refuse_gradient`): that
    is done in a graph of its own.
    """

    @custom_gradient
    def identity(x: tf.Tensor) -> WithGradient:
        def grad(upstream: tf.Tensor) -> tf.Tensor:
            if upstream.graph is x.graph:
                say()
            return upstream
        return tf.identity(x), grad

    return keras.tree.map_structure(lambda x: identity(x) if tf.is_tensor(x) and x.dtype.is_floating else x, inputs)


def cause_of_nan(name: str, encoder: keras.layers.Layer) -> str:
    """Says why layers in front of this model are not trained."""
    return (f"{name} passes no gradient to layers in front of it, because of {encoder.name} "
            f"({type(encoder).__name__}): what is trained there becomes NaN. Freeze it (layer.trainable = False), or "
            "take encoder=\"direct\" or PoissonEncoder(..., straight_through=True).")


def by_layers(name: str) -> str:
    """Says why they are trained in the slower way."""
    return (f"{name} is trained layer by layer, which takes more time and memory: layers with weights lie in front of "
            "it in another model, and the engine passes no gradient to them. If they are frozen, make one SpikingModel "
            "of all, with them in front of its encoder.")
