"""Rate-targeted initialisation: scale each layer's weights so that its neurons reach a stated mean rate on one batch.

Without normalisation layers, the mean rate of a deep spiking net drifts from layer to layer until it dies or
saturates. Currents are linear in the weights of the synapses in front of a neuron, so one simulation of the layer per
trial factor finds the scale; layers are set in the order of the forward pass (compare LSUV, Mishkin and Matas 2016).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfspike.checks import check_choice
from tfspike.engine import plan as plans
from tfspike.errors import UserError
from tfspike.models.spiking_model import SpikingModel
from tfspike.neurons import gradients
from tfspike.neurons.layers import PoolingIF, SpikingLayer
from tfspike.neurons.over_time import OverTime

_HALVINGS = 12
_WIDEST = 8.0  # factors from 2 ** -8 to 2 ** 8
_OF_THE_MOST = 0.5


def initialise_rates(model: SpikingModel, inputs: np.ndarray | tf.Tensor,
                     target_rate: float | Mapping[str, float] = 0.1, seed: int = 0) -> dict[str, float]:
    """Rescales the model's weights in place.

    Args:
      model: a `SpikingModel`.
      inputs: one batch of what the model takes, `[B, ...]`; 16 to 64 samples are enough.
      target_rate: mean rate wanted of every LIF layer, spikes per step, in (0, .5); or of each by its name, those that
        are not named keep their weights. Pooling neurons have no weights and follow the layer below.
      seed: keys the encoder's noise.

    Returns:
      The rate reached by every LIF layer, by name; a layer fed by weights of an earlier one alone is left out. A layer
      that no scale brings to the target has half of the most that one does.

    Raises:
      UserError: `target_rate` out of range or of a layer that is not there, or no scale makes a layer fire (its input
        is silent).
    """
    plan = model.required_plan()
    plan.refuse_own_neurons("Rate-targeted initialisation")
    targets = target_rate if isinstance(target_rate, Mapping) else dict.fromkeys(model.spiking_layers, target_rate)
    for name in targets:
        check_choice("target_rate", name, tuple(model.spiking_layers))
    if not all(0.0 < target < 0.5 for target in targets.values()):
        raise UserError(f"`target_rate` must be in (0, .5) spikes per step. Received: target_rate={target_rate!r}.")
    reached: dict[str, float] = {}
    # What scales each symbolic tensor: the weights since the last spiking layer, of those behind one another the last.
    kernels: dict[Any, list[keras.Variable]] = {}
    scaled: set[int] = set()  # a kernel that feeds several layers is scaled for the first of them

    def handler(call: plans.Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        feeding = [kernel for x in call.sources for kernel in kernels.get(x, [])]
        if isinstance(call.layer, OverTime):
            feeding = _last_weights(call.layer.layer) or feeding
        if isinstance(call.layer, SpikingLayer):
            free = [kernel for kernel in feeding if id(kernel) not in scaled]
            if free and not isinstance(call.layer, PoolingIF) and call.name in targets:
                scaled.update(map(id, free))
                reached[call.name] = _rescale(call, plan, values_before, free, targets[call.name])
            if any(id(kernel) in scaled for kernel in feeding):  # after the currents were computed
                args = (_currents(call, plan, values_before),)
            feeding = []
        for output in call.outputs:
            kernels[output] = feeding
        return plans.plain(call, args, kwargs)

    values = plans.run(plan.before, {plan.inputs[0]: tf.convert_to_tensor(inputs)})
    values = plans.run([plan.encoder], values,
                       lambda call, args, kwargs: call.layer(*args, training=False, seed=seed))
    for position, call in enumerate(plan.window):
        values_before = values
        values = plans.run([call], values, handler)
        live = _still_needed(plan, position + 1)
        values = {key: value for key, value in values.items() if key in live}
    return reached


def _last_weights(synapse: keras.layers.Layer) -> list[keras.Variable]:
    """The trained weights that what a synapse gives is proportional to: all of them, but for the first kernel of a
    separable convolution and the first layers of several, with which it would be scaled more than once."""
    if type(synapse) is keras.Sequential:
        return next(filter(None, map(_last_weights, reversed(synapse.layers))), [])
    first = getattr(synapse, "depthwise_kernel", None)
    return [weight for weight in synapse.trainable_variables if weight is not first]


def _synapses(call: plans.Call, plan: plans.Plan) -> list[plans.Call]:
    """The calls between a spiking layer and the spikes that reach it."""
    needed: list[plans.Call] = []
    wanted = set(call.sources)
    for earlier in reversed(plan.window[:plan.window.index(call)]):
        if set(earlier.outputs) & wanted and not isinstance(earlier.layer, SpikingLayer):
            needed.insert(0, earlier)
            wanted.update(earlier.sources)
    return needed


def _still_needed(plan: plans.Plan, position: int) -> set[Any]:
    """Tensors that calls from `position` on read: whole windows of all layers at once would fill the memory."""
    needed: set[Any] = set()
    for call in plan.window[position:]:
        needed.update(call.sources)
        if isinstance(call.layer, SpikingLayer):
            for synapse in _synapses(call, plan):
                needed.update(synapse.sources)
    return needed


def _currents(call: plans.Call, plan: plans.Plan, values: plans.Values) -> tf.Tensor:
    """The currents into a spiking layer, computed anew from the spikes below it with the weights as they are now."""
    return plans.run(_synapses(call, plan), values)[call.source]


def _rescale(call: plans.Call, plan: plans.Plan, values: plans.Values, weights: list[keras.Variable],
             target: float) -> float:
    """Scales `weights` until the layer's mean rate is at the target, by bisection of the factor's logarithm.

    Where most currents of a layer are negative, as in an ANN's, no scale may bring it there: its rate stops growing
    while its weights, and the gradient that it passes on with them, grow on. Half of the most is taken then.
    """
    with_weights = tf.cast(_currents(call, plan, values), tf.float32)  # another layer may have scaled some of them
    originals = [tf.convert_to_tensor(weight.value) for weight in weights]
    for weight in weights:
        weight.assign(tf.zeros_like(weight.value))
    without = tf.cast(_currents(call, plan, values), tf.float32)  # an identity shortcut's spikes have no weight

    @tf.function
    def rate_at(factor: tf.Tensor) -> tf.Tensor:
        currents = without + factor * (with_weights - without)
        state = call.layer.get_initial_state(tf.shape(currents)[1:])
        spikes, _ = gradients.simulate(currents, state, call.layer.neuron)
        return tf.reduce_mean(spikes)

    low, high = -_WIDEST, _WIDEST
    most = float(rate_at(tf.constant(2.0 ** high)))
    wanted = target if most >= target else most * _OF_THE_MOST
    for _ in range(_HALVINGS + 4):
        middle = (low + high) / 2.0
        if float(rate_at(tf.constant(2.0 ** middle))) < wanted:
            low = middle
        else:
            high = middle
    factor = 2.0 ** high
    for weight, original in zip(weights, originals):
        weight.assign(original * factor)
    rate = float(rate_at(tf.constant(factor)))
    if rate == 0.0:
        raise UserError(f"No scale of its weights makes layer {call.name} fire: its input is silent on this "
                        "batch. Give a batch that is not blank, or more time steps (--timesteps).")
    return rate
