"""STDP of convolutions: one update against NumPy loops, patterns that are found and noise that is not, and the command."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfspike import LIF, DirectEncoder, OverTime, Readout, SpikingModel, datasets, models, training
from tfspike.config import flags
from tfspike.errors import UserError
from tfspike.runs import checkpoints, initial_weights
from tfspike.stdp import command, options, rules, stack
from tfspike.stdp.rules import First, Leaky, Learning
from tfspike.variants import VARIANTS, Block, Conv, Pool, Variant

T, H, W = 6, 7, 6


def layer_of(kernel: np.ndarray, threshold: float, seen: float = 0.0) -> Learning:
    return Learning(tf.constant(kernel, tf.float32), tf.fill((kernel.shape[-1],), float(threshold)), tf.constant(seen))


def patch(values: np.ndarray, row: int, column: int, size: int, outside: float) -> np.ndarray:
    """What a neuron sees of `[H, W, C]`, with something outside of it."""
    margin = size // 2
    padded = np.pad(values, ((margin, margin), (margin, margin), (0, 0)), constant_values=outside)
    return padded[row:row + size, column:column + size]


# ---- the oracle: whoever fires first -------------------------------------------------------------------------------


def first_spikes(when: np.ndarray, kernel: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """`(step, potential)` of every neuron's spike, `[H, W, C]`; step T without one."""
    size, maps = kernel.shape[0], kernel.shape[-1]
    steps, potentials = np.full((H, W, maps), T), np.zeros((H, W, maps))
    for row, column, c in np.ndindex(H, W, maps):
        for t in reversed(range(T)):
            u = (kernel[..., c] * (patch(when, row, column, size, T) <= t)).sum()
            if u > threshold:
                steps[row, column, c], potentials[row, column, c] = t, u
    return steps, potentials


def winners(steps: np.ndarray, potentials: np.ndarray) -> list[tuple[int, int, int]]:
    """Positions and maps of the neurons that learn, the first to fire in front."""
    order = sorted(np.ndindex(steps.shape), key=lambda at: (steps[at], -potentials[at]))
    best: dict[tuple[int, ...], tuple[int, ...]] = {}
    for at in order:
        best.setdefault(at[:2], at)
    found: list[Any] = []
    for at in order:
        apart = all(at[2] != other[2] and max(abs(at[0] - other[0]), abs(at[1] - other[1])) > First.RADIUS
                    for other in found)
        if steps[at] < T and best[at[:2]] == at and apart and len(found) < First.WINNERS:
            found.append(at)
    return found


def urgency_of(when: np.ndarray, rank: np.ndarray) -> np.ndarray:
    return np.where(when < T, T - when + rank, 0.0).astype("f")


