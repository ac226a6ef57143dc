"""The comparison of training methods: what fits into a time, what its page says, and that it goes on."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import budget, methods, methods_page
from tfspike.config import flags
from tfspike.errors import UserError
from tfspike.runs import checkpoints
from tfspike.runs.results import PROCESSOR_SECONDS

ROOT = Path(__file__).resolve().parents[1]
START, STEP, VALIDATION, SAVING = 20.0, 0.5, 3.0, 0.25


def probe(steps: int) -> list[dict[str, Any]]:
    """The lines of a probe whose costs are known."""
    at, lines = START, []
    for epoch in range(2):
        for half in (1, 2):
            at += STEP * steps / 2
            lines.append({"event": "train", "step": epoch * steps + half * steps // 2, PROCESSOR_SECONDS: at})
        at += VALIDATION
        lines.append({"event": "epoch", "step": (epoch + 1) * steps, PROCESSOR_SECONDS: at})
        at += SAVING
    return lines


@pytest.mark.parametrize("steps", [4, 20])
def test_a_probe_tells_the_start_the_step_and_the_validation_apart(steps: int) -> None:
    assert budget.cost_of(probe(steps)) == pytest.approx((START, STEP, VALIDATION + SAVING))
    given = flags.parse(["--method=deep", *budget.probe_flags(steps)])[0]
    assert [step for step in range(1, 2 * steps + 1) if step % given.log_every == 0 or step % steps == 0] == [
        line["step"] for line in probe(steps) if line["event"] == "train"]


@pytest.mark.parametrize(("model", "dataset", "method"), [("lenet", "mnist_subset", "deep"), ("vgg9", "cifar10", "lee")])
@pytest.mark.parametrize(("seconds", "points"), [(1000.0, 20), (350.0, 15), (60.0, 5)])
def test_a_plan_takes_the_time_that_is_given(model: str, dataset: str, method: str, seconds: float, points: int) -> None:
    given = [f"--model={model}", f"--dataset={dataset}", f"--method={method}"]
    cost = budget.cost_of(probe(20))
    made = flags.parse([*given, *budget.plan(flags.parse(given)[0], cost, seconds, points=20)])[0]
    assert made.steps_per_epoch is not None and made.epochs == points, "validation takes 15 % of the time, or is done 5 times"
    takes = cost.start + made.epochs * (cost.validation + made.steps_per_epoch * cost.step)
    assert seconds - made.epochs * cost.step < takes <= seconds


@pytest.mark.parametrize(("model", "method", "points", "expected"), [
    ("lenet", "lee", 20, ((14,), 0)), ("vgg9", "lee_event", 20, ((9, 13, 17), 0)), ("vgg9", "lee", 2, ((1, 2), 0)),
    ("lenet", "tdbn", 20, ((), 1)), ("lenet", "quantised", 5, ((), 1))])
def test_the_schedule_ends_where_the_run_does(model: str, method: str, points: int, expected: tuple[Any, int]) -> None:
    given = [f"--model={model}", "--dataset=mnist", f"--method={method}"]
    made = flags.parse([*given, *budget.plan(flags.parse(given)[0], budget.cost_of(probe(20)), 1000.0, points)])[0]
    assert (made.lr_milestones, made.warmup_epochs) == expected


def test_a_time_that_is_too_short_is_said_before_anything_is_trained() -> None:
    config = flags.parse(["--method=deep"])[0]
    with pytest.raises(UserError, match="35 s of processor time do not suffice: it takes 20.0 s to start.*5 times"):
        budget.plan(config, budget.cost_of(probe(20)), 35.0, points=10)


def run_of(method: str, seed: int, accuracy: float, **more: Any) -> dict[str, Any]:
    row = {"name": method, "test_accuracy": accuracy, "timesteps": 4, "spikes_per_image": 12345.6, "microjoules": 2.5}
    return {"method": method, "seed": seed, "ann": False, "command": f"python train.py --method={method} --export=none",
            "curve": [[30.0, 0.1], [180.0, 1.0]], "val_accuracy": 0.975, "epochs": 3.21, "processor_seconds": 180.0,
            "rows": [row], **more}


@pytest.fixture
def record() -> dict[str, Any]:
    ann = {"name": "quantised, the ANN", "test_accuracy": 0.99, "timesteps": None, "spikes_per_image": None, "microjoules": 9.0}
    converted = {"name": "quantised, converted", "test_accuracy": 0.985, "timesteps": 8, "spikes_per_image": 20000.0,
                 "microjoules": 1.5, "conversion_seconds": 18.0}
    return {"settings": {"model": "lenet", "dataset": "mnist", "hours": 0.05, "points": 20, "images": 200},
            "command": "python -m benchmarks.methods --hours=0.05", "commit": "abc", "machine": {"cpu": "a CPU", "cores": 2},
            "runs": {"deep-seed0": run_of("deep", 0, 0.96), "deep-seed1": run_of("deep", 1, 0.98),
                     "quantised-seed0": run_of("quantised", 0, 0.0, ann=True, rows=[ann, converted]),
                     "once-seed0": {"method": "once", "seed": 0, "failed": "It collapsed."}}}


def test_the_table_has_means_of_seeds_and_a_line_for_every_window(record: dict[str, Any]) -> None:
    deep, ann, converted = methods_page.table(record).splitlines()[2:]
    assert deep == "| deep | 97.00 ± 1.41 | 97.50 ± 0.00 | 4 | 12,346 ± 0 | 2.5 ± 0 | 0.05 ± 0 | 3.2 ± 0.0 |"
    assert ann == "| quantised, the ANN | 99.00 | 97.50 |  |  | 9 | 0.05 | 3.2 |"
    assert converted == "| quantised, converted | 98.50 |  | 8 | 20,000 | 1.5 | 0.055 | 3.2 |"


def test_the_page_says_what_failed_and_how_each_run_is_made_again(record: dict[str, Any]) -> None:
    text = methods_page.page(record, "methods.png")
    assert text.startswith("# lenet on mnist, 3 processor minutes for each method\n\n    python -m benchmarks.methods ")
    assert "- `once`, seed 0: It collapsed." in text and "](methods.png)" in text and "a CPU (2 threads)" in text
    assert text.count("    python train.py --method=") == 3 and "--export" not in text
    nothing = {**record, "runs": {"once-seed0": record["runs"]["once-seed0"]}}
    assert "It collapsed." in methods_page.page(nothing, "methods.png") and "|" not in methods_page.page(nothing, "methods.png")
    assert methods_page.draw(nothing) is None


def test_the_picture_has_the_course_of_every_run_and_a_point_for_every_network(record: dict[str, Any], tmp_path: Path) -> None:
    figure = methods_page.draw(record)
    assert figure is not None
    figure.savefig(tmp_path / "methods.png")
    time, spikes = figure.axes
    assert [line.get_xydata().tolist() for line in time.lines] == [[[0.5, 0.1], [3.0, 0.9995]]] * 3
    assert [line.get_xydata().tolist() for line in spikes.lines] == [[[12345.6, 0.96]], [[12345.6, 0.98]], [[20000.0, 0.985]]]
    assert [text.get_text() for text in figure.legends[0].texts] == ["deep", "quantised (ANN)"]


def test_what_failed_is_noted_and_tried_again_and_what_is_done_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []
    fails = {"once"}

    def made(self: methods.Comparison, method: str, seed: int) -> dict[str, Any]:
        asked.append((method, seed))
        if method in fails:
            raise UserError("It collapsed.")
        return run_of(method, seed, 0.9)

    monkeypatch.setattr(methods.Comparison, "_run", made)
    command = ["--hours=0.05", "--methods=once,deep", f"--out={tmp_path / 'out'}"]
    assert methods.main(command) == 0
    kept = json.loads((tmp_path / "out" / "methods.json").read_text())
    assert kept["runs"]["once-seed0"]["failed"] == "It collapsed." and kept["runs"]["deep-seed0"]["rows"]
    fails.clear()
    assert methods.main([*command, "--seeds=0,1"]) == 0
    assert asked == [("once", 0), ("deep", 0), ("once", 0), ("once", 1), ("deep", 1)]
    assert "It collapsed" not in (tmp_path / "out" / "methods.md").read_text() and (tmp_path / "out" / "methods.png").exists()
    with pytest.raises(SystemExit, match="2"):
        methods.main([*command[1:], "--hours=0.1"])


@pytest.mark.parametrize("wrong", [["--methods=deep,none"], ["--methods="], ["--seeds=a"], ["--points=0"], []])
def test_a_wrong_flag_is_refused(wrong: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        methods.main([*wrong, f"--out={tmp_path}", *(["--hours=1"] if wrong else [])])


def test_a_record_names_no_place_of_the_machine() -> None:
    said = methods._without_paths("python -m benchmarks.methods --hours=1 '--flags=--data_dir=/a/b --precision=mixed_bfloat16'")
    assert shlex.split(said)[-1] == "--flags=--precision=mixed_bfloat16"
    assert methods._without_paths("python -m benchmarks.methods --flags=--data_dir=/a/b --hours=1").endswith("methods --hours=1")


def test_the_sentence_of_a_command_that_fails_is_kept() -> None:
    with pytest.raises(UserError, match=r"^--model takes one of lenet, .*received 'vgg12'"):
        methods.ran("train", ["--model=vgg12"])


@pytest.mark.slow
def test_a_comparison_that_is_stopped_goes_on_and_then_has_nothing_left_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["--hours=0.007", "--methods=deep,quantised", "--points=2", "--windows=4", "--images=10", f"--out={tmp_path}",
               "--flags=--hidden=0 --val_fraction=0.02"]
    run = tmp_path / "runs" / "deep-seed0"
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.methods", *command], cwd=ROOT)
    try:
        while max(checkpoints.steps(str(run / "checkpoints")), default=0) == 0:  # an epoch is logged first, and then saved
            assert process.poll() is None
            time.sleep(0.2)
    finally:
        process.terminate()
    assert process.wait(120) == 143
    half, seconds = (run / "metrics.jsonl").read_text().partition("\n{")[0], 0.007 * 3600
    assert methods.main(command) == 0
    assert (run / "metrics.jsonl").read_text().startswith(half), "the run has begun anew"
    runs = json.loads((tmp_path / "methods.json").read_text())["runs"]
    assert [row["name"] for run in runs.values() for row in run["rows"]] == ["deep", "quantised, the ANN", "quantised, converted"]
    for found in runs.values():
        assert 0.5 * seconds < found["processor_seconds"] < 1.8 * seconds and len(found["curve"]) == 2 and found["epochs"] > 0.1
        assert found["rows"][-1]["spikes_per_image"] > 0 and found["rows"][-1]["microjoules"] > 0
    assert runs["quantised-seed0"]["rows"][0]["test_accuracy"] > 0.5
    assert "| quantised, converted |" in (tmp_path / "methods.md").read_text() and (tmp_path / "methods.png").stat().st_size > 10_000
    monkeypatch.setattr(methods, "ran", None)
    assert methods.main(command) == 0
