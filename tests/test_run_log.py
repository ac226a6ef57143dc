"""The run's log: metrics.jsonl and TensorBoard events, without gaps or doubled steps whatever a kill left behind."""

import json
import os
import pathlib
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from tfspike import models
from tfspike.analysis.simulation import final_states, first_filters, spike_trains
from tfspike.config import Config
from tfspike.errors import UserError
from tfspike.runs.run_log import RunLog
from tfspike.training.board import Board

ROOT = pathlib.Path(__file__).resolve().parent.parent


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def events(workdir):
    """(step, tag) of every summary on the disk, files in the order they were begun (second, process, number)."""
    found = []
    for path in sorted((workdir / "tb").glob("events.out.tfevents.*"),
                       key=lambda path: [int(part) for part in re.findall("[0-9]+", path.name)]):
        for record in tf.data.TFRecordDataset([str(path)]):
            event = tf.compat.v1.Event.FromString(record.numpy())
            found += [(event.step, value.tag) for value in event.summary.value]
            if event.graph_def:
                found.append((event.step, "graph"))
    return found


def write(workdir, steps, start_step=0, close=True):
    log = RunLog(workdir, start_step=start_step)
    log.text("command", "`python train.py`")
    log.hyperparameters({"model": "lenet", "dropout": None, "leak": 0.99})
    for step in steps:
        log.scalars(step, {"train/loss": 1.0 / step, "rate/pool1": 0.1})
    log.flush()
    if close:
        log.close()
    return log


@pytest.fixture(scope="module")
def model():
    return models.create("lenet", (28, 28, 1), 10, 9, gradient="rate", seed=1)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(0, 1, (3, 28, 28, 1)).astype("float32")


def test_an_event_is_one_line_and_one_scalar_each(tmp_path):
    write(tmp_path, [10, 20])
    first = lines(tmp_path)[0]
    assert first["step"] == 10 and first["train/loss"] == 0.1 and first["rate/pool1"] == 0.1
    assert {(10, "train/loss"), (20, "train/loss"), (20, "rate/pool1"), (0, "command/text")} <= set(events(tmp_path))


def test_a_note_is_shown_with_its_number(tmp_path):
    log = RunLog(tmp_path)
    log.scalars(1, {"energy": 2.0, "loss": 1.0}, {"energy": "of 32 images"}, event="epoch")
    log.close()
    (path,) = (tmp_path / "tb").glob("events*")
    values = [value for record in tf.data.TFRecordDataset([str(path)])
              for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value]
    notes = {value.tag: value.metadata.summary_description for value in values}
    assert notes == {"energy": "of 32 images", "loss": ""}
    assert "of 32" not in (tmp_path / "metrics.jsonl").read_text()


def test_every_line_has_the_processor_seconds_of_all_processes_of_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "process_time", iter([2.0, 5.0, 9.0, 1.0, 3.0, 4.0]).__next__)
    write(tmp_path, [1, 2, 3])
    write(tmp_path, [3, 4], start_step=2)  # what followed step 2 was lost
    assert [line["time/processor_seconds"] for line in lines(tmp_path)] == [2.0, 5.0, 6.0, 8.0]
    write(tmp_path, [1])  # anew
    assert [line["time/processor_seconds"] for line in lines(tmp_path)] == [4.0]


def test_a_run_of_an_earlier_version_goes_on_without_its_processor_seconds(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "time": 1.0}\n')
    write(tmp_path, [2], start_step=1)
    assert lines(tmp_path)[1]["time/processor_seconds"] > 0


def test_nan_is_null_in_the_file(tmp_path):
    with_nan = RunLog(tmp_path, tensorboard=False)
    with_nan.scalars(1, {"loss": float("nan"), "norm": float("inf"), "ok": 2}, event="step")
    with_nan.close()
    line = lines(tmp_path)[0]
    assert line["loss"] is None and line["norm"] is None and line["ok"] == 2.0 and line["event"] == "step"
    assert not (tmp_path / "tb").exists()


