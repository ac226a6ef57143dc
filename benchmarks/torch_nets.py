"""The networks of `tfspike.variants` in PyTorch, one structure for all peers.

A `Kit` supplies the neurons of one library; `Net` puts convolutions, poolings and dense layers around them. A
network runs over a step [B, C, H, W] or, where the library is at its fastest layer by layer, over the
whole window [T, B, C, H, W].
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from benchmarks.cases import POOL_THRESHOLD
from tfspike.variants import Block, Conv, Pool, Variant

Neuron = Callable[[Tensor], Tensor]


class Kit(Protocol):
    """The neurons of one library. Every neuron keeps its own state from step to step until `reset`."""

    multi_step: bool
    """True where a neuron takes the whole window [T, B, ...] at once."""
    weight_scale: float
    """1 / (what the library's neuron multiplies its input by): folded into the initial weights, free of cost."""

    def lif(self) -> Neuron: ...

    def pooling(self, threshold: float) -> Neuron: ...

    def readout(self) -> Callable[[Tensor], Tensor]:
        """Takes currents, returns the membrane after the latest step, [B, classes], in units of the threshold."""
        ...

    def norm(self, channels: int, alpha: float) -> nn.Module:
        """Normalisation of the currents of a whole window (tdBN), for deep nets."""
        ...

    def over_time(self, synapse: Callable[[Tensor], Tensor], spikes: Tensor) -> Tensor:
        """A layer without state, applied to a step or to every step of a window."""
        ...

    def reset(self) -> None:
        """Forgets all states: called before every window."""
        ...

    def finish(self, timesteps: int) -> None:
        """Called between the forward and the backward pass of a window."""
        ...


class Net(nn.Module):
    """One variant with the neurons of one library.

    Args:
      variant: the structure.
      channels, size: of the input images (square).
      classes: outputs.
      kit: the library's neurons.
      deep: normalised currents (tdBN, which the kit must have), constant input, averages without pooling neurons.
      shortcut: what the shortcut of a residual block carries, "spikes" or "currents".
    """

    def __init__(self, variant: Variant, channels: int, size: int, classes: int, kit: Kit, deep: bool = False,
                 shortcut: str = "spikes"):
        super().__init__()
        self.kit, self.kappa, self.deep = kit, 2.0 if deep else variant.kappa, deep
        self.norms = nn.ModuleList()
        self.neurons: list[Neuron] = []
        self.synapses = nn.ModuleList()
        self.stages = []
        currents, fires = shortcut == "currents", True  # whether what comes is spikes, or currents no neuron has seen
        for stage, behind in itertools.zip_longest(variant.stages, variant.stages[1:]):
            if isinstance(stage, Pool):
                self.stages.append(self._pool())
                size //= 2
            elif isinstance(stage, Conv):
                fires = not (currents and isinstance(behind, Block))
                self.stages.append(self._conv(channels, stage, fires))
                channels = stage.filters
            else:
                self.stages.append(self._current_block(channels, stage, fires) if currents else
                                   self._block(channels, stage))
                channels, fires = stage.filters, not currents
                if currents and not isinstance(behind, Block):
                    self.stages.append(self._neuron(kit.lif()))
                    fires = True
                for stride in stage.strides:
                    size = -(-size // stride)
        features = channels * size * size
        self.hidden = self._hidden(features, variant.hidden) if variant.hidden else None
        self.last = self._dense(variant.hidden or features, classes)
        self.readout = kit.readout()
        self.watched: list[list[Tensor]] | None = None

    def _add(self, synapse: nn.Module, fan_in: int) -> nn.Module:
        nn.init.normal_(synapse.weight, std=math.sqrt(self.kappa / fan_in) * self.kit.weight_scale)
        self.synapses.append(synapse)
        return synapse

    def _neuron(self, neuron: Neuron) -> Neuron:
        number = len(self.neurons)
        self.neurons.append(neuron)

        def fire(current: Tensor) -> Tensor:
            spikes = neuron(current)
            if self.watched is not None:
                self.watched[number].append(spikes.detach().float().mean())
            return spikes

        return fire

    def _synapse(self, channels: int, filters: int, kernel: int, stride: int = 1) -> nn.Module:
        conv = nn.Conv2d(channels, filters, kernel, stride, padding=(kernel - 1) // 2, bias=False)
        return self._add(conv, channels * kernel * kernel)

    def _normalised(self, synapse: Neuron, channels: int, alpha: float = 1.0) -> Neuron:
        """The synapse over time and, in a deep net, the normalisation of its currents."""
        if not self.deep:
            return lambda spikes: self.kit.over_time(synapse, spikes)
        norm = self.kit.norm(channels, alpha)
        self.norms.append(norm)
        return lambda spikes: norm(self.kit.over_time(synapse, spikes))

    def _dense(self, features: int, units: int) -> nn.Module:
        return self._add(nn.Linear(features, units, bias=False), features)

    def _hidden(self, features: int, units: int) -> Neuron:
        dense, lif = self._dense(features, units), self._neuron(self.kit.lif())
        return lambda spikes: lif(self.kit.over_time(dense, spikes))

    def _conv(self, channels: int, stage: Conv, fires: bool) -> Neuron:
        conv = self._normalised(self._synapse(channels, stage.filters, stage.kernel), stage.filters)
        if not fires:
            return conv
        lif = self._neuron(self.kit.lif())
        return lambda spikes: lif(conv(spikes))

    def _pool(self) -> Neuron:
        pool = nn.AvgPool2d(2)
        if self.deep:
            return lambda spikes: self.kit.over_time(pool, spikes)
        neuron = self._neuron(self.kit.pooling(POOL_THRESHOLD))
        return lambda spikes: neuron(self.kit.over_time(pool, spikes))

    def _block(self, channels: int, stage: Block) -> Neuron:
        half = math.sqrt(0.5)  # two paths add up
        branch = self._branch(channels, stage, half)
        last = self._neuron(self.kit.lif())
        shortcut = self._projected(channels, stage, half) or self._subsampled(stage, self.kit.weight_scale)
        return lambda spikes: last(branch(spikes) + shortcut(spikes))

    def _current_block(self, channels: int, stage: Block, fires: bool) -> Neuron:
        """Neurons in front of the convolutions, none on the shortcut; takes spikes with `fires`, else currents."""
        lif = None if fires else self._neuron(self.kit.lif())
        branch = self._branch(channels, stage)
        projected, subsampled = self._projected(channels, stage), self._subsampled(stage, 1.0)

        def block(x: Tensor) -> Tensor:
            spikes = x if lif is None else lif(x)
            return branch(spikes) + (projected(spikes) if projected else subsampled(x))

        return block

    def _branch(self, channels: int, stage: Block, alpha: float = 1.0) -> Neuron:
        filters, (a, b) = stage.filters, stage.strides
        first = self._normalised(self._synapse(channels, filters, 3, a), filters)
        middle = self._neuron(self.kit.lif())
        second = self._normalised(self._synapse(filters, filters, 3, b), filters, alpha)
        return lambda spikes: second(middle(first(spikes)))

    def _projected(self, channels: int, stage: Block, alpha: float = 1.0) -> Neuron | None:
        """The shortcut where the channels change."""
        if channels == stage.filters:
            return None
        synapse = self._synapse(channels, stage.filters, 1, math.prod(stage.strides))
        return self._normalised(synapse, stage.filters, alpha)

    def _subsampled(self, stage: Block, scale: float) -> Neuron:
        stride = math.prod(stage.strides)

        def subsample(x: Tensor) -> Tensor:
            x = x[..., ::stride, ::stride]
            return x if scale == 1 else scale * x

        return subsample

    def forward(self, spikes: Tensor) -> Tensor:
        """Input spikes of a step or of a window to the readout's membrane [B, classes]."""
        for stage in self.stages:
            spikes = stage(spikes)
        spikes = spikes.flatten(-3)
        if self.hidden is not None:
            spikes = self.hidden(spikes)
        return self.readout(self.kit.over_time(self.last, spikes))


def signed_poisson(x: Tensor, *window: int) -> Tensor:
    """Spikes of value sign(x) with probability |x|, drawn afresh: x [B, ...] to [*window, B, ...]."""
    return (torch.rand(*window, *x.shape, device=x.device) < x.abs()) * x.sign()


def output(net: Net, x: Tensor, timesteps: int) -> Tensor:
    """Encodes and runs one window: images [B, C, H, W] to outputs V_T / T [B, classes]."""
    net.kit.reset()
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    if net.kit.multi_step:
        spikes = x.unsqueeze(0).repeat(timesteps, *[1] * x.dim()) if net.deep else signed_poisson(x, timesteps)
        if channels_last:
            spikes = spikes.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (timesteps, -1))
        membrane = net(spikes)
    else:
        for _ in range(timesteps):
            spikes = x if net.deep else signed_poisson(x)
            membrane = net(spikes.contiguous(memory_format=torch.channels_last) if channels_last else spikes)
    net.kit.finish(timesteps)
    return membrane.float() / timesteps
