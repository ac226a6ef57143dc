"""Conversion: rates against the activations of a NumPy net, thresholds that are balanced, and the command."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import nets
import oracle
import runs
from tfspike import (
    LIF,
    DirectEncoder,
    OverTime,
    PoolingIF,
    Readout,
    analysis,
    config,
    conversion,
    datasets,
    evaluation,
    models,
    training,
)
from tfspike.conversion import balance, command, options
from tfspike.conversion import scales as of_layers
from tfspike.datasets import DatasetInfo, streams
from tfspike.errors import UserError
from tfspike.evaluation import report
from tfspike.evaluation.options import EvalOptions
from tfspike.models import ann
from tfspike.runs import loading as run_loading

NETS = ("plain", "residual")


def make(name: str, positive: bool = False) -> tuple[models.ReluModel, list[np.ndarray]]:
    """A ReLU net of `nets.SPECS` with random weights on a grid; "residual" has identity shortcuts at stride 1 and 2."""
    spiking = nets.from_blocks(nets.SPECS[name], 2, encoder="poisson")
    weights = nets.set_grid_weights(spiking, 2.0)
    if positive:
        weights = [np.abs(weight) for weight in weights]
        for variable, weight in zip(spiking.trainable_variables, weights, strict=True):
            variable.assign(weight)
    return ann.twin(spiking), weights


def images_of(name: str, count: int = 6, least: float = -1.0) -> np.ndarray:
    return np.random.default_rng(5).uniform(least, 1, (count, *nets.SPECS[name].image)).astype("f")


def distances(rates: list[np.ndarray], scales: dict[str, float], activations: list[np.ndarray]) -> list[float]:
    """How far rates, in the ANN's units, are from its activations: Euclidean, relative, by layer."""
    return [float(np.linalg.norm(rate * scale - wanted) / np.linalg.norm(wanted))
            for rate, scale, wanted in zip(rates, scales.values(), activations, strict=True)]


