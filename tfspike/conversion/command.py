"""What `python -m tfspike.conversion` does: converts, writes a folder that `eval.py` takes, and compares with the ANN.

    OUT/config.json      settings of the spiking network; "converted" says how it was made
    OUT/model.keras      the network
    OUT/checkpoints/     its weights
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
from typing import Any

import numpy as np

from tfspike import analysis, files
from tfspike import config as config_lib
from tfspike.config.config import Config
from tfspike.conversion.balance import Conversion, convert
from tfspike.conversion.methods import METHODS, Method, chosen
from tfspike.conversion.options import ConversionOptions
from tfspike.datasets import sampling, streams
from tfspike.datasets.arrays import Normalised
from tfspike.datasets.catalogue import facts
from tfspike.errors import UserError, explained_where_memory_is_full
from tfspike.models import variables
from tfspike.output import counted
from tfspike.runs import checkpoints, provenance, workdir
from tfspike.runs import loading as run_loading


def run(options: ConversionOptions, say: workdir.Say = print) -> dict[str, Any]:
    """Converts the ANN of a run, saves the result and measures both on test images.

    Args:
      options: of the command.
      say: takes lines of progress.

    Returns:
      A record fit for JSON: `ann_accuracy`, and by step `accuracy` and `spikes_per_image` (those of all layers and the
      input), from one pass through the window; `neuron_spikes_per_image` (without the input) of the whole window.

    Raises:
      UserError: the run, its data or the folder to write to cannot be used, the network cannot be converted, or memory
        is full.
    """
    with explained_where_memory_is_full("Give fewer --timesteps or a smaller --calibration."):
        return _run(options, say)


def _run(options: ConversionOptions, say: workdir.Say) -> dict[str, Any]:
    ann, config, info, checkpoint = run_loading.load_run(options.run, options.checkpoint, say=say)
    if config.neuron != "relu":
        raise UserError(f"--run takes a run of train.py --neuron=relu, and {options.run} holds a spiking network "
                        "already; test it with eval.py.")
    method = chosen(options.method, options.encoder, options.start, options.bipolar)
    percentile = method.percentile if options.percentile is None else options.percentile
    out = options.out or os.path.join(options.run, _folder(options, percentile))
    _require_free(out)
    say(f"Converting by {options.method} ({method.source}).")
    images = None if percentile is None else _calibration(config, info, options)
    converted = convert(ann, images, options.method, options.percentile, options.timesteps, options.encoder,
                        seed=options.seed, start=options.start, bipolar=options.bipolar)
    balanced = {} if images is None else {"percentile": percentile, "calibration": len(images)}
    about = {"run": os.path.abspath(options.run), "checkpoint": options.checkpoint, "method": options.method,
             **balanced, "start": method.start, "bipolar": method.bipolar, "encoder": method.encoder,
             "seed": options.seed, "scales": converted.scales}
    _write(out, converted, config, options, method, about, checkpoint.step)
    say(f"Written to {out}. To look at it: {provenance.to_copy('eval', workdir=out)}")
    record = {"out": out, "model": config.model, "dataset": info.name, "timesteps": options.timesteps, **about,
              **_measured(ann, converted, config, info, options)}
    if options.record is not None:
        _add_to(options.record, record, config)
    return record


def _calibration(config: Config, info: Any, options: ConversionOptions) -> np.ndarray:
    """Training images of the run, none of them held out for validation: the first ones, or evenly spread ones where
    they may lie in the order of their classes."""
    train = run_loading.load_data(config, info, "train", options.data_dir)
    indices, _ = streams.split_indices(len(train), config.val_fraction, config.seed, train.name)
    chosen = indices[sampling.some(len(indices), options.calibration, spread=facts(train.name).by_class)]
    return np.asarray(info.normalise(train.images[chosen]))


def _measured(ann: Any, converted: Conversion, config: Config, info: Any, options: ConversionOptions) -> dict[str, Any]:
    """What both networks do on test images."""
    test = run_loading.load_data(config, info, "test", options.data_dir).some(options.images)
    images = Normalised(test.images, info)
    answers = np.concatenate([np.asarray(ann(images[i:i + 100])).argmax(-1) for i in range(0, len(test), 100)])
    in_chunks = converted.model.engine is not None  # else every layer's whole window exists at once
    found = analysis.analyse(converted.model, images, test.labels, 100 if in_chunks else 20, options.seed)
    steps = sorted({step for step in (*options.steps, options.timesteps) if step <= options.timesteps})
    return {
        "records": len(test), "ann_accuracy": float(np.mean(answers == test.labels)),
        "accuracy": {str(step): float(found.accuracy_by_step[step - 1]) for step in steps},
        "spikes_per_image": {str(step): float(found.spikes_by_step[step - 1]) for step in steps},
        "neuron_spikes_per_image": float(sum(layer.spikes for layer in found.layers if layer.kind != "input")),
        "rates": {layer.name: layer.rate for layer in found.layers if layer.kind in ("lif", "pooling")}}


def _folder(options: ConversionOptions, percentile: float | None) -> str:
    """A name that follows from all that the network does, so that none is written over another one."""
    encoder = options.encoder if options.encoder != METHODS[options.method].encoder else None
    counts = percentile is not None and options.calibration != ConversionOptions.calibration
    parts = [options.method, "" if percentile is None else f"{percentile:.12g}",
             "" if options.start is None else f"start{options.start:.12g}", "bipolar" if options.bipolar else "",
             encoder or "", f"calibration{options.calibration}" if counts else "", f"T{options.timesteps}",
             f"seed{options.seed}" if options.seed else "", options.checkpoint if options.checkpoint != "best" else ""]
    return "-".join(part for part in parts if part)


def _require_free(out: str) -> None:
    if os.path.exists(os.path.join(out, "config.json")) and "converted" not in workdir.run_metadata(out):
        raise UserError(f"--out={out} holds a run; give another folder.")


def _write(out: str, converted: Conversion, config: Config, options: ConversionOptions, method: Method,
           about: dict[str, Any], step: int) -> None:
    """A folder that eval.py, reports and exports take for a run."""
    settings = dataclasses.replace(config, neuron="lif", levels=0, norm="none", timesteps=options.timesteps, leak=1.0,
                                   threshold=1.0, encoder=method.encoder, reset=method.reset, start=method.start,
                                   pooling=method.pooling, export=(), workdir=out)
    record = {"versions": provenance.versions(), "commit": provenance.commit(), "commands": [provenance.command()],
              "data": workdir.run_metadata(options.run).get("data"), "init_from": None, "converted": about}
    try:
        os.makedirs(out, exist_ok=True)
        converted.model.save(os.path.join(out, workdir.CONVERTED))
        parts: dict[str, Any] = {"model": variables.collect(converted.model.variables), "optimizer": {}}
        checkpoints.save(os.path.join(out, workdir.CHECKPOINTS), step, parts,
                         {"config": dataclasses.asdict(settings)}, keep=1, best=True)
        files.write_file(os.path.join(out, "config.json"), config_lib.to_json(settings, record))
    except OSError as error:
        raise UserError(f"Cannot write into {out} ({error.strerror or error}); give a folder that can be written as "
                        "--out.") from None


def _add_to(path: str, record: dict[str, Any], config: Config) -> None:
    """A line of what was measured, by which command and source, on which machine; `ann` is the `config_hash` of the
    ANN's row in results.csv."""
    line = {"date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "ann": config_lib.digest(config),
            "command": provenance.without_paths(provenance.command()), "commit": provenance.commit(),
            "machine": provenance.machine(),
            **{name: value for name, value in record.items() if name not in ("out", "run")}}
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json_line(line) + "\n")
    except OSError as error:
        raise UserError(f"Cannot write --record={path} ({error.strerror or error}); give a file that can be written. "
                        f"The converted network is in {record['out']}.") from None


def describe(record: dict[str, Any]) -> str:
    """The record as lines for a reader."""
    lines = [f"{record['model']} on {record['dataset']}, {record['records']} test images, one draw of the input",
             f"ANN                  {100 * record['ann_accuracy']:6.2f} %", "",
             "  steps    accuracy    spikes per image (input included)"]
    lines += [f"  {step:>5}    {100 * accuracy:6.2f} %    {record['spikes_per_image'][step]:>10,.0f}"
              for step, accuracy in record["accuracy"].items()]
    lines += ["", f"{record['neuron_spikes_per_image']:,.0f} of them from neurons, in "
                  f"{counted(record['timesteps'], 'step')}", "", "firing rate, spikes per step"]
    return "\n".join([*lines, *(f"  {name:<20} {rate:.4f}" for name, rate in record["rates"].items())])


def json_line(record: dict[str, Any]) -> str:
    """The record on one line."""
    return json.dumps(record, allow_nan=False)
