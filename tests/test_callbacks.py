"""What `fit` says of networks that do not learn, with `tfspike.Diagnosis` and without."""

from __future__ import annotations

import re
import warnings
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfspike
from tfspike import LIF, DirectEncoder, OverTime, Readout, SpikingModel
from tfspike.errors import UserError
from tfspike.models import create
from tfspike.models.callbacks import FitAdvice, FitWatch
from tfspike.neurons.layers import SpikingLayer

STRONG = keras.initializers.VarianceScaling(2.0, "fan_in", "untruncated_normal", seed=1)
DATA = np.random.default_rng(0).uniform(0, 1, (16, 6)).astype("f"), np.eye(3, dtype="f")[np.arange(16) % 3]


def net(gradient: str = "rate", scale: float = 8.0, weak: tuple[str, ...] = (), surrogate: str = "leak_aware",
        optimizer: Any = None, eagerly: bool = True, **lif: Any) -> SpikingModel:
    """Three dense layers of spiking neurons; those of the names in `weak` get weights too small to fire."""
    x = image = keras.Input((6,))
    x = DirectEncoder(4)(x)
    for name in ("a", "b", "c"):
        start = keras.initializers.VarianceScaling(1e-3 if name in weak else scale, "fan_in", seed=ord(name))
        x = OverTime(keras.layers.Dense(8, use_bias=False, kernel_initializer=start), name=f"dense_{name}")(x)
        x = LIF(0.9, gradient=gradient, surrogate=surrogate, name=name, **lif)(x)
    x = OverTime(keras.layers.Dense(3, use_bias=False, kernel_initializer=STRONG), name="out")(x)
    model = SpikingModel(image, Readout(0.9)(x))
    model.compile(optimizer or keras.optimizers.SGD(0.01), "mse", run_eagerly=eagerly)  # compiling takes seconds
    return model


def fitted(model: Any, epochs: int = 1, **kwargs: Any) -> list[str]:
    """What a `Diagnosis` says while a model is fitted in batches of 8, 2 per epoch."""
    said: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # nothing is said twice
        model.fit(*DATA, batch_size=8, epochs=epochs, verbose=0, callbacks=[tfspike.Diagnosis(say=said.append)], **kwargs)
    return said


@pytest.mark.parametrize("gradient", ["rate", "event"])
def test_a_network_that_fires_is_left_in_peace(gradient: str) -> None:
    model = net(gradient, eagerly=gradient == "event")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.fit(*DATA, batch_size=8, epochs=2, verbose=0)
    assert fitted(model) == []
    rates = [value for name, value in model.activity_statistics().items() if name.startswith("rate/")]
    assert len(rates) == 3 and all(0.02 < rate < 0.98 for rate in rates)


def unscaled_batches() -> Any:
    while True:
        yield 127.5 * (DATA[0] + 1.0), DATA[1]


@pytest.mark.parametrize("kind", ["dataset", "generator", "layers", "array"])
def test_unscaled_pixels_are_said_whatever_they_come_in(kind: str) -> None:
    """As Keras' and TensorFlow's image data sets give them; once, with a `Diagnosis` and without."""
    model = net("event", eagerly=kind != "dataset")
    if kind == "layers":
        model = SpikingModel(model.input, tfspike.Readout(0.9)(OverTime(keras.layers.Dense(3))(
            keras.layers.Activation("relu")(LIF(0.9, gradient="rate")(model.get_layer("dense_a").output)))))
        model.compile("sgd", "mse", run_eagerly=True)
        with pytest.warns(UserWarning, match="layer by layer"):
            assert model.engine is None
    x: Any = unscaled_batches()
    if kind == "dataset":
        x = tf.data.Dataset.from_tensors(next(x)).repeat()
    data = next(x) if kind == "array" else (x,)
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for callbacks in ([], [tfspike.Diagnosis(say=said.append)]):
            model.fit(*data, steps_per_epoch=2, epochs=2, verbose=0, callbacks=callbacks)
    told = [str(warning.message) for warning in caught if "Encoders expect" in str(warning.message)]
    if kind == "array":  # before anything is trained, and again by the next `fit`
        assert len(told) == 2 and "values from 1" in told[0] and not any("Encoders" in text for text in said)
    else:
        assert len(told) == 1 and re.search(r"values of up to 2\d\d.*; scale them", told[0])
        assert [text.partition(" (tfspike.Diag")[0] for text in said if "Encoders" in text] == [told[0].partition(" (tfspike.Diag")[0]]


