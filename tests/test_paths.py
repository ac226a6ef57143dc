"""Nothing that the user wrote is replaced in silence: which models leave the fast path, what is said, what still works.

The judge is `keras.Model` of the same layers, which calls every layer as it is.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import nets
from tfspike import (
    LIF,
    DirectEncoder,
    OverTime,
    PoolingIF,
    Readout,
    SpikingModel,
    ThresholdNorm,
    UserError,
    WindowDropout,
    analysis,
)
from tfspike.analysis import simulation
from tfspike.engine import folding
from tfspike.export.window import Window
from tfspike.models import ann
from tfspike.neurons import gradients, surrogates
from tfspike.neurons.layers import SpikingLayer

T, B, N, CLASSES = 6, 4, 12, 3
GRADIENTS = ("event", "rate")
ROUNDING = 2e-5


def images(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1, (B, N)).astype("f")


def net(encoder: Any = None, over: Callable[..., Any] = OverTime, norm: Any = None, neurons: Any = None,
        dropout: Any = None, readout: Any = None, on_train: Any = None, gradient: str = "event",
        dense: Any = None) -> tuple[SpikingModel, keras.Model]:
    """A small net with one or another layer in place of the library's: as a SpikingModel, and as Keras computes it."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((N,))
    x = (encoder or DirectEncoder(T))(inputs)
    x = over(dense or keras.layers.Dense(N, kernel_initializer=keras.initializers.RandomUniform(-0.3, 0.9, seed=2)))(x)
    if norm is not None:
        x = norm(x)
    x = (neurons or LIF(0.9, gradient=gradient, name="first"))(x)
    if dropout is not None:
        x = dropout(x)
    if on_train is not None:
        x = on_train(x)
    x = LIF(0.9, 0.4, gradient, name="second")(OverTime(keras.layers.Dense(N, name="between"))(x))
    scores = (readout or Readout(0.9))(OverTime(keras.layers.Dense(CLASSES))(x))
    return SpikingModel(inputs, scores, name="net"), keras.Model(inputs, scores)


said = functools.partial(nets.said, about="layer by layer")


# --- Layers with code of their own ----------------------------------------------------------------------------------


class Silent(LIF):
    def call(self, currents: Any, **kwargs: Any) -> Any:
        return tf.zeros_like(currents)


class SilentPooling(PoolingIF):
    def call(self, currents: Any, **kwargs: Any) -> Any:
        return tf.zeros_like(currents)


class Dimmed(DirectEncoder):
    def call(self, inputs: Any, training: Any = None, seed: Any = None) -> Any:
        return 0.5 * super().call(inputs, training, seed)


class LastCurrent(Readout):
    def call(self, currents: Any, **kwargs: Any) -> Any:
        return currents[-1]


class Always(WindowDropout):
    def call(self, spikes: Any, training: Any = None, window_mask: Any = None) -> Any:
        return 0.5 * spikes


class Later(OverTime):
    def call(self, train: Any) -> Any:
        return tf.cumsum(super().call(train), axis=0)


class Doubled(ThresholdNorm):
    def normalise(self, *args: Any) -> Any:
        return 2.0 * super().normalise(*args)


class Steeper(keras.layers.Add):
    def call(self, inputs: Any) -> Any:
        return 2.0 * super().call(inputs)


class Inherited(Silent):
    pass


OWN = {
    "neuron": {"neurons": lambda: Silent(0.9)}, "grandchild": {"neurons": lambda: Inherited(0.9)},
    "pooling": {"neurons": SilentPooling}, "encoder": {"encoder": lambda: Dimmed(T)},
    "readout": {"readout": lambda: LastCurrent(0.9)}, "dropout": {"dropout": lambda: Always(0.5)},
    "over_time": {"over": Later}, "norm": {"norm": lambda: Doubled()},
    "merge": {"on_train": lambda: lambda x: Steeper()([x, x])},
}


