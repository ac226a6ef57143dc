"""Configurations: validation, precedence, the JSON form, what may differ on resume, and the default workdir."""

import dataclasses
import json
import math
import os

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tfspike import config
from tfspike.config import FIELDS, Config, RunOptions, presets, recipes, resolve, versions
from tfspike.config.methods import METHODS
from tfspike.config.settings import normalise, shown
from tfspike.datasets import catalogue
from tfspike.errors import UserError
from tfspike.variants import VARIANTS

QUICKLY = hypothesis_settings(max_examples=100, deadline=None,
                              suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=5)
LEGAL = st.fixed_dictionaries({}, optional={
    "model": st.sampled_from(sorted(VARIANTS)),
    "dataset": st.sampled_from(["mnist", "svhn", "cifar10", "kmnist:3.0.1"]),
    "workdir": st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip),
    "timesteps": st.integers(1, 500),
    "leak": st.floats(0, 1, exclude_min=True), "learning_rate": st.floats(1e-9, 1e9), "seed": st.integers(0, 2**31 - 1),
    "dropout": st.none() | st.floats(0, 0.99),
    "lr_milestones": st.sets(st.integers(1, 99)).map(lambda s: tuple(sorted(s))),
    "optimizer": st.sampled_from(["sgd", "adam", "adamw"]), "augment": st.none() | st.booleans(),
    "export": st.sampled_from([(), ("nir",), ("keras", "litert")]), "deterministic": st.booleans()})


def refused(**values):
    with pytest.raises(UserError) as caught:
        Config(**values)
    text = str(caught.value)
    assert "\n" not in text
    return text


def write(folder, content):
    path = folder / "settings.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("values", [
    {"timesteps": 0}, {"leak": 0.0}, {"leak": 1.01}, {"leak": math.nan}, {"threshold": 0.0}, {"threshold": math.inf},
    {"batch_size": 0}, {"val_fraction": 1.0}, {"val_fraction": -0.1}, {"learning_rate": 0.0},
    {"learning_rate": 10**400},
    {"epochs": 2.0}, {"epochs": True}, {"epochs": "3"}, {"epochs": 2**31}, {"seed": -1}, {"dropout": 1.0}, {"kappa": 0},
    {"target_rate": 1.0}, {"tensorboard": 1}, {"lr_milestones": 3}, {"lr_milestones": (0,)}, {"workdir": ""},
    {"workdir": "a\0b"}, {"workdir": "\ud800"}, {"dataset": "../up"}, {"dataset": "MNIST"}, {"gradient": "spike"},
    {"encoder": None}, {"export": "nir"}, {"export": ("nir", 3)}, {"clip_norm": -1.0}, {"weight_decay": -1e-9}])
def test_an_illegal_value_is_refused_in_a_sentence_that_names_the_flag_and_what_came(values):
    (name, value), = values.items()
    text = refused(**values)
    assert text.startswith(f"--{name} takes ")
    assert shown(value) in text


def test_an_unknown_model_is_answered_with_all_names_and_the_nearest():
    text = refused(model="resnet2O")
    assert all(name in text for name in VARIANTS)
    assert "Did you mean 'resnet20'?" in text
    assert "Did you mean 'vgg9'?" in refused(model="VGG9")


@pytest.mark.parametrize("values, part", [
    ({"lr_milestones": (5, 3)}, "--lr_milestones must increase"), ({"lr_milestones": (3, 3)}, "must increase"),
    ({"export": ("nir", "nir")}, "once"), ({"export": ("none", "nir")}, "none only alone"),
    ({"dataset": "nmnist"}, "--encoder=none"), ({"encoder": "none"}, "--encoder=poisson"),
    ({"dataset": "mnist", "extra": True}, "use --noextra")])
def test_settings_that_contradict_each_other_are_refused(values, part):
    assert part in refused(**values)


def test_values_are_brought_into_one_form():
    made = Config(learning_rate=1, weight_decay=-0.0, lr_milestones=[1, 2], dataset="svhn", export=("none",),
                  workdir="~/run")
    assert type(made.learning_rate) is float and math.copysign(1, made.weight_decay) == 1
    assert (made.lr_milestones, made.dataset, made.export) == ((1, 2), "svhn_cropped", ())
    assert made.workdir == os.path.expanduser("~/run")


