"""Surrogates and neurons of the user's own, by MODULE:NAME: trained, continued, tested, exported; or one sentence that says what to do."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runs
import tfspike
from tfspike import evaluation, models, training
from tfspike.config import Config, default_workdir, digest, flags, resolve
from tfspike.errors import UserError
from tfspike.evaluation.options import EvalOptions
from tfspike.models import own
from tfspike.neurons import surrogates
from tfspike.runs import loading, workdir

# Of SuperSpike (Zenke and Ganguli 2018), and the library's "arctan" once more
MODULE = """
import math
import tensorflow as tf
import tfspike
from tfspike.neurons.gradients import Neuron

def fast(x):
    return 1 / (1 + 10 * tf.abs(x)) ** 2

def mine(x):
    return 1.0 / (1.0 + tf.square(math.pi * x))

class Twice(tfspike.LIF):
    @property
    def neuron(self):
        return Neuron.lif(self.leak, 0.5 * self.threshold, self.surrogate, self.surrogate_width)

class Learnt(tfspike.LIF):
    def build(self, shape):
        self.logit = self.add_weight(shape=(shape[-1],), initializer="zeros", name="logit")

    def call(self, currents):
        leak, v, train = tf.sigmoid(self.logit), tf.zeros_like(currents[0]), []
        for current in tf.unstack(currents):
            u = v + current
            train.append(tfspike.surrogates.spike(self.surrogate, u - self.threshold, self.surrogate_width))
            v = leak * u * (1.0 - tf.stop_gradient(train[-1]))
        return tf.stack(train)

def broken(x):
    return x.numpy()

def wide(x):
    return tf.reduce_sum(x)

def unbounded(x):
    return 1 / x

class Other(tfspike.PoolingIF):
    pass

class Nameless(Learnt):
    def build(self, shape):
        self.logit = self.add_weight(shape=(shape[-1],), initializer="zeros")

class Few(tfspike.LIF):
    def __init__(self, leak):
        super().__init__(leak)
"""


def quiet(line: str) -> None:
    pass


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of the user's in the current folder, which no other test has loaded."""
    monkeypatch.setattr(surrogates, "DERIVATIVES", dict(surrogates.DERIVATIVES))
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "my_neurons.py"
    file.write_text(MODULE)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two versions of a file within a second
    before = list(sys.path)
    yield file
    sys.modules.pop("my_neurons", None)
    assert sys.path == before


def tiny(folder: Any, **settings: Any) -> Config:
    return runs.tiny(folder, **{"surrogate": "my_neurons:fast", "epochs": 1, "lr_milestones": (), **settings})


def forgotten() -> None:
    """As in a new process: nothing of the module is loaded."""
    sys.modules.pop("my_neurons", None)
    surrogates.DERIVATIVES.pop("my_neurons:fast", None)


# ---- flags -----------------------------------------------------------------------------------------------------------


def test_names_are_settings_of_an_experiment() -> None:
    config = flags.parse(["--surrogate=my.own_module:fast", "--surrogate_width=2", "--neuron=my:Twice"])[0]
    assert (config.surrogate, config.surrogate_width, config.neuron, config.is_spiking) == ("my.own_module:fast", 2.0, "my:Twice", True)
    assert digest(config) != digest(dataclasses.replace(config, surrogate="my.own_module:slow"))
    assert default_workdir(config).startswith("runs/lenet-mnist_subset-rate-")


@pytest.mark.parametrize("text", ["fast", "fast.py", "a/fast.py:f", "a:", ":a", "a:b:c", "a:1", "1a:b", "a b:c"])
def test_what_is_no_name_is_refused_before_tensorflow_is_loaded(text: str) -> None:
    for flag, what in (("surrogate", r"a function h\(x\)"), ("neuron", "a subclass of tfspike.LIF")):
        with pytest.raises(UserError, match=f"--{flag} takes one of .*, or MODULE:NAME of {what} of your own; received"):
            flags.parse([f"--{flag}={text}"])


