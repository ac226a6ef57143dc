"""What a network that does not learn is told: statistics against a slow count, and real trainings that are broken."""

import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfspike import LIF, DirectEncoder, OverTime, Readout, SpikingModel, datasets, models
from tfspike.config import Config
from tfspike.models import diagnosis
from tfspike.models.diagnosis import Collapsed, Diverged, Watch, layer_statistics

T, BATCH = 8, 8


@pytest.fixture(scope="module")
def digits():
    data = datasets.load("mnist_subset", "train")
    images = np.asarray(data.images[:64], "float32").reshape(-1, 28, 28, 1) / 255
    return images, np.eye(10, dtype="float32")[data.labels[:64]]


def train(digits, steps=60, every=5, gradient="rate", **settings):
    """Plain SGD on LeNet over a short window; returns every warning as (step, sentence), and the last statistics."""
    config = Config(model="lenet", timesteps=T, batch_size=BATCH, gradient=gradient,
                    **{"on_collapse": "continue", **settings})
    model = models.create("lenet", (28, 28, 1), 10, T, gradient=gradient, threshold=config.threshold,
                          kappa=config.kappa, seed=1)
    optimizer = keras.optimizers.SGD(config.learning_rate)
    watch, said = Watch(model, config), []
    watch.last_checkpoint = "checkpoints/step_0"

    @tf.function(autograph=False)
    def step(images, targets):
        with tf.GradientTape() as tape:
            output, activity = model.observe(images, training=True)
            loss = tf.reduce_sum(tf.square(output - targets)) / BATCH
        grads = tape.gradient(loss, model.trainable_variables)
        stats = layer_statistics(activity, T, grads, model.trainable_variables)
        optimizer.apply(grads, model.trainable_variables)
        return {"loss": loss, **stats}

    images, targets = digits
    for number in range(1, steps + 1):
        first = number * BATCH % len(images)
        stats = step(images[first:first + BATCH], targets[first:first + BATCH])
        if number == 1 or number % every == 0:
            stats = {name: float(value) for name, value in stats.items()}
            said += [(number, warning) for warning in watch.update(number, stats)]
    return said, stats


# ---- statistics --------------------------------------------------------------------------------------------------


def test_statistics_equal_a_slow_count():
    count = np.array([[0, 10, 2, 0], [0, 10, 0, 1], [0, 9, 0, 0]], "float32")  # [B=3, 4 neurons], T = 10
    weight = keras.Variable([[3.0, 4.0]], name="kernel")
    stats = layer_statistics({"lif": tf.constant(count)}, 10, [tf.constant([[6.0, 8.0]])], [weight])
    silent = sum(all(count[b][n] == 0 for b in range(3)) for n in range(4)) / 4
    saturated = sum(sum(count[b][n] for b in range(3)) / 30 > 0.95 for n in range(4)) / 4
    without = sum(count[b][n] == 0 for b in range(3) for n in range(4)) / 12
    assert (silent, saturated, without) == (0.25, 0.25, 7 / 12)
    expected = {"rate/lif": count.sum() / 120, "silent/lif": silent, "saturated/lif": saturated,
                "zero_gradient/lif": without, "grad_norm/kernel": 10.0, "weight_norm/kernel": 5.0}
    assert {name: float(value) for name, value in stats.items()} == pytest.approx(expected)


def test_zero_gradient_is_the_share_of_slopes_that_are_zero():
    model = models.create("lenet", (28, 28, 1), 10, T, seed=1)
    images = np.random.default_rng(0).uniform(0, 1, (4, 28, 28, 1)).astype("float32")
    record = model.engine.run(images, training=False)
    for call, state in zip(model.plan.spiking, record.states):
        slope = tf.convert_to_tensor(diagnosis_slope(call, state))
        stats = layer_statistics({"layer": state.count}, T, [], [])
        share = float(tf.reduce_mean(tf.cast(slope == 0.0, tf.float32)))
        assert 0.0 < share < 1.0 and float(stats["zero_gradient/layer"]) == pytest.approx(share), call.layer.name


def diagnosis_slope(call, state):
    from tfspike.neurons import gradients
    return gradients.slope(state.count, state.trace, call.layer.neuron)