def built(parts: dict[str, Any], **more: Any) -> tuple[SpikingModel, keras.Model]:
    return net(**{name: part if name == "over" else part() for name, part in parts.items()}, **more)


@pytest.mark.parametrize("what", OWN)
def test_a_layer_with_code_of_its_own_is_run_by_it_and_named_once(what: str) -> None:
    model, plain = built(OWN[what])
    x = images()
    messages = said(lambda: [model(x), model.observe(x), model(x, training=True), model.predict(x, verbose=0)])
    assert len(messages) == 1 and "of its own" in messages[0] and "net is computed" in messages[0]
    assert model.engine is None and model.plan is not None
    np.testing.assert_allclose(model(x), plain(x), rtol=1e-5, atol=1e-6)
    usual = net(**({"norm": ThresholdNorm()} if what == "norm" else {}))[0]
    usual.set_weights(model.get_weights()) if len(usual.weights) == len(model.weights) else None
    assert np.abs(model(x) - usual(x)).max() > 1e-3  # the fast path would have computed something else
    output, counts = model.observe(x)
    np.testing.assert_array_equal(output, model(x))
    spikes = keras.Model(model.input, [model.get_layer(name).output for name in model.spiking_layers])(x)
    for count, train in zip(counts.values(), spikes):
        np.testing.assert_array_equal(count, tf.reduce_sum(train, 0))


def test_a_call_put_on_the_layer_itself_counts_as_its_own() -> None:
    model, _ = net()
    assert model.engine is not None
    layer = model.get_layer("first")
    layer.call = lambda currents, **kwargs: tf.zeros_like(currents)
    assert len(said(lambda: model(images()))) == 1
    assert not np.any(model.observe(images())[1]["first"])


class Constants(SpikingLayer):
    """What a user may change and keep the fast path: the constants of the neuron."""

    @property
    def neuron(self) -> gradients.Neuron:
        return gradients.Neuron(0.5, 0.3, 1.0, self.surrogate, self.surrogate_width)

    def build(self, input_shape: Any) -> None:
        self.helper = 1

    def a_new_name(self) -> int:
        return 2


