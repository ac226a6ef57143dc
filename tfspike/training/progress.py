"""Where a run is: its step, its running sums and its best epoch, and how they are saved, restored and shared.

Batch k follows from (seed, k), noise and dropout from step counters that are weights, and the learning rate from the
steps done. So weights, the optimiser's state and what is here are all that a checkpoint needs.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfspike import distribution
from tfspike.config.config import Config
from tfspike.distribution import Worker
from tfspike.errors import UserError
from tfspike.models import diagnosis, variables
from tfspike.models.network import Network
from tfspike.runs import checkpoints, standing, workdir


@dataclasses.dataclass
class Sums:
    """Running sums over steps, in float64; they go through JSON bit for bit."""

    steps: int = 0
    values: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, numbers: Mapping[str, float]) -> None:
        self.steps += 1
        for name, value in numbers.items():
            self.values[name] = self.values.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        return {name: value / self.steps for name, value in self.values.items()}


class Progress:
    """The state of one run besides weights and optimiser.

    Args:
      config: resolved settings.
      model, optimizer: of the run; their variables are saved with it.
      steps_per_epoch: of the run.
      validated: whether validation chooses the best checkpoint; else the last one is the best.

    Attributes:
      step: training steps done.
      epoch_sums, interval: of the numbers of every step since the epoch, and the line of progress before, began.
      kernel: what --kernel=auto was found to be when the run began, "dense" or "events".
      best: step, epoch and accuracy of the best validation so far; None before the first.
      last_saved: path of the newest checkpoint; None without one.
      watched: `diagnosis.Watch.state` of the checkpoint that was restored; None of a new run, and in those that earlier
        versions wrote.
    """

    def __init__(self, config: Config, model: Network, optimizer: Any, steps_per_epoch: int, validated: bool):
        self.config, self.steps_per_epoch = config, steps_per_epoch
        self._model, self._optimizer, self._validated = model, optimizer, validated
        self.step = 0
        self.kernel = "dense"
        self.epoch_sums, self.interval = Sums(), Sums()
        self.best: dict[str, float] | None = None
        self.last_saved: str | None = None
        self.watched: dict[str, Any] | None = None

    @property
    def folder(self) -> str:
        """The checkpoints' folder."""
        return os.path.join(str(self.config.workdir), workdir.CHECKPOINTS)

    @property
    def last_step(self) -> int:
        """Steps of the whole run."""
        return self.config.epochs * self.steps_per_epoch

    def note_validation(self, accuracy: float) -> bool:
        """Takes note of the validation at the end of an epoch; whether it is the best so far. Windows of another length
        are another network: what was best over a shorter one says nothing of this one."""
        if (self.best is not None and accuracy <= self.best["val_accuracy"]
                and self._window(self.best["step"]) == self._window(self.step)):
            return False
        self.best = {"step": self.step, "epoch": self.step // self.steps_per_epoch, "val_accuracy": accuracy}
        return True

    def _window(self, step: float) -> int:
        """Steps of the window that training step `step`, counted from 1, was taken with."""
        return self.config.timesteps_at((int(step) - 1) // self.steps_per_epoch)

    def save(self, best: bool = False, spare: str | None = None, watched: Mapping[str, Any] | None = None) -> str:
        """Writes a checkpoint of this moment; only of finite weights.

        Args:
          best: its weights are the best so far.
          spare: path of an older checkpoint that stays.
          watched: `diagnosis.Watch.state` of this moment; None keeps what was restored.

        Returns:
          Its path.

        Raises:
          diagnosis.Diverged: a weight is NaN or Inf.
          UserError: it cannot be written.
        """
        broken = diagnosis.nonfinite_layer(self._model)
        if broken is not None:
            raise diagnosis.Diverged(
                f"The weights of {broken} are no longer finite numbers (step {self.step}): training has diverged. The "
                f"last good checkpoint is {self.last_saved}; start again with a smaller --learning_rate or "
                "--clip_norm=1.")
        progress = {"epoch_sums": dataclasses.asdict(self.epoch_sums), "interval": dataclasses.asdict(self.interval),
                    "best": self.best, "steps_per_epoch": self.steps_per_epoch}
        parts = {"model": variables.collect(self._model.variables),
                 "optimizer": variables.collect(self._optimizer.variables)}
        self.last_saved = checkpoints.save(self.folder, self.step, parts,
                                           {"config": dataclasses.asdict(self.config), "progress": progress,
                                            "kernel": self.kernel, "watch": watched or self.watched},
                                           self.config.keep_checkpoints, best or not self._validated, spare)
        return self.last_saved

    def restore(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Goes back to where a checkpoint was written.

        Raises:
          UserError: it is of another network or other data, or damaged.
        """
        source = f"The checkpoint {checkpoint.path}"
        progress: Any = checkpoint.meta.get("progress")
        try:
            self.epoch_sums, self.interval = (Sums(**progress[name]) for name in ("epoch_sums", "interval"))
            self.best, saved_length = progress["best"], progress["steps_per_epoch"]
        except (TypeError, KeyError):
            raise UserError(f"{source} lacks the progress of its run; use another one.") from None
        if saved_length != self.steps_per_epoch:
            raise UserError(f"{source} is of a run with {saved_length} steps per epoch, and the data now give "
                            f"{self.steps_per_epoch}: they have changed. Restore them, or give another --workdir.")
        variables.restore(self._model.variables, checkpoint.arrays("model"), source)
        variables.restore(self._optimizer.variables, checkpoint.arrays("optimizer"), source)
        self.step, self.last_saved = checkpoint.step, checkpoint.path
        self.kernel = standing.kernel_of(checkpoint)
        self.watched = checkpoint.meta.get("watch")
        if self.watched is not None and self.watched["last_living"] is not None:  # the run may have been moved since
            living = os.path.join(os.path.dirname(checkpoint.path), os.path.basename(self.watched["last_living"]))
            self.watched["last_living"] = living if os.path.isdir(living) else None

    def share(self, strategy: tf.distribute.Strategy, worker: Worker) -> None:
        """Gives every worker the first one's weights, step, kernel and `watched`: all of them stop after one step."""
        if worker.count == 1:
            return
        shared = [*self._model.variables, *self._optimizer.variables]
        text = json.dumps(self.watched).encode()
        mine = [*(variable.value.numpy() for variable in shared), np.asarray(self.step, np.int32),
                np.asarray(self.kernel == "events", np.int32), np.asarray(len(text), np.int32)]
        *values, step, events, length = distribution.from_chief(strategy, worker, mine)
        for variable, value in zip(shared, values):
            variable.assign(value)
        self.step, self.kernel = int(step), "events" if events else "dense"
        padded = np.zeros(int(length), np.int32)
        if worker.is_chief:
            padded[:] = np.frombuffer(text, np.uint8)
        self.watched = json.loads(bytes(distribution.from_chief(strategy, worker, [padded])[0].astype(np.uint8)))
