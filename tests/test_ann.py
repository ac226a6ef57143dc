"""The ANN twin: the same weights in the same order, the values of a NumPy net, and runs of train.py and eval.py on it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import nets
import oracle
import runs
import tfspike
from tfspike import config, distribution, evaluation, export, models, training
from tfspike.config import Config, RunOptions
from tfspike.distribution import Worker
from tfspike.errors import UserError
from tfspike.evaluation import report
from tfspike.evaluation.options import EvalOptions
from tfspike.models import ann, variables
from tfspike.models.network import Network, window_of
from tfspike.neurons import encoders, layers
from tfspike.neurons.normalisation import ThresholdNorm
from tfspike.runs import checkpoints, initial_weights
from tfspike.runs import loading as run_loading
from tfspike.training.trainer import Trainer
from tfspike.variants import VARIANTS

EVERY = [pytest.param(name, marks=[pytest.mark.slow] * (name in ("vgg16", "resnet18", "resnet56")))
         for name in models.available()]


def pair(name: str, **kwargs: Any) -> tuple[Any, Any]:
    """A network and its twin, on images as small as the network allows."""
    size = VARIANTS[name].min_size
    kwargs = {"hidden": VARIANTS[name].hidden and 8, **kwargs}
    return (models.create(name, (size, size, 3), 4, 3, **kwargs),
            models.create(name, (size, size, 3), 4, 3, neuron="relu", **kwargs))


def images_for(model: keras.Model, batch: int = 2) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (batch, *model.input_shape[1:])).astype("f")


# ---- the network -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_a_twin_has_the_weights_of_its_spiking_network_in_the_same_order(name: str) -> None:
    spiking, twin = pair(name)
    assert isinstance(twin, models.ReluModel) and twin.output_shape == spiking.output_shape == (None, 4)
    assert twin.input_shape == spiking.input_shape
    assert [v.path.split("/")[0] for v in twin.trainable_variables] == [
        v.path.split("/")[0] for v in spiking.trainable_variables]
    for ours, theirs in zip(twin.trainable_variables, spiking.trainable_variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not any("bias" in v.path for v in twin.variables)
    kinds = [type(layer).__name__ for layer in twin.layers]
    assert kinds.count("ReLU") == sum(type(call.layer).__name__ == "LIF" for call in spiking.plan.spiking)
    assert {"LIF", "PoolingIF", "OverTime", "Readout"}.isdisjoint(kinds)


@pytest.mark.usefixtures("layer_by_layer")
def test_a_twin_has_all_the_weights_frozen_and_shared_ones_and_statistics_too() -> None:
    inputs = keras.Input((6,))
    shared, neurons = tfspike.OverTime(keras.layers.Dense(6, use_bias=False)), tfspike.LIF(0.9, name="a_lif")
    norm = ThresholdNorm(name="norm")
    x = tfspike.DirectEncoder(4)(keras.layers.Dense(6)(inputs))
    x = neurons(shared(neurons(norm(shared(x)))))
    model = tfspike.SpikingModel(inputs, tfspike.Readout()(tfspike.OverTime(keras.layers.Dense(3))(x)))
    model(np.random.default_rng(0).uniform(0, 1, (8, 6)).astype("f"), training=True)
    norm.trainable = False
    norm.gamma.assign([3.0] * 6)
    found = ann.twin(model)
    copy = found.get_layer("norm")
    assert np.abs(norm.moving_mean.numpy()).max() > 0
    for a, b in zip(copy.get_weights(), norm.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [layer.name for layer in found.layers if isinstance(layer, keras.layers.ReLU)] == ["a_relu", "a_lif_call2_relu"]
    kernel = found.get_layer(shared.name).kernel
    np.testing.assert_array_equal(kernel, shared.layer.kernel)
    assert sum(v.shape == (6, 6) for v in found.trainable_variables) == 1


@pytest.mark.parametrize("name", EVERY)
def test_gradients_reach_every_weight_of_a_twin(name: str) -> None:
    _, twin = pair(name, dropout=0.0)
    x = images_for(twin, 8)
    with tf.GradientTape() as tape:
        logits, activity = twin.observe(x, training=True)
        loss = tf.reduce_sum(tf.square(logits - 1.0))
    assert activity == {} and logits.dtype == tf.float32
    for variable, gradient in zip(twin.trainable_variables, tape.gradient(loss, twin.trainable_variables)):
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, variable.path


def test_the_twin_of_a_normalised_network_normalises_over_the_batch() -> None:
    spiking, twin = pair("resnet20", norm="tdbn")
    norms = [layer for layer in twin.layers if isinstance(layer, ThresholdNorm)]
    assert len(norms) == sum(isinstance(call.layer, ThresholdNorm) for call in spiking.plan.norms) > 10
    x = images_for(twin, 8)
    twin(x, training=True)
    assert all(np.ptp(layer.moving_mean) > 0 for layer in norms)  # the running statistics follow

    probe = keras.Model(twin.inputs, [norms[0].input, norms[0].output])
    currents, normalised = (value.numpy() for value in probe([x], training=True))
    np.testing.assert_allclose(normalised.mean((0, 1, 2)), 0.0, atol=1e-5)
    np.testing.assert_allclose(normalised, (currents - currents.mean((0, 1, 2))) / currents.std((0, 1, 2)), atol=1e-3)


def test_a_spiking_network_begins_with_the_weights_of_its_normalised_twin(tmp_path: Path) -> None:
    spiking, twin = pair("resnet20", norm="tdbn")
    twin(images_for(twin, 8), training=True)
    for variable in twin.trainable_variables:
        variable.assign(variable.value + 0.25)
    parts = {"model": variables.collect(twin.variables), "optimizer": {}}
    checkpoints.save(str(tmp_path / "checkpoints"), 1, parts, {}, keep=1, best=True)
    assert initial_weights.load(spiking, str(tmp_path / "checkpoints" / "best"), lambda line: None) is True
    for ours, theirs in zip(variables.learnt(spiking), variables.learnt(twin), strict=True):
        np.testing.assert_array_equal(ours, theirs, ours.path)


@pytest.mark.parametrize("name", ["plain", "residual"])
def test_a_twin_computes_the_numpy_net(name: str) -> None:
    spec = nets.SPECS[name]
    spiking = nets.from_blocks(spec, 2, encoder="poisson")
    weights = nets.set_grid_weights(spiking, 2.0)
    twin = ann.twin(spiking)
    x = np.random.default_rng(0).uniform(-1, 1, (3, *spec.image)).astype("f")
    activations, logits = oracle.relu_forward(spec.stages, weights, x)
    assert all(0.05 < (layer > 0).mean() < 0.95 for layer in activations)
    np.testing.assert_allclose(twin(x), logits, rtol=1e-4, atol=1e-4)
    relus = [layer.output for layer in twin.layers if isinstance(layer, keras.layers.ReLU)]
    for ours, theirs in zip(keras.Model(twin.inputs[0], relus)(x), activations, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_dropout_masks_activations_in_training_alone_and_is_keyed_by_the_step() -> None:
    _, twin = pair("lenet", dropout=0.5, hidden=64)
    dropouts = [layer for layer in twin.layers if isinstance(layer, ann.Dropout)]
    assert [layer.name for layer in dropouts] == ["conv1_1_dropout", "conv2_1_dropout", "hidden_dropout"]
    x = images_for(twin)
    first, second = twin(x, training=True).numpy(), twin(x, training=True).numpy()
    assert not np.array_equal(first, second) and not np.array_equal(first, twin(x))
    nets.set_step(twin, 0)
    np.testing.assert_array_equal(twin(x, training=True), first)
    np.testing.assert_array_equal(twin(x, seed=1), twin(x, seed=2))
    ones = np.ones((50, 40), "f")
    masked = dropouts[0](ones, training=True).numpy()
    assert set(np.unique(masked)) == {0.0, 2.0} and abs(masked.mean() - 1) < 0.1


def test_a_twin_is_saved_and_goes_on(tmp_path: Path) -> None:
    _, twin = pair("resnet9")
    x, y = images_for(twin, 4), np.eye(4, dtype="f")
    twin.compile(keras.optimizers.SGD(1e-3), "mse", jit_compile=False)
    twin.train_on_batch(x, y)
    twin.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is models.ReluModel
    np.testing.assert_array_equal(loaded(x), twin(x))
    assert loaded.train_on_batch(x, y) == twin.train_on_batch(x, y)


def test_logits_are_float32_under_mixed_precision() -> None:
    _, twin = pair("lenet", dtype="mixed_bfloat16")
    assert twin(images_for(twin)).dtype == tf.float32
    assert twin.get_layer("conv1_1").compute_dtype == "bfloat16"


@pytest.mark.parametrize(("changes", "message"), [
    ({"neuron": "tanh"}, "neuron.*'lif', 'relu'.*Received"), ({"leak": 0.5}, "leak.*relu.*Received: leak=0.5"),
    ({"threshold": 2.0}, "threshold.*relu"), ({"gradient": "rate"}, "gradient.*relu"),
    ({"encoder": None}, "encoder.*relu.*None")])
def test_what_an_ann_cannot_have_is_refused_in_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        models.create(**{"name": "lenet", "input_shape": (8, 8, 1), "num_classes": 2, "timesteps": 2, "neuron": "relu",
                         **changes})
    assert "\n" not in str(caught.value)


def test_a_layer_without_counterpart_is_named() -> None:
    @keras.saving.register_keras_serializable("tests")
    class Other(layers.SpikingLayer):
        @property
        def neuron(self) -> Any:
            return layers.LIF().neuron

    image = keras.Input((3,))
    x = encoders.create("poisson", 2)(image)
    x = layers.OverTime(keras.layers.Dense(2, use_bias=False))(Other(name="other")(x))
    model = models.SpikingModel(image, layers.Readout()(x))
    with pytest.raises(UserError, match="'other', a Other"):
        ann.twin(model)


# ---- configuration -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "message"), [
    ({"leak": 0.5}, "--leak=0.5.*--neuron=relu"), ({"timesteps": 10}, "--timesteps=10"),
    ({"gradient": "event"}, "--gradient=event"), ({"encoder": "direct"}, "--encoder=direct"),
    ({"threshold": 2.0}, "--threshold"), ({"target_rate": 0.2}, "--target_rate"), ({"init": "rate"}, "--init=rate"),
    ({"export": ("nir",)}, "--export=nir.*keras or none"), ({"dataset": "nmnist"}, "nmnist holds spike trains")])
def test_settings_of_spiking_neurons_are_refused_for_an_ann(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        config.resolve({"neuron": "relu", **settings})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", sorted(VARIANTS))
def test_recipes_and_presets_leave_an_ann_what_it_can_have(model: str) -> None:
    made = config.resolve({"model": model, "dataset": "cifar10", "neuron": "relu"})
    spiking = config.resolve({"model": model, "dataset": "cifar10"})
    assert (made.init, made.export, made.random_input) == ("normal", ("keras",), False)
    assert spiking.random_input == (spiking.encoder == "poisson")
    assert (made.dropout, made.kappa) == (spiking.dropout, spiking.kappa)
    # the paper's learning rates throw an ANN out: it has Adam, unless somebody chose
    assert (made.optimizer, made.learning_rate) == (
        ("adam", 0.001) if spiking.optimizer == "sgd" else (spiking.optimizer, spiking.learning_rate))
    tuned = config.resolve({"model": model, "dataset": "cifar10", "neuron": "relu", "learning_rate": 0.02})
    assert (tuned.optimizer, tuned.learning_rate) == (spiking.optimizer, 0.02)
    assert made.norm == spiking.norm
    assert f"{model}-cifar10-relu-" in str(made.workdir) and made.workdir != spiking.workdir
    assert config.from_json(config.to_json(made)) == made
    assert config.resolve({"neuron": "relu"}, preset="paper_lenet_mnist").gradient == Config().gradient


def test_runs_from_before_this_setting_are_spiking_and_keep_their_folder(tmp_path: Path) -> None:
    made = config.resolve()
    content = json.loads(config.to_json(made))
    del content["config"]["neuron"]
    assert config.from_json(json.dumps(content)) == made
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert config.resolve({"seed": 2}, config_file=str(tmp_path / "config.json")).workdir == config.resolve(
        {"seed": 2}).workdir
    # the folder of the defaults, as the commit in front of this setting named it
    assert made.workdir == "runs/lenet-mnist_subset-rate-62317cbc"


# ---- runs --------------------------------------------------------------------------------------------------------


def tiny(folder: Any, **settings: Any) -> Config:
    return runs.tiny(folder, **{"neuron": "relu", "timesteps": Config().timesteps, "learning_rate": 0.05, **settings})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of six steps, and its lines in `lines.txt`."""
    folder, lines = tmp_path_factory.mktemp("ann") / "run", []
    assert training.run(tiny(folder, export=("keras",), tensorboard=True, dropout=0.2), say=lines.append) == 0
    (folder / "lines.txt").write_text("\n".join(lines))
    return folder


