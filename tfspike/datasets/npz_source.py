"""Images and labels of the user's own in one .npz file: checked, and brought into bytes with the channels last.

    x_train, y_train, x_test, y_test      as Keras has them; without the last two, a fifth of each class is held out
    images, labels                        a fifth of each class is held out for testing

Images are `[N, H, W]` or `[N, H, W, C]`: whole numbers from 0 to 255, or floats from 0 to 1 or from 0 to 255, which are
rounded to whole numbers of 255. Labels are whole numbers or text, `[N]` or `[N, 1]`; each different one is a class.
Nothing in the file is executed: arrays of objects, which NumPy pickles, are refused.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tfspike.datasets.sampling import held_out
from tfspike.datasets.tfds_source import Split
from tfspike.errors import UserError, listed
from tfspike.files import names_in_npz, read_npz

_ADVICE = ("save it with numpy.savez(FILE, x_train=..., y_train=..., x_test=..., y_test=...) or "
           "numpy.savez(FILE, images=..., labels=...), numbers and text only")
_LEGAL = "whole numbers from 0 to 255, or floats from 0 to 1 or from 0 to 255"
_NEARLY_ONE = 1.001  # rounding of floats in [0, 1]
_LEAST_BRIGHT = 16  # floats that reach beyond 1 and not so far are on neither scale


class _Part(NamedTuple):
    """Images [N, H, W, C] as they were stored, and labels [N], whole numbers or text."""

    images: np.ndarray
    labels: np.ndarray


def load(split: str, path: str | None, like: Any = None) -> Split:
    """Reads one split, in the order of its records.

    Args:
      split: "train" or "test"; the other one is checked as well, where the file has it.
      path: the file.
      like: the `DatasetInfo` of a network that the images are for, which then says the classes; None for a new one.

    Raises:
      UserError: there is no such file, it has other arrays, or they cannot be used.
    """
    path = _file(path)
    parts = _read(path, like)
    known = list(like.class_names) if like is not None else _classes(parts["train"].labels, path)
    numbers = {name: _numbered(part.labels, known, path) for name, part in parts.items()}
    if "test" not in parts:
        parts, numbers = _held_out(parts["train"], numbers["train"], path, like)
    if split not in parts:
        raise UserError(f"{path} has test images alone; training needs x_train and y_train.")
    counts = {name: len(part.labels) for name, part in parts.items()}
    pixels = _bytes({name: part.images for name, part in parts.items()}, split, path)
    return Split(pixels, numbers[split], tuple(known), counts.get("train", 0), counts["test"])


def _file(path: str | None) -> str:
    if path is None:
        raise UserError("--dataset=npz reads arrays of your own; give --data_dir=FILE.npz with x_train and y_train, or "
                        "images and labels.")
    if os.path.isfile(path):
        if not zipfile.is_zipfile(path):  # NumPy would speak of pickles
            raise UserError(f"{path} is no .npz file, or a damaged one; {_ADVICE}.")
        return path
    if os.path.isdir(path):
        raise UserError(f"--data_dir={path} is a folder; with --dataset=npz it is the .npz file itself, and pictures "
                        "in folders are --dataset=folder.")
    raise UserError(f"--data_dir={path} does not exist; give the .npz file.")


def _read(path: str, like: Any) -> dict[str, _Part]:
    """The parts that the file has, "train" and "test"; of `images` and `labels` all is "train"."""
    has = set(names_in_npz(path, _ADVICE))
    layouts = {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")}
    if {"images", "labels"} <= has and not {"x_train", "x_test"} & has:
        layouts = {"train": ("images", "labels")}
    elif "x_test" not in has and "y_test" not in has:
        del layouts["test"]
    elif like is not None and "x_train" not in has:  # images that a trained network is tested on
        del layouts["train"]
    fields = read_npz(path, [name for names in layouts.values() for name in names], _ADVICE)
    parts = {part: _Part(_with_channels(fields[x], x, path), _plain_labels(fields[y], y, path))
             for part, (x, y) in layouts.items()}
    for (x, y), part in zip(layouts.values(), parts.values()):
        if len(part.images) != len(part.labels):
            raise UserError(f"{path} has {len(part.images)} images in `{x}` and {len(part.labels)} labels in `{y}`; "
                            "give one label per image.")
    shapes = {part.images.shape[1:] for part in parts.values()}
    if len(shapes) > 1:
        raise UserError(f"{path} has images of shape {parts['train'].images.shape[1:]} in x_train and "
                        f"{parts['test'].images.shape[1:]} in x_test; give them one shape.")
    return parts


def _with_channels(images: np.ndarray, name: str, path: str) -> np.ndarray:
    if images.dtype.kind not in "uif":
        raise UserError(f"`{name}` of {path} must be whole numbers from 0 to 255, or floats, received {images.dtype}; "
                        "convert it.")
    if images.ndim not in (3, 4) or 0 in images.shape:
        advice = "; reshape it" if images.ndim == 2 else ""
        raise UserError(f"`{name}` of {path} must have the shape [N, H, W] or [N, H, W, C] with no empty axis, "
                        f"received {images.shape}{advice}.")
    if images.ndim == 3:
        return images[..., None]
    if images.shape[1] in (1, 3) and images.shape[3] > 4:
        raise UserError(f"`{name}` of {path} has the shape {images.shape}, with channels in front of the pixels; save "
                        f"{name}.transpose(0, 2, 3, 1).")
    return images


# --- labels -----------------------------------------------------------------------------------------------------------


def _plain_labels(labels: np.ndarray, name: str, path: str) -> np.ndarray:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8", "replace")
    if labels.ndim != 1 or labels.dtype.kind not in "iuU":
        advice = f"; of one-hot rows, save {name}.argmax(axis=1)" if labels.ndim == 2 else ""
        raise UserError(f"`{name}` of {path} must be whole numbers or text of shape [N], received {labels.dtype} of "
                        f"shape {labels.shape}{advice}.")
    return labels


def _classes(labels: np.ndarray, path: str) -> list[str]:
    names = list(map(str, np.unique(labels)))
    if len(names) < 2:
        raise UserError(f"the training labels of {path} have 1 class, {names[0]}; classification needs at least 2.")
    if 2 * len(names) > len(labels):
        raise UserError(f"{len(labels)} training labels of {path} are {len(names)} different ones, fewer than two "
                        "images of each; give labels of classes.")
    return names


def _numbered(labels: np.ndarray, known: Sequence[str], path: str) -> np.ndarray:
    """The number of each label's class."""
    places = {name: number for number, name in enumerate(known)}
    different, which = np.unique(labels, return_inverse=True)
    other = [str(label) for label in different if str(label) not in places]
    if other:
        raise UserError(f"{path} has the label {other[0]}, which is none of those trained on ({listed(known)}); remove "
                        "those images.")
    return np.array([places[str(label)] for label in different], np.int64)[which]


