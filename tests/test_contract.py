"""Serialisation of everything that `tfspike` exports, from a list that fails when an export is missing."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import nets
import tfspike
from tfspike.models.ann import Dropout
from tfspike.neurons.bipolar import BipolarIF
from tfspike.neurons.gate import MaxPoolGate
from tfspike.neurons.quantised import QuantisedReLU

T, B = 5, 3

# Every layer and cell that a .keras file may hold, with arguments that between them differ from all defaults.
LAYERS: dict[str, Callable[[], Any]] = {
    "LIF": lambda: tfspike.LIF(0.8, 0.6, "rate", "arctan", 1.5, "time", "subtract", learn=("leak", "threshold")),
    "LIF that begins elsewhere": lambda: tfspike.LIF(start=0.3, running_start=True),
    "LIF whose thresholds adapt": lambda: tfspike.LIF(homeostasis=0.1, by_channel=True),
    "LIF of eprop": lambda: tfspike.LIF(gradient="eprop", surrogate="arctan", reset="subtract", feedback="random"),
    "PoolingIF": lambda: tfspike.PoolingIF(0.5, "rate", "sigmoid", 1.5, "time"),
    "PoolingIF of eprop": lambda: tfspike.PoolingIF(gradient="eprop", surrogate="arctan", feedback="random"),
    "ThresholdNorm": lambda: tfspike.ThresholdNorm(0.6, 0.7, "rate", 0.8, 1e-4),
    "Readout": lambda: tfspike.Readout(0.8),
    "Readout that grows": lambda: tfspike.Readout(1.0, 1.2),
    "LeakAware": lambda: tfspike.LeakAware(0.8, 0.6, time_axis=0),
    "OverTime": lambda: tfspike.OverTime(keras.layers.Dense(4, use_bias=False, activation="tanh")),
    "WindowDropout": lambda: tfspike.WindowDropout(0.3, seed=4),
    "PoissonEncoder": lambda: tfspike.PoissonEncoder(T, seed=4, straight_through=True),
    "DirectEncoder": lambda: tfspike.DirectEncoder(T, seed=4),
    "LatencyEncoder": lambda: tfspike.LatencyEncoder(T, seed=4, largest=0.7),
    "SpikeInput": lambda: tfspike.SpikeInput(T, seed=4),
    "LIFCell": lambda: tfspike.LIFCell(6, 0.8, 0.6),
    "PoolingIFCell": lambda: tfspike.PoolingIFCell(6, 0.5),
    "LeakyIntegratorCell": lambda: tfspike.LeakyIntegratorCell(6, 0.8),
    # of converted networks and ANNs, which are made by functions
    "BipolarIF": lambda: BipolarIF(0.6, 0.3, "event", surrogate="arctan", surrogate_width=1.5),
    "BipolarIF under credit in time": lambda: BipolarIF(surrogate="arctan", credit="time"),
    "BipolarIF under eprop": lambda: BipolarIF(gradient="eprop", surrogate="arctan", feedback="random"),
    "MaxPoolGate": lambda: MaxPoolGate((3, 2), (1, 2), "same"),
    "QuantisedReLU": lambda: QuantisedReLU(4, 3.0),
    "Dropout": lambda: Dropout(0.3, seed=4),
}
INSIDE = {"BipolarIF", "MaxPoolGate", "QuantisedReLU", "Dropout"}  # not exported
# Exports that are tested by name below, and those that are no layers.
MODELS = {"SpikingModel"}
OTHERS = {"Diagnosis", "FiringRates", "UserError"}


def exported() -> list[str]:
    """The layers and cells of the list that `tfspike` hands on, each once."""
    return [name for name in LAYERS if " " not in name and name not in INSIDE]


def test_the_list_is_complete() -> None:
    modules = {name for name in tfspike.__all__ if isinstance(getattr(tfspike, name), ModuleType)}
    assert set(tfspike.__all__) - modules == {*exported(), *MODELS, *OTHERS}
    assert modules == {"datasets", "gradients", "layers", "models"}
    layers = {name for name in tfspike.__all__ if isinstance(getattr(tfspike, name), type)
              and issubclass(getattr(tfspike, name), keras.Layer)}
    assert layers == {*exported(), *MODELS}


def test_every_public_layer_of_the_library_is_exported() -> None:
    """A layer that is defined but not exported would escape the list above."""
    from tfspike.neurons import cells, encoders, layers, normalisation

    bases = {"TimeMajor", "WholeWindow", "SpikingLayer", "OpenNeurons", "Encoder", "NoisyLayer"}
    defined = {name for module in (cells, encoders, layers, normalisation) for name, value in vars(module).items()
               if isinstance(value, type) and issubclass(value, keras.Layer) and not name.startswith("_")
               and value.__module__.startswith("tfspike")}
    assert defined - bases == set(exported())


def test_the_list_has_every_class_that_a_file_may_name_and_every_argument() -> None:
    """An argument that a layer keeps to itself would be its default again in a file."""
    registered = {kind for name, kind in keras.saving.get_custom_objects().items() if name.startswith("tfspike>")}
    made: dict[type, list[dict[str, Any]]] = {}
    for make in LAYERS.values():
        layer = make()
        made.setdefault(type(layer), []).append(layer.get_config())
    assert set(made) == {kind for kind in registered if not issubclass(kind, keras.Model)}
    for kind, configs in made.items():
        own = [part for part in kind.__mro__ if part.__module__.startswith("tfspike") and "__init__" in vars(part)]
        arguments = {argument.name: argument.default for part in reversed(own)
                     for argument in inspect.signature(part).parameters.values() if argument.kind != argument.VAR_KEYWORD}
        assert arguments.keys() <= configs[0].keys(), kind
        same = [name for name, default in arguments.items() if all(config[name] == default for config in configs)]
        assert not same, (kind, same)


@pytest.mark.parametrize("name", tfspike.__all__)
def test_exports_exist_and_are_documented(name: str) -> None:
    assert getattr(tfspike, name).__doc__ and name in dir(tfspike)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Spike'"):
        tfspike.Spike  # noqa: B018


@pytest.mark.parametrize("dtype", [None, "mixed_bfloat16"])
@pytest.mark.parametrize("name", LAYERS)
def test_configs_make_the_round_trip(name: str, dtype: str | None) -> None:
    if dtype:
        keras.config.set_dtype_policy(dtype)
    layer = LAYERS[name]()
    config = layer.get_config()
    keras.config.set_dtype_policy("float32")
    again = type(layer).from_config(config)
    assert again.get_config() == config
    # Cells hold nothing but a membrane, which is float32 whatever the policy.
    wanted = "float32" if name.endswith("Cell") else dtype or "float32"
    assert again.dtype_policy.name == layer.dtype_policy.name == wanted
    other = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(other) is type(layer) and other.get_config() == config
    arguments = {key: value for key, value in config.items() if key not in ("name", "trainable", "dtype")}
    assert arguments
    for key, value in arguments.items():
        if key != "layer":
            assert getattr(again, key) == value == getattr(layer, key)


def test_units_that_are_a_shape_survive_the_config() -> None:
    for cell in (tfspike.LIFCell((2, 3), 0.8), tfspike.PoolingIFCell((2, 3)), tfspike.LeakyIntegratorCell((2, 3))):
        again = keras.saving.deserialize_keras_object(json.loads(json.dumps(keras.saving.serialize_keras_object(cell))))
        assert again.units == (2, 3) and again.get_initial_state(4)[0].shape == (4, 2, 3)


@pytest.mark.parametrize("name", exported())
def test_layers_in_a_saved_model_give_the_same_outputs_and_the_same_next_training_call(name: str, tmp_path: Path) -> None:
    layer = LAYERS[name]()
    is_cell, is_encoder = name.endswith("Cell"), hasattr(layer, "timesteps")
    shape = (T, 6) if is_cell or name == "SpikeInput" else (6,)
    inputs = keras.Input(batch_shape=(B, *shape) if is_cell or is_encoder else (T, B, *shape))
    outputs = (keras.layers.RNN(layer, return_sequences=True) if is_cell else layer)(inputs)
    model = keras.Model(inputs, outputs)
    x = np.random.default_rng(0).normal(0.5, 0.6, inputs.shape).astype("f")
    model(x, training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for training in (False, True, True):
        wanted = model(x, training=training).numpy()
        assert np.abs(wanted).sum() > 0
        np.testing.assert_array_equal(loaded(x, training=training), wanted)
    for a, b in zip(model.weights, loaded.weights):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("name", "encoder", "gradient"), [
    ("five", "poisson", "event"), *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ("five", "poisson", "rate"), ("plain", None, "event"), ("plain", None, "rate")))])
def test_a_saved_model_goes_on_as_the_one_that_was_saved(name: str, encoder: str | None, gradient: str,
                                                         tmp_path: Path) -> None:
    model = nets.from_blocks(nets.SPECS[name], T, gradient, dropout=0.2, encoder=encoder)
    nets.set_grid_weights(model, 12.0)
    image = nets.SPECS[name].image
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (4, *image)).astype("f") if encoder else nets.spike_inputs(T, 4, image)
    y = np.eye(nets.CLASSES, dtype="f")[[0, 1, 2, 0]]
    # sgd with momentum has a state of its own
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse", jit_compile=False)
    model.train_on_batch(x, y)
    assert all(count.numpy().sum() > 0 for count in model.observe(x)[1].values())
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is tfspike.SpikingModel and loaded.engine is not None
    np.testing.assert_array_equal(loaded(x), model(x))
    start = [variable.numpy() for variable in model.trainable_variables]
    assert loaded.train_on_batch(x, y) == model.train_on_batch(x, y)
    for before, a, b in zip(start, model.trainable_variables, loaded.trainable_variables):
        assert np.abs(a.numpy() - before).max() > 0
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    for a, b in zip(model.non_trainable_variables, loaded.non_trainable_variables):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_a_created_network_is_saved_with_its_weights_and_counters(tmp_path: Path) -> None:
    model = tfspike.models.create("lenet", (8, 8, 1), 3, T, dropout=0.2, hidden=8, threshold=0.2, dtype="mixed_bfloat16")
    x = np.random.default_rng(0).uniform(-1, 1, (B, 8, 8, 1)).astype("f")
    for _ in range(3):
        model(x, training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]
    assert loaded.to_json() == model.to_json()
    steps = [int(layer.step.value) for layer in loaded.layers if isinstance(layer, tfspike.WindowDropout)]
    assert steps == [3, 3, 3]
    np.testing.assert_array_equal(loaded(x, training=True), model(x, training=True))
    model.save_weights(tmp_path / "model.weights.h5")
    other = tfspike.models.create("lenet", (8, 8, 1), 3, T, dropout=0.2, hidden=8, threshold=0.2, seed=9,
                                  dtype="mixed_bfloat16")
    other.load_weights(tmp_path / "model.weights.h5")
    for a, b in zip(other.weights, model.weights):
        np.testing.assert_array_equal(tf.convert_to_tensor(a), tf.convert_to_tensor(b))


def test_a_cloned_model_computes_the_same() -> None:
    model = nets.from_blocks(nets.SPECS["plain"], T, dropout=0.2)
    nets.set_grid_weights(model, 12.0)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    x = nets.spike_inputs(T, B, nets.SPECS["plain"].image)
    np.testing.assert_array_equal(clone(x), model(x))


def test_every_package_is_an_attribute() -> None:
    folders = {init.parent.name for init in Path(tfspike.__file__).parent.glob("*/__init__.py")}
    assert "stdp" in folders and folders <= set(dir(tfspike))
    assert all(getattr(tfspike, name).__name__ == f"tfspike.{name}" for name in folders)
