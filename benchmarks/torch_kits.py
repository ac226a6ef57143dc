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


def _compiled(cell: Any) -> Any:
    """A cell through `torch.compile`, one program per shape of neurons."""
    torch._dynamo.config.recompile_limit = 64  # VGG9 has more shapes than the default of 8, beyond which it gives up
    return torch.compile(cell, dynamic=False)


def _advance(current: Tensor, membrane: Tensor, threshold: float, leak: float) -> tuple[Tensor, Tensor, Tensor]:
    """One step: `(fired, spikes, membrane after)`."""
    membrane = membrane + current
    fired = membrane > threshold
    membrane = membrane.masked_fill_(fired, 0.0)
    if leak != 1:
        membrane.mul_(leak)
    return fired, fired.to(current.dtype), membrane


def _credit(fired: Tensor, slope: Tensor, spike_gradient: Tensor, carry: Tensor) -> Tensor:
    return torch.where(fired, slope * spike_gradient, carry)


def _tally(count: Tensor, trace: Tensor, spikes: Tensor, leak: float) -> None:
    """Adds a step to the counts and leaky traces, in place."""
    count.add_(spikes)
    if leak != 1:
        trace.mul_(leak).add_(spikes)


class _Fire(torch.autograd.Function):
    """One step of a neuron as Lee et al. 2020 train it.

    Backward, with g = dL/ds_t and c = dL/dv_t: dL/dI_t = dL/dv_(t-1) = s_t * slope * g + (1 - s_t) * c. The leak is
    detached (its factor is left out of c), and the slope, known only at the end of the window, is read from `window`.
    """

    @staticmethod
    def forward(ctx: Any, current: Tensor, membrane: Tensor, window: _Window):
        fired, spikes, membrane = window.advance(current, membrane, window.threshold, window.leak)
        ctx.save_for_backward(fired)
        ctx.window, ctx.dtype = window, current.dtype
        return spikes, membrane

    @staticmethod
    def backward(ctx: Any, spike_gradient: Tensor, carry: Tensor):
        (fired,) = ctx.saved_tensors
        delta = ctx.window.credit(fired, ctx.window.slope, spike_gradient, carry)
        return delta.to(ctx.dtype), delta, None


class _Window:
    """What the leak-aware slope of one layer needs: counts and leaky traces while the window runs, then the slope.

    Args:
      threshold, leak: of the neuron.
      scale: 1 / threshold, or 1 for a pooling neuron.
      wrap: what `_advance`, `_credit` and `_tally` are passed through: `_compiled`, or nothing.
    """

    def __init__(self, threshold: float, leak: float, scale: float, wrap: Callable[[Any], Any] = lambda cell: cell):
        self.threshold, self.leak, self.scale = threshold, leak, scale
        self.advance, self.credit, self.tally = wrap(_advance), wrap(_credit), wrap(_tally)
        self.membrane: Tensor | None = None

    def __call__(self, current: Tensor) -> Tensor:
        if self.membrane is None:
            dtype = torch.float64 if current.dtype == torch.float64 else torch.float32
            self.membrane = torch.zeros_like(current, dtype=dtype)
            self.count, self.trace = torch.zeros_like(self.membrane), torch.zeros_like(self.membrane)
        spikes, self.membrane = _Fire.apply(current, self.membrane, self)
        if torch.is_grad_enabled():
            with torch.no_grad():
                self.tally(self.count, self.trace, spikes, self.leak)
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

    def __init__(self, leak: float = LEAK, threshold: float = THRESHOLD, compiled: bool = False) -> None:
        super().__init__()
        self.leak, self.threshold = leak, threshold
        self.wrap = _compiled if compiled else lambda cell: cell
        self.windows: list[_Window] = []

    def lif(self) -> _Window:
        return self._window(_Window(self.threshold, self.leak, 1 / self.threshold, self.wrap))

    def pooling(self, threshold: float) -> _Window:
        return self._window(_Window(threshold, 1.0, 1.0, self.wrap))

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


class _Arctan(torch.autograd.Function):
    """A spike where x > 0; backward, the arctangent surrogate 1 / (1 + (pi x)^2)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor):
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor):
        (x,) = ctx.saved_tensors
        return gradient / (1 + (math.pi * x) ** 2)


def _leaky(current: Tensor, membrane: Tensor, threshold: float, leak: float) -> tuple[Tensor, Tensor]:
    """One step of a LIF neuron, reset to zero, the reset detached: `(spikes, membrane after)`."""
    membrane = membrane + current
    spikes = _Arctan.apply(membrane - threshold)
    return spikes.to(current.dtype), leak * membrane * (1 - spikes.detach())


def _integrated(current: Tensor, membrane: Tensor, leak: float) -> tuple[Tensor, Tensor]:
    membrane = leak * (membrane + current)
    return membrane, membrane


class Plain(_StepKit):
    """A LIF neuron as one writes it in PyTorch, step by step: through time, arctangent surrogate, detached reset."""

    def __init__(self, compiled: bool = False) -> None:
        super().__init__()
        self.wrap = _compiled if compiled else lambda cell: cell

    def _cell(self, cell: Callable[..., Any], *constants: float) -> _Stateful:
        cell = self.wrap(cell)

        def step(current: Tensor, membrane: Tensor | None) -> tuple[Tensor, Tensor]:
            return cell(current, torch.zeros_like(current, dtype=torch.float32) if membrane is None else membrane,
                        *constants)

        return self._keep(step)

    def lif(self) -> _Stateful:
        return self._cell(_leaky, THRESHOLD, LEAK)

    def pooling(self, threshold: float) -> _Stateful:
        return self._cell(_leaky, threshold, 1.0)

    def readout(self) -> _Stateful:
        return self._cell(_integrated, LEAK)


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
    "authors": Authors, "authors-compiled": functools.partial(Authors, compiled=True), "spikingjelly": SpikingJelly,
    "plain": Plain, "plain-compiled": functools.partial(Plain, compiled=True),
    "snntorch": SnnTorch, "snntorch-compiled": functools.partial(SnnTorch, compiled=True),
    "norse": Norse, "norse-compiled": functools.partial(Norse, compiled=True)}


def versions(library: str) -> dict[str, str]:
    """Of PyTorch and of a library of `KITS`."""
    library = library.removesuffix("-compiled")
    packages = ("torch",) if library in ("authors", "plain") else ("torch", library)
    return {package: importlib.metadata.version(package) for package in packages}
