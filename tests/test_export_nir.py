"""NIR: the graph simulated by others gives the model's spikes, and read back in it is the model."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

import runs
import tfspike
from tfspike import datasets
from tfspike.errors import UserError
from tfspike.export import verify
from tfspike.export.options import ExportOptions
from tfspike.export.standalone import simulate_nir
from tfspike.runs import loading as run_loading

nir = pytest.importorskip("nir")
from tfspike.export import nir_graph, nir_import  # noqa: E402

# A Python that has torch, nir, nirtorch and the libraries; TensorFlow need not be there.
TORCH = os.environ.get("TFSPIKE_TORCH_PYTHON") or (sys.executable if importlib.util.find_spec("torch") else None)
WORKER = os.path.join(os.path.dirname(__file__), "torch_nir_worker.py")


def test_the_command_takes_every_target():
    assert ExportOptions.__dataclass_fields__["target"].metadata["choices"] == tuple(nir_graph.TARGETS)


def network(name="resnet9", leak=0.9, **kwargs):
    shape = (16, 16, 2)
    hidden = 0 if name == "resnet20" else 24
    kwargs = {"timesteps": 6, "hidden": hidden, "kappa": 4.0, "dropout": 0.2, "seed": 3, **kwargs}
    return tfspike.models.create(name, shape, 4, encoder=None, leak=leak, **kwargs)


def exported(folder, name, leak, target="nir", **settings):
    """A run of the same network, exported by the command: (its model, the file)."""
    info = datasets.DatasetInfo("tiny", (16, 16, 2), 4, tuple("abcd"), (1.0, 1.0), (0.0, 0.0), False, 10, 10, True)
    settings = {"hidden": 0 if name == "resnet20" else 24, "timesteps": 6, "kappa": 4.0, "dropout": 0.2, "seed": 3,
                "encoder": "none", "norm": "none", "pooling": "neuron", "surrogate": "leak_aware",
                "surrogate_width": 1.0, **settings}
    run = runs.untrained(folder / "run", info, model=name, leak=leak, **settings)
    report = runs.exported(run, ["nir"], f"--target={target}")["nir"]
    assert report["spikes_differing"] == 0 and report["silent_layers"] == []
    return run_loading.load_run(run)[0], report["path"]


def signed_spikes(model, count=2):
    """Spikes of both signs, `[B, T, H, W, C]`."""
    rng = np.random.default_rng(8)
    shape = (count, *model.inputs[0].shape[1:])
    return ((rng.random(shape) < 0.6) * rng.choice((-1, 1), shape)).astype(np.float32)


def expected(model, spikes):
    want = verify.expected_of(model, np.moveaxis(spikes, 1, 0))
    assert np.all(want["layer_spikes"].sum(0) > 0), "a silent layer proves nothing"
    assert want["closest"] > 1e-7
    return want


@pytest.mark.parametrize(
    "name, leak", [("lenet", 0.99), ("vgg5", 0.5), ("vgg5", 1.0), *(pytest.param(*case, marks=pytest.mark.slow)
                                                                     for case in (("resnet9", 0.9), ("resnet20", 0.99)))])
def test_a_simulator_of_the_standard_gives_the_same_spikes(name, leak, tmp_path):
    model, path = exported(tmp_path, name, leak, kappa=8.0 if leak == 0.5 else 4.0)
    spikes = signed_spikes(model)
    found, want = simulate_nir.run(path, spikes), expected(model, spikes)
    np.testing.assert_array_equal(found["layer_spikes"], want["layer_spikes"])
    np.testing.assert_allclose(found["scores"], want["scores"], atol=1e-6)


@pytest.mark.parametrize("name, leak", [
    ("vgg5", 0.9), ("resnet9", 0.9),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (("vgg5", 1.0), ("resnet20", 0.99)))])
def test_a_graph_read_back_is_the_model(name, leak, tmp_path):
    model, path = exported(tmp_path, name, leak)
    spikes = signed_spikes(model)
    again = nir_import.from_nir(path)
    want, activity = model.observe(spikes)
    found, activity_again = again.observe(spikes)
    np.testing.assert_allclose(found, want, atol=1e-6)
    assert again.spiking_layers == model.spiking_layers
    for name in activity:
        np.testing.assert_array_equal(activity[name], activity_again[name])
    leaks = {call.layer.leak for call in again.plan.spiking if isinstance(call.layer, tfspike.LIF)}
    assert leaks == {leak} and len(again.trainable_variables) == len(model.trainable_variables)


@pytest.mark.parametrize("name, target", [
    ("lenet", "norse"), ("vgg5", "norse"), ("lenet", "snntorch"), ("vgg5", "snntorch"), ("resnet7", "snntorch"),
    ("resnet7", "spikingjelly")])
def test_graphs_for_other_libraries_keep_to_the_types_of_nir(name, target, tmp_path):
    """Which nir itself checks; and read back in they are the model, readout included."""
    model, path = exported(tmp_path, name, 0.9, target)
    graph = nir.read(path)
    assert not any(type(node).__name__ in ("LI", "I") for node in graph.nodes.values())
    flat = next(node for node in graph.nodes.values() if isinstance(node, nir.Flatten))
    assert flat.output_type["output"] == np.prod(flat.input_type["input"])
    assert int(flat.start_dim) == (0 if target == "spikingjelly" else -3)
    spikes = signed_spikes(model)
    np.testing.assert_allclose(nir_import.from_nir(path)(spikes), model(spikes), atol=1e-6)
    found, want = simulate_nir.run(path, spikes), expected(model, spikes)
    np.testing.assert_array_equal(found["layer_spikes"], want["layer_spikes"])


def test_shortcuts_are_refused_for_a_reader_that_would_lose_them(tmp_path):
    with pytest.raises(UserError, match="reader of this `target` does not follow joins, such as 'block1_current'"):
        exported(tmp_path, "resnet7", 0.9, "norse")
    assert not (tmp_path / "run" / "export").exists()


@pytest.mark.parametrize("order", ["leak first", "leak last"])
def test_the_order_of_the_leak_does_not_matter_between_resets(order):
    """A trace by hand: currents .8 .5 0 .9 .4 at leak .5, threshold 1: u = .8 .9 .45 1.125 .4, one spike at step 4."""
    currents = np.array([0.8, 0.5, 0.0, 0.9, 0.4], np.float32).reshape(5, 1, 1)
    if order == "leak first":
        node = nir.LIF(tau=np.array([2e-4]), r=np.array([2.0]), v_leak=np.zeros(1), v_threshold=np.ones(1))
        spikes = simulate_nir.fire(node, currents, dt=1e-4)
    else:
        spikes = tfspike.LIF(leak=0.5)(currents).numpy()
    assert spikes.ravel().tolist() == [0, 0, 0, 1, 0]


def simulate_with(library, graph_path, spikes, folder):
    inputs, outputs = str(folder / "in.npz"), str(folder / "out.npz")
    np.savez(inputs, spikes=spikes)
    done = subprocess.run([TORCH, WORKER, library, graph_path, inputs, outputs], capture_output=True, text=True,
                          env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"})
    if "ModuleNotFoundError" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(outputs) as archive:
        return dict(archive)


def scores_from(currents, leak):
    membrane = 0.0
    for t in range(currents.shape[1]):
        membrane = leak * (membrane + currents[:, t])
    return membrane / currents.shape[1]


@pytest.mark.equipped
@pytest.mark.skipif(TORCH is None, reason="no torch; TFSPIKE_TORCH_PYTHON may name a Python that has it")
# norse 1.1 reads chains only: where two edges join, it returns an inner node
@pytest.mark.parametrize("library, name", [
    ("norse", "vgg5"), ("norse", "lenet"), ("snntorch", "vgg5"), ("snntorch", "resnet9"), ("snntorch", "resnet20"),
    ("spikingjelly", "vgg5"), ("spikingjelly", "resnet9"), ("spikingjelly", "resnet20")])
def test_other_libraries_give_the_same_spikes(library, name, tmp_path):
    model, path = exported(tmp_path, name, 0.9, target=library)
    spikes = signed_spikes(model)
    want = expected(model, spikes)
    found = simulate_with(library, path, spikes, tmp_path)
    np.testing.assert_allclose(scores_from(found["output"], 0.9), want["scores"], atol=1e-6)
    # torch names modules in an order of its own
    assert sorted(map(tuple, found["layer_spikes"].T)) == sorted(map(tuple, want["layer_spikes"].T))


@pytest.mark.equipped
@pytest.mark.skipif(TORCH is None, reason="no torch; TFSPIKE_TORCH_PYTHON may name a Python that has it")
def test_without_the_conventions_spikes_differ(tmp_path):
    """SpikingJelly fires at v >= threshold: pooled quarters meet .75 all the time."""
    model = network("vgg5", 0.9)
    spikes = signed_spikes(model)
    path = str(tmp_path / "model.nir")
    nir_graph.write(model, path, target=nir_graph.Conventions(has_readout=False))
    found = simulate_with("spikingjelly", path, spikes, tmp_path)
    assert found["layer_spikes"].sum() > 1.01 * expected(model, spikes)["layer_spikes"].sum()


def test_foreign_graphs_are_rescaled_to_our_neurons(tmp_path):
    """R = 1 and biases: dt/tau R = .1 moves into the threshold, and into the weights in front of the readout."""
    rng = np.random.default_rng(2)

    def full(value, n=8):
        return np.full(n, value, np.float32)

    graph = nir.NIRGraph(
        {"in": nir.Input({"input": np.array([5])}),
         "fc": nir.Affine(rng.normal(0, 2, (8, 5)).astype("float32"), rng.normal(0, 0.2, 8).astype("float32")),
         "lif": nir.LIF(full(1e-3), full(1.0), full(0.0), full(0.15)),
         "fc2": nir.Linear(rng.normal(size=(3, 8)).astype("float32")),
         "li": nir.LI(full(5e-4, 3), full(1.0, 3), full(0.0, 3)), "out": nir.Output({"output": np.array([3])})},
        [("in", "fc"), ("fc", "lif"), ("lif", "fc2"), ("fc2", "li"), ("li", "out")])
    path = tmp_path / "foreign.nir"
    nir.write(path, graph)
    spikes = (rng.random((4, 20, 5)) < 0.4).astype(np.float32)
    model = nir_import.from_nir(path, timesteps=20)
    want = simulate_nir.run(str(path), spikes)
    found, activity = model.observe(spikes)
    assert want["spikes"].min() > 5
    np.testing.assert_array_equal(np.sum(activity["lif"], 1), want["spikes"])
    np.testing.assert_allclose(found, want["scores"], atol=1e-6)


def by_channel(model, least=0.6):
    """The thresholds of a model with one for every channel, drawn anew."""
    layers = [call.layer for call in model.plan.spiking if call.layer.threshold_factor is not None]
    for i, layer in enumerate(layers):
        layer.threshold_factor.assign(np.random.default_rng(i).uniform(least, 1.4, layer.threshold_factor.shape))
    return [layer.neuron.threshold.numpy() for layer in layers]


@pytest.mark.parametrize("leak", [0.9, 1.0])
def test_thresholds_of_channels_come_back_and_stay(leak, tmp_path):
    model = network("lenet", leak, threshold=0.7, homeostasis=0.1, hidden=6)
    wanted, spikes = by_channel(model), signed_spikes(model)
    again = nir_import.from_nir(nir_graph.to_nir(model))
    (scores, counts), (found, activity) = model.observe(spikes), again.observe(spikes)
    np.testing.assert_allclose(found, scores, atol=1e-6)
    for name in counts:
        assert np.sum(counts[name]) > 0
        np.testing.assert_array_equal(activity[name], counts[name])
    again(spikes, training=True)
    again.save(tmp_path / "again.keras")
    again = keras.models.load_model(tmp_path / "again.keras")
    kept = [call.layer.neuron.threshold for call in again.plan.spiking if isinstance(call.layer, tfspike.LIF)]
    for mine, threshold in zip(kept, wanted, strict=True):
        np.testing.assert_array_equal(mine, threshold)


def thresholds_of_neurons(pooled):
    """Pooling neurons with the thresholds `pooled` `[2, 2, 3]`, flattened into neurons with one each."""
    rng = np.random.default_rng(3)
    zeros = np.zeros((2, 2, 3), np.float32)
    shape = {"input": np.array([2, 2, 3])}
    return nir.NIRGraph(
        {"in": nir.Input({"input": np.array([2, 4, 6])}), "pool": nir.AvgPool2d(*np.array([[2, 2], [2, 2], [0, 0]])),
         "if": nir.IF(zeros + 1e4, pooled.astype("f"), zeros), "flat": nir.Flatten(shape, 0, -1),
         "lif": nir.LIF(*(np.full(12, value, "f") for value in (1e-3, 10.0, 0.0)), rng.uniform(0.4, 2.0, 12).astype("f")),
         "out": nir.Output({"output": np.array([12])})},
        [("in", "pool"), ("pool", "if"), ("if", "flat"), ("flat", "lif"), ("lif", "out")])


def test_thresholds_of_a_foreign_graph_keep_their_channels_and_places(tmp_path):
    nir.write(tmp_path / "own.nir", thresholds_of_neurons(np.broadcast_to([[[0.3]], [[0.55]]], (2, 2, 3))))
    spikes = (np.random.default_rng(1).random((3, 15, 4, 6, 2)) < 0.5).astype(np.float32)
    want = simulate_nir.run(str(tmp_path / "own.nir"), spikes)
    found, activity = nir_import.from_nir(tmp_path / "own.nir", timesteps=15).observe(spikes)
    rates = np.moveaxis(want["output"].mean(axis=1).reshape(3, 2, 2, 3), 1, -1).reshape(3, 12)  # channels last
    np.testing.assert_allclose(found, rates, atol=1e-6)
    assert len(np.unique(rates)) > 5
    np.testing.assert_array_equal(np.sum(activity["if"], (1, 2, 3)), want["layer_spikes"][:, 0])


def test_the_r_of_a_channel_goes_into_its_threshold_and_that_of_a_class_into_its_weights(tmp_path):
    rng = np.random.default_rng(5)

    def each(*values):
        return np.array(values, np.float32).reshape(-1, 1, 1) + np.zeros((3, 2, 4), np.float32)

    graph = nir.NIRGraph(
        {"in": nir.Input({"input": np.array([2, 4, 6])}),
         "conv": nir.Conv2d((4, 6), rng.normal(0.1, 0.3, (3, 2, 3, 3)).astype("f"), 1, 0, 1, 1, np.zeros(3, "f")),
         "lif": nir.LIF(each(1e-3, 1e-3, 1e-3), each(2.0, 5.0, 10.0), each(0, 0, 0), each(0.3, 0.7, 0.7)),
         "flat": nir.Flatten({"input": np.array([3, 2, 4])}, 0, -1), "fc": nir.Linear(rng.normal(0.1, 0.3, (9, 24)).astype("f")),
         "if": nir.IF(rng.uniform(5e3, 2e4, 9).astype("f"), np.full(9, 0.9, "f"), np.zeros(9, "f")),
         "fc2": nir.Affine(rng.normal(size=(4, 9)).astype("f"), rng.normal(size=4).astype("f")),
         "li": nir.LI(np.full(4, 5e-4, "f"), rng.uniform(0.5, 2.0, 4).astype("f"), np.zeros(4, "f")),
         "out": nir.Output({"output": np.array([4])})},
        [("in", "conv"), ("conv", "lif"), ("lif", "flat"), ("flat", "fc"), ("fc", "if"), ("if", "fc2"), ("fc2", "li"),
         ("li", "out")])
    nir.write(tmp_path / "r.nir", graph)
    spikes = (rng.random((3, 20, 4, 6, 2)) < 0.5).astype(np.float32)
    want = simulate_nir.run(str(tmp_path / "r.nir"), spikes)
    found, activity = nir_import.from_nir(tmp_path / "r.nir", timesteps=20).observe(spikes)
    counts = np.array([[np.sum(count[i]) for count in activity.values()] for i in range(3)])
    assert want["layer_spikes"].min() > 20
    np.testing.assert_array_equal(counts, want["layer_spikes"])
    np.testing.assert_allclose(found, want["scores"], atol=1e-5)


def test_thresholds_that_differ_within_a_channel_are_refused():
    with pytest.raises(UserError, match="'if' has a threshold that differs within a channel"):
        nir_import.from_nir(thresholds_of_neurons(np.linspace(0.3, 0.6, 12).reshape(2, 2, 3)), timesteps=5)


def two_into_a_readout(*more):
    """Two Linear nodes into a readout of R = 1."""
    rng = np.random.default_rng(4)
    full = [np.full(3, value, np.float32) for value in (5e-4, 1.0, 0.0)]
    nodes = {"in": nir.Input({"input": np.array([5])}), "a": nir.Linear(rng.normal(size=(3, 5)).astype("float32")),
             "b": nir.Linear(rng.normal(size=(3, 5)).astype("float32")), "li": nir.LI(*full),
             "lif": nir.LIF(np.full(5, 1e-3, np.float32), np.full(5, 10, np.float32), np.zeros(5, np.float32),
                            np.full(5, 1.0, np.float32)), "out": nir.Output({"output": np.array([3])})}
    return nir.NIRGraph(nodes, [("in", "lif"), ("lif", "a"), ("lif", "b"), ("a", "li"), ("b", "li"), ("li", "out"), *more])


def test_all_weights_in_front_of_a_readout_are_rescaled(tmp_path):
    nir.write(tmp_path / "two.nir", two_into_a_readout())
    spikes = (np.random.default_rng(1).random((4, 20, 5)) < 0.4).astype(np.float32)
    want = simulate_nir.run(str(tmp_path / "two.nir"), spikes)
    assert np.abs(want["scores"]).max() > 0.04
    np.testing.assert_allclose(nir_import.from_nir(tmp_path / "two.nir", timesteps=20)(spikes), want["scores"], atol=1e-6)


def test_weights_that_cannot_be_rescaled_are_refused():
    nodes = two_into_a_readout()
    nodes.nodes["lif2"] = nir.LIF(*[np.full(3, value, np.float32) for value in (1e-3, 10.0, 0.0, 1.0)])
    nodes.nodes["c"] = nir.Linear(np.ones((3, 3), np.float32))
    nodes.edges += [("a", "lif2"), ("lif2", "c"), ("c", "li")]
    with pytest.raises(UserError, match="a, b, c are Linear and feed it alone"):
        nir_import.from_nir(nodes, timesteps=3)


@pytest.mark.parametrize("change, message", [
    ({"v_reset": 0.1}, "resets to or rests at another potential"), ({"v_leak": 0.1}, "resets to or rests at"),
    ({"tau": np.array([1e-3, 2e-3])}, "2 values of tau"), ({"r": np.array([10.0, -1.0])}, "R = -1;"), ({"v_threshold": np.array([1.0, -1.0])}, "a threshold of -1;"),
    ({"tau": 1e-5}, "must exceed dt")])
def test_neurons_that_cannot_be_ours_are_refused(change, message):
    parts = {"tau": 1e-3, "r": 10.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0, **change}
    node = nir.LIF(**{key: np.broadcast_to(np.asarray(value, np.float32), 2).copy() for key, value in parts.items()})
    graph = nir.NIRGraph({"in": nir.Input({"input": np.array([2])}), "lif": node,
                          "out": nir.Output({"output": np.array([2])})}, [("in", "lif"), ("lif", "out")])
    with pytest.raises(UserError, match=message):
        nir_import.from_nir(graph, timesteps=3)


@pytest.mark.parametrize("size, dilation", [((2, 3), 1), ((4, 2), 2), ((3, 3), 2)])
def test_same_pads_one_more_behind_where_the_kernel_is_even(size, dilation):
    rng = np.random.default_rng(0)
    kernel, spikes = rng.normal(size=(2, 1, *size)).astype("f"), (rng.random((2, 3, 7, 8, 1)) < 0.5).astype("f")
    conv = nir.Conv2d((7, 8), kernel, 1, "same", dilation, 1, np.zeros(2, "f"))
    shape = np.array([2, 7, 8])
    graph = nir.NIRGraph({"in": nir.Input({"input": np.array([1, 7, 8])}), "conv": conv,
                          "if": nir.IF(*[np.full(shape, value, "f") for value in (1e4, 0.5, 0.0)]),
                          "out": nir.Output({"output": shape})}, [("in", "conv"), ("conv", "if"), ("if", "out")])
    model = nir_import.from_nir(graph, timesteps=3)
    current = keras.ops.conv(spikes.reshape(6, 7, 8, 1), kernel.transpose(2, 3, 1, 0), 1, "same", dilation_rate=dilation)
    wanted = tfspike.LIF(1.0, 0.5)(np.moveaxis(np.reshape(current, (2, 3, 7, 8, 2)), 1, 0)).numpy()
    np.testing.assert_allclose(model(spikes), wanted.mean(0), atol=1e-6)
    found, *_ = simulate_nir.simulate(graph, np.moveaxis(spikes, (1, 4), (0, 2)), 1e-4)
    np.testing.assert_array_equal(np.moveaxis(found, 2, -1), wanted)


class Doubled(keras.layers.Dense):
    def call(self, x):
        return 2.0 * super().call(x)


def one_dense(layer, mode=None):
    inputs = keras.Input((3, 4))
    x = tfspike.OverTime(layer, name="hidden")(tfspike.SpikeInput(3)(inputs))
    if mode:
        layer.quantize(mode)
    return tfspike.SpikingModel(inputs, tfspike.Readout()(tfspike.LIF()(x)))


def test_what_nir_cannot_hold_is_refused(tmp_path):
    x = inputs = keras.Input((4, 6, 6, 2))
    x = tfspike.SpikeInput(4)(x)
    x = tfspike.OverTime(keras.layers.Conv2D(3, 3, 2, "same", use_bias=False))(x)
    x = tfspike.OverTime(keras.layers.Flatten())(tfspike.LIF()(x))
    model = tfspike.SpikingModel(inputs, tfspike.Readout()(tfspike.OverTime(keras.layers.Dense(2))(x)))
    with pytest.raises(UserError, match="NIR pads all sides alike"):
        nir_graph.to_nir(model)
    for mode in ("int8", "int4"):
        with pytest.raises(UserError, match="'hidden', whose weights Keras' quantize has rounded"):
            nir_graph.to_nir(one_dense(keras.layers.Dense(2), mode))
    with pytest.raises(UserError, match="'hidden', a Doubled, which has a `call` of its own"):
        nir_graph.to_nir(one_dense(Doubled(2)))
    with pytest.raises(UserError, match="`target` must be one of nir, norse"):
        nir_graph.to_nir(network(), target="loihi")
    (tmp_path / "text.nir").write_text("no HDF5")
    with pytest.raises(UserError, match="not a readable NIR file"):
        nir_import.from_nir(tmp_path / "text.nir")
