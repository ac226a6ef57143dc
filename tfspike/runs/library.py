"""The files of the trained weights that come with the library, in `tfspike/weights`. Needs no TensorFlow.

    lenet_mnist.npz     what training has learnt, by the names that variables have in a checkpoint; compressed float32,
                        kernels on request float16
    lenet_mnist.json    settings, data set, model card, a fingerprint of the network's answers, the sum of the .npz

`tfspike.pretrained` makes networks of them and writes them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfspike import config as config_lib
from tfspike import files
from tfspike.config import files as config_files
from tfspike.config.config import FIELDS, Config
from tfspike.config.settings import shown
from tfspike.datasets.arrays import DatasetInfo
from tfspike.errors import UserError
from tfspike.weights import FOLDER, available

FORMAT = 1
LARGEST = 12_000_000  # bytes of one .npz: every clone of the repository carries it
_PARTS = {"config": dict, "info": dict, "card": dict, "fingerprint": dict, "sha256": str}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One set of trained weights.

    Attributes:
      name: `<network>_<data set>`.
      path: of its .npz.
      config: settings of the training, without paths.
      info: of the data.
      card: the model card, plain JSON; `tfspike.pretrained.cards` says what is in it.
      fingerprint: `scores` of one noise image.
    """

    name: str
    path: str
    config: Config
    info: DatasetInfo
    card: dict[str, Any]
    fingerprint: dict[str, Any]

    def arrays(self) -> files.Arrays:
        """`{variable name: array}`, float32. Raises UserError where the file cannot be read."""
        stored = files.read_arrays(self.path, _ADVICE)
        return {name: array.astype(np.float32) if array.dtype == np.float16 else array
                for name, array in stored.items()}


_ADVICE = "install tfspike again, or restore the file from the repository"


def check_name(name: Any, folder: str = FOLDER) -> str:
    """The whole name of the weights meant by `name`.

    Args:
      name: `<network>_<data set>`, or the data set alone where that leaves no choice.
      folder: of the weights.

    Raises:
      UserError: there are no such weights, or several; says what there is.
    """
    known = available(folder)
    meant = [each for each in known if each == name] or [each for each in known if each.partition("_")[2] == name]
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise UserError(f"There are several trained weights {shown(str(name))}: {', '.join(meant)}; give one of these.")
    raise UserError(f"There are no trained weights {shown(str(name))}; there are {', '.join(known) or 'none'}. A name "
                    "is <network>_<data set>, or the data set alone.")


def read(name: str, folder: str = FOLDER) -> Entry:
    """Everything about one set of weights; the arrays themselves are read by `Entry.arrays`.

    Args:
      name, folder: as for `check_name`.

    Raises:
      UserError: there is no such name, or its files are damaged.
    """
    name = check_name(name, folder)
    stem = os.path.join(folder, name)
    try:
        with open(f"{stem}.json", encoding="utf-8") as file:
            record = json.loads(file.read(1_000_001))
        version = record["format"]
        sound = all(isinstance(record[part], kind) for part, kind in _PARTS.items())
        whole = files.checksum(f"{stem}.npz") == record["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"The trained weights {name} in {folder} are incomplete or damaged ({type(error).__name__}); "
                        f"{_ADVICE}.") from error
    if version != FORMAT:
        raise UserError(f"{stem}.json has format {shown(version)}, and this version of tfspike reads format {FORMAT}; "
                        "use the version that it came with.")
    if not sound or not whole:
        what = "json is not what tfspike.pretrained writes" if not sound else "npz does not match its checksum"
        raise UserError(f"The trained weights {name} are damaged: {stem}.{what}; {_ADVICE}.")
    text = json.dumps({"format": config_files.FORMAT, "config": record["config"]})
    config = config_lib.from_json(text, f"{stem}.json")
    try:
        info = DatasetInfo.from_dict(record["info"])
    except UserError as error:
        raise UserError(f"The trained weights {name} are damaged: {stem}.json has no sound record of the data; "
                        f"{_ADVICE}.") from error
    return Entry(name, f"{stem}.npz", config, info, record["card"], record["fingerprint"])


def rounded(array: np.ndarray) -> np.ndarray:
    """A kernel as it comes back from float16; what belongs to channels, with one axis, as it is."""
    return _halved(array).astype(array.dtype)


def _halved(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float16) if array.ndim > 1 else array


def write(folder: str, name: str, arrays: Mapping[str, np.ndarray], config: Config, info: DatasetInfo,
          card: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> str:
    """Writes the two files of an entry, the .json last: with it the entry is there.

    Args:
      folder: where to; made if need be.
      name: `<network>_<data set>`.
      arrays, config, info, card, fingerprint: as in `Entry`; paths in `config` are left out. The card's "kernels" says
        how kernels are stored: as float16, which they must be `rounded` for, or as they are.

    Returns:
      Path of the .npz.

    Raises:
      UserError: the weights are too large for the repository, or the folder cannot be written.
    """
    stem = os.path.join(folder, name)
    aside = f"{stem}.npz.writing"
    settings = {key: None if FIELDS[key].metadata["path"] else value
                for key, value in dataclasses.asdict(config).items()}
    half = card.get("kernels") == "float16"
    stored = {key: _halved(array) for key, array in arrays.items()} if half else arrays
    try:
        os.makedirs(folder, exist_ok=True)
        try:
            files.write_bytes(aside, functools.partial(files.write_arrays, stored, compressed=True))
            size = os.path.getsize(aside)
            if size > LARGEST:
                raise UserError(f"The weights of {name} take {size / 1e6:.1f} MB compressed, and at most "
                                f"{LARGEST / 1e6:g} MB go into the repository; {'' if half else 'give --half, or '}"
                                "publish them elsewhere.")
            os.replace(aside, f"{stem}.npz")
        finally:
            if os.path.exists(aside):
                os.unlink(aside)
        record = {"format": FORMAT, "card": dict(card), "config": settings, "info": info.to_dict(),
                  "fingerprint": dict(fingerprint), "sha256": files.checksum(f"{stem}.npz")}
        files.write_file(f"{stem}.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"Cannot write weights into {folder}: {error.strerror or error}; give an --out folder that can "
                        "be written.") from None
    return f"{stem}.npz"
