"""How much training fits into some seconds of processor time: what a probe has measured, and the flags that follow.

A probe is a short run of two epochs, each with two lines of progress in `metrics.jsonl`:

    half an epoch, half an epoch, validation, half an epoch, half an epoch, validation

The last half of steps has nothing in it but steps, and the last validation nothing that a first one has to do. The
first epoch has the start of the process, tracing and compiling besides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tfspike.config.config import Config
from tfspike.errors import UserError
from tfspike.runs.results import PROCESSOR_SECONDS

VALIDATIONS = 0.15  # of the time, if that leaves a handful of them
_FEWEST = 5


class Cost(NamedTuple):
    """Processor seconds of a run.

    Attributes:
      start: once: imports, data, tracing, compiling.
      step: a training step.
      validation: the end of an epoch: validation, checkpoint, records.
    """

    start: float
    step: float
    validation: float


def probe_flags(steps: int) -> list[str]:
    """Of a run that `cost_of` can read, with so many steps in an epoch, an even number."""
    return ["--epochs=2", f"--steps_per_epoch={steps}", f"--log_every={steps // 2}"]


def cost_of(events: Sequence[Mapping[str, Any]]) -> Cost:
    """What a run costs whose probe left these lines of `metrics.jsonl`."""
    _, _, begun, half, steps, end = (event[PROCESSOR_SECONDS] for event in events)
    epoch = events[2]["step"]
    step, validation = (steps - half) / (epoch / 2), end - steps
    saving = half - begun - epoch / 2 * step
    return Cost(max(0.0, begun - epoch * step - validation), step, validation + max(0.0, saving))


def plan(config: Config, cost: Cost, seconds: float, points: int) -> list[str]:
    """The flags of a run that takes so much processor time and ends with its schedule of the learning rate.

    An epoch is as many steps as a part of the time has, so that a run may end within a pass over the data. There are
    fewer of them where validation costs much. Milestones and warm-up stay where they are in the run as a whole.

    Args:
      config: of the method, with its own epochs.
      cost: of the method.
      seconds: processor time of the run.
      points: most epochs of the run.

    Raises:
      UserError: the time is too short for it.
    """
    left = seconds - cost.start
    points = min(points, max(_FEWEST, int(VALIDATIONS * left / cost.validation)))
    steps = int((left / points - cost.validation) / cost.step)
    if steps < 1:
        raise UserError(f"{seconds:.0f} s of processor time do not suffice: it takes {cost.start:.1f} s to start, and "
                        f"{cost.step:.3g} s a step and {cost.validation:.3g} s a validation, {points} times. Give more "
                        "--hours, or fewer --points.")
    scale = points / config.epochs
    flags = [f"--epochs={points}", f"--steps_per_epoch={steps}"]
    if config.warmup_epochs:
        flags.append(f"--warmup_epochs={max(1, round(config.warmup_epochs * scale))}")
    if config.lr_milestones:
        milestones = sorted({max(1, round(epoch * scale)) for epoch in config.lr_milestones})
        flags.append(f"--lr_milestones={','.join(map(str, milestones))}")
    return flags
