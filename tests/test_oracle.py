"""The oracle itself, against numbers worked out by hand, naive loops and its own linearisation in forward mode."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

import oracle
from oracle import Array, Block, Conv, Hidden, Net, Pool, Record

Gradient = Literal["event", "rate"]
Stage = Conv | Pool | Block | Hidden
T, B, CLASSES = 14, 2, 4


def test_importing_the_oracle_imports_no_tensorflow() -> None:
    code = "import sys, oracle; assert not {'tensorflow', 'keras', 'tfspike'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


# --- Hand-worked traces ---------------------------------------------------------------------------------------------


def test_trace_at_leak_one_half_fires_resets_leaks_and_does_not_fire_at_the_threshold() -> None:
    # t      1     2     3     4     5     6     7
    # I     .6    .6    .6   1.0    .5   .75   .25
    # u     .6    .9  1.05   1.0   1.0  1.25   .25     at t = 4 and 5 u is exactly the threshold: no spike
    # s      0     0     1     0     0     1     0
    # v     .3   .45     0    .5    .5     0  .125
    # N = 2, F = .5^4 + .5^1 = .5625, slope = 1 + ln(.5) .5625/2 = 1 - .693147 * .28125 = .805052
    window = oracle.lif_forward([0.6, 0.6, 0.6, 1.0, 0.5, 0.75, 0.25], leak=0.5, threshold=1.0)
    np.testing.assert_array_equal(window.spikes, [0, 0, 1, 0, 0, 1, 0])
    np.testing.assert_allclose(window.u, [0.6, 0.9, 1.05, 1.0, 1.0, 1.25, 0.25], rtol=1e-15)
    assert (window.v, window.N, window.F) == (0.125, 2, 0.5625)
    assert oracle.slope(window.N, window.F, 0.5, 1.0) == pytest.approx(0.805052, abs=1e-6)


def test_trace_at_leak_nine_tenths_with_another_threshold_and_negative_current() -> None:
    # t      1     2     3     4     5     6        threshold .8
    # I     .5    .4    .6   -.2    .5    .3
    # u     .5   .85    .6   .34  .806    .3
    # s      0     1     0     0     1     0
    # v    .45     0   .54  .306     0   .27
    # N = 2, F = .9^4 + .9^1 = 1.5561, slope = (1 + ln(.9) 1.5561/2) / .8 = (1 - .105361 * .77805) / .8 = 1.147530
    window = oracle.lif_forward([0.5, 0.4, 0.6, -0.2, 0.5, 0.3], leak=0.9, threshold=0.8)
    np.testing.assert_array_equal(window.spikes, [0, 1, 0, 0, 1, 0])
    np.testing.assert_allclose(window.u, [0.5, 0.85, 0.6, 0.34, 0.806, 0.3], rtol=1e-14)
    assert float(window.v) == pytest.approx(0.27, rel=1e-14)
    assert float(window.F) == pytest.approx(1.5561, rel=1e-14)
    assert oracle.slope(window.N, window.F, 0.9, 0.8) == pytest.approx(1.147530, abs=1e-6)


def test_pooling_neuron_neither_leaks_nor_fires_at_three_quarters_and_loses_the_excess() -> None:
    # I  .25   .25   .25   .25    .5    .5   .25
    # u  .25    .5   .75  1.00    .5  1.00   .25
    window = oracle.lif_forward([0.25, 0.25, 0.25, 0.25, 0.5, 0.5, 0.25], leak=1.0, threshold=0.75)
    np.testing.assert_array_equal(window.spikes, [0, 0, 0, 1, 0, 1, 0])
    np.testing.assert_array_equal(window.u, [0.25, 0.5, 0.75, 1.0, 0.5, 1.0, 0.25])
    assert (window.v, window.N, window.F) == (0.25, 2, 2)
    np.testing.assert_array_equal(oracle.pooling_slope([0, 1, 2]), [0, 1, 1])


def test_initial_membrane_counts_in_the_first_step() -> None:
    # v0 = .5 adds to I = .6: u = 1.1 fires at once; without v0 the first spike comes at t = 2 (.54 + .6).
    np.testing.assert_array_equal(oracle.lif_forward([0.6, 0.6], 0.9, 1.0, v0=0.5).spikes, [1, 0])
    np.testing.assert_array_equal(oracle.lif_forward([0.6, 0.6], 0.9, 1.0).spikes, [0, 1])


def test_readout_leaks_after_integrating_and_divides_by_the_window() -> None:
    # V = .9 (0 + 1) = .9;  .9 (.9 + 1) = 1.71;  .9 (1.71 + 0) = 1.539;  o = 1.539 / 3 = .513
    output, membrane = oracle.readout_forward([1.0, 1.0, 0.0], leak=0.9)
    np.testing.assert_allclose(membrane, [0.9, 1.71, 1.539], rtol=1e-14)
    assert float(output) == pytest.approx(0.513, rel=1e-14)


def test_slope_of_silent_neurons_is_zero_and_can_be_negative_at_strong_leak() -> None:
    # Leak .2, one spike in the last step: 1 + ln(.2) = -.609438. Leak 1: 1/threshold whatever the trace.
    np.testing.assert_allclose(oracle.slope([0, 1], [0, 1], 0.2, 1.0), [0, -0.609438], atol=1e-6)
    np.testing.assert_array_equal(oracle.slope([0, 3], [0, 3], 1.0, 0.5), [0, 2])


def test_event_recursion_by_hand() -> None:
    # s        0  1  0  1  0      slope .5
    # g        1  2  3  4  5
    # delta    1  1  2  2  0      inputs 1, 2 are credited to the spike at 2 (.5 * 2), 3, 4 to that at 4 (.5 * 4)
    spikes, g = [0, 1, 0, 1, 0], [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(oracle.event_backward(spikes, 0.5, g), [1, 1, 2, 2, 0])
    # A later window's gradient reaches only what came after the last reset, undiminished by the leak.
    np.testing.assert_array_equal(oracle.event_backward(spikes, 0.5, g, delta_next=7), [1, 1, 2, 2, 7])
    np.testing.assert_array_equal(oracle.event_backward([0, 0, 0], 0.0, [1, 2, 3], delta_next=7), [7, 7, 7])
    np.testing.assert_array_equal(oracle.rate_backward([0.5, 0.0], [4.0, 4.0]), [2.0, 0.0])


@pytest.mark.parametrize("leak", [0.5, 0.9, 0.99])
def test_two_windows_with_carried_state_equal_one(leak: float) -> None:
    rng = np.random.default_rng(1)
    currents, g, cut = rng.normal(0.3, 0.6, (20, 50)), rng.normal(size=(20, 50)), 7
    whole = oracle.lif_forward(currents, leak, 1.0)
    first = oracle.lif_forward(currents[:cut], leak, 1.0)
    second = oracle.lif_forward(currents[cut:], leak, 1.0, v0=first.v)
    assert first.N.sum() > 0 and second.N.sum() > 0
    assert not np.array_equal(second.spikes, oracle.lif_forward(currents[cut:], leak, 1.0).spikes)
    np.testing.assert_array_equal(np.concatenate([first.spikes, second.spikes]), whole.spikes)
    np.testing.assert_array_equal(second.v, whole.v)
    np.testing.assert_array_equal(first.N + second.N, whole.N)
    np.testing.assert_allclose(leak ** (20 - cut) * first.F + second.F, whole.F, rtol=1e-12)

    factor = oracle.slope(whole.N, whole.F, leak, 1.0)
    late = oracle.event_backward(second.spikes, factor, g[cut:])
    early = oracle.event_backward(first.spikes, factor, g[:cut], delta_next=late[0])
    np.testing.assert_array_equal(np.concatenate([early, late]), oracle.event_backward(whole.spikes, factor, g))


# --- Synapses -------------------------------------------------------------------------------------------------------


def naive_conv(x: Array, kernel: Array, stride: int) -> Array:
    """Convolution of `[H, W, Cin]` by its definition: windows centred on every stride-th pixel, zeros outside."""
    (height, width, _), size = x.shape, len(kernel)
    y = np.zeros((-(-height // stride), -(-width // stride), kernel.shape[-1]))
    for row, column in np.ndindex(y.shape[:2]):
        for i, j in np.ndindex(size, size):
            p, q = row * stride + i - size // 2, column * stride + j - size // 2
            if 0 <= p < height and 0 <= q < width:
                y[row, column] += x[p, q] @ kernel[i, j]
    return y


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("shape", [(6, 8, 2), (7, 5, 3)])
def test_convolution_equals_the_naive_loop_and_has_its_transposes(
    size: int, stride: int, shape: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(2)
    x, kernel = rng.normal(size=(2, 3, *shape)), rng.normal(size=(size, size, shape[-1], 4))
    y = oracle.conv(x, kernel, stride)
    for lead in np.ndindex(2, 3):
        np.testing.assert_allclose(y[lead], naive_conv(x[lead], kernel, stride), atol=1e-12)
    grad = rng.normal(size=y.shape)
    grad_x = oracle.conv_input_gradient(grad, kernel, stride, x.shape)
    grad_kernel = oracle.conv_weight_gradient(x, grad, size, stride)
    assert grad_x.shape == x.shape and grad_kernel.shape == kernel.shape
    assert_is_gradient(lambda z: np.vdot(oracle.conv(z, kernel, stride), grad), x, grad_x, rng)
    assert_is_gradient(lambda z: np.vdot(oracle.conv(x, z, stride), grad), kernel, grad_kernel, rng)
    assert np.vdot(y, grad) == pytest.approx(np.vdot(x, grad_x)) == pytest.approx(np.vdot(kernel, grad_kernel))


@pytest.mark.parametrize("shape", [(3, 2, 6, 4, 2), (2, 7, 5, 3)])
def test_pooling_and_subsampling_have_their_transposes(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=shape)
    pooled, picked = oracle.average_pool(x), oracle.subsample(x, 2)
    rows, columns = shape[-3] // 2, shape[-2] // 2
    for row, column in np.ndindex(rows, columns):
        square = x[..., 2 * row : 2 * row + 2, 2 * column : 2 * column + 2, :]
        np.testing.assert_allclose(pooled[..., row, column, :], square.mean(axis=(-3, -2)), atol=1e-15)
    assert pooled.shape[-3:-1] == (rows, columns)
    assert picked.shape[-3:-1] == (-(-shape[-3] // 2), -(-shape[-2] // 2))
    grad_pooled, grad_picked = rng.normal(size=pooled.shape), rng.normal(size=picked.shape)
    assert_is_gradient(
        lambda z: np.vdot(oracle.average_pool(z), grad_pooled), x, oracle.average_pool_gradient(grad_pooled, shape), rng
    )
    assert_is_gradient(
        lambda z: np.vdot(oracle.subsample(z, 2), grad_picked), x, oracle.subsample_gradient(grad_picked, 2, shape), rng
    )


def assert_is_gradient(f: Callable[[Array], np.floating], x: Array, gradient: Array, rng: np.random.Generator) -> None:
    """Central differences along random directions; exact but for rounding, since every f here is linear."""
    for _ in range(4):
        direction = rng.normal(size=x.shape)
        difference = (f(x + 0.5 * direction) - f(x - 0.5 * direction)) / 1.0
        assert difference == pytest.approx(np.vdot(gradient, direction), rel=1e-9, abs=1e-9)


# --- Whole nets -----------------------------------------------------------------------------------------------------

# Images are 11x11x2: odd maps at every pool and every stride.
PLAIN: list[Stage] = [Conv(), Pool(), Conv(stride=2), Conv(), Pool(), Hidden()]
PLAIN_SHAPES = [(5, 5, 2, 4), (3, 3, 4, 5), (3, 3, 5, 4), (4, 24), (24, CLASSES)]
RESIDUAL: list[Stage] = [
    Conv(),
    Pool(),
    Block(1, 1, "conv"),
    Block(1, 2, "conv"),
    Block(1, 1, "identity"),
    Block(2, 1, "conv"),
    Block(1, 2, "identity"),
    Hidden(),
]
RESIDUAL_SHAPES = [
    *[(3, 3, 2, 4)],
    *[(3, 3, 4, 5), (3, 3, 5, 5), (1, 1, 4, 5)],
    *[(3, 3, 5, 5), (3, 3, 5, 6), (1, 1, 5, 6)],
    *[(3, 3, 6, 6), (3, 3, 6, 6)],
    *[(3, 3, 6, 4), (3, 3, 4, 4), (1, 1, 6, 4)],
    *[(3, 3, 4, 4), (3, 3, 4, 4)],
    *[(4, 24), (24, CLASSES)],
]
SCENES = [
    (name, leak, dropout) for name in ("plain", "residual") for leak in (0.5, 0.9, 0.99) for dropout in (0.0, 0.3)
]


class Scene:
    """A small net with weights strong enough that every layer fires, its input, its masks and one upstream gradient."""

    def __init__(self, name: str, leak: float, dropout: float, seed: int = 5) -> None:
        rng = np.random.default_rng(seed)
        stages, shapes = (PLAIN, PLAIN_SHAPES) if name == "plain" else (RESIDUAL, RESIDUAL_SHAPES)
        self.net = Net(stages, leak=leak, threshold=0.9)
        self.weights = [rng.normal(0.3, 3.0, s) / np.sqrt(np.prod(s[:-1])) for s in shapes]
        size = (T, B, 11, 11, 2)
        self.inputs = np.sign(rng.normal(0.3, 1.0, size)) * (rng.random(size) < 0.6)
        silent = oracle.forward(self.net, self.weights, self.inputs)
        self.masks = [
            (rng.random(layer.spikes.shape[1:]) >= dropout) / (1.0 - dropout) if dropout else None
            for layer in silent.layers
            if not layer.pooling
        ]
        self.record = oracle.forward(self.net, self.weights, self.inputs, self.masks)
        self.dL_do = rng.normal(size=(B, CLASSES))
        assert min(self.record.firing_counts().values()) > 0, self.record.firing_counts()
        assert any((layer.window.N == 0).any() for layer in self.record.layers)
        assert self.record.min_distance() > 1e-7

    def gradients(self, gradient: Gradient) -> list[Array]:
        found = oracle.backward(self.net, self.weights, self.record, self.dL_do, gradient)
        assert [g.shape for g in found] == [w.shape for w in self.weights]
        assert all(np.abs(g).max() > 0 for g in found)
        return found


@pytest.fixture(params=SCENES, ids=lambda scene: "-".join(map(str, scene)), scope="module")
def scene(request: pytest.FixtureRequest) -> Scene:
    return Scene(*request.param)


def tangent(scene: Scene, direction: list[Array], event: bool) -> Array:
    """How the output moves, in the method's linear picture, when the weights move in a direction: forward mode.

    The adjoint of "event" reads forward: each spike moves by slope times all that moved its current since the spike
    before. Written with the forward convolution only, so it shares nothing with the backward pass but the slope.
    """
    layers, pairs = iter(scene.record.layers), iter(zip(scene.weights, direction, strict=True))

    def window(x: Array) -> Array:
        return x if event else x.mean(axis=0)

    def synapse(x: Array, dx: Array, stride: int | None) -> Array:
        kernel, moved = next(pairs)
        if stride is not None:
            return oracle.conv(dx, kernel, stride) + oracle.conv(x, moved, stride)
        shape = (*x.shape[: 2 if event else 1], -1)
        return dx.reshape(shape) @ kernel + x.reshape(shape) @ moved

    def fire(current: Array) -> tuple[Array, Array]:
        layer = next(layers)
        mask = 1.0 if layer.mask is None else layer.mask
        if not event:
            return window(layer.spikes) * mask, layer.slope * current * mask
        spikes, since, moved = layer.spikes, np.zeros_like(current[0]), np.zeros_like(current)
        for t in range(T):
            since = since + current[t]
            moved[t] = spikes[t] * layer.slope * since
            since = np.where(spikes[t] == 1, 0.0, since)
        return spikes * mask, moved * mask

    x = window(scene.inputs)
    dx = np.zeros_like(x)
    for stage in scene.net.stages:
        if isinstance(stage, Conv):
            x, dx = fire(synapse(x, dx, stage.stride))
        elif isinstance(stage, Pool):
            x, dx = fire(oracle.average_pool(dx))
        elif isinstance(stage, Hidden):
            x, dx = fire(synapse(x, dx, None))
        else:
            inner, d_inner = fire(synapse(x, dx, stage.stride_a))
            main, stride = synapse(inner, d_inner, stage.stride_b), stage.stride_a * stage.stride_b
            x, dx = fire(main + (synapse(x, dx, stride) if stage.shortcut == "conv" else oracle.subsample(dx, stride)))
    moved = synapse(x, dx, None)
    return moved.mean(axis=0) if event else moved


@pytest.mark.parametrize("gradient", ["event", "rate"])
def test_backward_is_the_adjoint_of_the_tangent_for_every_weight(scene: Scene, gradient: Gradient) -> None:
    rng = np.random.default_rng(6)
    for index, found in enumerate(scene.gradients(gradient)):
        direction = [np.zeros_like(w) for w in scene.weights]
        direction[index] = rng.normal(size=found.shape)
        expected = np.vdot(scene.dL_do, tangent(scene, direction, gradient == "event"))
        scale = np.linalg.norm(found) * np.linalg.norm(direction[index])
        assert abs(expected - np.vdot(found, direction[index])) < 1e-12 * scale


def test_rate_equals_a_constant_delta_per_step_accumulated_over_the_window(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = scene.gradients("rate")

    def constant_delta(spikes: Array, slope: Array, g: Array, delta_next: float = 0.0) -> Array:
        return np.broadcast_to(slope * g.mean(axis=0), spikes.shape)

    monkeypatch.setattr(oracle, "event_backward", constant_delta)  # dW is then the sum over t of delta x s_t
    for accumulated, once in zip(scene.gradients("event"), expected, strict=True):
        np.testing.assert_allclose(accumulated, once, atol=1e-12 * np.abs(once).max())


def test_the_two_gradients_agree_at_the_readout_and_differ_below(scene: Scene) -> None:
    event, rate = scene.gradients("event"), scene.gradients("rate")
    np.testing.assert_allclose(event[-1], rate[-1], atol=1e-13)
    assert all(np.abs(e - r).max() > 1e-3 * np.abs(r).max() for e, r in zip(event[:-1], rate[:-1], strict=True))


@pytest.mark.parametrize("gradient", ["event", "rate"])
def test_gradients_see_the_leak_term_of_the_slope(monkeypatch: pytest.MonkeyPatch, gradient: Gradient) -> None:
    scene = Scene("residual", 0.5, 0.0)
    right = scene.gradients(gradient)
    monkeypatch.setattr(oracle, "slope", lambda N, F, leak, threshold: (N > 0) / threshold)
    wrong = scene.gradients(gradient)
    assert all(np.linalg.norm(w - r) > 0.05 * np.linalg.norm(r) for w, r in zip(wrong[:-1], right[:-1], strict=True))


def test_net_carries_its_state_from_window_to_window(scene: Scene) -> None:
    run: Callable[..., Record] = oracle.forward
    first = run(scene.net, scene.weights, scene.inputs[:5], scene.masks)
    second = run(scene.net, scene.weights, scene.inputs[5:], scene.masks, state=first.state())
    for early, late, whole in zip(first.layers, second.layers, scene.record.layers, strict=True):
        np.testing.assert_array_equal(np.concatenate([early.spikes, late.spikes]), whole.spikes)
    np.testing.assert_allclose(second.readout[-1] / T, scene.record.output, rtol=1e-12)


def test_given_spikes_are_obeyed_and_their_flips_are_reported(scene: Scene) -> None:
    record = scene.record
    again = oracle.forward(scene.net, scene.weights, scene.inputs, scene.masks, given=record.spikes())
    assert again.flip_share() == 0 and again.worst_flip() == 0
    np.testing.assert_array_equal(again.output, record.output)

    spikes = [train.copy() for train in record.spikes()]
    where = tuple(index[0] for index in np.nonzero(record.layers[-1].masked(spikes[-1])))
    spikes[-1][where] = 0.0
    told = oracle.forward(scene.net, scene.weights, scene.inputs, scene.masks, given=spikes)
    np.testing.assert_array_equal(told.layers[-1].spikes, spikes[-1])
    assert told.layers[-1].flips[where] and told.flip_share() > 0
    assert told.worst_flip() >= told.layers[-1].distance[where] > 0
    moved = oracle.backward(scene.net, scene.weights, told, scene.dL_do)
    assert np.abs(moved[-1] - scene.gradients("event")[-1]).max() > 0


def test_pooling_layers_of_a_net_have_their_own_slope(scene: Scene) -> None:
    pools = [layer for layer in scene.record.layers if layer.pooling]
    assert pools
    for layer in pools:
        np.testing.assert_array_equal(layer.slope, layer.window.N > 0)


@pytest.mark.parametrize("shortcut", ["conv", "identity"])
def test_a_block_adds_the_shortcut_to_the_current_of_its_second_neuron(shortcut: Literal["conv", "identity"]) -> None:
    rng = np.random.default_rng(7)
    a, b, past = rng.normal(size=(3, 3, 2, 2)), rng.normal(size=(3, 3, 2, 2)), rng.normal(size=(1, 1, 2, 2))
    weights = [a, b, *([past] if shortcut == "conv" else []), rng.normal(size=(18, CLASSES))]
    x, mask = rng.integers(-1, 2, (T, 1, 5, 5, 2)).astype(float), rng.choice([0.0, 2.0], (1, 5, 5, 2))
    record = oracle.forward(Net([Block(1, 2, shortcut)], leak=0.9), weights, x, [mask, None])
    assert min(record.firing_counts().values()) > 0
    for t in range(T):
        around = naive_conv(x[t, 0], past, 2) if shortcut == "conv" else x[t, 0, ::2, ::2]
        expected = naive_conv(record.layers[0].spikes[t, 0] * mask[0], b, 2) + around
        np.testing.assert_allclose(record.layers[1].currents[t, 0], expected, atol=1e-12)


def test_masked_neurons_fire_unseen_and_receive_no_gradient() -> None:
    scene = Scene("plain", 0.9, 0.0)
    masks: list[Array | None] = [None] * 3 + [np.zeros((B, 24))]
    record = oracle.forward(scene.net, scene.weights, scene.inputs, masks)
    assert record.firing_counts()["5.hidden"] > 0
    np.testing.assert_array_equal(record.output, 0.0)
    gradients = oracle.backward(scene.net, scene.weights, record, scene.dL_do)
    assert all((g == 0).all() for g in gradients)


def test_wrong_arguments_are_refused() -> None:
    scene = Scene("plain", 0.9, 0.0)
    net, weights, inputs = scene.net, scene.weights, scene.inputs
    with pytest.raises(ValueError, match="more weights"):
        oracle.forward(net, [*weights, weights[-1]], inputs)
    with pytest.raises(ValueError, match="mask of 0.conv"):
        oracle.forward(net, weights, inputs, [np.ones((B, 1))] * 4)
    with pytest.raises(ValueError, match="0 or 1"):
        oracle.forward(net, weights, inputs, given=[2 * train for train in scene.record.spikes()])
    with pytest.raises(ValueError, match="odd size"):
        oracle.conv(np.ones((1, 4, 4, 1)), np.ones((2, 2, 1, 1)))
    with pytest.raises(ValueError, match="does not fit"):
        oracle.forward(Net([Block(1, 1, "identity")]), [np.ones((3, 3, 2, 4)), np.ones((3, 3, 4, 4))], inputs)
    with pytest.raises(ValueError, match='"event" or "rate"'):
        oracle.backward(net, weights, scene.record, scene.dL_do, "exact")  # type: ignore[arg-type]