def relu_activations(name: str, weights: list[np.ndarray], images: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    activations, logits = oracle.relu_forward(nets.SPECS[name].stages, weights, images)
    assert all(0.05 < (layer > 0).mean() < 0.95 for layer in activations), "a layer that is off or linear shows nothing"
    return activations, logits


def lif_rates(model: Any, images: np.ndarray, least: float = 0.001) -> list[np.ndarray]:
    """Rates of the LIF layers, spikes per step; every layer fires."""
    activity = tf.function(lambda x: model.observe(x)[1], autograph=False)(tf.constant(images))  # windows are long
    rates = [activity[call.layer.name].numpy() / model.timesteps for call in model.plan.spiking
             if isinstance(call.layer, LIF)]
    assert all(least <= rate.mean() < 0.9 for rate in rates) and rates[0].any(), [rate.mean() for rate in rates]
    return rates


# ---- rates are activations ---------------------------------------------------------------------------------------


def gains(rates: list[np.ndarray], scales: dict[str, float], activations: list[np.ndarray]) -> np.ndarray:
    """What share of the activations arrives as rates, by layer."""
    return np.array([rate.sum() * scale / wanted.sum()
                     for rate, scale, wanted in zip(rates, scales.values(), activations, strict=True)])


@pytest.mark.parametrize("name", NETS)
def test_rates_approach_the_activations_of_the_numpy_net_as_the_window_grows(name: str) -> None:
    """Through the whole depth. The reset loses some 10 % in every layer (see the module's text), and nothing else."""
    twin, weights = make(name, positive=True)
    images = images_of(name, 2, least=0.2)
    activations, _ = oracle.relu_forward(nets.SPECS[name].stages, weights, images)
    data = conversion.convert(twin, images, "data", 100.0, timesteps=2).scales
    scales = {relu: 4.0 * value for relu, value in data.items()}
    short, long = (lif_rates(conversion.build(twin, scales, timesteps), images, least) for timesteps, least in
                   ((40, 0.0), (400, 0.001)))
    near, far = distances(long, scales, activations), distances(short, scales, activations)
    assert all(after < before for before, after in zip(far, near, strict=True)) and near[0] < 0.1
    assert all(np.corrcoef(rate.ravel(), wanted.ravel())[0, 1] > 0.99 for rate, wanted in zip(long, activations))
    kept = gains(long, scales, activations)
    assert kept[0] > 0.9 and (kept[1:] > 0.84 * kept[:-1]).all() and (kept[1:] < kept[:-1]).all(), kept


def test_a_missing_factor_is_noticed_by_the_measure_above() -> None:
    """The negative control: a shortcut that keeps weight 1 although its ends have different scales."""
    twin, weights = make("residual", positive=True)
    images = images_of("residual", 2, least=0.2)
    activations, _ = oracle.relu_forward(nets.SPECS["residual"].stages, weights, images)
    data = conversion.convert(twin, images, "data", 100.0, timesteps=2).scales
    scales = {relu: 4.0 * value for relu, value in data.items()}
    model = conversion.build(twin, scales, 400)
    rescaling = model.get_layer("block3_current_identity1").layer
    assert rescaling.scale < 0.7
    rescaling.scale = 1.0
    kept = gains(lif_rates(model, images), scales, activations)
    position = list(scales).index("block3_b_relu")
    assert kept[position] > 1.1 * kept[position - 1]


@pytest.mark.parametrize("name", NETS)
def test_rates_of_the_first_layer_approach_its_activations_with_weights_of_both_signs(name: str) -> None:
    twin, weights = make(name)
    images = images_of(name)
    activations, _ = relu_activations(name, weights, images)
    scales = {relu: 8.0 * value for relu, value in
              conversion.convert(twin, images, "data", 100.0, timesteps=2).scales.items()}
    short, long = (distances(lif_rates(conversion.build(twin, scales, timesteps), images, least=0.0), scales,
                             activations)[0] for timesteps in (40, 400))
    assert long < 0.1 and long < short / 3


@pytest.mark.parametrize("name", NETS)
def test_the_network_is_the_numpy_simulation_with_scaled_weights(name: str) -> None:
    """Equal scales make every identity factor 1, so that the oracle, which has none, simulates the same net."""
    twin, weights = make(name)
    images, timesteps = images_of(name, 3), 60
    largest = max(conversion.convert(twin, images, "data", 100.0, timesteps=2).scales.values())
    scale = 2.0 ** np.ceil(np.log2(largest) - 1)  # a power of two: weights stay on their grid, and sums stay exact
    model = conversion.build(twin, dict.fromkeys(balance.Network(twin).relus, scale), timesteps)
    first = [weights[0] / scale, *weights[1:-1], weights[-1] * scale]
    if name == "residual":
        assert not [layer for layer in model.layers if "identity" in layer.name]
    train = model.plan.encoder.layer(images, training=False, seed=0).numpy()
    record = oracle.forward(oracle.Net(nets.SPECS[name].stages, leak=1.0), first, train)
    output, activity = model.observe(images)
    assert all(layer.spikes.mean() > 0.005 for layer in record.layers)
    for count, layer in zip(activity.values(), record.layers, strict=True):
        np.testing.assert_array_equal(count, layer.spikes.sum(axis=0))
    np.testing.assert_allclose(output, record.output, rtol=1e-5, atol=1e-5)


def test_a_constant_current_fires_at_the_rate_that_the_module_states() -> None:
    image = keras.Input((9,))
    x = keras.layers.ReLU(name="relu")(keras.layers.Dense(9, use_bias=False, kernel_initializer="identity")(image))
    net = keras.Model(image, keras.layers.Dense(2, use_bias=False)(x))
    currents = np.array([[0.049, 0.13, 0.24, 0.3, 0.45, 0.6, 0.7, 0.9, 0.99]], "f")
    model = conversion.build(net, {"relu": 1.0}, 1000, encoder="direct")
    assert isinstance(model.plan.encoder.layer, DirectEncoder)
    rate = model.observe(currents)[1]["relu_lif"].numpy()[0] / 1000
    np.testing.assert_allclose(rate, 1 / (np.floor(1 / currents[0]) + 1), atol=1e-3)
    assert (currents[0] - rate <= currents[0] ** 2 / (1 + currents[0]) + 1e-3).all() and (rate > 0).all()


def test_pooling_neurons_have_the_factor_one_whatever_the_order_of_spikes() -> None:
    rng = np.random.default_rng(0)
    alone = np.zeros((400, 1, 2, 2, 1), "f")
    for t, pixel in enumerate(rng.integers(0, 4, 400)):
        alone[t, 0, pixel // 2, pixel % 2, 0] = 1.0  # one spike per step: nothing coincides
    together = np.repeat((rng.random((400, 1, 1, 1, 1)) < 0.3).astype("f"), 4, axis=2).reshape(400, 1, 2, 2, 1)
    sparse = (rng.random((3000, 1, 2, 2, 1)) < 0.02).astype("f")  # few coincide, and a jump beyond 1 is rare
    for train, allowed in ((alone, 0.0), (together, 0.0), (sparse, 0.04)):
        assert train.sum() > 100
        current = OverTime(keras.layers.AveragePooling2D(2))(train)
        count = float(tf.reduce_sum(PoolingIF()(current)))
        assert abs(count / (train.sum() / 4) - 1) <= allowed + 1 / count


def pooled(pool: tuple[int, int]) -> keras.Model:
    """A ReLU, and an average of all its pixels."""
    return net_of(keras.layers.Conv2D(1, 1, use_bias=False, kernel_initializer="ones"), keras.layers.ReLU(name="relu"),
                  keras.layers.AveragePooling2D(pool, name="pool"), keras.layers.Flatten(), keras.layers.Dense(2),
                  shape=(*pool, 1))


@pytest.mark.parametrize("pool", [(2, 2), (3, 3), (2, 3), (5, 5)])  # in float32, 5/6 exceeds 1 - 1/6
def test_a_pooling_neuron_of_any_size_fires_with_as_many_spikes_as_it_has_pixels(pool: tuple[int, int]) -> None:
    neurons, pixels = conversion.build(pooled(pool), {"relu": 1.0}, 2).get_layer("pool_if"), int(np.prod(pool))
    alone = np.tile(np.eye(pixels, dtype="f"), (4, 1)).reshape(-1, 1, *pool, 1)
    fired = neurons(OverTime(keras.layers.AveragePooling2D(pool))(alone)).numpy().ravel()
    np.testing.assert_array_equal(np.flatnonzero(fired), pixels * np.arange(1, 5) - 1)


@pytest.mark.parametrize("pool", [(2, 2), (3, 3)])
def test_so_does_that_of_the_calibration_whose_spikes_count_a_scale(pool: tuple[int, int],
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """All pixels but one fire at the first step and that one at the second; in float32, three of .11341865 are more
    than .75 of four."""
    neurons, own = [], of_layers._fire
    monkeypatch.setattr(of_layers, "_fire", lambda currents, neuron: neurons.append(neuron) or own(currents, neuron))
    conversion.convert(pooled(pool), np.ones((1, *pool, 1), "f"), "spike_norm", timesteps=2)
    sizes = np.append(np.float32(0.11341865), np.random.default_rng(0).uniform(0.1, 5, 300).astype("f"))
    last = np.arange(np.prod(pool)) == np.prod(pool) - 1
    spikes = np.stack([~last, last])[:, None] * sizes[:, None]
    averages = OverTime(keras.layers.AveragePooling2D(pool))(spikes.reshape(2, -1, *pool, 1).astype("f"))
    fired = own(averages[..., 0, 0, 0] / sizes, neurons[1]).numpy()
    np.testing.assert_array_equal(fired, np.repeat([[0.0], [1.0]], len(sizes), axis=1))


# ---- how scales are found ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("percentile", [100.0, 99.0])
@pytest.mark.parametrize("name", NETS)
def test_data_scales_are_percentiles_of_positive_activations(name: str, percentile: float) -> None:
    twin, weights = make(name)
    images = images_of(name, 11)  # more than a part, and no multiple of it
    activations, _ = relu_activations(name, weights, images)
    scales = conversion.convert(twin, images, "data", percentile, timesteps=2).scales
    wanted = [np.percentile(layer[layer > 1e-6], percentile) for layer in activations]
    np.testing.assert_allclose(list(scales.values()), wanted, rtol=1e-3)


@pytest.mark.parametrize(("name", "start"), [*((name, 0.0) for name in NETS), ("plain", 0.9)])
def test_spike_norm_makes_the_largest_current_of_every_layer_the_threshold(name: str, start: float) -> None:
    twin, _ = make(name, positive=name == "residual")  # with both signs its last layers would need a long window
    images = images_of(name, least=0.2)
    converted = conversion.convert(twin, images, "spike_norm", timesteps=50, start=start)
    currents = nets.currents_on_calibration(converted.model, images)
    assert len(currents) == len(converted.scales)
    for position, (layer, values) in enumerate(currents.items()):
        # the neuron with the largest current stands at its threshold, where rounding decides: behind the first layer a
        # spike may come or not, and moves a current by its weight
        assert values.max() == pytest.approx(1.0, abs=0.05 if position else 1e-5), layer
    again = conversion.convert(twin, images, "spike_norm", timesteps=50, start=start)
    assert again.scales == converted.scales


def test_constant_pixels_are_balanced_as_they_are() -> None:
    images = np.random.default_rng(0).uniform(-1, 1, (3, 2, 2, 1)).astype("f")
    scales = conversion.convert(pooled((2, 2)), images, "spike_norm", timesteps=2, encoder="direct").scales
    assert scales["relu"] == pytest.approx(images.max())


def test_values_are_thinned_out_but_for_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_layers, "_VALUES", 300)
    rest = np.random.default_rng(0).permutation(np.arange(-500, 1000))
    kept = of_layers._positive(tf.constant([1, 1000, *rest], tf.float32), 24)  # of 8 of 24 images
    assert 50 < len(kept) <= 101 and kept.max() == 1000 and kept.min() > 0
    assert np.median(kept) == pytest.approx(500, rel=0.2)


def test_a_percentile_of_currents_is_below_their_maximum() -> None:
    twin, _ = make("plain")
    images = images_of("plain")
    low, high = (conversion.convert(twin, images, "spike_norm", percentile, timesteps=50).scales
                 for percentile in (99.0, None))
    assert all(0 < low[relu] < high[relu] for relu in high)


# ---- the spiking network -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lenet", "vgg9", "resnet9"])
def test_without_identities_the_result_is_the_network_that_create_makes(name: str) -> None:
    arguments = (name, (32, 32, 1), 4)
    wanted = models.create(*arguments, timesteps=25, leak=1.0, dropout=0.0, gradient="rate", hidden=8, encoder="direct")
    twin = models.create(*arguments, timesteps=25, neuron="relu", hidden=8)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 1)).astype("f")
    found = conversion.convert(twin, images, timesteps=25, encoder="direct").model
    assert [layer.name for layer in found.layers] == [layer.name for layer in wanted.layers]
    assert [v.path for v in found.variables] == [v.path for v in wanted.variables]
    assert found.engine is not None and found.timesteps == 25
    assert {layer.leak for layer in found.layers if isinstance(layer, (LIF, Readout))} == {1.0}
    if name == "lenet":  # shallow enough to answer within the window
        wanted.set_weights(found.get_weights())
        np.testing.assert_array_equal(wanted(images), found(images))
        assert np.abs(found(images)).min() > 0


