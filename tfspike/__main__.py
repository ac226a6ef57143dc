"""The commands: `tfspike train | eval | export | stdp | convert | results`, and the same as `python -m tfspike`.

`tfspike --help` lists them, `tfspike train --help` is that command's. train.py and eval.py of the checkout call `train`
and `evaluate`. Exit codes: 0, 2 for a mistake that is explained in one sentence, and those of `tfspike.training.run`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import tfspike
from tfspike import output, pretrained
from tfspike.config import commands, flags
from tfspike.config.settings import closest, shown
from tfspike.errors import UserError
from tfspike.evaluation.options import parse_eval


def train(argv: Sequence[str] | None = None) -> int:
    """Trains a network; the exit code is that of `tfspike.training.run`, or 2."""
    with flags.user_errors():
        config, options, warnings, notes = flags.parse(argv)
        for warning in warnings:
            print(f"Warning: {warning}", file=sys.stderr)
        for note in notes:
            print(note, flush=True)
        output.start_tensorflow(options.verbose)  # only after the flags are known to be right
        from tfspike import training

        return training.run(config, options)
    return 2


def evaluate(argv: Sequence[str] | None = None) -> int:
    """Tests a trained network from its workdir alone; the last line of stdout is JSON."""
    with flags.user_errors():
        options = parse_eval(argv, whole_name=pretrained.check_name)
        output.start_tensorflow(options.verbose)
        from tfspike.evaluation import command

        return command.run(options, pretrained.load)
    return 2


def _export(argv: Sequence[str]) -> int:
    from tfspike.export.__main__ import main

    return main(argv)


def _stdp(argv: Sequence[str]) -> int:
    from tfspike.stdp.__main__ import main

    return main(argv)


def _convert(argv: Sequence[str]) -> int:
    from tfspike.conversion.__main__ import main

    return main(argv)


def _results(argv: Sequence[str]) -> int:
    from tfspike.runs.results import main

    return main(argv)


_RUN: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train, "eval": evaluate, "export": _export, "stdp": _stdp, "convert": _convert, "results": _results}


def help_text() -> str:
    """What `tfspike --help` prints."""
    program = " ".join(commands.front() or ["tfspike"])
    return "\n".join([f"Usage: {program} COMMAND [--flag=value ...]", "", "Commands:",
                      *(f"  {name:<9}{what}" for name, what in commands.COMMANDS.items()), "",
                      f"{program} COMMAND --help lists its flags; {program} --version prints the version."])


def _chosen(argv: Sequence[str]) -> str:
    """The command that is asked for; help and version are printed, and end the process with code 0."""
    asked = argv[0] if argv else ""
    if asked in ("-h", "--help", "help", "--version"):
        print(f"tfspike {tfspike.__version__}" if asked == "--version" else help_text())
        raise SystemExit(0)
    if asked not in _RUN:
        problem = f"there is no command {shown(asked)}" if asked else "a command is missing"
        raise UserError(f"After tfspike comes one of {', '.join(_RUN)}; {problem}.{closest(asked, _RUN)} See --help.")
    return asked


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
      argv: its name and its flags; None means those of this process.

    Returns:
      The exit code.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    with flags.user_errors():
        command = _chosen(given)
    return _RUN[command](given[1:])


if __name__ == "__main__":
    sys.exit(main())
