"""A network over a window of another length."""

from __future__ import annotations

from typing import Any

import keras

from tfspike.checks import check_count
from tfspike.engine import plan as plans
from tfspike.errors import UserError
from tfspike.neurons.encoders import SpikeInput


def of_length(model: Any, timesteps: int) -> Any:
    """A `SpikingModel` of the same layers, weights and counters, but for the encoder: it has `timesteps` steps.

    Raises:
      UserError: the model takes spike trains, which have a length of their own, or has no single window.
    """
    plan = model.required_plan()
    if isinstance(plan.encoder.layer, SpikeInput):
        raise UserError(f"{model.name} takes spike trains of {model.timesteps} steps, whose length is given: build "
                        "the network for trains of another length.")
    encoder = plans.copy_of(plan.encoder.layer, timesteps=check_count("timesteps", timesteps))
    encoder.count_with(plan.encoder.layer)
    as_built = plans.as_keras(None)
    train = encoder(plan.into_encoder(model.inputs[0], as_built))
    current = plan.run_window(train, as_built)[plan.readout.source]
    outputs = plan.behind_readout(plan.readout.layer(current), as_built)
    other = plans.rebuilt(model, model.input, keras.tree.pack_sequence_as(model.output, outputs))
    other.configure_engine(*model.engine_options)
    return other
