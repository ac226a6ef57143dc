"""`tfspike train | eval | export | stdp | convert | results`: the same commands as scripts and modules, in the words of the caller."""

from __future__ import annotations

import configparser
import fnmatch
import importlib.metadata
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import tfspike
from tfspike import __main__ as program
from tfspike.config import commands, flags
from tfspike.runs import provenance

ROOT = Path(__file__).resolve().parents[1]


def called(monkeypatch: pytest.MonkeyPatch, program: str, module: str | None = None) -> None:
    """This process as if it had been called so."""
    monkeypatch.setattr(sys, "argv", [program, "train", "--seed=1"])
    monkeypatch.setitem(sys.modules, "__main__",
                        types.SimpleNamespace(__spec__=module and types.SimpleNamespace(name=module)))


def refused(*argv: str) -> tuple[object, str]:
    """Exit code and standard error of `tfspike` in another process, which loads no TensorFlow."""
    done = subprocess.run([sys.executable, "-m", "tfspike", *argv], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main(["--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert [line.split()[0] for line in shown.splitlines() if line.startswith("  ")] == list(commands.COMMANDS)
    assert list(commands.COMMANDS) == list(program._RUN)


@pytest.mark.parametrize(("name", "flag"), [("train", "--learning_rate"), ("eval", "--predict"), ("export", "--target"),
                                            ("stdp", "--rule"), ("convert", "--percentile"), ("results", "--evaluation")])
def test_every_command_has_its_help(name: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main([name, "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and shown.startswith("Usage: ") and f"  {flag} " in shown


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(["--version"])
    assert capsys.readouterr().out == f"tfspike {tfspike.__version__}\n"


@pytest.mark.parametrize(("argv", "words"), [(["trian"], "Did you mean 'train'?"), ([], "a command is missing"),
                                             (["--model=lenet"], "there is no command '--model=lenet'"),
                                             (["train", "--modle=lenet"], "modle"), (["export"], "--workdir is missing")])
def test_a_wrong_command_is_one_sentence_and_code_2(argv: list[str], words: str) -> None:
    code, said = refused(*argv)
    assert code == 2 and said.startswith("Error: ") and words in said and said.count("\n") == 1


def setup_cfg() -> configparser.ConfigParser:
    found = configparser.ConfigParser()
    found.read(ROOT / "setup.cfg")
    return found


def test_the_wheel_has_the_command() -> None:
    script = setup_cfg()["options.entry_points"]["console_scripts"].strip()
    assert importlib.metadata.EntryPoint(*script.split(" = "), "console_scripts").load() is program.main


def test_the_wheel_has_every_file_of_the_package() -> None:
    """`.ci/run` builds one and compares."""
    patterns = [pattern.strip() for pattern in setup_cfg()["options.package_data"]["tfspike"].split(",")]
    paths = [path for path in (ROOT / "tfspike").rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    others = [path.relative_to(ROOT / "tfspike").as_posix() for path in paths if path.suffix != ".py"]
    assert len(others) > 10
    assert not [path for path in others if not any(fnmatch.fnmatch(path, pattern) for pattern in patterns)]
    assert not [path for path in paths if path.suffix == ".py" and not (path.parent / "__init__.py").exists()]


# ---- the words of the caller ---------------------------------------------------------------------------------------


def test_the_console_script_is_named_as_it_was_called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "tfspike"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    called(monkeypatch, str(script))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.to_copy("eval", workdir="a b") == "tfspike eval '--workdir=a b'"
    assert provenance.to_copy("convert", run="a") == "tfspike convert --run=a"
    assert provenance.command() == "tfspike train --seed=1"
    monkeypatch.setenv("PATH", os.devnull)  # its environment is not activated
    assert provenance.to_copy("eval", workdir="a") == f"{script} eval --workdir=a"
    assert provenance.without_paths(provenance.command()) == "tfspike train --seed=1"


def test_the_module_is_named_as_it_was_called(monkeypatch: pytest.MonkeyPatch) -> None:
    called(monkeypatch, str(ROOT / "tfspike" / "__main__.py"), "tfspike.__main__")
    assert provenance.to_copy("train", config="a") == "python -m tfspike train --config=a"
    assert provenance.command() == "python -m tfspike train --seed=1"
    assert flags.help_text([], commands.usage("train")) == "Usage: python -m tfspike train [--flag=value ...]"


def test_without_a_checkout_there_are_no_scripts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called(monkeypatch, "notebook.py")
    monkeypatch.chdir(ROOT)
    assert commands.words("train") == ["python", "train.py"]
    monkeypatch.setattr(commands, "_CHECKOUT", tmp_path)
    assert commands.words("train") == ["python", "-m", "tfspike", "train"]
    assert commands.words("export") == ["python", "-m", "tfspike.export"]


# ---- TensorFlow's start --------------------------------------------------------------------------------------------

LOG = "E0000 00:00:1.5 7 cuda_platform.cc:52] failed call to cuInit\\n2024-01-01 12:00:00.5: I core.cc:1] AVX2\\n"
FAKE = f"""
import os, sys
os.write(2, b"{LOG}")
os.write(2, b"of something else\\n")
print("of Python", file=sys.stderr)
class config:
    @staticmethod
    def list_physical_devices(kind):
        os.write(2, b"I0000 00:00:2.5 7 device.cc:1] none\\n")
        {{then}}
        return []
"""


def without(*names: str) -> dict[str, str]:
    """The environment of a user, who has set none of these."""
    return {name: value for name, value in os.environ.items() if name not in ("TF_CPP_MIN_LOG_LEVEL", *names)}


def started(folder: Path, then: str = "pass", code: str = "output.start_tensorflow()",
            **environment: str) -> subprocess.CompletedProcess[str]:
    """A process in which a TensorFlow that prints a lot is started."""
    (folder / "tensorflow.py").write_text(FAKE.format(then=then))
    return subprocess.run([sys.executable, "-c", f"from tfspike import output\n{code}\nprint('done')"],
                          env={**without("CUDA_VISIBLE_DEVICES"), "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", **environment}, cwd=folder,
                          capture_output=True, text=True, timeout=60)


def test_notes_of_tensorflow_are_held_back_and_nothing_else(tmp_path: Path) -> None:
    done = started(tmp_path, code="output.start_tensorflow()\nimport os\nos.write(2, b'E0000 00:00:3.5 7 a.cc:1] later\\n')")
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert done.stderr == "of something else\nof Python\nE0000 00:00:3.5 7 a.cc:1] later\n"


@pytest.mark.parametrize("asked", [{"code": "output.start_tensorflow(verbose=True)"}, {"TF_CPP_MIN_LOG_LEVEL": "0"},
                                   {"TF_CPP_MIN_LOG_LEVEL": "1"}])
def test_they_are_shown_to_who_asks(asked: dict[str, str], tmp_path: Path) -> None:
    done = started(tmp_path, **asked)
    assert done.returncode == 0 and "cuInit" in done.stderr and "none" in done.stderr


@pytest.mark.parametrize(("then", "code"), [("raise ImportError('no such library')", 1), ("os.abort()", -6),
                                            ("os._exit(3)", 3)])
def test_they_are_shown_where_tensorflow_fails(then: str, code: int, tmp_path: Path) -> None:
    done = started(tmp_path, then)
    assert done.returncode == code and "cuInit" in done.stderr and "device.cc" in done.stderr
    assert ("no such library" in done.stderr) == (code == 1)
    if code == 1:
        assert done.stderr.index("cuInit") < done.stderr.index("Traceback")


def test_a_gpu_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    def warnings(there: bool, **environment: str) -> int:
        code = f"output._NVIDIA = output.__file__ + {'' if there else '.gone'!r}\noutput.start_tensorflow()"
        return started(tmp_path, code=code, **environment).stderr.count("Warning: TensorFlow cannot use")

    assert (warnings(True), warnings(False), warnings(True, CUDA_VISIBLE_DEVICES="-1")) == (1, 0, 0)


@pytest.mark.parametrize("arguments", ["train.py --dry_run", "-m tfspike train --dry_run", "eval.py --weights=lenet_mnist",
                                       "-m tfspike.export --workdir=tests/goldens/run",
                                       "-m tfspike.conversion --run=tests/goldens/run", "-m tfspike.stdp --images=1",
                                       "-m tfspike.pretrained --workdir=tests/goldens/run"])
def test_every_command_starts_tensorflow_so(arguments: str, tmp_path: Path) -> None:
    (tmp_path / "tensorflow.py").write_text(FAKE.format(then="raise ImportError(os.environ['TF_CPP_MIN_LOG_LEVEL'])"))
    for flag, level in (([], 2), (["--verbose"], 0)):
        done = subprocess.run([sys.executable, *arguments.split(), *flag], cwd=ROOT, capture_output=True, text=True,
                              timeout=60, env={**without(), "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"})
        assert "in start_tensorflow" in done.stderr and done.stderr.endswith(f"ImportError: {level}\n"), done.stderr


def test_the_real_tensorflow_starts_in_silence() -> None:
    done = subprocess.run([sys.executable, "-c", "from tfspike import output\noutput.start_tensorflow()"], cwd=ROOT,
                          env=without("CUDA_VISIBLE_DEVICES"), capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
