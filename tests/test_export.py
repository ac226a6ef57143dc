"""Exports, made by the command as users make them: each file runs in a process without tfspike, as the model does."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import runs
import tfspike
from tfspike import datasets, export, training
from tfspike.errors import UserError
from tfspike.export import formats, verify
from tfspike.export.saved_model import Served
from tfspike.runs import loading as run_loading
from tfspike.variants import VARIANTS

SHAPE, T = (12, 12, 2), 6
HAS_ONNX = all(importlib.util.find_spec(name) for name in ("tf2onnx", "onnx", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="no tf2onnx, onnx or onnxruntime: the extra onnx has them")
FORMATS = [form for form in export.FORMATS if form != "onnx" or HAS_ONNX]


def info_for(event_based=False, shape=SHAPE):
    channels = shape[2]
    scale, offset = ((1.0,) * channels, (0.0,) * channels) if event_based else (
        (1 / 128, 1 / 200, 1 / 150)[:channels], (-1.0, -0.3, -0.6)[:channels])
    return datasets.DatasetInfo("tiny", shape, 3, ("left", "right", "up"), scale, offset, False, 10, 10, event_based)


def run_of(folder, shape=SHAPE, **settings):
    """The folder of a run of the network below."""
    settings = {"model": "resnet7", "timesteps": T, "hidden": 16, "leak": 0.9, "kappa": 4.0, "dropout": 0.2, "seed": 1,
                **settings}
    return runs.untrained(folder, info_for(settings.get("encoder") == "none", shape), **settings)


def network(encoder="poisson", **kwargs):
    kwargs = {"timesteps": T, "hidden": 16, "leak": 0.9, "kappa": 4.0, "dropout": 0.2, "seed": 1, **kwargs}
    return tfspike.models.create("resnet7", SHAPE, 3, encoder=encoder, **kwargs)


def images(count=3):
    return np.random.default_rng(5).integers(0, 256, (count, *SHAPE)).astype(np.float32)


def recordings(count=3, steps=T):
    rng = np.random.default_rng(6)
    return (rng.random((count, steps, *SHAPE)) < 0.4).astype(np.float32) * rng.choice((-1.0, 1.0), (count, 1, *SHAPE))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run of a Poisson network that was exported in every format by the command, in a process of its own:
    (model, report)."""
    run = run_of(tmp_path_factory.mktemp("export") / "run")
    done = subprocess.run([sys.executable, "-m", "tfspike.export", f"--workdir={run}", f"--format={','.join(FORMATS)}"],
                          capture_output=True, text=True, cwd=runs.ROOT, env={**os.environ, "PYTHONPATH": str(runs.ROOT)})
    assert done.returncode == 0, done.stderr[-2000:]
    return run_loading.load_run(run)[0], runs.reports(done.stdout)


@pytest.fixture(scope="module")
def endpoints(saved):
    return tf.saved_model.load(saved[1]["saved_model"]["path"]).signatures


def total(activity):
    return sum(tf.reduce_sum(count, tuple(range(1, count.shape.rank))).numpy() for count in activity.values())


@pytest.mark.parametrize("form, needed", [
    ("saved_model", {"serving_default", "stochastic", "from_spikes", "stream", "every_step"}),
    ("litert", {"from_spikes", "stream"}), ("nir", {"from_spikes"}), ("keras", {"load_model"}),
    pytest.param("onnx", {"from_spikes"}, marks=needs_onnx)])
def test_every_format_was_run_by_itself_and_agrees(saved, form, needed):
    report = saved[1][form]
    assert set(report["endpoints"]) == needed
    assert report["max_error"] < 1e-5
    assert os.path.exists(report["path"]) and report["bytes"] > 10_000
    assert os.path.dirname(report["path"]).endswith(os.path.join("run", "export"))
    if form != "keras":
        assert report["silent_layers"] == [] and report["spikes"] > 1000 and report["spikes_differing"] == 0


def test_serving_default_takes_raw_images_in_any_number_and_repeats(saved, endpoints):
    model, info = saved[0], info_for()
    for count in (1, 3, 5):
        raw = images(count)
        found = endpoints["serving_default"](images=tf.constant(raw))
        again = endpoints["serving_default"](images=tf.constant(raw))
        want, activity = model.observe(info.normalise(raw), seed=0)
        np.testing.assert_allclose(found["scores"], want, atol=1e-6)
        np.testing.assert_array_equal(found["scores"], again["scores"])
        np.testing.assert_array_equal(found["label"], np.argmax(want, -1))
        np.testing.assert_array_equal(found["spikes"], total(activity))