def test_identity_shortcuts_get_the_ratio_of_their_scales() -> None:
    twin, _ = make("residual")
    converted = conversion.convert(twin, images_of("residual"), timesteps=5)
    scales = converted.scales
    factors = {layer.name: layer.layer.scale for layer in converted.model.layers
               if isinstance(layer, OverTime) and isinstance(layer.layer, keras.layers.Rescaling)}
    assert factors == {
        "block2_current_identity1": pytest.approx(scales["block1_b_relu"] / scales["block2_b_relu"]),
        "block3_current_identity1": pytest.approx(scales["block2_b_relu"] / scales["block3_b_relu"])}
    assert all(abs(factor - 1) > 0.01 for factor in factors.values())


@pytest.mark.slow
@pytest.mark.parametrize("gradient", [pytest.param("event", marks=pytest.mark.slow), "rate"])
def test_a_converted_residual_net_is_saved_analysed_and_trained_further(gradient: str, tmp_path: Path) -> None:
    twin, _ = make("residual", positive=True)
    images = images_of("residual", least=0.2)
    model = conversion.convert(twin, images, timesteps=20, gradient=gradient).model
    lif_rates(model, images)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images), model(images))
    assert loaded.engine is not None and loaded.engine.gradient == gradient
    np.testing.assert_allclose(model.call_layers(images), model(images), atol=1e-5)
    found = analysis.analyse(model, images, np.zeros(len(images), np.int64))
    spikes = sum(layer.spikes for layer in found.layers)
    assert found.spikes_by_step[-1] == pytest.approx(spikes) and spikes > 0
    before = [v.numpy() for v in model.trainable_variables]
    model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=False)
    model.train_on_batch(images, np.eye(nets.CLASSES, dtype="f")[[0, 1, 2, 0, 1, 2]])
    assert all(np.abs(v.numpy() - old).max() > 0 for v, old in zip(model.trainable_variables, before))


