"""Image and event data as arrays in memory, and batches that depend on nothing but (seed, step).

The sets are small (CIFAR-10: 150 MB of bytes), so a split is decoded once into uint8 arrays and every batch is gathered
from them with NumPy. That makes batch k a pure function of the seed and k: a run can be continued at any step at once,
and n workers read n slices of the same global batch.

    train = load("cifar10", "train", data_dir)
    train_index, val_index = split_indices(len(train), 0.1, seed=0, name=train.name)
    info = describe(train, train_index)                      # normalisation from the training part only
    batches = train_stream(train.images, train.labels, train_index, 64, seed=0, info=info, start_step=1200)
    val = eval_stream(train.images, train.labels, 64, info, indices=val_index)

Random numbers are raw bits of PCG64, a stream that NumPy keeps equal between versions. Normalisation and augmentation
follow Lee et al. 2020, Front. Neurosci. 14:119; x is the signed value whose size is the Poisson spike probability.
"""

from __future__ import annotations

import atexit
import collections
import dataclasses
import difflib
import os
import pathlib
import re
import socket
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfspike import events
from tfspike.archives import read_npz
from tfspike.errors import UserError, first_line
from tfspike.events import EventFrames

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = ["ALIASES", "KNOWN", "Arrays", "DatasetInfo", "EvalStream", "EventFrames", "TrainStream", "canonical_name",
           "describe", "eval_stream", "from_arrays", "load", "load_images", "split_indices", "split_record",
           "train_stream"]

KNOWN = ("mnist_subset", "mnist", "fashion_mnist", "cifar10", "cifar100", "svhn_cropped", "nmnist")
ALIASES = {"svhn": "svhn_cropped"}
MAX_BYTES = 4 * 2**30  # a decoded split beyond this does not belong in memory

