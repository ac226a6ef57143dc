"""Models that are dropped leave nothing behind, and what is compiled is compiled once."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import nets
from tfspike.engine import kernels
from tfspike.neurons import gradients

ROOT = Path(__file__).resolve().parents[1]
T, B = 6, 2


def gradient_graph(model: Any) -> Any:
    """A traced training step of `model` without an optimiser, and the gradient it gives."""
    @tf.function(autograph=False)
    def step(x: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(x, training=True) ** 2)
        return tape.gradient(loss, [variable.value for variable in model.trainable_variables])

    x = tf.constant(nets.spike_inputs(T, B, nets.SPECS["five"].image))
    assert max(np.abs(g).max() for g in step(x)) > 0
    return step.get_concrete_function(x).graph


@pytest.mark.parametrize("gradient", ["event", "rate"])
@pytest.mark.parametrize("kernel", [pytest.param("plain", marks=pytest.mark.slow), "xla"])
def test_a_model_that_is_dropped_takes_its_graphs_with_it(gradient: str, kernel: str) -> None:
    def build_and_drop() -> weakref.ref[Any]:
        model = nets.from_blocks(nets.SPECS["five"], T, gradient)
        nets.set_grid_weights(model, 8.0)
        model.configure_engine(chunk=3, kernel=kernel)  # several chunks: loops, whose bodies are graphs too
        return weakref.ref(gradient_graph(model))

    build_and_drop()  # what the compiled kernels of a shape are first traced in may stay
    graph = build_and_drop()
    gc.collect()
    assert graph() is None


@pytest.mark.slow
def test_a_model_that_is_fitted_and_dropped_takes_its_graphs_with_it() -> None:
    """Those that Keras makes: an optimiser's sum over replicas would hold the graph of a step for good."""
    def graphs_after_fit() -> int:
        model = nets.from_blocks(nets.SPECS["five"], T, "rate")
        model.compile("sgd", "mse")
        model.fit(nets.spike_inputs(T, B, nets.SPECS["five"].image), np.zeros((B, nets.CLASSES)), verbose=0)
        del model
        gc.collect()
        return sum(isinstance(found, tf.Graph) for found in gc.get_objects())

    graphs_after_fit()
    assert graphs_after_fit() == graphs_after_fit()


def test_layer_by_layer_leaves_no_graph_either() -> None:
    def build_and_drop() -> weakref.ref[Any]:
        model = nets.from_blocks(nets.SPECS["five"], T, "event")
        nets.set_grid_weights(model, 8.0)
        step = tf.function(lambda x: tf.gradients(model.call_layers(x, training=True), x)[0], autograph=False)
        return weakref.ref(step.get_concrete_function(tf.zeros((B, T, *nets.SPECS["five"].image))).graph)

    graph = build_and_drop()
    gc.collect()
    assert graph() is None


def test_inference_compiles_for_the_sizes_that_come_back() -> None:
    sizes = kernels.BatchSizes()
    assert [sizes.are_usual(7) for _ in range(4)] == [False, False, True, True]
    in_graph: list[bool] = []
    for size in (32, None):
        tf.function(lambda x: in_graph.append(sizes.are_usual(x.shape[0])),
                    autograph=False).get_concrete_function(tf.TensorSpec([size]))
    assert in_graph == [True, False] and sizes.are_usual(32)
    usual = [size for size in range(100, 300) for _ in range(5) if sizes.are_usual(size)]
    assert len(set(usual)) == sizes.MOST - 2 and sizes.are_usual(7)


@pytest.mark.parametrize("surrogate", ["leak_aware", "arctan"])
def test_spikes_counts_and_membranes_are_the_same_bits_in_every_kernel(surrogate: str) -> None:
    """So inference may take either."""
    neuron = kernels.Neuron.lif(0.99, 0.7, surrogate)
    currents = tf.constant(np.random.default_rng(0).normal(0.2, 0.5, (8, 3, 50, 7)).astype("f"))
    found = {}
    for kernel in ("plain", "xla"):
        state = kernels.NeuronState(*[tf.zeros((3, 50, 7))] * 3)
        for _ in range(3):
            spikes, state, *_ = kernels.fire(currents, state, neuron, None, kernel)
        found[kernel] = spikes, state.membrane, state.count
    assert 0.02 < found["plain"][0].numpy().mean() < 0.9
    for plain, xla in zip(*found.values()):
        np.testing.assert_array_equal(plain, xla)


