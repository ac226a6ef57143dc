"""A run as one HTML file to look at, and two or more runs side by side. No network is needed to open either.

    eval.py --workdir=RUN --report                 writes RUN/report/index.html, its PNGs and analysis.json
    eval.py --workdir=RUN --compare=OTHER          writes RUN/report/compare.html, its PNGs and compare.json
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tfspike import analysis, checkpoints, datasets, plots, simulation, workdir
from tfspike.energy import EnergyModel, Operations
from tfspike.errors import UserError

FOLDER, PAGE, RECORD = "report", "index.html", "analysis.json"
COMPARE_PAGE, COMPARE_RECORD = "compare.html", "compare.json"
_MISTAKES = 12


@dataclasses.dataclass(frozen=True)
class RunResults:
    """Everything a report shows.

    Attributes:
      title: one line, e.g. "lenet on mnist".
      facts: (name, value) pairs of the run: checkpoint, window, gradient, versions.
      settings: the run's configuration.
      commands: command lines of the run, the first one first.
      epochs: records of `metrics.jsonl` with event "epoch".
      result: the analysis.
      images: as they are stored, `[N, H, W, C]`; indexed for the pictures alone.
      class_names: of the labels.
      traces: (index of the image, its trace) of the sample images.
      filters: kernel of the first convolution, `[height, width, channels, filters]`; None without one.
      energy: constants.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    settings: Mapping[str, Any]
    commands: Sequence[str]
    epochs: Sequence[Mapping[str, Any]]
    result: analysis.Analysis
    images: Any
    class_names: Sequence[str]
    traces: Sequence[tuple[int, simulation.Trace]]
    filters: np.ndarray | None
    energy: EnergyModel = dataclasses.field(default_factory=EnergyModel)


# ---- one run -----------------------------------------------------------------------------------------------------


def write(run: str, options: Any = None, energy: EnergyModel | None = None, say: Callable[[str], None] = print) -> str:
    """Analyses a run on its test set and writes its report.

    Args:
      run: folder of the run.
      options: of eval.py (`checkpoint`, `data_dir`, `batch_size`, `timesteps` are read); None takes the defaults.
      energy: constants; None takes those of 45 nm.
      say: takes lines of progress.

    Returns:
      Path of the HTML file, `RUN/report/index.html`.

    Raises:
      UserError: the run or its data cannot be used, or the folder cannot be written.
    """
    return write_report(collect(run, options, energy, say), os.path.join(run, FOLDER))


def collect(run: str, options: Any = None, energy: EnergyModel | None = None,
            say: Callable[[str], None] = print) -> RunResults:
    """What `write` puts on paper; arguments and errors as there."""
    model, config, info, checkpoint = workdir.load_run(run, _option(options, "checkpoint") or "best",
                                                       _option(options, "timesteps"), say)
    test = datasets.load(config.dataset, "test", _option(options, "data_dir") or config.data_dir, model.timesteps)
    say(f"analysing {len(test)} test images over {model.timesteps} steps")
    result = analysis.analyse(model, _Normalised(test.images, info), test.labels,
                              _option(options, "batch_size") or config.batch_size)
    about = workdir.about(run)
    versions = about.get("versions") or {}
    facts = [("network", config.model), ("data", f"{info.name}, {len(test):,} test images"),
             ("window", f"{model.timesteps} steps"), ("input coding", config.encoder), ("gradient", config.gradient),
             ("checkpoint", f"{_option(options, 'checkpoint') or 'best'}, step {checkpoint.step}"),
             ("weights", f"{result.parameters:,}"), ("commit", str(about.get("commit") or "not known")),
             ("versions", ", ".join(f"{name} {version}" for name, version in versions.items()))]
    traces = [(i, simulation.trace(model, info.normalise(test.images[i:i + 1])[0])) for i in _samples(result)]
    return RunResults(f"{config.model} on {info.name}", facts, dataclasses.asdict(config), about.get("commands") or [],
                      read_epochs(run), result, test.images, info.class_names, traces, _filters(model),
                      energy or EnergyModel())


class _Normalised:
    """Stored images as the network takes them, a slice at a time."""

    def __init__(self, images: Any, info: datasets.DatasetInfo):
        self._images, self._info = images, info

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, part: Any) -> np.ndarray:
        return self._info.normalise(self._images[part])


def _option(options: Any, name: str) -> Any:
    return getattr(options, name, None)


