"""`--method=NAME`: what each method is made of, what it leaves alone, and that it learns."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import runs
from tfspike import datasets, training
from tfspike.config import resolve, versions
from tfspike.config.methods import METHODS, OF_THE_PAPER, fixed
from tfspike.errors import UserError
from tfspike.runs import loading

TWINS = ("rueckauer", "quantised")  # ANNs, which are converted
SLOWER = {"once": {"epochs": 3, "steps_per_epoch": 160}}  # one spike per neuron says little, and begins with a wrong guess
HELD = ("batch_size", "epochs", "optimizer", "learning_rate", "timesteps", "lr_schedule", "dropout", "weight_decay")


@pytest.mark.parametrize("dataset", ["mnist_subset", "cifar10", "nmnist", "beans"])
@pytest.mark.parametrize("name", METHODS)
def test_a_run_has_what_its_method_is_made_of(name: str, dataset: str) -> None:
    if dataset == "nmnist" and name in TWINS:
        with pytest.raises(UserError, match="takes images, but nmnist holds spike trains"):
            resolve({"dataset": dataset}, method=name)
        return
    for model in ("lenet", "resnet20"):
        made = resolve({"model": model, "dataset": dataset}, method=name)
        of_method = fixed(name, dataset)
        assert {key: getattr(made, key) for key in of_method} == of_method
        own = {"once": "latency", **dict.fromkeys(OF_THE_PAPER, "poisson")}.get(name, "direct")
        if made.is_spiking:
            assert made.encoder == ("none" if dataset == "nmnist" else own)


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_methods_differ_in_nothing_that_a_comparison_holds_fixed(dataset: str) -> None:
    others = [resolve({"model": "vgg9", "dataset": dataset}, method=name) for name in METHODS
              if name not in (*OF_THE_PAPER, *TWINS)]
    twins = [resolve({"model": "vgg9", "dataset": dataset}, method=name) for name in TWINS]
    assert len({tuple(getattr(made, name) for name in HELD if name != "timesteps") for made in (*others, *twins)}) == 1
    assert len({tuple(getattr(made, name) for name in HELD) for made in others}) == 1 and len(others) >= 4
    assert len({made.workdir for made in others}) == len(others)


@pytest.mark.parametrize("name, given", [
    ("lee", {"surrogate": "arctan"}), ("lee_event", {"gradient": "rate"}), ("rate", {"norm": "none"}),
    ("tdbn", {"encoder": "poisson"}), ("stbp", {"neuron": "relu"}),
    ("quantised", {"levels": 4}), ("rueckauer", {"neuron": "lif"})])
def test_a_flag_that_contradicts_a_method_is_refused(name: str, given: dict[str, Any]) -> None:
    (flag, value), = given.items()
    with pytest.raises(UserError, match=f"--method={name} is --{flag}=.*received --{flag}={value}"):
        resolve(given, method=name)


def test_flags_that_a_method_says_nothing_of_are_free() -> None:
    assert resolve({"gradient": "event", "epochs": 2, "leak": 0.9}, method="lee").gradient == "event"
    assert resolve({"surrogate": "leak_aware"}, method="lee") == resolve({}, method="lee")
    assert resolve({"dataset": "nmnist", "encoder": "none"}, method="tdbn").encoder == "none"


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns(name: str, tmp_path: Path) -> None:
    short = {"epochs": 2, "steps_per_epoch": 40, "tensorboard": False, "export": (), "workdir": str(tmp_path),
             "val_fraction": 0.05, "hidden": 0, **({"timesteps": 15, "lr_milestones": ()} if name in OF_THE_PAPER else SLOWER.get(name, {}))}
    assert training.run(resolve(short, method=name), say=lambda line: None) == 0
    accuracy = [line["epoch/val_accuracy"] for line in runs.metrics(tmp_path) if line["event"] == "epoch"]
    assert accuracy[-1] > 0.7, accuracy


def test_neurons_that_fire_once_take_the_whole_window() -> None:
    """Of digits scaled to [0, .5] the brightest spikes at the first step; runs of before had none until the third."""
    info = datasets.DatasetInfo("mnist", (12, 12, 1), 10, tuple("0123456789"), (0.5 / 255,), (0.0,), False, 100, 100)
    found = resolve({"hidden": 0}, method="once")
    assert (found.encoder, found.earliest) == ("latency", "largest") and info.largest == 0.5
    assert loading.build_model(found, info).get_layer("encoder").largest == 0.5
    values = {name: value for name, value in dataclasses.asdict(found).items() if name != "earliest"}
    before = dataclasses.replace(found, **versions.completed(values))
    assert loading.build_model(before, info).get_layer("encoder").largest == 1.0
    with pytest.raises(UserError, match="--earliest=largest is of --encoder=latency"):
        resolve({"earliest": "largest"})
    assert resolve({"dataset": "nmnist"}, method="once").earliest == "one"
