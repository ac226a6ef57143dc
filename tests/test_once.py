"""Neurons that fire once and a readout for the first spike, against NumPy float64 and on every path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import nets
import runs
from tfspike import datasets, models
from tfspike.analysis import simulation
from tfspike.config import Config
from tfspike.engine import kernels
from tfspike.errors import UserError
from tfspike.export.nir_graph import to_nir
from tfspike.neurons import gradients, once, surrogates
from tfspike.neurons.gradients import Neuron
from tfspike.neurons.layers import LIF, Readout
from tfspike.variants import VARIANTS, Conv, Pool, Variant

T, B, N = 12, 3, 20
H = {"arctan": lambda x: 1 / (1 + (np.pi * x)**2), "triangular": lambda x: np.maximum(1 - np.abs(x), 0)}


def oracle(currents: np.ndarray, g: np.ndarray, leak: float, theta: float, h: Any) -> tuple[np.ndarray, np.ndarray]:
    """`(spikes, delta)`: the neuron knows whether it fired before, f, which is held constant."""
    v, f = np.zeros(currents.shape[1:]), np.zeros(currents.shape[1:])
    u, s, before = [], [], []
    for current in currents.astype("f8"):
        before.append(f)
        u.append(v + current)
        s.append((u[-1] > theta) * (1 - f))
        v, f = leak * u[-1] * (1 - s[-1]), np.maximum(f, s[-1])
    delta, later = np.zeros(currents.shape), 0.0
    for t in reversed(range(len(u))):
        later = delta[t] = h(u[t] / theta - 1) / theta * (1 - before[t]) * g[t] + leak * (1 - s[t]) * later
    return np.array(s), delta


def scene() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    currents = (np.rint(rng.normal(0.1, 0.4, (T, B, N)) * 1024) / 1024 + 1 / 4096).astype("f")
    return currents, rng.normal(size=(T, B, N)).astype("f")


@pytest.mark.parametrize("surrogate", H)
@pytest.mark.parametrize("leak", [0.5, 0.9])
def test_a_neuron_fires_once_with_the_gradient_of_the_oracle(leak: float, surrogate: str) -> None:
    currents, g = scene()
    found = {}
    for reset in ("silent", "zero"):
        with tf.GradientTape() as tape:
            i = tf.constant(currents)
            tape.watch(i)
            spikes = LIF(leak, 0.75, "event", surrogate, reset=reset)(i)
        found[reset] = spikes.numpy(), tape.gradient(spikes, i, output_gradients=tf.constant(g)).numpy()
    spikes, delta = oracle(currents, g, float(np.float32(leak)), 0.75, H[surrogate])
    assert spikes.sum(0).max() == 1 and 0.2 < spikes.sum(0).mean() < 0.9 and found["zero"][0].sum(0).max() > 1
    np.testing.assert_array_equal(found["silent"][0], spikes)
    np.testing.assert_allclose(found["silent"][1], delta, rtol=1e-5, atol=1e-6)
    assert np.abs(found["zero"][1] - delta).max() > 0.1


@pytest.mark.parametrize("name", surrogates.DERIVATIVES)
def test_no_surrogate_has_a_derivative_where_a_neuron_is_silent(name: str) -> None:
    assert float(surrogates.derivative(name, tf.constant(-np.inf), 0.7)) == 0.0


@pytest.mark.parametrize("kernel", ["plain", "xla"])
def test_kernels_stay_silent_from_chunk_to_chunk(kernel: str) -> None:
    neuron, currents = Neuron.lif(0.5, 0.75, "arctan", reset="silent"), scene()[0]
    state, parts = gradients.initial_state((B, N), neuron), []
    for start in range(0, T, 5):
        fired = kernels.fire(tf.constant(currents[start:start + 5]), state, neuron, "event", kernel)
        parts.append(fired.spikes)
        state = fired.state
        assert np.isfinite(fired.derivatives).all()
    np.testing.assert_array_equal(tf.concat(parts, 0), oracle(currents, currents, 0.5, 0.75, H["arctan"])[0])


def test_the_readout_weighs_spikes_by_when_they_came() -> None:
    train, factor = np.eye(4, dtype="f")[:, None, :], once.growth(4)  # class k fires at step k
    with tf.GradientTape() as tape:
        x = tf.constant(train)
        tape.watch(x)
        scores = Readout(1.0, factor)(x)
        total = tf.reduce_sum(scores * [[1.0, 2.0, 3.0, 4.0]])
    weights = factor ** np.arange(4, 0, -1) / 4
    np.testing.assert_allclose(scores[0], weights, rtol=1e-6)
    assert float(scores[0, 0]) == pytest.approx(10.0, rel=1e-6) and (np.diff(scores[0]) < 0).all()
    np.testing.assert_allclose(tape.gradient(total, x)[:, 0], weights[:, None] * [1, 2, 3, 4], rtol=1e-6)
    np.testing.assert_allclose(once.weights(4, factor) / 4, weights, rtol=1e-6)
    np.testing.assert_array_equal(once.weights(3, 1.0), [1, 1, 1])


# ---- networks ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "small", Variant((Conv(4), Pool()), hidden=8))


IMAGES = np.random.default_rng(0).uniform(-1, 1, size=(3, 6, 6, 1)).astype("f")


def network(timesteps: int = 5, **options: Any) -> Any:
    return models.create("small", (6, 6, 1), 3, timesteps, seed=0, **{
        "kappa": 60.0,
        "gradient": "event", "encoder": "latency", "pooling": "average", "surrogate": "triangular", "reset": "silent",
        "readout": "first", **options})


@pytest.mark.parametrize("options", [{}, pytest.param({"norm": "tdbn"}, marks=pytest.mark.slow)])
def test_the_engine_does_as_the_layers_do(options: dict[str, Any]) -> None:
    model = network(**options)
    model.configure_engine(2)
    output, _ = nets.assert_engine_as_layers(model, IMAGES)
    assert np.unique(output).size > 1


def test_under_rate_a_growing_readout_has_the_mean_of_its_weights() -> None:
    options = {"readout": "membrane", "gradient": "rate", "leak": 1.0}
    grads = {}
    for growth in (1.0, 1.5):
        model = network(**options)
        model.get_layer("readout").growth = growth
        with tf.GradientTape() as tape:
            output = model(IMAGES, training=True)
        grads[growth] = tape.gradient(output, model.trainable_variables[-1]).numpy()
    np.testing.assert_allclose(grads[1.5], grads[1.0] * np.mean(1.5 ** np.arange(1, 6)), rtol=1e-5)


def test_every_neuron_fires_once_at_most_and_files_keep_it(tmp_path: Path) -> None:
    model = network()
    output, counts = model.observe(IMAGES)
    assert list(counts)[-1] == "output_lif" and {float(n) for c in counts.values() for n in np.unique(c)} == {0.0, 1.0}
    model.save(tmp_path / "net.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "net.keras")(IMAGES), output)
    found = simulation.distributions(model, IMAGES)
    assert all(np.isfinite(values).all() for values in found.values())


@pytest.mark.slow
def test_a_saved_model_and_litert_have_them(tmp_path: Path) -> None:
    info = datasets.DatasetInfo("mnist", (8, 8, 1), 10, tuple("0123456789"), (1 / 255,), (0.0,), False, 100, 100)
    folder = runs.untrained(tmp_path / "run", info, model="lenet", hidden=0, timesteps=6, kappa=8.0, gradient="event",
                            surrogate="triangular", reset="silent", readout="first", pooling="average", encoder="latency")
    for found in runs.exported(folder, ["saved_model", "litert"]).values():
        assert found["max_error"] < 1e-5 and found["spikes_differing"] == 0


def test_the_graph_of_nir_has_no_such_neurons() -> None:
    with pytest.raises(UserError, match="reset='silent'"):
        to_nir(network())
    model = network(reset="zero", readout="membrane", leak=1.0)
    model.get_layer("readout").growth = 1.5
    with pytest.raises(UserError, match="'readout', whose membrane grows"):
        to_nir(model)


def test_the_event_driven_kernel_says_why_it_is_not_taken() -> None:
    nets.assert_dense_in_place_of_events(network(), IMAGES, "another reset than 'zero'")


# ---- what says nothing together ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options, part", [
    ({"reset": "zero"}, "neurons that fire once"), ({"gradient": "rate"}, "take gradient='event'"),
    ({"readout": "last"}, "'membrane', 'first'"), ({"learn": ("leak",), "readout": "membrane"}, "go on after a spike"),
    ({"gradient": "eprop", "readout": "membrane"}, "reset='subtract'")])
def test_networks_refuse(options: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        network(**options)


@pytest.mark.parametrize("options", [{"leak": 0.9, "growth": 1.5}, {"leak": 1.0, "growth": 0.5}])
def test_readouts_refuse(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match="at least 1, and leak=1"):
        Readout(**options)


def test_flags_refuse() -> None:
    with pytest.raises(UserError, match="or --method=once"):
        Config(readout="first")