def test_an_own_keras_network_is_converted_too() -> None:
    def activate(x: Any) -> Any:
        return keras.layers.Dropout(0.3)(keras.layers.Activation("relu")(x))

    image = keras.Input((8, 8, 1))
    x = activate(keras.layers.Conv2D(4, 3, use_bias=False, padding="same")(image))
    x = activate(keras.layers.DepthwiseConv2D(3, use_bias=False)(keras.layers.AveragePooling2D(2, name="half")(x)))
    net = keras.Model(image, keras.layers.Dense(3, use_bias=False)(keras.layers.Flatten()(x)))
    images = np.random.default_rng(0).uniform(0, 1, (4, 8, 8, 1)).astype("f")
    for method in ("data", "spike_norm"):  # test_rueckauer.py has the others
        model = conversion.convert(net, images, method, timesteps=400).model
        assert [type(call.layer).__name__ for call in model.plan.spiking] == ["LIF", "PoolingIF", "LIF"]
        scores, counts = tf.function(model.observe, autograph=False)(tf.constant(images))  # windows are long
        assert all(count.numpy().sum() > 0 for count in counts.values())
        assert np.corrcoef(scores.numpy().ravel(), net(images).numpy().ravel())[0, 1] > 0.9, method


# ---- refusals ----------------------------------------------------------------------------------------------------


