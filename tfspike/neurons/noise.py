"""Stateless random numbers: every draw is a function of (seed, training step, replica, layer), never of history.

The layer enters by its seed, and with dropout by its name too, because nets stacked by hand leave the seed alone.

Keras' `SeedGenerator` and `Dropout` draw the same numbers on every replica and keep their state out of checkpoints.
A key made here can be made again: resume, replicas and repeated predictions come out right by construction.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tfspike.neurons import philox
from tfspike.neurons.shared_function import shared

# Keys of the two phases never meet: a training step may share its number with an inference seed.
_TRAINING, _INFERENCE = 0, 1

DRAW = 1_000_003  # part j of draw d of an evaluation is encoded with seed d * DRAW + j
LARGEST_SEED = 2**31 - 1  # seeds are taken modulo this

# Named, because the automatic choice differs between devices and under XLA.
ALGORITHM = "philox"


def derive(key: tf.Tensor, *numbers: int | tf.Tensor) -> tf.Tensor:
    """A new key from `key` and integers, `[2]` int32."""
    for number in numbers:
        key = _derive(key, tf.cast(number, tf.int32))
    return key


@shared
def _derive(key: tf.Tensor, number: tf.Tensor) -> tf.Tensor:  # shared, because it is some forty operations
    return tf.random.fold_in(key, number, alg=ALGORITHM)


def uniform(shape: tf.Tensor | tuple[int, ...], key: tf.Tensor) -> tf.Tensor:
    """Uniform numbers in [0, 1), float32: 24 random bits each.

    From integers, because XLA turns the same bits into other floats than TensorFlow's kernels do.
    """
    return _unit(tf.random.stateless_uniform(shape, key, minval=None, maxval=None, dtype=tf.uint32, alg=ALGORITHM))


def uniform_of_steps(shape: tf.Tensor | tuple[int, ...], key: tf.Tensor, start: int | tf.Tensor,
                     steps: int) -> tf.Tensor:
    """`uniform(shape, derive(key, start + t))` of `steps` steps t, `[steps, *shape]`.

    The same numbers, written out as arithmetic on all of them: XLA makes one kernel of it, where the random operation
    of each step is some twenty on a GPU, most of them for a single number. Operation by operation it is slower.
    """
    numbers = tf.cast(start, tf.int32) + tf.range(steps)
    bits = philox.bits(derive(key, 0)[0], numbers, tf.reduce_prod(shape))
    return tf.reshape(_unit(bits), tf.concat([[steps], shape], axis=0))


def _unit(bits: tf.Tensor) -> tf.Tensor:
    """Random bits, uint32, to numbers in [0, 1)."""
    bits = tf.cast(tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32)), tf.int32)  # int32 casts are vectorised
    return tf.cast(bits, tf.float32) * 2.0**-24


_ONE_PROGRAM = contextvars.ContextVar("_ONE_PROGRAM", default=False)


def in_one_program() -> bool:
    """Whether what is being traced becomes one program of XLA: `as_one_program`."""
    return _ONE_PROGRAM.get()


def as_one_program(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function for `tf.function(jit_compile=True)`: noise takes the form that XLA makes the fewest kernels of."""
    return _one_program()(function)


@contextlib.contextmanager
def _one_program() -> Iterator[None]:
    token = _ONE_PROGRAM.set(True)
    try:
        yield
    finally:
        _ONE_PROGRAM.reset(token)


def replica_id() -> int | tf.Tensor:
    """Number of this replica among all that train together; 0 outside of a strategy."""
    context = tf.distribute.get_replica_context()
    return 0 if context is None else context.replica_id_in_sync_group


class NoisyLayer(keras.layers.Layer):
    """A layer that draws random numbers.

    `step` counts the training calls. It is a non-trainable weight: saved with the model, restored with it, and equal
    on every replica.

    Args:
      seed: integer; give every layer of a model another one.
    """

    def __init__(self, seed: int = 0, **kwargs: Any):
        super().__init__(**kwargs)
        self.seed = int(seed)
        self.step = self.add_weight(name="step", shape=(), dtype="int32", initializer="zeros", trainable=False,
                                    autocast=False, aggregation="only_first_replica")

    def count_with(self, other: NoisyLayer) -> None:
        """Counts training calls in the weight of `other`: the two are one layer in two networks."""
        self._untrack_variable(self.step)  # which would be written to files as a second weight, and then not be read
        self.step = other.step

    def training_key(self) -> tf.Tensor:
        """The key of this training call on this replica; advances `step`."""
        step = tf.convert_to_tensor(self.step.value)
        self.step.assign(step + 1)
        return derive(tf.constant([self.seed, _TRAINING], tf.int32), step, replica_id())

    def inference_key(self, seed: int | tf.Tensor) -> tf.Tensor:
        """The key of an inference call: the same for the same explicit `seed`."""
        return derive(tf.constant([self.seed, _INFERENCE], tf.int32), seed)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "seed": self.seed}
