"""Files that an earlier source wrote (tests/goldens/README.md) load and give the same answers.

Processors round differently, and a membrane potential beside its threshold then fires or does not: of the spikes one in
a thousand may differ, and an output by as much as that makes of it.
"""

import dataclasses
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

from tfspike import datasets, training
from tfspike.config import read_run
from tfspike.export.nir_import import from_nir
from tfspike.runs import loading as run_loading

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture(scope="module")
def answers():
    with np.load(GOLDENS / "answers.npz") as file:
        return dict(file)


def assert_same(model, name, answers):
    output, counts = model.observe(answers[f"{name}/inputs"], seed=5)
    expected = {key.split("/")[2]: value for key, value in answers.items() if key.startswith(f"{name}/count/")}
    assert list(counts) == list(expected)
    for layer, count in counts.items():
        assert expected[layer].sum() > 1.0, "the fixture spikes"
        assert np.abs(np.mean(count, axis=0) - expected[layer]).sum() <= 1e-3 * expected[layer].sum(), layer
    np.testing.assert_allclose(output, answers[f"{name}/output"], atol=2e-3)


@pytest.mark.parametrize("name", ["lenet", "residual"])
def test_a_keras_file_of_before_answers_as_before_and_can_be_trained(name, answers):
    model = keras.models.load_model(GOLDENS / f"{name}.keras")
    assert_same(model, name, answers)
    inputs = answers[f"{name}/inputs"]
    before = [weight.numpy() for weight in model.trainable_variables]
    assert int(model.optimizer.iterations) == 3
    model.fit(inputs, np.eye(model.output_shape[-1])[[0, 1] * 4], batch_size=8, verbose=0)
    assert all(np.any(weight.numpy() != old) for weight, old in zip(model.trainable_variables, before))


def test_a_nir_file_of_before_is_the_network_it_was(answers):
    import nir

    model = from_nir(nir.read(GOLDENS / "lenet.nir"), timesteps=25)
    assert np.abs(answers["nir/output"]).min(axis=1).max() > 0.0, "the fixture answers"
    np.testing.assert_allclose(model(answers["nir/inputs"]), answers["nir/output"], atol=2e-3)


def test_a_run_of_before_is_evaluated_and_continued(answers, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(GOLDENS / "run", folder, symlinks=True)
    model, _, info, _ = run_loading.load_run(str(folder), say=lambda line: None)
    data = datasets.load("mnist_subset", "test").first(8)
    output, counts = model.observe(info.normalise(data.images), seed=5)
    assert all(float(np.sum(count)) > 0.0 for count in counts.values())
    np.testing.assert_allclose(output, answers["run/output"], atol=2e-3)
    longer = dataclasses.replace(read_run(str(folder)), workdir=str(folder), epochs=3)
    said: list[str] = []
    assert training.run(longer, say=said.append) == 0
    assert any("step 6" in line for line in said[:3])
