"""Image and event data as arrays in memory, and what a run must remember of them.

The sets are small (CIFAR-10: 150 MB of bytes), so a split is decoded once into uint8 arrays, from which
`tfspike.streams` gathers batches.

    train = load("cifar10", "train", data_dir)
    train_index, val_index = streams.split_indices(len(train), 0.1, seed=0, name=train.name)
    info = describe(train, train_index)                      # normalisation from the training part only

Normalisation and augmentation follow Lee et al. 2020, Front. Neurosci. 14:119; x is the signed value whose size is the
Poisson spike probability.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import pathlib
import re
import warnings
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfspike.checks import check_count, is_count
from tfspike.datasets import events, folder_source, npz_source, recording_source, sampling, tfds_source
from tfspike.datasets.catalogue import ALIASES, KNOWN, WITH_EXTRA, facts
from tfspike.datasets.events import EventFrames
from tfspike.errors import UserError, first_line, listed
from tfspike.files import PACKAGE, read_npz

__all__ = ["Arrays", "DatasetInfo", "Normalised", "canonical_name", "check_indices", "check_labels", "check_pixels",
           "describe", "from_arrays", "load"]

_CLASSES_UNASKED = 1000  # beyond it, the number of classes is taken from labels only where there are as many records


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What a run must remember of its data: stored in config.json, passed back for evaluation and export.

    Attributes:
      name: canonical name of the set.
      image_shape: (H, W, C); of one time step for event data.
      num_classes, class_names: labels run from 0 to num_classes - 1.
      scale, offset: one number per channel; the network sees x = p * scale + offset with pixels p from 0 to 255.
      augment: random crops, and flips where a mirror image means the same, in training.
      num_train, num_test: records in the files, validation records included in num_train; 0 without such a split.
      event_based: samples are spike trains [T, H, W, 2] instead of images [H, W, C].
    """

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    class_names: tuple[str, ...]
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    augment: bool
    num_train: int
    num_test: int
    event_based: bool = False

    @property
    def largest(self) -> float:
        """The largest |x| that a pixel can have."""
        return max(max(abs(offset), abs(255 * scale + offset)) for scale, offset in zip(self.scale, self.offset))

    @property
    def mirrored(self) -> bool:
        """Whether augmentation mirrors images: never digits."""
        return facts(self.name).mirrored

    @property
    def dark_ground(self) -> bool:
        """Whether x = 0, where no spike comes from, is black: images are bright ink on a dark ground, as in MNIST."""
        return not self.event_based and not any(self.offset)

    def normalise(self, images: np.ndarray) -> np.ndarray:
        """Pixels [..., H, W, C] from 0 to 255 to float32 x in about [-1, 1]; spike trains only change their type.

        Raises:
          UserError: another shape; unless they are bytes: NaN, pixels outside of 0..255 or none above 1.
        """
        images = np.asarray(images)
        self.check(images, dark=images.dtype == np.uint8)  # a few bytes may well be almost black
        return self.scaled(images)

    def check(self, images: Any, dark: bool = False) -> None:
        """Raises UserError for images [..., H, W, C] of another shape, and for those that `check_pixels` refuses.

        Args:
          images: an array, or what has the shape of one.
          dark: allow images without a pixel above 1.
        """
        if tuple(images.shape[-3:]) != tuple(self.image_shape):
            raise UserError(f"{self.name} has images of shape {tuple(self.image_shape)}, received "
                            f"{tuple(images.shape[-3:])}; use the data set that the network was trained on.")
        if self.event_based and isinstance(images, np.ndarray):
            _check_finite(images, self.name)
        elif isinstance(images, np.ndarray) and not dark:
            check_pixels(images, self.name)

    def scaled(self, images: np.ndarray) -> np.ndarray:
        """`normalise` of images that `check` has seen."""
        x = images.astype(np.float32)
        if any(scale != 1 for scale in self.scale):
            x *= np.asarray(self.scale, np.float32)
        if any(self.offset):
            x += np.asarray(self.offset, np.float32)
        return x

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, fit for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> DatasetInfo:
        """The inverse of `to_dict`; floats survive JSON bit for bit. Raises UserError on a damaged record."""
        try:
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
            info = cls(**fields)
            whole = [*info.image_shape, info.num_classes, info.num_train, info.num_test]
            numbers = np.array([*info.scale, *info.offset], np.float64)
            sound = (len(info.image_shape) == 3 and all(type(n) is int and n >= 0 for n in whole)
                     and len(info.scale) == len(info.offset) == info.image_shape[2] and np.isfinite(numbers).all()
                     and min(info.image_shape) > 0 and len(info.class_names) == info.num_classes > 1
                     and type(info.augment) is bool and type(info.event_based) is bool and isinstance(info.name, str))
        except (TypeError, ValueError, AttributeError):
            sound = False
        if not sound:
            raise UserError(f"the data set record in the config is damaged: {str(record)[:200]}; "
                            "restore config.json or start a new run.")
        return info


