"""The table of layers: parameters and multiply-accumulates against known values, memory against real processes."""

import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from tfspike import models
from tfspike.analysis import free_memory, summary
from tfspike.engine import convolution
from tfspike.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent

# (parameters, multiply-accumulates per step) of the paper's networks with ten classes
KNOWN = {
    "lenet": ((28, 28, 1), 517_500, 5.8e6),
    "vgg9": ((32, 32, 3), 5_938_880, 195e6),
    "resnet20": ((32, 32, 3), 280_496, 40.8e6),
    "resnet11": ((32, 32, 3), 17_936_064, None),
    "vgg16": ((32, 32, 3), 15_244_992, None),
}

TRAIN = """
import sys
import numpy as np, tensorflow as tf, keras
from tfspike import models, summary

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))

name, shape, timesteps, batch, gradient = sys.argv[1], tuple(map(int, sys.argv[2].split("x"))), *sys.argv[3:]
timesteps, batch = int(timesteps), int(batch)
tf.function(lambda x: tf.matmul(x, x))(tf.ones((8, 8)))
bare = status("VmRSS:")
model = models.create(name, shape, 10, timesteps, gradient=gradient)
optimizer = keras.optimizers.SGD(0.01)
optimizer.build(model.trainable_variables)
images = tf.random.stateless_uniform((batch, *shape), (0, 1), -1.0, 1.0)

@tf.function(autograph=False)
def step(images):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(images, training=True)))
    optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
    return loss

for _ in range(3):
    step(images).numpy()
print(status("VmHWM:") - bare, summary.memory(model, batch).peak)
"""


@pytest.mark.parametrize("name", KNOWN)
def test_parameters_and_macs_are_the_known_ones(name):
    shape, parameters, macs = KNOWN[name]
    model = models.create(name, shape, 10, 4)
    rows = summary.layers(model, batch_size=2)
    assert sum(row.parameters for row in rows) == parameters == model.count_params() - _counters(model)
    if macs is not None:
        assert sum(row.macs_per_step for row in rows) == pytest.approx(macs, rel=0.01)


def _counters(model):
    """Step counters of encoder and dropout are weights that do not train."""
    return sum(int(np.prod(variable.shape)) for variable in model.non_trainable_variables)


@pytest.mark.parametrize("layer, output, macs", [
    (keras.layers.Conv2D(6, 3, padding="same"), (8, 8, 6), 3 * 3 * 4 * 6 * 64),
    (keras.layers.Conv2D(6, 3, 2, padding="valid", groups=2), (3, 3, 6), 3 * 3 * 2 * 6 * 9),
    (keras.layers.DepthwiseConv2D(3, depth_multiplier=2), (6, 6, 8), 3 * 3 * 4 * 2 * 36),
    (keras.layers.Dense(5), (8, 8, 5), 4 * 5 * 64),
    (keras.layers.SeparableConv2D(6, 3, 2, depth_multiplier=2), (3, 3, 6), (3 * 3 * 4 * 2 + 8 * 6) * 9),
    (keras.layers.Conv2DTranspose(6, 3, 2, padding="same"), (16, 16, 6), 3 * 3 * 4 * 6 * 64),
    (keras.layers.Conv2DTranspose(6, 3, 2, padding="valid"), (17, 17, 6), 3 * 3 * 4 * 6 * 64),
    (keras.layers.DepthwiseConv2D(3, data_format="channels_first"), (8, 6, 2), 3 * 3 * 8 * 6 * 2),
    (keras.Sequential([keras.layers.DepthwiseConv2D(3), keras.layers.Conv2D(5, 1), keras.layers.AveragePooling2D(2)]),
     (3, 3, 5), (3 * 3 * 4 + 4 * 5) * 36),
])
def test_macs_of_a_layer_are_counted_by_hand(layer, output, macs):
    layer.build((None, 8, 8, 4))
    assert tuple(layer.compute_output_shape((None, 8, 8, 4)))[1:] == output
    assert convolution.macs_of(layer, (8, 8, 4), output) == macs


def test_every_layer_of_the_window_has_a_row_in_order():
    model = models.create("resnet7", (16, 16, 3), 10, 4)
    names = [row.name for row in summary.layers(model, 2)]
    assert names == ["encoder", *[call.layer.name for call in model.plan.window], "readout"]
    shapes = {row.name: row.output_shape for row in summary.layers(model, 2)}
    assert shapes["conv1_1_lif"] == (16, 16, 64) and shapes["readout"] == (10,)


