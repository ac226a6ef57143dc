"""Batches that depend on nothing but (seed, step).

A split is in memory (`tfspike.datasets`), and every batch is gathered from it with NumPy. That makes batch k a pure
function of the seed and k: a run can be continued at any step at once, and n workers read n slices of the same global
batch.

    train_index, val_index = split_indices(len(train), 0.1, seed=0, name=train.name)
    batches = train_stream(train.images, train.labels, train_index, 64, seed=0, info=info, start_step=1200)
    val = eval_stream(train.images, train.labels, 64, info, indices=val_index)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tfspike.checks import is_count
from tfspike.datasets import pump
from tfspike.datasets.arrays import DatasetInfo, check_indices, check_labels
from tfspike.datasets.sampling import augment, check_seed, epoch_order, split_indices, split_record
from tfspike.errors import UserError

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = ["EvalStream", "TrainStream", "eval_stream", "split_indices", "split_record", "train_stream"]


class _Stream:
    """Records in memory, checked. Subclasses make batch k of them: a pure function, which a `tf.data.Dataset` calls."""

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

    def batch(self, step: int) -> tuple[np.ndarray, ...]:
        raise NotImplementedError

    def _shapes(self, rows: int | None, count: int) -> tuple[tuple[int | None, ...], ...]:
        """Static shapes of the `count` parts of a batch of so many rows."""
        return ((rows, *self.images.shape[1:]), (rows,), (rows,))[:count]


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
        check_seed(seed)
        if batch_size > len(self.indices):
            raise UserError(f"a batch of {batch_size} is larger than the {len(self.indices)} training records; "
                            f"choose a batch size of at most {len(self.indices)}.")
        self.seed, self.augment = seed, info.augment if augment is None else augment
        if self.augment and info.event_based:
            raise UserError(f"{info.name} is event data, which cannot be cropped and flipped: leave augmentation off.")

    @property
    def steps_per_epoch(self) -> int:
        return len(self.indices) // self.batch_size

    def records(self, step: int) -> np.ndarray:
        """Record indices of this worker's slice of the global batch at `step`."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = epoch_order(len(self.indices), self.seed, epoch)
        return self.indices[order[place * self.batch_size:(place + 1) * self.batch_size][self._slice]]

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Global step (from 0) -> images float32 [B, H, W, C] (events [B, T, H, W, 2]), labels int32 [B]."""
        chosen = self.records(step)
        images = self.images[chosen]
        if self.augment:
            images = augment(images, self.info.mirrored, self.seed, step, self.batch_size, self._slice)
        return self.info.scaled(images), self.labels[chosen]

    def dataset(self, start_step: int = 0) -> tf.data.Dataset:
        """The batches from `start_step` on, without end and without a walk through earlier ones."""
        if start_step < 0:
            raise UserError(f"start_step must be 0 or more, received {start_step}.")
        return pump.dataset(self.batch, start_step, None, self._shapes(self.local_size, 2))


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
        shapes = self._shapes(self.local_size, 3) if self.pad else self._shapes(None, 2)
        return pump.dataset(self.batch, 0, self.num_batches, shapes)

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
