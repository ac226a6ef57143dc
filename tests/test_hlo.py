"""Programs for machines that have JAX but no TensorFlow: what is written, what the runner makes of it, and the plan."""

from __future__ import annotations

import gzip
import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.compiler.xla import xla_data_pb2
from tensorflow.compiler.xla.service import hlo_pb2

from benchmarks import cases, network, process
from benchmarks.hlo import export, plan, run, runner
from tfspike import distribution, models

RUNNER = Path(runner.__file__)
# A Python that has JAX; TensorFlow need not be there.
JAX = os.environ.get("TFSPIKE_JAX_PYTHON") or (sys.executable if importlib.util.find_spec("jax") else None)


# --- Programs -------------------------------------------------------------------------------------------------------


Exported = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Makes a program of a small LeNet when it is first asked for: mode, gradient."""
    folder, image = tmp_path_factory.mktemp("programs"), (12, 12, 1)

    def make(mode: str, gradient: str) -> Path:
        case = cases.Case("lenet", 4, 3, mode)
        path = plan.path(folder, case, gradient, "float32")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distribution, "has_gpu", lambda: True)
            patch.setattr(cases, "image_shape", lambda net: image)
            patch.setattr(network, "create", lambda net, timesteps, gradient: models.create(
                net, image, cases.CLASSES, timesteps, gradient=gradient, dropout=0.0, hidden=0, kappa=6.0))
            return path if path.exists() else export.export(case, gradient, "float32", folder)

    return make


def module_of(path: Path) -> hlo_pb2.HloModuleProto:
    return hlo_pb2.HloModuleProto.FromString(gzip.decompress(path.with_suffix(".hlo.gz").read_bytes()))


@pytest.mark.parametrize(("mode", "gradient"), [
    pytest.param("train", "event", marks=pytest.mark.slow), ("train", "rate"), ("inference", "rate")])
def test_arguments_and_results_are_those_of_the_module(exported: Exported, mode: str, gradient: str) -> None:
    path = exported(mode, gradient)
    described, shape = json.loads(path.read_text()), module_of(path).host_program_shape
    types = {xla_data_pb2.F32: "float32", xla_data_pb2.S32: "int32", xla_data_pb2.S64: "int64"}
    assert [(one["dtype"], one["shape"]) for one in described["arguments"]] == [
        (types[one.element_type], list(one.dimensions)) for one in shape.parameters]
    for result, argument in described["updates"]:
        assert list(shape.result.tuple_shapes[result].dimensions) == described["arguments"][argument]["shape"]
    weights = [i for i, one in enumerate(described["arguments"]) if one["kind"] == "weights"]
    assert len(weights) == 3 and (mode == "inference" or set(weights) < {argument for _, argument in described["updates"]})
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize("gradient", [pytest.param("event", marks=pytest.mark.slow), "rate"])
def test_a_program_expects_a_living_network_and_has_no_copies(exported: Exported, gradient: str) -> None:
    path = exported("train", gradient)
    expected = json.loads(path.read_text())["expected"]
    assert all(value > 0.01 for value in expected.values()), expected
    assert {name.partition("/")[0] for name in expected} == {"loss", "rate", "grad_norm", "change"}
    instructions = [one for part in module_of(path).computations for one in part.instructions]
    assert "copy" not in {one.opcode for one in instructions} and not any(one.HasField("metadata") for one in instructions)


def test_a_step_that_captures_a_tensor_is_refused() -> None:
    held = tf.ones(3)
    with pytest.raises(ValueError, match="no variables"):
        export.held_variables(tf.function(lambda x: x + held).get_concrete_function(tf.zeros(3)))


# --- The runner -----------------------------------------------------------------------------------------------------


def test_weights_lie_on_a_grid_that_bfloat16_holds() -> None:
    weights = runner.value({"shape": [40, 50], "dtype": "float32", "kind": "weights", "std": 0.3}, 5)
    assert np.std(weights) == pytest.approx(0.3, rel=0.05) and len(np.unique(weights)) > 50
    np.testing.assert_array_equal(tf.cast(tf.cast(weights, tf.bfloat16), tf.float32), weights)
    grain = np.min(np.abs(weights[weights != 0]))
    np.testing.assert_array_equal(np.rint(weights / grain), weights / grain)
    assert math.log2(grain) == round(math.log2(grain))


def test_arguments_differ_by_their_number_and_never_change() -> None:
    pixels = {"shape": [2, 3], "dtype": "float32", "kind": "pixels"}
    first = runner.value(pixels, 0)
    np.testing.assert_allclose(first, [[0.097627, 0.430379, 0.205527], [0.089766, -0.152690, 0.291788]], atol=1e-6)
    assert not np.array_equal(first, runner.value(pixels, 1)) and np.all(np.abs(first) <= 1)
    labels = runner.value({"shape": [100], "dtype": "int32", "kind": "labels", "classes": 10}, 1)
    assert set(labels) == set(range(10)) and labels.dtype == np.int32
    assert runner.value({"shape": [], "dtype": "int64", "kind": "constant", "value": 7}, 2) == np.int64(7)


def test_differences_are_relative_and_nan_is_the_largest() -> None:
    found = runner.differences({"loss": 1.1, "rate/a": 0.0, "rate/b": math.nan}, {"loss": 1.0, "rate/a": 0.0, "rate/b": 1.0})
    assert found == {"loss": pytest.approx(0.1 / 1.1), "rate/a": 0.0, "rate/b": math.inf}


def test_the_profile_counts_what_ran_on_streams_of_a_gpu() -> None:
    def plane(name: str, **lines: list[float]) -> Any:
        return SimpleNamespace(name=name, lines=[
            SimpleNamespace(name=line.replace("_", " "), events=[SimpleNamespace(duration_ns=one) for one in durations])
            for line, durations in lines.items()])

    planes = [plane("/host:CPU", Stream_1=[9e9]), plane("/device:GPU:0", Stream_1=[1e6, 2e6], Stream_2=[3e6], Steps=[9e9])]
    assert runner.busy(planes, 3) == {"kernels": 1, "busy_s": pytest.approx(2e-3)}
    assert runner.busy(planes[:1], 3) == {}


def test_without_jax_or_a_program_the_runner_says_what_is_missing(
        exported: Exported, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    path = str(exported("inference", "rate"))
    assert runner.main([path]) == 2 and "needs JAX" in capsys.readouterr().err
    assert runner.main(["nowhere.json"]) == 2 and "benchmarks.hlo.export" in capsys.readouterr().err


@pytest.mark.equipped
@pytest.mark.skipif(JAX is None, reason="needs JAX: tools/equipped_tests.sh")
@pytest.mark.parametrize(("mode", "gradient"), [("train", "event"), ("train", "rate"), ("inference", "rate")])
def test_jax_computes_what_tensorflow_does(exported: Exported, mode: str, gradient: str) -> None:
    path = exported(mode, gradient)
    done = subprocess.run([JAX, str(RUNNER), str(path), "--platform=cpu", "--steps=2", "--json"], capture_output=True,
                          text=True, cwd=path.parent, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["status"] == "ok" and record["worst"] < 1e-4, record["differences"]
    assert record["seconds"] > 0 and record["peak_mb"] > 0 and record["images_per_s"] == pytest.approx(3 / record["seconds"])


@pytest.mark.equipped
@pytest.mark.skipif(JAX is None, reason="needs JAX: tools/equipped_tests.sh")
def test_a_wrong_number_and_a_missing_gpu_are_found_out(exported: Exported, tmp_path: Path) -> None:
    path = exported("inference", "rate")
    described = json.loads(path.read_text())
    described["expected"]["output/size"] *= 1.1
    other = tmp_path / path.name
    other.write_text(json.dumps(described))
    other.with_suffix(".hlo.gz").write_bytes(path.with_suffix(".hlo.gz").read_bytes())
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    wrong, blind = (subprocess.run([JAX, str(RUNNER), str(other), f"--platform={platform}", "--steps=1"], text=True,
                                   capture_output=True, env=environment) for platform in ("cpu", "gpu"))
    assert wrong.returncode == 1 and "WRONG, output/size" in wrong.stdout
    assert blind.returncode == 2 and "JAX sees no gpu here" in blind.stderr


# --- Everything on one card -----------------------------------------------------------------------------------------


def test_every_measured_cell_of_ours_has_a_program() -> None:
    written = {plan.path(Path(), *one) for one in plan.programs(["vgg9", "lenet"], ["bfloat16"])}
    wanted = {plan.path(Path(), cell.case, cell.library.removeprefix("tfspike-"), cell.precision)
              for cell in plan.cells(["vgg9", "lenet"], ["bfloat16"]) if cell.library in cases.TFSPIKE}
    assert wanted == written and len(written) == 9
    assert {case.net for case, *_ in plan.programs([case.net for case in cases.NETS], ["float32"])} == {
        case.net for case in cases.NETS}


OURS = {"status": "ok", "wrong": [], "card": "Card 9", "seconds": 0.01, "low": 0.009, "high": 0.02, "images_per_s": 6400.0,
        "peak_mb": 99.0, "compile_s": 5.0, "worst": 1e-4, "kernels": 500, "busy_s": 0.004}
THEIRS = {"status": "ok", "card": "Card 9", "seconds": 0.1, "times": [0.1, 0.2], "peak_mb": 200.0, "first_step_seconds": 2.0}


@pytest.fixture
def equipped(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A machine that has everything; what its processes answer may be changed, and what was asked is kept."""
    machine: dict[str, Any] = {"ours": OURS, "theirs": THEIRS, "asked": []}

    def of_ours(command: list[str], *rest: Any) -> dict[str, Any]:
        machine["asked"].append(Path(command[2]).stem)
        return dict(machine["ours"])

    def of_theirs(python: str, module: str, order: dict[str, Any], *rest: Any) -> dict[str, Any]:
        machine["asked"].append(order["library"])
        return dict(machine["theirs"])

    monkeypatch.setattr(run, "_without", lambda module, name: None)
    monkeypatch.setattr(run, "run_command", of_ours)
    monkeypatch.setattr(run, "run_worker", of_theirs)
    return machine


