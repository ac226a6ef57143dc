"""What passes over a window are given, hand from chunk to chunk, and leave behind (`tfspike.engine.engine`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfspike.engine import plan as plans
from tfspike.engine.events.runner import Passed
from tfspike.neurons.gradients import NeuronState


class Record(NamedTuple):
    """What a forward pass leaves behind.

    Attributes:
      output: V_T / T, `[B, classes]` float32.
      states: final state of every spiking layer, in the order of the forward pass.
      input_rate: mean of the encoded input over the window, `[B, ...]`.
      bits: recorded spikes of every spiking layer, `[chunks, ...]`, as `kernels.stored` keeps them; empty unless asked
        for.
      derivatives: recorded h(x_t) of every spiking layer with a surrogate (`SlopeRule.recorded`), `[chunks, steps, B,
        ...]`, 0 behind the last step; empty unless asked for.
      moments: mean and variance of every normalisation, in the order of the forward pass; empty in inference.
      penalties: what the `activity_regularizer`s add to the loss, one number for every call in `Engine.penalised`.
      passed: what the event-driven path left behind, where it was taken.
    """

    output: tf.Tensor
    states: list[NeuronState]
    input_rate: tf.Tensor
    bits: list[tf.Tensor]
    derivatives: list[tf.Tensor]
    moments: list[tuple[tf.Tensor, tf.Tensor]]
    penalties: Sequence[tf.Tensor] = ()
    passed: Passed | None = None


class Outputs(NamedTuple):
    """What the differentiable function of the weights returns, and what the gradient comes in."""

    output: tf.Tensor
    input_rate: tf.Tensor
    fired: list[tf.Tensor]  # spikes per record of every penalised layer, one number each
    states: list[NeuronState]
    moments: list[tuple[tf.Tensor, tf.Tensor]]


class Given(NamedTuple):
    """What every pass over one window is given."""

    inputs: tf.Tensor  # of the encoder, `[B, ...]`
    key: tf.Tensor  # of its noise
    masks: dict[plans.Call, tf.Tensor]  # of dropout layers, `[B, ...]`
    training: bool
    weights: Sequence[Any]  # the variables that are trained
    values: Sequence[tf.Tensor]  # what is read in their place
    fixed: Sequence[tuple[Any, tf.Tensor]]  # the other variables of the window, and what is read in theirs

    def substituted(self) -> Any:
        """Within it layers read the values where they would read variables."""
        return keras.StatelessScope(state_mapping=[*zip(self.weights, self.values), *self.fixed], collect_losses=True)


class Carried(NamedTuple):
    """What goes from one chunk to the next."""

    states: list[NeuronState]
    membrane: tf.Tensor  # of the readout
    total: tf.Tensor  # of the encoded input
    bits: list[tf.TensorArray]
    derivatives: list[tf.TensorArray]


class Demand(NamedTuple):
    """What the loss asks of the spikes of one layer directly, besides what comes through the layers behind it.

    Attributes:
      of_count: dL/dN, `[B, ...]`, the same for the spikes of all steps; None where nothing depends on N.
      of_spikes: dL/d(sum of s_t^2 / 2), a number; None where the layer has no penalty.
    """

    of_count: tf.Tensor | None
    of_spikes: tf.Tensor | None

    def upstream(self, spikes: tf.Tensor, factor: int) -> tf.Tensor:
        """dL/ds_t of spikes `[steps, B, ...]` for a factor of 1; dL/dr of rates `[1, B, ...]` for a factor of T."""
        asked = tf.zeros([1], tf.float32)
        if self.of_count is not None:
            asked += self.of_count[tf.newaxis]
        if self.of_spikes is not None:
            asked += self.of_spikes * tf.cast(spikes, tf.float32)
        return tf.broadcast_to(tf.cast(factor * asked, spikes.dtype), tf.shape(spikes))