def test_stochastic_draws_by_its_seed(saved, endpoints):
    raw = images()
    one, two = (endpoints["stochastic"](images=tf.constant(raw), seed=tf.constant(seed)) for seed in (1, 2))
    assert np.abs(one["scores"] - two["scores"]).max() > 1e-3
    np.testing.assert_allclose(two["scores"], saved[0](info_for().normalise(raw), seed=2), atol=1e-6)


def test_every_step_ends_in_the_prediction(endpoints):
    raw = tf.constant(images())
    steps = endpoints["every_step"](images=raw)["scores"]
    assert steps.shape == (3, T, 3)
    np.testing.assert_allclose(steps[:, -1], endpoints["serving_default"](images=raw)["scores"], atol=1e-6)
    assert np.abs(steps[:, 2] - steps[:, -1]).max() > 1e-4


@pytest.mark.parametrize("pieces", [(6,), (1, 5), (2, 1, 3), (1,) * 6, (6, 6)])
def test_a_stream_in_pieces_is_the_recording_at_once(endpoints, pieces):
    spikes = tf.constant(recordings(2, sum(pieces)), tf.float32)
    state, t, out = endpoints["initial_state"](batch=tf.constant(2)), 0, {}
    names = list(state)
    for length in pieces:
        out = endpoints["stream"](spikes=spikes[:, t:t + length], **state)
        state, t = {name: out[name] for name in names}, t + length
    at_once = endpoints["from_spikes"](spikes=spikes)
    np.testing.assert_allclose(out["scores"], at_once["scores"], atol=1e-6)
    np.testing.assert_array_equal(out["layer_spikes"], at_once["layer_spikes"])
    assert np.all(at_once["layer_spikes"].numpy().sum(0) > 0) and int(out["steps"]) == sum(pieces)


def test_the_saved_model_holds_no_compiled_kernel_and_says_what_it_is(saved):
    folder = saved[1]["saved_model"]["path"]
    with open(os.path.join(folder, "saved_model.pb"), "rb") as file:
        content = file.read()
    assert b"StatelessRandomUniform" in content  # the operations are to be found by name
    assert b"_XlaMustCompile\x12\x02(\x01" not in content
    with open(os.path.join(folder, "assets.extra", "tfspike.json"), encoding="utf-8") as file:
        assert '"up"' in file.read()


def test_litert_has_built_in_operations_only(saved):
    with open(saved[1]["litert"]["path"], "rb") as file:
        assert b"Flex" not in file.read()


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["direct", pytest.param("latency", marks=pytest.mark.slow)])
def test_litert_takes_images_where_encoding_is_no_draw(encoder, tmp_path):
    report = runs.exported(run_of(tmp_path / "run", encoder=encoder), ["litert"])["litert"]
    assert report["endpoints"] == ["from_spikes", "serving_default", "stream"]
    assert report["spikes_differing"] == 0 and report["silent_layers"] == []


@pytest.mark.slow
def test_smaller_litert_weights_are_measured(saved, tmp_path):
    run = os.path.dirname(os.path.dirname(saved[1]["litert"]["path"]))
    half = runs.exported(run, ["litert"], "--weights=float16", f"--out={tmp_path}")["litert"]
    assert half["bytes"] < 0.7 * saved[1]["litert"]["bytes"]
    assert 0 <= half["label_agreement"] <= 1 and half["max_error"] < 0.5


@pytest.mark.slow
def test_event_networks_are_served_from_spikes(tmp_path):
    report = runs.exported(run_of(tmp_path / "run", encoder="none"), ["saved_model", "litert"])
    assert report["saved_model"]["endpoints"] == ["from_spikes", "serving_default", "stream", "every_step"]
    assert report["litert"]["spikes_differing"] == 0


@pytest.mark.slow
def test_a_mixed_precision_network_keeps_its_precision_or_becomes_float32(tmp_path):
    run = run_of(tmp_path / "run", encoder="direct", precision="mixed_bfloat16")
    report = runs.exported(run, ["saved_model", "nir"])
    assert all(found["max_error"] < 1e-2 for found in report.values())


@needs_onnx
@pytest.mark.parametrize("encoder, endpoint", [
    pytest.param(*case, marks=pytest.mark.slow) for case in (("direct", "serving_default"), ("none", "from_spikes"))])
