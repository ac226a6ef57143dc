"""The neuron and its two gradients, against the NumPy oracle and against traces worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import oracle
from tfspike.neurons import gradients
from tfspike.neurons.gradients import Neuron, NeuronState

LEAKS = (0.5, 0.9, 0.99, 1.0)
T, B, N = 12, 4, 30
NEURONS = {**{f"lif_{leak}": Neuron.lif(leak, 1.0) for leak in LEAKS}, "lif_0.9_low": Neuron.lif(0.9, 0.6),
           "pooling": Neuron.pooling()}
SILENT, ALWAYS, AT_THRESHOLD = 0, 1, 2  # the first three neurons of `currents`


@pytest.fixture(params=NEURONS.values(), ids=NEURONS.keys())
def neuron(request: pytest.FixtureRequest) -> Neuron:
    return request.param


def currents_for(neuron: Neuron, steps: int = T, seed: int = 0) -> np.ndarray:
    """Random currents `[T, B, N]`, on a grid; one neuron is silent, one always fires, one meets its threshold exactly."""
    rng = np.random.default_rng(seed)
    currents = np.rint(rng.normal(0.35, 0.5, (steps, B, N)) * neuron.threshold * 1024) / 1024
    currents[..., SILENT] = -0.25
    currents[..., ALWAYS] = 2.0 * neuron.threshold
    currents[..., AT_THRESHOLD] = 0.0
    currents[0, :, AT_THRESHOLD] = np.float32(neuron.threshold)
    return currents.astype("f")


def oracle_window(neuron: Neuron, currents: np.ndarray, v0: Any = None) -> tuple[oracle.Window, np.ndarray]:
    """The oracle's window and slope, with the library's float32 constants."""
    window = oracle.lif_forward(currents, float(np.float32(neuron.leak)), float(np.float32(neuron.threshold)), v0)
    if neuron == Neuron.pooling():
        return window, oracle.pooling_slope(window.N)
    return window, oracle.slope(window.N, window.F, neuron.leak, neuron.threshold)


def library_window(neuron: Neuron, gradient: str, currents: np.ndarray, v0: np.ndarray, g: np.ndarray,
                   carry: np.ndarray) -> dict[str, np.ndarray]:
    """Spikes, final state and gradients of `spike_window`; g arrives at the spikes, carry at the final membrane."""
    zeros = tf.zeros_like(v0)
    with tf.GradientTape() as tape:
        i, v = tf.constant(currents), tf.constant(v0)
        tape.watch((i, v))
        spikes, state = gradients.spike_window(i, NeuronState(v, zeros, zeros), neuron, gradient)
    delta, first = tape.gradient((spikes, state.membrane), (i, v), output_gradients=(tf.constant(g), tf.constant(carry)))
    return {name: np.asarray(value) for name, value in
            {"spikes": spikes, "v": state.membrane, "N": state.count, "F": state.trace, "delta": delta,
             "first": first}.items()}


def random_upstream(steps: int = T, seed: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`(v0, g, carry)`."""
    rng = np.random.default_rng(seed)
    v0 = np.rint(rng.normal(0, 0.3, (B, N)) * 1024).astype("f") / 1024
    v0[:, :3] = 0.0
    return v0, rng.normal(size=(steps, B, N)).astype("f"), rng.normal(size=(B, N)).astype("f")


def assert_fixture_shows_every_case(neuron: Neuron, window: oracle.Window, steps: int = T) -> None:
    assert (window.N[:, SILENT] == 0).all()
    assert (window.N[:, ALWAYS] == steps).all()
    assert (window.u[0, :, AT_THRESHOLD] == np.float32(neuron.threshold)).all()
    assert (window.N[:, AT_THRESHOLD] == 0).all()
    assert (window.N[:, 3:].sum(axis=0) > 0).mean() > 0.7
    undecided = np.abs(window.u - np.float32(neuron.threshold)) < 1e-5
    undecided[0, :, AT_THRESHOLD] = False
    if neuron.leak < 1.0:  # without leak all sums are exact
        assert not undecided.any()


