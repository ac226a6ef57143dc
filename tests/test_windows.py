"""--timesteps_schedule: a network over another window, the windows of a run, and how a schedule is said."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import runs
import tfspike
from tfspike import distribution, models, training
from tfspike.config import RunOptions, resolve
from tfspike.engine import folding
from tfspike.errors import UserError
from tfspike.models import variables
from tfspike.runs import checkpoints
from tfspike.training.trainer import Trainer

SCHEDULED = {"timesteps_schedule": ("4:1", "5:1"), "timesteps": 6, "epochs": 3, "lr_milestones": (), "optimizer": "adam",
             "log_every": 3}  # with checkpoints in between, so that they hold moments and sums


def quiet(line: str) -> None:
    pass


# ---- a network over another window --------------------------------------------------------------------------------


def small(timesteps: int, encoder: str = "poisson") -> Any:
    return models.create("lenet", (12, 12, 1), 3, timesteps, gradient="rate", encoder=encoder, hidden=0, kappa=8.0,
                         dropout=0.2, norm="tdbn", surrogate="arctan", seed=3)


@pytest.mark.parametrize("encoder", ["poisson", "latency"])
def test_another_window_is_the_network_that_is_built_for_it(encoder: str) -> None:
    short, built = small(5, encoder).with_timesteps(2), small(2, encoder)
    built.set_weights(small(5, encoder).get_weights())
    images = np.random.default_rng(0).uniform(0, 1, (4, 12, 12, 1)).astype("f")
    for training_ in (True, False):
        (scores, counts), (wanted, wanted_counts) = (net.observe(images, training=training_) for net in (short, built))
        np.testing.assert_array_equal(scores, wanted)
        for name, count in counts.items():
            assert count.numpy().max() <= 2
            np.testing.assert_array_equal(count, wanted_counts[name])
    assert short.timesteps == 2 and sum(count.numpy().sum() for count in counts.values()) > 0
    assert short.spiking_layers == built.spiking_layers and short.name == built.name


class Shaped(tfspike.SpikingModel):
    """A network with a constructor of its own, as one is told to write in Keras."""

    def __init__(self, timesteps: int = 4, **kwargs: Any):
        image = keras.Input((6,))
        x = tfspike.OverTime(keras.layers.Dense(8, kernel_initializer="ones"))(tfspike.DirectEncoder(timesteps)(image))
        x = tfspike.LIF(0.9, learn=("leak",), surrogate="triangular")(x)
        super().__init__(image, tfspike.Readout(0.9)(tfspike.OverTime(keras.layers.Dense(3))(x)), **kwargs)


class Handed(tfspike.SpikingModel):
    """One that hands on what it is given."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)


def test_a_subclass_with_a_constructor_of_its_own_has_other_windows_and_is_folded() -> None:
    model, x = Shaped(), np.random.default_rng(0).uniform(0, 1, (2, 6)).astype("f")
    for other, kind in ((model.with_timesteps(3), tfspike.SpikingModel), (folding.fold(model), tfspike.SpikingModel),
                        (Handed(model.input, model.output).with_timesteps(3), Handed)):
        assert type(other) is kind
        np.testing.assert_allclose(other(x), other.call_layers(x), rtol=1e-5)
    np.testing.assert_allclose(folding.fold(model)(x), model(x), rtol=1e-5)
    with pytest.raises(UserError, match="functional model.*subclass of keras.Model"):
        tfspike.SpikingModel()


def test_two_windows_have_one_set_of_weights_and_one_count_of_training_calls() -> None:
    model = small(5)
    short = model.with_timesteps(2)
    assert [id(weight) for weight in short.trainable_variables] == [id(weight) for weight in model.trainable_variables]
    before = [weight.numpy() for weight in model.variables]
    short.observe(np.ones((2, 12, 12, 1), "f"), training=True)
    after = {weight.path: weight.numpy() for weight in model.variables}
    assert after["encoder/step"] == 1 and any("moving_mean" in name for name in after)
    assert sum((old != new).any() for old, new in zip(before, after.values())) >= 4, "statistics and steps are shared"


