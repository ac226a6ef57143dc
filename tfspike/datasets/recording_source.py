"""Recordings of event cameras in files of the user's own, a folder per class: found, read, cut into spike trains.

Folders are laid out as `tfspike.datasets.class_folders` says. A file is one recording:

    .npy      a structured array with the fields x, y, t, p, as tonic's data sets give it
    .npz      arrays x, y, t, p, of shape [E] each
    .bin      events of 40 bits, as N-MNIST and N-Caltech101 have them (`tfspike.datasets.events`)
    .aedat    version 2 of a DVS128, and version 3, through tonic (https://tonic.readthedocs.io)

Times t are in microseconds; each recording begins with its first event. Nothing in a file is executed: arrays of
objects, which NumPy pickles, are refused.
"""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tfspike.datasets import class_folders
from tfspike.datasets.events import EventFrames, Events, check_events, decode
from tfspike.datasets.tfds_source import Split
from tfspike.errors import UserError, first_line
from tfspike.files import UNREADABLE, read_npz

_SUFFIXES = (".npy", ".npz", ".bin", ".aedat")
_ADVICE = "save recordings as structured arrays with the fields x, y, t, p, with numpy.save"
_DVS128 = (128, 128)


def load(split: str, data_dir: str | None, timesteps: int | None, sensor: Sequence[int], window_ms: float | None,
         size: Sequence[int] = (), like: Any = None) -> Split:
    """Reads one split, class by class, in the order of the files' names.

    Args:
      split: "train" or "test".
      data_dir: the folder.
      timesteps: T, number of bins.
      sensor: height and width of the sensor, pixels.
      window_ms: length of the window from the first event of each recording, in milliseconds.
      size: height and width that the sensor's pixels are merged to; () keeps them.
      like: the `DatasetInfo` of a network that the recordings are for, which then says the classes; None for a new one.

    Raises:
      UserError: as for `class_folders.find`; a setting is missing, a file cannot be read, or its events cannot be used
        (`events.check_events`).
    """
    if timesteps is None or window_ms is None or len(sensor) != 2:
        raise UserError("recordings are cut into T time steps of window_ms / T: timesteps, window_ms and sensor_size "
                        f"(height and width) are needed, received {timesteps}, {window_ms} and {tuple(sensor)}.")
    _, train, test, class_names = class_folders.find(_RECORDINGS, split, data_dir, like)
    part = train if split == "train" else test
    sensor = sensor[0], sensor[1]
    frames = binned(((file, _read(file, sensor)) for file in part.files), timesteps, window_ms, sensor,
                    (size[0], size[1]) if size else sensor, name="recordings")
    return Split(frames, part.labels, class_names, len(train.files), len(test.files))


def binned(recordings: Iterable[tuple[str, Any]], timesteps: int, window_ms: float, sensor: tuple[int, int],
           size: tuple[int, int], relative: bool = True, name: str = "events") -> EventFrames:
    """Merges the pixels of recordings, one after the other, and cuts them into bins.

    Args:
      recordings: what messages call each one, and its events, as `check_events` takes them.
      timesteps: T, number of bins.
      window_ms: length of the window.
      sensor, size: height and width of the sensor, and of the spike trains.
      relative: times count from the first event of each recording.
      name: of the data set, for messages.

    Raises:
      UserError: there is none, or `check_events` or `EventFrames` refuses them.
    """
    parts: list[Events] = []
    for called, events in recordings:
        x, y, t, p = check_events(events, sensor, called)
        start = t.min() if relative and len(t) else 0
        parts.append(Events((x.astype(np.int64) * size[1] // sensor[1]).astype(np.uint16),
                            (y.astype(np.int64) * size[0] // sensor[0]).astype(np.uint16),
                            (t - start).astype(np.int64), p))
    if not parts:
        raise UserError(f"{name} has no recordings; give pairs of events and label.")
    offsets = np.cumsum([0, *(len(part.t) for part in parts)], dtype=np.int64)
    every = Events(*(np.concatenate(field) for field in zip(*parts)))
    del parts  # as large as all of them together
    return EventFrames(every, offsets, timesteps, size, window_ms, name=name)


# --- files ------------------------------------------------------------------------------------------------------------


def _find(folders: Sequence[pathlib.Path]) -> list[list[str]]:
    """The recordings in each of some folders; one warning for what is none."""
    inside = [class_folders.files_below(folder) for folder in folders]
    other = [file for files in inside for file in files if file.suffix.lower() not in _SUFFIXES]
    if other:
        warnings.warn(f"{other[0]}{f' (and {len(other) - 1} more)' if len(other) > 1 else ''} has none of the suffixes "
                      f"{', '.join(_SUFFIXES)}, and was left out.", stacklevel=6)
    return [[str(file) for file in files if file.suffix.lower() in _SUFFIXES] for files in inside]


_RECORDINGS = class_folders.Kind("recordings", "recordings", f"recordings ({', '.join(_SUFFIXES)})", "*.npy", _find)


def _read(file: str, sensor: tuple[int, int]) -> Any:
    """The events of a file, as `check_events` takes them."""
    suffix = pathlib.Path(file).suffix.lower()
    if suffix == ".npz":
        return Events(**read_npz(file, Events._fields, _ADVICE))
    if suffix == ".aedat":
        return _read_aedat(file, sensor)
    try:
        return decode(pathlib.Path(file).read_bytes()) if suffix == ".bin" else np.load(file, allow_pickle=False)
    except UNREADABLE as error:
        advice = "an event takes 5 bytes there; copy it again, or leave it out" if suffix == ".bin" else _ADVICE
        raise UserError(f"{file} cannot be read ({first_line(error)}); {advice}.") from error


def _read_aedat(file: str, sensor: tuple[int, int]) -> Any:
    try:
        import tonic.io
    except ImportError as error:
        raise UserError(f"{file} is read with tonic ({error}): pip install tonic, or "
                        f"{_ADVICE}.") from None
    try:
        # of tonic's readers for a camera each, those for a DVS128 do not run in its version 1.7
        version, start, *_ = tonic.io.read_aedat_header_from_file(file)
        rows = tonic.io.get_aer_events_from_file(file, version, start)
    except Exception as error:  # whatever a damaged file makes the parser raise
        raise UserError(f"{file} cannot be read ({first_line(error)}); copy it again, or leave it out.") from error
    if version < 3 and sensor != _DVS128:
        raise UserError(f"{file} has version {version}, whose addresses differ from camera to camera; those of a "
                        f"DVS128, --sensor_size=128, are read here: read others with tonic.io, and {_ADVICE}.")
    x, y, p, bits = (8, 1, 0, 7) if version < 3 else (17, 2, 1, 15)  # places in the address, size of a coordinate
    address, largest = rows["address"], 2**bits - 1
    return Events(address >> x & largest, address >> y & largest, rows["timeStamp"], address >> p & 1)
