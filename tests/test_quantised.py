"""ANNs of quantised ReLUs, what their conversion keeps exactly, and neurons that take spikes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import runs
from tfspike import SpikingModel, analysis, config, conversion, models, training
from tfspike.conversion import command, options
from tfspike.errors import UserError
from tfspike.export.window import Window
from tfspike.neurons.bipolar import BipolarIF
from tfspike.neurons.quantised import LEAST, QuantisedReLU, quantise
from tfspike.training.optimisation import make_optimizer

LAYER_BY_LAYER = "ignore:.*is computed layer by layer"


def q(z: np.ndarray, a: float, levels: int) -> np.ndarray:
    """The activation, float64."""
    return a * np.clip(np.floor(z * levels / a + 0.5) / levels, 0, 1)


# ---- the activation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels, a", [(4, 1.7), (1, 0.6), (8, 5.0)])
def test_values_and_both_derivatives_on_every_side(levels: int, a: float) -> None:
    z = np.random.default_rng(0).uniform(-0.5 * a, 1.5 * a, 200).astype("f")
    upstream = np.random.default_rng(1).normal(size=200).astype("f")
    x, ceiling = tf.constant(z), tf.constant(a)
    with tf.GradientTape() as tape:
        tape.watch([x, ceiling])
        y = quantise(x, ceiling, levels)
    of_z, of_a = tape.gradient(y, [x, ceiling], output_gradients=tf.constant(upstream))
    inside = (z > 0) & (z < a)
    assert 0.2 < inside.mean() < 0.8
    np.testing.assert_allclose(y, q(z.astype("d"), a, levels), atol=1e-5)
    np.testing.assert_allclose(of_z, upstream * inside, atol=1e-6)
    slope = np.where(z >= a, 1.0, q(z.astype("d"), a, levels) / a - inside * z / a)
    np.testing.assert_allclose(of_a, (upstream * slope).sum(), rtol=1e-4)
    # the negative control: the ceiling of a plain clipped ReLU has another derivative
    assert abs(float(of_a) - float((upstream * (z >= a)).sum())) > 0.05


def test_an_optimiser_moves_the_ceiling_but_no_decay_and_never_to_0() -> None:
    layer = QuantisedReLU(4, start=0.5)
    dense = keras.layers.Dense(2)
    net = keras.Sequential([keras.Input((3,)), dense, layer])
    optimizer = make_optimizer(config.resolve({"optimizer": "adamw", "weight_decay": 0.5}), net.trainable_variables)
    before = dense.kernel.numpy()
    optimizer.apply([tf.zeros_like(v) for v in net.trainable_variables], net.trainable_variables)
    assert float(layer.ceiling) == 0.5 and (np.abs(dense.kernel) < np.abs(before)).all()
    keras.optimizers.SGD(1.0).apply([tf.constant(100.0)], [layer.ceiling])
    assert float(layer.ceiling) == pytest.approx(LEAST)


def test_a_twin_has_them_and_is_saved(tmp_path: Path) -> None:
    twin = models.create("lenet", (8, 8, 1), 2, 3, neuron="relu", hidden=4, levels=4, norm="tdbn")
    plain = models.create("lenet", (8, 8, 1), 2, 3, neuron="relu", hidden=4, norm="tdbn")
    names = [layer.name for layer in twin.layers if isinstance(layer, QuantisedReLU)]
    assert names == [layer.name for layer in plain.layers if isinstance(layer, keras.layers.ReLU)] and len(names) == 3
    twin.get_layer(names[0]).ceiling.assign(1.5)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype("f")
    twin.save(tmp_path / "twin.keras")
    again = keras.saving.load_model(tmp_path / "twin.keras")
    np.testing.assert_array_equal(again(images), twin(images))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(twin(images, training=True)))
    ceilings = [v for v in twin.trainable_variables if v.name == "ceiling"]
    assert len(ceilings) == 3 and all(np.abs(grad) > 0 for grad in tape.gradient(loss, [v.value for v in ceilings]))


@pytest.mark.parametrize("given, part", [
    ({"levels": 4}, "--levels=4 is for ReLUs, and --neuron=lif"), ({"levels": -1, "neuron": "relu"}, "--levels takes")])
def test_flags_refuse(given: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        config.resolve(given)
    with pytest.raises(UserError, match="levels"):
        models.create("lenet", (8, 8, 1), 2, 3, **{"neuron": "lif", **given})


# ---- conversion ----------------------------------------------------------------------------------------------------


def network(levels: int, seed: int = 0) -> tuple[keras.Model, np.ndarray]:
    """A random net of 64-64-32 with ceilings near its largest activations, and images of constant currents."""
    rng = np.random.default_rng(seed)
    image = x = keras.Input((64,))
    for units in (64, 32):
        x = QuantisedReLU(levels, start=1.5, name=f"relu{units}")(keras.layers.Dense(units, use_bias=False)(x))
    net = keras.Model(image, keras.layers.Dense(3, use_bias=False)(x))
    for variable in net.trainable_variables:
        if variable.name == "kernel":
            variable.assign(rng.normal(0, np.sqrt(4 / variable.shape[0]), variable.shape))
    return net, rng.uniform(0, 1, (60, 64)).astype("f")


def errors(levels: int, timesteps: int, **options: Any) -> list[float]:
    """Mean distance of rates from activations, in ceilings, of both layers."""
    net, images = network(levels)
    found = conversion.convert(net, method="quantised", timesteps=timesteps, **options)
    layers = [net.get_layer(name) for name in ("relu64", "relu32")]
    counts = [net_count(found.model, f"{layer.name}_lif", images) for layer in layers]
    wanted = keras.Model(net.input, [layer.output for layer in layers])(images)
    assert all(0.2 < (x.numpy() > 0).mean() < 0.9 for x in wanted)
    return [float(np.abs(count / timesteps - x / layer.ceiling).mean())
            for count, layer, x in zip(counts, layers, wanted)]


def net_count(model: SpikingModel, layer: str, images: np.ndarray) -> np.ndarray:
    """Spikes per window less those taken back, `[B, ...]`."""
    return SpikingModel(model.inputs, model.get_layer(layer).output)(images).numpy().sum(0)


@pytest.mark.filterwarnings(LAYER_BY_LAYER)
def test_a_layer_of_constant_input_counts_exactly_what_its_ann_computes() -> None:
    assert errors(8, 8)[0] == pytest.approx(0.0, abs=1e-6)
    assert errors(8, 8, start=0.0)[0] > 0.02  # floor in place of rounding


@pytest.mark.filterwarnings(LAYER_BY_LAYER)
@pytest.mark.parametrize("levels, most", [(4, 0.03), (16, 0.01)])
def test_the_layer_behind_is_near_and_nearer_where_spikes_are_taken_back(levels: int, most: float) -> None:
    plain, back = errors(levels, levels)[1], errors(levels, levels, bipolar=True)[1]
    assert 0 < back < 0.85 * plain and plain < most, (plain, back)


def taken_back(currents: np.ndarray, theta: float, v: float) -> np.ndarray:
    """Spikes `[T, ...]` of bipolar neurons, neuron by neuron, float64."""
    spikes = np.zeros_like(currents, "d")
    for place in np.ndindex(*currents.shape[1:]):
        u, calcium = v, 0
        for t, current in enumerate(currents[(slice(None), *place)]):
            u += float(current)
            s = 1 if u > theta else -1 if u <= -theta / 2 and calcium > 0 else 0
            u, calcium = u - theta * s, calcium + s
            spikes[(t, *place)] = s
    return spikes


def test_bipolar_neurons_are_those_of_the_loop() -> None:
    currents = np.random.default_rng(0).normal(0.1, 0.8, (40, 2, 30)).astype("f")
    layer = BipolarIF(0.75, 0.5)
    spikes = layer(currents).numpy()
    wanted = taken_back(currents, 0.75, 0.375)
    np.testing.assert_array_equal(spikes, wanted)
    assert (wanted == -1).mean() > 0.05 and np.cumsum(wanted, 0).min() == 0
    again = BipolarIF.from_config(layer.get_config())
    assert (again.threshold, again.start) == (0.75, 0.5)


@pytest.mark.filterwarnings(LAYER_BY_LAYER)
def test_a_network_of_them_is_saved_and_analysed_and_not_exported(tmp_path: Path) -> None:
    net, images = network(4)
    model = conversion.convert(net, method="quantised", timesteps=6, bipolar=True).model
    model.save(tmp_path / "net.keras")
    again = keras.saving.load_model(tmp_path / "net.keras")
    np.testing.assert_array_equal(again(images), model(images))
    found = analysis.analyse(model, images, np.zeros(len(images), np.int64))
    counts = model.observe(images)[1]
    assert found.layers[1].spikes == pytest.approx(counts["relu64_lif"].numpy().sum() / len(images))  # none comes back
    assert found.layers[2].spikes == pytest.approx(counts["relu32_lif"].numpy().sum() / len(images))
    train = SpikingModel(model.inputs, model.get_layer("relu32_lif").output)(images).numpy()
    assert train.min() == -1 and counts["relu32_lif"].numpy().sum() == np.abs(train).sum()  # a spike of -1 is a spike
    np.testing.assert_array_equal(found.predictions[:, -1], np.argmax(model(images), -1))
    with pytest.raises(UserError, match="step by step.*BipolarIF"):
        Window(model)


@pytest.mark.parametrize("given, part", [
    ({"bipolar": True, "method": "data"}, "reset to 0 loses: take method='rueckauer' or 'quantised'"),
    ({"method": "quantised", "percentile": 99.0}, "percentile.*leave it out"),
    ({"method": "rueckauer"}, "`images` must be of shape .* at least one"), ({"start": 1.0}, "start"),
    ({"method": "qcfs"}, "'data', 'spike_norm', 'rueckauer', 'quantised'")])
def test_arguments_refuse(given: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        conversion.convert(network(4)[0], timesteps=4, **given)


def test_a_plain_network_has_no_ceilings_to_go_by() -> None:
    twin = models.create("lenet", (8, 8, 1), 2, 3, neuron="relu", hidden=4)
    with pytest.raises(UserError, match="'conv1_1_relu' has no learnt ceiling.*--neuron=relu --levels=8"):
        conversion.convert(twin, method="quantised")


@pytest.mark.parametrize("given, part", [
    ({"method": "quantised", "percentile": 99.0}, "--percentile=99 is of methods that look at images"),
    ({"bipolar": True}, "reset to 0 loses"), ({"start": 1.0}, "--start takes")])
def test_flags_of_the_command_refuse(given: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        options.ConversionOptions(run="x", **given)


@pytest.mark.filterwarnings(LAYER_BY_LAYER)
def test_the_command_converts_an_untrained_twin(tmp_path: Path) -> None:
    """How, not how well: the slow tests of test_rueckauer.py have trained ones."""
    folder = tmp_path / "run"
    settings = runs.tiny(folder, neuron="relu", levels=4, norm="tdbn", timesteps=config.Config().timesteps, epochs=1,
                         steps_per_epoch=1, checkpoint_every=0)
    assert training.run(settings, say=lambda line: None) == 0
    record = command.run(options.ConversionOptions(run=str(folder), method="quantised", bipolar=True, timesteps=4,
                                                   images=20, steps=(2,)), lambda line: None)
    assert Path(record["out"]).name == "quantised-bipolar-T4" and "percentile" not in record
    assert record["start"] == 0.5 and record["encoder"] == "direct" and set(record["accuracy"]) == {"2", "4"}
    made = config.read_run(record["out"])
    assert (made.reset, made.start, made.pooling, made.norm, made.levels) == ("subtract", 0.5, "average", "none", 0)
