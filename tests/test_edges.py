"""What `fit`, `evaluate` and `predict` say of inputs that do not fit the model."""

from __future__ import annotations

import re
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfspike import LIF, DirectEncoder, OverTime, Readout, SpikeInput, SpikingModel, UserError

B, CLASSES = 4, 3
LABELS = np.eye(CLASSES, dtype="f")[[0, 1, 2, 0]]


@pytest.fixture(scope="module")
def model() -> SpikingModel:
    """A network of images `[B, 6, 5, 2]` that has been trained on batches of two sizes: Keras' function takes any shape then."""
    image = keras.Input((6, 5, 2))
    x = LIF(0.9, 0.1)(OverTime(keras.layers.Conv2D(2, 3, kernel_initializer="ones"))(DirectEncoder(2)(image)))
    made = SpikingModel(image, Readout(0.9)(OverTime(keras.layers.Dense(CLASSES))(OverTime(keras.layers.Flatten())(x))))
    made.compile("sgd", "mse")
    for records in (B, B - 1):
        made.fit(np.ones((records, 6, 5, 2), "f"), LABELS[:records], verbose=0)
    return made


@pytest.mark.parametrize(("x", "words"), [
    (np.ones((B, 2, 6, 5), "f"), r"shape \[B, 6, 5, 2\]. Received: shape \(4, 2, 6, 5\), with channels in front .*np.moveaxis\(x, 1, -1\)"),
    (np.ones((B, 7, 5, 2), "f"), r"shape \[B, 6, 5, 2\]. Received: shape \(4, 7, 5, 2\)\."),
    (np.ones((6, 5, 2), "f"), r"of one alone: .*x\[np.newaxis\]"),
    ([np.ones((6, 5, 2), "f")] * B, r"a list of 4; give one array, np.stack\(x\)"),
    (np.ones((B, 6, 5, 2), "f").tolist(), r"a list of 4; give one array, np.stack\(x\)")])
@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
def test_inputs_that_do_not_fit_are_refused_in_one_sentence(model: SpikingModel, method: str, x: Any, words: str) -> None:
    targets = () if method == "predict" else (LABELS,)
    with pytest.raises(UserError, match=words):
        getattr(model, method)(x, *targets, verbose=0)


def test_one_array_in_a_list_is_that_array(model: SpikingModel) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (B, 6, 5, 2)).astype("f")
    np.testing.assert_array_equal(model.predict([x], verbose=0), model.predict(x, verbose=0))
    np.testing.assert_array_equal(model.predict(x=x, verbose=0), model.predict(x, verbose=0))


def of_one_channel(pictures: int = 6) -> tuple[SpikingModel, np.ndarray, np.ndarray]:
    """A network of images `[B, 6, 5, 1]`, and some with their labels."""
    image = keras.Input((6, 5, 1))
    x = LIF(0.9, 0.1)(OverTime(keras.layers.Conv2D(2, 3, kernel_initializer="ones"))(DirectEncoder(2)(image)))
    made = SpikingModel(image, Readout(0.9)(OverTime(keras.layers.Dense(CLASSES))(OverTime(keras.layers.Flatten())(x))))
    made.configure_engine(kernel="plain")  # nothing to compile
    made.compile(keras.optimizers.SGD(0.0), "mse")
    rng = np.random.default_rng(0)
    return made, rng.uniform(-1, 1, (pictures, 6, 5, 1)).astype("f"), np.eye(CLASSES, dtype="f")[rng.integers(0, CLASSES, pictures)]


