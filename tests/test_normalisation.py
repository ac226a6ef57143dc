"""tdBN: against NumPy, on both paths, under every gradient, and folded into the weights.

On two replicas: tests/test_distribution.py.
"""

from __future__ import annotations

import os
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import nets
from tfspike import LIF, DirectEncoder, OverTime, Readout, SpikingModel, ThresholdNorm, UserError, export, models
from tfspike.engine import folding, kernels
from tfspike.engine.precision import in_float32
from tfspike.models import blocks, losses
from tfspike.models.settings import LayerSettings
from tfspike.neurons import surrogates

T, B, C = 5, 4, 3
IMAGE = (12, 12, 3)


def currents(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(T, B, 6, 6, C)) * [1.0, 3.0, 0.2] + [0.0, 1.0, -2.0]).astype("f")


def residual(gradient: str = "rate", surrogate: str = "triangular", timesteps: int = 4,
             dtype: Any = None) -> SpikingModel:
    """A residual net in small: stem, a block with an identity shortcut, one with weights and a stride, a dense layer."""
    b = blocks.Builder(LayerSettings(leak=0.9, gradient=gradient, seed=3, dtype=dtype, surrogate=surrogate, norm="tdbn",
                                     pooling="average"))
    inputs = keras.Input(IMAGE)
    x = DirectEncoder(timesteps)(inputs)
    x = blocks.conv_lif(x, b, 6, 3, "stem")
    x = blocks.residual_block(x, b, 6, (1, 1), "block1")
    x = blocks.residual_block(x, b, 8, (2, 1), "block2")
    x = OverTime(keras.layers.Flatten())(blocks.pool(x, b, "pool"))
    x = blocks.lif(blocks.norm(blocks.dense(x, b, 16, "hidden"), b, "hidden"), b, "hidden")
    return SpikingModel(inputs, Readout(0.9)(blocks.dense(x, b, 4, "output")))


def images(count: int = B) -> np.ndarray:
    return np.random.default_rng(2).normal(0, 0.6, (count, *IMAGE)).astype("f")


def assert_alive(model: SpikingModel) -> None:
    assert min(float(tf.reduce_mean(count)) / 4 for count in model.observe(images())[1].values()) > 0.01


def step(model: SpikingModel, route: Any, inputs: np.ndarray) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """`(output, gradients, running statistics after it)`."""
    wanted = tf.one_hot(np.arange(len(inputs)) % 4, 4)
    with tf.GradientTape() as tape:
        output = route(inputs, training=True)
        loss = tf.reduce_sum(tf.square(output - wanted))
    grads = [grad.numpy() for grad in tape.gradient(loss, model.trainable_variables)]
    return output.numpy(), grads, [v.numpy() for v in model.non_trainable_variables if "moving" in v.name]


# ---- the layer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["event", "rate"])
@pytest.mark.parametrize("shape", [(C,), (6, C), (6, 6, C), (2, 3, 6, C)])
def test_maps_of_any_number_of_axes_are_normalised_alike(shape: tuple[int, ...], gradient: str) -> None:
    x = currents()[:, :, :1, :].reshape(T, B, -1, C)
    x = np.tile(x, (1, 1, 6, 1)).reshape(T, B, -1)[..., :np.prod(shape)].reshape(T, B, *shape)
    axes = tuple(range(x.ndim - 1))
    expected = (x - x.mean(axes)) / np.sqrt(x.var(axes) + 1e-5)
    np.testing.assert_allclose(ThresholdNorm(gradient=gradient)(x, training=True), expected, rtol=1e-3, atol=1e-4)


