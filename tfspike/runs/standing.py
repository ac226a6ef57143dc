"""Which checkpoint of a run is meant, and how far its run is."""

from __future__ import annotations

import dataclasses
import os

from tfspike.config.config import Config
from tfspike.errors import UserError
from tfspike.runs import checkpoints
from tfspike.runs.checkpoints import Checkpoint
from tfspike.runs.workdir import CHECKPOINTS, Say, finished


def open_checkpoint(path: str, say: Say, which: str | None = None) -> Checkpoint:
    """The verified checkpoint at `path`, which is a checkpoint, a `checkpoints` folder or a workdir.

    Args:
      path: where to look.
      say: takes sentences about damaged ones passed over.
      which: "best" or "last"; None means the newest that is whole.

    Raises:
      UserError: there is none, or it is damaged.
    """
    if os.path.exists(os.path.join(path, "meta.json")) or os.path.isfile(path):
        return checkpoints.read(path)
    inner = os.path.join(path, CHECKPOINTS)
    folder = inner if os.path.isdir(inner) else path
    step = checkpoints.target_of(folder, which) if which else None
    # a copy without links, nothing validated yet, or a run that went back to a checkpoint before its first validation
    if which == "best" and step not in checkpoints.steps(folder):
        step = _best_step(checkpoints.newest(folder, lambda line: None))
    if step is not None:
        try:
            return checkpoints.read(os.path.join(folder, checkpoints.name_of(step)))
        except UserError as error:
            if which == "best":
                newest = os.path.join(folder, "last")
                raise UserError(f"{error} The newest one is {newest}, --checkpoint=last of eval.py.") from None
    checkpoint = checkpoints.newest(folder, say)
    if checkpoint is None:
        raise UserError(f"There is no checkpoint in {path}; give a checkpoint's folder or the workdir of a run.")
    return checkpoint


def kernel_of(checkpoint: Checkpoint) -> str:
    """What --kernel=auto is in the run that wrote a checkpoint, "dense" or "events"; in earlier versions, the first."""
    return "events" if checkpoint.meta.get("kernel") == "events" else "dense"


def _best_step(checkpoint: Checkpoint | None) -> int | None:
    """The step of the best weights when this checkpoint was written; None where validation had chosen none."""
    try:
        return checkpoint.meta["progress"]["best"]["step"]  # type: ignore[union-attr]
    except (AttributeError, KeyError, TypeError):
        return None


@dataclasses.dataclass(frozen=True)
class Standing:
    """What a checkpoint is of its run, and how far the run is.

    Attributes:
      which: "best" by validation, or "last"; "last" too where nothing has been validated yet.
      step: training steps behind the checkpoint.
      trained: training steps that the run has done.
      wanted: those of all its epochs; None where nobody trains (converted networks, weights of the library).
    """

    which: str
    step: int
    trained: int
    wanted: int | None = None

    @property
    def finished(self) -> bool:
        """Whether every epoch has been trained."""
        return self.wanted is None or self.trained >= self.wanted

    @property
    def unfinished(self) -> str:
        """"unfinished, at step 30 of 120"; empty of a finished run."""
        return "" if self.finished else f"unfinished, at step {self.trained:,} of {self.wanted:,}"

    def describe(self) -> str:
        """Of which step the weights are, in words."""
        more = f"; the run is {self.unfinished}" if self.unfinished else ""
        return f"{self.which} checkpoint{' so far' if more and self.which == 'best' else ''} (step {self.step}{more})"


def standing(config: Config, which: str, checkpoint: Checkpoint) -> Standing:
    """What a checkpoint, asked for as `which`, is of the run that `config` is of; its workdir is where the run is."""
    progress = checkpoint.meta.get("progress")
    length = progress.get("steps_per_epoch") if isinstance(progress, dict) else None
    if type(length) is not int:
        return Standing(which, checkpoint.step, checkpoint.step)
    folder = os.path.join(str(config.workdir), CHECKPOINTS)
    chosen = which == "best" and checkpoint.step in (checkpoints.target_of(folder, which), _best_step(checkpoint))
    done = finished(str(config.workdir), config).get("step")
    trained = max([checkpoint.step, *checkpoints.steps(folder), done if type(done) is int else 0])
    return Standing("best" if chosen else "last", checkpoint.step, trained, config.epochs * length)
