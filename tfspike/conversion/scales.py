"""The scale of every layer, which stands for a firing rate of 1: from activations, currents, or learnt ceilings.

* `from_activations` ("data", "rueckauer"): the largest activation of the layer over a batch of training images, or a
  percentile of the positive ones, which ignores outliers.
* `from_currents` ("spike_norm", Sengupta et al. 2019): layer by layer, the network so far runs on spikes, and the scale
  becomes the largest current that reaches a neuron at any step. It accounts for the spikes that really come, and for
  their coincidence within a step.
* `from_ceilings` ("quantised", Bu et al. 2022): what `tfspike.neurons.quantised.QuantisedReLU` has learnt.

Everything here is in the units of the ANN: a layer's rates count times its scale, so that the ANN's own layers compute
the currents of the spiking network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfspike.checks import number
from tfspike.conversion.methods import Method
from tfspike.conversion.network import INPUT, Network, Neurons, drops, pooling_threshold
from tfspike.engine import plan as plans
from tfspike.errors import UserError
from tfspike.neurons import encoders, gradients, noise
from tfspike.neurons.gate import MaxPoolGate
from tfspike.neurons.gradients import Neuron
from tfspike.neurons.quantised import QuantisedReLU

_PART = 8  # images whose currents at all steps exist at once
_VALUES = 20_000_000  # of one layer, evenly thinned out beyond, that a percentile is taken of


def find(network: Network, images: Any, method: Method, percentile: float | None, timesteps: int,
         seed: int) -> dict[str, float]:
    """The scale of every ReLU layer, by name; arguments and errors as for `tfspike.conversion.convert`."""
    if method.percentile is None:
        if percentile is not None:
            raise UserError("`percentile` is of methods that look at images, and this one takes what the network has "
                            f"learnt: leave it out. Received: percentile={percentile!r}.")
        return from_ceilings(network)
    percentile = _checked_percentile(method.percentile if percentile is None else percentile)
    images = np.asarray([] if images is None else images, np.float32)
    if not len(images) or tuple(images.shape[1:]) != tuple(network.input.shape[1:]):
        raise UserError(f"`images` must be of shape [N, {', '.join(map(str, network.input.shape[1:]))}], at least one. "
                        f"Received: shape {list(images.shape)}.")
    encoders.warn_of_values(images, of_spikes=False)  # an encoder would cut them off, and the ANN does not
    encoder = encoders.create(method.encoder, timesteps, seed=seed)
    return SCALES[method.scales](network, images, percentile, encoder, method.start)


def from_activations(network: Network, images: np.ndarray, percentile: float, encoder: encoders.Encoder,
                     start: float) -> dict[str, float]:
    """Scale = the percentile of a layer's positive activations; nothing is encoded, and nothing fires."""
    seen: dict[str, list[np.ndarray]] = {name: [] for name in network.relus}
    for first in range(0, len(images), _PART):
        values = plans.run([step.call for step in network.steps],
                           {network.input: tf.constant(images[first:first + _PART])}, _in_inference)
        for neurons in network.neurons:
            if neurons.step.kind == "relu":
                activations = values[neurons.step.call.output]
                seen[neurons.step.call.name].append(_positive(activations, len(images)))
    return {name: _percentile(parts, percentile, name) for name, parts in seen.items()}


def _in_inference(call: plans.Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if drops(call.layer) else call.layer(*args, **kwargs)


def from_ceilings(network: Network) -> dict[str, float]:
    """Scale = the ceiling that a layer has learnt."""
    scales = {}
    for neurons in network.neurons:
        if neurons.step.kind == "relu":
            layer = neurons.step.call.layer
            if not isinstance(layer, QuantisedReLU):
                raise UserError(f"Layer {layer.name!r} has no learnt ceiling to take its scale from: train the network "
                                "with --neuron=relu --levels=8 (in Python models.create(..., neuron='relu', "
                                "levels=8)), or take another method.")
            scales[neurons.step.call.name] = float(layer.ceiling.numpy())
    return scales


def from_currents(network: Network, images: np.ndarray, percentile: float, encoder: encoders.Encoder,
                  start: float) -> dict[str, float]:
    """Layer by layer: scale = the percentile of the positive currents of all steps, then fire with that threshold."""
    slices = [slice(start, start + _PART) for start in range(0, len(images), _PART)]
    key = encoder.key(False, 0)
    signed = [encoder.stretch(tf.constant(images[part]), noise.derive(key, i), 0, encoder.timesteps)
              for i, part in enumerate(slices)]
    if isinstance(encoder, encoders.PoissonEncoder):
        signed = [tf.cast(train, tf.int8) for train in signed]
    # of every layer of neurons, by part of the images: what it sends out at all steps
    trains: dict[Any, list[Any]] = {network.input: signed}
    scales = {INPUT: 1.0}
    for position, neurons in enumerate(network.neurons):
        needed = {root for later in network.neurons[position:] for root in later.roots}
        trains = {root: train for root, train in trains.items() if root in needed}
        step = neurons.step
        name, output = step.call.name, step.call.output
        if step.kind == "gate":
            gate, scale = MaxPoolGate.like(step.call.layer), scales[str(network.origin[output])]
            trains[output] = [gate(currents) / scale for currents in _currents(network, neurons, trains, scales)]
            continue
        if step.kind == "relu":
            positive = [_positive(currents, len(images)) for currents in _currents(network, neurons, trains, scales)]
            scales[name] = _percentile(positive, percentile, name)
            neuron, scale = Neuron.lif(1.0, 1.0, start=start), scales[name]
        else:
            # in the ANN's units a spike counts the scale, and its shares are rounded whatever the pool
            neuron = Neuron.pooling(pooling_threshold(step.call.layer.pool_size, exact=False))
            scale = scales[str(network.origin[output])]
        trains[output] = [tf.cast(_fire(currents / scale, neuron), tf.int8)
                          for currents in _currents(network, neurons, trains, scales)]
    del scales[INPUT]
    return scales


def _fire(currents: tf.Tensor, neuron: Neuron) -> tf.Tensor:
    return gradients.simulate(currents, gradients.initial_state(tf.shape(currents)[1:], neuron), neuron)[0]


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


SCALES = {"activations": from_activations, "currents": from_currents}
"""What `methods.Method.scales` names, of those that look at images."""


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
