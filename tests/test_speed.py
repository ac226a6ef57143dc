"""Images per second against spikes: what is measured, and where it is not."""

from __future__ import annotations

import importlib.util
from typing import Any

import keras
import numpy as np
import pytest

from tfspike import LIF, DirectEncoder, OverTime, SpikingModel, analysis, models
from tfspike.analysis import speed

IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 12, 12, 1)).astype("float32")


@pytest.fixture
def model() -> Any:
    """Every layer fires."""
    made = models.create("lenet", (12, 12, 1), 3, 3, hidden=0, encoder="direct", kernel="dense", seed=1)
    for weight in made.trainable_weights:
        weight.assign(weight.value * 3.0)
    return made


def test_both_kernels_are_timed_on_the_same_images_at_every_scale(model: Any) -> None:
    engine = model.engine
    points = speed.measure(model, IMAGES, scales=(0.1, 1.0), repeats=1)
    kernels = {"dense", "events"} if importlib.util.find_spec("numba") else {"dense"}
    assert [point.scale for point in points] == [0.1, 1.0] and points[0].spikes < points[1].spikes
    for point in points:
        assert point.per_second.keys() == point.per_cpu_second.keys() == kernels
        assert all(rate > 0 for rate in (*point.per_second.values(), *point.per_cpu_second.values()))
    counted = analysis.analyse(model, IMAGES, np.zeros(2, int))
    assert points[1].spikes == pytest.approx(sum(layer.spikes for layer in counted.layers if layer.kind != "input"))
    assert points[1].snn.acs == pytest.approx(counted.operations.acs) and points[1].ann.macs == counted.ann.macs
    assert model.engine is engine, "the network is computed as before"


def test_without_numba_dense_convolutions_are_timed_alone(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (point,) = speed.measure(model, IMAGES, scales=(1.0,), repeats=1)
    assert point.per_second.keys() == {"dense"}


def test_what_takes_spike_trains_is_not_timed() -> None:
    trains = np.ones((2, 3, 12, 12, 1), "float32")
    assert speed.measure(models.create("lenet", (12, 12, 1), 3, 3, hidden=0, encoder=None), trains) == []


@pytest.mark.usefixtures("layer_by_layer")
def test_what_is_computed_layer_by_layer_is_not_timed() -> None:
    image = keras.Input((12, 12, 1))
    no_readout = LIF(leak=0.9)(OverTime(keras.layers.Dense(3))(DirectEncoder(3)(image)))
    assert speed.measure(SpikingModel(image, no_readout), IMAGES) == []
