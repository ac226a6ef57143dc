"""Thresholds that adapt: the rule against NumPy, a silent layer that wakes up, every path, files, exports and resume."""

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
from tfspike.engine.folding import fold
from tfspike.errors import UserError
from tfspike.export.nir_graph import to_nir
from tfspike.models.callbacks import FitAdvice
from tfspike.models.diagnosis import COLLAPSE_PATIENCE, Watch
from tfspike.neurons.layers import LIF
from tfspike.runs import checkpoints, initial_weights
from tfspike.variants import VARIANTS, Conv, Pool, Variant

IMAGES = np.random.default_rng(0).normal(size=(3, 6, 6, 1)).astype("f")


def oracle(factor: np.ndarray, fired: np.ndarray, rho: float) -> np.ndarray:
    """Lee et al. 2016 at every position of every record: those that fire gain, and all lose; `fired` is `[B, n, C]`."""
    moved = np.zeros(len(factor))
    for record in fired:
        if record.mean() < 0.05:
            moved -= rho * (1.0 - record.mean(0))
            continue
        for position in record:
            moved[position] += rho / len(record)
            moved -= rho * position.mean() / len(record)
    return np.maximum(factor + moved / len(fired), 0.1)


@pytest.mark.parametrize("shape", [(4, 5), (4, 3, 2, 5)])
def test_thresholds_follow_who_fires(shape: tuple[int, ...]) -> None:
    rng, theta, rho = np.random.default_rng(1), 0.8, 0.05
    neurons, factor = LIF(0.9, theta, homeostasis=rho), np.ones(5)
    scale = np.array([0.0, 0.15, 0.25, 0.5, 1.0])  # of the channels' currents
    for i in range(4):
        currents = (scale * rng.uniform(0, 0.9, (6, *shape)) * (0.0 if i == 2 else 1.0)).astype("f")
        currents[:, 0] *= i != 1  # one record on which nothing fires, beside others
        v, count = np.zeros(shape), np.zeros(shape)
        for current in currents.astype("d"):
            u = v + current
            count += u > theta * factor
            v = 0.9 * np.where(u > theta * factor, 0, u)
        np.testing.assert_array_equal(tf.reduce_sum(neurons(currents, training=True), axis=0), count)
        fired = (count > 0).reshape(4, -1, 5)
        assert i == 2 or 0 < fired.mean() < 1
        factor = oracle(factor, fired, rho)
        np.testing.assert_allclose(neurons.threshold_factor.value, factor, rtol=1e-5)
    assert (factor[:2] < factor[-2:].min()).all()
    before = np.array(neurons.threshold_factor.value)
    neurons(currents)  # not in training
    np.testing.assert_array_equal(neurons.threshold_factor.value, before)


def test_where_hardly_a_neuron_fires_thresholds_of_the_others_fall() -> None:
    neurons = LIF(1.0, 1.0, homeostasis=0.3)
    neurons(tf.constant(2.0 * np.eye(1, 21)[None], tf.float32), training=True)  # one of twenty-one
    np.testing.assert_allclose(neurons.threshold_factor.value, [1.0, *[0.7] * 20])


def test_the_mean_stays_until_nothing_fires_and_there_is_a_least() -> None:
    neurons = LIF(1.0, 1.0, homeostasis=0.3)
    for _ in range(3):
        neurons(tf.constant([[[2.0, 0.0]]]), training=True)
    assert float(tf.reduce_mean(neurons.threshold_factor.value)) == pytest.approx(1.0)
    for _ in range(9):
        neurons(tf.zeros((1, 1, 2)), training=True)
    assert neurons.threshold_factor.value.numpy().tolist() == pytest.approx([0.1, 0.1])


def test_a_replica_without_a_record_moves_nothing() -> None:
    neurons = LIF(1.0, 1.0, homeostasis=0.3, activity_regularizer=keras.regularizers.L1(0.1))
    neurons(tf.zeros((1, 0, 2)), training=True)
    assert neurons.threshold_factor.value.numpy().tolist() == [1.0, 1.0]
    assert float(neurons.losses[0]) == 0.0


# ---- a silent layer ------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "small", Variant((Conv(4), Pool()), hidden=8))


def network(gradient: str = "event", **options: Any) -> Any:
    return models.create("small", (6, 6, 1), 3, 4, seed=2, **{
        "gradient": gradient, "encoder": "direct", "pooling": "average", "leak": 0.9, "kappa": 6.0, "homeostasis": 0.1,
        **options})


@pytest.mark.parametrize("homeostasis", [0.0, 0.1])
def test_a_silent_layer_wakes_up_with_it_and_stays_silent_without(homeostasis: float) -> None:
    model = network("rate", homeostasis=homeostasis, kappa=2.0, threshold=3.0)
    optimizer = keras.optimizers.SGD(0.05)

    @tf.function(autograph=False)
    def step() -> dict[str, tf.Tensor]:
        with tf.GradientTape() as tape:
            output, counts = model.observe(IMAGES, training=True)
            loss = tf.reduce_mean(tf.square(output - tf.eye(3)))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return counts

    optimizer.build(model.trainable_variables)
    seen = [{name: float(tf.reduce_sum(count)) for name, count in step().items()} for _ in range(16)]
    assert seen[0]["hidden_lif"] == 0.0 < seen[0]["conv1_1_lif"]
    assert (seen[-1]["hidden_lif"] > 0.0) == bool(homeostasis)


