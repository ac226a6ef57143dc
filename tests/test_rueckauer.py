"""Conversion after Rueckauer et al. 2017: folded normalisation, biases, subtraction, the gate of a max pooling, and
spike counts against a NumPy simulation with the ANN's own weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import nets
import oracle
from tfspike import LIF, ThresholdNorm, analysis, config, conversion, models, training
from tfspike.conversion import command, options
from tfspike.conversion.simplified import simplified
from tfspike.errors import UserError
from tfspike.neurons import gradients
from tfspike.neurons.bipolar import BipolarIF
from tfspike.neurons.gate import MaxPoolGate
from tfspike.neurons.gradients import Neuron
from tfspike.variants import VARIANTS, Block, Conv, Pool, Variant

T = 64
LAYER_BY_LAYER = "ignore:.*is computed layer by layer"


def with_statistics(model: keras.Model, seed: int = 0) -> keras.Model:
    """Normalisations and biases that matter, in place of those of an untrained network."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, (keras.layers.BatchNormalization, ThresholdNorm)):
            for variable, (low, high) in zip(layer.weights, ((0.5, 1.5), (-0.3, 0.5), (-0.3, 0.3), (0.3, 1.5)), strict=True):
                variable.assign(rng.uniform(low, high, variable.shape))
        elif getattr(layer, "use_bias", False):
            layer.bias.assign(rng.uniform(-0.2, 0.4, layer.bias.shape))
    return model


def own(pool: keras.layers.Layer | None = None, inside: bool = False) -> keras.Model:
    """A user's own CNN: normalisation, pooling, biases, softmax; with `inside`, activations within the layers."""
    def conv(x: Any, normalised: bool, name: str) -> Any:
        fused = inside and not normalised
        x = keras.layers.Conv2D(4, 3, padding="same", use_bias=not normalised, activation="relu" if fused else None,
                                name=name)(x)
        x = keras.layers.BatchNormalization()(x) if normalised else x
        return x if fused else keras.layers.ReLU(name=f"{name}_relu")(x)

    image = keras.Input((6, 6, 1))
    x = conv(image, True, "first")
    x = pool(x) if pool is not None else x
    x = keras.layers.Flatten()(conv(x, False, "second"))
    logits = keras.layers.Dense(3, activation="softmax" if inside else None, name="out")(x)
    return with_statistics(keras.Model(image, logits if inside else keras.layers.Softmax()(logits)))


def images_of(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).uniform(-1, 1, shape).astype("f")


# ---- folding -------------------------------------------------------------------------------------------------------


def logits(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """The scores in front of a softmax, up to a number per image."""
    return np.log(model(images).numpy())


@pytest.mark.parametrize("inside", [False, True])
def test_what_is_left_computes_the_same_scores(inside: bool) -> None:
    ann, images = own(keras.layers.MaxPooling2D(2), inside), images_of(5, 6, 6, 1)
    plain = simplified(ann)
    kinds = {type(layer) for layer in plain.layers}
    assert not kinds & {keras.layers.BatchNormalization, keras.layers.Softmax} and keras.layers.ReLU in kinds
    found, wanted = plain(images).numpy(), logits(ann, images)
    np.testing.assert_allclose(found - found.mean(-1, keepdims=True), wanted - wanted.mean(-1, keepdims=True), atol=1e-5)
    assert [layer.name for layer in plain.layers if isinstance(layer, keras.layers.ReLU)] == ["first_relu", "second_relu"]


def test_a_network_in_that_form_is_itself() -> None:
    ann = models.create("lenet", (8, 8, 1), 2, 3, neuron="relu", hidden=4)
    assert simplified(ann) is ann


@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}, {"epsilon": 0.1}])
@pytest.mark.parametrize("layer", [
    lambda: keras.layers.Conv2D(4, 2), lambda: keras.layers.Dense(4, use_bias=False),
    lambda: keras.layers.DepthwiseConv2D(2, depth_multiplier=2)])
def test_a_normalisation_goes_into_any_layer_with_weights(layer: Any, options: dict[str, Any]) -> None:
    image = keras.Input((4, 4, 2))
    norm = keras.layers.BatchNormalization(**options)
    currents = layer()(image)
    ann = keras.Model(image, norm(currents))
    rng = np.random.default_rng(1)
    for variable in norm.weights:
        variable.assign(rng.uniform(0.5, 2.0, variable.shape))
    images = images_of(3, 4, 4, 2)
    np.testing.assert_allclose(simplified(ann)(images), ann(images), atol=1e-5)
    assert np.abs(keras.Model(image, currents)(images) - ann(images)).max() > 0.3  # and was not there for nothing


