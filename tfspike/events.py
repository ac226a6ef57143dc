"""N-MNIST: what an event camera saw of the digits of MNIST, from its original files or from one archive.

A camera was moved over every digit in three saccades of 100 ms and noted, at each of 34x34 pixels, when it became
lighter (on) or darker (off). Source: G. Orchard, A. Jayawant, G. K. Cohen, N. Thakor, "Converting Static Image Datasets
to Spiking Neuromorphic Datasets Using Saccades", Front. Neurosci. 9:437 (2015), doi 10.3389/fnins.2015.00437. Two
layouts are read:

    FOLDER/Train/0/00002.bin ... Train/9/  Test/0/ ... Test/9/      as the authors' Train.zip and Test.zip unpack
    FOLDER/nmnist*.npz                                              all recordings in one NumPy archive

**A .bin file** is one recording: events of 40 bits, one after the other, the highest bit first.

    bits 39-32   x, pixel column, 0 to 33
    bits 31-24   y, pixel row, 0 to 33
    bit  23      polarity, 0 off, 1 on
    bits 22-0    time since the start of the recording, microseconds

23 bits last 8.4 s and a recording .3 s, so no event marks an overflow of the clock (other sets in this format have such
marks, at y = 240; here they are refused as damage). Records are in the order of their file names, which number the
images of MNIST.

**An archive** has `x`, `y`, `t`, `p` of all events, one recording after the other: recording i has the events
`offsets[i]:offsets[i + 1]`; `label` is its digit, `index` its number, 1 to 60000 in train and above in test.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from tfspike.archives import read_npz
from tfspike.errors import UserError

__all__ = ["EventFrames", "Events", "Recordings", "decode", "find", "load", "read_archive", "read_bin", "read_folder"]

SIZE = 34  # pixels, height and width
CLASSES = 10
WINDOW_US = 300_000  # three saccades of 100 ms
EVENT_BYTES = 5
PARTS = {"train": "Train", "test": "Test"}

_BLOCK = 2**20  # events binned at a time: N-MNIST has 250 million, and 64-bit products of all of them would take 2 GB
_ADVICE = ("give --data_dir=FOLDER with the original Train/0..9/*.bin and Test/0..9/*.bin, or with an .npz that has "
           "the fields x, y, t, p, offsets, label, index")


class Events(NamedTuple):
    """Events, each field `[E]`: column and row of the pixel (uint8), time in microseconds (uint32), polarity 0 or 1."""

    x: Any
    y: Any
    t: Any
    p: Any


@dataclasses.dataclass(frozen=True)
class Recordings:
    """One split.

    Attributes:
      events: of all recordings, one after the other.
      offsets: int64 `[N + 1]`; recording i has the events `offsets[i]:offsets[i + 1]`.
      labels: digits `[N]`.
      num_train, num_test: recordings in the files, whichever split this is.
    """

    events: Events
    offsets: np.ndarray
    labels: np.ndarray
    num_train: int
    num_test: int

    def __len__(self) -> int:
        return len(self.labels)


class EventFrames:
    """Events of N recordings, binned on access: `frames[indices]` gives binary uint8 spike trains [B, T, H, W, 2].

    The window is fixed at 300 ms for every recording (bin width 300/T ms), so a bin means the same time everywhere;
    later events (0.25 % in the 1,100 recordings this was checked with) are dropped. Channel 0 is off, 1 is on. Several
    events of one pixel and polarity in one bin are one spike.

    Args:
      events: of all recordings, one after the other.
      offsets: `[N + 1]`, as in `Recordings`.
      timesteps: T, number of bins.
      size: height and width, pixels.
    """

    def __init__(self, events: Events, offsets: np.ndarray, timesteps: int, size: tuple[int, int] = (SIZE, SIZE)):
        self.shape = (len(offsets) - 1, timesteps, *size, 2)
        self._offsets = offsets
        cells = int(np.prod(self.shape[1:], dtype=np.int64))
        self._cell: Any = np.empty(len(events.t), np.int32 if cells < 2**31 else np.int64)
        for start in range(0, len(events.t), _BLOCK):
            x, y, t, p = (field[start:start + _BLOCK].astype(np.int64) for field in events)
            bins = t * timesteps // WINDOW_US
            cell = ((bins * size[0] + y) * size[1] + x) * 2 + p
            self._cell[start:start + _BLOCK] = np.where(bins < timesteps, cell, -1)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: Any) -> np.ndarray:
        chosen = np.arange(len(self))[indices]
        flat = np.zeros((np.size(chosen), int(np.prod(self.shape[1:]))), np.uint8)
        for row, record in zip(flat, np.atleast_1d(chosen)):
            cell = self._cell[self._offsets[record]:self._offsets[record + 1]]
            row[cell[cell >= 0]] = 1
        return flat.reshape(np.shape(chosen) + self.shape[1:])


# ---- either layout -------------------------------------------------------------------------------------------------


def load(split: str, data_dir: str | None) -> Recordings:
    """Reads one split of N-MNIST, in whichever layout `data_dir` has it.

    Args:
      split: "train" or "test".
      data_dir: the folder that holds it, or one that holds it in a folder nmnist, NMNIST or N-MNIST.

    Raises:
      UserError: nothing found, both layouts found, or damaged files.
    """
    place = find(data_dir)
    return read_folder(place, split) if place.is_dir() else read_archive(place, split)


def find(data_dir: str | None) -> pathlib.Path:
    """The archive in `data_dir`, or the folder that has `Train` and `Test`.

    Raises:
      UserError: there is none, or more than one, so that it is not known which is meant.
    """
    if data_dir is None:
        raise UserError(f"nmnist cannot be downloaded; {_ADVICE}.")
    folder = pathlib.Path(data_dir)
    inside = sorted({folder, *(folder / name for name in ("nmnist", "NMNIST", "N-MNIST"))})
    places = [place for place in inside if any((place / part).is_dir() for part in PARTS.values())]
    archives = {*folder.glob("nmnist*.npz"), *(file for place in inside[1:] for file in place.glob("*.npz"))}
    found = [*places, *sorted(archives)]
    if len(found) != 1:
        what = f"found {len(found)} ({', '.join(map(str, found))})" if found else "found neither"
        raise UserError(f"looked for one nmnist*.npz or one pair of folders Train and Test in {folder} and "
                        f"{folder / 'nmnist'}, {what}; {_ADVICE}.")
    return found[0]


# ---- the original files --------------------------------------------------------------------------------------------


def decode(data: bytes) -> Events:
    """Events from the bytes of a .bin file, in their order there; coordinates are whatever the bytes say.

    Examples:
      >>> [field.tolist() for field in decode(bytes([33, 2, 0b1000_0001, 0, 5]))]
      [[33], [2], [65541], [1]]

    Raises:
      ValueError: the bytes are no whole number of events.
    """
    raw = np.frombuffer(data, np.uint8).reshape(-1, EVENT_BYTES)
    high, middle, low = (raw[:, column].astype(np.uint32) for column in (2, 3, 4))
    return Events(raw[:, 0], raw[:, 1], (high & 0x7F) << 16 | middle << 8 | low, raw[:, 2] >> 7)


def read_bin(path: str | os.PathLike[str]) -> Events:
    """Reads one recording.

    Raises:
      UserError: the file cannot be read, is empty or truncated, or has an event outside of 34x34 pixels.
    """
    again = "unpack or copy it again"
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); {again}.") from None
    if not data:
        raise UserError(f"{path} is empty, and a recording of N-MNIST has thousands of events; {again}.")
    if len(data) % EVENT_BYTES:
        raise UserError(f"{path} is truncated: it has {len(data)} bytes, and an event of N-MNIST takes {EVENT_BYTES}; "
                        f"{again}.")
    events = decode(data)
    outside = np.flatnonzero((events.x >= SIZE) | (events.y >= SIZE))
    if len(outside):
        first = outside[0]
        raise UserError(f"{path} is damaged or of another data set: its event {first} is at x = {events.x[first]}, "
                        f"y = {events.y[first]}, and N-MNIST has pixels 0 to {SIZE - 1}; {again}.")
    return events


def read_folder(folder: str | os.PathLike[str], split: str) -> Recordings:
    """Reads `Train/0..9/*.bin` or `Test/0..9/*.bin`, in the order of the file names.

    Args:
      folder: which has Train and Test in it.
      split: "train" or "test"; of the other one, files are only counted.

    Raises:
      UserError: a folder or class without recordings, or a file that `read_bin` refuses.
    """
    files = {part: _bin_files(pathlib.Path(folder) / name) for part, name in PARTS.items()}
    place = pathlib.Path(folder) / PARTS[split]
    if not files[split]:
        raise UserError(f"{place} has no recordings, which would be 0/*.bin to {CLASSES - 1}/*.bin in it; "
                        f"{_ADVICE}.")
    missing = sorted(set(range(CLASSES)) - {digit for _, digit, _ in files[split]})
    if missing:
        raise UserError(f"{place} has no recordings of {', '.join(map(str, missing))}, and each of the digits 0 to "
                        f"{CLASSES - 1} needs a folder with .bin files; unpack it again, or {_ADVICE}.")
    recordings = [read_bin(path) for _, _, path in files[split]]
    offsets = np.cumsum([0, *(len(events.t) for events in recordings)], dtype=np.int64)
    events = Events(*(np.concatenate(field) for field in zip(*recordings)))
    labels = np.array([digit for _, digit, _ in files[split]])
    return Recordings(events, offsets, labels, len(files["train"]), len(files["test"]))


def _bin_files(place: pathlib.Path) -> list[tuple[str, int, pathlib.Path]]:
    """`(name, digit, path)` of every recording of a split, sorted: the names number the images across all digits."""
    return sorted((file.name, digit, file) for digit in range(CLASSES) for file in (place / str(digit)).glob("*.bin"))


# ---- one archive ---------------------------------------------------------------------------------------------------


def read_archive(path: pathlib.Path, split: str) -> Recordings:
    """Reads one split from an .npz of the layout above.

    Raises:
      UserError: the file cannot be read, does not hold such events, or has none of this split.
    """
    z = read_npz(path, ("x", "y", "t", "p", "offsets", "label", "index"), _ADVICE)
    offsets = z["offsets"].astype(np.int64)
    events = Events(*(z[field] for field in Events._fields))
    sound = (len(offsets) == len(z["label"]) + 1 == len(z["index"]) + 1 and len(offsets) > 1 and offsets[0] == 0
             and (np.diff(offsets) >= 0).all() and all(field.shape == (offsets[-1],) for field in events)
             and all(np.issubdtype(field.dtype, np.integer) for field in [*events, z["label"], z["index"]])
             and all(field.min(initial=0) >= 0 for field in events)
             and max(events.x.max(initial=0), events.y.max(initial=0)) < SIZE and events.p.max(initial=0) <= 1)
    if not sound:
        raise UserError(f"{path} does not hold N-MNIST events (x, y 0..33; p 0..1; offsets rising to the number of "
                        f"events; one label and index per recording); {_ADVICE}.")
    is_train = z["index"] <= 60_000  # numbering of the official files; the split is whatever subset the file has
    members = is_train if split == "train" else ~is_train
    if not members.any():
        raise UserError(f"{path} has no {split} recordings (index 1..60000 is train, above is test); {_ADVICE}.")
    lengths = np.diff(offsets)
    keep = np.repeat(members, lengths)
    return Recordings(Events(*(field[keep] for field in events)), np.cumsum([0, *lengths[members]], dtype=np.int64),
                      z["label"][members], int(is_train.sum()), int((~is_train).sum()))
