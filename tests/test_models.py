"""The named networks: their sizes, their order of weights, training steps, and what `create` refuses."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import nets
import oracle
from tfspike import LIF, PoolingIF, UserError, WindowDropout, datasets, models
from tfspike.config import resolve
from tfspike.engine import plan
from tfspike.models.settings import NetworkSettings
from tfspike.runs import loading
from tfspike.variants import VARIANTS

# (image, classes): trainable weights. Those of the paper's networks are published; the others are added up by hand.
EVERY = [pytest.param(name, marks=[pytest.mark.slow] * (name in ("vgg16", "resnet18", "resnet56"))) for name in VARIANTS]
COUNTS = {
    "lenet": ((28, 28, 1), 517_500), "vgg9": ((32, 32, 3), 5_938_880), "resnet11": ((32, 32, 3), 17_936_064),
    "resnet20": ((32, 32, 3), 280_496), "resnet56": ((32, 32, 3), 861_104), "resnet18": ((32, 32, 3), 11_179_712),
    "vgg16": ((32, 32, 3), 15_244_992),
    "vgg5": ((32, 32, 3), 9 * (3 * 64 + 64 * 128 + 128 * 128) + 8 * 8 * 128 * 1024 + 1024 * 10),
    "vgg7": ((32, 32, 3), 9 * (3 * 64 + 64 * 64 + 64 * 128 + 2 * 128 * 128) + 8 * 8 * 128 * 1024 + 1024 * 10),
    "vgg11": ((32, 32, 3), 9 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 256 + 256 * 512 + 3 * 512 * 512) + 512 * 1024
              + 1024 * 10),
    # stem; per block: two 3x3 and the 1x1 shortcut; 16x16 behind the pooling, halved by every strided block
    "resnet7": ((32, 32, 3), 9 * 3 * 64 + (9 * (64 * 128 + 128 * 128) + 64 * 128)
                + (9 * (128 * 256 + 256 * 256) + 128 * 256) + 4 * 4 * 256 * 1024 + 1024 * 10),
    "resnet9": ((32, 32, 3), 9 * 3 * 64 + (9 * (64 * 128 + 128 * 128) + 64 * 128)
                + (9 * (128 * 256 + 256 * 256) + 128 * 256) + (9 * (256 * 512 + 512 * 512) + 256 * 512)
                + 4 * 4 * 512 * 1024 + 1024 * 10),
}


def images(name: str, batch: int = 2, size: int | None = None, channels: int = 3) -> np.ndarray:
    size = VARIANTS[name].min_size if size is None else size
    return np.random.default_rng(0).uniform(-1, 1, (batch, size, size, channels)).astype("f")


def test_every_network_of_the_table_is_available_and_counted_here() -> None:
    assert models.available() == list(VARIANTS)
    assert set(COUNTS) == set(VARIANTS)


@pytest.mark.parametrize("name", VARIANTS)
def test_networks_have_exactly_their_number_of_weights(name: str) -> None:
    image, count = COUNTS[name]
    model = models.create(name, image, 10, 5)
    assert sum(int(np.prod(variable.shape)) for variable in model.trainable_variables) == count
    assert not any("bias" in variable.path for variable in model.trainable_variables)
    assert model.output_shape == (None, 10)


@pytest.mark.parametrize("name", EVERY)
def test_weights_come_in_the_order_of_the_forward_pass_main_path_before_shortcut(name: str) -> None:
    model = models.create(name, COUNTS[name][0], 10, 5)
    variant = VARIANTS[name]
    expected, group, member, block, channels = [], 1, 0, 0, COUNTS[name][0][2]
    for stage in variant.stages:
        kind = type(stage).__name__
        if kind == "Conv":
            member += 1
            expected.append(f"conv{group}_{member}/conv/kernel")
        elif kind == "Pool":
            group, member = group + 1, 0
        else:
            block += 1
            expected += [f"block{block}_conv_a/conv/kernel", f"block{block}_conv_b/conv/kernel"]
            if stage.filters != channels:
                expected.append(f"block{block}_shortcut/conv/kernel")
        channels = getattr(stage, "filters", channels)
    expected += ["hidden/dense/kernel"] * bool(variant.hidden) + ["output/dense/kernel"]
    assert [variable.path for variable in model.trainable_variables] == expected
    assert [call.layer.name for call in model.plan.window if call.layer.trainable_variables] == [
        path.split("/")[0] for path in expected]


@pytest.mark.parametrize("name", VARIANTS)
def test_weights_start_normal_with_the_standard_deviation_of_the_paper(name: str) -> None:
    variant = VARIANTS[name]
    for kappa in (None, 0.5):
        model = models.create(name, COUNTS[name][0], 10, 5, kappa=kappa, hidden=variant.hidden and 32)
        for variable in model.trainable_variables:
            values = variable.numpy()
            std = np.sqrt((variant.kappa if kappa is None else kappa) / np.prod(values.shape[:-1]))
            assert abs(values.std() / std - 1) < 5 / np.sqrt(2 * values.size)
            assert abs(values.mean()) < 5 * std / np.sqrt(values.size)
            if values.size > 10_000:  # a truncated normal would stop at two
                assert np.abs(values).max() > 2.5 * std
        if name not in ("lenet", "resnet20"):
            break


def test_seeds_decide_about_the_weights() -> None:
    make = [models.create("lenet", (28, 28, 1), 10, 5, seed=seed).trainable_variables for seed in (0, 0, 1)]
    for a, b, c in zip(*make):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)
    shapes = models.create("resnet20", (28, 28, 1), 10, 5).trainable_variables
    assert not np.array_equal(shapes[1], shapes[2])  # two kernels of one shape in one network


@pytest.mark.parametrize("name", EVERY)
def test_dropout_follows_lif_layers_and_nothing_else(name: str) -> None:
    model = models.create(name, COUNTS[name][0], 10, 5)
    rate = VARIANTS[name].dropout
    assert {layer.rate for layer in model.layers if isinstance(layer, WindowDropout)} == ({rate} if rate else set())
    model = models.create(name, COUNTS[name][0], 10, 5, dropout=0.3)
    fired = {call.output for call in model.plan.spiking if isinstance(call.layer, LIF)}
    dropped = [call.args[0] for call in model.plan.dropouts]
    assert set(dropped) == fired and len(dropped) == len(fired)
    seeds = [call.layer.seed for call in model.plan.dropouts] + [model.get_layer("encoder").seed]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("name", ["lenet", "resnet20"])
def test_arguments_reach_the_layers(name: str) -> None:
    model = models.create(name, (28, 28, 2), 7, 6, gradient="rate", encoder="direct", leak=0.8, threshold=0.5, hidden=9,
                          dtype="mixed_bfloat16")
    for layer in model.layers:
        if isinstance(layer, LIF):
            assert (layer.leak, layer.threshold, layer.gradient) == (0.8, 0.5, "rate")
        if isinstance(layer, PoolingIF):
            assert (layer.threshold, layer.gradient) == (0.75, "rate")
        assert layer.dtype_policy.name == "mixed_bfloat16" or isinstance(layer, keras.layers.InputLayer), layer
    assert model.get_layer("readout").leak == 0.8 and model.timesteps == 6
    assert model.get_layer("hidden").layer.units == 9 and model.output_shape == (None, 7)
    assert model.compute_dtype == "bfloat16" or model(images(name, size=28, channels=2)).dtype == tf.float32


# --- Training steps -------------------------------------------------------------------------------------------------


def train_two_steps(name: str, gradient: str, hidden: int | None, timesteps: int, graph: bool) -> None:
    model = models.create(name, (VARIANTS[name].min_size,) * 2 + (3,), 4, timesteps, gradient=gradient, dropout=0.1,
                          hidden=hidden, kappa=16.0, encoder="direct")
    x, y = images(name), np.eye(4, dtype="f")[:2]
    x = np.abs(x) + 0.5
    _, counts = model.observe(x, training=True)
    assert all(count.numpy().sum() > 0 for count in counts.values()), {k: c.numpy().sum() for k, c in counts.items()}
    start = [variable.numpy() for variable in model.trainable_variables]
    optimizer = keras.optimizers.Adam(1e-3)  # as far for small gradients as for large ones

    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((model(x, training=True) - y) ** 2)
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, [variable.value for variable in variables]), variables)
        return loss

    step = tf.function(step) if graph else step
    losses = [float(step()) for _ in range(2)]
    assert np.isfinite(losses).all() and int(model.get_layer("encoder").step.value) >= 2
    for variable, before in zip(model.trainable_variables, start):
        assert np.isfinite(variable.numpy()).all()
        assert np.abs(variable.numpy() - before).max() > 0, variable.path


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[pytest.mark.slow] * (name in ("vgg11", "vgg16", "resnet11", "resnet18", "resnet56"))) for name in VARIANTS])
def test_two_real_training_steps_move_every_weight(name: str) -> None:
    # The smallest legal image and a narrow hidden layer; large weights, so that deep networks fire.
    gradient = "event" if list(VARIANTS).index(name) % 2 else "rate"
    train_two_steps(name, gradient, 16 if VARIANTS[name].hidden else None, 4, graph=False)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["event", "rate"])
@pytest.mark.parametrize("name", VARIANTS)
def test_two_real_training_steps_of_the_full_width(name: str, gradient: str) -> None:
    train_two_steps(name, gradient, None, 12, graph=True)


@pytest.mark.parametrize("encoder", ["poisson", "direct", "latency", None])
def test_every_encoder_feeds_a_network(encoder: str | None) -> None:
    model = models.create("lenet", (8, 8, 1), 3, 4, encoder=encoder, hidden=8, threshold=0.1)
    x = np.abs(images("lenet", size=8, channels=1))
    x = x if encoder else (x[:, None] > np.linspace(0.1, 0.8, 4).reshape(1, 4, 1, 1, 1)).astype("f")
    output, counts = model.observe(x)
    assert output.shape == (2, 3) and all(count.numpy().sum() > 0 for count in counts.values())


@pytest.mark.parametrize(("name", "size"), [("lenet", 34), ("vgg9", 28), ("resnet11", 34), ("resnet20", 29)])
def test_odd_maps_are_floored_by_pooling(name: str, size: int) -> None:
    model = models.create(name, (size, size, 2), 3, 4, hidden=8)
    rows = size
    for stage in VARIANTS[name].stages:
        if type(stage).__name__ == "Pool":
            rows //= 2
        elif type(stage).__name__ == "Block":
            rows = -(-rows // (stage.strides[0] * stage.strides[1]))
    assert model.get_layer("flatten").output.shape[-1] == rows * rows * [
        stage.filters for stage in VARIANTS[name].stages if hasattr(stage, "filters")][-1]
    assert rows >= 1


def test_a_named_network_equals_the_oracle() -> None:
    model = models.create("lenet", (9, 9, 1), nets.CLASSES, 6, encoder=None, leak=0.9, hidden=7, kappa=8.0, dropout=0.2)
    weights = nets.set_grid_weights(model, 8.0)
    inputs, dL_do = nets.spike_inputs(6, 2, (9, 9, 1)), nets.upstream(2)
    net = oracle.Net((oracle.Conv(), oracle.Pool(), oracle.Conv(), oracle.Pool(), oracle.Hidden()), float(np.float32(0.9)))
    trains = nets.layer_spikes(model, inputs, 2)
    record = oracle.forward(net, weights, inputs.swapaxes(0, 1), nets.masks_of(model, 2, 2), given=trains)
    nets.assert_alive(record)
    nets.set_step(model, 2)
    output, got = nets.gradients_of(model, model, inputs, dL_do)
    np.testing.assert_allclose(output, record.output, rtol=1e-5, atol=1e-5)
    assert nets.worst_error(got, oracle.backward(net, weights, record, dL_do)) < 2e-5


# --- A model is a Keras model ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lenet", "resnet20"])
def test_features_can_be_taken_out_after_the_plan_was_used(name: str) -> None:
    model = models.create(name, (12, 12, 1), 3, 5, threshold=0.2, hidden=8)
    x = images(name, size=12, channels=1)
    before = model(x, training=True)
    assert before.shape == (2, 3) and model.plan is not None
    layer = next(layer for layer in model.layers if isinstance(layer, LIF))
    features = keras.Model(model.input, model.get_layer(layer.name).output)
    spikes = features(x)
    assert spikes.shape[:2] == (5, 2) and set(np.unique(spikes)) == {0.0, 1.0}
    np.testing.assert_array_equal(tf.reduce_sum(spikes, 0), model.observe(x)[1][layer.name])
    both = keras.Model(model.input, [model.get_layer("output").output, model.output])
    np.testing.assert_allclose(both(x)[1], model(x), rtol=1e-5, atol=1e-6)


def test_the_plan_leaves_no_trace_on_the_model() -> None:
    model = models.create("resnet20", (12, 12, 1), 3, 5)
    nodes = {layer.name: len(layer._inbound_nodes) for layer in model.layers}
    names, config = [layer.name for layer in model.layers], model.get_config()
    assert isinstance(plan.read(model), plan.Plan) and model.engine is not None
    assert {layer.name: len(layer._inbound_nodes) for layer in model.layers} == nodes
    assert [layer.name for layer in model.layers] == names and model.get_config() == config


def test_predict_evaluate_and_summary_work(capsys: pytest.CaptureFixture[str]) -> None:
    model = models.create("lenet", (8, 8, 1), 3, 4, hidden=8, threshold=0.2)
    x, y = images("lenet", 5, 8, 1), np.eye(3, dtype="f")[[0, 1, 2, 0, 1]]
    model.compile("sgd", "mse", metrics=["accuracy"])
    assert model.predict(x, batch_size=2, verbose=0).shape == (5, 3)
    assert len(model.evaluate(x, y, batch_size=2, verbose=0)) == 2
    model.summary()
    assert "conv1_1_lif" in capsys.readouterr().out


# --- Settings -----------------------------------------------------------------------------------------------------


def test_create_takes_every_setting_of_a_network_with_its_default() -> None:
    taken = inspect.signature(models.create).parameters
    fields = {field.name: field for field in dataclasses.fields(NetworkSettings)}
    assert taken.keys() == fields.keys()
    own = {"dropout", "hidden", "kappa"}  # None: the network's own
    assert {name: value.default for name, value in taken.items() if name not in own and value.default is not value.empty
            } == {name: field.default for name, field in fields.items()
                  if name not in own and field.default is not dataclasses.MISSING}
    assert all(taken[name].default is None for name in own)


def test_what_is_not_given_is_the_networks_own() -> None:
    made = NetworkSettings.of("vgg5", [32, 32, 3], 10, 4, kappa=None, leak=1)
    assert (made.hidden, made.dropout, made.kappa, made.leak) == (1024, 0.2, 2.0, 1.0)
    assert made.input_shape == (32, 32, 3) and NetworkSettings.of("vgg5", (32, 32, 3), 10, 4, hidden=0).hidden == 0


def test_a_configuration_is_built_with_all_of_its_settings() -> None:
    config = resolve({"model": "resnet7", "leak": 0.9, "threshold": 0.5, "gradient": "event", "encoder": "direct", "hidden": 5,
                      "dropout": 0.125, "kappa": 3.0, "seed": 7, "surrogate": "sigmoid", "surrogate_width": 1.5, "norm": "tdbn",
                      "pooling": "average", "timesteps": 3, "precision": "mixed_bfloat16"})
    images = datasets.from_arrays(np.arange(2 * 64).reshape(2, 8, 8, 1), [0, 1])
    built = loading.build_model(config, datasets.describe(images))
    alike = models.create("resnet7", (8, 8, 1), 2, 3, leak=0.9, threshold=0.5, gradient="event", encoder="direct", hidden=5,
                          dropout=0.125, kappa=3.0, seed=7, surrogate="sigmoid", surrogate_width=1.5, norm="tdbn",
                          pooling="average", dtype="mixed_bfloat16")

    def described(layer: Any) -> dict[str, Any]:
        inner = getattr(layer, "layer", None)  # whose name may be counted on
        return {**layer.get_config(), "layer": None if inner is None else {**inner.get_config(), "name": None}}

    assert [described(layer) for layer in built.layers] == [described(layer) for layer in alike.layers]
    assert len(built.layers) > 20


# --- What `create` refuses ------------------------------------------------------------------------------------------


BAD = [
    ({"name": "alexnet"}, "name.*lenet.*resnet20.*Received: name='alexnet'"),
    ({"name": None}, "name.*Received"), ({"name": ["lenet"]}, "name.*Received"),
    ({"input_shape": (3, 28, 1)}, "lenet needs images of at least 4x4 pixels.*Received"),
    ({"name": "vgg16", "input_shape": (31, 32, 3)}, "vgg16 needs images of at least 32x32 pixels.*Received"),
    ({"name": "vgg11", "input_shape": (32, 28, 3)}, "vgg11 needs images of at least 32x32 pixels.*Received"),
    ({"input_shape": (28, 28)}, "input_shape.*height, width, channels.*Received"),
    ({"input_shape": (28, 28, 0)}, "input_shape.*Received"), ({"input_shape": (28, 28.0, 1)}, "input_shape.*Received"),
    ({"input_shape": (None, None, 1)}, "input_shape.*Received"), ({"input_shape": 28}, "input_shape.*Received"),
    ({"num_classes": 0}, "num_classes.*at least 1.*Received"), ({"num_classes": 2.5}, "num_classes.*Received"),
    ({"timesteps": 0}, "timesteps.*at least 1.*Received: timesteps=0"), ({"timesteps": -1}, "timesteps.*Received"),
    ({"timesteps": 7.0}, "timesteps.*Received"), ({"timesteps": None}, "timesteps.*Received"),
    ({"gradient": "surrogate"}, "gradient.*'event', 'rate'.*Received"), ({"gradient": None}, "gradient.*Received"),
    ({"encoder": "phase"}, "encoder.*'poisson', 'direct', 'latency', None.*Received"),
    ({"leak": 0.0}, r"leak.*\(0, 1\].*Received: leak=0.0"), ({"leak": 1.1}, r"leak.*\(0, 1\].*Received"),
    ({"leak": -0.5}, "leak.*Received"), ({"leak": float("nan")}, "leak.*Received"), ({"leak": "0.9"}, "leak.*Received"),
    ({"threshold": 0.0}, "threshold.*above 0.*Received"), ({"threshold": float("inf")}, "threshold.*Received"),
    ({"dropout": 1.0}, r"dropout.*\[0, 1\).*Received"), ({"dropout": -0.1}, "dropout.*Received"),
    ({"hidden": -1}, "hidden.*at least 0.*Received"), ({"hidden": 1.5}, "hidden.*Received"),
    ({"kappa": 0.0}, "kappa.*above 0.*Received"), ({"kappa": float("nan")}, "kappa.*Received"),
    ({"seed": -1}, "seed.*at least 0.*Received"), ({"seed": "0"}, "seed.*Received"),
    ({"dtype": "float13"}, "dtype.*float13"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[f"{next(reversed(c))}={next(reversed(c.values()))}" for c, _ in BAD])
def test_bad_arguments_are_refused_in_one_sentence(changes: dict[str, Any], message: str) -> None:
    arguments = {"name": "lenet", "input_shape": (28, 28, 1), "num_classes": 10, "timesteps": 5, **changes}
    with pytest.raises(UserError, match=message) as caught:
        models.create(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", EVERY)
def test_the_smallest_image_is_legal_and_one_pixel_less_is_not(name: str) -> None:
    size = VARIANTS[name].min_size
    model = models.create(name, (size, size, 1), 2, 2, hidden=VARIANTS[name].hidden and 4)
    assert all(axis > 0 for call in model.plan.window for axis in call.output.shape[2:])
    with pytest.raises(UserError, match="at least"):
        models.create(name, (size, size - 1, 1), 2, 2)


def test_channels_first_is_refused_in_one_sentence() -> None:
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(UserError, match="channels_last.*channels_first"):
            models.create("lenet", (12, 12, 1), 4, 3)
    finally:
        keras.config.set_image_data_format("channels_last")


def test_a_batch_of_no_image_has_scores_and_counts_of_none() -> None:
    """TensorFlow's convolutions give other shapes for it on CPUs."""
    model = models.create("lenet", (28, 28, 1), 10, 3, hidden=4)
    scores, counts = model.observe(np.zeros((0, 28, 28, 1), "f"))
    assert scores.shape == model(np.zeros((0, 28, 28), "f")).shape == (0, 10)
    assert {name: tuple(count.shape) for name, count in counts.items()} == {
        call.name: (0, *call.output.shape[2:]) for call in model.plan.spiking}
