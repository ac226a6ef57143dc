"""How long a run takes: told after its first steps, so that nobody finds out on the next day."""

from __future__ import annotations

import math
import time

from tfspike.output import counted

_WARMING_UP = 2   # first steps, in which functions are compiled
_MEASURED = 10    # steps that are timed, at most
_ENOUGH = 60.0    # seconds of them that are enough
_LONG = 24 * 3600.0


class Pace:
    """Times the first steps of a command and says once how long all of them will take.

    Args:
      last_step: steps of the whole run.
      epochs: of the whole run.
    """

    def __init__(self, last_step: int, epochs: int):
        self._last_step, self._epochs = last_step, epochs
        self._seen = 0
        self._since = 0.0

    def after(self, step: int, now: float | None = None) -> list[str]:
        """Lines for the user after step `step`; [] but once.

        Args:
          step: training steps so far.
          now: seconds of a monotonic clock; None asks it.
        """
        now = time.monotonic() if now is None else now
        self._seen += 1
        if self._seen <= _WARMING_UP:
            self._since = now
            return []
        timed = self._seen - _WARMING_UP
        if not self._since or (timed < _MEASURED and now - self._since < _ENOUGH):
            return []
        per_step = (now - self._since) / timed
        self._since = 0.0
        whole, left = self._last_step * per_step, (self._last_step - step) * per_step
        of_it = "" if whole - left < 0.1 * whole else f", of which {spoken(left)} are left"
        lines = [f"Expected duration: {spoken(whole)} of training for {counted(self._epochs, 'epoch')}, "
                 f"{per_step:.2g} s per step{of_it}."]
        if left > _LONG:
            lines.append(f"Warning: that is {left / _LONG:.1f} days from now on on this machine. Fewer --epochs or "
                         "--timesteps, --precision=mixed_bfloat16, or the recipe (without --method, --preset and "
                         "--config) take less; a run can be stopped with Ctrl-C and continued.")
        return lines


class Speed:
    """Measures training, but for what is done between epochs.

    Args:
      step: training steps before this command.
    """

    def __init__(self, step: int):
        self._begun = self._looked = (time.monotonic(), step)

    def restart(self, step: int) -> None:
        """The time until now was spent on something else than training steps."""
        self._looked = time.monotonic(), step

    def look(self, step: int) -> float:
        """Steps per second since the last look or restart, after step `step`."""
        (then, before), self._looked = self._looked, (time.monotonic(), step)
        return (step - before) / max(self._looked[0] - then, 1e-9)

    def left(self, step: int, last_step: int) -> float:
        """Seconds until the last step, at the speed of this command up to its last look, with all that it has done."""
        return (last_step - step) * (self._looked[0] - self._begun[0]) / (step - self._begun[1])


def clock(seconds: float) -> str:
    """A duration as on a clock: 1:02:03."""
    minutes, seconds = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def spoken(seconds: float) -> str:
    """A duration in words, as exact as a forecast is: 40 seconds, 12 minutes, 3.4 hours, 2.5 days."""
    for unit, name in ((24 * 3600.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}" if unit > 60 else f"{seconds / unit:.0f} {name}"
    return counted(round(seconds), "second")