def said_of_silence(**settings: Any) -> tuple[list[str], Watch]:
    config = Config(model="lenet", timesteps=4, on_collapse="continue", **settings)
    model = models.create("lenet", (8, 8, 1), 3, 4, hidden=0, homeostasis=config.homeostasis)
    watch = Watch(model, config)
    return watch.update(1, {f"silent/{name}": 1.0 for name in model.spiking_layers}), watch


def test_diagnosis_recommends_it_for_a_silent_layer_where_it_applies() -> None:
    (text,), _ = said_of_silence()
    assert "--homeostasis=0.01 (lowers thresholds" in text
    learns = {"learn": ("leak",), "surrogate": "arctan", "credit": "time"}
    for settings in ({"start": 0.5}, learns, {"homeostasis": 0.02}):
        assert "--homeostasis=" not in said_of_silence(**settings)[0][0]
    assert "--homeostasis" in said_of_silence(norm="tdbn")[0][0]


@pytest.mark.parametrize("options, said", [
    ({}, True), ({"norm": "tdbn"}, True), ({"homeostasis": 0.1}, False), ({"running_start": True}, False)])
def test_fit_recommends_it_where_it_applies(options: dict[str, Any], said: bool) -> None:
    model = network(**{"homeostasis": 0.0, "pooling": "neuron", "surrogate": "triangular", **options})
    model.compile("sgd", "mse")
    text = FitAdvice(model).louder("hidden_lif")
    assert ("give it homeostasis=0.01 (lowers thresholds" in text) == said and "--" not in text
    assert "homeostasis" not in FitAdvice(model).louder("pool1"), "of LIF neurons alone"


def test_a_network_whose_thresholds_still_fall_has_not_collapsed() -> None:
    _, watch = said_of_silence(homeostasis=0.1)
    (stuck, _), living = said_of_silence(), 0
    dead = {f"grad_norm/{name}": 0.0 for name in ("conv1_1", "conv2_1", "output")}
    for step in range(2, 60):
        if any("collapsed" in text for text in watch.update(step, dead)):
            break
        living = step
    assert living - 1 == COLLAPSE_PATIENCE + 9 and len(stuck) > 0
    assert Watch(models.create("lenet", (8, 8, 1), 3, 4, hidden=0), Config())._collapse_patience == COLLAPSE_PATIENCE


# ---- paths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient, options", [
    ("event", {}), ("rate", {}), ("event", {"surrogate": "triangular", "reset": "subtract"}),
    pytest.param("rate", {"surrogate": "arctan", "credit": "time", "norm": "tdbn"}, marks=pytest.mark.slow)])
def test_the_engine_does_as_the_layers_do(gradient: str, options: dict[str, Any]) -> None:
    model = adapted(0.6, gradient=gradient, **options)
    model.configure_engine(3)
    before = factors(model)
    nets.assert_engine_as_layers(model, IMAGES)
    assert not any(np.array_equal(old, new) for old, new in zip(before, factors(model)))


def factors(model: Any) -> list[np.ndarray]:
    return [call.layer.threshold_factor.value.numpy() for call in model.plan.spiking]


def test_the_gradient_is_that_of_a_layer_with_that_threshold() -> None:
    """A factor that all channels share is a threshold."""
    currents, found = tf.constant(np.random.default_rng(3).uniform(0, 0.8, (5, 2, 6)).astype("f")), []
    for neurons in (LIF(0.9, 0.5, "rate", homeostasis=0.1), LIF(0.9, 0.75, "rate")):
        neurons.build((5, 2, 6))
        if neurons.threshold_factor is not None:
            neurons.threshold_factor.assign(np.full(6, 1.5))
        with tf.GradientTape() as tape:
            tape.watch(currents)
            spikes = neurons(currents)
        found.append((spikes.numpy(), tape.gradient(spikes, currents).numpy()))
    for mine, wanted in zip(*found):
        np.testing.assert_allclose(mine, wanted, rtol=1e-6)
        assert mine.any()


# ---- files ---------------------------------------------------------------------------------------------------------


def adapted(least: float = 0.3, **options: Any) -> Any:
    model = network(**options)
    for i, call in enumerate(model.plan.spiking):
        shape = call.layer.threshold_factor.shape
        call.layer.threshold_factor.assign(np.random.default_rng(i).uniform(least, 1.4, shape))
    return model


