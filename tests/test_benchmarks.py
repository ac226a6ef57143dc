"""The comparison of accuracies, the trial of the last-spike factor, and the counting of launches."""

from __future__ import annotations

import itertools
import json
import math
import os
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import accuracy, graphs, launches, learning, sparsity
from benchmarks.last_spike import with_last_spike
from tfspike import models

T, LEAK, THRESHOLD = 12, 0.9, 1.0


def test_every_library_and_epoch_sees_all_images_in_the_same_fresh_order() -> None:
    plan = list(itertools.islice(learning.batches(10, 3, seed=1), 6))
    assert [len(chosen) for chosen in plan] == [3] * 6
    first, second = np.concatenate(plan[:3]), np.concatenate(plan[3:])
    assert len(set(first)) == len(set(second)) == 9
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(np.concatenate(list(itertools.islice(learning.batches(10, 3, 1), 6))), np.concatenate(plan))


def test_the_cosine_rises_for_an_epoch_and_ends_near_zero() -> None:
    shares = [learning.cosine(step, 40, warmup=10) for step in range(40)]
    assert shares[0] == pytest.approx(0.1) and max(shares) == shares[9] == 1.0
    assert 0 < shares[-1] < 0.01
    assert all(a > b for a, b in zip(shares[10:], shares[11:]))


@pytest.mark.parametrize("deep", [False, True])
def test_a_worker_reports_its_curve(tmp_path: Any, capsys: pytest.CaptureFixture[str], deep: bool) -> None:
    data = str(tmp_path / "data.npz")
    labels = np.arange(20) % 4
    np.savez(data, x=np.zeros((20, 2, 2, 1), "f"), y=labels, test_x=np.zeros((8, 2, 2, 1), "f"), test_y=labels[:8])
    shares: list[float] = []
    learning.learn({"data": data, "batch": 5, "epochs": 2, "seconds": 0.0, "seed": 0, "deep": deep, "threads": 1},
                   lambda x, y, share: shares.append(share), lambda x: np.zeros(len(x)), {"library": "1"})
    curve = json.loads(capsys.readouterr().out)["curve"]
    assert [point[0] for point in curve] == [2, 4, 6, 8] and {point[2] for point in curve} == {0.25}
    assert (set(shares) == {1.0}) != deep