def _samples(result: analysis.Analysis) -> list[int]:
    """Two images of different classes that are right, and the one that is most clearly wrong."""
    right = np.flatnonzero(result.predictions[:, -1] == result.labels)
    chosen = [int(right[0])] if len(right) else []
    other = [i for i in right if result.labels[i] != result.labels[right[0]]]
    return [*chosen, *map(int, other[:1]), *mistakes(result)[:1]]


def mistakes(result: analysis.Analysis) -> list[int]:
    """Images that are wrong after the whole window, the most confidently wrong first."""
    wrong = np.flatnonzero(result.predictions[:, -1] != result.labels)
    return [int(i) for i in wrong[np.argsort(-result.margins[wrong, -1], kind="stable")]]


def _filters(model: Any) -> np.ndarray | None:
    for variable in model.trainable_variables:
        if len(variable.shape) == 4:
            return np.asarray(variable.value, np.float32)
    return None


def read_epochs(run: str) -> list[dict[str, Any]]:
    """Records with event "epoch" of a run's metrics.jsonl; lines that cannot be read are left out."""
    records = []
    try:
        with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as file:
            for line in file:
                try:
                    record = json.loads(line)
                except ValueError:
                    continue  # a run that was killed may leave half a line
                if isinstance(record, dict) and record.get("event") == "epoch" and "epoch" in record:
                    records.append(record)
    except OSError:
        return []
    return records