def test_a_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().epochs = 3


def test_a_leak_below_one_over_e_warns_and_does_not_raise():
    assert "--leak=0.36 " in Config(leak=0.36).warnings()[0]
    assert Config(leak=0.37).warnings() == []


def test_an_unknown_data_set_passes_with_a_hint():
    assert "Did you mean 'mnist'?" in Config(dataset="minst").warnings()[0]


@pytest.mark.parametrize("model", sorted(VARIANTS))
def test_what_nobody_set_comes_from_the_variant_table(model):
    made, row = resolve({"model": model, "dataset": "cifar10"}), VARIANTS[model]
    recipe = recipes.recipe(model, "cifar10")
    for name in ("hidden", "kappa", "dropout", "init"):
        assert getattr(made, name) == recipe.get(name, getattr(row, name))
    assert resolve({"model": model, "dropout": 0.5}).dropout == 0.5


def test_flags_beat_the_file_which_beats_the_preset_which_beats_the_recipe_which_beats_the_default(tmp_path):
    path = write(tmp_path, {"timesteps": 77, "batch_size": 7})
    names = ("timesteps", "batch_size", "epochs", "lr_factor", "leak")

    def values(**how):
        made = resolve(how.pop("given", {}), **how)
        return tuple(getattr(made, name) for name in names)

    recipe, quick = recipes.recipe("lenet", "mnist_subset"), presets.EXPERIMENTS["quick"].settings
    from_recipe = (recipe["timesteps"], recipe["batch_size"], recipe["epochs"], 0.2, FIELDS["leak"].default)
    assert values() == from_recipe
    assert values(preset="quick") == (quick["timesteps"], recipe["batch_size"], quick["epochs"], *from_recipe[3:])
    assert values(preset="quick", config_file=path) == (77, 7, quick["epochs"], *from_recipe[3:])
    assert values(preset="quick", config_file=path, given={"timesteps": 5, "leak": 0.5}) == (5, 7, 1, 0.2, 0.5)
    assert recipe["timesteps"] != FIELDS["timesteps"].default and quick["timesteps"] != recipe["timesteps"]


def test_model_and_data_set_of_the_highest_source_choose_the_recipe(tmp_path):
    path = write(tmp_path, {"model": "resnet20"})
    assert resolve(preset="paper_vgg9_cifar10", config_file=path).model == "resnet20"
    made = resolve({"dataset": "svhn"}, config_file=path)
    assert (made.optimizer, made.norm, made.init, made.kappa) == ("adamw", "tdbn", "normal", 2.0)


def test_the_leak_aware_slope_has_no_width():
    assert resolve({"model": "resnet20", "surrogate": "leak_aware"}).surrogate_width == 1.0
    assert resolve({"model": "resnet20"}).surrogate_width == 2.0
    assert resolve({"model": "resnet20", "gradient": "event"}).surrogate_width == 1.0  # docs/depth.md
    assert resolve({"model": "resnet20", "gradient": "event", "surrogate_width": 3.0}).surrogate_width == 3.0
    with pytest.raises(UserError, match="--surrogate_width=3 stretches a surrogate"):
        resolve({"surrogate_width": 3.0})


def test_a_cosine_falls_over_the_epochs_that_were_asked_for_first():
    saved = resolve({"model": "resnet20", "dataset": "svhn"})
    config.check_resumable(saved, dataclasses.replace(saved))
    with pytest.raises(UserError, match="epochs .was 40, now 30.. The cosine falls over all epochs"):
        config.check_resumable(saved, dataclasses.replace(saved, epochs=30))


def test_a_warm_up_of_all_epochs_is_said():
    assert any("only rises" in warning for warning in resolve({"warmup_epochs": 3, "epochs": 3}).warnings())
    assert not any("only rises" in warning for warning in resolve({"warmup_epochs": 2, "epochs": 3}).warnings())


