"""The files of the trained weights that come with the library, in `tfspike/weights`. Needs no TensorFlow.

    lenet_mnist.npz     what training has learnt, by the names that variables have in a checkpoint; compressed float32,
                        kernels on request float16
    lenet_mnist.json    settings, data set, model card, a fingerprint of the network's answers, the sum of the .npz

`tfspike.pretrained` makes networks of them and writes them; `tfspike.models.create(..., weights=)` reads them too.
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
from tfspike import config_files, files
from tfspike.config import FIELDS, Config
from tfspike.datasets import DatasetInfo
from tfspike.errors import UserError
from tfspike.settings import shown

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "weights")
FORMAT = 1
LARGEST = 5_000_000  # bytes of one .npz: every clone of the repository carries it
_PARTS = {"config": dict, "info": dict, "card": dict, "fingerprint": dict, "sha256": str}

# Arguments of `create` that decide what weights mean; gradient, surrogate, dropout, seed and T do not.
BINDING = ("neuron", "norm", "pooling", "leak", "threshold")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One set of trained weights.

    Attributes:
      name: `<network>_<data set>`.
      path: of its .npz.
      config: settings of the training, without paths.
      info: of the data.
      card: the model card, plain JSON; `tfspike.model_cards` says what is in it.
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


def available(folder: str = FOLDER) -> list[str]:
    """Names of the trained weights in a folder, the library's own unless another is given."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))


def check_name(name: Any, folder: str = FOLDER, network: str | None = None) -> str:
    """The whole name of the weights meant by `name`.

    Args:
      name: `<network>_<data set>`, or the data set alone where that leaves no choice.
      folder: of the weights.
      network: the network that they must be of; None for any.

    Raises:
      UserError: there are no such weights, or several; says what there is.
    """
    every = available(folder)
    known = [each for each in every if network in (None, _split(each)[0])]
    meant = [each for each in known if each == name] or [each for each in known if _split(each)[1] == name]
    if len(meant) == 1:
        return meant[0]
    name, of = str(name), "" if network is None else f"of {network} "
    if meant:
        raise UserError(f"There are several trained weights {shown(name)}: {', '.join(meant)}; give one of these.")
    if name in every:
        raise UserError(f"The trained weights {name} are of {_split(name)[0]}, and {network} was asked for; {of}there "
                        f"are {', '.join(known) or 'none'}.")
    asked = name if network is None or name.startswith(f"{network}_") else f"{network}_{name}"
    raise UserError(f"There are no trained weights {shown(asked)}; {of}there are {', '.join(known) or 'none'}. A name "
                    "is <network>_<data set>, or the data set alone.")


def _split(name: str) -> tuple[str, str]:
    """Network and data set of a whole name."""
    network, _, data = name.partition("_")
    return network, data


def read(name: str, folder: str = FOLDER, network: str | None = None) -> Entry:
    """Everything about one set of weights; the arrays themselves are read by `Entry.arrays`.

    Args:
      name, folder, network: as for `check_name`.

    Raises:
      UserError: there is no such name, or its files are damaged.
    """
    name = check_name(name, folder, network)
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


def check_fits(entry: Entry, **given: Any) -> None:
    """Compares arguments of `create` with the network that the weights are of.

    Args:
      entry: the weights.
      given: input_shape, num_classes, hidden, encoder, and all of `BINDING`.

    Raises:
      UserError: naming every argument that must be another.
    """
    config = entry.config
    wanted = {"input_shape": tuple(entry.info.image_shape), "num_classes": entry.info.num_classes,
              "hidden": config.hidden, "encoder": None if config.encoder == "none" else config.encoder,
              **{name: getattr(config, name) for name in BINDING}}
    wanted["norm"] = None if config.norm == "none" else config.norm
    if given["encoder"] is None:  # the caller codes images, in whatever way
        del wanted["encoder"]
    other = {name: value for name, value in wanted.items() if given[name] != value}
    if other:
        need = ", ".join(f"{name}={value!r}" for name, value in other.items())
        got = ", ".join(f"{name}={given[name]!r}" for name in other)
        raise UserError(f"The trained weights {entry.name} are of a network with {need}; give that, or leave `weights` "
                        f"out. Received: {got}.")