def test_currents_leave_with_the_size_of_the_threshold() -> None:
    layer = ThresholdNorm(threshold=0.7, alpha=0.5)
    x = currents()
    y = layer(x, training=True).numpy()
    flat = x.reshape(-1, C).astype("f8")
    wanted = 0.35 * (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
    np.testing.assert_allclose(y.reshape(-1, C), wanted, atol=1e-5)
    np.testing.assert_allclose(y.reshape(-1, C).std(0), 0.35, rtol=1e-3)


def test_running_statistics_follow_and_rule_inference() -> None:
    layer = ThresholdNorm(momentum=0.75)
    for seed in range(30):
        layer(currents(seed), training=True)
    flat = np.concatenate([currents(seed) for seed in range(30)]).reshape(-1, C)
    np.testing.assert_allclose(layer.moving_mean.numpy(), flat.mean(0), atol=0.15)
    np.testing.assert_allclose(layer.moving_variance.numpy(), flat.var(0), rtol=0.15)
    x = currents(99)
    factor, offset = (value.numpy() for value in layer.folded())
    np.testing.assert_allclose(layer(x), x * factor + offset, atol=1e-5)
    np.testing.assert_array_equal(layer(x)[:2], layer(x[:2]))  # any stretch of a window


def test_one_step_moves_statistics_by_its_share_and_epsilon_is_the_one_given() -> None:
    layer, x = ThresholdNorm(momentum=0.75, epsilon=0.5), currents()[:2, :1, :1, :2]
    y = layer(x, training=True)
    flat = x.reshape(-1, C).astype("f8")
    np.testing.assert_allclose(y.numpy().reshape(-1, C), (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 0.5), atol=1e-5)
    np.testing.assert_allclose(layer.moving_mean.numpy(), 0.25 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance.numpy(), 0.75 + 0.25 * flat.var(0), rtol=1e-5)
    np.testing.assert_allclose(layer.folded()[0], 1 / np.sqrt(0.75 + 0.25 * flat.var(0) + 0.5), rtol=1e-5)


def test_the_gradient_event_is_that_of_finite_differences() -> None:
    """The formulas in NumPy float64, differentiated numerically."""
    x, g = currents()[:, :2, :2, :2].astype("f8"), np.random.default_rng(1).normal(size=(T, 2, 2, 2, C))

    def value(x: np.ndarray) -> float:
        axes = (0, 1, 2, 3)
        return float(np.sum(g * (x - x.mean(axes)) / np.sqrt(x.var(axes) + 1e-5)))

    layer = ThresholdNorm()
    with tf.GradientTape() as tape:
        inputs = tf.constant(x, tf.float32)
        tape.watch(inputs)
        y = layer(inputs, training=True)
    found = tape.gradient(y, inputs, output_gradients=tf.constant(g, tf.float32)).numpy()
    for place in [(0, 0, 0, 0, 0), (3, 1, 1, 0, 1), (4, 0, 1, 1, 2)]:
        low, high = x.copy(), x.copy()
        low[place] -= 1e-5
        high[place] += 1e-5
        assert found[place] == pytest.approx((value(high) - value(low)) / 2e-5, abs=2e-4)


@pytest.mark.parametrize("epsilon", [1e-5, 0.5])
def test_the_gradient_rate_is_that_of_the_mean_current_under_the_statistics_of_the_currents(epsilon: float) -> None:
    """d = mean over t of I; y = (d - mean) / sqrt(v + epsilon), v moving with d as the variance of d does."""
    x = currents().astype("f8")
    g = np.random.default_rng(1).normal(size=x.shape)
    layer = ThresholdNorm(gradient="rate", epsilon=epsilon)
    with tf.GradientTape() as tape:
        inputs = tf.constant(x, tf.float32)
        tape.watch(inputs)
        y = layer(inputs, training=True)
    found = tape.gradient(y, inputs, output_gradients=tf.constant(g, tf.float32)).numpy()
    np.testing.assert_array_equal(y, ThresholdNorm(epsilon=epsilon)(x.astype("f"), training=True))
    d, up, axes = x.mean(0), g.sum(0), (0, 1, 2)
    n = d[..., 0].size
    variance = x.var((0, 1, 2, 3)) + epsilon
    centred = d - d.mean(axes)
    grad = (up - up.mean(axes)) / np.sqrt(variance) - centred * (up * centred).sum(axes) / n / variance**1.5
    np.testing.assert_allclose(found, np.broadcast_to(grad / T, x.shape), rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("dtype, error", [("float32", 1e-5), ("mixed_bfloat16", 1e-2)])
def test_the_fused_gradient_rate_is_the_one_written_out(dtype: str, error: float) -> None:
    layer = ThresholdNorm(threshold=1.5, alpha=0.7, gradient="rate", dtype=dtype)
    layer.build(currents().shape)
    layer.gamma.assign(np.linspace(-0.5, 2.0, layer.gamma.shape[0]))
    layer.beta.assign(np.linspace(-1.0, 1.0, layer.beta.shape[0]))
    x = tf.cast(currents().mean(0, keepdims=True), layer.compute_dtype)
    variance = tf.constant(currents().var((0, 1, 2, 3)), tf.float32)
    upstream = tf.cast(np.random.default_rng(2).normal(size=x.shape), layer.compute_dtype)

    def gradients(once: Any) -> list[Any]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = once(x, variance)
        return [y, *tape.gradient(y, [x, layer.gamma.value, layer.beta.value], output_gradients=upstream)]

    def written_out(x: tf.Tensor, variance: tf.Tensor) -> tf.Tensor:
        mean, spread = layer.moments(x)
        return layer.normalise(x, mean, spread + tf.stop_gradient(variance - spread))

    for fused, plain in zip(gradients(layer.normalise_rate), gradients(written_out)):
        plain = tf.cast(plain, tf.float32)
        assert float(tf.reduce_max(tf.abs(plain))) > 0.1
        np.testing.assert_allclose(tf.cast(fused, tf.float32), plain, atol=error * float(tf.reduce_max(tf.abs(plain))))


@pytest.mark.parametrize("gradient", ["event", "rate"])
def test_frozen_it_keeps_its_statistics_and_uses_them(gradient: str) -> None:
    model = residual(gradient)
    for seed in range(3):
        step(model, model, images() + seed)
    frozen = model.get_layer("block1_conv_a_norm")
    frozen.trainable = False
    before = [v.numpy() for v in frozen.variables]
    factor, offset = (value.numpy() for value in frozen.folded())
    x = np.random.default_rng(0).normal(size=(4, B, 3, 3, 6)).astype("f")
    np.testing.assert_allclose(frozen(x, training=True), x * factor + offset, atol=1e-5)
    assert_paths_agree(model, images())
    for a, v in zip(before, frozen.variables):
        np.testing.assert_array_equal(a, v.numpy())
    model.trainable = False
    inference = model(images()).numpy()
    np.testing.assert_allclose(model(images(), training=True), inference, atol=1e-5)


def test_an_epsilon_below_that_of_the_fused_operation_is_refused() -> None:
    with pytest.raises(UserError, match="at least 1e-05.*Received: epsilon=1e-08"):
        ThresholdNorm(epsilon=1e-8)


def test_statistics_stay_float32_under_bfloat16() -> None:
    layer = ThresholdNorm(dtype="mixed_bfloat16")
    y = layer(tf.cast(currents(), tf.bfloat16), training=True)
    assert y.dtype == tf.bfloat16 and {v.dtype for v in layer.variables} == {"float32"}
    exact = ThresholdNorm()
    exact(currents(), training=True)
    np.testing.assert_allclose(layer.moving_variance, exact.moving_variance, rtol=1e-2)


@pytest.mark.parametrize("wrong", [{"threshold": 0.0}, {"alpha": -1.0}, {"momentum": 1.0}, {"epsilon": 0.0},
                                   {"gradient": "both"}])
def test_constants_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"`{next(iter(wrong))}` must be"):
        ThresholdNorm(**wrong)


# ---- whole nets --------------------------------------------------------------------------------------------------


def assert_paths_agree(model: SpikingModel, inputs: np.ndarray) -> None:
    """Output, gradients and running statistics after one step, layer by layer and by the engine."""
    start = model.get_weights()
    by_layers = step(model, model.call_layers, inputs)
    model.set_weights(start)
    by_engine = step(model, model, inputs)
    assert_alive(model)
    np.testing.assert_allclose(by_engine[0], by_layers[0], rtol=1e-4, atol=1e-5)
    assert nets.worst_error(by_engine[1], by_layers[1]) < 1e-3
    for a, b in zip(by_engine[2], by_layers[2]):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert any(not np.array_equal(a, b) for a, b in zip(start, model.get_weights()))  # the statistics did move


@pytest.mark.parametrize(("kernel", "surrogate"), [
    ("plain", "leak_aware"), *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ("xla", "leak_aware"), ("plain", "triangular"), ("xla", "triangular")))])
