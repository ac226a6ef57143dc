"""Pictures of the user's own, a folder per class: found, measured, decoded into arrays.

Folders are laid out as `tfspike.datasets.class_folders` says. Files are read as `tfspike.datasets.image_files` says, as
they are `eval.py --predict` reads them. Images are grey where every training picture is, and otherwise RGB. Pictures of
different sizes are refused, unless a size is given to which each is scaled as a whole.
"""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

from tfspike.datasets import image_files
from tfspike.datasets.class_folders import Kind, find
from tfspike.datasets.tfds_source import Split, require_memory
from tfspike.errors import UserError

_PICTURES = Kind("folder", "pictures", "PNG or JPEG pictures", "*.png", image_files.find)
_LARGE = 128 * 128  # pixels; networks of this library are made for 8 to 96 a side


def load(split: str, data_dir: str | None, size: Sequence[int] = (), like: Any = None) -> Split:
    """Reads one split, class by class, in the order of the files' names.

    Args:
      split: "train" or "test"; "train" looks at the files of "test" too, so that what is wrong with them is said now.
      data_dir: the folder.
      size: height and width that pictures are scaled to; () takes them as they are.
      like: the `DatasetInfo` of a network that the pictures are for, which then says the classes and the shape; None
        for a new one.

    Raises:
      UserError: as for `class_folders.find`; pictures of different sizes, a file that cannot be read, or a split that
        does not belong in memory.
    """
    root, train, test, class_names = find(_PICTURES, split, data_dir, like)
    wanted = train if split == "train" else test
    shape = (_shape_of_new(root, train.files, test.files, size) if like is None else
             _shape_of_known(root, wanted.files, size, like))
    require_memory(f"the {split} part of {root}", len(wanted.files), shape, "give a smaller --image_size")
    images, _ = image_files.load_images(wanted.files, shape, resize=bool(size))
    return Split(images, wanted.labels, class_names, len(train.files), len(test.files))


def _shape_of_new(root: pathlib.Path, train: list[str], test: list[str],
                  size: Sequence[int]) -> tuple[int, int, int]:
    """(H, W, C): the wanted size, or else the one that all files have; grey where all of `train` is."""
    headers = image_files.headers([*train, *test])
    channels = 1 if all(header.is_grey for header in headers[:len(train)]) else 3
    if size:
        return size[0], size[1], channels
    height, width, _ = headers[0]
    for file, header in zip([*train, *test], headers):
        if header[:2] != (height, width):
            raise UserError(f"{root} has pictures of different sizes, {height}x{width} ({train[0]}) and "
                            f"{header.height}x{header.width} ({file}); give a size to which each is scaled as a whole, "
                            "such as --image_size=32, or scale them yourself.")
    if height * width > _LARGE:
        warnings.warn(f"the pictures in {root} have {height}x{width} pixels, which takes long to train; "
                      "--image_size=64, say, scales them.", stacklevel=4)
    return height, width, channels


def _shape_of_known(root: pathlib.Path, files: list[str], size: Sequence[int], like: Any) -> tuple[int, int, int]:
    """(H, W, C) of the network's images, which the files must have unless they are scaled."""
    height, width, channels = like.image_shape
    for file, header in zip(files, () if size else image_files.headers(files)):
        if header[:2] != (height, width):
            raise UserError(f"{root} has a picture of {header.height}x{header.width} ({file}), and the network takes "
                            f"{height}x{width}; scale it to that size.")
    return height, width, channels