def test_weights_are_named_after_their_layer_and_told_apart_where_it_has_two():
    model = models.create("lenet", (28, 28, 1), 10, T)
    names = [name for name in layer_statistics({}, T, [None] * 4, model.trainable_variables) if "grad" in name]
    assert names == ["grad_norm/conv1_1", "grad_norm/conv2_1", "grad_norm/hidden", "grad_norm/output"]
    dense = keras.layers.Dense(2, name="dense")
    dense.build((None, 3))
    assert list(layer_statistics({}, T, [None, None], dense.trainable_variables))[::2] == [
        "grad_norm/dense.kernel", "grad_norm/dense.bias"]


def test_feeding_weights_reach_over_pooling_and_shortcuts():
    feeding = diagnosis.feeding_weights(models.create("resnet7", (16, 16, 3), 10, 2))
    assert feeding["conv1_1_lif"] == ["conv1_1"] and feeding["pool1"] == []
    assert feeding["block1_b_lif"] == ["block1_conv_b", "block1_shortcut"]
    assert feeding["hidden_lif"] == ["hidden"]


# ---- real trainings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient, learning_rate", [("rate", 0.1), pytest.param("event", 0.1, marks=pytest.mark.slow)])
def test_a_network_that_learns_is_left_in_peace(digits, gradient, learning_rate):
    said, stats = train(digits, gradient=gradient, learning_rate=learning_rate)
    assert said == [] and stats["loss"] < 0.95  # an output of zeros has a loss of 1
    assert all(value > 0.0 for name, value in stats.items() if name.startswith(("rate/", "grad_norm/")))


def test_a_threshold_of_50_is_explained(digits):
    said, _ = train(digits, threshold=50.0)
    (first, text), (later, collapse) = said
    assert first == 1 and text.startswith("conv1_1_lif: 100 % of neurons silent at step 1, and with them the 4 layers")
    assert "lower --threshold (now 50, usually 1)" in text and "--init=rate" in text
    assert "threshold" in text.split("Let it fire:")[1].split(",")[0], "the likely culprit comes first"
    assert 0 <= later - 1 - diagnosis.COLLAPSE_PATIENCE < 5 and "every gradient is exactly zero for" in collapse
    assert "--resume=never" in collapse


def test_a_kappa_of_a_hundredth_is_explained(digits):
    said, _ = train(digits, kappa=0.01)
    step, text = said[0]
    assert step == 1 and "neurons silent" in text and "raise --kappa (now 0.01, usually 2)" in text
    assert "--kappa" in text.split("Let it fire:")[1].split(",")[0]


def test_a_learning_rate_of_a_million_is_explained(digits):
    said: list = []
    with pytest.raises(Diverged) as stopped:
        said += train(digits, learning_rate=1e6)[0]
    text = str(stopped.value)
    assert "conv1_1" in text and "checkpoints/step_0" in text and "--learning_rate (now 1e+06)" in text
    assert "--clip_norm=1" in text and stopped.value.exit_code == 4


def test_a_learning_rate_of_a_million_is_noticed_at_the_first_step(digits):
    (step, text), = train(digits, steps=1, learning_rate=1e6)[0]
    assert step == 1 and "times as large as the weights themselves" in text and "--learning_rate" in text


def test_a_layer_killed_by_its_updates_is_told_so(digits):
    said, _ = train(digits, steps=90, learning_rate=5.0)
    assert any("fire earlier in this run" in text or "have grown" in text for _, text in said)
    assert any("--learning_rate (now 5)" in text for _, text in said)
    assert any("has collapsed" in text for _, text in said)


def test_collapse_stops_the_run_where_asked(digits):
    with pytest.raises(Collapsed, match="(?s)has collapsed.*conv1_1_lif.*--threshold") as stopped:
        train(digits, threshold=50.0, on_collapse="stop")
    assert stopped.value.exit_code == 4


def dead(model):
    return healthy(model, **{f"grad_norm__{layer}": 0.0 for layer in ("conv1_1", "conv2_1", "hidden", "output")})


