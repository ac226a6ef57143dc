"""A NIR graph as a tfspike model: the inverse of `tfspike.export.nir_graph`, for feed-forward LIF and IF networks."""

from __future__ import annotations

import math
import os
from typing import Any

import keras
import numpy as np

from tfspike.errors import UserError, first_line
from tfspike.export.nir_graph import nir_package
from tfspike.export.standalone import simulate_nir
from tfspike.models.spiking_model import SpikingModel
from tfspike.neurons import encoders
from tfspike.neurons.layers import LIF, PoolingIF, Readout
from tfspike.neurons.over_time import OverTime


def from_nir(graph: Any, timesteps: int | None = None, encoder: str | None = None, gradient: str = "event",
             dt: float | None = None, seed: int = 0) -> SpikingModel:
    """Builds a model that computes what the graph does, and can be trained on.

    Where the graph ends in neurons that fire, a readout without leak is added: the scores are their rates. Thresholds
    that differ between the channels of a layer, and R that does, which becomes part of them, stay as they are in
    training (`by_channel` of `tfspike.LIF`).

    Args:
      graph: a `nir.NIRGraph` or the path of a file.
      timesteps: T; None takes the graph's metadata.
      encoder: what stands in front of Input, as for `tfspike.models.create`; None takes spike trains.
      gradient: "event" or "rate".
      dt: seconds per step; None takes the graph's metadata, and 1e-4 without it.
      seed: of the encoder.

    Raises:
      UserError: the file cannot be read, or a node has no counterpart (another reset or resting potential than 0,
        time constants that differ within a layer, thresholds or R that differ within a channel, a cycle).
    """
    nir = nir_package()
    if isinstance(graph, (str, os.PathLike)):
        try:
            graph = nir.read(graph)
        except Exception as error:  # HDF5 and nir raise what they raise
            raise UserError(f"{os.fspath(graph)} is not a readable NIR file ({first_line(error)}); give a .nir "
                            "file.") from error
    metadata = graph.metadata if isinstance(graph.metadata, dict) else {}
    timesteps = timesteps or int(metadata.get("timesteps", 0))
    if timesteps < 1:
        raise UserError("The graph does not say how long its window is: give `timesteps`, 1 or more.")
    return _Reader(graph, dt or float(metadata.get("dt", 1e-4))).model(timesteps, encoder, gradient, seed)


