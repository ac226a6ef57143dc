"""The training loop, what it writes, and what it refuses; evaluation of what it wrote."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import runs
from tfspike import config, datasets, distribution, evaluation, files, models, pretrained, training
from tfspike.analysis import summary
from tfspike.config import RunOptions
from tfspike.conversion import command as convert_command
from tfspike.conversion.options import ConversionOptions
from tfspike.errors import UserError
from tfspike.evaluation import command as eval_command
from tfspike.evaluation import evaluator
from tfspike.evaluation.options import EvalOptions
from tfspike.models import diagnosis
from tfspike.models.advice import known_by_heart
from tfspike.runs import checkpoints, initial_weights, standing, workdir
from tfspike.runs import loading as run_loading
from tfspike.runs.run_log import RunLog
from tfspike.training import command, dry_run, optimisation, schedule
from tfspike.training import trainer as trainer_module
from tfspike.training.progress import Sums
from tfspike.training.signals import Signals
from tfspike.training.trainer import Trainer

quiet = {"say": lambda line: None}


def make(folder: Any = "unused", **settings: Any) -> Trainer:
    return Trainer(runs.tiny(folder, **settings), distribution.make_strategy("one"), distribution.Worker(),
                            lambda line: None)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is long enough to learn something, and its lines in `lines.txt`."""
    folder, lines = tmp_path_factory.mktemp("runs") / "run", []
    settings = runs.tiny(folder, timesteps=10, hidden=50, batch_size=16, epochs=3, steps_per_epoch=40,
                         learning_rate=0.2, lr_milestones=(2,), val_fraction=0.02, checkpoint_every=0)
    assert training.run(settings, say=lines.append) == 0
    (folder / "lines.txt").write_text("\n".join(lines))
    return folder


# ---- what a run does and writes ----------------------------------------------------------------------------------


def test_a_run_learns_real_digits(run: Path) -> None:
    epochs = [event for event in runs.metrics(run) if event["event"] == "epoch"]
    assert [event["epoch"] for event in epochs] == [1, 2, 3]
    assert epochs[-1]["epoch/train_loss"] < 0.8 * epochs[0]["epoch/train_loss"]
    assert epochs[-1]["epoch/val_accuracy"] > 0.4  # ten classes of equal size
    rates = {name: value for name, value in epochs[-1].items() if name.startswith("epoch_rate/")}
    assert len(rates) == 5 and all(0.001 < rate < 1 for rate in rates.values())


@pytest.mark.parametrize("epochs, sentence", [
    (12, "every gradient is exactly zero for 20 steps. It begins at conv1_1_lif"),
    (2, "no gradient reaches any weight for 5 steps, up to the last one"),
])
def test_a_dead_network_ends_the_run_with_4(tmp_path: Path, capsys: Any, epochs: int, sentence: str) -> None:
    dead = runs.tiny(tmp_path, threshold=500.0, epochs=epochs, lr_milestones=())
    said: list[str] = []
    assert training.run(dead, say=said.append) == 4
    error = capsys.readouterr().err
    assert sentence in error and "--resume=never" in error and "--threshold (now 500" in "".join(said)
    assert not any("Finished" in line for line in said) and not (tmp_path / workdir.FINISHED).exists()
    assert standing.open_checkpoint(str(tmp_path), quiet["say"], "last").step in (6, 18, 20)


def test_weights_of_a_network_of_other_classes_are_taken_but_for_the_output_layer(tmp_path: Path) -> None:
    """Of a run and of a file; kernels of another size are refused as before."""
    shape, ten = (12, 12, 1), tuple("0123456789")
    info = datasets.DatasetInfo("mnist", shape, 10, ten, (0.5 / 255,), (0.0,), False, 100, 100)
    source = runs.untrained(tmp_path / "ten", info, hidden=8)
    there = run_loading.load_run(source, **quiet)[0]
    there.save(tmp_path / "ten.keras")
    for path in (source, str(tmp_path / "ten.keras")):
        here = models.create("lenet", shape, 3, 4, hidden=8, seed=7)
        said: list[str] = []
        own = [weight.numpy() for weight in here.trainable_variables]
        initial_weights.load(here, path, said.append)
        for weight, before, of_source in zip(here.trainable_variables, own, there.trainable_variables, strict=True):
            np.testing.assert_array_equal(weight, before if weight.path.startswith("output") else of_source)
        assert said[1:] == ["Its output layer is of 10 classes, so that of this network, of 3, begins with weights of its own."]
        with pytest.raises(UserError, match="of another network"):
            initial_weights.load(models.create("lenet", shape, 3, 4, hidden=9), path, said.append)


