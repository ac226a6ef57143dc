"""What is measured: libraries, networks and suites, as tables (needs no framework)."""

from __future__ import annotations

import dataclasses

PEERS = ("authors", "snntorch", "snntorch-compiled", "spikingjelly", "norse", "norse-compiled")
TFSPIKE = ("tfspike-rate", "tfspike-event")
EVENT_DRIVEN = ("tfspike-rate-events", "tfspike-event-events")  # the same with kernel="events"
LIBRARIES = TFSPIKE + EVENT_DRIVEN + PEERS
PRECISIONS = ("float32", "bfloat16")

CLASSES = 10
LEAK, THRESHOLD, POOL_THRESHOLD = 0.99, 1.0, 0.75


def image_shape(net: str) -> tuple[int, int, int]:
    """Height, width and channels of the images of a network."""
    return (28, 28, 1) if net == "lenet" else (32, 32, 3)


@dataclasses.dataclass(frozen=True)
class Case:
    """One piece of work that every library does: a network, a window and a batch.

    Attributes:
      net: a name of `tfspike.variants.VARIANTS`.
      timesteps: length of the window, steps.
      batch: images per step.
      mode: "train" (encode, forward, backward, update), "inference" (encode, forward) or "pipeline"
        (the input pipeline alone, batches per second).
    """

    net: str
    timesteps: int
    batch: int
    mode: str = "train"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A case done by one library in one precision: one process."""

    case: Case
    library: str
    precision: str

    @property
    def key(self) -> str:
        case = self.case
        return f"{case.mode}/{case.net}/T{case.timesteps}/B{case.batch}/{self.library}/{self.precision}"


NETS = (Case("lenet", 50, 64), Case("vgg9", 100, 16), Case("resnet11", 50, 8), Case("resnet20", 25, 32))
LENET = NETS[0]

SUITES: dict[str, tuple[Case, ...]] = {
    "headline": (Case("vgg9", 100, 16),),
    "nets": NETS,
    "time": tuple(Case("vgg9", steps, 16) for steps in (10, 25, 50, 100, 200)),
    "batch": tuple(Case("vgg9", 25, batch) for batch in (8, 64)),
    "inference": tuple(dataclasses.replace(case, mode="inference") for case in NETS),
    "pipeline": (LENET, dataclasses.replace(LENET, mode="pipeline")),
    "long": (Case("vgg9", 100, 16), Case("vgg9", 1000, 16)),
    "smoke": (Case("lenet", 5, 4), Case("lenet", 5, 4, "inference"), Case("vgg9", 10, 4)),
}

ONLY_TFSPIKE = {"pipeline": TFSPIKE, "long": ("tfspike-rate",)}
"""Suites that ask a question about tfspike alone, and the libraries that answer it."""


def cells(suite: str, libraries: tuple[str, ...], precisions: tuple[str, ...]) -> list[Cell]:
    """The cells of a suite, the libraries of one case next to each other so that they share the machine's mood."""
    found = []
    for case in SUITES[suite]:
        for precision in precisions:
            for library in libraries:
                if library not in ONLY_TFSPIKE.get(suite, LIBRARIES):
                    continue
                if case.mode == "pipeline" and (library, precision) != ("tfspike-rate", "float32"):
                    continue  # the pipeline knows neither the gradient nor the precision: once is enough
                found.append(Cell(case, library, precision))
    return found