def test_another_window_can_be_saved_and_loaded(tmp_path: Path) -> None:
    short = small(5).with_timesteps(2)
    images = np.random.default_rng(0).uniform(0, 1, (4, 12, 12, 1)).astype("f")
    short(images, training=True)
    short.save(tmp_path / "short.keras")
    loaded = keras.models.load_model(tmp_path / "short.keras")
    assert loaded.timesteps == 2 and int(loaded.get_layer("encoder").step.value) == 1
    np.testing.assert_array_equal(loaded(images), short(images))
    assert len(loaded.weights) == len(small(5).weights)


def test_a_spike_train_has_a_length_of_its_own() -> None:
    model = models.create("lenet", (12, 12, 1), 3, 5, encoder=None)
    with pytest.raises(UserError, match="spike trains of 5 steps"):
        model.with_timesteps(2)


# ---- a run ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("windows") / "run"
    lines: list[str] = []
    assert training.run(runs.tiny(folder, **SCHEDULED), say=lines.append) == 0
    assert "Windows: T = 4 in epoch 1, T = 5 in epoch 2, T = 6 in epoch 3." in lines
    (folder / "lines.txt").write_text("\n".join(lines))
    return folder


def weights(folder: Path, step: int) -> dict[str, np.ndarray]:
    return checkpoints.read(str(folder / "checkpoints" / checkpoints.name_of(step))).arrays("model")


@pytest.mark.slow
def test_the_first_epoch_is_that_of_a_run_over_its_window(whole: Path, tmp_path: Path) -> None:
    short = runs.tiny(tmp_path / "run", timesteps=4, epochs=1, lr_milestones=(), optimizer="adam")
    assert training.run(short, say=quiet) == 0
    first, second = ([event for event in runs.metrics(folder) if event["event"] == "epoch"][0]
                     for folder in (whole, tmp_path / "run"))
    same = ("epoch/train_loss", "epoch/train_accuracy", "epoch/val_loss", "epoch/val_accuracy", "epoch_rate/pool1")
    assert {name: first[name] for name in same} == {name: second[name] for name in same} and first[same[-1]] > 0


@pytest.mark.slow
def test_the_best_epoch_is_one_of_the_networks_own_window(whole: Path) -> None:
    assert checkpoints.target_of(str(whole / "checkpoints"), "best") in (7, 8, 9)
    assert (whole / "lines.txt").read_text().count("(best)") == 3, "each window's first epoch is its best so far"


