"""Trained weights of the library: complete cards, the recorded answers, and one sentence for what does not fit."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import runs
import tfspike
from tfspike import pretrained, weights
from tfspike.datasets.catalogue import facts
from tfspike.errors import UserError
from tfspike.evaluation import options as eval_options
from tfspike.models import variables
from tfspike.pretrained import cards as model_cards
from tfspike.pretrained import packing
from tfspike.runs import library, results
from tfspike.runs import loading as run_loading

FOLDER = weights.FOLDER
ROOT = Path(__file__).resolve().parents[1]
NAMES = pretrained.available()


def test_there_are_weights_and_they_are_small():
    assert "lenet_mnist" in NAMES
    assert all(os.path.getsize(library.read(name).path) <= library.LARGEST for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_complete_and_names_no_place_of_a_machine(name):
    entry = library.read(name)
    assert entry.card.keys() == model_cards.CARD.keys()
    assert {field for field, value in entry.card.items() if value is None} <= {"val_accuracy", "test_sd"}
    assert entry.card["energy"].keys() >= {"snn_pj_per_image", "ann_pj_per_image", "images"}
    assert all(entry.card["data"].values()) and entry.card["caveats"]
    assert len(entry.card["commit"]) == 40 and entry.card["draws"] == len(entry.card["test_accuracies"])
    assert entry.config.workdir is entry.config.data_dir is None
    text = Path(FOLDER, f"{name}.json").read_text()
    assert "/tmp" not in text and "data_dir=" not in text
    whole = facts(entry.info.name).num_test
    assert (entry.info.num_test == whole) or any("must not be compared" in line for line in entry.card["caveats"])


def test_the_page_is_made_of_the_cards():
    assert (ROOT / "docs" / "models.md").read_text() == model_cards.page([library.read(name) for name in NAMES])


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_recorded_and_training_can_go_on_from_them(name):
    entry = library.read(name)
    model, config, info, checkpoint = pretrained.load(name)
    recorded = np.array(entry.fingerprint["scores"])
    assert np.ptp(recorded) > 1e-2
    assert np.abs(packing.noise_scores(model, config, info) - recorded).max() < 1e-3
    assert checkpoint.meta == entry.card and checkpoint.step == entry.card["step"]
    whole = pretrained.load(name, fold=False)[0]
    assert np.abs(packing.noise_scores(whole, config, info) - recorded).max() < 1e-3
    arrays = entry.arrays()
    learnt = dict(variables.named(variables.learnt(whole)))
    assert learnt.keys() == arrays.keys() and all(np.array_equal(learnt[n].value, arrays[n]) for n in learnt)
    assert entry.card["parameters"] == whole.count_params() - sum(int(np.prod(v.shape)) for v in whole.non_trainable_variables)
    if config.norm != "none":
        means = [array for n, array in arrays.items() if n.endswith("moving_mean")]
        assert means and all(array.any() for array in means)


@pytest.mark.parametrize("name", NAMES)
def test_the_call_on_the_page_builds_the_network(name):
    page = model_cards.page([library.read(name)])
    call = re.search(r"```python\nmodel = (.*)\n```", page)[1]
    built = dict(variables.named(variables.learnt(eval(call, {"tfspike": tfspike}))))
    assert all(np.array_equal(built[n].value, array) for n, array in library.read(name).arrays().items())


def test_the_window_may_be_another():
    assert pretrained.load("lenet_mnist", timesteps=7)[0].timesteps == 7


def test_an_unknown_name_is_refused_with_what_there_is():
    with pytest.raises(UserError, match="There are no trained weights 'vgg5_mnist'; there are .*lenet_mnist"):
        pretrained.load("vgg5_mnist")


@pytest.mark.parametrize("name", ["lenet_mnist", "mnist"])
def test_weights_go_by_their_name_and_by_its_end(name):
    want = library.read("lenet_mnist").arrays()
    for model in (pretrained.load(name, fold=False)[0], pretrained.load(name)[0]):
        kernels = [layer.get_weights()[0] for layer in model.layers if layer.get_weights() and layer.get_weights()[0].ndim]
        assert [kernel.shape for kernel in kernels] == [array.shape for array in want.values()]
        assert all(np.array_equal(kernel, array) for kernel, array in zip(kernels, want.values()))
    assert eval_options.parse_eval([f"--weights={name}"], pretrained.check_name).weights == "lenet_mnist"


@pytest.mark.parametrize("name", ["lenet_svhn", "", 5])
def test_other_weights_are_refused_with_what_there_is(name):
    with pytest.raises(UserError, match=f"no trained weights '{name}'; there are lenet_mnist, .*A name is"):
        pretrained.load(name)


def test_an_end_that_several_names_have_is_refused(tmp_path):
    for network in ("lenet", "vgg5"):
        (tmp_path / f"{network}_mnist.json").write_text("{}")
    with pytest.raises(UserError, match="several trained weights 'mnist': lenet_mnist, vgg5_mnist; give one"):
        pretrained.load("mnist", folder=str(tmp_path))
    assert library.check_name("vgg5_mnist", str(tmp_path)) == "vgg5_mnist"


@pytest.mark.parametrize("end, damage, words", [
    ("npz", lambda data: data[:-100], "does not match its checksum"),
    ("json", lambda data: data[:-100], "incomplete or damaged"),
    ("json", lambda data: b"[]", "incomplete or damaged"),
    ("json", lambda data: data.replace(b'"card": {', b'"card": 3, "old": {', 1), "not what tfspike.pretrained writes"),
    ("json", lambda data: data.replace(b'"format": 1', b'"format": 9', 1), "has format 9"),
    ("json", lambda data: data.replace(b'"num_classes": 10', b'"num_classes": -1', 1), "no sound record of the data"),
    ("json", lambda data: data.replace(b'"hidden": 200', b'"hidden": 100', 1), "another network")])
def test_damaged_files_are_refused(end, damage, words, tmp_path):
    for suffix in ("npz", "json"):
        shutil.copy(os.path.join(FOLDER, f"lenet_mnist.{suffix}"), tmp_path)
    path = tmp_path / f"lenet_mnist.{end}"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=words) as caught:
        pretrained.load("lenet_mnist", folder=str(tmp_path))
    assert "\n" not in str(caught.value)


# ---- eval.py -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv, words", [
    (["--workdir=x"], "give only one"), (["--report"], "--report needs the folder of a run"),
    (["--compare=a,b"], "--compare needs"), (["--checkpoint=last"], "--checkpoint needs")])
def test_flags_that_contradict_weights(argv, words):
    with pytest.raises(UserError, match=words):
        eval_options.parse_eval(["--weights=lenet_mnist", *argv])


def test_a_wrong_name_is_refused_before_tensorflow_is_loaded():
    code = "import sys; from tfspike.evaluation import options as eval_options\nfrom tfspike import UserError, pretrained\n" \
           "try: eval_options.parse_eval(['--weights=x'], pretrained.check_name)\n" \
           "except UserError as e: print(e, 'tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "lenet_mnist" in done.stdout and done.stdout.strip().endswith("False")


def test_eval_uses_the_weights(tmp_path):
    import tensorflow as tf

    with np.load(ROOT / "tfspike" / "data" / "mnist_subset.npz") as data:
        image, label = data["test_images"][0], int(data["test_labels"][0])
    tf.io.write_file(str(tmp_path / "digit.png"), tf.io.encode_png(image[..., np.newaxis]))
    done = subprocess.run([sys.executable, "eval.py", "--weights=lenet_mnist", f"--predict={tmp_path / 'digit.png'}",
                           "--timesteps=20", "--seeds=1", "--json"], cwd=ROOT, capture_output=True, text=True,
                          timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["label"] == label


# ---- packing -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of a few steps whose network has normalisation, and its configuration."""
    from tfspike import training
    from tfspike.config import RunOptions

    folder = tmp_path_factory.mktemp("pack") / "run"
    config = runs.tiny(folder, norm="tdbn", surrogate="arctan", pooling="average", encoder="direct", epochs=1)
    training.run(config, RunOptions(), lambda line: None)
    return config