def test_a_run_begins_with_weights_of_the_library(tmp_path: Path) -> None:
    """By their name, on other data, with what was otherwise in their network; and the same command continues the run."""
    mine = runs.tiny(tmp_path / "run", hidden=None, threshold=1.1, epochs=1)
    said: list[str] = []
    assert training.run(mine, RunOptions(init_from="lenet_mnist"), said.append) == 0
    assert "First weights from the library's lenet_mnist." in said
    [others] = [line for line in said if line.startswith("They were trained in a network of ")]
    assert "--threshold=1.0" in others and "--norm" not in others and "--model" not in others
    wanted = pretrained.load("lenet_mnist", fold=False)[0].trainable_variables
    trainer = make(hidden=None)
    trainer.initialise("lenet_mnist")
    for weight, of_library in zip(trainer.model.trainable_variables, wanted, strict=True):
        np.testing.assert_array_equal(weight, of_library)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["about"]["init_from"] == "lenet_mnist"
    assert training.run(mine, RunOptions(init_from="lenet_mnist"), said.append) == 0 and "Finished already" in said[-1]
    with pytest.raises(UserError, match="it is of another network\\. They are of --hidden=200"):
        make(hidden=9).initialise("lenet_mnist")
    with pytest.raises(UserError, match="of shape .* of another network\\. They are for images of 28 x 28 x 1"):
        initial_weights.load(models.create("lenet", (32, 32, 3), 10, 4), "lenet_mnist", said.append)