def test_files_and_folded_networks_keep_them(tmp_path: Path) -> None:
    model = adapted(norm="tdbn")
    wanted = model(IMAGES)
    model.save(tmp_path / "net.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "net.keras")(IMAGES), wanted)
    np.testing.assert_allclose(fold(model)(IMAGES), wanted, atol=1e-5)
    assert np.abs(network(norm="tdbn")(IMAGES) - wanted).max() > 1e-3
    other = network(norm="tdbn")
    initial_weights.load(other, str(tmp_path / "net.keras"), print)
    np.testing.assert_array_equal(other(IMAGES), wanted)


def test_weights_do_not_come_without_their_thresholds(tmp_path: Path) -> None:
    from tfspike.models import variables

    checkpoints.save(str(tmp_path / "checkpoints"), 0, {"model": variables.collect(adapted().variables), "optimizer": {}},
                     {"config": {}}, best=True)
    with pytest.raises(UserError, match="thresholds that adapted .*give --homeostasis"):
        initial_weights.load(network(homeostasis=0.0), str(tmp_path), print)
    initial_weights.load(network(homeostasis=0.5), str(tmp_path), print)


def test_the_graph_of_nir_has_the_adapted_thresholds() -> None:
    model = adapted(threshold=0.5)
    graph = to_nir(model)
    for call in model.plan.spiking:
        factor, found = call.layer.threshold_factor.value.numpy(), graph.nodes[call.name].v_threshold
        np.testing.assert_allclose(found.reshape(len(factor), -1)[:, 0], 0.5 * factor, rtol=1e-6)
        assert np.ptp(found.reshape(len(factor), -1), axis=1).max() == 0.0


def test_a_recording_shows_the_threshold_of_its_neuron() -> None:
    model = adapted()
    found = simulation.record(model, IMAGES[0])
    thresholds = {call.name: call.layer.neuron.threshold.numpy() for call in model.plan.spiking}
    for layer in found.layers[1:]:
        assert np.abs(thresholds[layer.name] - layer.threshold).min() < 1e-6


@pytest.mark.slow
def test_exports_have_them(tmp_path: Path) -> None:
    info = datasets.DatasetInfo("mnist", (8, 8, 1), 10, tuple("0123456789"), (1 / 255,), (0.0,), False, 100, 100)
    folder = runs.untrained(tmp_path / "run", info, model="lenet", hidden=0, timesteps=6, kappa=8.0, homeostasis=0.1,
                            encoder="direct")
    last = checkpoints.read(f"{folder}/checkpoints/last")
    arrays = {name: np.linspace(0.4, 1.2, value.size, dtype="f") if name.endswith("threshold_factor") else value
              for name, value in last.arrays("model").items()}
    checkpoints.save(f"{folder}/checkpoints", 1, {"model": arrays, "optimizer": {}}, last.meta, best=True)
    reports = runs.exported(folder, ["saved_model", "litert", "nir", "keras"])
    assert len(reports) == 4
    for found in reports.values():
        assert found["max_error"] < 1e-5 and not found.get("spikes_differing")


def test_the_event_driven_kernel_says_why_it_is_not_taken() -> None:
    nets.assert_dense_in_place_of_events(network(), IMAGES, "has a threshold for every channel")


@pytest.mark.slow
def test_a_run_resumes_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.assert_survives_a_kill(tmp_path, monkeypatch, homeostasis=0.05)
    moved = [np.frombuffer(bits, "f") for name, bits in runs.state(tmp_path / "whole").items()
             if name.endswith("threshold_factor")]
    assert len(moved) == 2 and all(np.ptp(values) > 0.0 for values in moved)


# ---- what says nothing together ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options, part", [
    ({"learn": ("threshold",), "surrogate": "arctan", "gradient": "event"}, "learn no constants"), ({"start": 0.5}, "begin at 0"),
    ({"running_start": True}, "running_start=True"), ({"homeostasis": 1.0}, r"in \[0, 1\)"),
    ({"gradient": "eprop", "surrogate": "arctan", "reset": "subtract"}, "gradient='eprop'")])
def test_layers_and_networks_refuse(options: dict[str, Any], part: str) -> None:
    for make in (LIF, network):
        with pytest.raises(UserError, match=part):
            make(**{"homeostasis": 0.1, **options})


def test_thresholds_by_channel_take_the_same_neurons() -> None:
    with pytest.raises(UserError, match="`by_channel` is of neurons .*Received: by_channel=True, .*start=0.5"):
        LIF(by_channel=True, start=0.5)


@pytest.mark.parametrize("options, part", [
    ({"neuron": "relu"}, "--homeostasis=0.1 is for spiking neurons"), ({"start": 0.5}, "--homeostasis=0.1 is of neurons"),
    ({"gradient": "eprop", "surrogate": "arctan", "reset": "subtract"}, "--gradient=eprop, or it"),
    ({"homeostasis": 1.0}, "--homeostasis takes")])
def test_flags_refuse(options: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        Config(**{"homeostasis": 0.1, **options})
    if "neuron" in options:
        with pytest.raises(UserError, match="homeostasis"):
            models.create("small", (6, 6, 1), 3, 4, neuron="relu", homeostasis=0.1)
