"""`fit` and `evaluate` trace a step once, so that nobody waits for it twice."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfspike import LIF, DirectEncoder, OverTime, Readout, SpikingModel, UserError
from tfspike.models import ann, first_trace

X = np.random.default_rng(0).uniform(0, 2, (8, 4)).astype("f")
CLASSES = np.arange(8) % 3
ONE_HOT = np.eye(3, dtype="f")[CLASSES]
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def net(outputs: int = 1) -> SpikingModel:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    x = LIF(0.9, gradient="rate", surrogate="arctan", name="lif")(OverTime(keras.layers.Dense(5, kernel_initializer="ones"))(
        DirectEncoder(3)(inputs)))
    scores = Readout(0.9)(OverTime(keras.layers.Dense(3))(x))
    return SpikingModel(inputs, scores if outputs == 1 else {"a": scores, "b": keras.layers.Rescaling(2.0)(scores)})


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Calls of a model: one in every graph."""
    seen: list[Any] = []

    def count(kind: type[keras.Model]) -> None:
        call = kind.call

        def counted(self: keras.Model, *args: Any, **kwargs: Any) -> Any:
            seen.append(self)
            return call(self, *args, **kwargs)

        monkeypatch.setattr(kind, "call", counted)

    count(SpikingModel)
    count(ann.ReluModel)
    return seen


@pytest.mark.parametrize("dataset", [False, True])
@pytest.mark.parametrize(("made", "y", "loss", "metrics"), [
    (net, ONE_HOT, "mse", None), (net, ONE_HOT, "mse", ["accuracy", "mae"]), (net, CLASSES, SPARSE, ["accuracy"]),
    (net, CLASSES[:, None], SPARSE, ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2)]),
    (lambda: ann.twin(net()), CLASSES, SPARSE, ["accuracy"])])
def test_a_step_is_traced_once_and_computes_the_same(made: Any, y: Any, loss: Any, metrics: Any, dataset: bool,
                                                     traces: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    data: Any = (tf.data.Dataset.from_tensor_slices((X, y)).batch(4),) if dataset else (X, y)
    found = []
    for graphs in (1, 2):
        model = made()
        model.compile("adam", loss, metrics=metrics)
        traces.clear()
        kept = model.fit(*data, batch_size=None if dataset else 4, epochs=2, shuffle=False, verbose=0).history
        assert len(traces) == graphs
        kept["tested"] = model.evaluate(*data, verbose=0, return_dict=True)
        assert len(traces) == graphs + 1
        found.append((kept, model.get_weights(), [v.numpy() for v in model.optimizer.variables]))
        monkeypatch.setattr(first_trace, "prepare", lambda *args: None)
    keras.tree.map_structure(np.testing.assert_array_equal, *found)
    assert net().observe(X)[1]["lif"].numpy().any()


def test_metrics_of_several_outputs_by_their_names(traces: list[Any]) -> None:
    model = net(outputs=2)
    model.compile("adam", {"a": "mse", "b": "mse"}, metrics={"a": ["accuracy"], "b": ["mae"]})
    logs = model.fit(X, {"a": ONE_HOT, "b": ONE_HOT}, verbose=0).history
    assert {"a_accuracy", "b_mae"} <= logs.keys()


def test_targets_that_do_not_fit_are_explained_by_the_step() -> None:
    model = net(outputs=2)
    model.compile("adam", {"a": "mse", "b": "mse"}, metrics={"a": ["accuracy"], "b": ["mae"]})
    with pytest.raises(ValueError, match="different structures"):  # not a KeyError
        model.fit(X, {"a": ONE_HOT}, verbose=0)


def test_a_first_evaluation_is_traced_once(traces: list[Any]) -> None:
    model = net()
    model.compile("adam", "mse", metrics=["accuracy"])
    model.evaluate(X, ONE_HOT, verbose=0)
    assert len(traces) == 1 and not model.optimizer.built


def test_a_step_of_ones_own_makes_what_it_needs_itself() -> None:
    class Own(SpikingModel):
        def train_step(self, data: Any) -> Any:
            x, y = data
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(self(x, training=True) - y))
            last = self.trainable_variables[-1:]
            self.optimizer.apply(tape.gradient(loss, last), last)
            return {"loss": loss}

    model = net()
    own = Own(model.input, model.output)
    own.compile("adam", None)
    own.fit(X, ONE_HOT, verbose=0)
    assert len(own.optimizer.variables) == 4, "moments of one weight, iterations and learning rate"


@pytest.mark.parametrize("method", ["fit", "evaluate"])
@pytest.mark.parametrize("as_dataset", [False, True])
def test_a_model_that_refused_targets_takes_those_that_fit(method: str, as_dataset: bool) -> None:
    """As in a notebook, where the cell is mended and run again: Keras kept metrics of the first targets, or a function
    that would make no variables any more."""
    model, other = net(), net()
    for each in (model, other):
        each.compile("adam", "mse", metrics=["accuracy"])

    def given(targets: Any) -> Any:
        return (tf.data.Dataset.from_tensor_slices((X, targets)).batch(4),) if as_dataset else (X, targets)

    with pytest.raises(UserError, match="to_categorical"):
        getattr(model, method)(*given(CLASSES), verbose=0)
    found = [getattr(each, method)(*given(ONE_HOT), verbose=0) for each in (model, other)]
    if method == "fit":
        found = [history.history for history in found]
    assert found[0] == found[1]
    for a, b in zip(model.get_weights(), other.get_weights()):
        np.testing.assert_array_equal(a, b)