# --- The whole window -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", gradients.GRADIENTS)
@pytest.mark.parametrize("sign", [1.0, -1.0, None], ids=["plus_one", "minus_one", "random"])
def test_window_equals_the_oracle(neuron: Neuron, gradient: str, sign: float | None) -> None:
    currents = currents_for(neuron)
    v0, g, carry = random_upstream()
    if sign is not None:
        g, carry = np.full_like(g, sign), np.full_like(carry, sign)
    window, slope = oracle_window(neuron, currents, v0)
    assert_fixture_shows_every_case(neuron, window)
    got = library_window(neuron, gradient, currents, v0, g, carry)
    np.testing.assert_array_equal(got["spikes"], window.spikes)
    np.testing.assert_allclose(got["v"], window.v, atol=2e-6)
    np.testing.assert_array_equal(got["N"], window.N)
    np.testing.assert_allclose(got["F"], window.F, rtol=2e-6)
    if gradient == "event":
        wanted = oracle.event_backward(window.spikes, slope, g, carry)
        np.testing.assert_allclose(got["delta"], wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(got["first"], wanted[0], rtol=1e-5, atol=1e-6)
    else:
        # dL/dr = sum over t of g_t dr'/dr with s_t moving together: T mean(g); d = sum I_t / T, so each step gets 1/T
        wanted = oracle.rate_backward(slope, T * g.astype("d").mean(axis=0)) / T
        np.testing.assert_allclose(got["delta"], np.broadcast_to(wanted, got["delta"].shape), rtol=1e-5, atol=1e-6)
        assert not got["first"].any()


@pytest.mark.parametrize("gradient", gradients.GRADIENTS)
def test_silent_neuron_gets_no_gradient_and_an_always_firing_one_its_slope_at_every_step(
    neuron: Neuron, gradient: str) -> None:
    currents = currents_for(neuron)
    ones = np.ones((T, B, N), "f")
    zeros = np.zeros((B, N), "f")
    delta = library_window(neuron, gradient, currents, zeros, ones, zeros)["delta"]
    assert not delta[..., SILENT].any() and not delta[..., AT_THRESHOLD].any()
    trace = sum(neuron.leak**k for k in range(T))
    leak_term = np.log(neuron.leak) * trace / T if neuron.leak < 1 else 0.0
    np.testing.assert_allclose(delta[..., ALWAYS], neuron.gain * (1 + leak_term), rtol=1e-5)


@pytest.mark.parametrize("gradient", gradients.GRADIENTS)
def test_window_of_one_step(neuron: Neuron, gradient: str) -> None:
    currents = currents_for(neuron, steps=1, seed=3)
    v0, g, carry = random_upstream(1)
    window, slope = oracle_window(neuron, currents, v0)
    assert window.N[:, 3:].sum() > 3
    got = library_window(neuron, gradient, currents, v0, g, carry)
    np.testing.assert_array_equal(got["spikes"], window.spikes)
    wanted = oracle.event_backward(window.spikes, slope, g, carry) if gradient == "event" else slope * g
    np.testing.assert_allclose(got["delta"], wanted, rtol=1e-5, atol=1e-6)


def test_two_windows_with_carried_state_are_one(neuron: Neuron) -> None:
    currents, cut = currents_for(neuron), 5
    v0, g, _ = random_upstream()
    zeros = tf.zeros_like(v0)
    state = NeuronState(tf.constant(v0), zeros, zeros)
    whole, final = gradients.spike_window(tf.constant(currents), state, neuron, "event")
    with tf.GradientTape() as tape:
        i = tf.constant(currents)
        tape.watch(i)
        early, middle = gradients.spike_window(i[:cut], state, neuron, "event")
        late, end = gradients.spike_window(i[cut:], middle, neuron, "event")
        joined = tf.concat([early, late], axis=0)
    np.testing.assert_array_equal(joined, whole)
    for a, b in zip(end, final):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    # the carry crosses the cut; each window has the slope of its own end
    window, slope = oracle_window(neuron, currents, v0)
    half, slope_half = oracle_window(neuron, currents[:cut], v0)
    assert half.N.sum() > 0 and window.N.sum() > half.N.sum() and (half.v != 0).any()
    behind = oracle.event_backward(window.spikes[cut:], slope, g[cut:])
    before = oracle.event_backward(half.spikes, slope_half, g[:cut], behind[0])
    delta = tape.gradient(joined, i, output_gradients=tf.constant(g))
    np.testing.assert_allclose(delta, np.concatenate([before, behind]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gradient", gradients.GRADIENTS)
@pytest.mark.parametrize("leak", [0.5, 0.9, 0.99])
def test_eager_graph_and_xla_agree(gradient: str, leak: float) -> None:
    neuron = Neuron.lif(leak, 1.0)
    rng = np.random.default_rng(1)
    currents, g = rng.normal(0.35, 0.5, (T, B, 200)).astype("f"), rng.normal(size=(T, B, 200)).astype("f")

    def both(currents: tf.Tensor, g: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(currents)
            spikes, _ = gradients.spike_window(currents, gradients.zero_state((B, 200)), neuron, gradient)
        return spikes, tape.gradient(spikes, currents, output_gradients=g)

    eager, delta = both(tf.constant(currents), tf.constant(g))
    window = oracle.lif_forward(currents, leak, 1.0, given=eager.numpy())
    assert 0.05 < window.spikes.mean() < 0.9
    for route in (tf.function(both), tf.function(both, jit_compile=True)):
        spikes, credit = route(tf.constant(currents), tf.constant(g))
        flipped = spikes.numpy() != eager.numpy()
        assert flipped.sum() <= 1 and (np.abs(window.u - 1.0)[flipped] < 1e-5).all()
        same = ~flipped.any(axis=0)
        np.testing.assert_allclose(credit.numpy()[:, same], delta.numpy()[:, same], rtol=1e-5, atol=1e-6)


def test_window_length_may_be_unknown_while_tracing() -> None:
    neuron = Neuron.lif(0.9, 1.0)

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3])])
    def run(currents: tf.Tensor) -> tf.Tensor:
        return gradients.spike_window(currents, gradients.zero_state(tf.shape(currents)[1:]), neuron, "event")[0]

    for steps, batch in ((4, 2), (7, 1)):
        currents = np.random.default_rng(steps).normal(0.6, 0.5, (steps, batch, 3)).astype("f")
        spikes = run(tf.constant(currents))
        assert spikes.numpy().sum() > 0
        np.testing.assert_array_equal(spikes, oracle.lif_forward(currents, 0.9, 1.0).spikes)


