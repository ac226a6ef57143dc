"""e-prop against NumPy float64, and against "event" where the two are one."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfspike import models
from tfspike.config import Config, resolve
from tfspike.engine import eprop
from tfspike.errors import UserError
from tfspike.models.spiking_model import SpikingModel
from tfspike.neurons.encoders import SpikeInput
from tfspike.neurons.layers import LIF, Readout
from tfspike.neurons.over_time import OverTime
from tfspike.variants import VARIANTS, Conv, Pool, Variant

T, B, SIZES = 7, 3, (6, 8, 5, 3)


def net(leak: float, gradient: str = "eprop", sizes: tuple[int, ...] = SIZES, **options: Any) -> SpikingModel:
    """Dense layers with weights on a grid, so that float32 and float64 fire alike."""
    rng = np.random.default_rng(1)
    x = keras.Input((T, sizes[0]))
    y = SpikeInput(T)(x)
    for units in sizes[1:-1]:
        y = OverTime(keras.layers.Dense(units, use_bias=False))(y)
        y = LIF(leak, 0.75, gradient, "arctan", reset="subtract", name=f"hidden{units}", **options)(y)
    model = SpikingModel(x, Readout(leak)(OverTime(keras.layers.Dense(sizes[-1], use_bias=False))(y)))
    for weight in model.trainable_variables:
        weight.assign(np.rint(rng.normal(0.2, 1.0, weight.shape) * 512) / 512)
    model.configure_engine(3)
    return model


SPIKES = (np.random.default_rng(0).random((B, T, SIZES[0])) < 0.4).astype("f")


def found(model: SpikingModel, inputs: Any = SPIKES, count_gradients: bool = False) -> tuple[np.ndarray, list[np.ndarray]]:
    """`(dL/do, gradient of every weight)`; with count_gradients the loss also asks something of all spikes."""
    with tf.GradientTape() as tape:
        output, counts = model.observe(inputs, training=True, count_gradients=count_gradients)
        loss = tf.reduce_sum(tf.square(output - 1.0))
        if count_gradients:
            loss += sum(tf.reduce_sum(tf.square(count)) for count in counts.values())
    return 2.0 * (output.numpy().astype("f8") - 1.0), [g.numpy() for g in tape.gradient(loss, model.trainable_variables)]


def oracle(weights: list[np.ndarray], leak: float, dL_do: np.ndarray, signals: list[np.ndarray] | None = None,
           asked: bool = False) -> list[np.ndarray]:
    """Eligibilities du_t/dw of every weight and record, from step to step; feedback by the weights behind if not given."""
    weights = [w.astype("f8") for w in weights]
    train, trains, grads = np.moveaxis(SPIKES, 1, 0).astype("f8"), [], []
    potentials = []
    for w in weights[:-1]:
        trains.append(train)
        v, u, s = np.zeros((B, w.shape[1])), [], []
        for x in train:
            u.append(v + x @ w)
            s.append((u[-1] > 0.75).astype("f8"))
            v = leak * (u[-1] - 0.75 * s[-1])
        potentials.append(np.array(u))
        train = np.array(s)
    delta, counts = dL_do / T, [t.sum(0) for t in [*trains[1:], train]]
    for layer, w in enumerate(weights[:-1]):
        if signals is None:
            feedback = np.linalg.multi_dot([*weights[layer + 1:], np.eye(weights[-1].shape[1])])
            signal = delta @ feedback.T
        else:
            signal = signals[layer]
        signal = signal + (2 * counts[layer] if asked else 0.0)
        total, du_dw = np.zeros_like(w), np.zeros((B, *w.shape))
        for x, u in zip(trains[layer], potentials[layer]):
            du_dw = leak * du_dw + x[:, :, None]
            h = 1 / (1 + (np.pi * (u / 0.75 - 1))**2) / 0.75
            total += ((h * signal)[:, None, :] * du_dw).sum(0)
        grads.append(total)
    return [*grads, sum(s.T @ delta for s in train)]


def same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> list[bool]:
    return [bool(np.abs(a - b).max() < 1e-4 * np.abs(b).max()) for a, b in zip(ours, theirs)]


@pytest.mark.parametrize("leak", [0.5, 0.9])
def test_the_gradient_is_the_oracles(leak: float) -> None:
    model = net(leak)
    dL_do, grads = found(model)
    weights = [w.numpy() for w in model.trainable_variables]
    assert all(0.05 < count.numpy().mean() / T < 0.9 for count in model.observe(SPIKES)[1].values())
    assert all(same(grads, oracle(weights, float(np.float32(leak)), dL_do)))
    dL_do, grads = found(model, count_gradients=True)
    wanted = oracle(weights, float(np.float32(leak)), dL_do, asked=True)
    assert all(same(grads, wanted)) and not any(same(grads[:2], oracle(weights, leak, dL_do)))


def test_random_feedback_is_fixed_and_another_for_every_layer_and_seed() -> None:
    model = net(0.9, feedback="random")
    dL_do, grads = found(model)
    plan = model.plan
    signals = [s.numpy() for s in eprop.learning_signals(plan, lambda *_: None, tf.constant(dL_do / T, tf.float32)).values()]
    assert all(same(grads, oracle([w.numpy() for w in model.trainable_variables], float(np.float32(0.9)), dL_do, signals)))
    feedback = [eprop.learning_signals(p, lambda *_: None, tf.eye(3)) for p in (plan, net(0.9, feedback="random").plan)]
    first, second = ([m.numpy() for m in of.values()] for of in feedback)
    assert all(np.array_equal(a, b) for a, b in zip(first, second))
    assert abs(first[0].var() * 8 - 1) < 0.5 and not np.allclose(first[0][:, :5], first[1])
    plan.encoder.layer.seed += 1
    assert not np.allclose(eprop.learning_signals(plan, lambda *_: None, tf.eye(3))[plan.spiking[0]], first[0])


@pytest.mark.parametrize("leak", [0.5, 0.9])
def test_it_is_event_up_to_the_last_hidden_layer_and_no_further(leak: float) -> None:
    one = SIZES[:2] + SIZES[-1:]
    assert same(found(net(leak, sizes=one))[1], found(net(leak, "event", one))[1]) == [True, True]
    assert same(found(net(leak))[1], found(net(leak, "event"))[1]) == [False, True, True]
    assert same(found(net(leak, sizes=one, feedback="random"))[1], found(net(leak, "event", one))[1]) == [False, True]


def operations(graph: Any) -> set[str]:
    """Kinds of operations of a graph and of the functions that it calls."""
    return {node.op for part in (graph.as_graph_def(), ) for node in
            [*part.node, *(node for function in part.library.function for node in function.node_def)]}


def test_nothing_is_kept_from_step_to_step() -> None:
    """A list of tensors is what "event" keeps its steps in."""
    kept = {}
    for gradient in ("eprop", "event"):
        model = net(0.9, gradient)

        @tf.function
        def step(inputs: tf.Tensor, model: Any = model) -> Any:
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(model(inputs, training=True))
            return tape.gradient(loss, model.trainable_variables)

        shape = tf.TensorSpec(SPIKES.shape)
        kept[gradient] = any("TensorList" in kind for kind in operations(step.get_concrete_function(shape).graph))
    assert kept == {"eprop": False, "event": True}


# ---- convolutions, dropout, pooling -------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "small", Variant((Conv(4), Pool(), Conv(3)), hidden=8))


OPTIONS = {"surrogate": "triangular", "reset": "subtract", "encoder": "direct", "kappa": 6.0, "seed": 2}


@pytest.mark.parametrize("pooling", ["average", "neuron"])
def test_convolutions_learn_as_with_event_behind_the_last_neurons(pooling: str) -> None:
    images, grads = np.random.default_rng(0).normal(size=(2, 6, 6, 1)).astype("f"), {}
    for gradient in ("eprop", "event"):
        model = models.create("small", (6, 6, 1), 3, 5, gradient=gradient, pooling=pooling, dropout=0.2, **OPTIONS)
        grads[gradient] = found(model, images)[1]
    assert same(grads["eprop"], grads["event"]) == [False, False, True, True]
    assert all(np.abs(grad).max() > 0 for grad in grads["eprop"])


# ---- what says nothing together ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options, part", [
    ({"surrogate": "leak_aware"}, "takes a surrogate"), ({"reset": "zero"}, "takes reset='subtract'"),
    ({"norm": "tdbn"}, "norm=None"), ({"credit": "time"}, "of gradient='rate'"), ({"learn": ("leak",)}, "takes gradient="),
    ({"gradient": "event", "feedback": "random"}, "of gradient='eprop'"), ({"feedback": "none"}, "'symmetric', 'random'")])
def test_networks_refuse(options: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        models.create("small", (6, 6, 1), 3, 4, **{**OPTIONS, "gradient": "eprop", **options})


def test_a_network_that_has_no_such_gradient_says_why() -> None:
    def made(leaks: tuple[float, float] = (0.9, 0.9), bias: bool = False, reset: str = "subtract") -> SpikingModel:
        x = keras.Input((T, 4))
        y = SpikeInput(T)(x)
        for leak in leaks:
            y = LIF(leak, gradient="eprop", surrogate="arctan", reset=reset)(
                OverTime(keras.layers.Dense(4, use_bias=bias))(y))
        return SpikingModel(x, Readout()(OverTime(keras.layers.Dense(3, use_bias=False))(y)))

    for options, part in (({"leaks": (0.9, 0.5)}, "leak=0.9 and .* has leak=0.5"), ({"bias": True}, "without bias"),
                          ({"reset": "zero"}, "has reset='zero'")):
        with pytest.raises(UserError, match=part):
            assert made(**options).engine


def test_layers_one_by_one_have_no_such_gradient() -> None:
    model = net(0.9)
    with tf.GradientTape() as tape:
        output = model.call_layers(SPIKES)
    np.testing.assert_allclose(output, model(SPIKES), atol=1e-5)
    with pytest.raises(UserError, match="of a whole SpikingModel"):
        tape.gradient(output, model.trainable_variables)


@pytest.mark.parametrize("options, part", [
    ({"gradient": "eprop"}, "or give --method=eprop"), ({"feedback": "random"}, "is of --gradient=eprop"),
    ({"gradient": "eprop", "surrogate": "arctan", "reset": "subtract", "norm": "tdbn"}, "--norm=none")])
def test_flags_refuse(options: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        Config(**options)


def test_the_method_leaves_the_feedback_free() -> None:
    made = resolve({"feedback": "random", "model": "resnet20"}, method="eprop")
    assert (made.gradient, made.feedback, made.surrogate_width) == ("eprop", "random", 1.0)
