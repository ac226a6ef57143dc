"""Variables as arrays by name and back: all or nothing."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from tfspike.errors import UserError
from tfspike.models import variables
from tfspike.neurons.normalisation import ThresholdNorm


def dense(seed: int) -> keras.Model:
    """Two layers of one name in front of each other, and a normalisation."""
    image = keras.Input((3,))
    x = keras.layers.Dense(3, use_bias=False, kernel_initializer=keras.initializers.RandomNormal(seed=seed), name="a")(image)
    x = ThresholdNorm(name="norm")(x)
    return keras.Model(image, keras.layers.Dense(2, name="b")(x))


def test_arrays_give_another_model_the_same_weights() -> None:
    one, other = dense(0), dense(1)
    assert (one.weights[0].numpy() != other.weights[0].numpy()).any()
    arrays = variables.collect(one.variables)
    assert len(arrays) == len(one.variables) and all(name.split("/")[0] in ("a", "norm", "b") for name in arrays)
    variables.restore(other.variables, arrays, "this file")
    for ours, theirs in zip(one.variables, other.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_equal_paths_are_told_apart_by_a_number() -> None:
    same = [keras.Variable(np.full(2, i, "f"), name="v") for i in range(3)]
    assert [name for name, _ in variables.named(same)] == ["v", "v#1", "v#2"]
    np.testing.assert_array_equal(variables.collect(same)["v#2"], [2, 2])


def test_what_was_learnt_has_running_statistics_and_no_counters() -> None:
    model = dense(0)
    names = [v.name for v in variables.learnt(model)]
    assert names == ["kernel", "gamma", "beta", "kernel", "bias", "moving_mean", "moving_variance"]


@pytest.mark.parametrize(("change", "message"), [
    (lambda arrays: arrays.pop("b/bias"), "this file has no b/bias"),
    (lambda arrays: arrays.update(more=np.zeros(1)), "this file has more, which this network has not"),
    (lambda arrays: arrays.update({"b/bias": np.zeros(3, "f")}), r"b/bias is float32 of shape \(3,\).*float32 of shape \(2,\)"),
    (lambda arrays: arrays.update({"b/bias": np.zeros(2)}), "b/bias is float64"),
])
def test_arrays_of_another_network_change_nothing(change, message: str) -> None:
    model, arrays = dense(0), variables.collect(dense(1).variables)
    change(arrays)
    before = variables.collect(model.variables)
    with pytest.raises(UserError, match=message):
        variables.restore(model.variables, arrays, "this file")
    after = variables.collect(model.variables)
    assert all(np.array_equal(before[name], after[name]) for name in before)