# --- Worked out by hand ---------------------------------------------------------------------------------------------


def test_trace_that_leaks_fires_and_resets_at_leak_one_half() -> None:
    # t      1     2     3     4     5     6     7
    # I     .6    .6    .6   1.0    .5   .75   .25
    # u     .6    .9  1.05   1.0   1.0  1.25   .25     exactly 1 at t = 4 and 5: no spike
    # s      0     0     1     0     0     1     0
    # v     .3   .45     0    .5    .5     0  .125
    # N = 2, F = .5^4 + .5 = .5625, slope = 1 - .693147 * .28125 = .805052
    currents = np.array([0.6, 0.6, 0.6, 1.0, 0.5, 0.75, 0.25], "f").reshape(-1, 1, 1)
    g = np.arange(1, 8, dtype="f").reshape(-1, 1, 1)
    zeros = np.zeros((1, 1), "f")
    got = library_window(Neuron.lif(0.5, 1.0), "event", currents, zeros, g, zeros)
    np.testing.assert_array_equal(got["spikes"].ravel(), [0, 0, 1, 0, 0, 1, 0])
    assert got["v"].item() == 0.125 and got["N"].item() == 2 and got["F"].item() == 0.5625
    # inputs 1..3 are credited to the spike at 3 (g = 3), 4..6 to that at 6 (g = 6), 7 to none
    np.testing.assert_allclose(got["delta"].ravel(), 0.805052 * np.array([3, 3, 3, 6, 6, 6, 0]), rtol=1e-6)
    got = library_window(Neuron.lif(0.5, 1.0), "rate", currents, zeros, g, zeros)
    np.testing.assert_allclose(got["delta"].ravel(), np.full(7, 0.805052 * 4), rtol=1e-6)