def scene(seed: int, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Steps of first spikes `[images, H, W, C]`, and what ranks those of one step."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, T + 3, (4, H, W, channels)).clip(max=T), rng.uniform(0.1, 0.9, (4, H, W, channels))


@pytest.mark.parametrize("seen", [0.0, 3600.0])
def test_first_spikes_learn_as_the_loops_do(seen: float) -> None:
    rng, (when, rank) = np.random.default_rng(1), scene(0)
    kernel, threshold = rng.uniform(0.2, 0.9, (3, 3, 3, 7)).astype("f"), 2.6
    rule, activity = First(T), urgency_of(when, rank)
    wanted, learnt, silent = kernel.astype("d"), 0, 0
    for image in range(len(when)):
        urgent = activity[image] == activity[image].max(-1, keepdims=True)  # one spike per position
        before = np.where(urgent, when[image], T)
        steps, potentials = first_spikes(before, wanted, threshold)
        silent += (steps == T).sum()
        rate = min(0.004 * 2.0 ** ((seen + image) // 500), 0.15)
        moved = wanted.copy()
        for row, column, c in winners(steps, potentials):
            w, early = wanted[..., c], patch(before, row, column, 3, T) <= steps[row, column, c]
            moved[..., c] += np.where(early, rate, -0.75 * rate) * w * (1 - w)
            learnt += 1
        wanted = moved
    found = rule.learn(layer_of(kernel, threshold, seen), tf.constant(activity))
    assert silent > 100 and 8 <= learnt <= 4 * First.WINNERS
    np.testing.assert_allclose(found.kernel, wanted, atol=1e-5)
    assert np.abs(found.kernel - kernel).max() > 1e-4 and float(found.seen) == seen + 4


def test_the_response_says_when_a_neuron_fired_and_how_strongly() -> None:
    when, rank = scene(2)
    kernel = np.random.default_rng(3).uniform(0.2, 0.9, (3, 3, 3, 4)).astype("f")
    found = First(T).respond(tf.constant(urgency_of(when, rank)), layer_of(kernel, 3.0)).numpy()
    for image in range(2):
        steps, potentials = first_spikes(when[image], kernel, 3.0)
        np.testing.assert_array_equal(T - np.floor(found[image]), steps)
        np.testing.assert_allclose(found[image] % 1.0, np.where(steps < T, potentials, 0) / 28, atol=1e-4)


def test_pixels_become_on_and_off_spikes_the_strongest_first() -> None:
    image = np.zeros((1, 9, 9, 1), "f")
    image[0, :, 4, 0] = 1.0  # a line
    urgency = First(15).encode(tf.constant(image), tf.constant(0)).numpy()[0]
    assert urgency.shape == (9, 9, 2) and urgency[4, 4, 0] > urgency[4, 2, 1] > 0.0 == urgency[4, 4, 1]
    assert not urgency[4, [0, 8]].any()
    assert not First(15).encode(tf.zeros((1, 9, 9, 1)), tf.constant(0)).numpy().any()
    many = First(5).encode(tf.constant(np.random.default_rng(0).normal(size=(1, 12, 12, 2)).astype("f")), tf.constant(0))
    counts = np.bincount(many.numpy().astype(int).ravel())[1:]
    assert len(counts) == 5 and np.ptp(counts) <= 1, "steps of equally many spikes"


# ---- the oracle: neurons that leak ---------------------------------------------------------------------------------


def leaky_step(train: np.ndarray, kernel: np.ndarray, threshold: np.ndarray, leak: float) -> tuple[Any, ...]:
    """`(kernel, threshold)` after one batch `[T, B, H, W, C]`, and the spikes."""
    batch, maps, size = train.shape[1], kernel.shape[-1], kernel.shape[0]
    spikes, total, count = np.zeros((T, batch, H, W, maps)), np.zeros(kernel.shape), np.zeros(maps)
    for b in range(batch):
        last, v = np.full(train.shape[2:], -1), np.zeros((H, W, maps))
        for t in range(T):
            last = np.where(train[t, b] != 0, t, last)
            signs = np.array([[[train[max(last[y, x, i], 0), b, y, x, i] for i in range(last.shape[2])]
                               for x in range(W)] for y in range(H)])
            trace = np.where(last >= 0, signs * np.exp(-(t - last) / Leaky.TAU), 0.0)
            for row, column in np.ndindex(H, W):
                u = v[row, column] + (patch(train[t, b], row, column, size, 0)[..., None] * kernel).sum((0, 1, 2))
                c = np.argmax(u / threshold)
                if u[c] > threshold[c]:
                    spikes[t, b, row, column, c] = 1
                    total[..., c] += patch(trace, row, column, size, 0)
                    count[c] += 1
                    u = 0.0 * u
                v[row, column] = leak * u
    mean = total / np.maximum(count, 1)
    moved = kernel + np.where(count > 0, Leaky.RATE * (mean - Leaky.OFFSET) * (1 - kernel) * (1 + kernel), 0.0)
    due = Leaky.DUE * T * batch * H * W / maps
    return moved, threshold * (1 + Leaky.ADAPTATION * np.clip(count / due - 1, -1, 1)), spikes


@pytest.mark.parametrize("leak", [0.5, 0.9])
def test_neurons_that_leak_learn_as_the_loops_do(leak: float) -> None:
    rng = np.random.default_rng(5)
    train = (rng.choice([-1.0, 1.0], (T, 2, H, W, 2), p=[0.2, 0.8]) * (rng.random((T, 2, H, W, 2)) < 0.4)).astype("f")
    kernel, threshold = rng.normal(0.1, 0.3, (3, 3, 2, 3)).astype("f"), np.array([1.1, 0.7, 60.0], "f")
    rule, layer = Leaky(T, leak), Learning(tf.constant(kernel), tf.constant(threshold), tf.zeros(()))
    wanted, thresholds, spikes = leaky_step(train, kernel.astype("d"), threshold.astype("d"), leak)
    assert 0.02 < spikes[..., :2].mean() < 0.5 and not spikes[..., 2].any()
    np.testing.assert_array_equal(rule.respond(tf.constant(train), layer), spikes)
    found = rule.learn(layer, tf.constant(train))
    np.testing.assert_allclose(found.kernel, wanted, atol=1e-5)
    np.testing.assert_allclose(found.threshold, thresholds, rtol=1e-5)
    np.testing.assert_array_equal(found.kernel[..., 2], kernel[..., 2])


# ---- what is learnt, and the negative control ----------------------------------------------------------------------


PATTERN = np.add.outer(np.arange(5), np.arange(5)) % 3 == 0  # of a patch of 5x5: early pixels, the others late


def patterned(shuffled: bool, images: int) -> np.ndarray:
    """One pattern of latencies in every image, or the same latencies in an order of each image's own, as urgency."""
    rng = np.random.default_rng(7)
    when = np.full((images, 5, 5, 1), T, int)
    for image in when:
        steps = np.where(PATTERN, rng.integers(0, 2, (5, 5)), rng.integers(4, T, (5, 5)))
        image[..., 0] = rng.permutation(steps.ravel()).reshape(5, 5) if shuffled else steps
    return np.where(when < T, T - when + 0.5, 0.0).astype("f")


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_pattern_of_latencies_is_found_and_shuffled_latencies_teach_nothing(shuffled: bool) -> None:
    """A neuron sees the whole 5x5 image only in its middle, where a threshold of half the pattern is reached first."""
    rule = First(T)
    kernel = np.clip(np.random.default_rng(0).normal(0.8, 0.05, (5, 5, 1, 1)), 0, 1)
    layer, activity = layer_of(kernel, 0.7 * PATTERN.sum(), 1500.0), tf.constant(patterned(shuffled, 150))
    found = tf.function(rule.learn, autograph=False)(layer, activity).kernel.numpy()
    difference = found[PATTERN].mean() - found[~PATTERN].mean()
    assert abs(difference) < 0.1 if shuffled else difference > 0.8, difference


# ---- networks ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "small", Variant((Conv(4), Pool(), Conv(5)), hidden=6))
    monkeypatch.setitem(VARIANTS, "small_residual", Variant((Conv(4), Pool(), Block(4), Block(5)), hidden=0))


def images_of(count: int = 10, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 1, (count, 10, 8, channels)).astype("f")


def network(name: str = "small", channels: int = 1, **more: Any) -> Any:
    return models.create(name, (10, 8, channels), 3, 8, gradient="rate", seed=2, **more)


def rates(model: Any, channels: int) -> list[float]:
    """Spikes per step of every layer with weights in front of it."""
    counts = model.observe(images_of(10, channels), seed=1)[1]
    return [float(np.mean(count)) / 8 for name, count in counts.items() if name.endswith("lif")]


@pytest.mark.parametrize("channels, norm", [(1, None), pytest.param(3, "tdbn", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", rules.RULES)
def test_the_convolutions_of_a_network_learn_one_behind_the_other(name: str, channels: int, norm: str | None) -> None:
    model, said = network(channels=channels, norm=norm), []
    before = [np.asarray(variable.value) for variable in model.trainable_variables]
    found = stack.pretrain(model, images_of(10, channels), rules.RULES[name](5, 0.9, 1), 60, said.append)
    assert [(layer.name, layer.maps) for layer in found] == [("conv1_1", 4), ("conv2_1", 5)] and len(said) == 2
    assert all(layer.change > 0.01 for layer in found)
    kernels = [layer.layer.kernel.numpy() for layer in map(model.get_layer, ("conv1_1", "conv2_1"))]
    old = {value.shape: value for value in before}
    for kernel in kernels:
        assert abs(np.corrcoef(kernel.ravel(), old[kernel.shape].ravel())[0, 1]) < 0.5
        assert norm is None or kernel.std() == pytest.approx(old[kernel.shape].std(), rel=1e-4)
    if norm is None:
        assert rates(model, channels) == pytest.approx(rates(network(), channels), rel=0.2)
    else:
        again = network(channels=channels, norm=norm)
        stack.pretrain(again, images_of(10, channels), rules.RULES[name](5, 0.9, 1), 60, said.append)
        np.testing.assert_array_equal(again.get_layer("conv2_1").layer.kernel, kernels[1])


def test_what_learns_ends_at_the_first_sum() -> None:
    found = [call.name for call in stack.chain(network("small_residual"))]
    assert found == ["conv1_1", "pool1_average", "block1_conv_a"]
    image = keras.Input((6,))
    dense = Readout()(LIF()(OverTime(keras.layers.Dense(3))(DirectEncoder(2)(image))))
    with pytest.raises(UserError, match="begins with none"):
        stack.chain(SpikingModel(image, dense))


# ---- the command ---------------------------------------------------------------------------------------------------


def test_the_names_of_rules_need_no_tensorflow_and_are_those_of_the_rules() -> None:
    assert options.RULES == tuple(rules.RULES)


@pytest.mark.parametrize("argv, part", [
    (["--neuron=relu"], "learns from spikes"), (["--dataset=nmnist"], "comes as spike trains"),
    (["--rule=hebb"], "--rule takes one of kheradpisheh, lee"), (["--images=0"], "--images takes"),
    (["--init_from=x"], "init_from"), (["--method=stbp", "--norm=tdbn"], "--method=stbp is --norm=none")])
def test_flags_refuse(argv: list[str], part: str) -> None:
    with pytest.raises(UserError, match=part):
        options.parse(argv)


def test_the_command_takes_the_flags_of_the_training_to_come() -> None:
    config, asked, more = options.parse(["--model=vgg5", "--rule=lee", "--method=tdbn", "--lr_milestones=none"])
    assert (config.model, config.norm, asked.rule, asked.images) == ("vgg5", "tdbn", "lee", 3000)
    assert more == {"method": "tdbn", "model": "vgg5", "lr_milestones": "none"} and config.workdir.endswith("-stdp")
    assert options.parse(["--workdir=out"])[0].workdir == "out"


def test_its_weights_are_what_a_run_begins_with(tmp_path: Path) -> None:
    out, said = str(tmp_path / "first weights"), []
    config, asked, more = options.parse([f"--workdir={out}", "--hidden=0", "--timesteps=4", "--images=40", "--steps=5"])
    go_on = command.run(config, asked, more, said.append)
    assert said[-1].endswith(go_on) and "2 convolutions by STDP" in said[-1] and re.search(r"--timesteps=4 .*--init_from", go_on)
    given, _, _, _ = flags.parse([word for word in shlex.split(go_on) if word.startswith("--")])
    assert (given.hidden, given.timesteps, given.workdir) == (0, 4, given.workdir) and given.workdir != out
    assert checkpoints.read(f"{out}/checkpoints/last").meta["stdp"]["rule"] == "kheradpisheh"
    model = models.create("lenet", (28, 28, 1), 10, 4, hidden=0)
    assert not initial_weights.load(model, out, said.append)
    (Path(out) / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds a run"):
        command.run(config, asked, more, said.append)


def test_images_of_a_folder_are_shown_in_the_order_of_no_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.repeat(np.arange(2, dtype=np.int32), 50)
    images = np.broadcast_to(labels[:, None, None, None] * 200 + np.arange(8)[:, None], (100, 8, 8, 1))
    shown: list[np.ndarray] = []
    monkeypatch.setattr(datasets, "load", lambda *_: datasets.Arrays(
        images.astype(np.uint8), labels, "folder", ("a", "b"), 100, 0))
    monkeypatch.setattr(stack, "pretrain", lambda model, images, *_: shown.append(images) or [])
    config, asked, more = options.parse([f"--workdir={tmp_path / 'out'}", "--dataset=folder", "--data_dir=x", "--model=lenet",
                                         "--hidden=0", "--images=20"])
    command.run(config, asked, more, lambda line: None)
    bright = shown[0].mean((1, 2, 3)) > shown[0].mean()
    assert len(bright) == 20 and 4 < bright.sum() < 16 and np.count_nonzero(np.diff(bright.astype(int))) > 3


@pytest.mark.slow
@pytest.mark.parametrize("rule", rules.RULES)
def test_a_network_learns_from_them(rule: str, tmp_path: Path) -> None:
    out = str(tmp_path / "first")
    config, asked, more = options.parse([f"--workdir={out}", f"--rule={rule}", "--images=600", "--epochs=1",
                                         "--lr_milestones=none", "--export=none", "--notensorboard", "--timesteps=15"])
    command.run(config, asked, more, lambda line: None)
    made, chosen, _, _ = flags.parse([*(f"--{name}={value}" for name, value in more.items()), f"--init_from={out}",
                                      f"--workdir={tmp_path / 'run'}"])
    lines: list[str] = []
    assert training.run(made, chosen, lines.append) == 0
    accuracy = next(line for line in lines if "epoch 1 done" in line).split("accuracy ")[-1]
    assert float(accuracy.split(" %")[0]) > 60.0