class Backwards(DirectEncoder):
    """An encoder of one's own: stretches of the window, joined, are the window."""

    def encode(self, inputs: Any, key: Any, start: Any, steps: int) -> Any:
        brightness = [1.0 - tf.cast(start + t, tf.float32) / self.timesteps for t in range(steps)]
        return tf.stack([inputs * one for one in brightness])


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_what_the_fast_path_itself_calls_may_be_overridden(gradient: str) -> None:
    model, plain = net(encoder=Backwards(T), neurons=Constants(gradient=gradient, name="first"), gradient=gradient)
    x = images()
    assert not said(lambda: model(x)) and model.engine is not None
    model.configure_engine(chunk=2)
    np.testing.assert_allclose(model(x), plain(x), rtol=1e-5, atol=1e-6)
    assert np.abs(model(x) - net(encoder=Backwards(T), gradient=gradient)[0](x)).max() > 1e-3
    _, got = nets.gradients_of(model, model, x, nets.upstream(B))
    _, wanted = nets.gradients_of(model.call_layers, model, x, nets.upstream(B))
    got, wanted = ([g for g in of if np.abs(g).max() > 0] for of in (got, wanted))
    assert len(got) == len(wanted) >= 4 and nets.worst_error(got, wanted) < ROUNDING
    window = Window(model)  # and so may what exports call
    state = window.run(window.encoder_of(tf.constant(x), 0), T // 2, 2, window.initial_state(B))
    np.testing.assert_allclose(window.outputs(state)["scores"], model(x), rtol=1e-5, atol=1e-6)


def test_nir_goes_by_the_constants_of_the_neuron() -> None:
    pytest.importorskip("nir")
    from tfspike.export.nir_graph import to_nir

    class Own(LIF):
        @property
        def neuron(self) -> gradients.Neuron:
            return gradients.Neuron.lif(0.5, 0.3)

    graph = to_nir(net(neurons=Own(0.9, name="first"))[0])
    np.testing.assert_allclose(graph.nodes["first"].v_threshold, 0.3, rtol=1e-6)
    np.testing.assert_allclose(graph.nodes["first"].tau, 1e-4 / 0.5, rtol=1e-6)


class LearntLeak(SpikingLayer):
    """The recipe of `SpikingLayer`."""

    def build(self, shape: Any) -> None:
        self.logit = self.add_weight(shape=(shape[-1],), initializer=keras.initializers.Constant(2.0))

    def call(self, currents: Any) -> Any:
        leak, v, train = tf.sigmoid(self.logit), tf.zeros_like(currents[0]), []
        for current in tf.unstack(currents):
            u = v + current
            train.append(surrogates.spike("arctan", u - 1.0))
            v = leak * u * (1.0 - tf.stop_gradient(train[-1]))
        return tf.stack(train)


def test_a_learnt_leak_is_learnt() -> None:
    model, _ = net(neurons=LearntLeak(name="first"))
    x, y = images(), np.eye(CLASSES, dtype="f")[[0, 1, 2, 0]]
    start = model.get_layer("first").logit.numpy()
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    messages = said(lambda: model.fit(x, y, epochs=2, verbose=0))
    assert len(messages) == 1 and "first (LearntLeak) has a `call` of its own" in messages[0]
    assert np.sum(model.observe(x)[1]["first"]) > 0
    assert np.abs(model.get_layer("first").logit.numpy() - start).max() > 1e-3


def test_the_recipe_in_the_docstring_is_the_one_that_is_tested() -> None:
    def code(text: str) -> str:
        return "".join(line.split("  #")[0].replace(" ", "") for line in text.splitlines())

    import inspect

    body = inspect.getsource(LearntLeak.call).replace(": Any", "").replace(" -> Any", "")
    assert code(body) in code(inspect.getdoc(SpikingLayer) or "")


def test_a_variable_among_the_constants_of_a_neuron_is_refused_on_both_paths() -> None:
    class Frozen(LIF):
        def build(self, shape: Any) -> None:
            self.learnt = self.add_weight(shape=(), initializer="ones")

        @property
        def neuron(self) -> gradients.Neuron:
            return gradients.Neuron(self.learnt, 1.0, 1.0)

    model, plain = net(neurons=Frozen(0.9))
    for route in (model, plain):
        with pytest.raises(ValueError, match="`leak`.*constant.*recipe"):
            route(images())


def test_a_weight_that_nobody_reads_keeps_the_gradients_and_loses_the_fast_path() -> None:
    class Weighty(LIF):
        def build(self, shape: Any) -> None:
            self.more = self.add_weight(shape=(), initializer="ones")

    model, _ = net(neurons=Weighty(0.9, name="first"))
    assert "first (Weighty) has a trained weight of its own" in said(lambda: model(images()))[0]
    model.get_layer("first").trainable = False
    assert model.engine is not None


def test_synapses_with_code_of_their_own_are_not_taken_for_linear() -> None:
    class Squared(keras.layers.Dense):
        def call(self, inputs: Any, training: Any = None) -> Any:
            return tf.square(super().call(inputs))

    model, plain = net(dense=Squared(N), gradient="rate")
    assert "is not linear" in said(lambda: model(images()))[0]
    np.testing.assert_array_equal(model(images()), plain(images()))
    model, plain = net(dense=Squared(N))  # "event" takes any layer that treats every step alone
    assert not said(lambda: model(images()))
    np.testing.assert_allclose(model(images()), plain(images()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("leak", [0.5, 0.9])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_separable_convolutions_and_linear_layers_in_a_row_keep_the_fast_path(gradient: str, leak: float) -> None:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6, 6, 2))
    row = keras.Sequential([keras.layers.ZeroPadding2D(1), keras.layers.Conv2D(4, 3), keras.layers.AveragePooling2D(2)])
    x = LIF(leak, 0.2, gradient)(OverTime(row)(DirectEncoder(T)(inputs)))
    x = LIF(leak, 0.2, gradient)(OverTime(keras.layers.SeparableConv2D(5, 2, depth_multiplier=2))(x))
    x = OverTime(keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(CLASSES)]))(x)
    model = SpikingModel(inputs, Readout(leak)(x))
    images = np.random.default_rng(0).uniform(-1, 1, (B, 6, 6, 2)).astype("f")
    assert not said(lambda: model(images))
    output, gradients = nets.assert_engine_as_layers(model, images, rtol=1e-4, atol=1e-6)
    assert len(gradients) == 7 and all(np.abs(part).max() > 1e-4 for part in (output, *gradients))


