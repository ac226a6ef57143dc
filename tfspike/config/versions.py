"""Settings that not every version has: what runs did that do not name one, and what became of those that are gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Added(NamedTuple):
    """A setting that runs of earlier versions do not name; they did what `before` says, whatever its default is now."""

    before: Any


class Replaced(NamedTuple):
    """A setting that only runs of earlier versions name; `by` makes today's settings of its value."""

    by: Callable[[Any], dict[str, Any]]


CHANGES: dict[str, Added | Replaced] = {
    "neuron": Added("lif"),
    "extra": Added(False),
    "image_size": Added(()),
    "sensor_size": Added(()),
    "window_ms": Added(None),
    "surrogate": Added("leak_aware"),
    "surrogate_width": Added(1.0),
    "credit": Added("mean"),
    "reset": Added("zero"),
    "start": Added(0.0),
    "running_start": Added(False),
    "feedback": Added("symmetric"),
    "readout": Added("membrane"),
    "earliest": Added("one"),
    "learn": Added(()),
    "homeostasis": Added(0.0),
    "norm": Added("none"),
    "pooling": Added("neuron"),
    "shortcut": Added("spikes"),
    "timesteps_schedule": Added(()),
    "loss": Added("squared"),
    "label_smoothing": Added(0.0),
    "lr_schedule": Added("milestones"),
    "warmup_epochs": Added(0),
    "min_steps_per_epoch": Added(0),
    "spike_penalty": Added(0.0),
    "kernel": Added("auto"),
    "levels": Added(0),
    "jit": Added("auto"),
    "stop_on_collapse": Replaced(lambda stop: {"on_collapse": "stop" if stop else "continue"}),
}


def translated(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of any version under today's names."""
    found = {}
    for name, value in values.items():
        change = CHANGES.get(name)
        found.update(change.by(value) if isinstance(change, Replaced) else {name: value})
    return found


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a run, of this version or an earlier one, with those that it did not know."""
    if values.get("neuron") == "relu" and "shortcut" not in values:
        values = {**values, "norm": "none"}  # until then train.py built ANNs without normalisation, whatever it said
    return {**{name: change.before for name, change in CHANGES.items() if isinstance(change, Added)}, **values}


def is_added(name: str) -> bool:
    """Whether runs of earlier versions do not name this setting."""
    return isinstance(CHANGES.get(name), Added)


def without_added(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings but for those added since that say what was done before: as the first version would have named them."""
    return {name: value for name, value in values.items() if CHANGES.get(name) != Added(value)}
