"""Surrogates: each is the derivative of its primitive, and both gradients with them equal a NumPy float64 oracle."""

from __future__ import annotations

import ast
import gc
import math
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import nets
from tfspike import SpikingModel, UserError, config, models
from tfspike.engine import kernels
from tfspike.neurons import encoders, gradients, layers, slopes, surrogates
from tfspike.neurons.gradients import Neuron, NeuronState

T, B, N = 12, 4, 30
H: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "rectangular": lambda x: (np.abs(x) < 0.5).astype("f8"),
    "triangular": lambda x: np.maximum(0, 1 - np.abs(x)),
    "arctan": lambda x: 1 / (1 + (np.pi * x)**2),
    "sigmoid": lambda x: 4 * np.exp(-4 * x) / (1 + np.exp(-4 * x))**2,
}


def neuron_of(kind: str, name: str) -> Neuron:
    if kind == "pooling":
        return Neuron.pooling(surrogate=name)
    return Neuron.lif(float(kind), 0.8, name, width=1.7 if kind == "0.5" else 1.0)


def oracle(neuron: Neuron, currents: np.ndarray, g: np.ndarray, gradient: str, v0: np.ndarray, carry: np.ndarray) -> Any:
    """`(spikes, membranes before firing, dL/dI, dL/dv_0)` in float64, from the formulas."""
    v, u, s = v0.astype("f8"), [], []
    for current in currents.astype("f8"):
        u.append(v + current)
        s.append((u[-1] > neuron.threshold).astype("f8"))
        v = neuron.leak * u[-1] * (1 - s[-1])
    h = [neuron.gain * H[neuron.surrogate](neuron.gain * (x - neuron.threshold) / neuron.width) for x in u]
    if gradient == "rate":
        delta = np.broadcast_to(np.mean(h, axis=0) * g.mean(axis=0), g.shape)
        return np.array(s), np.array(u), delta, np.zeros_like(v)
    delta, later = [], carry
    for t in reversed(range(len(u))):
        later = h[t] * g[t] + neuron.leak * (1 - s[t]) * later
        delta.insert(0, later)
    return np.array(s), np.array(u), np.array(delta), delta[0]


