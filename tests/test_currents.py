"""`--shortcut=currents`: the block of currents as a network, converted, counted, folded, exported and configured.

Its values and gradients are held against the oracle in test_engine.py (`nets.SPECS["currents"]`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfspike import analysis, config, conversion, datasets, models
from tfspike.analysis import energy
from tfspike.config import files, versions
from tfspike.engine import folding
from tfspike.errors import UserError
from tfspike.neurons.layers import LIF
from tfspike.neurons.normalisation import ThresholdNorm
from tfspike.runs import loading
from tfspike.variants import VARIANTS, Block, Conv, Pool, Variant

T, SHAPE, CLASSES = 4, (12, 12, 3), 5
DEEP = {"norm": "tdbn", "surrogate": "arctan", "surrogate_width": 2.0, "pooling": "average", "encoder": "direct",
        "gradient": "rate"}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network with every kind of shortcut: as it is, subsampled, by a convolution of spikes."""
    stages = (Conv(8), Block(8), Block(16, (2, 1)), Block(16, (1, 2)), Pool())
    monkeypatch.setitem(VARIANTS, "small", Variant(stages, hidden=0))


def images(count: int = 4) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (count, *SHAPE)).astype("f")


def create(**settings: Any) -> Any:
    return models.create("small", SHAPE, CLASSES, T, shortcut="currents", **{**DEEP, **settings})


def trained(**settings: Any) -> models.SpikingModel:
    model = create(**settings)
    for _ in range(3):  # running statistics
        model(images(), training=True)
    return model


def test_no_neuron_stands_between_the_first_convolution_and_the_last_sum() -> None:
    names = [layer.name for layer in create().layers]
    assert [name for name in names if name.endswith("_lif")] == [
        "block1_in_lif", "block1_a_lif", "block2_in_lif", "block2_a_lif", "block3_in_lif", "block3_a_lif",
        "block3_out_lif"]
    by_name = {call.name: call for call in create().plan.window}
    assert by_name["block1_current"].sources[1] is by_name["block1_in_lif"].source  # the current itself, unseen
    assert by_name["block3_shortcut"].source is by_name["block2_current"].output
    assert by_name["block2_shortcut"].source is by_name["block2_in_lif"].output


def test_a_block_behind_a_pooling_begins_with_its_spikes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "small", Variant((Conv(4), Pool(), Block(8)), hidden=0))
    model = models.create("small", SHAPE, CLASSES, T, shortcut="currents")
    assert [call.name for call in model.plan.spiking] == ["conv1_1_lif", "pool1", "block1_a_lif", "block1_out_lif"]


@pytest.mark.parametrize("shortcut", ["spikes", "currents"])
def test_both_kinds_have_the_same_weights(shortcut: str) -> None:
    paths = [v.path for v in models.create("small", SHAPE, CLASSES, T, shortcut=shortcut, **DEEP).trainable_variables]
    assert paths == [v.path for v in create().trainable_variables]


@pytest.mark.parametrize("gradient", ["event", "rate"])
def test_engine_and_layers_agree_and_every_layer_fires(gradient: str) -> None:
    model = trained(gradient=gradient)
    found, counts = model.observe(images())
    np.testing.assert_allclose(found, model.call_layers(images()), atol=1e-6)
    assert all(float(tf.reduce_sum(count)) > 0 for count in counts.values())


def test_it_folds_into_a_network_of_the_same_answers() -> None:
    model = trained()
    folded = folding.fold(model)
    assert not any(isinstance(layer, ThresholdNorm) for layer in folded.layers)
    np.testing.assert_allclose(folded(images()), model(images()), atol=1e-5)


