"""Devices as one flag: TensorFlow's own strategies, one input slice per worker and replica, and what is refused.

The loop runs `strategy.run(step)` everywhere; on one device that is TensorFlow's default strategy and costs nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfspike.errors import UserError

if TYPE_CHECKING:
    import tensorflow as tf

NAMES = ("auto", "one", "mirrored", "multi_worker")
_ADVICE = ('set TF_CONFIG on every host, such as {"cluster": {"worker": ["host1:5000", "host2:5000"]}, '
           '"task": {"type": "worker", "index": 0}}, with each host\'s own index')


@dataclasses.dataclass(frozen=True)
class Worker:
    """This process among the workers of a run.

    Attributes:
      index: its number, from 0; the first one writes the workdir.
      count: how many workers there are.
    """

    index: int = 0
    count: int = 1

    @property
    def is_chief(self) -> bool:
        return self.index == 0


def this_worker(name: str) -> Worker:
    """Reads TF_CONFIG for `multi_worker`; any other strategy is one worker. Needs no TensorFlow.

    Raises:
      UserError: TF_CONFIG is missing or does not describe a cluster of workers with this process in it.
    """
    if name != "multi_worker":
        return Worker()
    text = os.environ.get("TF_CONFIG", "")
    if not text:
        raise UserError(f"--strategy=multi_worker needs the environment variable TF_CONFIG; {_ADVICE}.")
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        members = [(kind, i) for kind in ("chief", "worker") for i in range(len(cluster.get(kind, ())))]
        strange = set(cluster) - {"chief", "worker"}
        hosts = [host for kind in cluster for host in cluster[kind]]
        sound = all(isinstance(host, str) and ":" in host for host in hosts)
        index = members.index((task["type"], int(task["index"])))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"TF_CONFIG does not describe a cluster with this process in it; {_ADVICE}. Received: "
                        f"{text[:200]!r}.") from None
    if strange or not sound:
        raise UserError(f"TF_CONFIG may hold chief and worker, each a list of host:port; received {text[:200]!r}; "
                        f"{_ADVICE}. Parameter servers are not supported: gradients are summed among workers.")
    return Worker(index, len(members))


def has_gpu() -> bool:
    """Whether TensorFlow computes on a GPU here."""
    import tensorflow as tf

    return bool(tf.config.list_logical_devices("GPU"))


def compiles(jit: str, replicas: int, deterministic: bool = False) -> bool:
    """Whether a step is compiled as a whole, which saves most of what it costs to launch operations on a GPU.

    Args:
      jit: "on", "off", or "auto": on one GPU, but where runs must repeat bit for bit.
      replicas: devices that train together.
      deterministic: `--deterministic`; TensorFlow promises nothing of compiled operations.

    Raises:
      UserError: "on" with several devices. TensorFlow compiles nothing in which they agree on a sum, as they do on
        gradients, statistics of normalisations and step counters.
    """
    if jit == "on" and replicas > 1:
        raise UserError(f"--jit=on compiles the step of one device, and {replicas} train together, whose sums "
                        "TensorFlow cannot compile; use --jit=auto, or --strategy=one.")
    return jit == "on" or jit == "auto" and replicas == 1 and not deterministic and has_gpu()


def make_strategy(name: str = "auto", devices: Sequence[str] | None = None) -> tf.distribute.Strategy:
    """Makes the strategy; call it before anything else touches a device.

    Args:
      name: "one", "mirrored" (all GPUs of this host, or all its logical CPUs where there is no GPU), "multi_worker"
        (the cluster in TF_CONFIG), or "auto" (mirrored where there are two or more GPUs, else one).
      devices: of "mirrored"; None takes all.

    Raises:
      UserError: an unknown name, or a cluster that TF_CONFIG does not describe.
    """
    import tensorflow as tf

    if name not in NAMES:
        raise UserError(f"--strategy takes one of {', '.join(NAMES)}; received {name!r}.")
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        with contextlib.suppress(RuntimeError, ValueError):  # already in use, or a device that grows by itself
            tf.config.experimental.set_memory_growth(gpu, True)
    if name == "multi_worker":
        this_worker(name)
        return tf.distribute.MultiWorkerMirroredStrategy()
    if name == "mirrored" or (name == "auto" and len(gpus) > 1):
        logical = tf.config.list_logical_devices("GPU" if gpus else "CPU")
        return tf.distribute.MirroredStrategy(list(devices or [device.name for device in logical]))
    return tf.distribute.get_strategy()


def check_batch(batch_size: int, replicas: int) -> int:
    """Returns the batch of one replica.

    Raises:
      UserError: the batch does not split evenly, which TensorFlow's strategies need; names the nearest that do.
    """
    if batch_size % replicas:
        below, above = batch_size // replicas * replicas, -(-batch_size // replicas) * replicas
        nearest = f"{below} or {above}" if below else str(above)
        raise UserError(f"--batch_size={batch_size} does not divide among {replicas} devices; use {nearest}.")
    return batch_size // replicas


def distribute(strategy: tf.distribute.Strategy, dataset: tf.data.Dataset, worker: Worker) -> Any:
    """Splits the batches of this worker among its replicas: replica i gets the i-th slice.

    Args:
      strategy: of the run.
      dataset: batches of this worker, of one static size.
      worker: this one.
    """
    if strategy.num_replicas_in_sync == 1:
        return dataset
    local = strategy.num_replicas_in_sync // worker.count

    def split(*parts: tf.Tensor) -> tuple[tf.Tensor, ...]:
        import tensorflow as tf

        return tuple(tf.reshape(part, (local, part.shape[0] // local, *part.shape[1:])) for part in parts)

    slices = dataset.map(split).unbatch() if local > 1 else dataset
    return strategy.distribute_datasets_from_function(lambda context: slices)


def first(strategy: tf.distribute.Strategy, value: Any) -> Any:
    """The value on this worker's first replica, of values that are equal on all."""
    return strategy.experimental_local_results(value)[0]


def from_chief(strategy: tf.distribute.Strategy, worker: Worker, values: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The first worker's arrays on every worker, so that the others need not see its disk.

    Args:
      strategy: of the run.
      worker: this one.
      values: arrays whose number, shapes and types agree on all workers.
    """
    if worker.count == 1:
        return list(values)
    import tensorflow as tf

    @tf.function
    def summed(parts: Any) -> Any:
        def replica(parts: Any) -> Any:
            context = tf.distribute.get_replica_context()
            sender = tf.equal(context.replica_id_in_sync_group, 0)
            mine = [tf.where(sender, part, tf.zeros_like(part)) for part in parts]
            return [context.all_reduce(tf.distribute.ReduceOp.SUM, part) for part in mine]

        return strategy.run(replica, args=(parts,))

    return [np.asarray(first(strategy, part)) for part in summed([tf.convert_to_tensor(value) for value in values])]
