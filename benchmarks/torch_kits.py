"""The neurons of each peer, set to the same membrane equation: leak .99, threshold 1, reset to zero.

Each kit uses its library the way the library's own documentation does for speed; see README.md for what differs.
"""

from __future__ import annotations

import functools
import importlib.metadata
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import LEAK, THRESHOLD


class _StepKit:
    """A library whose neurons take one step and hand back their state: the window is a Python loop."""

    multi_step = False
    weight_scale = 1.0

    def __init__(self) -> None:
        self.cells: list[_Stateful] = []

    def over_time(self, synapse: Callable[[Tensor], Tensor], spikes: Tensor) -> Tensor:
        return synapse(spikes)

    def norm(self, channels: int, alpha: float) -> torch.nn.Module:
        raise NotImplementedError("tdBN looks at a whole window, and this library goes step by step")

    def reset(self) -> None:
        for cell in self.cells:
            cell.state = None

    def finish(self, timesteps: int) -> None:
        """Nothing to do where the gradient is that of plain backpropagation through time."""

    def _keep(self, step: Callable[[Tensor, Any], tuple[Tensor, Any]]) -> _Stateful:
        self.cells.append(_Stateful(step))
        return self.cells[-1]


class _Stateful:
    """A step function (current, state) -> (output, state) together with its state, None before the first step."""

    def __init__(self, step: Callable[[Tensor, Any], tuple[Tensor, Any]]):
        self.step, self.state = step, None

    def __call__(self, current: Tensor) -> Tensor:
        out, self.state = self.step(current, self.state)
        return out


class _Fire(torch.autograd.Function):
    """One step of a neuron as Lee et al. 2020 train it.

    Backward, with g = dL/ds_t and c = dL/dv_t: dL/dI_t = dL/dv_(t-1) = s_t * slope * g + (1 - s_t) * c. The leak is
    detached (its factor is left out of c), and the slope, known only at the end of the window, is read from `window`.
    """

    @staticmethod
    def forward(ctx: Any, current: Tensor, membrane: Tensor, threshold: float, leak: float, window: _Window):
        membrane = membrane + current
        fired = membrane > threshold
        ctx.save_for_backward(fired)
        ctx.window, ctx.dtype = window, current.dtype
        membrane = membrane.masked_fill_(fired, 0.0)
        if leak != 1:
            membrane.mul_(leak)
        return fired.to(current.dtype), membrane

    @staticmethod
    def backward(ctx: Any, spike_gradient: Tensor, carry: Tensor):
        (fired,) = ctx.saved_tensors
        delta = torch.where(fired, ctx.window.slope * spike_gradient, carry)
        return delta.to(ctx.dtype), delta, None, None, None


class _Window:
    """What the leak-aware slope of one layer needs: counts and leaky traces while the window runs, then the slope."""

    def __init__(self, threshold: float, leak: float, scale: float):
        self.threshold, self.leak, self.scale = threshold, leak, scale
        self.membrane: Tensor | None = None

    def __call__(self, current: Tensor) -> Tensor:
        if self.membrane is None:
            dtype = torch.float64 if current.dtype == torch.float64 else torch.float32
            self.membrane = torch.zeros_like(current, dtype=dtype)
            self.count, self.trace = torch.zeros_like(self.membrane), torch.zeros_like(self.membrane)
        spikes, self.membrane = _Fire.apply(current, self.membrane, self.threshold, self.leak, self)
        if torch.is_grad_enabled():
            with torch.no_grad():
                self.count.add_(spikes)
                if self.leak != 1:
                    self.trace.mul_(self.leak).add_(spikes)
        return spikes

    def finish(self) -> None:
        """slope = scale * (1[N > 0] + ln(leak) * F / N), 0 where the neuron was silent."""
        slope = (self.count > 0).to(self.count.dtype)
        if self.leak != 1:
            slope += math.log(self.leak) * self.trace / self.count.clamp(min=1)
        self.slope = slope.mul_(self.scale)


