"""Mostafa 2018 as an oracle: when a neuron that does not leak fires, in closed form, and a network on a fine grid of time.

A synapse of his neurons gives a current that decays exponentially, V(t) = sum of w_i (1 - exp(-(t - t_i))) over t_i < t,
threshold 1. With z = exp(t) and the causal set C, the inputs in front of the spike,

    z_out = sum_C w_i z_i / (sum_C w_i - 1)        dz_out/dw_p = (z_p - z_out) / (sum_C w_i - 1)
                                                   dz_out/dz_p = w_p / (sum_C w_i - 1)            both 0 outside of C

(H. Mostafa, "Supervised learning based on temporal coding in spiking neural networks", IEEE TNNLS 29(7), 2018). Our
synapses are instantaneous, so the network gets what each input adds to V between two points of the grid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfspike import LIF, OverTime, Readout, SpikingModel
from tfspike.neurons.encoders import SpikeInput

T, WINDOW, INPUTS, NEURONS, RECORDS = 2000, 3.0, 8, 6, 3
STEP = WINDOW / T
WIDTH = 0.06  # of the surrogate: small in units of the threshold, and many steps long
GROWTH = 1.0005  # of the readout: little in as many steps, so that they count alike


def closed_form(times: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, float]:
    """`(t_out, dt_out/dw, dt_out/dt, dV/dt)` of one neuron; infinity and zeros where it does not fire."""
    z, order = np.exp(times), np.argsort(times)
    for number in range(1, len(order) + 1):
        causal, later = order[:number], order[number:]
        excess = weights[causal].sum() - 1.0
        if excess <= 0.0:
            continue
        z_out = (weights[causal] * z[causal]).sum() / excess
        if not len(later) or z_out <= z[later[0]]:
            in_set = np.isin(np.arange(len(order)), causal)
            return (np.log(z_out), np.where(in_set, (z - z_out) / excess, 0.0) / z_out,
                    np.where(in_set, weights / excess, 0.0) * z / z_out, excess)
    return np.inf, np.zeros(len(order)), np.zeros(len(order)), 0.0


def scene() -> tuple[np.ndarray, np.ndarray]:
    """Times of the inputs `[B, inputs]` and weights `[inputs, neurons]`, some of them negative."""
    rng = np.random.default_rng(3)
    return rng.uniform(0.0, 1.5, (RECORDS, INPUTS)), rng.normal(0.35, 0.45, (INPUTS, NEURONS))


def on_the_grid(times: np.ndarray) -> np.ndarray:
    """What every input adds to V from one point of the grid to the next, `[B, T, inputs]`."""
    grid = STEP * np.arange(T + 1)[:, None]
    potential = 1.0 - np.exp(-np.maximum(grid - times[:, None, :], 0.0))
    return np.diff(potential, axis=1).astype("f")


@pytest.fixture(scope="module")
def network() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """From times and weights to spike times `[B, neurons]`, infinity without one, and what our gradient takes for
    dt_out/dw, `[B, inputs, neurons]`."""
    train = keras.Input((T, INPUTS))
    currents = OverTime(keras.layers.Dense(NEURONS, use_bias=False))(SpikeInput(T)(train))
    spikes = LIF(1.0, 1.0, "event", "triangular", WIDTH, reset="silent")(currents)
    model = SpikingModel(train, Readout(1.0, GROWTH)(spikes))
    weight, = model.trainable_variables

    @tf.function(autograph=False)
    def scores(train: tf.Tensor, chosen: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            found = model.call_layers(train, training=True)
            total = tf.reduce_sum(found * chosen)
        return found, tape.gradient(total, weight.value)

    def run(times: np.ndarray, weights: np.ndarray, records: int = RECORDS) -> tuple[np.ndarray, np.ndarray]:
        weight.assign(weights)
        found = [[x.numpy() for x in scores(on_the_grid(times), np.eye(RECORDS, dtype="f")[:, [record]])]
                 for record in range(records)]
        score = found[0][0].astype("d")
        with np.errstate(divide="ignore", invalid="ignore"):
            at = STEP * (T + 1 - np.log(score * T) / np.log(GROWTH))
            # a surrogate has half of its area, WIDTH / 2, below the threshold, where neurons pass once
            moved = -np.array([gradient for _, gradient in found]) / score[:records, None] * STEP / (WIDTH / 2)
        return at, moved

    return run


@pytest.fixture(scope="module")
def wanted() -> tuple[np.ndarray, ...]:
    """The closed form of the scene: `[B, neurons]`, twice `[B, inputs, neurons]`, `[B, neurons]`."""
    times, weights = scene()
    found = [[closed_form(record, column) for column in weights.T] for record in times]
    at, by_weight, by_time, slope = (np.array([[neuron[i] for neuron in record] for record in found]) for i in range(4))
    return at, by_weight.swapaxes(1, 2), by_time.swapaxes(1, 2), slope


def test_the_network_fires_when_the_closed_form_says(network: Any, wanted: Any) -> None:
    at, by_weight, *_ = wanted
    fires = at < WINDOW
    assert 0.3 < fires.mean() < 0.95 and 0.2 < (by_weight.swapaxes(1, 2)[fires] == 0).mean() < 0.8, "inputs behind spikes"
    found, _ = network(*scene(), 1)
    np.testing.assert_array_equal(np.isfinite(found), fires)
    late = found[fires] - at[fires]
    assert late.min() > -0.02 * STEP and late.max() < 1.02 * STEP


def test_its_gradient_is_that_of_the_spike_time(network: Any, wanted: Any) -> None:
    """But for one number, the same everywhere: how a score falls with a spike's time, and half a surrogate."""
    at, by_weight, _, slope = wanted
    _, found = network(*scene())
    compared = 0
    for record, neuron in np.argwhere(at < WINDOW):
        mine, exact = found[record, :, neuron], by_weight[record, :, neuron]
        seen = WIDTH / slope[record, neuron]  # for how long the surrogate sees the potential rise to the threshold
        if np.abs(at[record, neuron] - scene()[0][record]).min() < seen:
            continue  # an input comes meanwhile, and bends it
        resolution = 2 * STEP / seen + seen / 2  # a sum of so many steps, of a potential that is not quite straight
        assert resolution < 0.15
        np.testing.assert_allclose(mine, exact, atol=resolution * np.abs(exact).max())
        assert mine @ exact > 0.9995 * np.linalg.norm(mine) * np.linalg.norm(exact)
        assert not mine[exact == 0].any()
        compared += 1
    assert compared >= 4


def test_its_spikes_move_with_those_in_front_of_them(network: Any, wanted: Any) -> None:
    (times, weights), (at, _, by_time, _), moved = scene(), wanted, 40 * STEP
    before, _ = network(times, weights, 1)
    for i in range(0, INPUTS, 2):
        later = times + moved * (np.arange(INPUTS) == i)
        exact = np.array([[closed_form(record, column)[0] for column in weights.T] for record in later])
        after, _ = network(later, weights, 1)
        both = (at < WINDOW) & (exact < WINDOW)
        found, closed = after[both] - before[both], exact[both] - at[both]
        np.testing.assert_allclose(found, closed, atol=1.1 * STEP)
        small = np.abs(closed - moved * by_time[:, i][both]) < 2 * STEP  # where the first derivative says it all
        assert small.sum() >= 2
        np.testing.assert_allclose(found[small] / moved, by_time[:, i][both][small], atol=0.1)
