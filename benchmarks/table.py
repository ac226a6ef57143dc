"""The results as Markdown: times with their spread, memory, and ratios against the fastest peer."""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.cases import EVENT_DRIVEN, LIBRARIES, PEERS, PRECISIONS, TFSPIKE, Case, Cell
from benchmarks.results import Results

LABELS = {"tfspike-rate": "tfspike \"rate\" *", "tfspike-event": "tfspike \"event\"",
          "tfspike-rate-events": "tfspike \"rate\" *, event-driven",
          "tfspike-event-events": "tfspike \"event\", event-driven",
          "authors": "authors' algorithm, PyTorch", "snntorch": "snnTorch", "snntorch-compiled": "snnTorch, compiled",
          "spikingjelly": "SpikingJelly", "norse": "Norse", "norse-compiled": "Norse, compiled"}
NOTE = ("\\* \"rate\" is a different gradient: one backward pass through mean rates. \"event\" is the authors'. "
        "Times: median (smallest - largest) of the rounds' medians. Memory: peak above the bare framework.")


def markdown(results: Results) -> str:
    """The whole report."""
    parts = [f"Machine: {_machine(results.data['machine'])}"]
    for mode, unit in (("train", "s per step"), ("inference", "images/s")):
        found = results.cases(mode)
        if found:
            parts += [f"### {mode.capitalize()}", _cells(results, found, unit), *_ratios(results, found)]
    for case in results.cases("pipeline"):
        parts.append(_pipeline(results, case))
    return "\n\n".join([*parts, NOTE])


def best(results: Results, case: Case, libraries: tuple[str, ...], precisions: tuple[str, ...],
         field: str) -> float | None:
    """The smallest value of a field ("seconds" or "peak_above_bare_mb") among libraries and precisions."""
    found = [results.summary(Cell(case, library, precision)) for library in libraries for precision in precisions]
    return min((one[field] for one in found if one and one["status"] == "ok"), default=None)


def _cells(results: Results, found: list[Case], unit: str) -> str:
    rows = [f"| net, T, batch | library | precision | {unit} | memory, MB | first step, s |", "|---" * 6 + "|"]
    for case in found:
        for library in LIBRARIES:
            for precision in PRECISIONS:
                one = results.summary(Cell(case, library, precision))
                if one:
                    rows.append(f"| {_name(case)} | {LABELS[library]} | {precision} | {_values(one, case)} |")
    return "\n".join(rows)


def _values(one: dict[str, Any], case: Case) -> str:
    if one["status"] != "ok":
        return "out of memory | > cap |"
    low, middle, high = (one["low"], one["seconds"], one["high"])
    if case.mode == "inference":
        low, middle, high = (case.batch / one[key] for key in ("high", "seconds", "low"))
    silent = " (a layer is silent)" if one["alive"] is False else ""
    return (f"{middle:.3g} ({low:.3g} - {high:.3g}){silent} | {one['peak_above_bare_mb']:.0f} | "
            f"{one['first_step_seconds']:.1f}")


def _ratios(results: Results, found: list[Case]) -> list[str]:
    """Fastest peer / tfspike, and leanest peer / tfspike; nothing where only one side was measured."""
    head = ["net, T, batch", "tfspike", "time f32", "time bf16", "time, best / best", "memory f32", "memory bf16",
            "memory, best / best"]
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for case in found:
        for library in TFSPIKE + EVENT_DRIVEN:
            values = [_ratio(results, case, library, precisions, field)
                      for field in ("seconds", "peak_above_bare_mb")
                      for precisions in (("float32",), ("bfloat16",), PRECISIONS)]
            if any(value != "-" for value in values):
                rows.append(f"| {_name(case)} | {LABELS[library]} | " + " | ".join(values) + " |")
    if len(rows) == 2:
        return []
    return ["Fastest (leanest) peer divided by tfspike, above 1 in tfspike's favour:\n\n" + "\n".join(rows)]


def _ratio(results: Results, case: Case, library: str, precisions: tuple[str, ...], field: str) -> str:
    own = best(results, case, (library,), precisions, field)
    other = best(results, case, PEERS, precisions, field)
    return "-" if own is None or other is None else f"{other / own:.2f}"


def _pipeline(results: Results, case: Case) -> str:
    one = results.summary(Cell(case, "tfspike-rate", "float32"))
    step = best(results, Case(case.net, case.timesteps, case.batch), TFSPIKE, PRECISIONS, "seconds")
    if one is None or one["status"] != "ok":
        return "Input pipeline: not measured."
    share = "" if step is None else f", {100 * one['seconds'] / step:.1f} % of the fastest step of {_name(case)}"
    return f"Input pipeline alone, batch {case.batch}: {1000 * one['seconds']:.2f} ms per batch{share}."


def _name(case: Case) -> str:
    return f"{case.net}, {case.timesteps}, {case.batch}"


def _machine(facts: dict[str, Any]) -> str:
    return (f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gb']} GB, "
            f"{' '.join(facts['instructions'])}; {facts['system']}, Python {facts['python']}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description="Prints results as Markdown.")
    parser.add_argument("results", nargs="?", default="benchmarks.json")
    print(markdown(Results(parser.parse_args().results)))
