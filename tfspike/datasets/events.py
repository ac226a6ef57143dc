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

Recordings of other cameras become spike trains with `EventFrames`, whatever their sensor, window and clock.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import pathlib
import warnings
import zlib
from typing import Any, NamedTuple

import numpy as np

from tfspike.checks import check_count, check_positive, is_count
from tfspike.errors import UserError, listed
from tfspike.files import read_npz

__all__ = ["EventFrames", "Events", "Recordings", "check_events", "check_size", "decode", "find", "load",
           "read_archive", "read_bin", "read_folder"]

SIZE = 34  # pixels, height and width
CLASSES = 10
WINDOW_MS = 300.0  # three saccades of 100 ms
CLOCK_END = 2**23  # microseconds that the clock of N-MNIST can count, from the start of each recording
EVENT_BYTES = 5
PARTS = {"train": "Train", "test": "Test"}

_BLOCK = 2**20  # events binned at a time: N-MNIST has 250 million, and 64-bit products of all of them would take 2 GB
_COUNTED = 1000  # recordings whose coinciding events are counted, for the share that is said
_ADVICE = ("give --data_dir=FOLDER with the original Train/0..9/*.bin and Test/0..9/*.bin, or with an .npz that has "
           "the fields x, y, t, p, offsets, label, index")


class Events(NamedTuple):
    """Events, each field `[E]`, of an integer type: column and row of the pixel, time in microseconds, polarity.

    Polarities are 0 (off) and 1 (on); `check_events` makes them of -1 and 1, and of False and True.
    """

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

    All recordings have the same window (bins of window_ms / T), so a bin means the same time everywhere. Channel 0 is
    off, 1 is on. Several events of one pixel and polarity in one bin are one spike. The order of events in a recording
    does not matter. What is lost, events at or after the end of the window and events that coincide, is said in one
    warning with its share (N-MNIST loses .25 % behind the window in the 1,100 recordings this was checked with).

    Args:
      events: of all recordings, one after the other: `Events`, or a structured array with the fields x, y, t, p.
      offsets: `[N + 1]`, as in `Recordings`.
      timesteps: T, number of bins.
      size: height and width, pixels.
      window_ms: length of the window in milliseconds; times are in microseconds.
      relative: times count from the first event of each recording, for clocks that do not start with the recording.
        False: from 0, as in N-MNIST.
      name: of the data set, for messages.

    Attributes:
      shape: (N, T, H, W, 2).
      kept: number of events in the window.

    Raises:
      UserError: an argument is illegal, `check_events` refuses the events, or a recording of an absolute clock begins
        after the window and after all that N-MNIST's clock can count.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, events: Any, offsets: Any, timesteps: int, size: tuple[int, int] = (SIZE, SIZE),
                 window_ms: float = WINDOW_MS, relative: bool = False, name: str = "events"):
        check_count("timesteps", timesteps)
        size = check_size(size)
        window = round(check_positive("window_ms", window_ms) * 1000)
        if window < 1:
            raise UserError(f"`window_ms` must be .001 ms or more. Received: window_ms={window_ms!r}.")
        events = check_events(events, size, name)
        self._offsets = _check_offsets(offsets, len(events.t), name)
        self.shape = (len(self._offsets) - 1, int(timesteps), *size, 2)
        first = _first_times(events.t, self._offsets)
        late = np.flatnonzero(first >= max(window, CLOCK_END))
        if len(late) and not relative:
            raise UserError(f"recording {late[0]} of {name} begins at t = {first[late[0]]} us, so its clock does not "
                            "start with the recording: give relative=True to count from its first event, or a "
                            f"window_ms that reaches so far (it is {window_ms:g}).")
        cells = int(np.prod(self.shape[1:], dtype=np.int64))
        self._cell: Any = np.empty(len(events.t), np.int32 if cells < 2**31 else np.int64)
        for start in range(0, len(events.t), _BLOCK):
            x, y, t, p = (field[start:start + _BLOCK].astype(np.int64) for field in events)
            if relative:
                t -= first[np.searchsorted(self._offsets, np.arange(start, start + len(t)), side="right") - 1]
            bins = np.minimum(t, window) * self.shape[1] // window  # the minimum: no overflow
            cell = ((bins * size[0] + y) * size[1] + x) * 2 + p
            self._cell[start:start + _BLOCK] = np.where(t < window, cell, -1)
        self._say_what_is_lost(name, window_ms)

    def _say_what_is_lost(self, name: str, window_ms: float) -> None:
        """Counts, and warns once."""
        total, losses = len(self._cell), []
        inside = self._cell >= 0
        self.kept = int(np.count_nonzero(inside))
        if self.kept < total:
            late = total - self.kept
            losses.append(f"{late:,} ({100 * late / total:.3g} %) lie at or behind the end of the window of "
                          f"{window_ms:g} ms and are dropped (EventFrames takes another window_ms, and relative=True "
                          "for clocks that do not start with the recording)")
        starts = self._offsets[:-1][np.diff(self._offsets) > 0]
        silent = len(self) - int(np.count_nonzero(np.logical_or.reduceat(inside, starts))) if total else len(self)
        if silent:
            losses.append(f"{silent:,} of {len(self):,} recordings have none in the window")
        first = self._cell[:self._offsets[min(len(self), _COUNTED)]]
        spikes = sum(len(np.unique(cell[cell >= 0])) for cell in np.split(first, self._offsets[1:_COUNTED]))
        counted = int(np.count_nonzero(first >= 0))
        if spikes < counted:
            about = "about " if len(self) > _COUNTED else ""
            losses.append(f"{about}{100 * (1 - spikes / counted):.3g} % of those in the window share their pixel, "
                          "polarity and step with another one, and make one spike")
        if losses:
            warnings.warn(f"{name}: of {total:,} events, {'; '.join(losses)}.", stacklevel=3)

    def __len__(self) -> int:
        return self.shape[0]

    def first(self, count: int) -> EventFrames:
        """The first so many recordings; `frames[:count]` would make all their spike trains at once."""
        return self.chosen(np.arange(len(self))[:count])

    def chosen(self, indices: np.ndarray) -> EventFrames:
        """Some recordings, by their numbers `[n]`, 1 or more."""
        parts = [self._cell[self._offsets[i]:self._offsets[i + 1]] for i in indices]
        found = copy.copy(self)
        found._offsets = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        found._cell = np.concatenate(parts)
        found.shape = (len(parts), *self.shape[1:])
        found.kept = int(np.count_nonzero(found._cell >= 0))
        return found

    def checksum(self) -> int:
        """CRC-32 of all that was binned."""
        return zlib.crc32(self._cell.data, zlib.crc32(self._offsets.data))

    def __getitem__(self, indices: Any) -> np.ndarray:
        chosen = np.arange(len(self))[indices]
        flat = np.zeros((np.size(chosen), int(np.prod(self.shape[1:]))), np.uint8)
        for row, record in zip(flat, np.atleast_1d(chosen)):
            cell = self._cell[self._offsets[record]:self._offsets[record + 1]]
            row[cell[cell >= 0]] = 1
        return flat.reshape(np.shape(chosen) + self.shape[1:])


