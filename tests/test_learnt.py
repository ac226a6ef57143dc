"""Learnt leaks and thresholds (DIET-SNN) against NumPy float64, on every path, and what becomes of them."""

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
from tfspike.config import Config, resolve
from tfspike.engine.folding import fold
from tfspike.errors import UserError
from tfspike.export.nir_graph import to_nir
from tfspike.models import variables
from tfspike.neurons.layers import LIF
from tfspike.runs import checkpoints, initial_weights
from tfspike.variants import VARIANTS, Conv, Pool, Variant

T, B, N = 12, 3, 20  # more steps than one chunk of a kernel holds
THRESHOLD = 0.75
BOTH = ("leak", "threshold")


def triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def forward(currents: np.ndarray, leak: float, theta: float, reset: str) -> tuple[np.ndarray, np.ndarray]:
    """`(u, s)` in float64."""
    u, s, left = [], [], np.zeros(currents.shape[1:])
    for current in currents.astype("f8"):
        u.append(leak * left + current)
        s.append((u[-1] > theta).astype("f8"))
        left = u[-1] - theta * s[-1] if reset == "subtract" else u[-1] * (1 - s[-1])
    return np.array(u), np.array(s)


def event(u: np.ndarray, s: np.ndarray, g: np.ndarray, leak: float, theta: float, reset: str) -> tuple[Any, ...]:
    """`(dL/dI, dL/dleak, dL/dthreshold)`: backpropagation through time, s held constant in the reset and theta not."""
    h, later, delta, of_leak, of_theta = triangle(u / theta - 1), np.zeros_like(u[0]), np.zeros_like(u), 0.0, 0.0
    for t in reversed(range(len(u))):
        subtracts = reset == "subtract"
        of_leak += (later * (u[t] - theta * s[t] if subtracts else u[t] * (1 - s[t]))).sum()
        of_theta += (-h[t] * u[t] / theta**2 * g[t] - (leak * s[t] * later if subtracts else 0)).sum()
        later = delta[t] = h[t] / theta * g[t] + (leak if subtracts else leak * (1 - s[t])) * later
    return delta, of_leak, of_theta


