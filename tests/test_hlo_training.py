"""A run that is trained where JAX is and TensorFlow is not: what is packed, and that it is the run of train.py."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks.hlo import pack, pictures, train
from test_hlo import JAX
from tfspike import config, distribution
from tfspike.runs import checkpoints, standing
from tfspike.training import command as training

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ["--model=lenet", "--dataset=mnist_subset", "--timesteps=8", "--init=rate", "--target_rate=0.2", "--hidden=16",
         "--batch_size=8", "--steps_per_epoch=4", "--epochs=2", "--augment", "--export=none", "--notensorboard", "--seed=3"]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packed run of FLAGS."""
    folder = tmp_path_factory.mktemp("packed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distribution, "has_gpu", lambda: True)
        assert pack.main(["run", str(folder / "run"), "--", *FLAGS]) == 0
    return folder


def came_back(folder: Path, run: dict, start: dict[str, np.ndarray], trained: int = 2) -> Path:
    """What the other side would have written, with its first weights as the best ones."""
    folder.mkdir()
    np.savez(folder / "weights.npz", **{str(i): start[f"v{i}"] for i in run["model"]})
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 4, "event": "epoch", "epoch": 1, "time": 1.0}) + "\n")
    (folder / "record.json").write_text(json.dumps({
        "card": "Card 9", "jax": "0.0", "epochs": 2, "trained": trained, "best_epoch": 1, "val_accuracy": 0.5, "half": run["half"],
        "init_from": None, "commit": "abc", "versions": run["versions"], "config": run["config"]}))
    return folder


def test_a_packed_run_knows_its_variables_and_comes_back_finished(packed: Path, tmp_path: Path,
                                                                  capsys: pytest.CaptureFixture[str]) -> None:
    run = json.loads((packed / "run" / "run.json").read_text())
    with np.load(packed / "run" / "start.npz") as kept:
        start = dict(kept)
    assert set(run["step"]["variables"]) <= set(range(len(start))) and len(set(run["step"]["variables"])) > 5
    assert {variable for _, variable in run["step"]["updates"]} < set(run["step"]["variables"])
    assert not run["validation"]["updates"] and set(run["validation"]["variables"]) <= set(run["model"])
    assert start[f"v{run['learning_rate']}"] == pytest.approx(run["config"]["learning_rate"])
    assert run["names"][:2] == ["loss", "correct"]

    back, home = came_back(tmp_path / "back", run, start), tmp_path / "home"
    assert pack.main(["take", str(back), "--", *FLAGS, f"--workdir={home}"]) == 0
    assert "best validation accuracy 50.00 % after epoch 1 of 2" in capsys.readouterr().out
    best = checkpoints.read(str(home / "checkpoints" / "best"))
    assert best.step == 4
    assert [value.tobytes() for value in best.arrays("model").values()] == [start[f"v{i}"].tobytes() for i in run["model"]]
    assert standing.standing(config.read_run(str(home)), "best", best).finished
    about = json.loads((home / "config.json").read_text())["about"]
    assert about["machines"] == ["Card 9, JAX 0.0 (benchmarks.hlo.train)"] and about["commands"][0].startswith("python train.py")
    assert json.loads((home / "finished.json").read_text()) == {"epochs": 2, "step": 8, "export": []}

    with pytest.raises(SystemExit, match="2"):
        pack.main(["take", str(back), "--", *FLAGS, "--learning_rate=0.5", f"--workdir={tmp_path / 'other'}"])
    assert "other settings than these flags give: learning_rate" in capsys.readouterr().err
    stopped = came_back(tmp_path / "stopped", run, start, trained=1)
    with pytest.raises(SystemExit, match="2"):
        pack.main(["take", str(stopped), "--", *FLAGS, f"--workdir={tmp_path / 'third'}"])
    assert "ends after epoch 1 of 2" in capsys.readouterr().err