def net_of(*build: Callable[[Any], Any], shape: tuple[int, ...] = (4, 4, 1)) -> keras.Model:
    image = x = keras.Input(shape)
    for layer in build:
        x = layer(x)
    return keras.Model(image, x)


def conv(**kwargs: Any) -> Any:
    return keras.layers.Conv2D(2, 3, **{"use_bias": False, "padding": "same", **kwargs})


BAD_NETS: dict[str, tuple[Callable[[], Any], str]] = {
    "fused": (lambda: net_of(conv(activation="gelu", name="c"), conv()), "'c' has an activation of its own"),
    "softmax": (lambda: net_of(conv(), keras.layers.Softmax(), conv()), "a Softmax, has no"),
    "leaky": (lambda: net_of(conv(), keras.layers.ReLU(negative_slope=0.1), conv()), "a ReLU, has no"),
    "capped": (lambda: net_of(conv(), keras.layers.ReLU(max_value=6.0), conv()), "a ReLU, has no"),
    "max": (lambda: net_of(conv(), keras.layers.MaxPooling2D(), keras.layers.ReLU(), conv()), "Max pooling .* behind the"),
    "norm": (lambda: net_of(conv(), keras.layers.ReLU(), keras.layers.BatchNormalization(), conv()), "cannot be folded"),
    "pool first": (lambda: net_of(keras.layers.AveragePooling2D(2), conv(), keras.layers.ReLU(), conv()), "behind the next"),
    "relu first": (lambda: net_of(keras.layers.ReLU(), conv()), "must follow a layer with weights"),
    "no relu": (lambda: net_of(conv()), "has no ReLU"),
    "rates out": (lambda: net_of(conv(), keras.layers.ReLU()), "must end with logits"),
    "spiking": (lambda: models.create("lenet", (8, 8, 1), 2, 3), "a PoissonEncoder, has no"),
    "subclass": (lambda: object(), "functional Keras model.*object"),
}