def test_names_of_the_librarys_weights_are_known_before_the_data_are_read(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(UserError, match=r"\(lenet_mnist, .*there is no 'lenet_mnit'\. Did you mean 'lenet_mnist'\?"):
        RunOptions(init_from="lenet_mnit")
    monkeypatch.chdir(tmp_path)
    assert workdir.place_of_weights("lenet_mnist") == "lenet_mnist"
    (tmp_path / "lenet_mnist").mkdir()  # a folder of the user's
    assert workdir.place_of_weights("lenet_mnist") == str(tmp_path / "lenet_mnist")


@pytest.mark.parametrize("settings, steps", [({}, "2 steps of 4"), ({"timesteps": 2}, "1 step of 2"), ({"earliest": "largest"}, "")])
def test_a_latency_code_that_leaves_steps_empty_says_so(settings: dict[str, Any], steps: str) -> None:
    """Digits are scaled to [0, .5]."""
    said: list[str] = []
    trainer = make(**{"encoder": "latency", "timesteps": 4, "hidden": 0, **settings})
    trainer.say = said.append
    trainer.initialise(None)
    assert [line for line in said if "--earliest=largest" in line] == (
        [f"No pixel of mnist_subset exceeds 0.5, so that none spikes in the first {steps}; with --earliest=largest the brightest "
         "spike at the first."] if steps else [])
    empty = int(steps[:1] or 0)
    spikes = trainer.model.get_layer("encoder")(trainer.info.normalise(trainer.data.images[:50])).numpy().any((1, 2, 3, 4))
    assert not spikes[:empty].any() and spikes[empty:].all()


def test_a_dead_network_goes_on_where_that_is_asked_for(tmp_path: Path) -> None:
    said: list[str] = []
    assert training.run(runs.tiny(tmp_path, threshold=500.0, on_collapse="continue"), say=said.append) == 0
    assert any("The network has learnt nothing yet that shows" in line for line in said)


def test_the_last_living_checkpoint_outlives_those_of_a_dead_network(tmp_path: Path) -> None:
    trainer = make(tmp_path, epochs=20, lr_milestones=(1,), lr_factor=0.5, learning_rate=0.25, keep_checkpoints=1)
    step, rates = trainer.train_step, []

    def killed_at_nine(*batch: Any) -> Any:
        rates.append(float(trainer.optimizer.learning_rate))
        if trainer.progress.step == 8:
            for weight in trainer.model.trainable_variables:
                weight.assign(-np.abs(weight.numpy()))  # nothing fires any more
        return step(*batch)

    killed_at_nine.numbers = step.numbers  # type: ignore[attr-defined]
    trainer.train_step = killed_at_nine  # type: ignore[assignment]
    with pytest.raises(diagnosis.Collapsed) as stopped:
        trainer.train(RunLog(str(tmp_path), tensorboard=False), Signals())
    assert f"--init_from={tmp_path}/checkpoints/{checkpoints.name_of(8)}" in str(stopped.value)
    folder = trainer.progress.folder
    assert 8 in checkpoints.steps(folder) and max(checkpoints.steps(folder)) > 20
    assert checkpoints.target_of(folder, "best") != 8, "which stays anyway"
    assert rates[:4] == [0.25, 0.25, 0.25, 0.125], "each step has the learning rate of its epoch"


@pytest.mark.slow
def test_a_dead_run_that_is_continued_stops_where_it_would_have_stopped(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for name in ("whole", "killed"):
        config, said = runs.tiny(tmp_path / name, threshold=500.0, epochs=20, lr_milestones=()), []
        if name == "killed":
            runs.killed_at(monkeypatch, config, 12)
        assert training.run(config, say=said.append) == 4
        warned = any("neurons silent" in line for line in said)
        steps = checkpoints.steps(str(tmp_path / name / "checkpoints"))
        found.append((capsys.readouterr().err, steps, runs.metrics(tmp_path / name), warned))
    assert found[0][:3] == found[1][:3] and "every gradient is exactly zero for 20 steps" in found[0][0]
    assert found[0][3] and not found[1][3], "a warning that was given before the kill is given again"


def test_a_run_that_ended_dead_is_not_finished_by_the_same_command(tmp_path: Path) -> None:
    for _ in range(2):
        assert training.run(runs.tiny(tmp_path, threshold=500.0), say=lambda line: None) == 4
    assert training.run(runs.tiny(tmp_path, threshold=500.0, on_collapse="continue"), say=lambda line: None) == 0


@pytest.mark.parametrize("dataset, has_dropout, remedies", [
    ("folder", False, "--augment (shifted and mirrored images), --dropout=0.2, more images."),
    ("mnist", True, "--augment (shifted images), more images."),
    ("cifar10", False, "--dropout=0.2, more images."),
    ("nmnist", True, "more images."),
])
def test_images_known_by_heart_are_said_with_what_is_not_used_yet(dataset: str, has_dropout: bool,
                                                                  remedies: str) -> None:
    info = datasets.DatasetInfo(dataset, (28, 28, 1), 10, tuple("abcdefghij"), (0.01,), (0.0,), dataset == "cifar10",
                                100, 0, dataset == "nmnist")
    said = known_by_heart(0.99, 0.7, 1000, info, has_dropout)
    assert said is not None and said.endswith(f"What helps: {remedies}") and "99.0 %" in said and "70.0 %" in said
    assert known_by_heart(0.80, 0.7, 1000, info, has_dropout) is None
    assert known_by_heart(1.0, 0.8, 5, info, has_dropout) is None  # one of five is wrong
    assert known_by_heart(1.0, 0.0, 5, info, has_dropout) is not None


@pytest.mark.parametrize("steps, known", [(2, False), (4, True)])
def test_images_are_known_by_heart_when_they_were_seen_several_times(tmp_path: Path, steps: int, known: bool,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """And then more epochs are no remedy."""
    monkeypatch.setattr(trainer_module, "known_by_heart", lambda *args: "by heart")
    said: list[str] = []
    config = runs.tiny(tmp_path, threshold=500.0, on_collapse="continue", steps_per_epoch=steps, epochs=1)
    monkeypatch.setattr(trainer_module, "_KNOWN", 3 * config.batch_size / 6000)
    assert training.run(config, say=said.append) == 0
    assert ("by heart" in said) == known and any("learnt nothing yet that shows" in line for line in said) != known


def test_few_images_are_seen_several_times_in_an_epoch() -> None:
    assert make(steps_per_epoch=None, min_steps_per_epoch=1000, batch_size=8).progress.steps_per_epoch == 1000
    assert make(steps_per_epoch=None, min_steps_per_epoch=10, batch_size=8).progress.steps_per_epoch > 100
    assert make(steps_per_epoch=3, min_steps_per_epoch=10).progress.steps_per_epoch == 3


def test_the_reader_sees_layers_progress_rates_and_validation(run: Path) -> None:
    text = (run / "lines.txt").read_text()
    assert text.startswith("New run in ")
    for part in ("conv2_1_lif", "parameters", "epoch 1/3  step 2/40  loss ", "images/s", "left",
                 "spikes per step: conv1_1_lif 0.", "validation loss", "(best)", "python eval.py --workdir="):
        assert part in text, part


def test_metrics_have_every_step_once_and_no_gap(run: Path) -> None:
    events = runs.metrics(run)
    assert [event["step"] for event in events if event["event"] == "train"] == list(range(2, 121, 2))
    assert all({"train/loss", "train/accuracy", "learning_rate", "rate/pool2", "grad_norm/output"} <= event.keys()
               for event in events if event["event"] == "train")
    assert [event["learning_rate"] for event in events if event["step"] in (80, 82) and event["event"] == "train"] \
        == pytest.approx([0.2, 0.04])


@pytest.mark.slow
def test_the_energy_that_is_logged_is_that_of_a_report_within_noise(run: Path) -> None:
    from tfspike import analysis
    from tfspike.analysis.energy import EnergyModel

    model, config_, info, _ = run_loading.load_run(str(run), "last", **quiet)
    images = info.normalise(datasets.load(config_.dataset, "test").images[:300])
    report = EnergyModel().picojoules(analysis.operations(model, images)[0])
    last = [event for event in runs.metrics(run) if event["event"] == "epoch"][-1]
    assert last["energy/snn_pj_per_image"] == pytest.approx(report, rel=0.1)
    assert "mean over 32 held-out images" in make(val_fraction=0.02).board.energy_note
    assert "mean over 32 training images" in make(val_fraction=0.0).board.energy_note


def test_config_json_remembers_what_made_the_run(run: Path) -> None:
    record = json.loads((run / "config.json").read_text())
    assert config.read_run(str(run)) == config.from_json((run / "config.json").read_text())
    about = record["about"]
    assert {"keras", "numpy", "python", "tfspike"} <= about["versions"].keys()
    assert {"tensorflow", "tensorflow-cpu"} & about["versions"].keys()
    assert about["commands"] and about["data"]["split"]["num_val"] == 120
    assert {"val_crc32", "rule"} <= about["data"]["split"].keys()
    info = datasets.DatasetInfo.from_dict(about["data"]["info"])
    assert info.class_names == tuple("0123456789") and info.scale == (1 / 510,)


def test_validation_records_are_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    described, describe = [], datasets.describe
    monkeypatch.setattr(datasets, "describe", lambda data, indices, augment: (
        described.append(indices) or describe(data, indices, augment)))
    trainer = make(hidden=50, timesteps=10, batch_size=16, val_fraction=0.02)
    np.testing.assert_array_equal(described, [trainer.train_index], "pixels are normalised by the training records")
    assert not set(trainer.train_index) & set(trainer.val_index) and len(trainer.val_index) == 120
    seen = np.concatenate([trainer.stream.records(step) for step in range(2 * trainer.stream.steps_per_epoch)])
    assert not set(seen) & set(trainer.val_index)


def test_last_and_best_are_what_the_metrics_say(run: Path) -> None:
    accuracy = {event["step"]: event["epoch/val_accuracy"] for event in runs.metrics(run) if event["event"] == "epoch"}
    best = max(accuracy, key=accuracy.__getitem__)
    assert checkpoints.target_of(str(run / "checkpoints"), "best") == best
    assert checkpoints.target_of(str(run / "checkpoints"), "last") == 120


def test_first_weights_are_scaled_on_the_first_batch_to_the_rate_that_was_asked_for(
        monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def initialise(*args: Any) -> dict[str, float]:
        given.extend(args)
        return {"conv1_1_lif": 0.2, "conv2_1_lif": 0.1}

    monkeypatch.setattr("tfspike.training.trainer.initialise_rates", initialise)
    lines: list[str] = []
    trainer = make(init="rate", target_rate=0.2, seed=3)
    trainer.say = lines.append
    trainer.initialise(None)
    model, images, target, seed = given
    assert model is trainer.model and (target, seed) == (0.2, 3)
    np.testing.assert_array_equal(images, trainer.stream.batch(0)[0])
    assert lines == ["First weights scaled to 0.2 spikes per step in 1 layer. No scale brings conv2_1_lif there: 0.1."]


# ---- the step ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip_norm, loss_kind, smoothing", [(0.0, "cross_entropy", 0.1), (0.05, "squared", 0.0)])
def test_an_update_is_the_clipped_gradient_and_l2_decay_times_the_rate(clip_norm: float, loss_kind: str,
                                                                       smoothing: float) -> None:
    trainer = make(encoder="direct", clip_norm=clip_norm, weight_decay=0.01, learning_rate=0.5, loss=loss_kind,
                   label_smoothing=smoothing)
    images, labels = trainer.stream.batch(0)
    variables = trainer.model.trainable_variables
    before = [v.value.numpy() for v in variables]
    with tf.GradientTape() as tape:
        output, activity = trainer.model.observe(images, training=True)
        targets = (1.0 - smoothing) * np.eye(10, dtype="f")[labels] + smoothing / 10.0
        loss = (tf.reduce_sum((output - targets)**2) if loss_kind == "squared" else
                -tf.reduce_sum(targets * tf.nn.log_softmax(output))) / len(labels)
    assert all(float(tf.reduce_sum(count)) > 0 for count in activity.values())
    grads = [g.numpy().astype("d") for g in tape.gradient(loss, [v.value for v in variables])]
    norm = math.sqrt(sum((g**2).sum() for g in grads))
    assert norm > 0.05, "clipping must have something to do"
    scale = min(1.0, clip_norm / norm) if clip_norm else 1.0
    numbers = trainer.train_step.numbers(trainer.train_step(images, labels))
    for variable, old, grad in zip(variables, before, grads):
        wanted = old - 0.5 * (scale * grad + 0.01 * old)
        np.testing.assert_allclose(variable.value.numpy(), wanted, rtol=1e-5, atol=1e-6)
    assert numbers["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert numbers["correct"] == (output.numpy().argmax(1) == labels).sum()


@pytest.mark.parametrize("gradient", ["event", "rate"])
def test_a_penalty_of_spikes_is_the_mean_rate_of_all_neurons_times_it(gradient: str) -> None:
    trainer = make(encoder="direct", learning_rate=0.5, clip_norm=0.0, weight_decay=0.0, gradient=gradient,
                   spike_penalty=3.0)
    images, labels = trainer.stream.batch(0)
    variables = trainer.model.trainable_variables
    before = [v.value.numpy() for v in variables]
    with tf.GradientTape(persistent=True) as tape:
        output, activity = trainer.model.observe(images, training=True)
        loss = tf.reduce_sum((output - np.eye(10, dtype="f")[labels])**2) / len(labels)
        neurons = tf.concat([tf.reshape(count, [len(labels), -1]) for count in activity.values()], 1)
        rate = tf.reduce_mean(neurons) / trainer.model.timesteps
        penalised = loss + 3.0 * rate
    grads, alone = (tape.gradient(of, [v.value for v in variables]) for of in (penalised, loss))
    assert np.abs(grads[0] - alone[0]).max() > 0.01 * np.abs(alone[0]).max()
    numbers = trainer.train_step.numbers(trainer.train_step(images, labels))
    for variable, old, grad in zip(variables, before, grads):
        np.testing.assert_allclose(variable.value.numpy(), old - 0.5 * grad.numpy(), rtol=1e-5, atol=1e-6)
    assert numbers["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert numbers["firing_rate"] == pytest.approx(float(rate), rel=1e-5)
    assert numbers["spike_penalty"] == pytest.approx(3.0 * numbers["firing_rate"], rel=1e-5)
    assert 0.005 < numbers["firing_rate"] < 0.5
    usual = make(encoder="direct")
    assert "firing_rate" not in usual.train_step.numbers(usual.train_step(images, labels))


@pytest.mark.parametrize("gradient", ["event", "rate"])
def test_what_a_layer_adds_to_the_loss_is_minimised(gradient: str) -> None:
    trainer = make(encoder="direct", learning_rate=0.5, clip_norm=0.0, weight_decay=0.0, gradient=gradient)
    trainer.model.get_layer("conv1_1_lif").activity_regularizer = keras.regularizers.L1(1e-3)
    images, labels = trainer.stream.batch(0)
    first = trainer.model.trainable_variables[0]
    before = first.value.numpy()
    with tf.GradientTape(persistent=True) as tape:
        output = trainer.model(images, training=True)
        loss = tf.reduce_sum((output - np.eye(10, dtype="f")[labels])**2) / len(labels)
        (added,) = trainer.model.losses
        whole = loss + added
    grad, alone = (tape.gradient(of, first.value) for of in (whole, loss))
    assert float(added) > 0.0 and np.abs(grad - alone).max() > 0.01 * np.abs(alone).max()
    numbers = trainer.train_step.numbers(trainer.train_step(images, labels))
    np.testing.assert_allclose(first.value.numpy(), before - 0.5 * grad.numpy(), rtol=1e-5, atol=1e-6)
    assert numbers["loss"] == pytest.approx(float(whole), rel=1e-5)


def test_adamw_decays_on_its_own_and_adam_in_the_gradient() -> None:
    def made(**settings: Any) -> Any:
        return optimisation.make_optimizer(runs.tiny("unused", **settings), [keras.Variable([1.0])])

    assert made(optimizer="adamw", weight_decay=0.1).weight_decay == 0.1
    assert made(optimizer="adam", weight_decay=0.1).weight_decay is None
    assert made(optimizer="sgd").momentum == 0.0


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weights_of_synapses_decay_whatever_the_optimiser_and_nothing_else_does(optimizer: str) -> None:
    trainer = make(encoder="direct", norm="tdbn", learn=("threshold",), surrogate="arctan", gradient="event", init="normal",
                   optimizer=optimizer, learning_rate=0.1, weight_decay=0.5, clip_norm=0.0)
    variables = trainer.model.trainable_variables
    before = [variable.numpy() for variable in variables]
    trainer.train_step._apply([tf.zeros_like(variable.value) for variable in variables], variables, 1)
    for variable, old in zip(variables, before):
        np.testing.assert_allclose(variable, old * (0.95 if variable.path.endswith("kernel") else 1.0), rtol=1e-6)
    assert {path.rsplit("/")[-1] for path in (v.path for v in variables)} == {"kernel", "gamma", "beta", "threshold"}


def test_milestones_multiply_the_learning_rate_after_finished_epochs() -> None:
    settings = runs.tiny("unused", learning_rate=1.0, lr_milestones=(2, 5), lr_factor=0.1)
    rates = [schedule.learning_rate(settings, 10 * done, 10) for done in (0, 1, 2, 4, 5)]
    assert rates == pytest.approx([1, 1, .1, .1, .01])
    assert schedule.learning_rate(settings, 19, 10) == 1  # an epoch has ended only after its last step
    settings = dataclasses.replace(settings, epochs=9, warmup_epochs=3)
    rates = [schedule.learning_rate(settings, step, 10) for step in (0, 14, 19, 20, 29, 30, 50)]
    assert rates == pytest.approx([1 / 30, 15 / 30, 20 / 30, .07, .1, .1, .01])


def test_cosine_falls_to_zero_over_all_epochs_after_the_warm_up() -> None:
    settings = runs.tiny("unused", learning_rate=2.0, epochs=5, lr_schedule="cosine", lr_milestones=(), warmup_epochs=1)
    rates = [schedule.learning_rate(settings, step, 10) for step in range(51)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10] == 2.0 and rates[30] == pytest.approx(1.0) and rates[50] == 0.0
    assert all(a > b for a, b in zip(rates[10:], rates[11:]))


def test_running_sums_go_through_json_bit_for_bit() -> None:
    sums = Sums()
    for value in (0.1, 0.2, 1e-17):
        sums.add({"loss": value})
    assert Sums(**json.loads(json.dumps(dataclasses.asdict(sums)))) == sums
    assert sums.means()["loss"] == (0.1 + 0.2 + 1e-17) / 3


# ---- evaluation --------------------------------------------------------------------------------------------------


def test_accuracy_loss_and_classes_of_answers_worked_by_hand() -> None:
    outputs = np.array([[.9, .1, 0], [.2, .7, 0], [.6, .4, 0], [0, 1, 0]], np.float32)
    result = evaluator.Result(outputs, np.array([0, 1, 1, 1]), {})
    assert result.accuracy == 0.75
    assert result.loss == pytest.approx(((.01 + .01) + (.04 + .09) + (.36 + .36) + 0) / 4, rel=1e-6)
    np.testing.assert_allclose(result.per_class, [1.0, 2 / 3, np.nan])


def test_an_evaluation_repeats_and_another_draw_differs() -> None:
    evaluator = make(timesteps=6, val_fraction=45 / 6000).evaluator
    assert evaluator is not None
    first, again, other = evaluator.run(0), evaluator.run(0), evaluator.run(1)
    assert len(first.outputs) == len(first.labels) == 45 and 45 % evaluator.stream.batch_size
    assert min(first.rates.values()) > 0
    np.testing.assert_array_equal(first.outputs, again.outputs)
    assert first.rates == again.rates and (first.outputs != other.outputs).any()


def test_a_remainder_changes_no_answer() -> None:
    trainer = make(encoder="direct", timesteps=6, val_fraction=45 / 6000)
    answers = [evaluator.Evaluator(trainer.model, trainer.data.images, trainer.data.labels, trainer.info, part,
                                    trainer.val_index).run() for part in (45, 7)]
    np.testing.assert_allclose(answers[0].outputs, answers[1].outputs, atol=1e-6)
    assert answers[0].rates == pytest.approx(answers[1].rates, rel=1e-5)
    assert np.abs(answers[0].outputs).max() > 0.01


def test_a_workdir_is_all_that_evaluation_needs(run: Path) -> None:
    lines: list[str] = []
    record = evaluation.evaluate_run(EvalOptions(workdir=str(run), seeds=2, batch_size=100), lines.append)
    assert record["records"] == 1000 and record["seeds"] == 2 and record["timesteps"] == 10
    assert record["test_accuracy"] == pytest.approx(np.mean(record["test_accuracies"])) and record["test_accuracy"] > 0.4
    assert record["test_accuracy_std"] == pytest.approx(np.std(record["test_accuracies"], ddof=1))
    assert np.mean(list(record["per_class"].values())) == pytest.approx(record["test_accuracy"])  # classes of equal size
    assert set(record["rates"]) == {"conv1_1_lif", "pool1", "conv2_1_lif", "pool2", "hidden_lif"}
    assert json.loads(evaluation.json_line(record)) == record
    assert "test accuracy" in evaluation.describe(record)


@pytest.mark.slow
def test_a_part_of_the_test_records_is_the_first_of_them(run: Path) -> None:
    lines: list[str] = []
    options = EvalOptions(workdir=str(run), seeds=1)
    record = evaluation.evaluate_run(dataclasses.replace(options, images=150), lines.append)
    model, settings, info, _ = run_loading.load_run(str(run))
    test = datasets.load("mnist_subset", "test")
    answers = evaluator.Evaluator(model, test.images[:150], test.labels[:150], info, settings.batch_size).run()
    assert record["records"] == 150 and record["test_accuracy"] == answers.accuracy < 1
    assert "the first 150 of 1,000 test records" in lines
    all_of_them = dataclasses.replace(options, images=5000, batch_size=250)
    assert evaluation.evaluate_run(all_of_them, lines.append)["records"] == 1000


def test_a_run_is_loaded_with_the_weights_of_its_checkpoint(run: Path) -> None:
    model, settings, info, checkpoint = run_loading.load_run(str(run), "last", timesteps=5)
    arrays = checkpoint.arrays("model")
    assert checkpoint.step == 120 and model.timesteps == 5 and settings.timesteps == 10 and info.num_classes == 10
    assert all(np.array_equal(arrays[v.path], v.value.numpy()) for v in model.trainable_variables)


@pytest.mark.parametrize(("damage", "sentence"), [
    (lambda folder: (folder / "config.json").unlink(), "config.json"),
    (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
    (lambda folder: (folder / "checkpoints" / "best").unlink(), None),
    (lambda folder: [path.write_bytes(b"") for path in folder.glob("checkpoints/*/model.npz")], "damaged"),
])
def test_a_damaged_workdir_is_explained(run: Path, tmp_path: Path, damage: Any, sentence: str | None) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy, symlinks=True)
    damage(copy)
    if sentence is None:
        assert run_loading.load_run(str(copy), **quiet)[3].step == 120  # the newest stands in
        return
    with pytest.raises(UserError, match=sentence):
        run_loading.load_run(str(copy), **quiet)


# ---- weights from elsewhere --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [pytest.param("workdir", marks=pytest.mark.slow), "checkpoint",
                                  *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("keras", "saved_model"))])
def test_a_new_run_can_begin_with_weights_from(kind: str, run: Path, tmp_path: Path) -> None:
    model, settings, info, checkpoint = run_loading.load_run(str(run), "best", **quiet)
    path = {"workdir": run, "checkpoint": checkpoint.path, "keras": tmp_path / "model.keras",
            "saved_model": tmp_path / "saved_model"}[kind]
    if kind == "keras":
        model.save(path)
    elif kind == "saved_model":
        from tfspike.export import saved_model

        saved_model.write(model, info, str(path))
    trainer = make(tmp_path / "run", hidden=50, timesteps=4, seed=5)
    assert any((a.value.numpy() != b.value.numpy()).any()
               for a, b in zip(trainer.model.trainable_variables, model.trainable_variables))
    trainer.initialise(str(path))
    for mine, theirs in zip(trainer.model.trainable_variables, model.trainable_variables):
        np.testing.assert_array_equal(mine.value.numpy(), theirs.value.numpy())
    assert all(int(v.value.numpy()) == 0 for v in trainer.model.non_trainable_variables), "a new run starts at step 0"


def test_running_statistics_come_with_the_weights(tmp_path: Path) -> None:
    settings = {"norm": "tdbn", "surrogate": "arctan", "encoder": "direct", "steps_per_epoch": 2, "epochs": 1,
                "lr_milestones": ()}
    assert training.run(runs.tiny(tmp_path / "first", **settings), say=lambda line: None) == 0
    strategy = distribution.make_strategy("one")
    trainer = Trainer(runs.tiny(tmp_path / "second", seed=1, **settings), strategy, distribution.Worker(),
                               lambda line: None)
    trainer.initialise(str(tmp_path / "first"))
    saved = standing.open_checkpoint(str(tmp_path / "first"), lambda line: None, "best").arrays("model")
    found = {v.path: v.value.numpy() for v in trainer.model.variables if "moving" in v.path}
    assert len(found) == 4 and all(values.any() for values in found.values())
    for path, values in found.items():
        np.testing.assert_array_equal(values, next(v for name, v in saved.items() if path in name))


def test_weights_of_another_network_are_refused(run: Path) -> None:
    with pytest.raises(UserError, match="another network"):
        make(hidden=40).initialise(str(run))


def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.keras").write_bytes(b"no archive")
    with pytest.raises(UserError, match="cannot be read as a .keras file"):
        make().initialise(str(tmp_path / "x.keras"))


# ---- what goes wrong ---------------------------------------------------------------------------------------------


def test_numbers_that_are_not_finite_stop_the_run_with_code_4_and_a_good_checkpoint(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = runs.tiny(tmp_path, learning_rate=1e30, checkpoint_every=1)
    assert training.run(settings, **quiet) == 4
    assert "last good checkpoint" in capsys.readouterr().err
    arrays = checkpoints.read(str(tmp_path / "checkpoints" / "last")).arrays("model")
    assert all(np.isfinite(array).all() for array in arrays.values())


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"batch_size": 7000}, "larger than the 5976 training records"),
    ({"dataset": "cifar10", "data_dir": "missing"}, "does not exist"),
    ({"model": "vgg16"}, "images of at least"),
])
def test_settings_that_the_data_forbid_are_refused(settings: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        training.run(runs.tiny(tmp_path / "run", **settings), **quiet)


def test_a_dry_run_tries_every_stage_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "free_memory", lambda: 50_000_000)
    temporary, lines = tmp_path / "temporary", []
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    settings = runs.tiny(tmp_path / "run", batch_size=512, init="rate")
    assert training.run(settings, RunOptions(dry_run=True), lines.append) == 0
    text = "\n".join(lines)
    for part in ("New run in", "step 2: loss", "spikes/step", "at batch 512", "evaluation of 8 records", "checkpoint: ",
                 "Warning: Training needs about"):
        assert part in text, part
    assert not (tmp_path / "run").exists() and not list(temporary.glob("tfspike-dry-run-*"))


