"""One process, tfspike, one case: started by `benchmarks.run` in the environment that has TensorFlow."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from benchmarks import measure, network

BARE_MB = measure.memory_mb("VmRSS")  # tfspike is imported later, so this is TensorFlow and Keras alone
PIPELINE_BATCHES = 200
"""Batches per timed step: enough to empty any prefetched ones, so that their making is what is measured."""


def _train_step(model: keras.Model) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    optimizer = keras.optimizers.SGD(measure.LEARNING_RATE)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(x: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            out = tf.cast(model(x, training=True), tf.float32)
            loss = tf.reduce_mean(tf.reduce_sum((out - target) ** 2, axis=1))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    return step


def _rates(model: keras.Model, x: tf.Tensor) -> list[float]:
    """Mean rate of every spiking layer, spikes per step and neuron, on two images (whole trains are large)."""
    from tfspike.neurons.layers import SpikingLayer

    outputs = [layer.output for layer in model.layers if isinstance(layer, SpikingLayer)]
    if not outputs:
        return []
    trains = keras.Model(model.inputs, outputs)(x[:2], training=False)
    return [float(tf.reduce_mean(tf.cast(train, tf.float32))) for train in trains]


def _network(given: dict[str, Any]) -> None:
    from tfspike import __version__

    images, labels = measure.images(given["net"], given["batch"])
    begin = time.perf_counter()
    if given["precision"] == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    _, gradient, *by_events = given["library"].split("-")
    model = network.create(given["net"], given["timesteps"], gradient, kernel="events" if by_events else "dense")
    x, target = tf.constant(images), tf.constant(labels)
    if given["mode"] == "train":
        step = _train_step(model)
    else:
        step = tf.function(lambda x, target: tf.argmax(model(x, training=False), axis=1))
    build = time.perf_counter() - begin
    measure.report(given, BARE_MB, build, lambda: step(x, target).numpy(), lambda: _rates(model, x),
                   {"tensorflow": tf.__version__, "keras": keras.__version__, "tfspike": __version__})


def _pipeline(given: dict[str, Any]) -> None:
    """The input pipeline alone: seconds for one batch, read from the data set as training reads it."""
    from tfspike import __version__, datasets
    from tfspike.datasets import streams

    begin = time.perf_counter()
    data = datasets.load(given["dataset"], "train", given["data_dir"])
    stream = streams.train_stream(data.images, data.labels, None, given["batch"], seed=0, info=datasets.describe(data))
    batches = iter(stream)
    build = time.perf_counter() - begin

    def step() -> None:
        for _ in range(PIPELINE_BATCHES):
            next(batches)

    measure.report(given, BARE_MB, build, step, list,
                   {"tensorflow": tf.__version__, "keras": keras.__version__, "tfspike": __version__},
                   repeats=PIPELINE_BATCHES)


def main() -> None:
    """Builds what the order asks for and reports its step."""
    given = measure.order()
    network.use_threads(given["threads"])
    (_pipeline if given["mode"] == "pipeline" else _network)(given)


if __name__ == "__main__":
    main()