def scene(neuron: Neuron) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Currents on a grid, so that float32 and float64 fire alike, and no membrane on the edge of a rectangle."""
    rng = np.random.default_rng(4)
    currents = (np.rint(rng.normal(0.3, 0.5, (T, B, N)) * 1024) / 1024 + 1 / 4096).astype("f")
    v0 = np.rint(rng.normal(0, 0.2, (B, N)) * 1024).astype("f") / 1024
    return currents, v0, rng.normal(size=(T, B, N)).astype("f"), rng.normal(size=(B, N)).astype("f")


@pytest.mark.parametrize("name", surrogates.DERIVATIVES)
def test_a_surrogate_is_the_derivative_of_its_primitive(name: str) -> None:
    x = np.linspace(-3, 3, 1201) + 1e-4  # beside the corners
    step = 1e-5
    rise = surrogates.PRIMITIVES[name](tf.constant(x + step)) - surrogates.PRIMITIVES[name](tf.constant(x - step))
    np.testing.assert_allclose(surrogates.derivative(name, tf.constant(x)), rise / (2 * step), atol=1e-6)


@pytest.mark.parametrize("name", surrogates.DERIVATIVES)
def test_a_surrogate_has_its_peak_of_1_at_the_threshold_and_an_area_of_1(name: str) -> None:
    assert float(surrogates.derivative(name, tf.constant(0.0))) == pytest.approx(1.0)
    low, high = (float(surrogates.PRIMITIVES[name](tf.constant(x))) for x in (-1e4, 1e4))
    assert (low, high) == (pytest.approx(0, abs=1e-4), pytest.approx(1, abs=1e-4))
    x = np.linspace(-2, 2, 401)
    np.testing.assert_allclose(surrogates.derivative(name, tf.constant(x)), H[name](x), atol=1e-9)


@pytest.mark.parametrize("gradient", gradients.GRADIENTS)
def test_a_surrogate_of_your_own(gradient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surrogates, "DERIVATIVES", dict(surrogates.DERIVATIVES))
    with pytest.raises(UserError, match="'leak_aware', .*'sigmoid', .*Received: surrogate='mine'. .*surrogates.register"):
        layers.LIF(surrogate="mine")
    surrogates.register("mine", lambda x: 1.0 / (1.0 + (np.float32(np.pi) * x) ** 2))
    found = []
    for name in ("mine", "arctan", "triangular"):
        model = models.create("lenet", (12, 12, 1), 4, 6, hidden=8, kappa=6.0, gradient=gradient, surrogate=name, seed=1)
        images = np.random.default_rng(0).uniform(-1, 1, (3, 12, 12, 1)).astype("f")
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(model(images, training=True) - 1.0))
        found.append([grad.numpy() for grad in tape.gradient(loss, model.trainable_variables)])
    for mine, arctan in zip(*found[:2]):
        np.testing.assert_allclose(mine, arctan, rtol=1e-4, atol=1e-5 * np.abs(arctan).max())
    assert np.abs(found[0][0] - found[2][0]).max() > 0.1 * np.abs(found[0][0]).max()
    with pytest.raises(UserError, match="`name` must be a text other than .*arctan.*Received: name='arctan'"):
        surrogates.register("arctan", tf.abs)
    with pytest.raises(UserError, match="`function` must be a function"):
        surrogates.register("another", 3.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("kernel", ["plain", "xla"])
def test_a_name_of_your_own_may_be_registered_again(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surrogates, "DERIVATIVES", dict(surrogates.DERIVATIVES))
    currents = np.random.default_rng(0).uniform(-1, 2, (1, 2, 3)).astype("f")  # one step, so that they are the potentials
    neuron = Neuron.lif(0.9, 1.0, "again")
    for height in (1.0, 2.0):
        surrogates.register("again", lambda x, height=height: height / (1.0 + tf.square(x)))
        wanted = height / (1.0 + np.square(currents - 1.0))
        state = gradients.initial_state((2, 3), neuron)
        at_steps = kernels.fire(tf.constant(currents), state, neuron, "event", kernel).derivatives
        total = kernels.fire(tf.constant(currents), state, neuron, "rate", kernel).state.trace
        np.testing.assert_allclose(at_steps, wanted, rtol=1e-5)
        np.testing.assert_allclose(total, wanted[0], rtol=1e-5)


@pytest.mark.parametrize("credit", gradients.CREDITS)
def test_a_window_longer_than_a_byte_in_one_piece_keeps_its_sums(credit: str) -> None:
    """As a normalisation needs it under "rate"."""
    neuron = Neuron.lif(0.9, 0.8, "triangular", credit=credit)
    currents, state = tf.constant(scene(neuron)[0]), gradients.initial_state((B, N), neuron)
    assert len(currents) > kernels.MOST_STEPS
    fired = kernels.fire(currents, state, neuron, "rate", "plain")
    spikes, wanted = gradients.simulate(currents, state, neuron)
    np.testing.assert_array_equal(fired.spikes, spikes)
    for found, part in zip(fired.state, wanted):
        assert np.abs(part).max() > 0
        np.testing.assert_allclose(found, part, rtol=1e-5, atol=1e-6)


def test_flags_know_the_surrogates() -> None:
    assert config.SURROGATES == surrogates.SURROGATES


@pytest.mark.parametrize("gradient", gradients.GRADIENTS)
@pytest.mark.parametrize("kind", ["0.5", "0.9", "pooling"])
@pytest.mark.parametrize("name", surrogates.DERIVATIVES)
def test_both_gradients_equal_the_oracle(name: str, kind: str, gradient: str) -> None:
    neuron = neuron_of(kind, name)
    currents, v0, g, carry = scene(neuron)
    spikes, u, delta, first = oracle(neuron, currents, g, gradient, v0, carry)
    assert 0.05 < spikes.mean() < 0.9
    assert np.abs(np.abs(neuron.gain * (u - neuron.threshold) / neuron.width) - 0.5).min() > 1e-6  # no membrane on a rectangle's edge
    zeros = tf.zeros((B, N))
    with tf.GradientTape() as tape:
        i, v = tf.constant(currents), tf.constant(v0)
        tape.watch((i, v))
        got, state = gradients.spike_window(i, NeuronState(v, zeros, zeros), neuron, gradient)
    found = tape.gradient((got, state.membrane), (i, v), output_gradients=(tf.constant(g), tf.constant(carry)))
    np.testing.assert_array_equal(got, spikes)
    np.testing.assert_allclose(found[0], delta, rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(found[1], first, rtol=1e-4, atol=2e-6)


def test_rate_takes_the_slope_of_its_own_window_where_it_continues_another() -> None:
    neuron = Neuron.lif(0.9, 0.8, "triangular")
    currents, _, g, carry = scene(neuron)
    zeros = tf.zeros((B, N))
    _, between = gradients.spike_window(tf.constant(currents[:5]), NeuronState(zeros, zeros, zeros), neuron, "rate")
    with tf.GradientTape() as tape:
        i = tf.constant(currents[5:])
        tape.watch(i)
        spikes, _ = gradients.spike_window(i, between, neuron, "rate")
    found = tape.gradient(spikes, i, output_gradients=tf.constant(g[5:]))
    wanted = oracle(neuron, currents[5:], g[5:], "rate", between.membrane.numpy(), carry)
    assert spikes.numpy().mean() > 0.05
    np.testing.assert_allclose(found, wanted[2], rtol=1e-4, atol=1e-6)


def test_a_neuron_that_never_fired_still_learns() -> None:
    currents = tf.fill((T, 1, 1), 0.09)
    for name, passes in [("leak_aware", False), *((name, True) for name in surrogates.DERIVATIVES)]:
        with tf.GradientTape() as tape:
            tape.watch(currents)
            spikes = layers.LIF(1.0, 1.2, "rate", name)(currents)  # reaches 1.08
        assert not spikes.numpy().any()
        assert bool(tf.reduce_any(tape.gradient(spikes, currents) != 0.0)) == passes, name


@pytest.mark.parametrize("kernel", ["plain", "xla"])
@pytest.mark.parametrize("name", surrogates.SURROGATES)
def test_kernels_sum_what_the_definition_sums(name: str, kernel: str) -> None:
    neuron = Neuron.lif(0.9, 0.8, name)
    currents, v0, _, _ = scene(neuron)
    start = NeuronState(tf.constant(v0), tf.zeros((B, N)), tf.zeros((B, N)))
    spikes, wanted = gradients.simulate(tf.constant(currents), start, neuron)
    state, trains = start, []
    for first in range(0, T, 4):
        train, state, *_ = kernels.fire(tf.constant(currents[first:first + 4]), state, neuron, "rate", kernel)
        trains.append(train)
    assert wanted.count.numpy().sum() > 100
    np.testing.assert_array_equal(tf.concat(trains, 0), spikes)
    for a, b in zip(state, wanted):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kernel", ["plain", "xla"])
@pytest.mark.parametrize("name", [pytest.param("rectangular", marks=pytest.mark.slow), "arctan"])
def test_event_through_chunks_is_event_through_the_window(name: str, kernel: str) -> None:
    """T = 11 in chunks of 4: two whole ones and a rest, with pooling neurons and two paths."""
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 2))
    x = layers.LIF(0.9, 0.8, "event", name)(layers.OverTime(keras.layers.Conv2D(4, 3, padding="same"))(
        encoders.DirectEncoder(11)(image)))
    y = layers.OverTime(keras.layers.Conv2D(4, 3, padding="same"))(x)
    x = layers.LIF(0.9, 0.8, "event", name, 1.5)(keras.layers.Add()([x, y]))
    x = layers.PoolingIF(0.75, "event", name)(layers.OverTime(keras.layers.AveragePooling2D(2))(x))
    x = layers.OverTime(keras.layers.Dense(3))(layers.OverTime(keras.layers.Flatten())(x))
    model = SpikingModel(image, layers.Readout(0.9)(x))
    model.configure_engine(chunk=4, kernel=kernel)
    assert model.engine is not None and model.engine.can_train
    inputs = np.random.default_rng(3).uniform(-0.5, 1.5, (B, 6, 6, 2)).astype("f")
    assert min(float(tf.reduce_mean(count)) / 11 for count in model.observe(inputs)[1].values()) > 0.02
    nets.assert_engine_as_layers(model, inputs, rtol=2e-4, atol=2e-5)


def test_the_mean_of_a_leak_aware_trace_is_no_slope() -> None:
    """A surrogate's sum is divided by the steps, the leaky trace is not."""
    one = tf.ones((1,))
    assert float(gradients.slope(one, 3 * one, Neuron.lif(0.5, 2.0, "arctan"), 6)[0]) == pytest.approx(0.25)
    assert float(gradients.slope(one, one, Neuron.lif(0.5, 2.0), 6)[0]) == pytest.approx((1 + math.log(0.5)) / 2)