def test_a_run_becomes_an_entry_that_answers_as_the_run(run, tmp_path):
    options = packing.PackOptions(workdir=str(run.workdir), out=str(tmp_path), images=20, name="few")
    entry = packing.pack(options, lambda line: None)
    assert pretrained.available(str(tmp_path)) == ["lenet_few"] == [entry.name]
    assert entry.card.keys() == model_cards.CARD.keys()
    assert entry.card["draws"] == 1 and entry.card["test_sd"] is None and entry.card["energy"]["images"] == 20
    assert "lenet_few" in (tmp_path / "models.md").read_text()
    was, _, info, _ = run_loading.load_run(str(run.workdir))
    now, config, _, _ = pretrained.load("lenet_few", folder=str(tmp_path))
    assert dataclasses.replace(config, workdir=run.workdir, data_dir=run.data_dir) == run
    assert np.array_equal(packing.noise_scores(was, run, info), packing.noise_scores(now, config, info))
    assert np.allclose(entry.fingerprint["scores"], packing.noise_scores(now, config, info), atol=1e-6)


@pytest.mark.slow
def test_kernels_in_half_precision_are_tested_as_they_are_stored(run, tmp_path):
    whole = packing.pack(packing.PackOptions(workdir=str(run.workdir), out=str(tmp_path), images=20, name="whole"),
                            lambda line: None)
    half = packing.pack(packing.PackOptions(workdir=str(run.workdir), out=str(tmp_path), images=20, name="half",
                                                  half=True), lambda line: None)
    assert os.path.getsize(half.path) < 0.6 * os.path.getsize(whole.path)
    assert half.card["kernels"] == "float16" and "rounded to float16" in (tmp_path / "models.md").read_text()
    before, after = whole.arrays(), half.arrays()
    assert all(array.dtype == np.float32 for array in after.values()) and before.keys() == after.keys()
    for name, array in before.items():
        if array.ndim > 1:
            assert 0 < np.abs(after[name] - array).max() <= np.abs(array).max() / 2048
        else:
            assert np.array_equal(after[name], array)
    model, config, info, _ = pretrained.load("lenet_half", folder=str(tmp_path))
    assert np.allclose(half.fingerprint["scores"], packing.noise_scores(model, config, info), atol=1e-6)


