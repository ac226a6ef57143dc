"""A run that is stopped anywhere ends as one that was not: bit for bit."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import runs
from runs import Killed, killed_at
from tfspike import training
from tfspike.config import RunOptions
from tfspike.errors import UserError
from tfspike.models import variables
from tfspike.runs import checkpoints, standing, workdir
from tfspike.training.progress import Progress
from tfspike.training.trainer import Trainer


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of six steps."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert training.run(runs.tiny(folder), say=lambda line: None) == 0
    rates = runs.metrics(folder)[-1]
    assert all(rates[f"epoch_rate/{name}"] > 0 for name in ("conv1_1_lif", "pool1", "conv2_1_lif", "pool2"))
    return folder


def run_lines(config: Any, **options: Any) -> tuple[int, list[str]]:
    lines: list[str] = []
    return training.run(config, RunOptions(**options), lines.append), lines


# ---- the same run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 6])
def test_a_run_killed_at_a_step_ends_as_an_uninterrupted_one(whole: Path, tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    config = runs.tiny(tmp_path / "run")
    killed_at(monkeypatch, config, step)
    code, lines = run_lines(config)
    assert code == 0
    before = {1: 0, 6: 4}[step]  # a checkpoint at the start, after every second step, and after each epoch
    assert lines[0].startswith(f"Resuming from step {before} ")
    runs.assert_same_run(whole, tmp_path / "run")


@pytest.mark.slow
def test_running_statistics_and_a_falling_learning_rate_survive_a_kill(tmp_path: Path,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"norm": "tdbn", "surrogate": "arctan", "encoder": "direct", "optimizer": "adamw", "learning_rate": 0.003,
                "lr_schedule": "cosine", "lr_milestones": (), "warmup_epochs": 1, "loss": "cross_entropy"}
    runs.assert_survives_a_kill(tmp_path, monkeypatch, **settings)
    arrays = checkpoints.read(str(tmp_path / "killed" / "checkpoints" / checkpoints.name_of(6))).arrays("model")
    moved = [values for name, values in arrays.items() if "moving_mean" in name]
    assert moved and all(values.any() for values in moved)


def test_the_network_really_changes_during_these_runs(whole: Path) -> None:
    first, last = (checkpoints.read(str(whole / "checkpoints" / checkpoints.name_of(step))).arrays("model")
                   for step in (4, 6))
    assert all((first[name] != last[name]).any() for name in first), "equality of such runs would show nothing"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130),
                                              pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow)])
def test_a_signal_saves_at_the_end_of_the_step_and_says_how_to_continue(whole: Path, tmp_path: Path, number: int,
                                                                        code: int) -> None:
    config, lines = runs.tiny(tmp_path / "run", checkpoint_every=0), []
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("this signal is ignored here (nohup), and training leaves it so")

    def say(line: str) -> None:
        lines.append(line)
        if "epoch 1/2  step 2/3" in line:
            signal.raise_signal(number)

    assert training.run(config, say=say) == code
    assert f"python train.py --config={tmp_path}/run/config.json" in lines[-1]
    assert checkpoints.target_of(str(tmp_path / "run" / "checkpoints"), "last") in (2, 3)  # the step in hand
    assert run_lines(config)[0] == 0
    runs.assert_same_run(whole, tmp_path / "run")


@pytest.mark.slow
def test_a_process_killed_by_signal_9_is_continued_by_the_same_command(whole: Path, tmp_path: Path) -> None:
    config = runs.tiny(tmp_path / "run")
    process = runs.command(config)
    assert process.stdout is not None
    for line in process.stdout:
        if "epoch 1/2" in line:
            break
    runs.kill(process)
    assert process.returncode == -signal.SIGKILL
    again = runs.command(config)
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output
    assert "Resuming from step " in output.splitlines()[0]
    runs.assert_same_run(whole, tmp_path / "run")


def test_a_damaged_newest_checkpoint_is_passed_over_with_a_sentence(whole: Path, tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    config = runs.tiny(tmp_path / "run")
    killed_at(monkeypatch, config, 6)
    newest = tmp_path / "run" / "checkpoints" / checkpoints.name_of(4) / "model.npz"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1  # one bit
    newest.write_bytes(content)
    code, lines = run_lines(config)
    assert code == 0
    assert any("damaged: model.npz does not match its checksum; the one before is used" in line for line in lines)
    assert any(line.startswith("Resuming from step 3 ") for line in lines)
    runs.assert_same_run(whole, tmp_path / "run")


@pytest.mark.slow
def test_more_epochs_continue_a_finished_run(tmp_path: Path) -> None:
    long, short = runs.tiny(tmp_path / "long"), runs.tiny(tmp_path / "short", epochs=1)
    for config in (long, short):
        assert run_lines(config)[0] == 0
    assert run_lines(runs.tiny(tmp_path / "short"))[0] == 0
    a, b = runs.state(tmp_path / "long"), runs.state(tmp_path / "short")
    assert a == b
    assert runs.metrics(tmp_path / "long") == runs.metrics(tmp_path / "short")


# ---- what --resume says ------------------------------------------------------------------------------------------


def test_a_run_killed_before_its_first_checkpoint_still_begins_with_the_weights_it_was_given(
        whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, lines = runs.tiny(tmp_path / "run"), []

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Progress, "save", killed)
        training.run(config, RunOptions(init_from=str(whole)), lambda line: None)
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert training.run(config, say=lines.append) == 0
    assert any(line.startswith(f"First weights from the checkpoint {whole}") for line in lines)


def test_a_finished_run_is_left_alone(whole: Path) -> None:
    before = runs.state(whole)
    code, lines = run_lines(runs.tiny(whole))
    assert code == 0
    assert len(lines) == 1 and lines[0].startswith("Finished already: 2 epochs")
    assert runs.state(whole) == before


def test_other_settings_are_named_and_refused(whole: Path) -> None:
    with pytest.raises(UserError, match=r"leak \(was 0.99, now 0.9\), timesteps|timesteps .*leak \(was 0.99, now 0.9\)"):
        run_lines(runs.tiny(whole, leak=0.9, timesteps=5))


@pytest.mark.parametrize(("folder", "options", "sentence"), [
    ("whole", {"resume": "never"}, "--resume=never, but .* holds a run"),
    ("empty", {"resume": "must"}, "--resume=must, but there is no run"),
    ("whole", {"init_from": "."}, "--init_from starts a new run, but .* holds one already"),
])
def test_contradictions_are_refused(whole: Path, tmp_path: Path, folder: str, options: dict[str, str],
                                    sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        run_lines(runs.tiny(whole if folder == "whole" else tmp_path / "empty"), **options)


def test_a_checkpoint_of_another_run_can_be_continued_elsewhere(whole: Path, tmp_path: Path) -> None:
    config = runs.tiny(tmp_path / "run")
    code, lines = run_lines(config, resume=str(whole / "checkpoints" / checkpoints.name_of(4)))
    assert code == 0 and lines[0].startswith("Resuming from step 4 ")
    assert runs.state(whole) == runs.state(tmp_path / "run")
    with pytest.raises(UserError, match="is not of the run in"):
        run_lines(config, resume=str(whole))


def test_the_best_checkpoint_comes_along_to_another_folder(whole: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(whole, source)
    last = max(checkpoints.steps(str(source / "checkpoints")))
    first = min(checkpoints.steps(str(source / "checkpoints")))
    for step in (first, last):  # as if the first had been the best by far
        meta_path = source / "checkpoints" / checkpoints.name_of(step) / "meta.json"
        meta = json.loads(meta_path.read_text())
        meta["progress"]["best"] = {"step": first, "epoch": 1, "val_accuracy": 2.0}
        meta_path.write_text(json.dumps(meta))
        with_checksums(str(meta_path.parent))
    config = runs.tiny(tmp_path / "run", epochs=runs.tiny("unused").epochs + 1)
    code, lines = run_lines(config, resume=str(source / "checkpoints" / checkpoints.name_of(last)))
    assert code == 0 and "best validation accuracy 200.00 % after epoch 1" in lines[-1]
    best = standing.open_checkpoint(str(tmp_path / "run"), print, "best")
    assert best.step == first < max(checkpoints.steps(str(tmp_path / "run" / "checkpoints")))
    kept = checkpoints.read(str(source / "checkpoints" / checkpoints.name_of(first)))
    for name, array in kept.arrays("model").items():
        np.testing.assert_array_equal(best.arrays("model")[name], array)

    shutil.rmtree(source / "checkpoints" / checkpoints.name_of(first))
    config = runs.tiny(tmp_path / "without", epochs=config.epochs)
    code, lines = run_lines(config, resume=str(source / "checkpoints" / checkpoints.name_of(last)))
    assert code == 0 and any("the best is looked for anew" in line for line in lines)
    assert standing.open_checkpoint(str(tmp_path / "without"), print, "best").step > last


def test_a_kill_between_the_pointers_is_mended_without_validation(tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    config = runs.tiny(tmp_path, val_fraction=0.0)
    original = checkpoints.point
    last = 0

    def until(folder: str, pointer: str, step: int) -> None:
        nonlocal last
        if pointer == "best" and step > 2:
            last = step
            raise Killed
        original(folder, pointer, step)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoints, "point", until)
        training.run(config, say=lambda line: None)
    folder = str(tmp_path / "checkpoints")
    assert checkpoints.target_of(folder, "last") == last > checkpoints.target_of(folder, "best")
    monkeypatch.setattr(Trainer, "train", lambda *_: None)  # as when no step is left
    training.run(config, say=lambda line: None)
    assert checkpoints.target_of(folder, "best") == last


def test_a_folder_that_another_process_trains_in_is_refused(tmp_path: Path) -> None:
    lock = workdir.prepare(str(tmp_path))
    with pytest.raises(UserError, match="Another process is training in"):
        run_lines(runs.tiny(tmp_path))
    lock.close()


def test_a_workdir_that_cannot_be_written_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write into the workdir"):
        run_lines(runs.tiny(tmp_path / "file" / "run"))


# ---- checkpoints on their own ------------------------------------------------------------------------------------

PARTS = {"model": {"a/kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.array(3, np.int32)},
         "optimizer": {"iterations": np.array(7, np.int64)}}
CALLS = ("mkdir", "fsync", "rename", "replace", "symlink", "unlink")


def save(folder: Path, step: int, **kwargs: Any) -> str:
    return checkpoints.save(str(folder), step, PARTS, {"note": step}, **kwargs)


def test_arrays_and_notes_come_back_as_they_were(tmp_path: Path) -> None:
    read = checkpoints.read(save(tmp_path, 5, best=True))
    assert (read.step, read.meta["note"]) == (5, 5)
    for part, arrays in PARTS.items():
        found = read.arrays(part)
        assert list(found) == list(arrays)
        assert all(found[k].tobytes() == v.tobytes() and found[k].dtype == v.dtype and found[k].shape == v.shape
                   for k, v in arrays.items())
    assert checkpoints.read(str(tmp_path / "best")).step == checkpoints.read(str(tmp_path / "last")).step == 5


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in range(1, 8):
        save(tmp_path, step, keep=2, best=step == 3)
    assert checkpoints.steps(str(tmp_path)) == [3, 6, 7]
    assert {path.name for path in tmp_path.iterdir()} == {"best", "last", *map(checkpoints.name_of, (3, 6, 7))}


@pytest.mark.parametrize("repeated", [False, True], ids=["new", "written_again"])
def test_killed_at_any_system_call_of_a_write_the_folder_holds_a_whole_checkpoint(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repeated: bool) -> None:
    newest_step = 9 if repeated else 10
    for number in range(1, 100):
        folder = tmp_path / str(number)
        for step in (8, 9):
            save(folder, step, keep=2)
        count = iter(range(1, 1000))
        with monkeypatch.context() as patch:
            for name in CALLS:
                def dying(*args: Any, call: Any = getattr(os, name), **kwargs: Any) -> Any:
                    if next(count) == number:
                        raise Killed
                    return call(*args, **kwargs)

                patch.setattr(os, name, dying)
            try:
                save(folder, newest_step, keep=2)
            except Killed:
                pass
            else:
                break
        found = checkpoints.newest(str(folder), lambda line: pytest.fail(line))
        assert found is not None and found.step in ((8, 9) if repeated else (9, 10)), number
        assert checkpoints.target_of(str(folder), "last") in (8, 9, 10)
        save(folder, newest_step, keep=2)  # and the next write tidies up
        assert checkpoints.steps(str(folder)) == ([8, 9] if repeated else [9, 10])
        assert not [path for path in folder.iterdir() if path.name.startswith(".w") or path.name.startswith(".r")]
    assert number > 8, "the write was never interrupted"


@pytest.mark.parametrize("number", range(1, 6))
def test_a_full_disk_is_said_and_leaves_the_checkpoint_before_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                     number: int) -> None:
    save(tmp_path, 1)
    count = iter(range(1, 1000))
    sync = os.fsync

    def full(handle: int) -> None:
        if next(count) == number:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="is full .* intact: make room and start the same command again"):
        save(tmp_path, 2)
    assert checkpoints.steps(str(tmp_path)) == [1] and checkpoints.read(str(tmp_path / "last")).step == 1


def with_checksums(folder: str) -> None:
    names = ("meta.json", "model.npz", "optimizer.npz")
    sums = {name: hashlib.sha256(Path(folder, name).read_bytes()).hexdigest() for name in names}
    Path(folder, "checksums.json").write_text(json.dumps(sums))


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    Path(path, "meta.json").write_text(json.dumps({"version": 2, "step": 1}))
    with_checksums(path)
    with pytest.raises(UserError, match="has version 2, and this tfspike reads version 1"):
        checkpoints.read(path)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "sprung"),)

    path = save(tmp_path, 1)
    np.savez(Path(path, "model.npz"), names=np.frombuffer(b'["a"]', np.uint8), a0=np.array([Trap()], object))
    with_checksums(path)
    with pytest.raises(UserError, match="cannot be read"):
        checkpoints.read(path).arrays("model")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("damage", ["empty", "cut", "missing", "list", "text"])
@pytest.mark.parametrize("name", ["meta.json", "model.npz", "optimizer.npz", "checksums.json"])
def test_damage_of_every_file_is_found(tmp_path: Path, name: str, damage: str) -> None:
    save(tmp_path, 1)
    path = Path(save(tmp_path, 2), name)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "cut": content[:-3], "list": b"[]", "text": b"\xff\x00"}[damage])
    with pytest.raises(UserError, match="damaged|cannot be read"):
        checkpoints.read(str(path.parent))
    lines: list[str] = []
    found = checkpoints.newest(str(tmp_path), lines.append)
    assert found is not None and found.step == 1
    assert len(lines) == 1 and "the one before is used" in lines[0]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_bytes_in_any_file_are_read_as_saved_or_refused_in_one_sentence(data: st.DataObject) -> None:
    """Also where the checksums were made to fit: then the file is whole, and still not what a run writes."""
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder), 1)
        path = Path(save(Path(folder), 2))
        file = path / data.draw(st.sampled_from(["meta.json", "model.npz", "optimizer.npz", "checksums.json"]))
        content = bytearray(file.read_bytes())
        kind = data.draw(st.sampled_from(["flip", "cut", "bytes", "json"]))
        if kind == "flip":
            for _ in range(data.draw(st.integers(1, 4))):
                content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del content[data.draw(st.integers(0, len(content) - 1)):]
        elif kind == "bytes":
            content = bytearray(data.draw(st.binary(max_size=60)))
        else:
            value = st.recursive(st.none() | st.integers() | st.text(max_size=5),
                                 lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                                     st.sampled_from(["version", "step", "meta.json", "x"]), inner), max_leaves=5)
            content = bytearray(json.dumps(data.draw(value)).encode())
        same = bytes(content) == file.read_bytes()
        file.write_bytes(content)
        fitted = file.name != "checksums.json" and data.draw(st.booleans())
        if fitted:
            with_checksums(str(path))
        lines: list[str] = []
        found = checkpoints.newest(folder, lines.append)
        assert found is not None and (fitted or found.step == (2 if not lines else 1))
        assert lines or same or fitted or file.name == "checksums.json"  # damage never goes unnoticed
        for part in checkpoints.PARTS:
            try:
                arrays = found.arrays(part)
            except UserError as error:
                assert fitted and "cannot be read" in str(error)
            else:
                assert fitted or all(np.array_equal(arrays[name], PARTS[part][name]) for name in PARTS[part])


@pytest.mark.parametrize("names", ["5", "null", '[["a"]]', '{"a": 1}', '"ab"'])
def test_a_list_of_names_that_is_none_is_refused(tmp_path: Path, names: str) -> None:
    path = save(tmp_path, 1)
    np.savez(Path(path, "model.npz"), names=np.frombuffer(names.encode(), np.uint8), a0=np.zeros(2))
    with_checksums(path)
    with pytest.raises(UserError, match="cannot be read"):
        checkpoints.read(path).arrays("model")


def test_where_all_are_damaged_nothing_is_overwritten(tmp_path: Path) -> None:
    for step in (1, 2):
        Path(save(tmp_path, step), "meta.json").write_text("")
    with pytest.raises(UserError, match="All 2 checkpoints in .* are damaged"):
        checkpoints.newest(str(tmp_path), lambda line: None)


def test_weights_of_another_network_are_refused() -> None:
    arrays = {"kernel": np.zeros((2, 3), np.float32)}
    for wanted, sentence in [({"kernel": ((2, 4), "float32")}, r"kernel is float32 of shape \(2, 3\)"),
                             ({"kernel": ((2, 3), "int32")}, "needs int32"),
                             ({}, "has kernel, which this network has not"),
                             ({"kernel": ((2, 3), "float32"), "bias": ((3,), "float32")}, "has no bias")]:
        with pytest.raises(UserError, match=sentence):
            variables.check_shapes(wanted, arrays, "the checkpoint")


# ---- random moments ----------------------------------------------------------------------------------------------


def test_a_run_killed_during_the_export_exports_when_started_again(whole: Path, tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    from tfspike import export

    def killed(*args: Any, **kwargs: Any) -> Any:
        raise Killed

    config, written = runs.tiny(tmp_path / "run", export=("saved_model",)), []
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(export, "save", killed)
        run_lines(config)
    monkeypatch.setattr(export, "save", lambda *args: written.append(args[2]))
    code, lines = run_lines(config)
    assert code == 0 and lines[0].startswith("Resuming from step 6 ") and written == [("saved_model",)]
    runs.assert_same_run(whole, tmp_path / "run")
    assert run_lines(config)[1][0].startswith("Finished already")


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_no_bit() -> None:
    import kill_harness

    assert kill_harness.main(kills=20, seed=0) == 20
