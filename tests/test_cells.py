"""Cells on the Keras RNN protocol: the readable second way to the window layers."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfspike import LIF, LeakAware, LeakyIntegratorCell, LIFCell, PoolingIF, PoolingIFCell, Readout

T, B, N = 12, 3, 20
PAIRS = {**{f"lif_{leak}": (LIFCell(N, leak), LIF(leak)) for leak in (0.5, 0.9, 0.99, 1.0)},
         "lif_low": (LIFCell(N, 0.9, 0.6), LIF(0.9, 0.6)), "pooling": (PoolingIFCell(N), PoolingIF())}


def currents(seed: int = 0, shape: tuple[int, ...] = (T, B, N)) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.3, 0.5, shape).astype("f")


def loop(cell: Any, train: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
    states, outputs = cell.get_initial_state(batch_size=train.shape[1]), []
    for t in range(train.shape[0]):
        output, states = cell(train[t], states)
        outputs.append(output)
    return tf.stack(outputs), states


@pytest.mark.parametrize(("cell", "layer"), PAIRS.values(), ids=PAIRS.keys())
def test_cell_in_a_loop_is_the_window_layer(cell: Any, layer: Any) -> None:
    train = tf.constant(currents())
    outputs, states = loop(cell, train)
    spikes, state = layer(train, return_state=True)
    assert 0.02 < spikes.numpy().mean() < 0.9
    np.testing.assert_array_equal(outputs, spikes)
    np.testing.assert_array_equal(states[0], state.membrane)


@pytest.mark.parametrize(("leak", "threshold"), [(0.5, 1.0), (0.9, 1.0), (0.99, 1.0), (1.0, 1.0), (0.9, 0.6)])
@pytest.mark.parametrize("unroll", [False, True])
def test_keras_rnn_and_leak_aware_are_the_gradient_event(leak: float, threshold: float, unroll: bool) -> None:
    train = currents().swapaxes(0, 1)
    weight = tf.constant(np.random.default_rng(3).normal(0, 0.5, (N, N)).astype("f"))
    g = np.random.default_rng(4).normal(size=(B, T, N)).astype("f")
    rnn = keras.layers.RNN(LIFCell(N, leak, threshold), return_sequences=True, unroll=unroll)
    aware, window = LeakAware(leak, threshold), LIF(leak, threshold)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(weight)
        drive = tf.constant(train) + 0.3 * tf.tanh(tf.constant(train) @ weight)
        by_steps = aware(rnn(drive))
        by_window = tf.transpose(window(tf.transpose(drive, (1, 0, 2))), (1, 0, 2))
    assert 0.05 < by_window.numpy().mean() < 0.9
    np.testing.assert_array_equal(by_steps, by_window)
    wanted = tape.gradient(by_window, weight, output_gradients=tf.constant(g)).numpy()
    got = tape.gradient(by_steps, weight, output_gradients=tf.constant(g)).numpy()
    assert np.abs(got - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_without_leak_aware_the_gradient_is_another_one() -> None:
    train = tf.constant(currents().swapaxes(0, 1))
    rnn = keras.layers.RNN(LIFCell(N, 0.5), return_sequences=True)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(train)
        bare = rnn(train)
        aware = LeakAware(0.5)(bare)
    bare, aware = tape.gradient(bare, train).numpy(), tape.gradient(aware, train).numpy()
    assert np.abs(bare - aware).max() > 0.1
    assert (np.sign(bare) == np.sign(aware)).all()  # .5 is above 1/e: the slope stays positive


def test_lif_trace_by_hand() -> None:
    # leak .9, threshold .8:  I  .5  .4   .6   -.2   .5   .3
    #                         u  .5  .85  .6   .34  .806  .3
    outputs, states = loop(LIFCell(1, 0.9, 0.8), tf.reshape(tf.constant([0.5, 0.4, 0.6, -0.2, 0.5, 0.3]), (6, 1, 1)))
    np.testing.assert_array_equal(outputs.numpy().ravel(), [0, 1, 0, 0, 1, 0])
    assert states[0].numpy().item() == pytest.approx(0.27)


def test_lif_does_not_fire_at_its_threshold() -> None:
    spikes, states = LIFCell(1, 0.5)(tf.constant([[1.0]]), [tf.zeros((1, 1))])
    assert (spikes.numpy().item(), states[0].numpy().item()) == (0.0, 0.5)


def test_pooling_trace_by_hand() -> None:
    outputs, states = loop(PoolingIFCell(1), tf.reshape(tf.constant([0.25, 0.5, 0.25, 0.5, 0.5, 0.25]), (6, 1, 1)))
    # u = .25, .75 (not above), 1.0 fires and loses .25, .5, 1.0 fires, .25: nothing leaks
    np.testing.assert_array_equal(outputs.numpy().ravel(), [0, 0, 1, 0, 1, 0])
    assert states[0].numpy().item() == 0.25


def test_pooling_cell_has_no_threshold_in_its_gradient() -> None:
    current = tf.constant([[1.0]])
    with tf.GradientTape() as tape:
        tape.watch(current)
        spikes, _ = PoolingIFCell(1)(current, [tf.zeros((1, 1))])
    assert (spikes.numpy().item(), tape.gradient(spikes, current).numpy().item()) == (1.0, 1.0)


@pytest.mark.parametrize("leak", [0.5, 0.9, 1.0])
def test_leaky_integrator_in_a_loop_is_the_readout(leak: float) -> None:
    train = tf.constant(currents())
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(train)
        outputs, states = loop(LeakyIntegratorCell(N, leak), train)
        by_cell, by_layer = states[0] / T, Readout(leak)(train)
    np.testing.assert_allclose(by_cell, by_layer, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(outputs[-1], states[0])
    g = tf.constant(currents(6, (B, N)))
    by_cell = tape.gradient(by_cell, train, output_gradients=g)
    np.testing.assert_allclose(by_cell, tape.gradient(by_layer, train, output_gradients=g), rtol=1e-6)
    np.testing.assert_allclose(by_cell, np.broadcast_to(g / T, by_cell.shape), rtol=1e-6)


def test_leaky_integrator_by_hand() -> None:
    # V = .9 (0 + 1) = .9;  .9 (.9 + 1) = 1.71;  .9 (1.71 + 0) = 1.539
    rnn = keras.layers.RNN(LeakyIntegratorCell(1, 0.9), return_sequences=True)
    np.testing.assert_allclose(rnn(tf.constant([[[1.0], [1.0], [0.0]]])).numpy().ravel(), [0.9, 1.71, 1.539], rtol=1e-6)


@pytest.mark.parametrize("cell", [LIFCell((2, 3, 4), 0.9), PoolingIFCell((2, 3, 4)), LeakyIntegratorCell((2, 3, 4))])
def test_units_may_be_the_shape_of_a_feature_map(cell: Any) -> None:
    train = tf.constant(currents(1, (T, B, 2, 3, 4)))
    outputs, states = loop(cell, train)
    assert outputs.shape == train.shape and states[0].shape == (B, 2, 3, 4)
    assert np.abs(outputs.numpy()).sum() > 0


@pytest.mark.parametrize("cell", [LIFCell, PoolingIFCell, LeakyIntegratorCell])
def test_membrane_stays_float32_under_a_mixed_policy(cell: Any) -> None:
    # 2^-9 per step on top of .5: bfloat16 resolves 2^-8 there and would stand still
    kwargs = {} if cell is PoolingIFCell else {"leak": 1.0}
    train = tf.fill((1, T, 1), 2.0**-9)
    made = cell(1, dtype="mixed_bfloat16", **kwargs)
    states = [tf.constant([[0.5]])]
    for t in range(T):
        output, states = made(train[:, t], states)
    assert states[0].dtype == tf.float32
    assert states[0].numpy().item() == 0.5 + T * 2.0**-9
    # Keras rounds the states of a mixed RNN layer to its own dtype: the layer must be float32, whatever the cell.
    train = tf.concat([tf.fill((1, 1, 1), 0.5), train], axis=1)
    _, last = keras.layers.RNN(made, return_state=True, dtype="float32")(train)
    # Keras' RNN hands its last state out in the compute dtype; 0.5 + 12 * 2^-9 is exact there
    assert float(last[0, 0]) == 0.5 + T * 2.0**-9


@pytest.mark.parametrize("cell", [LIFCell, LeakyIntegratorCell])
@pytest.mark.parametrize("leak", [0.0, -0.1, 1.01, float("nan"), "0.9", True])
def test_leak_outside_its_range_is_refused(cell: Any, leak: Any) -> None:
    with pytest.raises(ValueError, match=r"leak.*\(0, 1\].*Received"):
        cell(3, leak=leak)


@pytest.mark.parametrize("cell", [LIFCell, PoolingIFCell])
@pytest.mark.parametrize("threshold", [0.0, -1.0, float("inf"), float("nan"), None])
def test_threshold_that_is_not_positive_is_refused(cell: Any, threshold: Any) -> None:
    with pytest.raises(ValueError, match="threshold.*above 0.*Received"):
        cell(3, threshold=threshold)


@pytest.mark.parametrize("cell", [LIFCell, PoolingIFCell, LeakyIntegratorCell])
@pytest.mark.parametrize("units", [0, -1, (), (2, 0), 2.5, "3", True])
def test_units_that_are_no_shape_are_refused_in_one_sentence(cell: Any, units: Any) -> None:
    with pytest.raises(ValueError, match="units.*Received"):
        cell(units)


@pytest.mark.parametrize("cell", [LIFCell((6, 6, 3)), PoolingIFCell((6, 6, 3)), LeakyIntegratorCell((6, 6, 3))])
def test_keras_rnn_refuses_a_map_in_one_sentence(cell: Any) -> None:
    with pytest.raises(ValueError, match="tfspike.LIF.*units=\\(6, 6, 3\\)"):
        keras.layers.RNN(cell, return_sequences=True)(keras.Input((5, 6, 6, 3)))


@pytest.mark.parametrize("wrap", [
    lambda cell: keras.layers.RNN(cell, return_sequences=True), lambda cell: keras.layers.RNN(cell, go_backwards=True),
    lambda cell: keras.layers.RNN([cell, LIFCell(N)], return_sequences=True),
    lambda cell: keras.layers.RNN(keras.layers.StackedRNNCells([LIFCell(N), cell])),
    lambda cell: keras.layers.Bidirectional(keras.layers.RNN(cell, return_sequences=True)),
    lambda cell: keras.layers.TimeDistributed(keras.layers.RNN(cell))])
@pytest.mark.parametrize("cell", [LIFCell, PoolingIFCell, LeakyIntegratorCell])
def test_layers_of_keras_around_a_cell_are_saved_and_loaded(cell: Any, wrap: Any, tmp_path: Any) -> None:
    layer = wrap(cell(N))
    shape = (2, T, N) if isinstance(layer, keras.layers.TimeDistributed) else (T, N)
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layer(inputs))
    x = np.random.default_rng(0).normal(0.3, 0.5, (B, *shape)).astype("f")
    out = model(x)
    assert out.shape[1:] == model.output.shape[1:] and np.abs(out).max() > 0
    model.save(tmp_path / "rnn.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "rnn.keras")(x), out)
