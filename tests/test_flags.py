"""Command lines: from flags to a configuration, wrong input in one sentence, help and speed."""

import json
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tfspike import config
from tfspike.config import FIELDS, RunOptions, flags
from tfspike.errors import UserError
from tfspike.evaluation import options as eval_options

QUICKLY = hypothesis_settings(max_examples=100, deadline=None,
                              suppress_health_check=[HealthCheck.function_scoped_fixture])
NAMES = sorted(FIELDS) + sorted(RunOptions.__dataclass_fields__)
PROGRAM = """
import sys
from tfspike.config.flags import parse, user_errors
from tfspike.evaluation.options import parse_eval
with user_errors():
    {function}()
heavy = {{"tensorflow", "keras", "numpy"}} & set(sys.modules)
assert not heavy, heavy
"""


def run(*arguments, function="parse"):
    return subprocess.run([sys.executable, "-c", PROGRAM.format(function=function), *arguments],
                          capture_output=True, text=True, timeout=60, check=False)


def refused(*arguments, parse=flags.parse):
    with pytest.raises(UserError) as caught:
        parse(list(arguments))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_flags_of_every_kind_reach_the_configuration():
    made, options, warnings, notes = flags.parse(
        ["--model=vgg5", "--epochs", "7", "--learning_rate=1e-2", "--lr_milestones=2,4", "--notensorboard", "--augment",
         "--export=nir,keras", "--dropout=none", "--steps_per_epoch=3", "--dry_run", "--resume=never", "--leak=.3",
         "--method=lee"])
    assert (made.model, made.epochs, made.learning_rate, made.lr_milestones) == ("vgg5", 7, 0.01, (2, 4))
    assert (made.tensorboard, made.augment, made.export, made.steps_per_epoch) == (False, True, ("nir", "keras"), 3)
    assert (options.dry_run, options.resume, options.method, notes) == (True, "never", "lee", [])
    assert len(warnings) == 1 and "--leak" in warnings[0]


def test_no_flags_give_the_resolved_defaults():
    assert flags.parse([]) == (config.resolve(), RunOptions(), [], [])


def test_none_undoes_what_the_preset_set_and_the_variant_table_answers():
    assert flags.parse(["--preset=paper_resnet11_cifar10", "--dataset=svhn", "--dropout=0.1"])[0].dropout == 0.1
    made, *_ = flags.parse(["--preset=paper_lenet_mnist", "--augment=none", "--lr_milestones=none", "--export=none"])
    assert (made.augment, made.lr_milestones, made.export) == (None, (), ())


def test_a_flag_that_repeats_its_default_still_beats_the_config_file(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"leak": 0.5, "seed": 4}))
    made, *_ = flags.parse([f"--config={path}", f"--leak={FIELDS['leak'].default}"])
    assert (made.leak, made.seed) == (FIELDS["leak"].default, 4)


@pytest.mark.parametrize("argument, part", [
    ("--epoch=3", "Did you mean: epochs?"), ("--epochs=1e3", "--epochs takes a whole number"),
    ("--epochs", "Missing value"),
    ("--epochs=1_000", "received '1_000'"), ("--leak=nan", "--leak takes"),
    ("--learning_rate=inf", "--learning_rate takes"), ("--learning_rate=1e39", "from 1e-30 to 1e30; received 1e+39"),
    ("--threshold=1e-320", "--threshold takes"), ("--clip_norm=1e999", "up to 1e30; received inf"),
    ("--workdir= ", "received ' '"), ("--data_dir=", "--data_dir takes"),
    ("--no-tensorboard", "switch it off with --notensorboard"), ("--no_augment", "switch it off with --noaugment"),
    ("--tensorboard=maybe", "true or false"), ("--noaugment=1", "does not take an argument"),
    ("resnet20", "--name=value"),
    ("--gradient=evnt", "Did you mean 'event'?"), ("--lr_milestones=1,x", "--lr_milestones takes"),
    ("--model=", "one of lenet"),
    ("--flagfile=x", "--config"), ("--undefok=epoch", "'undefok'"), ("--preset=paper", "--preset takes one of"),
    ("-", "--name=value")])
def test_a_wrong_argument_is_refused_by_what_is_wrong(argument, part):
    assert part in refused(argument)


@QUICKLY
@given(st.lists(st.one_of(
    st.text(max_size=20),
    st.builds("--{}={}".format, st.sampled_from(NAMES), st.text(max_size=10) | st.integers() | st.floats()),
    st.builds("--{}".format, st.sampled_from(NAMES) | st.text(max_size=5)),
    st.builds("--no{}".format, st.sampled_from(NAMES))), max_size=4))
