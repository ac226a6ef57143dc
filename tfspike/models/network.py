"""What training, evaluation and reports ask a network for, be it spiking or its ANN twin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import tensorflow as tf

from tfspike.engine.plan import Plan


@runtime_checkable
class Network(Protocol):
    """A Keras model of classes: `SpikingModel` or `ReluModel`.

    Attributes:
      is_spiking: whether its neurons fire, over a window of time steps.
      timesteps: T, steps in the window; 1 of an ANN.
      spiking_layers: names of the layers whose neurons fire, in the order of the forward pass; none of an ANN.
      variables, trainable_variables, losses: as of every Keras model.
    """

    @property
    def is_spiking(self) -> bool: ...

    @property
    def timesteps(self) -> int: ...

    @property
    def spiking_layers(self) -> list[str]: ...

    @property
    def variables(self) -> Sequence[Any]: ...

    @property
    def trainable_variables(self) -> Sequence[Any]: ...

    @property
    def losses(self) -> Sequence[Any]: ...

    def observe(self, inputs: tf.Tensor, training: bool | None = None, seed: int | tf.Tensor | None = None,
                count_gradients: bool = True) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """The output `[B, classes]` and the spike count of every neuron, `{layer: spikes per window [B, ...]}`."""
        ...


def window_of(model: Any) -> Plan | None:
    """The layer calls of a Keras model's window of time; None of an ANN, of a graph that has no single window, and of
    any other model."""
    return getattr(model, "plan", None)
