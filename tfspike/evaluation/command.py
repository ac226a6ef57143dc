"""What eval.py does with a run, or with weights of the library: test accuracy, predictions, reports."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tfspike import distribution
from tfspike.errors import UserError, explained_where_memory_is_full
from tfspike.evaluation import prediction
from tfspike.evaluation.evaluator import Evaluator
from tfspike.runs import loading, standing, workdir

if TYPE_CHECKING:
    from tfspike.evaluation.options import EvalOptions


def run(options: EvalOptions, load_weights: Callable[..., Any]) -> int:
    """What eval.py does; the last line of stdout is JSON.

    Args:
      options: of eval.py.
      load_weights: `tfspike.pretrained.load`.

    Returns:
      0, the exit code.

    Raises:
      UserError: the run, its data or the weights cannot be used, or memory is full.
    """
    fewer = "fewer files at a time" if options.predict else "a smaller --batch_size"
    with explained_where_memory_is_full(f"Give {fewer} or, of a spiking network, fewer --timesteps."):
        return _run(options, load_weights)


def _run(options: EvalOptions, load_weights: Callable[..., Any]) -> int:
    say: workdir.Say = (lambda line: None) if options.json else print
    runs = [options.workdir, *options.compare]
    if options.report or options.compare:
        from tfspike.evaluation import report  # draws pictures: only where they are asked for

        report.require_spikes(report.require_several(runs) if options.compare else runs)
    loaded = load_weights(options.weights, options.timesteps) if options.weights else _load(options, say)
    if options.predict:
        for answer in predict(options, say, loaded):
            print(json_line(answer._asdict()))
        return 0
    record = evaluate_run(options, say, loaded)
    say(describe(record))
    if options.report or options.compare:
        from tfspike.analysis.energy import EnergyModel

        energy = EnergyModel(options.energy_mac, options.energy_ac, options.energy_update, options.energy_memory)
        folder = os.path.join(options.workdir, report.FOLDER)
        if options.report:
            results = report.collect(options.workdir, options, energy, say, loaded=loaded)
            say(f"Report: {report.write_report(results, folder)}")
            record["energy"] = results.result.energy_record(energy)
        if options.compare:
            say(f"Comparison: {report.compare(runs, folder, options, energy, say)}")
    print(json_line(record))
    return 0


def evaluate_run(options: EvalOptions, say: workdir.Say = print, loaded: Any = None) -> dict[str, Any]:
    """Test accuracy of a run over several draws of its random input.

    Args:
      options: of eval.py.
      say: takes lines of progress.
      loaded: what `loading.load_run` or `tfspike.pretrained.load` returned; None loads the run of the options.

    Returns:
      A record fit for JSON: `test_accuracy` (mean), `test_accuracy_std` (over draws, with n - 1; None for one draw),
      `test_accuracies`, `test_loss`, `per_class` (mean over draws), `rates` (spikes per step and neuron),
      `neuron_spikes_per_image` (of all LIF and pooling neurons in the window, without the input's), and what was
      evaluated: `checkpoint` is "last" too where nothing has been validated yet, `finished` whether every epoch has
      been trained, `run_step` and `run_steps` how far the run is (None of what is no run).

    Raises:
      UserError: the run or its data cannot be used.
    """
    model, config, info, checkpoint = _with_kernel(options, loaded or _load(options, say))
    every = loading.load_data(config, info, "test", options.data_dir, model.timesteps)
    test = every.some(options.images)
    if options.kernel == "auto":
        batch = test.images[:options.batch_size or config.batch_size]
        kernel, reason = model.choose_kernel(info.normalise(batch), training=False)
        say(f"--kernel=auto is {kernel}: {reason}")
    if len(test) < len(every):
        say(f"{test.share_of(every)} test records")
    evaluator = Evaluator(model, test.images, test.labels, info, options.batch_size or config.batch_size,
                          loss=config.loss, compiled=distribution.compiles(config.jit, 1, config.deterministic))
    results = []
    for draw in range(options.seeds if config.random_input else 1):
        results.append(evaluator.run(draw))
        say(f"draw {draw + 1}: test accuracy {100 * results[-1].accuracy:.2f} %, loss {results[-1].loss:.4f}")
    accuracies = [result.accuracy for result in results]
    spread = float(np.std(accuracies, ddof=1)) if len(results) > 1 else None
    classes = np.mean([result.per_class for result in results], axis=0)
    rates = {name: float(np.mean([result.rates[name] for result in results])) for name in results[0].rates}
    neurons = {call.name: math.prod(call.outputs[0].shape[2:]) for call in model.plan.spiking} if rates else {}
    stands = standing.standing(config, options.checkpoint, checkpoint)
    return {
        "workdir": options.workdir or None, "weights": options.weights, "model": config.model, "dataset": info.name,
        "neuron": config.neuron,
        "gradient": config.gradient if config.is_spiking else None,
        "checkpoint": stands.which, "step": stands.step, "finished": stands.finished,
        "run_step": None if stands.wanted is None else stands.trained, "run_steps": stands.wanted,
        "timesteps": model.timesteps,
        "records": len(test), "seeds": len(results), "test_accuracy": float(np.mean(accuracies)),
        "test_accuracy_std": spread, "test_accuracies": accuracies,
        "test_loss": float(np.mean([result.loss for result in results])),
        "per_class": {name: None if np.isnan(value) else float(value)
                      for name, value in zip(info.class_names, classes)},
        "rates": rates,
        "neuron_spikes_per_image": model.timesteps * sum(rate * neurons[name] for name, rate in rates.items()),
    }


def _load(options: EvalOptions, say: workdir.Say) -> tuple[Any, Any, Any, Any]:
    return loading.load_run(options.workdir, options.checkpoint, options.timesteps, say)


def _with_kernel(options: EvalOptions, loaded: tuple[Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
    """What was loaded, its network to be run as --kernel says."""
    model = loaded[0]
    if options.kernel is not None:
        if not model.is_spiking:
            raise UserError(f"--kernel={options.kernel} is for spiking networks, and this one is an ANN: leave it out.")
        model.configure_engine(kernel=options.kernel)
    return loaded


def describe(record: dict[str, Any]) -> str:
    """The record of `evaluate_run` as lines for a reader."""
    spread = record["test_accuracy_std"]
    if spread is not None:
        how = f"mean of {record['seeds']} draws, standard deviation {100 * spread:.2f}"
    else:
        how = "one draw" if record["seeds"] == 1 else f"{record['seeds']} draws"
    stands = standing.Standing(record["checkpoint"], record["step"], record["run_step"] or 0, record["run_steps"])
    lines = [f"{record['model']} on {record['dataset']}, {stands.describe()}, "
             + ("ReLU, no time" if record["neuron"] == "relu" else f"T = {record['timesteps']}")
             + f", {record['records']} test records",
             f"test accuracy {100 * record['test_accuracy']:.2f} % ({how})", "", "accuracy per class"]
    lines += [f"  {name:<20} {'no records' if value is None else f'{100 * value:6.2f} %'}"
              for name, value in record["per_class"].items()]
    lines += ["", "firing rate, spikes per step"] if record["rates"] else []
    lines += [f"  {name:<20} {rate:.4f}" for name, rate in record["rates"].items()]
    return "\n".join(lines)


def json_line(record: dict[str, Any]) -> str:
    """The record on one line."""
    return json.dumps(record, allow_nan=False)


def predict(options: EvalOptions, say: workdir.Say = print, loaded: Any = None) -> list[prediction.Prediction]:
    """Classifies image files with a run's network, or with `loaded`, as in `evaluate_run`.

    Raises:
      UserError: as for `prediction.predict_files` and `loading.load_run`.
    """
    model, config, info, _ = _with_kernel(options, loaded or _load(options, say))
    return prediction.predict_files(model, info, options.predict, options.seeds if config.random_input else 1,
                                    options.resize, config.loss)
