"""Spikes, membrane updates, accuracy over time and early exit against slow, obvious counts."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfspike import LIF, OverTime, PoissonEncoder, Readout, SpikeInput, SpikingModel, analysis, models
from tfspike.analysis import simulation
from tfspike.engine import plan as plans
from tfspike.errors import UserError
from tfspike.neurons import gradients
from tfspike.neurons.layers import SpikingLayer

TIMESTEPS, IMAGES, BATCH = 6, 6, 4


def make(encoder="poisson", timesteps=TIMESTEPS):
    model = models.create("lenet", (12, 10, 1), 5, timesteps, encoder=encoder, seed=2, leak=0.9, hidden=20)
    for weight in model.trainable_weights:
        weight.assign(tf.convert_to_tensor(weight.value) * 2.0)
    return model


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(-1, 1, (IMAGES, 12, 10, 1)).astype("float32")


@pytest.fixture(scope="module")
def labels():
    return np.random.default_rng(3).integers(0, 5, IMAGES)


@pytest.fixture(scope="module")
def result(images, labels):
    return analysis.analyse(make(), images, labels, batch_size=BATCH)


@pytest.fixture(scope="module")
def slow(images):
    """Whole trains of every layer, currents and readout potentials, by the reference path in the same batches."""
    model = make()
    plan = model.plan
    trains, currents, potentials = {}, {}, []
    for batch, start in enumerate(range(0, IMAGES, BATCH)):

        def handler(call, args, kwargs):
            if isinstance(call.layer, SpikingLayer):
                currents.setdefault(call.layer.name, []).append(args[0].numpy())
            out = call.layer(*args, seed=batch) if call is plan.encoder else plans.plain(call, args, kwargs)
            if call is plan.encoder or isinstance(call.layer, SpikingLayer):
                trains.setdefault(call.layer.name, []).append(out.numpy())
            return out

        values = plans.run((plan.encoder, *plan.window),
                           {plan.inputs[0]: tf.constant(images[start:start + BATCH])}, handler)
        current = values[plan.readout.source].numpy()
        membrane = np.zeros(current.shape[1:])
        rows = []
        for step in current:
            membrane = 0.9 * (membrane + step)
            rows.append(membrane)
        potentials.append(np.stack(rows))
    join = {name: np.concatenate(parts, axis=1) for name, parts in trains.items()}
    assert all(np.any(train) for train in join.values())
    currents = {name: np.concatenate(parts, axis=1) for name, parts in currents.items()}
    return join, currents, np.concatenate(potentials, axis=1)


def test_spikes_rates_and_silent_neurons_are_those_of_the_trains(result, slow):
    trains = slow[0]
    assert [layer.name for layer in result.layers] == [*trains, "readout"]
    for layer in result.layers[:-1]:
        train = trains[layer.name]
        assert layer.spikes * IMAGES == pytest.approx(np.count_nonzero(train))
        assert layer.rate == pytest.approx(np.count_nonzero(train) / train.size)
        assert layer.silent == np.mean(~np.any(train, axis=(0, 1)))
    assert np.any(trains["encoder"] < 0), "negative input spikes must be among what was counted"
    assert (result.layers[-1].kind, result.layers[-1].spikes) == ("readout", 0)


def test_kinds_follow_from_the_graph(result):
    assert [layer.kind for layer in result.layers] == [
        "input", "lif", "pooling", "lif", "pooling", "lif", "readout"]


def test_spikes_of_every_image_add_up_over_time(result, slow):
    per_step = sum(np.count_nonzero(train.reshape(TIMESTEPS, IMAGES, -1), axis=-1) for train in slow[0].values())
    assert np.array_equal(result.spikes, np.cumsum(per_step, axis=0).T)
    assert result.spikes_by_step[-1] == pytest.approx(sum(layer.spikes for layer in result.layers))


def test_spikes_of_every_layer_add_up_over_time(result, slow):
    for layer in result.layers[:-1]:
        per_step = np.count_nonzero(slow[0][layer.name].reshape(TIMESTEPS, -1), axis=-1)
        assert len(set(per_step)) > 1, "the same at every step would not show an order"
        np.testing.assert_allclose(layer.spikes_by_step, np.cumsum(per_step) / IMAGES, rtol=1e-12)
    assert result.layers[-1].spikes_by_step == (0.0,) * TIMESTEPS


def test_constant_input_is_no_layer_of_spikes(images, labels):
    result = analysis.analyse(make("direct"), images, labels)
    assert result.layers[0].spikes_by_step == (0.0,) * TIMESTEPS
    for layer in result.layers[1:-1]:
        assert layer.spikes_by_step[-1] == pytest.approx(layer.spikes) and layer.spikes > 0


def test_membrane_updates_are_the_steps_that_change_a_membrane(result, slow):
    neurons = {call.layer.name: call.layer.neuron for call in make().plan.spiking}
    by_name = {layer.name: layer for layer in result.layers}
    idle = 0
    for name, current in slow[1].items():
        membrane, updates = np.zeros(current.shape[1:], np.float32), 0
        for t, step in enumerate(current):
            *_, after = gradients.fire(tf.constant(membrane), tf.constant(step), neurons[name])
            updates += membrane.size if t == 0 else np.count_nonzero(after.numpy() != membrane)
            membrane = after.numpy()
        idle += current.size - updates
        assert by_name[name].operations.updates * IMAGES == pytest.approx(updates), name
    assert idle > 0, "some neuron must rest, or the count is trivial"
    readout = np.count_nonzero(np.diff(slow[2], axis=0)) / IMAGES + 5
    assert by_name["readout"].operations.updates == pytest.approx(readout)


@pytest.mark.parametrize("leak, changes", [(1.0, 1), (0.5, 3)])
def test_a_readout_rests_where_nothing_comes_and_nothing_leaks(leak, changes):
    inputs = keras.Input((4, 2))
    x = OverTime(keras.layers.Dense(3, use_bias=False))(LIF(1.0, 0.5)(SpikeInput(4)(inputs)))
    train = np.zeros((1, 4, 2), "f")
    train[0, 1] = 1.0  # a spike at the second of four steps
    result = analysis.analyse(SpikingModel(inputs, Readout(leak)(x)), train, [0])
    assert result.layers[-1].operations.updates == 3 * (1 + changes)


def test_predictions_and_margins_are_those_of_the_readout_at_every_step(result, slow):
    potentials = slow[2]
    ordered = np.sort(potentials, axis=-1)
    assert np.allclose(result.margins, (ordered[..., -1] - ordered[..., -2]).T, atol=1e-5)
    clear = result.margins > 1e-4  # a tie may fall either way
    assert np.mean(clear) > 0.5
    assert np.array_equal(result.predictions[clear], np.argmax(potentials, -1).T[clear])


def test_the_last_step_is_the_models_own_answer(result, images, labels):
    model = make()
    outputs = np.concatenate([model(images[i:i + BATCH], seed=i // BATCH).numpy() for i in range(0, IMAGES, BATCH)])
    assert np.array_equal(result.predictions[:, -1], outputs.argmax(-1))
    assert result.accuracy == np.mean(outputs.argmax(-1) == labels)
    assert np.array_equal(result.confusion.sum(axis=1), np.bincount(labels, minlength=5))
    assert np.trace(result.confusion) == round(result.accuracy * IMAGES)


def test_chunks_of_time_do_not_change_anything(result, images, labels, monkeypatch):
    monkeypatch.setattr(simulation, "CHUNK_ELEMENTS", 4 * 12 * 10 * 20 * BATCH)
    parts = list(simulation.Simulation(make()).chunks(BATCH))
    assert parts == [(0, 4), (4, 2)]
    again = analysis.analyse(make(), images[:BATCH], labels[:BATCH], batch_size=BATCH)
    assert np.array_equal(again.spikes, result.spikes[:BATCH])
    assert np.array_equal(again.predictions, result.predictions[:BATCH])
    assert np.allclose(again.margins, result.margins[:BATCH], atol=1e-4)


def made_up(predictions, margins, labels, spikes=None):
    """An analysis whose numbers over time are chosen by hand."""
    predictions = np.array(predictions)
    spikes = np.cumsum(np.ones(predictions.shape), axis=1) if spikes is None else np.array(spikes)
    return analysis.Analysis((), np.array(labels), predictions, np.array(margins, float), spikes, num_classes=3,
                             parameters=1, zero_parameters=0, footprint_bytes=4, effective=analysis.Operations(),
                             dense=0.0, seed=0)


def test_steps_to_a_share_are_counted_from_where_accuracy_stays_above_it():
    # accuracies 1/2, 1, 1/2, 1, 1: the early luck of step 2 does not count
    result = made_up([[0, 0, 0, 0, 0], [0, 1, 0, 1, 1]], np.zeros((2, 5)), [0, 1])
    assert result.accuracy_by_step.tolist() == [0.5, 1, 0.5, 1, 1]
    assert result.steps_to(1.0) == {"share": 1.0, "steps": 4, "accuracy": 1.0, "spikes_per_image": 4.0}
    assert result.steps_to(0.5)["steps"] == 1


@pytest.mark.parametrize("share", [0, -0.1, 1.1])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(UserError, match="must be in"):
        made_up([[0]], [[0]], [0]).steps_to(share)


def test_early_exit_stops_each_image_at_its_first_clear_step():
    result = made_up([[1, 0, 0], [2, 2, 1]], [[0.1, 0.6, 0.2], [0.2, 0.3, 0.4]], [0, 1],
                     spikes=[[10, 20, 30], [1, 2, 3]])
    point = result.early_exit([0.0, 0.25, 0.5, 9.0])
    assert [(p.accuracy, p.steps, p.spikes) for p in point] == [
        (0.0, 1.0, 5.5), (0.5, 2.0, 11.0), (1.0, 2.5, 11.5), (1.0, 3.0, 16.5)]
    best = result.best_exit(loss=0.0)
    assert (best.steps, best.accuracy) == (2.5, 1.0)


def test_the_sweep_reaches_from_the_first_step_to_the_whole_window(result):
    sweep = result.early_exit()
    assert sweep[0].steps == 1 and sweep[-1].steps == TIMESTEPS
    assert sweep[-1].accuracy == result.accuracy
    assert np.all(np.diff([point.steps for point in sweep]) >= 0)
    assert len(sweep) > 10


def test_the_record_is_json_with_every_layer(result, slow):
    record = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert [layer["name"] for layer in record["layers"]] == [layer.name for layer in result.layers]
    assert record["energy"]["snn_pj_per_image"] == pytest.approx(0.9 * record["acs_per_image"])
    assert record["energy"]["constants"]["mac_pj"] == 4.6
    assert record["accuracy"] == record["accuracy_by_step"][-1]
    trains = [train.ravel() for name, train in slow[0].items() if name != "encoder"]
    assert record["neurobench"]["activation_sparsity"] == pytest.approx(np.mean(np.concatenate(trains) == 0), abs=1e-9)
    assert record["ann_activations_per_image"] == sum(layer.neurons for layer in result.layers[1:])


def test_analysis_after_analysis_is_made_without_a_warning_of_retracing(labels, caplog):
    for timesteps in range(2, 8):  # TensorFlow warns at the sixth graph of one function
        inputs = keras.Input((4,))
        output = Readout(0.9)(OverTime(keras.layers.Dense(5))(LIF(0.9)(PoissonEncoder(timesteps)(inputs))))
        analysis.analyse(SpikingModel(inputs, output), np.ones((IMAGES, 4), "f"), labels, batch_size=BATCH)
    assert "retracing" not in caplog.text


def test_the_quick_count_is_the_count(result, images, labels):
    whole = analysis.analyse(make(), images[:BATCH], labels[:BATCH], batch_size=BATCH)
    snn, ann = analysis.operations(make(), images[:BATCH])
    assert snn == whole.operations and ann == whole.ann and snn.acs > 0


def test_other_constants_need_no_second_pass(result):
    model = analysis.EnergyModel(mac_pj=1, ac_pj=2)
    assert result.energy(model)["snn_pj"] == pytest.approx(2 * result.operations.acs)
    assert result.energy(model)["ann_pj"] == pytest.approx(result.ann.macs + 2 * result.ann.acs)


def test_a_longer_window_begins_with_the_shorter_one(result, images, labels):
    long = analysis.analyse(make(), images[:BATCH], labels[:BATCH], timesteps=8)
    assert long.timesteps == 8
    assert np.array_equal(long.predictions[:, :TIMESTEPS], result.predictions[:BATCH])
    assert np.array_equal(long.spikes[:, :TIMESTEPS], result.spikes[:BATCH])


def test_latency_coding_spreads_over_the_window_asked_for(images, labels):
    result = analysis.analyse(make("latency", 4), images[:2], labels[:2], timesteps=7)
    assert result.layers[0].spikes == 12 * 10, "one spike per pixel that is not 0"


def test_a_train_shorter_than_the_window_is_refused(labels):
    trains = np.zeros((IMAGES, TIMESTEPS, 12, 10, 1), "float32")
    with pytest.raises(UserError, match="at least as many steps as the window, 50"):
        analysis.analyse(make(None), trains, labels, timesteps=50)


@pytest.mark.parametrize("wrong", [[0] * (IMAGES - 1), [[0]] * IMAGES, [0.5] * IMAGES])
def test_labels_that_do_not_fit_the_images_are_refused(images, wrong):
    with pytest.raises(UserError, match="one integer per image"):
        analysis.analyse(make(), images, wrong)


def test_a_label_beyond_the_outputs_is_refused(images):
    with pytest.raises(UserError, match="between 0 and 4.*from 0 to 5"):
        analysis.analyse(make(), images, np.arange(IMAGES) % 6)


def test_a_model_without_time_is_refused(images, labels):
    inputs = keras.Input((12, 10, 1))
    model = keras.Model(inputs, keras.layers.Dense(5)(keras.layers.Flatten()(inputs)))
    with pytest.raises(UserError, match="must be a SpikingModel"):
        analysis.analyse(model, images, labels)


def test_a_trace_shows_the_trains_and_the_membrane_that_explains_them(images, slow):
    with pytest.raises(UserError, match=r"One image .* without a batch axis, such as images\[0\]; received shape \(1, "):
        simulation.record(make(), images[:1])
    trace = simulation.record(make(), images[0], seed=0, shown=6)
    trains = slow[0]
    for layer in trace.layers:
        counts = np.abs(trains[layer.name][:, 0]).sum(axis=0)
        assert layer.active == np.count_nonzero(counts)
        assert layer.neurons == counts.size
        assert layer.spikes.shape == (TIMESTEPS, min(6, layer.active))
        assert np.all(np.any(layer.spikes, axis=0))
        if layer.membrane is not None:
            assert np.array_equal(layer.membrane > layer.threshold, layer.fired == 1), layer.name
            assert np.any(layer.fired)
    assert np.allclose(trace.readout, slow[2][:, 0], atol=1e-4)
