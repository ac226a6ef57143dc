"""Time and memory of a training step against the length of the window, as one picture."""

from __future__ import annotations

import argparse
import sys

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.cases import LIBRARIES, PRECISIONS, Case, Cell
from benchmarks.results import Results

NAMES = {"tfspike-rate": "tfspike rate (a different gradient)", "tfspike-event": "tfspike event",
         "tfspike-rate-events": "tfspike rate, event-driven", "tfspike-event-events": "tfspike event, event-driven",
         "authors": "authors' algorithm, PyTorch", "snntorch": "snnTorch", "spikingjelly": "SpikingJelly",
         "norse": "Norse", "snntorch-compiled": "snnTorch, compiled", "norse-compiled": "Norse, compiled"}
STYLES = {"tfspike-rate": ("#0072B2", "o"), "tfspike-event": ("#009E73", "s"),
          "tfspike-rate-events": ("#0072B2", "*"), "tfspike-event-events": ("#009E73", "h"),
          "authors": ("#D55E00", "^"), "snntorch": ("#E69F00", "D"), "spikingjelly": ("#CC79A7", "v"),
          "norse": ("#555555", "P"), "snntorch-compiled": ("#F0E442", "X"), "norse-compiled": ("#56B4E9", "*")}
"""Okabe and Ito's colours, told apart by all; markers differ too, for print."""
DASHES = {"float32": "-", "bfloat16": "--"}


def draw(results: Results, net: str, batch: int) -> Figure:
    """The picture of one network and batch; solid lines are float32, dashed ones bfloat16.

    Raises:
      ValueError: the results have nothing of that network and batch.
    """
    found = [case for case in results.cases("train") if (case.net, case.batch) == (net, batch)]
    if not found:
        raise ValueError(f"The results hold no training step of {net} at batch {batch}: measure one with --suite time.")
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    time, memory = figure.subplots(1, 2)
    for library in LIBRARIES:
        for precision in PRECISIONS:
            _curve(time, results, found, library, precision, "seconds", 1.0)
            _curve(memory, results, found, library, precision, "peak_above_bare_mb", 1024.0)
    _axes(time, found, "seconds per training step")
    _axes(memory, found, "peak memory above the bare framework, GB")
    handles, labels = time.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8, frameon=False)
    figure.suptitle(f"{net.upper()}, batch {batch}, {results.data['machine']['cores']} cores")
    return figure


def _curve(axes: Axes, results: Results, found: list[Case], library: str, precision: str, field: str,
           unit: float) -> None:
    """One line; a window at which the process ran out of memory is simply missing from it."""
    points = [(case.timesteps, results.summary(Cell(case, library, precision))) for case in found]
    good = [(steps, one[field] / unit) for steps, one in points if one and one["status"] == "ok"]
    if good:
        color, marker = STYLES[library]
        axes.plot(*zip(*good), color=color, marker=marker, markersize=5, linestyle=DASHES[precision],
                  markerfacecolor=color if precision == "float32" else "white", label=f"{NAMES[library]}, {precision}")


def _axes(axes: Axes, found: list[Case], label: str) -> None:
    axes.set(xscale="log", yscale="log", xlabel="length of the window T, steps", ylabel=label)
    ticks = sorted({case.timesteps for case in found})
    axes.set_xticks(ticks, [str(steps) for steps in ticks])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.grid(True, which="major", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__)
    parser.add_argument("results", nargs="?", default="benchmarks.json")
    parser.add_argument("--out", default="benchmarks.png")
    parser.add_argument("--net", default="vgg9")
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args()
    try:
        draw(Results(args.results), args.net, args.batch).savefig(args.out, dpi=150)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