@pytest.mark.parametrize("step", [5, *(pytest.param(step, marks=pytest.mark.slow) for step in (3, 4, 8))])
def test_a_run_killed_in_any_window_ends_as_an_uninterrupted_one(whole: Path, tmp_path: Path, step: int,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    config = runs.tiny(tmp_path / "run", **SCHEDULED)
    runs.killed_at(monkeypatch, config, step)
    assert training.run(config, say=quiet) == 0
    runs.assert_same_run(whole, tmp_path / "run")
    assert any((weights(whole, 9)[name] != values).any() for name, values in weights(whole, 8).items())


def test_a_dry_run_tries_the_first_and_the_last_window(tmp_path: Path) -> None:
    said: list[str] = []
    made = runs.tiny(tmp_path / "run", **{**SCHEDULED, "timesteps_schedule": ("2:2",)})
    assert training.run(made, RunOptions(dry_run=True), said.append) == 0
    steps = [line for line in said if line.startswith("step ")]
    assert len(steps) == 2 and all("with compilation" in line for line in steps)


def test_several_windows_train_one_optimiser(tmp_path: Path) -> None:
    trainer = Trainer(runs.tiny(tmp_path, **SCHEDULED), distribution.make_strategy("one"),
                      distribution.Worker(), quiet)
    for epoch in (0, 2):
        trainer.windows.at(epoch).train_step(*trainer.stream.batch(epoch))
    assert trainer.windows.at(2).train_step.model is trainer.model
    assert int(trainer.optimizer.iterations) == 2 and trainer.windows.at(0) is trainer.windows.at(0)
    moments = variables.collect(trainer.optimizer.variables)
    assert len([name for name in moments if "momentum" in name]) == len(trainer.model.trainable_variables)


# ---- how it is said ------------------------------------------------------------------------------------------------


def schedule(**given: Any) -> tuple[Any, ...]:
    made = resolve({"encoder": "poisson", "lr_milestones": (), **given})
    return made.timesteps_schedule, made.timesteps, made.epochs


def test_a_schedule_says_epochs_and_window_where_nothing_else_does() -> None:
    asked = ("1:16", "4:4")
    assert schedule(timesteps_schedule=asked) == (("1:16",), 4, 20)
    assert schedule(timesteps_schedule=asked, timesteps=4) == (("1:16",), 4, 20)
    assert schedule(timesteps_schedule=asked, epochs=20) == (("1:16",), 4, 20)
    assert schedule(timesteps_schedule=asked, epochs=30, timesteps=8) == (asked, 8, 30)
    assert schedule(timesteps_schedule=(), epochs=3, timesteps=8) == ((), 8, 3)


def test_a_recipes_schedule_follows_the_epochs_and_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"timesteps": 4, "epochs": 20, "timesteps_schedule": ("1:10", "2:5")}
    monkeypatch.setattr("tfspike.config.recipes.RECIPES", {("lenet", "mnist_subset"): row})
    assert schedule() == (("1:10", "2:5"), 4, 20)
    assert schedule(epochs=8) == (("1:4", "2:2"), 4, 8)
    assert schedule(epochs=1) == ((), 4, 1)
    assert schedule(timesteps=2) == (("1:10",), 2, 20)
    assert schedule(timesteps=1) == ((), 1, 20)
    assert resolve({"encoder": "none", "dataset": "nmnist"}).timesteps_schedule == ()
    assert resolve({"neuron": "relu"}).timesteps_schedule == ()


def test_every_epoch_has_its_window() -> None:
    made = resolve({"timesteps_schedule": ("1:2", "3:1", "4:2")})
    assert [made.timesteps_at(epoch) for epoch in range(6)] == [1, 1, 3, 4, 4, 4]


@pytest.mark.parametrize("given, part", [
    ({"timesteps_schedule": ("1:16",), "timesteps": 4, "epochs": 16}, "end it with 4:EPOCHS"),
    ({"timesteps_schedule": ("1:16", "4:8"), "timesteps": 4, "epochs": 20}, "more than the 20 of --epochs"),
    ({"timesteps_schedule": ("1",)}, "takes a list of pairs T:epochs"), ({"timesteps_schedule": ("0:3",)}, "list of pairs"),
    ({"timesteps_schedule": ("1:2", "4:2"), "dataset": "nmnist", "encoder": "none"}, "needs images"),
    ({"timesteps_schedule": ("1:2", "4:2"), "neuron": "relu"}, "is for spiking neurons"),
])
def test_a_schedule_that_cannot_be_is_refused(given: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        resolve(given)


def test_a_schedule_goes_through_files_and_is_part_of_the_experiment(tmp_path: Path) -> None:
    from tfspike import config

    made = runs.tiny(tmp_path, **SCHEDULED)
    text = config.to_json(made)
    assert config.from_json(text) == made and json.loads(text)["config"]["timesteps_schedule"] == ["4:1", "5:1"]
    other = dataclasses.replace(made, timesteps_schedule=("2:2",))
    with pytest.raises(UserError, match=r"timesteps_schedule \(was 4:1,5:1, now 2:2\)"):
        config.check_resumable(made, other)
    config.check_resumable(made, dataclasses.replace(made, epochs=9))