def test_onnx_takes_what_the_network_takes(encoder, endpoint, tmp_path):
    import onnxruntime

    run = run_of(tmp_path / "run", (13, 10, 2), model="lenet", encoder=encoder)
    report = runs.exported(run, ["onnx"])["onnx"]
    assert report["endpoints"] == [endpoint] and report["spikes_differing"] == 0 and report["spikes"] > 500
    model, info = run_loading.load_run(run)[0], run_loading.data_info(run)
    session = onnxruntime.InferenceSession(report["path"], providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    for count in (1, 4):  # any batch
        rng = np.random.default_rng(count)
        x = rng.integers(0, 256, (count, 13, 10, 2)) if encoder == "direct" else rng.random((count, T, 13, 10, 2)) < 0.4
        x = x.astype(np.float32)
        found = dict(zip([output.name for output in session.get_outputs()], session.run(None, {given.name: x})))
        want, activity = model.observe(info.normalise(x))
        np.testing.assert_allclose(found["scores"], want, atol=1e-6)
        np.testing.assert_array_equal(found["label"], np.argmax(want, -1))
        np.testing.assert_array_equal(found["layer_spikes"].sum(-1), total(activity))


@needs_onnx
def test_onnx_from_spikes_takes_windows_of_any_length(saved):
    import onnxruntime

    session = onnxruntime.InferenceSession(saved[1]["onnx"]["path"], providers=["CPUExecutionProvider"])
    at_once = tf.saved_model.load(saved[1]["saved_model"]["path"]).signatures["from_spikes"]
    for steps in (1, T, T + 3):
        spikes = recordings(2, steps).astype(np.float32)
        np.testing.assert_allclose(session.run(["scores"], {"spikes": spikes})[0],
                                   at_once(spikes=tf.constant(spikes))["scores"], atol=1e-6)


# Every kind of network, encoder, pooling, normalisation and picture that has a run; shortcuts, odd and oblong maps.
KINDS = {
    "odd": {"model": "lenet", "shape": (15, 11, 2)},
    "no hidden layer": {"model": "vgg5", "shape": (17, 12, 1), "hidden": 0},
    "one step": {"model": "lenet", "timesteps": 1, "kappa": 40.0, "hidden": 0},
    "averages": {"model": "vgg7", "shape": (21, 17, 1), "pooling": "average", "encoder": "latency", "kappa": 12.0},
    "shortcuts": {"model": "resnet9", "shape": (19, 21, 2), "encoder": "none"},
    "normalised": {"model": "resnet7", "shape": (16, 13, 3), "norm": "tdbn", "surrogate": "arctan", "encoder": "direct",
                   "kappa": 8.0},
    "without leak": {"model": "lenet", "leak": 1.0, "encoder": "direct"}}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", [
    "nir", "keras", *(pytest.param(form, marks=[pytest.mark.slow, *([needs_onnx] if form == "onnx" else [])])
                      for form in ("saved_model", "litert", "onnx"))])
def test_every_kind_of_run_exports(kind, form, tmp_path):
    found = runs.exported(run_of(tmp_path / "run", **KINDS[kind]), [form])[form]
    assert found["max_error"] < 1e-5 and os.path.exists(found["path"])
    assert form == "keras" or found["spikes_differing"] == 0 and found["silent_layers"] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", tfspike.models.available())
def test_networks_of_the_paper_export_in_every_format(name, tmp_path):
    size = 32 if name in ("vgg11", "vgg16") else 28
    kappa = 14.0 if name == "vgg11" else 8.0  # its eleventh layer would be silent
    run = run_of(tmp_path / "run", (size, size + 1, 2), model=name, hidden=VARIANTS[name].hidden and 32, kappa=kappa)
    report = runs.exported(run, FORMATS)
    for form in set(FORMATS) - {"keras"}:
        found = report[form]
        assert found["silent_layers"] == []
        # another order of summation may decide about a potential that rounding cannot tell from its threshold
        assert found["spikes_differing"] <= (found["closest_to_threshold"] < 1e-6), found


