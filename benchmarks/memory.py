"""What stays in memory: models built, fitted and dropped in a loop, and one model that sees many batch sizes.

    python -m benchmarks.memory                              # 50 models and 200 sizes of each net
    python -m benchmarks.memory --work sizes --nets cnn,lenet-rate --count 20

One process per net. What is printed is the growth of the resident memory after the first model (or size), and seconds.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from typing import Any

from benchmarks import network, process

NETS = ("cnn", "lenet-rate", "lenet-event")
COUNTS = {"models": 50, "sizes": 200}
TIMESTEPS, BATCH = 10, 32


def _model(net: str) -> Any:
    import keras

    if net != "cnn":
        return network.create("lenet", TIMESTEPS, net.removeprefix("lenet-"))
    return keras.Sequential([
        keras.Input((28, 28, 1)), keras.layers.Conv2D(20, 5, activation="relu"), keras.layers.AveragePooling2D(2),
        keras.layers.Conv2D(50, 5, activation="relu"), keras.layers.AveragePooling2D(2), keras.layers.Flatten(),
        keras.layers.Dense(200, activation="relu"), keras.layers.Dense(10)])


def _models(net: str, count: int) -> dict[str, float]:
    import keras

    from benchmarks import measure

    x, y = measure.images("lenet", 2 * BATCH)
    for i in range(count + 1):
        if i == 1:
            begin, before = time.perf_counter(), measure.memory_mb("VmRSS")
        model = _model(net)
        model.compile(keras.optimizers.SGD(measure.LEARNING_RATE), "mse")
        model.fit(x, y, batch_size=BATCH, verbose=0)
        model.predict(x, batch_size=BATCH, verbose=0)
        del model
        gc.collect()
    return {"mb": measure.memory_mb("VmRSS") - before, "seconds": time.perf_counter() - begin}


def _sizes(net: str, count: int) -> dict[str, float]:
    from benchmarks import measure

    x, _ = measure.images("lenet", count)
    model = _model(net)
    model.predict(x, batch_size=count, verbose=0)
    begin, before = time.perf_counter(), measure.memory_mb("VmRSS")
    for size in range(1, count + 1):
        model.predict(x[:size], batch_size=size, verbose=0)
    return {"mb": measure.memory_mb("VmRSS") - before, "seconds": time.perf_counter() - begin}


def main(argv: list[str] | None = None) -> int:
    """The parent: one process for every net; or, given an order, that process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("order", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--work", choices=sorted(COUNTS), action="append", help="default: both")
    parser.add_argument("--nets", default=",".join(NETS), help=f"of {', '.join(NETS)}; default: all")
    parser.add_argument("--count", type=int, help=f"models or sizes; default: {COUNTS}")
    parser.add_argument("--json", action="store_true", help="one JSON object for every kind of work")
    process.add_arguments(parser, timeout=3600.0)
    given = parser.parse_args(argv)
    if given.order:
        order = json.loads(given.order)
        result = {"models": _models, "sizes": _sizes}[order["work"]](order["net"], order["count"])
        print(json.dumps({"status": "ok", **result}), flush=True)
        return 0
    failed = False
    for work in given.work or COUNTS:
        records = {}
        for net in given.nets.split(","):
            count = given.count or COUNTS[work]
            record = process.run_worker(sys.executable, "benchmarks.memory", {
                "library": "tfspike", "threads": 2, "work": work, "net": net, "count": count}, given.cap_gb,
                given.timeout)
            records[net] = {**record, "count": count}
            failed |= record["status"] != "ok"
            if not given.json:
                print(f"{work}, {net}: " + (process.failure(record) if record["status"] != "ok" else
                      f"{record['mb']:.0f} MB for {count} more, {record['seconds']:.1f} s"), flush=True)
        if given.json:
            print(json.dumps(records), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