@dataclasses.dataclass(frozen=True)
class Arrays:
    """One split in memory: images uint8 [N, H, W, C] (or `EventFrames` [N, T, H, W, 2]), labels int32 [N]."""

    images: Any
    labels: np.ndarray
    name: str
    class_names: tuple[str, ...]
    num_train: int
    num_test: int
    event_based: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int | None) -> Arrays:
        """The first so many records, 1 or more; None, or more than there are: all."""
        if count is None or check_count("count", count) >= len(self):
            return self
        images = self.images.first(count) if isinstance(self.images, EventFrames) else self.images[:count]
        return dataclasses.replace(self, images=images, labels=self.labels[:count])

    def some(self, count: int | None) -> Arrays:
        """As `first`, but evenly spread records where they may lie in the order of their classes."""
        if count is None or not facts(self.name).by_class or check_count("count", count) >= len(self):
            return self.first(count)
        chosen = sampling.some(len(self), count, spread=True)
        images = self.images.chosen(chosen) if isinstance(self.images, EventFrames) else self.images[chosen]
        return dataclasses.replace(self, images=images, labels=self.labels[chosen])

    def share_of(self, every: Arrays) -> str:
        """What `some` has left of a split, in words: "the first 100 of 1,000"."""
        return f"{taken(self.name, len(self))} of {len(every):,}"

    def fingerprint(self) -> dict[str, int]:
        """What config.json keeps of the contents of data that only their user has; nothing of other sets."""
        if not facts(self.name).own:
            return {}
        pixels = (self.images.checksum() if isinstance(self.images, EventFrames) else
                  zlib.crc32(np.ascontiguousarray(self.images).data))
        return {"contents_crc32": zlib.crc32(self.labels.astype("<i4").data, pixels)}


def taken(name: str, count: int) -> str:
    """What `Arrays.some` takes of a data set of this name, in words: "the first 100"."""
    return f"{count:,} evenly spread" if facts(name).by_class else f"the first {count:,}"


class Normalised:
    """Stored images `[N, ...]` as a network takes them, a slice at a time: bytes are a quarter of its floats."""

    def __init__(self, images: Any, info: DatasetInfo):
        self._images, self._info = images, info

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, part: slice) -> np.ndarray:
        return self._info.normalise(self._images[part])


# --- names and loading ------------------------------------------------------------------------------------------------


