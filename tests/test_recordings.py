"""Recordings of other event cameras, as tonic's data sets give them: against bins that are counted one event at a time."""

from __future__ import annotations

import dataclasses
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runs
from tfspike import datasets
from tfspike.config import Config, default_workdir, flags, resolve
from tfspike.datasets import events as event_data
from tfspike.datasets import streams
from tfspike.errors import UserError

DTYPE = np.dtype([("t", np.uint64), ("x", np.uint16), ("y", np.uint16), ("p", bool)])  # of tonic's CIFAR10DVS


def recording(count: int, seed: int, width: int = 48, height: int = 32, start: int = 0, dtype: np.dtype = DTYPE) -> np.ndarray:
    """Events in the order of their times, microseconds over 100 ms; the first one at `start`."""
    random = np.random.default_rng(seed)
    made = np.zeros(count, dtype)
    made["t"] = start + np.sort(random.integers(0, 100_000, count))
    made["t"][0] = start
    made["x"], made["y"], made["p"] = random.integers(0, width, count), random.integers(0, height, count), random.integers(0, 2, count)
    return made


class LikeTonic:
    """What a data set of tonic is to its user; iterated over it would go on for ever."""

    sensor_size = (48, 32, 2)

    def __init__(self, pairs: list[tuple[Any, Any]], classes: Any = None):
        self.pairs = pairs
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        return self.pairs[i % len(self.pairs)]


