"""Operations against counts that visit every connection, and the energy model."""

import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfspike import analysis, models
from tfspike.analysis import energy
from tfspike.analysis.energy import EnergyModel, Operations
from tfspike.engine import plan as plans
from tfspike.errors import UserError
from tfspike.models import blocks
from tfspike.models.settings import LayerSettings
from tfspike.neurons import encoders, layers

TIMESTEPS, BATCH = 3, 3


def small_net(encoder="poisson", zero_weights=False):
    """Everything at once on odd sizes: strides, a dropped row, both shortcuts, pooling, dense layers."""
    b = blocks.Builder(LayerSettings(leak=0.9, gradient="rate", dropout=0.2, seed=1))
    shape = (7, 9, 2)
    inputs = keras.Input(shape if encoder else (TIMESTEPS, *shape))
    x = encoders.create(encoder, TIMESTEPS, seed=3, name="encoder")(inputs)
    x = blocks.conv_lif(x, b, 4, 5, "first")
    x = blocks.residual_block(x, b, 4, (1, 1), "same")
    x = blocks.pool(x, b, "pool")
    x = blocks.residual_block(x, b, 6, (1, 2), "wider")
    x = blocks.residual_block(x, b, 6, (1, 2), "smaller")
    x = layers.OverTime(keras.layers.Flatten(), name="flatten")(x)
    x = blocks.lif(blocks.dense(x, b, 8, "hidden"), b, "hidden")
    x = blocks.dense(x, b, 3, "output")
    model = models.SpikingModel(inputs, layers.Readout(0.9, name="readout")(x))
    rng = np.random.default_rng(0)
    for weight in model.trainable_weights:
        values = 3.0 * np.abs(tf.convert_to_tensor(weight.value).numpy())
        weight.assign(np.where(rng.random(values.shape) < 0.3, 0.0, values) if zero_weights else values)
    return model


def trains(model, images):
    """The value of every symbolic tensor of the window, whole trains `[T, B, ...]`, from the reference path."""

    def handler(call, args, kwargs):
        return call.layer(*args, seed=0) if call is model.plan.encoder else plans.plain(call, args, kwargs)

    return plans.run((model.plan.encoder, *model.plan.window), {model.plan.inputs[0]: tf.constant(images)}, handler)


def slow_convolution(train, kernel, stride, pad):
    """(operations, connections) by visiting every tap of every output; `pad` zeros in front are no inputs."""
    steps, batch, height, width, channels = train.shape
    k, _, _, filters = kernel.shape
    operations = connections = 0
    corners = [range(0, size + 2 * pad - k + 1, stride) for size in (height, width)]
    for y, x in itertools.product(*corners):
        for dy, dx, c, f in itertools.product(range(k), range(k), range(channels), range(filters)):
            row, column = y + dy - pad, x + dx - pad
            if 0 <= row < height and 0 <= column < width:
                connections += 1
                if kernel[dy, dx, c, f] != 0:
                    operations += np.count_nonzero(train[:, :, row, column, c])
    return operations, connections