@pytest.mark.parametrize("part", [keras.layers.ReLU(), keras.layers.Dense(N, activation="relu")])
def test_a_row_with_one_layer_that_is_not_linear_is_not(part: keras.layers.Layer) -> None:
    model, _ = net(dense=keras.Sequential([keras.Input((N,)), keras.layers.Dense(N), part]), gradient="rate")
    assert "is not linear" in said(lambda: model(images()))[0]


@pytest.mark.parametrize(("what", "message"), [
    ("neuron", "A simulation cannot look into .*Silent.*`call` of its own"),
    ("encoder", "A simulation cannot look into .*Dimmed"), ("readout", "A simulation cannot look into .*LastCurrent")])
def test_what_looks_into_neurons_refuses_those_with_code_of_their_own_by_name(what: str, message: str) -> None:
    model, _ = built(OWN[what])
    for look in (lambda: simulation.Simulation(model), lambda: simulation.record(model, images()[0]),
                 lambda: analysis.analyse(model, images(), np.zeros(B, int))):
        with pytest.raises(UserError, match=message):
            look()


@pytest.mark.parametrize("what", OWN)
def test_exports_and_twins_refuse_code_of_its_own_by_name(what: str) -> None:
    model, _ = built(OWN[what])
    with pytest.raises(UserError, match="of its own") as caught:
        Window(model)
    assert "\n" not in str(caught.value) and "model.export" in str(caught.value)
    with pytest.raises(UserError, match="of its own"):
        ann.twin(model)
    if what == "norm":
        with pytest.raises(UserError, match="cannot be folded.*`normalise` of its own"):
            folding.fold(model)


# --- Layers that are not ours on a spike train ----------------------------------------------------------------------