def counted(events: np.ndarray, steps: int, window_us: int, size: tuple[int, int], relative: bool = True) -> np.ndarray:
    """Spike trains [T, H, W, 2] of one recording, event by event."""
    train = np.zeros((steps, *size, 2), np.uint8)
    for event in events:
        t = int(event["t"]) - (int(events["t"].min()) if relative else 0)
        if t < window_us:
            train[t * steps // window_us, int(event["y"]) * size[0] // 32, int(event["x"]) * size[1] // 48, int(event["p"])] = 1
    return train


def test_the_first_recordings_are_no_more_in_memory_than_all_of_them() -> None:
    given = LikeTonic([(recording(400, i), i % 2) for i in range(5)])
    with pytest.warns(UserWarning, match="behind the end of the window"):
        every = datasets.from_recordings(given, timesteps=4, window_ms=50)
    some = every.first(2)
    assert isinstance(some.images, event_data.EventFrames) and some.images.shape == (2, 4, 32, 48, 2)
    np.testing.assert_array_equal(some.images[np.arange(2)], every.images[:2])
    assert len(some) == len(some.images) == 2 and some.labels.tolist() == [0, 1]
    assert 0 < some.images.kept < every.images.kept and every.images.shape[0] == 5
    assert every.first(5) is every and every.first(None) is every
    spread = dataclasses.replace(every, name="recordings").some(2)
    np.testing.assert_array_equal(spread.images[np.arange(2)], every.images[[0, 2]])
    assert spread.labels.tolist() == [0, 0] and spread.images.shape == some.images.shape


@pytest.mark.filterwarnings("ignore:events. of:UserWarning")
@pytest.mark.parametrize("size", [None, (32, 48), (16, 16), (10, 7), (64, 96)])
@pytest.mark.parametrize("relative", [True, False])
def test_spike_trains_are_those_that_are_counted(size: tuple[int, int] | None, relative: bool) -> None:
    made = [(recording(200, i, start=1000 * i), i % 2) for i in range(4)]
    got = datasets.from_recordings(LikeTonic(made), 7, 60, size, relative=relative)
    assert got.images.shape == (4, 7, *(size or (32, 48)), 2) and got.event_based and got.labels.tolist() == [0, 1, 0, 1]
    for i, (events, _) in enumerate(made):
        np.testing.assert_array_equal(got.images[i], counted(events, 7, 60_000, size or (32, 48), relative))


@pytest.mark.filterwarnings("ignore:events. of:UserWarning")
def test_a_clock_of_its_own_and_every_integer_type_give_the_same() -> None:
    wanted = datasets.from_recordings([(recording(50, i), i % 2) for i in range(4)], 5, 100, (8, 8), sensor=(32, 48))
    signed = np.dtype([("x", np.int16), ("y", np.int16), ("p", np.int8), ("t", np.int64)])  # tonic's DVSGesture, but for p
    for start, dtype in ((2**40, DTYPE), (2**40, signed)):
        made = [(recording(50, i, start=start, dtype=dtype), i % 2) for i in range(4)]
        got = datasets.from_recordings(iter(made), 5, 100, (8, 8), sensor=(32, 48))  # no length, no index
        np.testing.assert_array_equal(got.images[:], wanted.images[:])
    plain = [(event_data.Events(*(e[name] for name in "xytp")), label) for e, label in made]
    np.testing.assert_array_equal(datasets.from_recordings(plain, 5, 100, (8, 8), sensor=(32, 48)).images[:], wanted.images[:])


def test_what_is_lost_is_said() -> None:
    with pytest.warns(UserWarning, match=r"gestures: of 200 events, .* lie at or behind the end of the window of 50 ms"):
        datasets.from_recordings([(recording(100, i), i) for i in range(2)], 5, 50, sensor=(32, 48), name="gestures")


@pytest.mark.filterwarnings("ignore:events. of:UserWarning")
@pytest.mark.parametrize("labels, classes, names, numbers", [
    ([1, 0, 1], ["clap", "wave"], ("clap", "wave"), [1, 0, 1]), ([1, 0, 1], {"wave": 1, "clap": 0}, ("clap", "wave"), [1, 0, 1]),
    (["wave", "clap", "wave"], ["wave", "clap"], ("wave", "clap"), [0, 1, 0]), (["b", "a", "b"], None, ("a", "b"), [1, 0, 1]),
    ([7, 3, 7], None, ("3", "7"), [1, 0, 1]), ([np.int64(1), 0, 1], np.array([b"null", b"eins"]), ("null", "eins"), [1, 0, 1])])
def test_classes_are_those_of_the_data_set_or_follow_from_the_labels(labels: Any, classes: Any, names: Any, numbers: Any) -> None:
    got = datasets.from_recordings(LikeTonic([(recording(20, i), label) for i, label in enumerate(labels)], classes), 3, 100)
    assert got.class_names == names and got.labels.tolist() == numbers
    test = datasets.from_recordings(LikeTonic([(recording(20, 9), labels[0])], classes), 3, 100, class_names=got.class_names, split="test")
    assert test.class_names == names and test.labels.tolist() == numbers[:1] and (test.num_train, test.num_test) == (0, 1)


@pytest.mark.filterwarnings("ignore:events. of:UserWarning")
@pytest.mark.parametrize("change, message", [
    ({"recordings": [(recording(5, 0), 0)]}, r"sensor of events is not known; give .* sensor=\(180, 240\)"),
    ({"recordings": LikeTonic([])}, "has no recordings"), ({"recordings": LikeTonic([recording(5, 0)])}, "recording 0 of events must be a pair"),
    ({"recordings": LikeTonic([(recording(5, 0), 0), (np.zeros(5, [("t", int), ("x", int), ("p", int)]), 1)])},
     "recording 1 of events .*fields x, y, t, p, received an array with the fields t, x, p"),
    ({"sensor": (16, 16)}, "`x` of .*recording 0 of events is .*, legal are 0 to 15"),
    ({"recordings": LikeTonic([(recording(5, i), i / 2) for i in range(2)])}, "whole numbers or text, one per recording, received float64"),
    ({"recordings": LikeTonic([(recording(5, i), 5 * i) for i in range(2)], ["a", "b"])}, r"0\.\.1"),
    ({"class_names": ("c", "d")}, "label '0', which is none of the classes c, d"), ({"size": (8,)}, "`size` must be"),
    ({"recordings": LikeTonic([(recording(5, i), i) for i in range(2)], ["a", "b"]), "class_names": ("b", "a")}, "leave class_names out"),
    ({"timesteps": 0}, "timesteps"), ({"window_ms": 0}, "window_ms"), ({"recordings": LikeTonic([(recording(5, 0), 0)])}, "1 class"),
    ({"recordings": LikeTonic([(recording(5, i, start=2**30), i) for i in range(2)]), "relative": False}, "give relative=True")])
def test_what_cannot_be_used_is_refused(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"recordings": LikeTonic([(recording(5, i), i) for i in range(2)]), "timesteps": 3, "window_ms": 100, **change}
    with pytest.raises(UserError, match=message):
        datasets.from_recordings(**given)


@pytest.mark.filterwarnings("ignore:events. of:UserWarning")
def test_batches_of_recordings_are_streamed() -> None:
    data = datasets.from_recordings(LikeTonic([(recording(50, i), i % 2) for i in range(6)]), 4, 100, (8, 8))
    info = datasets.describe(data)
    images, labels = streams.TrainStream(data.images, data.labels, None, 3, 0, info).batch(0)
    assert images.shape == (3, 4, 8, 8, 2) and images.dtype == np.float32 and set(labels) <= {0, 1} and info.event_based


# ---- files, a folder per class ---------------------------------------------------------------------------------------

LOSSES = "ignore:recordings. of:UserWarning"  # events of one pixel and bin


def as_npy(file: Path, events: np.ndarray) -> None:
    np.save(file.with_suffix(".npy"), events)


def as_npz(file: Path, events: np.ndarray) -> None:
    np.savez(file.with_suffix(".npz"), **{name: events[name] for name in "xytp"})


def as_bin(file: Path, events: np.ndarray) -> None:
    """40 bits an event, as of N-MNIST."""
    file.with_suffix(".bin").write_bytes(b"".join(
        bytes([e["x"], e["y"], int(e["p"]) << 7 | int(e["t"]) >> 16, int(e["t"]) >> 8 & 255, int(e["t"]) & 255]) for e in events))


def as_aedat2(file: Path, events: np.ndarray) -> None:
    """Address and time in 32 bits each, the highest first, behind lines of comments."""
    rows = b"".join(struct.pack(">II", int(e["x"]) << 8 | int(e["y"]) << 1 | int(e["p"]), int(e["t"])) for e in events)
    file.with_suffix(".aedat").write_bytes(b"#!AER-DAT2.0\r\n# a comment\r\n" + rows)


def as_aedat3(file: Path, events: np.ndarray) -> None:
    """One packet of polarity events, the lowest byte first, behind a header."""
    rows = b"".join(struct.pack("<II", int(e["x"]) << 17 | int(e["y"]) << 2 | int(e["p"]) << 1 | 1, int(e["t"])) for e in events)
    packet = struct.pack("<HHIIIIII", 1, 1, 8, 4, 0, len(events), len(events), len(events))
    file.with_suffix(".aedat").write_bytes(b"#!AER-DAT3.1\r\n#Format: RAW\r\n#!END-HEADER\r\n" + packet + rows)


def write(folder: Path, classes: Any = ("left", "right"), count: int = 5, how: Callable[[Path, np.ndarray], None] = as_npy) -> Path:
    """A folder of recordings of 48 x 32 pixels, a folder per class, with seeds 0, 1, ... in their order; returns the folder."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            how(folder / name / str(i), recording(60, count * number + i, start=500))
    return folder


def load(split: str, folder: Path, **more: Any) -> datasets.Arrays:
    return datasets.load("recordings", split, str(folder), **{"timesteps": 4, "sensor_size": (32, 48), "window_ms": 80.0, **more})


@pytest.mark.filterwarnings(LOSSES)
@pytest.mark.parametrize("how", [as_npy, as_npz, as_bin])
def test_files_of_recordings_are_the_spike_trains_that_are_counted(tmp_path: Path, how: Any) -> None:
    train = load("train", write(tmp_path / "train", how=how).parent)
    assert (train.class_names, train.num_train, train.num_test) == (("left", "right"), 8, 2) and train.event_based
    held = load("test", tmp_path)
    assert held.labels.tolist() == [0, 1] and held.images.shape == (2, 4, 32, 48, 2)
    found = {image.tobytes() for part in (train, held) for image in part.images[:]}
    assert found == {counted(recording(60, i, start=500), 4, 80_000, (32, 48)).tobytes() for i in range(10)}
    small = load("test", tmp_path, image_size=(8, 12), like=datasets.describe(train))
    assert small.images.shape == (2, 4, 8, 12, 2)


@pytest.mark.equipped
@pytest.mark.filterwarnings(LOSSES)
@pytest.mark.parametrize("how, sensor", [(as_aedat2, (128, 128)), (as_aedat3, (32, 48))])
def test_aedat_files_are_read_by_tonic(tmp_path: Path, how: Any, sensor: tuple[int, int]) -> None:
    pytest.importorskip("tonic")
    wanted = load("train", write(tmp_path / "arrays"), sensor_size=sensor)
    folder = write(tmp_path / "files", how=how)
    np.testing.assert_array_equal(load("train", folder, sensor_size=sensor).images[:], wanted.images[:])
    if how is as_aedat2:
        refused(folder, "differ from camera to camera; those of a DVS128, --sensor_size=128, are read here")
    (folder / "left" / "0.aedat").write_bytes(b"#!AER-DAT9\r\n")
    refused(parted(folder), "0.aedat cannot be read", sensor_size=sensor)


def test_without_tonic_its_files_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tonic", None)
    refused(write(tmp_path / "files", how=as_aedat2), r"pip install tonic, or save recordings as structured arrays")


@pytest.mark.filterwarnings(LOSSES)
def test_a_part_to_test_with_has_the_classes_of_the_network(tmp_path: Path) -> None:
    info = datasets.describe(load("train", write(tmp_path / "train").parent))
    write(tmp_path / "other" / "test", ("right",), 2)
    assert load("test", tmp_path / "other", like=info).labels.tolist() == [1, 1]
    (tmp_path / "other" / "test" / "right" / "notes.txt").write_text("among the recordings")
    with pytest.warns(UserWarning, match="notes.txt has none of the suffixes .npy"):
        load("test", tmp_path / "other", like=info)


def refused(folder: Path, message: str, **more: Any) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load("train", folder, **more)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def other(content: Any) -> Callable[[Path], None]:
    """Writes another array, or bytes, for a recording that is read first of all."""
    def make(folder: Path) -> None:
        file = write(folder) / "left" / "0.npy"
        file.write_bytes(content) if isinstance(content, bytes) else np.save(file, content)
    return make


@pytest.mark.parametrize("make, message", [
    (lambda folder: None, "needs one per class; sort the recordings into .*/CLASS/[*].npy"),
    (lambda folder: (write(folder) / "empty").mkdir(), r"empty has no recordings \(.npy, .npz, .bin, .aedat\); put some in, or remove it"),
    (lambda folder: write(folder, count=1), "no class of .* has two recordings"), (lambda folder: write(folder / "test"), "put the recordings to train with into"),
    (other(b"no array"), "left/0.npy cannot be read .*save recordings as structured arrays"), (other(np.array(["a"], object)), "cannot be read .*Object arrays"),
    (other(np.zeros((5, 4))), "events of .*left/0.npy must be .*fields x, y, t, p, received ndarray"),
    (other(np.zeros(5, [("x", int), ("y", int), ("t", float), ("p", int)])), "`t` of .*left/0.npy must be of an integer type")])
def test_recordings_that_cannot_be_used_are_one_sentence(tmp_path: Path, make: Callable[[Path], Any], message: str) -> None:
    make(tmp_path)
    # every record of a class may be held out: the first one is read in training where there is a part to test with
    if (tmp_path / "left" / "1.npy").exists():
        tmp_path = parted(tmp_path)
    refused(tmp_path, message)


def parted(folder: Path) -> Path:
    """The same recordings in a part to train with, beside one to test with."""
    whole = folder.parent / f"{folder.name}-parted"
    whole.mkdir()
    write(whole / "test", count=1)
    folder.rename(whole / "train")
    return whole


def test_what_else_cannot_be_read(tmp_path: Path) -> None:
    folder = parted(write(tmp_path / "a", how=as_bin))
    refused(folder, r"`x` of .*left/0.bin is .*, legal are 0 to 15", sensor_size=(32, 16))
    (folder / "train" / "left" / "0.bin").write_bytes(b"1234567")
    refused(folder, "left/0.bin cannot be read .*an event takes 5 bytes")
    refused(folder, "timesteps, window_ms and sensor_size .* are needed, received 4, None", window_ms=None)
    folder = parted(write(tmp_path / "b", how=as_npz))
    np.savez(folder / "train" / "left" / "0.npz", x=1, y=2)
    refused(folder, "left/0.npz lacks the fields t, p")


def test_sensor_and_window_are_settings_of_recordings() -> None:
    made = flags.parse("--dataset=recordings --data_dir=a/gestures --sensor_size=128 --image_size=32,32 --window_ms=1500".split())[0]
    assert (made.sensor_size, made.image_size, made.window_ms, made.encoder, made.timesteps) == ((128, 128), (32, 32), 1500.0, "none", 10)
    assert default_workdir(made).startswith("runs/lenet-recordings-gestures-rate-")
    for settings, message in (({"dataset": "recordings", "window_ms": 5}, "needs --sensor_size.* give --sensor_size"),
                              ({"dataset": "recordings", "sensor_size": (8,)}, "give --window_ms"), ({"window_ms": 5}, "is of --dataset=recordings"),
                              ({"sensor_size": (8, 8)}, "is of --dataset=recordings"), ({"window_ms": 0.0}, "a number from .001"),
                              ({"dataset": "recordings", "sensor_size": (8, 8, 2), "window_ms": 5}, "--sensor_size takes height and width")):
        with pytest.raises(UserError, match=message):
            resolve(settings)
    with pytest.raises(UserError, match="--encoder=poisson codes pixels, but recordings holds spikes"):
        Config(dataset="recordings", sensor_size=(8, 8), window_ms=5.0)


@pytest.mark.filterwarnings(LOSSES)
def test_a_run_on_recordings_is_tested_from_its_workdir_alone_and_refuses_other_recordings(tmp_path: Path) -> None:
    from tfspike import evaluation, training
    from tfspike.evaluation.options import EvalOptions

    folder = write(tmp_path / "moves", count=10)
    made = runs.tiny(tmp_path / "run", dataset="recordings", data_dir=str(folder), sensor_size=(32, 48), image_size=(8, 12), window_ms=100,
                     epochs=1, lr_milestones=(), val_fraction=0.2, lr_schedule="milestones", warmup_epochs=0)
    assert training.run(made, say=lambda line: None) == 0
    record = evaluation.evaluate_run(EvalOptions(workdir=str(tmp_path / "run")), lambda line: None)
    assert (record["records"], record["dataset"], list(record["per_class"])) == (4, "recordings", ["left", "right"])
    for i in range(10):
        as_npy(folder / "left" / str(i), recording(60, 100 + i))
    with pytest.raises(UserError, match="are not those .*contents_crc32"):
        training.run(dataclasses.replace(made, epochs=2), say=lambda line: None)
