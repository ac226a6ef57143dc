"""The presets: each is a legal experiment, those of the paper are its table, and the list shows them all."""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import re
from pathlib import Path

import pytest

from tfspike.config import FIELDS, flags, presets, resolve
from tfspike.config.presets import EXPERIMENTS, Experiment, Measured
from tfspike.errors import UserError
from tfspike.variants import VARIANTS

ROOT = Path(__file__).resolve().parents[1]
LONG = (70, 100, 125)
# Lee et al. 2020: T, batch, learning rate for the loss summed over the batch, epochs, milestones; then accuracy in % of
# the ANN, of the converted network and of the paper's. Rates without a source of their own are those of the next of kin.
PAPER = {
    "paper_lenet_mnist": ("lenet", "mnist", 50, 64, 0.0085, 125, (75,), 99.57, 99.59, 99.59),
    "paper_lenet_nmnist": ("lenet", "nmnist", 100, 64, 0.0085, 125, (75,), None, None, 99.09),
    "paper_vgg7_svhn": ("vgg7", "svhn_cropped", 100, 16, 0.0033, 150, LONG, 96.36, 96.30, 96.06),
    "paper_resnet7_svhn": ("resnet7", "svhn_cropped", 100, 16, 0.0025, 150, LONG, 96.43, 96.40, 96.21),
    "paper_vgg9_cifar10": ("vgg9", "cifar10", 100, 16, 0.0033, 150, LONG, 91.98, 92.01, 90.45),
    "paper_resnet9_cifar10": ("resnet9", "cifar10", 100, 16, 0.0025, 150, LONG, 91.85, 91.59, 90.35),
    "paper_resnet11_cifar10": ("resnet11", "cifar10", 100, 16, 0.0025, 150, LONG, 91.87, 91.65, 90.95)}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_preset_resolves_and_holds(name: str) -> None:
    made = resolve(preset=name)
    for setting, value in EXPERIMENTS[name].settings.items():
        assert getattr(made, setting) == value
    assert not {"workdir", "data_dir"} & set(EXPERIMENTS[name].settings)


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name != "quick"])
def test_an_experiment_says_all_that_makes_it_even_if_recipes_change(name: str) -> None:
    said = set(EXPERIMENTS[name].settings)
    assert said >= {"model", "dataset", "timesteps", "gradient", "encoder", "leak", "threshold", "dropout", "init", "kappa",
                    "epochs", "batch_size", "learning_rate", "lr_milestones", "lr_factor", "optimizer", "weight_decay",
                    "clip_norm", "val_fraction", "augment", "precision", "surrogate", "norm", "pooling", "loss",
                    "label_smoothing", "lr_schedule", "warmup_epochs"}
    assert said <= set(FIELDS)


def test_the_papers_presets_are_all_of_its_table() -> None:
    assert {name for name in EXPERIMENTS if name.startswith("paper_")} == set(PAPER)


@pytest.mark.parametrize("name", PAPER)
def test_a_preset_of_the_paper_is_its_row(name: str) -> None:
    model, dataset, steps, batch, rate, epochs, milestones, ann, converted, expected = PAPER[name]
    made, experiment = resolve(preset=name), EXPERIMENTS[name]
    assert (made.model, made.dataset, made.timesteps, made.batch_size) == (model, dataset, steps, batch)
    assert (made.epochs, made.lr_milestones, made.lr_factor) == (epochs, milestones, 0.2)
    # the loss is averaged here and summed there: a batch-mean loss takes lr * B and decay / B for the same updates
    assert made.learning_rate == pytest.approx(rate * batch, rel=1e-12)
    assert made.weight_decay == pytest.approx(5e-4 / batch, rel=1e-12)
    assert (made.gradient, made.optimizer, made.clip_norm, made.init) == ("event", "sgd", 0.0, "normal")
    assert (made.leak, made.threshold, made.precision, made.val_fraction) == (0.99, 1.0, "float32", 0.1)
    assert (made.surrogate, made.norm, made.pooling, made.loss) == ("leak_aware", "none", "neuron", "squared")
    assert (made.label_smoothing, made.lr_schedule, made.warmup_epochs) == (0.0, "milestones", 0)
    assert made.encoder == ("none" if dataset == "nmnist" else "poisson")
    assert (made.dropout, made.kappa) == {"lenet": (0.0, 2.0), "vgg7": (0.2, 2.0), "vgg9": (0.2, 2.0),
                                          "resnet7": (0.25, 1.0), "resnet9": (0.25, 1.0), "resnet11": (0.25, 1.0)}[model]
    assert made.augment == (dataset == "cifar10")  # digits are never mirrored
    assert made.extra == (dataset == "svhn_cropped")
    assert (experiment.ann, experiment.converted, experiment.expected) == (ann, converted, expected)