_HALF_RANGE = ("mnist", "mnist_subset", "fashion_mnist")  # x = p / 510
_CIFAR10_MEAN, _CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.557, 0.549, 0.5534)
_WITH_EXTRA = ("svhn_cropped",)  # those of KNOWN with a split "extra": further, easier training digits
_NATURAL = ("cifar10", "cifar100")  # sets whose meaning survives a flip and a crop
_CROP = 4  # pixels of dark padding on every side
_SPLIT, _EPOCH, _AUGMENT = 1, 2, 3  # kinds of random numbers, so that no two uses share a stream


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What a run must remember of its data: stored in config.json, passed back for evaluation and export.

    Attributes:
      name: canonical name of the set.
      image_shape: (H, W, C); of one time step for event data.
      num_classes, class_names: labels run from 0 to num_classes - 1.
      scale, offset: one number per channel; the network sees x = p * scale + offset with pixels p from 0 to 255.
      augment: random 4-pixel crop and flip in training (natural images only, never digits).
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

    def normalise(self, images: np.ndarray) -> np.ndarray:
        """Pixels [..., H, W, C] from 0 to 255 to float32 x in about [-1, 1]; spike trains only change their type."""
        if images.shape[-3:] != tuple(self.image_shape):
            raise UserError(f"{self.name} has images of shape {tuple(self.image_shape)}, received {images.shape[-3:]}; "
                            "use the data set that the network was trained on.")
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
        choices = list(_tfds().list_builders(with_community_datasets=False))
        if stem in choices:
            return name
    else:
        choices = []
    close = difflib.get_close_matches(stem.lower(), [*KNOWN, *ALIASES, *choices], n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UserError(f"unknown data set {name!r}; {hint}Known are {', '.join(KNOWN)} (svhn = svhn_cropped) "
                    "and every image classification set of tensorflow-datasets by its name there.")


def load(name: str, split: str, data_dir: str | None = None, timesteps: int | None = None,
         extra: bool = False) -> Arrays:
    """Read one split into memory, in the order of its records.

    Args:
      name: "mnist_subset" (embedded), "nmnist" (`tfspike.events`), or any TFDS set with `image` and `label`.
      split: "train" or "test" ("validation" stands in where a TFDS set has no "test"). Nothing else is read.
      data_dir: the only folder looked in, never downloaded to. None: TFDS's own folder, downloading what is missing.
      timesteps: T, number of bins; needed for event data, unused otherwise.
      extra: append the TFDS split "extra" to "train", as published results on SVHN do; "test" stays what it is.

    Raises:
      UserError: unknown name, no such split "extra", missing or damaged data, no image or label, one class, images of
        different sizes, or more than 4 GiB decoded.
    """
    if split not in ("train", "test"):
        raise UserError(f"split must be 'train' or 'test', received {split!r}.")
    name = canonical_name(name, data_dir)
    if extra and name in KNOWN and name not in _WITH_EXTRA:
        raise UserError(f"{name} has no split 'extra', {', '.join(_WITH_EXTRA)} has: train without it (--noextra).")
    if name == "mnist_subset":
        return _load_subset(split)
    if name == "nmnist":
        return _load_nmnist(split, data_dir, timesteps)
    return _load_tfds(name, split, data_dir, extra)


def _load_subset(split: str) -> Arrays:
    path = pathlib.Path(__file__).parent / "data" / "mnist_subset.npz"
    fields = read_npz(path, ("train_labels", "test_labels", f"{split}_images"), "reinstall tfspike")
    counts = {part: len(fields[f"{part}_labels"]) for part in ("train", "test")}
    return Arrays(fields[f"{split}_images"][..., None], fields[f"{split}_labels"].astype(np.int32), "mnist_subset",
                  tuple("0123456789"), counts["train"], counts["test"])


def _load_nmnist(split: str, data_dir: str | None, timesteps: int | None) -> Arrays:
    if timesteps is None or timesteps < 1:
        raise UserError(f"nmnist is binned into T time steps: timesteps must be 1 or more, received {timesteps}.")
    recordings = events.load(split, data_dir)
    labels = _check_labels(recordings.labels, events.CLASSES, "nmnist", split)
    return Arrays(EventFrames(recordings.events, recordings.offsets, timesteps), labels, "nmnist", tuple("0123456789"),
                  recordings.num_train, recordings.num_test, True)


# --- TensorFlow Datasets ----------------------------------------------------------------------------------------------


def _tfds() -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(f"this data set needs tensorflow-datasets ({error}): pip install tensorflow-datasets "
                        "importlib_resources, or use --dataset=mnist_subset.") from error
    return tfds


def _builder(name: str, data_dir: str | None) -> Any:
    """A TFDS builder whose files exist; downloads only where no folder was given."""
    tfds = _tfds()
    advice = (f"give --data_dir the folder that holds it, prepare it with `tfds build {name} --data_dir=FOLDER` on a "
              "machine with network, or use --dataset=mnist_subset, which needs no download")
    if data_dir is not None and not os.path.isdir(data_dir):
        raise UserError(f"the data folder {data_dir} does not exist; {advice}.")
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        folder = str(builder.data_dir)
        prepared = os.path.exists(os.path.join(folder, "dataset_info.json"))
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(f"no data of {name!r} in {data_dir or 'the folder of TFDS'}; {advice}.") from error
    except Exception as error:  # TFDS parses JSON and protocol buffers and raises what those raise
        raise UserError(f"the data of {name!r} in {data_dir or 'the folder of TFDS'} cannot be read "
                        f"({first_line(error)}); delete that folder and prepare it again, or {advice}.") from error
    if prepared:
        return builder
    if data_dir is not None:
        raise UserError(f"no data of {name!r} in {data_dir} (looked for {folder}/dataset_info.json); {advice}.")
    _require_network(name, folder, advice)
    try:
        builder.download_and_prepare()
    except Exception as error:  # whatever network, disk and parser raise
        raise UserError(f"{name!r} was not in {folder} and could not be downloaded ({first_line(error)}); "
                        f"{advice}.") from error
    return builder


def _require_network(name: str, folder: str, advice: str) -> None:
    """Fail at once without network: TFDS itself retries for minutes. Behind a proxy names need not resolve here."""
    if any(os.environ.get(k) for k in ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy")):
        return
    try:
        socket.getaddrinfo("storage.googleapis.com", 443)
    except OSError as error:
        raise UserError(f"{name!r} is not in {folder} and there is no network to download it; {advice}.") from error


def _load_tfds(name: str, split: str, data_dir: str | None, extra: bool) -> Arrays:
    tfds = _tfds()
    builder = _builder(name, data_dir)
    features, splits = builder.info.features, builder.info.splits
    dictionary = isinstance(features, tfds.features.FeaturesDict)
    image, label = (features[k] if dictionary and k in features else None for k in ("image", "label"))
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
        raise UserError(f"{name!r} is not an image classification set: it needs the features 'image' (Image) and "
                        "'label' "
                        f"(ClassLabel), it has {', '.join(features.keys()) if dictionary else features}; choose "
                        "another set.")
    if np.dtype(image.np_dtype) != np.uint8 or image.shape[-1] not in (1, 3):
        raise UserError(f"{name!r} has {image.np_dtype} images of shape {image.shape}; legal are uint8 images with 1 "
                        "or 3 "
                        "channels.")
    if label.num_classes is None or label.num_classes < 2:
        raise UserError(f"{name!r} has {label.num_classes} class; classification needs at least 2: choose another set.")
    test = "test" if "test" in splits else "validation"
    keys = {"train": "train", "test": test}
    counts = {part: splits[key].num_examples if key in splits else 0 for part, key in keys.items()}
    if not counts[split]:
        raise UserError(f"{name!r} in {builder.data_dir} has no records in its {split} split; it has "
                        f"{ {k: v.num_examples for k, v in splits.items()} }: prepare it again or choose another set.")
    more = _extra_count(name, builder) if extra else 0
    images, labels = _read_split(builder, keys[split], counts[split], tuple(image.shape), name)
    if extra and split == "train":
        images, labels = _joined((images, labels), _read_split(builder, "extra", more, tuple(image.shape), name), name)
    names = tuple(label.names or map(str, range(label.num_classes)))
    return Arrays(images, _check_labels(labels, label.num_classes, name, split), name, names,
                  counts["train"] + more, counts["test"])


def _extra_count(name: str, builder: Any) -> int:
    """Number of records in the split "extra", which the user asked for."""
    counts = {key: split.num_examples for key, split in builder.info.splits.items()}
    if not counts.get("extra"):
        raise UserError(f"{name!r} in {builder.data_dir} has no split 'extra', it has {counts}: prepare the whole set "
                        "there, or train without it (--noextra).")
    return int(counts["extra"])


def _joined(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray],
            name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of two splits, one after the other."""
    shapes = first[0].shape[1:], second[0].shape[1:]
    if shapes[0] != shapes[1]:
        raise UserError(f"{name!r} has images of different sizes, {shapes[0]} and {shapes[1]} in its split 'extra'; "
                        "train without it (--noextra).")
    return np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1]])


def _read_split(builder: Any, key: str, count: int, shape: tuple[int | None, ...],
                name: str) -> tuple[np.ndarray, np.ndarray]:
    """Decode a whole split, in parallel and in order, into preallocated arrays [N, H, W, C] and [N]."""
    import tensorflow as tf

    def damaged(why: str) -> UserError:
        return UserError(f"the {key} files of {name!r} in {builder.data_dir} are damaged: {why}; delete that folder "
                         "and "
                         "prepare the data again.")

    images, labels, position = None, np.empty(count, np.int64), 0
    try:
        records = builder.as_dataset(split=key, shuffle_files=False)
        records = records.map(lambda r: (r["image"], r["label"]), num_parallel_calls=tf.data.AUTOTUNE)
        for image, label in records.batch(512 if None not in shape else 1).prefetch(2).as_numpy_iterator():
            if images is None:
                _require_memory(name, key, count, image.shape[1:])
                images = np.empty((count, *image.shape[1:]), np.uint8)
            if image.shape[1:] != images.shape[1:]:
                raise UserError(f"{name!r} has images of different sizes, {images.shape[1:]} and {image.shape[1:]} "
                                "(record "
                                f"{position}); resize them to one size first or choose another set.")
            if position + len(label) > count:
                raise damaged(f"more than the {count} records that dataset_info.json states")
            images[position:position + len(label)] = image
            labels[position:position + len(label)] = label
            position += len(label)
    except (tf.errors.OpError, OSError, AssertionError) as error:
        raise damaged(first_line(error)) from error
    if images is None or position != count:
        raise damaged(f"{position} of {count} records are there")
    return images, labels


def _require_memory(name: str, key: str, count: int, shape: tuple[int, ...]) -> None:
    size = count * int(np.prod(shape))
    if size > MAX_BYTES:
        raise UserError(f"the {key} split of {name!r} is {size / 2**30:.1f} GiB decoded ({count} images of {shape}) "
                        "and the "
                        f"limit is {MAX_BYTES / 2**30:.0f} GiB in memory; use a smaller set or a resized copy of it.")


# --- arrays of one's own, checks, normalisation -----------------------------------------------------------------------


def _check_labels(labels: Any, num_classes: int, name: str, split: str) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"labels of {name!r} must be whole numbers of shape [N], received {labels.dtype} of shape "
                        f"{labels.shape}.")
    if len(labels) and (labels.min() < 0 or labels.max() >= num_classes):
        raise UserError(f"labels of {name!r} must lie in 0..{num_classes - 1}, received "
                        f"{labels.min()}..{labels.max()}.")
    if split == "train" and len(np.unique(labels)) < 2:
        raise UserError(f"the training records of {name!r} have {len(np.unique(labels))} class; classification needs "
                        "at "
                        "least 2.")
    return labels.astype(np.int32)


def from_arrays(images: Any, labels: Any, num_classes: int | None = None, name: str = "custom",
                split: str = "train") -> Arrays:
    """Wrap one's own arrays after checking them.

    Args:
      images: [N, H, W, C], pixels 0 to 255, whole numbers or floats (floats are kept as float32).
      labels: whole numbers [N]; num_classes defaults to the largest label + 1.

    Raises:
      UserError: wrong rank or type, NaN or pixels outside 0..255, labels out of range, one class, unequal lengths.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    whole = np.issubdtype(images.dtype, np.integer)
    if images.ndim != 4 or 0 in images.shape:
        raise UserError(f"images must have the shape [N, H, W, C] with no empty axis, received {images.shape}.")
    if not whole and not np.issubdtype(images.dtype, np.floating):
        raise UserError(f"images must be whole numbers or floats from 0 to 255, received {images.dtype}.")
    if not np.isfinite(images).all():
        raise UserError(f"images hold {int((~np.isfinite(images)).sum())} NaN or infinite pixels; legal are 0 to 255.")
    low, high = images.min(), images.max()
    if low < 0 or high > 255 or (not whole and high <= 1):
        raise UserError(f"pixels must run from 0 to 255, received {low:g} to {high:g}; rescale them, the library "
                        "normalises by itself.")
    if len(labels) != len(images) if labels.ndim else True:
        raise UserError(f"{len(images)} images need as many labels, received labels of shape {labels.shape}.")
    classes = num_classes if num_classes is not None else int(np.max(labels)) + 1
    if classes < 2:
        raise UserError(f"classification needs at least 2 classes, received {classes}.")
    labels = _check_labels(labels, classes, name, split)
    counts = (len(labels), 0) if split == "train" else (0, len(labels))
    images = images.astype(np.uint8 if whole else np.float32)
    return Arrays(images, labels, name, tuple(map(str, range(classes))), *counts)


def describe(arrays: Arrays, indices: np.ndarray | None = None, augment: bool | None = None) -> DatasetInfo:
    """Choose normalisation and augmentation of a set (Lee et al. 2020).

    x = p/510 for MNIST-like digits, (p/255 - mean)/std with the paper's constants for CIFAR-10, spikes as they are for
    event data, and (p/255 - mean)/max(mean, 1 - mean) per channel otherwise, so that |x| <= 1.

    Args:
      arrays: the train split.
      indices: its training part; the mean is taken over these records only. None: all of them.
      augment: None augments CIFAR and leaves digits and unknown sets alone.
    """
    shape = tuple(arrays.images.shape[-3:])
    if arrays.event_based:
        if augment:
            raise UserError(f"{arrays.name} is event data, which cannot be cropped and flipped: leave augmentation "
                            "off.")
        scale, offset = np.ones(shape[2]), np.zeros(shape[2])
    elif arrays.name in _HALF_RANGE:
        scale, offset = np.full(shape[2], 1 / 510), np.zeros(shape[2])
    elif arrays.name == "cifar10":
        mean, std = np.array(_CIFAR10_MEAN), np.array(_CIFAR10_STD)
        scale, offset = 1 / (255 * std), -mean / std
    else:
        mean = _channel_mean(arrays.images, np.arange(len(arrays)) if indices is None else indices) / 255
        span = np.maximum(mean, 1 - mean)
        scale, offset = 1 / (255 * span), -mean / span
    return DatasetInfo(arrays.name, shape, len(arrays.class_names), arrays.class_names, tuple(map(float, scale)),
                       tuple(map(float, offset)), arrays.name in _NATURAL if augment is None else augment,
                       arrays.num_train, arrays.num_test, arrays.event_based)


def _channel_mean(images: np.ndarray, indices: np.ndarray) -> np.ndarray:
    if not len(indices):
        raise UserError("the normalisation needs at least one training record, received none.")
    total = np.zeros(images.shape[-1], np.float64)
    for part in np.array_split(indices, -(-len(indices) // 4096)):  # no second copy of the whole set
        total += images[part].sum(axis=(0, 1, 2), dtype=np.float64)
    return total / (len(indices) * images.shape[1] * images.shape[2])


def _random_bits(count: int, *key: int) -> np.ndarray:
    """`count` uint64 of random bits, a pure function of the key."""
    return np.random.PCG64(np.random.SeedSequence(key)).random_raw(count)


def _permutation(count: int, *key: int) -> np.ndarray:
    return np.argsort(_random_bits(count, *key), kind="stable")


def split_indices(num_records: int, val_fraction: float, seed: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Hold out validation records by their index: (training, validation) indices, each sorted, disjoint, int64.

    The validation part is the first round(N * val_fraction) entries of a permutation keyed by (seed, set name), so it
    stays the same for every model, batch size and resumed run. val_fraction 0 leaves it empty.

    Raises:
      UserError: val_fraction outside [0, 1), a negative seed, or a part left empty.
    """
    if not 0 <= val_fraction < 1:  # also refuses NaN
        raise UserError(f"val_fraction must lie in [0, 1), received {val_fraction}.")
    _check_seed(seed)
    count = round(num_records * val_fraction)
    if num_records - count < 1 or (val_fraction > 0 and count < 1):
        raise UserError(f"val_fraction {val_fraction} of {num_records} records leaves {num_records - count} for "
                        "training and "
                        f"{count} for validation; both need one or more: choose another fraction.")
    order = _permutation(num_records, seed, _SPLIT, zlib.crc32(name.encode()))
    return np.sort(order[count:]), np.sort(order[:count])


def split_record(name: str, val_fraction: float, seed: int, train: np.ndarray, val: np.ndarray) -> dict[str, Any]:
    """The rule and checksums of a validation split, for config.json."""
    return {"rule": "first round(N * val_fraction) of argsort(PCG64(SeedSequence([seed, 1, crc32(name)])) raw bits)",
            "name": name, "seed": seed, "val_fraction": val_fraction, "num_train": len(train), "num_val": len(val),
            "train_crc32": zlib.crc32(train.astype("<i8").tobytes()),
            "val_crc32": zlib.crc32(val.astype("<i8").tobytes())}


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise UserError(f"seed must be 0 or more, received {seed}.")


# --- streams of batches -----------------------------------------------------------------------------------------------


class _Calls:
    """Calls from tf.data into Python, so that none is under way when the interpreter ends.

    A thread of TensorFlow that waits for the interpreter while the interpreter waits for the iterator to die never
    ends: every process that left with a batch in flight hung. So nothing here fetches ahead, and for what wraps the
    data set (tf.distribute, `prefetch`), calls are refused from exit on and those under way are waited for.
    """

    def __init__(self) -> None:
        self._lock, self._running, self._started, self._closed = threading.Lock(), 0, 0, False
        atexit.register(self._close)

    def __enter__(self) -> None:
        with self._lock:
            self._started += 1
            if self._closed:
                raise StopIteration
            self._running += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._running -= 1

    def _close(self) -> None:
        self._closed = True
        deadline, before = time.monotonic() + 5, -1
        while (self._running or self._started != before) and time.monotonic() < deadline:
            before = self._started
            time.sleep(0.05)  # lets the other threads have the interpreter


_calls = _Calls()


class _Stream:
    """Batches gathered from arrays; `batch(k)` is pure, the tf.data.Dataset only calls it."""

    def __init__(self, images: Any, labels: np.ndarray, indices: np.ndarray | None, batch_size: int, info: DatasetInfo,
                 shard: tuple[int, int]):
        worker, workers = shard
        indices = np.arange(len(labels)) if indices is None else np.asarray(indices)
        if len(images) != len(labels):
            raise UserError(f"{len(images)} images need as many labels, received {len(labels)}.")
        if batch_size < 1 or not len(indices):
            raise UserError(f"a batch needs at least 1 record, received batch size {batch_size} of {len(indices)} "
                            "records.")
        if not 0 <= worker < workers or batch_size % workers:
            raise UserError(f"a batch of {batch_size} must divide among {workers} workers numbered from 0, received "
                            "worker "
                            f"{worker}; choose a multiple of {workers}.")
        _check_labels(labels, info.num_classes, info.name, "any")
        self.images, self.labels, self.indices, self.info = images, np.asarray(labels, np.int32), indices, info
        self.batch_size, self.local_size = batch_size, batch_size // workers
        self._slice = slice(worker * self.local_size, (worker + 1) * self.local_size)
        self._sample_shape = tuple(images.shape[1:])

    def batch(self, step: int) -> tuple[np.ndarray, ...]:
        raise NotImplementedError

    def _dataset(self, start: int, stop: int, rows: int | None, weights: bool) -> tf.data.Dataset:
        import tensorflow as tf

        types = [tf.float32, tf.int32] + [tf.float32] * weights
        shapes = [(rows, *self._sample_shape), (rows,), (rows,)]

        def call(step: np.int64) -> tuple[np.ndarray, ...]:
            with _calls:
                return self.batch(int(step))

        def gather(step: tf.Tensor) -> tuple[tf.Tensor, ...]:
            parts = tf.numpy_function(call, [step], types)
            for part, shape in zip(parts, shapes):
                part.set_shape(shape)
            return tuple(parts)

        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        options.experimental_optimization.inject_prefetch = False  # see _Calls
        return tf.data.Dataset.range(start, stop).map(gather).with_options(options)


class TrainStream(_Stream):
    """Endless shuffled batches; step k of seed s is the same batch whenever and wherever it is asked for.

    Each epoch is a new permutation keyed by (seed, epoch), its remainder dropped; crops and flips are keyed by
    (seed, step) and drawn for the global batch, so that worker w of n sees exactly its slice of what one worker would.

    Args:
      images, labels: as in `Arrays`; indices: the training part.
      batch_size: global batch; shard: (worker, workers), a contiguous slice of every global batch.
      augment: None means `info.augment`.

    Raises:
      UserError: batch larger than the data, batch not divisible among the workers, labels out of range.
    """

    def __init__(self, images: Any, labels: np.ndarray, indices: np.ndarray | None, batch_size: int, seed: int,
                 info: DatasetInfo, augment: bool | None = None, shard: tuple[int, int] = (0, 1)):
        super().__init__(images, labels, indices, batch_size, info, shard)
        _check_seed(seed)
        if batch_size > len(self.indices):
            raise UserError(f"a batch of {batch_size} is larger than the {len(self.indices)} training records; "
                            "choose a batch "
                            f"size of at most {len(self.indices)}.")
        self.seed, self.augment = seed, info.augment if augment is None else augment
        if self.augment and info.event_based:
            raise UserError(f"{info.name} is event data, which cannot be cropped and flipped: leave augmentation off.")
        self._orders: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
        self._lock = threading.Lock()

    @property
    def steps_per_epoch(self) -> int:
        return len(self.indices) // self.batch_size

    def _order(self, epoch: int) -> np.ndarray:
        with self._lock:  # a prefetching thread and a direct caller may meet here
            if epoch not in self._orders:
                self._orders[epoch] = self.indices[_permutation(len(self.indices), self.seed, _EPOCH, epoch)]
                while len(self._orders) > 2:
                    self._orders.popitem(last=False)
            return self._orders[epoch]

    def records(self, step: int) -> np.ndarray:
        """Record indices of this worker's slice of the global batch at `step`."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return self._order(epoch)[place * self.batch_size:(place + 1) * self.batch_size][self._slice]

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Global step (from 0) -> images float32 [B, H, W, C] (events [B, T, H, W, 2]), labels int32 [B]."""
        chosen = self.records(step)
        images = self.images[chosen]
        if self.augment:
            images = _crop_and_flip(images, _random_bits(self.batch_size, self.seed, _AUGMENT, step)[self._slice])
        return self.info.normalise(images), self.labels[chosen]

    def dataset(self, start_step: int = 0) -> tf.data.Dataset:
        """The batches from `start_step` on, without end and without a walk through earlier ones."""
        if start_step < 0:
            raise UserError(f"start_step must be 0 or more, received {start_step}.")
        return self._dataset(start_step, np.iinfo(np.int64).max, self.local_size, weights=False)


def _crop_and_flip(images: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Shift raw pixels [B, H, W, C] by up to 4 pixels over dark padding, and mirror half of them."""
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (_CROP, _CROP), (_CROP, _CROP), (0, 0)))
    span = np.uint64(2 * _CROP + 1)
    tops, lefts = (bits >> np.uint64(8)) % span, (bits >> np.uint64(32)) % span  # bias below 1e-6
    out = np.empty_like(images)
    for i, (top, left, flip) in enumerate(zip(tops.tolist(), lefts.tolist(), (bits & np.uint64(1)).tolist())):
        crop = padded[i, top:top + height, left:left + width]
        out[i] = crop[:, ::-1] if flip else crop
    return out


class EvalStream(_Stream):
    """All records once, in order. The last batch is short, or with `pad` filled up with weight-0 repeats of record 0.

    With pad, batches are (images, labels, weights float32 [B]) of one static size that divides among replicas, and
    `shard` = (worker, workers) gives each worker its contiguous slice of every batch.
    """

    def __init__(self, images: Any, labels: np.ndarray, batch_size: int, info: DatasetInfo,
                 indices: np.ndarray | None = None, pad: bool = False, shard: tuple[int, int] = (0, 1)):
        super().__init__(images, labels, indices, batch_size, info, shard)
        if shard[1] > 1 and not pad:
            raise UserError(f"evaluation on {shard[1]} workers needs pad=True, so that every worker has every batch.")
        self.pad = pad

    @property
    def num_batches(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def batch(self, step: int) -> tuple[np.ndarray, ...]:
        """Batch `step` of `num_batches`: images, labels and, with pad, weights."""
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        real = places < len(self.indices)
        places = np.where(real, places, 0)[self._slice] if self.pad else places[real]
        chosen = self.indices[places]
        batch = self.info.normalise(self.images[chosen]), self.labels[chosen]
        return (*batch, real[self._slice].astype(np.float32)) if self.pad else batch

    def dataset(self) -> tf.data.Dataset:
        return self._dataset(0, self.num_batches, self.local_size if self.pad else None, self.pad)

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        return map(self.batch, range(self.num_batches))


def train_stream(images: Any, labels: np.ndarray, indices: np.ndarray | None, batch_size: int, seed: int,
                 info: DatasetInfo, start_step: int = 0, augment: bool | None = None,
                 shard: tuple[int, int] = (0, 1)) -> tf.data.Dataset:
    """`TrainStream(...).dataset(start_step)`: endless (images float32 [B, H, W, C], labels int32 [B])."""
    return TrainStream(images, labels, indices, batch_size, seed, info, augment, shard).dataset(start_step)


def eval_stream(images: Any, labels: np.ndarray, batch_size: int, info: DatasetInfo, indices: np.ndarray | None = None,
                pad: bool = False, shard: tuple[int, int] = (0, 1)) -> tf.data.Dataset:
    """`EvalStream(...).dataset()`: every record once, in order."""
    return EvalStream(images, labels, batch_size, info, indices, pad, shard).dataset()


# --- image files ------------------------------------------------------------------------------------------------------


def load_images(paths: Sequence[str | os.PathLike[str]] | str, image_shape: tuple[int, int, int],
                resize: bool = False) -> tuple[np.ndarray, list[str]]:
    """Read PNG and JPEG files, or folders of them, for prediction.

    Args:
      paths: files and folders; folders are searched to any depth, in sorted order.
      image_shape: (H, W, C) of the data set; colour is converted to C = 1 or 3 channels.
      resize: scale other sizes (bilinear, antialiased) instead of refusing them.

    Returns:
      Images uint8 [N, H, W, C] and the file each came from.

    Raises:
      UserError: nothing found, an unreadable file, or a size that differs.
    """
    import tensorflow as tf

    height, width, channels = image_shape
    if channels not in (1, 3):
        raise UserError(f"image files have 1 or 3 channels, this network takes {channels}: it cannot read image files.")
    files = _image_files([paths] if isinstance(paths, (str, os.PathLike)) else paths)
    images = np.empty((len(files), height, width, channels), np.uint8)
    for i, file in enumerate(files):
        try:
            image = tf.io.decode_image(tf.io.read_file(file), channels=channels, expand_animations=False)
        except (tf.errors.OpError, OSError) as error:
            raise UserError(f"{file} is not a readable PNG or JPEG ({first_line(error)}); leave it out.") from error
        if tuple(image.shape[:2]) != (height, width):
            if not resize:
                raise UserError(f"{file} is {image.shape[0]}x{image.shape[1]} pixels, the network takes "
                                f"{height}x{width}; "
                                "scale it or ask for resizing.")
            image = tf.cast(tf.round(tf.image.resize(image, (height, width), antialias=True)), tf.uint8)
        images[i] = image.numpy()
    return images, files


def _image_files(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    kinds, files = (".png", ".jpg", ".jpeg"), []
    for path in map(pathlib.Path, paths):
        inside = [path] if path.is_file() else path.rglob("*")
        found = sorted(str(f) for f in inside if f.suffix.lower() in kinds and f.is_file())
        if not found:
            raise UserError(f"no PNG or JPEG image at {path}; give image files or folders of them.")
        files += found
    if not files:
        raise UserError("no image given; give PNG or JPEG files or folders of them.")
    return files