def test_a_neuron_s_rule_is_a_constant() -> None:
    leak_aware, arctan = Neuron.lif(0.9, 0.8), Neuron.lif(0.9, 0.8, "arctan", 2.0)
    assert isinstance(leak_aware.slope_rule, slopes.LeakAware) and isinstance(arctan.slope_rule, slopes.Surrogate)
    assert leak_aware.slope_rule == Neuron.lif(0.9, 0.8).slope_rule and leak_aware.slope_rule != arctan.slope_rule
    assert len({leak_aware.slope_rule, arctan.slope_rule, Neuron.lif(0.9, 0.8).slope_rule}) == 2
    assert not leak_aware.slope_rule.needs_potential and leak_aware.slope_rule.needs_spikes
    assert arctan.slope_rule.needs_potential and not arctan.slope_rule.needs_spikes


def test_one_function_alone_compares_the_name_of_the_leak_aware_slope() -> None:
    """The settings of a run, which know nothing of TensorFlow, apart."""
    package, found = Path(surrogates.__file__).parents[1], set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                parts = {ast.unparse(part) for part in (node.left, *node.comparators)}
                if parts & {"LEAK_AWARE", "surrogates.LEAK_AWARE", "'leak_aware'"}:
                    found.add(path.relative_to(package).as_posix())
    assert found == {"neurons/slopes.py", "config/config.py"}


