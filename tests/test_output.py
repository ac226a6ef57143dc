"""Commands whose output closes, fills up or cannot spell a name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tfspike.training.signals import Signals

ROOT = Path(__file__).parent.parent
PRINTING = "from tfspike import output\nwith output.guarded():\n    for i in range(3): {what}\n    {then}\n"


def shell(command: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHON": sys.executable, **env}, check=False)


def python(code: str, redirection: str, **env: str) -> subprocess.CompletedProcess[str]:
    return shell(f'"$PYTHON" -c "$CODE" {redirection}', CODE=code, **env)


@pytest.mark.parametrize("arguments", ["train.py --help", "train.py --preset=list", "eval.py --help",
                                       "-m tfspike.results --help"])
def test_a_reader_that_has_enough_ends_a_command_quietly(arguments: str) -> None:
    done = shell(f'"$PYTHON" {arguments} | head -c 10')
    assert done.returncode in (0, 141) and done.stderr == "" and len(done.stdout) == 10  # 0: all was in the pipe by then


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", ["train.py --help", "eval.py --help"])
def test_a_full_disk_is_one_sentence(arguments: str) -> None:
    done = shell(f'"$PYTHON" {arguments} > /dev/full')
    assert done.returncode == 2
    assert done.stderr == "Error: the output cannot be written (No space left on device); send it elsewhere.\n"


def test_ctrl_c_is_one_sentence() -> None:
    code = """import signal; from tfspike.config import flags
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background of a shell ignores it
with flags.user_errors():
    signal.raise_signal(signal.SIGINT)"""
    done = python(code, "")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Stopped by Ctrl-C.\n")


@pytest.mark.parametrize("closed", [">&-", "<&-", "<&- >&-"])
def test_closed_streams_are_no_error(closed: str) -> None:
    done = shell(f'"$PYTHON" train.py --help {closed}')
    assert (done.returncode, done.stderr) == (0, "")


def test_a_file_never_gets_the_number_of_a_closed_stream() -> None:
    code = "import sys; from tfspike import output\nwith output.guarded():\n" \
           "    sys.exit(open('README.md').fileno() < 3)"
    assert python(code, "<&- >&- 2>&-").returncode == 0


def test_an_error_that_is_not_the_outputs_stays_one() -> None:
    done = python(PRINTING.format(what="print(i)", then="open('/nowhere/at/all')"), "")
    assert done.returncode == 1 and "FileNotFoundError" in done.stderr


def test_a_warning_is_one_sentence_and_of_other_kinds_what_it_was() -> None:
    code = "import warnings; from tfspike import output\nwith output.plain_warnings():\n" \
           "    warnings.warn('a file was left out.'); warnings.warn('old', FutureWarning)\nwarnings.warn('after')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    lines = done.stderr.splitlines()
    assert lines[0] == "Warning: a file was left out." and "FutureWarning: old" in lines[1] and "UserWarning: after" in lines[-1]


@pytest.mark.parametrize("lost", ["| head -c 0", "> /dev/full"])
def test_work_goes_on_where_the_output_of_a_run_is_lost(lost: str, tmp_path: Path) -> None:
    file = tmp_path / "done"
    code = PRINTING.format(what="output.line('x' * 100_000)", then=f"open({str(file)!r}, 'w')")
    done = python(code, lost)
    assert file.exists() and done.returncode == 0
    assert done.stderr.count("Warning: the output cannot be written any more") == 1 and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["Bücher", "日本", "a\udcff"])
def test_a_name_that_the_locale_cannot_spell_is_escaped(name: str) -> None:
    done = python(PRINTING.format(what=f"print({ascii(name)})", then="pass"), "", PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.returncode == 0 and done.stdout.count("\n") == 3 and done.stderr == ""


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP here")
def test_a_hang_up_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert stop.received is None
    finally:
        signal.signal(signal.SIGHUP, before)