def _held_out(every: _Part, numbers: np.ndarray, path: str,
              like: Any) -> tuple[dict[str, _Part], dict[str, np.ndarray]]:
    """Parts and numbers of classes of a file without test images."""
    if like is not None and len(numbers) != like.num_train + like.num_test:
        raise UserError(f"{path} has {len(numbers)} images, and when the network was trained there were "
                        f"{like.num_train + like.num_test}, so that those held out for testing cannot be told from the "
                        "others; restore it, or save the images to test with as x_test and y_test.")
    tested = held_out(numbers)
    which = {"train": ~tested, "test": tested}
    return ({name: _Part(every.images[part], every.labels[part]) for name, part in which.items()},
            {name: numbers[part] for name, part in which.items()})


# --- pixels -----------------------------------------------------------------------------------------------------------


def _bytes(images: dict[str, np.ndarray], split: str, path: str) -> np.ndarray:
    """The images of one split as uint8 from 0 to 255; all parts say together which scale they are on."""
    bounds = np.array([(part.min(), part.max()) for part in images.values()], np.float64)
    if not np.isfinite(bounds).all():
        raise UserError(f"{path} has NaN or infinite pixels; legal are {_LEGAL}.")
    kinds, (low, high) = {part.dtype.kind == "f" for part in images.values()}, (bounds.min(), bounds.max())
    units = {bool(top <= _NEARLY_ONE) for top in bounds[:, 1]}
    if len(kinds) > 1 or len(units) > 1:
        raise UserError(f"the images in x_train and in x_test of {path} are on different scales, up to "
                        f"{bounds[0, 1]:g} ({images['train'].dtype}) and up to {bounds[1, 1]:g} "
                        f"({images['test'].dtype}); give both the same.")
    floats, unit = kinds == {True}, units == {True}
    if low < 0 or high > 255 or (floats and not unit and high < _LEAST_BRIGHT) or (not floats and 0 < high <= 1):
        raise UserError(f"the pixels of {path} run from {low:g} to {high:g}; legal are {_LEGAL}: save them as they "
                        "were before they were normalised.")
    if not floats:
        return images[split].astype(np.uint8)
    return np.clip(np.rint(images[split].astype(np.float32) * (255 if unit else 1)), 0, 255).astype(np.uint8)
