"""The commands, and how this process was called: `tfspike train`, `python -m tfspike train` or `python train.py`.

What the library prints for its reader to type is in the words that called this process. Needs no TensorFlow.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

COMMANDS = {
    "train": "Train a spiking network, or an ANN to convert, and export it.",
    "eval": "Test a trained network: accuracy, predictions, reports, comparisons.",
    "export": "Write the network of a run as files for other programs.",
    "stdp": "Have convolutions learn from spikes without labels, before train does.",
    "convert": "Turn the ANN of a run into a spiking network.",
    "results": "Record a finished run as a row of a table.",
}
"""`{name: what it does}`."""

_CHECKOUT = Path(__file__).resolve().parents[2]  # where train.py and eval.py lie, unless the package is installed
_MODULES = {"export": "tfspike.export", "stdp": "tfspike.stdp", "convert": "tfspike.conversion",
            "results": "tfspike.results"}


def front() -> list[str]:
    """The words in front of a command's name, where this process was called by `tfspike` or its module; else none."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name == "tfspike.__main__":
        return ["python", "-m", "tfspike"]
    program = sys.argv[0] if sys.argv else ""
    if os.path.splitext(os.path.basename(program))[0] != "tfspike":
        return []
    on_path = os.path.abspath(shutil.which("tfspike") or "") == os.path.abspath(program)
    return ["tfspike" if on_path else program]


def words(name: str) -> list[str]:
    """What the reader types for a command, without its flags."""
    if front():
        return [*front(), name]
    if name in _MODULES:
        return ["python", "-m", _MODULES[name]]
    script = _CHECKOUT / f"{name}.py"
    if not script.is_file():
        return ["python", "-m", "tfspike", name]
    return ["python", script.name if Path.cwd() == _CHECKOUT else str(script)]


def usage(name: str, arguments: str = "[--flag=value ...]") -> str:
    """A command for the reader of a help text, such as "python train.py [--flag=value ...]", without folders."""
    return f"{shlex.join(map(os.path.basename, words(name)))} {arguments}"
