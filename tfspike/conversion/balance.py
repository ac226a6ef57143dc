"""The scales of all layers, from images: data-based normalisation and Spike-Norm.

Everything here is in the units of the ANN: a layer's rates count times its scale, so that the ANN's own layers compute
the currents of the spiking network.

**What is kept equal.** A ReLU's activation a becomes a firing rate r, spikes per step, with a = scale * r; each layer
has one scale, the input 1 (the encoder's rate is the pixel). Put into a = relu(sum of W a'), every path from a layer
with scale' to one with scale turns into

    r = relu(sum of (W scale' / scale) r')

so the weights of each path are multiplied by scale'/scale while all thresholds stay 1. The readout never fires: its
scale is 1, and V_T / T approaches the ANN's logits. There is no bias that would need another factor.

**Residual blocks.** Main path and shortcut add up to the current of one neuron, hence share its scale; each has the
factor of where it comes from. A 1x1 convolution takes it into its weights. An identity has none: its spikes get the
constant scale'/scale instead (`keras.layers.Rescaling`, a convolution that is 1x1 and diagonal). One scale for all
layers joined by identities would spare the constant, but "spike_norm" could not balance it: a spike through an identity
of weight 1 is a current of a full threshold already, and the block's own current comes on top of it.

**Pooling neurons.** The 2x2 average of binary spikes comes in quarters, and the sums that exceed .75 strictly are those
of at least 1. The neuron thus fires once per four spikes, whatever order they come in: its rate is the mean of their
rates, its factor is 1, and it keeps the scale of the layer in front. It loses something only where a sum jumps beyond
1, when spikes coincide.

**What is lost.** Every neuron here is reset to 0, so what exceeds the threshold is gone. A constant current I of at
most 1 fires every floor(1/I) + 1 steps: a rate below I by up to I^2 / (1 + I), nothing for small currents and half for
those near the threshold. A larger scale loses less of it and needs more steps. Behind the first layer currents come in
jumps, one spike each, and what a jump carries beyond the threshold is lost too: that part depends on the ratio of
neighbouring scales, not on their size, and adds up with depth. Rates thus come close to the activations in the first
layer and fall short of them in deep ones, however long the window. (Reset by subtraction, which tfspike does not have,
would keep the excess: Rueckauer et al. 2017.) What the methods trade off:

* "data" (Diehl et al. 2015, data-based normalisation): scale = the largest activation of the layer over a batch of
  training images, or a percentile of the positive ones, which ignores outliers (Rueckauer et al. 2017).
* "spike_norm" (Sengupta et al. 2019): layer by layer, the network so far runs on spikes, and the threshold becomes the
  largest current that reaches a neuron at any step. It accounts for the spikes that really come, and for their
  coincidence within a step.

Sources: P. U. Diehl et al., "Fast-classifying, high-accuracy spiking deep networks through weight and threshold
balancing", IJCNN 2015; A. Sengupta et al., "Going deeper in spiking neural networks: VGG and residual architectures",
Front. Neurosci. 13:95 (2019). Diehl et al. also let the largest weight count in the scale; here activations alone do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfspike.checks import check_choice, check_count, number
from tfspike.conversion.network import INPUT, Network, Neurons
from tfspike.conversion.options import METHODS
from tfspike.engine import plan as plans
from tfspike.errors import UserError
from tfspike.models.spiking_model import SpikingModel
from tfspike.neurons import encoders, gradients, noise
from tfspike.neurons.gradients import Neuron

PERCENTILES = {"data": 99.9, "spike_norm": 100.0}  # unless asked otherwise; 100 is the largest value
ENCODERS = ("poisson", "direct")  # those whose spikes, counted, give back the pixel
_PART = 8  # images whose currents at all steps exist at once
_VALUES = 20_000_000  # of one layer, evenly thinned out beyond, that a percentile is taken of


@dataclasses.dataclass(frozen=True)
class Conversion:
    """A converted network.

    Attributes:
      model: integrate-and-fire neurons with threshold 1, no leak anywhere; V_T / T approaches the ANN's logits.
      scales: what a firing rate of 1 stands for in every ReLU layer, in the ANN's activation units.
    """

    model: SpikingModel
    scales: dict[str, float]


def convert(model: keras.Model, images: Any, method: str = "data", percentile: float | None = None,
            timesteps: int = 100, encoder: str = "poisson", gradient: str = "rate", seed: int = 0) -> Conversion:
    """Converts a trained ReLU network to a spiking one with balanced thresholds.

    Args:
      model: the ANN, a functional Keras model from images to logits: `models.create(..., neuron="relu")`, or an own one
        of convolutions, dense layers (no bias), ReLU, 2x2 average pooling behind a ReLU, sums, flattening and dropout.
      images: training images to calibrate on, `[N, H, W, C]` of about [-1, 1]. Spikes of N * T steps are held for
        "spike_norm", a byte each.
      method: "data" (Diehl et al. 2015) or "spike_norm" (Sengupta et al. 2019).
      percentile: which of a layer's positive activations (currents of a step for "spike_norm") the scale is, in
        (0, 100]; None takes 99.9 for "data" and 100, the maximum, for "spike_norm".
      timesteps: T, steps in the window; "spike_norm" calibrates on windows of this length.
      encoder: "poisson" or "direct".
      gradient: "event" or "rate", for training the result further.
      seed: of the input noise.

    Returns:
      The spiking network and the scales.

    Raises:
      UserError: an argument is out of range, the network cannot be converted, or a layer is silent on the images.
    """
    network = Network(model)
    check_choice("method", method, METHODS)
    check_choice("encoder", encoder, ENCODERS)
    check_count("timesteps", timesteps)
    percentile = _checked_percentile(PERCENTILES[method] if percentile is None else percentile)
    images = np.asarray(images, np.float32)
    if not len(images) or tuple(images.shape[1:]) != tuple(network.input.shape[1:]):
        raise UserError(f"`images` must be of shape [N, {', '.join(map(str, network.input.shape[1:]))}], at least one. "
                        f"Received: shape {list(images.shape)}.")
    if method == "data":
        scales = _from_activations(network, images, percentile)
    else:
        train = encoders.create(encoder, timesteps, seed=seed)
        scales = _from_currents(network, images, percentile, train)
    return Conversion(build(model, scales, timesteps, encoder, gradient, seed), scales)


def build(model: keras.Model, scales: Mapping[str, float], timesteps: int, encoder: str = "poisson",
          gradient: str = "rate", seed: int = 0) -> SpikingModel:
    """The spiking network of an ANN for given scales.

    Args:
      model: the ANN, as for `convert`.
      scales: for every ReLU layer, by name, what a firing rate of 1 stands for; above 0.
      timesteps, encoder, gradient, seed: as for `convert`.

    Raises:
      UserError: as for `convert`, or a ReLU has no scale.
    """
    network = Network(model)
    check_choice("encoder", encoder, ENCODERS)
    for name in network.relus:
        value = scales.get(name)
        if value is None or not 0.0 < value < float("inf"):
            raise UserError(f"`scales` must have a finite number above 0 for every ReLU. Received for {name!r}: "
                            f"{value!r}.")
    return network.spiking(scales, check_count("timesteps", timesteps), encoder, gradient, seed)


# ---- data-based normalisation ------------------------------------------------------------------------------------


def _from_activations(network: Network, images: np.ndarray, percentile: float) -> dict[str, float]:
    """Scale = the percentile of a layer's positive activations."""
    seen: dict[str, list[np.ndarray]] = {name: [] for name in network.relus}
    for start in range(0, len(images), _PART):
        values = plans.run([step.call for step in network.steps],
                           {network.input: tf.constant(images[start:start + _PART])}, _in_inference)
        for neurons in network.neurons:
            if neurons.step.kind == "relu":
                activations = values[neurons.step.call.output]
                seen[neurons.step.call.name].append(_positive(activations, len(images)))
    return {name: _percentile(parts, percentile, name) for name, parts in seen.items()}