def test_resume_leaves_no_gap_and_no_doubled_step(tmp_path):
    write(tmp_path, range(1, 11))
    write(tmp_path, range(8, 13), start_step=7)
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 13))
    assert [step for step, tag in events(tmp_path) if tag == "train/loss"] == list(range(1, 13))
    assert [tag for _, tag in events(tmp_path)].count("_hparams_/session_start_info") == 1
    assert [step for step, tag in events(tmp_path) if tag == "command/text"] == [0, 7]


def test_resuming_twice_from_the_same_step_is_resuming_once(tmp_path):
    write(tmp_path, range(1, 11))
    for _ in range(3):
        write(tmp_path, range(6, 9), start_step=5)
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 9))
    assert len(events(tmp_path)) == len(set(events(tmp_path)))


def test_half_written_ends_are_dropped(tmp_path):
    write(tmp_path, range(1, 6))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "train/lo')
    (path,) = (tmp_path / "tb").glob("events*")
    with open(path, "ab") as file:
        file.write(path.read_bytes()[:40])
        file.write(b"\x07\x00\x00")
    write(tmp_path, [6], start_step=5)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert [step for step, tag in events(tmp_path) if tag == "train/loss"] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_events_cut_off_at_any_byte_keep_all_whole_ones(tmp_path, cut):
    write(tmp_path, range(1, 6))
    (path,) = (tmp_path / "tb").glob("events*")
    os.truncate(path, path.stat().st_size - cut)
    write(tmp_path, [6], start_step=5)
    steps = [step for step, tag in events(tmp_path) if tag == "train/loss"]
    assert steps[:4] == [1, 2, 3, 4] and steps[-1] == 6 and len(steps) == len(set(steps))


def test_leftovers_of_a_kill_while_cutting_are_harmless(tmp_path):
    write(tmp_path, range(1, 6))
    (tmp_path / "metrics.jsonl.cut").write_text("half")
    (tmp_path / "tb" / "events.out.tfevents.1.x.cut").write_bytes(b"half")
    write(tmp_path, [4], start_step=3)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
    assert not list(tmp_path.rglob("*.cut"))


def test_step_0_starts_anew(tmp_path):
    write(tmp_path, range(1, 6))
    write(tmp_path, [1, 2])
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]
    assert [step for step, tag in events(tmp_path) if tag == "train/loss"] == [1, 2]


def test_lines_of_other_shapes_do_not_stop_a_resume(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n[1]\n{"step": "x"}\n\xff\xfe\n\n{"step": 2}\n{"step": 3}\n')
    RunLog(tmp_path, start_step=2).close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


@pytest.mark.slow
def test_killed_at_random_moments_it_resumes_without_gap(tmp_path):
    """A writer that flushes, notes its checkpoint, and is killed; the next continues from the note."""
    program = """
import sys, pathlib
from tfspike.run_log import RunLog
workdir = pathlib.Path(sys.argv[1])
note = workdir / "note"
start = int(note.read_text()) if note.exists() else 0
log = RunLog(workdir, start_step=start)
print("go", flush=True)
for step in range(start + 1, start + 100_000):
    log.scalars(step, {"loss": step})
    if step % 10 == 0:
        log.flush()
        (workdir / "new").write_text(str(step))
        (workdir / "new").rename(note)
"""
    for delay in (0.05, 0.21):
        process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(delay)
        process.kill()
        process.wait()
        process.stdout.close()
    step = int((tmp_path / "note").read_text())
    assert step >= 20
    RunLog(tmp_path, start_step=step).close()
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, step + 1))
    assert [at for at, tag in events(tmp_path) if tag == "loss"] == list(range(1, step + 1))