def test_training_says_and_records_nothing_about_spikes(run: Path) -> None:
    text = (run / "lines.txt").read_text()
    assert "conv2_1_relu" in text and "validation loss" in text and "517,500" not in text
    assert not any(word in text.lower() for word in ("spike", "rate/", "silent", "nan", "warning"))
    names = {name for event in runs.metrics(run) for name in event}
    assert {"train/loss", "epoch/val_accuracy", "grad_norm/output", "weight_norm/conv1_1"} <= names
    assert not [name for name in names if name.startswith(("rate/", "silent/", "energy/", "epoch_rate/"))]


def test_a_resumed_run_ends_as_the_uninterrupted_one(run: Path, tmp_path: Path) -> None:
    settings = {"export": (), "dropout": 0.2}
    assert training.run(tiny(tmp_path / "run", **settings, epochs=1), say=lambda line: None) == 0
    lines: list[str] = []
    assert training.run(tiny(tmp_path / "run", **settings), say=lines.append) == 0
    assert "Resuming from step 3" in lines[0]
    whole, parts = ({**runs.state(folder)} for folder in (run, tmp_path / "run"))
    assert whole.keys() == parts.keys() and not [name for name in whole if whole[name] != parts[name]]


def test_its_weights_are_scaled_to_the_rate_that_is_asked_for_and_those_of_a_spiking_network_are_not(
        run: Path, tmp_path: Path) -> None:
    settings = runs.tiny(tmp_path / "run", init="rate", epochs=1)

    def started(source: Path, folder: str) -> list[str]:
        lines: list[str] = []
        here = dataclasses.replace(settings, workdir=str(tmp_path / folder))
        Trainer(here, distribution.make_strategy("one"), Worker(), lines.append).initialise(str(source))
        return lines

    scaled = "First weights scaled to 0.1 spikes per step in 2 layers."
    lines: list[str] = []
    assert training.run(settings, RunOptions(init_from=str(run)), lines.append) == 0
    assert scaled in lines and scaled in started(run / "model.keras", "file")
    assert scaled not in started(tmp_path / "run", "further")


