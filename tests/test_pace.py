"""The forecast of a run's duration."""

import pytest

from tfspike.training import pace
from tfspike.training.pace import Pace, Speed, clock, spoken


def lines(seconds_per_step, last_step=1000, steps=50, first=0):
    forecast, said = Pace(last_step, 5), []
    for number in range(1, steps + 1):
        # two steps of compilation, which last a minute each
        now = 60.0 * min(number, 2) + seconds_per_step * max(0, number - 2)
        said += [(number, line) for line in forecast.after(first + number, now)]
    return said


def test_the_duration_is_said_once_and_without_compilation():
    ((step, line),) = lines(3.0)
    assert step == 12
    assert line == "Expected duration: 50 minutes of training for 5 epochs, 3 s per step."


def test_one_is_not_said_in_the_plural():
    assert Pace(1000, 1).after(1, 0.0) == []
    one = Pace(1000, 1)
    (line,) = [line for step in range(1, 14) for line in one.after(step, 3.0 * step)]
    assert "training for 1 epoch, 3 s per step." in line and spoken(0.8) == "1 second"


def test_slow_steps_are_not_waited_for():
    ((step, line),) = lines(40.0)
    assert step == 4 and "11.1 hours" in line


def test_more_than_a_day_is_warned_about():
    (_, first), (_, second) = lines(200.0)
    assert "2.3 days" in first and second.startswith("Warning: that is 2.3 days") and "--method" in second


def test_what_is_left_of_a_continued_run_is_told_apart():
    ((step, line),) = lines(3.0, first=500)
    assert "50 minutes of training for 5 epochs" in line and line.endswith("of which 24 minutes are left.")


def test_a_run_of_a_few_steps_says_nothing():
    assert lines(1.0, last_step=6, steps=6) == []


@pytest.mark.parametrize("seconds, words, digits", [
    (40, "40 seconds", "0:40"), (119, "119 seconds", "1:59"), (600, "10 minutes", "10:00"),
    (3600 * 3.44, "3.4 hours", "3:26:24"), (86400 * 2.5, "2.5 days", "60:00:00")])
def test_durations_in_words_and_on_a_clock(seconds, words, digits):
    assert (spoken(seconds), clock(seconds)) == (words, digits)


def test_speed_leaves_out_what_is_done_between_epochs_and_the_time_left_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    speed = Speed(40)
    now[0] += 5.0
    assert speed.look(50) == 2.0 and speed.left(50, 90) == 20.0
    now[0] += 15.0  # validation
    speed.restart(50)
    now[0] += 1.0
    assert speed.look(54) == 4.0 and speed.left(54, 68) == 21.0