def _in_inference(call: plans.Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if isinstance(call.layer, keras.layers.Dropout) or hasattr(call.layer, "draw_mask"):
        return args[0]
    return call.layer(*args, **kwargs)


# ---- Spike-Norm --------------------------------------------------------------------------------------------------


def _from_currents(network: Network, images: np.ndarray, percentile: float,
                   encoder: encoders.Encoder) -> dict[str, float]:
    """Layer by layer: scale = the percentile of the positive currents of all steps, then fire with that threshold."""
    slices = [slice(start, start + _PART) for start in range(0, len(images), _PART)]
    key = encoder.key(False, 0)
    signed = [encoder.encode(tf.constant(images[part]), noise.derive(key, i), 0, encoder.timesteps)
              for i, part in enumerate(slices)]
    if isinstance(encoder, encoders.PoissonEncoder):
        signed = [tf.cast(train, tf.int8) for train in signed]
    # of every layer of neurons, by part of the images: what it sends out at all steps
    trains: dict[Any, list[Any]] = {network.input: signed}
    scales = {INPUT: 1.0}
    for position, neurons in enumerate(network.neurons):
        step = neurons.step
        name, output = step.call.name, step.call.output
        if step.kind == "relu":
            positive = [_positive(currents, len(images)) for currents in _currents(network, neurons, trains, scales)]
            scales[name] = _percentile(positive, percentile, name)
            neuron, scale = Neuron.lif(1.0, 1.0), scales[name]
        else:
            neuron = Neuron.pooling(1.0 - 1.0 / float(np.prod(step.call.layer.pool_size)))
            scale = scales[str(network.origin[output])]
        trains[output] = [tf.cast(_fire(currents / scale, neuron), tf.int8)
                              for currents in _currents(network, neurons, trains, scales)]
        needed = {root for later in network.neurons[position + 1:] for root in later.roots}
        trains = {root: train for root, train in trains.items() if root in needed}
    del scales[INPUT]
    return scales


def _fire(currents: tf.Tensor, neuron: Neuron) -> tf.Tensor:
    return gradients.simulate(currents, gradients.zero_state(tf.shape(currents)[1:]), neuron)[0]


def _currents(network: Network, neurons: Neurons, trains: dict[Any, list[Any]],
              scales: Mapping[str, float]) -> Iterator[tf.Tensor]:
    """What enters a layer of neurons at every step, `[T, images, ...]` float32, a part of the images at a time."""
    wanted = neurons.step.call.output if neurons.step.kind == "pool" else neurons.step.call.args[0]
    parts = len(next(iter(trains.values())))
    for part in range(parts):
        values, lead = {}, (0, 0)
        for root in neurons.roots:
            train = trains[root][part]
            lead = (int(train.shape[0]), int(train.shape[1]))
            spikes = tf.cast(tf.reshape(train, (-1, *train.shape[2:])), tf.float32)
            values[root] = spikes * scales[str(network.origin[root])]
        folded = tf.cast(plans.run(neurons.path, values, _in_inference)[wanted], tf.float32)
        yield tf.reshape(folded, (*lead, *folded.shape[1:]))


# ---- percentiles -------------------------------------------------------------------------------------------------


def _positive(values: tf.Tensor, images: int) -> np.ndarray:
    """The positive values and always the largest, thinned out so that those of all images stay below `_VALUES`.

    Only positive ones: how many neurons of a layer are silent must not move the percentile of those that are not.
    """
    flat = np.asarray(tf.cast(values, tf.float32)).ravel()
    flat = flat[flat > 0.0]
    limit = max(1, _VALUES * _PART // images)
    if len(flat) <= limit:
        return flat
    return np.append(flat[::len(flat) // limit + 1], flat.max())


def _percentile(parts: list[np.ndarray], percentile: float, name: str) -> float:
    values = np.concatenate(parts)
    if not len(values):
        raise UserError(f"Layer {name!r} is silent on all calibration images, so it has no scale; give more images, a "
                        "longer window (more timesteps), or train the network until the layer is alive.")
    return float(np.percentile(values, percentile))


def _checked_percentile(value: Any) -> float:
    if not 0.0 < number(value) <= 100.0:
        raise UserError(f"`percentile` must be in (0, 100]. Received: percentile={value!r}.")
    return float(value)
