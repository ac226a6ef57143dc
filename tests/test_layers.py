"""Window layers: shapes, state, options and refusals; their mathematics is in test_gradients.py."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import oracle
from tfspike import (
    LIF,
    DirectEncoder,
    LeakAware,
    LeakyIntegratorCell,
    LIFCell,
    OverTime,
    PoolingIF,
    PoolingIFCell,
    Readout,
    SpikingModel,
    ThresholdNorm,
    UserError,
    WindowDropout,
    models,
)
from tfspike.engine import folding
from tfspike.neurons.gate import MaxPoolGate

T, B = 9, 3


def currents(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.4, 0.6, (T, B, *shape)).astype("f")


# --- LIF and PoolingIF ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["event", "rate"])
@pytest.mark.parametrize("leak", [0.5, 0.9, 0.99, 1.0])
def test_lif_layer_equals_the_oracle_on_feature_maps(gradient: str, leak: float) -> None:
    train, g = currents(3, 4, 2), np.random.default_rng(1).normal(size=(T, B, 3, 4, 2)).astype("f")
    with tf.GradientTape() as tape:
        i = tf.constant(train)
        tape.watch(i)
        spikes = LIF(leak, 0.8, gradient)(i)
    window = oracle.lif_forward(train, leak, 0.8)
    assert window.N.mean() > 1 and np.abs(window.u - 0.8).min() > 1e-6
    np.testing.assert_array_equal(spikes, window.spikes)
    slope = oracle.slope(window.N, window.F, leak, 0.8)
    wanted = (oracle.event_backward(window.spikes, slope, g) if gradient == "event"
              else np.broadcast_to(oracle.rate_backward(slope, g.astype("d").mean(axis=0)), g.shape))
    delta = tape.gradient(spikes, i, output_gradients=tf.constant(g))
    np.testing.assert_allclose(delta, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gradient", ["event", "rate"])
def test_pooling_layer_equals_the_oracle(gradient: str) -> None:
    # spikes averaged over 2x2 are quarters: u meets .75 exactly, and must not fire there
    rng = np.random.default_rng(2)
    spikes_below = (rng.random((T, B, 5, 7, 2)) < 0.3).astype("f")
    g = rng.normal(size=(T, B, 2, 3, 2)).astype("f")
    with tf.GradientTape() as tape:
        x = tf.constant(spikes_below)
        tape.watch(x)
        spikes = PoolingIF(gradient=gradient)(OverTime(keras.layers.AveragePooling2D(2))(x))
    window = oracle.lif_forward(oracle.average_pool(spikes_below.astype("d")), 1.0, 0.75)
    assert (window.u == 0.75).any() and window.N.mean() > 1
    np.testing.assert_array_equal(spikes, window.spikes)
    slope = oracle.pooling_slope(window.N)
    delta = (oracle.event_backward(window.spikes, slope, g) if gradient == "event"
             else np.broadcast_to(slope * g.astype("d").mean(axis=0), g.shape))
    wanted = oracle.average_pool_gradient(delta, spikes_below.shape)
    got = tape.gradient(spikes, x, output_gradients=tf.constant(g))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    assert not got[:, :, 4].numpy().any() and not got[:, :, :, 6].numpy().any()  # the odd row and column


@pytest.mark.parametrize("layer", [LIF(0.9), LIF(0.5, 0.7, "rate"), PoolingIF()])
def test_two_calls_with_carried_state_are_one(layer: Any) -> None:
    train = tf.constant(currents(6))
    whole, final = layer(train, return_state=True)
    early, state = layer(train[:4], return_state=True)
    late, end = layer(train[4:], initial_state=state, return_state=True)
    assert whole.numpy().sum() > 10 and not np.array_equal(late, layer(train[4:]))
    np.testing.assert_array_equal(tf.concat([early, late], 0), whole)
    for a, b in zip(end, final):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_two_calls_do_not_remember_each_other() -> None:
    layer, train = LIF(0.9), tf.constant(currents(6))
    np.testing.assert_array_equal(layer(train), layer(train))
    assert not layer.variables


def test_state_is_float32_and_spikes_are_bfloat16_under_a_mixed_policy() -> None:
    train = tf.constant(currents(6))
    for layer in (LIF(0.9, dtype="mixed_bfloat16"), PoolingIF(dtype="mixed_bfloat16")):
        spikes, state = layer(train, return_state=True)
        assert spikes.dtype == tf.bfloat16 and {part.dtype for part in state} == {tf.float32}
        assert spikes.numpy().astype("f").sum() > 10
        # a state that is handed back is not rounded on its way in
        odd = tuple(part + 2.0**-12 for part in state)
        _, again = layer(tf.zeros_like(train), initial_state=odd, return_state=True)
        np.testing.assert_array_equal(again.count - tf.floor(again.count), tf.fill((B, 6), 2.0**-12))


def test_layers_describe_their_outputs_in_a_functional_model() -> None:
    x = keras.Input((4, 6), batch_size=T)
    spikes, state = LIF(0.9)(x, return_state=True)
    assert spikes.shape == (T, 4, 6) and [part.shape for part in state] == [(4, 6)] * 3
    output, (membrane, steps) = Readout(0.9)(spikes, return_state=True)
    assert output.shape == (4, 6) and membrane.shape == (4, 6) and steps.shape == ()
    model = keras.Model(x, [spikes, *state, output])
    values = model(tf.constant(currents(6)[:, :1].repeat(4, 1)))
    assert [tuple(value.shape) for value in values] == [(T, 4, 6), (4, 6), (4, 6), (4, 6), (4, 6)]


@pytest.mark.parametrize("make", [lambda leak: LIF(leak), lambda leak: Readout(leak), lambda leak: LeakAware(leak)])
@pytest.mark.parametrize("leak", [0.0, -0.5, 1.5, float("nan"), None, True])
def test_leak_outside_its_range_is_refused(make: Any, leak: Any) -> None:
    with pytest.raises(UserError, match=r"leak.*\(0, 1\].*Received"):
        make(leak)


def test_constants_may_be_numpys() -> None:
    layer = LIF(np.float32(0.5), np.float64(2.0))
    assert (layer.leak, layer.threshold) == (0.5, 2.0) and type(layer.leak) is float
    encoder = DirectEncoder(np.int64(4))
    assert encoder.timesteps == 4 and type(encoder.timesteps) is int
    model = models.create("lenet", (np.int64(12), 12, 1), np.int32(3), np.int64(2), kappa=np.float32(2), hidden=4)
    assert model.output_shape == (None, 3) and LIFCell(np.int64(4)).units == 4


@pytest.mark.parametrize("name", ["tensor", "variable", "keras", "array", "zero_d", "list"])
def test_constants_that_are_tensors_are_refused_with_what_to_do_instead(name: str) -> None:
    value = {"tensor": tf.constant(0.9), "variable": tf.Variable(0.9), "keras": keras.Variable(0.9),
             "array": np.full((40, 3), 0.9), "zero_d": np.array(0.9), "list": [0.9, 0.5]}[name]
    takers = [(kind, "leak") for kind in (LIF, Readout, LeakAware)] + [
        (kind, "threshold") for kind in (LIF, PoolingIF, LeakAware, ThresholdNorm)] + [
        (LIF, "surrogate_width"), (ThresholdNorm, "alpha"), (ThresholdNorm, "momentum"), (ThresholdNorm, "epsilon")]
    takers += [(functools.partial(cell, 4), constant) for cell, constant in (
        (LIFCell, "leak"), (LIFCell, "threshold"), (PoolingIFCell, "threshold"), (LeakyIntegratorCell, "leak"))]
    takers += [(WindowDropout, "rate")]
    for make, constant in takers:
        with pytest.raises(UserError, match=f"`{constant}`.*constant, one number.*float.*own `call`.*recipe") as caught:
            make(**{constant: value})
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("value", ["0.9", True, None, float("nan"), 1j])
def test_constants_that_are_no_numbers_are_refused_without_a_recipe(value: Any) -> None:
    for make, constant in ((LIF, "leak"), (LIF, "threshold"), (WindowDropout, "rate"), (ThresholdNorm, "alpha")):
        with pytest.raises(UserError, match=f"`{constant}`.*number.*Received") as caught:
            make(**{constant: value})
        assert "recipe" not in str(caught.value)


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("inf"), "1"])
def test_threshold_that_is_not_positive_is_refused(threshold: Any) -> None:
    for layer in (LIF, PoolingIF, LeakAware):
        with pytest.raises(UserError, match="threshold.*above 0.*Received"):
            layer(threshold=threshold)


def test_unknown_gradient_is_refused_with_the_legal_ones() -> None:
    for layer in (LIF, PoolingIF):
        with pytest.raises(UserError, match="gradient.*'event', 'rate'.*Received: gradient='spike'"):
            layer(gradient="spike")


# --- Readout --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leak", [0.5, 0.9, 0.99, 1.0])
def test_readout_equals_the_oracle(leak: float) -> None:
    train = currents(5)
    output, membrane = oracle.readout_forward(train, leak)
    layer = Readout(leak)
    np.testing.assert_allclose(layer(train), output, rtol=1e-5, atol=1e-6)
    steps = np.arange(1, T + 1).reshape(-1, 1, 1)
    np.testing.assert_allclose(layer(train, every_step=True), membrane / steps, rtol=1e-5, atol=1e-6)


def test_readout_carries_its_state() -> None:
    train, layer = currents(5), Readout(0.9)
    _, state = layer(train[:4], return_state=True)
    joined, (_, steps) = layer(train[4:], initial_state=state, return_state=True)
    assert float(steps) == T
    np.testing.assert_allclose(joined, layer(train), rtol=1e-5, atol=1e-6)
    every = layer(train[4:], initial_state=state, every_step=True)
    np.testing.assert_allclose(every, layer(train, every_step=True)[4:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_readout_gives_every_step_the_same_gradient(sign: float) -> None:
    i = tf.constant(currents(5))
    with tf.GradientTape() as tape:
        tape.watch(i)
        output = Readout(0.5)(i)
    delta = tape.gradient(output, i, output_gradients=tf.fill(output.shape, sign))
    np.testing.assert_allclose(delta, np.full(i.shape, sign / T), rtol=1e-6)


def test_readout_is_float32_under_a_mixed_policy() -> None:
    small = tf.fill((T, 1, 1), tf.constant(2.0**-9, tf.bfloat16))
    output, (membrane, _) = Readout(1.0, dtype="mixed_bfloat16")(
        small, initial_state=(tf.constant([[0.5]]), tf.constant(0.0)), return_state=True)
    assert output.dtype == tf.float32 and membrane.numpy().item() == 0.5 + T * 2.0**-9


# --- LeakAware ------------------------------------------------------------------------------------------------------


def test_leak_aware_is_the_identity_with_a_scaled_gradient_by_hand() -> None:
    # s = 0 1 0 1: N = 2, F = .5^2 + 1 = 1.25, theta slope = 1 - .693147 * .625 = .566783; a silent neuron gets nothing
    spikes = tf.constant([[[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]])  # [B=1, T=4, 2]
    for axis, train in ((1, spikes), (0, tf.transpose(spikes, (1, 0, 2)))):
        with tf.GradientTape() as tape:
            tape.watch(train)
            output = LeakAware(0.5, 0.8, time_axis=axis)(train)
        np.testing.assert_array_equal(output, train)
        delta = tape.gradient(output, train)
        np.testing.assert_allclose(delta[..., 0], np.full(train.shape[:2], 0.566783), rtol=1e-5)
        assert not delta[..., 1].numpy().any()
    with pytest.raises(UserError, match="time_axis.*1.*Received"):
        LeakAware(time_axis=2)


# --- OverTime -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: keras.layers.Conv2D(4, 3, 2, use_bias=False), lambda: keras.layers.Flatten(),
                                  lambda: keras.layers.ZeroPadding2D(1), lambda: keras.layers.Dense(5),
                                  lambda: keras.layers.AveragePooling2D(2)])
def test_over_time_applies_the_layer_at_every_step(make: Any) -> None:
    layer, train = make(), currents(6, 7, 2)
    whole = OverTime(layer)(tf.constant(train))
    np.testing.assert_allclose(whole, np.stack([layer(step) for step in train]), rtol=1e-5, atol=1e-6)


def test_over_time_knows_its_shapes_before_it_knows_t_or_b() -> None:
    layer = OverTime(keras.layers.Conv2D(4, 3, padding="same"))
    for batch_shape in ((None, 3, 6, 7, 2), (5, None, 6, 7, 2), (None, None, 6, 7, 2)):
        assert layer(keras.Input(batch_shape=batch_shape)).shape == (*batch_shape[:2], 6, 7, 4)

        @tf.function(input_signature=[tf.TensorSpec(batch_shape)])
        def run(train: tf.Tensor) -> tf.Tensor:
            return layer(train)

        train = tf.constant(np.random.default_rng(0).normal(size=(5, 3, 6, 7, 2)).astype("f"))
        np.testing.assert_allclose(run(train), layer(train), rtol=1e-5, atol=1e-6)


def test_a_graph_of_images_of_any_size_computes_what_one_of_known_sizes_does() -> None:
    conv, norm, neurons = OverTime(keras.layers.Conv2D(4, 3)), ThresholdNorm(), LIF(surrogate="triangular")

    def layers(train: tf.Tensor) -> tf.Tensor:
        return OverTime(keras.layers.GlobalAveragePooling2D())(neurons(norm(conv(train), training=True)))

    for layer, channels in ((conv, 2), (norm, 4)):
        layer.build((T, None, None, None, channels))
    of_any_size = tf.function(layers, input_signature=[tf.TensorSpec((T, None, None, None, 2), tf.float32)])
    for size in (6, 7):
        train = currents(size, size + 1, 2)
        np.testing.assert_allclose(of_any_size(train), layers(train), rtol=1e-5)


@pytest.mark.parametrize("layer", [LIF, PoolingIF, Readout])
def test_a_batch_is_not_taken_for_time(layer: Any) -> None:
    for shape in ((10,), (20, 8), (6, 6, 3)):
        with pytest.raises(UserError, match=rf"{layer.__name__} takes trains .*Received: shape \(None, .*SpikeInput"):
            layer()(keras.Input(shape))
    for train in ((5, None, 8), (5, 3, 8), (None, None, 8)):
        assert layer()(keras.Input(batch_shape=train)).shape[-1] == 8


@pytest.mark.parametrize("inner", [keras.layers.BatchNormalization, lambda: keras.layers.Dropout(0.5)])
def test_over_time_refuses_layers_with_state(inner: Any) -> None:
    with pytest.raises(ValueError, match="stateless.*WindowDropout"):
        OverTime(inner())(tf.constant(currents(4)))


def test_over_time_asks_for_state_without_touching_what_is_trained() -> None:
    dense, random, batch = keras.layers.Dense(3), keras.layers.Dropout(0.5), keras.layers.BatchNormalization()
    dense.build((None, 4))
    batch.build((None, 3))
    dense.trainable = random.trainable = batch.trainable = False  # frozen after they were built
    nested = keras.Sequential([keras.Input((4,)), dense, keras.layers.BatchNormalization()])
    both = keras.Sequential([keras.Input((4,)), dense, keras.layers.Dense(2)])
    flags: list[bool] = []
    trainable = keras.layers.Layer.trainable
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.layers.Layer, "trainable", trainable.setter(lambda self, value: flags.append(value)))
        for layer in (dense, both):
            assert OverTime(layer)(tf.constant(currents(4))).shape[-1] in (2, 3)
        for layer, state in ((random, "seed_generator_state"), (batch, "moving_mean"), (nested, "moving_variance")):
            with pytest.raises(ValueError, match=f"stateless.*{state}"):
                OverTime(layer)
    assert not flags and not dense.trainable and not any(v.trainable for v in dense.variables) and both.trainable


def test_over_time_takes_frozen_layers_and_models_of_them_come_back(tmp_path: Any) -> None:
    inner = keras.layers.Conv2D(4, 3)
    inner.trainable = False
    layer = OverTime(inner)
    assert layer(tf.constant(currents(6, 7, 2))).shape[2:] == (4, 5, 4)
    assert not inner.trainable and not layer.trainable_variables and len(inner.non_trainable_variables) == 2
    OverTime(keras.layers.Dense(3, trainable=False))(tf.constant(currents(4)))
    frozen = keras.layers.BatchNormalization(trainable=False)
    with pytest.raises(ValueError, match="stateless.*moving_mean"):
        OverTime(frozen)(tf.constant(currents(4)))

    several = keras.Sequential([keras.layers.Dense(4), keras.layers.Dense(3)])
    several.layers[0].trainable = False
    assert OverTime(several)(tf.constant(currents(6))).shape[2:] == (3,)
    assert [len(part.trainable_variables) for part in several.layers] == [0, 2] and several.trainable
    with pytest.raises(ValueError, match="stateless.*moving_mean"):
        OverTime(keras.Sequential([keras.layers.Dense(4), keras.layers.BatchNormalization()]))(tf.constant(currents(6)))
    inputs = keras.Input((6,))
    x = LIF(0.9)(OverTime(several)(DirectEncoder(4)(inputs)))
    nested = SpikingModel(inputs, Readout(0.9)(OverTime(keras.layers.Dense(2))(x)))
    nested.save(tmp_path / "nested.keras")
    assert len(keras.models.load_model(tmp_path / "nested.keras").trainable_variables) == 4

    model = models.create("lenet", (12, 12, 1), 3, 4, hidden=8, norm="tdbn", encoder="direct")
    model.get_layer("conv1_1").trainable = False
    images = np.random.default_rng(0).uniform(0, 1, (2, 12, 12, 1)).astype("f")
    model.save(tmp_path / "frozen.keras")
    again = keras.models.load_model(tmp_path / "frozen.keras")
    assert [v.shape for v in again.trainable_variables] == [v.shape for v in model.trainable_variables]
    np.testing.assert_array_equal(again(images), model(images))
    np.testing.assert_allclose(folding.fold(model)(images), model(images), atol=1e-5)
    again.get_layer("conv1_1").trainable = True
    assert len(again.trainable_variables) == len(model.trainable_variables) + 1


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_a_network_whose_weights_keras_quantised_answers_and_comes_back(mode: str, tmp_path: Any) -> None:
    inputs = keras.Input((6,))
    x = LIF(0.9, gradient="rate")(OverTime(keras.layers.Dense(8, kernel_initializer="ones"))(DirectEncoder(4)(inputs)))
    model = SpikingModel(inputs, Readout(0.9)(OverTime(keras.layers.Dense(3))(x)))
    model.quantize(mode)  # before anyone has asked for a plan
    x = np.random.default_rng(0).uniform(-1, 1, (5, 6)).astype("f")
    assert model.engine is not None
    np.testing.assert_allclose(model(x), model.call_layers(x), rtol=1e-5, atol=1e-6)
    model.save(tmp_path / "small.keras")
    again = keras.models.load_model(tmp_path / "small.keras")
    np.testing.assert_array_equal(again(x), model(x))
    assert again.layers[2].layer.quantization_mode == mode


@pytest.mark.parametrize("layer", [
    LIF(), Readout(), LeakAware(), WindowDropout(0.5), OverTime(keras.layers.Flatten()), MaxPoolGate()])
def test_over_time_refuses_what_needs_the_window(layer: Any) -> None:
    with pytest.raises(ValueError, match=f"{type(layer).__name__} needs the whole window"):
        OverTime(layer)


def test_over_time_refuses_what_is_no_layer() -> None:
    with pytest.raises(ValueError, match="must be a Keras layer. Received"):
        OverTime(tf.nn.relu)  # type: ignore[arg-type]


# --- WindowDropout --------------------------------------------------------------------------------------------------


def test_dropout_holds_one_mask_for_the_window_and_another_for_every_sample() -> None:
    layer = WindowDropout(0.2, seed=3)
    masked = layer(tf.ones((T, 50, 200)), training=True).numpy()
    assert (masked == masked[:1]).all()
    assert set(np.unique(masked)) == {0.0, np.float32(1.25)}
    assert not (masked[0] == masked[0, :1]).all()
    dropped = (masked[0] == 0).mean()
    assert abs(dropped - 0.2) < 5 * np.sqrt(0.2 * 0.8 / masked[0].size)


def test_dropout_does_nothing_in_inference_and_at_rate_zero() -> None:
    train = tf.constant(currents(6))
    for layer, training in ((WindowDropout(0.5), False), (WindowDropout(0.5), None), (WindowDropout(0.0), True)):
        np.testing.assert_array_equal(layer(train, training=training), train)
        assert int(layer.step.value) == 0


def test_dropout_draws_are_a_function_of_seed_and_step() -> None:
    ones = tf.ones((2, 4, 100))
    first, other = WindowDropout(0.5, seed=1), WindowDropout(0.5, seed=2)
    a, b, c = first(ones, training=True), first(ones, training=True), other(ones, training=True)
    assert int(first.step.value) == 2
    assert not np.array_equal(a, b) and not np.array_equal(a, c)
    first.step.assign(0)
    np.testing.assert_array_equal(first(ones, training=True), a)
    first.step.assign(0)
    np.testing.assert_array_equal(first.draw_mask((4, 100)), a[0])


def test_dropout_layers_of_the_same_seed_draw_different_masks() -> None:
    ones = tf.ones((2, 4, 100))
    masks = [WindowDropout(0.5, name=name)(ones, training=True).numpy() for name in ("a", "b", "a")]
    assert not np.array_equal(masks[0], masks[1])
    np.testing.assert_array_equal(masks[0], masks[2])


def test_dropout_passes_the_masked_gradient_and_takes_a_given_mask() -> None:
    mask = tf.constant([[0.0, 2.0]])
    train = tf.ones((T, 1, 2))
    with tf.GradientTape() as tape:
        tape.watch(train)
        output = WindowDropout(0.5)(train, window_mask=mask)
    np.testing.assert_array_equal(output, np.broadcast_to(mask, (T, 1, 2)))
    np.testing.assert_array_equal(tape.gradient(output, train), np.broadcast_to(mask, (T, 1, 2)))


@pytest.mark.parametrize("rate", [1.0, -0.1, 2, float("nan"), "0.5", None])
def test_dropout_rate_outside_its_range_is_refused(rate: Any) -> None:
    with pytest.raises(UserError, match=r"rate.*\[0, 1\).*Received"):
        WindowDropout(rate)


class Scale(keras.layers.Layer):
    """One's own, that says no output shape: Keras finds it from `call`."""

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return 2.0 * self.scale * x


class Normalised(keras.layers.Layer):
    """The same, with a layer inside that is built when it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = keras.layers.BatchNormalization()

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.inside(x)


def test_over_time_takes_layers_of_one_s_own_as_keras_does() -> None:
    layer = OverTime(Scale())
    assert layer(keras.Input(batch_shape=(4, None, 3))).shape == (4, None, 3)
    train = np.random.default_rng(0).uniform(0, 1, (4, 2, 3)).astype("f")
    np.testing.assert_allclose(layer(train), 2.0 * train)


@pytest.mark.filterwarnings("ignore:.*was called on layer:UserWarning")
def test_over_time_refuses_state_in_layers_that_are_built_when_they_are_called() -> None:
    with pytest.raises(ValueError, match="moving_mean"):
        OverTime(Normalised())(keras.Input(batch_shape=(4, None, 3)))
