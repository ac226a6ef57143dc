"""The results file: one true row per finished run, and one sentence for everything that is not one."""

from __future__ import annotations

import concurrent.futures
import csv
import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import runs
from tfspike import config as config_lib
from tfspike import evaluation, training
from tfspike.errors import UserError
from tfspike.evaluation.options import EvalOptions
from tfspike.runs import loading as run_loading
from tfspike.runs import provenance, results, workdir
from tfspike.runs.results import COLUMNS, KEY, ResultOptions
from tfspike.training.progress import Progress

ROOT = Path(__file__).resolve().parents[1]
QUICKLY = hypothesis_settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in `run`, and in `evaluation.txt` what eval.py printed of it."""
    folder = tmp_path_factory.mktemp("results")
    assert training.run(runs.tiny(folder / "run"), say=lambda line: None) == 0
    record = evaluation.evaluate_run(EvalOptions(workdir=str(folder / "run"), seeds=2, batch_size=100), lambda line: None)
    (folder / "evaluation.txt").write_text(f"{evaluation.describe(record)}\n{evaluation.json_line(record)}\n")
    return folder


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    shutil.copytree(trained / "run", tmp_path / "run", symlinks=True)
    shutil.copy(trained / "evaluation.txt", tmp_path)
    return tmp_path


def options(folder: Path, **more: Any) -> ResultOptions:
    return ResultOptions(**{"workdir": str(folder / "run"), "evaluation": str(folder / "evaluation.txt"),
                            "results": str(folder / "results"), **more})


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "results" / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def refused(folder: Path, **more: Any) -> str:
    before = (folder / "results" / "results.csv").read_bytes() if (folder / "results" / "results.csv").exists() else None
    with pytest.raises(UserError) as caught:
        results.record(options(folder, **more))
    assert "\n" not in str(caught.value)
    assert before is None or (folder / "results" / "results.csv").read_bytes() == before
    return str(caught.value)


def change(path: Path, **values: Any) -> None:
    """Changes the JSON on the last line of a file."""
    *lines, last = path.read_text().strip().splitlines() if path.name != "config.json" else [path.read_text()]
    path.write_text("\n".join([*lines, json.dumps({**json.loads(last), **values})]) + "\n")


# ---- a row ---------------------------------------------------------------------------------------------------------


def test_a_run_and_its_evaluation_become_one_row(copy: Path) -> None:
    row, new = results.record(options(copy))
    assert new and rows(copy) == [row] and list(row) == list(COLUMNS)
    config, about = config_lib.read_run(str(copy / "run")), workdir.run_metadata(str(copy / "run"))
    record = json.loads((copy / "evaluation.txt").read_text().splitlines()[-1])
    metrics = [json.loads(line) for line in (copy / "run" / "metrics.jsonl").read_text().splitlines()]
    epochs = [event for event in metrics if event["event"] == "epoch"]
    assert (row["model"], row["dataset"], row["gradient"]) == ("lenet", "mnist_subset", "rate")
    assert (row["timesteps"], row["epochs"], row["seed"], row["draws"]) == ("4", "2", "0", "2")
    assert config_lib.default_workdir(config).endswith(row["config_hash"]) and len(row["config_hash"]) == 8
    assert row["commit"] == (about["commit"] or "") and row["keras"] == about["versions"]["keras"]
    assert row["machine"] == provenance.machine() and re.search(r", \d+ threads", row["machine"])
    assert float(row["test_accuracy"]) == pytest.approx(100 * record["test_accuracy"], abs=1e-3)
    assert float(row["test_sd"]) == pytest.approx(100 * np.std(record["test_accuracies"], ddof=1), abs=1e-3)
    assert float(row["val_accuracy"]) == pytest.approx(100 * max(e["epoch/val_accuracy"] for e in epochs), abs=1e-3)
    assert 0 < float(row["hours"]) < 0.1
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", row["date"])
    assert (copy / "results" / "logs" / row["log"]).exists()


@pytest.mark.slow
def test_spikes_per_image_are_those_that_the_network_counts(trained: Path) -> None:
    record = json.loads((trained / "evaluation.txt").read_text().splitlines()[-1])
    model, _, info, _ = run_loading.load_run(str(trained / "run"))
    assert set(record["rates"]) == set(model.spiking_layers)
    from tfspike import datasets

    test = datasets.load("mnist_subset", "test")
    counted = []
    for draw in range(2):  # the same seeds as eval.py: draw d, part j
        for j, start in enumerate(range(0, 1000, 100)):
            images = info.normalise(test.images[start:start + 100])
            _, activity = model.observe(images, training=False, seed=draw * 1_000_003 + j)
            counted.append(sum(float(np.sum(count)) for count in activity.values()))
    assert record["neuron_spikes_per_image"] == pytest.approx(sum(counted) / 2000, rel=1e-5) and sum(counted) > 0


def test_the_log_is_small_has_every_epoch_and_no_path(copy: Path) -> None:
    row, _ = results.record(options(copy))
    text = (copy / "results" / "logs" / row["log"]).read_text()
    head, *events = map(json.loads, text.splitlines())
    assert head["config"]["timesteps"] == 4 and not {"workdir", "data_dir"} & set(head["config"])
    assert [event["epoch"] for event in events if event["event"] == "epoch"] == [1, 2]
    assert all("rate/conv1_1_lif" not in event for event in events if event["event"] == "train")
    assert str(copy) not in text and "/tmp" not in text and len(text) < 20_000


def test_a_long_curve_is_thinned_and_keeps_its_last_line() -> None:
    events: list[dict[str, Any]] = [
        {"step": i, "event": "train", "time": float(i), "train/loss": 1.0, "rate/a": 0.1} for i in range(1, 1001)]
    events.append({"step": 1000, "event": "epoch", "epoch": 1, "time": 1001.0, "epoch_rate/a": 0.1})
    kept = [json.loads(line) for line in results.log_text(config_lib.resolve(), {}, events).splitlines()[1:]]
    assert len(kept) == results.LARGEST_CURVE + 1
    assert kept[-2] == {"step": 1000, "event": "train", "time": 1000.0, "train/loss": 1.0} and kept[-1] == events[-1]


def test_hours_are_those_that_something_ran() -> None:
    def train(step: int, seconds_per_step: float, time: float) -> dict[str, Any]:
        return {"step": step, "event": "train", "time": time, "time/seconds_per_step": seconds_per_step}

    events = [train(50, 2.0, 100.0), train(100, 2.0, 200.0), {"step": 100, "event": "epoch", "epoch": 1, "time": 260.0},
              train(150, 4.0, 90_000.0)]  # killed after the epoch, continued a day later
    assert results.hours(events) == pytest.approx((100 + 100 + 60 + 200) / 3600)


def test_the_same_run_is_recorded_once(copy: Path) -> None:
    assert results.record(options(copy))[1]
    before = (copy / "results" / "results.csv").read_bytes()
    assert not results.record(options(copy))[1]
    assert (copy / "results" / "results.csv").read_bytes() == before
    change(copy / "evaluation.txt", test_accuracy=0.99)
    assert "in row 1 already, with other values of test_accuracy; delete that row" in refused(copy)


def test_another_run_is_another_row(copy: Path) -> None:
    first, _ = results.record(options(copy))
    content = json.loads((copy / "run" / "config.json").read_text())
    for number, (where, name, value) in enumerate([("config", "seed", 1), ("about", "commit", "0123abc"),
                                                   ("about", "machines", ["abacus, 1 threads"]),
                                                   ("about", "commands", ["python train.py --init_from=twin"])]):
        content[where][name] = value
        (copy / "run" / "config.json").write_text(json.dumps(content))
        row, new = results.record(options(copy))
        assert new and len(rows(copy)) == number + 2 and row["log"] != first["log"]
        assert rows(copy)[0] == first and [row[key] for key in KEY] != [first[key] for key in KEY]


def test_text_of_any_kind_survives_the_file(copy: Path) -> None:
    content = json.loads((copy / "run" / "config.json").read_text())
    content["about"]["machines"] = ['A "quoted", machine;\n of two lines']
    (copy / "run" / "config.json").write_text(json.dumps(content))
    row, _ = results.record(options(copy))
    assert rows(copy) == [row] == results.read_rows(str(copy / "results" / "results.csv"))
    assert row["machine"] == 'A "quoted", machine; of two lines'


@pytest.mark.parametrize(("command", "wanted"), [
    ("python train.py --preset=quick --workdir=runs/a --data_dir /data --seed=1", "python train.py --preset=quick --seed=1"),
    ("python /home/me/tfspike/train.py --config=/home/me/x.json --init_from ~/weights.keras",
     "python train.py --config=x.json --init_from weights.keras"),
    ("python train.py --config=mine/x.json", "python train.py --config=mine/x.json"),
    ("python train.py --workdir 'a b'", "python train.py"), ("python 'unfinished", ""), ("", "")])
def test_a_command_is_kept_without_paths(command: str, wanted: str) -> None:
    assert provenance.without_paths(command) == wanted


def test_a_repository_that_the_package_is_only_installed_in_has_no_say(tmp_path: Path,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / ".venv" / "tfspike"
    package.mkdir(parents=True)
    for name in (package / "__init__.py", tmp_path / "own.py"):
        name.touch()

    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True,
                       capture_output=True)

    def committed(*names: str) -> None:
        git("add", *names)
        git("commit", "-m", "more")

    git("init")
    committed("own.py")
    monkeypatch.setattr(provenance.files, "PACKAGE", str(package))
    assert provenance.commit() is None
    committed(".venv")
    assert re.fullmatch("[0-9a-f]{40}", provenance.commit() or "")


def test_runs_that_are_recorded_at_once_all_get_a_row(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(copy / "run", copy / "other" / "run", symlinks=True)
    content = json.loads((copy / "other" / "run" / "config.json").read_text())
    content["about"]["commands"] = ["python train.py --init_from=others.keras"]
    (copy / "other" / "run" / "config.json").write_text(json.dumps(content))
    read = results.read_rows

    def slowly(path: str) -> list[dict[str, str]]:
        found = read(path)
        time.sleep(0.3)
        return found

    monkeypatch.setattr(results, "read_rows", slowly)
    asked = [options(copy), options(copy, workdir=str(copy / "other" / "run"))]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        made = list(pool.map(results.record, asked))
    assert all(new for _, new in made) and len(rows(copy)) == 2


# ---- what is no result ---------------------------------------------------------------------------------------------


def damaged_json(folder: Path, **values: Any) -> None:
    change(folder / "evaluation.txt", **values)


@pytest.mark.parametrize(("damage", "part"), [
    (lambda f: shutil.rmtree(f / "run"), "with a config.json in it"),
    (lambda f: (f / "run" / "finished.json").unlink(), "is not finished"),
    (lambda f: (f / "run" / "finished.json").write_text('{"epochs": 1, "step": 3, "export": []}'), "has trained 2 epochs"),
    (lambda f: (f / "run" / "metrics.jsonl").unlink(), "missing or damaged"),
    (lambda f: (f / "run" / "metrics.jsonl").write_text('{"step": 1}\n'), "missing or damaged"),
    (lambda f: (f / "run" / "metrics.jsonl").write_text(""), "missing or damaged"),
    (lambda f: (f / "evaluation.txt").unlink(), "does not end in the JSON line"),
    (lambda f: (f / "evaluation.txt").write_text(""), "does not end in the JSON line"),
    (lambda f: (f / "evaluation.txt").write_text("test accuracy 99 %"), "does not end in the JSON line"),
    (lambda f: (f / "evaluation.txt").write_text("[1]"), "does not end in the JSON line"),
    (lambda f: damaged_json(f, test_accuracy=97.5), "does not end in the JSON line"),
    (lambda f: damaged_json(f, neuron_spikes_per_image=None), "does not end in the JSON line"),
    (lambda f: damaged_json(f, model="vgg9"), "of model 'vgg9' and the run in"),
    (lambda f: damaged_json(f, dataset="mnist"), "of dataset 'mnist'"),
    (lambda f: damaged_json(f, step=1), "The evaluation is of step 1")])
def test_what_cannot_be_recorded_is_explained(copy: Path, damage: Any, part: str) -> None:
    damage(copy)
    assert part in refused(copy)
    assert not (copy / "results").exists()


def test_a_run_that_did_not_note_its_machine_needs_to_be_told(copy: Path) -> None:
    content = json.loads((copy / "run" / "config.json").read_text())
    assert "leave it out" in refused(copy, machine="abacus, 1 threads")
    del content["about"]["machines"]
    (copy / "run" / "config.json").write_text(json.dumps(content))
    assert "--machine=" in refused(copy)
    assert results.record(options(copy, machine="abacus, 1 threads"))[0]["machine"] == "abacus, 1 threads"


def test_a_file_of_another_schema_is_left_alone(copy: Path) -> None:
    (copy / "results").mkdir()
    table = copy / "results" / "results.csv"
    for text in ("", "date,model\n", ",".join(COLUMNS) + "\n1,2\n", '"never closed\n'):
        table.write_text(text)
        assert str(table) in refused(copy)
    table.write_bytes(b"\xff\xfe")
    assert "cannot be read" in refused(copy)


@pytest.mark.parametrize(("schedule", "best"), [((), 1), (("1:2",), 4), (("4:1", "1:2"), 4)])
def test_the_best_epoch_is_the_one_whose_weights_training_keeps(tmp_path: Path, schedule: tuple[str, ...],
                                                                best: int) -> None:
    config = runs.tiny(tmp_path, timesteps=4, epochs=5, timesteps_schedule=schedule, lr_milestones=())
    events = [{"event": "epoch", "epoch": epoch, "step": 3 * epoch, "epoch/val_accuracy": accuracy}
              for epoch, accuracy in enumerate((0.9, 0.8, 0.7, 0.8, 0.8), 1)]
    progress = Progress(config, None, None, 3, True)  # type: ignore[arg-type]
    for event in events:
        progress.step = event["step"]
        progress.note_validation(event["epoch/val_accuracy"])
    found = results.best_epoch(events, config)
    assert found is not None and progress.best is not None
    assert (found["epoch"], found["step"]) == (best, progress.best["step"])


@QUICKLY
@given(st.dictionaries(st.sampled_from(["test_accuracy", "test_accuracy_std", "step", "seeds", "records", "timesteps",
                                        "checkpoint", "model", "neuron_spikes_per_image"]),
                       st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)))
def test_any_evaluation_is_read_or_refused_in_one_sentence(tmp_path: Path, values: dict[str, Any]) -> None:
    sound = {"test_accuracy": 0.5, "test_accuracy_std": None, "step": 6, "seeds": 1, "records": 10, "timesteps": 4,
             "checkpoint": "best", "model": "lenet", "dataset": "mnist", "neuron_spikes_per_image": 3.0}
    (tmp_path / "e.txt").write_text(json.dumps({**sound, **values}))
    try:
        assert 0 <= results.read_evaluation(str(tmp_path / "e.txt"))["test_accuracy"] <= 1
    except UserError as error:
        assert "\n" not in str(error)


# ---- the command and the page --------------------------------------------------------------------------------------


def test_the_command_reads_a_pipe_and_says_what_it_did(copy: Path) -> None:
    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "tfspike.results", f"--workdir={copy / 'run'}", *more], cwd=copy,
                              env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
                              input=(copy / "evaluation.txt").read_text(), timeout=120)

    done = run()
    assert done.returncode == 0 and "one row more, lenet on mnist_subset" in done.stdout, done.stderr
    assert len(rows(copy)) == 1 and "has this run already" in run().stdout
    wrong = run("--evaluation=absent.txt")
    assert wrong.returncode == 2 and wrong.stderr.startswith("Error: --evaluation=absent.txt")
    assert wrong.stderr.count("\n") == 1
    assert run("--help").stdout.startswith("Usage: python eval.py --workdir=RUN --json | python -m tfspike.results")


def test_a_terminal_in_place_of_a_pipe_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    with pytest.raises(UserError, match="there is none; make it with python eval.py"):
        results.read_evaluation("-")
    with pytest.raises(UserError, match="--workdir is missing"):
        ResultOptions()


def test_the_page_has_every_column_in_order() -> None:
    page = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \| (.+) \|$", page, re.MULTILINE) == list(COLUMNS.items())
    assert set(KEY) <= set(COLUMNS) and all(f"`{name}`" in page for name in KEY)


def test_rows_that_are_kept_here_are_whole() -> None:
    for row in results.read_rows(str(ROOT / "results" / "results.csv")):
        assert (ROOT / "results" / "logs" / row["log"]).exists() and 0 < float(row["test_accuracy"]) <= 100


def test_the_command_has_these_flags() -> None:
    assert {field.name for field in dataclasses.fields(ResultOptions)} == {"workdir", "evaluation", "machine", "results"}
