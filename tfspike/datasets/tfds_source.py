"""Image classification sets read from TensorFlow Datasets (TFDS): found or downloaded, checked, decoded into arrays."""

from __future__ import annotations

import os
import socket
import warnings
from typing import Any, NamedTuple

import numpy as np

from tfspike.errors import UserError, first_line

MAX_BYTES = 4 * 2**30  # a decoded split beyond this does not belong in memory
_NO_TEST = "save its images as DIR/CLASS/*.png and give --dataset=folder, which holds a fifth of each class out"


class Split(NamedTuple):
    """One split as it was stored: images uint8 [N, H, W, C] (or `EventFrames`), labels [N]; counts are of the files, 0
    without a split."""

    images: Any
    labels: np.ndarray
    class_names: tuple[str, ...]
    num_train: int
    num_test: int


def _library() -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(f"this data set needs tensorflow-datasets ({error}): pip install tensorflow-datasets "
                        "importlib_resources, or use --dataset=mnist_subset.") from error
    return tfds


def _builder(name: str, data_dir: str | None) -> Any:
    """A TFDS builder whose files exist; downloads only where no folder was given."""
    tfds = _library()
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


def names() -> list[str]:
    """All data sets that TFDS knows by name."""
    return list(_library().list_builders(with_community_datasets=False))


def load(name: str, split: str, data_dir: str | None, extra: bool) -> Split:
    """Decode one split of an image classification set, in the order of its records.

    Args:
      name: of the set in TFDS.
      split: "train" or "test"; "validation" stands in for a missing "test".
      data_dir: the only folder looked in; None: TFDS's own, downloading what is missing.
      extra: append the split "extra" to "train".

    Raises:
      UserError: missing or damaged data, or a set that cannot be used; see `tfspike.datasets.load`.
    """
    builder = _builder(name, data_dir)
    splits, names_read = builder.info.splits, _image_and_label(name, builder.info)
    image, label = (builder.info.features[key] for key in names_read)
    if np.dtype(image.np_dtype) != np.uint8 or image.shape[-1] not in (1, 3):
        raise UserError(f"{name!r} has {image.np_dtype} images of shape {image.shape}; legal are uint8 images with 1 "
                        "or 3 channels.")
    if label.num_classes is None or label.num_classes < 2:
        raise UserError(f"{name!r} has {label.num_classes} class; classification needs at least 2: choose another set.")
    test = "test" if "test" in splits else "validation"
    keys = {"train": "train", "test": test}
    counts = {part: splits[key].num_examples if key in splits else 0 for part, key in keys.items()}
    if not counts[split]:
        advice = "prepare it again or choose another set" if split == "train" or test in splits else _NO_TEST
        raise UserError(f"{name!r} in {builder.data_dir} has no records in its {split} split; it has "
                        f"{ {k: v.num_examples for k, v in splits.items()} }: {advice}.")
    if not counts["test"]:  # said before hours of training, not behind them
        warnings.warn(f"{name!r} has no test split, so that eval.py has nothing to test: {_NO_TEST}.", stacklevel=3)
    more = _extra_count(name, builder) if extra else 0
    shape = tuple(image.shape)
    images, labels = _read_split(builder, keys[split], counts[split], shape, name, names_read)
    if extra and split == "train":
        images, labels = _joined((images, labels), _read_split(builder, "extra", more, shape, name, names_read), name)
    return Split(images, labels, tuple(label.names or map(str, range(label.num_classes))), counts["train"] + more,
                 counts["test"])


def _image_and_label(name: str, info: Any) -> tuple[str, str]:
    """Names of the two features read: image and label, else those of supervised learning, else the only such two."""
    features = _library().features

    def is_image(feature: Any) -> bool:
        return isinstance(feature, features.Image) and not isinstance(feature, features.LabeledImage)

    has = dict(info.features.items()) if isinstance(info.features, features.FeaturesDict) else {}
    images = [key for key, feature in has.items() if is_image(feature)]
    labels = [key for key, feature in has.items() if isinstance(feature, features.ClassLabel)]
    only = [(images[0], labels[0])] if len(images) == len(labels) == 1 else []
    for pair in [("image", "label"), info.supervised_keys, *only]:
        if isinstance(pair, tuple) and len(pair) == 2 and pair[0] in images and pair[1] in labels:
            return pair[0], pair[1]
    kinds = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in sorted(has.items())) or str(info.features)
    raise UserError(f"{name!r} is not an image classification set: it needs the features 'image' (Image) and 'label' "
                    f"(ClassLabel), or one of each kind, it has {kinds}; choose another set.")


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


def _read_split(builder: Any, key: str, count: int, shape: tuple[int | None, ...], name: str,
                names_read: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Decode two features of a split, in parallel and in order, into preallocated arrays [N, H, W, C] and [N]."""
    import tensorflow as tf

    def damaged(why: str) -> UserError:
        return UserError(f"the {key} files of {name!r} in {builder.data_dir} are damaged: {why}; delete that folder "
                         "and prepare the data again.")

    images, labels, position = None, np.empty(count, np.int64), 0
    try:
        records = builder.as_dataset(split=key, shuffle_files=False)
        records = records.map(lambda r: (r[names_read[0]], r[names_read[1]]), num_parallel_calls=tf.data.AUTOTUNE)
        for image, label in records.batch(512 if None not in shape else 1).prefetch(2).as_numpy_iterator():
            if images is None:
                require_memory(f"the {key} split of {name!r}", count, image.shape[1:],
                               "use a smaller set or a resized copy of it")
                images = np.empty((count, *image.shape[1:]), np.uint8)
            if image.shape[1:] != images.shape[1:]:
                raise UserError(f"{name!r} has images of different sizes, {images.shape[1:]} and {image.shape[1:]} "
                                f"(record {position}); resize them to one size first or choose another set.")
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


def require_memory(what: str, count: int, shape: tuple[int, ...], advice: str) -> None:
    """Raises UserError, which ends in `advice`, where so many images of bytes do not belong in memory."""
    size = count * int(np.prod(shape))
    if size > MAX_BYTES:
        raise UserError(f"{what} is {size / 2**30:.1f} GiB decoded ({count} images of {shape}) and the limit is "
                        f"{MAX_BYTES / 2**30:.0f} GiB in memory; {advice}.")