@pytest.mark.parametrize("gradient", ["rate", "event"])
def test_a_silent_layer_is_named_with_those_behind_it_and_the_remedy(gradient: str) -> None:
    text, *more = fitted(net(gradient, weak=("b",), threshold=1.5), epochs=6)
    assert text.startswith("b: 100 % of neurons silent at step 1, and with them the 1 layer behind it (c).")
    assert "kernel_initializer=keras.initializers.VarianceScaling(2.0" in text and "initialise_rates(model" in text
    assert "lower its threshold (now 1.5)" in text and "--" not in text
    assert len(more) == 1 and more[0].startswith("The network has collapsed: every gradient is exactly zero for ")
    assert "--" not in more[0]


def test_the_remedy_helps() -> None:
    model = net(weak=("b",))
    tfspike.initialisation.initialise_rates(model, DATA[0])
    assert fitted(model) == []


def test_layer_by_layer_it_sees_the_same() -> None:
    model = net()
    with pytest.warns(UserWarning, match="computed layer by layer"):
        x = image = keras.Input((6,))
        for gradient in ("event", "rate"):
            x = DirectEncoder(4)(x) if x is image else x
            x = OverTime(keras.layers.Dense(8, use_bias=False, kernel_initializer="zeros"))(x)
            x = LIF(0.9, gradient=gradient, name=gradient)(x)
        model = SpikingModel(image, Readout(0.9)(x))
        assert model.engine is None
    model.compile("sgd", "mse", run_eagerly=True)
    (text,) = [said for said in fitted_on(model, 8) if "silent" in said]
    assert text.startswith("event: 100 % of neurons silent at step 1")


def fitted_on(model: Any, outputs: int) -> list[str]:
    said: list[str] = []
    model.fit(DATA[0], np.zeros((16, outputs), "f"), batch_size=8, verbose=0,
              callbacks=[tfspike.Diagnosis(say=said.append)])
    return said


def test_without_a_callback_fit_warns_once() -> None:
    model = net(weak=("b",))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        for _ in range(3):
            model.fit(*DATA, batch_size=8, verbose=0)
    texts = [str(warning.message) for warning in caught if warning.category is UserWarning]
    assert len(texts) == 1 and texts[0].startswith("b: 100 % of neurons silent") and "tfspike.Diagnosis()" in texts[0]


@pytest.mark.parametrize("where", ["weights", "images", "labels"])
def test_without_a_callback_fit_says_that_numbers_are_not_finite(where: str) -> None:
    model, (x, y) = net(), DATA
    if where == "weights":
        model.get_layer("dense_a").layer.kernel.assign(np.full((6, 8), np.nan))  # neurons behind them are silent
    nan = np.where(np.arange(16)[:, None] == 9, np.nan, np.float32(1.0))
    x, y = x * nan if where == "images" else x, y * nan if where == "labels" else y
    at = 1 if where == "weights" else 3  # the batch
    said = rf"The weights of dense_a .*\(step {at}\): training has diverged.*the NaN that images or labels may hold"
    with pytest.warns(UserWarning, match=said):
        history = model.fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(4), shuffle=False, verbose=0).history
    assert np.isfinite(history["loss"][0]) == (where == "weights")  # silent neurons hide those, and nothing else


