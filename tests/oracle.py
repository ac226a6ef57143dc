"""The oracle: the method of Lee et al. 2020 (Front. Neurosci. 14:119) in NumPy float64, written to be read.

It shares no code with the library and imports no TensorFlow: the two can only agree by computing the same thing.
Spike trains are time-major `[T, B, ...]`, images NHWC, kernels HWIO, dense weights `[in, out]`. Weights and their
gradients are lists in the order of the forward pass; within a residual block: conv a, conv b, then the shortcut's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

POOLING_LEAK, POOLING_THRESHOLD = 1.0, 0.75


# --- Single neurons -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """What a layer of firing neurons did in one window of T steps."""

    spikes: Array  # [T, ...], 0 or 1
    u: Array  # [T, ...], membrane before firing
    v: Array  # [...], membrane after the last step
    N: Array  # [...], spikes in the window
    F: Array  # [...], leaky trace at the window's end; a spike in the last step counts 1


def lif_forward(
    currents: ArrayLike, leak: float, threshold: float, v0: ArrayLike | None = None, given: ArrayLike | None = None
) -> Window:
    """LIF neurons with hard reset: fire where u > threshold, then v = 0 where they fired and leak * u elsewhere.

    `currents` is `[T, ...]`, `v0` `[...]` (zero if absent). With `given` spikes `[T, ...]` the neurons fire when
    told to, so `u` shows how far each told decision was from the one they would have taken.
    """
    current = np.asarray(currents, np.float64)
    v = np.zeros(current.shape[1:]) if v0 is None else np.array(v0, np.float64)
    spikes, u = np.zeros_like(current), np.zeros_like(current)
    if given is not None:
        spikes[:] = _checked_spikes(given, current.shape)
    for t in range(len(current)):
        u[t] = v + current[t]
        if given is None:
            spikes[t] = u[t] > threshold
        v = np.where(spikes[t] == 1, 0.0, leak * u[t])
    return Window(spikes, u, v, *count_and_trace(spikes, leak))


def count_and_trace(spikes: ArrayLike, leak: float) -> tuple[Array, Array]:
    """N and F of a train `[T, ...]`: the sum of its spikes, and the sum of leak^(T-t) over them."""
    train = np.asarray(spikes, np.float64)
    age = np.arange(len(train))[::-1]  # 0 for the last step
    return train.sum(axis=0), np.tensordot(leak**age, train, axes=1)


def readout_forward(currents: ArrayLike, leak: float, v0: ArrayLike | None = None) -> tuple[Array, Array]:
    """Leaky integrator that never fires, V_t = leak * (V_(t-1) + I_t): its output V_T / T and all V `[T, ...]`."""
    current = np.asarray(currents, np.float64)
    v = np.zeros(current.shape[1:]) if v0 is None else np.array(v0, np.float64)
    membrane = np.zeros_like(current)
    for t in range(len(current)):
        v = membrane[t] = leak * (v + current[t])
    return membrane[-1] / len(current), membrane


def slope(N: ArrayLike, F: ArrayLike, leak: float, threshold: float) -> Array:
    """Leak-aware pseudo-derivative of LIF neurons, (1/threshold) (1 + ln(leak) F/N), and 0 where they never fired."""
    count, trace = np.asarray(N, np.float64), np.asarray(F, np.float64)
    return np.where(count > 0, (1.0 + np.log(leak) * trace / np.maximum(count, 1.0)) / threshold, 0.0)


def pooling_slope(N: ArrayLike) -> Array:
    """Pseudo-derivative of pooling neurons: 1 where they fired, without 1/threshold."""
    return (np.asarray(N) > 0).astype(np.float64)


def event_backward(spikes: ArrayLike, slope: ArrayLike, g: ArrayLike, delta_next: ArrayLike = 0.0) -> Array:
    """Gradient "event": from g_t = dL/ds_t to delta_t = dL/dI_t, both `[T, ...]`.

    Every input is credited to the next output spike and nothing crosses a reset. `delta_next` `[...]` is the gradient
    that reaches the final membrane from a later window; `delta[0]` is the one on the initial membrane.
    """
    train, upstream = np.asarray(spikes, np.float64), np.asarray(g, np.float64)
    delta = np.zeros_like(train)
    carried = np.asarray(delta_next, np.float64)
    for t in reversed(range(len(train))):
        carried = delta[t] = train[t] * slope * upstream[t] + (1.0 - train[t]) * carried
    return delta


def rate_backward(slope: ArrayLike, grad_rate: ArrayLike) -> Array:
    """Gradient "rate": from dL/dr (r = N/T) to dL/dd (d = mean current), both `[...]`, once for the whole window."""
    return np.asarray(slope, np.float64) * np.asarray(grad_rate, np.float64)


# --- Synapses: linear maps, their transposes and the gradients of their weights. Any leading axes. ------------------


def conv(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Convolution of `[..., H, W, Cin]` with `[k, k, Cin, Cout]`, (k-1)/2 zeros on every side, at any stride."""
    y = np.tensordot(_patches(x, len(kernel), stride), kernel, axes=([3, 4, 5], [2, 0, 1]))
    return y.reshape(x.shape[:-3] + y.shape[1:])