@pytest.mark.parametrize("encoder", ["direct", "poisson", "latency", None])
def test_records_that_are_not_finite_have_scores_that_are_nan(encoder):
    served = Served(network(encoder), info_for(encoder is None))
    data = recordings() if encoder is None else images()
    data[1, 2, 3, 0] = np.nan if encoder else np.inf
    data = tf.constant(data)
    scores = [served._every_step(data)["scores"][:, 0], served._every_step(data)["scores"][:, -1],
              (served._from_spikes(data) if encoder is None else served._from_images(data, 0))["scores"]]
    if encoder is None:  # and stay so in a stream
        state = served.window.initial_state(3)
        for piece in (data[:, :3], data[:, 3:]):
            state = served._stream(piece, **state)
            scores.append(state["scores"])
            state = {name: state[name] for name in served.window.state_specs()}
    for found in scores:
        assert np.isnan(found).all(-1).tolist() == [False, True, False] and np.isfinite(found[0]).all()


def test_a_run_on_the_event_driven_path_is_exported_as_any_other(tmp_path):
    pytest.importorskip("numba")
    run = run_of(tmp_path / "run", kernel="events")
    assert run_loading.load_run(run)[0].engine.refusal_of_events(training=False) is None
    assert runs.exported(run, ["keras"])["keras"]["max_error"] == 0.0


@pytest.mark.parametrize(("form", "settings", "why"), [
    ("nir", {"reset": "subtract"}, "NIR begin at 0 and reset to 0"), ("nir", {"running_start": True}, "conv1_1_lif' moves"),
    ("litert", {"running_start": True}, "begin where earlier windows ended"), ("onnx", {}, "need the package no_such")])
def test_what_no_training_could_export_is_refused_before_it(form, settings, why, tmp_path, monkeypatch):
    monkeypatch.setattr("tfspike.export.onnx_graph._PACKAGES", ("no_such",))
    config = runs.tiny(tmp_path / "runs" / "run", export=("keras", form), surrogate="arctan", **settings)
    with pytest.raises(UserError, match=why):
        training.run(config, say=lambda line: None)
    assert not (tmp_path / "runs").exists()


def test_a_twin_is_saved_as_keras_and_nothing_else(tmp_path):
    run = runs.untrained(tmp_path / "run", info_for(), model="lenet", hidden=0, neuron="relu")
    assert runs.exported(run, ["keras"])["keras"]["max_error"] == 0.0
    for form in set(export.FORMATS) - {"keras"}:
        with pytest.raises(UserError, match=f"saved as keras alone.*formats={form}"):
            runs.exported(run, [form], f"--out={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


# --- what must be noticed -------------------------------------------------------------------------------------------


def test_a_file_that_computes_something_else_is_refused_and_leaves_the_old_one(tmp_path, monkeypatch):
    model = network(None)
    export.save(model, info_for(True), ["nir"], tmp_path, recordings())
    before = (tmp_path / "model.nir").read_bytes()
    from tfspike.export import nir_graph
    to_nir = nir_graph.to_nir

    def wrong(model, target):
        weights = model.get_weights()
        model.set_weights([1.05 * weight if weight.ndim else weight for weight in weights])
        graph = to_nir(model, target)
        model.set_weights(weights)
        return graph

    monkeypatch.setattr(nir_graph, "to_nir", wrong)
    with pytest.raises(UserError, match="of the nir file fires"):
        export.save(model, info_for(True), ["nir"], tmp_path, recordings())
    assert (tmp_path / "model.nir").read_bytes() == before and os.listdir(tmp_path) == ["model.nir"]


def test_what_a_killed_export_left_is_cleared_away_and_a_folder_replaced(tmp_path):
    (tmp_path / ".partial-model").write_bytes(b"half")
    (tmp_path / ".old-model").mkdir()

    def write(text):
        def writer(path):
            os.mkdir(path)
            with open(os.path.join(path, "weights"), "w", encoding="utf-8") as file:
                file.write(text)
        return writer

    for text in ("one", "three"):
        report = formats._place(str(tmp_path / "model"), write(text), lambda path: {"checked": True})
        assert report == {"path": str(tmp_path / "model"), "bytes": len(text), "checked": True}
    assert os.listdir(tmp_path) == ["model"] and (tmp_path / "model" / "weights").read_text() == "three"


def test_a_folder_moved_aside_by_a_killed_export_comes_back(tmp_path):
    (tmp_path / ".old-model.txt").mkdir()
    (tmp_path / ".old-model.txt" / "weights").write_text("precious")

    def fails(path):
        raise UserError("no")

    with pytest.raises(UserError):
        formats._place(str(tmp_path / "model.txt"), fails, lambda path: {})
    assert (tmp_path / "model.txt" / "weights").read_text() == "precious"


def test_mistakes_are_one_sentence(tmp_path):
    model = network(None)
    with pytest.raises(UserError, match="takes saved_model, litert, nir, keras, onnx. Received: 'torch'"):
        export.save(model, info_for(True), ["torch"], tmp_path)
    with pytest.raises(UserError, match="`info` must have scale, .*datasets.describe.*Received: NoneType"):
        export.save(model, None, ["nir"], tmp_path)
    with pytest.raises(UserError, match=r"must be of shape \[B, 6, 12, 12, 2\]"):
        export.save(model, info_for(True), ["nir"], tmp_path, np.zeros((2, 12, 12, 2)))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="give a folder that can be written"):
        export.save(model, info_for(True), ["nir"], tmp_path / "file" / "below")
    with pytest.raises(UserError, match="does not run by itself"):
        verify.run_standalone("nir", str(tmp_path / "file"), {"spikes": recordings(1)})


