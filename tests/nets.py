"""Small nets that exist twice, as a Keras model and as the oracle's, and what is needed to compare the two.

Weights lie on a grid of 1/512 and dropout scales by 1.25, so that currents are exact in float32 in whatever order they
are summed: two paths through the library decide about every spike alike. The oracle is given the model's spikes, and
its report about flips bounds how far they are from those that float64 would have decided on.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import oracle
from tfspike import SpikingModel
from tfspike.engine import kernels
from tfspike.engine import plan as plans
from tfspike.models import blocks
from tfspike.models.settings import LayerSettings
from tfspike.neurons import encoders, noise
from tfspike.neurons.layers import LIF, PoolingIF, Readout, SpikingLayer
from tfspike.neurons.over_time import OverTime, WindowDropout

CLASSES = 3


@dataclasses.dataclass(frozen=True)
class Spec:
    """One net: stages of the oracle, and the channels of those that have any (None for a pooling)."""

    stages: tuple[Any, ...]
    channels: tuple[int | None, ...]
    image: tuple[int, int, int] = (9, 7, 2)
    kappa: float = 8.0
    kernel: int = 3


SPECS = {
    # 9x7 -> 9x7 -> 4x3 (odd rows and columns dropped) -> 2x2 (stride 2) -> hidden
    "plain": Spec((oracle.Conv(), oracle.Pool(), oracle.Conv(stride=2), oracle.Hidden()), (4, None, 5, 8)),
    # both kinds of shortcut, at stride 1 and 2, with the stride in either convolution; a pooling over an odd map
    "residual": Spec((oracle.Conv(), oracle.Block(), oracle.Block(stride_b=2, shortcut="identity"),
                      oracle.Block(shortcut="identity"), oracle.Block(stride_a=2), oracle.Pool()),
                     (3, 4, 4, 4, 5, None), image=(9, 10, 2)),
    # currents past the neurons: as they are, subsampled, and by a convolution of spikes
    "currents": Spec((oracle.Stem(), oracle.CurrentBlock(), oracle.CurrentBlock(stride_b=2),
                      oracle.CurrentBlock(stride_a=2, shortcut="conv"), oracle.Fire(), oracle.Pool()),
                     (3, 3, 3, 5, None, None), image=(9, 10, 2)),
    "five": Spec((oracle.Conv(), oracle.Pool(), oracle.Hidden()), (3, None, 6), image=(6, 6, 1), kernel=5),
}


def oracle_net(spec: Spec, leak: float, threshold: float = 1.0) -> oracle.Net:
    # The library's leak is a float32 number; the oracle takes that number.
    return oracle.Net(spec.stages, leak=float(np.float32(leak)), threshold=threshold)


def from_blocks(spec: Spec, T: int, gradient: str = "event", leak: float = 0.9, threshold: float = 1.0,
                dropout: float = 0.0, encoder: str | None = None, dtype: Any = None, seed: int = 5) -> SpikingModel:
    """The net of `spec`, stacked with `tfspike.models.blocks`."""
    b = blocks.Builder(LayerSettings(leak=leak, threshold=threshold, gradient=gradient, dropout=dropout,
                                     kappa=spec.kappa, seed=seed, dtype=dtype))
    inputs = keras.Input(spec.image if encoder else (T, *spec.image))
    x = encoders.create(encoder, T, seed=b.next_seed(), dtype=dtype, name="encoder")(inputs)
    for i, (stage, channels) in enumerate(zip(spec.stages, spec.channels)):
        if isinstance(stage, oracle.Conv):
            x = blocks.lif(blocks.conv(x, b, channels, spec.kernel, stage.stride, f"conv{i}"), b, f"conv{i}")
        elif isinstance(stage, oracle.Pool):
            x = blocks.pool(x, b, f"pool{i}")
        elif isinstance(stage, oracle.Block):
            assert (x.shape[-1] == channels) == (stage.shortcut == "identity")
            x = blocks.residual_block(x, b, channels, (stage.stride_a, stage.stride_b), f"block{i}")
        elif isinstance(stage, oracle.Stem):
            x = blocks.conv(x, b, channels, spec.kernel, stage.stride, f"stem{i}")
        elif isinstance(stage, oracle.CurrentBlock):
            assert (x.shape[-1] == channels) == (stage.shortcut == "identity")
            x = blocks.current_block(x, b, channels, (stage.stride_a, stage.stride_b), f"block{i}")
        elif isinstance(stage, oracle.Fire):
            x = blocks.lif(x, b, f"fire{i}")
        else:
            x = OverTime(keras.layers.Flatten(dtype=dtype))(x)
            x = blocks.lif(blocks.dense(x, b, channels, f"hidden{i}"), b, f"hidden{i}")
    x = OverTime(keras.layers.Flatten(dtype=dtype))(x)
    x = blocks.dense(x, b, CLASSES, "output")
    return SpikingModel(inputs, Readout(leak, dtype=dtype)(x))


def by_hand(spec: Spec, T: int, gradient: str = "event", leak: float = 0.9, threshold: float = 1.0,
            dropout: float = 0.0, encoder: str | None = None, dtype: Any = None, seed: int = 5) -> SpikingModel:
    """The same net from layers alone; padding, shortcuts and dropout written out."""
    kwargs = {"dtype": dtype}

    def conv(x: Any, channels: int, kernel: int, stride: int) -> Any:
        x = OverTime(keras.layers.ZeroPadding2D((kernel - 1) // 2, **kwargs))(x) if kernel > 1 else x
        return OverTime(keras.layers.Conv2D(channels, kernel, stride, use_bias=False, **kwargs))(x)

    def neurons(x: Any) -> Any:
        nonlocal seed
        seed += 1
        x = LIF(leak, threshold, gradient, **kwargs)(x)
        return WindowDropout(dropout, seed=seed, name=f"dropout{seed}", **kwargs)(x) if dropout else x

    inputs = keras.Input(spec.image if encoder else (T, *spec.image))
    x = encoders.create(encoder, T, seed=seed, **kwargs)(inputs)
    for stage, channels in zip(spec.stages, spec.channels):
        if isinstance(stage, oracle.Conv):
            x = neurons(conv(x, channels, spec.kernel, stage.stride))
        elif isinstance(stage, oracle.Pool):
            x = PoolingIF(gradient=gradient, **kwargs)(OverTime(keras.layers.AveragePooling2D(2, **kwargs))(x))
        elif isinstance(stage, oracle.Block):
            stride = stage.stride_a * stage.stride_b
            main = conv(neurons(conv(x, channels, 3, stage.stride_a)), channels, 3, stage.stride_b)
            if stage.shortcut == "conv":
                x = conv(x, channels, 1, stride)
            elif stride > 1:
                x = OverTime(keras.layers.MaxPooling2D(1, stride, **kwargs))(x)
            x = neurons(keras.layers.add([main, x], **kwargs))
        elif isinstance(stage, oracle.Stem):
            x = conv(x, channels, spec.kernel, stage.stride)
        elif isinstance(stage, oracle.CurrentBlock):
            spikes, stride = neurons(x), stage.stride_a * stage.stride_b
            main = conv(neurons(conv(spikes, channels, 3, stage.stride_a)), channels, 3, stage.stride_b)
            if stage.shortcut == "conv":
                x = conv(spikes, channels, 1, stride)
            elif stride > 1:
                x = OverTime(keras.layers.MaxPooling2D(1, stride, **kwargs))(x)
            x = keras.layers.add([main, x], **kwargs)
        elif isinstance(stage, oracle.Fire):
            x = neurons(x)
        else:
            x = OverTime(keras.layers.Flatten(**kwargs))(x)
            x = neurons(OverTime(keras.layers.Dense(channels, use_bias=False, **kwargs))(x))
    x = OverTime(keras.layers.Flatten(**kwargs))(x)
    x = OverTime(keras.layers.Dense(CLASSES, use_bias=False, **kwargs))(x)
    return SpikingModel(inputs, Readout(leak, **kwargs)(x))


def set_grid_weights(model: keras.Model, kappa: float, seed: int = 0, grid: int = 512) -> list[np.ndarray]:
    """Normal weights of standard deviation sqrt(kappa / fan_in), rounded to 1/grid; returned in forward order."""
    rng = np.random.default_rng(seed)
    weights = []
    for variable in model.trainable_variables:
        std = np.sqrt(kappa / np.prod(variable.shape[:-1]))
        value = np.rint(rng.normal(0.0, std, variable.shape) * grid) / grid
        if grid < 512:  # bfloat16 has 8 significant bits
            value = np.asarray(tf.cast(tf.cast(value, tf.bfloat16), tf.float64))
        variable.assign(value)
        weights.append(value)
    return weights


def spike_inputs(T: int, B: int, image: Sequence[int], seed: int = 1, density: float = 0.4) -> np.ndarray:
    """Signed spikes `[B, T, H, W, C]`."""
    rng = np.random.default_rng(seed)
    return (rng.choice([-1.0, 1.0], (B, T, *image), p=[0.3, 0.7]) * (rng.random((B, T, *image)) < density)).astype("f")


def upstream(B: int, seed: int = 2) -> np.ndarray:
    """dL/do, `[B, classes]`."""
    return np.random.default_rng(seed).normal(size=(B, CLASSES)).astype("f")


def set_step(model: keras.Model, step: int) -> None:
    """Winds every counter of random draws to `step`."""
    for layer in model.layers:
        if hasattr(layer, "step"):
            layer.step.assign(step)


def masks_of(model: SpikingModel, B: int, step: int) -> list[np.ndarray | None] | None:
    """The masks that a training call at `step` draws, one per LIF layer as the oracle takes them."""
    dropouts = model.plan.dropouts
    if not dropouts:
        return None
    set_step(model, step)
    masks = [call.layer.draw_mask((B, *call.args[0].shape[2:])).numpy() for call in dropouts]
    assert len(masks) == sum(isinstance(call.layer, LIF) for call in model.plan.spiking)
    assert all((mask == 0).any() and (mask > 0).any() for mask in masks)
    return masks


def gradients_of(call: Callable[..., tf.Tensor], model: SpikingModel, inputs: Any, dL_do: Any,
                 **kwargs: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    """`(output, gradient of every trainable variable)` of a training call."""
    variables = [variable.value for variable in model.trainable_variables]
    with tf.GradientTape() as tape:
        output = call(inputs, training=True, **kwargs)
    return output.numpy(), [g.numpy() for g in tape.gradient(output, variables, output_gradients=dL_do)]


def assert_engine_as_layers(model: SpikingModel, inputs: Any, calls: int = 1, rtol: float = 1e-3, atol: float = 1e-4,
                            output: float = 1e-5) -> tuple[np.ndarray, list[np.ndarray]]:
    """Training calls by the engine and layer by layer have the same output and gradients, and leave the same behind.

    Args:
      model: of `CLASSES` classes; both begin with its variables as they are, and it ends as the engine leaves it.
      inputs: of every call.
      calls: training calls; compared is the last one.
      rtol, atol: of a gradient, `atol` as a share of its largest entry.
      output: how far outputs may be apart.

    Returns:
      `(output, gradients)` of the engine.
    """
    assert model.engine is not None
    start, found = [variable.numpy() for variable in model.variables], []
    for call in (model.call_layers, model):
        for variable, value in zip(model.variables, start):
            variable.assign(value)
        for _ in range(calls):
            scores, grads = gradients_of(call, model, inputs, upstream(len(inputs)))
        kept = [variable.numpy() for variable in model.non_trainable_variables]
        found.append((scores, grads, kept, model(inputs).numpy()))
    (slow, slow_grads, slow_kept, behind), (fast, fast_grads, fast_kept, after) = found
    np.testing.assert_allclose(fast, slow, atol=output)
    np.testing.assert_allclose(after, behind, atol=output)
    for variable, a, b in zip(model.non_trainable_variables, fast_kept, slow_kept, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7, err_msg=variable.path)
    for variable, a, b in zip(model.trainable_variables, fast_grads, slow_grads, strict=True):
        assert np.abs(b).max() > 0.0, variable.path
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol * np.abs(b).max(), err_msg=variable.path)
    return fast, fast_grads


def layer_spikes(model: SpikingModel, inputs: Any, step: int = 0) -> list[np.ndarray]:
    """Unmasked spikes of every spiking layer in a training call at `step`, layer by layer."""
    set_step(model, step)
    trains: list[np.ndarray] = []
    plan = model.plan

    def handler(call: plans.Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if call is plan.encoder or call in plan.dropouts:
            return call.layer(*args, training=True)
        outputs = call.layer(*args, **kwargs)
        if isinstance(call.layer, SpikingLayer):
            trains.append(outputs.numpy().astype("d"))
        return outputs

    plans.run((*plan.before, plan.encoder, *plan.window), {plan.inputs[0]: tf.convert_to_tensor(inputs)}, handler)
    return trains


def currents_on_calibration(model: SpikingModel, images: np.ndarray) -> dict[str, np.ndarray]:
    """The currents `[T, B, ...]` of every LIF layer, on the noise that "spike_norm" was calibrated with."""
    encoder = model.plan.encoder.layer
    train = encoder.encode(images, noise.derive(encoder.key(False, 0), 0), 0, encoder.timesteps)
    seen: dict[str, np.ndarray] = {}

    def handler(call: plans.Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(call.layer, LIF):
            seen[call.layer.name] = args[0].numpy()
        outputs = call.layer(*args, **kwargs)
        assert float(tf.reduce_sum(tf.abs(outputs))) > 0, call.layer.name
        return outputs

    plans.run(model.plan.window, {model.plan.encoder.output: train}, handler)
    return seen


def engine_spikes(model: SpikingModel, inputs: Any, monkeypatch: Any, step: int = 0) -> list[np.ndarray]:
    """The same of the engine: what `kernels.fire` returned in every chunk."""
    set_step(model, step)
    fire, chunks = kernels.fire, []

    def watched(*args: Any, **kwargs: Any) -> Any:
        outcome = fire(*args, **kwargs)
        chunks.append(outcome[0].numpy().astype("d"))
        return outcome

    with monkeypatch.context() as patch:
        patch.setattr(kernels, "fire", watched)
        model(inputs, training=True)
    layers = len(model.plan.spiking)
    return [np.concatenate(chunks[i::layers]) for i in range(layers)]


def assert_alive(record: oracle.Record) -> None:
    """Every layer fires, none at every step of every neuron, and no spike is a rounding error away from its threshold."""
    for layer in record.layers:
        assert 0.02 < layer.spikes.mean() < 0.9, (layer.name, layer.spikes.mean())
    assert record.flip_share() <= 1e-5, record.flip_share()
    assert record.worst_flip() < 1e-5, record.worst_flip()


def worst_error(got: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """The largest difference of any weight's gradient, relative to the largest entry of that gradient."""
    assert [g.shape for g in got] == [w.shape for w in wanted]
    assert all(np.abs(w).max() > 0 for w in wanted), "a gradient that is zero everywhere shows nothing"
    return max(float(np.abs(g.astype("d") - w).max() / np.abs(w).max()) for g, w in zip(got, wanted))


