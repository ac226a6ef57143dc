"""A setting as a field of a dataclass: what it may hold, how it is checked, and which text on a command line means it.

Declared once, a setting is the same for flags, files and resume. Nothing here imports TensorFlow.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tfspike.errors import UserError

# Annotation -> (what a single value is, is it a list, may it be None).
_KINDS = {"str": (str, False), "int": (int, False), "float": (float, False), "bool": (bool, False),
          "tuple[int, ...]": (int, True), "tuple[str, ...]": (str, True)}
_OWN = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_WORDS = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false"}


def setting(default: Any, help: str, *, group: str = "", choices: Iterable[str] = (), legal: str = "",
            check: Callable[[Any], bool] | None = None, path: bool = False, experiment: bool = True,
            aliases: Mapping[str, str] | None = None, own: str = "") -> Any:
    """Declares a field: its help sentence, what is legal (in words and as a check), and its part in the experiment.

    Args:
      default: the value where nothing else is said.
      help: one sentence for `--help`.
      group: heading under which `--help` lists the field.
      choices: the legal values of a string, or of each item of a list.
      legal: the legal values in words, e.g. "a number above 0".
      check: returns whether a value (or an item of a list) of the right type is legal.
      path: the value is a file or folder; `~` is expanded.
      experiment: runs that differ in it are different experiments, and one cannot continue the other.
      aliases: other words for values.
      own: what MODULE:NAME, which is legal beside the choices, means; "" where it is not.
    """
    return dataclasses.field(default=default, metadata={
        "help": help, "group": group, "choices": tuple(choices), "legal": legal, "check": check, "path": path,
        "experiment": experiment, "aliases": aliases or {}, "own": own})


def verbose_setting(group: str) -> Any:
    """The field `verbose` of every command that loads TensorFlow."""
    return setting(False, "Show what TensorFlow prints while it starts.", group=group)


def data_dir_setting(group: str) -> Any:
    """The field `data_dir` of every command that reads the data of a run."""
    return setting(None, "Where the data are, as for train.py; none means where the run found them.", group=group,
                   legal="a folder, or an .npz file", path=True)


COUNT: dict[str, Any] = {"legal": "a whole number above 0", "check": lambda v: 0 < v < 2**31}
"""What is legal for a number of things: more arguments of `setting`."""


def kind_of(field: dataclasses.Field) -> tuple[Any, bool, bool]:
    """Returns a field's item type, whether it is a list, and whether it may be None."""
    annotation = str(field.type)
    plain = annotation.removesuffix(" | None")
    return (*_KINDS[plain], plain != annotation)


def is_own(value: Any) -> bool:
    """Whether this has the form MODULE:NAME, for what a Python module of the user's own defines."""
    return isinstance(value, str) and _OWN.fullmatch(value) is not None


def closest(name: str, known: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the nearest known name, in small letters or capitals, or nothing."""
    names = {one.lower(): one for one in known}
    match = difflib.get_close_matches(name.lower(), names, n=1)
    return f" Did you mean {names[match[0]]!r}?" if match else ""


def shown(value: Any) -> str:
    """Returns a value as it goes into an error message: quoted, on one line, and not too long.

    What is too long loses its middle: of a path the end says most.
    """
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:27]}...{text[-50:]}"


def plain(value: Any) -> str:
    """Returns a value as it is written on a command line: lists with commas, "none" for None and an empty list."""
    return ",".join(map(str, value)) or "none" if isinstance(value, tuple) else "none" if value is None else str(value)


def legal_values(field: dataclasses.Field) -> str:
    """Returns in words what a field takes, e.g. "one of sgd, adam, adamw"."""
    item, several, optional = kind_of(field)
    choices, legal = field.metadata["choices"], field.metadata["legal"]
    text = "one of " + ", ".join(choices) if choices else legal or _WORDS[item]
    if field.metadata["own"]:
        text += f", or MODULE:NAME of {field.metadata['own']} of your own"
    if several:
        text = f"a list of {text.removeprefix('one of ')}" if choices else f"a list of {text}"
    return f"{text}, or none" if optional else text


def _item(field: dataclasses.Field, kind: Any, value: Any) -> Any:
    """Returns one value with its type settled (int -> float, alias, ~), or raises ValueError."""
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        value = float(value) + 0.0  # -0.0 becomes 0.0
        if not math.isfinite(value):
            raise ValueError
    if type(value) is not kind:
        raise ValueError
    if field.metadata["path"] and isinstance(value, str):
        if not value.strip() or "\0" in value:
            raise ValueError
        os.fsencode(value)  # raises ValueError for what no file system can hold
        value = os.path.expanduser(value)
    value = field.metadata["aliases"].get(value, value)
    choices, check = field.metadata["choices"], field.metadata["check"]
    known = not choices or value in choices or (field.metadata["own"] and is_own(value))
    if not known or (check is not None and not check(value)):
        raise ValueError
    return value


def normalise(field: dataclasses.Field, value: Any) -> Any:
    """Returns a value checked and in its one form: floats are float, lists are tuples, aliases are resolved.

    Raises:
      UserError: the value has the wrong type or lies outside what is legal.
    """
    kind, several, optional = kind_of(field)
    if value is None and optional:
        return None
    try:
        if not several:
            return _item(field, kind, value)
        if isinstance(value, (list, tuple)):
            return tuple(_item(field, kind, item) for item in value)
        raise ValueError
    except (ValueError, OverflowError):
        names = field.metadata["choices"]
        wrong = [v for v in (value if isinstance(value, (list, tuple)) else [value]) if v not in names]
        hint = closest(wrong[0], names) if wrong and isinstance(wrong[0], str) else ""
        raise UserError(f"--{field.name} takes {legal_values(field)}; received {shown(value)}.{hint}") from None


def normalise_all(settings: Any) -> None:
    """Checks every field of a frozen dataclass of settings and brings it into its one form; errors as `normalise`."""
    for field in dataclasses.fields(settings):
        object.__setattr__(settings, field.name, normalise(field, getattr(settings, field.name)))


def parse_text(field: dataclasses.Field, text: str) -> Any:
    """Returns the value that a flag's text stands for; "none" is None for optional fields and () for lists.

    Raises:
      UserError: the text is not a legal value of the field.
    """
    kind, several, optional = kind_of(field)
    if text == "none" and (optional or several):
        return () if several else None

    def item(word: str) -> Any:
        if kind is bool and word.lower() in ("true", "false", "1", "0", "yes", "no"):
            return word.lower() in ("true", "1", "yes")
        try:
            # Only plain digits: int() would also take "1_000" and other scripts' digits.
            return kind(word) if kind is float or (kind is int and re.fullmatch(r"[+-]?[0-9]+", word)) else word
        except ValueError:
            return word  # refused by normalise, which says what is legal

    if several:
        return normalise(field, [item(word.strip()) for word in text.split(",") if word.strip()])
    return normalise(field, item(text))
