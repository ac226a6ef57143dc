"""Normalisations become part of the weights in front of them; outputs of whole networks are compared in
test_normalisation.py, those through every path in test_paths.py."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

import nets
import runs
from tfspike import LIF, OverTime, Readout, SpikeInput, SpikingModel, ThresholdNorm, datasets
from tfspike.engine.folding import fold
from tfspike.errors import UserError
from tfspike.runs import load_run

T = 3


def network(*between: keras.layers.Layer, use_bias: bool = False) -> SpikingModel:
    """A convolution, `between`, LIF neurons, a dense layer."""
    x = keras.Input((T, 4, 4, 1))
    y = OverTime(keras.layers.Conv2D(2, 3, use_bias=use_bias), name="synapse")(SpikeInput(T)(x))
    for layer in between:
        y = layer(y)
    y = OverTime(keras.layers.Flatten())(LIF(name="lif")(y))
    return SpikingModel(x, Readout()(OverTime(keras.layers.Dense(2, use_bias=False))(y)))


def with_statistics(norm: ThresholdNorm) -> ThresholdNorm:
    norm.build((T, None, 2, 2, 2))
    for variable, value in zip(norm.variables, ([1.5, 0.5], [0.25, -0.5], [0.5, 2.0], [4.0, 0.25]), strict=True):
        variable.assign(value)
    return norm


@pytest.mark.parametrize("use_bias", [False, True])
def test_the_factor_scales_the_weights_and_the_offset_becomes_the_bias(use_bias: bool) -> None:
    norm = with_statistics(ThresholdNorm(threshold=0.8, epsilon=1e-3))
    model = network(norm, use_bias=use_bias)
    if use_bias:
        model.get_layer("synapse").layer.bias.assign([1.0, -2.0])
    folded = fold(model)
    gamma, beta, mean, variance = (v.numpy().astype("d") for v in norm.variables)
    factor = 0.8 * gamma / np.sqrt(variance + 1e-3)
    before, (kernel, bias) = model.get_layer("synapse").get_weights(), folded.get_layer("synapse").get_weights()
    np.testing.assert_allclose(kernel, before[0] * factor, rtol=1e-6)
    np.testing.assert_allclose(bias, beta - mean * factor + (before[1] * factor if use_bias else 0), rtol=1e-5)
    assert [layer.name for layer in folded.layers[1:]] == [v.name for v in model.layers[1:] if v is not norm]
    spikes = nets.spike_inputs(T, 2, (4, 4, 1))
    np.testing.assert_allclose(folded(spikes), model(spikes), atol=1e-6)


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("kind, image, options", [
    ("DepthwiseConv2D", (6, 6, 2), {"depth_multiplier": 3}), ("SeparableConv2D", (6, 6, 2), {"filters": 6, "depth_multiplier": 2}),
    ("Conv2DTranspose", (6, 6, 2), {"filters": 6, "strides": 2}), ("Conv2D", (6, 6, 2), {"filters": 6, "groups": 2}),
    ("Conv1D", (9, 2), {"filters": 6}), ("SeparableConv1D", (9, 2), {"filters": 6}), ("Conv1DTranspose", (9, 2), {"filters": 6}),
    ("Conv3D", (4, 4, 4, 2), {"filters": 6}), ("DepthwiseConv1D", (9, 2), {}), ("Conv3DTranspose", (3, 3, 3, 2), {"filters": 6})])
def test_every_kind_of_convolution_takes_the_normalisation(kind: str, image: tuple[int, ...], options: dict[str, int],
                                                           use_bias: bool) -> None:
    rng = np.random.default_rng(3)
    layer = getattr(keras.layers, kind)(kernel_size=3, use_bias=use_bias, **options)
    x, norm = keras.Input((T, *image)), ThresholdNorm(name="norm")
    y = LIF(name="lif")(norm(OverTime(layer, name="synapse")(SpikeInput(T)(x))))
    model = SpikingModel(x, Readout()(OverTime(keras.layers.Dense(2))(OverTime(keras.layers.Flatten())(y))))
    for variable in (*norm.variables, *layer.variables[-1:] * use_bias):
        variable.assign(rng.uniform(0.5, 2.0, variable.shape))
    folded = fold(model)
    assert not any(isinstance(layer, ThresholdNorm) for layer in folded.layers)
    spikes = nets.spike_inputs(2, T, image)  # as time comes first within the window
    np.testing.assert_allclose(folded.get_layer("synapse")(spikes), norm(model.get_layer("synapse")(spikes)), atol=1e-5)


def test_channels_in_front_of_the_pixels_are_not_folded() -> None:
    x = keras.Input((T, 2, 2, 2))  # as many columns as channels: factors of the one would fit the other
    y = ThresholdNorm(name="n")(OverTime(keras.layers.Conv2D(2, 1, data_format="channels_first"))(SpikeInput(T)(x)))
    y = OverTime(keras.layers.Flatten())(LIF()(y))
    with pytest.raises(UserError, match="'n' cannot be folded: .* its channels last"):
        fold(SpikingModel(x, Readout()(OverTime(keras.layers.Dense(2))(y))))


def test_a_network_without_normalisation_is_itself() -> None:
    model = network()
    assert fold(model) is model


def test_how_the_engine_was_configured_is_kept() -> None:
    model = network(ThresholdNorm())
    model.configure_engine(chunk=2, kernel="plain")
    assert (fold(model).engine.kernel, fold(model)._chunk) == ("plain", 2)


@pytest.mark.parametrize("between", [
    lambda: [OverTime(keras.layers.ReLU()), ThresholdNorm(name="n")], lambda: [LIF(name="first"), ThresholdNorm(name="n")],
    lambda: [ThresholdNorm(), ThresholdNorm(name="n")]])
def test_a_normalisation_behind_anything_else_is_named(between) -> None:
    with pytest.raises(UserError, match="'n' cannot be folded: it must follow an OverTime"):
        fold(network(*between()))


def test_a_run_that_is_to_be_trained_further_is_loaded_as_it_was(tmp_path: Path) -> None:
    info = datasets.describe(datasets.load("mnist_subset", "train").first(20))
    folder = runs.untrained(tmp_path / "run", info, norm="tdbn", encoder="direct", timesteps=2)
    folded, model = (load_run(folder, say=lambda line: None, **options)[0] for options in ({}, {"fold": False}))
    assert model.plan.norms and not folded.plan.norms
    images = np.random.default_rng(0).uniform(0, 1, (2, 28, 28, 1)).astype("float32")
    np.testing.assert_allclose(model(images), folded(images), atol=1e-5)