def test_milestones_or_a_schedule_that_were_asked_for_replace_the_recipes():
    made = resolve({"model": "resnet20", "lr_milestones": (3,)})
    assert (made.lr_schedule, made.lr_milestones) == ("milestones", (3,))
    made = resolve({"lr_schedule": "cosine"})
    assert (made.lr_schedule, made.lr_milestones) == ("cosine", ())
    with pytest.raises(UserError, match="--lr_milestones belong to --lr_schedule=milestones"):
        resolve({"lr_schedule": "cosine", "lr_milestones": (3,)})
    with pytest.raises(UserError, match="--init=rate scales weights, which --norm=tdbn undoes"):
        resolve({"norm": "tdbn", "init": "rate"})


def test_another_optimiser_than_the_recipes_brings_its_own_learning_rate():
    assert resolve({"optimizer": "adam"}).learning_rate == recipes.OPTIMIZERS["adam"]["learning_rate"]
    assert resolve({"optimizer": "sgd"}) == resolve()
    assert resolve({"optimizer": "adam", "learning_rate": 0.5}).learning_rate == 0.5
    swapped = resolve({"optimizer": "adamw"}, preset="paper_vgg9_cifar10")
    assert {name: getattr(swapped, name) for name in recipes.OPTIMIZERS["adamw"]} == recipes.OPTIMIZERS["adamw"]


RECORDINGS = {"dataset": "recordings", "sensor_size": (32, 32), "window_ms": 100.0}


def test_every_recipe_is_legal_and_every_network_has_the_papers():
    assert set(recipes.LEE) == set(VARIANTS)
    for model in VARIANTS:
        for dataset in (*config.DATASETS, "beans"):
            needed = RECORDINGS if dataset == "recordings" else {}
            twins = [name for name, method in METHODS.items() if method.settings["neuron"] == "relu"]
            for method in twins if dataset not in catalogue.WITH_EVENTS else ():  # ANNs, without what spikes alone have
                assert not resolve({"model": model, "dataset": dataset, **needed}, method=method).is_spiking
            for method in {None, *METHODS} - {*twins}:
                for optimizer in (None, "sgd", "adam", "adamw"):
                    settings = recipes.with_optimizer(recipes.recipe(model, dataset, method), optimizer)
                    Config(**{"model": model, "dataset": dataset, **needed, **settings})


def test_a_pair_that_nobody_measured_gets_the_recipe_that_learns_everywhere_and_is_told():
    made, notes = config.resolve_with_notes({"model": "lenet", "dataset": "digits28"})
    assert {name: getattr(made, name) for name in recipes.ROBUST} == dict(recipes.ROBUST)
    assert len(notes) == 1 and "No recipe was measured for lenet on digits28" in notes[0] and "--method=lee" in notes[0]
    assert config.resolve_with_notes({"model": "lenet", "dataset": "mnist"}).notes == []
    assert config.resolve_with_notes({"model": "vgg5"}, preset="paper_vgg9_cifar10").notes == []


@pytest.mark.parametrize("model", ["vgg5", "vgg7", "vgg9", "resnet7", "resnet9", "resnet11"])
def test_the_bare_command_is_not_the_papers_days(model):
    for dataset in ("cifar10", "svhn", "beans"):
        bare, paper = resolve({"model": model, "dataset": dataset}), resolve({"model": model, "dataset": dataset},
                                                                            method="lee")
        assert (bare.timesteps, bare.norm) == (4, "tdbn") and bare.epochs <= 20
        assert (paper.timesteps, paper.epochs, paper.norm, paper.surrogate) == (100, 150, "none", "leak_aware")


def test_the_papers_method_equals_its_preset_but_for_the_gradient():
    method, preset = resolve({"model": "vgg9", "dataset": "cifar10"}, method="lee"), resolve(preset="paper_vgg9_cifar10")
    assert set(config.diff(method, preset)) == {"gradient", "augment"} and preset.augment


def test_two_sources_of_all_settings_are_refused(tmp_path):
    with pytest.raises(UserError, match="--method=lee and --preset=quick both choose settings"):
        resolve(preset="quick", method="lee")
    path = tmp_path / "config.json"
    path.write_text(config.to_json(resolve()))
    with pytest.raises(UserError, match="--method=lee chooses settings, and --config="):
        resolve(config_file=str(path), method="lee")