# ---- checks --------------------------------------------------------------------------------------------------------


def check_events(events: Any, size: tuple[int, int], source: Any) -> Events:
    """The events with polarities 0 and 1, every field looked at.

    Args:
      events: `Events`, or a structured array with the fields x, y, t, p.
      size: height and width, pixels.
      source: where they are from, for messages.

    Raises:
      UserError: other fields, fields of other types or of different lengths, a pixel outside of the sensor, a negative
        time, or polarities other than {0, 1}, {-1, 1} or {False, True}.
    """
    names = getattr(getattr(events, "dtype", None), "names", None)
    if names is not None and set(Events._fields) <= set(names):
        events = Events(*(events[name] for name in Events._fields))
    if not isinstance(events, Events):
        has = f"an array with the fields {', '.join(names)}" if names else type(events).__name__
        raise UserError(f"events of {source} must be `Events` or a structured array with the fields x, y, t, p, "
                        f"received {has}.")
    fields = {name: np.asarray(field) for name, field in events._asdict().items()}
    for name, field in fields.items():
        if field.shape != (np.size(fields["t"]),):
            raise UserError(f"`{name}` of {source} has the shape {field.shape} and `t` {fields['t'].shape}: every "
                            "field of events must be of shape [E].")
        if field.dtype.kind not in "iu" and not (name == "p" and field.dtype == bool):
            raise UserError(f"`{name}` of {source} must be of an integer type"
                            f"{' (t in microseconds)' if name == 't' else ''}, received {field.dtype}.")
    for name, end in (("x", size[1]), ("y", size[0]), ("t", 2**63)):
        _check_range(name, fields[name], end, source)
    return Events(fields["x"], fields["y"], fields["t"], _check_polarity(fields["p"], source))


