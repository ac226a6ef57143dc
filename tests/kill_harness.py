"""Kills training at random moments and looks whether the run still ends with the same bits.

    python tests/kill_harness.py --kills=20 --seed=0

Every trial is a run of its own: killed by signal 9 at one random moment (in a step, in the middle of writing a
checkpoint, during the export, or at any time), started again by the same command, and compared with an uninterrupted
run: weights, step counters, optimiser, progress, metrics.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

sys.path[:0] = [os.path.dirname(os.path.abspath(__file__)), os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]

import runs  # noqa: E402

MOMENTS = {"step": 6, "system_call": 60, "export": 1, "time": 1}  # kind: how many occasions a run has for it
SYSTEM_CALLS = ("mkdir", "fsync", "rename", "replace", "symlink", "unlink")


def die(delay: float = 0.0) -> None:
    """kill -9 of this process, now or in a while."""
    if delay:
        threading.Timer(delay, die).start()
    else:
        os.kill(os.getpid(), signal.SIGKILL)


def child(kind: str, occasion: int, delay: float, flags: list[str]) -> None:
    """train.py in this process, which dies at the given occasion."""
    count = iter(range(1, 1_000_000))

    def dying(function: Any, delay: float = 0.0) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if next(count) == occasion:
                die(delay)
            return function(*args, **kwargs)

        return wrapped

    if kind == "system_call":
        for name in SYSTEM_CALLS:
            setattr(os, name, dying(getattr(os, name)))
    elif kind == "time":
        die(delay * 60)
    else:
        from tfspike import export
        from tfspike.training import step as train_step

        if kind == "step":
            train_step.TrainStep.__call__ = dying(train_step.TrainStep.__call__, delay)  # type: ignore[method-assign]
        else:
            export.save = dying(export.save, delay * 10)
    sys.argv = ["train.py", *flags]
    import train

    sys.exit(train.main())


def trial(folder: Path, whole: Path, draw: random.Random, kind: str) -> tuple[str, bool]:
    """One run, killed once and continued; returns a description of the moment, and whether the kill came in time."""
    occasion, delay = draw.randint(1, MOMENTS[kind]), draw.uniform(0.01, 0.3)
    flags = runs.as_flags(runs.tiny(folder, export=("saved_model",)))
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, __file__, "--child", kind, str(occasion), str(delay), *flags]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "timeout": 300}
    code = subprocess.run(command, env=env, cwd=runs.ROOT, **quiet).returncode
    assert code in (0, -signal.SIGKILL), f"{kind} {occasion}: exit code {code}"
    again = runs.command(runs.tiny(folder, export=("saved_model",)))
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output
    runs.assert_same_run(whole, folder)
    assert (folder / "saved_model" / "saved_model.pb").exists() and (folder / "finished.json").exists()
    return f"{kind} {occasion} (+{delay:.2f}): {output.splitlines()[0]}", code == -signal.SIGKILL


def main(kills: int, seed: int, say: Any = print) -> int:
    """Returns how many runs were really killed before they ended; all of them ended alike, or this raises."""
    draw, killed, tried = random.Random(seed), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        process = runs.command(runs.tiny(whole, export=("saved_model",)))
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        while killed < kills and tried < 3 * kills:
            kind = list(MOMENTS)[tried % len(MOMENTS)]
            description, in_time = trial(Path(folder) / str(tried), whole, draw, kind)
            killed, tried = killed + in_time, tried + 1
            say(f"{description}{'' if in_time else ' (had ended before)'}: identical")
    say(f"{killed} runs killed, all bit-identical to the uninterrupted one")
    return killed


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), sys.argv[5:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