def canonical_name(name: str, data_dir: str | None = None) -> str:
    """Resolve aliases and refuse names that neither this library, TFDS nor `data_dir` knows (imports no TensorFlow).

    Raises:
      UserError: the name is unknown; lists the known names and the closest match.
    """
    name = ALIASES.get(name, name)
    if name in KNOWN:
        return name
    stem = re.split("[/:]", name)[0]
    if re.fullmatch(r"[a-z][a-z0-9_]*(/[\w.\-]+)?(:[\d.*]+)?", name):
        if data_dir and os.path.isdir(os.path.join(data_dir, stem)):
            return name
        choices = tfds_source.names()
        if stem in choices:
            return name
    else:
        choices = []
    close = difflib.get_close_matches(stem.lower(), [*KNOWN, *ALIASES, *choices], n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UserError(f"unknown data set {name!r}; {hint}Known are {', '.join(KNOWN)} (svhn = svhn_cropped) "
                    "and every image classification set of tensorflow-datasets by its name there.")


def load(name: str, split: str, data_dir: str | None = None, timesteps: int | None = None,
         extra: bool = False, image_size: Sequence[int] = (), like: DatasetInfo | None = None,
         sensor_size: Sequence[int] = (), window_ms: float | None = None) -> Arrays:
    """Read one split into memory, in the order of its records.

    Args:
      name: "mnist_subset" (embedded), "nmnist" (`tfspike.events`), "folder", "npz" and "recordings" (the user's own:
        see `tfspike.datasets.folder_source`, `npz_source`, `recording_source`), or any TFDS set with `image` and
        `label` (or else its supervised keys, or its only Image and its only ClassLabel).
      split: "train" or "test" ("validation" stands in where a TFDS set has no "test"). Nothing else is read.
      data_dir: the only folder looked in, never downloaded to. None: TFDS's own folder, downloading what is missing.
        The file itself for "npz".
      timesteps: T, number of bins; needed for event data, unused otherwise.
      image_size: height and width that the pictures of "folder" are scaled to, and the pixels of "recordings" merged
        to; () takes them as they are.
      like: what a trained network remembers of its data: data of the user's get its classes and image shape.
      extra: append the TFDS split "extra" to "train", as published results on SVHN do; "test" stays what it is.
      sensor_size, window_ms: of "recordings": height and width of the sensor, and the window's length in milliseconds.

    Raises:
      UserError: unknown name, no such split "extra", a size or a window of data that have their own, missing or damaged
        data, no image or label, one class, images of different sizes, or more than 4 GiB decoded.
    """
    if split not in ("train", "test"):
        raise UserError(f"split must be 'train' or 'test', received {split!r}.")
    name = canonical_name(name, data_dir)
    for option, value, takers in (("image_size", image_size, ("folder", "recordings")),
                                  ("sensor_size", sensor_size, ("recordings",)),
                                  ("window_ms", window_ms, ("recordings",))):
        if value is not None and np.size(value) and name not in takers:
            raise UserError(f"{option} is of the data set {' or '.join(map(repr, takers))}; leave it out. Received: "
                            f"{option}={value!r} for {name!r}.")
    if extra and name in KNOWN and name not in WITH_EXTRA:
        raise UserError(f"{name} has no split 'extra', {', '.join(WITH_EXTRA)} has: train without it (--noextra).")
    if name == "mnist_subset":
        return _load_subset(split)
    if name == "nmnist":
        return _load_nmnist(split, data_dir, timesteps)
    if name == "folder":
        found = folder_source.load(split, data_dir, image_size, like)
    elif name == "npz":
        found = npz_source.load(split, data_dir, like)
    elif name == "recordings":
        found = recording_source.load(split, data_dir, timesteps, sensor_size, window_ms, image_size, like)
    else:
        found = tfds_source.load(name, split, data_dir, extra)
    labels = check_labels(found.labels, len(found.class_names), name, split)
    return Arrays(found.images, labels, name, found.class_names, found.num_train, found.num_test,
                  facts(name).event_based)


def _load_subset(split: str) -> Arrays:
    path = pathlib.Path(PACKAGE, "data", "mnist_subset.npz")
    fields = read_npz(path, ("train_labels", "test_labels", f"{split}_images"), "reinstall tfspike")
    counts = {part: len(fields[f"{part}_labels"]) for part in ("train", "test")}
    return Arrays(fields[f"{split}_images"][..., None], fields[f"{split}_labels"].astype(np.int32), "mnist_subset",
                  tuple("0123456789"), counts["train"], counts["test"])


def _load_nmnist(split: str, data_dir: str | None, timesteps: int | None) -> Arrays:
    if timesteps is None:
        raise UserError("nmnist is binned into T time steps: timesteps must be 1 or more, received None.")
    recordings = events.load(split, data_dir)
    labels = check_labels(recordings.labels, events.CLASSES, "nmnist", split)
    frames = EventFrames(recordings.events, recordings.offsets, timesteps, name="nmnist")
    return Arrays(frames, labels, "nmnist", tuple("0123456789"), recordings.num_train, recordings.num_test, True)


# --- arrays of one's own, checks, normalisation -----------------------------------------------------------------------


def check_labels(labels: Any, num_classes: int, name: str, split: str) -> np.ndarray:
    """Labels as int32 [N]; a `split` "train" must have two classes or more, and warns of those without a record.

    Raises:
      UserError: no whole numbers of shape [N], a label outside 0..num_classes - 1, or one class.
    """
    labels = _whole_labels(labels, name)
    if len(labels) and (labels.min() < 0 or labels.max() >= num_classes):
        unknown = " (-1 stands for records whose label is not known)" if labels.min() == -1 else ""
        raise UserError(f"labels of {name!r} must lie in 0..{num_classes - 1}, received "
                        f"{labels.min()}..{labels.max()}{unknown}.")
    labels = labels.astype(np.int32)
    if split == "train":
        counts = np.bincount(labels, minlength=num_classes)
        found, missing = np.count_nonzero(counts), np.flatnonzero(counts == 0)
        if found < 2:
            raise UserError(f"the training records of {name!r} have {found} class; classification needs at least 2.")
        if len(missing):
            warnings.warn(f"{len(missing)} of {num_classes} classes of {name!r} have no training record: "
                          f"{listed(missing.tolist())}.", stacklevel=3)
    return labels


def _whole_labels(labels: Any, name: str) -> np.ndarray:
    labels = _array("labels", labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        advice = "; of one-hot rows, take labels.argmax(axis=1)" if labels.ndim == 2 else ""
        raise UserError(f"labels of {name!r} must be whole numbers of shape [N], received {labels.dtype} of shape "
                        f"{labels.shape}{advice}.")
    return labels


def check_pixels(images: np.ndarray, name: str) -> tuple[Any, Any]:
    """The smallest and the largest pixel.

    Raises:
      UserError: neither whole numbers nor floats, NaN, pixels outside of 0..255, or none above 1, as of images in
        [0, 1], which the network would hardly see.
    """
    if images.dtype.kind not in "iuf":
        raise UserError(f"images of {name!r} must be whole numbers or floats from 0 to 255, received {images.dtype}.")
    _check_finite(images, name)
    low, high = (images.min(), images.max()) if images.size else (0, 0)
    if low < 0 or high > 255 or 0 < high <= 1:
        raise UserError(f"pixels of {name!r} must run from 0 to 255, received {low:g} to {high:g}; rescale them, the "
                        "library normalises by itself.")
    return low, high


def _check_finite(images: np.ndarray, name: str) -> None:
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        raise UserError(f"images of {name!r} hold {int((~np.isfinite(images)).sum())} NaN or infinite pixels; legal "
                        "are 0 to 255.")


def check_indices(indices: Any, count: int) -> np.ndarray:
    """Indices of records, int64 [n]; None stands for all `count`.

    Raises:
      UserError: no whole numbers of shape [n], such as a mask, or a record that does not exist.
    """
    if indices is None:
        return np.arange(count)
    indices = _array("indices", indices)
    if indices.ndim != 1 or (len(indices) and indices.dtype.kind not in "iu"):
        raise UserError(f"indices of records must be whole numbers of shape [n], received {indices.dtype} of shape "
                        f"{indices.shape}; of a mask, take np.flatnonzero(mask).")
    if len(indices) and (indices.min() < 0 or indices.max() >= count):
        raise UserError(f"indices of {count} records must lie in 0..{count - 1}, received {indices.min()}.."
                        f"{indices.max()}.")
    return indices.astype(np.int64)


def _array(what: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except (ValueError, TypeError) as error:  # rows of different lengths
        raise UserError(f"{what} must be an array, received what is none ({first_line(error)}).") from None


def from_arrays(images: Any, labels: Any, num_classes: int | None = None, name: str = "custom",
                split: str = "train") -> Arrays:
    """Wrap one's own arrays after checking them.

    Args:
      images: [N, H, W, C], pixels 0 to 255, whole numbers or floats (floats are kept as float32).
      labels: whole numbers [N]; num_classes defaults to the largest label + 1.

    Raises:
      UserError: wrong rank or type, NaN or pixels outside 0..255, labels out of range, one class, unequal lengths.
    """
    images, labels = _array("images", images), _whole_labels(labels, name)
    if images.ndim != 4 or 0 in images.shape:
        raise UserError(f"images must have the shape [N, H, W, C] with no empty axis, received {images.shape}.")
    check_pixels(images, name)
    if len(labels) != len(images):
        raise UserError(f"{len(images)} images need as many labels, received labels of shape {labels.shape}.")
    if num_classes is None:
        num_classes = int(labels.max()) + 1
        if num_classes > max(_CLASSES_UNASKED, len(labels)):
            raise UserError(f"the largest of {len(labels)} labels of {name!r} is {num_classes - 1}; labels run from 0 "
                            f"to num_classes - 1: number them anew, or give num_classes={num_classes} if you mean it.")
    if not is_count(num_classes, 2):
        raise UserError(f"classification needs at least 2 classes, received num_classes={num_classes!r}.")
    labels = check_labels(labels, num_classes, name, split)
    counts = (len(labels), 0) if split == "train" else (0, len(labels))
    images = images.astype(np.float32 if images.dtype.kind == "f" else np.uint8)
    return Arrays(images, labels, name, tuple(map(str, range(num_classes))), *counts)


def describe(arrays: Arrays, indices: np.ndarray | None = None, augment: bool | None = None) -> DatasetInfo:
    """Choose normalisation and augmentation of a set (Lee et al. 2020).

    x = p/510 for MNIST and Fashion-MNIST, (p/255 - mean)/std with the paper's constants for CIFAR-10, spikes as they
    are for event data, and (p/255 - mean)/max(mean, 1 - mean) per channel otherwise, so that |x| <= 1.

    Args:
      arrays: the train split.
      indices: its training part; the mean is taken over these records only. None: all of them.
      augment: None augments CIFAR and leaves digits and unknown sets alone.

    Raises:
      UserError: images that `check_pixels` refuses or that are all one constant, no event in the window, augmentation
        of event data, or no such record.
    """
    indices = check_indices(indices, len(arrays))
    if not len(indices):
        raise UserError("the normalisation needs at least one training record, received none.")
    if len(arrays.class_names) < 2:
        raise UserError(f"classification needs at least 2 classes, {arrays.name!r} has {len(arrays.class_names)}.")
    if not arrays.event_based:
        low, high = check_pixels(arrays.images, arrays.name)
        if low == high:
            raise UserError(f"every pixel of {arrays.name!r} is {low:g}, so there is nothing to learn from.")
    shape, known = tuple(arrays.images.shape[-3:]), facts(arrays.name)
    if arrays.event_based:
        if augment:
            raise UserError(f"{arrays.name} is event data, which cannot be cropped and flipped: leave augmentation "
                            "off.")
        if isinstance(arrays.images, EventFrames) and not arrays.images.kept:
            raise UserError(f"none of the events of {arrays.name!r} lies in the window, so there is nothing to learn "
                            "from.")
        scale, offset = np.ones(shape[2]), np.zeros(shape[2])
    elif known.normalisation is not None:
        mean, std = (np.broadcast_to(constants, shape[2:]) for constants in known.normalisation)
        scale, offset = 1 / (255 * std), 0 - mean / std
    else:
        mean = _channel_mean(arrays.images, indices) / 255
        span = np.maximum(mean, 1 - mean)
        scale, offset = 1 / (255 * span), -mean / span
    return DatasetInfo(arrays.name, shape, len(arrays.class_names), arrays.class_names, tuple(map(float, scale)),
                       tuple(map(float, offset)), known.augment if augment is None else augment,
                       arrays.num_train, arrays.num_test, arrays.event_based)


def _channel_mean(images: np.ndarray, indices: np.ndarray) -> np.ndarray:
    total = np.zeros(images.shape[-1], np.float64)
    for part in np.array_split(indices, -(-len(indices) // 4096)):  # no second copy of the whole set
        total += images[part].sum(axis=(0, 1, 2), dtype=np.float64)
    return total / (len(indices) * images.shape[1] * images.shape[2])
