"""The ANN twin of a spiking network: the same stack with ReLU in place of LIF neurons, and without time.

    twin = models.create("vgg9", (32, 32, 3), 10, timesteps=100, neuron="relu")

The twin is derived from the spiking model's plan, so that no network has to be described twice: synapses stay what they
are, a LIF neuron becomes a ReLU, average pooling loses the pooling neuron behind it, the readout becomes the logits,
and a normalisation over time and batch becomes one over the batch. Weights have the same shapes, order and first
values; layers keep their names, with "relu" for "lif", so that a spiking network can begin with its twin's weights.

With `levels` its ReLUs have a learnt ceiling and L steps up to it (`tfspike.neurons.quantised`), which
integrate-and-fire neurons compute in L time steps. `tfspike.conversion` makes spiking networks of either kind.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfspike.engine import plan as plans
from tfspike.errors import UserError
from tfspike.models.spiking_model import SpikingModel
from tfspike.models.traced_once import TracedOnce
from tfspike.neurons.layers import LIF, PoolingIF
from tfspike.neurons.normalisation import ThresholdNorm
from tfspike.neurons.over_time import OverTime, WindowDropout
from tfspike.neurons.quantised import QuantisedReLU

# What a window may hold besides neurons, synapses and dropout; it treats every step alone, and so needs no change.
_STEPWISE = (keras.layers.Add, keras.layers.Subtract, keras.layers.Average, keras.layers.Concatenate,
             keras.layers.Identity, keras.layers.Activation)


@keras.saving.register_keras_serializable("tfspike")
class ReluModel(TracedOnce):
    """`ReluModel(inputs, outputs)`: a functional Keras model that is a `tfspike.models.network.Network`.

    An ordinary Keras model in every way; it has one step of time and no spiking layers.
    """

    _is_made_here = True

    @property
    def is_spiking(self) -> bool:
        """False: it has no time."""
        return False

    @property
    def timesteps(self) -> int:
        """1: one pass is all."""
        return 1

    @property
    def spiking_layers(self) -> list[str]:
        """None of its neurons fire."""
        return []

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None,
             seed: int | tf.Tensor | None = None) -> tf.Tensor:
        """Images `[B, H, W, C]` to logits `[B, classes]`, float32; `seed` is not used, as nothing here is random."""
        return super().call(inputs, training=training, mask=mask)

    def observe(self, inputs: tf.Tensor, training: bool | None = None, seed: int | tf.Tensor | None = None,
                count_gradients: bool = True) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """`(logits [B, classes], {})`: what `SpikingModel.observe` returns, without spikes to count."""
        return self(inputs, training=training), {}


@keras.saving.register_keras_serializable("tfspike")
class Dropout(WindowDropout):
    """Inverted dropout on activations `[B, ...]`.

    Masks are keyed by training step and replica, as of all random numbers here; Keras' own layer keeps a generator
    that draws the same on every replica.
    """

    def call(self, activations: tf.Tensor, training: bool | None = None) -> tf.Tensor:  # type: ignore[override]
        if not training or self.rate == 0.0:
            return activations
        return activations * tf.cast(self.draw_mask(tf.shape(activations)), activations.dtype)

    def compute_output_spec(self, activations: keras.KerasTensor,  # type: ignore[override]
                            training: bool | None = None) -> keras.KerasTensor:
        return keras.KerasTensor(activations.shape, dtype=self.compute_dtype)


def twin(model: SpikingModel, levels: int = 0) -> ReluModel:
    """The ANN of the same stack, with the weights that `model` has now (of what is in front of its encoder, none).

    Args:
      model: a `SpikingModel` of convolutions, dense layers, normalisations, pooling, merges and dropout.
      levels: steps of its ReLUs, 0 for plain ones.

    Returns:
      A model from images `[B, H, W, C]` to logits `[B, classes]`.

    Raises:
      UserError: a layer has no counterpart in an ANN, or the model has no single window.
    """
    plan = model.required_plan()
    why = plan.whole()
    if why is not None:
        raise UserError(f"A twin stands for layers of the library and of Keras, and {why}.")
    inputs = keras.Input(plan.encoder.output.shape[2:], dtype="float32", name="input")
    # of every layer with weights: what holds them here, and in the twin
    copies: dict[Any, tuple[keras.layers.Layer, keras.layers.Layer]] = {}

    def counterpart(call: plans.Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layer = call.layer
        if isinstance(layer, PoolingIF):
            return args[0]
        if isinstance(layer, LIF):
            options = {"dtype": layer.dtype_policy, "name": f"{call.name.removesuffix('_lif')}_relu"}
            return (QuantisedReLU(levels, **options) if levels else keras.layers.ReLU(**options))(args[0])
        if layer not in copies:
            copies[layer] = _without_time(layer)
        return copies[layer][1](*args, **kwargs)

    values = plan.run_window(inputs, counterpart)
    # sums of logits are float32 under a mixed policy too, as the readout's are
    logits = keras.layers.Activation("linear", dtype="float32", name="readout")(values[plan.readout.source])

    def copied(call: plans.Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not isinstance(call.layer, keras.layers.Layer):
            return call.layer(*args, **kwargs)  # an operation
        if call.layer not in copies:
            copies[call.layer] = call.layer, plans.copy_of(call.layer)
        return copies[call.layer][1](*args, **kwargs)

    net = ReluModel(inputs, plan.behind_readout(logits, copied)[0], name=model.name)
    for ours, theirs in copies.values():
        theirs.set_weights(ours.get_weights())
    return net


def _without_time(layer: keras.layers.Layer) -> tuple[keras.layers.Layer, keras.layers.Layer]:
    """What of a layer of the window holds its weights, and the counterpart that shall have them."""
    if isinstance(layer, ThresholdNorm):
        # every value is one of a batch: the gradient is the plain one
        return layer, plans.copy_of(layer, gradient="event")
    if isinstance(layer, WindowDropout):
        return layer, Dropout.from_config(layer.get_config())
    if isinstance(layer, OverTime):
        return layer.layer, plans.copy_of(layer.layer, name=layer.name)
    if isinstance(layer, _STEPWISE):
        return layer, plans.copy_of(layer)
    raise UserError(f"Layer {layer.name!r}, a {type(layer).__name__}, has no counterpart in an ANN: a twin is made "
                    "of LIF neurons, pooling neurons, OverTime, normalisations, merges and dropout.")
