"""--kernel=auto: what is measured, what it says, and that a run keeps what it began with."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import runs
from tfspike import LIF, OverTime, Readout, SpikeInput, SpikingModel, distribution, models, training
from tfspike.config import RunOptions
from tfspike.engine.events import choice, runner
from tfspike.evaluation import command
from tfspike.evaluation.options import EvalOptions
from tfspike.runs import checkpoints, loading, standing

pytest.importorskip("numba")

T, B = 8, 4


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets how many seconds this machine takes for dense convolutions, and whether any batch is worth a measurement."""
    def set_to(seconds: float) -> None:
        monkeypatch.setattr(choice, "SMALLEST_BATCH", 0.0)
        monkeypatch.setattr(choice, "_dense", lambda plan, images: seconds)
    return set_to


def dense_net(units: int, kernel: float) -> SpikingModel:
    """One layer of neurons, which fire at every step or never."""
    inputs = keras.Input((T, units))
    start = keras.initializers.Constant(kernel)
    x = LIF(0.9)(OverTime(keras.layers.Dense(units, use_bias=False, kernel_initializer=start))(SpikeInput(T)(inputs)))
    return SpikingModel(inputs, Readout(0.9)(OverTime(keras.layers.Dense(3, use_bias=False))(x)))


@pytest.mark.parametrize(("share", "units", "kernel"), [(0.004, 1000, "events"), (1.0, 1000, "dense")])
def test_few_spikes_of_many_synapses_are_added_and_many_of_few_are_multiplied(
        share: float, units: int, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "SMALLEST_BATCH", 0.0)
    model = dense_net(units, 0.0 if kernel == "events" else 1.0)
    inputs = (np.random.default_rng(0).random((B, T, units)) < share).astype("f")
    found = model.choose_kernel(inputs)
    assert found.kernel == kernel, found.reason
    assert found.reason.startswith("0.000 spikes" if kernel == "events" else "1.000 spikes")
    assert (model.engine.events is not None) == (kernel == "events")


def test_seconds_are_those_of_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_measured", lambda work: (6.0, work()))
    model = dense_net(6, 1.0)
    seconds, rate = choice._events(runner.Runner(model.plan, "event"), np.ones((4, T, 6), "f"))
    assert (seconds, rate) == (1.5, 1.0)
    assert choice._dense(model.plan, 4) == 2 * 6.0 / 4  # two synapses


def test_the_margin_goes_to_dense_convolutions(monkeypatch: pytest.MonkeyPatch, measured: Any) -> None:
    model, inputs = dense_net(6, 1.0), np.ones((B, T, 6), "f")
    monkeypatch.setattr(choice, "_events", lambda runner, images: (1.0, 0.5))
    for seconds, kernel in ((1.2, "dense"), (1.3, "events")):
        measured(seconds / T)
        assert model.choose_kernel(inputs)[0] == kernel


def test_what_cannot_be_event_driven_or_is_too_small_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_measured", lambda work: pytest.fail("measured"))
    model, inputs = dense_net(6, 1.0), np.ones((B, T, 6), "f")
    assert model.choose_kernel(inputs) == ("dense", "a batch has 0 million multiply-accumulates, too few to measure")
    normalised = models.create("lenet", (12, 12, 1), 3, T, norm="tdbn", gradient="rate", encoder="direct")
    images = np.ones((B, 12, 12, 1), "f")
    assert re.match("not event-driven: .*whole window in training", normalised.choose_kernel(images).reason)
    assert "too few" in normalised.choose_kernel(images, training=False).reason
    with monkeypatch.context() as patch:
        patch.setattr(distribution, "has_gpu", lambda: True)
        assert "there is a GPU" in model.choose_kernel(inputs).reason
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "numba" else find(name, *rest))
    assert "pip install numba" in model.choose_kernel(inputs).reason
    assert model.engine.events is None


def spied(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Grows with every window that is traced event-driven."""
    forward, calls = runner.Runner.forward, []

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(True)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(runner.Runner, "forward", watched)
    return calls


def lines_of(config: Any, **options: Any) -> str:
    lines: list[str] = []
    assert training.run(config, RunOptions(**options), lines.append) == 0
    return "\n".join(lines)


def test_a_run_goes_on_as_it_began_on_any_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                  measured: Any) -> None:
    measured(1e9)
    whole = runs.tiny(tmp_path / "whole")
    said = lines_of(whole)
    assert re.search(r"Synapses: event-driven \(--kernel=auto: 0\.\d+ spikes per step and neuron; an image takes ", said)
    parts, other = runs.tiny(tmp_path / "parts"), runs.tiny(tmp_path / "other")
    runs.killed_at(monkeypatch, parts, 4)
    measured(0.0)
    calls = spied(monkeypatch)
    resumed = "Synapses: event-driven (--kernel=auto: as this run began)."
    assert resumed in lines_of(other, resume=str(tmp_path / "parts")) and calls
    assert runs.state(tmp_path / "whole") == runs.state(tmp_path / "other")
    calls.clear()
    assert resumed in lines_of(parts) and calls
    runs.assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert loading.load_run(str(tmp_path / "parts"))[0].engine.events is not None
    lines: list[str] = []
    command.evaluate_run(EvalOptions(workdir=str(tmp_path / "parts"), images=4, seeds=1, kernel="auto"), lines.append)
    assert re.match(r"--kernel=auto is dense: 0\.\d+ spikes", lines[0])


@pytest.mark.slow
def test_every_window_of_a_schedule_is_computed_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                   measured: Any) -> None:
    measured(1e9)
    calls = spied(monkeypatch)
    lines_of(runs.tiny(tmp_path / "run", encoder="direct", timesteps=4, timesteps_schedule=("2:1", "4:1"), steps_per_epoch=1))
    assert len(calls) == 4  # a step and a validation of each window


@pytest.mark.parametrize(("settings", "why"), [
    ({}, "a batch has [0-9]+ million multiply-accumulates, too few to measure"),
    pytest.param({"deterministic": True}, "a measurement would not be --deterministic", marks=pytest.mark.slow)])
def test_a_run_says_why_it_is_dense(settings: dict[str, Any], why: str, tmp_path: Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensorflow.config.experimental.enable_op_determinism", lambda: None)
    calls = spied(monkeypatch)
    said = lines_of(runs.tiny(tmp_path / "run", epochs=1, lr_milestones=(), steps_per_epoch=1, **settings))
    assert not calls
    assert re.search(rf"Synapses: dense convolutions \(--kernel=auto: {why}\)\.", said)


def test_checkpoints_of_earlier_versions_are_dense() -> None:
    assert standing.kernel_of(checkpoints.Checkpoint("", 0, {"progress": {}})) == "dense"
