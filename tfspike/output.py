"""What a command prints: where output closes, fills up or cannot spell a name, it ends quietly and training goes on;
warnings are sentences.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

BROKEN_PIPE = 141  # 128 + SIGPIPE, as of any command in front of `head`


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


def line(text: str) -> None:
    """Prints a line at once. Where standard output is lost, says so once on standard error, and work goes on."""
    try:
        print(text, flush=True)
    except OSError as error:
        _to_nowhere()
        with contextlib.suppress(OSError):  # a terminal that is gone takes both
            print(f"Warning: the output cannot be written any more ({error.strerror}); the run goes on, and "
                  "metrics.jsonl in its folder has the numbers.", file=sys.stderr, flush=True)


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
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (as long as the process)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
