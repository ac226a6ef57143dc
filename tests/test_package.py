"""What `.ci/run` asks of a built wheel and source archive: all files of the package, licences, metadata, and nothing else."""

from __future__ import annotations

import io
import runpy
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOL: dict[str, Any] = runpy.run_path(str(ROOT / "tools" / "check_package.py"))
PACKAGE = {"tfspike/__init__.py", "tfspike/weights/lenet_mnist.npz", "tfspike/data/LICENSE"}
METADATA = """Metadata-Version: 2.2
Name: tfspike
Version: 1.0.0
Summary: Spikes
Author: Somebody
License: Apache-2.0
Keywords: SNN
Project-URL: Method, https://example.org
Classifier: Programming Language :: Python :: 3
Requires-Python: >=3.10
Description-Content-Type: text/markdown

# tfspike
"""
ABOUT = {"METADATA": METADATA, "RECORD": "", "WHEEL": "", "licenses/LICENSE": "", "licenses/tfspike/data/LICENSE": ""}


def wheel(folder: Path, files: set[str] = PACKAGE, about: dict[str, str] = ABOUT) -> Path:
    path = folder / "tfspike-1.0.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**dict.fromkeys(files, ""), **{f"tfspike-1.0.0.dist-info/{name}": text for name, text in about.items()}}.items():
            archive.writestr(name, content)
    return path


def source(folder: Path, files: set[str]) -> Path:
    path = folder / "tfspike-1.0.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in files:
            content = METADATA.encode() if name == "PKG-INFO" else b""
            entry = tarfile.TarInfo(f"tfspike-1.0.0/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def test_whole_archives_pass(tmp_path: Path) -> None:
    for path in (wheel(tmp_path), source(tmp_path, PACKAGE | TOOL["BESIDE"] | {"tfspike.egg-info/SOURCES.txt"})):
        assert TOOL["check"](path, PACKAGE) == []


@pytest.mark.parametrize("files, about, message", [
    (PACKAGE - {"tfspike/weights/lenet_mnist.npz"}, ABOUT, "lacks tfspike/weights/lenet_mnist.npz"), (PACKAGE | {"tests/a.py"}, ABOUT, "holds tests/a.py"),
    (PACKAGE | {"tfspike/a.pyc"}, ABOUT, "holds tfspike/a.pyc"),
    (PACKAGE, {name: text for name, text in ABOUT.items() if name != "licenses/LICENSE"}, "lacks the licence LICENSE"),
    (PACKAGE, {**ABOUT, "METADATA": METADATA.replace("Author: Somebody\n", "")}, "metadata have no author"),
    (PACKAGE, {**ABOUT, "METADATA": METADATA.replace("1.0.0", "one")}, "'one' is invalid for 'version'"),
    (PACKAGE, {**ABOUT, "METADATA": METADATA.replace("text/markdown", "text/plain")}, "not said to be Markdown")])
def test_what_is_wrong_with_a_wheel_is_named(tmp_path: Path, files: set[str], about: dict[str, str], message: str) -> None:
    [found] = TOOL["check"](wheel(tmp_path, files, about), PACKAGE)
    assert message in found


def test_what_is_wrong_with_a_source_archive_is_named(tmp_path: Path) -> None:
    path = source(tmp_path, PACKAGE | TOOL["BESIDE"] - {"LICENSE"} | {"docs/site/index.html"})
    assert TOOL["check"](path, PACKAGE) == ["holds docs/site/index.html", "lacks LICENSE"]


def test_both_archives_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert TOOL["main"]([str(wheel(tmp_path))]) == 1
    assert "give a wheel and a source archive" in capsys.readouterr().out
