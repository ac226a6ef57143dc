"""Two or more runs side by side, from the records of their analyses."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tfspike.analysis.energy import EnergyModel, Operations
from tfspike.analysis.measure import settled
from tfspike.config.config import FIELDS, Config
from tfspike.config.settings import plain
from tfspike.evaluation import pages, plots
from tfspike.evaluation.pages import Picture

PAGE, RECORD = "compare.html", "compare.json"
_LOSS = 0.005  # below the accuracy of the worst run: its own would be reached at its last step, by chance


@dataclasses.dataclass(frozen=True)
class SameAccuracy:
    """What it costs every run to be as accurate as all of them get ("iso-accuracy").

    Attributes:
      accuracy: half a point below that of the least accurate run after its whole window.
      steps: of every run, the first step from which it stays at this accuracy or above.
      spikes: of every run, spikes per image until then, the input's included.
      layers: of every run, the same by layer.
    """

    accuracy: float
    steps: tuple[int, ...]
    spikes: tuple[float, ...]
    layers: tuple[dict[str, float], ...]


def same_accuracy(records: Mapping[str, Mapping[str, Any]]) -> SameAccuracy:
    """The steps and spikes that the runs need for one accuracy.

    Args:
      records: `Analysis.to_dict()` by the name of the run.
    """
    accuracy = min(record["accuracy_by_step"][-1] for record in records.values()) - _LOSS
    reached = [settled(record["accuracy_by_step"], accuracy) for record in records.values()]
    return SameAccuracy(
        accuracy, tuple(step + 1 for step in reached),
        tuple(record["spikes_per_image_until_step"][step] for record, step in zip(records.values(), reached)),
        tuple({_name(layer): layer["spikes_per_image_until_step"][step] for layer in record["layers"]
               if _fires(layer)} for record, step in zip(records.values(), reached)))


def compare_report(records: Mapping[str, Mapping[str, Any]], out: str, energy: EnergyModel | None = None,
                   settings: Mapping[str, Sequence[str]] | None = None) -> str:
    """Writes `compare.html`, its PNGs and `compare.json` into `out`; returns the path of the HTML file.

    Args:
      records: `Analysis.to_dict()` with `title` and `facts`, by the name of the run.
      out: folder.
      energy: constants; None takes those of 45 nm.
      settings: `differences` of the runs.
    """
    settings = settings or {}
    energy = energy or EnergyModel()
    table = comparison(records, energy)
    names, same = list(records), same_accuracy(records)
    pictures = [
        Picture("compare_accuracy", plots.bars(names, [r["accuracy"] for r in records.values()], "%"),
                "Test accuracy."),
        Picture("compare_spikes", plots.bars(names, [r["spikes_per_image"] for r in records.values()],
                                             "spikes per image"), "Spikes per image, all layers and the input."),
        Picture("compare_energy", plots.bars(names, [1e-12 * _energy_of(r, energy)[0] for r in records.values()], "J"),
                f"Energy per image, at {energy.describe()}."),
        Picture("compare_curves", plots.compared_curves({n: r["accuracy_by_step"] for n, r in records.items()}),
                "Accuracy at every time step."),
        Picture("compare_curves_spikes", plots.compared_curves(
            {n: r["accuracy_by_step"] for n, r in records.items()},
            {n: r["spikes_per_image_until_step"] for n, r in records.items()}),
                "Accuracy against the spikes spent until then, all layers and the input."),
        Picture("compare_layers", plots.compared_layers(dict(zip(names, same.layers))),
                f"Spikes per image by layer, until {100 * same.accuracy:.2f} % are reached for good.")]
    page = pages.render("compare.html.j2", names=names, records=records, table=table, settings=settings,
                        layers=_compared_layers(records), made=pages.now(),
                        sections=pages.written([("Side by side", "", pictures)], out))
    written = {"runs": names, "energy_constants": dataclasses.asdict(energy), "same_accuracy": dataclasses.asdict(same),
             "settings": {name: list(values) for name, values in settings.items()},
             "table": [{"measure": measure, "values": values} for measure, values, _ in table]}
    pages.write_file(os.path.join(out, RECORD), json.dumps(written, indent=1, allow_nan=False) + "\n")
    return pages.write_file(os.path.join(out, PAGE), page)


def differences(configs: Sequence[Config]) -> dict[str, list[str]]:
    """The settings of the experiments that differ: what each of these runs has, by the name of the flag.

    Runs of one data set and network have names that agree but for some digits, which say nothing.
    """
    values = {name: [plain(getattr(config, name)) for config in configs] for name, field in FIELDS.items()
              if field.metadata["experiment"] or name == "epochs"}
    return {name: every for name, every in values.items() if any(each != every[0] for each in every)}


def lines(records: Mapping[str, Mapping[str, Any]], energy: EnergyModel | None = None,
          settings: Mapping[str, Sequence[str]] | None = None) -> list[str]:
    """The table for a terminal: a number for every run, and columns of that number."""
    heads = [f"run {number}" for number in range(1, len(records) + 1)]
    rows = [("", heads), *((f"--{name}", list(texts)) for name, texts in (settings or {}).items()),
            *((measure.replace(", pJ", ""), texts) for measure, _, texts in comparison(records, energy))]
    first = max(len(name) for name, _ in rows)
    widths = [max(len(texts[run]) for _, texts in rows) for run in range(len(records))]
    return [*(f"{head}: {name}" for head, name in zip(heads, records)),
            *("  ".join([name.ljust(first), *(text.rjust(width) for text, width in zip(texts, widths))])
              for name, texts in rows)]


def comparison(records: Mapping[str, Mapping[str, Any]],
               energy: EnergyModel | None = None) -> list[tuple[str, list[float], list[str]]]:
    """Rows `(measure with unit, value of every run, the same as text)`; everything but accuracy and T is per image."""
    energy = energy or EnergyModel()

    def reached(record: Mapping[str, Any]) -> Mapping[str, Any]:
        return next(entry for entry in record["steps_to_share"] if entry["share"] == 0.99)

    measures: list[tuple[str, Callable[[Mapping[str, Any]], float], Callable[[float], str]]] = [
        ("test accuracy", lambda r: r["accuracy"], lambda v: f"{100 * v:.2f} %"),
        ("time steps", lambda r: r["timesteps"], pages.count),
        ("steps for 99 % of the accuracy", lambda r: reached(r)["steps"], pages.count),
        ("mean steps with early exit, at most .5 points lost", lambda r: r["early_exit_best"]["steps"], pages.count),
        ("spikes per image", lambda r: r["spikes_per_image"], pages.count),
        ("accumulates per image", lambda r: r["acs_per_image"], pages.count),
        ("multiply-accumulates per image", lambda r: r["macs_per_image"], pages.count),
        ("membrane updates per image", lambda r: r["membrane_updates_per_image"], pages.count),
        ("energy per image, pJ", lambda r: _energy_of(r, energy)[0], lambda v: plots.joules(v * 1e-12)),
        ("energy per image of the ANN, pJ", lambda r: _energy_of(r, energy)[1], lambda v: plots.joules(v * 1e-12)),
        ("weights", lambda r: r["neurobench"]["parameter_count"], pages.count)]
    rows = []
    for name, value, text in measures:
        values = [float(value(record)) for record in records.values()]
        rows.append((name, values, [text(v) for v in values]))
    same = same_accuracy(records)
    for name, needed in ((f"steps for {100 * same.accuracy:.2f} %, half a point below the least accurate", same.steps),
                         ("spikes per image until then", same.spikes)):
        rows.append((name, [float(v) for v in needed], [pages.count(v) for v in needed]))
    return rows


def _energy_of(record: Mapping[str, Any], energy: EnergyModel) -> tuple[float, float]:
    snn = Operations(record["macs_per_image"], record["acs_per_image"], record["membrane_updates_per_image"])
    ann = Operations(record["ann_macs_per_image"], record["ann_acs_per_image"], record["ann_activations_per_image"])
    return energy.picojoules(snn), energy.picojoules(ann)


def _compared_layers(records: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Firing rate of every layer that any run has, spikes per neuron and step."""
    rates = [{_name(layer): layer["rate_spikes_per_step"] for layer in record["layers"] if _fires(layer)}
             for record in records.values()]
    names = list(dict.fromkeys(name for rate in rates for name in rate))
    return [(name, [f"{rate[name]:.4f}" if name in rate else "–" for rate in rates]) for name in names]


def _name(layer: Mapping[str, Any]) -> str:
    return "input" if layer["kind"] == "input" else str(layer["name"])


def _fires(layer: Mapping[str, Any]) -> bool:
    return pages.fires(layer["kind"], layer["spikes_per_image"])
