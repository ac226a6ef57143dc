"""Ready for GPUs, as far as a machine without one can tell: every operation has a kernel there, and steps compile."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import nets
import registry
import runs
from tfspike import DirectEncoder, OverTime, Readout, SpikingModel, UserError, config, distribution, models
from tfspike.engine import kernels
from tfspike.models import blocks
from tfspike.models.settings import LayerSettings
from tfspike.training.optimisation import make_optimizer
from tfspike.training.step import TrainStep
from tfspike.training.trainer import Trainer
from tfspike.variants import VARIANTS

B, CLASSES, IMAGE = 16, 10, (32, 32, 3)
POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")
PLAIN = {"norm": None, "surrogate": "leak_aware"}
DEEP = {"norm": "tdbn", "surrogate": "arctan"}


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library takes the kernels, chunks and normalisations that it takes where there is a GPU."""
    monkeypatch.setattr(distribution, "has_gpu", lambda: True)


def network(name: str, gradient: str, norm: str | None = None, surrogate: str = "leak_aware", encoder: str | None = "poisson",
            timesteps: int = 7) -> SpikingModel:
    """In three chunks, the last of them shorter; with a normalisation in one."""
    model = models.create(name, IMAGE, CLASSES, timesteps, gradient=gradient, norm=norm, surrogate=surrogate,
                          encoder=encoder, dropout=0.2)
    model.configure_engine(chunk=3)
    assert model.engine is not None and model.engine.kernel == "plain" and model.engine.can_train
    return model


def training_step(model: Any, optimizer: str = "sgd") -> Any:
    """The graph of a whole step, operation by operation: encode, forward, loss, backward, statistics, update."""
    settings = runs.tiny("unused", batch_size=B, optimizer=optimizer, clip_norm=1.0, weight_decay=0.01, jit="off")
    maker = make_optimizer(settings, model.trainable_variables)
    step = TrainStep(model, maker, tf.distribute.get_strategy(), settings)
    return step.graph(tf.TensorSpec((B, *model.input_shape[1:])), tf.TensorSpec((B,), tf.int32))


def inference(model: Any) -> Any:
    """The graph of what an evaluation computes."""
    return tf.function(lambda images, seed: model.observe(images, training=False, seed=seed)).get_concrete_function(
        tf.TensorSpec((B, *model.input_shape[1:])), tf.TensorSpec((), tf.int32))


def assert_runs_on_a_gpu(model: Any, optimizer: str = "sgd") -> None:
    assert not registry.complaints(training_step(model, optimizer))
    assert not registry.complaints(inference(model))


@pytest.mark.parametrize(("name", "gradient", "settings", "optimizer", "policy"), [
    ("lenet", "event", PLAIN, "sgd", "float32"), ("lenet", "rate", DEEP, "adam", "mixed_bfloat16"),
    ("resnet7", "event", DEEP, "adamw", "mixed_float16")])
def test_every_operation_has_a_kernel_on_gpus(name: str, gradient: str, settings: dict[str, Any], optimizer: str,
                                              policy: str) -> None:
    keras.config.set_dtype_policy(policy)
    assert_runs_on_a_gpu(network(name, gradient, **settings), optimizer)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["event", "rate"])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_operation_of_every_network_has_a_kernel_on_gpus(name: str, gradient: str) -> None:
    for settings, policy in itertools.product((PLAIN, DEEP), POLICIES):
        keras.config.set_dtype_policy(policy)
        assert_runs_on_a_gpu(network(name, gradient, **settings))


@pytest.mark.parametrize("encoder", ["direct", "latency", None])
def test_encoders_have_kernels_on_gpus(encoder: str | None) -> None:
    assert not registry.complaints(inference(network("lenet", "rate", encoder=encoder)))


@pytest.mark.parametrize(("kept", "said"), [
    (lambda bits: bits, "no kernel"), (lambda bits: tf.cast(bits, tf.int32) + 1, "on the host")], ids=["uint8", "int32"])
def test_records_of_other_types_are_found_out(kept: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "stored", lambda bits, kernel: kept(bits))
    monkeypatch.setattr(kernels, "restored", lambda bits, like, kernel: tf.cast(bits, tf.uint8))
    monkeypatch.setitem(kernels.STORED, "plain", kept(tf.zeros((), tf.uint8)).dtype)
    found = registry.complaints(training_step(network("lenet", "event")))
    assert any(said in line for line in found), found


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("shape", [(256,), (3, 5, 7)])
def test_packed_spikes_come_out_of_a_record_as_they_went_in(shape: tuple[int, ...], compiled: bool) -> None:
    bits = tf.reshape(tf.cast(tf.range(math.prod(shape)) % 256, tf.uint8), shape)  # NaNs of float32 among them

    @tf.function(jit_compile=compiled)
    def through(bits: tf.Tensor) -> tf.Tensor:
        kept = tf.TensorArray(kernels.STORED["plain"], 1).write(0, kernels.stored(bits, "plain")).stack()
        return kernels.restored(kept[0], bits, "plain")

    np.testing.assert_array_equal(through(bits), bits)


@pytest.mark.parametrize(("timesteps", "total", "expected"), [
    (100, 10, 5), (64, 4_000_000, 8), (100, 60_000_000, 4), (100, 90_000_000, 2), (50, 10**10, 1), (7, 10, 7)])
