"""A network of 16 bits becomes the same network in float32."""

from __future__ import annotations

import numpy as np

import nets
from tfspike.engine.precision import in_float32


def test_a_float32_network_is_itself() -> None:
    model = nets.from_blocks(nets.SPECS["five"], 3)
    assert in_float32(model) is model


def test_a_mixed_network_is_copied_with_its_weights_and_every_layer_in_float32() -> None:
    mixed = nets.from_blocks(nets.SPECS["five"], 3, "rate", dtype="mixed_bfloat16")
    nets.set_grid_weights(mixed, 8.0, grid=128)
    copy = in_float32(mixed)
    assert {layer.dtype_policy.name for layer in copy.layers} == {"float32"}
    assert {call.layer.layer.compute_dtype for call in copy.plan.window if hasattr(call.layer, "layer")} == {"float32"}
    assert [layer.name for layer in copy.layers] == [layer.name for layer in mixed.layers]
    for ours, theirs in zip(copy.variables, mixed.variables, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    spikes = nets.spike_inputs(3, 2, nets.SPECS["five"].image)
    wanted = nets.from_blocks(nets.SPECS["five"], 3, "rate")
    wanted.set_weights(mixed.get_weights())
    np.testing.assert_array_equal(copy(spikes), wanted(spikes))
    assert "mixed_bfloat16" in {layer.dtype_policy.name for layer in mixed.layers}, "the model itself is left alone"