def test_the_reference_knows_how_near_a_threshold_it_came():
    assert verify._nearest(np.array([[0.75], [0.875], [1.0]], np.float32), 1.0) == pytest.approx(0.125)


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_writes_into_the_run_or_elsewhere(tmp_path):
    run = run_of(tmp_path / "run", encoder="none")
    assert runs.exported(run, ["nir"])["nir"]["path"] == os.path.join(run, "export", "model.nir")
    assert runs.exported(run, ["nir"], f"--out={tmp_path / 'out'}")["nir"]["path"] == str(tmp_path / "out" / "model.nir")


@pytest.mark.parametrize("form", ["nir", "litert", "onnx"])
def test_what_cannot_be_converted_leaves_nothing_behind(form, tmp_path, monkeypatch):
    """Another format that can be is not written either."""
    from tfspike.export import litert, nir_graph, onnx_graph

    def refuse(*_):
        raise UserError("no counterpart")

    module, name = {"nir": (nir_graph, "to_nir"), "litert": (litert, "convert"), "onnx": (onnx_graph, "convert")}[form]
    monkeypatch.setattr(module, name, refuse)
    run = runs.untrained(tmp_path / "run", info_for(), model="lenet", hidden=0, timesteps=2)
    with pytest.raises(UserError, match="no counterpart"):
        runs.exported(run, ["keras", form])
    assert not os.path.exists(os.path.join(run, "export"))


def test_missing_packages_of_onnx_are_named(tmp_path, monkeypatch):
    from tfspike.export import onnx_graph

    monkeypatch.setattr(onnx_graph, "_PACKAGES", ("tf2onnx_is_not_here", "numpy"))
    run = runs.untrained(tmp_path / "run", info_for(), model="lenet", hidden=0, timesteps=2)
    with pytest.raises(UserError, match="need the package tf2onnx_is_not_here: pip install tf2onnx_is_not_here, or"):
        runs.exported(run, ["onnx"])


@needs_onnx
def test_an_operation_without_a_counterpart_in_onnx_is_named():
    from tfspike.export import onnx_graph

    @tf.function
    def odd(x):
        return {"scores": tf.bitwise.bitwise_or(tf.cast(x, tf.int32), 1)}

    class Graph(onnx_graph._Graph):
        def endpoint(self):
            return odd, tf.TensorSpec((None, 2), tf.float32, "images")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_graph, "_Graph", Graph)
        with pytest.raises(UserError, match="no form of standard ONNX operators .*BitwiseOr.*export it as saved_model"):
            onnx_graph.convert(network("direct", hidden=0), info_for())


def test_the_command_explains_mistakes_without_tensorflow(tmp_path):
    code = ("import sys\nfrom tfspike.export.__main__ import main\ntry:\n    main(sys.argv[1:])\n"
            "finally:\n    assert not {'keras', 'tensorflow'} & set(sys.modules)")
    root = os.path.dirname(os.path.dirname(tfspike.__file__))
    for flags, message in (([f"--workdir={tmp_path}"], "config.json"),
                           ([f"--workdir={tmp_path}", "--format=pickle"], "--format takes a list of saved_model"),
                           ([f"--workdir={tmp_path}", "--format=none"], "--format takes one or more of saved_model"),
                           ([f"--workdir={tmp_path}", "--target=brian"], "--target takes one of nir, norse"),
                           ([f"--workdir={tmp_path}", "--wight=float16"], "Did you mean: weights?"), ([], "--workdir is missing")):
        done = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True, cwd=root)
        assert done.returncode == 2 and message in done.stderr and done.stderr.startswith("Error: "), done.stderr
        assert done.stderr.count("\n") == 1