def _check_range(name: str, field: np.ndarray, end: int, source: Any) -> None:
    if len(field) and (field.min() < 0 or field.max() >= end):
        first = np.flatnonzero((field < 0) | (field >= end))[0]
        raise UserError(f"`{name}` of event {first} of {source} is {field[first]}, legal are 0 to {end - 1}.")


def _check_polarity(p: np.ndarray, source: Any) -> np.ndarray:
    """Polarities as 0 and 1."""
    if p.dtype == bool or not len(p):
        return p.astype(np.uint8)
    low, high = p.min(), p.max()
    if low < -1 or high > 1 or (low == -1 and (p == 0).any()):
        raise UserError(f"`p` of {source} must be 0 and 1 or -1 and 1, received {listed(np.unique(p).tolist(), 5)}.")
    return p if low >= 0 else (p > 0).astype(np.uint8)


def check_size(size: Any) -> tuple[int, int]:
    """(height, width) of a sensor or a spike train, in pixels; raises UserError where it is none."""
    if not isinstance(size, (tuple, list)) or len(size) != 2 or not all(map(is_count, size)):
        raise UserError(f"`size` must be (height, width) in pixels, whole numbers above 0. Received: size={size!r}.")
    return int(size[0]), int(size[1])


def _check_offsets(offsets: Any, count: int, source: Any) -> np.ndarray:
    offsets = np.asarray(offsets)
    if (offsets.ndim != 1 or len(offsets) < 2 or offsets.dtype.kind not in "iu" or offsets[0] != 0
            or offsets[-1] != count or (offsets[1:] < offsets[:-1]).any()):
        raise UserError(f"`offsets` of {source} must be whole numbers of shape [N + 1] with N of 1 or more, rising "
                        f"from 0 to the number of events, which is {count}.")
    return offsets.astype(np.int64)


def _first_times(t: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The earliest time of every recording, int64 `[N]`; 0 of one without events."""
    first = np.zeros(len(offsets) - 1, np.int64)
    filled = np.diff(offsets) > 0
    if filled.any():
        first[filled] = np.minimum.reduceat(t, offsets[:-1][filled])
    return first


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
    below: dict[tuple[int, int], pathlib.Path] = {}  # several names may be of one, as where case is none
    for path in (folder, *(folder / name for name in ("nmnist", "NMNIST", "N-MNIST"))):
        if path.is_dir():
            below.setdefault((path.stat().st_dev, path.stat().st_ino), path)
    inside = list(below.values())
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
    z = read_npz(path, (*Events._fields, "offsets", "label", "index"), _ADVICE)
    try:
        events = check_events(Events(*(z[field] for field in Events._fields)), (SIZE, SIZE), path)
        _check_range("t", events.t, CLOCK_END, path)
        offsets = _check_offsets(z["offsets"], len(events.t), path)
        for field, first, last in (("label", 0, CLASSES - 1), ("index", 1, None)):
            _check_column(field, z[field], len(offsets) - 1, first, last, path)
    except UserError as error:
        raise UserError(f"{str(error)[:-1]}, in an archive of N-MNIST; {_ADVICE}.") from None
    is_train = z["index"] <= 60_000  # numbering of the official files; the split is whatever subset the file has
    members = is_train if split == "train" else ~is_train
    if not members.any():
        raise UserError(f"{path} has no {split} recordings (index 1..60000 is train, above is test); {_ADVICE}.")
    lengths = np.diff(offsets)
    keep = np.repeat(members, lengths)
    return Recordings(Events(*(field[keep] for field in events)), np.cumsum([0, *lengths[members]], dtype=np.int64),
                      z["label"][members], int(is_train.sum()), int((~is_train).sum()))


def _check_column(name: str, column: np.ndarray, count: int, first: int, last: int | None, source: Any) -> None:
    """Refuses what is not one whole number per recording, from `first` to `last`."""
    legal = f"{first} to {last}" if last is not None else f"{first} or more"
    if column.shape != (count,) or column.dtype.kind not in "iu":
        raise UserError(f"`{name}` of {source} must be one whole number per recording, {count} of them, received "
                        f"{column.dtype} of shape {column.shape}.")
    if column.min() < first or (last is not None and column.max() > last):
        raise UserError(f"`{name}` of {source} must be {legal}, received {column.min()} to {column.max()}.")
