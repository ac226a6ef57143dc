"""What a window is made of on the event-driven path, in words: trains as layers see them, synapses, operations."""

from __future__ import annotations

import dataclasses

from tfspike.engine import plan as plans
from tfspike.engine.events import columns as col
from tfspike.neurons.normalisation import ThresholdNorm
from tfspike.neurons.over_time import OverTime


class Unsupported(Exception):
    """What the event-driven path does not do, in words that follow the name of a layer."""


@dataclasses.dataclass(frozen=True)
class Spikes:
    """A train as a layer sees it: a list, and what lies between the two.

    Attributes:
      source: number of the list.
      shape: `(H, W, C)` of what is seen, without padding.
      pool, pick: one pixel of it is the sum of pool x pool pixels of the list, every `pick` pixels.
      top, left: rows and columns of padding in front.
      bottom, right: and behind.
      flat: it is seen as one axis.
      scale: factor of every spike.
    """

    source: int
    shape: tuple[int, int, int]
    pool: int = 1
    pick: int = 1
    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0
    flat: bool = False
    scale: float = 1.0

    @property
    def as_listed(self) -> bool:
        return self.pool == self.pick == 1 and not any((self.top, self.left, self.bottom, self.right))


@dataclasses.dataclass(frozen=True)
class Synapse:
    """Weights between spikes and currents.

    Attributes:
      spikes: what is read.
      layer: the Conv2D or Dense; None takes every channel by itself.
      norm: normalisation behind it, in inference.
      window, stride: `(height, width)` and `(down, right)` steps, in pixels.
      shape: `(H, W, C)` of the currents.
    """

    spikes: Spikes
    layer: OverTime | None
    window: tuple[int, int]
    stride: tuple[int, int]
    shape: tuple[int, int, int]
    norm: ThresholdNorm | None = None

    @property
    def rows(self) -> int:
        """Rows of weights, without the last, which is the bias."""
        return self.window[0] * self.window[1] * self.spikes.shape[2]


@dataclasses.dataclass(frozen=True)
class Kept:
    """A current in memory.

    Attributes:
      writer: the operation that stores it.
      shape: `(H, W, C)` of what is seen.
      pick: every so many pixels of it.
      constant: the same at every step.
    """

    writer: int
    shape: tuple[int, int, int]
    pick: int = 1
    constant: bool = False


@dataclasses.dataclass(frozen=True)
class Current:
    """A sum of synapses, and of at most one current in memory."""

    synapses: tuple[Synapse, ...]
    kept: Kept | None
    shape: tuple[int, int, int]


@dataclasses.dataclass
class Operation:
    """One operation; `layout` gives the numbers that say where its data lie. `encoded`: it reads what the encoder gives
    anew at every step."""

    kind: int
    once: bool = False
    source: int = -1
    out: int = -1
    synapse: Synapse | None = None
    base: Kept | None = None
    target: int = -1
    shape: tuple[int, int, int] = (1, 1, 1)
    call: plans.Call | None = None
    encoded: bool = False
    place: int = -1
    words: int = -1
    jumps: int = -1
    weights: int = -1
    transposed: int = -1
    gradient: int = -1

    @property
    def pixels(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def padded(self) -> int:
        return padded(self.shape[2])

    @property
    def scattered(self) -> bool:
        """Whether each spike of the encoder is added to all neurons in whose windows it is, in place of collecting the
        spikes in each window: of few channels these are few, and collecting them costs more than adding them."""
        return (self.synapse is not None and self.synapse.layer is not None and self.target == col.FIRE
                and self.encoded and self.pixels > 1 and self.synapse.stride == (1, 1)
                and self.synapse.spikes.pool == self.synapse.spikes.pick == 1)

    @property
    def neurons(self) -> int:
        """With those of padding."""
        return self.pixels * self.padded


@dataclasses.dataclass
class SpikeList:
    """Where spikes of a stretch are listed, or in the backward pass what happens at them.

    Attributes:
      shape: `(H, W, C)`.
      constant: the same at every step, and listed once.
      valued: spikes of the encoder, which are not all 1.
      times: as many entries as there are neurons, so many times.
    """

    shape: tuple[int, int, int]
    constant: bool = False
    valued: bool = False
    times: int = 1


def padded(channels: int) -> int:
    return -(-channels // col.LANES) * col.LANES
