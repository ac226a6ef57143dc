"""Networks: `create` builds any row of `tfspike.variants.VARIANTS` as a functional Keras model."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import keras

from tfspike.models import ann, blocks
from tfspike.models.ann import ReluModel
from tfspike.models.settings import NetworkSettings
from tfspike.models.spiking_model import SpikingModel
from tfspike.neurons import encoders, once
from tfspike.neurons.layers import LIF, Readout
from tfspike.neurons.over_time import OverTime
from tfspike.neurons.surrogates import LEAK_AWARE
from tfspike.variants import VARIANTS, Block, Conv, Pool, Stage

__all__ = ["ReluModel", "SpikingModel", "available", "build", "create"]


def available() -> list[str]:
    """Names that `create` takes."""
    return list(VARIANTS)


def create(name: str, input_shape: tuple[int, int, int], num_classes: int, timesteps: int, *,
           gradient: str = "event", encoder: str | None = "poisson", leak: float = 0.99, threshold: float = 1.0,
           dropout: float | None = None, hidden: int | None = None, kappa: float | None = None, seed: int = 0,
           dtype: Any = None, surrogate: str = LEAK_AWARE, surrogate_width: float = 1.0, norm: str | None = None,
           pooling: str = "neuron", neuron: str | type[LIF] = "lif", shortcut: str = "spikes", reset: str = "zero",
           readout: str = "membrane", start: float = 0.0, running_start: bool = False, credit: str = "mean",
           feedback: str = "symmetric", learn: Sequence[str] = (), homeostasis: float = 0.0, kernel: str = "auto",
           levels: int = 0, largest_input: float = 1.0) -> SpikingModel | ReluModel:
    """Builds a spiking network, or its ANN twin.

    Args:
      name: one of `available()`.
      input_shape: `(H, W, C)`, also for event data.
      num_classes: output neurons.
      timesteps: T, steps in the window.
      gradient: "event" (resolved in time, the authors' code), "rate" (accumulated, the paper's equations; faster) or
        "eprop" (forward in time, `tfspike.engine.eprop`).
      encoder: "poisson", "direct", "latency", or None where the input is a spike train `[B, T, H, W, C]`.
      leak: leak factor (membrane decay per step) of LIF neurons and readout, in (0, 1]; 1.0 = no leak, which pooling
        neurons have.
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
        order, no time. `timesteps` is not used then, and the other settings of spiking neurons (gradient, encoder,
        leak, threshold, surrogate and its width, reset, start, running_start, credit, feedback, learn, homeostasis,
        readout, pooling) keep their defaults. Or a subclass of `LIF` that is constructed as `LIF` is: it takes the
        place of the LIF neurons.
      shortcut: what the shortcut of a residual block carries: "spikes", as in the paper (neurons behind the sum), or
        "currents" past the neurons, with which many layers learn (neurons in front of every convolution).
      reset: what a spike leaves of the membrane of a LIF neuron: "zero", as in the paper, "subtract", what is above the
        threshold, or "silent", a neuron that fires once (`tfspike.neurons.once`). A network trained with one is not to
        be run with another.
      readout: what an answer is: the "membrane" of output neurons that never fire, or which of them fires "first".
      start: share of the threshold that the membranes of LIF neurons begin a window with, in [0, 1).
      running_start: let that share follow where membranes that fired end (`tfspike.neurons.moving_start`).
      credit: how the gradient "rate" takes a surrogate: its "mean" over the window, or with what a lasting drive does
        to the potential in "time" (`tfspike.gradients`).
      feedback: how "eprop" tells a layer of the error: "symmetric", through the weights behind it, or "random".
      learn: which of "leak" and "threshold" each layer of LIF neurons learns as a weight, from the values given here on
        (`tfspike.neurons.learnt`).
      homeostasis: how fast thresholds of LIF neurons adapt in training until every channel fires about as often, in
        [0, 1); 0 keeps them (`tfspike.neurons.homeostasis`).
      kernel: "dense" convolutions, or "events", which adds weights where spikes are, on CPUs: its time follows the
        spikes. "auto" is "dense" until `SpikingModel.choose_kernel` measures both.
      levels: of neuron="relu": L steps of its ReLUs up to a learnt ceiling, which spiking neurons compute in L time
        steps (`tfspike.neurons.quantised`); 0 for plain ReLUs.
      largest_input: of the encoder "latency": the |x| that spikes at the first step (`tfspike.LatencyEncoder`).

    Returns:
      A model from images `[B, H, W, C]` of about [-1, 1] (or spike trains `[B, T, H, W, C]`) to V_T / T `[B, classes]`;
      of the twin, to logits `[B, classes]`.

    Raises:
      UserError: an argument is out of range, or the images are too small for the network.
    """
    return build(NetworkSettings.of(
        name, input_shape, num_classes, timesteps, gradient=gradient, encoder=encoder, leak=leak, threshold=threshold,
        dropout=dropout, hidden=hidden, kappa=kappa, seed=seed, dtype=dtype, surrogate=surrogate,
        surrogate_width=surrogate_width, norm=norm, pooling=pooling, neuron=neuron, shortcut=shortcut, reset=reset,
        readout=readout, start=start, running_start=running_start, credit=credit, feedback=feedback, learn=learn,
        homeostasis=homeostasis, kernel=kernel, levels=levels, largest_input=largest_input))


def build(settings: NetworkSettings) -> SpikingModel | ReluModel:
    """The network of these settings; see `create`."""
    builder, dtype, shape = blocks.Builder(settings), settings.dtype, settings.input_shape
    inputs = keras.Input(shape if settings.encoder else (settings.timesteps, *shape), dtype="float32", name="input")
    of_latency = {"largest": settings.largest_input} if settings.encoder == "latency" else {}
    encoder = encoders.create(settings.encoder, settings.timesteps, seed=builder.next_seed(), dtype=dtype,
                              name="encoder", **of_latency)
    x = _stack(encoder(inputs), settings.variant.stages, builder)
    x = OverTime(keras.layers.Flatten(dtype=dtype), name="flatten")(x)
    if settings.hidden:
        x = blocks.norm(blocks.dense(x, builder, settings.hidden, "hidden"), builder, "hidden")
        x = blocks.lif(x, builder, "hidden")
    x = blocks.dense(x, builder, settings.num_classes, "output")
    readout = Readout(settings.leak, dtype=dtype, name="readout")
    if settings.readout == "first":
        x = blocks.neurons(blocks.norm(x, builder, "output"), builder, "output")
        readout = Readout(1.0, once.growth(settings.timesteps), dtype=dtype, name="readout")
    model = SpikingModel(inputs, readout(x), name=settings.name)
    model.configure_engine(kernel=settings.kernel)
    return ann.twin(model, settings.levels) if settings.neuron == "relu" else model


def _stack(x: Any, stages: tuple[Stage, ...], builder: blocks.Builder) -> Any:
    """The stages in order. Names: conv2_1 is the first convolution behind the first pooling; block3 the third block."""
    group, member, block = 1, 0, 0
    currents = builder.settings.shortcut == "currents"
    fires = True  # whether x is spikes, or currents that no neuron has seen
    for stage, behind in itertools.zip_longest(stages, stages[1:]):
        if not fires and not isinstance(stage, Block):
            x, fires = blocks.lif(x, builder, f"block{block}_out"), True
        if isinstance(stage, Conv):
            member += 1
            name = f"conv{group}_{member}"
            fires = not (currents and isinstance(behind, Block))
            x = (blocks.conv_lif(x, builder, stage.filters, stage.kernel, name) if fires else
                 blocks.conv_norm(x, builder, stage.filters, stage.kernel, 1, name))
        elif isinstance(stage, Pool):
            x = blocks.pool(x, builder, f"pool{group}")
            group, member = group + 1, 0
        elif currents:
            block += 1
            x = blocks.current_block(x, builder, stage.filters, stage.strides, f"block{block}", fires)
            fires = False
        else:
            block += 1
            x = blocks.residual_block(x, builder, stage.filters, stage.strides, f"block{block}")
    return x if fires else blocks.lif(x, builder, f"block{block}_out")
