"""What TensorBoard shows of a run besides the numbers of its steps: settings, graph, pictures and energy."""

from __future__ import annotations

import dataclasses
from typing import cast

import numpy as np
import tensorflow as tf

from tfspike import analysis
from tfspike.analysis import simulation
from tfspike.analysis.energy import EnergyModel
from tfspike.config.config import Config
from tfspike.models.network import Network, window_of
from tfspike.models.spiking_model import SpikingModel
from tfspike.runs import provenance
from tfspike.runs.run_log import RunLog

_LOGGED = 4  # training images that membranes are logged of: the cost of an epoch's pictures must not show


class Board:
    """Describes a run and its network.

    Args:
      config: of the run.
      model: its network.
      training: its first training images, as the model takes them.
      held_out: its first validation images likewise; none of a run without validation.
    """

    def __init__(self, config: Config, model: Network, training: np.ndarray, held_out: np.ndarray):
        self._config, self._model, self._training = config, model, training
        # unseen images, as a report's are, where there are any
        self._metered, self._kind = (held_out, "held-out") if len(held_out) else (training, "training")
        plan = window_of(model)
        self._transparent = plan is None or not plan.own_neurons  # a simulation can look into the network

    def describe(self, log: RunLog) -> None:
        """Writes settings, command and graph."""
        log.text("config", "\n".join(["| setting | value |", "|---|---|", *(
            f"| {name} | {value} |" for name, value in dataclasses.asdict(self._config).items())]))
        log.text("command", f"`{provenance.continuing_command(self._config)}`")
        # of what distinguishes experiments: the dashboard shows a handful of columns, in the order of the alphabet
        log.hyperparameters({field.name: getattr(self._config, field.name)
                             for field in dataclasses.fields(self._config)
                             if field.metadata["experiment"] and not field.metadata["path"]})
        log.graph(self._model, self._training[:1])

    def pictures(self, log: RunLog, step: int) -> None:
        """Writes membranes and weights as histograms, the filters of the first convolution, and a spike raster."""
        if not log.pictured:
            return
        from tfspike.evaluation import pixels  # matplotlib: only where TensorBoard is written

        if self._transparent:
            log.histograms(step, simulation.distributions(self._model, self._training[:_LOGGED]))
        pictures = {}
        filters = simulation.first_filters(self._model)
        if filters is not None:
            pictures["first_layer_filters"] = pixels.filter_sheet(filters)
        if self._model.is_spiking and self._transparent:
            train = simulation.spike_trains(self._model, tf.convert_to_tensor(self._training[:1]))
            pictures["spike_raster"] = pixels.raster_picture(train)
        log.images(step, pictures)

    @property
    def energy_note(self) -> str:
        """What the numbers of `energy` are of."""
        return (f"45 nm model, mean over {len(self._metered)} {self._kind} images: within some 5 % of the whole set. "
                "eval.py --report has that of the test set.")

    def energy(self) -> dict[str, float]:
        """Energy of an image in the 45 nm model, and as a share of that of an ANN; {} of an ANN itself, and where
        neurons have code of their own."""
        if not (self._model.is_spiking and self._transparent):
            return {}
        snn, ann = (EnergyModel().picojoules(operations)
                    for operations in analysis.operations(cast(SpikingModel, self._model), self._metered))
        return {"energy/snn_pj_per_image": snn, "energy/share_of_ann": snn / ann}
