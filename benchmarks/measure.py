"""What the workers share: the order given by the parent, memory read from the kernel, the timed loop, the report."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.cases import CLASSES, image_shape

LEARNING_RATE = 1e-3
"""Of the batch-mean loss; small enough that no network dies within the steps of a measurement."""


def order() -> dict[str, Any]:
    """The parent's order, a JSON object in the first argument: library, precision, net, timesteps, batch, ..."""
    return json.loads(sys.argv[1])


def images(net: str, batch: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The same input for every library: x [B, H, W, C] in [-1, 1] float32, and one-hot labels [B, classes]."""
    random = np.random.default_rng(seed)
    x = random.uniform(-1.0, 1.0, (batch, *image_shape(net))).astype("float32")
    return x, np.eye(CLASSES, dtype="float32")[random.integers(0, CLASSES, batch)]


def memory_mb(field: str) -> float:
    """A field of this process's status, in MB: "VmRSS" is what it holds now, "VmHWM" the most it ever held."""
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith(field + ":"):
                return int(line.split()[1]) / 1024
    raise KeyError(field)


def report(given: dict[str, Any], bare_mb: float, build_seconds: float, step: Callable[[], Any],
           rates: Callable[[], list[float]], versions: dict[str, str],
           repeats: int = 1, peak: Callable[[], float] = lambda: memory_mb("VmHWM"),
           more: dict[str, Any] | None = None) -> None:
    """Runs the first step, another one, then the timed ones, and prints one JSON line.

    Args:
      given: the order.
      bare_mb: resident memory after the import of the bare framework, MB.
      build_seconds: time taken to build the network and the step.
      step: does one whole step and returns when its work is done.
      rates: mean firing rate of each layer, spikes per step and neuron, asked for after the timed steps.
      versions: of the framework and of the library.
      repeats: what `step` does that many times over; reported times are per repeat.
      peak: the most memory held so far, MB.
      more: further fields.
    """
    begin = time.perf_counter()
    step()
    first = time.perf_counter() - begin
    step()  # compiled peers compile a second time here
    times = []
    for _ in range(given["steps"]):
        begin = time.perf_counter()
        step()
        times.append((time.perf_counter() - begin) / repeats)
    peak_mb = peak()  # before `rates`, which may run something of its own
    layer_rates = [round(float(rate), 5) for rate in rates()]
    alive = all(rate > 0 for rate in layer_rates) if layer_rates else None
    print(json.dumps({
        "status": "ok", "seconds": statistics.median(times), "times": times, "bare_mb": bare_mb, "peak_mb": peak_mb,
        "peak_above_bare_mb": peak_mb - bare_mb, "build_seconds": build_seconds,
        "first_step_seconds": build_seconds + first, "rates": layer_rates, "alive": alive, "versions": versions,
        "threads": given["threads"], **(more or {})}), flush=True)
