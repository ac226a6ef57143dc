"""What a spike leaves of the membrane, where it starts, and "rate" with credit in time, against NumPy float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import nets
import runs
import tfspike
from tfspike import datasets, models
from tfspike.config import Config, resolve
from tfspike.engine import kernels
from tfspike.errors import UserError
from tfspike.neurons import gradients
from tfspike.neurons.gradients import Neuron, NeuronState
from tfspike.neurons.layers import LIF
from tfspike.variants import VARIANTS, Block, Conv, Pool, Variant

T, B, N = 20, 3, 40  # more steps than one chunk of a kernel holds
LEAKS = [0.5, 0.9, 0.99, 1.0]


def arctan(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + (np.pi * x)**2)


def forward(neuron: Neuron, currents: np.ndarray, v0: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`(u, spikes, v_T)` in float64."""
    v, u, s = v0.astype("f8"), [], []
    for current in currents.astype("f8"):
        u.append(v + current)
        s.append((u[-1] > neuron.threshold).astype("f8"))
        left = u[-1] - neuron.threshold * s[-1] if neuron.reset == "subtract" else u[-1] * (1 - s[-1])
        v = neuron.leak * left
    return np.array(u), np.array(s), v


def kept(neuron: Neuron, spikes: np.ndarray) -> np.ndarray:
    """dv_t/du_t, the reset held constant."""
    return np.full_like(spikes, neuron.leak) if neuron.reset == "subtract" else neuron.leak * (1 - spikes)


def event(neuron: Neuron, u: np.ndarray, s: np.ndarray, g: np.ndarray) -> np.ndarray:
    """delta_t of backpropagation through time, `[T, ...]`."""
    h, k = neuron.gain * arctan(neuron.gain * (u - neuron.threshold) / neuron.width), kept(neuron, s)
    delta, later = np.zeros_like(u), np.zeros_like(u[0])
    for t in reversed(range(len(u))):
        later = delta[t] = h[t] * g[t] + k[t] * later
    return delta


def rate(neuron: Neuron, u: np.ndarray, s: np.ndarray, g: np.ndarray) -> np.ndarray:
    """delta of "rate", the same at every step."""
    h, k, e, total = arctan(neuron.gain * (u - neuron.threshold) / neuron.width), kept(neuron, s), np.ones_like(u[0]), 0
    for t in range(len(u)):
        total = total + h[t] * e
        e = 1 + k[t] * e if neuron.credit == "time" else e
    return np.broadcast_to(neuron.gain * total / len(u) * g.mean(axis=0), u.shape)