def test_the_last_checkpoint_of_a_living_network_is_named_and_a_dead_ones_is_not(lenet):
    watch = Watch(lenet, Config())
    watch.last_checkpoint = "step_0"
    with pytest.raises(Collapsed) as stopped:
        for step in range(1, 100):
            watch.update(step, healthy(lenet) if step < 40 else dead(lenet))
            if step % 10 == 0:
                watch.saved(f"step_{step}")
    assert watch.last_living == "step_30" and watch.last_checkpoint == "step_50"
    assert "every gradient is exactly zero for 20 steps" in str(stopped.value)
    assert "--init_from=step_30" in str(stopped.value) and "--learning_rate" in str(stopped.value)


def test_what_is_watched_goes_on_from_its_state(lenet):
    weights = healthy(lenet, silent__conv1_1_lif=1.0)
    one, other = Watch(lenet, Config(on_collapse="continue")), Watch(lenet, Config(on_collapse="continue"))
    said = []
    for step in range(1, 120):
        stats = healthy(lenet) if step < 20 else dead(lenet) if step < 60 else weights
        if step == 35:
            other.restore(json.loads(json.dumps(one.state())))
        said.append([watch.update(step, stats) for watch in (one, other) if step >= 35 or watch is one])
    assert all(a == b for a, b in said[34:]) and sum(map(bool, (a for a, _ in said[34:]))) >= 2
    assert one.state() == other.state()


def test_a_collapse_without_a_silent_layer_is_one_sentence_after_the_other(lenet):
    watch, said = Watch(lenet, Config(on_collapse="continue")), []
    watch.saved("step_0")  # which nobody has seen alive
    for step in range(1, 25):
        said += watch.update(step, dead(lenet))
    (text,) = said
    assert "--init_from" not in text
    assert "for 20 steps. It cannot recover by itself. Start again" in text and "  " not in text


def test_the_names_of_statistics_are_known_beforehand(lenet):
    count = {name: tf.ones((2, 3)) for name in lenet.spiking_layers}
    stats = layer_statistics(count, T, [None] * 4, lenet.trainable_variables)
    assert list(stats) == diagnosis.statistic_names(lenet.spiking_layers, lenet.trainable_variables)


def test_a_network_without_gradient_on_a_few_batches_is_left_in_peace(lenet):
    watch = Watch(lenet, Config())
    for step in range(1, 200):
        assert watch.update(step, dead(lenet) if step % 20 else healthy(lenet)) == []


def test_a_run_does_not_end_well_with_a_network_that_has_just_died(lenet):
    watch = Watch(lenet, Config())
    for step in range(1, 6):
        watch.update(step, healthy(lenet) if step < 3 else dead(lenet))
    with pytest.raises(Collapsed, match="for 2 steps, up to the last one"):
        watch.refuse_collapsed_end(5)
    watch.update(6, healthy(lenet))
    watch.refuse_collapsed_end(6)


def test_a_loss_of_exactly_0_is_no_collapse(lenet):
    watch = Watch(lenet, Config())
    for step in range(1, 100):
        assert watch.update(step, {**dead(lenet), "loss": 0.0}) == []


# ---- the watch on given numbers ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lenet():
    return models.create("lenet", (28, 28, 1), 10, T)


def healthy(model, **changes):
    stats = {}
    for layer in model.spiking_layers:
        stats |= {f"rate/{layer}": 0.1, f"silent/{layer}": 0.2, f"saturated/{layer}": 0.0}
        stats[f"zero_gradient/{layer}"] = 0.5
    for layer in ("conv1_1", "conv2_1", "hidden", "output"):
        stats |= {f"grad_norm/{layer}": 0.01, f"weight_norm/{layer}": 5.0}
    return {**stats, "loss": 0.5, **{name.replace("__", "/"): value for name, value in changes.items()}}


def test_a_lasting_state_is_said_once_until_it_changes(lenet):
    watch, said = Watch(lenet, Config()), []
    for step in range(0, 400, 10):
        share = 0.97 if step < 150 or step >= 250 else 0.5
        said += [(step, text) for text in watch.update(step, healthy(lenet, silent__conv2_1_lif=share))]
    assert [step for step, _ in said] == [50, 300]
    assert said[0][1].startswith("conv2_1_lif: 97 % of neurons silent for 50 steps.")