def slow_pooling(train):
    operations = connections = 0
    _, _, height, width, channels = train.shape
    sizes = (height // 2, width // 2, 2, 2, channels)
    for y, x, dy, dx, c in itertools.product(*map(range, sizes)):
        connections += 1
        operations += np.count_nonzero(train[:, :, 2 * y + dy, 2 * x + dx, c])
    return operations, connections


def slow_dense(train, kernel):
    flat = train.reshape(*train.shape[:2], -1)
    operations = sum(np.count_nonzero(flat[:, :, i]) for i, j in np.argwhere(kernel != 0))
    return operations, kernel.size


def slow_counts(model, images):
    """{synapse: (operations per batch, connections)} of `small_net`."""
    values = trains(model, images)
    spikes = {call.layer.name: values[call.output].numpy() for call in model.plan.spiking}
    spikes["input"] = values[model.plan.encoder.output].numpy()
    kernel = {call.layer.name: tf.convert_to_tensor(call.layer.layer.kernel.value).numpy() for call in model.plan.window
              if getattr(getattr(call.layer, "layer", None), "kernel", None) is not None}
    assert all(np.any(train) for train in spikes.values())

    def convolution(name, source, stride=1):
        return slow_convolution(spikes[source], kernel[name], stride, (kernel[name].shape[0] - 1) // 2)

    picked = spikes["wider_b_lif"][:, :, ::2, ::2]
    return {
        "first": convolution("first", "input"),
        "same_conv_a": convolution("same_conv_a", "first_lif"), "same_conv_b": convolution("same_conv_b", "same_a_lif"),
        "same_current": (np.count_nonzero(spikes["first_lif"]), spikes["first_lif"][0, 0].size),
        "pool_average": slow_pooling(spikes["same_b_lif"]),
        "wider_conv_a": convolution("wider_conv_a", "pool"),
        "wider_conv_b": convolution("wider_conv_b", "wider_a_lif", 2),
        "wider_shortcut": convolution("wider_shortcut", "pool", 2),
        "smaller_conv_a": convolution("smaller_conv_a", "wider_b_lif"),
        "smaller_conv_b": convolution("smaller_conv_b", "smaller_a_lif", 2),
        "smaller_shortcut": (np.count_nonzero(picked), picked[0, 0].size),
        "hidden": slow_dense(spikes["smaller_b_lif"], kernel["hidden"]),
        "output": slow_dense(spikes["hidden_lif"], kernel["output"])}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).uniform(-1, 1, (BATCH, 7, 9, 2)).astype("float32")


@pytest.mark.parametrize("zero_weights", [False, True])
def test_operations_and_connections_equal_a_visit_to_every_connection(images, zero_weights):
    model = small_net(zero_weights=zero_weights)
    slow, values = slow_counts(model, images), trains(model, images)
    groups = energy.synapses(model.plan)
    assert [group.name for group in groups] == list(slow)
    for group in groups:
        events = np.count_nonzero(values[group.source].numpy(), axis=(0, 1))
        assert group.operations(events) == Operations(acs=slow[group.name][0]), group.name
        assert group.connections == slow[group.name][1], group.name


def test_every_group_is_assigned_to_the_neurons_that_it_drives():
    targets = {group.name: group.target for group in energy.synapses(small_net().plan)}
    assert targets == {
        "first": "first_lif", "same_conv_a": "same_a_lif", "same_conv_b": "same_b_lif", "same_current": "same_b_lif",
        "pool_average": "pool", "wider_conv_a": "wider_a_lif", "wider_conv_b": "wider_b_lif",
        "wider_shortcut": "wider_b_lif", "smaller_conv_a": "smaller_a_lif", "smaller_conv_b": "smaller_b_lif",
        "smaller_shortcut": "smaller_b_lif", "hidden": "hidden_lif", "output": "readout"}


def test_analysis_totals_equal_the_slow_count(images):
    model = small_net()
    slow = slow_counts(model, images)
    result = analysis.analyse(model, images, np.zeros(BATCH, int), batch_size=BATCH)
    assert result.operations.macs == 0
    assert result.operations.acs * BATCH == pytest.approx(sum(count for count, _ in slow.values()), abs=1e-6)
    weights = [name for name in slow if name not in ("same_current", "pool_average", "smaller_shortcut")]
    assert result.effective.acs * BATCH == pytest.approx(sum(slow[name][0] for name in weights), abs=1e-6)
    assert result.ann.macs == sum(slow[name][1] for name in weights)
    assert result.ann.acs == sum(connections for _, connections in slow.values()) - result.ann.macs
    assert result.dense == TIMESTEPS * result.ann.macs


def test_direct_encoding_multiplies_in_the_first_layer_and_only_there(images):
    model = small_net("direct")
    images = np.where(np.abs(images) < 0.2, 0, images).astype("float32")
    slow = slow_counts(model, images)
    result = analysis.analyse(model, images, np.zeros(BATCH, int), batch_size=BATCH)
    assert result.operations.macs * BATCH == pytest.approx(slow.pop("first")[0], abs=1e-6)
    assert result.operations.acs * BATCH == pytest.approx(sum(count for count, _ in slow.values()), abs=1e-6)
    assert (result.layers[0].spikes, result.layers[1].operations.acs) == (0, 0)


def test_a_given_train_is_accumulated_where_it_holds_spikes_and_multiplied_where_it_holds_counts(images):
    model = small_net(None)
    train = np.random.default_rng(2).choice([0, 1, -1, 2], (BATCH, TIMESTEPS, 7, 9, 2)).astype("float32")
    kernel = tf.convert_to_tensor(model.get_layer("first").layer.kernel.value).numpy()
    moved = np.moveaxis(train, 0, 1)
    result = analysis.analyse(model, train, np.zeros(BATCH, int), batch_size=BATCH).layers[1].operations
    ones, twos = moved * (np.abs(moved) == 1), moved * (moved == 2)
    assert result.acs * BATCH == pytest.approx(slow_convolution(ones, kernel, 1, 2)[0], abs=1e-6)
    assert result.macs * BATCH == pytest.approx(slow_convolution(twos, kernel, 1, 2)[0], abs=1e-6)


@pytest.mark.parametrize("strides,padding", [(1, "same"), (2, "same"), (2, "valid"), (3, "valid")])
def test_fan_out_of_a_convolution_is_the_column_sum_of_its_matrix(strides, padding):
    layer = keras.layers.Conv2D(3, 3, strides, padding, activation="relu")
    layer.build((None, 6, 5, 2))
    layer.kernel.assign(np.ones((3, 3, 2, 3)))
    expected = np.zeros((6, 5, 2))
    for place in itertools.product(range(6), range(5), range(2)):
        one = np.zeros((1, 6, 5, 2), "float32")
        one[(0, *place)] = 1
        expected[place] = np.count_nonzero(layer(one).numpy())
    assert np.array_equal(energy.fan_out(layer, (6, 5, 2)), expected)


def test_lenet_has_the_connections_of_its_table():
    plan = models.create("lenet", (28, 28, 1), 10, 2).plan
    connections = {group.name: group.connections for group in energy.synapses(plan)}
    # 5-wide windows on n pixels with 2 zeros on both sides meet 5n - 6 real ones along each axis
    assert connections == {"conv1_1": 20 * (5 * 28 - 6) ** 2, "pool1_average": 28 * 28 * 20,
                           "conv2_1": 20 * 50 * (5 * 14 - 6) ** 2, "pool2_average": 14 * 14 * 50,
                           "hidden": 2450 * 200, "output": 2000}


def test_energy_is_the_sum_of_its_terms():
    operations = Operations(macs=10, acs=100, updates=7)
    assert EnergyModel().picojoules(operations) == pytest.approx(10 * 4.6 + 100 * 0.9)
    full = EnergyModel(mac_pj=3, ac_pj=0.5, update_pj=2, memory_pj=5)
    assert full.picojoules(operations) == pytest.approx(10 * 3 + 100 * 0.5 + 7 * 2 + (110 + 14) * 5)


def test_counting_the_targets_of_many_layers_warns_of_nothing(caplog):
    """TensorFlow warns of a function that is traced anew at every call; each layer is counted once."""
    tf.get_logger().addHandler(caplog.handler)
    try:
        for channels in range(1, 8):
            layer = keras.layers.Conv2D(channels, 3)
            layer.build((None, 4, 4, 1))
            assert energy.fan_out(layer, (4, 4, 1)).max() == 4 * channels
    finally:
        tf.get_logger().removeHandler(caplog.handler)
    assert caplog.records == []


@pytest.mark.parametrize("value", [-1, math.inf, math.nan, "4.6", True])
def test_an_impossible_energy_is_refused(value):
    with pytest.raises(UserError, match="ac_pj.*at least 0"):
        EnergyModel(ac_pj=value)


@keras.saving.register_keras_serializable("test")
class _Scale(keras.layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],))

    def call(self, x):
        return x * self.scale

    def compute_output_shape(self, shape):
        return shape