def test_all_cells_are_measured_once_and_make_a_table(equipped: dict[str, Any], tmp_path: Path) -> None:
    command = ["--nets=lenet", "--precisions=float32", f"--out={tmp_path / 'gpu.json'}"]
    assert run.main(command) == 0
    assert equipped["asked"] == ["lenet-T50-B64-train-event-float32", "lenet-T50-B64-train-rate-float32", *plan.PEERS,
                                 "lenet-T50-B64-inference-rate-float32", *plan.PEERS]
    text = (tmp_path / "gpu.md").read_text()
    assert "Card: Card 9" in text and "| 10 (9 - 20) | 6400 | 99 | 5.0 | 500, 4 | 1.0e-04 |" in text
    assert "| 100 (100 - 200) | 640 | 200 | 2.0 |" in text
    assert run.main(command) == 0 and len(equipped["asked"]) == 11


def test_a_side_that_cannot_run_is_asked_once(equipped: dict[str, Any], tmp_path: Path,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    equipped["ours"] = {"status": "unusable", "error": ["JAX sees no gpu here."]}
    assert run.main(["--nets=lenet", f"--out={tmp_path / 'gpu.json'}"]) == 0
    assert len([one for one in equipped["asked"] if one.startswith("lenet")]) == 1
    assert "The rows of tfspike are left out: JAX sees no gpu here." in capsys.readouterr().err


def test_what_the_time_does_not_reach_is_named(equipped: dict[str, Any], tmp_path: Path,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--nets=lenet", "--minutes=0.1", f"--out={tmp_path / 'gpu.json'}"]) == 2
    said = capsys.readouterr().err
    assert not equipped["asked"] and "did not reach 22 of them" in said and "train/lenet/T50/B64/plain/bfloat16" in said


def test_without_jax_and_pytorch_nothing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run.main([f"--out={tmp_path / 'gpu.json'}"]) == 2
    assert "JAX is not installed here" in (said := capsys.readouterr().err) and "PyTorch is not installed here" in said


@pytest.mark.parametrize(("code", "status"), [
    ("print('{\"status\": \"ok\"}')", "ok"), ("import sys; sys.exit(2)", "unusable"), ("1 / 0", "error"),
    ("import time; time.sleep(9)", "timeout")])
def test_a_process_is_recorded_by_how_it_ended(code: str, status: str) -> None:
    record = process.run_command([sys.executable, "-S", "-c", code], 9.0, 0.5 if status == "timeout" else 9.0, {})
    assert record["status"] == status
    assert status != "error" or "ZeroDivisionError" in process.failure(record)

