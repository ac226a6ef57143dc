"""Pictures of the user's own, a folder per class: found, measured, decoded into arrays.

    DIR/train/CLASS/*.png  DIR/test/CLASS/*.png      test may be called validation, valid or val
    DIR/train/CLASS/*.png                            a fifth of each class is held out for testing
    DIR/CLASS/*.png                                  the same

Classes are the folders, in the order of their names; a class folder may have folders of its own. Files are read as
`tfspike.datasets.image_files` says, which is how `eval.py --predict` reads them. Images are grey where every training
picture is, and otherwise RGB. Pictures of different sizes are refused, unless a size is given to which each is scaled
as a whole.
"""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tfspike.datasets import image_files
from tfspike.datasets.sampling import held_out
from tfspike.datasets.tfds_source import Split, require_memory
from tfspike.errors import UserError

_TEST_NAMES = ("test", "validation", "valid", "val")
_LARGE = 128 * 128  # pixels; networks of this library are made for 8 to 96 a side


class _Part(NamedTuple):
    """Picture files, and the number of the class of each [N]."""

    files: list[str]
    labels: np.ndarray

    def where(self, chosen: np.ndarray) -> _Part:
        """Those for which `chosen` [N] is true."""
        return _Part([self.files[i] for i in np.flatnonzero(chosen)], self.labels[chosen])


def load(split: str, data_dir: str | None, size: Sequence[int] = (), like: Any = None) -> Split:
    """Reads one split, class by class, in the order of the files' names.

    Args:
      split: "train" or "test"; "train" looks at the files of "test" too, so that what is wrong with them is said now.
      data_dir: the folder, see the head of this file.
      size: height and width that pictures are scaled to; () takes them as they are.
      like: the `DatasetInfo` of a network that the pictures are for, which then says the classes and the shape; None
        for a new one.

    Raises:
      UserError: the folder is missing or laid out differently, has one class, an empty one, one that is not known, or
        pictures of different sizes; a file cannot be read; or the split does not belong in memory.
    """
    root = _root(data_dir)
    train_folder, test_folder = _parts(root)
    if train_folder is None and (test_folder is None or like is None or split == "train"):
        raise _no_classes(root) if test_folder is None else UserError(
            f"{root} has a folder {test_folder.name!r} and none called 'train'; put the pictures to train with into "
            f"{root / 'train'}, a folder per class.")
    train = test = _Part([], np.empty(0, np.int64))
    known = tuple(like.class_names) if like is not None else ()
    if train_folder is not None and not (like is not None and test_folder is not None and split == "test"):
        known = known or _classes(train_folder)
        train = _find(train_folder, known, every_class=like is None)
    if test_folder is not None:
        test = _find(test_folder, known)
        if not test.files:
            raise UserError(f"{test_folder} has no pictures; put some in, or remove it to hold out a share of the "
                            "others.")
    else:
        train, test = _held_out(train, root, like)
    wanted = train if split == "train" else test
    shape = (_shape_of_new(root, train.files, test.files, size) if like is None else
             _shape_of_known(root, wanted.files, size, like))
    require_memory(f"the {split} part of {root}", len(wanted.files), shape, "give a smaller --image_size")
    images, _ = image_files.load_images(wanted.files, shape, resize=bool(size))
    return Split(images, wanted.labels, known, len(train.files), len(test.files))


# --- folders ----------------------------------------------------------------------------------------------------------


def _root(data_dir: str | None) -> pathlib.Path:
    advice = "with pictures in DIR/train/CLASS and DIR/test/CLASS, or in DIR/CLASS"
    if data_dir is None:
        raise UserError(f"--dataset=folder reads pictures of your own; give --data_dir=DIR, {advice}.")
    root = pathlib.Path(data_dir)
    if root.is_dir():
        return root
    if root.suffix == ".npz":
        raise UserError(f"--data_dir={data_dir} is no folder; for a file of arrays give --dataset=npz.")
    raise UserError(f"--data_dir={data_dir} {'is no folder' if root.exists() else 'does not exist'}; give a folder "
                    f"{advice}.")


def _subfolders(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    try:
        return {path.name: path for path in sorted(folder.iterdir()) if path.is_dir() and path.name[0] != "."}
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror or error}); give a folder that can.") from None


def _parts(root: pathlib.Path) -> tuple[pathlib.Path | None, pathlib.Path | None]:
    """The folders of the training classes and of the test classes; None where there is none."""
    found = {name.lower(): path for name, path in _subfolders(root).items()}
    tests = [found[name] for name in _TEST_NAMES if name in found]
    if "train" in found:
        if len(tests) > 1:
            warnings.warn(f"{tests[1]} is not read: {tests[0]} is there to test with, and validation pictures are held "
                          "out of the training pictures (--val_fraction).", stacklevel=4)
        return found["train"], tests[0] if tests else None
    if "test" in found and _subfolders(found["test"]):  # or else it is a class of this name
        return None, found["test"]
    return (root if found else None), None


def _no_classes(folder: pathlib.Path) -> UserError:
    return UserError(f"{folder} has no folders, and classification needs one per class; sort the pictures into "
                     f"{folder}/CLASS/*.png.")


def _classes(folder: pathlib.Path) -> tuple[str, ...]:
    names = tuple(_subfolders(folder))
    if not names:
        raise _no_classes(folder)
    if len(names) == 1:
        raise UserError(f"{folder} has 1 class, {names[0]!r}, and classification needs at least 2; if the classes are "
                        f"the folders in it, give --data_dir={folder / names[0]}.")
    return names


def _find(folder: pathlib.Path, known: Sequence[str], every_class: bool = False) -> _Part:
    """The pictures of a part; with `every_class`, each of the known classes must have one."""
    folders = _subfolders(folder)
    other = [name for name in folders if name not in known]
    if other:
        raise UserError(f"{folder} has the class {other[0]!r}, which is none of those trained on "
                        f"({_listed(known)}); rename or remove that folder.")
    files = dict(zip(folders, image_files.find(list(folders.values()))))
    if every_class and (empty := [name for name in known if not files.get(name)]):
        raise UserError(f"{folder / empty[0]} has no PNG or JPEG pictures; put some in, or remove it.")
    labels = [number for number, name in enumerate(known) for _ in files.get(name, ())]
    return _Part([file for name in known for file in files.get(name, ())], np.array(labels, np.int64))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def _held_out(every: _Part, root: pathlib.Path, like: Any) -> tuple[_Part, _Part]:
    """Training and test pictures of a folder without a test part."""
    if like is not None and len(every.files) != like.num_train + like.num_test:
        raise UserError(f"{root} has {len(every.files)} pictures, and when the network was trained there were "
                        f"{like.num_train + like.num_test}, so that those held out for testing cannot be told from the "
                        "others; restore them, or put pictures to test with into DIR/test/CLASS.")
    tested = held_out(every.labels)
    if not tested.any():
        raise UserError(f"no class of {root} has two pictures, of which one could be held out for testing; add "
                        "pictures.")
    return every.where(~tested), every.where(tested)


# --- sizes ------------------------------------------------------------------------------------------------------------


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
