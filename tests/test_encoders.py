"""Encoders: what they draw, that they can draw it again, and that stretches joined are the window."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfspike import (
    LIF,
    DirectEncoder,
    LatencyEncoder,
    PoissonEncoder,
    Readout,
    SpikeInput,
    SpikingModel,
    UserError,
    models,
)
from tfspike.analysis.measure import analyse
from tfspike.export.window import Window
from tfspike.neurons import encoders, noise
from tfspike.neurons.encoders import Encoder
from tfspike.neurons.over_time import OverTime, WindowDropout

T, B = 12, 4


def images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1.0, 1.0, (B, *shape)).astype("f")


# --- Poisson --------------------------------------------------------------------------------------------------------


def test_poisson_rates_lie_within_five_sigma_and_keep_their_sign() -> None:
    levels = np.array([-1.5, -1.0, -0.7, -0.1, 0.0, 0.02, 0.5, 0.99, 1.0, 3.0], "f")
    n = 4000
    train = PoissonEncoder(T, seed=1)(tf.constant(np.tile(levels, (n, 1))), training=True).numpy()
    assert set(np.unique(train)) == {-1.0, 0.0, 1.0}
    for level, spikes in zip(levels, np.moveaxis(train, -1, 0)):
        p = min(abs(float(level)), 1.0)
        assert set(np.unique(spikes)) <= {0.0, float(np.sign(level))}
        assert abs(np.abs(spikes).mean() - p) <= 5 * np.sqrt(p * (1 - p) / spikes.size)


def test_poisson_draws_are_independent_between_steps_and_samples() -> None:
    train = PoissonEncoder(T, seed=1)(tf.fill((2000, 3), 0.5), training=True).numpy() - 0.5
    sigma = 0.25 / np.sqrt(train[0].size)
    for lag in (1, 2, 5):
        assert abs((train[lag:] * train[:-lag]).mean(axis=(1, 2))).max() < 5 * sigma
    assert abs((train[:, 1:] * train[:, :-1]).mean()) < 5 * 0.25 / np.sqrt(train[:, 1:].size)


def test_poisson_training_draws_depend_on_seed_and_step_alone() -> None:
    x = tf.constant(images(50))
    a, b = PoissonEncoder(T, seed=1), PoissonEncoder(T, seed=1)
    first, second = a(x, training=True), a(x, training=True)
    assert int(a.step.value) == 2
    np.testing.assert_array_equal(b(x, training=True), first)
    np.testing.assert_array_equal(tf.function(b, jit_compile=False)(x, training=True), second)
    assert not np.array_equal(first, second)
    assert not np.array_equal(PoissonEncoder(T, seed=2)(x, training=True), first)
    b.step.assign(0)
    np.testing.assert_array_equal(b(x, training=True, seed=9), first)  # which is of inference alone


def test_xla_draws_the_same_numbers() -> None:
    # `fit` compiles, evaluation and export do not: one key, one train
    x = tf.constant(images(50))
    for training in (True, False):
        eager, compiled = PoissonEncoder(T, seed=1), PoissonEncoder(T, seed=1)
        drawn = tf.function(lambda: compiled(x, training=training), jit_compile=True)()
        np.testing.assert_array_equal(drawn, eager(x, training=training))
    eager, compiled = WindowDropout(0.3, seed=1, name="one"), WindowDropout(0.3, seed=1, name="one")
    np.testing.assert_array_equal(tf.function(lambda: compiled.draw_mask((B, 50)), jit_compile=True)(),
                                  eager.draw_mask((B, 50)))


def test_poisson_replicas_draw_different_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    x = tf.constant(images(50))
    trains = []
    for replica in range(3):
        monkeypatch.setattr(noise, "replica_id", lambda replica=replica: replica)
        trains.append(PoissonEncoder(T, seed=1)(x, training=True).numpy())
    monkeypatch.undo()
    assert np.array_equal(PoissonEncoder(T, seed=1)(x, training=True), trains[0])
    assert not any(np.array_equal(trains[i], trains[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_poisson_inference_repeats_and_takes_an_explicit_seed() -> None:
    x, encoder = tf.constant(images(50)), PoissonEncoder(T, seed=1)
    first = encoder(x)
    np.testing.assert_array_equal(encoder(x), first)
    np.testing.assert_array_equal(encoder(x, seed=0), first)
    np.testing.assert_array_equal(encoder(x, training=False, seed=tf.constant(0)), first)
    assert not np.array_equal(encoder(x, seed=1), first)
    assert not np.array_equal(PoissonEncoder(T, seed=2)(x), first)
    assert int(encoder.step.value) == 0
    # the first training step does not see the numbers of inference seed 0
    assert not np.array_equal(encoder(x, training=True), first)


def test_poisson_probabilities_are_not_rounded_under_a_mixed_policy() -> None:
    x = tf.constant(images(2000))
    train = PoissonEncoder(T, seed=1, dtype="mixed_bfloat16")(x)
    assert train.dtype == tf.bfloat16
    exact = PoissonEncoder(T, seed=1)
    np.testing.assert_array_equal(train.numpy().astype("f"), exact(x))
    drawn = np.stack([noise.uniform(x.shape, noise.derive(exact.key(False, 0), t)) for t in range(T)])
    np.testing.assert_array_equal(exact(x), (drawn < np.abs(x)) * np.sign(x))


def test_the_step_counter_is_saved_with_the_model(tmp_path: Path) -> None:
    inputs = keras.Input((6,))
    encoder = PoissonEncoder(T, seed=4, name="encoder")
    model = keras.Model(inputs, Readout()(OverTime(keras.layers.Dense(2))(encoder(inputs))))
    x = tf.constant(images(6))
    for _ in range(3):
        model(x, training=True)
    assert not any(weight is encoder.step for weight in model.trainable_weights)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert int(loaded.get_layer("encoder").step.value) == 3
    np.testing.assert_array_equal(loaded(x, training=True), model(x, training=True))


# --- Any encoder ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", encoders.NAMES)
def test_stretches_joined_are_the_window(kind: str | None) -> None:
    encoder = encoders.create(kind, T, seed=3)
    x = tf.constant(images(T, 5) if kind is None else images(5))
    whole = encoder(x, seed=7)
    assert whole.shape == (T, B, 5) and np.abs(whole.numpy()).sum() > 0
    for cuts in ((0, 5, 10, T), (0, 1, 2, T), (0, T)):
        parts = [encoder.encode(x, encoder.key(False, 7), start, end - start) for start, end in zip(cuts, cuts[1:])]
        np.testing.assert_array_equal(tf.concat(parts, 0), whole)
    # the engine's loop knows the start only at run time
    part = tf.function(lambda start: encoder.encode(x, encoder.key(False, 7), start, 4))(tf.constant(5))
    np.testing.assert_array_equal(part, whole[5:9])


@pytest.mark.parametrize("kind", encoders.NAMES)
def test_the_described_shape_is_the_real_one(kind: str | None) -> None:
    shape = (T, 5, 3) if kind is None else (5, 3)
    assert encoders.create(kind, T)(keras.Input(shape)).shape == (T, None, 5, 3)
    assert encoders.create(kind, T)(tf.zeros((B, *shape))).shape == (T, B, 5, 3)


@keras.saving.register_keras_serializable("test_encoders")
class Regular(Encoder):
    """Evenly spread spikes, of as many steps as the graph will know when it runs."""

    draws = False

    def encode(self, inputs: Any, key: Any, start: Any, steps: int) -> Any:
        t = tf.reshape(tf.cast(tf.range(start, start + steps), "float32"), [-1] + [1] * len(inputs.shape))
        return tf.cast(tf.floor((t + 1) * inputs) - tf.floor(t * inputs), self.compute_dtype)


def with_encoder(encoder: Encoder, gradient: str = "rate") -> SpikingModel:
    pixels = keras.Input((3, 3, 1))
    x = OverTime(keras.layers.Flatten())(encoder(pixels))
    for units in (8, 2):
        start = keras.initializers.HeNormal(seed=units)
        x = OverTime(keras.layers.Dense(units, use_bias=False, kernel_initializer=start))(x)
        x = LIF(0.9, gradient=gradient, surrogate="arctan", reset="subtract")(x) if units == 8 else x
    return SpikingModel(pixels, Readout(0.9)(x))


@pytest.mark.parametrize("gradient", ["rate", "event", "eprop"])
def test_an_encoder_of_ones_own_need_not_know_its_steps_before_it_runs(gradient: str) -> None:
    model, x = with_encoder(Regular(6), gradient), np.abs(images(3, 3, 1))
    reference = model.call_layers(x)
    model.configure_engine(chunk=2)

    @tf.function
    def trained(x: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            scores = model(x, training=True)
        return scores, tape.gradient(scores, model.trainable_variables)

    scores, gradients = trained(x)
    np.testing.assert_allclose(scores, reference, atol=1e-6)
    assert model.engine is not None and all(np.any(value) for value in gradients)


def test_such_an_encoder_is_analysed_and_exported(tmp_path: Path) -> None:
    model, x = with_encoder(Regular(6)), np.abs(images(3, 3, 1))
    found = analyse(model, x, [0] * B)
    np.testing.assert_array_equal(found.predictions[:, -1], np.argmax(model(x), axis=1))
    window = Window(model)
    state = tf.function(lambda x: window.run(window.encoder_of(x, 0), 2, 3, window.initial_state(B)))(tf.constant(x))
    np.testing.assert_allclose(window.outputs(state)["scores"], model(x), atol=1e-6)


def test_an_encoder_that_gives_other_steps_than_it_is_asked_for_is_refused() -> None:
    class Whole(Regular):
        def encode(self, inputs: Any, key: Any, start: Any, steps: int) -> Any:
            return tf.repeat(inputs[tf.newaxis], self.timesteps, axis=0)

    model = with_encoder(Whole(6))
    model.configure_engine(chunk=2)
    with pytest.raises(UserError, match="`encode` of Whole must give the steps that it is asked for.* 2 from"):
        model(np.abs(images(3, 3, 1)))


def test_direct_repeats_the_image() -> None:
    x = images(5, 3)
    np.testing.assert_array_equal(DirectEncoder(T)(x), np.broadcast_to(x, (T, B, 5, 3)))


def test_latency_by_hand() -> None:
    # T = 4: |x| >= 1 at once; .75 -> step 2 (index 1); .5 -> index 2; .2 and fainter -> last; 0 never
    train = LatencyEncoder(4)(tf.constant([[1.0, -2.0, 0.75, -0.5, 0.2, 1e-6, 0.0]])).numpy()[:, 0]
    np.testing.assert_array_equal(train.argmax(0)[[0, 2, 4, 5]], [0, 1, 3, 3])
    np.testing.assert_array_equal(np.abs(train).sum(0), [1, 1, 1, 1, 1, 1, 0])
    assert train[0, 1] == -1 and train[2, 3] == -1


@pytest.mark.parametrize("kind", ["poisson", "latency", "direct"])
def test_pixels_are_not_rounded_before_they_are_coded(kind: str) -> None:
    x = images(500)
    encoder = encoders.create(kind, 100, dtype="mixed_bfloat16")
    called, stretch = encoder(x, seed=3), encoder.encode(tf.constant(x), encoder.key(False, 3), 0, 100)
    np.testing.assert_array_equal(tf.cast(called, tf.float32), tf.cast(stretch, tf.float32))
    assert called.dtype == tf.bfloat16 and np.any(tf.cast(called, tf.float32))


def test_latency_is_earlier_the_stronger_the_input() -> None:
    x = np.linspace(0.01, 1.0, 100, dtype="f")[None]
    when = LatencyEncoder(T)(x).numpy()[:, 0].argmax(0)
    assert (np.diff(when) <= 0).all() and when[0] == T - 1 and when[-1] == 0 and len(set(when)) == T


def test_spike_input_exchanges_the_axes_and_refuses_another_window() -> None:
    x = images(T, 5)
    np.testing.assert_array_equal(SpikeInput(T)(x), x.swapaxes(0, 1))
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        SpikeInput(T)(images(T - 1, 5))


def test_spike_input_is_refused_when_the_net_is_built() -> None:
    for shape in ((T + 1, 5), ()):
        with pytest.raises(UserError, match=f"T = {T} steps. Received"):
            SpikeInput(T)(keras.Input(shape))


def test_spike_input_that_is_longer_than_the_window_is_refused() -> None:
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        SpikeInput(T)(images(T + 1, 5))


@pytest.mark.parametrize("length", [T - 1, T, T + 1, 3 * T])
def test_spike_input_of_a_length_that_no_graph_knows_is_refused_when_it_comes(length: int) -> None:
    # As generators give it: the first T steps of a longer train must not be taken for the whole
    inputs = keras.Input((None, 5))
    model = SpikingModel(inputs, Readout(0.9)(LIF(0.9)(OverTime(keras.layers.Dense(3))(SpikeInput(T)(inputs)))))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    record = images(length, 5), np.zeros((B, 3), "f")
    data = tf.data.Dataset.from_generator(lambda: iter([record]), output_signature=(
        tf.TensorSpec((None, None, 5)), tf.TensorSpec((None, 3))))
    if length == T:
        assert model.evaluate(data, verbose=0) == pytest.approx(float(np.mean(np.square(model(record[0])))), rel=1e-5)
        return
    for act in (model.evaluate, model.fit):
        with pytest.raises(UserError, match=rf"T = {T} steps. Received: shape \({B}, {length}, 5\): give trains of {T}") as refused:
            act(data, verbose=0)
        assert "\n" not in str(refused.value)  # as in the pages of TensorFlow's that it stands for


@pytest.mark.parametrize("timesteps", [0, -3, 2.5, "10", True, None])
@pytest.mark.parametrize("kind", encoders.NAMES)
def test_timesteps_that_are_no_positive_integer_are_refused(kind: str | None, timesteps: Any) -> None:
    with pytest.raises(UserError, match="timesteps.*at least 1.*Received"):
        encoders.create(kind, timesteps)


def test_unknown_encoder_is_refused_in_one_sentence() -> None:
    with pytest.raises(UserError, match="'poisson', 'direct', 'latency', None.*Received"):
        encoders.create("phase", T)


def one_layer(encoder: Any, T: int = 4) -> SpikingModel:
    inputs = keras.Input((6,))
    synapse = OverTime(keras.layers.Dense(3, kernel_initializer=keras.initializers.RandomNormal(0.5, 0.5, seed=1)))
    return SpikingModel(inputs, Readout(0.9)(LIF(0.9)(synapse(encoder(inputs)))))


def test_straight_through_has_the_gradient_of_the_expected_train() -> None:
    T, draws = 8, 4000
    x = np.array([[-1.6, -0.7, -0.2, 0.3, 0.9, 1.4]], "f")
    weight = np.random.default_rng(0).normal(size=(T, 1, 6)).astype("f")
    encoder = PoissonEncoder(T, straight_through=True)

    def expected(x: np.ndarray) -> np.ndarray:
        """Mean over draws of the weighted sum of spikes, for each pixel on its own."""
        trains = encoder(np.repeat(x, draws, axis=0), seed=3).numpy()
        return (trains.mean(1, keepdims=True) * weight).sum((0, 1))

    given = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(given)
        loss = tf.reduce_sum(encoder(given, seed=3) * weight)
    got = tape.gradient(loss, given).numpy()[0]
    step = 0.1
    difference = (expected(x + step) - expected(x - step)) / (2 * step)  # the same random numbers on both sides
    np.testing.assert_allclose(got, difference, atol=0.4)
    assert got[0] == got[5] == 0.0 and np.abs(got[1:5]).min() > 0.1
    np.testing.assert_allclose(got[1:5], weight.sum((0, 1))[1:5], rtol=1e-5)
    edge = tf.constant([[-1.0, 1.0]])  # white and black pixels are these
    with tf.GradientTape() as tape:
        tape.watch(edge)
        loss = tf.reduce_sum(encoder(edge, seed=3))
    assert tape.gradient(loss, edge).numpy().tolist() == [[T, T]]


def test_straight_through_changes_no_spike_and_is_saved() -> None:
    x = tf.constant(np.random.default_rng(0).uniform(-1, 1, (3, 5)).astype("f"))
    through = PoissonEncoder(6, seed=4, straight_through=True)
    np.testing.assert_array_equal(through(x), PoissonEncoder(6, seed=4)(x))
    assert PoissonEncoder.from_config(through.get_config()).straight_through
    old = {name: value for name, value in through.get_config().items() if name != "straight_through"}
    assert not PoissonEncoder.from_config(old).straight_through


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("encoder", [PoissonEncoder(4), LatencyEncoder(4), DirectEncoder(4)])
def test_a_gradient_of_the_input_that_does_not_exist_is_refused(encoder: Any, graph: bool) -> None:
    model = one_layer(type(encoder).from_config(encoder.get_config()))
    x = tf.constant(np.random.default_rng(0).uniform(-1, 1, (2, 6)).astype("f"))

    def gradient(route: Any) -> Any:
        def run(x: tf.Tensor) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = tf.reduce_sum(route(x))
            return tape.gradient(loss, x)
        return (tf.function(run, autograph=False) if graph else run)(x)

    def assert_refused(route: Any) -> None:
        if graph:
            assert np.isnan(gradient(route)).all()
        else:
            with pytest.raises(UserError, match="call_layers.*encoder=\"direct\"|encoder=\"direct\".*call_layers"):
                gradient(route)

    assert_refused(model)
    assert_refused(lambda x: model(x, training=True))
    if isinstance(encoder, DirectEncoder):
        assert np.abs(gradient(model.call_layers)).max() > 0
    else:
        assert_refused(model.call_layers)


def test_gradients_of_weights_are_not_refused_where_a_graph_is_called_under_a_tape() -> None:
    model = one_layer(PoissonEncoder(4))
    x = tf.constant(np.random.default_rng(0).uniform(-1, 1, (2, 6)).astype("f"))
    weights = [variable.value for variable in model.trainable_variables]
    for route in (model, model.call_layers):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.function(lambda x, route=route: route(x), autograph=False)(x))
        assert all(np.isfinite(g).all() for g in tape.gradient(loss, weights))


def test_call_layers_has_the_gradient_of_the_input_with_straight_through() -> None:
    model = one_layer(PoissonEncoder(4, straight_through=True))
    x = tf.constant(np.random.default_rng(0).uniform(-1, 1, (2, 6)).astype("f"))
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(model.call_layers(x))
    assert np.abs(tape.gradient(loss, x)).max() > 0


@pytest.mark.parametrize(("values", "message"), [
    (np.full((4, 6), 255, "uint8"), "about \\[-1, 1\\].*255"), (np.full((4, 6), np.nan, "f"), "NaN"),
    (np.array([[np.inf] * 6], "f"), "NaN or infinite"), (np.full((4, 6), 3.0), None),
    (np.where(np.arange(2000)[:, None] == 1999, np.nan, np.zeros((2000, 6), "f")), "in 1 of 2,000 samples")])
@pytest.mark.parametrize("what", ["fit", "evaluate", "predict"])
def test_unscaled_pixels_and_values_that_are_no_numbers_are_warned_of(values: Any, message: str | None,
                                                                      what: str) -> None:
    model = one_layer(PoissonEncoder(4))
    model.compile("sgd", "mse", run_eagerly=True)
    labels = () if what == "predict" else (np.zeros((len(values), 3)),)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        getattr(model, what)(values, *labels, batch_size=1000, verbose=0)
    ours = [str(w.message) for w in caught if "NaN" in str(w.message) or "pixels" in str(w.message)]
    assert len(ours) == (message is not None) and all(re.search(message, text) for text in ours)


@pytest.mark.parametrize("encoder", [PoissonEncoder, DirectEncoder, LatencyEncoder])
def test_a_record_that_is_no_number_has_no_score(encoder: Any) -> None:
    model = one_layer(encoder(4))
    x = images(6)
    whole = model(x).numpy()
    x[1, 2], x[3, 0] = np.nan, np.inf
    for scores in (model(x), model.observe(x)[0], model.call_layers(x), model.predict_on_batch(x)):
        scores = np.asarray(scores)
        assert np.isnan(scores[[1, 3]]).all()
        np.testing.assert_allclose(scores[[0, 2]], whole[[0, 2]], rtol=1e-6, atol=1e-7)


def test_who_lets_tensorflow_look_for_nan_finds_none_of_ours() -> None:
    """`tf.debugging.enable_check_numerics` stopped at the constant that marks records, in every first step."""
    tf.debugging.enable_check_numerics()
    try:
        marked = tf.function(lambda x: encoders.nan_where_not_finite(tf.abs(x), x))
        np.testing.assert_array_equal(marked(-tf.ones((2, 3))), np.ones((2, 3)))
        with pytest.raises(tf.errors.InvalidArgumentError, match="NaN"):
            marked(tf.constant([[1.0, np.nan, 1.0]]))
    finally:
        tf.debugging.disable_check_numerics()


@pytest.mark.parametrize("batch", [2, 4])
def test_predicted_spike_trains_are_those_of_a_call(batch: int) -> None:
    model = one_layer(DirectEncoder(4))
    spikes = SpikingModel(model.input, {"spikes": model.get_layer(index=3).output, "scores": model.output})
    x = images(6)
    with pytest.warns(UserWarning, match="computed layer by layer"):  # which says why, once
        wanted = spikes(x)
    found = spikes.predict(x, batch_size=batch, verbose=0)
    for name in ("spikes", "scores"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(spikes.predict_on_batch(x)[name], found[name])
    assert found["spikes"].shape == (4, B, 3)


def test_the_largest_input_of_a_latency_code_spikes_first() -> None:
    """Digits of [0, .5] would leave the first half of a window without a spike."""
    x = tf.constant([[0.5, 0.3, 0.01, 0.0, -0.5]])
    for largest, first in ((1.0, 2), (0.5, 0)):
        train = encoders.create("latency", 4, largest=largest)(x).numpy()[:, 0]
        assert np.flatnonzero(np.abs(train).sum(axis=1))[0] == first
        assert (np.abs(train).sum(axis=0) == [1, 1, 1, 0, 1]).all() and train[first, 4] == -1
    copy = encoders.LatencyEncoder.from_config(encoders.LatencyEncoder(4, largest=0.5).get_config())
    assert copy.largest == 0.5 and encoders.LatencyEncoder.from_config({"timesteps": 4}).largest == 1.0
    with pytest.raises(UserError, match="largest"):
        encoders.LatencyEncoder(4, largest=0.0)
    with pytest.raises(UserError, match="`largest_input` is of encoder='latency'"):
        models.create("lenet", (12, 12, 1), 3, 4, largest_input=0.5)
