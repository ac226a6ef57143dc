"""A profile of a few training steps for TensorBoard: which operation takes how long on which device."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from types import TracebackType

import tensorflow as tf

from tfspike.runs.workdir import TENSORBOARD

_SKIPPED, _PROFILED = 3, 5  # steps: the first ones trace and compile


class Profile:
    """Profiles steps 4 to 8 of a command; fewer where training ends before.

    Used as a context: whatever ends training, the profile is written and the profiler freed.

    Args:
      workdir: of the run; the profile goes below its TensorBoard folder.
      first_step: steps done before this command.
      last_step: the step that training ends with.
      wanted: False makes everything here do nothing.
      say: takes a line for the user.
    """

    def __init__(self, workdir: str, first_step: int, last_step: int, wanted: bool, say: Callable[[str], None]):
        self._folder = os.path.join(workdir, TENSORBOARD)
        self._begin = min(first_step + _SKIPPED, last_step - 1)
        self._end = min(self._begin + _PROFILED, last_step)
        self._wanted, self._running, self._say = wanted and last_step > first_step, False, say

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        with contextlib.suppress(tf.errors.OpError) if error else contextlib.nullcontext():
            self._stop()

    def before(self, step: int) -> None:
        """Called in front of a step with the number of steps done."""
        if self._wanted and step == self._begin:
            tf.profiler.experimental.start(self._folder)
            self._running = True

    def after(self, step: int, values: tf.Tensor) -> None:
        """Called behind a step with the number of steps done and what it returned, which is waited for."""
        if self._running and step == self._end:
            values.numpy()
            self._stop()

    def _stop(self) -> None:
        if not self._running:
            return
        self._running = False
        tf.profiler.experimental.stop()
        self._say(f"Profile of steps {self._begin + 1} to {self._end} written to {self._folder}; to look at it: "
                  "pip install tensorboard-plugin-profile")
