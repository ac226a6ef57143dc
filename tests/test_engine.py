"""Whole nets: engine and layer-by-layer path against the oracle, and against each other."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import nets
import oracle
from nets import SPECS
from tfspike import LIF, DirectEncoder, OverTime, Readout, SpikeInput, SpikingModel, UserError, WindowDropout, models
from tfspike.analysis.simulation import Simulation
from tfspike.engine import convolution, kernels, stepper
from tfspike.export.window import Window
from tfspike.neurons import gradients, slopes

T, B, STEP = 11, 3, 5
LEAKS = (0.5, 0.9, pytest.param(0.99, marks=pytest.mark.slow))
GRADIENTS = ("event", "rate")
BUILDERS = {"blocks": nets.from_blocks, "by_hand": nets.by_hand}
ROUNDING = 2e-5


def scene(name: str, gradient: str = "event", leak: float = 0.9, dropout: float = 0.2, build: str = "blocks",
          batch: int = B, **kwargs: Any) -> tuple[SpikingModel, list[np.ndarray], np.ndarray, np.ndarray]:
    """`(model, weights, inputs, dL/do)`."""
    spec = SPECS[name]
    model = BUILDERS[build](spec, T, gradient, leak, dropout=dropout, **kwargs)
    weights = nets.set_grid_weights(model, spec.kappa)
    return model, weights, nets.spike_inputs(T, batch, spec.image), nets.upstream(batch)


def oracle_gradients(name: str, model: SpikingModel, weights: list[np.ndarray], inputs: np.ndarray, dL_do: np.ndarray,
                     trains: list[np.ndarray], gradient: str, leak: float) -> tuple[oracle.Record, list[np.ndarray]]:
    """What the oracle makes of the model's spikes and masks, its fixture checked."""
    net = nets.oracle_net(SPECS[name], leak)
    record = oracle.forward(net, weights, inputs.swapaxes(0, 1), nets.masks_of(model, len(inputs), STEP), given=trains)
    nets.assert_alive(record)
    return record, oracle.backward(net, weights, record, dL_do, gradient)