def test_a_loss_that_takes_scores_for_probabilities_is_said_once() -> None:
    model, softmax = net(), keras.layers.Softmax()
    behind = SpikingModel(model.inputs, softmax(model.output))
    for one, count in ((model, 1), (behind, 0)):
        one.compile("sgd", "categorical_crossentropy", run_eagerly=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                one.fit(*DATA, verbose=0)
        assert len([said for said in caught if "give it from_logits=True" in str(said.message)]) == count


def test_an_optimizer_that_scales_the_loss_trains_the_same() -> None:
    trained = []
    for scaled in (False, True):
        optimizer = keras.optimizers.SGD(0.01)
        model = net(optimizer=keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer)
        model.fit(*DATA, batch_size=8, shuffle=False, verbose=0)
        trained.append(model.get_weights())
        assert model.activity_statistics()["rate/a"] > 0
    for one, other in zip(*trained):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_step_of_one_s_own_may_have_its_own_optimizers() -> None:
    class Alternating(SpikingModel):
        def train_step(self, data: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = self.compute_loss(y=data[1], y_pred=self(data[0], training=True))
            self.own.apply_gradients(zip(tape.gradient(loss, self.trainable_variables), self.trainable_variables))
            return {"loss": loss}

    made = net(weak=("b",))
    model = Alternating(made.input, made.output)
    model.own = keras.optimizers.SGD(0.01)
    model.compile(None, "mse", run_eagerly=True)
    assert any("collapsed" in text and "smaller learning rate." in text for text in fitted(model, epochs=11))


@pytest.mark.parametrize("eagerly", [False, True])
def test_constants_that_a_callback_changes_count_at_once_as_between_two_fits(eagerly: bool, tmp_path: Any) -> None:
    """A threshold or a surrogate's width that is moved from epoch to epoch."""
    def moved(model: SpikingModel, epoch: int) -> None:
        model.get_layer("a").threshold = 1.0 - 0.3 * epoch

    one, other = (net("event", optimizer=keras.optimizers.SGD(0.1), eagerly=eagerly) for _ in range(2))
    for model in (one, other):
        model.configure_engine(kernel="plain")  # nothing to compile
    how: dict[str, Any] = {"batch_size": 8, "verbose": 0, "shuffle": False, "validation_data": DATA}
    watching = [keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: moved(one, epoch)),
                keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")]  # looks at every attribute of a model
    found = one.fit(*DATA, epochs=2, callbacks=watching, **how).history
    for epoch in range(2):
        moved(other, epoch)
        wanted = other.fit(*DATA, **how).history
        assert [found[name][epoch] for name in ("loss", "val_loss")] == pytest.approx([wanted[name][0] for name in ("loss", "val_loss")])
    np.testing.assert_array_equal(one.predict(DATA[0], verbose=0), other.predict(DATA[0], verbose=0))
    assert len({round(loss, 6) for loss in found["loss"]}) == 2


def test_who_has_warned_looks_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    weights = tfspike.Diagnosis._weights
    monkeypatch.setattr(tfspike.Diagnosis, "_weights", lambda self: passes.append(1) or weights(self))
    model = net(weak=("b",))
    with pytest.warns(UserWarning, match="b: 100 % of neurons silent"):
        model.fit(*DATA, batch_size=2, verbose=0)
    assert len(passes) == 2  # before the first batch, and behind it
    model.fit(*DATA, batch_size=2, verbose=0)
    assert len(passes) == 2


def test_weights_of_any_type_are_watched() -> None:
    layer = keras.layers.Dense(2, dtype="bfloat16")
    model = keras.Sequential([keras.Input((6,)), layer])
    model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
    callback = tfspike.Diagnosis(say=lambda text: None)
    callback.set_model(model)
    norms, before = callback._weights()
    assert next(iter(norms.values())) == pytest.approx(np.linalg.norm(layer.kernel.numpy().astype("f")), rel=1e-3)
    assert callback._weights()[1] == before
    layer.kernel.assign(layer.kernel + 1.0)
    after = callback._weights()[1]
    assert [after[name] != before[name] for name in before] == [True, False]


@pytest.mark.parametrize("given", [None, [], keras.callbacks.LambdaCallback(), [[keras.callbacks.LambdaCallback()]]])
def test_fit_takes_callbacks_in_every_form(given: Any) -> None:
    with pytest.warns(UserWarning, match="b: 100 % of neurons silent"):
        history = net(weak=("b",)).fit(*DATA, 8, 1, 0, given)
    assert len(history.history["loss"]) == 1


def test_gradients_that_are_all_zero_are_said_where_every_layer_fires() -> None:
    model = net()
    model.layers[-2].layer.kernel.assign(np.zeros((8, 3)))  # no gradient goes back through it
    model.layers[-2].trainable = False
    model.compile(keras.optimizers.SGD(0.01), "mse", run_eagerly=True)
    with pytest.warns(UserWarning, match="collapsed: every gradient is exactly zero for 1"):
        model.fit(*DATA, batch_size=8, epochs=6, verbose=0)
    model.optimizer.learning_rate = 0.0  # weights stand still whatever the gradient
    assert fitted(model, epochs=6) == []


def test_a_saturated_layer_is_named() -> None:
    model = net()
    watch, said = FitWatch(model), list[str]()
    stats = {f"weight_norm/dense_{name}": watch._start_norm[f"dense_{name}"] for name in "abc"}
    for name in "abc":
        stats |= {f"rate/{name}": 0.5, f"silent/{name}": 0.1, f"saturated/{name}": 0.8 * (name == "a")}
    for step in (1, 50, 100):
        said += watch.update(step, stats)
    (text,) = said
    assert text.startswith("a: 80 % of neurons saturated") and "a higher threshold (now 1)" in text and "--" not in text


def test_rates_that_only_rise_are_named_in_terms_of_python() -> None:
    model = net()
    watch, said = FitWatch(model), list[str]()
    stats = {f"{kind}/{name}": value for name in "abc" for kind, value in (("rate", 0.1), ("silent", 0.1), ("saturated", 0.0))}
    for step in range(0, 150, 10):
        said += watch.update(step, {**stats, "rate/a": 0.1 + 0.003 * step})
    (text,) = said
    assert text.startswith("a: neurons fire 4.6 times as often as at first") and "AdamW(weight_decay=1.0)" in text and "--" not in text


class OwnThresholds(SpikingLayer):
    """One for every channel, as a weight."""

    def build(self, shape: Any) -> None:
        self.threshold = self.add_weight(shape=(shape[-1],), initializer="ones", trainable=False)

    def call(self, currents: tf.Tensor) -> tf.Tensor:
        return tf.cast(currents > self.threshold, self.compute_dtype)


def test_neurons_with_thresholds_of_their_own_kind_are_advised_of_too() -> None:
    image = keras.Input((6,))
    x = OwnThresholds(name="own")(OverTime(keras.layers.Dense(8))(DirectEncoder(4)(image)))
    model = SpikingModel(image, Readout(0.9)(OverTime(keras.layers.Dense(3))(x)))
    assert FitAdvice(model).quieter("own").endswith("or a higher threshold")
    assert "or lower its threshold" in FitAdvice(model).louder("own")


def test_numbers_that_are_not_finite_are_said_once() -> None:
    (text,) = [said for said in fitted(net(optimizer=keras.optimizers.SGD(1e38)), epochs=3) if "finite" in said]
    assert "are no longer finite numbers (step 1)" in text or "is no longer finite" in text
    assert "a smaller learning rate (now 1e+38) or clipnorm=1.0 in the optimizer" in text and "--" not in text


def test_an_ann_has_weights_and_loss_watched_and_nothing_else() -> None:
    twin = create("lenet", (12, 12, 1), 3, 1, hidden=0, neuron="relu")
    images = np.random.default_rng(0).uniform(0, 1, (16, 12, 12, 1)).astype("f")

    def said(optimizer: Any) -> list[str]:
        texts: list[str] = []
        twin.compile(optimizer, "mse", run_eagerly=True)
        twin.fit(images, DATA[1], batch_size=8, verbose=0, callbacks=[tfspike.Diagnosis(say=texts.append)])
        return texts

    assert said(keras.optimizers.SGD(0.01)) == []
    assert "finite" in said(keras.optimizers.SGD(1e38))[-1]


@pytest.mark.slow
def test_it_looks_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    monkeypatch.setattr(FitWatch, "update", lambda self, step, stats: steps.append(step) or [])
    model = net()
    model.fit(*DATA, batch_size=1, epochs=2, verbose=0, callbacks=[tfspike.Diagnosis(every=4)])
    assert steps == [1, 2, 3, 5, 9, 10, 14, 18, 20, 24, 28, 32]
    with pytest.raises(UserError, match="every"):
        tfspike.Diagnosis(every=0)


def test_the_counts_are_those_of_the_training_step_and_change_nothing() -> None:
    one, other = net("event", optimizer=keras.optimizers.SGD(0.1)), net("event", optimizer=keras.optimizers.SGD(0.1))
    fitted(one, shuffle=False)
    weights = [v.numpy() for v in other.trainable_variables]
    keras.Model.fit(other, *DATA, batch_size=8, shuffle=False, verbose=0)
    for a, b, start in zip(one.trainable_variables, other.trainable_variables, weights):
        np.testing.assert_array_equal(a, b)
        assert (a.numpy() != start).any()
    assert one.activity_statistics() == other.activity_statistics()
    before = net("event", optimizer=keras.optimizers.SGD(0.1))
    before.fit(DATA[0][:8], DATA[1][:8], batch_size=8, verbose=0)
    counts = net("event").observe(DATA[0][:8], training=True)[1]
    assert before.activity_statistics()["rate/a"] == pytest.approx(float(np.mean(counts["a"])) / 4)


def test_a_fitted_model_is_saved_and_loaded(tmp_path: Any) -> None:
    model = net()
    model.fit(*DATA, verbose=0)
    model.save(tmp_path / "net.keras")
    loaded = keras.models.load_model(tmp_path / "net.keras")
    assert not loaded.activity_statistics()
    np.testing.assert_array_equal(loaded.predict(DATA[0], verbose=0), model.predict(DATA[0], verbose=0))
    loaded.run_eagerly = True
    loaded.fit(*DATA, verbose=0)
    assert loaded.activity_statistics().keys() == model.activity_statistics().keys()


# ---- firing rates ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["rate", "event"])
def test_firing_rates_are_in_the_history(gradient: str) -> None:
    model = net(gradient, optimizer=keras.optimizers.SGD(0.0))  # weights stand still, so that the rates can be told again
    found = model.fit(*DATA, batch_size=8, epochs=2, verbose=0, callbacks=[tfspike.FiringRates()]).history
    counts = model.observe(DATA[0])[1]
    for name in model.spiking_layers:
        expected = float(np.mean(counts[name])) / model.timesteps
        assert expected > 0.02 and found[f"rate/{name}"] == pytest.approx([expected] * 2, rel=1e-5)


def test_callbacks_behind_it_see_the_rates() -> None:
    seen: list[set[str]] = []
    behind = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(set(logs)))
    net().fit(*DATA, batch_size=8, verbose=0, callbacks=[tfspike.FiringRates(), behind])
    assert {"rate/a", "rate/b", "rate/c", "loss"} <= seen[0]


def test_a_model_without_spikes_logs_none() -> None:
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    model.compile("sgd", "mse", run_eagerly=True)
    assert set(model.fit(*DATA, verbose=0, callbacks=[tfspike.FiringRates()]).history) == {"loss"}