def test_the_learning_rate_follows_the_batch_size():
    small, usual, large = (resolve({"batch_size": size}) for size in (16, 32, 128))
    assert (usual.learning_rate, usual.clip_norm) == (0.0085 * 32, 0.0)
    assert (small.learning_rate, small.clip_norm) == (pytest.approx(usual.learning_rate / 2), 0.0)
    assert small.weight_decay == pytest.approx(usual.weight_decay * 2)
    assert (large.learning_rate, large.clip_norm) == (pytest.approx(usual.learning_rate * 2), 1.0)
    adam = resolve({"model": "resnet20", "dataset": "svhn", "batch_size": 256})
    assert (adam.learning_rate, adam.weight_decay) == (pytest.approx(0.008), 0.01)


def test_what_follows_the_batch_size_is_said_and_what_was_given_stays(tmp_path):
    made, notes = config.resolve_with_notes({"batch_size": 128, "clip_norm": 0.0})
    assert notes == ["What belongs to the batch size follows --batch_size=128: --learning_rate=0.544 (at 32: 0.272), "
                     "--weight_decay=3.906e-06 (at 32: 1.5625e-05)."] and made.clip_norm == 0.0
    given, notes = config.resolve_with_notes({"batch_size": 128, "learning_rate": 0.1, "weight_decay": 0.0})
    assert (given.learning_rate, given.weight_decay, given.clip_norm, notes) == (0.1, 0.0, 0.0, [])
    assert config.resolve_with_notes({"batch_size": 32}).notes == []
    assert resolve({"batch_size": 128, "optimizer": "adam"}).learning_rate == recipes.OPTIMIZERS["adam"]["learning_rate"]
    path = write(tmp_path, {"batch_size": 8, "learning_rate": 0.4})  # a rate of its own, for its own batch size
    assert resolve({"batch_size": 2}, config_file=path).learning_rate == pytest.approx(0.1)


def test_a_run_of_before_that_was_told_to_go_on_does():
    text = config.to_json(resolve()).replace('"on_collapse": "stop"', '"stop_on_collapse": false')
    assert "stop_on_collapse" in text and config.from_json(text).on_collapse == "continue"
    assert config.from_json(text.replace('"stop_on_collapse": false', '"stop_on_collapse": true')) == resolve()


@QUICKLY
@given(LEGAL)
def test_json_gives_back_the_configuration(values):
    made = resolve(values)
    assert config.from_json(config.to_json(made, {"commit": "abc"})) == made


@QUICKLY
@given(LEGAL)
def test_what_was_asked_for_is_what_the_configuration_has(values):
    made = resolve(values)
    for name, value in values.items():
        if value is not None:
            assert getattr(made, name) == normalise(FIELDS[name], value)


@QUICKLY
@given(st.one_of(JSON, st.dictionaries(st.sampled_from(sorted(FIELDS) + ["format", "config", "resume"]), JSON)))
def test_any_json_gives_a_configuration_or_one_sentence(tmp_path, content):
    path = write(tmp_path, content)
    try:
        assert isinstance(resolve(config_file=path), Config)
    except UserError as error:
        assert "\n" not in str(error)


@QUICKLY
@given(st.binary(max_size=40))
def test_any_bytes_give_a_configuration_or_one_sentence(tmp_path, content):
    (tmp_path / "settings.json").write_bytes(content)
    try:
        resolve(config_file=str(tmp_path / "settings.json"))
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("content, part", [
    ({"epoch": 3}, "Did you mean 'epochs'?"), ({"epochs": "3"}, "--epochs takes a whole number"),
    ({"preset": "quick"}, "--preset"),
    ("{\"seed\": 1, \"seed\": 2}", "twice"), ("{\"leak\": NaN}", "--leak takes"), ("[1]", "JSON object"),
    ("{", "valid JSON (line 1)"),
    ("[" * 100_000, "valid JSON"), ({"format": 2, "seed": 1}, "reads format 1"), ({"format": True}, "format True"),
    ({"config": {"seed": 1}, "code": "x"}, "'code'"), ({"config": 3}, "as config 3"), ("1" * 5000, "JSON")])
def test_a_config_file_with_a_fault_is_refused_by_what_is_wrong(tmp_path, content, part):
    with pytest.raises(UserError) as caught:
        resolve(config_file=write(tmp_path, content))
    assert part in str(caught.value) and "settings.json" in str(caught.value)


