"""Accuracy per epoch and per second, side by side: `python -m benchmarks.accuracy --work lenet --data-dir DIR`.

Every library and seed is a process of its own, on the same images in the same order. Results are added to a JSON
file after every process; a run that was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks import cases
from benchmarks.learning import WORKS, Work
from benchmarks.plot import NAMES, STYLES
from benchmarks.process import add_arguments, failure, run_worker
from tfspike import files

TFSPIKE = (*cases.TFSPIKE, "tfspike-rate-last-spike")
LIBRARIES = (*TFSPIKE, "authors", "snntorch", "spikingjelly")


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    args = _arguments(arguments)
    work = WORKS[args.work]
    work = dataclasses.replace(work, epochs=args.epochs or work.epochs, seconds=60 * args.minutes)
    length = f"{args.minutes:g} minutes" if args.minutes else f"{work.epochs} epochs"
    path = Path(args.out)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        data = _write(work, args.data_dir, folder)
        for seed in range(args.seeds):
            for library in args.libraries:
                key = f"{args.work}, {length}/{library}/{args.precision}/seed{seed}"
                if found.get(key, {}).get("status") != "ok":
                    found[key] = _run(work, library, seed, data, args)
                    files.write_file(str(path), json.dumps(found, indent=1) + "\n")
                print(f"{key}  {_line(found[key])}", flush=True)
    print("\n" + table(found, args.goal))
    if args.plot:
        draw(found).savefig(args.plot, dpi=150)
    return 0


def _write(work: Work, data_dir: str | None, folder: str) -> str:
    from tfspike import datasets

    train, test = (datasets.load(work.dataset, split, data_dir) for split in ("train", "test"))
    info = datasets.describe(train)
    n, m = work.train_images or len(train.labels), work.test_images or len(test.labels)
    path = os.path.join(folder, "data.npz")
    np.savez(path, x=info.normalise(np.asarray(train.images[:n])), y=np.asarray(train.labels[:n]).astype("int64"),
             test_x=info.normalise(np.asarray(test.images[:m])), test_y=np.asarray(test.labels[:m]).astype("int64"))
    return path


def _run(work: Work, library: str, seed: int, data: str, args: argparse.Namespace) -> dict[str, Any]:
    order = {**dataclasses.asdict(work), "library": library, "precision": args.precision, "seed": seed, "data": data,
             "threads": args.threads}
    python, worker = (sys.executable, "learn_tfspike") if library in TFSPIKE else (args.peers_python, "learn_torch")
    return run_worker(python, f"benchmarks.{worker}", order, args.cap_gb, args.timeout)


def _line(record: dict[str, Any]) -> str:
    if record["status"] != "ok":
        return failure(record)
    step, seconds, accuracy = record["curve"][-1]
    return f"{100 * accuracy:.2f} % after {step} steps and {seconds:.0f} s"


def table(found: dict[str, Any], goal: float) -> str:
    """A line per work, library and precision, means over seeds: accuracy, seconds, seconds to a stated accuracy."""
    groups: dict[str, list[Any]] = {}
    for key, record in found.items():
        if record["status"] == "ok":
            groups.setdefault(key.rpartition("/")[0], []).append(record["curve"])
    lines = [f"| work, library, precision | seeds | accuracy, % | spread | seconds | seconds to {100 * goal:g} % |",
             "|---|---|---|---|---|---|"]
    for key, curves in groups.items():
        last = [100 * curve[-1][2] for curve in curves]
        spread = f"{statistics.stdev(last):.2f}" if len(last) > 1 else ""
        reached = [next((seconds for _, seconds, accuracy in curve if accuracy >= goal), None) for curve in curves]
        when = "not reached" if None in reached else f"{statistics.mean(reached):.0f}"
        lines.append(f"| {key} | {len(curves)} | {statistics.mean(last):.2f} | {spread} "
                     f"| {statistics.mean(curve[-1][1] for curve in curves):.0f} | {when} |")
    return "\n".join(lines)


def draw(found: dict[str, Any]) -> Figure:
    """Test accuracy against minutes of training, a line per process of `found`; what all of them share is the title."""
    curves = {key: record["curve"] for key, record in found.items() if record["status"] == "ok"}
    told = {key: _told(key) for key in curves}
    shared = [part for part in next(iter(told.values()), []) if all(part in parts for parts in told.values())]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for key, curve in curves.items():
        _, seconds, accuracies = zip(*curve)
        library = key.split("/")[1]
        color, marker = STYLES.get(library, ("#999999", "."))
        axes.plot([s / 60 for s in seconds], [100 * a for a in accuracies], color=color, marker=marker, markersize=5,
                  linestyle="--" if "spikes on the shortcut" in told[key] else "-",
                  label=", ".join([NAMES.get(library, library), *(part for part in told[key] if part not in shared)]))
    axes.set_title(", ".join(shared), fontsize=10)
    axes.set(xlabel="minutes of training", ylabel="test accuracy, %")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    return figure


def _told(key: str) -> list[str]:
    """What a process did but for its library, in words."""
    name, _, precision, seed = key.split("/")
    work = WORKS[name.partition(",")[0]]
    shortcut = [f"{work.shortcut} on the shortcut"] if work.net.startswith("resnet") else []
    return [f"{work.net} on {work.dataset}", f"T = {work.timesteps}", *shortcut, precision,
            seed.replace("seed", "seed ")]


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__.partition("\n")[0])
    parser.add_argument("--work", choices=tuple(WORKS), default="lenet", help="see learning.py; default: lenet")
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument("--precision", choices=cases.PRECISIONS, default="float32")
    parser.add_argument("--seeds", type=int, default=3, help="processes per library; default: 3")
    parser.add_argument("--epochs", type=int, default=0, help="default: the work's own")
    parser.add_argument("--minutes", type=float, default=0.0, help="of training for each, in place of --epochs")
    parser.add_argument("--goal", type=float, default=0.97, help="accuracy whose time is told; default: 0.97")
    parser.add_argument("--plot", default="", help="file of a picture: accuracy against minutes")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--data-dir", default=None, help="folder of the prepared data sets")
    parser.add_argument("--out", default="accuracy.json", help="results file, added to; default: accuracy.json")
    add_arguments(parser, timeout=7200.0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