def test_trace_of_a_pooling_neuron() -> None:
    # I  .25   .25   .25   .25    .5    .5   .25
    # u  .25    .5   .75  1.00    .5  1.00   .25     exactly .75 at t = 3: no spike; the excess of .25 is lost
    currents = np.array([0.25, 0.25, 0.25, 0.25, 0.5, 0.5, 0.25], "f").reshape(-1, 1, 1)
    zeros = np.zeros((1, 1), "f")
    got = library_window(Neuron.pooling(), "event", currents, zeros, np.ones_like(currents), zeros)
    np.testing.assert_array_equal(got["spikes"].ravel(), [0, 0, 0, 1, 0, 1, 0])
    assert got["v"].item() == 0.25
    np.testing.assert_array_equal(got["delta"].ravel(), [1, 1, 1, 1, 1, 1, 0])  # slope 1, not 1/.75


def test_pooling_neuron_is_not_a_lif_neuron_without_leak() -> None:
    ones, zeros = tf.ones((1,)), tf.zeros((1,))
    assert gradients.slope(ones, ones, Neuron.pooling()).numpy().item() == 1.0
    assert gradients.slope(ones, ones, Neuron.lif(1.0, 0.75)).numpy().item() == pytest.approx(4 / 3)
    assert gradients.slope(zeros, zeros, Neuron.lif(0.5, 0.75)).numpy().item() == 0.0


def test_slope_may_be_negative_below_a_leak_of_one_over_e() -> None:
    one = tf.ones((1,))
    assert gradients.slope(one, one, Neuron.lif(0.2, 1.0)).numpy().item() == pytest.approx(1 + np.log(0.2), rel=1e-6)


# --- One step, and the slope behind it ------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_step_passes_gradient_to_the_spike_or_carries_it_undiminished(sign: float) -> None:
    # u = 1.2 fires, .9 does not, 1.0 (the threshold) does not
    with tf.GradientTape() as tape:
        current, membrane = tf.constant([[0.7, 0.4, 0.5]]), tf.constant([[0.5, 0.5, 0.5]])
        tape.watch((current, membrane))
        spikes, after = gradients.spike_step(current, membrane, Neuron.lif(0.5, 1.0))
    np.testing.assert_array_equal(spikes, [[1, 0, 0]])
    np.testing.assert_allclose(after, [[0, 0.45, 0.5]], rtol=1e-6)
    grads = tape.gradient((spikes, after), (current, membrane),
                          output_gradients=(tf.constant([[2.0 * sign] * 3]), tf.constant([[7.0 * sign] * 3])))
    for grad in grads:
        np.testing.assert_array_equal(grad, [[2 * sign, 7 * sign, 7 * sign]])


def test_step_divides_by_the_threshold() -> None:
    with tf.GradientTape() as tape:
        current = tf.constant([[0.5]])
        tape.watch(current)
        spikes, _ = gradients.spike_step(current, tf.zeros((1, 1)), Neuron.lif(0.9, 0.25))
    assert tape.gradient(spikes, current).numpy().item() == 4.0


