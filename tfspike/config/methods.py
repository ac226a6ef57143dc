"""Training methods of the field as settings: `--method=NAME`, for comparisons on the same network and data.

A method fixes what it is made of: the neuron, what stands for the derivative of a spike, the gradient, normalisation,
input and loss. It leaves alone what a comparison holds fixed, the network, the data, the epochs, the batch and the
optimiser, which come from the recipe; only "lee" and "lee_event" bring the paper's optimiser along, without which they
are not the paper's. A flag that contradicts a method is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tfspike.datasets import catalogue


class Method(NamedTuple):
    """One training method.

    Attributes:
      source: who published it.
      settings: what it fixes.
    """

    source: str
    settings: Mapping[str, Any]


_LEE = {"surrogate": "leak_aware", "surrogate_width": 1.0, "reset": "zero", "start": 0.0, "credit": "mean",
        "norm": "none", "pooling": "neuron", "shortcut": "spikes", "encoder": "poisson", "loss": "squared",
        "neuron": "lif"}
_DIRECT = {"encoder": "direct", "pooling": "average", "loss": "cross_entropy", "neuron": "lif", "start": 0.0}
# An ANN that `python -m tfspike.conversion --method=` the same name makes spike
_TWIN = {"neuron": "relu", "norm": "tdbn", "levels": 0, "loss": "cross_entropy"}

METHODS: dict[str, Method] = {
    "lee": Method("Lee et al. 2020, the paper's equations (or, with --gradient=event, the authors' code)", _LEE),
    "lee_event": Method("Lee et al. 2020, the authors' code", {**_LEE, "gradient": "event"}),
    "stbp": Method("Wu et al. 2018: backpropagation through time with a rectangular surrogate",
                   {**_DIRECT, "gradient": "event", "surrogate": "rectangular", "surrogate_width": 1.0, "norm": "none",
                    "reset": "zero", "credit": "mean"}),
    "tdbn": Method("Zheng et al. 2021: the same with currents normalised over time and batch",
                   {**_DIRECT, "gradient": "event", "surrogate": "rectangular", "surrogate_width": 1.0, "norm": "tdbn",
                    "reset": "zero", "credit": "mean"}),
    "rate": Method("Yu et al. 2024: rate-based backpropagation",
                   {**_DIRECT, "gradient": "rate", "credit": "time", "surrogate": "sigmoid", "surrogate_width": 1.0,
                    "norm": "tdbn", "reset": "subtract", "leak": 0.2}),
    "tandem": Method("Wu et al. 2021: tandem learning, the gradient of a ReLU network on the rates of a spiking one",
                     {**_DIRECT, "gradient": "rate", "credit": "mean", "surrogate": "tandem", "surrogate_width": 1.0,
                      "norm": "tdbn", "reset": "subtract", "leak": 1.0}),
    "diet": Method("Rathi and Roy 2021: DIET-SNN, every layer learns its leak and its threshold; --init_from takes a "
                   "converted network",
                   {**_DIRECT, "gradient": "event", "credit": "mean", "surrogate": "triangular", "surrogate_width": 1.0,
                    "norm": "none", "reset": "subtract", "leak": 1.0, "learn": ("leak", "threshold")}),
    "eprop": Method("Bellec et al. 2020: e-prop, forward in time; --feedback says how layers hear of the error",
                    {**_DIRECT, "gradient": "eprop", "credit": "mean", "surrogate": "triangular",
                     "surrogate_width": 1.0, "norm": "none", "reset": "subtract"}),
    "once": Method("Che et al. 2024: neurons that fire once, the first output spike is the answer",
                   {**_DIRECT, "encoder": "latency", "earliest": "largest", "gradient": "event", "credit": "mean",
                    "surrogate": "triangular", "surrogate_width": 1.0, "norm": "tdbn", "reset": "silent",
                    "readout": "first"}),
    "rueckauer": Method("Rueckauer et al. 2017: an ANN with normalisation, to be converted", _TWIN),
    "quantised": Method("Bu et al. 2022: an ANN of ReLUs with steps, to be converted", {**_TWIN, "levels": 8}),
    "deep": Method("this library: \"rate\" with the mean of a wide surrogate, normalised currents",
                   {**_DIRECT, "gradient": "rate", "credit": "mean", "surrogate": "arctan", "surrogate_width": 2.0,
                    "norm": "tdbn", "reset": "zero"}),
}

OF_THE_PAPER = ("lee", "lee_event")
"""Those that bring the paper's optimiser, window and milestones along."""


def listing() -> str:
    """Names and sources, for `--help`."""
    return "; ".join(f"{name} ({method.source.split(':')[0].split(',')[0]})" for name, method in METHODS.items())


def fixed(method: str, dataset: str) -> dict[str, Any]:
    """What a method fixes on a data set; events are spikes already, and no method codes them."""
    events = dataset in catalogue.WITH_EVENTS
    return {name: value for name, value in METHODS[method].settings.items()
            if not (events and name in ("encoder", "earliest"))}
