"""Networks: `create` builds any row of `tfspike.variants.VARIANTS` as a functional Keras model."""

from __future__ import annotations

from typing import Any

import keras

from tfspike.checks import check_choice, check_count, check_leak, check_positive, check_share, check_threshold, is_count
from tfspike.errors import UserError
from tfspike.models import ann, blocks
from tfspike.models.ann import ReluModel
from tfspike.models.spiking_model import SpikingModel
from tfspike.neurons import encoders, surrogates
from tfspike.neurons.backend import check_image_data_format
from tfspike.neurons.gradients import GRADIENTS
from tfspike.neurons.layers import OverTime, Readout
from tfspike.neurons.surrogates import LEAK_AWARE
from tfspike.variants import VARIANTS, Block, Conv, Pool

NORMS = (None, "tdbn")
POOLINGS = ("neuron", "average")

__all__ = ["ReluModel", "SpikingModel", "available", "create"]

_SPIKING_ONLY: dict[str, Any] = {"gradient": "event", "encoder": "poisson", "leak": 0.99, "threshold": 1.0,
                                 "surrogate": LEAK_AWARE, "surrogate_width": 1.0, "pooling": "neuron"}


def available() -> list[str]:
    """Names that `create` takes."""
    return list(VARIANTS)


def create(name: str, input_shape: tuple[int, int, int], num_classes: int, timesteps: int, *,
           gradient: str = "event", encoder: str | None = "poisson", leak: float = 0.99, threshold: float = 1.0,
           dropout: float | None = None, hidden: int | None = None, kappa: float | None = None, seed: int = 0,
           dtype: Any = None, surrogate: str = LEAK_AWARE, surrogate_width: float = 1.0, norm: str | None = None,
           pooling: str = "neuron", neuron: str = "lif") -> SpikingModel | ReluModel:
    """Builds a spiking network, or its ANN twin.

    Args:
      name: one of `available()`.
      input_shape: `(H, W, C)`, also for event data.
      num_classes: output neurons.
      timesteps: T, steps in the window.
      gradient: "event" (resolved in time, the authors' code) or "rate" (accumulated, the paper's equations; faster).
      encoder: "poisson", "direct", "latency", or None where the input is a spike train `[B, T, H, W, C]`.
      leak: of LIF neurons and readout, in (0, 1]; pooling neurons have none.
      threshold: of LIF neurons; pooling neurons keep .75.
      dropout: share of LIF neurons silenced per window; None takes the network's own.
      hidden: neurons of the hidden dense layer, 0 for none; None takes the network's own.
      kappa: weights start normal with standard deviation sqrt(kappa / fan_in); None takes the network's own.
      seed: of weights, input noise and dropout.
      dtype: a Keras dtype policy such as "mixed_bfloat16"; None takes the global one.
      surrogate: what stands for the derivative of a spike: "leak_aware" (the paper's slope), "rectangular",
        "triangular", "arctan" or "sigmoid" (`tfspike.surrogates`).
      surrogate_width: stretches a surrogate; the leak-aware slope has none.
      norm: "tdbn" normalises currents over time and batch (`tfspike.normalisation`), which deep networks need to
        learn; None, as in the paper, does not.
      pooling: "neuron" puts neurons of threshold .75 behind every average pooling, as in the paper; "average" passes
        averages on, which loses nothing in a window of few steps.
      neuron: "lif", or "relu" for the same stack as an ordinary ANN (`tfspike.models.ann`): same weights in the same
        order, no time. `timesteps` is not used then, and the other settings of spiking
        neurons (gradient, encoder, leak, threshold, surrogate and its width, pooling) keep their defaults.

    Returns:
      A model from images `[B, H, W, C]` of about [-1, 1] (or spike trains `[B, T, H, W, C]`) to V_T / T `[B, classes]`;
      of the twin, to logits `[B, classes]`.

    Raises:
      UserError: an argument is out of range, or the images are too small for the network.
    """
    if not isinstance(name, str) or name not in VARIANTS:
        raise UserError(f"`name` must be one of {', '.join(VARIANTS)}. Received: name={name!r}.")
    variant = VARIANTS[name]
    shape = tuple(input_shape) if isinstance(input_shape, (tuple, list)) else ()
    if len(shape) != 3 or not all(map(is_count, shape)):
        raise UserError("`input_shape` must be (height, width, channels), three positive integers. "
                        f"Received: input_shape={input_shape!r}.")
    if min(shape[:2]) < variant.min_size:
        raise UserError(f"{name} needs images of at least {variant.min_size}x{variant.min_size} pixels: smaller ones "
                        f"leave an empty feature map. Received: input_shape={shape}.")
    _check_dtype(dtype)
    check_image_data_format()
    shape = tuple(map(int, shape))
    num_classes, timesteps = check_count("num_classes", num_classes), check_count("timesteps", timesteps)
    check_choice("encoder", encoder, encoders.NAMES)
    if check_choice("neuron", neuron, ("lif", "relu")) == "relu":
        _refuse_spiking(gradient=gradient, encoder=encoder, leak=leak, threshold=threshold,
                        surrogate=surrogate, surrogate_width=surrogate_width, pooling=pooling)
    if surrogate == LEAK_AWARE and surrogate_width != 1.0:
        raise UserError("`surrogate_width` stretches a surrogate, and 'leak_aware' is none: leave it out, or choose a "
                        f"surrogate. Received: surrogate_width={surrogate_width!r}.")
    hidden = check_count("hidden", variant.hidden if hidden is None else hidden, least=0)
    builder = blocks.Builder(
        leak=check_leak(leak), threshold=check_threshold(threshold),
        gradient=check_choice("gradient", gradient, GRADIENTS),
        dropout=check_share("dropout", variant.dropout if dropout is None else dropout),
        kappa=check_positive("kappa", variant.kappa if kappa is None else kappa),
        seed=check_count("seed", seed, least=0), dtype=dtype,
        surrogate=check_choice("surrogate", surrogate, surrogates.names()),
        surrogate_width=check_positive("surrogate_width", surrogate_width), norm=check_choice("norm", norm, NORMS),
        pooling=check_choice("pooling", pooling, POOLINGS))

    inputs = keras.Input(shape if encoder else (timesteps, *shape), dtype="float32", name="input")
    x = encoders.create(encoder, timesteps, seed=builder.next_seed(), dtype=dtype, name="encoder")(inputs)
    x = _stack(x, variant.stages, builder)
    x = OverTime(keras.layers.Flatten(dtype=dtype), name="flatten")(x)
    if hidden:
        x = blocks.norm(blocks.dense(x, builder, hidden, "hidden"), builder, "hidden")
        x = blocks.lif(x, builder, "hidden")
    x = blocks.dense(x, builder, num_classes, "output")
    model = SpikingModel(inputs, Readout(builder.leak, dtype=dtype, name="readout")(x), name=name)
    return model if neuron == "lif" else ann.twin(model)