@pytest.mark.parametrize("gradient", ["event", "rate"])
def test_both_paths_agree(gradient: str, surrogate: str, kernel: str) -> None:
    model, inputs = trained(gradient, surrogate), images()
    model.configure_engine(kernel=kernel)
    assert model.engine is not None
    assert model.engine.can_train
    assert_paths_agree(model, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["plain", pytest.param("xla", marks=pytest.mark.slow)])
def test_rate_trains_a_window_longer_than_a_byte_in_one_chunk(kernel: str) -> None:
    model, inputs = trained("rate", "triangular", timesteps=2 * kernels.MOST_STEPS + 3), images()
    model.configure_engine(kernel=kernel)
    assert model.engine is not None and model.engine.can_train
    assert_paths_agree(model, inputs)


@pytest.mark.usefixtures("layer_by_layer")
def test_event_trains_a_window_longer_than_a_byte_layer_by_layer_and_infers_by_the_engine() -> None:
    model = trained("event", "leak_aware", timesteps=kernels.MOST_STEPS + 1)
    assert model.engine is not None and not model.engine.can_train
    output, activity = model.observe(images(), training=True)
    assert set(activity) == set(model.spiking_layers)
    assert all(float(tf.reduce_sum(count)) > 0 for count in activity.values())
    np.testing.assert_allclose(model(images()), model.call_layers(images()), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("gradient", "surrogate"), [
    pytest.param(gradient, surrogate, marks=[pytest.mark.slow] * (surrogate != "arctan"))
    for gradient in ("event", "rate") for surrogate in surrogates.DERIVATIVES])
