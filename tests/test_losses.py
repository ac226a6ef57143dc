"""What training minimises, against NumPy written out, and what reports make of the same scores."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfspike import LIF, DirectEncoder, OverTime, Readout, SpikingModel, UserError
from tfspike.models import losses

RNG = np.random.default_rng(0)
SCORES, LABELS = RNG.normal(size=(7, 4)).astype("f"), RNG.integers(0, 4, 7)


def softmax(scores: np.ndarray) -> np.ndarray:
    shares = np.exp(scores.astype("d"))
    return shares / shares.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("kind", losses.LOSSES)
def test_the_loss_of_every_record_is_that_of_its_equation(kind: str, smoothing: float) -> None:
    wanted = (1 - smoothing) * np.eye(4)[LABELS] + smoothing / 4
    expected = (np.sum((SCORES - wanted)**2, axis=1) if kind == "squared" else
                -np.sum(wanted * np.log(softmax(SCORES)), axis=1))
    found = losses.per_record(kind, tf.constant(SCORES), tf.constant(LABELS), smoothing)
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", losses.LOSSES)
def test_the_mean_of_a_report_is_that_of_training_without_smoothing(kind: str) -> None:
    found = losses.per_record(kind, tf.constant(SCORES), tf.constant(LABELS))
    assert losses.mean(kind, SCORES, LABELS) == pytest.approx(float(tf.reduce_mean(found)), rel=1e-5)
    assert losses.mean("cross_entropy", np.array([[1e4, 0.0]]), np.array([1])) == pytest.approx(1e4)  # no overflow


@pytest.mark.parametrize(("loss", "of_probabilities"), [
    ("categorical_crossentropy", True), ("SparseCategoricalCrossentropy", True), (keras.losses.binary_crossentropy, True),
    (keras.losses.CategoricalCrossentropy(), True), (keras.losses.CategoricalCrossentropy(from_logits=True), False),
    ("mse", False), (keras.losses.MeanSquaredError(), False), (lambda y, scores: scores - y, False), (None, False)])
def test_losses_of_keras_that_take_probabilities_are_known(loss: Any, of_probabilities: bool) -> None:
    assert losses.takes_probabilities(loss) == of_probabilities


@pytest.mark.parametrize("kind", losses.LOSSES)
def test_scores_become_probabilities(kind: str) -> None:
    shares = losses.probabilities(kind, SCORES)
    np.testing.assert_allclose(shares.sum(axis=1), 1.0, rtol=1e-6)
    assert (shares >= 0).all()
    if kind == "cross_entropy":
        np.testing.assert_allclose(shares, softmax(SCORES), rtol=1e-5)
    else:  # all below 0: nothing is known
        np.testing.assert_allclose(losses.probabilities(kind, np.array([[0.5, 2.0, -1.0], [-1.0, -1.0, -2.0]])),
                                   [[1 / 3, 2 / 3, 0], [1 / 3, 1 / 3, 1 / 3]])


def test_the_firing_rate_is_spikes_per_neuron_and_step() -> None:
    activity = {"a": tf.constant(RNG.integers(0, 6, (3, 2, 2, 5)), tf.float32), "b": tf.ones((3, 7))}
    spikes = float(np.sum(activity["a"])) + 21
    assert float(losses.firing_rate(activity, 5, 3)) == pytest.approx(spikes / (3 * 27 * 5))
    assert float(losses.firing_rate(activity, 5, 6)) == pytest.approx(spikes / (6 * 27 * 5)), "a part of a batch of 6"


def of_every_step(timesteps: int, units: int, by_records: bool = False) -> SpikingModel:
    inputs = keras.Input((6,))
    x = OverTime(keras.layers.Dense(8))(DirectEncoder(timesteps)(inputs))
    y = Readout(0.9)(OverTime(keras.layers.Dense(units))(LIF(0.9, surrogate="arctan")(x)), every_step=True)
    return SpikingModel(inputs, keras.ops.swapaxes(y, 0, 1) if by_records else y)


@pytest.mark.usefixtures("layer_by_layer")
@pytest.mark.parametrize("loss, timesteps, units, batch", [
    (keras.losses.SparseCategoricalCrossentropy(from_logits=True), 4, 3, 4), ("mse", 4, 3, 4), ("mse", 4, 1, 4),
    (keras.losses.mean_absolute_error, 4, 3, 1), ("mse", 1, 3, 4)])
def test_targets_of_steps_do_not_meet_outputs_of_other_records(loss: Any, timesteps: int, units: int,
                                                               batch: int) -> None:
    # With as many records as steps, or one of either, Keras would broadcast and say nothing
    images = np.random.default_rng(0).uniform(0, 1, (8, 6)).astype("f")
    targets = np.zeros((8, timesteps, units) if loss == "mse" or units == 1 or batch == 1 else (8, timesteps))
    model, right = (of_every_step(timesteps, units, by_records) for by_records in (False, True))
    model.compile("sgd", loss)
    for act in (model.fit, model.evaluate):
        with pytest.raises(UserError, match="swapaxes"):
            act(images, targets, batch_size=batch, verbose=0)
    right.compile("sgd", loss)
    right.fit(images, targets, batch_size=batch, verbose=0)
    assert right.predict(images, verbose=0).shape == (8, timesteps, units)


@pytest.mark.usefixtures("layer_by_layer")
def test_one_target_for_all_steps_and_losses_of_one_s_own_are_left_alone() -> None:
    images = np.random.default_rng(0).uniform(0, 1, (4, 6)).astype("f")
    model = of_every_step(3, 3)
    scores = model(images).numpy()
    model.compile("sgd", "mse")
    assert model.evaluate(images, np.eye(4, 3), verbose=0) == pytest.approx(np.mean((scores - np.eye(4, 3))**2), rel=1e-5)
    model.compile("sgd", lambda y, train: tf.reduce_mean(tf.square(tf.cast(y, tf.float32) - tf.transpose(train, (1, 0, 2))),
                                                         axis=(1, 2)))
    targets = np.random.default_rng(1).uniform(0, 1, (4, 3, 3))
    assert model.evaluate(images, targets, verbose=0) == pytest.approx(np.mean((scores.swapaxes(0, 1) - targets)**2), rel=1e-5)
    single = of_every_step(1, 1)
    single.compile("sgd", "mse")
    wanted = np.mean((single(images).numpy()[0] - 1.0)**2)
    assert single.evaluate(images, np.ones((4, 1)), verbose=0) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("labels", [np.arange(8) % 4, (np.arange(8) % 4)[:, np.newaxis]], ids=["[B]", "[B, 1]"])
@pytest.mark.parametrize("loss", ["mse", "mean_absolute_error", keras.losses.Huber(),
                                  keras.losses.BinaryCrossentropy(from_logits=True)])
def test_labels_are_refused_by_losses_that_compare_numbers(labels: np.ndarray, loss: Any) -> None:
    """Keras would have every score become the number of the class; of `keras.datasets`, labels are `[N, 1]`."""
    model, x = _classifier(4), np.random.default_rng(0).random((8, 6)).astype("f")
    model.compile("sgd", loss)
    with pytest.raises(UserError, match=r"of shape \[.*\], and the outputs are \[.*4\].*to_categorical\(labels, 4\)"):
        model.fit(x, labels, batch_size=4, verbose=0)


@pytest.mark.parametrize("loss, classes, target", [
    (keras.losses.SparseCategoricalCrossentropy(from_logits=True), 4, np.arange(8) % 4), ("mse", 4, np.eye(4)[np.arange(8) % 4]),
    ("mse", 1, np.arange(8.0)), (lambda y, s: keras.ops.mean(keras.ops.square(s - keras.ops.cast(y, s.dtype)[:, None]), -1), 4, np.arange(8) % 4)])
def test_targets_that_a_loss_can_compare_are_taken(loss: Any, classes: int, target: np.ndarray) -> None:
    """One number for one output, classes for a loss of classes, and whatever a loss of the user's own compares."""
    model = _classifier(classes)
    model.compile("sgd", loss)
    assert np.isfinite(model.fit(np.ones((8, 6), "f"), target, batch_size=4, verbose=0).history["loss"]).all()