@pytest.mark.parametrize("case", BAD_NETS)
def test_networks_that_spikes_cannot_follow_are_refused_in_one_sentence(case: str) -> None:
    make_net, message = BAD_NETS[case]
    with pytest.raises(UserError, match=message) as caught:
        conversion.convert(make_net(), np.ones((1, 4, 4, 1), "f"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("changes", "message"), [
    ({"method": "max"}, "method.*'data', 'spike_norm'.*Received"), ({"percentile": 0}, r"percentile.*\(0, 100\].*Received"),
    ({"percentile": 101.0}, "percentile"), ({"percentile": float("nan")}, "percentile"), ({"timesteps": 0}, "timesteps"),
    ({"encoder": "latency"}, "encoder.*'poisson', 'direct'"), ({"gradient": "none"}, "gradient"),
    ({"images": np.ones((0, 8, 8, 1))}, "at least one"), ({"images": np.ones((2, 8, 7, 1))}, r"\[N, 8, 8, 1\].*Received"),
    ({"images": np.zeros((2, 8, 8, 1))}, "'conv1_1_relu' is silent.*more images"),
    ({"images": np.zeros((2, 8, 8, 1)), "method": "spike_norm"}, "'conv1_1_relu' is silent")])
def test_bad_arguments_are_refused_in_one_sentence(changes: dict[str, Any], message: str) -> None:
    twin = models.create("lenet", (8, 8, 1), 2, 3, neuron="relu", hidden=4)
    with pytest.raises(UserError, match=message) as caught:
        conversion.convert(twin, **{"images": np.ones((2, 8, 8, 1), "f"), "timesteps": 5, **changes})
    assert "\n" not in str(caught.value)


def test_pixels_that_the_encoder_would_cut_off_are_said() -> None:
    twin = models.create("lenet", (8, 8, 1), 2, 3, neuron="relu", hidden=4)
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 1)).astype("f")
    with pytest.warns(UserWarning, match="Encoders expect pixels of about .*scale them") as caught:
        conversion.convert(twin, images, timesteps=2)
    assert [warning.filename for warning in caught if warning.category is UserWarning] == [__file__]


@pytest.mark.parametrize("scales", [{}, {"conv1_1_relu": 1.0, "conv2_1_relu": 0.0}])
def test_a_scale_for_every_relu_is_needed(scales: dict[str, float]) -> None:
    twin = models.create("lenet", (8, 8, 1), 2, 3, neuron="relu", hidden=0)
    with pytest.raises(UserError, match="scales.*above 0.*Received for 'conv"):
        conversion.build(twin, scales, 5)


# ---- the command -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt something."""
    folder = tmp_path_factory.mktemp("conversion") / "run"
    settings = runs.tiny(folder, neuron="relu", timesteps=config.Config().timesteps, batch_size=16, epochs=1,
                         steps_per_epoch=100, learning_rate=0.1, lr_milestones=(), checkpoint_every=0)
    assert training.run(settings, say=lambda line: None) == 0
    return folder


@pytest.fixture(scope="module")
def converted(run: Path) -> tuple[Path, dict[str, Any]]:
    record = command.run(options.ConversionOptions(run=str(run), timesteps=40, images=200, calibration=20,
                                                   steps=(5, 20, 80)), lambda line: None)
    return Path(record["out"]), record


def test_the_command_compares_the_ann_and_the_spiking_network_over_time(converted: tuple[Path, dict[str, Any]]) -> None:
    out, record = converted
    assert out.name == "data-99.9-calibration20-T40" and list(record["accuracy"]) == ["5", "20", "40"]
    assert record["ann_accuracy"] > 0.7
    assert record["accuracy"]["5"] < record["accuracy"]["40"] and record["accuracy"]["40"] > record["ann_accuracy"] - 0.1
    spikes = list(record["spikes_per_image"].values())
    assert 0 < spikes[0] < spikes[1] < spikes[2] and 0 < record["neuron_spikes_per_image"] < spikes[2]
    assert all(rate > 0 for rate in record["rates"].values()) and len(record["rates"]) == 4
    assert json.loads(command.json_line(record)) == record
    text = command.describe(record)
    assert "ANN" in text and "spikes per image" in text and "conv2_1_lif" in text