@pytest.mark.parametrize(("surrogate", "gradient"), [("leak_aware", "event"), ("arctan", "event"), ("arctan", "rate")])
def test_a_search_for_leak_and_threshold_compiles_once(surrogate: str, gradient: str,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled stays for good."""
    made: list[Any] = []
    function = tf.function
    monkeypatch.setattr(tf, "function", lambda *args, **kwargs: made.append(args) or function(*args, **kwargs))
    currents = tf.constant(np.random.default_rng(0).normal(0.2, 0.5, (4, 3, 11)).astype("f"))

    def all_results(neuron: kernels.Neuron, kernel: str) -> list[Any]:
        fired = kernels.fire(currents, gradients.initial_state((3, 11), neuron), neuron, gradient, kernel)
        if gradient == "rate":
            return [fired.spikes, *fired.state]
        known = neuron.slope_rule.slope(*fired.state[1:], 4) if fired.derivatives is None else fired.derivatives
        with tf.GradientTape() as tape:
            tape.watch(currents)
            train = kernels.replay_event(currents, fired.bits, known, tf.ones((3, 11)), neuron, lambda _: None, kernel)
        return [fired.spikes, *fired.state, tape.gradient(train, currents)]

    found = []
    for leak, threshold in ((0.9, 0.5), (0.8, 0.5), (0.7, 0.7)):
        before = len(made)
        neuron = kernels.Neuron(leak, threshold, 2.0, surrogate)  # its gain is a constant of what surrogates give
        found.append(all_results(neuron, "xla"))
        for compiled, plain in zip(found[-1], all_results(neuron, "plain")):
            np.testing.assert_allclose(compiled, plain, rtol=1e-5, atol=1e-6)
        assert (len(made) > before) == (len(found) == 1)
    assert all(np.any(found[0][i] != found[1][i]) for i in (1, -1))


@pytest.mark.slow
@pytest.mark.parametrize("work", ["models", "sizes"])
def test_a_process_that_builds_many_models_or_sees_many_sizes_stays_small(work: str) -> None:
    """A CNN of the same shape leaves 2 to 4 MiB for each model and half a MiB for each size."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.memory", "--work", work, "--nets", "lenet-rate", "--json"],
                          cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads(done.stdout.splitlines()[-1])["lenet-rate"]
    assert record["mb"] / record["count"] < {"models": 10, "sizes": 2}[work], record


@pytest.mark.slow
def test_kernels_are_plain_where_tensorflow_watches_every_operation() -> None:
    """XLA does not know what `enable_check_numerics` adds."""
    code = "import sys; sys.path.insert(0, 'tests')\nimport nets, numpy as np, tensorflow as tf\n" \
           "tf.debugging.enable_check_numerics()\n" \
           "model = nets.from_blocks(nets.SPECS['five'], 6, 'event')\n" \
           "model.configure_engine(kernel='xla')\nmodel.compile('sgd', 'mse')\n" \
           "model.fit(nets.spike_inputs(6, 2, (6, 6, 1)), np.zeros((2, 3)), verbose=0)\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_tensorflow_saves_a_model_that_refuses_gradients_of_its_input(tmp_path: Path) -> None:
    model = nets.from_blocks(nets.SPECS["five"], T, "rate", encoder="poisson")
    nets.set_grid_weights(model, 8.0)
    x = np.random.default_rng(0).uniform(-1, 1, (2, *nets.SPECS["five"].image)).astype("f")
    tf.saved_model.save(model, str(tmp_path))
    served = tf.saved_model.load(str(tmp_path)).signatures["serving_default"](tf.constant(x))
    np.testing.assert_allclose(next(iter(served.values())), model(x), rtol=1e-6)
