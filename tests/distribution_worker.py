"""Runs in a process of its own, because logical devices must be made before TensorFlow starts: prints JSON.

    python tests/distribution_worker.py rate event many validation noise fit callbacks long
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path[:0] = [os.path.dirname(os.path.abspath(__file__)), os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

import runs  # noqa: E402
from tfspike import Diagnosis, FiringRates, SpikingModel, ThresholdNorm, distribution  # noqa: E402
from tfspike.distribution import Worker  # noqa: E402
from tfspike.engine import folding  # noqa: E402
from tfspike.neurons import encoders  # noqa: E402
from tfspike.neurons.layers import LIF, Readout  # noqa: E402
from tfspike.neurons.over_time import OverTime  # noqa: E402
from tfspike.training.step import TrainStep  # noqa: E402
from tfspike.training.trainer import Trainer  # noqa: E402

LEAK, STEPS, T, B, UNITS, CLASSES, INPUTS = 0.9, 20, 6, 4, 5, 3, 7


@functools.cache  # two mirrored strategies of one process would share the keys of their collectives
def strategies():
    return {name: distribution.make_strategy(name) for name in ("one", "mirrored")}


def one_step(gradient: str) -> dict:
    """The update of one step of LeNet on the same encoded input, by device count."""
    found = {}
    for name, strategy in strategies().items():
        config = runs.tiny("unused", hidden=200, encoder="direct", gradient=gradient, batch_size=16, timesteps=16,
                           learning_rate=1000.0,  # updates far above the rounding of the weights
                           weight_decay=0.0, clip_norm=0.5)
        trainer = Trainer(config, strategy, Worker(), lambda line: None)
        before = [v.value.numpy() for v in trainer.model.trainable_variables]
        images, labels = next(iter(distribution.distribute(strategy, trainer.stream.dataset(), trainer.worker)))
        numbers = trainer.train_step.numbers(trainer.train_step(images, labels))
        found[name] = [v.value.numpy() - b for v, b in zip(trainer.model.trainable_variables, before)], numbers
        found[name][1]["replicas"] = strategy.num_replicas_in_sync
    (a, numbers), (b, others) = found["one"], found["mirrored"]
    return {"replicas": others["replicas"], "rates": [v for k, v in numbers.items() if k.startswith("rate/")],
            "relative": [float(np.linalg.norm(x - y) / np.linalg.norm(x)) for x, y in zip(a, b)],
            "loss": [numbers["loss"], others["loss"]], "correct": [numbers["correct"], others["correct"]]}


def small_net(seed: int) -> SpikingModel:
    inputs = keras.Input((T, INPUTS))
    x = encoders.create(None, T)(inputs)
    weights = keras.initializers.VarianceScaling(4.0, "fan_in", "untruncated_normal", seed=seed)
    x = LIF(LEAK)(OverTime(keras.layers.Dense(UNITS, use_bias=False, kernel_initializer=weights))(x))
    x = OverTime(keras.layers.Dense(CLASSES, use_bias=False, kernel_initializer=weights))(x)
    return SpikingModel(inputs, Readout(LEAK)(x))


def closest_membrane(kernel: np.ndarray, spikes: np.ndarray) -> float:
    """Smallest |u - threshold| of the hidden neurons, in float64, for spikes `[B, T, inputs]`."""
    v, closest = np.zeros((len(spikes), UNITS)), np.inf
    for t in range(T):
        u = v + spikes[:, t].astype("d") @ kernel.astype("d")
        closest = min(closest, float(np.abs(u - 1.0).min()))
        v = np.where(u > 1.0, 0.0, LEAK * u)
    return closest


def many_steps(seed: int = 0) -> dict:
    """20 steps of a small net: largest difference of any weight, and how far membranes stayed from the threshold."""
    rng = np.random.default_rng(seed)
    spikes = (rng.random((STEPS, B, T, INPUTS)) < 0.5).astype("f")
    labels = rng.integers(0, CLASSES, (STEPS, B)).astype("i")
    config = dataclasses.replace(runs.tiny("unused"), batch_size=B, learning_rate=0.05)
    final, closest, rates, moved = {}, np.inf, [], 0.0
    for name, strategy in strategies().items():
        with strategy.scope():
            model = small_net(seed)
            optimizer = keras.optimizers.SGD(0.05)
            optimizer.build(model.trainable_variables)
        step = TrainStep(model, optimizer, strategy, config)
        begin = [v.value.numpy() for v in model.trainable_variables]
        data = tf.data.Dataset.from_tensor_slices((spikes.reshape(-1, T, INPUTS), labels.reshape(-1)))
        batches = distribution.distribute(strategy, data.batch(B, drop_remainder=True), Worker())
        for k, (images, wanted) in enumerate(batches):
            closest = min(closest, closest_membrane(model.trainable_variables[0].value.numpy(), spikes[k]))
            numbers = step.numbers(step(images, wanted))
            rates += [value for key, value in numbers.items() if key.startswith("rate/")]
        final[name] = [v.value.numpy() for v in model.trainable_variables]
        moved = min(float(np.abs(a - b).max()) for a, b in zip(begin, final[name]))
    return {"difference": max(float(np.abs(a - b).max()) for a, b in zip(*final.values())), "closest": closest,
            "rate": float(np.mean(rates)), "moved": moved}


def normalisation(gradient: str, first: int = B) -> dict:
    """Output, gradients and running statistics of a normalisation: on two parts of a batch, and on all of it."""
    rng = np.random.default_rng(1)
    currents = (rng.normal(size=(T, 2 * B, 3, 3, 5)) * [1, 3, 0.2, 1, 1] + [0, 1, -2, 0, 5]).astype("f")
    currents[:, B:] += 1.0  # the parts differ in their own statistics
    upstream = rng.normal(size=currents.shape).astype("f")
    found = {}
    for name, strategy in strategies().items():
        with strategy.scope():
            layer = ThresholdNorm(gradient=gradient)
            layer.build(currents.shape)

        def part(context, values, count=strategy.num_replicas_in_sync):
            parts = [values] if count == 1 else np.split(values, [first], axis=1)
            return tf.constant(parts[context.replica_id_in_sync_group])

        def replica(x, g, layer=layer):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, training=True)
                loss = tf.reduce_sum(g * y)
            return y, *tape.gradient(loss, (x, layer.gamma.value, layer.beta.value))

        @tf.function(autograph=False)
        def run(x, g, strategy=strategy, replica=replica):
            return strategy.run(replica, args=(x, g))

        args = [strategy.experimental_distribute_values_from_function(functools.partial(part, values=values))
                for values in (currents, upstream)]
        y, dx, gamma, beta = [[p.numpy() for p in strategy.experimental_local_results(value)] for value in run(*args)]
        found[name] = [np.concatenate(y, 1), np.concatenate(dx, 1), sum(gamma), sum(beta), layer.moving_mean.numpy(),
                       layer.moving_variance.numpy()]
    return {"difference": [float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(*found.values())]}


def learning() -> dict:
    """The loss of a normalised LeNet through its real training step, on two devices."""
    config = runs.tiny("unused", encoder="direct", norm="tdbn", surrogate="triangular", batch_size=16, timesteps=4,
                       optimizer="adam", learning_rate=0.003, lr_milestones=())
    trainer = Trainer(config, strategies()["mirrored"], Worker(), lambda line: None)
    batches = iter(distribution.distribute(trainer.strategy, trainer.stream.dataset(), trainer.worker))
    return {"losses": [trainer.train_step.numbers(trainer.train_step(*next(batches)))["loss"] for _ in range(40)]}


def validation() -> dict:
    """45 records in parts of 8 among two devices, and among one."""
    found = {}
    for name, strategy in strategies().items():
        config = runs.tiny("unused", val_fraction=45 / 6000)
        trainer = Trainer(config, strategy, Worker(), lambda line: None)
        result = trainer.evaluator.run()
        found[name] = {"loss": result.loss, "accuracy": result.accuracy, "rates": result.rates,
                       "outputs": result.outputs.tolist()}
    return {"equal": found["one"] == found["mirrored"], "records": len(found["one"]["outputs"]),
            "spread": float(np.std(found["one"]["outputs"]))}


def noise() -> dict:
    """Encoded input of equal images on two devices, twice."""
    strategy = strategies()["mirrored"]
    drawn = []
    for _ in range(2):
        with strategy.scope():
            encoder = encoders.create("poisson", 6, seed=3)

        @tf.function(autograph=False)
        def draw(encoder=encoder):
            return strategy.run(lambda: encoder(tf.fill((2, 8, 8, 1), 0.5), training=True))

        draw()
        parts = [part.numpy() for part in strategy.experimental_local_results(draw())]
        drawn.append(parts)
    return {"differ_by_replica": not np.array_equal(*drawn[0]),
            "repeat": all(np.array_equal(a, b) for a, b in zip(*drawn)), "steps": int(encoder.step.value.numpy())}


class OfTrains(keras.regularizers.Regularizer):
    """A penalty that the fast path does not compute from counts."""

    def __call__(self, x):
        return 0.05 * tf.reduce_sum(x)


def fitted(*kinds: str) -> dict:
    """Weights after Keras' `fit` on one device and on two, by layers whose thresholds adapt or are learnt; and whether
    they stay finite where the last batch of an epoch is too small for two."""
    rng = np.random.default_rng(0)
    x, y = rng.random((17, INPUTS)).astype("f"), np.eye(CLASSES, dtype="f")[np.arange(17) % CLASSES]
    options_of = {"adapting": {"homeostasis": 0.1, "activity_regularizer": keras.regularizers.L1(1e-3)},
                  "by layers": {"homeostasis": 0.1, "activity_regularizer": OfTrains()},
                  "moving": {"running_start": True},
                  "learnt": {"learn": ("leak", "threshold"), "credit": "time"}}
    found = {}
    for kind in kinds:
        models = []
        for strategy in strategies().values():
            with strategy.scope():
                inputs = keras.Input((INPUTS,))
                weights = keras.initializers.VarianceScaling(4.0, "fan_in", "untruncated_normal", seed=1)
                hidden = OverTime(keras.layers.Dense(UNITS, use_bias=False, kernel_initializer=weights))
                hidden = hidden(encoders.create("direct", T)(inputs))
                hidden = LIF(LEAK, gradient="rate", surrogate="arctan", **options_of[kind])(hidden)
                output = OverTime(keras.layers.Dense(CLASSES, use_bias=False, kernel_initializer=weights))(hidden)
                models.append(SpikingModel(inputs, Readout(LEAK)(output)))
                models[-1].compile(keras.optimizers.SGD(0.05), "mse")
            models[-1].fit(x[:16], y[:16], batch_size=8, epochs=2, shuffle=False, verbose=0)
        one, two = (folding.fold(model).get_weights() + model.get_weights() for model in models)
        models[1].fit(x, y, batch_size=8, shuffle=False, verbose=0)
        found[kind] = {"difference": max(float(np.abs(a - b).max()) for a, b in zip(one, two)),
                       "finite": all(np.isfinite(weight).all() for weight in models[1].get_weights())}
    return found


def keras_fit() -> dict:
    """Weights after Keras' `fit` with every callback of ours, on one device and on two."""
    spikes = np.random.default_rng(0).integers(0, 2, (16, T, INPUTS)).astype("f")
    labels, found = np.arange(16) % CLASSES, {}
    for name, strategy in strategies().items():
        with strategy.scope():
            model = small_net(seed=1)
            model.compile(keras.optimizers.SGD(0.5), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        before = [v.value.numpy() for v in model.trainable_variables]
        model.fit(spikes, labels, batch_size=4, shuffle=False, verbose=0,
                  callbacks=[FiringRates(), Diagnosis(every=1, say=lambda text: None)])
        model.fit(spikes, labels, batch_size=4, shuffle=False, verbose=0)  # which brings a callback of its own
        found[name] = [v.value.numpy() for v in model.trainable_variables]
    pairs = list(zip(found["one"], found["mirrored"], before))
    return {"difference": max(float(np.abs(a - b).max()) for a, b, _ in pairs),
            "moved": max(float(np.abs(a - c).max()) for a, _, c in pairs)}


def long(steps: int = 200) -> dict:
    """Mean loss of the last 20 of 200 steps of LeNet: three seeds on one device, the first of them on two."""
    def loss(strategy, seed: int) -> float:
        config = runs.tiny("unused", hidden=200, timesteps=10, batch_size=16, steps_per_epoch=steps, epochs=1, seed=seed,
                           lr_milestones=())
        trainer = Trainer(config, strategy, Worker(), lambda line: None)
        batches = iter(distribution.distribute(strategy, trainer.stream.dataset(), trainer.worker))
        losses = [trainer.train_step.numbers(trainer.train_step(*next(batches)))["loss"] for _ in range(steps)]
        return float(np.mean(losses[-20:]))

    kinds = strategies()
    return {"one": [loss(kinds["one"], seed) for seed in range(3)], "two": loss(kinds["mirrored"], 0)}


if __name__ == "__main__":
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0],
                                               [tf.config.LogicalDeviceConfiguration()] * 2)
    WHAT = {"rate": lambda: one_step("rate"), "event": lambda: one_step("event"), "many": many_steps,
            # Shares of the first device: a half, three quarters, and all of a last batch too small for two
            "normalisation": lambda: {gradient: {first: normalisation(gradient, first) for first in (B, 6, 2 * B)}
                                      for gradient in ("event", "rate")},
            "learning": learning, "validation": validation, "noise": noise, "long": long,
            "fit": lambda: fitted("adapting"), "fit_more": lambda: fitted("by layers", "moving", "learnt"), "callbacks": keras_fit}
    print(json.dumps({what: WHAT[what]() for what in sys.argv[1:]}))