def compiled_functions(path):
    """Functions of a SavedModel that XLA must compile."""
    message = tf.compat.v1.MetaGraphDef()
    with open(os.path.join(path, "saved_model.pb"), "rb") as file:
        content = file.read()
    # a SavedModel holds its version and its one graph: tag 1 (two bytes), then tag 2 and the graph's length
    at, shift, length = 3, 0, 0
    while True:
        length |= (content[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if content[at - 1] < 128:
            break
    message.ParseFromString(content[at:at + length])
    library = message.graph_def.library.function
    assert len(library) > 2
    return [function.signature.name for function in library if function.attr["_XlaMustCompile"].b]


@pytest.fixture(scope="module")
def saved_with_tensorflow(tmp_path_factory):
    """{encoder: (prediction of a model, the same of its file in a process without the library)}."""
    folder = tmp_path_factory.mktemp("tensorflow")
    models, x = {encoder: network(encoder, hidden=0) for encoder in ("poisson", "direct")}, images() / 128.0 - 1.0
    np.save(folder / "x.npy", x)
    for encoder, model in models.items():
        tf.saved_model.save(model, str(folder / encoder))
    code = ("import sys, numpy, tensorflow as tf; x = numpy.load('x.npy')\n"
            "for name in sys.argv[1:]:\n"
            "    (y,) = tf.saved_model.load(name).signatures['serving_default'](tf.constant(x)).values()\n"
            "    numpy.save(f'{name}.npy', y)\n"
            "assert not [name for name in sys.modules if name.startswith('tfspike')]")
    done = subprocess.run([sys.executable, "-c", code, *models], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return {encoder: (model(x).numpy(), np.load(folder / f"{encoder}.npy")) for encoder, model in models.items()}


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["poisson", "direct"])
def test_saving_with_tensorflow_gives_a_file_that_runs_without_the_library(encoder, saved_with_tensorflow):
    """Not compared beyond its prediction: `tf.saved_model.save` asks nothing of the model."""
    want, found = saved_with_tensorflow[encoder]
    assert np.ptp(want) > 0.01
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("encoder, dtype, form, named", [
    ("poisson", None, "onnx", "onnx"), ("poisson", None, "litert", "litert"), ("direct", None, "openvino", "onnx"),
    ("direct", "mixed_bfloat16", "onnx", "onnx"), (None, "mixed_bfloat16", "litert", "litert")])
def test_keras_own_export_refuses_what_would_not_run_or_give_other_spikes(encoder, dtype, form, named, tmp_path):
    model = network(encoder, hidden=0, dtype=dtype)
    with pytest.raises(UserError, match=f"{form!r} would not compute .*python -m tfspike.export .*--format={named} ") as caught:
        model.export(str(tmp_path / "model"), format=form, verbose=False)
    assert "\n" not in str(caught.value) and os.listdir(tmp_path) == []


@pytest.mark.parametrize("form", ["litert", pytest.param("onnx", marks=needs_onnx)])
def test_keras_own_export_computes_what_the_model_does(form, tmp_path):
    model = tfspike.models.create("lenet", SHAPE, 3, T, encoder="direct", hidden=0, leak=0.9, kappa=4.0)
    path, x = str(tmp_path / "model.tflite"), (images() / 128.0 - 1.0)[:1]
    model.export(path, format=form, verbose=False)  # of a model that was never called
    if form == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {session.get_inputs()[0].name: x})
    else:
        interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(path)
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
        interpreter.invoke()
        found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    want = model(x).numpy()
    assert np.ptp(want) > 0.01
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_keras_own_export_is_not_tied_to_a_machine(tmp_path):
    model = network(gradient="rate")
    model.configure_engine(kernel="xla")
    x = images() / 256.0
    wanted = model(x).numpy()
    model.export(str(tmp_path / "exported"), verbose=False)
    assert compiled_functions(str(tmp_path / "exported")) == []
    loaded = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(loaded.serve(x), wanted, rtol=0, atol=1e-6)
    assert model.engine.kernel == "xla"
    tf.keras.Model.export(model, str(tmp_path / "tied"), verbose=False)
    assert compiled_functions(str(tmp_path / "tied")), "this test would not notice a compiled function"