def scene(seed: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Currents and membranes on a grid, so that float32 and float64 fire alike; dL/ds."""
    rng = np.random.default_rng(seed)
    currents = (np.rint(rng.normal(0.3, 0.5, (T, B, N)) * 1024) / 1024 + 1 / 4096).astype("f")
    return currents, (rng.normal(0, 0.2, (B, N)) * 1024).round().astype("f") / 1024, rng.normal(size=(T, B, N)).astype("f")


def through(neuron: Neuron, gradient: str, currents: np.ndarray, v0: np.ndarray, g: np.ndarray) -> Any:
    """`(spikes, state, dL/dI)` of the library."""
    state = gradients.initial_state((B, N), neuron)._replace(membrane=tf.constant(v0))
    with tf.GradientTape() as tape:
        i = tf.constant(currents)
        tape.watch(i)
        spikes, after = gradients.spike_window(i, state, neuron, gradient)
    return spikes.numpy(), after, tape.gradient(spikes, i, output_gradients=tf.constant(g)).numpy()


# ---- neurons -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leak", LEAKS)
@pytest.mark.parametrize("reset", ["zero", "subtract"])
@pytest.mark.parametrize("gradient, credit", [("event", "mean"), ("rate", "mean"), ("rate", "time")])
def test_a_window_equals_the_oracle(gradient: str, credit: str, reset: str, leak: float) -> None:
    neuron = Neuron.lif(leak, 0.75, "arctan", 1.3, reset, credit=credit)
    currents, v0, g = scene()
    exact = neuron._replace(leak=float(np.float32(leak)))
    u, s, v = forward(exact, currents, v0)
    assert 0.1 < s.mean() < 0.9
    spikes, after, delta = through(neuron, gradient, currents, v0, g)
    np.testing.assert_array_equal(spikes, s)
    np.testing.assert_allclose(after.membrane, v, atol=1e-5)
    np.testing.assert_array_equal(after.count, s.sum(0))
    np.testing.assert_allclose(delta, (event if gradient == "event" else rate)(exact, u, s, g), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("leak", LEAKS)
@pytest.mark.parametrize("reset", gradients.RESETS)
@pytest.mark.parametrize("credit", gradients.CREDITS)
def test_credit_in_time_is_the_sum_of_event_where_the_upstream_is_constant(credit: str, reset: str, leak: float) -> None:
    """The identity of Yu et al.; the mean alone fails it, but for a leak of 0."""
    neuron = Neuron.lif(leak, 1.0, "arctan", 1.0, reset, credit=credit)
    currents, v0, g = scene(5)
    g = np.broadcast_to(g[:1], g.shape)
    wanted = through(neuron._replace(credit="mean"), "event", currents, v0, g)[2].sum(axis=0)
    found = through(neuron, "rate", currents, v0, g)[2].sum(axis=0)
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert error < 1e-5 if credit == "time" else error > 0.05


@pytest.mark.parametrize("leak", [0.5, 0.9])
def test_the_leak_aware_slope_goes_with_subtraction_under_rate(leak: float) -> None:
    neuron = Neuron.lif(leak, 0.8, reset="subtract")
    currents, v0, g = scene()
    exact = neuron._replace(leak=float(np.float32(leak)), threshold=float(np.float32(0.8)))
    u, s, _ = forward(exact, currents, v0)
    age = np.arange(T)[::-1]
    count, trace = s.sum(0), np.tensordot(exact.leak**age, s, axes=1)
    slope = np.where(count > 0, (1 + np.log(exact.leak) * trace / np.maximum(count, 1)) / exact.threshold, 0)
    spikes, _, delta = through(neuron, "rate", currents, v0, g)
    np.testing.assert_array_equal(spikes, s)
    np.testing.assert_allclose(delta, np.broadcast_to(slope * g.mean(0), g.shape), rtol=1e-4, atol=1e-6)


def test_subtraction_from_half_a_threshold_counts_what_a_current_is_worth() -> None:
    """N = clip(floor(T I / threshold + 1/2), 0, T): what conversions build on. A reset to 0 loses what is above."""
    current = np.random.default_rng(0).uniform(-0.3, 1.3, (1, 20_000)).astype("f")
    wanted = np.clip(np.floor(50 * current.astype("f8") + 0.5), 0, 50)
    train = tf.repeat(tf.constant(current)[tf.newaxis], 50, axis=0)
    counts = {}
    for reset in ("zero", "subtract"):
        neuron = Neuron.lif(1.0, 1.0, reset=reset, start=0.5)
        state = gradients.simulate(train, gradients.initial_state(current.shape, neuron), neuron)[1]
        counts[reset] = state.count.numpy()
    assert (counts["subtract"] != wanted).mean() < 1e-3  # rounding, where a potential meets the threshold
    assert np.abs(counts["zero"] - wanted).mean() > 2


@pytest.mark.parametrize("kernel", ["plain", "xla"])
@pytest.mark.parametrize("reset, credit", [("subtract", "mean"), ("subtract", "time"), ("zero", "time")])
def test_kernels_do_the_same_in_chunks(kernel: str, reset: str, credit: str) -> None:
    neuron = Neuron.lif(0.9, 0.8, "arctan", 1.3, reset, 0.25, credit)
    currents = tf.constant(scene()[0])
    wanted, whole = gradients.simulate(currents, gradients.initial_state((B, N), neuron), neuron)
    state, parts = gradients.initial_state((B, N), neuron), []
    for start in range(0, T, 8):
        fired = kernels.fire(currents[start:start + 8], state, neuron, "rate", kernel)
        parts.append(fired.spikes)
        state = fired.state
    np.testing.assert_array_equal(tf.concat(parts, 0), wanted)
    for found, of in zip(state, whole):
        assert found.shape == of.shape
        np.testing.assert_allclose(found, of, rtol=1e-5, atol=1e-6)


def test_a_window_that_continues_another_counts_its_own_steps() -> None:
    layer = LIF(0.9, 1.0, "rate", "arctan", credit="time", reset="subtract", start=0.5)
    currents = tf.constant(scene()[0])
    first, state = layer(currents[:8], return_state=True)
    second, _ = layer(currents[8:], initial_state=state, return_state=True)
    np.testing.assert_array_equal(tf.concat([first, second], 0), layer(currents))
    assert state.trace.shape == (2, B, N)
    grads = []
    for begin in (state, NeuronState(state.membrane, tf.zeros((B, N)), layer.get_initial_state((B, N)).trace)):
        with tf.GradientTape() as tape:
            rest = tf.constant(currents[8:])
            tape.watch(rest)
            out = tf.reduce_sum(layer(rest, initial_state=begin))
        grads.append(tape.gradient(out, rest).numpy())
    np.testing.assert_allclose(grads[0], grads[1], rtol=1e-6)
    assert np.abs(grads[0]).max() > 0.1


# ---- tandem learning ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tandem", "tandem_clipped"])
def test_the_slope_of_tandem_is_that_of_a_relu_of_the_mean_current(name: str) -> None:
    neuron = Neuron.lif(1.0, 0.5, name, reset="subtract")
    currents, _, g = scene()
    currents = currents - 0.25 + np.random.default_rng(1).integers(-1, 2, (1, B, N)) * np.float32(0.5)
    drive = currents.mean(0)
    slope = (drive > 0) & ((drive < 0.5) | (name == "tandem"))
    assert 0.2 < slope.mean() < 0.8 and ((drive > 0) & (drive >= 0.5)).any()
    spikes, state, delta = through(neuron, "rate", currents, np.zeros((B, N), "f"), g)
    np.testing.assert_allclose(delta, np.broadcast_to(slope * 2.0 * g.mean(0), g.shape), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(0.5 * spikes.sum(0) + state.membrane, currents.sum(0), atol=1e-4)
    parts, inside = gradients.initial_state((B, N), neuron), []
    for start in range(0, T, 8):
        for kernel in ("xla", "plain"):
            fired = kernels.fire(tf.constant(currents[start:start + 8]), parts, neuron, "rate", kernel)
            inside.append(fired.state.trace.numpy())
        np.testing.assert_allclose(*inside[-2:], rtol=1e-5, atol=1e-5)
        parts = fired.state
    np.testing.assert_allclose(parts.trace, currents.sum(0), atol=1e-4)


@pytest.mark.parametrize("name", ["tandem", "tandem_clipped"])
def test_the_slope_of_tandem_in_a_window_that_goes_on_is_of_its_own_mean_current(name: str) -> None:
    neuron = Neuron.lif(1.0, 0.5, name, reset="subtract")
    currents, _, g = scene()
    currents = currents - 0.25 + np.random.default_rng(1).integers(-1, 2, (1, B, N)) * np.float32(0.5)
    layer = LIF(1.0, 0.5, "rate", name, reset="subtract")
    state, membrane = layer.get_initial_state((B, N)), np.zeros((B, N))
    for start, end in ((0, 8), (8, 12), (12, T)):
        part, upstream = currents[start:end], g[start:end]
        _, s, membrane = forward(neuron, part, membrane)
        drive = part.astype("f8").mean(0)
        slope = (drive > 0) & ((drive < 0.5) | (name == "tandem"))
        assert 0.2 < slope.mean() < 0.8 and (drive >= 0.5).any()
        with tf.GradientTape() as tape:
            i = tf.constant(part)
            tape.watch(i)
            spikes, state = layer(i, initial_state=state, return_state=True)
        delta = tape.gradient(spikes, i, output_gradients=tf.constant(upstream))
        np.testing.assert_array_equal(spikes, s)
        np.testing.assert_allclose(delta, np.broadcast_to(slope * 2.0 * upstream.mean(0), upstream.shape), rtol=1e-4,
                                   atol=1e-6)
        np.testing.assert_allclose(state.membrane, membrane, atol=1e-4)


def test_a_tandem_network_has_the_gradient_of_its_relu_twin_on_the_spikes_rates() -> None:
    """Three dense layers by hand: forward counts by simulation, backward W^T (delta 1[d > 0])."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(0, 0.5, shape).astype("f") for shape in ((6, 8), (8, 8), (8, 3))]
    x = keras.Input((6,))
    y = tfspike.DirectEncoder(8)(x)
    for _ in range(2):
        y = tfspike.OverTime(keras.layers.Dense(8, use_bias=False))(y)
        y = LIF(1.0, 1.0, "rate", "tandem", reset="subtract")(y)
    y = tfspike.Readout(1.0)(tfspike.OverTime(keras.layers.Dense(3, use_bias=False))(y))
    model = tfspike.SpikingModel(x, y)
    for weight, value in zip(model.trainable_variables, weights):
        weight.assign(value)
    images = rng.normal(size=(5, 6)).astype("f")
    with tf.GradientTape() as tape:
        output = model(images, training=True)
        loss = tf.reduce_sum(tf.square(output - 1.0))
    found = [grad.numpy() for grad in tape.gradient(loss, model.trainable_variables)]
    r, drives, rates = images.astype("f8"), [], [images.astype("f8")]
    train = np.repeat(r[None], 8, axis=0)
    for w in weights[:2]:
        currents = train @ w.astype("f8")
        train = forward(Neuron.lif(1.0, 1.0, reset="subtract"), currents, np.zeros_like(currents[0]))[1]
        drives.append(currents.mean(0))
        rates.append(train.mean(0))
    delta = 2 * ((train @ weights[2].astype("f8")).mean(0) - 1)
    wanted = [rates[2].T @ delta]
    for i in (1, 0):
        delta = (delta @ weights[i + 1].T.astype("f8")) * (drives[i] > 0)
        wanted.insert(0, rates[i].T @ delta)
    assert all(0.05 < rate.mean() < 0.9 for rate in rates[1:])
    for a, b in zip(found, wanted):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


# ---- networks ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "small", Variant((Conv(4), Block(4), Block(6, (2, 1)), Pool()), hidden=0))


def network(gradient: str = "rate", **options: Any) -> Any:
    return models.create("small", (8, 8, 1), 3, 4, gradient=gradient, encoder="direct", norm="tdbn", kappa=6.0, seed=2,
                         surrogate="arctan", **options)


@pytest.mark.parametrize("gradient, options", [
    ("event", {"reset": "subtract", "start": 0.5}), ("rate", {"reset": "subtract", "start": 0.5, "credit": "time"}),
    ("rate", {"credit": "time", "shortcut": "currents"})])
def test_the_engine_does_as_the_layers_do(gradient: str, options: dict[str, Any]) -> None:
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype("f")
    output, grads = nets.assert_engine_as_layers(network(gradient, **options), images)
    model = network(gradient, shortcut=options.get("shortcut", "spikes"))
    usual, usual_grads = nets.gradients_of(model, model, images, nets.upstream(3))
    assert max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(grads, usual_grads)) > 0.05
    assert options.keys() == {"credit", "shortcut"} or np.abs(output - usual).max() > 1e-3