def conv_input_gradient(grad: Array, kernel: Array, stride: int, shape: tuple[int, ...]) -> Array:
    """The transpose of `conv` in its input, which has the given shape."""
    height, width, channels = shape[-3:]
    size, margin = len(kernel), (len(kernel) - 1) // 2
    y = _images(grad)
    rows, columns = y.shape[1:3]
    padded = np.zeros((len(y), height + 2 * margin, width + 2 * margin, channels))
    for i in range(size):
        for j in range(size):
            padded[:, i : i + stride * rows : stride, j : j + stride * columns : stride] += y @ kernel[i, j].T
    return padded[:, margin : margin + height, margin : margin + width].reshape(shape)


def conv_weight_gradient(x: Array, grad: Array, size: int, stride: int) -> Array:
    """Gradient of the kernel `[k, k, Cin, Cout]`, summed over all leading axes."""
    per_channel = np.tensordot(_patches(x, size, stride), _images(grad), axes=([0, 1, 2], [0, 1, 2]))
    return per_channel.transpose(1, 2, 0, 3)


def average_pool(x: Array) -> Array:
    """2x2 average at stride 2; an odd last row or column is dropped."""
    rows, columns = x.shape[-3] // 2, x.shape[-2] // 2
    even = x[..., : 2 * rows, : 2 * columns, :]
    return even.reshape(*x.shape[:-3], rows, 2, columns, 2, x.shape[-1]).mean(axis=(-4, -2))


def average_pool_gradient(grad: Array, shape: tuple[int, ...]) -> Array:
    """The transpose of `average_pool` for an input of the given shape."""
    spread = grad.repeat(2, axis=-3).repeat(2, axis=-2) / 4.0
    result = np.zeros(shape)
    result[..., : spread.shape[-3], : spread.shape[-2], :] = spread
    return result


def subsample(x: Array, stride: int) -> Array:
    """The identity shortcut at a stride: every stride-th pixel, from the first."""
    return x[..., ::stride, ::stride, :]


def subsample_gradient(grad: Array, stride: int, shape: tuple[int, ...]) -> Array:
    """The transpose of `subsample` for an input of the given shape."""
    result = np.zeros(shape)
    result[..., ::stride, ::stride, :] = grad
    return result


def _images(x: Array) -> Array:
    return x.reshape(-1, *x.shape[-3:])


