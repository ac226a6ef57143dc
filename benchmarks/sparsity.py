"""Images per second against spikes per image: one network, its thresholds scaled, dense and event-driven.

    python -m benchmarks.sparsity --out sparsity.json        # VGG9, T = 100, batch 16, at its first weights
    python -m benchmarks.sparsity --work lenet-trained --out lenet.json
    python -m benchmarks.sparsity --draw sparsity.json --picture docs/images/sparsity.png

Higher thresholds leave fewer spikes, and in a trained network other answers: this is about time and energy alone.
Inference; the least of some steps of each, by the clock, in turns. Energy is that of the 45 nm model
(`tfspike.analysis.energy`), of some of the images.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

from benchmarks import events
from benchmarks.cases import THRESHOLD
from benchmarks.network import use_threads
from tfspike import files

THRESHOLDS = (0.5, 0.7, 1.0, 1.5, 2.0, 3.0)


def point(work: str, factor: float, precision: str, steps: int) -> dict[str, Any]:
    """Spikes per image, images per second and energy of a network whose thresholds are `factor` times as high."""
    from tfspike.analysis import speed
    from tfspike.analysis.energy import EnergyModel

    model = events.network(work, "inference", "dense", precision, factor * THRESHOLD)
    [found] = speed.measure(model, events.images(work)[0], scales=(1.0,), repeats=steps)
    return {"threshold": factor, "spikes": found.spikes,
            "microjoules": EnergyModel().picojoules(found.snn) / 1e6,
            "ann_microjoules": EnergyModel().picojoules(found.ann) / 1e6, "load": round(os.getloadavg()[0], 1),
            **{kernel: {"images_per_second": found.per_second[kernel],
                        "images_per_cpu_second": found.per_cpu_second[kernel]} for kernel in speed.KERNELS}}


def table(points: list[dict[str, Any]]) -> str:
    """The points as Markdown."""
    rows = ["| thresholds x | spikes per image | dense, images/s | event-driven, images/s | ratio | 45 nm, uJ (ANN) |",
            "|---|---|---|---|---|---|"]
    for one in points:
        dense, by_events = (one[kernel]["images_per_second"] for kernel in ("dense", "events"))
        rows.append(f"| {one['threshold']:g} | {one['spikes']:,.0f} | {dense:.1f} | {by_events:.1f} | "
                    f"{by_events / dense:.2f} | {one['microjoules']:.1f} ({one['ann_microjoules']:.1f}) |")
    return "\n".join(rows)


def draw(points: list[dict[str, Any]], title: str) -> Any:
    """The picture: what the machine does, beside what the model of 45 nm says."""
    from tfspike.evaluation import plots

    figure = plots.speed_over_spikes(
        [one["spikes"] for one in points],
        {kernel: [one[kernel]["images_per_second"] for one in points] for kernel in ("dense", "events")},
        *([1e-6 * one[name] for one in points] for name in ("microjoules", "ann_microjoules")))
    figure.suptitle(title, fontsize=10)
    return figure


def main() -> None:
    """Measures and prints the table; or draws what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=events.WORK, default="vgg9")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--thresholds", nargs="+", type=float, default=list(THRESHOLDS))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", default="sparsity.json")
    parser.add_argument("--draw", metavar="FILE", help="measure nothing; draw what --out kept")
    parser.add_argument("--picture", default="sparsity.png")
    args = parser.parse_args()
    if args.draw:
        kept = json.loads(Path(args.draw).read_text(encoding="utf-8"))
        draw(kept["points"], kept["title"]).savefig(args.picture, dpi=150)
        return
    if importlib.util.find_spec("numba") is None:
        raise SystemExit("Event-driven convolutions take numba: pip install numba.")
    use_threads(args.threads)
    net, timesteps, batch = events.WORK[args.work]
    title = f"{net.upper()}, T = {timesteps}, batch {batch}, {args.precision}, {args.threads} threads"
    points = []
    for factor in args.thresholds:
        points.append(point(args.work, factor, args.precision, args.steps))
        files.write_file(args.out, json.dumps({"title": title, "points": points}, indent=1))
        print(f"{factor:g}: {json.dumps(points[-1])}", flush=True)
    print(table(points))


if __name__ == "__main__":
    main()
