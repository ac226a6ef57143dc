"""Several devices are the same experiment as one."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runs
from tfspike import distribution
from tfspike.distribution import Worker
from tfspike.errors import UserError
from tfspike.runs import checkpoints

CLUSTER = {"cluster": {"worker": ["127.0.0.1:1", "127.0.0.1:2"]}, "task": {"type": "worker", "index": 1}}


def worker(*what: str) -> dict[str, Any]:
    """`distribution_worker.py` in a process with two logical devices."""
    script = Path(__file__).with_name("distribution_worker.py")
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, str(script), *what], capture_output=True, text=True, env=env, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def two_devices() -> dict[str, Any]:
    return worker("event", "validation", "noise", "fit")


@pytest.fixture(scope="module")
def longer() -> dict[str, Any]:
    return worker("rate", "normalisation", "learning", "many", "fit_more", "callbacks")


@pytest.mark.parametrize("gradient", [pytest.param("rate", marks=pytest.mark.slow), "event"])
def test_one_step_of_lenet_on_two_devices_has_the_gradient_of_one_device(request: pytest.FixtureRequest,
                                                                         gradient: str) -> None:
    found = request.getfixturevalue("two_devices" if gradient == "event" else "longer")[gradient]
    assert found["replicas"] == 2
    assert min(found["rates"]) > 1e-4, "a layer that does not fire shows nothing"
    assert max(found["relative"]) < 1e-5
    assert found["loss"][0] == pytest.approx(found["loss"][1], rel=1e-6)
    assert found["correct"][0] == found["correct"][1]


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["rate", "event"])
def test_normalisation_on_two_devices_has_the_statistics_and_gradients_of_the_whole_batch(longer: dict[str, Any],
                                                                                          gradient: str) -> None:
    for found in longer["normalisation"][gradient].values():
        assert all(difference < 1e-5 for difference in found["difference"])  # max would pass over a NaN


@pytest.mark.slow
def test_a_normalised_net_learns_on_two_devices(longer: dict[str, Any]) -> None:
    losses = longer["learning"]["losses"]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


@pytest.mark.slow
def test_twenty_steps_on_two_devices_end_with_the_weights_of_one_device(longer: dict[str, Any]) -> None:
    found = longer["many"]
    assert found["closest"] > 1e-4, "a membrane came so close to its threshold that rounding may decide about a spike"
    assert 0.05 < found["rate"] < 0.9 and found["moved"] > 0.1
    assert found["difference"] < 1e-6


def test_validation_on_two_devices_gives_the_answers_of_one_device_also_with_a_remainder(
        two_devices: dict[str, Any]) -> None:
    found = two_devices["validation"]
    assert found["records"] == 45 and found["records"] % 16, "there must be a remainder"
    assert found["spread"] > 0
    assert found["equal"]


def test_noise_differs_between_devices_and_repeats_with_the_run(two_devices: dict[str, Any]) -> None:
    assert two_devices["noise"] == {"differ_by_replica": True, "repeat": True, "steps": 2}


def assert_weights_of_one(found: dict[str, Any]) -> None:
    assert found["difference"] < 1e-6
    assert found["finite"], "a replica without a record of the last batch spoils what layers keep"


def test_fit_of_keras_on_two_devices_ends_with_the_weights_of_one(two_devices: dict[str, Any]) -> None:
    assert_weights_of_one(two_devices["fit"]["adapting"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["by layers", "moving", "learnt"])
def test_fit_of_other_neurons_on_two_devices_ends_with_the_weights_of_one(longer: dict[str, Any], kind: str) -> None:
    """Penalties that are not of counts, starts that move, and constants that are learnt."""
    assert_weights_of_one(longer["fit_more"][kind])


@pytest.mark.slow
def test_callbacks_do_not_disturb_fit_on_two_devices(longer: dict[str, Any]) -> None:
    found = longer["callbacks"]
    assert found["moved"] > 1e-3 and found["difference"] < 1e-6


@pytest.mark.slow
def test_lenet_after_200_steps_on_two_devices_is_within_the_spread_of_seeds() -> None:
    found = worker("long")["long"]
    assert max(found["one"]) < 0.7, "the network must have learnt something"
    width = max(found["one"]) - min(found["one"])
    assert min(found["one"]) - width <= found["two"] <= max(found["one"]) + width


# ---- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "replicas", "nearest"), [(33, 2, "use 32 or 34"), (3, 4, "use 4"),
                                                            (100, 8, "use 96 or 104")])
def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_that_do(batch: int, replicas: int,
                                                                          nearest: str) -> None:
    with pytest.raises(UserError, match=nearest):
        distribution.check_batch(batch, replicas)
    assert distribution.check_batch(96, replicas) == 96 // replicas


def test_the_cluster_says_which_worker_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CONFIG", json.dumps(CLUSTER))
    assert distribution.this_worker("multi_worker") == Worker(1, 2)
    chief = {"cluster": {"chief": ["a:1"], "worker": ["b:1", "c:1"]}, "task": {"type": "worker", "index": 1}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(chief))
    assert distribution.this_worker("multi_worker") == Worker(2, 3)
    assert distribution.this_worker("auto").is_chief, "TF_CONFIG means nothing to the other strategies"


@pytest.mark.parametrize("text", [
    "", "{", "[]", "null", "{}", '{"cluster": {}, "task": {}}',
    json.dumps({**CLUSTER, "task": {"type": "worker", "index": 2}}),
    json.dumps({**CLUSTER, "task": {"type": "worker", "index": "x"}}),
    json.dumps({**CLUSTER, "cluster": {"worker": [1, 2]}}),
    json.dumps({**CLUSTER, "cluster": {"worker": ["a:1", "b:1"], "ps": ["c:1"]}}),
])
def test_a_cluster_that_cannot_be_used_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UserError, match="TF_CONFIG"):
        distribution.this_worker("multi_worker")


# ---- two processes -----------------------------------------------------------------------------------------------


def free_ports() -> list[int]:
    sockets = [socket.socket() for _ in range(2)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start_both(config: Any, logs: Path) -> list[subprocess.Popen[str]]:
    hosts = [f"127.0.0.1:{port}" for port in free_ports()]
    found = []
    for index in range(2):
        text = json.dumps({"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}})
        with open(logs / f"worker{index}.log", "a") as log:
            found.append(runs.command(config, env={"TF_CONFIG": text}, stdout=log, stderr=log))
    return found


def wait_for(condition: Any, processes: list[subprocess.Popen[str]], logs: Path) -> None:
    began = time.monotonic()
    while not condition():
        text = "".join(path.read_text() for path in logs.glob("*.log"))[-3000:]
        assert time.monotonic() - began < 300, text
        assert all(process.poll() is None for process in processes), text
        time.sleep(0.1)


@pytest.mark.slow
def test_two_processes_train_as_one_does_and_go_on_after_one_was_killed(tmp_path: Path) -> None:
    settings = {"strategy": "multi_worker", "encoder": "direct", "timesteps": 8, "epochs": 4, "steps_per_epoch": 20,
                "checkpoint_every": 2, "optimizer": "sgd", "learning_rate": 0.05}
    whole = runs.tiny(tmp_path / "whole", **settings)
    both = start_both(whole, tmp_path)
    assert [process.wait(300) for process in both] == [0, 0], (tmp_path / "worker0.log").read_text()[-3000:]

    for victim in (1, 0):
        config = runs.tiny(tmp_path / f"killed{victim}", **settings)
        both = start_both(config, tmp_path)
        folder = str(tmp_path / f"killed{victim}" / "checkpoints")
        wait_for(lambda folder=folder: checkpoints.steps(folder)[-1:] > [3], both, tmp_path)
        runs.kill(both[victim])
        code = both[1 - victim].wait(300)
        assert code != 0, "a worker alone cannot finish"
        both = start_both(config, tmp_path)
        assert [process.wait(300) for process in both] == [0, 0], (tmp_path / "worker0.log").read_text()[-3000:]
        runs.assert_same_run(tmp_path / "whole", tmp_path / f"killed{victim}")
    assert "Resuming from step" in (tmp_path / "worker0.log").read_text()


@pytest.mark.slow
def test_the_first_steps_of_two_processes_have_the_loss_of_one(tmp_path: Path) -> None:
    settings = {"encoder": "direct", "timesteps": 8, "epochs": 1, "steps_per_epoch": 2, "log_every": 1}
    both = start_both(runs.tiny(tmp_path / "two", strategy="multi_worker", **settings), tmp_path)
    one = runs.command(runs.tiny(tmp_path / "one", strategy="one", **settings))
    assert [process.wait(300) for process in [*both, one]] == [0, 0, 0]
    for a, b in zip(runs.metrics(tmp_path / "one"), runs.metrics(tmp_path / "two")):
        if a["event"] == "train":
            assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-5)
            assert a["train/accuracy"] == b["train/accuracy"]
        else:
            assert a["epoch/val_loss"] == pytest.approx(b["epoch/val_loss"], rel=1e-4)
    weights = [checkpoints.read(str(tmp_path / name / "checkpoints" / "last")).arrays("model") for name in ("one", "two")]
    assert max(float(abs(weights[0][name] - weights[1][name]).max()) for name in weights[0]) < 1e-5


@pytest.mark.slow
def test_the_same_command_after_a_finished_run_ends_on_every_worker_and_a_refused_one_too(tmp_path: Path) -> None:
    config = runs.tiny(tmp_path / "run", strategy="multi_worker", encoder="direct", timesteps=8, epochs=1)
    other = dataclasses.replace(config, learning_rate=0.5)
    for again, code in ((config, 0), (config, 0), (other, 2)):
        both = start_both(again, tmp_path)
        assert [process.wait(300) for process in both] == [code, code], (tmp_path / "worker0.log").read_text()[-3000:]
    first, second = ((tmp_path / f"worker{index}.log").read_text() for index in range(2))
    assert "Finished already" in first and "other settings: learning_rate" in first
    assert second.count("Error") == 1 and "The first worker could not begin; its own output says why" in second