@pytest.mark.parametrize("layer, shape", [
    (keras.layers.AveragePooling1D(3, 2), (8, 2)), (keras.layers.AveragePooling1D(3, 2, padding="same"), (8, 2)),
    (keras.layers.AveragePooling2D((2, 3), (2, 1), padding="same"), (5, 7, 3)), (keras.layers.AveragePooling2D(2), (5, 7, 3)),
    (keras.layers.AveragePooling2D(1, 2), (5, 7, 3)), (keras.layers.AveragePooling3D(2), (4, 5, 4, 2)),
    (keras.layers.AveragePooling2D(2, 3), (5, 7, 3))])
def test_a_pixel_has_as_many_targets_as_windows_of_a_pooling_hold_it(layer, shape):
    """Each pixel alone, through the layer itself."""
    alone = np.eye(int(np.prod(shape)), dtype="f").reshape(-1, *shape)
    targets = np.count_nonzero(np.asarray(layer(alone)), axis=tuple(range(1, len(shape) + 1)))
    np.testing.assert_array_equal(energy.fan_out(layer, shape), targets.reshape(shape))


def test_averages_of_one_axis_are_counted_as_those_of_two():
    """They were passed over: no operation of their own, and what they send on was taken for spikes."""
    inputs = keras.Input((8, 2))
    x = layers.OverTime(keras.layers.AveragePooling1D(2), name="pool")(encoders.create("poisson", 3, seed=1)(inputs))
    x = layers.OverTime(keras.layers.Dense(2), name="dense")(layers.OverTime(keras.layers.Flatten())(x))
    model = models.SpikingModel(inputs, layers.Readout()(layers.LIF()(x)))
    assert [(group.name, group.kind, group.events) for group in energy.synapses(model.plan)] == [
        ("pool", "pooling", "spikes"), ("dense", "weights", "real")]
    result = analysis.analyse(model, np.full((2, 8, 2), 0.5, "f"), np.zeros(2, int))
    assert [layer.kind for layer in result.layers] == ["input", "lif", "readout"]
    into = result.layers[1].operations
    assert into.acs == result.layers[0].spikes > 0 and into.macs > 0


