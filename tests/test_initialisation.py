"""Rate-targeted initialisation: every LIF layer reaches the stated rate, whatever feeds it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfspike import LIF, OverTime, PoissonEncoder, Readout, SpikingModel, models
from tfspike.errors import UserError
from tfspike.models.initialisation import initialise_rates

TARGET = 0.15
IMAGES = np.random.default_rng(0).uniform(-0.8, 0.8, (4, 28, 28, 1)).astype("float32")


def rates(model):
    _, activity = model.observe(IMAGES, seed=0)
    return {name: float(tf.reduce_mean(count)) / model.timesteps for name, count in activity.items()}


@pytest.mark.parametrize("name, hidden", [
    ("lenet", 50), ("resnet7", 20), pytest.param("resnet20", 0, marks=pytest.mark.slow)])
def test_every_lif_layer_reaches_the_stated_rate_on_the_batch(name, hidden):
    model = models.create(name, (28, 28, 1), 10, 10, hidden=hidden, kappa=0.3)
    before = rates(model)
    reached = initialise_rates(model, IMAGES, TARGET)
    assert min(before.values()) < TARGET / 2, "the fixture must need the initialisation"
    after = rates(model)
    for layer, rate in reached.items():
        np.testing.assert_allclose(rate, TARGET, atol=0.01)
        np.testing.assert_allclose(after[layer], rate, atol=1e-3)
    assert set(reached) == {name for name in after if not name.startswith("pool")}


def test_weights_that_feed_two_layers_are_scaled_for_the_first():
    inputs = keras.Input((20,))
    x = PoissonEncoder(10)(inputs)
    shared = OverTime(keras.layers.Dense(20, use_bias=False))
    x = LIF(0.9, name="first")(shared(x))
    x = LIF(0.9, name="second")(shared(x))
    model = SpikingModel(inputs, Readout(0.9)(OverTime(keras.layers.Dense(3, use_bias=False))(x)))
    images = np.random.default_rng(0).uniform(-0.8, 0.8, (8, 20)).astype("float32")
    reached = initialise_rates(model, images, TARGET, seed=3)
    counts = model.observe(images, seed=3)[1]
    assert set(reached) == {"first"}
    np.testing.assert_allclose(float(tf.reduce_mean(counts["first"])) / 10, reached["first"], atol=1e-3)
    np.testing.assert_allclose(reached["first"], TARGET, atol=0.02)


@pytest.mark.parametrize("synapses", [
    lambda: [keras.layers.Dense(20, use_bias=False), keras.layers.Dense(20)],
    lambda: [keras.Sequential([keras.layers.Dense(20, use_bias=False), keras.layers.Dense(20), keras.layers.Flatten()])],
    lambda: [keras.layers.Reshape((5, 4)), keras.layers.SeparableConv1D(6, 3, depth_multiplier=2), keras.layers.Flatten()]])
def test_of_weights_behind_one_another_the_last_ones_are_scaled(synapses):
    """All of them would scale the current more than once."""
    inputs = keras.Input((20,))
    x, kinds = PoissonEncoder(10)(inputs), synapses()
    for layer in kinds:
        x = OverTime(layer)(x)
    x = LIF(0.9, name="hidden")(x)
    model = SpikingModel(inputs, Readout(0.9)(OverTime(keras.layers.Dense(3, use_bias=False))(x)))
    images = np.random.default_rng(0).uniform(-0.8, 0.8, (8, 20)).astype("float32")
    weights = [weight for layer in kinds for weight in layer.trainable_variables]
    before = [weight.numpy() for weight in weights]
    reached = initialise_rates(model, images, TARGET)["hidden"]
    assert reached == pytest.approx(TARGET, abs=0.02)
    assert float(tf.reduce_mean(model.observe(images, seed=0)[1]["hidden"])) / 10 == pytest.approx(reached, abs=1e-3)
    np.testing.assert_array_equal(weights[0], before[0])
    assert not np.allclose(weights[1], before[1], rtol=0.1)


def test_a_current_that_others_read_too_is_scaled_for_the_first_and_counted_as_it_is_for_the_others():
    inputs = keras.Input((20,))
    weak = keras.initializers.VarianceScaling(0.1, seed=1)
    current = OverTime(keras.layers.Dense(20, use_bias=False, kernel_initializer=weak))(PoissonEncoder(10)(inputs))
    first = LIF(0.9, name="first")(current)
    second = LIF(0.9, name="second")(keras.layers.Add()([current, OverTime(keras.layers.Dense(20, use_bias=False))(first)]))
    third = LIF(0.9, name="third")(current)
    x = OverTime(keras.layers.Dense(3, use_bias=False))(keras.layers.Add()([second, third]))
    model = SpikingModel(inputs, Readout(0.9)(x))
    images = np.random.default_rng(0).uniform(-0.8, 0.8, (8, 20)).astype("float32")
    reached = initialise_rates(model, images, {"first": 0.1, "second": 0.2, "third": 0.1})
    rates = {name: float(tf.reduce_mean(count)) / 10 for name, count in model.observe(images, seed=0)[1].items()}
    assert set(reached) == {"first", "second"} and rates["third"] == pytest.approx(rates["first"])
    assert {name: rates[name] for name in reached} == pytest.approx(reached, abs=1e-3)
    assert reached["first"] == pytest.approx(0.1, abs=0.02)
    assert 0.05 < reached["second"] < 0.25


def test_the_spikes_of_an_identity_shortcut_have_no_weight_to_scale():
    inputs = keras.Input((20,))
    first = LIF(0.9, name="first")(OverTime(keras.layers.Dense(20, use_bias=False))(PoissonEncoder(10)(inputs)))
    main = OverTime(keras.layers.Dense(20, use_bias=False))(first)
    x = LIF(0.9, name="second")(keras.layers.Add()([main, first]))
    model = SpikingModel(inputs, Readout(0.9)(OverTime(keras.layers.Dense(3, use_bias=False))(x)))
    images = np.random.default_rng(0).uniform(-0.8, 0.8, (8, 20)).astype("float32")
    reached = initialise_rates(model, images, {"first": 0.15, "second": 0.25})
    assert reached == {"first": pytest.approx(0.15, abs=0.02), "second": pytest.approx(0.25, abs=0.02)}
    counts = model.observe(images, seed=0)[1]
    assert float(tf.reduce_mean(counts["second"])) / 10 == pytest.approx(reached["second"], abs=1e-3)


def test_layers_have_rates_of_their_own_and_those_without_one_keep_their_weights():
    model = models.create("lenet", (28, 28, 1), 10, 10, hidden=50, kappa=1.0)
    before = model.get_layer("hidden").layer.kernel.numpy()
    reached = initialise_rates(model, IMAGES, {"conv1_1_lif": 0.05, "conv2_1_lif": 0.2})
    assert reached == {"conv1_1_lif": pytest.approx(0.05, abs=0.01), "conv2_1_lif": pytest.approx(0.2, abs=0.01)}
    np.testing.assert_array_equal(model.get_layer("hidden").layer.kernel, before)


def test_a_layer_whose_currents_are_mostly_negative_takes_half_of_the_most_it_can():
    """An ANN's weights: without the limit they would grow to the end of the search, and the gradient with them."""
    inputs = keras.Input((30,))
    dense = keras.layers.Dense(40, use_bias=False)
    x = LIF(0.9, name="hidden")(OverTime(dense)(PoissonEncoder(20)(inputs)))
    model = SpikingModel(inputs, Readout(0.9)(OverTime(keras.layers.Dense(3, use_bias=False))(x)))
    random = np.random.default_rng(1)
    images = random.uniform(0.2, 0.8, (8, 30)).astype("float32")
    first = random.normal(-0.03, 0.1, (30, 40)).astype("float32")
    dense.kernel.assign(first)
    reached = initialise_rates(model, images, 0.3)["hidden"]
    factor = float(np.abs(dense.kernel.value).max() / np.abs(first).max())
    dense.kernel.assign(first * 256)
    most = float(tf.reduce_mean(model.observe(images, seed=0)[1]["hidden"])) / 20
    assert 0.01 < most < 0.3, "the fixture must not be able to reach the target"
    assert reached == pytest.approx(most / 2, rel=0.1) and factor < 64


def test_a_silent_input_is_refused_by_the_layers_name():
    model = models.create("lenet", (28, 28, 1), 10, 5)
    with pytest.raises(UserError, match="conv1_1_lif"):
        initialise_rates(model, np.zeros_like(IMAGES), TARGET)


def test_a_rate_of_a_layer_that_is_not_there_is_refused_with_those_that_are():
    model = models.create("lenet", (28, 28, 1), 10, 5)
    with pytest.raises(UserError, match="'conv1_1_lif', 'pool1', .*Received: target_rate='conv1_lif'"):
        initialise_rates(model, IMAGES, {"conv1_lif": 0.1})


@pytest.mark.parametrize("rate", [0.0, -0.1, 0.5, float("nan")])
def test_a_rate_out_of_range_is_refused(rate):
    model = models.create("lenet", (28, 28, 1), 10, 5)
    with pytest.raises(UserError, match="target_rate"):
        initialise_rates(model, IMAGES, rate)