def test_a_dry_run_refuses_what_the_run_would(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for settings, sentence in [({"workdir": str(tmp_path / "file" / "run")}, "Cannot write into the workdir"),
                               ({"batch_size": 7000}, "larger than the")]:
        with pytest.raises(UserError, match=sentence):
            training.run(runs.tiny(settings.pop("workdir", tmp_path / "run"), **settings),
                         RunOptions(dry_run=True), **quiet)


@pytest.mark.parametrize(("options", "begun"), [({}, False), ({"dry_run": True}, False), ({}, True),
                                                ({"dry_run": True}, True)])
def test_ctrl_c_names_a_command_that_goes_on_only_where_there_is_something_to_go_on_with(
        options: dict[str, bool], begun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    settings, lines = runs.tiny(tmp_path / "run"), []
    if begun:
        runs.killed_at(monkeypatch, settings, 2)
    monkeypatch.setattr(command, "Trainer", interrupted)
    monkeypatch.setattr(dry_run, "Trainer", interrupted)
    assert training.run(settings, RunOptions(**options), lines.append) == 130
    goes_on = begun and not options
    assert ("--config=" in lines[-1]) is goes_on and (lines[-1] == "Stopped by Ctrl-C; nothing was trained.") is not goes_on


@pytest.mark.parametrize("workdir_had_steps", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_profile_of_a_few_steps_is_written_where_tensorboard_looks(tmp_path: Path, workdir_had_steps: bool) -> None:
    folder = tmp_path / "run"
    if workdir_had_steps:
        assert training.run(runs.tiny(folder, epochs=1), say=lambda line: None) == 0
    lines: list[str] = []
    assert training.run(runs.tiny(folder, profile=True), say=lines.append) == 0
    first, last = (6, 6) if workdir_had_steps else (4, 6)
    assert [line for line in lines if line.startswith(f"Profile of steps {first} to {last} written to")]
    assert list((folder / "tb").rglob("*.xplane.pb"))


@pytest.mark.parametrize("name", ["tb/other/events.out.tfevents.1", "metrics.jsonl"])
@pytest.mark.parametrize("from_another", [False, True])
def test_what_a_run_would_replace_of_somebody_elses_is_left(name: str, from_another: bool, run: Path,
                                                            tmp_path: Path) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("of the user")
    options = RunOptions(resume=str(run)) if from_another else RunOptions()
    with pytest.raises(UserError, match=f"has {name.split('/')[0]} but no config.json.*another --workdir"):
        training.run(runs.tiny(tmp_path), options, **quiet)
    assert file.read_text() == "of the user" and not (tmp_path / ".lock").exists()


# ---- nothing is left of a command that is refused ------------------------------------------------------------------


@pytest.mark.parametrize("settings, options, message", [
    ({"dataset": "cifar10", "data_dir": "nowhere"}, {}, "does not exist"),
    ({"batch_size": 10_000}, {}, "larger than the"), ({"val_fraction": 0.00001}, {}, "val_fraction"),
    ({}, {"init_from": "nowhere"}, "nowhere"), ({}, {"resume": "must"}, "no run"), ({}, {"resume": "nowhere"}, "nowhere")])
@pytest.mark.parametrize("there", ["parent", "folder", "file"])
def test_a_refused_command_leaves_the_disk_as_it_was(tmp_path, settings, options, message, there):
    folder = tmp_path / "runs" / "mine"
    if there != "parent":
        folder.mkdir(parents=True)
    if there == "file":
        (folder / "notes.txt").write_text("of the user")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        training.run(runs.tiny(folder, **settings), RunOptions(**options), say=lambda line: None)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("error", [MemoryError("Unable to allocate 9 TiB"),
                                   tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")])
def test_memory_that_is_full_is_one_sentence_in_every_command(error: Exception, tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(command, "Trainer", full)
    monkeypatch.setattr(dry_run, "Trainer", full)
    monkeypatch.setattr(run_loading, "load_run", full)
    for work, advice in (
            (lambda: training.run(runs.tiny(tmp_path / "run"), **quiet), "a smaller --batch_size, fewer .*--gradient=rate"),
            (lambda: training.run(runs.tiny(tmp_path / "dry"), RunOptions(dry_run=True), **quiet), "--gradient=rate"),
            (lambda: eval_command.run(EvalOptions(workdir="x"), full), "a smaller --batch_size or"),
            (lambda: eval_command.run(EvalOptions(workdir="x", predict=("a.png",)), full), "fewer files at a time or"),
            (lambda: convert_command.run(ConversionOptions(run="x"), lambda line: None), "a smaller --calibration")):
        with pytest.raises(UserError, match=f"^Out of memory. Give .*{advice}"):
            work()


def test_a_full_disk_before_the_first_file_leaves_nothing_and_another_ones_lock_stays(tmp_path, monkeypatch):
    def full(path, write):
        Path(path).write_text("half of")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="is full"):
        patch.setattr(files, "write_bytes", full)
        training.run(runs.tiny(tmp_path / "run"), say=lambda line: None)
    assert not list(tmp_path.iterdir())
    lock = workdir.prepare(str(tmp_path / "run"))  # another process that has just begun
    with pytest.raises(UserError, match="Another process"):
        training.run(runs.tiny(tmp_path / "run"), say=lambda line: None)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    lock.close()