def test_sums_of_spikes_are_accumulated_where_they_are_1_and_multiplied_where_they_are_2():
    inputs = keras.Input((4,))
    train = encoders.create("direct", 3)(inputs)
    one, other = (layers.LIF(1.0, threshold)(train) for threshold in (0.5, 1.5))  # of 1, the other fires every second step
    x = layers.LIF()(layers.OverTime(keras.layers.Dense(5), name="dense")(keras.layers.Add()([one, other])))
    model = models.SpikingModel(inputs, layers.Readout()(x))
    dense = next(group for group in energy.synapses(model.plan) if group.name == "dense")
    assert dense.events == "mixed"
    into = analysis.analyse(model, np.ones((2, 4), "f"), np.zeros(2, int)).layers[-2].operations
    assert (into.macs, into.acs) == (4 * 5, 2 * 4 * 5 + 3 * 4 + 4)  # and the identities of both


class _Blinking(encoders.DirectEncoder):
    """Spikes at every other step."""

    def encode(self, inputs, key, start, steps):
        return tf.stack([inputs * tf.cast((start + t) % 2, inputs.dtype) for t in range(steps)])


def test_an_encoder_of_ones_own_is_counted_by_what_it_gives():
    inputs = keras.Input((4,))
    current = layers.OverTime(keras.layers.Dense(5))(_Blinking(4)(inputs))
    model = models.SpikingModel(inputs, layers.Readout()(layers.OverTime(keras.layers.Dense(2))(layers.LIF()(current))))
    result = analysis.analyse(model, np.ones((2, 4), "f"), np.zeros(2, int))
    assert (result.layers[0].spikes, result.layers[1].operations.acs, result.operations.macs) == (2 * 4, 2 * 4 * 5, 0)


def test_what_stands_in_for_a_separable_convolution_is_said():
    inputs = keras.Input((4, 4, 2))
    x = layers.OverTime(keras.layers.SeparableConv2D(2, 3), name="separable")(encoders.create("poisson", 3)(inputs))
    x = layers.OverTime(keras.layers.Flatten())(layers.LIF()(x))
    model = models.SpikingModel(inputs, layers.Readout()(layers.OverTime(keras.layers.Dense(2))(x)))
    with pytest.raises(UserError, match="'separable'.* in place of this one a depthwise convolution with one of 1x1"):
        energy.synapses(model.plan)


