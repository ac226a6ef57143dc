"""The page of `benchmarks.methods`: its table, its picture and its words, from the record."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator

from tfspike.config.methods import METHODS
from tfspike.evaluation import plots
from tfspike.runs import provenance

_COLORS = (plots.BLUE, plots.ORANGE, plots.GREEN, plots.RED, plots.PURPLE, plots.SKY, plots.INK)
_MARKERS = "osD^vP"
_TICKS = (0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999)
_LEAST, _MOST = 0.05, 0.9995  # an axis of odds has no 0 and no 1
COLUMNS = ("method", "test accuracy, %", "validation, %", "time steps", "spikes per image", "energy, uJ",
           "processor hours", "epochs")


def table(record: dict[str, Any]) -> str:
    """A line for every method, and for an ANN and each of its conversions; over several seeds the mean and the standard
    deviation.
    """
    groups: dict[tuple[str, Any], list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for run in _finished(record):
        for row in run["rows"]:
            groups.setdefault((row["name"], row["timesteps"]), []).append((run, row))
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(_cells(name, timesteps, found))} |" for (name, timesteps), found in groups.items()]
    return "\n".join(lines)


def _cells(name: str, timesteps: int | None, found: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    runs, rows = [run for run, _ in found], [row for _, row in found]
    converted = "conversion_seconds" in rows[0]
    hours = [(run["processor_seconds"] + row.get("conversion_seconds", 0.0)) / 3600 for run, row in found]
    return [name, _mean((100 * row["test_accuracy"] for row in rows), "{:.2f}".format),
            "" if converted else _mean((100 * run["val_accuracy"] for run in runs), "{:.2f}".format),
            "" if timesteps is None else str(timesteps),
            "" if timesteps is None else _mean((row["spikes_per_image"] for row in rows), "{:,.0f}".format),
            _mean((row["microjoules"] for row in rows), "{:.3g}".format), _mean(hours, "{:.3g}".format),
            _mean((run["epochs"] for run in runs), "{:.1f}".format)]


def _mean(values: Iterable[float], text: Callable[[float], str]) -> str:
    values = list(values)
    spread = f" ± {text(statistics.stdev(values))}" if len(values) > 1 else ""
    return text(statistics.mean(values)) + spread


def draw(record: dict[str, Any]) -> Figure | None:
    """Validation accuracy against processor time, and test accuracy against spikes; None before the first run.

    The axis of accuracy is that of odds, on which 90, 99 and 99.9 % are equally far apart.
    """
    runs = _finished(record)
    if not runs:
        return None
    unit, name = (3600, "hours") if record["settings"]["hours"] >= 1 else (60, "minutes")
    figure = Figure(figsize=(11, 5), layout="constrained")
    time, spikes = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    said: set[str] = set()
    for run in runs:
        method = run["method"]
        place = list(METHODS).index(method)
        style = {"color": _COLORS[place % len(_COLORS)], "marker": _MARKERS[place // len(_COLORS)], "markersize": 5}
        label = None if method in said else method + " (ANN)" * run["ann"]
        said.add(method)
        time.plot([seconds / unit for seconds, _ in run["curve"]], [_shown(accuracy) for _, accuracy in run["curve"]],
                  linestyle="--" if run["ann"] else "-", label=label, **style)
        fired = [row for row in run["rows"] if row["timesteps"] is not None]
        spikes.plot([row["spikes_per_image"] for row in fired], [_shown(row["test_accuracy"]) for row in fired],
                    linestyle=":", **style)
        for row in fired:
            spikes.annotate(f"T={row['timesteps']}", (row["spikes_per_image"], _shown(row["test_accuracy"])), (5, -3),
                            textcoords="offset points", fontsize=7, color=style["color"])
    time.set_yscale("logit")
    low, high = time.get_ylim()
    ticks = [tick for tick in _TICKS if low <= tick <= high]
    time.set_yticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
    time.set(xlim=(0, None), xlabel=f"processor {name} of training", ylabel="accuracy", title="validation, in training")
    spikes.set(xscale="log", xlabel="spikes per image, input included", title="test, of the weights chosen")
    spikes.margins(x=0.12)
    spikes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    spikes.xaxis.set_major_formatter(EngFormatter(sep=""))
    for axes in (time, spikes):
        axes.minorticks_off()
        axes.grid(True, alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", fontsize=9, frameon=False)
    figure.suptitle(_title(record), fontsize=11)
    return figure


def page(record: dict[str, Any], picture: str) -> str:
    """The page in Markdown.

    Args:
      record: what `benchmarks.methods` keeps.
      picture: file name of the picture, beside the page.
    """
    settings, machine = record["settings"], record["machine"]
    failed = [run for run in record["runs"].values() if "failed" in run]
    parts = [f"# {_title(record)}", f"    {record['command']}"]
    if _finished(record):
        parts += [table(record), f"![Accuracy against processor time and spikes]({picture})"]
    if failed:
        parts.append("Without a result:\n\n" + "\n".join(
            f"- `{run['method']}`, seed {run['seed']}: {run['failed']}" for run in failed))
    seeds = sorted({run["seed"] for run in record["runs"].values()})
    parts += ["\n".join([
        f"- Training took the processor time that is given, on {machine['cpu']} ({machine['cores']} threads), counted "
        "from the start of train.py to its last validation; of converted networks, with the conversion. Other work on "
        "the machine changes it little.",
        f"- The weights are those with the best of up to {settings['points']} validations; accuracy is that of eval.py "
        "on all test images, the mean of 3 draws where the input is random. Seeds: "
        f"{', '.join(map(str, seeds))}" + ("; mean ± standard deviation." if len(seeds) > 1 else "."),
        "- Spikes are those of all layers and the input; energy is that of the 45 nm model (eval.py --report), of an "
        f"ANN that of its multiply-accumulates. Both are means over the first {settings['images']} test images.",
        "- Images come in the same order in all runs of a seed. What else a method fixes is in "
        f"tfspike/config/methods.py. Commit {record['commit']}."]),
        "## The runs", "\n".join(f"    {_plain(run['command'])}" for run in _finished(record))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _plain(command: str) -> str:
    """The command without what only spares this comparison time."""
    # results/methods-lenet-mnist_subset.json is older than `benchmarks.methods` leaving out where runs were put
    words = shlex.split(provenance.without_paths(command))
    return shlex.join(word for word in words if word not in ("--notensorboard", "--export=none"))


def _title(record: dict[str, Any]) -> str:
    settings = record["settings"]
    hours = settings["hours"]
    number, unit = (f"{hours:.3g}", "hour") if hours >= 1 else (f"{60 * hours:.3g}", "minute")
    each = f"{number} processor {unit}{'s' * (number != '1')}"
    return f"{settings['model']} on {settings['dataset']}, {each} for each method"


def _finished(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [run for run in record["runs"].values() if "rows" in run]


def _shown(accuracy: float) -> float:
    return min(max(accuracy, _LEAST), _MOST)
