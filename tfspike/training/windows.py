"""The windows of a training: short ones for most of its epochs, where an update costs less, and its own at the end.

Most of what the weights learn does not need time. SLTT (Meng et al. 2023) trains on ImageNet with T = 1 for 100 epochs
and with T = 6 for 30 more, TET (Deng et al. 2022) calls it temporal inheritance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tfspike.config.config import Config
from tfspike.evaluation.evaluator import Evaluator
from tfspike.training.step import TrainStep


class Window(NamedTuple):
    """One network over windows of one length, and what trains and validates it.

    Attributes:
      train_step: a compiled update.
      evaluator: of the validation records; None without any.
    """

    train_step: TrainStep
    evaluator: Evaluator | None


class Windows:
    """The window of every epoch, each made when it is first needed; all train the same weights.

    Args:
      config: of the run.
      model: the network over the run's own window.
      optimizer, strategy: of the run.
      evaluate: makes the evaluator of a network; None without validation records.
    """

    def __init__(self, config: Config, model: Any, optimizer: Any, strategy: tf.distribute.Strategy,
                 evaluate: Callable[[Any], Evaluator] | None):
        self._config, self._model, self._optimizer, self._strategy = config, model, optimizer, strategy
        self._evaluate = evaluate
        self._made: dict[int, Window] = {}

    def at(self, epoch: int) -> Window:
        """The window of an epoch, counted from 0."""
        timesteps = self._config.timesteps_at(epoch)
        if timesteps not in self._made:
            self._made[timesteps] = self._make(timesteps)
        return self._made[timesteps]

    def use_kernel(self, kernel: str) -> None:
        """Sets how synapses are computed, in every window. To be called before the first step, which makes graphs."""
        for model in (self._model, *(window.train_step.model for window in self._made.values())):
            model.configure_engine(kernel=kernel)

    def said(self) -> str | None:
        """The schedule in a sentence; None where every epoch has the same window."""
        config, parts, first = self._config, [], 0
        for epoch in range(1, config.epochs + 1):
            if epoch == config.epochs or config.timesteps_at(epoch) != config.timesteps_at(first):
                which = f"epoch {epoch}" if epoch == first + 1 else f"epochs {first + 1} to {epoch}"
                parts.append(f"T = {config.timesteps_at(first)} in {which}")
                first = epoch
        return "Windows: " + ", ".join(parts) + "." if len(parts) > 1 else None

    def _make(self, timesteps: int) -> Window:
        model = self._model
        if timesteps != self._config.timesteps:
            with self._strategy.scope():
                model = model.with_timesteps(timesteps)
        return Window(TrainStep(model, self._optimizer, self._strategy, self._config),
                      self._evaluate(model) if self._evaluate else None)