def test_a_value_that_hovers_at_the_limit_is_said_once(lenet):
    watch, said = Watch(lenet, Config()), []
    for step in range(0, 1000, 10):
        said += watch.update(step, healthy(lenet, silent__pool2=0.96 if step % 20 else 0.94))
    assert len(said) == 1


def test_a_layer_that_skips_one_batch_is_left_in_peace(lenet):
    watch, said = Watch(lenet, Config()), []
    for step in range(1, 100):
        cut = 1.0 if step in (20, 21) or step >= 80 else 0.3
        said += [(step, text) for text in watch.update(step, healthy(lenet, silent__hidden_lif=cut))]
    ((step, text),) = said
    assert step == 90 and text.startswith("hidden_lif: 100 % of neurons silent for 10 steps. It did fire earlier")


def test_a_saturated_layer_is_named_with_what_helps(lenet):
    watch, said = Watch(lenet, Config()), []
    for step in range(0, 60, 10):
        said += watch.update(step, healthy(lenet, saturated__conv2_1_lif=0.8, rate__conv2_1_lif=0.9))
    (text,) = said
    assert text.startswith("conv2_1_lif: 80 % of neurons saturated (above 0.95 spikes per step) for 50 steps")
    assert "--kappa" in text and "--threshold" in text and "--init=rate" in text


def rises(watch, model, steps=range(0, 200, 10), start=0.1):
    """What is said where the first layer's rate grows from `start` by .04 spikes per step every ten steps."""
    return [text for step in steps for text in watch.update(step, healthy(model, rate__conv1_1_lif=start + 0.004 * step))]


@pytest.mark.parametrize("optimizer, remedy", [
    ("adam", "--optimizer=adamw --weight_decay=1 or a smaller --learning_rate (now 0.1)"),
    ("adamw", "more --weight_decay (now 0) or a smaller --learning_rate"), ("sgd", "more --weight_decay (now 0)")])
def test_rates_that_nothing_turns_back_are_named_with_what_helps(lenet, optimizer, remedy):
    (text,) = rises(Watch(lenet, Config(optimizer=optimizer)), lenet)
    assert text.startswith("conv1_1_lif: neurons fire 5.0 times as often as at first, 0.5 spikes per step. The slope")
    assert remedy in text


def test_what_a_surrogate_or_a_normalisation_turns_back_is_left_in_peace(lenet):
    assert not rises(Watch(lenet, Config(surrogate="arctan")), lenet)
    assert not rises(Watch(lenet, Config(norm="tdbn")), lenet)
    assert not rises(Watch(lenet, Config()), lenet, start=0.3)  # which began high
    assert not rises(Watch(lenet, Config()), lenet, range(0, 100, 10), start=0.0)  # a network that wakes up


def test_the_first_rates_of_a_run_are_those_of_its_first_part(lenet):
    first, second, older = (Watch(lenet, Config()) for _ in range(3))
    assert not rises(first, lenet, range(0, 100, 10))
    state = json.loads(json.dumps(first.state()))
    second.restore(state)
    assert len(rises(second, lenet, range(100, 200, 10))) == 1
    del state["first_rate"]  # as earlier versions wrote it
    older.restore(state)
    assert not rises(older, lenet, range(100, 200, 10))


def test_a_layer_that_saturates_later_was_driven_there(lenet):
    watch, said = Watch(lenet, Config()), []
    for step in range(0, 80, 10):
        said += watch.update(step, healthy(lenet, saturated__conv2_1_lif=0.8 * (step > 0)))
    (text,) = said
    assert "Likely cause: updates that are too large. Start again with" in text


def test_a_silent_layer_does_not_starve_besides(lenet):
    watch, said = Watch(lenet, Config()), []
    for step in range(0, 80, 10):
        said += watch.update(step, healthy(lenet, silent__hidden_lif=0.97, zero_gradient__hidden_lif=0.999))
    assert len(said) == 1 and "neurons silent" in said[0]


