"""The blocks that networks are stacked from: which layers, in which order, with which names, shapes and seeds."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from tfspike.models import blocks
from tfspike.models.settings import LayerSettings
from tfspike.neurons.layers import LIF, PoolingIF
from tfspike.neurons.normalisation import ThresholdNorm
from tfspike.neurons.over_time import WindowDropout

T = 4


def builder(**settings) -> blocks.Builder:
    return blocks.Builder(LayerSettings(**{"leak": 0.9, "gradient": "rate", "seed": 3, **settings}))


def spikes(*shape: int) -> keras.KerasTensor:
    return keras.KerasTensor((T, None, *shape))


def layers_of(x: keras.KerasTensor, y: keras.KerasTensor) -> list[keras.layers.Layer]:
    return [layer for layer in keras.Model(x, y).layers if not isinstance(layer, keras.layers.InputLayer)]


def built(block, shape: tuple[int, ...], b: blocks.Builder, *args) -> tuple[keras.KerasTensor, list[keras.layers.Layer]]:
    x = keras.Input(batch_shape=(T, None, *shape))
    y = block(x, b, *args)
    return y, layers_of(x, y)


@pytest.mark.parametrize(("kernel", "stride", "size"), [(3, 1, 7), (5, 1, 7), (1, 1, 7), (3, 2, 4), (1, 2, 4)])
def test_a_convolution_pads_both_sides_at_any_stride(kernel: int, stride: int, size: int) -> None:
    y, layers = built(blocks.conv, (7, 7, 2), builder(), 5, kernel, stride, "c")
    assert y.shape == (T, None, size, size, 5)
    assert [layer.name for layer in layers] == ["c_pad", "c"][kernel == 1 or stride == 1:]
    assert layers[-1].layer.use_bias is False


def test_weights_start_with_the_variance_kappa_over_fan_in() -> None:
    b = builder(kappa=3.0)
    x = keras.Input(batch_shape=(T, None, 200))
    kernel = keras.Model(x, blocks.dense(x, b, 300, "d")).trainable_variables[0].numpy()
    assert kernel.std() == pytest.approx((3.0 / 200)**0.5, rel=0.02) and abs(kernel.mean()) < 0.002


def test_no_two_layers_share_a_seed() -> None:
    seeds = [b.next_seed() for b in (builder(seed=3), builder(seed=4)) for b in [b] * 100]
    assert len(set(seeds)) == 200


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("norm", [None, "tdbn"])
def test_a_spiking_convolution_is_normalised_and_masked_where_the_network_is(norm: str | None, dropout: float) -> None:
    _, layers = built(blocks.conv_lif, (6, 6, 1), builder(norm=norm, dropout=dropout), 3, 3, "c")
    wanted = ["OverTime", *["ThresholdNorm"] * (norm is not None), "LIF", *["WindowDropout"] * (dropout > 0)]
    assert [type(layer).__name__ for layer in layers] == wanted
    lif = next(layer for layer in layers if isinstance(layer, LIF))
    assert (lif.name, lif.leak, lif.threshold, lif.gradient) == ("c_lif", 0.9, 1.0, "rate")
    assert all(layer.rate == 0.2 for layer in layers if isinstance(layer, WindowDropout))


def test_pooling_neurons_are_left_out_where_averages_are_wanted() -> None:
    for pooling, names in (("neuron", ["p_average", "p"]), ("average", ["p"])):
        y, layers = built(blocks.pool, (5, 7, 2), builder(pooling=pooling), "p")
        assert y.shape == (T, None, 2, 3, 2) and [layer.name for layer in layers] == names
        assert isinstance(layers[-1], PoolingIF) == (pooling == "neuron")


@pytest.mark.parametrize(("filters", "strides", "shortcut"), [
    (2, (1, 1), None), (2, (1, 2), "AveragePooling2D"), (4, (2, 1), "Conv2D"), (4, (1, 1), "Conv2D")])
def test_a_residual_block_adds_its_shortcut_to_the_current_of_the_second_neurons(
        filters: int, strides: tuple[int, int], shortcut: str | None) -> None:
    y, layers = built(blocks.residual_block, (6, 6, 2), builder(norm="tdbn"), filters, strides, "b")
    size = 6 // (strides[0] * strides[1])
    assert y.shape == (T, None, size, size, filters)
    by_name = {layer.name: layer for layer in layers}
    assert [name for name in by_name if isinstance(by_name[name], LIF)] == ["b_a_lif", "b_b_lif"]
    assert isinstance(by_name["b_current"], keras.layers.Add)
    assert shortcut == (type(by_name["b_shortcut"].layer).__name__ if "b_shortcut" in by_name else None)
    alphas = {name: layer.alpha for name, layer in by_name.items() if isinstance(layer, ThresholdNorm)}
    halves = {name for name, alpha in alphas.items() if alpha == pytest.approx(2**-0.5)}
    assert halves == {"b_conv_b_norm", "b_shortcut_norm"} & set(alphas), "two paths add up in front of the neurons"
    assert alphas["b_conv_a_norm"] == 1.0


def test_an_identity_shortcut_takes_the_pixels_that_strided_windows_are_centred_on() -> None:
    x = keras.Input(batch_shape=(1, None, 4, 4, 1))
    y = blocks.residual_block(x, builder(), 1, (2, 1), "b")
    model = keras.Model(x, y)
    image = np.arange(16, dtype="f").reshape(1, 1, 4, 4, 1)
    np.testing.assert_array_equal(model.get_layer("b_shortcut")(image), image[:, :, ::2, ::2])
