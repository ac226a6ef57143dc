"""NIR, the Neuromorphic Intermediate Representation (Pedersen et al. 2024, Nat. Commun. 15:8122): out and back in.

NIR states neurons as differential equations; a simulator steps them by dt. Ours are difference equations:

    u_t = v_(t-1) + I_t      s_t = 1[u_t > theta]      v_t = 0 if s_t else lambda u_t

Between two resets u_t = lambda u_(t-1) + I_t: leaking after the comparison or before the next input is the same thing,
so NIR's v is our u. Forward Euler on tau dv/dt = -v + R I gives v = (1 - dt/tau) v + (dt/tau) R I, hence

    LIF        tau = dt / (1 - lambda)   R = tau / dt            v_threshold = theta   v_reset = v_leak = 0
    LIF, IF without leak  (IF node)      R = 1 / dt              v_threshold = theta   v_reset = 0
    Readout    tau = dt / (1 - lambda)   R = lambda tau / dt     (LI; I with R = 1/dt without leak), prediction V_T / T

NIR's comparison is strict, as ours. Libraries differ from the standard and from each other; `Conventions` names how.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np

from tfspike.engine import known
from tfspike.engine import plan as plans
from tfspike.engine.precision import in_float32
from tfspike.errors import UserError
from tfspike.export.window import Window
from tfspike.neurons.layers import Readout, SpikingLayer
from tfspike.neurons.over_time import OverTime, WindowDropout

_NEVER = 2.0**40  # time constant in steps at which 1 - 1/tau is 1 in float32: a LIF node that does not leak


@dataclasses.dataclass(frozen=True)
class Conventions:
    """How the simulator that will read the graph departs from the standard.

    Attributes:
      dt: seconds per step.
      ignores_r: takes R as 1; the membrane is scaled instead, v = (1 - lambda) u, with its threshold.
      inclusive: fires at v >= v_threshold; the threshold becomes the next larger float32, which decides the same.
      has_if: knows IF nodes with R = 1/dt; else a LIF that does not leak stands for it.
      has_readout: knows LI and I; else the graph ends in the readout's currents, to be integrated outside.
      has_average_pool: else a convolution of each channel with itself stands for it.
      counts_batch: its Flatten counts the batch axis, which NIR's shapes do not have; axes are counted from the end.
      follows_joins: reads graphs in which two edges meet.
    """

    dt: float = 1e-4
    ignores_r: bool = False
    inclusive: bool = False
    has_if: bool = True
    has_readout: bool = True
    has_average_pool: bool = True
    counts_batch: bool = False
    follows_joins: bool = True


# As found in the readers of norse 1.1, snnTorch 1.0 and SpikingJelly 2.0; tests/test_export_nir.py runs them.
TARGETS: dict[str, Conventions] = {
    "nir": Conventions(),
    "norse": Conventions(ignores_r=True, has_readout=False, has_average_pool=False, counts_batch=True,
                         follows_joins=False),
    "snntorch": Conventions(has_if=False, has_readout=False, counts_batch=True),
    "spikingjelly": Conventions(inclusive=True, has_readout=False),
}


def to_nir(model: Any, target: str | Conventions = "nir") -> Any:
    """The graph of a model; its encoder stays outside (Input takes spikes, or currents with direct encoding).

    Args:
      model: a `tfspike.models.SpikingModel`.
      target: one of `TARGETS`, or conventions of your own.

    Returns:
      A `nir.NIRGraph`; node names are layer names ("output_layer" for a layer called output). Shapes are channels
      first, without batch and time.

    Raises:
      UserError: `nir` is not installed, the target is unknown, or a layer has no counterpart.
    """
    return _Writer(in_float32(model), _conventions(target)).graph()


def write(model: Any, path: str, target: str | Conventions = "nir") -> None:
    """Writes `to_nir(model, target)` to the file `path`."""
    write_graph(to_nir(model, target), path)


def write_graph(graph: Any, path: str) -> None:
    """Writes a `nir.NIRGraph` to the file `path`."""
    nir_package().write(path, graph)


def _conventions(target: str | Conventions) -> Conventions:
    if isinstance(target, Conventions):
        return target
    if target not in TARGETS:
        raise UserError(f"`target` must be one of {', '.join(TARGETS)}. Received: target={target!r}.")
    return TARGETS[target]


def refuse_neurons(call: plans.Call) -> None:
    """Raises UserError for spiking neurons that NIR has not: of another reset or start than 0."""
    neuron = call.layer.neuron
    if call.layer.moving_start is not None:
        raise UserError(f"The neurons of NIR begin at 0, and the start of {call.name!r} moves: export another format.")
    if neuron.reset != "zero" or neuron.start != 0.0:
        raise UserError(f"The neurons of NIR begin at 0 and reset to 0, and {call.name!r} has reset={neuron.reset!r} "
                        f"and start={neuron.start:g}: export another format.")


def nir_package() -> Any:
    """The package `nir`; raises UserError where it is not installed."""
    try:
        import nir
    except ImportError as error:
        raise UserError("NIR files need the package nir: pip install nir, or leave the format out.") from error
    return nir


@dataclasses.dataclass(frozen=True)
class _Wire:
    """What stands for a spike train: the nodes that add up to it, its shape, and what it was before flattening."""

    nodes: tuple[str, ...]
    shape: tuple[int, ...]  # (H, W, C) or (n,)
    maps: tuple[int, int, int] | None = None
    padding: tuple[int, int] = (0, 0)


class _Writer:
    def __init__(self, model: Any, conventions: Conventions):
        self.nir = nir_package()
        self.window = Window(model)
        self.to = conventions
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        plan = self.window.plan
        if plan.before or plan.after:
            raise UserError(f"NIR holds the spiking part alone; {model.name!r} has layers in front of its encoder or "
                            "behind its readout.")

    def graph(self) -> Any:
        plan, nir = self.window.plan, self.nir
        shape = self.window.spike_shape
        self.nodes["input"] = nir.Input({"input": np.array(_first(shape))})
        wires = {plan.encoder.output: _Wire(("input",), shape)}
        for call in (*plan.window, plan.readout):
            sources = [wires[x] for x in call.sources]
            wires[call.output] = self._convert(call, sources)
        last = wires[plan.readout.output]
        self.nodes["output"] = nir.Output({"output": np.array(last.shape)})
        self.edges += [(name, "output") for name in last.nodes]
        metadata = {"dt": self.to.dt, "timesteps": self.window.timesteps, "readout_leak": plan.readout.layer.leak}
        return nir.NIRGraph(self.nodes, self.edges, metadata=metadata)

    def _convert(self, call: plans.Call, sources: list[_Wire]) -> _Wire:
        layer, source = call.layer, sources[0]
        if isinstance(layer, keras.layers.Add):
            if not self.to.follows_joins:
                raise UserError(f"The reader of this `target` does not follow joins, such as {call.name!r}, and would "
                                "make another network of the file; choose another target, or leave the format out.")
            # NIR sums the edges that arrive at a node
            return dataclasses.replace(source, nodes=tuple(name for wire in sources for name in wire.nodes))
        if isinstance(layer, (WindowDropout, keras.layers.Identity)):
            return source
        if isinstance(layer, SpikingLayer):
            refuse_neurons(call)
            neuron = layer.neuron
            node = self._neuron(_first(source.shape), float(neuron.leak), np.asarray(neuron.threshold, np.float32))
            return self._add(call.name, node, source)
        if isinstance(layer, Readout):
            if layer.growth != 1.0:
                raise UserError(f"NIR has no counterpart of {layer.name!r}, whose membrane grows: export another "
                                "format.")
            return self._readout(layer, source)
        if isinstance(layer, OverTime):
            return self._synapse(call.name, layer.layer, source, tuple(call.output.shape[2:]))
        raise UserError(f"NIR has no counterpart of {layer.name!r} ({type(layer).__name__}).")

    def _add(self, name: str, node: Any, source: _Wire, shape: tuple[int, ...] | None = None,
             maps: tuple[int, int, int] | None = None) -> _Wire:
        if any(source.padding):
            raise UserError(f"NIR pads inside convolutions only, and {name!r} follows a padding.")
        if len(set(source.nodes)) < len(source.nodes):
            raise UserError(f"NIR has one edge between two nodes, and {name!r} would take the same train twice.")
        name = f"{name}_layer" if name in ("input", "output") else name  # the names of the graph's ends
        self.nodes[name] = node
        self.edges += [(before, name) for before in source.nodes]
        return _Wire((name,), source.shape if shape is None else shape, source.maps if shape is None else maps)

    # ---- neurons -----------------------------------------------------------------------------------------------

    def _neuron(self, shape: tuple[int, ...], leak: float, threshold: np.ndarray) -> Any:
        full, dt = _filler(shape), self.to.dt
        if threshold.ndim:  # one for each channel, which comes first here
            threshold = threshold.reshape(-1, *[1] * (len(shape) - 1))

        def limit(value: np.ndarray) -> np.ndarray:
            single = np.asarray(value, np.float32)
            return full(np.nextafter(single, np.float32(np.inf)) if self.to.inclusive else single)

        zero = full(0.0)
        if leak == 1.0 and self.to.has_if:
            return self.nir.IF(r=full(1 / dt), v_threshold=limit(threshold), v_reset=zero)
        steps = _NEVER if leak == 1.0 else 1 / (1 - leak)
        r, scale = (1.0, 1 / steps) if self.to.ignores_r else (steps, 1.0)
        return self.nir.LIF(tau=full(steps * dt), r=full(r), v_leak=zero, v_threshold=limit(scale * threshold),
                            v_reset=zero)

    def _readout(self, layer: Readout, source: _Wire) -> _Wire:
        if not self.to.has_readout:
            return source
        full, dt = _filler(source.shape), self.to.dt
        if layer.leak == 1.0:
            return self._add(layer.name, self.nir.I(r=full(1 / dt)), source)
        steps = 1 / (1 - layer.leak)
        return self._add(layer.name, self.nir.LI(tau=full(steps * dt), r=full(layer.leak * steps), v_leak=full(0.0)),
                         source)

    # ---- synapses ----------------------------------------------------------------------------------------------

    def _synapse(self, name: str, layer: Any, source: _Wire, shape: tuple[int, ...]) -> _Wire:
        method = known.own_synapse(layer)
        if method == "quantize":
            raise UserError(f"NIR has no counterpart of {name!r}, whose weights Keras' quantize has rounded: write the "
                            "graph before, or export saved_model.")
        if method not in (None, "enable_lora"):  # which is part of `layer.kernel`
            raise UserError(f"NIR has no counterpart of {name!r}, a {type(layer).__name__}, which has a `{method}` of "
                            "its own.")
        if isinstance(layer, keras.layers.ZeroPadding2D):
            (top, bottom), (left, right) = layer.padding
            if (top, left) != (bottom, right):
                raise UserError(f"NIR pads all sides alike; {name!r} pads {layer.padding}.")
            return dataclasses.replace(source, shape=shape, padding=(top, left))
        if isinstance(layer, keras.layers.Flatten):
            return self._flatten(name, source, shape)
        if isinstance(layer, keras.layers.Conv2D) and type(layer) is keras.layers.Conv2D:
            return self._conv(name, layer, source, shape)
        if isinstance(layer, keras.layers.AveragePooling2D):
            return self._pool(name, layer, source, shape)
        if isinstance(layer, keras.layers.Dense) and len(source.shape) == 1:
            return self._dense(name, layer, source, shape)
        raise UserError(f"NIR has no counterpart of {name!r} ({type(layer).__name__}).")

    def _flatten(self, name: str, source: _Wire, shape: tuple[int, ...]) -> _Wire:
        if len(source.shape) == 1:
            return source
        height, width, channels = source.shape
        # counted from the end, the first axis of a sample is the same with a batch axis in front and without
        node = self.nir.Flatten({"input": np.array(_first(source.shape))}, -3 if self.to.counts_batch else 0, -1)
        return self._add(name, node, source, shape, maps=(height, width, channels))

    def _conv(self, name: str, layer: Any, source: _Wire, shape: tuple[int, ...]) -> _Wire:
        _require_linear(name, layer)
        kernel = np.moveaxis(np.asarray(layer.kernel), (3, 2), (0, 1))  # HWIO -> OIHW
        padding = source.padding
        if layer.padding == "same":
            if any(n > 1 for n in layer.strides) or not all(n % 2 for n in layer.kernel_size) or any(padding):
                raise UserError(f"NIR pads all sides alike, which padding=\"same\" of {name!r} does not; "
                                "pad explicitly.")
            padding = tuple((k - 1) // 2 * d for k, d in zip(layer.kernel_size, layer.dilation_rate))
        size = tuple(n - 2 * p for n, p in zip(source.shape, source.padding))
        node = self.nir.Conv2d(size, kernel, tuple(layer.strides), padding, tuple(layer.dilation_rate), layer.groups,
                               _bias(layer, kernel))
        return self._add(name, node, dataclasses.replace(source, padding=(0, 0)), shape)

    def _pool(self, name: str, layer: Any, source: _Wire, shape: tuple[int, ...]) -> _Wire:
        if layer.padding != "valid":
            raise UserError("NIR pads pooling with zeros, which changes averages: padding=\"valid\" is needed for "
                            f"{name!r}.")
        size, strides = tuple(layer.pool_size), tuple(layer.strides)
        if self.to.has_average_pool:
            node = self.nir.AvgPool2d(np.array(size), np.array(strides), np.array((0, 0)))
        else:
            channels = shape[-1]
            # one channel each, written out: nir's type check does not know groups
            kernel = np.multiply.outer(np.eye(channels), np.full(size, 1 / np.prod(size))).astype(np.float32)
            node = self.nir.Conv2d(source.shape[:2], kernel, strides, (0, 0), (1, 1), 1, np.zeros(channels, np.float32))
        return self._add(name, node, source, shape)

    def _dense(self, name: str, layer: Any, source: _Wire, shape: tuple[int, ...]) -> _Wire:
        _require_linear(name, layer)
        weight = np.asarray(layer.kernel).T
        if source.maps is not None:  # our maps are flattened rows first, NIR's channels first
            weight = np.moveaxis(weight.reshape(-1, *source.maps), -1, 1).reshape(len(weight), -1)
        weight = np.ascontiguousarray(weight)
        node = self.nir.Affine(weight, _bias(layer, weight)) if layer.use_bias else self.nir.Linear(weight)
        return self._add(name, node, source, shape)


def _first(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(H, W, C) as (C, H, W)."""
    return (shape[-1], *shape[:-1])


def _filler(shape: tuple[int, ...]) -> Any:
    return lambda value: np.full(shape, value, np.float32)


def _bias(layer: Any, weight: np.ndarray) -> np.ndarray:
    return np.asarray(layer.bias) if layer.use_bias else np.zeros(len(weight), np.float32)


def _require_linear(name: str, layer: Any) -> None:
    if layer.activation is not keras.activations.linear:
        raise UserError(f"NIR's synapses are linear; {name!r} has the activation {layer.activation.__name__}.")
