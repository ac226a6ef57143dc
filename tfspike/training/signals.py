"""SIGTERM, Ctrl-C and a terminal that hangs up while training: remembered until a run can be saved, then its end."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType


class Stopped(Exception):
    """A signal asked for the end; the run has been saved."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def _hang_up() -> tuple[int, ...]:
    number = getattr(signal, "SIGHUP", None)  # which Windows has not
    return () if number is None or signal.getsignal(number) == signal.SIG_IGN else (number,)


Handler = Callable[[int, FrameType | None], object] | int | None  # what signal.signal takes and returns


class Signals:
    """SIGTERM, SIGHUP and Ctrl-C asked for once: remembered until the step ends; asked for twice: obeyed at once.

    SIGHUP that is ignored, as under `nohup`, stays ignored."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Handler] = {}

    def __enter__(self) -> Signals:
        for number in (signal.SIGINT, signal.SIGTERM, *_hang_up()):
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not the main thread: signals are the caller's
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            self.__exit__()
            signal.raise_signal(number)
        self.received = number