def test_a_worker_trains_for_its_seconds(tmp_path: Any, capsys: pytest.CaptureFixture[str],
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    data, clock, shares = str(tmp_path / "data.npz"), [0.0], []
    np.savez(data, x=np.zeros((20, 2, 2, 1), "f"), y=np.zeros(20), test_x=np.zeros((8, 2, 2, 1), "f"), test_y=np.zeros(8))
    monkeypatch.setattr(learning.time, "perf_counter", lambda: clock[0])

    def train(x: np.ndarray, y: np.ndarray, share: float) -> None:
        clock[0] += 3.0
        shares.append(share)

    def predict(x: np.ndarray) -> np.ndarray:
        clock[0] += 50.0  # the test is not training
        return np.zeros(len(x))

    learning.learn({"data": data, "batch": 5, "epochs": 2, "seconds": 60.0, "seed": 0, "deep": True, "threads": 1},
                   train, predict, {"library": "1"})
    curve = json.loads(capsys.readouterr().out)["curve"]
    assert curve == [[5, 15.0, 1.0], [10, 30.0, 1.0], [15, 45.0, 1.0], [20, 60.0, 1.0]]
    assert max(shares) == shares[10] == 1.0 and shares[0] < 0.05 and shares[-1] < 0.05


def test_the_picture_has_a_line_per_process() -> None:
    one = {"status": "ok", "curve": [[5, 30.0, 0.5], [10, 60.0, 0.75]]}
    figure = accuracy.draw({"resnet20-cifar10, 1 minutes/tfspike-rate/float32/seed0": one,
                            "resnet20-cifar10-spikes, 1 minutes/spikingjelly/float32/seed0": one,
                            "lenet, 1 epochs/norse/float32/seed0": {"status": "error"}})
    lines = figure.axes[0].get_lines()
    assert [line.get_linestyle() for line in lines] == ["-", "--"]
    assert lines[0].get_xydata().tolist() == [[0.5, 50.0], [1.0, 75.0]]
    assert figure.axes[0].get_title() == "resnet20 on cifar10, T = 4, float32, seed 0"
    assert lines[1].get_label() == "SpikingJelly, spikes on the shortcut"


def test_the_table_tells_when_the_goal_was_reached_in_every_seed() -> None:
    def record(*accuracies: float) -> dict[str, Any]:
        return {"status": "ok", "curve": [[i + 1, 10.0 * (i + 1), a] for i, a in enumerate(accuracies)]}

    text = accuracy.table({"lenet/a/float32/seed0": record(0.5, 0.98), "lenet/a/float32/seed1": record(0.97, 0.96),
                           "lenet/b/float32/seed0": record(0.5, 0.6), "lenet/c/float32/seed0": {"status": "error"}}, 0.97)
    a, b = text.splitlines()[2:]
    assert a == "| lenet/a/float32 | 2 | 97.00 | 1.41 | 20 | 15 |"
    assert b.endswith("| not reached |")


@pytest.mark.usefixtures("layer_by_layer")
def test_the_last_spike_factor_scales_the_slope_of_rate() -> None:
    rng = np.random.default_rng(0)
    model = models.create("lenet", (12, 12, 1), 4, T, gradient="rate", encoder=None, leak=LEAK, threshold=THRESHOLD,
                          dropout=0.0, hidden=0, seed=1)
    trial = with_last_spike(model)
    train = (rng.random((2, T, 12, 12, 1)) < 0.4).astype("f")
    assert min(float(tf.reduce_mean(count)) for count in model.observe(train)[1].values()) > 0.05
    np.testing.assert_allclose(trial(train), model(train), rtol=1e-5, atol=1e-6)
    assert [v.path for v in trial.trainable_variables] == [v.path for v in model.trainable_variables]

    # a single layer, by hand
    from benchmarks.last_spike import _LastSpike
    from tfspike.neurons.gradients import Neuron

    neuron = Neuron.lif(LEAK, THRESHOLD)
    currents = rng.uniform(0, 0.7, (T, 2, 5)).astype("f")
    upstream = rng.normal(size=(T, 2, 5))
    x = tf.constant(currents)
    with tf.GradientTape() as tape:
        tape.watch(x)
        spikes = _LastSpike(neuron)(x)
    got = tape.gradient(spikes, x, output_gradients=tf.constant(upstream, tf.float32)).numpy()
    s = spikes.numpy().astype("f8")
    assert 0.05 < s.mean() < 0.6
    ages = np.arange(T - 1, -1, -1)[:, None, None]
    count, trace = s.sum(0), (LEAK ** ages * s).sum(0)
    last = np.where(s > 0, np.arange(1, T + 1)[:, None, None], 0).max(0) / T
    slope = ((count > 0) + math.log(LEAK) * trace / np.maximum(count, 1)) / THRESHOLD * last
    np.testing.assert_allclose(got, np.broadcast_to(slope * upstream.mean(0), got.shape), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_lenet_learns_in_the_comparison(tmp_path: Any) -> None:
    out = str(tmp_path / "accuracy.json")
    assert accuracy.main(["--work", "smoke", "--libraries", "tfspike-rate", "--seeds", "1", "--out", out]) == 0
    with open(out, encoding="utf-8") as file:
        record = json.load(file)["smoke, 1 epochs/tfspike-rate/float32/seed0"]
    assert record["status"] == "ok" and record["curve"][-1][2] > 0.2
    assert os.path.exists(out)


# --- Launches -------------------------------------------------------------------------------------------------------


def looped(x: tf.Tensor, most: int | None = 3) -> tf.Tensor:
    def body(i: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        tf.exp(y)  # which nothing asks for
        return i + 1, tf.sin(y)

    return tf.cos(tf.while_loop(lambda i, y: i < 3, body, (0, x), maximum_iterations=most)[1])


def test_operations_count_as_often_as_their_loop_goes_round() -> None:
    function = tf.function(looped).get_concrete_function(tf.TensorSpec((20,)))
    trips = {node.definition.op: (node.trips, node.looped) for node in graphs.walk(function)}
    assert trips["Cos"] == (1, False) and trips["Sin"] == (3, True) and trips["Less"] == (4, True)
    assert "Exp" not in trips
    assert launches.launched(function) == 3 + 1


def test_a_loop_that_does_not_say_how_often_it_goes_round_is_refused() -> None:
    function = tf.function(lambda x: looped(x, None)).get_concrete_function(tf.TensorSpec((20,)))
    with pytest.raises(ValueError, match="maximum_iterations"):
        list(graphs.walk(function))


def test_kernels_of_a_module_count_as_often_as_their_loop_goes_round() -> None:
    inside = "%inside (p: f32[4]) -> f32[4] {\n  ROOT %s = f32[4]{0} sine(%p)\n}\n"
    body = "%b (p: f32[4]) -> f32[4] {\n  ROOT %g = f32[4]{0} fusion(%p), kind=kLoop, calls=%inside\n}\n"
    entry = """ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %w = (s32[], f32[4]{0}) while(%t), condition=%c, body=%bKNOWN
  ROOT %f = f32[4]{0} fusion(%w), kind=kLoop, calls=%inside
}"""
    known = ', backend_config={"known_trip_count":{"n":"5"}}'
    assert launches.fused(inside + body + entry.replace("KNOWN", known), 3) == 5 + 1
    assert launches.fused(inside + body + entry.replace("KNOWN", ""), 3) == 3 + 1


def test_the_module_of_a_compiled_function_has_kernels() -> None:
    function = tf.function(lambda x: tf.cos(tf.sin(x) @ x), jit_compile=True)
    module = function.experimental_get_compiler_ir(tf.ones((8, 8)))(stage="optimized_hlo")
    assert 2 <= launches.fused(module, 1) <= 4


def test_the_table_and_the_picture_of_speed_against_spikes() -> None:
    points = [{"threshold": factor, "spikes": 1e5 / factor, "microjoules": 60 / factor, "ann_microjoules": 900.0,
               "dense": {"images_per_second": 7.0}, "events": {"images_per_second": 14.0 * factor}} for factor in (0.5, 2.0)]
    first, second = sparsity.table(points).splitlines()[2:]
    assert first == "| 0.5 | 200,000 | 7.0 | 7.0 | 1.00 | 120.0 (900.0) |" and "| 28.0 | 4.00 |" in second
    speed, energy = sparsity.draw(points, "a network").axes
    dense, events = (line.get_xydata().tolist() for line in speed.lines)
    assert events == [[200_000.0, 7.0], [50_000.0, 28.0]] and {y for _, y in dense} == {7.0}
    assert [list(line.get_ydata()) for line in energy.lines] == [pytest.approx([120e-6, 30e-6]), pytest.approx([900e-6] * 2)]