def test_options_are_saved_and_reach_the_layers(tmp_path: Path) -> None:
    model = network(reset="subtract", start=0.25, credit="time")
    model.save(tmp_path / "net.keras")
    again = keras.models.load_model(tmp_path / "net.keras")
    images = np.ones((2, 8, 8, 1), "f")
    np.testing.assert_array_equal(again(images), model(images))
    neuron = again.plan.spiking[0].layer.neuron
    assert (neuron.reset, neuron.start, neuron.credit) == ("subtract", 0.25, "time")
    pooling = models.create("lenet", (8, 8, 1), 3, 4, gradient="rate", surrogate="arctan", credit="time", reset="subtract",
                            start=0.25).get_layer("pool1").neuron
    assert (pooling.reset, pooling.start, pooling.credit) == ("zero", 0.0, "time")


@pytest.fixture
def untrained(tmp_path: Path) -> str:
    info = datasets.DatasetInfo("mnist", (8, 8, 1), 10, tuple("0123456789"), (1 / 255,), (0.0,), False, 100, 100)
    settings = {"model": "lenet", "hidden": 0, "timesteps": 6, "kappa": 8.0, "gradient": "rate"}
    return runs.untrained(tmp_path / "run", info, reset="subtract", start=0.25, **settings)


@pytest.mark.slow
def test_a_saved_model_has_them(untrained: str) -> None:
    found = runs.exported(untrained, ["saved_model"])["saved_model"]
    assert found["max_error"] < 1e-5 and found["spikes_differing"] == 0 and found["silent_layers"] == []


