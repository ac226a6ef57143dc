"""Methods of conversion as data: `python -m tfspike.conversion --method=NAME`. Nothing here imports TensorFlow.

Nothing else asks for a method by its name. What a row can say:

* `scales`: where the scale of a layer comes from (`tfspike.conversion.scales`): the ANN's activations on images, the
  currents that reach it once the layers in front spike, or the ceilings that a quantised ANN has learnt.
* `reset`, `start`: of the neurons (`tfspike.gradients`). A reset to 0 loses what exceeds the threshold, in every layer
  and however long the window; by subtraction only the start and the end of the window matter.
* `pooling`: pooling neurons behind averages, or the averages themselves, which lose nothing.
* `encoder`: how pixels enter unless asked otherwise.
"""

from __future__ import annotations

import dataclasses

from tfspike.errors import UserError


@dataclasses.dataclass(frozen=True)
class Method:
    """One way from an ANN to a spiking network.

    Attributes:
      source: who published it.
      scales: a key of `scales.SCALES`, or "ceilings".
      percentile: which value a scale is, unless asked otherwise; 100 is the largest. None where no image is looked at.
      encoder: "poisson" or "direct".
      reset: "zero" or "subtract".
      start: share of the threshold that membranes begin with.
      pooling: "neuron" or "average".
      bipolar: whether spikes can be taken back (`tfspike.neurons.bipolar`).
    """

    source: str
    scales: str
    percentile: float | None
    encoder: str = "poisson"
    reset: str = "zero"
    start: float = 0.0
    pooling: str = "neuron"
    bipolar: bool = False


METHODS: dict[str, Method] = {
    "data": Method("Diehl et al. 2015", "activations", 99.9),
    "spike_norm": Method("Sengupta et al. 2019", "currents", 100.0),
    "rueckauer": Method("Rueckauer et al. 2017", "activations", 99.9, "direct", "subtract", pooling="average"),
    "quantised": Method("Bu et al. 2022", "ceilings", None, "direct", "subtract", 0.5, "average"),
}


def chosen(name: str, encoder: str | None, start: float | None, bipolar: bool) -> Method:
    """A row, with what was asked for in place of its own.

    Raises:
      UserError: `bipolar` with a reset to 0.
    """
    row = METHODS[name]
    if bipolar and row.reset != "subtract":
        takes = " or ".join(repr(other) for other, method in METHODS.items() if method.reset == "subtract")
        raise UserError("`bipolar` neurons take back spikes whose charge they kept, which a reset to 0 loses: take "
                        f"method={takes}. Received: method={name!r}.")
    return dataclasses.replace(row, encoder=encoder or row.encoder, start=row.start if start is None else start,
                               bipolar=bipolar)


def listing() -> str:
    """Names and sources, for `--help`."""
    return "; ".join(f"{name} ({method.source})" for name, method in METHODS.items())