def run(route: str, model: SpikingModel, inputs: np.ndarray, dL_do: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    nets.set_step(model, STEP)
    return nets.gradients_of(model if route == "engine" else model.call_layers, model, inputs, dL_do)


# --- Against the oracle ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leak", LEAKS)
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize(("name", "build"), [
    pytest.param(name, build, marks=[pytest.mark.slow] * (name == "currents" and build != "blocks"))
    for name, build in itertools.product(SPECS, BUILDERS)])
def test_nets_equal_the_oracle_on_both_paths(
    name: str, build: str, gradient: str, leak: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model, weights, inputs, dL_do = scene(name, gradient, leak, build=build)
    model.configure_engine(chunk=4)
    by_layers = nets.layer_spikes(model, inputs, STEP)
    by_engine = nets.engine_spikes(model, inputs, monkeypatch, STEP)
    for a, b in zip(by_layers, by_engine):
        np.testing.assert_array_equal(a, b)
    record, wanted = oracle_gradients(name, model, weights, inputs, dL_do, by_layers, gradient, leak)
    for route in ("layers", "engine"):
        output, got = run(route, model, inputs, dL_do)
        np.testing.assert_allclose(output, record.output, rtol=1e-5, atol=1e-5)
        assert nets.worst_error(got, wanted) < ROUNDING, route


@pytest.mark.parametrize("leak", [0.5, 0.9])
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("name", ["plain", "residual"])
def test_gradients_of_counts_equal_the_oracle_on_both_paths(name: str, gradient: str, leak: float) -> None:
    model, weights, inputs, dL_do = scene(name, gradient, leak)
    model.configure_engine(chunk=4)
    trains = nets.layer_spikes(model, inputs, STEP)
    rng = np.random.default_rng(3)
    asked = [rng.normal(size=train.shape[1:]) / 20 for train in trains]
    record, without = oracle_gradients(name, model, weights, inputs, dL_do, trains, gradient, leak)
    net = nets.oracle_net(SPECS[name], leak)
    wanted = oracle.backward(net, weights, record, dL_do, gradient, asked)
    assert min(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(wanted[:-1], without)) > 0.05
    variables = [variable.value for variable in model.trainable_variables]
    for route in ("layers", "engine"):
        nets.set_step(model, STEP)
        with tf.GradientTape() as tape:
            output, counts = (model.observe if route == "engine" else model._observe_layers)(inputs, True, None)
            loss = tf.reduce_sum(output * dL_do) + tf.add_n(
                [tf.reduce_sum(count * tf.constant(a, tf.float32)) for count, a in zip(counts.values(), asked)])
        got = [g.numpy() for g in tape.gradient(loss, variables)]
        for count, layer in zip(counts.values(), record.layers):
            np.testing.assert_array_equal(count, layer.window.N)
        assert nets.worst_error(got, wanted) < ROUNDING, route


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_counts_pass_gradient_with_surrogates_normalisation_graphs_and_in_inference(gradient: str) -> None:
    model = models.create("lenet", (12, 12, 1), 3, 7, gradient=gradient, hidden=8, encoder="direct", norm="tdbn",
                          surrogate="triangular", threshold=0.5)
    x = np.random.default_rng(0).uniform(0.2, 1, (B, 12, 12, 1)).astype("f")
    variables = [variable.value for variable in model.trainable_variables]

    def asked(call: Callable[..., Any], training: bool) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            counts = call(x, training, None)[1]
            loss = tf.add_n([tf.reduce_mean(count) / (1.0 + i) for i, count in enumerate(counts.values())])
        return tape.gradient(loss, variables, unconnected_gradients="zero")

    for training in (True, False):
        wanted = [g.numpy() for g in asked(model._observe_layers, training)]
        for call in (asked, tf.function(asked)):
            got = [g.numpy() for g in call(model.observe, training)]
            assert not np.any(got[-1]) and not np.any(wanted[-1])  # no count lies behind the last weights
            assert nets.worst_error(got[:-1], wanted[:-1]) < 2e-4
    with tf.GradientTape() as tape:
        counts = model.observe(x, training=True, count_gradients=False)[1]
        loss = tf.add_n([tf.reduce_sum(count) for count in counts.values()])
    assert tape.gradient(loss, variables) == [None] * len(variables)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_real_valued_weights_flip_at_most_one_spike_in_1e5(gradient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, inputs, dL_do = scene("residual", gradient)
    rng = np.random.default_rng(9)
    for variable in model.trainable_variables:
        variable.assign(variable.value * rng.uniform(0.99, 1.01, variable.shape).astype("f"))
    weights = [variable.numpy().astype("d") for variable in model.trainable_variables]
    for route, trains in (("layers", nets.layer_spikes(model, inputs, STEP)),
                         ("engine", nets.engine_spikes(model, inputs, monkeypatch, STEP))):
        _, wanted = oracle_gradients("residual", model, weights, inputs, dL_do, trains, gradient, 0.9)
        assert nets.worst_error(run(route, model, inputs, dL_do)[1], wanted) < ROUNDING


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_inference_equals_the_oracle_without_masks(gradient: str) -> None:
    model, weights, inputs, _ = scene("residual", gradient)
    record = oracle.forward(nets.oracle_net(SPECS["residual"], 0.9), weights, inputs.swapaxes(0, 1))
    assert min(record.firing_counts().values()) >= 5
    output, counts = model.observe(inputs)
    np.testing.assert_allclose(output, record.output, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(model(inputs), output)
    np.testing.assert_allclose(model.call_layers(inputs), output, rtol=1e-5, atol=1e-6)
    assert list(counts) == model.spiking_layers and len(counts) == len(record.layers)
    for count, layer in zip(counts.values(), record.layers):
        np.testing.assert_array_equal(count, layer.window.N)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("encoder", ["poisson", "direct", "latency"])
def test_encoded_images_equal_the_oracle(encoder: str, gradient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, weights, _, dL_do = scene("plain", gradient, encoder=encoder)
    rng = np.random.default_rng(4)
    images = (np.rint(rng.uniform(-0.6, 1.0, (B, *SPECS["plain"].image)) * 64) / 64).astype("f")
    nets.set_step(model, STEP)
    train = model.get_layer("encoder")(tf.constant(images), training=True).numpy()
    trains = nets.engine_spikes(model, images, monkeypatch, STEP)
    _, wanted = oracle_gradients("plain", model, weights, train.swapaxes(0, 1), dL_do, trains, gradient, 0.9)
    for route in ("layers", "engine"):
        assert nets.worst_error(run(route, model, images, dL_do)[1], wanted) < ROUNDING, route


# --- Negative controls ----------------------------------------------------------------------------------------------


def across_resets(s: Any, slope: Any, g: Any, delta_next: Any = 0.0) -> np.ndarray:
    delta, carried = np.zeros(s.shape), delta_next
    for t in reversed(range(len(s))):
        carried = delta[t] = s[t] * slope * g[t] + carried
    return delta


def no_leak_term(N: Any, F: Any, leak: float, threshold: float) -> np.ndarray:
    return (N > 0) / threshold


@pytest.mark.parametrize("route", ["layers", "engine"])
@pytest.mark.parametrize(("gradient", "attribute", "wrong"), [
    ("event", "event_backward", nets.leak_in_the_carry), ("event", "event_backward", across_resets),
    ("event", "slope", no_leak_term), ("rate", "slope", no_leak_term)])
@pytest.mark.parametrize("name", ["plain", pytest.param("residual", marks=pytest.mark.slow)])
def test_the_comparison_rejects_a_wrong_gradient(name: str, route: str, gradient: str, attribute: str, wrong: Any,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    model, weights, inputs, dL_do = scene(name, gradient)
    trains = nets.layer_spikes(model, inputs, STEP)
    got = run(route, model, inputs, dL_do)[1]
    monkeypatch.setattr(oracle, attribute, wrong)
    _, refused = oracle_gradients(name, model, weights, inputs, dL_do, trains, gradient, 0.9)
    assert nets.worst_error(got, refused) > 100 * ROUNDING


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("route", ["layers", "engine"])
def test_a_library_without_the_leak_term_would_fail(route: str, gradient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, weights, inputs, dL_do = scene("plain", gradient)
    trains = nets.layer_spikes(model, inputs, STEP)
    _, wanted = oracle_gradients("plain", model, weights, inputs, dL_do, trains, gradient, 0.9)
    monkeypatch.setattr(slopes.LeakAware, "slope", lambda rule, N, F, T: rule.gain * tf.cast(N > 0, tf.float32))
    assert nets.worst_error(run(route, model, inputs, dL_do)[1], wanted) > 100 * ROUNDING


def test_an_engine_that_forgets_the_carry_between_chunks_would_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    model, weights, inputs, dL_do = scene("plain")
    trains = nets.layer_spikes(model, inputs, STEP)
    _, wanted = oracle_gradients("plain", model, weights, inputs, dL_do, trains, "event", 0.9)
    replay = kernels.replay_event
    monkeypatch.setattr(kernels, "replay_event", lambda currents, bits, slope, carry, *rest: replay(
        currents, bits, slope, tf.zeros_like(carry), *rest))
    model.configure_engine(chunk=4)
    assert nets.worst_error(run("engine", model, inputs, dL_do)[1], wanted) > 100 * ROUNDING


# --- The engine against the layer-by-layer path ---------------------------------------------------------------------


@pytest.mark.parametrize(("timesteps", "neurons", "expected"), [
    (100, 10, 5), (64, 10, 8), (100, 1_000_000, 5), (50, 10**9, 5), (25, 10**9, 5), (11, 10**9, 4), (3, 10**9, 3),
    (1, 10, 1), (7, 10, 7)])
def test_a_chunk_has_four_to_eight_steps_of_any_batch(timesteps: int, neurons: int, expected: int) -> None:
    assert kernels.choose_chunk(timesteps, neurons) == expected


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("chunk", [1, 3, T, *(pytest.param(c, marks=pytest.mark.slow) for c in (2, 5, 8, 100))])
def test_chunks_of_any_size_give_the_same_gradients(chunk: int, gradient: str) -> None:
    model, _, inputs, dL_do = scene("residual", gradient)
    output, wanted = run("layers", model, inputs, dL_do)
    model.configure_engine(chunk=chunk)
    got_output, got = run("engine", model, inputs, dL_do)
    np.testing.assert_allclose(got_output, output, rtol=1e-5, atol=1e-6)
    assert nets.worst_error(got, wanted) < ROUNDING


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize(("kernel", "chunk"), [
    ("xla", None), *(pytest.param(*case, marks=pytest.mark.slow) for case in (("plain", 4), ("xla", 4), ("auto", None)))])
def test_kernels_in_a_graph_give_the_same_gradients(kernel: str, chunk: int | None, gradient: str) -> None:
    model, _, inputs, dL_do = scene("plain", gradient)
    output, wanted = run("layers", model, inputs, dL_do)
    model.configure_engine(chunk=chunk, kernel=kernel)
    assert_graph_equals(tf.function(lambda x, training: model(x, training=training)), model, inputs, dL_do, output, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_the_whole_model_compiles_with_xla(gradient: str) -> None:
    model, _, inputs, dL_do = scene("five", gradient)
    output, wanted = run("layers", model, inputs, dL_do)
    variables = [variable.value for variable in model.trainable_variables]

    @tf.function(jit_compile=True)
    def compiled(x: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            output = model(x, training=True)
        return output, tape.gradient(output, variables, output_gradients=tf.constant(dL_do))

    nets.set_step(model, STEP)
    got_output, got = compiled(tf.constant(inputs))
    np.testing.assert_allclose(got_output, output, rtol=1e-5, atol=1e-6)
    assert nets.worst_error([g.numpy() for g in got], wanted) < ROUNDING


def assert_graph_equals(call: Callable[..., tf.Tensor], model: SpikingModel, inputs: Any, dL_do: Any, output: Any,
                        wanted: list[np.ndarray]) -> None:
    nets.set_step(model, STEP)
    got_output, got = nets.gradients_of(call, model, tf.constant(inputs), dL_do)
    np.testing.assert_allclose(got_output, output, rtol=1e-5, atol=1e-6)
    assert nets.worst_error(got, wanted) < ROUNDING


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_batch_may_be_unknown_while_tracing_and_may_be_one(gradient: str) -> None:
    model, _, _, _ = scene("plain", gradient)
    image = SPECS["plain"].image
    variables = [variable.value for variable in model.trainable_variables]

    @tf.function(input_signature=[tf.TensorSpec([None, T, *image]), tf.TensorSpec([None, nets.CLASSES])])
    def step(x: tf.Tensor, dL_do: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            output = model(x, training=True)
        return output, tape.gradient(output, variables, output_gradients=dL_do)

    for batch in (1, 4):
        inputs, dL_do = nets.spike_inputs(T, batch, image, seed=batch), nets.upstream(batch)
        output, wanted = run("layers", model, inputs, dL_do)
        nets.set_step(model, STEP)
        got_output, got = step(tf.constant(inputs), tf.constant(dL_do))
        np.testing.assert_allclose(got_output, output, rtol=1e-5, atol=1e-6)
        assert nets.worst_error([g.numpy() for g in got], wanted) < ROUNDING


@pytest.mark.parametrize("products", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("name", [pytest.param("plain", marks=pytest.mark.slow), "residual"])
def test_mixed_bfloat16_equals_the_oracle_to_its_rounding(name: str, gradient: str, products: bool,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with `tfspike.convolution` for every convolution, whose channels are too few for it by far."""
    taken: list[Any] = []
    if products:
        monkeypatch.setattr(convolution, "_FEWEST_CHANNELS", 1)
        monkeypatch.setattr(convolution, "_LARGEST_MAP", 1000)
        own = convolution.convolve
        monkeypatch.setattr(convolution, "convolve", lambda *args: taken.append(args) or own(*args))
    model, _, inputs, dL_do = scene(name, gradient, dtype="mixed_bfloat16")
    weights = nets.set_grid_weights(model, SPECS[name].kappa, grid=128)
    net = nets.oracle_net(SPECS[name], 0.9)
    masks = nets.masks_of(model, B, STEP)
    model.configure_engine(chunk=4, kernel="xla" if products else "plain")
    for route, trains in (("layers", nets.layer_spikes(model, inputs, STEP)),
                         ("engine", nets.engine_spikes(model, inputs, monkeypatch, STEP))):
        record = oracle.forward(net, weights, inputs.swapaxes(0, 1), masks, given=trains)
        assert min(layer.spikes.mean() for layer in record.layers) > 0.02
        # currents are rounded to 2^-9 of their size: few spikes flip, each close to the threshold
        assert record.flip_share() < 0.01 and record.worst_flip() < 0.1
        output, got = run(route, model, inputs, dL_do)
        assert output.dtype == np.float32 and all(g.dtype == np.float32 for g in got)
        np.testing.assert_allclose(output, record.output, atol=0.02 * np.abs(record.output).max())
        # 2^-9 at each of up to ten layers; the control below is what the bound must tell apart
        assert nets.worst_distance(got, oracle.backward(net, weights, record, dL_do, gradient)) < 0.04, route
        with monkeypatch.context() as patch:
            patch.setattr(oracle, "slope", no_leak_term)
            assert nets.worst_distance(got, oracle.backward(net, weights, record, dL_do, gradient)) > 0.08
    assert bool(taken) is products


@pytest.mark.parametrize("kernel", ["plain", "xla"])
def test_engine_keeps_membranes_counts_and_traces_in_float32_under_a_mixed_policy(kernel: str) -> None:
    model, _, inputs, _ = scene("plain", dtype="mixed_bfloat16")
    model.configure_engine(chunk=4, kernel=kernel)
    for training in (True, False):
        record = model.engine.run(tf.constant(inputs), training, weights=model.trainable_variables)
        assert record.output.dtype == tf.float32 and record.input_rate.dtype == tf.float32
        assert {part.dtype for state in record.states for part in state} == {tf.float32}
        assert all(state.count.numpy().sum() > 10 for state in record.states)


def test_two_gradients_share_the_forward_pass_and_differ_in_the_hidden_layers() -> None:
    grads = {}
    for gradient in GRADIENTS:
        model, _, inputs, dL_do = scene("plain", gradient)
        grads[gradient] = run("engine", model, inputs, dL_do)
    np.testing.assert_array_equal(grads["event"][0], grads["rate"][0])
    differences = [np.abs(a - b).max() / np.abs(a).max() for a, b in zip(grads["event"][1], grads["rate"][1])]
    assert differences[-1] < ROUNDING and min(differences[:-1]) > 0.05


# --- Which weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_frozen_layers_leave_the_other_gradients_as_they_are(gradient: str) -> None:
    model, _, inputs, dL_do = scene("plain", gradient)
    _, whole = run("engine", model, inputs, dL_do)
    model.layers[[layer.name for layer in model.layers].index("conv2")].trainable = False
    assert len(model.trainable_variables) == len(whole) - 1
    for route in ("engine", "layers"):
        _, got = run(route, model, inputs, dL_do)
        assert nets.worst_error(got, [g for i, g in enumerate(whole) if i != 1]) < ROUNDING, route


@pytest.mark.parametrize("chunk", [4, 8])
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("frozen", [("conv0",), ("conv0", "conv2")])
def test_the_first_layers_may_be_frozen(frozen: tuple[str, ...], gradient: str, chunk: int) -> None:
    model, _, inputs, dL_do = scene("plain", gradient)
    model.configure_engine(chunk=chunk)
    names = [variable.path for variable in model.trainable_variables]
    _, whole = run("engine", model, inputs, dL_do)
    for name in frozen:
        model.get_layer(name).trainable = False
    kept = {variable.path for variable in model.trainable_variables}
    assert len(kept) == len(whole) - len(frozen)
    for route in ("engine", "layers"):
        _, got = run(route, model, inputs, dL_do)
        assert nets.worst_error(got, [g for g, name in zip(whole, names) if name in kept]) < ROUNDING, route


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_neurons_may_stand_right_behind_the_encoder(gradient: str) -> None:
    inputs = keras.Input((6,))
    x = LIF(0.9, 1.0, gradient)(DirectEncoder(T)(inputs))
    x = LIF(0.9, 1.0, gradient)(OverTime(keras.layers.Dense(12, use_bias=False))(x))
    model = SpikingModel(inputs, Readout(0.9)(OverTime(keras.layers.Dense(nets.CLASSES, use_bias=False))(x)))
    nets.set_grid_weights(model, 4.0)
    images, dL_do = np.random.default_rng(0).uniform(0.1, 0.9, (B, 6)).astype("f"), nets.upstream(B)
    assert all(np.sum(count) > 10 for count in model.observe(images)[1].values())
    got, wanted = run("engine", model, images, dL_do)[1], run("layers", model, images, dL_do)[1]
    assert nets.worst_error(got, wanted) < ROUNDING


@pytest.mark.usefixtures("layer_by_layer")
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_layer_in_front_of_the_encoder_may_be_frozen_and_freed(gradient: str) -> None:
    inputs = keras.Input((T, 6))
    front = keras.layers.Dense(5, use_bias=False)
    x = LIF(0.9, gradient=gradient)(OverTime(keras.layers.Dense(12))(SpikeInput(T)(front(inputs))))
    model = SpikingModel(inputs, Readout(0.9)(OverTime(keras.layers.Dense(nets.CLASSES))(x)))
    nets.set_grid_weights(model, 4.0)
    data, dL_do = nets.spike_inputs(T, B, (6,)), nets.upstream(B)
    front.trainable = False
    assert model.engine is not None
    run("engine", model, data, dL_do)
    front.trainable = True
    assert model.engine is None
    assert np.abs(run("engine", model, data, dL_do)[1][0]).max() > 0
    front.trainable = False
    assert model.engine is not None


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_wholly_frozen_model_still_runs_in_training(gradient: str) -> None:
    model, _, inputs, _ = scene("five", gradient)
    nets.set_step(model, STEP)
    wanted = model.call_layers(inputs, training=True)
    model.trainable = False
    nets.set_step(model, STEP)
    np.testing.assert_allclose(model(inputs, training=True), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("layer_by_layer")
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_layers_in_front_of_the_encoder_and_behind_the_readout_train(gradient: str) -> None:
    spec = SPECS["five"]
    inputs = keras.Input((T, 6))
    x = keras.layers.Dense(5, name="front")(inputs)
    x = SpikeInput(T)(x)
    x = LIF(0.9, gradient=gradient)(OverTime(keras.layers.Dense(12))(x))
    x = Readout(0.9)(OverTime(keras.layers.Dense(4))(x))
    model = SpikingModel(inputs, keras.layers.Dense(nets.CLASSES, name="behind")(x))
    nets.set_grid_weights(model, spec.kappa)
    data, dL_do = nets.spike_inputs(T, B, (6,)), nets.upstream(B)
    assert all(train.sum() > 10 for train in nets.layer_spikes(model, data))
    # Computed one way or the other, a trainable weight must not be left with a silent zero.
    got, wanted = run("engine", model, data, dL_do)[1], run("layers", model, data, dL_do)[1]
    for variable, a, b in zip(model.trainable_variables, got, wanted):
        assert np.abs(b).max() > 0
        assert np.abs(a - b).max() < ROUNDING * np.abs(b).max(), variable.path


# --- Gradients in inference -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("surrogate", "norm", "chunk", "dtype"), [
    pytest.param("leak_aware", None, 4, None, marks=pytest.mark.slow),
    pytest.param("arctan", None, None, None, marks=pytest.mark.slow), ("arctan", "tdbn", 4, "mixed_bfloat16")])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_gradients_in_inference_are_those_of_the_layers(gradient: str, surrogate: str, norm: str | None, chunk: int | None,
                                                        dtype: Any) -> None:
    width = 1.0 if surrogate == "leak_aware" else 2.0
    model = models.create("lenet", (12, 12, 1), 5, T, gradient=gradient, hidden=12, kappa=6.0, dropout=0.3, seed=1,
                          surrogate=surrogate, surrogate_width=width, norm=norm, dtype=dtype)
    model.configure_engine(chunk=chunk)
    images = np.random.default_rng(0).uniform(-1, 1, (B, 12, 12, 1)).astype("f")
    assert all(np.sum(count) > 5 for count in model.observe(images)[1].values())
    found = []
    for call in (model, model.call_layers, tf.function(lambda x: model(x))):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(call(images) - 1.0))
        found.append([grad.numpy() for grad in tape.gradient(loss, model.trainable_variables)])
    assert all(np.abs(grad).max() > 0 for grad in found[1])
    assert nets.worst_error(found[2], found[0]) < ROUNDING
    assert nets.worst_error(found[0], found[1]) < (ROUNDING if dtype is None else 0.05)
    assert int(model.get_layer("encoder").step.value) == 0


# --- Own loops, fit, and bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("gradient", "jit_compile"), [
    ("event", False), *(pytest.param(*case, marks=pytest.mark.slow) for case in (("rate", False), ("event", True)))])
def test_fit_equals_an_own_loop(gradient: str, jit_compile: bool) -> None:
    models = []
    for _ in range(2):
        model, _, _, _ = scene("five", gradient, encoder="poisson")
        models.append(model)
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (8, *SPECS["five"].image)).astype("f")
    y = np.eye(nets.CLASSES, dtype="f")[rng.integers(0, nets.CLASSES, 8)]
    before = [variable.numpy() for variable in models[0].trainable_variables]

    models[0].compile(keras.optimizers.SGD(0.05), "mse", jit_compile=jit_compile)
    models[0].fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)

    optimizer = keras.optimizers.SGD(0.05)
    for _ in range(2):
        for i in (0, 4):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((models[1](x[i:i + 4], training=True) - y[i:i + 4]) ** 2)
            grads = tape.gradient(loss, [variable.value for variable in models[1].trainable_variables])
            optimizer.apply(grads, models[1].trainable_variables)
    assert int(models[0].get_layer("encoder").step.value) == int(models[1].get_layer("encoder").step.value) == 4
    for start, a, b in zip(before, models[0].trainable_variables, models[1].trainable_variables):
        assert np.abs(a.numpy() - start).max() > 1e-4
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-6)


def test_step_counters_advance_once_per_training_call_on_both_paths() -> None:
    model, _, inputs, dL_do = scene("plain", encoder=None)
    noisy = [layer for layer in model.layers if hasattr(layer, "step") and not isinstance(layer, SpikeInput)]
    assert len(noisy) == 3
    for route in ("engine", "layers"):
        run(route, model, inputs, dL_do)
        assert {int(layer.step.value) for layer in noisy} == {STEP + 1}
    model(inputs)
    model.predict(inputs, verbose=0)
    assert {int(layer.step.value) for layer in noisy} == {STEP + 1}


def test_training_calls_draw_afresh_and_inference_repeats() -> None:
    model, _, _, _ = scene("five", encoder="poisson")
    x = np.random.default_rng(0).uniform(-1, 1, (B, *SPECS["five"].image)).astype("f")
    assert not np.array_equal(model(x, training=True), model(x, training=True))
    np.testing.assert_array_equal(model(x), model(x))
    np.testing.assert_allclose(model.predict(x, verbose=0), model(x), rtol=1e-5, atol=1e-6)
    assert not np.array_equal(model(x, seed=1), model(x))
    np.testing.assert_allclose(model.call_layers(x, seed=1), model(x, seed=1), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("layer_by_layer")
def test_a_model_without_a_window_is_computed_layer_by_layer() -> None:
    inputs = keras.Input((T, 6))
    spikes = LIF(0.9)(OverTime(keras.layers.Dense(8))(SpikeInput(T)(inputs)))
    model = SpikingModel(inputs, spikes)
    assert model.engine is None and model.plan is None
    x = nets.spike_inputs(T, B, (6,))
    assert model(x).shape == (T, B, 8) and model(x, training=True).shape == (T, B, 8)
    with pytest.raises(UserError, match="encoder.*Readout"):
        model.spiking_layers  # noqa: B018


def special(call: str) -> tuple[keras.Model, SpikingModel]:
    """A net in which one call says more than its input: as Keras computes it, and as a SpikingModel."""
    inputs = keras.Input((T, 6))
    x = OverTime(keras.layers.Dense(16))(SpikeInput(T)(inputs))
    if call == "initial_state":
        state = [keras.ops.full_like(x[0], value) for value in (0.9, 0.0, 0.0)]
        x = LIF(0.9)(x, initial_state=gradients.NeuronState(*state))
    elif call == "return_state":
        once, state = LIF(0.9)(x, return_state=True)
        x = LIF(0.9)(x, initial_state=state)
        x = keras.layers.add([once, x])
    else:
        x = LIF(0.9)(x)
    if call == "training":
        x = WindowDropout(0.5, name="mc")(x, training=True)
    x = OverTime(keras.layers.Dense(nets.CLASSES))(x)
    output = Readout(0.9)(x, every_step=True) if call == "every_step" else Readout(0.9)(x)
    return keras.Model(inputs, output), SpikingModel(inputs, output)


@pytest.mark.usefixtures("layer_by_layer")
@pytest.mark.parametrize("call", ["initial_state", "return_state", "every_step"])
def test_calls_that_say_more_than_their_input_are_computed_as_keras_computes_them(call: str) -> None:
    plain, model = special(call)
    nets.set_grid_weights(model, 4.0)
    data = nets.spike_inputs(T, B, (6,))
    assert model.engine is None
    wanted = plain(data)
    assert model(data).shape == wanted.shape and np.abs(wanted).max() > 0
    np.testing.assert_array_equal(model(data), wanted)
    np.testing.assert_array_equal(model(data, training=True), wanted)


@pytest.mark.usefixtures("layer_by_layer")
@pytest.mark.parametrize("structure", ["state", "tuple"])
def test_a_model_that_takes_states_and_gives_them_goes_on_where_the_last_window_ended(structure: str) -> None:
    dense, neurons, readout = keras.layers.Dense(8), LIF(0.9), Readout(0.9)

    def window(steps: int) -> SpikingModel:
        inputs, V, before = keras.Input((steps, 6)), keras.Input((8,)), keras.Input(batch_shape=())
        membrane, count, trace = (keras.Input((8,)) for _ in range(3))
        state: Any = (membrane, count, trace)
        spikes, after = neurons(OverTime(dense)(SpikeInput(steps)(inputs)), return_state=True,
                                initial_state=gradients.NeuronState(*state) if structure == "state" else state)
        output, end = readout(spikes, initial_state=(V, before), return_state=True)
        return SpikingModel([inputs, *state, V, before], [output, *after, *end])

    data = tf.constant(nets.spike_inputs(2 * STEP, B, (6,)))
    start = [*[tf.zeros((B, 8))] * 4, tf.zeros(())]
    whole, short = window(2 * STEP), window(STEP)
    dense.set_weights([4.0 * weight for weight in dense.get_weights()])
    wanted = whole([data, *start])
    _, *state = short([data[:, :STEP], *start])
    for found, value in zip(short([data[:, STEP:], *state]), wanted):
        assert np.abs(value).max() > 0
        np.testing.assert_array_equal(found, value)


@pytest.mark.usefixtures("layer_by_layer")
def test_dropout_may_be_told_to_stay_on() -> None:
    _, model = special("training")
    nets.set_grid_weights(model, 4.0)
    data = nets.spike_inputs(T, B, (6,))
    answers = [model(data).numpy() for _ in range(3)]
    assert int(model.get_layer("mc").step.value) == 3
    assert not np.array_equal(answers[0], answers[1]) and not np.array_equal(answers[1], answers[2])


@pytest.mark.usefixtures("layer_by_layer")
def test_a_first_call_in_inference_draws_no_noise() -> None:
    # The plan is made within it; reading the graph must not make training the default of that call
    model = special("none")[1]
    assert "plan" not in model._lazy()
    model(nets.spike_inputs(T, B, (6,)))
    assert model.engine is not None
    inputs = keras.Input((T, 6))
    x = WindowDropout(0.5, name="free")(LIF(0.9)(OverTime(keras.layers.Dense(16))(SpikeInput(T)(inputs))))
    y = WindowDropout(0.5)(x, training=True)
    model = SpikingModel(inputs, Readout(0.9)(OverTime(keras.layers.Dense(2))(y)))
    model(nets.spike_inputs(T, B, (6,)))
    assert int(model.get_layer("free").step.value) == 0


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_shortcut_may_be_written_as_a_sum(gradient: str) -> None:
    def net(add: Callable[[Any, Any], Any]) -> SpikingModel:
        inputs = keras.Input((T, 6))
        x = LIF(0.9, gradient=gradient)(OverTime(keras.layers.Dense(8))(SpikeInput(T)(inputs)))
        y = LIF(0.9, gradient=gradient)(add(OverTime(keras.layers.Dense(8))(x), x))
        model = SpikingModel(inputs, Readout(0.9)(OverTime(keras.layers.Dense(nets.CLASSES))(add(x, y))))
        nets.set_grid_weights(model, 4.0)
        return model

    written, layers = net(lambda x, y: x + y), net(lambda x, y: keras.layers.Add()([x, y]))
    assert written.engine is not None
    data, dL_do = nets.spike_inputs(T, B, (6,)), nets.upstream(B)
    (output, gradient_), (wanted, wanted_gradient) = (run("engine", model, data, dL_do) for model in (written, layers))
    assert np.abs(wanted).max() > 0
    np.testing.assert_array_equal(output, wanted)
    np.testing.assert_array_equal(written(data), keras.Model(written.input, written.output)(data))
    assert nets.worst_error(gradient_, wanted_gradient) < ROUNDING


def test_the_linear_layers_of_sequences_keep_the_fast_path_under_rate() -> None:
    inputs = keras.Input((T, 6, 2))
    x = SpikeInput(T)(inputs)
    for layer in (keras.layers.ZeroPadding1D(1), keras.layers.Conv1DTranspose(4, 3), keras.layers.UpSampling1D(2),
                  keras.layers.Cropping1D(1)):
        x = OverTime(layer)(x)
    x = OverTime(keras.layers.GlobalAveragePooling1D())(LIF(0.9, gradient="rate")(x))
    model = SpikingModel(inputs, Readout(0.9)(OverTime(keras.layers.Dense(nets.CLASSES))(x)))
    nets.set_grid_weights(model, 4.0)
    assert model.engine is not None
    data, dL_do = nets.spike_inputs(T, B, (6, 2)), nets.upstream(B)
    (output, fast), (wanted, slow) = (run(path, model, data, dL_do) for path in ("engine", "layers"))
    assert np.abs(wanted).max() > 0
    np.testing.assert_allclose(output, wanted, rtol=1e-5, atol=1e-6)
    assert nets.worst_error(fast, slow) < ROUNDING


@pytest.mark.usefixtures("layer_by_layer")
def test_a_sum_that_spreads_one_step_over_others_is_left_to_keras() -> None:
    inputs = keras.Input((T, 6))
    x = LIF(0.9)(OverTime(keras.layers.Dense(8))(SpikeInput(T)(inputs)))
    model = SpikingModel(inputs, Readout(0.9)(x + keras.ops.max(x, axis=0, keepdims=True)))
    assert model.engine is None
    data = nets.spike_inputs(T, B, (6,))
    np.testing.assert_array_equal(model(data), keras.Model(inputs, model.output)(data))


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_layer_called_twice_has_two_counts(gradient: str) -> None:
    inputs = keras.Input((T, 6))
    neurons = LIF(0.9, gradient=gradient, name="lif")
    x = neurons(OverTime(keras.layers.Dense(8))(SpikeInput(T)(inputs)))
    x = neurons(OverTime(keras.layers.Dense(8))(x))
    model = SpikingModel(inputs, Readout(0.9)(OverTime(keras.layers.Dense(nets.CLASSES))(x)))
    nets.set_grid_weights(model, 4.0)
    data, dL_do = nets.spike_inputs(T, B, (6,)), nets.upstream(B)
    assert model.spiking_layers == ["lif", "lif_call2"]
    taken = LIF(0.9, name="lif_call2")(x)
    assert SpikingModel(inputs, Readout()(OverTime(keras.layers.Dense(2))(taken))).spiking_layers == [
        "lif", "lif_call3", "lif_call2"]
    counts = model.observe(data)[1]
    trains = nets.layer_spikes(model, data)
    assert list(counts) == model.spiking_layers and np.sum(trains[0]) != np.sum(trains[1])
    for count, train in zip(counts.values(), trains):
        np.testing.assert_array_equal(count, train.sum(0))
    window = Window(model)
    state, stepwise = window.initial_state(B), np.moveaxis(data, 1, 0)
    for t in range(T):
        state, _ = window.advance(tf.constant(stepwise[t:t + 1]), state)
    np.testing.assert_allclose(window.outputs(state)["scores"], model(data), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.sum(state["layer_spikes"], 0), [train.sum() for train in trains])
    assert nets.worst_error(run("engine", model, data, dL_do)[1], run("layers", model, data, dL_do)[1]) < ROUNDING


def test_layers_around_the_window_know_whether_this_is_training() -> None:
    # Keras' augmentation has training=True for its default, and dropout training=False
    inputs = keras.Input(SPECS["five"].image)
    x = keras.layers.Dropout(0.9)(keras.layers.GaussianNoise(0.5)(inputs))
    x = keras.layers.RandomTranslation(0.3, 0.3)(x)
    x = LIF(0.9)(OverTime(keras.layers.Dense(8))(OverTime(keras.layers.Flatten())(DirectEncoder(T)(x))))
    model = SpikingModel(inputs, keras.layers.Dropout(0.9)(Readout(0.9)(OverTime(keras.layers.Dense(50))(x))))
    nets.set_grid_weights(model, 6.0)
    data = np.random.default_rng(0).uniform(0.5, 1, (B, *SPECS["five"].image)).astype("f")
    for route in (model, model.call_layers):
        np.testing.assert_array_equal(route(data), route(data))
        trained = np.asarray(route(data, training=True))
        assert np.mean(trained == 0) > 0.5 and np.mean(np.asarray(route(data)) == 0) < 0.1
    np.testing.assert_array_equal(model.predict(data, verbose=0), model.predict(data, verbose=0))


def test_layers_whose_default_is_none_know_it_too() -> None:
    inputs = keras.Input((6,))
    around = keras.Sequential([keras.layers.BatchNormalization(momentum=0.5), keras.layers.GaussianNoise(0.5)])
    x = LIF(0.9)(OverTime(keras.layers.Dense(8))(DirectEncoder(T)(inputs)))
    model = SpikingModel(inputs, around(Readout(0.9)(OverTime(keras.layers.Dense(3))(x))))
    nets.set_grid_weights(model, 4.0)
    data = np.random.default_rng(0).uniform(0.5, 1, (B, 6)).astype("f")
    mean = around.layers[0].moving_mean
    for route in (model.observe, model.call_layers):
        before = mean.numpy()
        np.testing.assert_array_equal(first_of(route(data)), first_of(route(data)))
        np.testing.assert_array_equal(mean.numpy(), before)
        noisy = [first_of(route(data, training=True)) for _ in range(2)]
        assert not np.array_equal(*noisy) and not np.array_equal(mean.numpy(), before)


def first_of(answer: Any) -> np.ndarray:
    return np.asarray(answer[0] if isinstance(answer, tuple) else answer)


@pytest.mark.parametrize("nested", [False, True])
def test_augmentation_in_front_of_the_encoder_stays_off_in_inference(nested: bool) -> None:
    inputs = keras.Input((12, 12, 1))
    shift = keras.layers.RandomTranslation(0.3, 0.3, seed=1)
    x = DirectEncoder(T)((keras.Sequential([shift]) if nested else shift)(inputs))
    x = LIF(0.9)(OverTime(keras.layers.Dense(8))(OverTime(keras.layers.Flatten())(x)))
    model = SpikingModel(inputs, Readout(0.9)(OverTime(keras.layers.Dense(3))(x)))
    nets.set_grid_weights(model, 6.0)
    data = np.random.default_rng(0).uniform(0, 1, (B, 12, 12, 1)).astype("f")
    wanted = keras.Model(model.inputs, model.outputs).predict(data, verbose=0)
    assert not np.array_equal(model(data, training=True), model(data, training=True))
    for found in (model(data), model.predict(data, verbose=0), analysed(model, data), windowed(model, data)):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def analysed(model: SpikingModel, data: np.ndarray) -> np.ndarray:
    start, key, membranes = (simulation := Simulation(model)).start(data, 0)
    return simulation.run(start, key, tf.constant(0), T, membranes).readout[-1] / T


def windowed(model: SpikingModel, data: np.ndarray) -> tf.Tensor:
    window = Window(model)
    encode = window.encoder_of(tf.constant(data), 0)
    return window.outputs(window.advance(encode(0, T), window.initial_state(len(data)))[0])["scores"]


def test_inputs_come_as_keras_models_take_them() -> None:
    model, _, _, _ = scene("plain", encoder="poisson", dropout=0.0)
    shape = model.inputs[0].shape[1:]
    pixels = np.random.default_rng(0).integers(0, 2, (B, *shape)).astype("uint8")
    wanted = model(pixels.astype("f"))
    assert np.abs(wanted).max() > 0
    for given in (pixels, [pixels.astype("f")], {model.layers[0].name: pixels}):
        np.testing.assert_array_equal(model(given), wanted)
        np.testing.assert_array_equal(model.observe(given)[0], wanted)
    np.testing.assert_array_equal(model.observe(list(pixels))[0], wanted)
    np.testing.assert_array_equal(model.observe(pixels.tolist())[0], wanted)
    with pytest.raises(UserError, match="takes one input. Received: 2"):
        model.observe({"a": pixels, "b": pixels})
    with pytest.raises(UserError, match=rf"takes inputs of shape \[B, .*Received: shape \({B}, 3"):
        model.observe(np.zeros((B, 3, *shape[1:]), "f"))
    with pytest.raises(UserError, match=r"Received: shape \(9, 7, 2\), of one alone: .*x\[np.newaxis\]"):
        model.observe(np.zeros(shape, "f"))


def test_operations_may_stand_around_the_window() -> None:
    inputs = keras.Input((6,))
    x = LIF(0.9)(OverTime(keras.layers.Dense(8))(DirectEncoder(T)(keras.ops.clip(inputs, 0.0, 0.5))))
    model = SpikingModel(inputs, keras.ops.softmax(Readout(0.9)(OverTime(keras.layers.Dense(3))(x)), axis=-1))
    nets.set_grid_weights(model, 4.0)
    data = np.random.default_rng(0).uniform(0, 1, (B, 6)).astype("f")
    assert model.engine is not None
    np.testing.assert_allclose(np.sum(model(data), -1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(model(data), keras.Model(inputs, model.output)(data), rtol=1e-5)
    np.testing.assert_array_equal(model(data), model(np.minimum(data, 0.5)))


def test_a_missing_axis_for_one_channel_is_added() -> None:
    model = models.create("lenet", (12, 12, 1), 5, T, hidden=12, kappa=6.0)
    images = np.random.default_rng(0).uniform(-1, 1, (B, 12, 12)).astype("f")
    np.testing.assert_array_equal(model(images), model(images[..., None]))
    np.testing.assert_allclose(model.predict(images, verbose=0), model(images), rtol=1e-5, atol=1e-6)


def test_outputs_keep_the_structure_they_were_declared_with() -> None:
    inputs = keras.Input((T, 6))
    x = LIF(0.9)(OverTime(keras.layers.Dense(8))(SpikeInput(T)(inputs)))
    scores = Readout(0.9)(OverTime(keras.layers.Dense(2))(x))
    twice = keras.layers.Rescaling(2.0)(scores)
    data = nets.spike_inputs(T, B, (6,))
    named = SpikingModel(inputs, {"scores": scores, "twice": twice})
    found = named(data)
    assert set(found) == {"scores", "twice"}
    np.testing.assert_allclose(found["twice"], 2 * found["scores"])
    listed = SpikingModel([inputs], [scores])(data)
    assert isinstance(listed, list) and listed[0].shape == (B, 2)
    assert SpikingModel(inputs, scores)(data).shape == (B, 2)


@pytest.mark.usefixtures("layer_by_layer")
def test_a_model_of_two_inputs_is_computed_layer_by_layer() -> None:
    inputs, more = keras.Input((T, 6)), keras.Input((2,))
    x = LIF(0.9)(OverTime(keras.layers.Dense(8))(SpikeInput(T)(inputs)))
    scores = keras.layers.Concatenate()([Readout(0.9)(OverTime(keras.layers.Dense(2))(x)), more])
    model = SpikingModel([inputs, more], scores)
    data = [nets.spike_inputs(T, B, (6,)), np.ones((B, 2), "f")]
    assert model.engine is None
    np.testing.assert_array_equal(model(data), keras.Model([inputs, more], scores)(data))
    model.compile("sgd", "mse")
    model.fit(data, np.zeros((B, 4), "f"), verbose=0)


def test_a_model_that_leaves_the_fast_path_says_why() -> None:
    inputs = keras.Input((T, 6))
    x = LIF(0.9, gradient="rate", name="neurons")(OverTime(keras.layers.Dense(8))(SpikeInput(T)(inputs)))
    mixed = SpikingModel(inputs, Readout()(OverTime(keras.layers.Dense(2))(LIF(0.9, name="others")(x))))
    bent = SpikingModel(inputs, Readout()(OverTime(keras.layers.Dense(2, "relu"), name="bent")(x)))
    for model, why in ((mixed, "neurons has gradient='rate' and others has gradient='event'"), (bent, "bent is not linear")):
        with pytest.warns(UserWarning, match=f"layer by layer.*{why}"):
            assert model.engine is None


def test_images_of_any_size_are_computed_layer_by_layer_and_what_needs_the_size_says_so() -> None:
    image = keras.Input((None, None, 1))
    x = LIF(0.9, gradient="rate")(OverTime(keras.layers.Conv2D(4, 3, kernel_initializer="ones"))(DirectEncoder(T)(image)))
    x = OverTime(keras.layers.Dense(2))(OverTime(keras.layers.GlobalAveragePooling2D())(WindowDropout(0.2)(x)))
    model = SpikingModel(image, Readout(0.9)(x))
    with pytest.warns(UserWarning, match=r"layer by layer.*direct_encoder\w* .* gives \[T, B, None, None, 1\].*give keras.Input the size"):
        scores = [model(np.ones((2, *size, 1), "f"), training=True) for size in ((5, 7), (8, 6))]
    assert [tuple(s.shape) for s in scores] == [(2, 2)] * 2 and np.abs(scores[0]).max() > 0.0
    for look in (Simulation, lambda model: stepper.initial_state(model.plan, 1)):
        with pytest.raises(UserError, match="needs the size of every layer, but direct_encoder"):
            look(model)


def test_constants_that_are_changed_count_from_the_next_call_on() -> None:
    """Also where Keras has made a graph of those before: in `evaluate`, `predict` and `fit`."""
    model = nets.from_blocks(SPECS["five"], T, encoder="direct", gradient="rate", dropout=0.2)
    nets.set_grid_weights(model, SPECS["five"].kappa)
    data = np.random.default_rng(0).uniform(0, 1, (B, *SPECS["five"].image)).astype("f")
    model.compile(keras.optimizers.SGD(0.0), "mse")
    lif, seen = model.plan.spiking[0].layer, []
    for name, value in (("threshold", 1.0), ("threshold", np.float32(1.5)), ("threshold", np.float32(2.5)), ("leak", 0.5)):
        setattr(lif, name, value)
        seen.append(model.predict(data, verbose=0))
        np.testing.assert_allclose(seen[-1], model.call_layers(data), atol=1e-6)
        assert model.evaluate(data, seen[-1], verbose=0) < 1e-9
    assert len({scores.tobytes() for scores in seen}) == 4
    model.plan.encoder.layer.timesteps = 2 * T
    np.testing.assert_allclose(model.predict(data, verbose=0), model.call_layers(data), atol=1e-6)
    for call in model.plan.spiking:
        call.layer.gradient = "event"
    assert model.engine.gradient == "event" and model.engine.timesteps == model.timesteps == 2 * T


@pytest.mark.usefixtures("layer_by_layer")
@pytest.mark.parametrize("what", ["into_the_window", "to_the_output", "spikes_to_the_output"])
def test_what_bypasses_the_window_is_computed_as_keras_computes_it(what: str) -> None:
    inputs = keras.Input((6,))
    spikes = LIF(0.9)(OverTime(keras.layers.Dense(3))(DirectEncoder(T)(inputs)))
    aside = keras.layers.Dense(3, trainable=False)(inputs)
    if what == "into_the_window":
        output = Readout(0.9)(keras.layers.Add()([spikes, keras.ops.stack([aside] * T)]))
    elif what == "to_the_output":
        output = keras.layers.Add()([Readout(0.9)(spikes), aside])
    else:
        output = keras.layers.Add()([Readout(0.9)(spikes), keras.ops.mean(spikes, axis=0)])
    model = SpikingModel(inputs, output)
    nets.set_grid_weights(model, 4.0)
    data = np.random.default_rng(0).uniform(0.5, 1, (B, 6)).astype("f")
    assert model.engine is None
    wanted = keras.Model(inputs, output)(data)
    assert np.abs(wanted).max() > 0
    np.testing.assert_array_equal(model(data), wanted)


@pytest.mark.usefixtures("layer_by_layer")
def test_layers_with_different_gradients_are_computed_layer_by_layer() -> None:
    inputs = keras.Input((T, 6))
    x = LIF(0.9, gradient="event")(OverTime(keras.layers.Dense(8))(SpikeInput(T)(inputs)))
    x = LIF(0.9, gradient="rate")(OverTime(keras.layers.Dense(8))(x))
    model = SpikingModel(inputs, Readout()(OverTime(keras.layers.Dense(2))(x)))
    assert model.engine is None
    np.testing.assert_array_equal(model(nets.spike_inputs(T, B, (6,))), model.call_layers(nets.spike_inputs(T, B, (6,))))
    output, counts = model.observe(nets.spike_inputs(T, B, (6,)))
    assert list(counts) == model.spiking_layers
    np.testing.assert_array_equal(output, model(nets.spike_inputs(T, B, (6,))))


@pytest.mark.usefixtures("layer_by_layer")
def test_a_synapse_that_is_not_linear_gives_the_same_gradients_or_no_engine() -> None:
    # "rate" goes through means, which is exact for linear synapses only
    inputs = keras.Input((T, 6))
    x = OverTime(keras.layers.Dense(8, activation="relu"))(SpikeInput(T)(inputs))
    x = LIF(0.9, gradient="rate")(x)
    model = SpikingModel(inputs, Readout(0.9)(OverTime(keras.layers.Dense(nets.CLASSES))(x)))
    nets.set_grid_weights(model, 4.0)
    data, dL_do = nets.spike_inputs(T, B, (6,)), nets.upstream(B)
    got, wanted = run("engine", model, data, dL_do)[1], run("layers", model, data, dL_do)[1]
    assert nets.worst_error([got[0], got[2]], [wanted[0], wanted[2]]) < ROUNDING


@pytest.mark.parametrize("options", [{"chunk": 0}, {"chunk": -2}, {"chunk": 2.5}, {"kernel": "fast"}, {"kernel": None}])
def test_engine_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    model, _, _, _ = scene("five")
    with pytest.raises(UserError, match="(chunk|kernel).*Received"):
        model.configure_engine(**options)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_spike_trains_of_another_length_are_refused(gradient: str) -> None:
    model, _, _, _ = scene("five", gradient)
    for steps in (T - 1, T + 1):
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
            model(nets.spike_inputs(steps, B, SPECS["five"].image), training=True)
