"""One process, tfspike learning: started by `benchmarks.accuracy` in the environment that has TensorFlow."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from benchmarks import learning, measure, network
from benchmarks.cases import CLASSES
from benchmarks.last_spike import with_last_spike
from tfspike import __version__
from tfspike.training.optimisation import decays

# "event" sees the surrogate at every step, "rate" its mean: see docs/depth.md.
DEEP_WIDTH = {"rate": 2.0, "event": 1.0}


def main() -> None:
    """Builds the network and trains it."""
    given = measure.order()
    network.use_threads(given["threads"])
    if given["precision"] == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    gradient, deep = given["library"].split("-")[1], given["deep"]
    own = {"surrogate": "arctan", "surrogate_width": DEEP_WIDTH[gradient], "norm": "tdbn", "pooling": "average",
           "encoder": "direct", "kappa": 2.0} if deep else {}
    model = network.create(given["net"], given["timesteps"], gradient, seed=given["seed"], shortcut=given["shortcut"],
                           **own)
    if given["library"].endswith("last-spike"):
        model = with_last_spike(model)
    if deep:
        optimizer = keras.optimizers.AdamW(learning.DEEP_RATE, weight_decay=learning.DEEP_DECAY)
        optimizer.exclude_from_weight_decay([weight for weight in model.trainable_variables if not decays(weight)])
        rate = learning.DEEP_RATE
    else:
        rule, rate = learning.optimizer_of(given["library"])
        optimizer = {"sgd": keras.optimizers.SGD, "adam": keras.optimizers.Adam}[rule](rate)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            out = tf.cast(model(x, training=True), tf.float32)
            if deep:
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, out))
            else:
                loss = tf.reduce_mean(tf.reduce_sum((out - tf.one_hot(y, CLASSES)) ** 2, axis=1))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    infer = tf.function(lambda x: tf.argmax(model(x, training=False), axis=1), reduce_retracing=True)

    def train(x: np.ndarray, y: np.ndarray, share: float) -> None:
        optimizer.learning_rate.assign(rate * share)
        step(tf.constant(x), tf.constant(y)).numpy()

    learning.learn(given, train, lambda x: infer(tf.constant(x)).numpy(),
                   {"tensorflow": tf.__version__, "keras": keras.__version__, "tfspike": __version__})


if __name__ == "__main__":
    main()
