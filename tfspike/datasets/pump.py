"""Batches as a `tf.data.Dataset`: a pump that asks a function for batch k, and nothing else. Needs no TensorFlow until
it is used.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf


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


def dataset(batch: Callable[[int], tuple[np.ndarray, ...]], start: int, stop: int | None,
            shapes: tuple[tuple[int | None, ...], ...]) -> tf.data.Dataset:
    """The batches k = start, start + 1, ... below `stop` (None: without end), without a walk through earlier ones.

    Args:
      batch: k to images or spike trains float32, labels int32 and, where there are three shapes, weights float32.
      start, stop: of k.
      shapes: static ones of what `batch` returns.
    """
    import tensorflow as tf

    types = [tf.float32, tf.int32, tf.float32][:len(shapes)]

    def call(step: np.int64) -> tuple[np.ndarray, ...]:
        with _calls:
            return batch(int(step))

    def gather(step: tf.Tensor) -> tuple[tf.Tensor, ...]:
        parts = tf.numpy_function(call, [step], types)
        for part, shape in zip(parts, shapes):
            part.set_shape(shape)
        return tuple(parts)

    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    # Nothing here is tuned, and the tuner's thread often oversleeps when an iterator is given up: a standstill of 2 to
    # 10 seconds at the end of an epoch or of the training (TensorFlow 2.21, benchmarks/README.md)
    options.autotune.enabled = False
    options.experimental_optimization.inject_prefetch = False  # see _Calls
    end = np.iinfo(np.int64).max if stop is None else stop
    return tf.data.Dataset.range(start, end).map(gather).with_options(options)
