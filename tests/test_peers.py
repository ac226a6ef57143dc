"""The table of names of docs/howto.md: neurons of snnTorch and SpikingJelly beside ours, on the same currents."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfspike import LIF, surrogates

TORCH = os.environ.get("TFSPIKE_TORCH_PYTHON") or (sys.executable if importlib.util.find_spec("snntorch") else None)
X = np.linspace(-2.0, 2.0, 41, dtype="f")
random = np.random.default_rng(0)
CURRENTS = random.normal(0.15, 0.4, (50, 4, 300)).astype("f")
UPSTREAM = random.normal(0.0, 1.0, CURRENTS.shape).astype("f")


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("peers")
    np.savez(folder / "in.npz", currents=CURRENTS, upstream=UPSTREAM, x=X)
    worker = Path(__file__).with_name("torch_neurons_worker.py")
    subprocess.run([str(TORCH), str(worker), str(folder / "in.npz"), str(folder / "out.npz")], check=True, timeout=300, env={})
    with np.load(folder / "out.npz") as archive:
        return dict(archive)


@pytest.mark.equipped
@pytest.mark.skipif(TORCH is None, reason="no torch; TFSPIKE_TORCH_PYTHON may name a Python that has it")
@pytest.mark.parametrize(("name", "leak", "reset"), [("zero", 0.9, "zero"), ("no_leak", 1.0, "zero"), ("subtract", 0.9, "subtract")])
def test_the_neurons_of_the_table_fire_alike_and_event_is_backpropagation_with_the_reset_held_constant(
        peers: dict[str, np.ndarray], name: str, leak: float, reset: str) -> None:
    currents = tf.constant(CURRENTS)
    with tf.GradientTape() as tape:
        tape.watch(currents)
        spikes = LIF(leak, surrogate="arctan", reset=reset)(currents)
        loss = tf.reduce_sum(spikes * UPSTREAM)
    gradient = tape.gradient(loss, currents).numpy()
    assert 0.01 < np.mean(spikes) < 0.5
    np.testing.assert_array_equal(spikes, peers[f"spikingjelly_{name}"])
    np.testing.assert_allclose(gradient, peers[f"spikingjelly_{name}_gradient"], rtol=1e-4, atol=1e-4)
    if name == "subtract":  # which is behind the leak there
        assert np.mean(spikes != peers["snntorch_subtract"]) > 0.01
    else:
        np.testing.assert_array_equal(spikes, peers[f"snntorch_{name}"])


@pytest.mark.equipped
@pytest.mark.skipif(TORCH is None, reason="no torch; TFSPIKE_TORCH_PYTHON may name a Python that has it")
@pytest.mark.parametrize(("name", "ours"), [("snntorch_default", "arctan"), ("spikingjelly_atan", "arctan"), ("spikingjelly_default", "sigmoid")])
def test_the_surrogates_of_the_table_are_one_function(peers: dict[str, np.ndarray], name: str, ours: str) -> None:
    np.testing.assert_allclose(surrogates.DERIVATIVES[ours](tf.constant(X)), peers[name], atol=1e-6)
