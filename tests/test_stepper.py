"""The stepper against the float64 oracle, the engine and the layers themselves: one window, in any stretches."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
import pytest
import tensorflow as tf

import nets
import oracle
from tfspike import LIF, Readout, SpikingModel
from tfspike.engine import stepper
from tfspike.neurons.encoders import SpikeInput

T, B, N = 7, 2, 5


def scene(leak: float = 0.9) -> tuple[SpikingModel, tf.Tensor]:
    """Convolutions, shortcuts and pooling, and a train `[T, B, ...]`."""
    model = nets.by_hand(nets.SPECS["residual"], T, leak=leak, dropout=0.2)
    nets.set_grid_weights(model, nets.SPECS["residual"].kappa)
    return model, tf.constant(np.moveaxis(nets.spike_inputs(T, B, nets.SPECS["residual"].image), 1, 0))


def stretches(train: tf.Tensor, lengths: Sequence[int]) -> list[tf.Tensor]:
    return tf.split(train, lengths)


@pytest.mark.parametrize("leak", [0.5, 0.9])
def test_membranes_of_every_step_are_the_oracle_s(leak: float) -> None:
    inputs = keras.Input((T, N))
    neurons = LIF(leak, 0.7, name="lif")
    model = SpikingModel(inputs, Readout(leak, name="readout")(neurons(SpikeInput(T)(inputs))))
    currents = np.rint(np.random.default_rng(0).normal(0.3, 0.5, (T, B, N)) * 64) / 64
    v0 = np.rint(np.random.default_rng(1).normal(0, 0.3, (B, N)) * 64) / 64
    state = {"lif": tf.constant(v0, tf.float32), "readout": tf.constant(v0, tf.float32)}
    found = stepper.advance(model.plan, tf.constant(currents, tf.float32), state)
    wanted = oracle.lif_forward(currents, neurons.leak, 0.7, v0)
    assert 0.1 < wanted.spikes.mean() < 0.9
    np.testing.assert_array_equal(found.layers["lif"].spikes, wanted.spikes)
    np.testing.assert_allclose(tf.stack(found.layers["lif"].potentials), wanted.u, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.state["lif"], wanted.v, rtol=1e-5, atol=1e-6)
    after = np.where(wanted.spikes > 0, 0.0, neurons.leak * wanted.u)
    np.testing.assert_allclose(tf.stack(found.layers["lif"].membranes), after, rtol=1e-5, atol=1e-6)
    v, membranes = v0, []
    for spikes in wanted.spikes:
        v = leak * (v + spikes)
        membranes.append(v)
    np.testing.assert_allclose(found.readout, np.stack(membranes), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.state["readout"], found.readout[-1])
    np.testing.assert_array_equal(state["lif"], v0.astype("f"))  # what was given is as it was


@pytest.mark.parametrize("leak", [0.5, 0.9])
def test_it_fires_as_the_engine_and_the_layers_do(leak: float) -> None:
    model, train = scene(leak)
    found = stepper.advance(model.plan, train, stepper.initial_state(model.plan, B))
    inputs = np.moveaxis(train.numpy(), 0, 1)
    output, counts = model.observe(inputs)
    assert list(found.layers) == model.spiking_layers == list(counts)
    assert min(float(tf.reduce_mean(layer.spikes)) for layer in found.layers.values()) > 0.02
    for name, layer in found.layers.items():
        np.testing.assert_array_equal(tf.reduce_sum(layer.spikes, 0), counts[name])
    np.testing.assert_allclose(found.readout[-1] / T, output, rtol=1e-5, atol=1e-6)
    by_layers = model.plan.run_window(train)
    for call in model.plan.window:
        np.testing.assert_allclose(found.values[call.output], by_layers[call.output], rtol=1e-5, atol=1e-6)


def test_neurons_begin_where_they_start() -> None:
    inputs = keras.Input((T, N))
    neurons = LIF(0.9, 0.7, "rate", reset="subtract", start=0.5, name="lif")
    model = SpikingModel(inputs, Readout(0.9)(neurons(SpikeInput(T)(inputs))))
    currents = np.rint(np.random.default_rng(0).normal(0.2, 0.5, (B, T, N)) * 64).astype("f") / 64
    state = stepper.initial_state(model.plan, B)
    np.testing.assert_allclose(state["lif"], np.full((B, N), 0.35), rtol=1e-6)
    found = stepper.advance(model.plan, tf.constant(np.moveaxis(currents, 1, 0)), state)
    np.testing.assert_array_equal(tf.reduce_sum(found.layers["lif"].spikes, 0), model.observe(currents)[1]["lif"])


@pytest.mark.parametrize("lengths", [[1] * T, [3, 4], [5, 1, 1]])
def test_stretches_joined_are_the_window(lengths: list[int]) -> None:
    model, train = scene()
    whole, = stepper.through(model.plan, [train], B)
    parts = list(stepper.through(model.plan, stretches(train, lengths), B))
    assert [len(part.readout) for part in parts] == lengths
    for name, layer in whole.layers.items():
        np.testing.assert_array_equal(tf.concat([part.layers[name].spikes for part in parts], 0), layer.spikes)
        potentials = [u for part in parts for u in part.layers[name].potentials]
        np.testing.assert_allclose(tf.stack(potentials), tf.stack(layer.potentials), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(tf.concat([part.readout for part in parts], 0), whole.readout, rtol=1e-5, atol=1e-6)
    for name, membrane in whole.state.items():
        np.testing.assert_allclose(parts[-1].state[name], membrane, rtol=1e-5, atol=1e-6)


def test_a_graph_of_any_batch_size_gives_the_same() -> None:
    model, train = scene()
    plan = model.plan

    @tf.function(input_signature=[tf.TensorSpec([T, None, *train.shape[2:]])])
    def window(train: tf.Tensor) -> tuple[tf.Tensor, stepper.State]:
        stretch = stepper.advance(plan, train, stepper.initial_state(plan, tf.shape(train)[1]))
        return stretch.readout, stretch.state

    readout, state = window(train)
    wanted = stepper.advance(plan, train, stepper.initial_state(plan, B))
    np.testing.assert_allclose(readout, wanted.readout, rtol=1e-5, atol=1e-6)
    assert list(state) == [*model.spiking_layers, plan.readout.name]
    assert {name: tuple(x.shape[1:]) for name, x in state.items()} == stepper.shapes(plan)
    for name, membrane in wanted.state.items():
        np.testing.assert_allclose(state[name], membrane, rtol=1e-5, atol=1e-6)
