"""Predictions on image files."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

import tfspike
from tfspike import datasets
from tfspike.datasets import image_files
from tfspike.errors import UserError
from tfspike.evaluation.prediction import predict_files
from tfspike.models import losses

INFO = datasets.DatasetInfo("tiny", (12, 12, 1), 3, ("left", "right", "up"), (1 / 128,), (-0.5,), False, 10, 10)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(3)
    for name in ("b.png", "a.png"):
        tf.io.write_file(str(tmp_path / name), tf.io.encode_png(rng.integers(0, 256, (12, 12, 1)).astype(np.uint8)))
    return tmp_path


def test_files_are_classified_as_the_model_does(folder):
    model = tfspike.models.create("resnet7", (12, 12, 1), 3, 6, hidden=16, kappa=4.0)
    found = predict_files(model, INFO, [folder], seeds=2)
    pixels = np.stack([tf.io.decode_png(tf.io.read_file(item.path)).numpy() for item in found])
    draws = [model(INFO.normalise(pixels), seed=seed).numpy() for seed in range(2)]
    assert np.abs(draws[0] - draws[1]).max() > 0
    labels = np.mean(draws, 0).argmax(-1)
    assert [item.path[-5:] for item in found] == ["a.png", "b.png"]
    assert [item.label for item in found] == labels.tolist()
    assert [item.class_name for item in found] == [INFO.class_names[label] for label in labels]
    assert all(0 < item.confidence <= 1 for item in found)


@pytest.mark.parametrize("scores, label, confidence", [
    ([0.6, 0.2, -0.4], 0, 0.75), ([0.1, 3.0, 1.0], 1, 1 / 2.1), ([-2.0, -1.0, -3.0], 1, 1 / 3)])
def test_confidence_is_the_share_of_the_clipped_scores(scores, label, confidence):
    assert losses.probabilities("squared", np.array([scores]))[0, label] == pytest.approx(confidence)


def test_confidence_after_cross_entropy_is_the_softmax(folder):
    model = tfspike.models.create("resnet7", (12, 12, 1), 3, 6, hidden=16, encoder="direct")
    found = predict_files(model, INFO, [folder], loss="cross_entropy")[0]
    images, _ = image_files.load_images([found.path], INFO.image_shape, False)
    scores = np.asarray(model(INFO.normalise(images)))[0].astype("f8")
    assert found.label == scores.argmax()
    assert found.confidence == pytest.approx(np.exp(scores).max() / np.exp(scores).sum(), rel=1e-5)


def test_mistakes_are_one_sentence(folder):
    model = tfspike.models.create("resnet7", (12, 12, 1), 3, 6, hidden=16)
    with pytest.raises(UserError, match="`seeds` must be"):
        predict_files(model, INFO, [folder], seeds=0)
    with pytest.raises(UserError, match="no PNG or JPEG image"):
        predict_files(model, INFO, [folder / "none"])
    with pytest.raises(UserError, match="event recordings"):
        predict_files(model, dataclasses.replace(INFO, name="nmnist", event_based=True), [folder])