def _stack(x: Any, stages: tuple[Any, ...], builder: blocks.Builder) -> Any:
    """The stages in order. Names: conv2_1 is the first convolution behind the first pooling; block3 the third block."""
    group, member, block = 1, 0, 0
    for stage in stages:
        if isinstance(stage, Conv):
            member += 1
            x = blocks.conv_lif(x, builder, stage.filters, stage.kernel, f"conv{group}_{member}")
        elif isinstance(stage, Pool):
            x = blocks.pool(x, builder, f"pool{group}")
            group, member = group + 1, 0
        elif isinstance(stage, Block):
            block += 1
            x = blocks.residual_block(x, builder, stage.filters, stage.strides, f"block{block}")
    return x


def _refuse_spiking(**given: Any) -> None:
    """An argument that an ANN would ignore would be believed to have mattered."""
    for name, value in given.items():
        if value != _SPIKING_ONLY[name]:
            raise UserError(f"`{name}` is for spiking neurons, and neuron='relu' has none: leave it out. "
                            f"Received: {name}={value!r}.")


def _check_dtype(dtype: Any) -> None:
    try:
        keras.dtype_policies.get(dtype)
    except (TypeError, ValueError):
        raise UserError("`dtype` must be a Keras dtype policy such as 'float32' or 'mixed_bfloat16', or None for the "
                        f"global one. Received: dtype={dtype!r}.") from None