@pytest.mark.parametrize("time_axis", [0, 1])
def test_steps_in_a_loop_and_leak_aware_equal_the_window(neuron: Neuron, time_axis: int) -> None:
    currents = currents_for(neuron)
    v0, g, _ = random_upstream()
    with tf.GradientTape() as tape:
        i, first = tf.constant(currents), tf.constant(v0)
        tape.watch((i, first))
        train, v = [], first
        for t in range(T):
            spikes, v = gradients.spike_step(i[t], v, neuron)
            train.append(spikes)
        spikes = gradients.leak_aware(tf.stack(train, time_axis), neuron, time_axis)
        loss = tf.reduce_sum(spikes * (g if time_axis == 0 else g.swapaxes(0, 1)))
    delta, on_v0 = tape.gradient(loss, (i, first))
    window = library_window(neuron, "event", currents, v0, g, np.zeros_like(v0))
    assert window["spikes"].sum() > 0
    np.testing.assert_array_equal(np.stack(train), window["spikes"])
    np.testing.assert_array_equal(v, window["v"])
    np.testing.assert_allclose(delta, window["delta"], rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(on_v0, window["first"], rtol=2e-6, atol=1e-6)


# --- Output neurons -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leak", LEAKS)
def test_readout_integrates_leaks_and_ignores_the_leak_in_its_gradient(leak: float) -> None:
    rng = np.random.default_rng(0)
    currents, v0 = rng.normal(size=(T, B, 3)).astype("f"), rng.normal(size=(B, 3)).astype("f")
    g = rng.normal(size=(T, B, 3)).astype("f")
    with tf.GradientTape(persistent=True) as tape:
        i, v = tf.constant(currents), tf.constant(v0)
        tape.watch((i, v))
        membranes = gradients.readout_window(i, v, leak)
        last = membranes[-1]
    _, wanted = oracle.readout_forward(currents, leak, v0)
    np.testing.assert_allclose(membranes, wanted, rtol=1e-5, atol=1e-6)
    delta, first = tape.gradient(last, (i, v), output_gradients=tf.constant(g[0]))
    np.testing.assert_array_equal(delta, np.broadcast_to(g[0], delta.shape))
    np.testing.assert_array_equal(first, g[0])
    # the gradient of V_t reaches the inputs 1..t
    delta = tape.gradient(membranes, i, output_gradients=tf.constant(g))
    np.testing.assert_allclose(delta, np.cumsum(g[::-1], axis=0)[::-1], rtol=1e-5, atol=1e-6)


# --- Precision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", gradients.GRADIENTS)
def test_bfloat16_currents_are_integrated_in_float32(gradient: str) -> None:
    # .75 + 12 * 2^-9 is far below the resolution of bfloat16 there (2^-8): a bfloat16 membrane would stand still
    currents = tf.fill((T, 1, 2), tf.constant(2.0**-9, tf.bfloat16))
    zeros = tf.zeros((1, 2))
    with tf.GradientTape() as tape:
        tape.watch(currents)
        spikes, state = gradients.spike_window(
            currents, NeuronState(tf.constant([[0.75, 1 - 2.0**-8]]), zeros, zeros), Neuron.lif(1.0, 1.0), gradient)
    assert spikes.dtype == tf.bfloat16 and all(part.dtype == tf.float32 for part in state)
    np.testing.assert_array_equal(state.membrane[:, :1], [[0.75 + T * 2.0**-9]])
    np.testing.assert_array_equal(state.count, [[0, 1]])
    assert tape.gradient(spikes, currents).dtype == tf.bfloat16


# --- Negative controls ----------------------------------------------------------------------------------------------


def leak_in_the_carry(s: np.ndarray, slope: np.ndarray, g: np.ndarray, leak: float) -> np.ndarray:
    delta, carried = np.zeros(s.shape), 0.0
    for t in reversed(range(len(s))):
        carried = delta[t] = s[t] * slope * g[t] + (1 - s[t]) * (leak * carried)
    return delta


def across_resets(s: np.ndarray, slope: np.ndarray, g: np.ndarray, leak: float) -> np.ndarray:
    delta, carried = np.zeros(s.shape), 0.0
    for t in reversed(range(len(s))):
        carried = delta[t] = s[t] * slope * g[t] + carried
    return delta


def no_leak_in_the_slope(s: np.ndarray, slope: np.ndarray, g: np.ndarray, leak: float) -> np.ndarray:
    return oracle.event_backward(s, s.any(axis=0).astype("d"), g)


@pytest.mark.parametrize("leak", [0.5, 0.9])
@pytest.mark.parametrize("wrong", [leak_in_the_carry, across_resets, no_leak_in_the_slope])
def test_a_wrong_gradient_would_be_noticed(wrong: Any, leak: float) -> None:
    neuron = Neuron.lif(leak, 1.0)
    currents = currents_for(neuron)
    v0, g, carry = random_upstream()
    window, slope = oracle_window(neuron, currents, v0)
    got = library_window(neuron, "event", currents, v0, g, np.zeros_like(carry))["delta"]
    right = oracle.event_backward(window.spikes, slope, g)
    np.testing.assert_allclose(got, right, rtol=1e-5, atol=1e-6)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(got, wrong(window.spikes, slope, g, leak), rtol=1e-5, atol=1e-6)