def test_a_config_file_that_cannot_be_read_is_named(tmp_path):
    for path in (str(tmp_path / "absent.json"), str(tmp_path)):
        with pytest.raises(UserError, match=os.path.basename(path)):
            resolve(config_file=path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"is needed: give '.*config\.json'\."):  # the folder of a run
        resolve(config_file=str(tmp_path))


def test_a_pipe_as_config_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is not a file"):
        resolve(config_file=str(tmp_path / "pipe"))


def test_the_config_of_an_earlier_deep_run_starts_that_run_and_not_todays_recipe(tmp_path):
    first = resolve({"model": "resnet20", "dataset": "svhn", "norm": "none", "surrogate": "leak_aware", "init": "rate",
                     "pooling": "neuron", "loss": "squared", "lr_schedule": "milestones", "warmup_epochs": 0,
                     "shortcut": "spikes"})
    content = json.loads(config.to_json(first))
    for name in filter(versions.is_added, versions.CHANGES):
        del content["config"][name]
    again = resolve(config_file=write(tmp_path, content))
    assert again == first


def test_a_runs_own_config_starts_the_same_run_and_a_changed_one_goes_elsewhere(tmp_path):
    first = resolve({"seed": 1})
    path = write(tmp_path, config.to_json(first))
    assert resolve(config_file=path) == first
    assert resolve({"seed": 2}, config_file=path).workdir == resolve({"seed": 2}).workdir != first.workdir
    path = write(tmp_path, config.to_json(resolve({"seed": 1, "workdir": "mine"})))
    assert resolve({"seed": 2}, config_file=path).workdir == "mine"


def test_a_saved_run_is_read_whole_or_not_at_all(tmp_path):
    with pytest.raises(UserError, match="has none"):
        config.read_run(str(tmp_path))
    made = resolve({"workdir": str(tmp_path)})
    (tmp_path / "config.json").write_text(config.to_json(made))
    assert config.read_run(str(tmp_path)) == made
    content = json.loads(config.to_json(made))
    del content["config"]["timesteps"]
    with pytest.raises(UserError, match="lacks timesteps"):
        config.from_json(json.dumps(content))
    content["format"] = 99
    with pytest.raises(UserError, match="format 99"):
        config.from_json(json.dumps(content))


FREE = {"data_dir": "x", "workdir": "w", "checkpoint_every": 9, "keep_checkpoints": 9, "log_every": 9,
        "tensorboard": False,
        "export": (), "profile": True, "on_collapse": "continue", "epochs": 99}
CHANGED = {"surrogate": "arctan", "surrogate_width": 2.0, "norm": "tdbn", "shortcut": "currents", "pooling": "average", "loss": "cross_entropy",
           "label_smoothing": 0.1, "spike_penalty": 0.5, "lr_schedule": "cosine", "warmup_epochs": 2, "model": "vgg5", "dataset": "mnist",
           "extra": True, "image_size": (8, 8), "sensor_size": (8, 8), "window_ms": 9.0, "timesteps": 3, "gradient": "event", "encoder": "direct", "leak": 0.5,
           "threshold": 2.0, "hidden": 3, "dropout": 0.3, "init": "rate", "kappa": 3.0, "target_rate": 0.3,
           "steps_per_epoch": 3, "min_steps_per_epoch": 3, "batch_size": 3, "learning_rate": 3.0, "lr_milestones": (1,), "lr_factor": 0.3,
           "optimizer": "adam", "weight_decay": 0.3, "clip_norm": 3.0, "val_fraction": 0.3, "augment": True, "seed": 3,
           "precision": "mixed_bfloat16", "strategy": "mirrored", "jit": "on", "deterministic": True, "neuron": "relu",
           "timesteps_schedule": ("3:2",), "reset": "subtract", "start": 0.5, "credit": "time", "kernel": "events", "levels": 4,
           "learn": ("leak",), "feedback": "random", "readout": "first", "running_start": True,
           "homeostasis": 0.1, "earliest": "largest"}


