"""One row per finished run: what was trained, by which source, on which machine, for how long, and what came out.

    python eval.py --workdir=RUN --json | python -m tfspike.results --workdir=RUN

appends a row to results/results.csv and puts the settings and learning curve of the run, in at most some 100 kB, into
results/logs/. `COLUMNS` is the schema; results/README.md has it as a table. Paths of the machine that trained are left
out: they mean nothing on another one. The same run is not recorded twice.
"""

from __future__ import annotations

import csv
import dataclasses
import datetime
import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tfspike import config as config_lib
from tfspike import files
from tfspike.config import commands, flags
from tfspike.config.config import FIELDS, Config
from tfspike.config.settings import normalise_all, setting, shown
from tfspike.errors import UserError
from tfspike.output import counted
from tfspike.runs import provenance, standing, workdir
from tfspike.runs.provenance import without_paths

COLUMNS: dict[str, str] = {
    "date": "day on which training ended, UTC, as 2026-01-31",
    "config_hash": "eight digits that follow from the settings, those that the default workdir ends in; `epochs` and "
                   "paths are not in it",
    "model": "network", "dataset": "data set", "gradient": "`event` or `rate`; `relu` for an ANN",
    "timesteps": "length of the window in training, steps",
    "epochs": "passes over the training data",
    "seed": "of weights, order, noise and dropout",
    "command": "that began the run, without paths",
    "commit": "of the source that trained; with `+` where files had been changed since",
    "tfspike": "version", "python": "version", "tensorflow": "version", "keras": "version", "numpy": "version",
    "machine": "processor, threads and GPUs; several with ` + ` between them if the run was continued elsewhere",
    "hours": "of training and validation, without start, export and time in which nothing ran",
    "val_accuracy": "best of all epochs over the network's own window on the records held out, %; empty without such "
                    "records",
    "val_epoch": "epoch of it; empty without such records",
    "checkpoint": "the weights that were tested: `best` by validation, or `last`",
    "test_timesteps": "length of the window in the test, steps",
    "test_records": "number of test records",
    "draws": "draws of the random input that the test is averaged over",
    "test_accuracy": "mean over these draws, %",
    "test_sd": "standard deviation over these draws (n - 1), percentage points; empty for one draw",
    "neuron_spikes_per_image": "spikes of all LIF and pooling neurons in a window, mean over test records; the input's "
                               "are not counted",
    "log": "file in logs/ with settings, versions and learning curve",
}
"""`{column: what it holds}`, in the order of the file."""

KEY = ("config_hash", "epochs", "command", "commit", "machine", "checkpoint", "test_timesteps")
"""Columns that tell runs apart: rows that agree in all of them are of the same run. The command says what a run began
with (--init_from), which is no setting."""

METRICS = "metrics.jsonl"  # written by `runs.run_log`, which loads TensorFlow, as nothing here does
PROCESSOR_SECONDS = "time/processor_seconds"  # in every line of it: user and system seconds of the run until then
LARGEST_CURVE = 200  # lines of training progress that are kept of a run, evenly spaced; every epoch is kept
_CURVE = ("step", "event", "time", "train/loss", "train/accuracy", "learning_rate", "time/seconds_per_step")


@dataclasses.dataclass(frozen=True)
class ResultOptions:
    """What `python -m tfspike.results` records.

    Raises:
      UserError: a value is illegal.
    """

    workdir: str = setting("", "Folder of the finished run.", group="What to record", legal="the folder of a run",
                           path=True)
    evaluation: str = setting("-", "File whose last line is the JSON of eval.py; - reads it from a pipe.",
                              group="What to record", legal="a file, or -", path=True)
    machine: str | None = setting(None, "Processor and threads, for runs that did not note their machine.",
                                  group="What to record", legal="text")
    results: str = setting("results", "Folder of results.csv and logs/.", group="Output", legal="a folder", path=True)

    def __post_init__(self) -> None:
        if not self.workdir:
            raise UserError("--workdir is missing; give the folder of a finished run, as training named it.")
        normalise_all(self)


