"""What makes a network of `tfspike.variants.VARIANTS`, as one object that is checked when it is made."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from tfspike.checks import (
    check_choice,
    check_count,
    check_fraction,
    check_leak,
    check_positive,
    check_threshold,
    is_count,
)
from tfspike.config.config import NEURONS, SPIKING_ONLY
from tfspike.engine.kernels import KERNELS
from tfspike.errors import UserError
from tfspike.neurons import encoders, learnt, slopes
from tfspike.neurons.backend import check_image_data_format
from tfspike.neurons.gradients import check_options
from tfspike.neurons.homeostasis import check_homeostasis
from tfspike.neurons.layers import LIF
from tfspike.neurons.surrogates import LEAK_AWARE
from tfspike.variants import SHORTCUTS, VARIANTS, Variant

NORMS = (None, "tdbn")
POOLINGS = ("neuron", "average")
READOUTS = ("membrane", "first")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerSettings:
    """What all layers of one network share.

    Attributes:
      gradient: "event", "rate" or "eprop".
      neuron: "lif", or a subclass of `LIF` that is constructed as `LIF` is; of a network also "relu".
      leak, threshold: of the LIF neurons.
      surrogate, surrogate_width: what stands for the derivative of a spike (`tfspike.surrogates`).
      reset: what a spike leaves of the membrane of a LIF neuron: "zero", "subtract", u_t - threshold, or "silent".
      start: share of the threshold that the membrane of a LIF neuron begins a window with, in [0, 1).
      running_start: let that share follow what is left of membranes that fired (`tfspike.neurons.moving_start`).
      credit: how the gradient "rate" takes a surrogate: its "mean", or with what a lasting drive does in "time".
      feedback: how "eprop" tells a layer of the error, "symmetric" or "random".
      learn: which of "leak" and "threshold" each layer of LIF neurons learns, from these values on.
      homeostasis: how fast thresholds of LIF neurons adapt in training (`tfspike.neurons.homeostasis`), in [0, 1).
      dropout: share of neurons silenced per window.
      kappa: weights start normal with standard deviation sqrt(kappa / fan_in).
      norm: "tdbn" normalises the currents of every spiking convolution and dense layer; None does not.
      pooling: "neuron" puts pooling neurons behind every average pooling; "average" leaves them out.
      readout: what an answer is: the "membrane" of output neurons that never fire, or which of them fires "first".
      shortcut: what the shortcut of a residual block carries: the "spikes" in front of it, or "currents" past neurons.
      seed: of weights, input noise and dropout.
      dtype: dtype policy; None for the global one.

    Raises:
      UserError: a value is out of range, or contradicts another one.
    """

    neuron: str | type[LIF] = "lif"
    gradient: str = "event"
    leak: float = 0.99
    threshold: float = 1.0
    surrogate: str = LEAK_AWARE
    surrogate_width: float = 1.0
    reset: str = "zero"
    start: float = 0.0
    running_start: bool = False
    credit: str = "mean"
    feedback: str = "symmetric"
    learn: tuple[str, ...] = ()
    homeostasis: float = 0.0
    dropout: float = 0.0
    kappa: float = 2.0
    norm: str | None = None
    pooling: str = "neuron"
    readout: str = "membrane"
    shortcut: str = "spikes"
    seed: int = 0
    dtype: Any = None

    def __post_init__(self) -> None:
        _check_dtype(self.dtype)
        if not (isinstance(self.neuron, type) and issubclass(self.neuron, LIF)):
            check_choice("neuron", self.neuron, NEURONS)
        check_options(self.gradient, self.surrogate, self.reset, self.credit, self.feedback)
        if self.gradient == "eprop" and (self.reset, self.norm) != ("subtract", None):
            raise UserError("gradient='eprop' takes reset='subtract' and norm=None. "
                            f"Received: reset={self.reset!r}, norm={self.norm!r}.")
        learn = learnt.check_learn(self.learn)
        learnt.check_options(learn, self.gradient, self.surrogate, self.credit, self.start, self.reset)
        homeostasis = check_homeostasis(self.homeostasis, learn, self.start, self.running_start, self.gradient)
        check_choice("readout", self.readout, READOUTS)
        if self.readout == "first" and (self.gradient, self.reset) != ("event", "silent"):
            raise UserError("readout='first' is of neurons that fire once: take gradient='event' and reset='silent'. "
                            f"Received: gradient={self.gradient!r}, reset={self.reset!r}.")
        check_choice("norm", self.norm, NORMS)
        check_choice("pooling", self.pooling, POOLINGS)
        check_choice("shortcut", self.shortcut, SHORTCUTS)
        kind = slopes.kind_of(self.surrogate)
        if not kind.has_width and self.surrogate_width != 1.0:
            raise UserError(f"`surrogate_width` stretches a surrogate, and {self.surrogate!r} is none: leave it out, "
                            f"or choose a surrogate. Received: surrogate_width={self.surrogate_width!r}.")
        if kind is slopes.Tandem and self.pooling != "average":
            raise UserError(f"surrogate={self.surrogate!r} is of neurons that lose nothing, and pooling neurons reset "
                            f"to 0: take pooling='average'. Received: pooling={self.pooling!r}.")
        _settle(self, learn=learn, homeostasis=homeostasis, leak=check_leak(self.leak),
                threshold=check_threshold(self.threshold),
                surrogate_width=check_positive("surrogate_width", self.surrogate_width),
                start=check_fraction("start", self.start),
                dropout=check_fraction("dropout", self.dropout), kappa=check_positive("kappa", self.kappa),
                seed=check_count("seed", self.seed, least=0))


@dataclasses.dataclass(frozen=True)
class NetworkSettings(LayerSettings):
    """What makes one network; `of` takes from the table of networks what is not given.

    Attributes:
      name: of a row of `VARIANTS`.
      input_shape: `(H, W, C)`, also for event data.
      num_classes: output neurons.
      timesteps: T, steps in the window.
      encoder: one of `encoders.NAMES`.
      largest_input: of the encoder "latency": the |x| that spikes at the first step.
      hidden: neurons of the hidden dense layer, 0 for none.
      neuron: "relu" makes the ANN twin, for which the settings of spiking neurons keep their defaults.
      kernel: how its window is computed (`SpikingModel.configure_engine`).
      levels: steps of the ReLUs of an ANN twin (`tfspike.neurons.quantised`), 0 for plain ones.

    Raises:
      UserError: as for `LayerSettings`, or the images are too small for the network.
    """

    name: str
    input_shape: tuple[int, int, int]
    num_classes: int
    timesteps: int
    encoder: str | None = "poisson"
    largest_input: float = 1.0
    hidden: int = 0
    kernel: str = "auto"
    levels: int = 0

    @classmethod
    def of(cls, name: str, input_shape: tuple[int, int, int], num_classes: int, timesteps: int,
           **others: Any) -> NetworkSettings:
        """The settings of a network; `dropout`, `hidden` and `kappa` are its own where they are None or left out."""
        variant = _variant(name)
        own = {key: getattr(variant, key) for key in ("dropout", "hidden", "kappa") if others.get(key) is None}
        return cls(name, input_shape, num_classes, timesteps, **{**others, **own})

    @property
    def variant(self) -> Variant:
        """The network's row of the table."""
        return VARIANTS[self.name]

    def __post_init__(self) -> None:
        smallest, given = _variant(self.name).min_size, self.input_shape
        shape: tuple[Any, ...] = tuple(given) if isinstance(given, (tuple, list)) else ()
        if len(shape) != 3 or not all(map(is_count, shape)):
            raise UserError("`input_shape` must be (height, width, channels), three positive integers. "
                            f"Received: input_shape={given!r}.")
        if min(shape[:2]) < smallest:
            raise UserError(f"{self.name} needs images of at least {smallest}x{smallest} pixels: smaller ones "
                            f"leave an empty feature map. Received: input_shape={shape}.")
        check_image_data_format()
        if self.shortcut != "spikes" and not self.variant.is_residual:
            raise UserError(f"`shortcut` is of residual blocks, and {self.name} has none: leave it out. "
                            f"Received: shortcut={self.shortcut!r}.")
        check_choice("encoder", self.encoder, encoders.NAMES)
        if self.largest_input != 1.0 and self.encoder != "latency":
            raise UserError("`largest_input` is of encoder='latency': leave it out. "
                            f"Received: largest_input={self.largest_input!r}, encoder={self.encoder!r}.")
        check_choice("kernel", self.kernel, KERNELS)
        if self.neuron == "relu":
            self._refuse_spiking()
        elif self.levels:
            raise UserError("`levels` is of ReLUs: leave it out, or take neuron='relu'. "
                            f"Received: levels={self.levels!r}, neuron={self.neuron!r}.")
        _settle(self, levels=check_count("levels", self.levels, least=0))
        _settle(self, input_shape=tuple(map(int, shape)), num_classes=check_count("num_classes", self.num_classes),
                timesteps=check_count("timesteps", self.timesteps), hidden=check_count("hidden", self.hidden, least=0))
        super().__post_init__()

    def _refuse_spiking(self) -> None:
        """An argument that an ANN would ignore would be believed to have mattered."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in SPIKING_ONLY and field.name != "timesteps" and value != field.default:
                raise UserError(f"`{field.name}` is for spiking neurons, and neuron='relu' has none: leave it out. "
                                f"Received: {field.name}={value!r}.")


def _settle(settings: LayerSettings, **values: Any) -> None:
    """Brings fields of frozen settings into their one form."""
    for name, value in values.items():
        object.__setattr__(settings, name, value)


def _variant(name: Any) -> Variant:
    if not isinstance(name, str) or name not in VARIANTS:
        raise UserError(f"`name` must be one of {', '.join(VARIANTS)}. Received: name={name!r}.")
    return VARIANTS[name]


def _check_dtype(dtype: Any) -> None:
    try:
        keras.dtype_policies.get(dtype)
    except (TypeError, ValueError):
        raise UserError("`dtype` must be a Keras dtype policy such as 'float32' or 'mixed_bfloat16', or None for the "
                        f"global one. Received: dtype={dtype!r}.") from None
