"""Random numbers are a function of their key: seed, phase, step, replica and layer, never of history."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tfspike.neurons import noise

KEY = tf.constant([3, 1], tf.int32)


def test_uniform_numbers_are_those_of_their_key_in_0_to_1() -> None:
    one, again, other = (noise.uniform((4096,), key).numpy() for key in (KEY, KEY, KEY + 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(np.corrcoef(one, other)[0, 1]) < 0.1
    assert one.dtype == np.float32 and 0.0 <= one.min() < 0.01 and 0.99 < one.max() < 1.0
    assert one.mean() == pytest.approx(0.5, abs=5 * 12**-0.5 / 64)  # five standard errors
    np.testing.assert_array_equal(one * 2.0**24, np.rint(one * 2.0**24))  # 24 bits: exact, on every device


@pytest.mark.parametrize("compiled", [False, True])
def test_a_graph_and_xla_draw_the_same_numbers(compiled: bool) -> None:
    drawn = tf.function(lambda key: noise.uniform((100,), noise.derive(key, 7)), jit_compile=compiled or None)(KEY)
    np.testing.assert_array_equal(drawn, noise.uniform((100,), noise.derive(KEY, 7)))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("key", "start", "shape"), [
    ((3, 1), 0, (2, 5)), ((-7, 2**31 - 1), 2**31 - 4, (4,)), ((123456789, -2), 40, (3, 2, 1))])
def test_steps_drawn_at_once_are_those_drawn_one_by_one(key: tuple[int, int], start: int, shape: tuple[int, ...],
                                                        compiled: bool) -> None:
    together = tf.function(lambda key, start: noise.uniform_of_steps(shape, key, start, 3), jit_compile=compiled or None)
    drawn = together(tf.constant(key), tf.constant(start))
    wanted = [noise.uniform(shape, noise.derive(tf.constant(key), start + t)) for t in range(3)]
    np.testing.assert_array_equal(drawn, wanted)


def test_only_what_becomes_one_program_draws_steps_at_once() -> None:
    def trace() -> bool:
        return noise.in_one_program()

    assert noise.as_one_program(trace)() and not trace()


def test_folding_is_in_order_and_keeps_keys_apart() -> None:
    keys = {tuple(noise.derive(KEY, a, b).numpy()) for a, b in itertools.product(range(8), repeat=2)}
    assert len(keys) == 64
    np.testing.assert_array_equal(noise.derive(noise.derive(KEY, 1), 2), noise.derive(KEY, 1, tf.constant(2)))
    np.testing.assert_array_equal(noise.derive(KEY), KEY)


def test_folding_numbers_into_a_key_is_that_of_tensorflow() -> None:
    key = tf.constant([3, 4])
    wanted = tf.random.fold_in(tf.random.fold_in(key, 5, alg=noise.ALGORITHM), 6, alg=noise.ALGORITHM)
    np.testing.assert_array_equal(noise.derive(key, 5, tf.constant(6, tf.int64)), wanted)


def test_training_keys_follow_the_step_and_inference_keys_the_seed() -> None:
    layer = noise.NoisyLayer(seed=5)
    first, second = layer.training_key().numpy(), layer.training_key().numpy()
    assert layer.step.value.numpy() == 2 and (first != second).any()
    layer.step.assign(0)
    np.testing.assert_array_equal(layer.training_key(), first)
    np.testing.assert_array_equal(layer.inference_key(1), layer.inference_key(tf.constant(1)))
    assert layer.step.value.numpy() == 1, "inference leaves no trace"
    keys = [first, second, *(layer.inference_key(seed).numpy() for seed in range(2)),
            noise.NoisyLayer(seed=6).training_key().numpy()]
    assert len({tuple(key) for key in keys}) == 5


def test_keys_are_those_of_every_release() -> None:
    """A run goes on, and an evaluation repeats, with the numbers of the release that began it."""
    layer = noise.NoisyLayer(seed=5)
    assert layer.training_key().numpy().tolist() == [-1533435876, 0]
    assert layer.training_key().numpy().tolist() == [-109038190, 0]
    assert layer.inference_key(3).numpy().tolist() == [-1337012930, 3]


def test_the_step_is_a_weight_and_the_seed_a_setting() -> None:
    layer = noise.NoisyLayer(seed=5)
    assert [v.name for v in layer.non_trainable_variables] == ["step"] and not layer.trainable_variables
    assert noise.NoisyLayer.from_config(layer.get_config()).seed == 5
    assert noise.replica_id() == 0