@pytest.mark.slow
def test_another_network_in_the_same_folder_is_not_compared_by_the_report_of_the_one_before(run: Path,
                                                                                            tmp_path: Path) -> None:
    out = str(tmp_path / "out")

    def converted(calibration: int) -> None:
        command.run(options.ConversionOptions(run=str(run), out=out, timesteps=10, images=20, calibration=calibration),
                    lambda line: None)

    def compared() -> float:
        return report._record(out, EvalOptions(workdir=out, images=20), lambda line: None)["spikes_per_image"]

    converted(1)
    report.write(out, EvalOptions(workdir=out, images=20), say=lambda line: None)
    before = compared()
    converted(20)
    assert compared() != before


def test_test_images_are_normalised_a_part_at_a_time(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, normalise = [], DatasetInfo.normalise
    monkeypatch.setattr(DatasetInfo, "normalise",
                        lambda info, images: sizes.append(len(images)) or normalise(info, images))
    command.run(options.ConversionOptions(run=str(run), out=str(tmp_path / "out"), timesteps=5, images=300,
                                          calibration=20), lambda line: None)
    assert len(sizes) > 2 and max(sizes) == 100


def test_training_images_are_those_of_the_run_with_its_extra_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(datasets, "load", lambda name, split, data_dir, timesteps, extra, *_: asked.append(extra))
    settings = config.resolve({"model": "lenet", "dataset": "svhn", "extra": True})
    for split in ("train", "test"):  # where there are test images alone they are enough to test on
        run_loading.load_data(settings, None, split)
    assert asked == [True, False]


def test_scales_are_found_on_images_of_all_classes_also_where_a_folder_has_them_one_behind_the_other(
        monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.repeat(np.arange(4, dtype=np.int32), 50)
    images = np.broadcast_to(labels[:, None, None, None] + 2, (200, 8, 8, 1)).astype(np.uint8)
    info = DatasetInfo("folder", (8, 8, 1), 4, tuple("abcd"), (1.0,), (0.0,), False, 200, 0)
    for name, wanted in (("folder", {2, 3, 4, 5}), ("mnist", {2})):  # of a known set the first ones, as ever
        train = datasets.Arrays(images, labels, name, tuple("abcd"), 200, 0)
        monkeypatch.setattr(run_loading, "load_data", lambda *_, train=train: train)
        found = command._calibration(config.Config(val_fraction=0.1), info,
                                     options.ConversionOptions(run="x", calibration=20))
        assert found.shape == (20, 8, 8, 1) and set(found[:, 0, 0, 0].tolist()) == wanted
    numbered = datasets.Arrays(np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None, None, None], images.shape), labels,
                               "folder", tuple("abcd"), 200, 0)
    monkeypatch.setattr(run_loading, "load_data", lambda *_: numbered)
    found = command._calibration(config.Config(val_fraction=0.5), info, options.ConversionOptions(run="x"))
    held_out = streams.split_indices(200, 0.5, config.Config().seed, "folder")[1]
    assert set(found[:, 0, 0, 0].astype(int)) == set(range(200)) - set(held_out)


@pytest.mark.parametrize("given, name", [
    ({}, "data-99.9-T100"), ({"method": "rueckauer", "start": 0.5, "timesteps": 16}, "rueckauer-99.9-start0.5-T16"),
    ({"encoder": "poisson"}, "data-99.9-T100"), ({"encoder": "direct"}, "data-99.9-direct-T100"),
    ({"calibration": 1000}, "data-99.9-calibration1000-T100"), ({"seed": 3}, "data-99.9-T100-seed3"),
    ({"checkpoint": "last"}, "data-99.9-T100-last"), ({"percentile": 99.99999}, "data-99.99999-T100"),
    ({"method": "quantised", "calibration": 3}, "quantised-T100")])
def test_networks_that_differ_have_folders_that_differ(given: dict[str, Any], name: str) -> None:
    asked = options.ConversionOptions(run="x", **given)
    percentile = conversion.METHODS[asked.method].percentile if asked.percentile is None else asked.percentile
    assert command._folder(asked, percentile) == name