def test_any_command_line_gives_a_configuration_or_one_sentence(arguments):
    try:
        assert isinstance(flags.parse(arguments)[0], config.Config)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
    except SystemExit as stop:
        assert stop.code == 0  # the text was a call for help


@QUICKLY
@given(st.data())
def test_a_legal_value_survives_the_way_through_a_flag(data):
    values = {"seed": data.draw(st.integers(0, 2**31 - 1)), "leak": data.draw(st.floats(0, 1, exclude_min=True)),
              "lr_milestones": tuple(sorted(data.draw(st.sets(st.integers(1, 50))))),
              "deterministic": data.draw(st.booleans())}
    text = {name: ",".join(map(str, value)) or "none" if isinstance(value, tuple) else value for name,
            value in values.items()}
    made, *_ = flags.parse([f"--{name}={value}" for name, value in text.items()])
    assert made == config.resolve(values)


def test_help_lists_every_flag_with_its_choices_and_default():
    result = run("--epochs=x", "--help")
    assert (result.returncode, result.stderr) == (0, "")
    for name in NAMES:
        assert f"--{name} " in result.stdout or f"--[no]{name} " in result.stdout
    assert "One of: event, rate, eprop. (default: rate)" in " ".join(result.stdout.split())
    assert max(map(len, result.stdout.splitlines())) <= 104


@pytest.mark.parametrize("function", ["parse", "parse_eval"])
def test_a_wrong_flag_ends_with_code_2_and_one_sentence_on_stderr(function):
    result = run("--workdr=x", function=function)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1 and "workdir" in result.stderr


def test_flags_are_read_without_importing_tensorflow_keras_or_numpy():
    result = run("--epochs=3")
    assert (result.returncode, result.stderr) == (0, "")


def test_eval_needs_the_workdir_and_nothing_else():
    options = eval_options.parse_eval(["--workdir=runs/a"])
    assert options == eval_options.EvalOptions(workdir="runs/a")
    assert (options.seeds, options.checkpoint, options.timesteps) == (3, "best", None)
    assert not (options.report or options.json)
    assert "--workdir is missing" in refused(parse=eval_options.parse_eval)


def test_eval_flags_of_every_kind_reach_the_options():
    options = eval_options.parse_eval(["--workdir=a", "--seeds=5", "--checkpoint=last", "--timesteps=9", "--report", "--json",
                                "--compare=b,c", "--batch_size=none", "--data_dir=d", "--images=7"])
    assert options == eval_options.EvalOptions("a", "last", "d", 5, None, 9, True, ("b", "c"), (), True, images=7)
    options = eval_options.parse_eval(["--workdir=a", "--predict=x.png,y.png", "--resize"])
    assert options == eval_options.EvalOptions("a", predict=("x.png", "y.png"), resize=True)
    energy = eval_options.parse_eval(["--workdir=a", "--report", "--energy_mac=3.7", "--energy_ac=.1", "--energy_memory=5"])
    assert (energy.energy_mac, energy.energy_ac, energy.energy_update, energy.energy_memory) == (3.7, 0.1, 0.0, 5.0)
    assert eval_options.parse_eval(["--compare=a,b,c"]) == eval_options.EvalOptions(workdir="a", compare=("b", "c"))


@pytest.mark.parametrize("arguments, sentence", [
    (["--predict=x.png", "--report"], "--report is of the test set, and --predict classifies"),
    (["--predict=x.png", "--compare=b"], "--compare is of the test set"),
    (["--predict=x.png", "--images=5"], "--images is of the test set"),
    (["--resize"], "--resize is for --predict; give one"),
    (["--energy_ac=.1"], "--energy_ac is for --report and --compare; give one")])
def test_eval_options_that_would_have_no_effect_are_refused(arguments, sentence):
    assert sentence in refused("--workdir=a", *arguments, parse=eval_options.parse_eval)


def test_eval_options_may_come_as_lists():
    assert eval_options.EvalOptions(workdir="r", predict=["a.png"], compare=[]).predict == ("a.png",)


@pytest.mark.parametrize("argument, name", [
    ("--images=0", "images"),
    ("--seeds=0", "seeds"), ("--checkpoint=bst", "checkpoint"), ("--timesteps=0", "timesteps"),
    ("--batch_size=-1", "batch_size"), ("--energy_mac=0", "energy_mac"), ("--energy_ac=-1", "energy_ac"),
    ("--energy_ac=nan", "energy_ac"), ("--energy_memory=-1", "energy_memory"), ("--energy_update=inf", "energy_update"),
    ("--workdir=", "workdir")])
def test_illegal_eval_options_are_refused(argument, name):
    assert f"--{name} " in refused("--workdir=a", argument, parse=eval_options.parse_eval)