def test_what_cannot_be_packed(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run.workdir, copy, symlinks=True)
    os.unlink(copy / "finished.json")
    with pytest.raises(UserError, match="is not finished"):
        packing.pack(packing.PackOptions(workdir=str(copy), out=str(tmp_path)))
    with pytest.raises(UserError, match="--workdir is missing"):
        packing.PackOptions()
    with pytest.raises(UserError, match="at most 12 MB"):
        noise = {"w": np.random.default_rng(0).random(4_000_000).astype("f4")}
        library.write(str(tmp_path / "out"), "lenet_large", noise, run, library.read("lenet_mnist").info, {}, {})
    assert not list((tmp_path / "out").iterdir())
    with pytest.raises(UserError, match="give --title, --source and --licence"):
        packing._source(packing.PackOptions(workdir="x"), "kmnist")


def test_hours_of_early_runs_follow_from_images_per_second():
    events = [{"step": 10, "event": "train", "time": 1.0, "time/images_per_second": 16.0}]
    assert results.hours(packing._with_seconds(events, 32)) == pytest.approx(10 * 2 / 3600)
    noted = [{**events[0], "time/seconds_per_step": 5.0}]
    assert packing._with_seconds(noted, 32) == noted


def test_the_columns_that_a_card_reads_are_there():
    assert {"date", "commit", "command", "machine", "hours", "val_accuracy"} <= results.COLUMNS.keys()