@pytest.mark.slow
def test_a_measurement_is_kept_without_places_of_the_machine(run: Path, tmp_path: Path) -> None:
    kept = tmp_path / "conversions.jsonl"
    asked = options.ConversionOptions(run=str(run), out=str(tmp_path / "out"), timesteps=5, images=20, calibration=20,
                                      steps=(5,), record=str(kept))
    for _ in range(2):
        record = command.run(asked, lambda line: None)
    first, second = map(json.loads, kept.read_text().splitlines())
    assert first == second and "/tmp" not in kept.read_text() and str(tmp_path) not in kept.read_text()
    assert first["accuracy"] == record["accuracy"] and first["machine"] and first["command"] and len(first["ann"]) == 8
    with pytest.raises(UserError, match="Cannot write --record=.* is in "):
        command.run(dataclasses.replace(asked, record=str(tmp_path / "absent" / "file")), lambda line: None)


def test_the_folder_is_a_run_to_eval_and_to_every_window(converted: tuple[Path, dict[str, Any]]) -> None:
    out, made = converted
    record = evaluation.evaluate_run(EvalOptions(workdir=str(out), seeds=1, images=200), lambda line: None)
    assert (record["timesteps"], record["neuron"]) == (40, "lif")
    assert record["test_accuracy"] == pytest.approx(made["accuracy"]["40"], abs=0.06)
    assert all(rate > 0 for rate in record["rates"].values())
    model, settings, _, _ = run_loading.load_run(str(out), timesteps=5)
    again = run_loading.load_run(str(out))[0]
    assert (model.timesteps, again.timesteps, settings.leak) == (5, 40, 1.0)
    for a, b in zip(model.trainable_variables, again.trainable_variables, strict=True):
        np.testing.assert_array_equal(a, b)
    shorter = model(np.full((1, 28, 28, 1), 0.5, "f")).numpy()
    assert np.abs(shorter).max() > 0


def test_training_does_not_go_on_in_the_folder_but_from_its_file(converted: tuple[Path, dict[str, Any]],
                                                                tmp_path: Path) -> None:
    out, _ = converted
    settings = config.resolve(config_file=str(out / "config.json"))
    with pytest.raises(UserError, match="converted network.*--init_from="):
        training.run(settings, say=lambda line: None)
    further = runs.tiny(tmp_path / "further", leak=1.0, timesteps=10)
    lines: list[str] = []
    assert training.run(further, config.RunOptions(init_from=str(out / "model.keras")), lines.append) == 0
    assert any("First weights from the .keras file" in line for line in lines)


def test_folders_that_the_command_cannot_use_are_refused(run: Path, converted: tuple[Path, dict[str, Any]]) -> None:
    out, _ = converted
    for settings, message in (({"run": str(out)}, "spiking network already"),
                              ({"run": str(run), "out": str(run)}, "--out=.* holds a run"),
                              ({"run": str(run / "absent")}, "has none")):
        with pytest.raises(UserError, match=message) as caught:
            command.run(options.ConversionOptions(**settings), lambda line: None)
        assert "\n" not in str(caught.value)


def test_a_damaged_file_is_explained(converted: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    import shutil

    out = tmp_path / "copy"
    shutil.copytree(converted[0], out)
    (out / "model.keras").write_bytes(b"not a model")
    with pytest.raises(UserError, match="cannot be read.*convert the ANN again"):
        run_loading.load_run(str(out))


def test_flags_are_checked_before_tensorflow_is_loaded() -> None:
    code = ("import sys\nfrom tfspike.config import flags\nfrom tfspike.conversion import options\n"
            "with flags.user_errors():\n    options.parse()\nassert not {'tensorflow', 'keras'} & set(sys.modules)")

    def flags(*given: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code, *given], cwd=runs.ROOT, capture_output=True, text=True,
                              timeout=60)

    assert flags("--run=x", "--method=spike_norm", "--steps=1,2").returncode == 0
    for given, message in ((("--run=x", "--method=spikenorm"), "Did you mean 'spike_norm'"), ((), "--run is missing"),
                           (("--run=x", "--percentile=0"), "above 0 and up to 100")):
        done = flags(*given)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
