"""Counts and traces of several steps at once are those of one step after the other."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfspike.neurons.gradients import Neuron

NEURONS = {
    "leak_aware": Neuron.lif(0.9, 1.0), "pooling": Neuron.pooling(), "surrogate": Neuron.lif(0.5, 1.0, "arctan", 2.0),
    "in_time": Neuron.lif(0.9, 1.0, "triangular")._replace(credit="time"),
    "tandem": Neuron.lif(1.0, 1.0, "tandem")._replace(reset="subtract")}


@pytest.mark.parametrize("name", NEURONS)
def test_steps_at_once_are_tallied_as_one_after_the_other(name: str) -> None:
    rule, rng = NEURONS[name].slope_rule, np.random.default_rng(0)
    u = tf.constant(rng.normal(0.5, 1.0, (7, 3, 5)).astype("f"))
    fired = u > 1.0
    start = tf.constant(rng.integers(0, 4, (3, 5)).astype("f"))
    count, trace = start, rule.new_trace(start / 2.0)
    got = rule.tally_all(count, trace, u if rule.needs_potential else None, fired)
    for t in range(len(u)):
        count, trace = rule.tally(count, trace, u[t], fired[t])
    np.testing.assert_array_equal(got[0], count)
    np.testing.assert_allclose(got[1], trace, rtol=1e-6, atol=1e-6)
    assert np.abs(trace).max() > 0