def test_added_currents_cost_an_accumulate_per_value_and_step() -> None:
    model = trained()
    groups = {group.name: group for group in energy.synapses(model.plan)}
    assert {name for name, group in groups.items() if group.events == "added"} == {"block1_current", "block3_shortcut"}
    assert "block2_current" not in groups  # two convolutions accumulate into the same place
    assert groups["block1_current"].connections == 12 * 12 * 8 and groups["block3_shortcut"].connections == 3 * 3 * 16
    counted = groups["block1_current"].operations(np.full((12, 12, 8), 4.0))
    assert (counted.macs, counted.acs) == (0.0, 4.0 * 12 * 12 * 8)
    done = analysis.operations(model, images())[0]
    assert done.acs > T * (12 * 12 * 8 + 3 * 3 * 16)


def test_the_twin_has_a_relu_for_every_neuron_and_the_same_weights() -> None:
    spiking, twin = trained(), models.create("small", SHAPE, CLASSES, T, shortcut="currents", norm="tdbn", neuron="relu")
    relus = [layer.name for layer in twin.layers if isinstance(layer, keras.layers.ReLU)]
    assert relus == [name.replace("_lif", "_relu") for name in spiking.spiking_layers]
    assert [v.shape for v in twin.trainable_variables] == [v.shape for v in spiking.trainable_variables]


@pytest.mark.parametrize("method", ["data", pytest.param("spike_norm", marks=pytest.mark.slow)])
def test_shared_currents_keep_their_unit_and_neurons_take_the_scale_as_threshold(method: str) -> None:
    twin = models.create("small", SHAPE, CLASSES, T, shortcut="currents", neuron="relu", kappa=1.0)
    made = conversion.convert(twin, images(8), method=method, timesteps=100, encoder="direct")
    assert len(set(made.scales.values())) == len(made.scales)
    thresholds = {call.name: call.layer.threshold for call in made.model.plan.spiking if isinstance(call.layer, LIF)}
    for name in ("block1_in", "block2_in", "block3_in", "block3_out"):
        assert thresholds[f"{name}_lif"] == pytest.approx(made.scales[f"{name}_relu"])
    assert all(thresholds[f"block{i}_a_lif"] == 1.0 for i in (1, 2, 3))
    wanted, found = twin(images(8)).numpy(), made.model(images(8)).numpy()
    assert np.corrcoef(wanted.ravel(), found.ravel())[0, 1] > 0.85


def test_a_network_without_blocks_has_no_shortcut() -> None:
    with pytest.raises(UserError, match="`shortcut` is of residual blocks, and vgg5 has none.*Received"):
        models.create("vgg5", (16, 16, 3), CLASSES, T, shortcut="currents")
    with pytest.raises(UserError, match="--shortcut=currents is of residual blocks, and vgg5 has none"):
        config.resolve({"model": "vgg5", "shortcut": "currents"})
    with pytest.raises(UserError, match="`shortcut`"):
        models.create("small", SHAPE, CLASSES, T, shortcut="both")


def test_a_run_of_it_is_built_as_it_was() -> None:
    made = config.resolve({"model": "resnet7", "dataset": "mnist_subset", "shortcut": "currents"})
    info = datasets.describe(datasets.load("mnist_subset", "train"))
    assert "block1_current" in {layer.name for layer in loading.build_model(made, info).layers}
    assert config.from_json(config.to_json(made)) == made
    assert made.workdir != config.resolve({"model": "resnet7", "dataset": "mnist_subset", "shortcut": "spikes"}).workdir


def test_anns_are_normalised_as_they_say_and_those_of_earlier_versions_as_they_were(tmp_path: Path) -> None:
    made = config.resolve({"model": "resnet7", "dataset": "svhn", "neuron": "relu", "workdir": str(tmp_path)})
    info = datasets.DatasetInfo("x", (32, 32, 3), 10, tuple("0123456789"), (1.0,), (0.0,), False, 1, 1)

    def norms(settings: config.Config) -> int:
        return sum(isinstance(layer, ThresholdNorm) for layer in loading.build_model(settings, info).layers)

    assert made.norm == "tdbn" and norms(made) > 0
    record = json.loads(config.to_json(made))
    del record["config"]["shortcut"]  # which no run named that was trained without
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert norms(config.read_run(str(tmp_path))) == 0 and versions.is_added("shortcut")
    assert files.from_json(json.dumps(record)).norm == "none"