def write_report(results: RunResults, out: str) -> str:
    """Writes `index.html`, one PNG per picture and `analysis.json` into `out`; returns the path of the HTML file.

    Raises:
      UserError: the folder cannot be written.
    """
    result, energy = results.result, results.energy
    sections = [("Learning", "", _learning(results)), ("Activity", _ACTIVITY, _activity(results)),
                ("Accuracy over time", _TIME, _time(results)), ("Energy", _energy_text(results), _energy(results)),
                ("Errors", "", _errors(results)),
                ("One image at a time", _RASTER, _rasters(results)), ("First layer", "", _first_layer(results))]
    page = _render("report.html.j2", results=results, result=result, tiles=_tiles(results),
                   sections=_written([section for section in sections if section[2]], out),
                   rows=_layer_rows(result, energy), total=_total_row(result, energy), energy=energy,
                   neurobench=_neurobench_rows(result), made=_now())
    record = {"title": results.title, "facts": dict(results.facts), **result.to_dict()}
    _write(os.path.join(out, RECORD), json.dumps(record, indent=1, allow_nan=False) + "\n")
    return _write(os.path.join(out, PAGE), page)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure with its file name and the sentence that goes under it."""

    name: str
    figure: Any
    caption: str


def _learning(results: RunResults) -> list[Picture]:
    if not results.epochs:
        return []
    pictures = [Picture("learning_curves", plots.learning_curves(results.epochs),
                        "Loss and accuracy after every epoch; training values are means over the epoch.")]
    if any(name.startswith("epoch_rate/") for name in results.epochs[-1]):
        pictures.append(Picture("rates_by_epoch", plots.rates_by_epoch(results.epochs),
                                "Mean firing rate of every layer while training."))
    return pictures


_ACTIVITY = ("Spikes are counted, not estimated. Orange is the input, dark blue are leaky integrate-and-fire neurons, "
             "light blue pooling neurons. The readout integrates and never fires.")
_TIME = ("The readout can be asked at any step, so all of this comes from one pass. An image is clear when the leading "
         "class's membrane potential is ahead of the second by a margin; every point of the dashed line is a margin.")
_RASTER = ("Time runs to the right. In each band a row is a neuron and a dark mark a spike (vermilion: a negative input "
           "spike). Below a band is the membrane potential, before firing, of one neuron of middling activity: "
           "the dashed line is its threshold, a dot a spike.")


def _activity(results: RunResults) -> list[Picture]:
    layers = results.result.layers
    return [Picture("spikes_by_layer", plots.activity(layers, "spikes"), "Spikes per image, by layer."),
            Picture("rates_by_layer", plots.activity(layers, "rate"), "Mean firing rate, by layer.")]


def _time(results: RunResults) -> list[Picture]:
    best, result = results.result.best_exit(), results.result
    change = 100 * (best.accuracy - result.accuracy)
    text = (f"With a margin of {best.margin:.2f} images stop after {best.steps:.1f} of {result.timesteps} steps on average, "
            f"at {100 * best.accuracy:.2f} % ({change:+.2f} points) and {best.spikes:,.0f} spikes per image. The margin was "
            "chosen on these images: choose it on validation data before quoting it.")
    return [Picture("accuracy_by_step", plots.accuracy_over_time(result), text),
            Picture("accuracy_by_spikes", plots.accuracy_over_spikes(result),
                    "The same against the spikes of all layers, the input's included, spent until then.")]


def _energy_text(results: RunResults) -> str:
    energy, result = results.energy, results.result
    snn, ann = energy.picojoules(result.operations) * 1e-12, energy.picojoules(result.ann) * 1e-12
    full = dataclasses.replace(energy, update_pj=energy.mac_pj, memory_pj=5.0)
    snn_full, ann_full = full.picojoules(result.operations) * 1e-12, full.picojoules(result.ann) * 1e-12
    ratio = ann / snn if snn else float("inf")
    words = f"{ratio:.2g} times less than" if ratio >= 1 else f"{1 / ratio:.2g} times as much as" if ratio else "beside"
    terms = f"{energy.mac_pj:g} pJ per multiply-accumulate and {energy.ac_pj:g} pJ per accumulate"
    if energy.update_pj or energy.memory_pj:
        terms += f", {energy.update_pj:g} pJ per membrane update and {energy.memory_pj:g} pJ per 32-bit memory access"
    return (f"{plots.joules(snn)} per image, {words} the {plots.joules(ann)} of an ANN of the same shape, at {terms} "
            "(45 nm CMOS, 32-bit floating point). This counts arithmetic on measured spikes and is no measurement "
            "of a device. If a membrane update also cost a multiply-accumulate, and every 32-bit access to on-chip memory "
            f"5 pJ, it would be {plots.joules(snn_full)} against {plots.joules(ann_full)}.")


def _energy(results: RunResults) -> list[Picture]:
    energy, result = results.energy, results.result
    totals = [energy.picojoules(operations) * 1e-12 for operations in (result.operations, result.ann)]
    return [Picture("energy", plots.bars(["spiking network", "ANN, same shape"], totals, "J",
                                         [plots.BLUE, plots.ORANGE]), "Energy per image, all layers."),
            Picture("energy_by_layer", plots.energy_by_layer(result.layers, energy),
                    "Energy per image of the synapses into each layer.")]


def _errors(results: RunResults) -> list[Picture]:
    names, result = results.class_names, results.result
    pictures = [Picture("confusion", plots.confusion(result.confusion, names), "Numbers are images.")]
    wrong = mistakes(result)
    if wrong:
        chosen = wrong[:_MISTAKES]
        captions = [f"said {_cut(names[result.predictions[i, -1]])}\nis {_cut(names[result.labels[i]])}" for i in chosen]
        pictures.append(Picture(
            "misclassified", plots.image_grid([results.images[i] for i in chosen], captions),
            f"{len(chosen)} of the {len(wrong)} images that are wrong, the most confident first."))
    return pictures


def _cut(word: str) -> str:
    return word if len(word) <= 12 else word[:11] + "…"


def _rasters(results: RunResults) -> list[Picture]:
    names, result, pictures = results.class_names, results.result, []
    for number, (i, trace) in enumerate(results.traces, 1):
        truth, answer = names[result.labels[i]], names[int(np.argmax(trace.readout[-1]))]
        verdict = "right" if truth == answer else "wrong"
        pictures.append(Picture(f"raster_{number}", plots.raster(trace, results.images[i], names),
                                f"Test image {i}, class {truth}: answered {answer}, {verdict}."))
    return pictures


def _first_layer(results: RunResults) -> list[Picture]:
    if results.filters is None:
        return []
    shown = min(results.filters.shape[-1], 64)
    return [Picture("filters", plots.filters(results.filters),
                    f"{shown} of {results.filters.shape[-1]} learnt filters of the first convolution.")]


# ---- tables ------------------------------------------------------------------------------------------------------


def _tiles(results: RunResults) -> list[tuple[str, str, str]]:
    """(value, name, remark) of what matters most."""
    result, energy = results.result, results.energy
    reached = result.steps_to(0.99)
    snn, ann = (energy.picojoules(operations) * 1e-12 for operations in (result.operations, result.ann))
    return [(f"{100 * result.accuracy:.2f} %", "test accuracy", f"{result.images:,} images, one draw of the input noise"),
            (_count(result.spikes_by_step[-1]), "spikes per image", "all layers and the input"),
            (plots.joules(snn), "energy per image", f"ANN of the same shape: {plots.joules(ann)}"),
            (f"{reached['steps']} of {result.timesteps}", "steps for 99 % of it",
             f"{_count(reached['spikes_per_image'])} spikes per image")]


def _layer_rows(result: analysis.Analysis, energy: EnergyModel) -> list[list[str]]:
    return [["input" if layer.kind == "input" else layer.name, "×".join(map(str, layer.shape)), "–" if layer.kind == "readout" else _count(layer.spikes),
             "–" if layer.kind == "readout" else f"{layer.rate:.4f}",
             "–" if layer.kind == "readout" else f"{100 * layer.silent:.1f} %",
             *_operation_cells(layer.operations, layer.ann, energy)] for layer in result.layers]


def _total_row(result: analysis.Analysis, energy: EnergyModel) -> list[str]:
    return ["all layers", f"{sum(layer.neurons for layer in result.layers):,}", _count(result.spikes_by_step[-1]), "", "",
            *_operation_cells(result.operations, result.ann, energy)]


def _operation_cells(operations: Operations, ann: Operations, energy: EnergyModel) -> list[str]:
    return [_count(operations.acs), _count(operations.macs), _count(operations.updates), _count(ann.macs),
            plots.joules(energy.picojoules(operations) * 1e-12), plots.joules(energy.picojoules(ann) * 1e-12)]


def _neurobench_rows(result: analysis.Analysis) -> list[tuple[str, str]]:
    values = result.neurobench()
    return [("footprint", f"{values['footprint_bytes']:,} bytes"),
            ("connection sparsity", f"{values['connection_sparsity']:.4f}"),
            ("activation sparsity", f"{values['activation_sparsity']:.4f}"),
            ("effective ACs per image", f"{values['effective_acs_per_image']:,.0f}"),
            ("effective MACs per image", f"{values['effective_macs_per_image']:,.0f}"),
            ("dense operations per image", f"{values['dense_operations_per_image']:,.0f}"),
            ("membrane updates per image", f"{values['membrane_updates_per_image']:,.0f}")]


def _count(value: float) -> str:
    """A count per image: whole where it is large."""
    return "0" if value == 0 else f"{value:,.0f}" if value >= 100 else f"{value:,.2f}"


# ---- several runs ------------------------------------------------------------------------------------------------


def compare(runs: Sequence[str], out: str, options: Any = None, energy: EnergyModel | None = None,
            say: Callable[[str], None] = print) -> str:
    """Puts two or more runs side by side.

    A run whose report was written for the same checkpoint and window is read from there; others are analysed.

    Args:
      runs: folders of runs.
      out: folder to write `compare.html`, `compare.json` and PNGs into.
      options, energy, say: as for `write`.

    Returns:
      Path of the HTML file.

    Raises:
      UserError: fewer than two runs, or one that cannot be used.
    """
    folders = list(dict.fromkeys(os.path.normpath(run) for run in runs))
    if len(folders) < 2:
        raise UserError(f"Comparing takes the folders of at least two different runs; received {', '.join(runs) or 'none'}.")
    return compare_report(dict(zip(_names(folders), (_record(run, options, say) for run in folders))), out, energy)


def _names(folders: Sequence[str]) -> list[str]:
    """The last parts of the paths, as many as it takes to tell them apart."""
    parts = [os.path.abspath(folder).split(os.sep) for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def _record(run: str, options: Any, say: Callable[[str], None]) -> dict[str, Any]:
    from tfspike import config as config_lib

    which = _option(options, "checkpoint") or "best"
    settings = config_lib.read_run(run)
    step = workdir.open_checkpoint(run, say, which).step
    try:
        with open(os.path.join(run, FOLDER, RECORD), encoding="utf-8") as file:
            record = json.load(file)
        if (record["facts"]["checkpoint"] == f"{which}, step {step}"
                and record["timesteps"] == (_option(options, "timesteps") or settings.timesteps)):
            return record
    except (OSError, ValueError, KeyError, TypeError):
        pass
    results = collect(run, options, say=say)
    return {"title": results.title, "facts": dict(results.facts), **results.result.to_dict()}


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
        Picture("compare_accuracy", plots.bars(names, [r["accuracy"] for r in records.values()], "%"), "Test accuracy."),
        Picture("compare_curves", plots.compared_curves({n: r["accuracy_by_step"] for n, r in records.items()}),
                "Accuracy at every time step."),
        Picture("compare_spikes", plots.bars(names, [r["spikes_per_image"] for r in records.values()],
                                             "spikes per image"), "Spikes per image, all layers and the input."),
        Picture("compare_energy", plots.bars(names, [1e-12 * _energy_of(r, energy)[0] for r in records.values()], "J"),
                f"Energy per image at {energy.mac_pj:g} pJ per MAC and {energy.ac_pj:g} pJ per AC (45 nm).")]
    page = _render("compare.html.j2", names=names, records=records, table=table,
                   sections=_written([("Side by side", "", pictures)], out), layers=_compared_layers(records), made=_now())
    plain = {"runs": names, "table": [{"measure": measure, "values": values} for measure, values, _ in table]}
    _write(os.path.join(out, COMPARE_RECORD), json.dumps(plain, indent=1, allow_nan=False) + "\n")
    return _write(os.path.join(out, COMPARE_PAGE), page)


def comparison(records: Mapping[str, Mapping[str, Any]],
               energy: EnergyModel | None = None) -> list[tuple[str, list[float], list[str]]]:
    """Rows `(measure with unit, value of every run, the same as text)`; everything but accuracy and T is per image."""
    energy = energy or EnergyModel()

    def reached(record: Mapping[str, Any]) -> Mapping[str, Any]:
        return next(entry for entry in record["steps_to_share"] if entry["share"] == 0.99)

    def plain(value: float) -> str:
        return _count(value)

    measures: list[tuple[str, Callable[[Mapping[str, Any]], float], Callable[[float], str]]] = [
        ("test accuracy", lambda r: r["accuracy"], lambda v: f"{100 * v:.2f} %"),
        ("time steps", lambda r: r["timesteps"], plain),
        ("steps for 99 % of the accuracy", lambda r: reached(r)["steps"], plain),
        ("mean steps with early exit, at most .5 points lost", lambda r: r["early_exit_best"]["steps"], plain),
        ("spikes per image", lambda r: r["spikes_per_image"], plain),
        ("accumulates per image", lambda r: r["acs_per_image"], plain),
        ("multiply-accumulates per image", lambda r: r["macs_per_image"], plain),
        ("membrane updates per image", lambda r: r["membrane_updates_per_image"], plain),
        ("energy per image, pJ", lambda r: _energy_of(r, energy)[0], lambda v: plots.joules(v * 1e-12)),
        ("energy per image of the ANN, pJ", lambda r: _energy_of(r, energy)[1], lambda v: plots.joules(v * 1e-12)),
        ("weights", lambda r: r["neurobench"]["parameter_count"], plain)]
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
    rates = [{layer["name"]: layer["rate_spikes_per_step"] for layer in record["layers"] if layer["kind"] != "readout"}
             for record in records.values()]
    names = list(dict.fromkeys(name for rate in rates for name in rate))
    return [(name, [f"{rate[name]:.4f}" if name in rate else "–" for rate in rates]) for name in names]


# ---- files -------------------------------------------------------------------------------------------------------


def _written(sections: Sequence[tuple[str, str, Sequence[Picture]]], out: str) -> list[dict[str, Any]]:
    """Writes the pictures and gives what the template needs."""
    found = []
    for title, text, pictures in sections:
        shown = []
        for picture in pictures:
            content = plots.png(picture.figure)
            _write(os.path.join(out, f"{picture.name}.png"), content)
            width, height = picture.figure.get_size_inches()
            shown.append({"name": picture.name, "caption": picture.caption, "width": round(96 * width),
                          "height": round(96 * height), "data": base64.b64encode(content).decode()})
        found.append({"title": title, "text": text, "id": title.lower().replace(" ", "-"), "pictures": shown})
    return found


def _render(template: str, **values: Any) -> str:
    try:
        import jinja2
    except ImportError:
        raise UserError("Reports need the package Jinja2; install it with `pip install jinja2`.") from None
    environment = jinja2.Environment(loader=jinja2.PackageLoader("tfspike", "templates"), autoescape=True,
                                     trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters["setting"] = lambda value: (
        "none" if value in (None, ()) else ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value))
    return environment.get_template(template).render(**values)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def _write(path: str, content: str | bytes) -> str:
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if isinstance(content, str):
            checkpoints.write_file(path, content)
        else:
            with open(path, "wb") as file:
                file.write(content)
    except OSError as error:
        raise UserError(f"Cannot write the report to {path}: {error.strerror or error}.") from None
    return path
