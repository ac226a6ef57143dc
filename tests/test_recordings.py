"""Recordings of other event cameras, as tonic's data sets give them: against bins that are counted one event at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tfspike import datasets
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