def record(options: ResultOptions) -> tuple[dict[str, str], bool]:
    """Appends the row of a run to results.csv and writes its log.

    Args:
      options: where the run, its evaluation and the results are.

    Returns:
      The row, `{column: text}`, and whether it is new: a run that is there already, with the same numbers, changes
      nothing.

    Raises:
      UserError: the run is not finished or damaged, the evaluation is no or another run's, the file of results has
        another schema or other numbers for the same run, or cannot be written.
    """
    config = config_lib.read_run(options.workdir)
    finished = read_finished(options.workdir, config)
    about = workdir.run_metadata(options.workdir)
    events = read_events(os.path.join(options.workdir, METRICS))
    evaluation = read_evaluation(options.evaluation)
    row = make_row(config, about, events, evaluation, finished, options.machine)
    try:
        os.makedirs(os.path.join(options.results, "logs"), exist_ok=True)
        with files.locked(options.results):  # else the row of one of two runs that end together would be lost
            return row, _add(row, log_text(config, about, events), options.results)
    except OSError as error:
        raise UserError(f"Cannot write into {options.results}: {error.strerror or error}; give a --results folder that "
                        "can be written.") from None


def _add(row: dict[str, str], log: str, folder: str) -> bool:
    """Writes a row and its log; whether it was not there already."""
    table = os.path.join(folder, "results.csv")
    rows = read_rows(table)
    for number, old in enumerate(rows):
        if all(old[name] == row[name] for name in KEY):
            changed = [name for name in COLUMNS if old[name] != row[name]]
            if not changed:
                return False
            raise UserError(f"{table} has this run in row {number + 1} already, with other values of "
                            f"{', '.join(changed)}; delete that row to record it anew.")
    files.write_file(os.path.join(folder, "logs", row["log"]), log)
    files.write_file(table, _csv_text([*rows, row]))  # last: a row in it has its log
    return True


# ---- what a run left -----------------------------------------------------------------------------------------------


def read_finished(folder: str, config: Config) -> dict[str, Any]:
    """Returns finished.json of a run that has trained every epoch.

    Raises:
      UserError: it has not; with the command that continues it.
    """
    path = os.path.join(folder, workdir.FINISHED)
    done = workdir.finished(folder, config)
    if type(done.get("epochs")) is int and type(done.get("step")) is int:
        return done
    if "converted" in workdir.run_metadata(folder):
        raise UserError(f"{folder} holds a converted network, which was not trained; record the run of its ANN.")
    try:
        last = standing.open_checkpoint(folder, lambda line: None, "last")
        where = standing.standing(config, "last", last).unfinished
    except UserError:
        where = ""
    raise UserError(f"The run in {folder} is {where or 'not finished'}: {path} does not say that it has trained "
                    f"{counted(config.epochs, 'epoch')}. Continue it: {provenance.continuing_command(config)}")


