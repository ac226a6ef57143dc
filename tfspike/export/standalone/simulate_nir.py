"""A small simulator of NIR graphs in NumPy: forward Euler, one value per step on every edge, inputs of a node summed.

It knows the standard and nothing of the library that wrote the graph. Differential equations are stepped as

    LIF, LI   v += dt / tau ((v_leak - v) + r I)        IF, I   v += dt r I

then a neuron fires where v > v_threshold (strict, as the standard says) and its v becomes v_reset. Feed-forward graphs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Array = Any  # NumPy arrays and scalars


def run(path: str, spikes: Array, dt: float | None = None) -> dict[str, Array]:
    """Simulates the graph in a file.

    Args:
      path: a .nir file.
      spikes: `[B, T, H, W, C]` or `[B, T, n]`.
      dt: seconds per step; None takes the graph's metadata, and 1e-4 without it.

    Returns:
      `output` (what reaches the Output node) `[B, T, ...]`, `scores` (its last value / T) `[B, ...]`, `label`, `spikes`
      and `layer_spikes` (of every neuron that fires, in the order of the graph), and `names` of those nodes.
    """
    import nir

    graph = nir.read(path)
    dt = float(graph.metadata.get("dt", 1e-4)) if dt is None else dt
    train = np.moveaxis(spikes, 1, 0).astype(np.float32)
    if train.ndim == 5:
        train = np.moveaxis(train, -1, 2)  # channels first, the layout of NIR
    output, counts, names = simulate(graph, train, dt)
    scores = output[-1] / len(train)
    layer_spikes = np.stack(counts, axis=-1) if counts else np.zeros((len(spikes), 0), np.int64)
    return {"output": np.moveaxis(output, 0, 1), "scores": scores, "label": scores.argmax(-1), "names": np.array(names),
            "spikes": layer_spikes.sum(-1), "layer_spikes": layer_spikes}


def simulate(graph: Any, train: Array, dt: float) -> tuple[Array, list[Array], list[str]]:
    """`(output [T, B, ...], spikes per sample of every firing node, their names)` for `train` `[T, B, ...]`."""
    values: dict[str, Array] = {}
    counts, names = [], []
    for name in order(graph):
        node, kind = graph.nodes[name], type(graph.nodes[name]).__name__
        sources = [values[source] for source, target in graph.edges if target == name]
        x = train if kind == "Input" else np.sum(sources, axis=0, dtype=np.float32)
        if kind in ("LIF", "IF"):
            values[name] = fire(node, x, dt)
            counts.append(values[name].astype(np.int64).sum(axis=(0, *range(2, x.ndim))))
            names.append(name)
        else:
            values[name] = _NODES[kind](node, x, dt)
    last = next(name for name, node in graph.nodes.items() if type(node).__name__ == "Output")
    return values[last], counts, names


def order(graph: Any) -> list[str]:
    """Node names so that every node comes after its sources."""
    waiting = {name: [source for source, target in graph.edges if target == name] for name in graph.nodes}
    done: list[str] = []
    while waiting:
        ready = [name for name, sources in waiting.items() if all(source in done for source in sources)]
        if not ready:
            raise ValueError(f"The graph has a cycle through {', '.join(sorted(waiting)[:3])}.")
        done += ready
        waiting = {name: sources for name, sources in waiting.items() if name not in ready}
    return done


def fire(node: Any, currents: Array, dt: float) -> Array:
    """Spikes of LIF or IF neurons for currents `[T, B, ...]`."""
    v, spikes = np.zeros(currents.shape[1:], np.float32), np.zeros_like(currents)
    keep, gain, rest = _constants(node, dt)
    for t, current in enumerate(currents):
        v = keep * v + gain * current + rest
        spikes[t] = v > node.v_threshold
        v = np.where(spikes[t] > 0, node.v_reset, v).astype(np.float32)
    return spikes


def integrate(node: Any, currents: Array, dt: float) -> Array:
    """Membranes of LI or I neurons for currents `[T, B, ...]`."""
    v, membranes = np.zeros(currents.shape[1:], np.float32), np.zeros_like(currents)
    keep, gain, rest = _constants(node, dt)
    for t, current in enumerate(currents):
        membranes[t] = v = keep * v + gain * current + rest
    return membranes


def _constants(node: Any, dt: float) -> tuple[Array, Array, Array]:
    """Euler's `v = keep v + gain I + rest`; computed in float64, then rounded once."""
    r = np.asarray(node.r, np.float64)
    if not hasattr(node, "tau"):
        return np.float32(1), (dt * r).astype(np.float32), np.float32(0)
    share = dt / np.asarray(node.tau, np.float64)
    return ((1 - share).astype(np.float32), (share * r).astype(np.float32),
            (share * np.asarray(node.v_leak, np.float64)).astype(np.float32))


