"""Ready for GPUs, as far as a machine without one can tell: every operation has a kernel there."""

from __future__ import annotations

import itertools
from typing import Any

import keras
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


@pytest.mark.parametrize(("dtype", "said"), [(tf.uint8, "no kernel"), (tf.int32, "on the host")])
def test_words_of_other_types_are_found_out(dtype: tf.DType, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kernels.WORDS, "plain", kernels.Words(dtype, 8))
    found = registry.complaints(training_step(network("lenet", "event")))
    assert any(said in line for line in found), found
