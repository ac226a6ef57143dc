"""What is random about data, as pure functions of a seed: held-out records, the order of an epoch, augmentation.

Random numbers are raw bits of PCG64, a stream that NumPy keeps equal between versions.
"""

from __future__ import annotations

import functools
import zlib
from typing import Any

import numpy as np

from tfspike.checks import is_count, number
from tfspike.errors import UserError

SIDE_PER_SHIFT = 8  # an image is shifted by at most an eighth of its side: 4 pixels of 32
TEST_SHARE = 0.2  # of the records of each class, where data of the user's come without a test part
_SPLIT, _EPOCH, _AUGMENT, _TEST = 1, 2, 3, 4  # kinds of random numbers, so that no two uses share a stream


def _random_bits(count: int, *key: int) -> np.ndarray:
    """`count` uint64 of random bits, a pure function of the key."""
    return np.random.PCG64(np.random.SeedSequence(key)).random_raw(count)


def _permutation(count: int, *key: int) -> np.ndarray:
    return np.argsort(_random_bits(count, *key), kind="stable")


@functools.lru_cache(maxsize=4)  # every batch of an epoch asks for it
def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of `count` records in an epoch (from 0): a permutation of 0..count - 1, not to be written into."""
    order = _permutation(count, seed, _EPOCH, epoch)
    order.setflags(write=False)
    return order


def split_indices(num_records: int, val_fraction: float, seed: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Hold out validation records by their index: (training, validation) indices, each sorted, disjoint, int64.

    The validation part is the first round(N * val_fraction) entries of a permutation keyed by (seed, set name), so it
    stays the same for every model, batch size and resumed run. val_fraction 0 leaves it empty.

    Raises:
      UserError: val_fraction outside [0, 1), a negative seed, or a part left empty.
    """
    if not 0 <= number(val_fraction) < 1:  # also refuses NaN
        raise UserError(f"val_fraction must lie in [0, 1), received {val_fraction}.")
    check_seed(seed)
    count = round(num_records * val_fraction)
    if num_records - count < 1 or (val_fraction > 0 and count < 1):
        raise UserError(f"val_fraction {val_fraction} of {num_records} records leaves {num_records - count} for "
                        f"training and {count} for validation; both need one or more: choose another fraction.")
    order = _permutation(num_records, seed, _SPLIT, zlib.crc32(name.encode()))
    return np.sort(order[count:]), np.sort(order[:count])


def split_record(name: str, val_fraction: float, seed: int, train: np.ndarray, val: np.ndarray) -> dict[str, Any]:
    """The rule and checksums of a validation split, for config.json."""
    return {"rule": "first round(N * val_fraction) of argsort(PCG64(SeedSequence([seed, 1, crc32(name)])) raw bits)",
            "name": name, "seed": seed, "val_fraction": val_fraction, "num_train": len(train), "num_val": len(val),
            "train_crc32": zlib.crc32(train.astype("<i8").tobytes()),
            "val_crc32": zlib.crc32(val.astype("<i8").tobytes())}


def held_out(labels: np.ndarray) -> np.ndarray:
    """Which records are held out for testing, bool [N]: `TEST_SHARE` of each class, to the nearest whole number, and
    one or more of each that has two or more.

    It follows from the labels [N] alone and from no run's seed, so that all runs are tested on the same records.
    """
    chosen = np.zeros(len(labels), bool)
    for label, count in zip(*np.unique(labels, return_counts=True)):
        some = min(max(1, round(TEST_SHARE * count)), count - 1)
        chosen[np.flatnonzero(labels == label)[_permutation(count, 0, _TEST, int(label))[:some]]] = True
    return chosen


def some(of: int, count: int, spread: bool) -> np.ndarray:
    """Which `count` of `of` records, or all of fewer, stand for all of them, int64, rising: the first ones, or with
    `spread`, for records in the order of their classes, those at even distances."""
    count = min(count, of)
    return np.arange(count) * of // count if spread else np.arange(count)


def check_seed(seed: int) -> None:
    """Raises UserError unless the seed is a whole number of 0 or more."""
    if not is_count(seed, 0):
        raise UserError(f"seed must be a whole number of 0 or more, received {seed!r}.")


def augment(images: np.ndarray, mirror: bool, seed: int, step: int, batch_size: int, part: slice) -> np.ndarray:
    """Shifts raw pixels by up to an eighth of their side over dark padding, and mirrors half of them.

    Args:
      images: a worker's part of a global batch, [B, H, W, C].
      mirror: whether a mirror image means the same.
      seed, step: of the run and of the batch; they alone decide.
      batch_size: of the global batch.
      part: which of its places `images` has.
    """
    height, width = images.shape[1:3]
    above, before = height // SIDE_PER_SHIFT, width // SIDE_PER_SHIFT
    padded = np.pad(images, ((0, 0), (above, above), (before, before), (0, 0)))
    tops, lefts, flips = (moved[part] for moved in shifts(mirror, seed, step, batch_size, height, width))
    out = np.empty_like(images)
    for i, (top, left, flip) in enumerate(zip(tops.tolist(), lefts.tolist(), flips.tolist())):
        crop = padded[i, top:top + height, left:left + width]
        out[i] = crop[:, ::-1] if flip else crop
    return out


def shifts(mirror: bool, seed: int, step: int, batch_size: int, height: int,
           width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `augment` does to the images of a global batch: where each is cut out of its padding, and whether it is
    mirrored; whole numbers [B]."""
    bits = _random_bits(batch_size, seed, _AUGMENT, step)
    above, before = height // SIDE_PER_SHIFT, width // SIDE_PER_SHIFT
    tops = (bits >> np.uint64(8)) % np.uint64(2 * above + 1)  # bias below 1e-6
    lefts = (bits >> np.uint64(32)) % np.uint64(2 * before + 1)
    return tops.astype(np.int32), lefts.astype(np.int32), (bits & np.uint64(mirror)).astype(np.int32)
