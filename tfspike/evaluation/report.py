"""A run as one HTML file to look at, and two or more runs side by side. No network is needed to open either.

    eval.py --workdir=RUN --report                 writes RUN/report/index.html, its PNGs and analysis.json
    eval.py --workdir=RUN --compare=OTHER          writes RUN/report/compare.html, its PNGs and compare.json
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tfspike import analysis
from tfspike import config as config_lib
from tfspike.analysis import simulation, speed
from tfspike.analysis.energy import EnergyModel, Operations
from tfspike.config.config import Config
from tfspike.datasets.arrays import Normalised, taken
from tfspike.errors import UserError
from tfspike.evaluation import comparison, pages, plots, speed_section
from tfspike.evaluation.options import EvalOptions
from tfspike.evaluation.pages import Picture
from tfspike.output import counted
from tfspike.runs import loading as run_loading
from tfspike.runs import provenance, standing, workdir
from tfspike.runs.checkpoints import Checkpoint

FOLDER, PAGE, RECORD = "report", "index.html", "analysis.json"
_MISTAKES = 12
_PART, _ALL, _CHECKPOINT = "part of the test set", "all", "checkpoint"
_SRAM_PJ = 5.0  # one access to 32 bits of on-chip memory, 45 nm


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
      recordings: (index of the image, its recording) of the sample images.
      filters: kernel of the first convolution, `[height, width, channels, filters]`; None without one.
      energy: constants.
      speed: measured on `machine`; empty where it was not.
      machine: in words.
      source: what it is of, see `_source`.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    settings: Mapping[str, Any]
    commands: Sequence[str]
    epochs: Sequence[Mapping[str, Any]]
    result: analysis.Analysis
    images: np.ndarray
    class_names: Sequence[str]
    recordings: Sequence[tuple[int, simulation.Recording]]
    filters: np.ndarray | None
    energy: EnergyModel = dataclasses.field(default_factory=EnergyModel)
    speed: Sequence[speed.Point] = ()
    machine: str = ""
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# ---- one run -----------------------------------------------------------------------------------------------------


def write(run: str, options: EvalOptions | None = None, energy: EnergyModel | None = None,
          say: Callable[[str], None] = print) -> str:
    """Analyses a run on its test set and writes its report.

    Args:
      run: folder of the run.
      options: of eval.py (`checkpoint`, `data_dir`, `batch_size`, `timesteps`, `images` are read); None: the defaults.
      energy: constants; None takes those of 45 nm.
      say: takes lines of progress.

    Returns:
      Path of the HTML file, `RUN/report/index.html`.

    Raises:
      UserError: the run or its data cannot be used, or the folder cannot be written.
    """
    return write_report(collect(run, options, energy, say), os.path.join(run, FOLDER))


def collect(run: str, options: EvalOptions | None = None, energy: EnergyModel | None = None,
            say: Callable[[str], None] = print, timed: bool = True, loaded: Any = None) -> RunResults:
    """What `write` puts on paper; arguments and errors as there.

    Args:
      timed: whether speed is measured, which takes some seconds and differs from time to time.
      loaded: what `loading.load_run` returned of the run; None loads it.
    """
    require_spikes([run])
    model, config, info, checkpoint = loaded or run_loading.load_run(run, _option(options, "checkpoint") or "best",
                                                                     _option(options, "timesteps"), say)
    every = run_loading.load_data(config, info, "test", _option(options, "data_dir"), model.timesteps)
    test = every.some(_option(options, "images"))
    say(f"analysing {counted(len(test), 'test image')} over {counted(model.timesteps, 'step')}")
    result = analysis.analyse(model, Normalised(test.images, info), test.labels,
                              _option(options, "batch_size") or config.batch_size)
    about = workdir.run_metadata(run)
    stands = standing.standing(config, _option(options, "checkpoint") or "best", checkpoint)
    versions = about.get("versions") or {}
    facts = [("network", config.model), ("data", f"{info.name}, {len(test):,} test images"),
             (_PART, _ALL if len(test) == len(every) else test.share_of(every)),
             ("window", counted(model.timesteps, "step")), ("input coding", config.encoder),
             ("gradient", config.gradient), (_CHECKPOINT, _checkpoint(stands)),
             ("weights", f"{result.parameters:,}"), ("commit", str(about.get("commit") or "not known")[:12]),
             ("versions", ", ".join(f"{name} {version}" for name, version in versions.items()))]
    recordings = [(i, simulation.record(model, info.normalise(test.images[i:i + 1])[0])) for i in _samples(result)]
    title = f"{config.model} on {info.name}" + f" ({stands.unfinished})" * (not stands.finished)
    return RunResults(title, facts, dataclasses.asdict(config), about.get("commands") or [],
                      read_epochs(run), result, test.images, info.class_names, recordings,
                      simulation.first_filters(model), energy or EnergyModel(),
                      speed.measure(model, info.normalise(test.images[:speed_section.BATCH])) if timed else (),
                      provenance.machine(), _source(config, options, checkpoint))


def require_spikes(runs: Sequence[str]) -> None:
    """Raises UserError unless all folders hold runs of spiking networks: before minutes are spent on the others."""
    for run in runs:
        if not config_lib.read_run(run).is_spiking:
            raise UserError(f"Reports and comparisons show spikes, and {run} holds an ANN (--neuron=relu); convert it "
                            f"first: {provenance.to_copy('convert', run=run)}")


def require_several(runs: Sequence[str]) -> list[str]:
    """The different folders among these; raises UserError unless there are at least two."""
    folders: dict[str, str] = {}
    for run in runs:
        folders.setdefault(os.path.realpath(run), os.path.normpath(run))
    if len(folders) < 2:
        raise UserError("Comparing takes the folders of at least two different runs; "
                        f"received {', '.join(runs) or 'none'}.")
    return list(folders.values())


def _checkpoint(stands: standing.Standing) -> str:
    more = f"; the run is {stands.unfinished}" if not stands.finished else ""
    return f"{stands.which}, step {stands.step}{more}"


def _option(options: EvalOptions | None, name: str) -> Any:
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
                speed_section.section(results.speed, result.images, results.machine, energy),
                ("Errors", "", _errors(results)),
                ("One image at a time", _RASTER, _rasters(results)), ("First layer", "", _first_layer(results))]
    page = pages.render("report.html.j2", results=results, result=result, tiles=_tiles(results),
                        sections=pages.written([section for section in sections if section[2]], out),
                        rows=_layer_rows(result, energy), total=_total_row(result, energy), energy=energy,
                        neurobench=_neurobench_rows(result), made=pages.now())
    record = {"title": results.title, "facts": dict(results.facts), **results.source, **result.to_dict(energy),
              "speed": {"machine": results.machine, "points": speed_section.records(results.speed, energy)}}
    pages.write_file(os.path.join(out, RECORD), json.dumps(record, indent=1, allow_nan=False) + "\n")
    return pages.write_file(os.path.join(out, PAGE), page)


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
_RASTER = ("Time runs to the right. In each band a row is a neuron and a dark mark a spike (vermilion: a negative "
           "spike of the input). Below a band is the membrane potential, before firing, of one neuron of middling "
           "activity; the dashed line is its threshold, a dot a spike.")


def _activity(results: RunResults) -> list[Picture]:
    layers = results.result.layers
    return [Picture("spikes_by_layer", plots.activity(layers, "spikes"), "Spikes per image, by layer."),
            Picture("rates_by_layer", plots.activity(layers, "rate"), "Mean firing rate, by layer.")]


def _time(results: RunResults) -> list[Picture]:
    best, result = results.result.best_exit(), results.result
    change = 100 * (best.accuracy - result.accuracy)
    text = (f"With a margin of {best.margin:.2f} images stop after {best.steps:.1f} of {result.timesteps} steps on "
            f"average, at {100 * best.accuracy:.2f} % ({change:+.2f} points) and {best.spikes:,.0f} spikes per image. "
            "The margin was chosen on these images: choose it on validation data before quoting it.")
    return [Picture("accuracy_by_step", plots.accuracy_over_time(result), text),
            Picture("accuracy_by_spikes", plots.accuracy_over_spikes(result),
                    "The same against the spikes of all layers, the input's included, spent until then.")]


def _energy_text(results: RunResults) -> str:
    energy, result = results.energy, results.result
    snn, ann = energy.picojoules(result.operations) * 1e-12, energy.picojoules(result.ann) * 1e-12
    words = "beside" if not snn else f"{100 * snn / ann:.3g} % of" if ann else "more than"
    text = (f"{plots.joules(snn)} per image, {words} the {plots.joules(ann)} of an ANN of the same shape, at "
            f"{energy.describe()}. This counts arithmetic on measured spikes and is no measurement of a device.")
    if energy.update_pj or energy.memory_pj:
        return text
    full = dataclasses.replace(energy, update_pj=energy.mac_pj, memory_pj=_SRAM_PJ)
    snn_full, ann_full = full.picojoules(result.operations) * 1e-12, full.picojoules(result.ann) * 1e-12
    return (f"{text} If a membrane update also cost a multiply-accumulate, and every 32-bit access to on-chip memory "
            f"{_SRAM_PJ:g} pJ, it would be {plots.joules(snn_full)} against {plots.joules(ann_full)}.")


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
        captions = [f"said {_cut(names[result.predictions[i, -1]])}\nis {_cut(names[result.labels[i]])}"
                    for i in chosen]
        pictures.append(Picture(
            "misclassified", plots.image_grid([results.images[i] for i in chosen], captions),
            f"{len(chosen)} of the {len(wrong)} images that are wrong, the most confident first."))
    return pictures


def _cut(word: str) -> str:
    return word if len(word) <= 12 else word[:11] + "…"


def _rasters(results: RunResults) -> list[Picture]:
    names, result, pictures = results.class_names, results.result, []
    for number, (i, recording) in enumerate(results.recordings, 1):
        truth, answer = names[result.labels[i]], names[int(np.argmax(recording.readout[-1]))]
        verdict = "right" if truth == answer else "wrong"
        pictures.append(Picture(f"raster_{number}", plots.raster(recording, results.images[i], names),
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
    random = results.settings.get("encoder") == "poisson"
    noise = f"{result.images:,} images" + ", one draw of the input noise" * random
    return [(f"{100 * result.accuracy:.2f} %", "test accuracy", noise),
            (pages.count(result.spikes_by_step[-1]), "spikes per image", "all layers and the input"),
            (plots.joules(snn), "energy per image", f"ANN of the same shape: {plots.joules(ann)}"),
            (f"{reached['steps']} of {result.timesteps}", "steps for 99 % of it",
             f"{pages.count(reached['spikes_per_image'])} spikes per image")]


def _layer_rows(result: analysis.Analysis, energy: EnergyModel) -> list[list[str]]:
    rows = []
    for layer in result.layers:
        activity = ["–"] * 3
        if pages.fires(layer.kind, layer.spikes):
            activity = [pages.count(layer.spikes), f"{layer.rate:.4f}", f"{100 * layer.silent:.1f} %"]
        rows.append(["input" if layer.kind == "input" else layer.name, "×".join(map(str, layer.shape)), *activity,
                     *_operation_cells(layer.operations, layer.ann, energy)])
    return rows


def _total_row(result: analysis.Analysis, energy: EnergyModel) -> list[str]:
    neurons = sum(layer.neurons for layer in result.layers)
    return ["all layers", f"{neurons:,}", pages.count(result.spikes_by_step[-1]), "", "",
            *_operation_cells(result.operations, result.ann, energy)]


def _operation_cells(operations: Operations, ann: Operations, energy: EnergyModel) -> list[str]:
    counts = map(pages.count, (operations.acs, operations.macs, operations.updates, ann.macs))
    return [*counts,
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


# ---- several runs ------------------------------------------------------------------------------------------------


def compare(runs: Sequence[str], out: str, options: EvalOptions | None = None, energy: EnergyModel | None = None,
            say: Callable[[str], None] = print) -> str:
    """Puts two or more runs side by side, and says the table.

    A run whose report was written for the same weights, window and images, in the same folder of data, is read from
    there; others are analysed.

    Args:
      runs: folders of runs.
      out: folder to write `compare.html`, `compare.json` and PNGs into.
      options, energy, say: as for `write`.

    Returns:
      Path of the HTML file.

    Raises:
      UserError: fewer than two runs, or one that cannot be used.
    """
    folders = require_several(runs)
    require_spikes(folders)
    records = dict(zip(_names(folders), [_record(run, options, say) for run in folders]))
    settings = comparison.differences([config_lib.read_run(run) for run in folders])
    for line in comparison.lines(records, energy, settings):
        say(line)
    return comparison.compare_report(records, out, energy, settings)


def _names(folders: Sequence[str]) -> list[str]:
    """The last parts of the paths, as many as it takes to tell them apart."""
    parts = [os.path.abspath(folder).split(os.sep) for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def _source(config: Config, options: EvalOptions | None, checkpoint: Checkpoint) -> dict[str, Any]:
    """What tells a record from one of other weights or other test data that agrees with it in all facts: a folder may
    get another converted network, and a network may be tested on other data."""
    data_dir = _option(options, "data_dir") or config.data_dir
    return {"weights_sha256": checkpoint.weights_sha256,
            "data_dir": None if data_dir is None else os.path.abspath(data_dir)}


def _record(run: str, options: EvalOptions | None, say: Callable[[str], None]) -> dict[str, Any]:
    which = _option(options, "checkpoint") or "best"
    settings = config_lib.read_run(run)
    checkpoint = standing.open_checkpoint(run, say, which)
    stands = standing.standing(settings, which, checkpoint)
    try:
        with open(os.path.join(run, FOLDER, RECORD), encoding="utf-8") as file:
            record = json.load(file)
        asked, whole = _option(options, "images"), record["facts"][_PART] == _ALL
        if (record["facts"][_CHECKPOINT] == _checkpoint(stands)
                and all(record[name] == value for name, value in _source(settings, options, checkpoint).items())
                and record["timesteps"] == (_option(options, "timesteps") or settings.timesteps)
                and (whole and record["images"] <= (asked or math.inf) or record["images"] == asked
                     and record["facts"][_PART].startswith(taken(settings.dataset, asked)))):  # as they are chosen now
            return record
    except (OSError, ValueError, KeyError, TypeError):
        pass
    results = collect(run, options, say=say, timed=False)
    return {"title": results.title, "facts": dict(results.facts), **results.result.to_dict()}
