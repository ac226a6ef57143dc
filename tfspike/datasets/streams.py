"""Batches that depend on nothing but (seed, step), and the split into training and validation records.

A split is in memory (`tfspike.datasets`), and every batch is gathered from it with NumPy. That makes batch k a pure
function of the seed and k: a run can be continued at any step at once, and n workers read n slices of the same global
batch.

    train_index, val_index = split_indices(len(train), 0.1, seed=0, name=train.name)
    batches = train_stream(train.images, train.labels, train_index, 64, seed=0, info=info, start_step=1200)
    val = eval_stream(train.images, train.labels, 64, info, indices=val_index)

Random numbers are raw bits of PCG64, a stream that NumPy keeps equal between versions.
"""

from __future__ import annotations

import atexit
import collections
import threading
import time
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tfspike.checks import is_count, number
from tfspike.datasets.arrays import DatasetInfo, check_indices, check_labels
from tfspike.errors import UserError

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = ["EvalStream", "TrainStream", "eval_stream", "split_indices", "split_record", "train_stream"]

_SIDE_PER_SHIFT = 8  # an image is shifted by at most an eighth of its side: 4 pixels of 32
_SPLIT, _EPOCH, _AUGMENT = 1, 2, 3  # kinds of random numbers, so that no two uses share a stream


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
    if not 0 <= number(val_fraction) < 1:  # also refuses NaN
        raise UserError(f"val_fraction must lie in [0, 1), received {val_fraction}.")
    _check_seed(seed)
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


def _check_seed(seed: int) -> None:
    if not is_count(seed, 0):
        raise UserError(f"seed must be a whole number of 0 or more, received {seed!r}.")


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
        self.labels = check_labels(labels, info.num_classes, info.name, "any")
        images = images if hasattr(images, "shape") else np.asarray(images)
        if len(images.shape) != 4 + info.event_based:
            axes = "[N, T, H, W, 2]" if info.event_based else "[N, H, W, C]"
            raise UserError(f"images of {info.name} must have the shape {axes}, received {tuple(images.shape)}.")
        if len(images) != len(self.labels):
            raise UserError(f"{len(images)} images need as many labels, received {len(self.labels)}.")
        info.check(images)
        indices = check_indices(indices, len(self.labels))
        if not is_count(batch_size) or not len(indices):
            raise UserError(f"a batch needs at least 1 record, received batch size {batch_size} of {len(indices)} "
                            "records.")
        if not 0 <= worker < workers or batch_size % workers:
            raise UserError(f"a batch of {batch_size} must divide among {workers} workers numbered from 0, received "
                            f"worker {worker}; choose a multiple of {workers}.")
        self.images, self.indices, self.info = images, indices, info
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
        # Nothing here is tuned, and the tuner's thread often oversleeps when an iterator is given up: a standstill of 2
        # to 10 seconds at the end of an epoch or of the training (TensorFlow 2.21, benchmarks/README.md)
        options.autotune.enabled = False
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
                            f"choose a batch size of at most {len(self.indices)}.")
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
            bits = _random_bits(self.batch_size, self.seed, _AUGMENT, step)[self._slice]
            images = _crop(images, bits, self.info.mirrored)
        return self.info.scaled(images), self.labels[chosen]

    def dataset(self, start_step: int = 0) -> tf.data.Dataset:
        """The batches from `start_step` on, without end and without a walk through earlier ones."""
        if start_step < 0:
            raise UserError(f"start_step must be 0 or more, received {start_step}.")
        return self._dataset(start_step, np.iinfo(np.int64).max, self.local_size, weights=False)


def _crop(images: np.ndarray, bits: np.ndarray, mirror: bool) -> np.ndarray:
    """Shift raw pixels [B, H, W, C] by up to an eighth of their side over dark padding; mirror half of them."""
    height, width = images.shape[1:3]
    above, before = height // _SIDE_PER_SHIFT, width // _SIDE_PER_SHIFT
    padded = np.pad(images, ((0, 0), (above, above), (before, before), (0, 0)))
    tops = (bits >> np.uint64(8)) % np.uint64(2 * above + 1)  # bias below 1e-6
    lefts = (bits >> np.uint64(32)) % np.uint64(2 * before + 1)
    flips = bits & np.uint64(mirror)
    out = np.empty_like(images)
    for i, (top, left, flip) in enumerate(zip(tops.tolist(), lefts.tolist(), flips.tolist())):
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
        batch = self.info.scaled(self.images[chosen]), self.labels[chosen]
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
