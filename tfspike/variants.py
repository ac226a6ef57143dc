"""The networks as a table: what is stacked on what, free of TensorFlow.

Every row of `VARIANTS` is data. `tfspike.models` turns a row into a Keras model, `tfspike.config`
takes the defaults of a run from it, and nothing in the library asks for a network by its name.

Sources: Lee et al. 2020 (LeNet, VGG9, ResNet9, ResNet11; ResNet7 and VGG7 for SVHN), Simonyan and Zisserman
2015 (VGG11, VGG16), He et al. 2016 (ResNet20 and ResNet56 for small images; ResNet18, which begins with a 3x3
convolution and no pooling, as in spiking networks for small images).
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution (no bias, centred padding) followed by LIF neurons and dropout."""

    filters: int
    kernel: int = 3


@dataclasses.dataclass(frozen=True)
class Pool:
    """2x2 average pooling followed by pooling neurons (integrate and fire without leak, threshold .75)."""


@dataclasses.dataclass(frozen=True)
class Block:
    """A residual block: conv - LIF - conv, the shortcut's current added before the second LIF.

    `strides` are those of the two 3x3 convolutions; the shortcut strides by their product. It is a 1x1
    convolution where the channels change and the subsampled spikes themselves where they do not. With
    `shortcut="currents"` the neurons stand in front of the convolutions instead, and the shortcut carries currents.
    """

    filters: int
    strides: tuple[int, int] = (1, 1)


Stage = Conv | Pool | Block

SHORTCUTS = ("spikes", "currents")
"""What passes the neurons of a residual block."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One network: its stages in order, then an optional hidden dense LIF layer, then the readout.

    Attributes:
      stages: convolutions, poolings and residual blocks in the order of the forward pass.
      hidden: neurons of the hidden dense layer; 0 leaves it out.
      kappa: weights start normal with standard deviation sqrt(kappa / fan_in).
      dropout: share of neurons silenced per window behind every LIF layer.
      init: "normal", or "rate" where plain weights would leave deep layers silent.
    """

    stages: tuple[Stage, ...]
    hidden: int
    kappa: float = 2.0
    dropout: float = 0.0
    init: str = "normal"

    @property
    def is_residual(self) -> bool:
        """Whether it has residual blocks."""
        return any(isinstance(stage, Block) for stage in self.stages)

    @property
    def min_size(self) -> int:
        """Smallest height and width, pixels, at which no feature map becomes empty."""
        size = 1
        for stage in reversed(self.stages):
            if isinstance(stage, Pool):
                size = 2 * size
            elif isinstance(stage, Block):
                size = (size - 1) * stage.strides[0] * stage.strides[1] + 1
        return size


def _plain(*rows: int | str) -> tuple[Stage, ...]:
    return tuple(Pool() if row == "P" else Conv(int(row)) for row in rows)


def _residual(first: int, widths: tuple[int, ...], blocks: int) -> tuple[Stage, ...]:
    """A convolution, `blocks` residual blocks of every width, each width at half the last one's size, and a pooling."""
    return (Conv(first), *(Block(filters, (2 if stage and not block else 1, 1))
                           for stage, filters in enumerate(widths) for block in range(blocks)), Pool())


VARIANTS: dict[str, Variant] = {
    "lenet": Variant((Conv(20, 5), Pool(), Conv(50, 5), Pool()), hidden=200),
    "vgg5": Variant(_plain(64, "P", 128, 128, "P"), hidden=1024, dropout=0.2),
    "vgg7": Variant(_plain(64, 64, "P", 128, 128, 128, "P"), hidden=1024, dropout=0.2),
    "vgg9": Variant(_plain(64, 64, "P", 128, 128, "P", 256, 256, 256, "P"), hidden=1024, dropout=0.2),
    "vgg11": Variant(_plain(64, "P", 128, "P", 256, 256, "P", 512, 512, "P", 512, 512, "P"),
                     hidden=1024, dropout=0.2, init="rate"),
    "vgg16": Variant(_plain(64, 64, "P", 128, 128, "P", 256, 256, 256, "P", 512, 512, 512, "P", 512, 512, 512, "P"),
                     hidden=1024, dropout=0.2, init="rate"),
    "resnet7": Variant((Conv(64), Pool(), Block(128, (1, 2)), Block(256, (1, 2))),
                       hidden=1024, kappa=1.0, dropout=0.25),
    "resnet9": Variant((Conv(64), Pool(), Block(128), Block(256, (1, 2)), Block(512, (1, 2))),
                       hidden=1024, kappa=1.0, dropout=0.25),
    "resnet11": Variant((Conv(64), Pool(), Block(128), Block(256, (1, 2)), Block(512), Block(512, (1, 2))),
                        hidden=1024, kappa=1.0, dropout=0.25),
    "resnet18": Variant(_residual(64, (64, 128, 256, 512), 2), hidden=0, init="rate"),
    "resnet20": Variant(_residual(16, (16, 32, 64), 3), hidden=0, init="rate"),
    "resnet56": Variant(_residual(16, (16, 32, 64), 9), hidden=0, init="rate"),
}