def test_a_chunk_on_a_gpu_has_as_many_steps_as_its_memory_holds(timesteps: int, total: int, expected: int) -> None:
    assert kernels.choose_chunk(timesteps, total // 3, total) == expected


# --- Compiled as a whole --------------------------------------------------------------------------------------------


def one_step(model: Any, jit: str, images: np.ndarray, labels: np.ndarray) -> tuple[list[np.ndarray], dict[str, float]]:
    """What one step changes in the weights, and its numbers; the model is left as it was."""
    before = model.get_weights()
    settings = runs.tiny("unused", batch_size=len(images), jit=jit, clip_norm=0.5,
                         learning_rate=100.0)  # updates far above the rounding of the weights
    optimizer = make_optimizer(settings, model.trainable_variables)
    step = TrainStep(model, optimizer, tf.distribute.get_strategy(), settings)
    start = [variable.numpy() for variable in model.trainable_variables]
    numbers = step.numbers(step(tf.constant(images), tf.constant(labels)))
    changes = [variable.numpy() - old for variable, old in zip(model.trainable_variables, start)]
    model.set_weights(before)
    return changes, numbers


def assert_compiled_equals_plain(model: Any, tolerance: float) -> None:
    rng, batch = np.random.default_rng(0), 4
    images = (np.rint(rng.uniform(-1, 1, (batch, *model.input_shape[1:])) * 64) / 64).astype("f")
    labels = rng.integers(0, CLASSES, batch).astype("i")
    plain, wanted = one_step(model, "off", images, labels)
    compiled, got = one_step(model, "on", images, labels)
    alive = [value for name, value in wanted.items() if name.startswith("rate/")]
    assert min(alive) > 0.005, "a layer that does not fire shows nothing"
    assert got == pytest.approx(wanted, rel=10 * tolerance, abs=1e-6)
    assert nets.worst_distance(compiled, plain) < tolerance


@pytest.mark.parametrize("gradient", ["event", pytest.param("rate", marks=pytest.mark.slow)])
def test_a_compiled_step_of_lenet_equals_a_plain_one(gradient: str) -> None:
    model = models.create("lenet", (12, 12, 1), CLASSES, 4, gradient=gradient, hidden=0, kappa=6.0)
    nets.set_grid_weights(model, 6.0)  # sums of spikes are exact: the same spikes in whatever order they are summed
    model.configure_engine(chunk=2)
    assert_compiled_equals_plain(model, 1e-5)


@pytest.mark.parametrize("gradient", [pytest.param("event", marks=pytest.mark.slow), "rate"])
def test_a_compiled_step_of_a_normalised_residual_net_equals_a_plain_one(gradient: str) -> None:
    b = blocks.Builder(LayerSettings(gradient=gradient, norm="tdbn", surrogate="arctan", dropout=0.2))
    inputs = keras.Input((6, 6, 2))
    x = blocks.residual_block(DirectEncoder(2)(inputs), b, 4, (1, 2), "block")
    x = OverTime(keras.layers.Flatten())(x)
    assert_compiled_equals_plain(SpikingModel(inputs, Readout()(blocks.dense(x, b, CLASSES, "output"))), 1e-4)


# Normalised, a spike that rounding decides the other way becomes dozens in the next layer, and these have many layers.
DEEPEST = ("resnet18", "resnet56")


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["event", "rate"])
@pytest.mark.parametrize("name", DEEPEST)
def test_a_compiled_step_of_the_deepest_networks_equals_a_plain_one(name: str, gradient: str) -> None:
    model = models.create(name, (16, 16, 3), CLASSES, 4, gradient=gradient, encoder="direct", leak=0.5, dropout=0.0)
    nets.set_grid_weights(model, 6.0)  # with such a leak membranes are exact, too, so every spike is the same
    model.configure_engine(chunk=2)
    assert_compiled_equals_plain(model, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["event", "rate"])
@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in DEEPEST])
def test_a_compiled_step_of_every_network_equals_a_plain_one(name: str, gradient: str) -> None:
    assert_compiled_equals_plain(models.create(name, IMAGE, CLASSES, 4, gradient=gradient, hidden=64, norm="tdbn",
                                               surrogate="arctan", encoder="direct"), 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("neuron", ["lif", "relu"])
def test_a_compiled_run_validates_as_a_plain_one(neuron: str, tmp_path: Path) -> None:
    found = []
    for jit in ("off", "on"):
        of_neuron = {"neuron": "relu", "export": ()} if neuron == "relu" else {"encoder": "direct", "timesteps": 4}
        settings = {"model": "lenet", "hidden": 0, "batch_size": 8, "steps_per_epoch": 2, "epochs": 1,
                    "val_fraction": 0.01, "tensorboard": False, "export": (), "jit": jit, **of_neuron}
        trainer = Trainer(config.resolve({**settings, "workdir": str(tmp_path)}), tf.distribute.get_strategy(),
                          distribution.Worker(), lambda line: None)
        assert trainer.evaluator is not None
        images, labels = next(iter(trainer.stream.dataset()))
        trainer.train_step(images, labels)
        found.append(trainer.evaluator.run())
    np.testing.assert_allclose(found[0].outputs, found[1].outputs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("jit", "replicas", "deterministic", "gpu", "compiled"), [
    ("auto", 1, False, True, True), ("auto", 1, False, False, False), ("auto", 2, False, True, False),
    ("auto", 1, True, True, False), ("on", 1, True, False, True), ("off", 1, False, True, False)])
def test_steps_are_compiled_where_one_gpu_trains(jit: str, replicas: int, deterministic: bool, gpu: bool, compiled: bool,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "has_gpu", lambda: gpu)
    assert distribution.compiles(jit, replicas, deterministic) is compiled


def test_a_compiled_step_of_several_devices_is_refused() -> None:
    with pytest.raises(UserError, match="--jit=auto"):
        distribution.compiles("on", 2)