def _patches(x: Array, size: Any, stride: Any, padding: Any, dilation: Any = (1, 1)) -> Array:
    """Windows `[N, C, H', W', kH, kW]` of images `[N, C, H, W]`; padding is a number, two, or a word."""
    h, w = np.broadcast_to(dilation, 2)
    size = ((size[0] - 1) * h + 1, (size[1] - 1) * w + 1)
    if isinstance(padding, str):  # of an even kernel "same" pads one more behind
        around = [(n - 1) * (padding == "same") for n in size]
        sides = [(n // 2, n - n // 2) for n in around]
    else:
        sides = [(n, n) for n in np.broadcast_to(padding, 2)]
    x = np.pad(x, ((0, 0), (0, 0), *sides))
    down, right = np.broadcast_to(stride, 2)
    return sliding_window_view(x, size, axis=(2, 3))[:, :, ::down, ::right, ::h, ::w]


def conv(node: Any, train: Array, dt: float) -> Array:
    """Conv2d on `[T, B, C, H, W]`, a step at a time to save memory."""
    weight = np.asarray(node.weight, np.float32)
    groups = int(np.asarray(node.groups))

    def step(x: Array) -> Array:
        parts = np.split(_patches(x, weight.shape[2:], node.stride, node.padding, node.dilation), groups, axis=1)
        maps = [np.tensordot(part, kernel, ((1, 4, 5), (1, 2, 3)))
                for part, kernel in zip(parts, np.split(weight, groups))]
        return np.moveaxis(np.concatenate(maps, axis=-1), -1, 1) + np.reshape(node.bias, (-1, 1, 1))

    return np.stack([step(x) for x in train]).astype(np.float32)


def pool(node: Any, train: Array, dt: float) -> Array:
    """AvgPool2d or SumPool2d on `[T, B, C, H, W]`."""
    size = [int(n) for n in np.broadcast_to(node.kernel_size, 2)]
    share = size[0] * size[1] if type(node).__name__ == "AvgPool2d" else 1
    return np.stack([_patches(x, size, node.stride, node.padding).sum(axis=(4, 5)) / share for x in train])


def flatten(node: Any, train: Array, dt: float) -> Array:
    """Axes start_dim..end_dim of one sample (NIR's shapes have no batch axis) become one."""
    shape = train.shape[2:]
    start, end = (int(axis) % len(shape) for axis in (node.start_dim, node.end_dim))
    return train.reshape(*train.shape[:2], *shape[:start], -1, *shape[end + 1:])


def linear(node: Any, train: Array, dt: float) -> Array:
    """Linear or Affine."""
    return train @ np.asarray(node.weight, np.float32).T + np.asarray(getattr(node, "bias", 0.0), np.float32)


_NODES: dict[str, Any] = {
    "Input": lambda node, x, dt: x, "Output": lambda node, x, dt: x, "Conv2d": conv, "AvgPool2d": pool,
    "SumPool2d": pool, "Flatten": flatten, "Linear": linear, "Affine": linear, "LI": integrate, "I": integrate,
    "Scale": lambda node, x, dt: x * node.scale}