def test_the_conversion_from_summed_to_averaged_loss_gives_the_same_update() -> None:
    batch, rate, decay, weight = 16, 0.0033, 5e-4, 0.7
    gradients = [0.1 * i for i in range(batch)]
    made = resolve(preset="paper_vgg9_cifar10")
    summed = rate * (sum(gradients) + decay * weight)
    averaged = made.learning_rate * (sum(gradients) / batch + made.weight_decay * weight)
    assert averaged == pytest.approx(summed, rel=1e-12)


@pytest.mark.parametrize("dataset", ["mnist", "nmnist", "svhn_cropped", "cifar10"])
def test_every_data_set_of_the_paper_has_an_experiment_for_two_cores(dataset: str) -> None:
    found, = (resolve(preset=name) for name in EXPERIMENTS
              if name.startswith("cpu_") and EXPERIMENTS[name].settings["dataset"] == dataset)
    assert (found.gradient, found.precision, found.extra) == ("rate", "mixed_bfloat16", False)
    assert 25 <= found.timesteps <= 50 and found.epochs <= 10
    assert all(milestone < found.epochs for milestone in found.lr_milestones)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_page_says_its_command_and_a_measurement_is_whole(name: str) -> None:
    module = importlib.import_module(f"tfspike.config.presets.{name}")
    assert isinstance(module.EXPERIMENT, Experiment) and f"python train.py --preset={name}" in module.__doc__
    measured = module.EXPERIMENT.measured
    if measured is not None:
        assert 0 < measured.accuracy <= 100 and measured.draws >= 1 and measured.hours > 0 and measured.machine
        assert re.fullmatch(r"[0-9a-f]{7,40}\+?", measured.commit)
        datetime.date.fromisoformat(measured.date)


def test_the_list_shows_every_preset_with_its_accuracies(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = presets.listing().splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(EXPERIMENTS)
    assert lines[1 + list(EXPERIMENTS).index("paper_vgg7_svhn")].split() == [
        "paper_vgg7_svhn", "vgg7", "svhn_cropped", "+", "extra", "100", "150", "event", "96.06", "not", "yet"]
    measured = dataclasses.replace(EXPERIMENTS["quick"], measured=Measured(12.345, None, 1, "2026-01-31", "abcdef0", 0, 1.0, "x"))
    monkeypatch.setattr(presets, "EXPERIMENTS", {"quick": measured})
    assert "12.35" in presets.listing() or "12.34" in presets.listing()


def test_asking_for_the_list_prints_it_and_trains_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--preset=list"], ["--preset", "list", "--epochs=3"]):
        with pytest.raises(SystemExit) as stop:
            flags.parse(arguments)
        assert stop.value.code == 0
        assert capsys.readouterr().out.strip() == presets.listing()
    with pytest.raises(UserError, match="names no settings"):
        resolve(preset="list")


def test_the_readme_names_presets_that_exist() -> None:
    named = set(re.findall(r"--preset=(\w+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert named and named <= {*EXPERIMENTS, presets.LIST}
    assert all(EXPERIMENTS[name].settings.get("model", "lenet") in VARIANTS for name in named - {presets.LIST})
