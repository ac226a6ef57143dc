"""Dense convolutions, or rows added where spikes are: which of the two takes less of this machine's time, measured.

The time of dense convolutions does not depend on what fires, so each is taken alone, on as many images as a chunk of
steps has. What the event-driven loops take depends on nothing else, so that a few images of a batch go through their
whole window, with the weights as they are. CPU seconds of all threads are compared, which other work beside hardly
changes. Left out are, on the dense side, the neurons, and on both sides the backward passes, which multiply both by
about the same (benchmarks/README.md); `MARGIN` stands for both, so that where the two are close it is dense.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfspike.engine import kernels
from tfspike.engine import plan as plans
from tfspike.engine.convolution import macs_of
from tfspike.engine.events.runner import Runner, threads

MARGIN = 1.25  # so many times as fast as the dense convolutions alone
SMALLEST_BATCH = 1e9  # multiply-accumulates of a window that are worth the seconds in which numba loads or compiles
_DENSE_MACS = 12e9  # of the images that dense convolutions are timed on
_REPEATS = 2


class Choice(NamedTuple):
    """What computes a window.

    Attributes:
      kernel: "dense" or "events".
      reason: in words.
    """

    kernel: str
    reason: str


def choose(plan: plans.Plan, gradient: str, inputs: tf.Tensor, training: bool) -> Choice:
    """The faster of the two for such inputs and weights, on this machine.

    Args:
      plan: that the engine can run.
      gradient: "event" or "rate".
      inputs: of the encoder, a whole batch, `[B, ...]`; its first images are computed.
      training: whether the network will be trained.
    """
    runner, timesteps, batch = Runner(plan, gradient), plan.encoder.layer.timesteps, inputs.shape[0]
    why = runner.hindrance(training) or runner.hindrance(False)
    if why is not None:
        return Choice("dense", f"not event-driven: {why}")
    per_step = sum(_macs(call) for call in plan.window)
    total = per_step * timesteps * batch
    if total < SMALLEST_BATCH:
        return Choice("dense", f"a batch has {total / 1e6:.0f} million multiply-accumulates, too few to measure")
    by_events, rate = _events(runner, inputs[:2 * threads()])
    densely = timesteps * _dense(plan, int(min(batch * kernels.MOST_STEPS, max(1, _DENSE_MACS // per_step))))
    return Choice("events" if densely >= MARGIN * by_events else "dense",
                  f"{rate:.3f} spikes per step and neuron; an image takes {1e3 * by_events:.3g} ms of CPU where spikes "
                  f"are, and {1e3 * densely:.3g} ms in dense convolutions")


def _events(runner: Runner, images: tf.Tensor) -> tuple[float, float]:
    """`(CPU seconds of an image's window, spikes per step and neuron)`."""
    seconds, (_, counts, *_) = _measured(runner.loops(images))
    neurons = sum(math.prod(call.output.shape[2:]) for call in runner.plan.spiking)
    return seconds / len(images), float(np.sum(counts)) / len(images) / neurons / runner.timesteps


def _dense(plan: plans.Plan, images: int) -> float:
    """CPU seconds that the synapses of one image and step take."""
    total = 0.0
    for call in plan.window:
        if _macs(call):
            train = tf.zeros((1, images, *call.source.shape[2:]), call.layer.compute_dtype)
            total += _measured(functools.partial(plans.plain, call, (train,), {}))[0]
    return total / images


def _macs(call: plans.Call) -> int:
    """Multiply-accumulates of an image and step."""
    return macs_of(getattr(call.layer, "layer", call.layer), tuple(call.source.shape[2:]), tuple(call.output.shape[2:]))


def _measured(work: Callable[[], Any]) -> tuple[float, Any]:
    """`(CPU seconds of all threads, what it returns)`: the least of some calls after the first one."""
    found, least = work(), float("inf")
    for _ in range(_REPEATS):
        begin = time.process_time()
        work()
        least = min(least, time.process_time() - begin)
    return least, found
