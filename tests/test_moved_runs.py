"""A run is where its folder is: moved, copied, linked, edited, looked at from elsewhere, or not finished yet."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import runs
from tfspike import config as config_lib
from tfspike import evaluation, training
from tfspike.config import Config, flags
from tfspike.errors import UserError
from tfspike.evaluation import command as eval_command
from tfspike.evaluation import options as eval_options
from tfspike.evaluation import report
from tfspike.runs import checkpoints, results, standing, starting, workdir
from tfspike.runs import loading as run_loading
from tfspike.training import trainer
from tfspike.training.signals import Stopped


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps, stopped after the fourth, with the workdir `first` relative to its parent."""
    place = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        report_line = trainer.Trainer._report

        def stopping(self: Any) -> None:
            report_line(self)
            if self.progress.step == 4:
                self._save()
                raise Stopped(15)

        patch.setattr(trainer.Trainer, "_report", stopping)
        assert training.run(runs.tiny("first", export=("keras",)), say=quiet) == 143
    return place / "first"


@pytest.fixture
def second(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run moved to another name in another folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(begun, tmp_path / "second", symlinks=True)
    return tmp_path / "second"


def start(*arguments: str) -> tuple[Config, starting.Start]:
    """How train.py would begin with these flags."""
    config, options, *_ = flags.parse(list(arguments))
    return config, starting.plan_start(config, options, quiet)


# ---- moved -------------------------------------------------------------------------------------------------------


def test_a_moved_run_ends_where_it_is_as_one_that_was_left_in_place(begun: Path, second: Path,
                                                                    tmp_path: Path) -> None:
    shutil.copytree(begun, tmp_path / "first")  # as copying does where there are no links
    assert os.path.isdir("first/checkpoints/best") and not os.path.islink("first/checkpoints/best")
    config, options, *_ = flags.parse(["--config=second/config.json"])
    lines: list[str] = []
    assert training.run(config, options, lines.append) == 0
    assert lines[0] == "Resuming from step 4 of the run in second."
    assert "--workdir=second" in lines[-1]
    assert checkpoints.target_of("first/checkpoints", "last") == 4, "the copy it was made of is left alone"
    assert config_lib.read_run("second").workdir == "second"
    assert training.run(runs.tiny("first", export=("keras",)), say=quiet) == 0
    runs.assert_same_run("first", "second")


@pytest.mark.parametrize(("arguments", "folder"), [
    (["--config=second/config.json"], "second"),
    (["--config=./second/config.json", "--epochs=3"], "./second"),
    (["--config=second/config.json", "--resume=second"], "second"),
    (["--config=second/config.json", "--workdir=third", "--resume=second"], "third"),
    (["--config=second/config.json", "--workdir=second"], "second"),
    (["--config=link/config.json"], "link"),
    (["--config=parent/second/config.json"], "parent/second"),
])
def test_every_name_of_a_moved_run_continues_it(second: Path, arguments: list[str], folder: str) -> None:
    os.symlink("second", "link")
    os.makedirs("parent")
    shutil.copytree("second", "parent/second")
    config, begins = start(*arguments)
    assert (config.workdir, begins.kind) == (folder, "resume") and "step 4 of" in begins.sentence


def test_from_inside_the_folder_and_from_elsewhere_it_is_the_same_run(second: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(second)
    assert start("--config=config.json")[1].kind == "resume"
    monkeypatch.chdir("/")
    config, begins = start(f"--config={second}/config.json")
    assert (config.workdir, begins.kind) == (str(second), "resume")


def test_a_run_in_its_place_keeps_the_name_it_was_given(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(begun.parent)
    assert start(f"--config={begun}/config.json")[0].workdir == "first"


def test_a_moved_run_whose_name_followed_from_its_settings(second: Path) -> None:
    content = json.loads((second / "config.json").read_text())
    settings = content["config"]
    settings["workdir"] = config_lib.default_workdir(Config(**settings))
    (second / "config.json").write_text(json.dumps(content))
    assert start("--config=second/config.json")[0].workdir == "second"
    assert start("--config=second/config.json", "--epochs=9")[0].workdir == "second"
    other, begins = start("--config=second/config.json", "--leak=0.5")
    assert other.workdir == config_lib.default_workdir(other) and begins.kind == "new"


@pytest.mark.parametrize("arguments", [["--config=second/config.json"], ["--workdir=second"],
                                       ["--config=second/config.json", "--workdir=third", "--resume=second"]])
def test_other_settings_in_a_moved_run_are_refused_by_its_new_name(second: Path, arguments: list[str]) -> None:
    with pytest.raises(UserError, match=r"The run in \S*second has other settings: .*leak \(was 0.99, now 0.5\)"):
        start(*arguments, "--leak=0.5")


def test_a_file_of_settings_is_no_run(second: Path) -> None:
    os.makedirs("sweep")
    shutil.copy("second/config.json", "sweep/config.json")
    assert start("--config=sweep/config.json")[0].workdir == "first"
    os.makedirs("sweep/checkpoints")
    Path("sweep/config.json").write_text('{"leak": 0.5}')
    config = start("--config=sweep/config.json")[0]
    assert config.workdir == config_lib.default_workdir(config)


def test_moved_while_it_trains_nothing_trained_is_lost(tmp_path: Path) -> None:
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if "step 2/3" in line and "epoch 1/2" in line:
            os.rename(tmp_path / "run", tmp_path / "moved")

    made = runs.tiny(tmp_path / "run", tensorboard=True)
    assert training.run(made, say=say) == 0
    assert sum("moved or deleted while its run was training" in line for line in lines) == 1
    _, config, _, checkpoint = run_loading.load_run(str(tmp_path / "run"), "best", say=quiet)
    assert config.workdir == str(tmp_path / "run") and checkpoint.step == 3
    assert checkpoints.steps(str(tmp_path / "moved" / "checkpoints")) == [0]
    assert checkpoints.steps(str(tmp_path / "run" / "checkpoints"))[-1] == 6
    logged = {name: [event["step"] for event in runs.metrics(tmp_path / name)] for name in ("moved", "run")}
    assert logged == {"moved": [2], "run": [3, 3, 4, 6, 6]}, "from then on the log is in the new folder"
    assert list((tmp_path / "run" / "tb").iterdir())
    best = results.best_epoch(results.read_events(str(tmp_path / "run" / "metrics.jsonl")), made)
    assert best is not None and best["step"] == checkpoint.step


@pytest.mark.parametrize("copied", ["whole", "without"])
def test_a_copy_without_links_has_the_same_best_weights(begun: Path, tmp_path: Path, copied: str) -> None:
    shutil.copytree(begun, tmp_path / "copy", ignore=shutil.ignore_patterns(*["best", "last"] * (copied == "without")))
    folder = str(tmp_path / "copy" / "checkpoints")
    assert checkpoints.target_of(folder, "best") == (3 if copied == "whole" else None)
    assert run_loading.load_run(str(tmp_path / "copy"), "best", say=quiet)[3].step == 3
    checkpoints.point(folder, "last", 3)
    assert checkpoints.target_of(folder, "last") == 3 and checkpoints.steps(folder) == [2, 3, 4]


# ---- edited ------------------------------------------------------------------------------------------------------


def test_a_config_that_was_edited_is_not_taken_for_what_was_trained(second: Path) -> None:
    content = json.loads((second / "config.json").read_text())
    content["config"] |= {"leak": 0.5, "threshold": 2.0}
    (second / "config.json").write_text(json.dumps(content))
    sentence = r"config.json of second was changed .*leak \(trained with 0.99, now 0.5\), threshold"
    uses = [lambda: start("--config=second/config.json"), lambda: run_loading.load_run("second", say=quiet),
                 lambda: evaluation.evaluate_run(eval_options.EvalOptions(workdir="second"), quiet)]
    for use in uses:
        with pytest.raises(UserError, match=sentence):
            use()
    (second / "finished.json").write_text(json.dumps({"epochs": 2, "step": 6, "export": ["keras"]}))
    with pytest.raises(UserError, match="was changed since its run was trained"):
        start("--config=second/config.json")


def test_a_config_that_lacks_a_setting_is_not_filled_up_from_todays_defaults(second: Path) -> None:
    content = json.loads((second / "config.json").read_text())
    del content["config"]["leak"]
    (second / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="second/config.json lacks leak"):
        start("--config=second/config.json")


def test_a_byte_order_mark_is_no_damage(second: Path) -> None:
    content = (second / "config.json").read_bytes()
    (second / "config.json").write_bytes(b"\xef\xbb\xbf" + content)
    assert start("--config=second/config.json")[1].kind == "resume"
    assert workdir.run_metadata("second")["data"]


def test_more_epochs_may_be_written_into_the_config(second: Path) -> None:
    content = json.loads((second / "config.json").read_text())
    content["config"]["epochs"] = 4
    (second / "config.json").write_text(json.dumps(content))
    assert start("--config=second/config.json")[1].kind == "resume"


# ---- unfinished --------------------------------------------------------------------------------------------------


def test_an_evaluation_says_that_the_run_is_unfinished(second: Path) -> None:
    lines: list[str] = []
    record = evaluation.evaluate_run(eval_options.EvalOptions(workdir="second", seeds=1, images=16), lines.append)
    assert (record["checkpoint"], record["step"]) == ("best", 3)
    assert (record["finished"], record["run_step"], record["run_steps"]) == (False, 4, 6)
    assert "best checkpoint so far (step 3; the run is unfinished, at step 4 of 6)" in evaluation.describe(record)
    assert lines[0].startswith("Warning: the run in second is unfinished, at step 4 of 6.")
    assert "--config=second/config.json" in lines[0]


@pytest.mark.parametrize("went_back", [False, True])  # to an earlier checkpoint, by --resume
def test_weights_that_nothing_has_chosen_yet_are_not_called_the_best(second: Path, went_back: bool) -> None:
    for name in (*(() if went_back else ("best",)), checkpoints.name_of(3), checkpoints.name_of(4)):
        path = Path("second/checkpoints", name)
        path.unlink() if path.is_symlink() else shutil.rmtree(path)
    record = evaluation.evaluate_run(eval_options.EvalOptions(workdir="second", seeds=1, images=16), quiet)
    assert (record["checkpoint"], record["step"]) == ("last", 2)
    assert "last checkpoint (step 2; the run is unfinished" in evaluation.describe(record)


def test_where_the_best_weights_are_damaged_the_newest_are_named_for_every_command(second: Path) -> None:
    (second / "checkpoints" / "best" / "model.npz").write_bytes(b"")
    with pytest.raises(UserError, match="is damaged.*The newest one is second/checkpoints/last"):
        standing.open_checkpoint("second", quiet, "best")
    assert standing.open_checkpoint("second/checkpoints/last", quiet).step == 4


def test_reports_and_results_say_so_too(second: Path) -> None:
    found = report.collect("second", eval_options.EvalOptions(workdir="second", images=16, timesteps=2), say=quiet)
    assert found.title == "lenet on mnist_subset (unfinished, at step 4 of 6)"
    assert dict(found.facts)["checkpoint"] == "best, step 3; the run is unfinished, at step 4 of 6"
    with pytest.raises(UserError, match="The run in second is unfinished, at step 4 of 6.*--config=second/config.json"):
        results.read_finished("second", config_lib.read_run("second"))


def test_a_report_is_of_the_network_that_was_tested_and_nothing_is_said_twice(
        second: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = eval_options.EvalOptions(workdir="second", images=16, seeds=1, report=True)
    assert eval_command.run(asked, pytest.fail) == 0
    assert capsys.readouterr().out.count("Warning: the run in second is unfinished, at step 4 of 6.") == 1
    assert Path("second/report/index.html").exists()


def test_exports_say_so_too(second: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from tfspike.export import __main__ as export
    from tfspike.export import formats

    monkeypatch.setattr(formats, "save", lambda *args, **kwargs: {})
    assert export.main(["--workdir=second", "--format=keras"]) == 0
    assert "Warning: the run in second is unfinished, at step 4 of 6." in capsys.readouterr().err


def test_of_a_finished_run_nothing_is_said(second: Path) -> None:
    config = dataclasses.replace(config_lib.read_run("second"), epochs=1)
    checkpoint = standing.open_checkpoint("second", quiet, "best")
    stands = standing.standing(config, "best", checkpoint)
    assert (stands.finished, stands.unfinished, stands.describe()) == (True, "", "best checkpoint (step 3)")
    of_the_library = dataclasses.replace(checkpoint, meta={})
    assert standing.standing(config, "best", of_the_library).finished

