"""Philox 4x32-10 as arithmetic on tensors: the random bits of TensorFlow's stateless operations, of many keys at once.

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. How TensorFlow makes key and counter
of a seed, and which counter an element has, is that of `tf.random.stateless_uniform(alg="philox")`; tests compare.
"""

from __future__ import annotations

import tensorflow as tf

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the key in every round
_SCRAMBLER = (0x3EC8F720, 0x02461E29)  # the key with which TensorFlow makes key and counter of a seed

Words = tuple[tf.Tensor, ...]


def bits(first: tf.Tensor, second: tf.Tensor, count: int | tf.Tensor) -> tf.Tensor:
    """`tf.random.stateless_uniform([count], [first, second[i]], None, None, tf.uint32, "philox")` of all i.

    Args:
      first: of every seed, int32.
      second: `[seeds]` int32.
      count: numbers of each seed.

    Returns:
      `[seeds, count]` uint32.
    """
    second = second[:, tf.newaxis]
    scrambled = _block((*_words(first), *_words(second)), tuple(tf.constant(word, tf.uint32) for word in _SCRAMBLER))
    group = tf.cast(tf.range((count + 3) // 4), tf.uint32)[tf.newaxis]  # four numbers come of one counter
    zero = tf.zeros((), tf.uint32)
    found = tf.stack(_block((group, zero, *scrambled[2:]), scrambled[:2]), axis=-1)
    return tf.reshape(found, [tf.shape(second)[0], -1])[:, :count]


def _words(number: tf.Tensor) -> Words:
    """The low and the high half of an int32 that became an int64."""
    return tf.bitcast(number, tf.uint32), tf.bitcast(tf.bitwise.right_shift(number, 31), tf.uint32)


def _block(counter: Words, key: Words) -> Words:
    """Four random words of a counter of four words and a key of two."""
    for number in range(_ROUNDS):
        if number:
            key = tuple(word + tf.constant(step, tf.uint32) for word, step in zip(key, _WEYL))
        (high, low), (other_high, other_low) = (_product(counter[i], by) for i, by in zip((0, 2), _MULTIPLIERS))
        xor = tf.bitwise.bitwise_xor
        counter = (xor(xor(other_high, counter[1]), key[0]), other_low, xor(xor(high, counter[3]), key[1]), low)
    return counter


def _product(word: tf.Tensor, by: int) -> Words:
    """The high and the low word of a product."""
    product = tf.cast(word, tf.uint64) * tf.constant(by, tf.uint64)
    return tf.cast(tf.bitwise.right_shift(product, tf.constant(32, tf.uint64)), tf.uint32), tf.cast(product, tf.uint32)
