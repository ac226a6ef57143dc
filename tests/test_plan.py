"""How a model is read: its calls, where the window begins and ends, and what a plan's parts are run with."""

from __future__ import annotations

import warnings
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
    LatencyEncoder,
    OverTime,
    PoissonEncoder,
    Readout,
    SpikingModel,
    UserError,
    WindowDropout,
)
from tfspike.engine import known
from tfspike.engine import plan as plans
from tfspike.neurons.encoders import SpikeInput

T, B, N, CLASSES = 3, 2, 4, 2


def dense(units: int = N, **kwargs: Any) -> OverTime:
    return OverTime(keras.layers.Dense(units), **kwargs)


def around(encoder: keras.layers.Layer | None = None) -> SpikingModel:
    """A layer in front of the encoder, two neurons layers of which one is called twice, and a layer behind the readout."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((N,))
    neurons = LIF(0.9, 0.3, name="lif")
    x = keras.layers.Dense(N, name="front")(inputs)
    train = (encoder or DirectEncoder(T, name="encoder"))(x)
    x = WindowDropout(0.5, name="dropout")(neurons(dense(name="first")(train)))
    x = neurons(keras.layers.Add(name="sum")([x, dense(name="second")(x)]))
    x = Readout(0.9, name="readout")(dense(CLASSES, name="output")(x))
    return SpikingModel(inputs, keras.layers.Dense(CLASSES, name="behind")(x))


def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 1, (B, N)).astype("f")


def names(calls: Any) -> list[str]:
    return [call.name for call in calls]


def test_the_calls_of_a_model_are_split_where_the_window_begins_and_ends() -> None:
    plan = around().plan
    assert names(plan.before) == ["front"] and plan.encoder.name == "encoder"
    assert names(plan.window) == ["first", "lif", "dropout", "second", "sum", "lif_call2", "output"]
    assert plan.readout.name == "readout" and names(plan.after) == ["behind"]
    assert names(plan.spiking) == ["lif", "lif_call2"] and names(plan.dropouts) == ["dropout"]
    assert plan.spiking[0].layer is plan.spiking[1].layer
    assert names(plan.calls) == [*names(plan.before), *names(plan.ours), *names(plan.after)]


def test_calls_know_what_they_read_and_are_equal_to_themselves_alone() -> None:
    plan = around().plan
    at = {call.name: call for call in plan.calls}
    assert at["sum"].sources == [at["dropout"].output, at["second"].output] and at["sum"].source is at["sum"].sources[0]
    assert at["first"].source is plan.encoder.output and plan.inputs[0] is at["front"].source
    assert len({plan.spiking[0]: 1, plan.spiking[1]: 2}) == 2 and at["first"] in plan.window
    assert plan.spiking[0] != plan.spiking[1]


def test_the_parts_of_a_plan_make_the_model() -> None:
    model, x = around(), images()
    plan = model.plan
    train = plan.encoder.layer(plan.into_encoder(tf.constant(x)))
    current = plan.run_window(train)[plan.readout.source]
    output, = plan.behind_readout(plan.readout.layer(current))
    wanted = keras.Model(model.inputs, model.outputs)(x)
    assert np.ptp(wanted) > 0
    np.testing.assert_allclose(output, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("layer", "shape"), [
    (keras.layers.DepthwiseConv1D(2), (5, 2)), (keras.layers.Conv3DTranspose(2, 2), (3, 3, 3, 2)),
    (keras.layers.ZeroPadding3D(), (3, 3, 3, 2)), (keras.layers.Cropping3D(), (3, 3, 3, 2)),
    (keras.layers.UpSampling3D(), (3, 3, 3, 2)), (keras.layers.GlobalAveragePooling3D(), (3, 3, 3, 2))])
def test_layers_over_one_axis_and_over_three_are_known_to_be_linear(layer: keras.layers.Layer,
                                                                    shape: tuple[int, ...]) -> None:
    """Otherwise gradient="rate" would compute a network of them layer by layer, and call them something else."""
    assert known.is_linear(OverTime(layer))
    a, b = np.random.default_rng(0).normal(size=(2, 1, *shape)).astype("f")
    np.testing.assert_allclose(layer((a + b) / 2), (layer(a) + layer(b)) / 2, atol=1e-6)


def test_running_calls_leaves_the_values_that_were_given_as_they_are() -> None:
    plan = around().plan
    given: plans.Values = {plan.encoder.output: tf.ones((T, B, N))}
    asked: list[str] = []

    def handler(call: plans.Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        asked.append(call.name)
        return plans.plain(call, args, kwargs)

    values = plans.run(plan.window[:2], given, handler)
    assert list(given) == [plan.encoder.output] and asked == ["first", "lif"]
    assert list(values) == [plan.encoder.output, plan.window[0].output, plan.window[1].output]


def two_inputs() -> Any:
    a, b = keras.Input((N,)), keras.Input((CLASSES,))
    return [a, b], keras.layers.Add()([Readout()(dense(CLASSES)(LIF()(DirectEncoder(T)(a)))), b])


def no_encoder() -> Any:
    x = keras.Input((N,), batch_size=T)
    return x, keras.layers.Dense(2)(x)


def two_readouts() -> Any:
    x = keras.Input((N,))
    spikes = LIF()(DirectEncoder(T)(x))
    return x, [Readout()(spikes), Readout()(spikes)]


def no_readout() -> Any:
    x = keras.Input((N,))
    return x, LIF()(DirectEncoder(T)(x))


def no_neurons() -> Any:
    x = keras.Input((N,))
    return x, Readout()(dense()(DirectEncoder(T)(x)))


def spikes_given_out() -> Any:
    x = keras.Input((N,))
    spikes = LIF()(DirectEncoder(T)(x))
    return x, [Readout()(spikes), spikes]


def a_way_around() -> Any:
    x = keras.Input((N,))
    return x, keras.layers.Add()([Readout()(LIF()(DirectEncoder(T)(x))), x])


def with_a_state() -> Any:
    x = keras.Input((N,))
    spikes, _ = LIF()(DirectEncoder(T)(x), return_state=True)
    return x, Readout()(spikes)


@pytest.mark.parametrize(("make", "reason"), [
    (two_inputs, "has 2 inputs"), (no_encoder, "has no encoder"), (two_readouts, "has 2 Readouts"),
    (no_readout, "has no Readout, and a window has one: scores come out of one"), (no_neurons, "no spiking layer"), (spikes_given_out, "does not come out of its Readout"),
    (a_way_around, "also reads what lies in front"), (with_a_state, "called with more than its input")])
def test_a_graph_that_is_no_single_window_says_why(make: Callable[[], Any], reason: str) -> None:
    found = plans.read(keras.Model(*make()))
    assert isinstance(found, str) and reason in found
    assert isinstance(plans.read(keras.Model(*make())), str)


# --- Models within a window -----------------------------------------------------------------------------------------


def block(name: str, inside: str, gradient: str = "rate") -> keras.Model:
    """Two layers of neurons with a way around them, of any number of steps."""
    train = keras.Input(batch_shape=(None, None, N))
    x = LIF(0.9, 0.3, gradient, name=f"{inside}_lif")(dense(name=f"{inside}_dense")(train))
    x = keras.layers.Add(name=f"{inside}_sum")([x, train])
    return keras.Model(train, LIF(0.5, 0.4, gradient, name=f"{inside}_last")(x), name=name)


def of_blocks(*blocks: keras.layers.Layer, gradient: str = "rate") -> SpikingModel:
    x = inputs = keras.Input((N,))
    x = LIF(0.9, 0.3, gradient, name="lif")(dense(name="dense")(DirectEncoder(T, name="encoder")(x)))
    for part in blocks:
        x = part(x)
    return SpikingModel(inputs, Readout(0.9, name="readout")(dense(nets.CLASSES, name="output")(x)), name="net")


@pytest.mark.parametrize("gradient", ["rate", "event"])
def test_models_within_a_window_take_the_fast_path(gradient: str) -> None:
    keras.utils.set_random_seed(2)
    shared = block("a", "first", gradient)
    train = keras.Input(batch_shape=(T, None, N))
    outer = keras.Model(train, block("c", "third", gradient)(keras.Sequential([dense(name="own")], name="row")(train)))
    model, x = of_blocks(shared, outer, shared, gradient=gradient), images()
    assert model.engine is not None
    assert names(model.plan.window) == [
        "dense", "lif", "first_dense", "first_lif", "first_sum", "first_last", "own", "third_dense", "third_lif", "third_sum",
        "third_last", "first_dense_call2", "first_lif_call2", "first_sum_call2", "first_last_call2", "output"]
    np.testing.assert_allclose(model(x), keras.Model(model.inputs, model.outputs)(x), rtol=1e-5, atol=1e-6)
    output, gradients = nets.assert_engine_as_layers(model, x, rtol=1e-4, atol=1e-6)
    assert len(gradients) == 10 and all(np.abs(part).max() > 1e-4 for part in (output, *gradients))
    longer = model.with_timesteps(2 * T)
    assert longer.engine is not None and len(longer.plan.window) == len(model.plan.window)
    np.testing.assert_allclose(longer(x), longer.call_layers(x), rtol=1e-5, atol=1e-6)


class Own(keras.Model):
    def call(self, train: tf.Tensor) -> tf.Tensor:
        return train + 1.0

    def compute_output_spec(self, train: Any) -> Any:
        return keras.KerasTensor(train.shape, train.dtype)


def test_a_model_that_cannot_be_looked_into_is_run_as_it_is_and_says_why() -> None:
    for model in (of_blocks(Own(name="own")), of_blocks(block("a", "same"), block("b", "same"))):
        x = images()
        with pytest.warns(UserWarning, match="(own|a) .*models within a window are looked into where.* one name"):
            output = model(x)
        np.testing.assert_allclose(output, keras.Model(model.inputs, model.outputs)(x), rtol=1e-5, atol=1e-6)
        assert model.with_timesteps(2 * T).timesteps == 2 * T


# --- A layer in front of the encoder that is trained ----------------------------------------------------------------


def fit(model: SpikingModel) -> None:
    model.compile("sgd", "mse")
    model.fit(images(), np.ones((B, CLASSES), "f"), verbose=0)


@pytest.mark.usefixtures("layer_by_layer")
@pytest.mark.parametrize("encoder", [PoissonEncoder, pytest.param(LatencyEncoder, marks=pytest.mark.slow)])
def test_a_trained_layer_in_front_of_an_encoder_without_gradient_is_refused_by_one_sentence(encoder: Any) -> None:
    model = around(encoder(T, name="encoder"))
    with pytest.raises(UserError, match=f"front \\(Dense\\).*encoder \\({encoder.__name__}\\) passes no gradient.*freeze"
                       ) as caught:
        fit(model)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="passes no gradient"):
        tf.function(lambda x: model.observe(x, training=True)[0], autograph=False)(images())
    assert np.isfinite(model.predict(images(), verbose=0)).all() and np.isfinite(model(images(), training=True)).all()
    model.get_layer("front").trainable = False  # asked anew, as layers may be frozen at any time
    before = model.get_layer("front").kernel.numpy()
    fit(model)
    assert all(np.isfinite(weight).all() for weight in model.get_weights())
    np.testing.assert_array_equal(model.get_layer("front").kernel, before)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model.call_layers(images(), training=True))
    assert all(np.isfinite(g).all() for g in tape.gradient(loss, [v.value for v in model.trainable_variables]))


@pytest.mark.slow
@pytest.mark.usefixtures("layer_by_layer")
@pytest.mark.parametrize("encoder", [DirectEncoder(T, name="encoder"),
                                     PoissonEncoder(T, straight_through=True, name="encoder")])
def test_it_learns_in_front_of_an_encoder_with_gradient(encoder: Any) -> None:
    model = around(encoder)
    before = model.get_layer("front").kernel.numpy()
    fit(model)
    assert np.abs(model.get_layer("front").kernel.numpy() - before).max() > 0


def test_an_encoder_of_ones_own_that_passes_a_gradient_is_not_refused() -> None:
    class Through(PoissonEncoder):
        def with_gradient(self, train: tf.Tensor, inputs: tf.Tensor) -> tf.Tensor:
            return train + inputs - tf.stop_gradient(inputs)

    assert PoissonEncoder(T).refuses_gradient and not Through(T).refuses_gradient
    assert not SpikeInput(T).refuses_gradient
    around(Through(T, name="encoder")).plan.refuse_trained_front()


# --- A model within another -----------------------------------------------------------------------------------------


def within(encoder: keras.layers.Layer, front: keras.layers.Layer) -> keras.Model:
    """A spiking model behind a layer, in a plain Keras model."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((N,))
    x = LIF(0.9, 0.3)(dense()(encoder(inputs)))
    inner = SpikingModel(inputs, Readout(0.9)(dense(CLASSES)(x)), name="inner")
    image = keras.Input((N,))
    model = keras.Model(image, inner(front(image)))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


