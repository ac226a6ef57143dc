"""Recordings of any event camera as spike trains: from tonic's data sets, or from whatever gives events and labels.

    data = tonic.datasets.DVSGesture(save_to="data", train=True)         # pip install tonic
    train = from_recordings(data, timesteps=20, window_ms=1500, size=(32, 32))
    train.images[:8]                                                     # uint8 [8, 20, 32, 32, 2]

Tonic (https://tonic.readthedocs.io) downloads DVS128 Gesture, CIFAR10-DVS, N-Caltech101 and others and has readers for
`.aedat`, `.bin` and `.npz` files. Nothing of it is imported here: a list of pairs does as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tfspike.checks import check_count
from tfspike.datasets.arrays import Arrays, check_labels
from tfspike.datasets.events import check_size
from tfspike.datasets.recording_source import binned
from tfspike.errors import UserError, listed

_NO_SENSOR = ("give the sensor's height and width, e.g. sensor=(180, 240), as these recordings do not say it in an "
              "attribute sensor_size")


def from_recordings(recordings: Any, timesteps: int, window_ms: float, size: tuple[int, int] | None = None,
                    sensor: tuple[int, int] | None = None, relative: bool = True,
                    class_names: Sequence[str] | None = None, name: str = "events", split: str = "train") -> Arrays:
    """Reads recordings one by one, scales them to `size`, and cuts them into `timesteps` bins.

    Pixels are merged, and several events of one pixel, polarity and bin are one spike; `EventFrames` says what is lost.

    Args:
      recordings: pairs (events, label), in a sequence or anything to iterate over; events are a structured array with
        the fields x, y, t in microseconds and p, or `events.Events`, labels whole numbers or text. A data set of tonic.
      timesteps: T, number of bins.
      window_ms: length of the window from the start of each recording, in milliseconds; later events are dropped.
      size: height and width of the spike trains, pixels; None takes the sensor's.
      sensor: height and width of the sensor; None takes `recordings.sensor_size`, which tonic gives as (W, H, P).
      relative: times count from the first event of each recording; False: from 0.
      class_names: in the order of their numbers; for a test part those of the training part. None takes
        `recordings.classes`, or else the different labels in order.
      name: of the data set, for messages.
      split: "train" or "test".

    Returns:
      `Arrays` whose images are `EventFrames`, `[N, T, H, W, 2]`.

    Raises:
      UserError: no recordings, none of what was named above, events that `check_events` refuses, an unknown label, or
        one class.
    """
    sensor = check_size(sensor if sensor is not None else _sensor_of(recordings, name))
    size = sensor if size is None else check_size(size)
    check_count("timesteps", timesteps)
    labels: list[Any] = []

    def events_of() -> Iterator[tuple[str, Any]]:
        for i, (events, label) in enumerate(_pairs(recordings, name)):
            labels.append(label)
            yield f"recording {i} of {name}", events

    frames = binned(events_of(), timesteps, window_ms, sensor, size, relative, name)
    numbers, names = _numbered(np.asarray(labels), class_names, getattr(recordings, "classes", None), name)
    counts = (len(numbers), 0) if split == "train" else (0, len(numbers))
    return Arrays(frames, check_labels(numbers, len(names), name, split), name, names, *counts, event_based=True)


def _sensor_of(recordings: Any, name: str) -> tuple[int, int]:
    """(H, W) of what tonic gives as (W, H, P)."""
    sensor = getattr(recordings, "sensor_size", None)
    if not isinstance(sensor, (tuple, list)) or len(sensor) < 2:
        raise UserError(f"the sensor of {name} is not known; {_NO_SENSOR}.")
    return int(sensor[1]), int(sensor[0])


def _pairs(recordings: Any, name: str) -> Iterator[tuple[Any, Any]]:
    # Data sets of tonic have a length and an index, and some go on for ever where they are iterated over
    every = (recordings[i] for i in range(len(recordings))) if hasattr(recordings, "__len__") else recordings
    for i, pair in enumerate(every):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise UserError(f"recording {i} of {name} must be a pair (events, label), received {type(pair).__name__}.")
        yield pair[0], pair[1]


def _numbered(labels: np.ndarray, class_names: Sequence[str] | None, classes: Any,
              name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Numbers of the classes [N], and the classes' names."""
    whole = labels.dtype.kind in "iu"
    if labels.ndim != 1 or not (whole or labels.dtype.kind == "U"):
        raise UserError(f"labels of {name} must be whole numbers or text, one per recording, received {labels.dtype} "
                        f"of shape {labels.shape}.")
    if isinstance(classes, dict):  # name to number
        classes = sorted(classes, key=classes.__getitem__)
    if classes is not None and whole:
        names = tuple(map(_text, classes))
        if class_names is not None and tuple(class_names) != names:
            raise UserError(f"{name} has the classes {listed(names)}, and class_names are {listed(class_names)}; leave "
                            "class_names out.")
        return labels, names
    names = tuple(class_names if class_names is not None else map(_text, classes if classes is not None else
                                                                  np.unique(labels)))
    places = {each: number for number, each in enumerate(names)}
    other = sorted({str(label) for label in labels} - set(places))
    if other:
        raise UserError(f"{name} has the label {other[0]!r}, which is none of the classes {listed(names)}.")
    return np.array([places[str(label)] for label in labels], np.int64), names


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