def _patches(x: Array, size: int, stride: int) -> Array:
    """`[n, H', W', Cin, k, k]`: what each output pixel sees."""
    if size % 2 == 0:
        raise ValueError(f"a kernel must have an odd size to be padded by (k-1)/2, received {size}")
    margin = (size - 1) // 2
    padded = np.pad(_images(x), ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    return sliding_window_view(padded, (size, size), axis=(1, 2))[:, ::stride, ::stride]  # type: ignore[call-overload]


def _checked_spikes(spikes: ArrayLike, shape: tuple[int, ...]) -> Array:
    train = np.asarray(spikes, np.float64)
    if train.shape != shape or not np.isin(train, (0.0, 1.0)).all():
        raise ValueError(f"given spikes must be unmasked, 0 or 1, of shape {shape}; received shape {train.shape}")
    return train


# --- Small nets -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conv:
    """Convolution, then LIF neurons."""

    stride: int = 1


@dataclass(frozen=True)
class Pool:
    """2x2 average, then pooling neurons."""


@dataclass(frozen=True)
class Block:
    """Conv a - LIF - conv b + shortcut current - LIF; the shortcut has the block's total stride and no neuron."""

    stride_a: int = 1
    stride_b: int = 1
    shortcut: Literal["conv", "identity"] = "conv"


@dataclass(frozen=True)
class Stem:
    """Convolution without neurons: what follows reads its currents."""

    stride: int = 1


@dataclass(frozen=True)
class CurrentBlock:
    """LIF - conv a - LIF - conv b, added to the current that came in; a "conv" shortcut reads the block's spikes."""

    stride_a: int = 1
    stride_b: int = 1
    shortcut: Literal["conv", "identity"] = "identity"


@dataclass(frozen=True)
class Fire:
    """LIF neurons on currents."""


@dataclass(frozen=True)
class Hidden:
    """Flatten (row-major over H, W, C), dense, LIF neurons."""


Stage = Conv | Pool | Block | Stem | CurrentBlock | Fire | Hidden


@dataclass(frozen=True)
class Net:
    """Stages in order, then always: flatten, dense, leaky integrator. Sizes follow from the weights."""

    stages: Sequence[Stage]
    leak: float = 0.99
    threshold: float = 1.0


@dataclass(frozen=True)
class Layer:
    """One layer of firing neurons in one window."""

    name: str
    leak: float
    threshold: float
    pooling: bool
    currents: Array
    window: Window
    mask: Array | None  # [B, ...], with its factor 1/(1-p)

    @property
    def spikes(self) -> Array:
        return self.window.spikes

    @property
    def slope(self) -> Array:
        N, F = self.window.N, self.window.F
        return pooling_slope(N) if self.pooling else slope(N, F, self.leak, self.threshold)

    @property
    def distance(self) -> Array:
        """|u - threshold|, `[T, B, ...]`."""
        return np.abs(self.window.u - self.threshold)

    @property
    def exact(self) -> bool:
        """Pooling over unmasked spikes adds quarters, exactly in any float format; u meets .75."""
        return self.pooling and bool((self.currents * 4.0 == np.rint(self.currents * 4.0)).all())

    @property
    def flips(self) -> NDArray[np.bool_]:
        """Where a given spike is not the one this membrane would have decided on; all False without given spikes."""
        return (self.window.u > self.threshold) != (self.spikes == 1)

    def masked(self, x: Array) -> Array:
        return x if self.mask is None else x * self.mask


@dataclass
class Record:
    """Everything a forward pass saw; `layers` are the firing ones, pooling included, a block's inner LIF first."""

    inputs: Array
    layers: list[Layer] = field(default_factory=list)
    readout_currents: Array = field(default_factory=lambda: np.zeros(0))  # [T, B, classes]
    readout: Array = field(default_factory=lambda: np.zeros(0))  # V, [T, B, classes]
    output: Array = field(default_factory=lambda: np.zeros(0))  # V_T / T, [B, classes]

    def spikes(self) -> list[Array]:
        return [layer.spikes for layer in self.layers]

    def state(self) -> list[Array]:
        """Final membranes: of the firing layers in order, then of the readout."""
        return [layer.window.v for layer in self.layers] + [self.readout[-1]]

    def firing_counts(self) -> dict[str, int]:
        return {layer.name: int(layer.window.N.sum()) for layer in self.layers}

    def min_distance(self) -> float:
        """The smallest |u - threshold| of any neuron at any step, but for pooling neurons with exact sums."""
        return min(float(layer.distance.min()) for layer in self.layers if not layer.exact)

    def flip_share(self) -> float:
        """Share of all neuron-steps whose given spike differs from the oracle's own decision."""
        return sum(layer.flips.sum() for layer in self.layers) / sum(layer.flips.size for layer in self.layers)

    def worst_flip(self) -> float:
        """The largest |u - threshold| among the flips, 0 if there is none."""
        return max(float(layer.distance[layer.flips].max(initial=0.0)) for layer in self.layers)


def forward(
    net: Net,
    weights: Sequence[Array],
    inputs: ArrayLike,
    masks: Sequence[Array | None] | None = None,
    state: Sequence[Array] | None = None,
    given: Sequence[ArrayLike] | None = None,
) -> Record:
    """Run one window. `inputs` `[T, B, ...]` are signed spikes or currents.

    `masks`: one entry, array or None, per LIF layer (not pooling) in order. `state`: as `Record.state()` of the window
    before. `given`: unmasked spikes per firing layer (pooling included), obeyed instead of the neurons' own decisions.
    """
    x = np.asarray(inputs, np.float64)
    record = Record(inputs=x)
    kernels = iter([np.asarray(weight, np.float64) for weight in weights])
    mask_of: Iterator[Array | None] = repeat(None) if masks is None else iter(masks)
    state_of: Iterator[Array | None] = repeat(None) if state is None else iter(state)
    given_of: Iterator[ArrayLike | None] = repeat(None) if given is None else iter(given)

    def fire(name: str, currents: Array, pooling: bool = False) -> Array:
        leak, threshold = (POOLING_LEAK, POOLING_THRESHOLD) if pooling else (net.leak, net.threshold)
        window = lif_forward(currents, leak, threshold, next(state_of), next(given_of))
        mask = None if pooling else next(mask_of)
        if mask is not None and mask.shape != currents.shape[1:]:
            raise ValueError(f"the mask of {name} must have shape {currents.shape[1:]}, received {mask.shape}")
        layer = Layer(name, leak, threshold, pooling, currents, window, mask)
        record.layers.append(layer)
        return layer.masked(layer.spikes)

    for index, stage in enumerate(net.stages):
        if isinstance(stage, Conv):
            x = fire(f"{index}.conv", conv(x, next(kernels), stage.stride))
        elif isinstance(stage, Pool):
            x = fire(f"{index}.pool", average_pool(x), pooling=True)
        elif isinstance(stage, Hidden):
            x = fire(f"{index}.hidden", _flat(x, 2) @ next(kernels))
        elif isinstance(stage, Stem):
            x = conv(x, next(kernels), stage.stride)
        elif isinstance(stage, Fire):
            x = fire(f"{index}.fire", x)
        elif isinstance(stage, CurrentBlock):
            spikes, stride = fire(f"{index}.block_in", x), stage.stride_a * stage.stride_b
            between = fire(f"{index}.block_a", conv(spikes, next(kernels), stage.stride_a))
            main = conv(between, next(kernels), stage.stride_b)
            x = main + (conv(spikes, next(kernels), stride) if stage.shortcut == "conv" else subsample(x, stride))
        else:
            between = fire(f"{index}.block_a", conv(x, next(kernels), stage.stride_a))
            main, stride = conv(between, next(kernels), stage.stride_b), stage.stride_a * stage.stride_b
            shortcut = conv(x, next(kernels), stride) if stage.shortcut == "conv" else subsample(x, stride)
            if main.shape != shortcut.shape:  # NumPy would broadcast a single channel
                raise ValueError(f"shortcut {shortcut.shape} does not fit the main path {main.shape} of stage {index}")
            x = fire(f"{index}.block_b", main + shortcut)
    record.readout_currents = _flat(x, 2) @ next(kernels)
    record.output, record.readout = readout_forward(record.readout_currents, net.leak, next(state_of))
    for name, left in (("weights", kernels), ("masks", mask_of), ("states", state_of), ("given spikes", given_of)):
        if not isinstance(left, repeat) and next(left, left) is not left:
            raise ValueError(f"more {name} than the net has layers for")
    return record


def relu_forward(
    stages: Sequence[Stage], weights: Sequence[Array], images: ArrayLike
) -> tuple[list[Array], Array]:
    """The ANN of the same stages: ReLU for LIF, plain averages, no time. `images` `[B, H, W, C]`.

    Returns the activations of every ReLU layer in order, and the logits `[B, classes]`.
    """
    x = np.asarray(images, np.float64)
    kernels = iter([np.asarray(weight, np.float64) for weight in weights])
    activations: list[Array] = []

    def relu(sums: Array) -> Array:
        activations.append(np.maximum(sums, 0.0))
        return activations[-1]

    for stage in stages:
        if isinstance(stage, Conv):
            x = relu(conv(x, next(kernels), stage.stride))
        elif isinstance(stage, Pool):
            x = average_pool(x)
        elif isinstance(stage, Hidden):
            x = relu(_flat(x, 1) @ next(kernels))
        elif isinstance(stage, Stem):
            x = conv(x, next(kernels), stage.stride)
        elif isinstance(stage, Fire):
            x = relu(x)
        elif isinstance(stage, CurrentBlock):
            spikes, stride = relu(x), stage.stride_a * stage.stride_b
            main = conv(relu(conv(spikes, next(kernels), stage.stride_a)), next(kernels), stage.stride_b)
            x = main + (conv(spikes, next(kernels), stride) if stage.shortcut == "conv" else subsample(x, stride))
        else:
            main = relu(conv(x, next(kernels), stage.stride_a))
            main, stride = conv(main, next(kernels), stage.stride_b), stage.stride_a * stage.stride_b
            x = relu(main + (conv(x, next(kernels), stride) if stage.shortcut == "conv" else subsample(x, stride)))
    return activations, _flat(x, 1) @ next(kernels)


def backward(
    net: Net,
    weights: Sequence[Array],
    record: Record,
    dL_do: ArrayLike,
    gradient: Literal["event", "rate"] = "event",
    dL_dN: Sequence[ArrayLike] | None = None,
) -> list[Array]:
    """Gradients of all weights, in forward order, from dL/do `[B, classes]`, on the spikes of the record.

    `dL_dN` is what the loss asks of the spike counts N directly, `[B, ...]` for every firing layer in order: the same
    for the spike of every step, and T times as much for the rate N / T. Masks do not touch it.

    "event" sends trains `[T, B, ...]` of dL/ds_t and dL/dI_t down the net, "rate" their one-per-window counterparts
    dL/dr and dL/dd `[B, ...]`. Synapses are linear, so their gradient is the same code for both.
    """
    if gradient not in ("event", "rate"):
        raise ValueError(f'gradient must be "event" or "rate", received {gradient!r}')
    event, lead, steps = gradient == "event", 2 if gradient == "event" else 1, len(record.inputs)
    kernels, layers = [np.asarray(weight, np.float64) for weight in weights], list(record.layers)
    gradients: list[Array] = []

    def below() -> Array:
        """What the synapses above the topmost remaining layer receive."""
        if not layers:
            return record.inputs if event else record.inputs.mean(axis=0)
        layer = layers[-1]
        return layer.masked(layer.spikes if event else layer.window.N / steps)

    def neurons(layer: Layer, g: Array) -> Array:
        unmasked = layer.masked(g)
        if dL_dN is not None:
            asked = np.asarray(dL_dN[len(layers)], np.float64)
            unmasked = unmasked + (asked if event else steps * asked)
        if event:
            return event_backward(layer.spikes, layer.slope, unmasked)
        return rate_backward(layer.slope, unmasked)

    def through_conv(x: Array, d: Array, stride: int) -> Array:
        kernel = kernels.pop()
        gradients.append(conv_weight_gradient(x, d, len(kernel), stride))
        return conv_input_gradient(d, kernel, stride, x.shape)

    def through_dense(x: Array, d: Array) -> Array:
        kernel = kernels.pop()
        gradients.append(_flat(x, lead).reshape(-1, kernel.shape[0]).T @ d.reshape(-1, kernel.shape[1]))
        return (d @ kernel.T).reshape(x.shape)

    d = np.asarray(dL_do, np.float64)
    g = through_dense(below(), np.repeat(d[None] / steps, steps, axis=0) if event else d)
    for stage in reversed(net.stages):
        if isinstance(stage, Stem):
            g = through_conv(below(), g, stage.stride)
            continue
        if isinstance(stage, CurrentBlock):  # g is dL/dI of the sum
            between, inner, spikes = below(), layers.pop(), below()
            stride = stage.stride_a * stage.stride_b
            past = through_conv(spikes, g, stride) if stage.shortcut == "conv" else 0.0
            of_spikes = past + through_conv(spikes, neurons(inner, through_conv(between, g, stage.stride_b)),
                                            stage.stride_a)
            d = neurons(layers.pop(), of_spikes)
            g = d if stage.shortcut == "conv" else d + subsample_gradient(g, stride, d.shape)
            continue
        d = neurons(layers.pop(), g)
        if isinstance(stage, Fire):
            g = d
            continue
        if isinstance(stage, Conv):
            g = through_conv(below(), d, stage.stride)
        elif isinstance(stage, Pool):
            g = average_pool_gradient(d, below().shape)
        elif isinstance(stage, Hidden):
            g = through_dense(below(), d)
        else:
            between, inner, x = below(), layers.pop(), below()
            stride = stage.stride_a * stage.stride_b
            past = through_conv(x, d, stride) if stage.shortcut == "conv" else subsample_gradient(d, stride, x.shape)
            g = past + through_conv(x, neurons(inner, through_conv(between, d, stage.stride_b)), stage.stride_a)
    return gradients[::-1]


def _flat(x: Array, lead: int) -> Array:
    return x.reshape(*x.shape[:lead], -1)
