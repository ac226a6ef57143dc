"""Event-driven against dense: steps of both, and of what kernel="auto" chooses, alternating in one process.

    python -m benchmarks.events                              # VGG9, LeNet at first and at trained weights
    python -m benchmarks.events --work vgg9 --modes inference rate --steps 5 --precision bfloat16

Wall-clock seconds, and CPU seconds of all threads, which say more where other work runs beside it. Memory: `--kernels
events` alone, as one process has one peak.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import Any

from benchmarks import measure
from benchmarks.cases import THRESHOLD
from benchmarks.network import create, use_threads

WORK = {"vgg9": ("vgg9", 100, 16), "lenet": ("lenet", 50, 64), "lenet-trained": ("lenet", 50, 64)}
MODES = ("inference", "rate", "event")
KERNELS = ("dense", "events", "auto")


def network(work: str, mode: str, kernel: str, precision: str, threshold: float = THRESHOLD) -> Any:
    """The network of a piece of work, at weights that depend on neither kernel nor threshold."""
    net, timesteps, _ = WORK[work]
    model = create(net, timesteps, "rate" if mode == "inference" else mode, threshold=threshold, kernel=kernel,
                   dtype="mixed_bfloat16" if precision == "bfloat16" else "float32")
    if work.endswith("-trained"):
        from tfspike import pretrained

        trained = pretrained.load("lenet_mnist")[0]
        for to, value in zip(model.trainable_variables, trained.trainable_variables):
            to.assign(value)
    return model


def images(work: str) -> Any:
    """Digits where the weights know them; else the noise of `benchmarks.run`. And labels for a loss."""
    net, _, batch = WORK[work]
    x, labels = measure.images(net, batch)
    if work.endswith("-trained"):
        from tfspike import datasets

        data = datasets.load("mnist_subset", "test")
        x = datasets.describe(data).normalise(data.images[:batch])
    return x, labels


def step_of(model: Any, mode: str, x: Any, labels: Any) -> Callable[[], Any]:
    """What is timed: the outputs, or the gradient of a training step."""
    import tensorflow as tf

    x, labels = tf.constant(x), tf.constant(labels)

    @tf.function
    def infer() -> Any:
        return model(x)

    @tf.function
    def train() -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.reduce_sum((tf.cast(model(x, training=True), tf.float32) - labels) ** 2, axis=1))
        return tape.gradient(loss, model.trainable_variables)

    return lambda: [part.numpy() for part in [infer()]] if mode == "inference" else [g.numpy() for g in train()]


def cell(work: str, mode: str, kernels: list[str], precision: str, steps: int) -> dict[str, Any]:
    """Seconds of every step of every kernel, the firing rates, and the peak memory of the process, MB."""
    import tensorflow as tf

    from tfspike.analysis.speed import timed

    x, labels = images(work)
    models = {kernel: network(work, mode, kernel, precision) for kernel in kernels}
    chosen = {}
    if "auto" in models:
        begin = time.perf_counter()
        kernel, reason = models["auto"].choose_kernel(x, training=mode != "inference")
        chosen = {"chosen": kernel, "reason": reason, "choosing": time.perf_counter() - begin}
    found: dict[str, Any] = timed({kernel: step_of(model, mode, x, labels) for kernel, model in models.items()}, steps)
    found["peak_mb"] = measure.memory_mb("VmHWM")
    counts = models[kernels[0]].observe(x)[1]
    found["rates"] = {name: round(float(tf.reduce_mean(n)) / WORK[work][1], 4) for name, n in counts.items()}
    return {"work": work, "mode": mode, "precision": precision, "load": round(os.getloadavg()[0], 1), **chosen, **found}


def main() -> None:
    """Prints a JSON line for every cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()

    import tensorflow as tf  # noqa: F401 (what is bare)

    use_threads(args.threads)
    bare = measure.memory_mb("VmRSS")
    for work in args.work:
        for mode in args.modes:
            found = cell(work, mode, args.kernels, args.precision, args.steps)
            print(json.dumps({**found, "bare_mb": bare, "threads": args.threads}), flush=True)


if __name__ == "__main__":
    main()
