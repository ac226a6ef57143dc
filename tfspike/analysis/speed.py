"""Images per second of a network on this machine, dense and event-driven, beside what it fires.

The time of dense convolutions does not depend on spikes; event-driven (`kernel="events"`) it follows them, as the
energy of a neuromorphic device does. So one network is timed on the same images at several scales: pixels nearer to 0
bring fewer spikes.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfspike.analysis.energy import Operations
from tfspike.analysis.measure import operations
from tfspike.models.spiking_model import SpikingModel
from tfspike.neurons.encoders import SpikeInput

KERNELS = ("dense", "events")
SCALES = (0.25, 0.5, 1.0)
_COUNTED = 4  # images whose operations are counted


class Point(NamedTuple):
    """One network on one batch.

    Attributes:
      scale: of the images.
      spikes: per image, of all neurons, without the input's.
      snn, ann: operations per image, of the network and of an ANN of the same shape.
      per_second: images per second by the clock, of every kernel that can run.
      per_cpu_second: the same by the CPU seconds of all threads, which other work beside it changes less.
    """

    scale: float
    spikes: float
    snn: Operations
    ann: Operations
    per_second: Mapping[str, float]
    per_cpu_second: Mapping[str, float]


def measure(model: SpikingModel, images: np.ndarray, scales: Sequence[float] = SCALES,
            repeats: int = 3) -> list[Point]:
    """The speed of inference at several scales of the input, the kernels in turns, each at its best.

    Args:
      model: whose weights are looked at as they are.
      images: one batch of what it takes, `[B, H, W, C]`.
      scales: factors of the images.
      repeats: passes that are timed, after a first one.

    Returns:
      A point for every scale, of both kernels, or "dense" alone where the other cannot run; none of a model that is
      computed layer by layer or takes spike trains, whose scale means nothing.
    """
    if model.engine is None or isinstance(model.engine.plan.encoder.layer, SpikeInput):
        return []
    networks = {}
    for kernel in KERNELS:
        same = model.with_timesteps(model.timesteps)  # has a choice of its own
        same.configure_engine(kernel=kernel)
        if same.engine is not None and same.engine.refusal_of_events(training=False) is None:
            networks[kernel] = tf.function(same)
    return [_point(model, networks, np.float32(scale) * images, scale, repeats) for scale in scales]


def _point(model: SpikingModel, networks: Mapping[str, Callable[[Any], Any]], images: np.ndarray, scale: float,
           repeats: int) -> Point:
    x = tf.constant(images)
    taken = timed({kernel: functools.partial(_run, network, x) for kernel, network in networks.items()}, repeats)
    spikes = sum(float(tf.reduce_sum(count)) for count in model.observe(x)[1].values()) / len(images)
    return Point(scale, spikes, *operations(model, images[:_COUNTED]),
                 {kernel: len(images) / min(seconds["wall"]) for kernel, seconds in taken.items()},
                 {kernel: len(images) / min(seconds["cpu"]) for kernel, seconds in taken.items()})


def _run(network: Callable[[Any], Any], x: tf.Tensor) -> None:
    network(x).numpy()  # is there, and not only asked for


def timed(steps_of: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, Any]]:
    """Seconds by the clock ("wall") and CPU seconds of all threads ("cpu") of every call of each, in turns, after a
    first one ("first").
    """
    found: dict[str, dict[str, Any]] = {name: {"wall": [], "cpu": []} for name in steps_of}
    for name, step in steps_of.items():
        begin = time.perf_counter()
        step()
        found[name]["first"] = time.perf_counter() - begin
    for _ in range(repeats):
        for name, step in steps_of.items():
            begin, cpu = time.perf_counter(), time.process_time()
            step()
            found[name]["wall"].append(time.perf_counter() - begin)
            found[name]["cpu"].append(time.process_time() - cpu)
    return found
