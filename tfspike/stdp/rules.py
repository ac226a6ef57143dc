"""Spike-timing-dependent plasticity (STDP) of a convolution: two rules, without labels, for one layer after the other.

w_i is the weight of synapse i of a map of neurons, shared by all positions; borders are padded with silence.

**Kheradpisheh et al. 2018** (`First`). Every neuron fires once at most, and its information is when, t = 0..T-1:

    potential   u_t = sum of w_i over synapses with t_i <= t, no leak; the spike at the first step with u_t > theta
    position    of the maps at one position only the first to fire competes, of equals that with the highest u
    image       K neurons at most learn, in the same order: each of another map, none within R positions of another
    weights     w_i <- w_i + a w_i (1 - w_i)         where t_i <= t of the learning neuron
                w_i <- w_i - 3/4 a w_i (1 - w_i)     where synapse i fired later, or not at all

Pixels become on and off spikes by differences of Gaussians, the strongest first, in steps of equally many spikes.
Of the authors, as their group's library SpykeTorch has them for MNIST: these equations, K = 5 and R = 2 of their first
layer, a = .004, doubled every 500 images up to .15, w from a normal distribution of mean .8 and deviation .05,
Gaussians of 1 and 2 pixels in 7x7, 15 steps, one image at a time. Ours: theta = .4 k^2 for a k x k kernel (their 10 for
k = 5; they have 1 for k = 2), K and R of the first layer in all layers, contrasts below a fifth of the image's largest
left out (they have a threshold of 50 and a local normalisation), and that w_on - w_off of the first layer is what a
network takes over.

**After Lee et al. 2018** (`Leaky`), who pre-train convolutions layer by layer on Poisson spikes, for backpropagation to
go on from. LIF neurons fire as often as they are driven; r is exp(-(t - t_i) / tau) of the last spike of synapse i:

    position    at every step only the map furthest above its threshold fires, which resets all maps there
    weights     w_i <- w_i + eta (mean of r_i over the map's spikes - offset) (1 - w_i) (1 + w_i)
    thresholds  theta <- theta (1 + h (n / n_due - 1)), the last part within [-1, 1], for n spikes of the map

once for every batch. That layers learn one after the other from Poisson spikes is theirs; this form of the rule and all
constants are ours, as the paper's equations were not at hand.

A network takes the kernels of either over without their mean (ours), so that a map responds to a pattern and not to how
much fires.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfspike.neurons import encoders, noise


class Learning(NamedTuple):
    """A layer that learns, float32.

    Attributes:
      kernel: `[k, k, C_in, C]`.
      threshold: of every map, `[C]`.
      seen: images so far, `[]`.
    """

    kernel: tf.Tensor
    threshold: tf.Tensor
    seen: tf.Tensor


class Rule:
    """What the two share. What stands for the spikes of B images, "activity", differs.

    Args:
      steps: T, of the window in which layers learn.
      leak: of neurons that leak.
      seed: of first weights, and of spikes that are drawn.
    """

    def __init__(self, steps: int, leak: float = 1.0, seed: int = 0):
        self.steps, self.leak, self.seed = steps, leak, seed

    def first(self, kernel: int, inputs: int, maps: int, layer: int) -> Learning:
        """A layer before its first image; `inputs` are those of the layer in front, or of the pixels."""
        raise NotImplementedError

    def encode(self, images: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        """The activity of pixels `[B, H, W, C]` in the batch of this number."""
        raise NotImplementedError

    def respond(self, activity: tf.Tensor, layer: Learning) -> tf.Tensor:
        """The activity of a layer for that in front of it."""
        raise NotImplementedError

    def pool(self, activity: tf.Tensor, pooled: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
        """The activity behind a pooling: in every window the spikes of any neuron."""
        raise NotImplementedError

    def learn(self, layer: Learning, activity: tf.Tensor) -> Learning:
        """The layer after a batch of images, for the activity in front of it."""
        raise NotImplementedError

    def in_network(self, layer: Learning, inputs: int) -> np.ndarray:
        """What the kernel is for a convolution with so many inputs, `[k, k, inputs, C]` float32."""
        raise NotImplementedError


class First(Rule):
    """Kheradpisheh et al. 2018.

    Activity is urgency, `[B, H, W, C]` float32: T - t + q for a spike at step t, where 0 <= q < 1 has the potential of
    the neuron, and 0 without a spike. Whatever fires first is the largest.
    """

    WINNERS, RADIUS = 5, 2
    RATE, DOUBLED_EVERY, LARGEST_RATE, DEPRESSION = 0.004, 500.0, 0.15, 0.75
    THRESHOLD, FAINTEST = 0.4, 0.2

    def first(self, kernel: int, inputs: int, maps: int, layer: int) -> Learning:
        rng = np.random.default_rng([self.seed, layer])
        weights = rng.normal(0.8, 0.05, (kernel, kernel, inputs * (1 if layer else 2), maps))
        return Learning(tf.constant(np.clip(weights, 0.0, 1.0), tf.float32),
                        tf.fill((maps,), self.THRESHOLD * kernel**2), tf.zeros(()))

    def encode(self, images: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        del number  # nothing is drawn
        channels = images.shape[-1]
        dog = tf.constant(np.repeat(_difference_of_gaussians()[..., np.newaxis, np.newaxis], channels, axis=2))
        contrast = tf.nn.depthwise_conv2d(images, dog, [1, 1, 1, 1], "SAME")
        both = tf.maximum(tf.concat([contrast, -contrast], axis=-1), 0.0)
        flat = tf.reshape(both, (-1, math.prod(both.shape[1:])))
        heard = flat > self.FAINTEST * tf.reduce_max(flat, axis=1, keepdims=True)
        order = tf.argsort(tf.argsort(tf.where(heard, flat, 0.0), direction="DESCENDING", stable=True), stable=True)
        spikes = tf.reduce_sum(tf.cast(heard, tf.int32), axis=1, keepdims=True)
        when = order * self.steps // tf.maximum(spikes, 1)
        return tf.reshape(tf.where(heard, tf.cast(self.steps - when, tf.float32), 0.0), (-1, *both.shape[1:]))

    def respond(self, activity: tf.Tensor, layer: Learning) -> tf.Tensor:
        shape = activity.shape
        steps = tf.reshape(tf.range(self.steps, dtype=tf.float32), (-1, 1, 1, 1, 1))
        arrived = tf.cast(self._when(activity) <= steps, tf.float32)
        u = tf.nn.conv2d(tf.reshape(arrived, (-1, *shape[1:])), layer.kernel, 1, "SAME")
        u = tf.reshape(u, (self.steps, -1, *u.shape[1:]))
        above = u > layer.threshold
        at = tf.argmax(above, axis=0, output_type=tf.int32)
        when = tf.cast(at, tf.float32)
        potential = tf.reduce_sum(tf.where(tf.equal(steps, when), u, 0.0), axis=0)
        synapses = math.prod(layer.kernel.shape[:3])
        return tf.where(tf.reduce_any(above, axis=0), self.steps - when + potential / (synapses + 1.0), 0.0)

    def pool(self, activity: tf.Tensor, pooled: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
        return pooled(activity)

    def learn(self, layer: Learning, activity: tf.Tensor) -> Learning:
        def one(i: tf.Tensor, kernel: tf.Tensor, seen: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            before = _competing(activity[i:i + 1])
            behind = _competing(self.respond(before, layer._replace(kernel=kernel)))[0]
            rate = tf.minimum(self.RATE * 2.0 ** tf.floor(seen / self.DOUBLED_EVERY), self.LARGEST_RATE)
            moved = kernel + rate * self._directions(before[0], behind, kernel.shape) * kernel * (1.0 - kernel)
            return i + 1, tf.clip_by_value(moved, 0.0, 1.0), seen + 1.0

        images = tf.shape(activity)[0]
        _, kernel, seen = tf.while_loop(lambda i, *_: i < images, one, (0, layer.kernel, layer.seen))
        return Learning(kernel, layer.threshold, seen)

    def _directions(self, before: tf.Tensor, behind: tf.Tensor, shape: tf.TensorShape) -> tf.Tensor:
        """1 where a weight grows, -3/4 where it shrinks, 0 in maps that do not learn from this image."""
        size, (height, width, maps) = shape[0], behind.shape
        low = (size - 1) // 2
        when = tf.pad(self._when(before), [[low, size - 1 - low]] * 2 + [[0, 0]], constant_values=float(self.steps))
        rows, columns = tf.range(height)[:, tf.newaxis, tf.newaxis], tf.range(width)[:, tf.newaxis]
        directions = tf.zeros(shape)
        for _ in range(self.WINNERS):
            winner = tf.argmax(tf.reshape(behind, [-1]), output_type=tf.int32)
            row, column, chosen = winner // (width * maps), winner // maps % width, winner % maps
            urgency = behind[row, column, chosen]
            seen = tf.slice(when, tf.stack([row, column, 0]), [size, size, shape[2]])
            change = tf.where(seen <= self._when(urgency), 1.0, -self.DEPRESSION) * tf.cast(urgency > 0.0, tf.float32)
            directions += change[..., tf.newaxis] * tf.one_hot(chosen, maps)
            near = (tf.abs(rows - row) <= self.RADIUS) & (tf.abs(columns - column) <= self.RADIUS)
            behind = tf.where(near | tf.equal(tf.range(maps), chosen), 0.0, behind)
        return directions

    def _when(self, urgency: tf.Tensor) -> tf.Tensor:
        """The step of a spike, T without one."""
        return self.steps - tf.floor(urgency)

    def in_network(self, layer: Learning, inputs: int) -> np.ndarray:
        kernel = layer.kernel.numpy()
        return _centred(kernel[:, :, :inputs] - kernel[:, :, inputs:] if kernel.shape[2] > inputs else kernel)


class Leaky(Rule):
    """After Lee et al. 2018.

    Activity is a spike train, `[T, B, H, W, C]` float32; pixels may spike with either sign.
    """

    RATE, TAU, OFFSET = 0.1, 5.0, 0.4
    ADAPTATION, DUE = 0.1, 0.1  # of thresholds; spikes per position and step of all maps together

    def __init__(self, steps: int, leak: float = 1.0, seed: int = 0):
        super().__init__(steps, leak, seed)
        self._encoder = encoders.PoissonEncoder(steps, dtype="float32")

    def first(self, kernel: int, inputs: int, maps: int, layer: int) -> Learning:
        rng = np.random.default_rng([self.seed, layer])
        return Learning(tf.constant(rng.normal(0.0, 0.1, (kernel, kernel, inputs, maps)), tf.float32),
                        tf.ones((maps,)), tf.zeros(()))

    def encode(self, images: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        key = noise.derive(tf.constant([self.seed, 0], tf.int32), number)
        return self._encoder.encode(images, key, 0, self.steps)

    def respond(self, activity: tf.Tensor, layer: Learning) -> tf.Tensor:
        currents = tf.nn.conv2d(tf.reshape(activity, (-1, *activity.shape[2:])), layer.kernel, 1, "SAME")
        currents = tf.reshape(currents, (self.steps, -1, *currents.shape[1:]))
        membrane, train = tf.zeros_like(currents[0]), []
        for current in tf.unstack(currents):
            u = membrane + current
            over = u / layer.threshold
            fired = (over > 1.0) & tf.equal(over, tf.reduce_max(over, axis=-1, keepdims=True))
            membrane = tf.where(tf.reduce_any(fired, axis=-1, keepdims=True), 0.0, self.leak * u)
            train.append(tf.cast(fired, tf.float32))
        return tf.stack(train)

    def pool(self, activity: tf.Tensor, pooled: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
        found = pooled(tf.reshape(activity, (-1, *activity.shape[2:])))
        return tf.reshape(found, (self.steps, -1, *found.shape[1:]))

    def learn(self, layer: Learning, activity: tf.Tensor) -> Learning:
        spikes = self.respond(activity, layer)
        trace, traces = tf.zeros_like(activity[0]), []
        for spike in tf.unstack(activity):
            trace = tf.where(tf.equal(spike, 0.0), math.exp(-1.0 / self.TAU) * trace, spike)
            traces.append(trace)
        before, behind = (tf.reshape(x, (-1, *x.shape[2:])) for x in (tf.stack(traces), spikes))
        with tf.GradientTape() as tape:  # which correlates the two over steps, images and positions
            tape.watch(layer.kernel)
            currents = tf.nn.conv2d(before, layer.kernel, 1, "SAME")
        total = tape.gradient(currents, layer.kernel, output_gradients=behind)
        count = tf.reduce_sum(behind, axis=(0, 1, 2))
        moved = self.RATE * (total / tf.maximum(count, 1.0) - self.OFFSET) * (1.0 - tf.square(layer.kernel))
        kernel = tf.clip_by_value(layer.kernel + tf.where(count > 0.0, moved, 0.0), -1.0, 1.0)
        due = self.DUE * tf.cast(tf.size(behind), tf.float32) / layer.kernel.shape[-1] ** 2
        too_many = tf.clip_by_value(count / due - 1.0, -1.0, 1.0)
        images = tf.cast(tf.shape(activity)[1], tf.float32)
        return Learning(kernel, layer.threshold * (1.0 + self.ADAPTATION * too_many), layer.seen + images)

    def in_network(self, layer: Learning, inputs: int) -> np.ndarray:
        return _centred(layer.kernel.numpy())


RULES: dict[str, type[Rule]] = {"kheradpisheh": First, "lee": Leaky}


def _competing(urgency: tf.Tensor) -> tf.Tensor:
    """Urgency `[B, H, W, C]` of the first map to fire at every position, 0 of the others."""
    return tf.where(tf.equal(urgency, tf.reduce_max(urgency, axis=-1, keepdims=True)), urgency, 0.0)


def _centred(kernel: np.ndarray) -> np.ndarray:
    """Without its mean, so that a map responds to a pattern and not to how much fires."""
    return kernel - kernel.mean((0, 1, 2))


def _difference_of_gaussians(size: int = 7, narrow: float = 1.0, wide: float = 2.0) -> np.ndarray:
    """The filter of an on cell, `[size, size]` float32: 0 for even light."""
    distance = np.arange(size) - size // 2
    square = distance[:, np.newaxis] ** 2 + distance**2
    dog = np.exp(-square / (2 * narrow**2)) / narrow**2 - np.exp(-square / (2 * wide**2)) / wide**2
    return (dog - dog.mean()).astype(np.float32)