# ---- spike counts --------------------------------------------------------------------------------------------------


def fired(currents: np.ndarray) -> np.ndarray:
    """Spikes `[T, ...]` of integrate-and-fire neurons of threshold 1, reset by subtraction, in float64."""
    v, spikes = np.zeros(currents.shape[1:]), np.zeros_like(currents)
    for t, current in enumerate(currents):
        v = v + current
        spikes[t] = v > 1.0
        v = v - spikes[t]
    return spikes


def gated(spikes: np.ndarray) -> np.ndarray:
    """Windows of 2x2, by a loop over everything."""
    out = np.zeros((*spikes.shape[:2], spikes.shape[2] // 2, spikes.shape[3] // 2, spikes.shape[4]))
    for b, h, w, c in np.ndindex(*out.shape[1:]):
        window = spikes[:, b, 2 * h:2 * h + 2, 2 * w:2 * w + 2, c].reshape(len(spikes), 4)
        count = np.zeros(4)
        for t, step in enumerate(window):
            count += step
            out[t, b, h, w, c] = step[list(count).index(max(count))]
    return out


def simulated(ann: keras.Model, scales: dict[str, float], images: np.ndarray, pool: Any = gated) -> list[np.ndarray]:
    """Counts of both ReLU layers and of the pooling between them, and V_T / T, from the weights as they were trained."""
    first, norm, second, out = (layer for layer in ann.layers if layer.weights)
    gamma, beta, mean, variance = (w.astype("d") for w in norm.get_weights())
    factor = gamma / np.sqrt(variance + norm.epsilon)
    a, b = scales["first_relu"], scales["second_relu"]
    train = np.broadcast_to(images.astype("d"), (T, *images.shape))
    one = fired(oracle.conv(train, first.kernel.numpy() * factor / a) + (beta - mean * factor) / a)
    passed = pool(one)
    two = fired(oracle.conv(passed, second.kernel.numpy().astype("d") * a / b) + second.bias.numpy() / b)
    flat = two.reshape(T, len(images), -1)
    scores = (flat @ (out.kernel.numpy().astype("d") * b) + out.bias.numpy()).mean(0)
    return [one.sum(0), passed.sum(0), two.sum(0), scores]


@pytest.mark.filterwarnings(LAYER_BY_LAYER)
def test_counts_are_those_of_the_numpy_simulation() -> None:
    ann, images = own(keras.layers.MaxPooling2D(2)), images_of(2, 6, 6, 1)
    found = conversion.convert(ann, images, "rueckauer", 99.0, timesteps=T)
    one, passed, two, scores = simulated(ann, found.scales, images)
    output, counts = found.model.observe(images)
    assert 0.02 < one.mean() / T < 0.9 and 0.02 < two.mean() / T < 0.9 and (passed < one.max()).any()
    np.testing.assert_array_equal(counts["first_lif"], one)
    np.testing.assert_array_equal(counts["second_lif"], two)
    np.testing.assert_allclose(output, scores, atol=1e-4)
    # and the scores are near the ANN's, but not where a step's own maximum is taken in place of the gate's
    exact = simplified(ann)(images).numpy()
    every = simulated(ann, found.scales, images, lambda s: s.reshape(T, 2, 3, 2, 3, 2, 4).max((3, 5)))[-1]
    assert np.abs(scores - exact).max() < 0.5 * np.abs(every - exact).max()
    again = found.model.from_config(found.model.get_config())
    again.set_weights(found.model.get_weights())
    np.testing.assert_array_equal(again.observe(images)[1]["second_lif"], two)


@pytest.mark.parametrize("start, reset", [(0.0, "subtract"), (0.25, "subtract"), (0.5, "zero")])
def test_nothing_is_lost_but_what_the_membrane_holds(start: float, reset: str) -> None:
    """theta N = sum of I + v_0 - v_T, for any input; a reset to 0 fails it."""
    rng = np.random.default_rng(2)
    currents = rng.normal(0.3, 0.6, (50, 3, 40)).astype("f")
    neuron = Neuron.lif(1.0, 0.75, reset=reset, start=start)
    begin = gradients.initial_state((3, 40), neuron)
    _, end = gradients.simulate(tf.constant(currents), begin, neuron)
    left = currents.astype("d").sum(0) + begin.membrane - end.membrane
    error = np.abs(0.75 * end.count - left).max()
    assert error < 1e-4 if reset == "subtract" else error > 1.0


@pytest.mark.parametrize("shape, pool", [((4, 6), {}), ((5, 7), {"pool_size": 3, "strides": 2, "padding": "same"}),
                                         ((5, 5), {"pool_size": (2, 1), "strides": 1})])
def test_the_gate_sends_the_rate_of_the_maximum(shape: tuple[int, int], pool: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    rates = rng.choice([0.0, 0.1, 0.3, 0.6], (1, 2, *shape, 3))
    spikes = (rng.random((200, *rates.shape[1:])) < rates).astype("f")
    layer = keras.layers.MaxPooling2D(**pool)
    gate = MaxPoolGate.like(layer)
    out = gate(spikes).numpy()
    counts, most = out.sum(0), layer(spikes.sum(0)).numpy()
    each = layer(spikes.reshape(-1, *spikes.shape[2:])).numpy().reshape(out.shape).sum(0)
    assert out.shape == gate.compute_output_shape(spikes.shape) and set(np.unique(out)) == {0.0, 1.0}
    assert np.abs(counts - most).max() < 20 and np.abs(each - most).max() > 40
    if not pool:
        np.testing.assert_array_equal(out, gated(spikes))


@pytest.mark.parametrize(("steps", "more"), [(16, 0.08), (128, 0.02)])
def test_the_gate_sends_some_spikes_more_than_the_exact_maximum(steps: int, more: float) -> None:
    """The figures of docs/conversion.md."""
    rng = np.random.default_rng(0)
    rates = np.minimum(rng.exponential(0.2, (1, 16, 16, 16, 8)), 1.0)
    spikes = (rng.random((steps, *rates.shape[1:])) < rates).astype("f")
    exact = keras.layers.MaxPooling2D(2)(spikes.sum(0)).numpy()
    passed = MaxPoolGate()(spikes).numpy().sum(0)
    assert (passed >= exact).all() and passed.sum() / exact.sum() - 1 == pytest.approx(more, abs=0.005)


@pytest.mark.parametrize("pool", [{}, {"pool_size": 3, "strides": 2, "padding": "same"}])
def test_the_gate_sends_what_the_highest_net_count_gains_at_least(pool: dict[str, Any]) -> None:
    currents = np.random.default_rng(0).normal(0.1, 0.7, (60, 2, 6, 6, 3)).astype("f")
    spikes = BipolarIF()(currents).numpy()
    layer = keras.layers.MaxPooling2D(**pool)
    counts = np.cumsum(spikes, 0).reshape(-1, 6, 6, 3)
    gains = np.diff(layer(counts).numpy().reshape(60, 2, *layer(counts).shape[1:]), axis=0, prepend=0.0)
    out = MaxPoolGate.like(layer)(spikes).numpy()
    assert (out >= gains).all() and (gains == -1).sum() > 100
    assert not (out == -1)[gains != -1].any() and 0 < (out != -1)[gains == -1].mean() < 0.5


# ---- whole networks ------------------------------------------------------------------------------------------------


@pytest.fixture
def residual(monkeypatch: pytest.MonkeyPatch) -> keras.Model:
    """A normalised twin with both kinds of shortcut and a pooling."""
    monkeypatch.setitem(VARIANTS, "small", Variant((Conv(4), Block(4), Pool(), Block(6, (2, 1))), hidden=0))
    return with_statistics(models.create("small", (8, 8, 1), 3, 1, neuron="relu", norm="tdbn", seed=3))


def distances(twin: keras.Model, found: conversion.Conversion, images: np.ndarray) -> np.ndarray:
    """Of rates to the twin's activations, relative, by layer; the last is that of the scores."""
    relus = [layer for layer in twin.layers if isinstance(layer, keras.layers.ReLU)]
    *wanted, scores = keras.Model(twin.input, [*(layer.output for layer in relus), twin.output])(images)
    output, counts = found.model.observe(images)
    rates = [counts[relu.name.replace("_relu", "_lif")].numpy() * found.scales[relu.name] / found.model.timesteps
             for relu in relus]
    return np.array([np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip([*rates, output], [*wanted, scores])])


def test_a_normalised_twin_spikes_as_it_computes(residual: keras.Model) -> None:
    images = images_of(4, 8, 8, 1)
    found = {steps: conversion.convert(residual, images, "rueckauer", 100.0, timesteps=steps, start=0.5)
             for steps in (8, 64)}
    assert found[64].model.engine is not None and {layer.neuron.reset for layer in found[64].model.layers
                                                   if isinstance(layer, LIF)} == {"subtract"}
    short, long = (distances(residual, converted, images) for converted in found.values())
    lost = distances(residual, conversion.convert(residual, images, "data", 100.0, timesteps=64, encoder="direct"), images)
    assert (long < 0.1).all() and (long < 0.4 * short).all() and (lost > 2 * long).all(), (short, long, lost)


def test_layers_without_a_relu_between_keep_their_units() -> None:
    image = keras.Input((5, 5, 2))
    x = keras.layers.DepthwiseConv2D(3, padding="same", name="by_channel")(image)
    x = keras.layers.ReLU(name="relu")(keras.layers.Conv2D(3, 1, name="across")(x))
    ann = with_statistics(keras.Model(image, keras.layers.Dense(2)(keras.layers.Flatten()(x))))
    ann.get_layer("by_channel").bias.assign([0.3, -0.2])
    images = images_of(2, 5, 5, 2)
    model = conversion.build(ann, {"relu": 4.0}, 32, method="rueckauer", start=0.5)
    activations = keras.Model(image, ann.get_layer("relu").output)(images).numpy()
    assert 0.3 < activations.max() < 4.0
    rates = model.observe(images)[1]["relu_lif"].numpy() * 4.0 / 32
    np.testing.assert_allclose(rates, activations, atol=0.5 * 4.0 / 32 + 1e-5)


@pytest.mark.parametrize("use_bias, dtype", [(False, "bfloat16"), (True, "float32")])
def test_a_bias_is_added_in_float32(use_bias: bool, dtype: str) -> None:
    image, policy = keras.Input((4,)), {"dtype": "mixed_bfloat16"}
    x = keras.layers.ReLU(name="relu", **policy)(keras.layers.Dense(3, use_bias=use_bias, **policy)(image))
    ann = keras.Model(image, keras.layers.Dense(2, use_bias=False, **policy)(x))
    assert conversion.build(ann, {"relu": 1.0}, 3, method="rueckauer").get_layer("relu_lif").compute_dtype == dtype


def test_a_network_with_a_gate_is_analysed_and_balanced_by_its_spikes() -> None:
    ann, images = own(keras.layers.MaxPooling2D(2), inside=True), images_of(3, 6, 6, 1)
    found = conversion.convert(ann, images, "spike_norm", timesteps=30)
    assert nets.currents_on_calibration(found.model, images)["second_lif"].max() == pytest.approx(1.0, abs=0.05)
    measured = analysis.analyse(found.model, images, np.zeros(3, np.int64))
    with pytest.warns(UserWarning, match="layer by layer.*MaxPoolGate.*follows from all steps"):
        counts = found.model.observe(images, seed=0)[1]
    assert [layer.name for layer in measured.layers] == ["encoder", "first_lif", "second_lif", "readout"]
    assert measured.layers[1].spikes == pytest.approx(counts["first_lif"].numpy().sum() / 3, rel=0.2)


def bad(*between: Any) -> keras.Model:
    x = image = keras.Input((4, 4, 2))
    for layer in between:
        x = layer(x)
    return keras.Model(image, keras.layers.Dense(2)(keras.layers.Flatten()(x)))


@pytest.mark.parametrize("between, message", [
    ([keras.layers.ReLU, keras.layers.BatchNormalization], "cannot be folded into weights.*Dense"),
    ([lambda: keras.layers.Conv2D(2, 1, activation="relu"), keras.layers.BatchNormalization], "cannot be folded"),
    ([lambda: keras.layers.Conv2D(2, 1), lambda: keras.layers.BatchNormalization(axis=1)], "normalise its channels"),
    ([lambda: keras.layers.Conv2D(2, 1), keras.layers.MaxPooling2D, keras.layers.ReLU], "Max pooling.*behind the next ReLU"),
    ([lambda: keras.layers.Conv2D(2, 1), keras.layers.Softmax], "a Softmax, has no counterpart"),
    ([lambda: keras.layers.Conv2D(2, 1, activation="tanh")], "has an activation of its own")])
def test_what_cannot_be_folded_or_gated_is_refused_in_one_sentence(between: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        conversion.convert(bad(*(layer() for layer in between)), np.ones((1, 4, 4, 2), "f"), "rueckauer")
    assert "\n" not in str(caught.value)


# ---- a trained network ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method, steps", [("rueckauer", 32), ("quantised", 8)])
def test_few_steps_are_within_a_point_of_the_trained_twin(method: str, steps: int, tmp_path: Path) -> None:
    asked = {"dataset": "mnist_subset", "epochs": 4, "workdir": str(tmp_path), "tensorboard": False, "export": ()}
    assert training.run(config.resolve(asked, method=method), say=lambda line: None) == 0
    record = command.run(options.ConversionOptions(run=str(tmp_path), method=method, timesteps=steps),
                         lambda line: None)
    assert record["ann_accuracy"] > 0.95 and record["accuracy"][str(steps)] > record["ann_accuracy"] - 0.01, record