def worst_distance(got: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """The largest Euclidean distance of any weight's gradient, relative to its length: the measure for bfloat16."""
    assert [g.shape for g in got] == [w.shape for w in wanted]
    return max(float(np.linalg.norm(g.astype("d") - w) / np.linalg.norm(w)) for g, w in zip(got, wanted))


def leak_in_the_carry(s: Any, slope: Any, g: Any, delta_next: Any = 0.0) -> np.ndarray:
    """In place of `oracle.event_backward`, for tests that a comparison refuses it: wrong, as its carry leaks."""
    delta, carried = np.zeros(s.shape), delta_next
    for t in reversed(range(len(s))):
        carried = delta[t] = s[t] * slope * g[t] + (1 - s[t]) * 0.9 * carried
    return delta


def said(call: Callable[[], Any], about: str) -> list[str]:
    """The warnings that a call gives, of those that have these words."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return [str(one.message) for one in found if about in str(one.message)]


def assert_dense_in_place_of_events(model: SpikingModel, inputs: Any, why: str) -> None:
    """Under kernel="events" a model answers as it does, by dense convolutions, and says why (a regular expression)."""
    pytest.importorskip("numba")
    wanted = model(inputs)
    model.configure_engine(kernel="events")
    with pytest.warns(UserWarning, match=why):
        np.testing.assert_array_equal(model(inputs), wanted)
