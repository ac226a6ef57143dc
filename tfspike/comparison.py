"""Two or more runs side by side, from the records of their analyses."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from tfspike import pages, plots
from tfspike.energy import EnergyModel, Operations
from tfspike.pages import Picture

PAGE, RECORD = "compare.html", "compare.json"


def compare_report(records: Mapping[str, Mapping[str, Any]], out: str, energy: EnergyModel | None = None) -> str:
    """Writes `compare.html`, its PNGs and `compare.json` into `out`; returns the path of the HTML file.

    Args:
      records: `Analysis.to_dict()` with `title` and `facts`, by the name of the run.
      out: folder.
      energy: constants; None takes those of 45 nm.
    """
    energy = energy or EnergyModel()
    table = comparison(records, energy)
    names = list(records)
    pictures = [
        Picture("compare_accuracy", plots.bars(names, [r["accuracy"] for r in records.values()], "%"),
                "Test accuracy."),
        Picture("compare_spikes", plots.bars(names, [r["spikes_per_image"] for r in records.values()],
                                             "spikes per image"), "Spikes per image, all layers and the input."),
        Picture("compare_energy", plots.bars(names, [1e-12 * _energy_of(r, energy)[0] for r in records.values()], "J"),
                f"Energy per image, at {energy.describe()}."),
        Picture("compare_curves", plots.compared_curves({n: r["accuracy_by_step"] for n, r in records.items()}),
                "Accuracy at every time step.")]
    page = pages.render("compare.html.j2", names=names, records=records, table=table, layers=_compared_layers(records),
                        sections=pages.written([("Side by side", "", pictures)], out), made=pages.now())
    plain = {"runs": names, "energy_constants": dataclasses.asdict(energy),
             "table": [{"measure": measure, "values": values} for measure, values, _ in table]}
    pages.write_file(os.path.join(out, RECORD), json.dumps(plain, indent=1, allow_nan=False) + "\n")
    return pages.write_file(os.path.join(out, PAGE), page)


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
    return rows


def _energy_of(record: Mapping[str, Any], energy: EnergyModel) -> tuple[float, float]:
    snn = Operations(record["macs_per_image"], record["acs_per_image"], record["membrane_updates_per_image"])
    ann = Operations(record["ann_macs_per_image"], record["ann_acs_per_image"], record["ann_activations_per_image"])
    return energy.picojoules(snn), energy.picojoules(ann)


def _compared_layers(records: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Firing rate of every layer that any run has, spikes per neuron and step."""
    rates = [{"input" if layer["kind"] == "input" else layer["name"]: layer["rate_spikes_per_step"]
              for layer in record["layers"] if pages.fires(layer["kind"], layer["spikes_per_image"])}
             for record in records.values()]
    names = list(dict.fromkeys(name for rate in rates for name in rate))
    return [(name, [f"{rate[name]:.4f}" if name in rate else "–" for rate in rates]) for name in names]