def test_a_residual_net_learns_a_batch_with_every_layer_alive(gradient: str, surrogate: str) -> None:
    model, inputs, labels = residual(gradient, surrogate), images(8), np.arange(8) % 4
    optimizer = keras.optimizers.Adam(0.01)

    @tf.function(autograph=False)
    def train() -> tf.Tensor:
        with tf.GradientTape() as tape:
            output = model(inputs, training=True)
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(labels, output, from_logits=True))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    optimizer.build(model.trainable_variables)
    values = [float(train()) for _ in range(40)]
    assert values[-1] < 0.6 * values[0]
    assert_alive(model)


@pytest.mark.slow
@pytest.mark.parametrize(("shortcut", "gradient", "surrogate", "width"), [
    ("currents", "rate", "arctan", 2.0),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ("spikes", "rate", "arctan", 2.0), ("spikes", "event", "arctan", 1.0), ("spikes", "event", "triangular", 1.0),
        ("spikes", "event", "sigmoid", 1.0), ("spikes", "rate", "triangular", 1.5),
        ("currents", "event", "arctan", 1.0)))])
def test_the_gradient_of_resnet20_keeps_its_size_with_depth_while_it_trains(shortcut: str, gradient: str,
                                                                           surrogate: str, width: float) -> None:
    model = models.create("resnet20", (32, 32, 3), 10, 4, gradient=gradient, encoder="direct", surrogate=surrogate,
                          surrogate_width=width, norm="tdbn", pooling="average", shortcut=shortcut)
    bound = 10 if shortcut == "currents" else 30
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(0, 0.5, (8, 32, 32, 3)).astype("f"), np.arange(8) % 10
    optimizer = keras.optimizers.AdamW(0.003)
    optimizer.build(model.trainable_variables)

    @tf.function(autograph=False)
    def train() -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            output, activity = model.observe(inputs, training=True)
            loss = tf.reduce_mean(losses.per_record("cross_entropy", output, labels))
        grads = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(grads, model.trainable_variables)
        kernels_only = [grad for grad in grads if len(grad.shape) > 1]
        return tf.stack([tf.norm(kernels_only[0]), tf.norm(kernels_only[-1])]), tf.stack(
            [tf.reduce_mean(count) / 4 for count in activity.values()])

    for _ in range(4):
        norms, rates = train()
        assert 1 / bound < norms[0] / norms[1] < bound
        assert tf.reduce_min(rates) > 0.02