def test_evaluation_takes_the_folder(run: Path) -> None:
    lines: list[str] = []
    record = evaluation.evaluate_run(EvalOptions(workdir=str(run), seeds=3), lines.append)
    assert (record["neuron"], record["gradient"], record["seeds"], record["rates"]) == ("relu", None, 1, {})
    text = evaluation.describe(record)
    assert "ReLU, no time" in text and "firing rate" not in text and len(lines) == 1
    with pytest.raises(UserError, match="--timesteps=5.*tfspike.conversion"):
        evaluation.evaluate_run(EvalOptions(workdir=str(run), timesteps=5), lines.append)
    with pytest.raises(UserError, match="show spikes.*tfspike.conversion"):
        report.write(str(run), say=lines.append)


def test_the_exported_file_is_the_best_checkpoint(run: Path) -> None:
    model, _, info, checkpoint = run_loading.load_run(str(run))
    loaded = keras.saving.load_model(run / "model.keras")
    for ours, theirs in zip(loaded.trainable_variables, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert checkpoint.step == checkpoints.target_of(str(run / "checkpoints"), "best")
    with pytest.raises(UserError, match="keras alone.*saved_model"):
        export.save(model, info, ["saved_model"], run / "export")


@pytest.mark.slow
def test_a_dry_run_tries_every_stage(tmp_path: Path) -> None:
    lines: list[str] = []
    settings = tiny(tmp_path / "run", export=("keras",), model="resnet20", learning_rate=0.001, lr_milestones=())
    assert training.run(settings, RunOptions(dry_run=True), lines.append) == 0
    text = "\n".join(lines)
    assert "block9_a_relu" in text and "export: keras" in text and "spikes" not in text
    assert not (tmp_path / "run").exists()


def test_both_kinds_of_model_are_networks() -> None:
    spiking, twin = pair("lenet", hidden=0)
    assert isinstance(spiking, Network) and isinstance(twin, Network)
    assert spiking.is_spiking and not twin.is_spiking and (twin.timesteps, twin.spiking_layers) == (1, [])
    assert window_of(spiking) is spiking.plan and window_of(twin) is None and window_of(keras.Sequential()) is None
