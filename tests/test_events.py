"""N-MNIST: both layouts give the same spikes, and every kind of damage ends in one sentence."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tfspike import datasets
from tfspike.config import resolve
from tfspike.datasets import events, streams
from tfspike.errors import UserError
from tfspike.runs import loading as run_loading

# What a window loses, and classes without a record, are said of the recordings made here; three tests ask for the words.
pytestmark = [pytest.mark.filterwarnings("ignore:(events|nmnist). of .* (events|recordings):UserWarning"),
              pytest.mark.filterwarnings("ignore:.* classes of .* have no training record:UserWarning")]

QUICKLY = hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
REAL = os.environ.get("TFSPIKE_DATA_DIR")
EVENT = st.tuples(st.integers(0, 33), st.integers(0, 33), st.integers(0, 2**23 - 1), st.integers(0, 1))
RECORDING = st.lists(EVENT, min_size=1, max_size=12)


def packed(recording: Any) -> bytes:
    """A recording [(x, y, t, p)] as 40-bit words, one after the other: a second way, one event at a time."""
    return b"".join((x << 32 | y << 24 | p << 23 | t).to_bytes(5, "big") for x, y, t, p in recording)


def write_bins(root: Path, recordings: Any, part: str = "Train") -> None:
    """`[(name, digit, [(x, y, t, p)])]` as the original files."""
    for name, digit, recording in recordings:
        place = root / part / str(digit)
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(packed(recording))


def write_npz(path: Path, **change: Any) -> None:
    fields = {"x": [0, 33, 5, 5, 1], "y": [0, 33, 6, 6, 2], "t": [0, 299_999, 150_000, 150_001, 300_000],
              "p": [1, 0, 1, 1, 1], "offsets": [0, 2, 4, 5], "label": [0, 1, 7], "index": [1, 60_000, 60_001]}
    np.savez(path, **{name: np.array(value) for name, value in {**fields, **change}.items()})  # type: ignore[arg-type]


def digits(*recording: Any) -> list[Any]:
    """A recording of every digit: the least that is a data set."""
    return [(f"{digit + 1:05d}.bin", digit, list(recording) or [(digit, 3, 1000 * digit, 1)]) for digit in range(10)]


def refused(folder: Path, split: str = "train") -> str:
    with pytest.raises(UserError) as caught:
        datasets.load("nmnist", split, str(folder), timesteps=10)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- 40 bits -------------------------------------------------------------------------------------------------------


@QUICKLY
@given(RECORDING)
def test_what_is_written_is_read(tmp_path: Path, recording: list[tuple[int, int, int, int]]) -> None:
    path = tmp_path / "00001.bin"
    path.write_bytes(packed(recording))
    assert list(zip(*(field.tolist() for field in events.read_bin(path)))) == recording


def test_each_field_has_its_bits() -> None:
    found = events.decode(bytes([1, 2, 0x80, 0, 0, 33, 0, 0x7F, 0xFF, 0xFF, 0, 33, 0x01, 0x02, 0x03]))
    assert [field.tolist() for field in found] == [[1, 33, 0], [2, 0, 33], [0, 2**23 - 1, 0x010203], [1, 0, 0]]
    assert [field.dtype for field in found] == [np.uint8, np.uint8, np.uint32, np.uint8]


@QUICKLY
@given(st.binary(max_size=60))
def test_any_bytes_are_events_or_one_sentence_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "00001.bin"
    path.write_bytes(content)
    try:
        found = events.read_bin(path)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        sound = content and not len(content) % 5 and max(content[0::5] + content[1::5]) < 34
        assert not sound
    else:
        assert len(content) == 5 * len(found.t) > 0 and max(found.x.max(), found.y.max()) < 34 and found.p.max() <= 1


# ---- folders -------------------------------------------------------------------------------------------------------


@QUICKLY
@given(st.lists(RECORDING, min_size=11, max_size=14), st.randoms(use_true_random=False), st.integers(1, 30))
def test_the_original_files_and_an_archive_of_them_give_the_same_spikes(
        tmp_path_factory: pytest.TempPathFactory, recordings: list[Any], random: Any, timesteps: int) -> None:
    """Every digit once, further ones of any digit, the last recording in test; numbers as in MNIST."""
    root = tmp_path_factory.mktemp("nmnist")
    labels = [*range(10), *(random.randrange(10) for _ in recordings[10:])]
    random.shuffle(labels)
    index = sorted(random.sample(range(1, 60_001), len(recordings)))
    named = [(f"{number:05d}.bin", label, recording) for number, label, recording in zip(index, labels, recordings)]
    write_bins(root / "bins", named)
    write_bins(root / "bins", named[-1:], "Test")
    (root / "archive").mkdir()
    everything = [*recordings, recordings[-1]]
    x, y, t, p = (np.array([event[field] for recording in everything for event in recording]) for field in range(4))
    write_npz(root / "archive" / "nmnist.npz", x=x, y=y, t=t, p=p, offsets=np.cumsum([0, *map(len, everything)]),
              label=[*labels, labels[-1]], index=[*index, 60_001])
    one, other = (datasets.load("nmnist", "train", str(root / folder), timesteps) for folder in ("bins", "archive"))
    everyone = np.arange(len(recordings))
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_array_equal(one.images[everyone], other.images[everyone])
    assert (one.num_train, one.num_test) == (other.num_train, other.num_test) == (len(recordings), 1)


def test_records_are_in_the_order_of_their_file_names_across_digits(tmp_path: Path) -> None:
    order = [5, 0, 4, 1, 9, 2, 1, 3, 1, 4, 7, 6, 8]
    write_bins(tmp_path, [(f"{i + 1:05d}.bin", digit, [(i, digit, 0, 0)]) for i, digit in enumerate(order)])
    (tmp_path / "Train" / "3" / "notes.txt").write_text("no recording")
    got = datasets.load("nmnist", "train", str(tmp_path), timesteps=1)
    assert got.labels.tolist() == order and (got.num_train, got.num_test) == (13, 0)
    for i, digit in enumerate(order):
        assert got.images[i][0, digit, i, 0] == 1 and got.images[i].sum() == 1  # row y, column x, channel off


@pytest.mark.parametrize("name", ["", "nmnist", "NMNIST", "N-MNIST"])
def test_the_folder_may_lie_inside_of_data_dir(tmp_path: Path, name: str) -> None:
    write_bins(tmp_path / name, digits())
    assert len(datasets.load("nmnist", "train", str(tmp_path), timesteps=3)) == 10


def test_one_folder_under_two_names_is_one(tmp_path: Path) -> None:
    """As every name is where upper and lower case are the same."""
    write_bins(tmp_path / "nmnist", digits())
    (tmp_path / "NMNIST").symlink_to("nmnist")
    assert len(datasets.load("nmnist", "train", str(tmp_path), timesteps=3)) == 10


@pytest.mark.parametrize(("content", "part"), [
    (packed([(1, 2, 3, 1)])[:-1], "truncated: it has 4 bytes"), (packed([(1, 2, 3, 1)] * 3) + b"\0", "truncated: it has 16 bytes"),
    (packed([(1, 2, 3, 1), (34, 2, 3, 0)]), "its event 1 is at x = 34, y = 2"),
    (packed([(0, 240, 3, 0)]), "its event 0 is at x = 0, y = 240"), (b"", "is empty")])
def test_a_damaged_recording_is_named_and_what_is_wrong_with_it(tmp_path: Path, content: bytes, part: str) -> None:
    write_bins(tmp_path, digits())
    (tmp_path / "Train" / "4" / "00005.bin").write_bytes(content)
    text = refused(tmp_path)
    assert part in text and str(Path("Train", "4", "00005.bin")) in text and "again" in text


def test_a_recording_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    write_bins(tmp_path, digits())
    (tmp_path / "Train" / "4" / "00099.bin").mkdir()
    assert re.search(r"00099\.bin cannot be read \(", refused(tmp_path))


def test_missing_classes_and_empty_folders_are_named(tmp_path: Path) -> None:
    write_bins(tmp_path, [entry for entry in digits() if entry[1] not in (3, 7)])
    assert "has no recordings of 3, 7" in refused(tmp_path)
    (tmp_path / "Train" / "3").mkdir()  # a class without files is missing too
    assert "has no recordings of 3, 7" in refused(tmp_path)
    assert f"{tmp_path / 'Test'} has no recordings" in refused(tmp_path, "test")
    (tmp_path / "Test").mkdir()
    assert f"{tmp_path / 'Test'} has no recordings" in refused(tmp_path, "test")


def test_nothing_there_and_too_much_there_are_refused(tmp_path: Path) -> None:
    assert "found neither; give --data_dir=FOLDER with the original Train/0..9/*.bin" in refused(tmp_path)
    write_bins(tmp_path, digits())
    write_npz(tmp_path / "nmnist.npz")
    assert "found 2" in refused(tmp_path)
    with pytest.raises(UserError, match="cannot be downloaded"):
        datasets.load("nmnist", "train", timesteps=3)


# ---- one archive ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"x": [0, 34, 5, 5, 1]}, {"offsets": [0, 2, 4, 6]}, {"p": [2] * 5}, {"label": [0]},
                                    {"t": [0.5] * 5}, {"index": [1, 2, 3]}])
def test_a_damaged_archive_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    write_npz(tmp_path / "nmnist.npz", **change)
    assert "nmnist.npz" in refused(tmp_path, "test")


def test_a_truncated_archive_a_pickle_and_no_number_of_steps_are_refused(tmp_path: Path) -> None:
    for prepare in (lambda: (tmp_path / "nmnist.npz").write_bytes(b"PK\3\4broken"),
                    lambda: np.savez(tmp_path / "nmnist.npz", x=np.array([{}], object))):
        prepare()
        assert "fields x, y, t, p" in refused(tmp_path)
    with pytest.raises(UserError, match="timesteps"):
        datasets.load("nmnist", "train", str(tmp_path))


# ---- frames --------------------------------------------------------------------------------------------------------


def test_events_are_binned_over_300_ms_into_binary_spikes(tmp_path: Path) -> None:
    write_npz(tmp_path / "nmnist.npz")
    got = datasets.load("nmnist", "train", str(tmp_path), timesteps=10)
    assert got.images.shape == (2, 10, 34, 34, 2) and got.labels.tolist() == [0, 1]
    expected = np.zeros((2, 10, 34, 34, 2), np.uint8)
    expected[0, 0, 0, 0, 1] = expected[0, 9, 33, 33, 0] = expected[1, 5, 6, 5, 1] = 1
    np.testing.assert_array_equal(got.images[np.arange(2)], expected)
    test = datasets.load("nmnist", "test", str(tmp_path), timesteps=10)
    assert len(test) == 1 and test.images[0].sum() == 0  # its one event lies behind the window


@QUICKLY
@given(RECORDING, st.integers(1, 400))
def test_a_frame_has_a_spike_where_and_when_there_was_an_event(recording: list[Any], timesteps: int) -> None:
    fields = events.Events(*(np.array(field) for field in zip(*recording)))
    frames = events.EventFrames(fields, np.array([0, len(recording)]), timesteps)[0]
    wanted = {(t * timesteps // 300_000, y, x, p) for x, y, t, p in recording if t < 300_000}
    assert {tuple(place) for place in np.argwhere(frames).tolist()} == wanted
    assert frames.dtype == np.uint8 and frames.max(initial=0) <= 1


def test_binning_in_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    fields = events.Events(*(random.integers(0, end, 500) for end in (34, 34, 400_000, 2)))
    offsets = np.array([0, 100, 100, 500])
    whole = events.EventFrames(fields, offsets, 7)[np.arange(3)]
    monkeypatch.setattr(events, "_BLOCK", 64)
    np.testing.assert_array_equal(events.EventFrames(fields, offsets, 7)[np.arange(3)], whole)
    assert whole[1].sum() == 0 < whole[2].sum()


# ---- other cameras -------------------------------------------------------------------------------------------------


def other(*recording: Any, **dtypes: Any) -> events.Events:
    """`[(x, y, t, p)]` as `Events`, in int64 or the dtypes given."""
    columns = zip(*recording) if recording else [()] * 4
    return events.Events(*(np.array(column, dtypes.get(name, np.int64)) for name, column in zip("xytp", columns)))


def spikes(given: Any, offsets: Any = None, timesteps: int = 1, **kwargs: Any) -> list[list[int]]:
    """Places [record, step, y, x, channel] of all spikes."""
    count = len(given["t"] if isinstance(given, np.ndarray) else given.t)
    frames = events.EventFrames(given, [0, count] if offsets is None else offsets, timesteps, **kwargs)
    return np.argwhere(frames[np.arange(len(frames))]).tolist()


@pytest.mark.parametrize("p, dtype", [((-1, 1), np.int8), ((0, 1), np.uint8), ((False, True), bool), ((0, 1), np.uint64)])
def test_every_common_polarity_is_off_and_on(p: tuple[Any, Any], dtype: Any) -> None:
    for value, channel in zip(p, (0, 1)):
        assert spikes(other((5, 5, 0, value), p=dtype)) == [[0, 0, 5, 5, channel]]
    both = other((5, 5, 0, p[0]), (5, 6, 0, p[1]), p=dtype)
    assert spikes(both) == [[0, 0, 5, 5, 0], [0, 0, 6, 5, 1]]


@pytest.mark.parametrize("event, field, dtypes", [
    ((34, 0, 0, 1), "`x`", {}), ((-1, 0, 0, 1), "`x`", {}), ((0, 34, 0, 1), "`y`", {}), ((0, -1, 0, 1), "`y`", {}),
    ((0, 0, -1, 1), "`t`", {}), ((0, 0, 2**63, 1), "`t`", {"t": np.uint64}), ((0, 0, 0, 2), "`p`", {}),
    ((0, 0, 0, -2), "`p`", {}), ((0, 0, 0, 255), "`p`", {"p": np.uint8}), ((0.5, 0, 0, 1), "`x`", {"x": float}),
    ((0, 0, float("nan"), 1), "`t`", {"t": float}), ((0, 0, 0.1, 1), "`t`", {"t": float}),
    ((0, 0, float("inf"), 1), "`t`", {"t": float}), ((0, 0, 0, "on"), "`p`", {"p": str}),
    ((0, 0, 0, 1), "`t`", {"t": "timedelta64[us]"}), ((True, 0, 0, 1), "`x`", {"x": bool})])
def test_what_no_camera_means_is_refused_by_field(event: Any, field: str, dtypes: Any) -> None:
    with pytest.raises(UserError, match=f"{field}.*my camera") as caught:
        events.EventFrames(other((3, 3, 3, 1), event, **dtypes), [0, 2], 4, name="my camera")
    assert "\n" not in str(caught.value)


def test_polarities_of_two_conventions_at_once_are_refused() -> None:
    with pytest.raises(UserError, match="`p`.*received -1, 0, 1"):
        spikes(other((0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0, -1)))


def test_a_structured_array_is_read_by_name_and_in_the_sensors_own_size() -> None:
    fields = [("t", np.int64), ("p", bool), ("y", np.uint16), ("x", np.uint16)]
    given = np.array([(10, True, 127, 3), (250_000, False, 0, 639)], fields)
    assert spikes(given, size=(128, 640), timesteps=3) == [[0, 0, 127, 3, 1], [0, 2, 0, 639, 0]]
    with pytest.raises(UserError, match="fields x, y, t, p, received an array with the fields ts, pol"):
        events.EventFrames(np.zeros(3, [("ts", int), ("pol", int)]), [0, 3], 1)
    with pytest.raises(UserError, match="received ndarray"):
        events.EventFrames(np.zeros((3, 4), int), [0, 3], 1)


def test_an_absolute_clock_is_refused_or_counted_from_each_first_event() -> None:
    """Both recordings begin at 90 s or later; the second one is not in order of time."""
    given = other((1, 1, 90_000_000, 1), (2, 1, 90_299_999, 0), (3, 1, 200_299_999, 1), (4, 1, 200_000_000, 1))
    with pytest.raises(UserError, match="recording 0 of.*begins at t = 90000000 us.*relative=True"):
        spikes(given, [0, 2, 2, 4], 3)
    assert spikes(given, [0, 2, 2, 4], 3, relative=True) == [[0, 0, 1, 1, 1], [0, 2, 1, 2, 0], [2, 0, 1, 4, 1],
                                                             [2, 2, 1, 3, 1]]
    shifted = given._replace(t=(given.t - 90_000_000).astype(np.uint32))
    assert spikes(shifted, [0, 2, 2, 4], 3, relative=True) == spikes(given, [0, 2, 2, 4], 3, relative=True)


def test_the_largest_time_of_64_bits_does_not_overflow() -> None:
    for dtype in (np.int64, np.uint64):
        given = other((1, 1, 0, 1), (2, 2, 2**63 - 1, 1), t=dtype)
        with pytest.warns(UserWarning, match=r"of 2 events, 1 \(50 %\)"):
            assert spikes(given, timesteps=1000) == [[0, 0, 1, 1, 1]]


def test_the_window_is_an_argument_and_what_it_drops_is_said_once() -> None:
    random = np.random.default_rng(0)
    given = events.Events(*(random.integers(0, end, 5000) for end in (128, 128, 1_500_000, 2)))
    with pytest.warns(UserWarning) as caught:
        frames = events.EventFrames(given, [0, 5000], 10, (128, 128))
    late = int((given.t >= 300_000).sum())
    assert len(caught) == 1 and frames.kept == 5000 - late
    assert f"of 5,000 events, {late:,} ({100 * late / 5000:.3g} %) lie at or behind the end of the window of 300 ms" in str(caught[0].message)
    whole = events.EventFrames(given, [0, 5000], 10, (128, 128), window_ms=1500)
    assert whole.kept == 5000
    wanted = set(zip((given.t // 150_000).tolist(), given.y.tolist(), given.x.tolist(), given.p.tolist()))
    assert set(map(tuple, np.argwhere(whole[0]).tolist())) == wanted


def test_the_checksum_knows_events_and_where_recordings_begin() -> None:
    given, later = other((1, 1, 0, 1), (2, 1, 1, 1), (3, 1, 2, 1)), other((1, 1, 0, 1), (2, 1, 1, 1), (4, 1, 2, 1))
    found = {events.EventFrames(of, offsets, 1).checksum() for of, offsets in (
        (given, [0, 1, 3]), (given, [0, 2, 3]), (later, [0, 1, 3]))}
    assert len(found) == 3


def test_coinciding_events_and_silent_recordings_are_said() -> None:
    given = other((1, 1, 0, 1), (1, 1, 1, 1), (1, 1, 1, 1), (1, 1, 0, 0), (2, 2, 300_000, 0))
    with pytest.warns(UserWarning, match=r"5 events, 1 \(20 %\) lie at or behind .*; 1 of 2 recordings have none in the window; "
                                         "50 % of those in the window share"):
        assert spikes(given, [0, 5, 5]) == [[0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]


def test_nothing_is_said_of_a_set_that_loses_nothing(recwarn: pytest.WarningsRecorder) -> None:
    assert spikes(other((1, 1, 7, 1))) == [[0, 0, 1, 1, 1]] and not recwarn.list


def test_recordings_without_any_event_are_no_data() -> None:
    with pytest.warns(UserWarning, match="2 of 2 recordings"):
        frames = events.EventFrames(other(), [0, 0, 0], 3)
    assert frames[np.arange(2)].sum() == 0
    arrays = datasets.Arrays(frames, np.array([0, 1], np.int32), "dark", ("a", "b"), 2, 0, True)
    with pytest.raises(UserError, match="none of the events of 'dark'"):
        datasets.describe(arrays)


@pytest.mark.parametrize("change, message", [
    ({"offsets": [0, 3]}, "offsets"), ({"offsets": [0, 2, 1, 2]}, "offsets"), ({"offsets": [0]}, "offsets"),
    ({"offsets": [0.0, 2.0]}, "offsets"), ({"offsets": [1, 2]}, "offsets"), ({"timesteps": 0}, "timesteps"),
    ({"timesteps": 2.5}, "timesteps"), ({"size": 34}, "size"), ({"size": (34, 0)}, "size"), ({"size": (34, 34, 2)}, "size"),
    ({"window_ms": 0}, "window_ms"), ({"window_ms": -1.0}, "window_ms"), ({"window_ms": float("nan")}, "window_ms"),
    ({"window_ms": 1e-9}, "window_ms"), ({"window_ms": "300"}, "window_ms")])
def test_arguments_are_refused_at_construction(change: dict[str, Any], message: str) -> None:
    arguments = {"offsets": [0, 2], "timesteps": 3, **change}
    with pytest.raises(UserError, match=f"`{message}`"):
        events.EventFrames(other((1, 1, 0, 1), (2, 2, 1, 1)), **arguments)


def test_fields_of_different_lengths_are_refused() -> None:
    with pytest.raises(UserError, match="`y` of.*shape"):
        spikes(other((1, 1, 0, 1), (2, 2, 1, 1))._replace(y=np.zeros(1, int)))


@pytest.mark.parametrize("change, message", [
    ({"x": [0, 34, 5, 5, 1]}, "`x` of event 1 of .*nmnist.npz is 34"), ({"t": [9e7] * 5}, "`t` of .*nmnist.npz"),
    ({"t": [90_000_000] * 5}, "`t` of event 0 of .*nmnist.npz is 90000000"), ({"p": [-1, 0, 1, 1, 1]}, "`p` of .*nmnist.npz"),
    ({"label": [0, -1, 7]}, "`label` of .*nmnist.npz"), ({"label": [0, 10, 7]}, "`label` of"), ({"index": [0, 1, 2]}, "`index` of"),
    ({"label": [0.0, 1.0, 2.0]}, "`label` of .*float64"), ({"offsets": [0, 2, 4, 6]}, "`offsets` of .*nmnist.npz")])
def test_an_archive_of_another_camera_is_refused_by_file_and_field(tmp_path: Path, change: Any, message: str) -> None:
    write_npz(tmp_path / "nmnist.npz", **change)
    assert re.search(message, refused(tmp_path))


def test_an_archive_with_other_names_is_told_which_are_missing(tmp_path: Path) -> None:
    np.savez(tmp_path / "nmnist.npz", x=np.zeros(3, int), y=np.zeros(3, int), ts=np.zeros(3, int))
    assert "nmnist.npz lacks the fields t, p, offsets, label, index, it has x, y, ts" in refused(tmp_path)


def test_an_archive_with_polarities_of_two_signs_is_read(tmp_path: Path) -> None:
    write_npz(tmp_path / "nmnist.npz")
    wanted = datasets.load("nmnist", "train", str(tmp_path), timesteps=4).images[np.arange(2)]
    write_npz(tmp_path / "nmnist.npz", p=np.array([1, -1, 1, 1, 1], np.int8))
    np.testing.assert_array_equal(datasets.load("nmnist", "train", str(tmp_path), timesteps=4).images[np.arange(2)], wanted)


# ---- the way to the network ---------------------------------------------------------------------------------------


def test_batches_are_spike_trains(tmp_path: Path) -> None:
    write_npz(tmp_path / "nmnist.npz")
    got = datasets.load("nmnist", "train", str(tmp_path), timesteps=4)
    info = datasets.describe(got)
    assert info.event_based and info.image_shape == (34, 34, 2) and not info.augment
    x, _ = next(iter(streams.train_stream(got.images, got.labels, None, 2, 0, info)))
    assert x.shape == (2, 4, 34, 34, 2) and set(np.unique(x)) == {0.0, 1.0}
    with pytest.raises(UserError, match="event data"):
        datasets.describe(got, augment=True)


# ---- the network ---------------------------------------------------------------------------------------------------


def test_lenet_on_two_polarities_of_34_by_34_pixels_has_the_papers_weights() -> None:

    info = datasets.DatasetInfo("nmnist", (34, 34, 2), 10, tuple("0123456789"), (1.0, 1.0), (0.0, 0.0), False, 60_000,
                                10_000, True)
    model = run_loading.build_model(resolve({"timesteps": 2}, preset="paper_lenet_nmnist"), info)
    # conv 5x5x2x20, conv 5x5x20x50, 34 -> 17 -> 8: 8x8x50 to 200, 200 to 10
    assert model.count_params() - sum(int(np.prod(v.shape)) for v in model.non_trainable_variables) == 668_000


def test_a_run_on_the_original_files_trains_and_tests(tmp_path: Path) -> None:
    """The whole way, from .bin files to an accuracy."""
    from tfspike import evaluation, training
    from tfspike.evaluation.options import EvalOptions

    random = np.random.default_rng(0)
    for part in ("Train", "Test"):
        write_bins(tmp_path, [(f"{i:05d}.bin", i % 10, [tuple(map(int, random.integers(0, (34, 34, 300_000, 2))))
                                                        for _ in range(300)]) for i in range(20)], part)
    made = resolve({"timesteps": 3, "epochs": 1, "batch_size": 4, "lr_milestones": (), "data_dir": str(tmp_path), "export": (),
                    "tensorboard": False, "workdir": str(tmp_path / "run"), "on_collapse": "continue"},
                   preset="cpu_lenet_nmnist")  # noise, from which nothing can be learnt
    assert training.run(made, say=lambda line: None) == 0
    record = evaluation.evaluate_run(EvalOptions(workdir=str(tmp_path / "run")), lambda line: None)
    assert record["records"] == 20 and record["dataset"] == "nmnist" and record["seeds"] == 1


@pytest.mark.equipped
@pytest.mark.skipif(not REAL, reason="TFSPIKE_DATA_DIR is not set to a folder with N-MNIST in or beside it")
def test_real_recordings_have_the_labels_of_mnist() -> None:
    places = [place for place in (f"{REAL}", f"{REAL}/nmnist", f"{REAL}/../nmnist") if list(Path(place).glob("nmnist*.npz"))
              or (Path(place) / "Train").is_dir()]
    if not places:
        pytest.skip("no N-MNIST in or beside TFSPIKE_DATA_DIR")
    got = datasets.load("nmnist", "train", places[0], timesteps=20)
    assert got.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert 0.01 < got.images[np.arange(8)].mean() < 0.3
