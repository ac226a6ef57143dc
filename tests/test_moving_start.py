"""Membranes that begin where earlier windows ended: the numbers by hand, the same on every path, and in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import nets
from tfspike import models
from tfspike.config import Config
from tfspike.engine.folding import fold
from tfspike.errors import UserError
from tfspike.export.nir_graph import to_nir
from tfspike.neurons.layers import LIF
from tfspike.variants import VARIANTS, Conv, Pool, Variant

IMAGES = np.random.default_rng(0).normal(size=(3, 6, 6, 1)).astype("f")


@pytest.mark.parametrize("leak, reset", [(0.5, "zero"), (0.9, "subtract")])
def test_the_start_follows_membranes_that_fired_and_no_others(leak: float, reset: str) -> None:
    rng = np.random.default_rng(1)
    currents = (rng.uniform(-0.4, 0.6, (3, 40)) + rng.normal(0.0, 0.3, (6, 3, 40))).astype("f")
    neurons, mu, theta = LIF(leak, 0.75, surrogate="arctan", reset=reset, running_start=True, start=0.25), 0.25, 0.75
    for _ in range(3):
        v, n = np.full((3, 40), mu * theta), np.zeros((3, 40))
        for current in currents.astype("f8"):
            u = v + current
            n += u > theta
            v = leak * np.where(u > theta, u - theta if reset == "subtract" else 0, u)
        np.testing.assert_array_equal(tf.reduce_sum(neurons(currents, training=True), axis=0), n)
        mu = 0.9 * mu + 0.1 * np.clip(v[n > 0].mean() / theta, 0, 0.99)
        assert float(neurons.moving_start.value) == pytest.approx(mu, rel=1e-5)
    assert abs(v.mean() - v[n > 0].mean()) > 0.01 and 0 < (n > 0).mean() < 1
    before = float(neurons.moving_start.value)
    neurons(currents)
    _, state = neurons(currents, training=True, initial_state=neurons.get_initial_state((3, 40)), return_state=True)
    neurons(tf.zeros((2, 3, 40)), training=True)  # no spike
    assert float(neurons.moving_start.value) == before and state.membrane.shape == (3, 40)


@pytest.mark.parametrize("currents, wanted", [((3.0, 3.0), 0.9 * 0.5 + 0.1 * 0.99), ((0.6, -2.0), 0.9 * 0.5)])
def test_it_stays_where_a_membrane_may_begin(currents: tuple[float, ...], wanted: float) -> None:
    neurons = LIF(1.0, 0.5, surrogate="arctan", reset="subtract", running_start=True, start=0.5)
    neurons(tf.constant(currents)[:, tf.newaxis, tf.newaxis], training=True)  # end far above the threshold, and below 0
    assert float(neurons.moving_start.value) == pytest.approx(wanted)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "small", Variant((Conv(4), Pool()), hidden=8))


def network(gradient: str = "event", **options: Any) -> Any:
    return models.create("small", (6, 6, 1), 3, 4, seed=2, **{
        "gradient": gradient, "encoder": "direct", "pooling": "average", "surrogate": "triangular", "reset": "subtract",
        "leak": 0.9, "kappa": 6.0, "running_start": True, **options})


def starts(model: Any) -> list[float]:
    return [float(call.layer.moving_start.value) for call in model.plan.spiking]


@pytest.mark.parametrize("gradient", ["event", "rate"])
def test_the_engine_does_as_the_layers_do(gradient: str) -> None:
    model = network(gradient)
    model.configure_engine(3)
    nets.assert_engine_as_layers(model, IMAGES, calls=2)
    assert min(starts(model)) > 0


def test_the_second_pass_of_eprop_begins_where_the_first_did() -> None:
    grads = {}
    for gradient in ("eprop", "event"):
        model = network(gradient)
        for call in model.plan.spiking:
            call.layer.moving_start.assign(0.6)
        with tf.GradientTape() as tape:
            output = model(IMAGES, training=True)
        grads[gradient] = tape.gradient(output, model.trainable_variables)
        assert max(starts(model)) != pytest.approx(0.6)
    for mine, events in list(zip(grads["eprop"], grads["event"]))[1:]:  # the last hidden layer, and the output
        np.testing.assert_allclose(mine, events, rtol=1e-4, atol=1e-5 * np.abs(events).max())


def test_files_keep_it_and_folding_makes_it_constant(tmp_path: Path) -> None:
    model = network()
    for i, call in enumerate(model.plan.spiking):
        call.layer.moving_start.assign(0.3 + 0.2 * i)
    wanted = model(IMAGES)
    model.save(tmp_path / "net.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "net.keras")(IMAGES), wanted)
    folded = fold(model)
    np.testing.assert_allclose(folded(IMAGES), wanted, atol=1e-6)
    assert [call.layer.start for call in folded.plan.spiking] == pytest.approx([0.3, 0.5])
    assert np.abs(network()(IMAGES) - wanted).max() > 1e-3
    with pytest.raises(UserError, match="begin at 0.*moves"):
        to_nir(model)


def test_what_says_nothing_together_is_refused() -> None:
    with pytest.raises(UserError, match="go on after a spike"):
        LIF(surrogate="arctan", reset="silent", running_start=True)
    with pytest.raises(UserError, match="received --reset=silent"):
        Config(running_start=True, reset="silent")