def read_events(path: str) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl, each `{"step", "event", "time", name: number or None}`.

    Raises:
      UserError: the file cannot be read or is not what a run writes.
    """
    try:
        with open(path, encoding="utf-8") as file:
            events = [json.loads(line) for line in file]
        sound = bool(events) and all(
            type(event["step"]) is int and isinstance(event["event"], str) and 0 <= event["time"] < 1e11
            and (event["event"] != "epoch" or type(event["epoch"]) is int)
            and all(isinstance(event[name], (int, float, type(None))) for name in event if "/" in name)
            for event in events)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise UserError(f"{path} is missing or damaged: a run writes a JSON object with step, event and time on every "
                        "line of it. Restore it, or train again.")
    return events


def read_evaluation(path: str) -> dict[str, Any]:
    """Returns the JSON that eval.py printed as its last line.

    Args:
      path: the file that holds the output of eval.py; "-" for the standard input.

    Raises:
      UserError: nothing was piped in, the file cannot be read, or its last line is no such JSON.
    """
    advice = (f"make it with {commands.usage('eval', '--workdir=RUN --json > FILE')}, or put that command in front: "
              f"{_usage()}")
    if path == "-" and sys.stdin.isatty():
        raise UserError(f"--evaluation=- reads the output of eval.py from a pipe, and there is none; {advice}.")
    try:
        if path == "-":
            text = sys.stdin.read(10_000_000)
        else:
            with open(path, encoding="utf-8") as file:
                text = file.read(10_000_000)
        found = json.loads(text.strip().splitlines()[-1])
        numbers = [found[name] for name in ("test_accuracy", "neuron_spikes_per_image", *(
            () if found["test_accuracy_std"] is None else ("test_accuracy_std",)))]
        counts = [found[name] for name in ("step", "timesteps", "records", "seeds")]
        sound = (all(isinstance(number, (int, float)) and 0 <= number < 1e15 for number in numbers)
                 and all(type(count) is int and count >= 0 for count in counts) and found["test_accuracy"] <= 1
                 and found["checkpoint"] in ("best", "last") and {"model", "dataset"} <= found.keys())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        sound = False
    if not sound:
        raise UserError(f"--evaluation={path} does not end in the JSON line of this version's eval.py; {advice}.")
    return dict(found)


# ---- the row -------------------------------------------------------------------------------------------------------


def make_row(config: Config, about: Mapping[str, Any], events: Sequence[Mapping[str, Any]],
             evaluation: Mapping[str, Any], finished: Mapping[str, Any], machine: str | None = None) -> dict[str, str]:
    """Returns the row of a run, `{column: text}`.

    Args:
      config: its settings.
      about: what config.json keeps beside them.
      events: of `read_events`.
      evaluation: of `read_evaluation`.
      finished: finished.json, with the last `step`.
      machine: for runs whose config.json does not name theirs.

    Raises:
      UserError: the evaluation is of another network, data set or step than the run's, or the machine is not known.
    """
    for name, wanted in (("model", config.model), ("dataset", config.dataset)):
        if evaluation[name] != wanted:
            raise UserError(f"The evaluation is of {name} {shown(evaluation[name])} and the run in {config.workdir} of "
                            f"{shown(wanted)}; give the evaluation of this run.")
    best = best_epoch(events, config)
    tested = finished["step"] if best is None or evaluation["checkpoint"] == "last" else best["step"]
    if evaluation["step"] != tested:
        raise UserError(f"The evaluation is of step {evaluation['step']}, and the {evaluation['checkpoint']} weights "
                        f"of the run in {config.workdir} are of step {tested}; evaluate it again.")
    versions, commands = about.get("versions") or {}, about.get("commands") or [""]
    digest = config_lib.digest(config)
    row = {
        "date": datetime.datetime.fromtimestamp(events[-1]["time"], datetime.timezone.utc).date().isoformat(),
        "config_hash": digest, "model": config.model, "dataset": config.dataset,
        "gradient": config.gradient if config.is_spiking else config.neuron,
        "timesteps": config.timesteps if config.is_spiking else 1, "epochs": config.epochs,
        "seed": config.seed,
        "command": without_paths(str(commands[0])), "commit": about.get("commit") or "",
        **{name: versions.get(name, "") for name in ("tfspike", "python", "keras", "numpy")},
        "tensorflow": versions.get("tensorflow") or versions.get("tensorflow-cpu") or "",
        "machine": _machine(about, machine), "hours": f"{hours(events):.4g}",
        "val_accuracy": "" if best is None else f"{100 * best['epoch/val_accuracy']:.3f}",
        "val_epoch": "" if best is None else best["epoch"],
        "checkpoint": evaluation["checkpoint"], "test_timesteps": evaluation["timesteps"],
        "test_records": evaluation["records"], "draws": evaluation["seeds"],
        "test_accuracy": f"{100 * evaluation['test_accuracy']:.3f}",
        "test_sd": "" if evaluation["test_accuracy_std"] is None else f"{100 * evaluation['test_accuracy_std']:.3f}",
        "neuron_spikes_per_image": f"{evaluation['neuron_spikes_per_image']:.0f}",
        "log": _log_name(config, digest, log_text(config, about, events)),
    }
    return {name: " ".join(str(row[name]).split()) for name in COLUMNS}


def best_epoch(events: Sequence[Mapping[str, Any]], config: Config) -> Mapping[str, Any] | None:
    """The epoch with the best weights by validation, the first of several; None without validation. As in training,
    an epoch over another window begins anew: what was best before is another network."""
    best: Mapping[str, Any] | None = None
    for event in events:
        accuracy = event.get("epoch/val_accuracy") if event["event"] == "epoch" else None
        if accuracy is not None and (best is None or accuracy > best["epoch/val_accuracy"] or
                                     config.timesteps_at(event["epoch"] - 1) != config.timesteps_at(best["epoch"] - 1)):
            best = event
    return best


def hours(events: Sequence[Mapping[str, Any]]) -> float:
    """Hours in which the run trained and validated; pauses between the parts of a run do not count.

    Steps count by the seconds they took, an epoch's end by the time since the last step: each within one process.
    """
    seconds, step, before = 0.0, 0, None
    for event in events:
        if event["event"] == "train":
            seconds += (event.get("time/seconds_per_step") or 0.0) * (event["step"] - step)
            step = event["step"]
        elif before is not None:
            seconds += max(0.0, event["time"] - before)
        before = event["time"]
    return seconds / 3600


def _machine(about: Mapping[str, Any], given: str | None) -> str:
    noted = about.get("machines")
    if isinstance(noted, list) and noted:
        if given is not None:
            raise UserError(f"--machine={given} is for runs that did not note their machine; this one ran on "
                            f"{' + '.join(map(str, noted))}: leave it out.")
        return " + ".join(map(str, noted))
    if not given:
        raise UserError("The run's config.json does not say which machine trained it; give --machine=\"PROCESSOR, N "
                        "threads\".")
    return given


def _log_name(config: Config, digest: str, text: str) -> str:
    """The log's name follows from what is in it, so that two runs never share one."""
    content = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{config.model}-{re.sub('[^a-z0-9_.]', '-', config.dataset)[:80]}-{digest}-{content}.jsonl"


