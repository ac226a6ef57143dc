"""What `fit`, `evaluate` and `predict` say of inputs that do not fit the model."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from tfspike import LIF, DirectEncoder, OverTime, Readout, SpikingModel, UserError

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
