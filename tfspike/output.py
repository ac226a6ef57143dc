"""What a command prints: output that closes, fills up or cannot spell a name, warnings as sentences, and TensorFlow's
notes on its start.

Needs no TensorFlow, but in `start_tensorflow`.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator
from typing import Any

BROKEN_PIPE = 141  # 128 + SIGPIPE, as of any command in front of `head`

_NVIDIA = "/dev/nvidiactl"  # there wherever the driver of an NVIDIA GPU is loaded
# Of TensorFlow's C++ log, now and in earlier versions: "E0000 00:00:1795782079.87 7 cuda_platform.cc:52] failed call"
_LOG_LINE = re.compile(rb"[IWE]\d{4} [\d:.]+ |[\d-]+ [\d:.]+: [IWE] |WARNING: All log messages before ")
_WELL, _ILL = b"\0well\n", b"\0ill\n"


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """A command within it ends with 141, quietly, where nobody reads its output any more (`| head -1`), and with 2 and
    one sentence where the output cannot be written, as on a full disk.

    Streams that the caller closed (`>&-`) are opened to nowhere: the next file would get their numbers, and with it
    what libraries print. Names that the locale cannot spell are escaped.
    """
    _open_streams()
    try:
        try:
            yield
        except SystemExit:
            sys.stdout.flush()  # else Python would at its own end, and complain
            raise
        sys.stdout.flush()
    except BrokenPipeError:
        _to_nowhere()
        raise SystemExit(BROKEN_PIPE) from None
    except OSError as error:
        try:
            os.write(sys.stdout.fileno(), b"\n")
        except OSError:
            _to_nowhere()
        else:
            raise error  # of something else
        with contextlib.suppress(OSError):
            print(f"Error: the output cannot be written ({error.strerror}); send it elsewhere.", file=sys.stderr)
        raise SystemExit(2) from None


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Within it a `UserWarning` is a line on standard error, without the place in the source that it comes from."""
    before = warnings.formatwarning

    def plainly(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> str:
        return f"Warning: {message}\n" if category is UserWarning else before(message, category, *place, **more)

    warnings.formatwarning = plainly
    try:
        yield
    finally:
        warnings.formatwarning = before


def counted(number: int, noun: str) -> str:
    """"1 layer", "2 layers", "1,000 layers"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def line(text: str) -> None:
    """Prints a line at once. Where standard output is lost, says so once on standard error, and work goes on."""
    try:
        print(text, flush=True)
    except OSError as error:
        _to_nowhere()
        with contextlib.suppress(OSError):  # a terminal that is gone takes both
            print(f"Warning: the output cannot be written any more ({error.strerror}); the run goes on, and "
                  "metrics.jsonl in its folder has the numbers.", file=sys.stderr, flush=True)


def start_tensorflow(verbose: bool = False) -> None:
    """Imports TensorFlow and lets it find its devices, without the notes that its C++ writes on standard error thereby.

    They are shown where the import fails or takes the process with it, and where the user asks for them: by `verbose`,
    or by TF_CPP_MIN_LOG_LEVEL=0 or 1 in the environment. Whatever else is printed meanwhile is shown in any case.
    """
    level = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if verbose else "2")
    # Where there is no fork (Windows) nothing is held back
    hold = not verbose and level not in ("0", "1") and "tensorflow" not in sys.modules and hasattr(os, "fork")
    with _log_held_back() if hold else contextlib.nullcontext():
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
    if not gpus and os.path.exists(_NVIDIA) and "CUDA_VISIBLE_DEVICES" not in os.environ:
        print("Warning: TensorFlow cannot use this machine's NVIDIA GPU and computes on the CPU; --verbose shows what "
              "it says about that.", file=sys.stderr)


@contextlib.contextmanager
def _log_held_back() -> Iterator[None]:
    """Keeps lines of TensorFlow's log from standard error while the body runs, unless it does not end well.

    A second process keeps them: TensorFlow may end this one with a last word (that it was not built for this
    processor), which somebody else then has to show.
    """
    sys.stderr.flush()
    reading, writing = os.pipe()
    keeper = os.fork()
    if keeper == 0:
        os.close(writing)
        _keep(reading)
    os.close(reading)
    stderr = os.dup(2)
    os.dup2(writing, 2)
    os.close(writing)
    end = _WELL
    try:
        yield
    except Exception:
        end = _ILL
        raise
    finally:
        sys.stderr.flush()
        with contextlib.suppress(OSError):  # the keeper was killed
            os.write(2, end)
        os.dup2(stderr, 2)
        os.close(stderr)
        os.waitpid(keeper, 0)


def _keep(pipe: int) -> None:
    """The second process: reads to the end, writes what is to be shown, and ends."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # which a terminal sends to both
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    text = b""
    with contextlib.suppress(OSError):
        while not text.endswith((_WELL, _ILL)) and (part := os.read(pipe, 1 << 16)):
            text += part
        lines = text.removesuffix(_ILL).removesuffix(_WELL).splitlines(keepends=True)
        os.write(2, b"".join(part for part in lines if not text.endswith(_WELL) or not _LOG_LINE.match(part)))
    os._exit(0)


def _to_nowhere() -> None:
    """What is printed from now on, and what waits to be, is dropped."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _open_streams() -> None:
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # as long as the process
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