def test_help_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        flags.parse(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "tandem_clipped, or MODULE:NAME of a function h(x) of your own." in shown


@pytest.mark.parametrize("settings, message", [
    ({"surrogate": "nowhere:fast"}, r"--surrogate=nowhere:fast needs the Python module nowhere, which is neither in "),
    ({"surrogate": "my_neurons.more:fast"}, "my_neurons.more"), ({"surrogate": "my_neurons:fats"}, "my_neurons.py defines no fats. Did you mean 'fast'"),
    ({"surrogate": "my_neurons:math"}, "`function` must be a function"), ({"surrogate": "my_neurons:broken"}, "made of TensorFlow operations .*it fails"),
    ({"surrogate": "my_neurons:wide"}, "a finite number for every element"), ({"surrogate": "my_neurons:unbounded"}, "inf"),
    ({"neuron": "my_neurons:Other"}, "--neuron=my_neurons:Other must be a subclass of tfspike.LIF"), ({"neuron": "my_neurons:fast"}, "must be a subclass"),
    ({"neuron": "my_neurons:Few"}, "constructed as tfspike.LIF is, with leak, threshold, .*it fails"),
    ({"neuron": "my_neurons:Learnt", "export": ("keras",)}, "Exports run a window step by step.*Learnt.*`call` of its own.*give --export=none"),
    ({"neuron": "my_neurons:Nameless"}, "a weight without a name")])
def test_what_gives_no_surrogate_and_no_neuron_is_one_sentence(module: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        training.run(tiny("run", **{"surrogate": "arctan", **settings}), say=quiet)
    assert "\n" not in str(caught.value) and not Path("run").exists()


@pytest.mark.parametrize("code, message", [("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"), ("1 / 0", "ZeroDivisionError"),
                                           ("def (", "SyntaxError"), ("exit()", "SystemExit")])
def test_a_module_that_cannot_be_imported_is_one_sentence(module: Path, code: str, message: str) -> None:
    module.write_text(code)
    with pytest.raises(UserError, match=f"--surrogate=my_neurons:fast: its module cannot be imported .{message}.*mend it first"):
        own.load("my_neurons:fast", "lif")


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_with_a_surrogate_of_ones_own_is_that_with_the_librarys(module: Path) -> None:
    for folder, name in (("mine", "my_neurons:mine"), ("theirs", "arctan")):
        assert training.run(tiny(folder, surrogate=name), say=quiet) == 0
    mine, theirs = (runs.state(folder) for folder in ("mine", "theirs"))
    assert [name for name in theirs if name.startswith("model/") and mine[name] != theirs[name]] == []


@pytest.mark.slow
def test_a_run_is_continued_tested_exported_and_moved(module: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = tiny("run", epochs=2, export=("keras",))
    runs.killed_at(monkeypatch, made, 4)
    (tmp_path / "run").rename(tmp_path / "moved")
    forgotten()
    config, options, *_ = flags.parse(["--config=moved/config.json"])
    assert config.surrogate == "my_neurons:fast" and training.run(config, options, quiet) == 0
    assert training.run(made, say=quiet) == 0
    runs.assert_same_run("run", "moved")
    forgotten()
    record = evaluation.evaluate_run(EvalOptions(workdir="moved", images=8, seeds=1), quiet)
    assert record["records"] == 8
    assert runs.exported("moved", ["keras"])["keras"]["max_error"] == 0.0
    forgotten()
    module.unlink()
    with pytest.raises(UserError, match="needs the Python module my_neurons, .*start the command in the folder of that file"):
        loading.load_run("moved", say=quiet)


def test_code_that_was_edited_does_not_continue_a_run(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny("run")
    runs.killed_at(monkeypatch, made, 3)
    lines: list[str] = []
    loading.load_run("run", say=lines.append)
    assert not any("module" in line for line in lines)
    forgotten()
    module.write_text(MODULE.replace("10 *", "20 *"))
    with pytest.raises(UserError, match="module of my_neurons:fast is not as it was when the run in run began"):
        training.run(made, say=quiet)
    loading.load_run("run", say=lines.append)
    assert any("module of my_neurons:fast was changed" in line for line in lines)


def test_a_config_of_the_librarys_own_names_has_nothing_of_it(tmp_path: Path) -> None:
    config = resolve({"workdir": str(tmp_path)})
    workdir.write_config(config, {}, None)
    assert "own_code" not in json.loads((tmp_path / "config.json").read_text())["about"]


@pytest.mark.slow
def test_a_neuron_of_other_constants_keeps_the_fast_path_and_its_exports(module: Path) -> None:
    made = tiny("run", surrogate="leak_aware", neuron="my_neurons:Twice", export=("keras",), tensorboard=True)
    assert training.run(made, say=quiet) == 0
    model = loading.load_run("run", say=quiet)[0]
    assert model.engine is not None and {call.layer.neuron.threshold for call in model.plan.spiking} == {0.5, 0.75}
    image = np.random.default_rng(0).uniform(0, 1, (2, 28, 28, 1)).astype("float32")
    same = models.create("lenet", (28, 28, 1), 10, 4, threshold=0.5, hidden=0, gradient="rate")
    same.set_weights(model.get_weights())
    np.testing.assert_array_equal(model(image, seed=1), same(image, seed=1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:lenet is computed layer by layer")
def test_a_neuron_with_a_call_of_its_own_learns_its_weights(module: Path) -> None:
    made = tiny("run", neuron="my_neurons:Learnt", surrogate="arctan", tensorboard=True)
    assert training.run(made, say=quiet) == 0
    model = loading.load_run("run", say=quiet)[0]
    assert np.ptp(model.get_layer("conv1_1_lif").logit) > 0.0, "leaks began equal"
    assert evaluation.evaluate_run(EvalOptions(workdir="run", images=8, seeds=1), quiet)["rates"]["conv1_1_lif"] > 0.0


def test_a_class_is_what_models_take() -> None:
    class Mine(tfspike.LIF):
        pass

    model = models.create("lenet", (12, 12, 1), 3, 2, hidden=0, neuron=Mine)
    assert [type(call.layer) for call in model.plan.spiking] == [Mine, tfspike.PoolingIF] * 2
    for other in (tfspike.PoolingIF, "spiking", Mine()):
        with pytest.raises(UserError, match="`neuron` must be one of 'lif', 'relu'"):
            models.create("lenet", (12, 12, 1), 3, 2, neuron=other)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_installed_command_finds_a_module_in_the_current_folder(module: Path) -> None:
    done = subprocess.run([sys.executable, "-P", "-m", "tfspike", "train", "--surrogate=my_neurons:fats", "--workdir=run"],
                          env={"PYTHONPATH": str(runs.ROOT), "PATH": ""}, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2 and "defines no fats. Did you mean 'fast'?" in done.stderr
