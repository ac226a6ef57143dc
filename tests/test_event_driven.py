"""The event-driven path: against the oracle, the readable path, and the dense path."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import nets
import oracle
import runs
from nets import SPECS
from tfspike import (
    LIF,
    DirectEncoder,
    OverTime,
    PoissonEncoder,
    PoolingIF,
    Readout,
    SpikeInput,
    SpikingModel,
    ThresholdNorm,
    UserError,
    WindowDropout,
    models,
    training,
)
from tfspike.engine.events import columns, program, runner

pytest.importorskip("numba")

T, B, STEP = 11, 3, 5
LEAKS = (0.5, 0.9, pytest.param(0.99, marks=pytest.mark.slow))
GRADIENTS = ("event", "rate")
ROUNDING = 2e-5


def scene(name: str, gradient: str = "event", leak: float = 0.9, dropout: float = 0.2, batch: int = B,
          steps: int = T, build: Any = nets.from_blocks, **kwargs: Any) -> tuple[SpikingModel, list[np.ndarray], Any, Any]:
    """`(model that takes the event-driven path, weights, inputs, dL/do)`."""
    model = build(SPECS[name], steps, gradient, leak, dropout=dropout, **kwargs)
    weights = nets.set_grid_weights(model, SPECS[name].kappa)
    model.configure_engine(kernel="events")
    assert model.engine.refusal_of_events(True) is None
    return model, weights, nets.spike_inputs(steps, batch, SPECS[name].image), nets.upstream(batch)


def gradients_of(call: Callable[..., Any], model: SpikingModel, inputs: Any, dL_do: Any) -> Any:
    nets.set_step(model, STEP)
    return nets.gradients_of(call, model, inputs, dL_do)


def assert_same(model: SpikingModel, inputs: Any, dL_do: Any, call: Any = None) -> None:
    """Output and gradients of the path are those of the readable path."""
    output, wanted = gradients_of(model.call_layers, model, inputs, dL_do)
    found, got = gradients_of(call or model, model, inputs, dL_do)
    np.testing.assert_allclose(found, output, rtol=1e-5, atol=1e-6)
    assert nets.worst_error(got, wanted) < ROUNDING


def spikes_of(model: SpikingModel, inputs: Any, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Unmasked spikes `[T, B, ...]` of every spiking layer in a training call at STEP, on the event-driven path."""
    own, kept = runner.Runner.forward, []

    def watched(self: Any, *args: Any, traced: bool, recorded: bool) -> Any:
        kept.append(own(self, *args, traced=traced, recorded=True))
        return kept[-1]

    nets.set_step(model, STEP)
    with monkeypatch.context() as patch:
        patch.setattr(runner.Runner, "forward", watched)
        model(inputs, training=True)
    words = kept[0].spikes.numpy()
    trains = []
    for op in model.engine.events._loaded(True).program.neurons[:-1]:
        part = np.ascontiguousarray(words[:, :, op.words:op.words + op.neurons // columns.LANES]).view(np.uint8)
        train = np.unpackbits(part, axis=-1, bitorder="little").reshape(*words.shape[:2], op.pixels, op.padded)
        assert not train[..., op.shape[2]:].any()
        shape = op.call.source.shape[2:]
        trains.append(train[..., :op.shape[2]].reshape(*words.shape[:2], *shape).swapaxes(0, 1).astype("d"))
    return trains


# --- Against the oracle ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leak", LEAKS)
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("name", SPECS)
def test_nets_equal_the_oracle(name: str, gradient: str, leak: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model, weights, inputs, dL_do = scene(name, gradient, leak)
    trains = spikes_of(model, inputs, monkeypatch)
    for train_, wanted in zip(trains, nets.layer_spikes(model, inputs, STEP), strict=True):
        np.testing.assert_array_equal(train_, wanted)
    net = nets.oracle_net(SPECS[name], leak)
    record = oracle.forward(net, weights, inputs.swapaxes(0, 1), nets.masks_of(model, B, STEP), given=trains)
    nets.assert_alive(record)
    output, got = gradients_of(model, model, inputs, dL_do)
    np.testing.assert_allclose(output, record.output, rtol=1e-5, atol=1e-5)
    assert nets.worst_error(got, oracle.backward(net, weights, record, dL_do, gradient)) < ROUNDING


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("name", ["residual", "currents"])
def test_real_valued_weights_flip_at_most_one_spike_in_1e5(name: str, gradient: str,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, inputs, dL_do = scene(name, gradient)
    rng = np.random.default_rng(9)
    for variable in model.trainable_variables:
        variable.assign(variable.value * rng.uniform(0.99, 1.01, variable.shape).astype("f"))
    weights = [variable.numpy().astype("d") for variable in model.trainable_variables]
    net, trains = nets.oracle_net(SPECS[name], 0.9), spikes_of(model, inputs, monkeypatch)
    record = oracle.forward(net, weights, inputs.swapaxes(0, 1), nets.masks_of(model, B, STEP), given=trains)
    nets.assert_alive(record)
    _, got = gradients_of(model, model, inputs, dL_do)
    assert nets.worst_error(got, oracle.backward(net, weights, record, dL_do, gradient)) < ROUNDING


def test_the_comparison_rejects_a_wrong_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    model, weights, inputs, dL_do = scene("plain")
    trains, got = spikes_of(model, inputs, monkeypatch), gradients_of(model, model, inputs, dL_do)[1]
    monkeypatch.setattr(oracle, "event_backward", nets.leak_in_the_carry)
    net = nets.oracle_net(SPECS["plain"], 0.9)
    record = oracle.forward(net, weights, inputs.swapaxes(0, 1), nets.masks_of(model, B, STEP), given=trains)
    assert nets.worst_error(got, oracle.backward(net, weights, record, dL_do, "event")) > 100 * ROUNDING


# --- Against the readable path --------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("encoder", ["poisson", "direct", "latency"])
def test_encoded_images(encoder: str, gradient: str) -> None:
    model, _, _, dL_do = scene("plain", gradient, encoder=encoder)
    images = np.rint(np.random.default_rng(4).uniform(-0.6, 1.0, (B, *SPECS["plain"].image)) * 64).astype("f") / 64
    assert_same(model, images, dL_do)
    output, counts = model.observe(images, seed=3)
    model.configure_engine(kernel="dense")
    wanted, dense_counts = model.observe(images, seed=3)
    np.testing.assert_allclose(output, wanted, rtol=1e-5, atol=1e-6)
    for name, count in counts.items():
        np.testing.assert_array_equal(count, dense_counts[name])


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("steps", [1, 8, 9, *(pytest.param(steps, marks=pytest.mark.slow) for steps in (7, 17))])
def test_windows_of_any_length(steps: int, gradient: str) -> None:
    model, _, inputs, dL_do = scene("residual", gradient, steps=steps)
    if steps > 1:
        assert_same(model, inputs, dL_do)
    np.testing.assert_allclose(model(inputs), model.call_layers(inputs), rtol=1e-5, atol=1e-6)


def test_events_of_any_value_and_encoders_of_ones_own() -> None:
    model, _, inputs, dL_do = scene("five")
    assert_same(model, inputs * np.random.default_rng(0).choice([0.5, 1, 3], inputs.shape).astype("f"), dL_do)

    class Brighter(DirectEncoder):
        def encode(self, inputs: Any, key: Any, start: Any, steps: int) -> Any:
            return tf.stack([inputs * tf.cast(1 + start + t, tf.float32) / self.timesteps for t in range(steps)])

    image = keras.Input((6,))
    x = LIF(0.9)(OverTime(keras.layers.Dense(8))(Brighter(T)(image)))
    model = SpikingModel(image, Readout(0.9)(OverTime(keras.layers.Dense(nets.CLASSES))(x)))
    nets.set_grid_weights(model, 4.0)
    model.configure_engine(kernel="events")
    assert_same(model, np.random.default_rng(0).uniform(0.5, 1, (B, 6)).astype("f"), dL_do)


def odd() -> SpikingModel:
    """Biases, strides, "same" and explicit padding, a pooling of averages, spikes into neurons, a padded border that a
    window lies in as a whole, dropout on the input, a current that is read twice, and Dense on every pixel."""
    inputs = keras.Input((T, 9, 8, 2))

    def over(layer: Any, x: Any) -> Any:
        return OverTime(layer)(x)

    x = WindowDropout(0.3, seed=1, name="d1")(SpikeInput(T)(inputs))
    x = LIF(0.9)(over(keras.layers.Conv2D(5, (3, 2), 2, "same"), x))
    x = WindowDropout(0.2, seed=2, name="d2")(x)
    x = over(keras.layers.ZeroPadding2D(((3, 0), (1, 2))), x)
    current = over(keras.layers.Conv2D(6, 2), x)
    y = LIF(0.8, 0.7)(current)
    y = over(keras.layers.Dense(6), y)
    x = LIF(0.9)(keras.layers.Add()([y, current]))
    x = over(keras.layers.AveragePooling2D(2), x)
    x = LIF(0.9, 0.6)(over(keras.layers.Conv2D(20, 3, padding="same"), x))
    x = PoolingIF()(over(keras.layers.AveragePooling2D(1, 2), x))
    x = LIF(1.0, 0.5)(over(keras.layers.Dense(17), over(keras.layers.Flatten(), x)))
    return SpikingModel(inputs, Readout(0.9)(over(keras.layers.Dense(nets.CLASSES), x)))


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_layers_as_they_may_be_stacked(gradient: str) -> None:
    model = odd()
    for call in model.plan.spiking:
        call.layer.gradient = gradient
    rng = np.random.default_rng(1)
    nets.set_grid_weights(model, 5.0)
    for variable in model.trainable_variables:
        if len(variable.shape) == 1:
            variable.assign(np.rint(rng.uniform(-0.1, 0.3, variable.shape) * 512) / 512)
    model.configure_engine(kernel="events")
    assert model.engine.refusal_of_events(True) is None
    inputs = nets.spike_inputs(T, B, (9, 8, 2))
    assert all(np.sum(count) > 9 for count in model.observe(inputs)[1].values())
    assert_same(model, inputs, nets.upstream(B))


def full() -> SpikingModel:
    """Every neuron fires at every step, so that no list has room left, but for those of the last layer, which tell how
    large their currents are: they fire at every other step. More channels than registers hold at once; averages of the
    input, and every other pixel, in front of weights; a current that two layers of neurons read."""
    inputs = keras.Input((T, 12, 12, 2))

    def over(layer: Any, x: Any) -> Any:
        return OverTime(layer)(x)

    x = over(keras.layers.AveragePooling2D(2), SpikeInput(T)(inputs))
    x = LIF(0.9, 0.25)(over(keras.layers.Conv2D(144, 2, use_bias=False), x))
    current = over(keras.layers.Conv2D(48, 2, use_bias=False), x)
    averages = over(keras.layers.AveragePooling2D(2), LIF(0.9, 0.25)(current))
    picked = over(keras.layers.AveragePooling2D(1, 2), LIF(0.8, 0.25)(current))
    x = keras.layers.Add()([over(keras.layers.Conv2D(272, 2, use_bias=False), y) for y in (averages, picked)])
    x = over(keras.layers.Flatten(), LIF(0.9, 80.0)(x))
    return SpikingModel(inputs, Readout(0.9)(over(keras.layers.Dense(nets.CLASSES), x)))


def test_full_lists_of_wide_layers() -> None:
    model = full()
    for variable, value in zip(model.trainable_variables, nets.set_grid_weights(model, 8.0)[:4]):
        variable.assign(np.abs(value))
    model.configure_engine(kernel="events")
    assert model.engine.refusal_of_events(True) is None
    inputs = np.ones((2, T, 12, 12, 2), "f") * np.random.default_rng(0).choice([1, 2], (2, T, 1, 1, 1)).astype("f")
    *counts, last = (count.numpy() for count in model.observe(inputs)[1].values())
    assert all(count.min() == T for count in counts) and (last == T // 2).all()
    assert_same(model, inputs, nets.upstream(2))


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_current_of_a_still_image_on_top_of_one_that_changes(gradient: str) -> None:
    image = keras.Input((4, 4, 2))

    def conv(x: Any) -> Any:
        return OverTime(keras.layers.Conv2D(5, 3, padding="same"))(x)

    x = DirectEncoder(T)(image)
    current = conv(LIF(0.9, gradient=gradient)(conv(x)))
    x = keras.layers.Add()([current, conv(x)])
    x = keras.layers.Add()([conv(LIF(0.8, gradient=gradient)(current)), conv(LIF(0.9, 0.5, gradient)(x))])
    x = OverTime(keras.layers.Flatten())(LIF(0.9, gradient=gradient)(x))
    model = SpikingModel(image, Readout(0.9)(OverTime(keras.layers.Dense(nets.CLASSES))(x)))
    nets.set_grid_weights(model, 8.0)
    model.configure_engine(kernel="events")
    images = np.rint(np.random.default_rng(0).uniform(0, 1, (B, 4, 4, 2)) * 64).astype("f") / 64
    assert all(0.05 < np.mean(count) / T < 0.95 for count in model.observe(images)[1].values())
    assert_same(model, images, nets.upstream(B))


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_gradients_of_counts_and_penalties(gradient: str) -> None:
    model, _, inputs, dL_do = scene("residual", gradient)
    layers = [call.layer for call in model.plan.spiking]
    layers[1].activity_regularizer = keras.regularizers.L1L2(0.03, 0.02)
    rng = np.random.default_rng(3)
    asked = [tf.constant(rng.normal(size=(B, *call.source.shape[2:])) / 20, tf.float32) for call in model.plan.spiking]
    variables = [variable.value for variable in model.trainable_variables]

    def of(call: Callable[..., Any]) -> tuple[float, list[np.ndarray]]:
        nets.set_step(model, STEP)
        with tf.GradientTape() as tape:
            output, counts = call(inputs, True, None)
            loss = tf.reduce_sum(output * dL_do) + tf.add_n(model.losses) + tf.add_n(
                [tf.reduce_sum(count * a) for count, a in zip(counts.values(), asked)])
        return float(loss), [g.numpy() for g in tape.gradient(loss, variables)]

    wanted_loss, wanted = of(model._observe_layers)
    loss, got = of(model.observe)
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-5)
    assert nets.worst_error(got, wanted) < ROUNDING


@pytest.mark.parametrize("surrogate", list(program.RULES)[1:])
def test_rate_with_a_surrogate(surrogate: str) -> None:
    model = models.create("lenet", (12, 12, 1), 3, T, gradient="rate", hidden=8, surrogate=surrogate,
                          surrogate_width=1.5, encoder="direct", kernel="events", leak=0.9, threshold=0.5)
    assert_same(model, np.rint(np.random.default_rng(0).uniform(0.2, 1, (B, 12, 12, 1)) * 64).astype("f") / 64,
                nets.upstream(B))


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_in_a_graph_with_any_batch(gradient: str) -> None:
    model, _, _, _ = scene("plain", gradient)
    variables = [variable.value for variable in model.trainable_variables]

    @tf.function(input_signature=[tf.TensorSpec([None, T, *SPECS["plain"].image]), tf.TensorSpec([None, nets.CLASSES])])
    def step(x: tf.Tensor, dL_do: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            output = model(x, training=True)
        return output, tape.gradient(output, variables, output_gradients=dL_do)

    for batch in (1, 4):
        inputs, dL_do = nets.spike_inputs(T, batch, SPECS["plain"].image, seed=batch), nets.upstream(batch)
        output, wanted = gradients_of(model.call_layers, model, inputs, dL_do)
        nets.set_step(model, STEP)
        found, got = step(tf.constant(inputs), tf.constant(dL_do))
        np.testing.assert_allclose(found, output, rtol=1e-5, atol=1e-6)
        assert nets.worst_error([g.numpy() for g in got], wanted) < ROUNDING


@pytest.mark.parametrize(("name", "image", "more"), [
    ("lenet", (14, 14, 1), {}), ("vgg5", (10, 10, 3), {"pooling": "average"}),
    ("resnet7", (16, 16, 3), {"encoder": "direct", "shortcut": "currents"}),
    ("resnet20", (8, 8, 3), {"norm": "tdbn", "encoder": "direct"})])
def test_networks_of_the_library_answer_as_dense_convolutions_do(name: str, image: Any, more: dict[str, Any]) -> None:
    """In inference; with a normalisation, by its running statistics."""
    model = models.create(name, image, 4, 9, hidden=16, gradient="rate", kappa=4.0, seed=1, **more)
    x = np.random.default_rng(0).uniform(-0.5, 1, (B, *image)).astype("f")
    wanted, dense = model.observe(x)
    model.configure_engine(kernel="events")
    assert model.engine.refusal_of_events(False) is None
    output, counts = model.observe(x)
    assert sum(np.sum(count) for count in counts.values()) > 100
    flips = sum(np.sum(np.abs(count - dense[key])) for key, count in counts.items())
    assert flips <= 1e-5 * 9 * sum(np.size(count) for count in counts.values())
    np.testing.assert_allclose(output, wanted, rtol=1e-4, atol=1e-5)


def test_mixed_bfloat16_rounds_weights_and_nothing_else() -> None:
    model, _, inputs, dL_do = scene("residual", "event", dropout=0.5, dtype="mixed_bfloat16")
    nets.set_grid_weights(model, SPECS["residual"].kappa, grid=128)
    assert model.engine.events._weights(model.engine.events._runnable(True).program).dtype == tf.bfloat16
    twin, _, _, _ = scene("residual", "event", dropout=0.5)
    twin.set_weights(model.get_weights())
    output, got = gradients_of(model, model, inputs, dL_do)
    wanted_output, wanted = gradients_of(twin, twin, inputs, dL_do)
    np.testing.assert_allclose(output, wanted_output, rtol=1e-5, atol=1e-6)
    assert nets.worst_distance(got, wanted) < 0.01


# --- What a user may rely on ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_the_same_step_gives_the_same_bits(gradient: str) -> None:
    model, _, inputs, dL_do = scene("residual", gradient, batch=5)
    first = gradients_of(model, model, inputs, dL_do)
    for _ in range(3):
        again = gradients_of(model, model, inputs, dL_do)
        np.testing.assert_array_equal(first[0], again[0])
        for a, b in zip(first[1], again[1]):
            np.testing.assert_array_equal(a, b)


said = functools.partial(nets.said, about="dense convolutions in place")


def dense_between(*layers: Any, dropout: Any = None, **neuron: Any) -> SpikingModel:
    inputs = keras.Input((T, 6, 6, 2))
    x = LIF(0.9, **neuron)(OverTime(keras.layers.Conv2D(4, 3))(SpikeInput(T)(inputs)))
    x = dropout(x) if dropout else x
    for layer in layers:
        x = layer(x)
    x = OverTime(keras.layers.Flatten())(x)
    return SpikingModel(inputs, Readout(0.9)(OverTime(keras.layers.Dense(nets.CLASSES))(x)), name="net")


class OwnMask(WindowDropout):
    def draw_mask(self, shape: Any) -> Any:
        return tf.ones(shape)


@pytest.mark.parametrize(("build", "why"), [
    (lambda: dense_between(OverTime(keras.layers.DepthwiseConv2D(3))), "DepthwiseConv2D|no event-driven counterpart"),
    (lambda: dense_between(OverTime(keras.layers.Conv2D(4, 3, groups=2))), "groups or a dilation"),
    (lambda: dense_between(OverTime(keras.layers.AveragePooling2D(2, 1))), "overlapping"),
    (lambda: dense_between(dropout=OwnMask(0.5)), "masks of its own"),
    (lambda: dense_between(surrogate="arctan"), "every membrane potential"),
    (lambda: dense_between(reset="subtract", surrogate="arctan", gradient="rate"), "another reset"), (lambda: dense_between(start=0.5, gradient="rate"), "another start"),
    (lambda: dense_between(surrogate="arctan", gradient="rate", credit="time"), "credit='time'"),
    (lambda: models.create("lenet", (12, 12, 1), 3, 5, norm="tdbn", gradient="rate", encoder=None),
     "currents of a whole window in training")])
def test_what_it_does_not_do_is_said_once_and_computed_densely(build: Callable[[], SpikingModel], why: str) -> None:
    model = build()
    nets.set_grid_weights(model, 5.0)
    inputs = nets.spike_inputs(model.timesteps, B, model.inputs[0].shape[2:])
    nets.set_step(model, STEP)
    model.configure_engine(kernel="dense")
    wanted = model(inputs, training=True)
    model.configure_engine(kernel="events")
    nets.set_step(model, STEP)
    found: list[Any] = []
    messages = said(lambda: [found.append(model(inputs, training=True)), model(inputs, training=True)])
    assert len(messages) == 1, messages
    assert re.search(why, messages[0]), messages
    np.testing.assert_array_equal(found[0], wanted)


def test_without_numba_the_dense_road_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "numba" else find(name, *rest))
    model = nets.from_blocks(SPECS["five"], T)
    nets.set_grid_weights(model, SPECS["five"].kappa)
    inputs = nets.spike_inputs(T, B, SPECS["five"].image)
    wanted = model(inputs)
    model.configure_engine(kernel="events")
    messages = said(lambda: np.testing.assert_array_equal(model(inputs), wanted))
    assert len(messages) == 1 and "pip install numba" in messages[0]


def test_gradients_in_inference_are_those_of_the_dense_road() -> None:
    model, _, inputs, dL_do = scene("plain", "rate", dropout=0.0)
    variables = [variable.value for variable in model.trainable_variables]

    def of() -> list[np.ndarray]:
        with tf.GradientTape() as tape:
            output = model(inputs)
        return [g.numpy() for g in tape.gradient(output, variables, output_gradients=dL_do)]

    got = of()
    model.configure_engine(kernel="dense")
    assert nets.worst_error(got, of()) < ROUNDING


def test_a_choice_is_kept_by_copies_and_refused_where_there_is_none() -> None:
    model = models.create("lenet", (12, 12, 1), 3, 5, hidden=8, kernel="events")
    assert model.with_timesteps(3).engine.events is not None
    assert models.create("lenet", (12, 12, 1), 3, 5, hidden=8).engine.events is None  # "auto" is dense
    with pytest.raises(UserError, match="kernel"):
        models.create("lenet", (12, 12, 1), 3, 5, kernel="sparse")
    with pytest.raises(UserError, match="kernel.*spiking"):
        models.create("lenet", (12, 12, 1), 3, 5, neuron="relu", kernel="events")


def test_a_step_that_is_compiled_as_a_whole_cannot_leave_the_graph(tmp_path: Any) -> None:
    with pytest.raises(UserError, match="--jit=on.*--kernel=events"):
        runs.tiny(tmp_path, kernel="events", jit="on")


def test_an_error_in_a_thread_reaches_the_caller() -> None:
    def fail(i: int) -> None:
        if i == 2:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        runner.for_each(fail, 4)


def test_poisson_input_is_packed_as_it_is_drawn() -> None:
    image = keras.Input((5,))
    x = LIF(0.9)(OverTime(keras.layers.Dense(8))(PoissonEncoder(T, seed=3)(image)))
    model = SpikingModel(image, Readout(0.9)(OverTime(keras.layers.Dense(2))(x)))
    model.configure_engine(kernel="events")
    encoder, x = model.plan.encoder.layer, tf.constant(np.random.default_rng(0).uniform(-1, 1, (B, 5)).astype("f"))
    key = encoder.key(False, 4)
    packed, total = model.engine.events._packed(x, key)
    train_ = encoder.encode(x, key, 0, T).numpy()
    planes = np.unpackbits(packed.numpy().reshape(-1, 1, 2, B, 5), axis=1, bitorder="little").reshape(-1, 2, B, 5)[:T]
    np.testing.assert_array_equal(planes[:, 0].astype("f") - planes[:, 1], train_)
    np.testing.assert_array_equal(total, train_.sum(0))


@pytest.mark.slow
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_run_that_was_killed_ends_with_the_same_bits(gradient: str, tmp_path: Any,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    runs.assert_survives_a_kill(tmp_path, monkeypatch, kernel="events", gradient=gradient)
    with pytest.raises(UserError, match="kernel"):  # a choice belongs to its run
        training.run(runs.tiny(tmp_path / "whole", gradient=gradient), say=lambda line: None)


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
@pytest.mark.parametrize("alter", [lambda model: model.quantize("int8"),
                                   lambda model: model.layers[2].layer.enable_lora(2)])
def test_weights_that_keras_has_put_in_place_of_others_are_left_to_it(alter: Callable[[SpikingModel], Any]) -> None:
    model, x = dense_between(), nets.spike_inputs(T, B, (6, 6, 2))
    model.configure_engine(kernel="events")
    model(x)  # a program is kept
    alter(model)
    with pytest.warns(UserWarning, match="dense convolutions.*has put other weights in place of the kernel"):
        found = model(x)
    np.testing.assert_allclose(found, model.call_layers(x), rtol=1e-5, atol=1e-6)


def test_a_frozen_normalisation_is_part_of_the_weights_in_training() -> None:
    inputs = keras.Input((T, 6, 6, 2))
    x = ThresholdNorm(trainable=False, name="norm")(OverTime(keras.layers.Conv2D(4, 3))(SpikeInput(T)(inputs)))
    x = OverTime(keras.layers.Flatten())(LIF(0.9)(x))
    model = SpikingModel(inputs, Readout(0.9)(OverTime(keras.layers.Dense(nets.CLASSES))(x)))
    nets.set_grid_weights(model, 8.0)
    model.get_layer("norm").moving_variance.assign([0.25, 1.0, 4.0, 1.0])
    model.get_layer("norm").moving_mean.assign([0.5, -0.5, 0.0, 0.25])
    model.configure_engine(kernel="events")
    assert_same(model, nets.spike_inputs(T, B, (6, 6, 2)), nets.upstream(B))
