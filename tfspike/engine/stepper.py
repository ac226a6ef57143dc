"""A window in stretches of steps, a pure function of explicit state: whoever looks into a network steps it with this.

Analysis, rasters and histograms, exports and their verification read what they need from a `Stretch`. It has no
gradient and runs ordinary TensorFlow operations alone, eagerly or in a graph of any batch size. The engine
(`tfspike.engine.engine`), which trains and predicts, keeps loops of its own and is tested against this one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import tensorflow as tf

from tfspike.engine import plan as plans
from tfspike.neurons import gradients
from tfspike.neurons.layers import OpenNeurons, SpikingLayer, Window

State = dict[str, tf.Tensor]  # membranes `[B, ...]` float32, by the name of their call; the readout's is the last


class Stretch(NamedTuple):
    """Some steps of a window.

    Attributes:
      readout: V_t, `[steps, B, classes]` float32.
      state: after the last of them.
      layers: what every spiking layer did, by the name of its call, in the order of the forward pass.
      values: of every symbolic tensor of the window, `[steps, B, ...]`.
    """

    readout: tf.Tensor
    state: State
    layers: dict[str, Window]
    values: plans.Values


def shapes(plan: plans.Plan) -> dict[str, tuple[int, ...]]:
    """The shape of every membrane of a `State`, without the batch.

    Raises:
      UserError: one of them is open.
    """
    plan.refuse_open_size("A window in stretches")
    return {call.name: tuple(call.source.shape[2:]) for call in (*plan.spiking, plan.readout)}


def initial_state(plan: plans.Plan, batch: int | tf.Tensor) -> State:
    """The state before the first step: 0, but for neurons that start elsewhere."""
    layers = {call.name: call.layer for call in plan.spiking}
    return {name: layers[name].get_initial_state((batch, *shape)).membrane if name in layers
            else tf.zeros((batch, *shape), tf.float32) for name, shape in shapes(plan).items()}


def advance(plan: plans.Plan, train: tf.Tensor, state: State) -> Stretch:
    """Some steps, in inference.

    Args:
      plan: of neurons and a readout without code of their own (`Plan.refuse_own_neurons`); where `Plan.whole` has a
        reason, the window must be given in one stretch.
      train: encoded input, `[steps, B, ...]`, the number of steps known.
      state: before the first of them.
    """
    layers: dict[str, Window] = {}
    after = dict(state)

    def handler(call: plans.Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not isinstance(call.layer, SpikingLayer):
            return plans.plain(call, args, kwargs)
        currents = tf.cast(args[0], call.layer.compute_dtype)
        layers[call.name] = (call.layer.window(currents) if isinstance(call.layer, OpenNeurons) else
                             fire(currents, state[call.name], call.layer.neuron))
        after[call.name] = layers[call.name].membranes[-1]
        return layers[call.name].spikes

    values = plan.run_window(tf.cast(train, plan.encoder.layer.compute_dtype), handler)
    current, membrane, readout = values[plan.readout.source], state[plan.readout.name], []
    for t in range(train.shape[0]):
        membrane = gradients.integrate(membrane, current[t], plan.readout.layer.factor)
        readout.append(membrane)
    after[plan.readout.name] = membrane
    return Stretch(tf.stack(readout), after, layers, values)


def through(plan: plans.Plan, trains: Iterable[tf.Tensor], batch: int | tf.Tensor) -> Iterator[Stretch]:
    """`advance` through a window from its first step on, given one encoded stretch after the other."""
    state = initial_state(plan, batch)
    for train in trains:
        stretch = advance(plan, train, state)
        state = stretch.state
        yield stretch


def fire(currents: tf.Tensor, membrane: tf.Tensor, neuron: gradients.Neuron) -> Window:
    """Some steps of a layer's neurons, from currents `[steps, B, ...]` and the membrane before, `[B, ...]` float32."""
    spikes, potentials, membranes = [], [], []
    for t in range(currents.shape[0]):
        u, fired, membrane = gradients.fire(membrane, currents[t], neuron)
        spikes.append(tf.cast(fired, currents.dtype))
        potentials.append(u)
        membranes.append(membrane)
    return Window(tf.stack(spikes), tuple(potentials), tuple(membranes))
