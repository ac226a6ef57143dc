"""What a network answers on held-out records: the same numbers on one device and on many, and for every repetition.

Records go through the network in parts of one fixed size, the last one filled up with records of weight 0; part j of
draw d is encoded with seed d * 1,000,003 + j. Parts are dealt out to the replicas, so neither their number nor a
remainder changes any answer.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from tfspike import datasets, distribution
from tfspike.datasets import streams
from tfspike.distribution import Worker
from tfspike.models import losses
from tfspike.models.network import Network
from tfspike.neurons import noise


@dataclasses.dataclass(frozen=True)
class Result:
    """Answers to N records.

    Attributes:
      outputs: V_T / T, `[N, classes]` float32.
      labels: `[N]` int32.
      rates: mean firing rate of every spiking layer, spikes per step.
      loss_kind: one of `losses.LOSSES`.
    """

    outputs: np.ndarray
    labels: np.ndarray
    rates: dict[str, float]
    loss_kind: str = "squared"

    @property
    def accuracy(self) -> float:
        """Share of records whose label has the largest output."""
        return float(np.mean(self.outputs.argmax(axis=1) == self.labels))

    @property
    def loss(self) -> float:
        """Mean over records."""
        return losses.mean(self.loss_kind, self.outputs, self.labels)

    @property
    def per_class(self) -> np.ndarray:
        """Accuracy of every class, `[classes]`; NaN for a class without records."""
        right = self.outputs.argmax(axis=1) == self.labels
        counts = np.bincount(self.labels, minlength=self.outputs.shape[1])
        with np.errstate(invalid="ignore"):
            return np.bincount(self.labels, right, self.outputs.shape[1]) / counts


class Evaluator:
    """Runs records through a model; compiled once, used after every epoch.

    Args:
      model: a `SpikingModel` or a `ReluModel`.
      images, labels, indices, info: as in `streams.EvalStream`.
      part: records per replica and step; answers to Poisson input depend on it, through the noise alone.
      strategy: None for one device.
      worker: this worker.
      loss: what the network was trained with, for `Result.loss`.
      compiled: with XLA as a whole (`distribution.compiles`); of one replica.

    Attributes:
      step: the function of one part, (images, weights, first seed) to outputs and sums of rates.
    """

    def __init__(self, model: Network, images: Any, labels: np.ndarray, info: datasets.DatasetInfo, part: int,
                 indices: np.ndarray | None = None, strategy: tf.distribute.Strategy | None = None,
                 worker: Worker = Worker(), loss: str = "squared", compiled: bool = False):  # noqa: B008 (frozen)
        self.model, self.loss = model, loss
        self.strategy = strategy or tf.distribute.get_strategy()
        self.worker = worker
        self._replicas = self.strategy.num_replicas_in_sync
        count = len(labels) if indices is None else len(indices)
        part = min(part, max(1, count))
        self.stream = streams.EvalStream(images, labels, part * self._replicas, info, indices, pad=True,
                                         shard=(worker.index, worker.count))
        compute = noise.as_one_program(self._compute) if compiled else self._compute
        self.step = tf.function(compute, autograph=False, reduce_retracing=True, jit_compile=compiled or None)

    def run(self, draw: int = 0) -> Result:
        """All records once, under the noise of draw number `draw`."""
        outputs, totals = [], np.zeros(len(self.model.spiking_layers) + 1)
        batches = distribution.distribute(self.strategy, self.stream.dataset(), self.worker)
        for k, (images, _, weights) in enumerate(batches):
            first_seed = tf.constant(draw * noise.DRAW + k * self._replicas, tf.int64)
            output, sums = self.step(images, weights, first_seed)
            outputs.append(output.numpy())
            for part in sums.numpy():  # one after the other: the same sum for any number of replicas
                totals += part
        labels = self.stream.labels[self.stream.indices]
        rates = dict(zip(self.model.spiking_layers, (totals[:-1] / totals[-1]).tolist()))
        return Result(np.concatenate(outputs)[:len(labels)], labels, rates, self.loss)

    def _compute(self, images: Any, weights: Any, first_seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        output, sums = self.strategy.run(self._replica, args=(images, weights, first_seed))
        if self._replicas == 1:
            return output, sums
        return self.strategy.gather(output, axis=0), self.strategy.gather(sums, axis=0)

    def _replica(self, images: tf.Tensor, weights: tf.Tensor, first_seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        replica = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int64)
        seed = tf.cast((first_seed + replica) % noise.LARGEST_SEED, tf.int32)
        output, activity = self.model.observe(images, training=False, seed=seed)
        sums = [tf.reduce_sum(weights * tf.reduce_mean(tf.reshape(count, (tf.shape(count)[0], -1)), axis=1))
                for count in activity.values()]
        return output, tf.stack([*(total / self.model.timesteps for total in sums), tf.reduce_sum(weights)])[tf.newaxis]