def test_half_precision_is_for_weights_alone() -> None:
    assert train.travelling(np.ones((2, 3), np.float32), True).dtype == np.float16
    assert train.travelling(np.ones((2, 3), np.float32), False).dtype == np.float32
    assert train.travelling(np.ones(3, np.float32), True).dtype == np.float32
    assert train.travelling(np.ones((2, 3), np.int64), True).dtype == np.int64


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_come_back_to_the_bit(channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_SIDE", 3)
    random = np.random.default_rng(channels)
    images, labels = random.integers(0, 256, (20, 6, 5, channels), np.uint8), random.integers(0, 9, 20)
    pictures.write(tmp_path / "data", images, labels)
    assert len(list((tmp_path / "data").glob("*.webp"))) == 3
    found, known = pictures.read(tmp_path / "data")
    np.testing.assert_array_equal(found, images)
    np.testing.assert_array_equal(known, labels)


def trained_there(packed: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    """The command that trains a packed run with JAX, begun."""
    return subprocess.Popen([JAX, "-m", "benchmarks.hlo.train", str(packed / "run"), "--data", str(packed / "data"), "--out", str(out),
                             "--platform=cpu", *options], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.mark.equipped
@pytest.mark.skipif(JAX is None, reason="needs JAX: tools/equipped_tests.sh")
def test_a_run_waits_for_another_and_begins_with_its_best_weights(packed: Path, tmp_path: Path) -> None:
    assert pack.main(["data", str(packed / "data"), "--", *FLAGS]) == 0
    first, second, done = tmp_path / "first", tmp_path / "second", tmp_path / "done"
    waiting = trained_there(packed, second, "--after", str(done), "--begin_with", str(first), "--rates=0", "--epochs=1")
    with trained_there(packed, first) as before:
        assert before.wait() == 0, before.stderr.read()
    assert waiting.poll() is None and not second.exists()
    done.touch()
    assert waiting.wait() == 0, waiting.stderr.read()
    waiting.communicate()
    kept = [dict(np.load(out / "weights.npz")) for out in (first, second)]
    with np.load(packed / "run" / "start.npz") as start:
        assert any(np.abs(kept[0][name] - start[f"v{name}"]).max() > 0 for name in kept[0] if start[f"v{name}"].ndim > 1)
    for name, value in kept[0].items():  # the learning rate is 0: what it ends with is what it began with
        if value.ndim > 1:
            np.testing.assert_array_equal(kept[1][name], value)
    assert json.loads((second / "record.json").read_text())["init_from"] == str(first)
    assert json.loads((first / "record.json").read_text())["init_from"] is None


@pytest.mark.equipped
@pytest.mark.skipif(JAX is None, reason="needs JAX: tools/equipped_tests.sh")
def test_it_is_the_run_of_train_py(packed: Path, tmp_path: Path) -> None:
    assert pack.main(["data", str(packed / "data"), "--", *FLAGS]) == 0
    with trained_there(packed, tmp_path / "out") as running:
        assert running.wait() == 0, running.stderr.read()
    assert pack.main(["take", str(tmp_path / "out"), "--", *FLAGS, f"--workdir={tmp_path / 'taken'}"]) == 0
    settings, options, *_ = pack.flags.parse([*FLAGS, "--jit=on", f"--workdir={tmp_path / 'ours'}"])
    assert training.run(settings, options, lambda line: None) == 0
    ours, theirs = (json.loads(next(line for line in reversed(path.read_text().splitlines()) if '"epoch"' in line))
                    for path in (tmp_path / "ours" / "metrics.jsonl", tmp_path / "out" / "metrics.jsonl"))
    assert theirs["epoch/train_loss"] == pytest.approx(ours["epoch/train_loss"], rel=1e-4)
    assert theirs["epoch/val_accuracy"] == ours["epoch/val_accuracy"] and ours["epoch_rate/hidden_lif"] > 0.005
    best = [checkpoints.read(str(tmp_path / name / "checkpoints" / "best")).arrays("model") for name in ("ours", "taken")]
    for name, value in best[0].items():
        np.testing.assert_allclose(best[1][name], value, rtol=1e-4, atol=1e-5)