@pytest.fixture
def biased():
    """One layer of neurons, and biases, which get a gradient whether it fires or not."""
    image = keras.Input((4,))
    x = LIF(name="lif")(OverTime(keras.layers.Dense(3), name="synapse")(DirectEncoder(T)(image)))
    return SpikingModel(image, Readout()(OverTime(keras.layers.Dense(2), name="out")(x)))


def silent(model, growth=1.0):
    norms = {name: float(np.linalg.norm(v.numpy())) for name, v in
             zip(diagnosis.weight_names(model.trainable_variables), model.trainable_variables)}
    return {"rate/lif": 0.0, "silent/lif": 1.0, "zero_gradient/lif": 1.0, "loss": 1.0,
            **{f"weight_norm/{name}": growth * norm for name, norm in norms.items()},
            **{f"grad_norm/{name}": float(name == "out.bias") for name in norms}}


@pytest.mark.parametrize("growth, cause", [(2.9, "too small for its threshold"), (
    3.1, "the weights of synapse have grown 3.1 times since the start")])
def test_weights_beside_a_bias_are_the_cause_where_they_have_grown(biased, growth, cause):
    (text,) = Watch(biased, Config()).update(1, silent(biased, growth))
    assert f"Likely cause: {'updates that are too large: ' * (growth > 3)}" in text and cause in text


def test_an_output_without_spikes_is_a_collapse_though_a_bias_learns(biased):
    watch, said = Watch(biased, Config(on_collapse="continue")), []
    for step in range(1, 30):
        said += watch.update(step, silent(biased))
    assert "collapsed: no spike comes out of lif, so the output is zero for every image for 20 steps" in said[1]
    learns = Watch(biased, Config(surrogate="arctan", on_collapse="continue"))  # neurons learn that do not fire
    assert not [text for step in range(1, 30) for text in learns.update(step, silent(biased)) if "collapsed" in text]


def test_neurons_that_hardly_ever_fire_are_named(lenet):
    watch, learns, said = Watch(lenet, Config()), Watch(lenet, Config(surrogate="arctan")), []
    for step in range(0, 60, 10):
        stats = healthy(lenet, zero_gradient__hidden_lif=0.995, silent__hidden_lif=0.8)
        said += watch.update(step, stats)
        assert not learns.update(step, stats)  # as they do without a spike
    (text,) = said
    assert text.startswith("hidden_lif: on any one image 99 % of neurons get no gradient for 50 steps")


@pytest.mark.parametrize("changes, named", [
    ({"weight_norm__conv2_1": math.nan, "weight_norm__hidden": math.inf}, "weights of conv2_1"),
    ({"grad_norm__conv1_1": math.nan, "grad_norm__conv2_1": math.nan}, "from conv2_1 on backwards"),
    ({"loss": math.inf}, "The loss is infinite"),
])
def test_what_is_not_finite_is_named(lenet, changes, named):
    watch = Watch(lenet, Config())
    watch.last_checkpoint = 400
    with pytest.raises(Diverged, match=f"{named}.*step 410.*that of step 400"):
        watch.update(410, healthy(lenet, **changes))


def test_clipping_counts_as_the_smaller_step_it_is(lenet):
    stats = healthy(lenet, grad_norm__hidden=1000.0)
    assert Watch(lenet, Config(clip_norm=0.0)).update(1, stats)
    assert not Watch(lenet, Config(clip_norm=1.0)).update(1, stats)
    assert not Watch(lenet, Config(optimizer="adam")).update(1, stats)
    assert not Watch(lenet, Config(clip_norm=0.0)).update(1, {**stats, "learning_rate": 1e-6})
    begins_at_0 = healthy(lenet) | {"grad_norm/norm.beta": 1000.0, "weight_norm/norm.beta": 0.1}
    assert not Watch(lenet, Config(clip_norm=0.0)).update(1, begins_at_0)


def test_the_first_layer_with_weights_that_are_not_finite_is_found(lenet):
    assert diagnosis.nonfinite_layer(lenet) is None
    broken = models.create("lenet", (28, 28, 1), 10, T)
    for variable in broken.trainable_variables[1:3]:
        value = variable.numpy()
        value.flat[3] = np.nan
        variable.assign(value)
    assert diagnosis.nonfinite_layer(broken) == "conv2_1"