def test_states_and_records_follow_the_batch_and_the_gradient():
    def memory(gradient, batch, **kwargs):
        return summary.memory(models.create("lenet", (28, 28, 1), 10, 100, gradient=gradient), batch, **kwargs)

    neurons = 28 * 28 * 20 + 14 * 14 * 20 + 14 * 14 * 50 + 7 * 7 * 50 + 200
    assert memory("rate", 8).states == 3 * 4 * 8 * neurons
    assert memory("rate", 8).record == 0
    model = models.create("lenet", (28, 28, 1), 10, 100, gradient="event")
    chunk, rest = model.engine.chunks(8)
    recorded = (100 // chunk + (rest > 0)) * 8 * neurons
    assert memory("event", 8).record == summary.RECORD_COPIES * recorded
    assert memory("event", 8, training=False).backward == memory("event", 8, training=False).record == 0
    assert memory("event", 8, training=False).peak < memory("rate", 8).peak < memory("event", 8).peak


def test_rate_does_not_grow_with_the_window():
    peaks = [summary.memory(models.create("vgg5", (32, 32, 3), 10, t, gradient="rate"), 16).peak for t in (40, 400)]
    assert peaks[1] == peaks[0]


def test_adam_costs_two_more_values_per_weight():
    model = models.create("lenet", (28, 28, 1), 10, 4)
    sgd, adam = (summary.memory(model, 8, optimizer=optimizer).weights for optimizer in ("sgd", "adam"))
    assert adam - sgd == 2 * 4 * 517_500


def test_a_frozen_layer_has_its_parameters_and_no_gradients():
    model = models.create("lenet", (28, 28, 1), 10, 4)
    before, trained = summary.layers(model, 8), summary.memory(model, 8).weights
    model.get_layer("conv1_1").trainable = False
    assert [row.parameters for row in summary.layers(model, 8)] == [row.parameters for row in before]
    assert trained - summary.memory(model, 8).weights == 2 * 4 * 500
    assert summary.memory(model, 8, training=False).weights == 4 * 517_500


def test_the_table_shows_shapes_totals_rates_and_the_estimate():
    model = models.create("lenet", (28, 28, 1), 10, 25, gradient="rate")
    text = summary.layer_table(model, 32, rates={"pool1": 0.125})
    assert "conv2_1_lif" in text and "14x14x50" in text and "517,500" in text and "5.78 M" in text and "0.1250" in text
    assert "Estimated peak memory of training at batch 32" in text
    assert max(map(len, text.splitlines()[:-2])) <= 100
    assert "inference" in summary.layer_table(model, 32, training=False)


def test_a_batch_that_does_not_fit_is_told_what_would():
    model = models.create("lenet", (28, 28, 1), 10, 25, gradient="event")
    assert summary.memory_warning(model, 64, available=10**12) is None
    half = summary.memory(model, 32).peak
    text = summary.memory_warning(model, 64, available=half)
    assert "--batch_size=32" in text and "--gradient=rate" in text
    assert "--timesteps" in summary.memory_warning(model, 64, available=1)[-200:]


@pytest.mark.parametrize("version", [1, 2])
def test_free_memory_is_the_least_that_the_machine_and_the_groups_around_leave(version, tmp_path, monkeypatch):
    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    def group(folder, limit, used, kept):
        root, *names = (("groups/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
                        ("groups", "memory.max", "memory.current", "inactive_file"))[version - 1]
        for name, text in zip((*names[:2], "memory.stat"),
                              (limit, used, f"cache 7\ninactive_file_dirty 5\n{names[2]} {kept}\n")):
            write(f"{root}/{folder}/{name}", f"{text}\n")

    monkeypatch.setattr(free_memory, "PROC", str(tmp_path / "proc"))
    monkeypatch.setattr(free_memory, "GROUPS", str(tmp_path / "groups"))
    assert free_memory.free_memory() is None  # a system that says nothing
    write("proc/meminfo", "MemTotal:  9 kB\nMemAvailable:    2 kB\n")
    assert free_memory.free_memory() == 2048
    write("proc/self/cgroup", ("3:cpu,cpuacct:/x\n4:memory:/a/b\n0::/\n", "0::/a/b\n")[version - 1])
    assert free_memory.free_memory() == 2048
    group("", (2**63 - 4096, "max")[version - 1], 0, 0)  # no limit
    group("a/b", 3000, 2900, 5000)
    assert free_memory.free_memory() == 2048
    group("a", 3000, 2500, 200)  # the group around it has less
    assert free_memory.free_memory() == 700
    group("a", 3000, 3500, 0)
    assert free_memory.free_memory() == 0
    write("proc/self/cgroup", ("4:memory:/docker/c", "0::/docker/c")[version - 1])  # which is the root here
    group("", 1500, 500, 0)
    assert free_memory.free_memory() == 1000


def test_a_model_without_a_window_is_refused():
    inputs = keras.Input((4,))
    with pytest.raises(UserError, match="one window"):
        summary.layers(models.SpikingModel(inputs, keras.layers.Dense(2)(inputs)), 8)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["lenet 28x28x1 25 64 rate", "vgg5 32x32x3 25 16 event",
                                  "resnet20 32x32x3 10 16 event"])
def test_the_estimate_is_within_a_quarter_of_a_real_process(case):
    done = subprocess.run([sys.executable, "-c", TRAIN, *case.split()], cwd=ROOT, capture_output=True, text=True,
                          timeout=600, check=True)
    measured, estimated = map(int, done.stdout.split()[-2:])
    assert estimated == pytest.approx(measured, rel=0.25), json.dumps({"measured": measured, "estimated": estimated})


def test_the_estimate_of_a_normalised_network() -> None:
    """Measured on 2 cores, AdamW, ResNet20; "event" of the paper's slope over 16 steps goes layer by layer."""
    def peak(gradient: str, timesteps: int, batch: int, surrogate: str = "arctan") -> float:
        model = models.create("resnet20", (32, 32, 3), 10, timesteps, gradient=gradient, encoder="direct", norm="tdbn",
                              surrogate=surrogate, pooling="average")
        model.configure_engine(kernel="xla")
        return summary.memory(model, batch, True, "adamw").peak / 1e6

    assert 0.75 * 335 < peak("rate", 4, 32) < 1.25 * 335
    assert 0.75 * 500 < peak("rate", 25, 16) < 1.25 * 500
    assert 0.75 * 1087 < peak("rate", 25, 64) < 1.25 * 1087
    assert 0.75 * 590 < peak("event", 4, 32) < 1.25 * 590
    assert 0.75 * 603 < peak("event", 8, 16) < 1.25 * 603
    assert 0.75 * 519 < peak("event", 4, 32, "leak_aware") < 1.25 * 519
    assert 0.75 * 719 < peak("event", 16, 16, "leak_aware") < 1.25 * 719
