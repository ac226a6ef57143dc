"""Command lines of train.py and eval.py, generated from the dataclass fields that define the settings.

    with flags.user_errors():
        config, options, warnings, notes = flags.parse()

Nothing here imports TensorFlow: `--help` and a wrong flag answer at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags as absl_flags

from tfspike import output
from tfspike.checks import check_backend
from tfspike.config import commands, presets, resolving
from tfspike.config.config import Config, RunOptions
from tfspike.config.settings import kind_of, parse_text, shown
from tfspike.errors import UserError

_HELP = {"-h", "-help", "--help", "-helpshort", "--helpshort", "-helpfull", "--helpfull", "-?", "--?"}
# absl would read flags from any file, and let misspelt flags pass.
_REFUSED = {"flagfile": "put the settings into a JSON file and give it as --config",
            "undefok": "leave out flags that do not exist",
            "stop_on_collapse": "it is --on_collapse=stop, the default",
            "nostop_on_collapse": "it is --on_collapse=continue"}


class _Parser(absl_flags.ArgumentParser):
    """Hands a flag's text to the one definition of what is legal."""

    def __init__(self, field: dataclasses.Field):
        super().__init__()
        self._field = field

    def parse(self, argument: str) -> Any:
        return parse_text(self._field, argument)


def parse(argv: Sequence[str] | None = None) -> tuple[Config, RunOptions, list[str], list[str]]:
    """Reads the command line of train.py.

    Args:
      argv: the arguments without the program's name; None means those of this process.

    Returns:
      The resolved configuration, the options of this command, and for the user warnings and notes, a sentence each.

    Raises:
      UserError: a flag is unknown, or its value or the configuration is illegal.
      SystemExit: with code 0, after `--help` or `--preset=list` was printed.
    """
    given = _given(argv, (Config, RunOptions), commands.usage("train"), notes=_TRAIN_NOTES)
    options = RunOptions(**{name: given.pop(name) for name in RunOptions.__dataclass_fields__ if name in given})
    if options.preset == presets.LIST:
        print(presets.listing())
        raise SystemExit(0)
    config, notes = resolving.resolve_with_notes(given, preset=options.preset, config_file=options.config,
                                                  method=options.method)
    return config, options, config.warnings(), notes


def parse_as(options: type[Any], argv: Sequence[str] | None, usage: str) -> Any:
    """Reads the command line of another command into its dataclass of settings; errors as for `parse`."""
    return options(**_given(argv, (options,), usage))


def parse_with_settings(options: type[Any], argv: Sequence[str] | None, usage: str,
                        notes: str) -> tuple[dict[str, Any], Any]:
    """Reads the command line of a command that also takes the settings of train.py; errors as for `parse`.

    Returns:
      The settings that were given, by name, and the command's dataclass.
    """
    given = _given(argv, (options, Config), usage, notes)
    own = {name: given.pop(name) for name in options.__dataclass_fields__ if name in given}
    return given, options(**own)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Ends the process with exit code 2 and one sentence on stderr where the body raises UserError, with 130 after
    Ctrl-C, and as `output.guarded` says where its output is lost. Warnings are one sentence, too."""
    with output.guarded(), output.plain_warnings():
        try:
            # before Keras is loaded; `neurons.backend` asks Keras, which reads its keras.json too
            check_backend(os.environ.get("KERAS_BACKEND") or "tensorflow")
            yield
        except UserError as error:
            print(f"Error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("Stopped by Ctrl-C.", file=sys.stderr)
            raise SystemExit(130) from None


_TRAIN_NOTES = ("Every network has a recipe for every data set (tfspike/config/recipes.py), whose values replace the "
                "defaults shown here. Order: defaults < recipe or --method < --preset < --config < flags. A learning "
                "rate that is not given follows --batch_size.")


def _given(argv: Sequence[str] | None, classes: Sequence[type], usage: str, notes: str = "") -> dict[str, Any]:
    """Returns {name: value} of the flags that were given, and of no others."""
    argv = list(sys.argv[1:] if argv is None else argv)
    fields = [field for cls in classes for field in dataclasses.fields(cls)]
    arguments = argv[:argv.index("--")] if "--" in argv else argv
    if _HELP & set(arguments):
        print(help_text(fields, usage, notes))
        raise SystemExit(0)
    # absl would answer --no-tensorboard with the flag that switches it on
    refused = _REFUSED | {f"no{sign}{field.name}": f"switch it off with --no{field.name}"
                          for field in fields for sign in "-_" if kind_of(field)[:2] == (bool, False)}
    for argument in arguments:
        name = argument.lstrip("-").split("=", 1)[0]
        if argument.startswith("-") and name in refused:
            raise UserError(f"Unknown command line flag {name!r}; {refused[name]}.")
    values = absl_flags.FlagValues()
    values.set_gnu_getopt(True)
    for field in fields:
        absl_flags.DEFINE_flag(
            absl_flags.Flag(_Parser(field), None, field.name, None, field.metadata["help"],
                            boolean=kind_of(field)[:2] == (bool, False)), flag_values=values)
    try:
        rest = values(["program", *argv])[1:]
    except (absl_flags.Error, ValueError) as error:
        raise _sentence(error) from None
    if rest:
        raise UserError(f"Flags are written --name=value; received {shown(rest[0])}. See --help.")
    return {field.name: values[field.name].value for field in fields if values[field.name].present}


def _sentence(error: Exception) -> UserError:
    """Returns absl's complaint as one of ours: the definition's own sentence where there is one."""
    if isinstance(error.__context__, UserError):
        return error.__context__
    text = re.sub(r"\s+\?$", "?", " ".join(str(error).split())) or "The command line cannot be read"
    return UserError(text if text[-1] in ".?" else text + "; see --help.")


def help_text(fields: Sequence[dataclasses.Field], usage: str, notes: str = "") -> str:
    """Returns the text of `--help`: the flags by group, each with its sentence, legal values and default."""
    lines = [f"Usage: {usage}"]
    if notes:
        lines += ["", *textwrap.wrap(notes, 100)]
    for group in dict.fromkeys(field.metadata["group"] for field in fields):
        lines += ["", f"{group}:"]
        for field in fields:
            if field.metadata["group"] == group:
                lines += _help_lines(field)
    return "\n".join(lines)


def _help_lines(field: dataclasses.Field) -> list[str]:
    kind, several, _ = kind_of(field)
    choices = field.metadata["choices"]
    own = f", or MODULE:NAME of {field.metadata['own']} of your own" if field.metadata["own"] else ""
    legal = f" {'Any' if several else 'One'} of: {', '.join(choices)}{own}." if choices else ""
    body = textwrap.wrap(f"{field.metadata['help']}{legal} (default: {_default_text(field.default)})", 76)
    head = f"  --[no]{field.name}" if kind is bool else f"  --{field.name}"
    return [f"{head:<26}{body[0]}", *(" " * 26 + line for line in body[1:])]


def _default_text(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    return "none" if default in (None, "") else str(default)