def test_images_come_with_an_axis_for_the_channel_and_without_one_after_the_other() -> None:
    """Keras' function, traced for both, knows no shape, and failed within its graph."""
    model, x, y = of_one_channel()
    shapes = [x, x[..., 0], tf.constant(x[..., 0]), [x[..., 0]]]
    scores = [model.predict(each, verbose=0) for each in shapes]
    losses = [model.evaluate(each, y, verbose=0) for each in shapes]
    trained = [model.fit(each, y, validation_data=(held_out, y), verbose=0, shuffle=False).history
               for each, held_out in zip(shapes, [x[..., 0], x, x[..., 0], x])]
    batches = [tf.data.Dataset.from_tensor_slices((each, y)).batch(4) for each in (x, x[..., 0])]
    trained += [model.fit(each, validation_data=each, verbose=0, shuffle=False).history for each in batches]
    scores += [model.predict(each, verbose=0) for each in (*batches, batches[1].map(lambda image, _: image))]
    scores += [model.predict_on_batch(each) for each in (x, x[..., 0])]
    losses += [model.test_on_batch(each, y) for each in (x, x[..., 0])]
    losses += [model.train_on_batch(each, y) for each in (x, x[..., 0])]
    losses += [history[name][0] for history in trained for name in ("loss", "val_loss")]
    for one in scores:
        np.testing.assert_allclose(one, scores[0], rtol=1e-5)
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_a_generator_may_mix_images_with_an_axis_for_the_channel_and_without_one() -> None:
    """Keras takes the rank of the first two batches for that of all."""
    model, x, y = of_one_channel()
    loss = model.evaluate(x, y, verbose=0)
    for ranks in ((x[..., 0], x), (x, x, x[..., 0])):
        history = model.fit(((images, y) for images in ranks), validation_data=((images, y) for images in ranks), verbose=0,
                            shuffle=False)
        assert [history.history[name][0] for name in ("loss", "val_loss")] == pytest.approx([loss] * 2, rel=1e-5)
    with pytest.raises(UserError, match=r"shape \[B, 6, 5, 1\]. Received: shape \(6, 7, 5\)"):
        model.fit(((images, y) for images in (x, np.ones((6, 7, 5), "f"))), verbose=0, shuffle=False)


def test_a_data_set_of_other_images_is_refused_before_it_is_read() -> None:
    model, x, y = of_one_channel()
    for method, data, words in ((model.fit, (x, y), r"of one alone: .*x\[np.newaxis\]"),
                                (model.evaluate, (x[np.newaxis, :, :4], y[np.newaxis]), r"Received: shape \(6, 4, 5, 1\)\.")):
        with pytest.raises(UserError, match=words) as refused:
            method(tf.data.Dataset.from_tensor_slices(data), verbose=0)
        assert "\n" not in str(refused.value)  # which Keras would add to, within the call of a layer


def of_unknown_rank(x: np.ndarray) -> tf.data.Dataset:
    """Batches as `tf.py_function` gives them."""
    batches = tf.data.Dataset.from_tensor_slices(x).batch(4)
    return batches.map(lambda batch: tf.py_function(lambda values: values, [batch], x.dtype))


def test_a_data_set_of_unknown_rank_is_taken_for_what_the_model_takes() -> None:
    model, x, y = of_one_channel()
    targets = tf.data.Dataset.from_tensor_slices(y).batch(4)
    loss = model.evaluate(x, y, verbose=0)
    for images in (x, x[..., 0]):
        data = tf.data.Dataset.zip((of_unknown_rank(images), targets))
        history = model.fit(data, validation_data=data, verbose=0).history
        assert [history[name][0] for name in ("loss", "val_loss")] == pytest.approx([loss] * 2, rel=1e-5)
        np.testing.assert_allclose(model.predict(of_unknown_rank(images), verbose=0), model.predict(x, verbose=0), rtol=1e-5)
    wrong = tf.data.Dataset.zip((of_unknown_rank(x[:, :, :4]), targets))
    for method in (model.fit, model.evaluate, model.predict):
        with pytest.raises(UserError, match=r"shape \[B, 6, 5, 1\]. Received: shape \(4, 6, 4, 1\)\.") as refused:
            method(wrong, verbose=0)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("loss", "shape"), [
    ("mse", "[None, 3]"), (keras.losses.SparseCategoricalCrossentropy(from_logits=True), "[None]")])