@pytest.mark.parametrize("gradient", gradients.GRADIENTS)
def test_what_a_neuron_says_counts_not_what_its_layer_was_made_with(gradient: str) -> None:
    class Paper(layers.SpikingLayer):
        @property
        def neuron(self) -> Neuron:
            return Neuron.lif(0.5, 0.4)

    keras.utils.set_random_seed(0)
    image = keras.Input((6,))
    x = Paper(gradient, "arctan")(layers.OverTime(keras.layers.Dense(8))(encoders.DirectEncoder(5)(image)))
    x = layers.LIF(0.9, 0.3, gradient, "arctan")(layers.OverTime(keras.layers.Dense(8))(x))
    model = SpikingModel(image, layers.Readout(0.9)(layers.OverTime(keras.layers.Dense(3))(x)))
    inputs = np.random.default_rng(3).uniform(0.0, 1.5, (B, 6)).astype("f")
    nets.assert_engine_as_layers(model, inputs, rtol=2e-4, atol=2e-5)


def test_a_spike_ends_with_its_graph() -> None:
    def build_and_drop() -> weakref.ref[tf.Graph]:
        with tf.Graph().as_default() as graph:
            surrogates.spike("arctan", tf.zeros(2))
        return weakref.ref(graph)

    dropped = build_and_drop()
    gc.collect()
    assert dropped() is None