def test_a_layer_that_cannot_be_counted_is_named():
    inputs = keras.Input((4,))
    x = encoders.create("poisson", 3)(inputs)
    x = layers.OverTime(_Scale(), name="odd_one")(x)
    model = models.SpikingModel(inputs, layers.Readout()(layers.OverTime(keras.layers.Dense(2))(layers.LIF()(x))))
    with pytest.raises(UserError, match="'odd_one', a _Scale, cannot be counted"):
        energy.synapses(model.plan)


def dense_net(dense=keras.layers.Dense):
    inputs = keras.Input((4,))
    x = layers.LIF()(layers.OverTime(dense(5, use_bias=False), name="hidden")(encoders.create("poisson", 3)(inputs)))
    return models.SpikingModel(inputs, layers.Readout()(layers.OverTime(keras.layers.Dense(2, use_bias=False))(x)))


@pytest.mark.parametrize("method, argument", [("quantize", "int8"), ("quantize", "int4"), ("enable_lora", 1)])
def test_weights_that_keras_has_changed_are_refused(method, argument):
    model = dense_net()
    getattr(model.get_layer("hidden").layer, method)(argument)
    with pytest.raises(UserError, match=f"'hidden', whose weights Keras' {method} has changed, .*the network before"):
        energy.synapses(model.plan)


def test_frozen_weights_are_weights():
    model = dense_net()
    model.get_layer("hidden").layer.kernel.assign(np.eye(4, 5))
    images, labels = np.ones((2, 4), "f"), np.zeros(2, int)
    wanted = analysis.analyse(model, images, labels).neurobench()
    assert (wanted["parameter_count"], wanted["footprint_bytes"]) == (30, 120)
    assert wanted["connection_sparsity"] == 16 / 30
    model.get_layer("hidden").trainable = False
    assert analysis.analyse(model, images, labels).neurobench() == wanted


def test_targets_of_a_strided_kernel_of_few_channels_are_counted_in_a_process_that_lives_on():
    layer = keras.layers.Conv2D(8, 1, 2, use_bias=False)
    layer.build((None, 12, 12, 4))
    for _ in range(4):  # what is written beyond its memory does not always hit what is needed
        targets = energy.fan_out(layer, (12, 12, 4))
    assert targets[::2, ::2].tolist() == np.full((6, 6, 4), 8).tolist() and targets.sum() == 8 * 144


def test_operations_of_keras_cost_nothing_but_what_their_values_are():
    """Twice the spikes are real values, which multiply weights; twice the currents are currents."""
    inputs = keras.Input((4,))
    train = encoders.create("poisson", 3, seed=1)(inputs)
    hidden, output = layers.OverTime(keras.layers.Dense(5)), layers.OverTime(keras.layers.Dense(2))
    for doubled, kind in ((lambda: hidden(train) * 2.0, "spikes"), (lambda: hidden(train * 2.0), "mixed")):
        model = models.SpikingModel(inputs, layers.Readout()(output(layers.LIF()(doubled()))))
        into_hidden, into_output = energy.synapses(model.required_plan())
        assert (into_hidden.events, into_output.events) == (kind, "spikes")
        into_hidden, into_output = (layer.operations for layer in analysis.analyse(
            model, np.ones((2, 4), "f"), np.zeros(2, int)).layers[1:])
        assert (into_hidden.acs > 0, into_hidden.macs > 0) == (kind == "spikes", kind == "mixed")
        assert into_output.macs == 0
    other = layers.OverTime(keras.layers.Dense(5))

    def joined_by(join):
        current = join(hidden(train), other(train))
        return models.SpikingModel(inputs, layers.Readout()(output(layers.LIF()(current)))).required_plan()

    for join in (lambda a, b: a + b, lambda a, b: keras.layers.Subtract()([a, b])):
        assert [layer.events for layer in energy.synapses(joined_by(join))] == ["spikes"] * 3
    with pytest.raises(UserError, match=r"such as keras.layers.Subtract\(\)\(\[a, b\]\) for a - b"):
        energy.synapses(joined_by(lambda a, b: a - b))