def scene(seed: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Currents on a grid, so that float32 and float64 fire alike; dL/ds."""
    rng = np.random.default_rng(seed)
    currents = (np.rint(rng.normal(0.3, 0.5, (T, B, N)) * 1024) / 1024 + 1 / 4096).astype("f")
    return currents, rng.normal(size=(T, B, N)).astype("f")


def layer(leak: float, reset: str, gradient: str, learn: tuple[str, ...] = BOTH) -> LIF:
    return LIF(leak, THRESHOLD, gradient, "triangular", reset=reset, credit="time" if gradient == "rate" else "mean",
               learn=learn)


def through(neurons: LIF, currents: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """`(spikes, dL/dI, {constant: its gradient})` of the library."""
    with tf.GradientTape() as tape:
        i = tf.constant(currents)
        tape.watch(i)
        spikes = neurons(i)
    of_input, of_constants = tape.gradient(spikes, [i, {name: v.value for name, v in neurons.learnt.items()}],
                                           output_gradients=tf.constant(g))
    return spikes.numpy(), of_input.numpy(), {name: float(value) for name, value in of_constants.items()}


@pytest.mark.parametrize("leak", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_event_equals_the_oracle(reset: str, leak: float) -> None:
    currents, g = scene()
    exact = float(np.float32(leak))
    u, s = forward(currents, exact, THRESHOLD, reset)
    assert 0.1 < s.mean() < 0.9
    spikes, delta, constants = through(layer(leak, reset, "event"), currents, g)
    wanted = event(u, s, g, exact, THRESHOLD, reset)
    np.testing.assert_array_equal(spikes, s)
    np.testing.assert_allclose(delta, wanted[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose([constants["leak"], constants["threshold"]], wanted[1:], rtol=1e-4)


@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_the_oracle_is_what_autodiff_makes_of_the_loop(reset: str) -> None:
    currents, g = scene()
    with tf.GradientTape() as tape:
        leak, theta = tf.constant(0.9, tf.float64), tf.constant(THRESHOLD, tf.float64)
        tape.watch([leak, theta])
        left, total = 0.0, 0.0
        for current, upstream in zip(currents.astype("f8"), g.astype("f8")):
            u = leak * left + current
            x = u / theta - 1.0
            s = tf.cast(u > theta, tf.float64)
            total += tf.reduce_sum(upstream * tf.stop_gradient(triangle(x.numpy())) * x)
            left = u - theta * s if reset == "subtract" else u * (1.0 - s)
    found = tape.gradient(total, [leak, theta])
    u, s = forward(currents, 0.9, THRESHOLD, reset)
    np.testing.assert_allclose(found, event(u, s, g, 0.9, THRESHOLD, reset)[1:], rtol=1e-9)


@pytest.mark.parametrize("leak", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_rate_is_the_sum_of_event_where_the_upstream_is_constant_and_only_there(reset: str, leak: float) -> None:
    currents, g = scene(5)
    exact = float(np.float32(leak))
    u, s = forward(currents, exact, THRESHOLD, reset)
    for upstream, agree in ((np.broadcast_to(g[:1], g.shape), True), (g, False)):
        delta, *wanted = event(u, s, upstream, exact, THRESHOLD, reset)
        _, found, constants = through(layer(leak, reset, "rate"), currents, upstream)
        errors = [np.abs(found.sum(0) - delta.sum(0)).max() / np.abs(delta.sum(0)).max(),
                  *np.abs(np.divide([constants["leak"], constants["threshold"]], wanted) - 1)]
        assert max(errors) < 1e-3 if agree else min(errors) > 0.02, errors


@pytest.mark.parametrize("learn", [("leak",), ("threshold",)])
def test_one_of_the_two_is_learnt_as_with_the_other(learn: tuple[str, ...]) -> None:
    currents, g = scene()
    both, alone = (through(layer(0.9, "subtract", "event", which), currents, g)[2] for which in (BOTH, learn))
    assert alone == {learn[0]: pytest.approx(both[learn[0]], rel=1e-6)}


def test_an_update_leaves_constants_where_neurons_are_defined() -> None:
    neurons = layer(0.9, "subtract", "event")
    neurons.build((T, B, N))
    keras.optimizers.SGD(1.0).apply([tf.constant(-5.0), tf.constant(5.0)], neurons.trainable_variables)
    assert [float(variable.value) for variable in neurons.learnt.values()] == [1.0, np.float32(1e-3)]


# ---- networks ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "small", Variant((Conv(4), Pool(), Conv(5)), hidden=8))


def network(gradient: str = "event", timesteps: int = 5, learn: tuple[str, ...] = BOTH, **options: Any) -> Any:
    return models.create("small", (6, 6, 1), 3, timesteps, gradient=gradient, encoder="direct", pooling="average", seed=2,
                         kappa=6.0, surrogate="triangular", **{"reset": "subtract", "leak": 0.9, "learn": learn,
                                                               "credit": "time" if gradient == "rate" else "mean",
                                                               **options})


IMAGES = np.random.default_rng(0).normal(size=(3, 6, 6, 1)).astype("f")


@pytest.mark.parametrize("gradient, kernel, options", [
    ("event", "xla", {}), ("rate", "xla", {}), ("event", "plain", {"reset": "zero"}),
    pytest.param("rate", "plain", {"norm": "tdbn"}, marks=pytest.mark.slow),
    pytest.param("event", "plain", {"norm": "tdbn"}, marks=pytest.mark.slow),
    pytest.param("event", "xla", {"dtype": "mixed_bfloat16"}, marks=pytest.mark.slow)])
def test_the_engine_does_as_the_layers_do(gradient: str, options: dict[str, Any], kernel: str) -> None:
    model = network(gradient, **options)
    model.configure_engine(2, kernel)
    close = {"rtol": 0.05, "atol": 0.02, "output": 1e-2} if "dtype" in options else {}
    _, grads = nets.assert_engine_as_layers(model, IMAGES, **close)
    constants = [np.abs(a) for variable, a in zip(model.trainable_variables, grads) if variable.name in BOTH]
    assert len(constants) == 6 and min(constants) > 1e-4


def test_a_frozen_layer_keeps_its_constants() -> None:
    model = network()
    model.get_layer("conv1_1_lif").trainable = False
    assert len(model.trainable_variables) == 8 and model.engine is not None
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(IMAGES, training=True))
    assert all(np.abs(grad).max() > 0 for grad in tape.gradient(loss, model.trainable_variables))


def trained() -> Any:
    """A network whose constants are no longer those of its settings."""
    model = network()
    for i, variable in enumerate(v for v in model.trainable_variables if v.name in variables.CONSTANTS):
        variable.assign(variable.value * (0.9 - 0.03 * i))
    return model


def test_files_have_what_was_learnt(tmp_path: Path) -> None:
    model = trained()
    model.save(tmp_path / "net.keras")
    again = keras.models.load_model(tmp_path / "net.keras")
    np.testing.assert_array_equal(again(IMAGES), model(IMAGES))
    assert again.plan.spiking[0].layer.learn == BOTH and np.abs(model(IMAGES) - network()(IMAGES)).max() > 1e-3


def test_folding_makes_them_constants() -> None:
    model = trained()
    folded = fold(model)
    assert not any(variable.name in BOTH for variable in folded.variables)
    np.testing.assert_allclose(folded(IMAGES), model(IMAGES), atol=1e-6)
    assert folded.get_layer("conv1_1_lif").leak == pytest.approx(0.81) and model.get_layer("conv1_1_lif").leak == 0.9
    both = network("rate", norm="tdbn")
    np.testing.assert_allclose(fold(both)(IMAGES), both(IMAGES), atol=1e-5)


def test_the_graph_of_nir_has_the_learnt_constants() -> None:
    model = network(reset="zero")
    model.get_layer("conv1_1_lif").learnt["threshold"].assign(0.5)
    for of in (model, fold(model)):
        node = to_nir(of).nodes["conv1_1_lif"]
        assert (node.v_threshold == 0.5).all() and float(node.tau.flat[0]) == pytest.approx(1e-4 / (1 - np.float32(0.9)))
    with pytest.raises(UserError, match="reset='subtract'"):
        to_nir(trained())


@pytest.mark.slow
def test_a_saved_model_has_them(tmp_path: Path) -> None:
    info = datasets.DatasetInfo("mnist", (8, 8, 1), 10, tuple("0123456789"), (1 / 255,), (0.0,), False, 100, 100)
    folder = runs.untrained(tmp_path / "run", info, model="lenet", hidden=0, timesteps=6, kappa=8.0, gradient="event",
                            surrogate="triangular", reset="subtract", learn=BOTH, pooling="average", leak=0.8)
    found = runs.exported(folder, ["saved_model"])["saved_model"]
    assert found["max_error"] < 1e-5 and found["spikes_differing"] == 0 and found["silent_layers"] == []


@pytest.mark.parametrize("form", ["keras", "checkpoint"])
def test_a_run_begins_with_weights_of_a_network_that_learns_no_constants(form: str, tmp_path: Path) -> None:
    source = network(learn=())
    source.get_layer("conv1_1").layer.kernel.assign(source.get_layer("conv1_1").layer.kernel.value * 2.0)
    model = network(threshold=0.3)
    if form == "keras":
        source.save(tmp_path / "net.keras")
    else:
        checkpoints.save(str(tmp_path / "checkpoints"), 0, {"model": variables.collect(source.variables), "optimizer": {}},
                         {"config": {}}, best=True)
    initial_weights.load(model, str(tmp_path / {"keras": "net.keras"}.get(form, "")), print)
    np.testing.assert_array_equal(model.get_layer("conv1_1").layer.kernel, source.get_layer("conv1_1").layer.kernel)
    assert float(model.get_layer("conv1_1_lif").learnt["threshold"]) == np.float32(0.3)


def test_a_run_begins_with_constants_that_were_learnt(tmp_path: Path) -> None:
    trained().save(tmp_path / "net.keras")
    model = network(threshold=0.3)
    initial_weights.load(model, str(tmp_path / "net.keras"), print)
    np.testing.assert_array_equal(model(IMAGES), trained()(IMAGES))


def test_the_event_driven_kernel_says_why_it_is_not_taken() -> None:
    nets.assert_dense_in_place_of_events(network(), IMAGES, "learns its leak and its threshold")


@pytest.mark.slow
def test_a_run_learns_them_and_resumes_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"surrogate": "triangular", "reset": "subtract", "learn": BOTH, "gradient": "event", "encoder": "direct",
                "optimizer": "adamw", "learning_rate": 0.01, "lr_milestones": (), "pooling": "average"}
    runs.assert_survives_a_kill(tmp_path, monkeypatch, **settings)
    state = runs.state(tmp_path / "whole")
    values = {name: np.frombuffer(bits, "f4")[0] for name, bits in state.items()
              if name.startswith("model/") and name.split("/")[-1] in BOTH}
    assert len(values) == 4 and not {np.float32(0.99), np.float32(1.0)} & set(values.values())


# ---- what says nothing together ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options, part", [
    ({"learn": ("leak",)}, "takes a surrogate"), ({"learn": "leak"}, "must be a tuple"),
    ({"learn": ("width",), "surrogate": "arctan"}, "'leak', 'threshold'"),
    ({"learn": ("leak",), "surrogate": "arctan", "gradient": "rate"}, "with credit='time'"),
    ({"learn": ("leak",), "surrogate": "arctan", "start": 0.5}, "begin at 0")])
def test_layers_and_networks_refuse(options: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        LIF(**options)
    with pytest.raises(UserError, match=part):
        models.create("lenet", (8, 8, 1), 3, 4, **options)


@pytest.mark.parametrize("options, part", [
    ({"learn": ("leak",)}, "--learn=leak needs.*or give --method=diet"),
    ({"learn": ("leak",), "surrogate": "arctan"}, "--credit=time"),
    ({"neuron": "relu", "learn": ("leak",)}, "--learn"), ({"learn": ("gain",)}, "--learn takes a list of leak, threshold")])
def test_flags_refuse(options: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        Config(**options)


def test_what_is_learnt_has_one_form() -> None:
    assert Config(learn=("threshold", "leak"), surrogate="arctan", credit="time").learn == BOTH
    assert resolve({}, method="diet").learn == BOTH
    assert models.create("small", (6, 6, 1), 3, 4, surrogate="arctan", learn=["threshold", "leak"]).get_layer(
        "conv1_1_lif").learn == BOTH