def test_formats_that_have_them_not_refuse(untrained: str) -> None:
    with pytest.raises(UserError, match="begin at 0 and reset to 0.*reset='subtract'"):
        runs.exported(untrained, ["nir"])
    with pytest.raises(UserError, match="begins with zeros.*0.25 of the threshold"):
        runs.exported(untrained, ["litert"])


# ---- what says nothing together ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options, part", [
    ({"reset": "subtract"}, "take gradient='rate' or a surrogate"), ({"reset": "soft"}, "'zero', 'subtract'"),
    ({"gradient": "rate", "credit": "time"}, "of gradient='rate' with a surrogate"),
    ({"surrogate": "arctan", "credit": "time"}, "of gradient='rate' with a surrogate"),
    ({"start": 1.0}, "start.*Received: start=1.0"), ({"surrogate": "tandem"}, "slope of a whole window"),
    ({"surrogate": "tandem", "gradient": "rate"}, "lose nothing")])
def test_layers_networks_and_neurons_refuse(options: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        LIF(**options)
    with pytest.raises(UserError, match=part):
        models.create("lenet", (8, 8, 1), 3, 4, **options)
    neuron = Neuron.lif(0.9, 1.0, options.get("surrogate", "leak_aware"), 1.0, options.get("reset", "zero"),
                        options.get("start", 0.0), options.get("credit", "mean"))
    with pytest.raises(UserError, match=part):
        neuron.checked(options.get("gradient", "event"))


@pytest.mark.parametrize("options, part", [
    ({"reset": "subtract", "gradient": "event"}, "--reset=subtract give --gradient=rate"),
    ({"credit": "time"}, "--credit=time is of --gradient=rate with a surrogate"),
    ({"credit": "time", "gradient": "event", "surrogate": "arctan"}, "received --gradient=event"),
    ({"surrogate": "tandem"}, "or --method=tandem"), ({"start": 1.0}, "--start takes"), ({"neuron": "relu", "reset": "subtract"}, "--reset=subtract is for spiking")])
def test_flags_refuse(options: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        Config(**options)


def test_credit_in_time_has_a_width_of_1_unless_told_otherwise() -> None:
    assert resolve({"model": "resnet20", "credit": "time"}).surrogate_width == 1.0
    assert resolve({"model": "resnet20", "credit": "time", "surrogate_width": 1.5}).surrogate_width == 1.5