class _Integrate(torch.autograd.Function):
    """The authors' output layer: V_t = leak * (V_(t-1) + I_t), and dL/dI_t = dL/dV_T at every t."""

    @staticmethod
    def forward(ctx: Any, current: Tensor, membrane: Tensor, leak: float):
        ctx.dtype = current.dtype
        return leak * (membrane + current)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor):
        return gradient.to(ctx.dtype), gradient, None


class Authors(_StepKit):
    """The authors' algorithm (Lee et al. 2020), step by step in autograd, one fused function per neuron and step."""

    def __init__(self, leak: float = LEAK, threshold: float = THRESHOLD) -> None:
        super().__init__()
        self.leak, self.threshold = leak, threshold
        self.windows: list[_Window] = []

    def lif(self) -> _Window:
        return self._window(_Window(self.threshold, self.leak, 1 / self.threshold))

    def pooling(self, threshold: float) -> _Window:
        return self._window(_Window(threshold, 1.0, 1.0))

    def readout(self) -> _Stateful:
        def step(current: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
            if state is None:
                state = torch.zeros_like(current, dtype=torch.promote_types(current.dtype, torch.float32))
            state = _Integrate.apply(current, state, self.leak)
            return state, state

        return self._keep(step)

    def _window(self, window: _Window) -> _Window:
        self.windows.append(window)
        return window

    def reset(self) -> None:
        super().reset()
        for window in self.windows:
            window.membrane = None

    def finish(self, timesteps: int) -> None:
        if torch.is_grad_enabled():
            for window in self.windows:
                window.finish()


def _compiled(cell: Any) -> Any:
    """A cell through `torch.compile`, one program per shape of neurons."""
    torch._dynamo.config.recompile_limit = 64  # VGG9 has more shapes than the default of 8, beyond which it gives up
    return torch.compile(cell, dynamic=False)


class SnnTorch(_StepKit):
    """snnTorch's `Leaky`, arctangent surrogate (its default), reset to zero, states handed from step to step."""

    def __init__(self, compiled: bool = False) -> None:
        super().__init__()
        import snntorch

        self.snn, self.compiled = snntorch, compiled

    def _leaky(self, beta: float, threshold: float, reset: str) -> Any:
        leaky = self.snn.Leaky(beta=beta, threshold=threshold, spike_grad=self.snn.surrogate.atan(),
                               reset_mechanism=reset)
        return _compiled(leaky) if self.compiled else leaky

    def _neuron(self, beta: float, threshold: float) -> _Stateful:
        leaky = self._leaky(beta, threshold, "zero")
        return self._keep(lambda current, mem: leaky(current, torch.zeros_like(current) if mem is None else mem))

    def lif(self) -> _Stateful:
        return self._neuron(LEAK, THRESHOLD)

    def pooling(self, threshold: float) -> _Stateful:
        return self._neuron(1.0, threshold)

    def readout(self) -> _Stateful:
        leaky = self._leaky(LEAK, THRESHOLD, "none")

        def step(current: Tensor, mem: Tensor | None) -> tuple[Tensor, Tensor]:
            _, mem = leaky(current, torch.zeros_like(current) if mem is None else mem)
            return mem, mem

        return self._keep(step)


class Norse(_StepKit):
    """Norse's box cells (no synaptic current, which the others do not have either), SuperSpike (its default).

    They compute v + dt/tau * (I - v), so dt/tau = 1 - leak and the weights carry the factor 1 / (1 - leak).
    """

    weight_scale = 1 / (1 - LEAK)

    def __init__(self, compiled: bool = False) -> None:
        super().__init__()
        import norse.torch

        self.norse, self.compiled = norse.torch, compiled
        self.rate = torch.as_tensor((1 - LEAK) / 1e-3)  # per second, at Norse's time step of 1 ms

    def _cell(self, cell: Any, state: Callable[..., Any]) -> _Stateful:
        cell = _compiled(cell) if self.compiled else cell

        def step(current: Tensor, old: Any) -> tuple[Tensor, Any]:
            return cell(current, state(v=torch.zeros_like(current, dtype=torch.float32)) if old is None else old)

        return self._keep(step)

    def lif(self) -> _Stateful:
        parameters = self.norse.LIFBoxParameters(tau_mem_inv=self.rate, v_th=torch.as_tensor(THRESHOLD))
        return self._cell(self.norse.LIFBoxCell(parameters), self.norse.LIFBoxFeedForwardState)

    def pooling(self, threshold: float) -> _Stateful:
        parameters = self.norse.IAFParameters(v_th=torch.as_tensor(threshold))
        return self._cell(self.norse.IAFCell(parameters), self.norse.IAFFeedForwardState)

    def readout(self) -> _Stateful:
        parameters = self.norse.LIBoxParameters(tau_mem_inv=self.rate)
        return self._cell(self.norse.LIBoxCell(parameters), self.norse.LIBoxState)


_JUST_ABOVE = 1 / 64
"""SpikingJelly fires at u >= threshold, the others at u > threshold. A pooling neuron sums quarters exactly, so a
little more than .75 makes it wait like theirs, in bfloat16 too (its membrane is bfloat16 under autocast)."""


class SpikingJelly:
    """SpikingJelly's multi-step nodes: layer by layer, the rest over the folded window (`seq_to_ann_forward`)."""

    multi_step = True
    weight_scale = 1.0

    def __init__(self) -> None:
        from spikingjelly.activation_based import functional, layer, neuron, surrogate

        self.functional, self.layer, self.neuron, self.surrogate = functional, layer, neuron, surrogate
        self.nodes: list[Any] = []

    def _keep(self, node: Any) -> Any:
        self.nodes.append(node)
        return node

    def lif(self) -> Any:
        return self._keep(self.neuron.LIFNode(
            tau=1 / (1 - LEAK), decay_input=False, v_threshold=THRESHOLD, v_reset=0.0,
            surrogate_function=self.surrogate.ATan(), detach_reset=True, step_mode="m"))

    def pooling(self, threshold: float) -> Any:
        return self._keep(self.neuron.IFNode(
            v_threshold=threshold + _JUST_ABOVE, v_reset=0.0, surrogate_function=self.surrogate.ATan(),
            detach_reset=True, step_mode="m"))

    def readout(self) -> Callable[[Tensor], Tensor]:
        # NonSpikingLIFNode computes v + (I - v) / tau; the factor tau back is one product on [B, classes].
        node = self._keep(self.neuron.NonSpikingLIFNode(tau=1 / (1 - LEAK), decode="last_mem"))
        return lambda currents: node(currents) / (1 - LEAK)

    def norm(self, channels: int, alpha: float) -> torch.nn.Module:
        return self.layer.ThresholdDependentBatchNorm2d(alpha, THRESHOLD, channels)

    def over_time(self, synapse: Callable[[Tensor], Tensor], spikes: Tensor) -> Tensor:
        return self.functional.seq_to_ann_forward(spikes, synapse)

    def reset(self) -> None:
        for node in self.nodes:
            self.functional.reset_net(node)

    def finish(self, timesteps: int) -> None:
        """Nothing to do: plain backpropagation through time."""


KITS: dict[str, Callable[[], Any]] = {
    "authors": Authors, "spikingjelly": SpikingJelly,
    "snntorch": SnnTorch, "snntorch-compiled": functools.partial(SnnTorch, compiled=True),
    "norse": Norse, "norse-compiled": functools.partial(Norse, compiled=True)}


def versions(library: str) -> dict[str, str]:
    """Of PyTorch and of a library of `KITS`."""
    packages = ("torch",) if library == "authors" else ("torch", library.removesuffix("-compiled"))
    return {package: importlib.metadata.version(package) for package in packages}
