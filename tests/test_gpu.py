"""Ready for GPUs, as far as a machine without one can tell: every operation has a kernel there."""

from __future__ import annotations

import itertools
import math
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import registry
import runs
from tfspike import SpikingModel, distribution, models
from tfspike.engine import kernels
from tfspike.training.optimisation import make_optimizer
from tfspike.training.step import TrainStep
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
    """The graph of a whole step: encode, forward, loss, backward, statistics, update."""
    config = runs.tiny("unused", batch_size=B, optimizer=optimizer, clip_norm=1.0, weight_decay=0.01)
    maker = make_optimizer(config)
    maker.build(model.trainable_variables)
    step = TrainStep(model, maker, tf.distribute.get_strategy(), config)
    return step._step.get_concrete_function(tf.TensorSpec((B, *model.input_shape[1:])), tf.TensorSpec((B,), tf.int32),
                                            tf.TensorSpec(()))


def inference(model: Any) -> Any:
    """The graph of what an evaluation computes."""
    return tf.function(lambda images, seed: model.observe(images, training=False, seed=seed)).get_concrete_function(
        tf.TensorSpec((B, *model.input_shape[1:])), tf.TensorSpec((), tf.int32))


def assert_runs_on_a_gpu(model: Any, optimizer: str = "sgd") -> None:
    assert not registry.complaints(training_step(model, optimizer))
    assert not registry.complaints(inference(model))


@pytest.mark.parametrize(("name", "gradient", "settings", "optimizer", "policy"), [
    ("lenet", "event", PLAIN, "sgd", "float32"), ("lenet", "rate", PLAIN, "adam", "mixed_bfloat16"),
    ("resnet7", "event", DEEP, "adamw", "mixed_float16"), ("resnet7", "rate", DEEP, "sgd", "float32")])
def test_every_operation_has_a_kernel_on_gpus(name: str, gradient: str, settings: dict[str, Any], optimizer: str,
                                              policy: str) -> None:
    keras.config.set_dtype_policy(policy)
    assert_runs_on_a_gpu(network(name, gradient, **settings), optimizer)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_every_operation_of_every_network_has_a_kernel_on_gpus(name: str) -> None:
    for gradient, norm, surrogate, policy in itertools.product(("event", "rate"), (None, "tdbn"),
                                                               ("leak_aware", "arctan"), POLICIES):
        keras.config.set_dtype_policy(policy)
        assert_runs_on_a_gpu(network(name, gradient, norm, surrogate))


@pytest.mark.parametrize("encoder", ["direct", "latency", None])
def test_encoders_have_kernels_on_gpus(encoder: str | None) -> None:
    assert_runs_on_a_gpu(network("lenet", "rate", encoder=encoder))


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
