"""From an ANN and a scale for each of its layers to a spiking network; where scales come from, `conversion.scales`.

Everything here is in the units of the ANN: a layer's rates count times its scale, so that the ANN's own layers compute
the currents of the spiking network.

**What is kept equal.** A ReLU's activation a becomes a firing rate r, spikes per step, with a = scale * r; each layer
has one scale, the input 1 (the encoder's rate is the pixel). Put into a = relu(sum of W a'), every path from a layer
with scale' to one with scale turns into

    r = relu(sum of (W scale' / scale) r')

so the weights of each path are multiplied by scale'/scale while all thresholds stay 1. The readout never fires: its
scale is 1, and V_T / T approaches the ANN's logits. A bias is a constant current and gets the factor 1/scale.

**Residual blocks.** Main path and shortcut add up to the current of one neuron, hence share its scale; each has the
factor of where it comes from. A 1x1 convolution takes it into its weights. An identity has none: its spikes get the
constant scale'/scale instead (`keras.layers.Rescaling`, a convolution that is 1x1 and diagonal). One scale for all
layers joined by identities would spare the constant, but "spike_norm" could not balance it: a spike through an identity
of weight 1 is a current of a full threshold already, and the block's own current comes on top of it.

**Pooling neurons.** The 2x2 average of binary spikes comes in quarters, and the sums that exceed .75 strictly are those
of at least 1. The neuron thus fires once per four spikes, whatever order they come in: its rate is the mean of their
rates, its factor is 1, and it keeps the scale of the layer in front. It loses something only where a sum jumps beyond
1, when spikes coincide.

**What is lost to a reset to 0** ("data", "spike_norm"). What exceeds the threshold is gone. A constant current I of at
most 1 fires every floor(1/I) + 1 steps: a rate below I by up to I^2 / (1 + I), nothing for small currents and half for
those near the threshold. A larger scale loses less of it and needs more steps. Behind the first layer currents come in
jumps, one spike each, and what a jump carries beyond the threshold is lost too: that part depends on the ratio of
neighbouring scales, not on their size, and adds up with depth. Rates thus come close to the activations in the first
layer and fall short of them in deep ones, however long the window.

**Reset by subtraction** ("rueckauer", "quantised"; Rueckauer et al. 2017) loses no charge. For any input

    theta N = sum of I_t + v_0 - v_T

so that the rate of the first layer is r = z - (v_T - v_0) / (T theta), and each later one adds its weights times the
errors in front. The error is what the membrane still holds, and falls as 1 / T while z stays within 0 and theta. A
start of half a threshold makes it one of rounding, as often above as below: at short windows several times smaller than
from 0. What remains are activations above the scale, which a rate of 1 cuts off, and spikes that come unevenly: a
neuron may fire for early ones and cannot take it back (`tfspike.neurons.bipolar` can). Averages of spikes are passed on
as they are: a pooling neuron would lose something. Maxima take a gate (`tfspike.neurons.gate`).

Sources: P. U. Diehl et al., "Fast-classifying, high-accuracy spiking deep networks through weight and threshold
balancing", IJCNN 2015; A. Sengupta et al., "Going deeper in spiking neural networks: VGG and residual architectures",
Front. Neurosci. 13:95 (2019); B. Rueckauer et al., "Conversion of continuous-valued deep networks to efficient
event-driven networks for image classification", Front. Neurosci. 11:682 (2017). T. Bu et al., ICLR 2022: see
`tfspike.neurons.quantised`. Diehl et al. also let the largest weight count in the scale; here activations alone do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras

from tfspike.checks import check_choice, check_count, check_fraction
from tfspike.conversion import scales as of_layers
from tfspike.conversion.methods import METHODS, Method, chosen
from tfspike.conversion.network import Network
from tfspike.errors import UserError
from tfspike.models.spiking_model import SpikingModel

ENCODERS = ("poisson", "direct")  # those whose spikes, counted, give back the pixel


@dataclasses.dataclass(frozen=True)
class Conversion:
    """A converted network.

    Attributes:
      model: integrate-and-fire neurons with threshold 1, no leak anywhere; V_T / T approaches the ANN's logits.
      scales: what a firing rate of 1 stands for in every ReLU layer, in the ANN's activation units.
    """

    model: SpikingModel
    scales: dict[str, float]


def convert(model: keras.Model, images: Any = None, method: str = "data", percentile: float | None = None,
            timesteps: int = 100, encoder: str | None = None, gradient: str = "rate", seed: int = 0, *,
            start: float | None = None, bipolar: bool = False) -> Conversion:
    """Converts a trained ReLU network to a spiking one with balanced thresholds.

    Args:
      model: the ANN, a functional Keras model from images to logits (or their softmax): `models.create(...,
        neuron="relu")`, or an own one of convolutions, dense layers, batch normalisation behind them, ReLU, average and
        max pooling behind a ReLU, sums, flattening and dropout.
      images: training images to calibrate on, `[N, H, W, C]` of about [-1, 1]; "quantised" needs none. Spikes of N * T
        steps are held for "spike_norm", a byte each.
      method: a key of `conversion.METHODS`: "data" (Diehl et al. 2015), "spike_norm" (Sengupta et al. 2019),
        "rueckauer" (Rueckauer et al. 2017) or, of a network with `levels`, "quantised" (Bu et al. 2022).
      percentile: which of a layer's positive activations (currents of a step for "spike_norm") the scale is, in
        (0, 100]; None takes the method's, 99.9 or for "spike_norm" 100, the maximum.
      timesteps: T, steps in the window; "spike_norm" calibrates on windows of this length.
      encoder: "poisson" or "direct"; None takes the method's.
      gradient: "event" or "rate", for training the result further.
      seed: of the input noise.
      start: share of the threshold that membranes begin with, in [0, 1); None takes the method's, 0 or for "quantised"
        one half.
      bipolar: spikes that came too early are taken back by spikes of -1 (`tfspike.neurons.bipolar`); for inference, of
        methods that reset by subtraction.

    Returns:
      The spiking network and the scales.

    Raises:
      UserError: an argument is out of range, the network cannot be converted, or a layer is silent on the images.
    """
    made_of = _checked(method, encoder, start, bipolar)
    network = Network(model, made_of.pooling)
    check_count("timesteps", timesteps)
    scales = of_layers.find(network, images, made_of, percentile, timesteps, seed)
    return Conversion(network.spiking(scales, timesteps, made_of, gradient, seed), scales)


def build(model: keras.Model, scales: Mapping[str, float], timesteps: int, encoder: str | None = None,
          gradient: str = "rate", seed: int = 0, *, method: str = "data", start: float | None = None,
          bipolar: bool = False) -> SpikingModel:
    """The spiking network of an ANN for given scales.

    Args:
      model: the ANN, as for `convert`.
      scales: for every ReLU layer, by name, what a firing rate of 1 stands for; above 0.
      timesteps, encoder, gradient, seed, method, start, bipolar: as for `convert`.

    Raises:
      UserError: as for `convert`, or a ReLU has no scale.
    """
    made_of = _checked(method, encoder, start, bipolar)
    network = Network(model, made_of.pooling)
    for name in network.relus:
        value = scales.get(name)
        if value is None or not 0.0 < value < float("inf"):
            raise UserError(f"`scales` must have a finite number above 0 for every ReLU. Received for {name!r}: "
                            f"{value!r}.")
    return network.spiking(scales, check_count("timesteps", timesteps), made_of, gradient, seed)


def _checked(method: str, encoder: str | None, start: float | None, bipolar: bool) -> Method:
    check_choice("method", method, tuple(METHODS))
    if encoder is not None:
        check_choice("encoder", encoder, ENCODERS)
    if start is not None:
        check_fraction("start", start)
    return chosen(method, encoder, start, bipolar)