class _Reader:
    def __init__(self, graph: Any, dt: float):
        self.graph, self.dt = graph, dt
        kinds = [type(node).__name__ for node in graph.nodes.values()]
        if kinds.count("Input") != 1 or kinds.count("Output") != 1:
            raise UserError(f"A graph with one Input and one Output is needed; this one has {kinds.count('Input')} and "
                            f"{kinds.count('Output')}.")
        try:
            self.order = simulate_nir.order(graph)
        except ValueError as error:
            raise UserError(f"{error} Only feed-forward graphs can be read.") from None
        self.weights: dict[str, tuple[Any, list[np.ndarray]]] = {}  # by the name of the node
        self.maps: dict[str, tuple[int, int, int]] = {}  # (H, W, C) of what was flattened, by node
        self.kind = {name: type(node).__name__ for name, node in graph.nodes.items()}

    def model(self, timesteps: int, encoder: str | None, gradient: str, seed: int) -> SpikingModel:
        values: dict[str, Any] = {}
        inputs = None
        for name in self.order:
            node, kind = self.graph.nodes[name], self.kind[name]
            if kind == "Input":
                shape = tuple(int(n) for n in node.input_type["input"])
                shape = (*shape[1:], shape[0]) if len(shape) == 3 else shape
                inputs = keras.Input(shape if encoder else (timesteps, *shape), dtype="float32", name="input")
                values[name] = encoders.create(encoder, timesteps, seed=seed, name="encoder")(inputs)
                continue
            sources = [before for before, after in self.graph.edges if after == name]
            x = values[sources[0]] if len(sources) == 1 else keras.layers.Add(name=f"{_legal(name)}_current")(
                [values[source] for source in sources])
            values[name] = self._convert(name, node, kind, x, sources, gradient)
        outputs = values[next(name for name in self.graph.nodes if self.kind[name] == "Output")]
        if len(outputs.shape) > 2:  # still [T, B, ...]: the graph ends in spikes or currents
            leak = float(self._metadata("readout_leak", 1.0))
            outputs = Readout(leak, name="readout")(outputs)
        model = SpikingModel(inputs, outputs, name="from_nir")
        for layer, arrays in self.weights.values():
            layer.set_weights(arrays)
        return model

    def _metadata(self, key: str, default: Any) -> Any:
        return self.graph.metadata.get(key, default) if isinstance(self.graph.metadata, dict) else default

    def _convert(self, name: str, node: Any, kind: str, x: Any, sources: list[str], gradient: str) -> Any:
        flat = next((self.maps[source] for source in sources if source in self.maps), None)
        if flat is not None and kind not in ("Linear", "Affine"):
            self.maps[name] = flat
        if kind == "Output":
            return x
        if kind in ("LIF", "IF"):
            if any(np.any(value) for value in (node.v_reset, getattr(node, "v_leak", 0.0))):
                raise UserError(f"{name!r} resets to or rests at another potential than 0, which tfspike has not.")
            return self._neurons(name, node, kind, x, sources, flat, gradient)
        if kind in ("LI", "I"):
            return self._readout(name, node, x)
        if kind in ("Linear", "Affine"):
            weight = np.asarray(node.weight)
            if flat is not None:
                height, width, channels = flat
                weight = np.moveaxis(weight.reshape(-1, channels, height, width), 1, -1).reshape(len(weight), -1)
            layer = keras.layers.Dense(len(weight), use_bias=kind == "Affine", name="dense")
            self.weights[name] = layer, [weight.T, *([node.bias] if kind == "Affine" else [])]
            return OverTime(layer, name=_legal(name))(x)
        if kind == "Conv2d":
            return self._conv(name, node, x)
        if kind == "AvgPool2d":
            if np.any(node.padding):
                raise UserError(f"{name!r} pads an average pooling with zeros, which tfspike does not.")
            size, stride = (tuple(int(n) for n in np.broadcast_to(v, 2)) for v in (node.kernel_size, node.stride))
            return OverTime(keras.layers.AveragePooling2D(size, stride), name=_legal(name))(x)
        if kind == "Flatten":
            if len(x.shape) == 5:
                height, width, channels = (int(n) for n in x.shape[2:])
                self.maps[name] = (height, width, channels)
            return OverTime(keras.layers.Flatten(), name=_legal(name))(x)
        raise UserError(f"{name!r} is a {kind} node, which tfspike cannot read; it reads Conv2d, Linear, Affine, "
                        "AvgPool2d, Flatten, LIF, IF, LI and I.")

    def _neurons(self, name: str, node: Any, kind: str, x: Any, sources: list[str], flat: tuple[int, int, int] | None,
                 gradient: str) -> Any:
        leak, gain = self._step(name, node)
        limits = np.asarray(node.v_threshold, np.float64)
        if limits.min() <= 0.0:
            raise UserError(f"{name!r} has a threshold of {limits.min():g}; those of tfspike are above 0.")
        # u = v / gain is compared with threshold / gain
        thresholds = self._by_channel(name, "a threshold", limits, flat) / self._by_channel(name, "an R", gain, flat)
        if len(thresholds) > 1:
            around = 2.0 ** round(math.log2(thresholds.mean()))  # a power of two: times its factor, each is exact
            layer = LIF(leak, around, gradient, by_channel=True, name=_legal(name))
            self.weights[name] = layer, [thresholds / around]
            return layer(x)
        threshold = float(thresholds[0])
        if kind == "IF" and all(self.kind[source] == "AvgPool2d" for source in sources):
            return PoolingIF(threshold, gradient, name=_legal(name))(x)
        return LIF(leak, threshold, gradient, name=_legal(name))(x)

    def _by_channel(self, name: str, what: str, values: np.ndarray, flat: tuple[int, int, int] | None) -> np.ndarray:
        """One value for the layer, `[1]`, or one for every channel in our order, `[C]`."""
        if values.min() == values.max():
            return values.reshape(-1)[:1]
        if flat is not None:  # every neuron is a channel
            height, width, channels = flat
            return np.moveaxis(values.reshape(channels, height, width), 0, -1).reshape(-1)
        values = values.reshape(len(values), -1)
        if np.ptp(values, axis=1).any():
            raise UserError(f"{name!r} has {what} that differs within a channel; tfspike has one for each channel.")
        return values[:, 0]

    def _conv(self, name: str, node: Any, x: Any) -> Any:
        kernel = np.moveaxis(np.asarray(node.weight), (0, 1), (3, 2))
        stride, dilation = (tuple(int(n) for n in np.broadcast_to(v, 2)) for v in (node.stride, node.dilation))
        if isinstance(node.padding, str):  # of an even kernel "same" pads one more behind
            around = [d * (k - 1) if node.padding == "same" else 0 for k, d in zip(kernel.shape, dilation)]
            padding = tuple((n // 2, n - n // 2) for n in around)
        else:
            padding = tuple((int(n), int(n)) for n in np.broadcast_to(node.padding, 2))
        if np.any(padding):
            x = OverTime(keras.layers.ZeroPadding2D(padding), name=f"{_legal(name)}_pad")(x)
        biased = bool(np.any(node.bias))
        layer = keras.layers.Conv2D(kernel.shape[-1], kernel.shape[:2], stride, "valid", dilation_rate=dilation,
                                    groups=int(np.asarray(node.groups)), use_bias=biased, name="conv")
        self.weights[name] = layer, [kernel, *([np.asarray(node.bias)] if biased else [])]
        return OverTime(layer, name=_legal(name))(x)

    def _readout(self, name: str, node: Any, x: Any) -> Any:
        """V = lambda V + gain I; ours has gain = lambda, another one moves into the weights in front."""
        leak, gain = self._step(name, node)
        if not np.allclose(gain, leak, rtol=1e-5):
            sources = [before for before, after in self.graph.edges if after == name]
            elsewhere = {before for before, after in self.graph.edges if after != name}
            if any(self.kind.get(source) not in ("Linear", "Affine") or source in elsewhere for source in sources):
                raise UserError(f"{name!r} weighs its input by {gain.flat[0]:.6g} where tfspike's readout has "
                                f"{leak:.6g}, and not all of {', '.join(sources)} are Linear and feed it alone, to "
                                "take the rest.")
            for source in sources:
                layer, arrays = self.weights[source]
                self.weights[source] = layer, [array * (gain / leak) for array in arrays]
        return Readout(leak, name=_legal(name))(x)

    def _step(self, name: str, node: Any) -> tuple[float, np.ndarray]:
        """`(leak, weights of the input, of the shape of R)` of forward Euler with dt."""
        r, where = np.unique(np.asarray(node.r, np.float64), return_inverse=True)
        leak, share = 1.0, self.dt
        if hasattr(node, "tau"):
            share = self.dt / self._uniform(name, "tau", node.tau)
            if not 0 <= share < 1 or r[0] <= 0:
                tau = self.dt / share if share else 0.0
                raise UserError(f"{name!r} has the time constant {tau:g} s and R = {r[0]:g}; with dt = {self.dt:g} s "
                                "its time constant must exceed dt, and R must be above 0.")
            leak = _tidy(1 - share)
        return leak, np.array([_tidy(share * value) for value in r])[where].reshape(np.shape(node.r))

    def _uniform(self, name: str, what: str, values: Any) -> float:
        found = np.unique(values)
        if len(found) != 1:
            raise UserError(f"{name!r} has {len(found)} values of {what}; tfspike has one per layer.")
        return float(found[0])


def _tidy(value: float) -> float:
    """The decimal number that float32 rounding in the file hides, if there is one: 0.99, not 0.98999999."""
    short = float(f"{value:.6g}")
    return short if abs(short - value) < 2e-7 * max(1.0, abs(value)) else value


def _legal(name: str) -> str:
    """Keras forbids / in names."""
    return name.replace("/", "_")