@pytest.mark.parametrize("tensorboard", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_full_disk_is_one_sentence_and_keeps_what_was_written(tmp_path, tensorboard):
    """A writer of its own, none of whose files may grow beyond 3 kB: the limit would also stop the tests' own output."""
    program = """
import resource, sys
from tfspike.errors import UserError
from tfspike.run_log import RunLog
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
tensorboard = sys.argv[2] == "True"
log = RunLog(sys.argv[1], tensorboard=tensorboard)
step = 0
try:
    for step in range(1, 200):
        log.scalars(step, {f"rate/{i}": 0.1 for i in range(2 if tensorboard else 9)})
        log.flush()
except UserError as error:
    print(step, error)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path), str(tensorboard)], cwd=ROOT,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    step, sentence = done.stdout.rstrip().split(" ", 1)
    assert re.search("cannot be written.*free some space.*continues from the last checkpoint", sentence)
    assert 3 < int(step) < 199
    kept = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    assert [json.loads(line)["step"] for line in kept if line.endswith(b"\n")][:3] == [1, 2, 3]


def test_a_file_in_the_way_is_one_sentence(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        RunLog(tmp_path / "run")


def test_only_the_chief_writes(tmp_path, model, images):
    log = RunLog(tmp_path / "run", chief=False)
    log.scalars(1, {"loss": 1.0})
    log.text("command", "x")
    log.hyperparameters({"a": 1})
    log.histograms(1, {"weights": np.ones(3)})
    log.images(1, {"picture": np.zeros((2, 2, 3), np.uint8)})
    Board(Config(), model, images, images).pictures(log, 1)
    log.graph(model, images)
    log.flush()
    log.close()
    assert not (tmp_path / "run").exists()


def test_closing_twice_is_closing_once(tmp_path):
    log = write(tmp_path, [1])
    log.close()
    log.scalars(2, {"loss": 1.0})
    assert [line["step"] for line in lines(tmp_path)] == [1]


def test_tensorboard_gets_weights_spikes_membranes_pictures_and_graph(tmp_path, model, images):
    log = RunLog(tmp_path)
    activity = model.observe(images)[1]
    assert all(float(tf.reduce_sum(count)) > 0 for count in activity.values())
    Board(Config(), model, images, images).pictures(log, 3)
    log.graph(model, images)
    log.graph(model, images)
    log.close()
    tags = [tag for _, tag in events(tmp_path)]
    for tag in ("weights/conv1_1/conv/kernel", "spikes_per_window/pool1", "membrane/hidden_lif", "spike_raster",
                "first_layer_filters"):
        assert tags.count(tag) == 1, tag
    assert tags.count("graph") == 1
    RunLog(tmp_path, start_step=3).graph(model, images)
    assert [tag for _, tag in events(tmp_path)].count("graph") == 1


def test_membranes_are_those_at_the_end_of_the_window(model, images):
    found = final_states(model, images)
    assert list(found) == model.spiking_layers and found["pool1"].membrane.shape == (3, 14, 14, 20)
    assert float(tf.reduce_max(found["conv2_1_lif"].membrane)) <= 1.0
    for layer, count in model.observe(images)[1].items():
        np.testing.assert_array_equal(found[layer].count, count)


def test_the_graph_has_the_layers_own_names(tmp_path, model, images):
    log = RunLog(tmp_path)
    log.graph(model, images)
    log.close()
    (path,) = (tmp_path / "tb").glob("events.out.tfevents.*")
    found = [tf.compat.v1.Event.FromString(record.numpy()) for record in tf.data.TFRecordDataset([str(path)])]
    graph = tf.compat.v1.GraphDef.FromString(next(event.graph_def for event in found if event.graph_def))
    names = [node.name for node in graph.node]
    assert {name.split("/")[0] for name in names} >= {"images", "encoder", "conv1_1", "conv1_1_lif", "readout", "scores"}
    assert not any(name.startswith("conv1_1_lif_") for name in names)
    for node in graph.node:
        assert all(source.split(":")[0] in names for source in node.input), node.name


def test_spike_trains_are_the_model_s_own(model, images):
    trains = spike_trains(model, tf.convert_to_tensor(images[:1]), neurons=10**6)
    counts = model.observe(images[:1])[1]
    assert list(trains) == ["encoder", *model.spiking_layers]
    for layer, count in counts.items():
        np.testing.assert_array_equal(trains[layer].sum(axis=0), np.asarray(count).ravel(), err_msg=layer)
        assert trains[layer].sum() > 0
    assert spike_trains(model, tf.convert_to_tensor(images[:1]), neurons=7)["conv1_1_lif"].shape == (9, 7)


def test_the_filters_are_those_of_the_first_convolution(model):
    assert first_filters(model).shape == (5, 5, 1, 20)
    model.get_layer("conv1_1").trainable = False
    assert first_filters(model).shape == (5, 5, 1, 20)
    model.get_layer("conv1_1").trainable = True
