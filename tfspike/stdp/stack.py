"""The convolutions of a network, one after the other: each learns from what those in front of it make of images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfspike.engine import plan as plans
from tfspike.errors import UserError
from tfspike.models.initialisation import initialise_rates
from tfspike.models.spiking_model import SpikingModel
from tfspike.neurons.layers import SpikingLayer
from tfspike.neurons.normalisation import ThresholdNorm
from tfspike.neurons.over_time import OverTime, WindowDropout
from tfspike.stdp.rules import Learning, Rule

_BATCH = 25
_RATE_SAMPLES = 32  # images that the scale of the weights is found on
_MOST = 0.4  # spikes per step; more tell little apart


class Learnt(NamedTuple):
    """What became of one convolution.

    Attributes:
      name: of the layer.
      maps: its output channels.
      change: distance of its weights from where they began, over their size.
    """

    name: str
    maps: int
    change: float


def pretrain(model: SpikingModel, images: np.ndarray, rule: Rule, shown: int,
             say: Callable[[str], None] = print) -> list[Learnt]:
    """Sets the weights of the convolutions that `chain` finds; the other layers keep theirs.

    A kernel keeps the size that it had (standard deviation). Without normalisation, which makes weights of any size
    alike, those of all layers are then scaled until neurons fire as often as they did (`initialise_rates`).

    Args:
      model: whose encoder takes images.
      images: as the model takes them, `[N, H, W, C]`.
      rule: one of `rules.RULES`.
      shown: images that every layer learns from.
      say: takes a line for every layer.

    Raises:
      UserError: no convolution can learn, or a layer stays silent.
    """
    few, rates = images[:_RATE_SAMPLES], {}
    if not model.required_plan().norms:
        rates = {name: float(tf.reduce_mean(count)) / model.timesteps
                 for name, count in model.observe(few, seed=rule.seed)[1].items()}
    front: list[Callable[[tf.Tensor], tf.Tensor]] = []
    found: list[Learnt] = []
    for call in chain(model):
        stage = call.layer.layer
        if isinstance(stage, keras.layers.AveragePooling2D):
            front.append(_pooling(rule, stage))
            continue
        size, _, inputs, maps = stage.kernel.shape
        first = rule.first(size, inputs, maps, len(found))
        layer = _learnt(rule, first, tuple(front), images, shown)
        kernel, before = rule.in_network(layer, inputs), np.asarray(stage.kernel)
        stage.kernel.assign(kernel * before.std() / max(kernel.std(), 1e-12))
        change = np.linalg.norm(layer.kernel - first.kernel) / np.linalg.norm(first.kernel)
        found.append(Learnt(call.name, maps, float(change)))
        say(f"{call.name}: {maps} maps have seen {shown} images; their weights moved by {100 * change:.0f} %.")
        front.append(_response(rule, layer))
    initialise_rates(model, few, {name: min(rate, _MOST) for name, rate in rates.items() if rate > 0.0}, rule.seed)
    return found


def chain(model: SpikingModel) -> list[plans.Call]:
    """The calls of convolutions behind one another from the encoder on that neurons read, with the poolings between
    them, up to the first sum or dense layer.

    Raises:
      UserError: there are none, or the model has no single window.
    """
    plan = model.required_plan()
    found: list[plans.Call] = []
    waiting: plans.Call | None = None  # a convolution that no neurons have followed yet
    x = plan.encoder.output
    for call in plan.window:
        inner = call.layer.layer if isinstance(call.layer, OverTime) else None
        if len(call.sources) != 1 or call.source is not x:
            break
        if isinstance(call.layer, SpikingLayer):
            found += [waiting] if waiting is not None else []
            waiting = None
        elif isinstance(inner, keras.layers.Conv2D) and (*inner.strides, inner.padding) == (1, 1, "same"):
            waiting = call
        elif isinstance(inner, keras.layers.AveragePooling2D):
            found.append(call)
        elif not isinstance(call.layer, (ThresholdNorm, WindowDropout)):
            break
        x = call.output
    if not any(isinstance(call.layer.layer, keras.layers.Conv2D) for call in found):
        raise UserError(f"STDP takes convolutions of stride 1 with neurons behind them, from the encoder on, and "
                        f"{model.name!r} begins with none.")
    return found


def _learnt(rule: Rule, layer: Learning, front: tuple[Callable[[tf.Tensor], tf.Tensor], ...], images: np.ndarray,
            shown: int) -> Learning:
    """A layer after so many images."""

    @tf.function(autograph=False, reduce_retracing=True)
    def step(batch: tf.Tensor, number: tf.Tensor, layer: Learning) -> Learning:
        activity = rule.encode(batch, number)
        for part in front:
            activity = part(activity)
        return rule.learn(layer, activity)

    order = np.arange(shown) % len(images)
    for number, start in enumerate(range(0, shown, _BATCH)):
        batch = tf.constant(images[order[start:start + _BATCH]], tf.float32)
        layer = step(batch, tf.constant(number), layer)
    return layer


def _response(rule: Rule, layer: Learning) -> Callable[[tf.Tensor], tf.Tensor]:
    return lambda activity: rule.respond(activity, layer)


def _pooling(rule: Rule, layer: Any) -> Callable[[tf.Tensor], tf.Tensor]:
    def pooled(images: tf.Tensor) -> tf.Tensor:
        return tf.nn.max_pool2d(images, layer.pool_size, layer.strides, layer.padding.upper())

    return lambda activity: rule.pool(activity, pooled)