def test_runs_of_earlier_versions_have_no_penalty_of_spikes_and_keep_their_folder():
    made = resolve({"lr_milestones": (1,)})
    content = json.loads(config.to_json(made))
    assert content["config"].pop("spike_penalty") == 0.0
    again = config.from_json(json.dumps(content))
    assert again == made and config.digest(again) == config.digest(dataclasses.replace(made, spike_penalty=0.0))
    assert config.digest(dataclasses.replace(made, spike_penalty=1.0)) != config.digest(made)
    with pytest.raises(UserError, match="--spike_penalty.*at least 0"):
        resolve({"spike_penalty": -1.0})


def test_every_field_is_either_free_to_change_or_part_of_the_experiment():
    assert set(FREE) | set(CHANGED) == set(FIELDS) and not set(FREE) & set(CHANGED)


@pytest.mark.parametrize("name", sorted(CHANGED))
def test_a_changed_experiment_cannot_continue_a_run_and_gets_another_folder(name):
    which = {"extra": {"dataset": "svhn"}, "image_size": {"dataset": "folder"}, "surrogate_width": {"surrogate": "arctan"}, "shortcut": {"model": "resnet7"},
             "credit": {"surrogate": "arctan"}, "levels": {"neuron": "relu"}, "earliest": {"encoder": "latency"},
             "sensor_size": RECORDINGS, "window_ms": RECORDINGS,
             "learn": {"surrogate": "arctan", "credit": "time"}, "readout": {"reset": "silent", "gradient": "event"},
             "feedback": {"surrogate": "arctan", "reset": "subtract", "gradient": "eprop"}}.get(name, {})
    saved = resolve({"timesteps": FIELDS["timesteps"].default, "export": (), "lr_milestones": (), **which})  # as an ANN can have
    wanted = dataclasses.replace(saved, **{name: CHANGED[name]})
    assert config.diff(saved, wanted) == {name: (getattr(saved, name), CHANGED[name])}
    with pytest.raises(UserError, match=name):
        config.check_resumable(saved, wanted)
    assert config.default_workdir(wanted) != config.default_workdir(saved)


@pytest.mark.parametrize("name", sorted(FREE))
def test_what_is_free_to_change_keeps_the_run_and_its_folder(name):
    saved = resolve()
    wanted = dataclasses.replace(saved, **{name: FREE[name]})
    assert saved != wanted and config.diff(saved, wanted) == {}
    assert config.diff(saved, wanted, experiment_only=False) == {name: (getattr(saved, name), FREE[name])}
    config.check_resumable(saved, wanted)
    assert config.default_workdir(wanted) == config.default_workdir(saved)


def test_a_run_from_before_a_setting_existed_is_read_as_what_it_was(tmp_path):
    made = resolve({"workdir": str(tmp_path), "dataset": "svhn"})
    content = json.loads(config.to_json(made))
    del content["config"]["extra"]
    assert config.from_json(json.dumps(content)) == made and not made.extra
    assert resolve({"dataset": "svhn"}).workdir != resolve({"dataset": "svhn", "extra": True}).workdir


def test_epochs_may_be_raised_but_not_lowered():
    saved = resolve({"epochs": 5})
    config.check_resumable(saved, dataclasses.replace(saved, epochs=6))
    with pytest.raises(UserError, match=r"epochs \(was 5, now 4\)"):
        config.check_resumable(saved, dataclasses.replace(saved, epochs=4))


def test_the_default_workdir_names_the_experiment_and_nothing_else():
    folder = resolve({"model": "vgg5", "dataset": "kmnist:3.0.1"}).workdir
    assert os.path.dirname(folder) == "runs"
    start, digest = os.path.basename(folder).rsplit("-", 1)
    assert start == "vgg5-kmnist-3.0.1-rate" and len(digest) == 8 and int(digest, 16) >= 0


def test_run_options_are_checked_before_anything_runs(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'never'"):
        RunOptions(resume="nevr")
    with pytest.raises(UserError, match="--init_from"):
        RunOptions(init_from=str(tmp_path / "absent"))
    with pytest.raises(UserError, match="only one"):
        RunOptions(init_from=str(tmp_path), resume="must")
    assert RunOptions(resume=str(tmp_path)).resume == str(tmp_path)
