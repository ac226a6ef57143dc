"""Files of the user's own, a folder per class: found, numbered, and parted into those to train and to test with.

    DIR/train/CLASS/*  DIR/test/CLASS/*      test may be called validation, valid or val
    DIR/train/CLASS/*                        a fifth of each class is held out for testing
    DIR/CLASS/*                              the same

Classes are the folders, in the order of their names; a class folder may have folders of its own.
"""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfspike.datasets.sampling import held_out
from tfspike.errors import UserError, listed

_TEST_NAMES = ("test", "validation", "valid", "val")


class Kind(NamedTuple):
    """A kind of files.

    Attributes:
      dataset: the data set that is made of them.
      plural: what they are, in words.
      readable: those that can be read, in words.
      pattern: of the names of some.
      find: the files of this kind in each of some folders, at any depth.
    """

    dataset: str
    plural: str
    readable: str
    pattern: str
    find: Callable[[Sequence[pathlib.Path]], list[list[str]]]


class Part(NamedTuple):
    """Files, and the number of the class of each [N]."""

    files: list[str]
    labels: np.ndarray

    def where(self, chosen: np.ndarray) -> Part:
        """Those for which `chosen` [N] is true."""
        return Part([self.files[i] for i in np.flatnonzero(chosen)], self.labels[chosen])


class Found(NamedTuple):
    """The files of a folder; of a trained network's data, `train` may be left out."""

    root: pathlib.Path
    train: Part
    test: Part
    class_names: tuple[str, ...]


def find(kind: Kind, split: str, data_dir: str | None, like: Any = None) -> Found:
    """Looks for the files of a folder, class by class, in the order of their names.

    Args:
      kind: of files.
      split: "train" or "test", which will be read.
      data_dir: the folder, see the head of this file.
      like: the `DatasetInfo` of a network that the files are for, which then says the classes; None for a new one.

    Raises:
      UserError: the folder is missing or laid out differently, has one class, an empty one, or one that is not known.
    """
    root = _root(kind, data_dir)
    train_folder, test_folder = _parts(kind, root)
    if train_folder is None and (test_folder is None or like is None or split == "train"):
        raise _no_classes(kind, root) if test_folder is None else UserError(
            f"{root} has a folder {test_folder.name!r} and none called 'train'; put the {kind.plural} to train with "
            f"into {root / 'train'}, a folder per class.")
    train = test = Part([], np.empty(0, np.int64))
    known = tuple(like.class_names) if like is not None else ()
    if train_folder is not None and not (like is not None and test_folder is not None and split == "test"):
        known = known or _classes(kind, train_folder)
        train = _find(kind, train_folder, known, every_class=like is None)
    if test_folder is not None:
        test = _find(kind, test_folder, known)
        if not test.files:
            raise UserError(f"{test_folder} has no {kind.plural}; put some in, or remove it to hold out a share of the "
                            "others.")
    else:
        train, test = _held_out(kind, train, root, like)
    return Found(root, train, test, known)


def files_below(folder: pathlib.Path) -> list[pathlib.Path]:
    """Files at any depth, sorted, without hidden ones and those in hidden folders."""
    return sorted(file for file in folder.rglob("*") if file.is_file()
                  and not any(part.startswith(".") for part in file.relative_to(folder).parts))


def _root(kind: Kind, data_dir: str | None) -> pathlib.Path:
    advice = f"with {kind.plural} in DIR/train/CLASS and DIR/test/CLASS, or in DIR/CLASS"
    if data_dir is None:
        raise UserError(f"--dataset={kind.dataset} reads {kind.plural} of your own; give --data_dir=DIR, {advice}.")
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


def _parts(kind: Kind, root: pathlib.Path) -> tuple[pathlib.Path | None, pathlib.Path | None]:
    """The folders of the training classes and of the test classes; None where there is none."""
    found = {name.lower(): path for name, path in _subfolders(root).items()}
    tests = [found[name] for name in _TEST_NAMES if name in found]
    classes = set(found) - {"train", *_TEST_NAMES}
    if "train" in found and (not classes or any(map(_subfolders, (found["train"], *tests)))):
        if len(tests) > 1:
            warnings.warn(f"{tests[1]} is not read: {tests[0]} is there to test with, and validation {kind.plural} "
                          "are held out of those to train with (--val_fraction).", stacklevel=5)
        return found["train"], tests[0] if tests else None
    # Without folders in them both are classes, as a train is among vehicles
    if "test" in found and _subfolders(found["test"]):
        return None, found["test"]
    return (root if found else None), None


def _no_classes(kind: Kind, folder: pathlib.Path) -> UserError:
    return UserError(f"{folder} has no folders, and classification needs one per class; sort the "
                     f"{kind.plural} into {folder}/CLASS/{kind.pattern}.")


def _classes(kind: Kind, folder: pathlib.Path) -> tuple[str, ...]:
    names = tuple(_subfolders(folder))
    if not names:
        raise _no_classes(kind, folder)
    if len(names) == 1:
        raise UserError(f"{folder} has 1 class, {names[0]!r}, and classification needs at least 2; if the classes are "
                        f"the folders in it, give --data_dir={folder / names[0]}.")
    return names


def _find(kind: Kind, folder: pathlib.Path, known: Sequence[str], every_class: bool = False) -> Part:
    """The files of a part; with `every_class`, each of the known classes must have one."""
    folders = _subfolders(folder)
    other = [name for name in folders if name not in known]
    if other:
        raise UserError(f"{folder} has the class {other[0]!r}, which is none of those trained on "
                        f"({listed(known)}); rename or remove that folder.")
    files = dict(zip(folders, kind.find(list(folders.values()))))
    if every_class and (empty := [name for name in known if not files.get(name)]):
        raise UserError(f"{folder / empty[0]} has no {kind.readable}; put some in, or remove it.")
    labels = [number for number, name in enumerate(known) for _ in files.get(name, ())]
    return Part([file for name in known for file in files.get(name, ())], np.array(labels, np.int64))


def _held_out(kind: Kind, every: Part, root: pathlib.Path, like: Any) -> tuple[Part, Part]:
    """What to train and to test with, of a folder without a test part."""
    if like is not None and len(every.files) != like.num_train + like.num_test:
        raise UserError(f"{root} has {len(every.files)} {kind.plural}, and when the network was trained there were "
                        f"{like.num_train + like.num_test}, so that those held out for testing cannot be told from the "
                        f"others; restore them, or put {kind.plural} to test with into DIR/test/CLASS.")
    tested = held_out(every.labels)
    if not tested.any():
        raise UserError(f"no class of {root} has two {kind.plural}, of which one could be held out for testing; "
                        "add some.")
    return every.where(~tested), every.where(tested)