def test_targets_of_unknown_rank_are_told_what_to_do(loss: Any, shape: str) -> None:
    model, x, y = of_one_channel()
    model.compile("sgd", loss)
    data = tf.data.Dataset.zip((tf.data.Dataset.from_tensor_slices(x).batch(4), of_unknown_rank(y if loss == "mse" else y.argmax(1))))
    with pytest.raises(UserError, match=re.escape(f"y = tf.ensure_shape(y, {shape})")):
        model.fit(data, verbose=0)


class Batches(keras.utils.PyDataset):
    """As a user's own; its order changes after every epoch."""

    def __init__(self, batches: list[Any]):
        super().__init__()
        self.batches, self.epochs = batches, [0, 0]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Any:
        return self.batches[index]

    def on_epoch_begin(self) -> None:
        self.epochs[0] += 1

    def on_epoch_end(self) -> None:
        self.epochs[1] += 1


def test_a_py_dataset_may_mix_images_with_an_axis_for_the_channel_and_without_one() -> None:
    model, x, y = of_one_channel()
    loss = model.evaluate(x, y, verbose=0)
    for ranks in ((x[..., 0], x), (x, x, x[..., 0]), (x[..., 0], x[..., 0])):
        data = Batches([(images, y) for images in ranks])
        history = model.fit(data, validation_data=Batches([[images, y] for images in ranks]), epochs=2, verbose=0, shuffle=False)
        assert min(data.epochs) >= 2  # Keras ends one more
        assert [history.history[name][1] for name in ("loss", "val_loss")] == pytest.approx([loss] * 2, rel=1e-5)
        found = model.predict(Batches([(images,) for images in ranks]), verbose=0)
        np.testing.assert_allclose(found, np.concatenate([model.predict(x, verbose=0)] * len(ranks)), rtol=1e-5)
    for wrong in ((x, x, np.ones((6, 7, 5), "f")), (np.ones((6, 7, 5), "f"),)):
        with pytest.raises(UserError, match=r"shape \[B, 6, 5, 1\]. Received: shape \(6, 7, 5\)\."):
            model.fit(Batches([(images, y) for images in wrong]), verbose=0, shuffle=False)


@pytest.mark.parametrize("declared", [None, 7])
@pytest.mark.parametrize("steps", [5, 9])
def test_trains_of_another_length_are_refused_in_one_sentence(declared: int | None, steps: int) -> None:
    """Also of a model that has been trained on batches of two sizes, within whose graph no shape is known."""
    train = keras.Input((declared, 4))
    x = LIF(0.9, 0.1)(OverTime(keras.layers.Dense(5, kernel_initializer="ones"))(SpikeInput(7)(train)))
    model = SpikingModel(train, Readout(0.9)(OverTime(keras.layers.Dense(CLASSES))(x)))
    model.compile("sgd", "mse")
    for records in (B, B - 1):
        model.fit(np.ones((records, 7, 4), "f"), LABELS[:records], verbose=0)
    trains = np.ones((B, steps, 4), "f")
    for call in (lambda: model.fit(trains, LABELS, verbose=0), lambda: model.predict(trains, verbose=0),
                 lambda: model.evaluate(tf.data.Dataset.from_tensors((trains, LABELS)), verbose=0)):
        with pytest.raises(UserError, match=rf"\[B, T=7, 4\]. Received: shape \(4, {steps}, 4\): give trains of 7 steps, or "
                                            rf"build the network for {steps}\."):
            call()


def test_a_step_may_fail_that_is_no_refusal_of_ours() -> None:
    model, x, y = of_one_channel()
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4).map(lambda a, b: (tf.debugging.check_numerics(a / 0.0, "own"), b))
    with pytest.raises(tf.errors.InvalidArgumentError, match="own"):
        model.fit(data, verbose=0)