def test_a_trained_layer_in_front_of_a_nested_model_learns_where_the_encoder_passes_a_gradient() -> None:
    front = keras.layers.Dense(N, name="front")
    model, x = within(DirectEncoder(T), front), images()
    inner = model.get_layer("inner")
    weights = [front.kernel, inner.trainable_variables[0]]
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(inner.call_layers(front(x), training=True) - 1.0))
    wanted = [w.numpy() - 0.1 * g.numpy() for w, g in zip(weights, tape.gradient(loss, [w.value for w in weights]))]
    before = front.kernel.numpy()
    with pytest.warns(UserWarning, match="inner is trained layer by layer.*in front of it in another model"):
        model.fit(x, np.ones((B, CLASSES), "f"), verbose=0)
    assert np.abs(front.kernel.numpy() - before).max() > 1e-4
    for weight, value in zip(weights, wanted):
        np.testing.assert_allclose(weight, value, rtol=1e-4, atol=1e-6)


def test_where_the_encoder_passes_none_the_cause_of_the_nan_is_said() -> None:
    model = within(PoissonEncoder(T), keras.layers.Dense(N, name="front"))
    with pytest.warns(UserWarning, match=r"inner passes no gradient.*\(PoissonEncoder\).*becomes NaN. Freeze it"):
        model.fit(images(), np.ones((B, CLASSES), "f"), verbose=0)
    assert np.isnan(model.get_layer("front").kernel).any()


def test_run_eagerly_the_way_out_is_said() -> None:
    model = within(DirectEncoder(T), keras.layers.Dense(N, name="front", trainable=False))
    model.run_eagerly = True
    with pytest.raises(UserError, match="behind layers with weights, compile that one with run_eagerly=False"):
        model.fit(images(), np.ones((B, CLASSES), "f"), verbose=0)


@pytest.mark.parametrize("front", [lambda: keras.layers.Rescaling(0.5),
                                   lambda: keras.layers.GaussianNoise(0.1)])  # whose seed is a variable
@pytest.mark.parametrize("encoder", [PoissonEncoder(T), DirectEncoder(T)])
def test_layers_without_weights_in_front_of_a_nested_model_keep_the_fast_path_and_say_nothing(
        front: Callable[[], Any], encoder: Any) -> None:
    model = within(encoder, front())
    inner = model.get_layer("inner")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="inner ")
        model.fit(images(), np.ones((B, CLASSES), "f"), verbose=0)
    assert inner.engine is not None and all(np.isfinite(weight).all() for weight in inner.get_weights())
    inner.compile("sgd", "mse")  # and is trained by itself as it ever was
    inner.fit(images(), np.ones((B, CLASSES), "f"), verbose=0)
