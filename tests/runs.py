"""Small runs on the embedded data, and what makes two of them the same run."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tfspike import config as config_lib
from tfspike import training
from tfspike.errors import UserError
from tfspike.models import variables
from tfspike.runs import checkpoints
from tfspike.runs import loading as run_loading
from tfspike.runs import workdir as runs
from tfspike.training.step import TrainStep

ROOT = Path(__file__).parent.parent


def tiny(workdir: Any, **settings: Any) -> config_lib.Config:
    """Six steps of LeNet without its hidden layer, a checkpoint after every second one."""
    return config_lib.resolve({
        "model": "lenet", "hidden": 0, "timesteps": 4, "batch_size": 8, "steps_per_epoch": 3, "epochs": 2,
        "lr_milestones": (1,), "val_fraction": 0.004, "checkpoint_every": 2, "log_every": 2, "tensorboard": False,
        "export": (), "workdir": str(workdir), **settings})


class Killed(BaseException):
    """Stands for kill -9: nothing in the library catches it."""


def killed_at(monkeypatch: pytest.MonkeyPatch, config: config_lib.Config, step: int) -> None:
    """Runs until just before the update number `step`."""
    original = TrainStep.__call__
    calls = iter(range(1, 1000))

    def until(self: Any, *args: Any, **kwargs: Any) -> Any:
        if next(calls) == step:
            raise Killed
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(TrainStep, "__call__", until)
        training.run(config, say=lambda line: None)


def assert_survives_a_kill(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
    """A run that is killed before its fourth update and continued ends as one that is not; `folder` has them as "killed"
    and "whole"."""
    for name in ("whole", "killed"):
        config = tiny(folder / name, **settings)
        if name == "killed":
            killed_at(monkeypatch, config, 4)
        assert training.run(config, say=lambda line: None) == 0
    assert_same_run(folder / "whole", folder / "killed")


def untrained(workdir: Any, info: Any, **settings: Any) -> str:
    """The folder of a run that was saved before its first step: for commands that ask how, not how well.

    Args:
      workdir: folder to make.
      info: a `datasets.DatasetInfo`; images of any shape.
      settings: of `config.resolve`; the network is alive with the first weights that kappa gives it.
    """
    dataset = "nmnist" if info.event_based else "mnist"
    paper = config_lib.resolve({"dataset": dataset, "model": settings.get("model", "lenet")}, method="lee")
    base = {} if settings.get("norm") == "tdbn" else dataclasses.asdict(paper)
    config = config_lib.resolve({**base, "dataset": dataset, "export": (), **settings, "workdir": str(workdir)})
    os.makedirs(workdir)
    runs.write_config(config, {"info": info.to_dict()}, None)
    model = run_loading.build_model(config, info)
    checkpoints.save(os.path.join(workdir, "checkpoints"), 0,
                     {"model": variables.collect(model.variables), "optimizer": {}},
                     {"config": dataclasses.asdict(config)}, best=True)
    return str(workdir)


def exported(workdir: str, formats: Any, *flags: str) -> dict[str, dict[str, Any]]:
    """What `python -m tfspike.export` does and says of every format, in this process.

    Raises:
      UserError: its sentence.
    """
    from tfspike.export import __main__ as export

    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            export.main([f"--workdir={workdir}", f"--format={','.join(formats)}", *flags])
    except SystemExit:
        raise UserError(err.getvalue().removeprefix("Error: ").rstrip()) from None
    return reports(out.getvalue())


def reports(printed: str) -> dict[str, dict[str, Any]]:
    """The lines that the command printed, by format."""
    lines = [json.loads(line) for line in printed.splitlines()]
    return {line.pop("format"): line for line in lines}


def as_flags(config: config_lib.Config) -> list[str]:
    """The command line of a configuration."""
    found = []
    for name in config_lib.FIELDS:
        value = getattr(config, name)
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        found.append(f"--{name}={text or 'none'}" if value is not None and value != () else f"--{name}=none")
    return [flag for flag in found if flag not in ("--lr_milestones=",)]


def command(config: config_lib.Config, *more: str, **popen: Any) -> subprocess.Popen[str]:
    """train.py in a process of its own."""
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3", **popen.pop("env", {})}
    return subprocess.Popen([sys.executable, str(ROOT / "train.py"), *as_flags(config), *more], cwd=ROOT, text=True,
                            env=env,
                            **{"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, **popen})


def kill(process: subprocess.Popen[str]) -> None:
    """kill -9 of a process that this test started."""
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    process.wait(60)


def state(workdir: Any) -> dict[str, bytes]:
    """Every bit of the last checkpoint: weights, step counters, optimiser."""
    last = checkpoints.read(os.path.join(workdir, "checkpoints", "last"))
    found = {f"{part}/{name}": array.tobytes() for part in checkpoints.PARTS for name, array in last.arrays(part).items()}
    return {**found, "step": str(last.step).encode(), "progress": json.dumps(last.meta["progress"]).encode()}


def metrics(workdir: Any) -> list[dict[str, Any]]:
    """metrics.jsonl without times."""
    lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if not name.startswith("time")} for line in lines]


def assert_same_run(one: Any, other: Any) -> None:
    """Weights, optimiser, progress and metrics (times aside) of two workdirs are bit-identical."""
    a, b = state(one), state(other)
    assert a.keys() == b.keys()
    assert not [name for name in a if a[name] != b[name]]
    assert metrics(one) == metrics(other)