def test_saved_and_loaded_it_is_the_same(tmp_path: Any) -> None:
    model = residual()
    model(images(), training=True)
    model.save(tmp_path / "net.keras")
    again = keras.models.load_model(tmp_path / "net.keras")
    np.testing.assert_array_equal(model(images()), again(images()))
    a, b = (step(net, net, images()) for net in (model, again))
    assert nets.worst_error(a[1], b[1]) < 1e-6


# ---- folding -----------------------------------------------------------------------------------------------------


def trained(*args: Any, **kwargs: Any) -> SpikingModel:
    """Statistics and factors other than those at the start."""
    model, rng = residual(*args, **kwargs), np.random.default_rng(8)
    for _ in range(20):
        model.call_layers(images(16), training=True)
    for layer in model.layers:
        if isinstance(layer, ThresholdNorm):
            layer.gamma.assign(rng.uniform(0.8, 1.2, layer.gamma.shape))
            layer.beta.assign(rng.normal(0, 0.1, layer.beta.shape))
    return model


def test_folded_it_computes_the_same_without_normalisation() -> None:
    model = trained()
    folded = folding.fold(model)
    assert not any(isinstance(layer, ThresholdNorm) for layer in folded.layers)
    assert folded.spiking_layers == model.spiking_layers
    (a, counts), (b, folded_counts) = model.observe(images(16)), folded.observe(images(16))
    total = sum(float(tf.reduce_sum(count)) for count in counts.values())
    differing = sum(float(tf.reduce_sum(tf.abs(x - y))) for x, y in zip(counts.values(), folded_counts.values()))
    assert total > 5_000 and differing < 1e-3 * total  # rounding flips single spikes
    np.testing.assert_allclose(a, b, atol=0.05)
    assert folding.fold(folded) is folded


def test_folding_keeps_operations_and_the_structure_of_outputs() -> None:
    inputs = keras.Input(IMAGE)
    x = OverTime(keras.layers.Flatten())(DirectEncoder(4)(keras.ops.abs(inputs)))
    x = LIF(0.9)(ThresholdNorm()(OverTime(keras.layers.Dense(8))(x)))
    scores = Readout(0.9)(OverTime(keras.layers.Dense(4))(x))
    model = SpikingModel(inputs, {"scores": scores, "twice": keras.ops.multiply(scores, 2.0)})
    for _ in range(3):
        model(images(), training=True)
    folded = folding.fold(model)
    assert not folded.plan.norms
    found, wanted = folded(images()), model(images())
    assert set(found) == {"scores", "twice"} and np.abs(wanted["scores"]).max() > 0
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-4)


def test_folded_in_sixteen_bits_it_computes_in_float32() -> None:
    model = trained(dtype="mixed_bfloat16")
    folded, exact = folding.fold(model), folding.fold(in_float32(model))
    assert {layer.compute_dtype for layer in folded.layers} == {"float32"}
    np.testing.assert_array_equal(folded(images()), exact(images()))
    assert_alive(folded)


def test_what_cannot_be_folded_is_refused() -> None:
    inputs = keras.Input((8,))
    x = DirectEncoder(4)(inputs)
    x = LIF(name="first")(OverTime(keras.layers.Dense(5))(x))
    x = LIF(name="second")(ThresholdNorm(name="behind_neurons")(x))
    outputs = Readout()(OverTime(keras.layers.Dense(2))(x))
    model = SpikingModel(inputs, outputs)
    with pytest.raises(UserError, match="'behind_neurons' cannot be folded"):
        folding.fold(model)


@pytest.mark.slow
def test_exports_hold_the_folded_network(tmp_path: Any) -> None:
    from tfspike import datasets

    info = datasets.DatasetInfo("tiny", IMAGE, 4, tuple("abcd"), (1 / 128,) * 3, (-0.5,) * 3, False, 10, 10)
    example = np.random.default_rng(0).integers(0, 256, (4, *IMAGE)).astype(np.uint8)
    reports = export.save(trained(), info, ["saved_model", "keras"], tmp_path, example)
    assert reports["saved_model"]["spikes"] > 500 and reports["saved_model"]["silent_layers"] == []
    assert os.path.exists(reports["keras"]["path"])