FOREIGN = {
    "BatchNormalization": (lambda: keras.layers.BatchNormalization(), "ThresholdNorm"),
    "ReLU": (lambda: keras.layers.ReLU(), "OverTime"),
    "Tanh": (lambda: keras.ops.tanh, "OverTime"),
    "Dropout": (lambda: keras.layers.Dropout(0.5), "WindowDropout"),
    "Cumsum": (lambda: lambda x: keras.ops.cumsum(x, axis=0), "OverTime"),
    "Activation": (lambda: keras.layers.Activation(lambda x: tf.cumsum(x, axis=0)), "OverTime"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_layer_that_may_mix_steps_is_named_with_its_remedy_and_everything_goes_on(what: str) -> None:
    make, remedy = FOREIGN[what]
    model, plain = net(on_train=make())
    x = images()
    messages = said(lambda: [model(x), model.observe(x), model(x, training=True)])
    assert len(messages) == 1 and what in messages[0] and remedy in messages[0]
    np.testing.assert_allclose(model(x), plain(x, training=False), rtol=1e-5, atol=1e-6)
    output, counts = model.observe(x)
    np.testing.assert_array_equal(output, model(x))
    assert list(counts) == ["first", "second"] and all(np.sum(count) > 0 for count in counts.values())
    # in one piece: a cumulative sum over half a window is another one
    looked = simulation.Simulation(model)
    start, key, membranes = looked.start(x, 0)
    (first, steps), = looked.chunks(B)
    np.testing.assert_allclose(looked.run(start, key, first, steps, membranes).readout[-1] / T, model(x), rtol=1e-4,
                               atol=1e-5)
    with pytest.raises(UserError, match=f"Exports run a window step by step.*{what}"):
        Window(model)


@pytest.mark.usefixtures("layer_by_layer")
@pytest.mark.parametrize("what", ["ReLU", "Tanh"])
def test_reports_are_made_of_nets_with_layers_that_are_not_ours(what: str) -> None:
    model, _ = net(on_train=FOREIGN[what][0]())
    x = images()
    found = analysis.analyse(model, x, np.zeros(B, int))
    np.testing.assert_array_equal(found.predictions[:, -1], np.argmax(model(x), -1))
    counts = model.observe(x)[1]
    assert [layer.spikes for layer in found.layers[1:3]] == [float(np.sum(count)) / B for count in counts.values()]


def test_reports_name_the_layer_whose_operations_they_cannot_count() -> None:
    model, _ = net(on_train=keras.layers.BatchNormalization(name="bn"))
    with pytest.raises(UserError, match="operations of layer 'bn', a BatchNormalization"):
        analysis.analyse(model, images(), np.zeros(B, int))


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_max_pooling_keeps_the_fast_path_where_it_can(gradient: str) -> None:
    inputs = keras.Input((8, 8, 1))
    x = LIF(0.9, 0.5, gradient)(OverTime(keras.layers.Conv2D(4, 3, padding="same"))(DirectEncoder(T)(inputs)))
    x = OverTime(keras.layers.Flatten())(OverTime(keras.layers.MaxPooling2D(2), name="pool")(x))
    model = SpikingModel(inputs, Readout(0.9)(OverTime(keras.layers.Dense(3))(x)))
    data = np.random.default_rng(0).uniform(0, 3, (B, 8, 8, 1)).astype("f")
    messages = said(lambda: model.observe(data))
    assert messages == [] if gradient == "event" else "pool is not linear" in messages[0]
    assert np.sum(model.observe(data)[1][model.spiking_layers[0]]) > 0


def test_two_readouts_are_computed_as_keras_does_and_counted() -> None:
    inputs = keras.Input((N,))
    x = LIF(0.9, 0.4, name="lif")(OverTime(keras.layers.Dense(N))(DirectEncoder(T)(inputs)))
    outputs = {name: Readout(0.9, name=name)(OverTime(keras.layers.Dense(2))(x)) for name in ("left", "right")}
    model, plain = SpikingModel(inputs, outputs), keras.Model(inputs, outputs)
    messages = said(lambda: [model(images()), model(images())])
    assert len(messages) == 1 and re.search(r"2 Readouts \((left, right|right, left)\)", messages[0])
    found, counts = model.observe(images())
    for name, wanted in plain(images()).items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(counts["lif"], tf.reduce_sum(keras.Model(inputs, model.get_layer("lif").output)(
        images()), 0))
    for look in (lambda: simulation.Simulation(model), lambda: Window(model), lambda: model.timesteps):
        with pytest.raises(UserError, match=r"2 Readouts \((left, right|right, left)\)"):
            look()


def test_a_window_that_changes_its_length_is_computed_as_keras_does() -> None:
    model, plain = net(on_train=lambda x: keras.layers.Concatenate(axis=0, name="longer")([x, x]))
    assert "longer (Concatenate) changes the number of steps" in said(lambda: model(images()))[0]
    np.testing.assert_array_equal(model(images()), plain(images()))


@pytest.mark.usefixtures("layer_by_layer")
def test_observe_counts_where_states_are_passed_on() -> None:
    inputs = keras.Input((N,))
    first = OverTime(keras.layers.Dense(N))(DirectEncoder(T)(inputs))
    spikes, state = LIF(0.9, 0.4, name="a")(first, return_state=True)
    again = LIF(0.9, 0.4, name="b")(first, initial_state=state)
    scores = Readout(0.9)(keras.layers.add([spikes, again]))
    model = SpikingModel(inputs, scores)
    output, counts = model.observe(images())
    np.testing.assert_allclose(output, keras.Model(inputs, scores)(images()), rtol=1e-5, atol=1e-6)
    assert list(counts) == ["a", "b"] and not np.array_equal(counts["a"], counts["b"]) and np.sum(counts["a"]) > 0


def test_training_layer_by_layer_alone_is_said_too() -> None:
    def deep(gradient: str) -> SpikingModel:
        inputs = keras.Input((N,))
        x = ThresholdNorm(gradient=gradient)(OverTime(keras.layers.Dense(N))(DirectEncoder(9)(inputs)))
        return SpikingModel(inputs, Readout(0.9)(OverTime(keras.layers.Dense(2))(LIF(0.9, gradient=gradient)(x))))

    for gradient, expected in (("event", 1), ("rate", 0)):
        model = deep(gradient)
        assert not said(lambda model=model: model(images()))
        assert len(said(lambda model=model: [model(images(), training=True) for _ in range(2)])) == expected


# --- Penalties of spikes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("surrogate", [surrogates.LEAK_AWARE, "triangular"])
@pytest.mark.parametrize("regularizer", [keras.regularizers.L1(0.02), keras.regularizers.L2(0.03),
                                         keras.regularizers.L1L2(0.02, 0.01)], ids=["l1", "l2", "l1l2"])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_activity_regularizers_are_the_same_on_both_paths(gradient: str, regularizer: Any, surrogate: str) -> None:
    model, plain = net(neurons=LIF(0.5, 0.7, gradient, surrogate, name="first", activity_regularizer=regularizer),
                       gradient=gradient)
    x = images()
    model.configure_engine(chunk=4)
    assert model.engine is not None
    results = []
    for route in (model, plain):
        with tf.GradientTape() as tape:
            tape.watch([v.value for v in model.trainable_variables])
            route(x, training=True)
            loss = tf.add_n(route.losses)
        found = tape.gradient(loss, [v.value for v in model.trainable_variables], unconnected_gradients="zero")
        results.append((float(loss), [g.numpy() for g in found[:2]]))
        assert not any(np.any(g) for g in found[2:])
    spikes = float(np.sum(model.observe(x)[1]["first"])) / B
    l1, l2 = getattr(regularizer, "l1", 0.0), getattr(regularizer, "l2", 0.0)
    assert spikes > 3 and np.isclose(results[0][0], (l1 + l2) * spikes) and np.isclose(results[1][0], results[0][0])
    assert nets.worst_error(results[0][1], results[1][1]) < ROUNDING


def test_a_penalty_neither_piles_up_nor_depends_on_the_batch_and_outlives_a_file(tmp_path: Any) -> None:
    model, _ = net(neurons=LIF(0.9, name="first", activity_regularizer=keras.regularizers.L1(0.1)))
    values = []
    for x in (images(), images(), np.tile(images(), (3, 1))):
        for call in (model, model.observe):
            call(x)
            assert len(model.losses) == 1
            values.append(float(model.losses[0]))
    np.testing.assert_allclose(values, values[0], rtol=1e-5)
    model.save(tmp_path / "penalised.keras")
    again = keras.models.load_model(tmp_path / "penalised.keras")
    again(images())
    assert again.engine is not None and np.isclose(float(again.losses[0]), values[0])


def test_a_penalty_does_not_see_states() -> None:
    layer = LIF(0.9, activity_regularizer=keras.regularizers.L1(1.0))
    currents = np.random.default_rng(0).uniform(0, 1, (T, B, N)).astype("f")
    spikes, _ = layer(currents, return_state=True)
    assert len(layer.losses) == 1 and np.isclose(float(layer.losses[0]), np.sum(spikes) / B)


def with_penalty(where: str) -> tuple[SpikingModel, keras.Model]:
    l1 = keras.regularizers.L1(0.1)
    if where == "over_time":
        return net(over=lambda layer: OverTime(layer, activity_regularizer=l1))
    if where == "wrapped":
        return net(dense=keras.layers.Dense(N, activity_regularizer=l1))
    if where == "inside":
        return net(dense=keras.Sequential([keras.layers.Dense(N), keras.layers.ActivityRegularization(0.1)]))
    if where == "readout":
        return net(readout=Readout(0.9, activity_regularizer=l1))
    if where == "dropout":
        return net(dropout=WindowDropout(0.2, activity_regularizer=l1))
    return net(neurons=LIF(0.9, activity_regularizer=lambda s: tf.reduce_max(tf.reduce_mean(s, 0))))


@pytest.mark.parametrize("where", ["over_time", "wrapped", "inside", "readout", "dropout", "function"])
def test_a_penalty_that_the_engine_has_not_is_computed_layer_by_layer_and_named(where: str) -> None:
    model, plain = with_penalty(where)
    messages = said(lambda: [model(images()), model(images())])
    assert len(messages) == 1 and "`activity_regularizer`" in messages[0]
    assert len(model.losses) == 1 and float(model.losses[0]) > 0
    found = float(model.losses[0])
    plain(images(), training=False)
    assert np.isclose(found, float(plain.losses[0]), rtol=1e-5)


@pytest.mark.parametrize("gradient", [pytest.param("event", marks=pytest.mark.slow), "rate"])
def test_fit_with_a_penalty_has_fewer_spikes(gradient: str) -> None:
    x, y = images(), np.eye(CLASSES, dtype="f")[[0, 1, 2, 0]]
    spikes = []
    for strength in (0.0, 1.0):
        model, _ = net(neurons=LIF(0.9, gradient=gradient, name="first",
                                   activity_regularizer=keras.regularizers.L1(strength)), gradient=gradient)
        model.compile(keras.optimizers.Adam(0.02), "mse")
        history = model.fit(x, y, epochs=8, verbose=0).history["loss"]
        spikes.append(float(np.sum(model.observe(x)[1]["first"])))
        assert model.engine is not None and np.isfinite(history).all()
    assert spikes[1] < 0.8 * spikes[0]


def test_a_model_with_a_call_of_its_own_is_run_by_it_and_not_looked_into() -> None:
    class Scaled(SpikingModel):
        def call(self, inputs: Any, training: Any = None, **kwargs: Any) -> Any:
            return 2.0 * super().call(inputs, training=training, **kwargs)

    usual, _ = net()
    model = Scaled(usual.input, usual.output)
    np.testing.assert_array_equal(model(images()), 2.0 * usual(images()))
    assert model.engine is not None
    for look in (lambda: model.observe(images()), lambda: simulation.Simulation(model), lambda: Window(model)):
        with pytest.raises(UserError, match="Scaled has a `call` of its own"):
            look()


@pytest.mark.usefixtures("layer_by_layer")
@pytest.mark.parametrize("what", ["neuron", "foreign"])
def test_keras_own_export_holds_what_ours_refuse(what: str, tmp_path: Any) -> None:
    model, _ = net(neurons=LearntLeak()) if what == "neuron" else net(on_train=keras.layers.BatchNormalization())
    model.export(str(tmp_path / "saved"), verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    np.testing.assert_allclose(loaded.serve(tf.constant(images())), model(images()), rtol=1e-5, atol=1e-6)


def test_a_loss_that_chunks_of_time_would_lose_is_refused() -> None:
    class Adds(keras.layers.Dense):
        def call(self, inputs: Any, training: Any = None) -> Any:
            y = super().call(inputs)
            self.add_loss(tf.reduce_mean(y))
            return y

    model, plain = net(dense=Adds(N))
    for route in (model, tf.function(lambda x: model(x), autograph=False)):
        with pytest.raises(ValueError, match="calls `add_loss`.*activity_regularizer"):
            route(images())
    plain(images())
    assert len(plain.losses) == 1