@pytest.mark.parametrize("loss", ["mse", keras.losses.CategoricalCrossentropy(from_logits=True), keras.losses.kl_divergence])
@pytest.mark.parametrize("outputs, numbers", [(4, 5), (1, 4)])
def test_targets_of_another_length_than_the_outputs_are_refused(loss: Any, outputs: int, numbers: int) -> None:
    """A single output would be compared with every number of the target, without a word."""
    model = _classifier(outputs)
    model.compile("sgd", loss, run_eagerly=True)
    words = rf"targets are \[8, {numbers}\].*outputs are \[8, {outputs}\].*to_categorical\(labels, {outputs}\).*{numbers} units"
    with pytest.raises(UserError, match=words):
        model.fit(np.ones((8, 6), "f"), np.eye(numbers)[np.arange(8) % numbers], batch_size=8, verbose=0)


@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", keras.losses.SparseCategoricalCrossentropy(from_logits=True)])
def test_labels_of_classes_that_a_model_has_not_are_refused(loss: Any) -> None:
    model, x = _classifier(4), np.ones((8, 6), "f")
    model.compile("sgd", loss, run_eagerly=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The loss takes probabilities")
        for labels, words in ((1 + np.arange(8) % 4, r"from 0 to 3\. Received: labels from 1 to 4; .*labels - 1\."),
                              (np.arange(8) - 1, r"labels from -1 to 6\.")):
            for act in (model.fit, model.evaluate):
                with pytest.raises(UserError, match=words):
                    act(x, labels, verbose=0)
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1), run_eagerly=True)
        assert np.isfinite(model.evaluate(x, np.arange(8) % 4 - np.arange(8) // 4, verbose=0))


def test_without_targets_a_loss_is_refused_and_penalties_alone_are_minimised() -> None:
    model, x = _classifier(4, activity_regularizer=keras.regularizers.L1(0.1)), np.ones((8, 6), "f")
    before = model.get_weights()[0]
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Gradients do not exist")
        assert np.isfinite(model.fit(x, verbose=0).history["loss"]).all()
    assert not np.array_equal(before, model.get_weights()[0])
    model.compile("sgd", "mse", run_eagerly=True)
    for act in (model.fit, model.evaluate):
        with pytest.raises(UserError, match=r"none were given: .*fit\(x, y\)"):
            act(x, verbose=0)


@pytest.mark.parametrize("by_name", [False, True])
def test_losses_by_name_are_those_of_their_outputs(by_name: bool) -> None:
    """Whose order is another one than that of the names."""
    inner = _classifier(4)
    model = SpikingModel(inner.input, [keras.layers.Identity(name="digit")(inner.output),
                                       keras.layers.Dense(1, name="angle")(inner.output)])
    x, labels, angles = np.ones((8, 6), "f"), np.arange(8) % 4, np.linspace(0.0, 1.0, 8, dtype="f")[:, np.newaxis]
    y: Any = {"digit": labels, "angle": angles} if by_name else [labels, angles]
    model.compile("sgd", {"digit": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "angle": "mse"},
                  run_eagerly=True)
    assert np.isfinite(model.fit(x, y, verbose=0).history["loss"]).all()
    model.compile("sgd", {"digit": "mse", "angle": "mse"}, run_eagerly=True)
    with pytest.raises(UserError, match=r"one number each.*to_categorical\(labels, 4\)"):
        model.fit(x, y, verbose=0)


def _classifier(outputs: int, **neurons: Any) -> SpikingModel:
    inputs = keras.Input((6,))
    hidden = LIF(gradient="rate", **neurons)(OverTime(keras.layers.Dense(8))(DirectEncoder(4)(inputs)))
    return SpikingModel(inputs, Readout()(OverTime(keras.layers.Dense(outputs))(hidden)))
