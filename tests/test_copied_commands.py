"""Commands that the library prints for its reader run as they stand, whatever the folder is called."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import runs
from tfspike import config as config_lib
from tfspike import datasets, training
from tfspike.errors import UserError
from tfspike.evaluation import report
from tfspike.runs import loading as run_loading
from tfspike.runs import provenance, results

FOLDER = "mein Ordner/größe $HOME'x"
INFO = datasets.DatasetInfo("tiny", (12, 12, 1), 2, ("a", "b"), (1 / 128,), (-1.0,), False, 10, 10)


@pytest.fixture
def typed(tmp_path: Path) -> Callable[[str], list[str]]:
    """What Python is started with when a shell is given the last command in a text."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'import json, sys; print(json.dumps(sys.argv[1:]))' \"$@\"\n")
    python.chmod(0o755)

    def start(text: str) -> list[str]:
        command = re.findall(r"python (?:-m|\S*\.py) .*", text)[-1]
        path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env={**os.environ, "PATH": path})
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return start


def refused(call: Callable[..., Any], *args: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    return str(caught.value)


def test_a_run_says_how_to_test_it_and_to_go_on(tmp_path, monkeypatch, typed):
    monkeypatch.chdir(runs.ROOT)
    folder = str(tmp_path / FOLDER)
    lines: list[str] = []
    settings = runs.tiny(folder, epochs=1, steps_per_epoch=1, checkpoint_every=0)
    assert training.run(settings, say=lines.append) == 0
    assert typed(lines[-1]) == ["eval.py", f"--workdir={folder}"]
    config = os.path.join(folder, "config.json")
    assert typed(provenance.continuing_command(settings)) == ["train.py", f"--config={config}"]
    (Path(folder) / "finished.json").unlink()
    assert typed(refused(results.read_finished, folder, settings)) == ["train.py", f"--config={config}"]


def test_advice_to_convert_a_twin_names_its_folder(tmp_path, typed):
    folder = runs.untrained(tmp_path / FOLDER, INFO, model="lenet", hidden=0, neuron="relu")
    wanted = ["-m", "tfspike.conversion", f"--run={folder}"]
    assert typed(refused(report.require_spikes, [folder])) == wanted
    assert typed(refused(run_loading.load_run, folder, "best", 5)) == wanted
    assert config_lib.read_run(folder).workdir == folder


def test_scripts_are_named_from_wherever_the_reader_is(tmp_path, monkeypatch, typed):
    monkeypatch.chdir(tmp_path)
    assert typed(provenance.to_copy("eval", workdir="a b")) == [str(runs.ROOT / "eval.py"), "--workdir=a b"]
    assert typed(provenance.to_copy("export", workdir="-x", out="ü")) == [
        "-m", "tfspike.export", "--workdir=-x", "--out=ü"]


def test_no_other_line_puts_a_path_into_a_command():
    """`provenance.to_copy` is the one place that does."""
    pattern = re.compile(r"(python|tensorboard) .*--(workdir|run|config|out|logdir|data_dir|compare|resume|init_from)=\{")
    sources = list((runs.ROOT / "tfspike").rglob("*.py"))
    assert pattern.search('f"python eval.py --workdir={folder}"') and len(sources) > 50
    found = [f"{path}: {line}" for path in sources for line in joined(path.read_text()).splitlines() if pattern.search(line)]
    assert found == []


def joined(source: str) -> str:
    """String literals that continue on the next line as one."""
    return re.sub(r'"\s*\n\s*f?"', "", source)