# ---- files ---------------------------------------------------------------------------------------------------------


def read_rows(path: str) -> list[dict[str, str]]:
    """Returns the rows of results.csv; [] where there is none yet.

    Raises:
      UserError: the file cannot be read, or has other columns than `COLUMNS`.
    """
    if not os.path.exists(path):
        return []
    try:
        with open(path, encoding="utf-8", newline="") as file:
            head, *rows = list(csv.reader(file, strict=True)) or [[]]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}); restore it, or give another --results folder.") from None
    wrong = [number for number, row in enumerate(rows, 1) if len(row) != len(COLUMNS)]
    if head != list(COLUMNS) or wrong:
        what = f"row {wrong[0]} has {len(rows[wrong[0] - 1])} values" if head == list(COLUMNS) else \
            f"its columns are {shown(','.join(head))}"
        raise UserError(f"{path} should have the {len(COLUMNS)} columns of results/README.md, and {what}; restore it, "
                        "or give another --results folder.")
    return [dict(zip(head, row)) for row in rows]


def _csv_text(rows: Sequence[Mapping[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def log_text(config: Config, about: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> str:
    """Settings and versions on the first line, then every epoch, and at most `LARGEST_CURVE` lines of progress."""
    paths = {name for name, field in FIELDS.items() if field.metadata["path"]}
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in paths}
    head = {"config": settings, "versions": about.get("versions"), "commit": about.get("commit"),
            "machines": about.get("machines"), "commands": [without_paths(str(c)) for c in about.get("commands") or []],
            "init_from": os.path.basename(about["init_from"]) if about.get("init_from") else None,
            "split": (about.get("data") or {}).get("split")}
    progress = [i for i, event in enumerate(events) if event["event"] == "train"]
    stride = -(-len(progress) // LARGEST_CURVE) or 1
    kept = set(progress[stride - 1::stride])
    lines = [head, *({name: event[name] for name in _CURVE if name in event} if i in kept else event
                     for i, event in enumerate(events) if i in kept or event["event"] == "epoch")]
    return "".join(json.dumps(line) + "\n" for line in lines)


def _usage() -> str:
    return f"{commands.usage('eval', '--workdir=RUN --json')} | {commands.usage('results', '--workdir=RUN')}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; exit code 0, or 2 with one sentence on stderr for what the user can put right."""
    with flags.user_errors():
        options = flags.parse_as(ResultOptions, argv, _usage())
        row, new = record(options)
        table = os.path.join(options.results, "results.csv")
        if row["commit"].endswith("+"):
            print("Warning: the source had been changed since its commit, so nobody can train this run again.",
                  file=sys.stderr)
        print(f"{table}: {'one row more' if new else 'has this run already'}, {row['model']} on {row['dataset']}, test "
              f"accuracy {row['test_accuracy']} %")
        return 0
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
