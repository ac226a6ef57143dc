"""Files of settings: versioned JSON, read as data and never executed."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from tfspike.config import versions
from tfspike.config.config import FIELDS, Config, RunOptions
from tfspike.config.identity import default_workdir
from tfspike.config.settings import closest, normalise, shown
from tfspike.errors import UserError

FORMAT = 1


def encode(values: Mapping[str, Any], about: Mapping[str, Any] | None = None) -> str:
    """Returns settings as versioned JSON; `about` (versions, commit, command) is kept beside them, unread."""
    return json.dumps({"format": FORMAT, "config": values, "about": dict(about or {})}, indent=2) + "\n"


def decode(text: str, source: str) -> dict[str, Any]:
    """Returns the settings that a text names, unchecked: one that `encode` wrote, or a plain object of settings.

    Args:
      text: of the file.
      source: what errors call it.

    Raises:
      UserError: the text is not JSON, has another format or another layout.
    """
    content = _parse_json(text, source)
    found = content.get("format", FORMAT)
    if type(found) is not int or found != FORMAT:
        raise UserError(f"{source} has format {shown(found)}, and this version of tfspike reads format {FORMAT}; "
                        "use the version that wrote it.")
    if "config" not in content:
        return {key: value for key, value in content.items() if key != "format"}
    extra = sorted(set(content) - {"format", "config", "about"})
    if extra or not isinstance(content["config"], dict):
        what = f"also {shown(extra[0])}" if extra else f"as config {shown(content['config'])}"
        raise UserError(f"{source} should hold format, config (an object) and about; it has {what}.")
    return content["config"]


def read_text(path: str) -> str:
    """Returns the text of a file of settings.

    Raises:
      UserError: it cannot be read, or is no text.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would wait for ever
        of_run = os.path.join(path, "config.json")
        hint = f": give {shown(of_run)}" if os.path.isfile(of_run) else ""
        raise UserError(f"{shown(path)} is not a file; a JSON file of settings is needed{hint}.")
    try:
        with open(path, encoding="utf-8-sig") as file:  # some editors put a byte order mark in front
            return file.read(1_000_001)
    except OSError as error:
        raise UserError(f"Cannot read {shown(path)}: {error.strerror or error}.") from None
    except ValueError:
        raise UserError(f"{shown(path)} is not a text file in UTF-8; a JSON file of settings is needed.") from None


def _parse_json(text: str, source: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise UserError(f"{source} has {shown(twice[0])} twice; leave one.")
        return dict(pairs)

    try:
        content = json.loads(text, object_pairs_hook=unique)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        where = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{source} is not valid JSON{where}; write it like {{\"epochs\": 3, \"seed\": 1}}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{source} must be a JSON object of settings, like {{\"epochs\": 3}}; it is "
                        f"a {type(content).__name__}.")
    return content


# ---- configurations ------------------------------------------------------------------------------------------------


def to_json(config: Config, about: Mapping[str, Any] | None = None) -> str:
    """Returns a configuration as versioned JSON; `about` (versions, commit, command) is kept beside it, unread."""
    return encode(dataclasses.asdict(config), about)


def from_json(text: str, source: str = "the configuration") -> Config:
    """Returns the configuration that `to_json` wrote.

    Raises:
      UserError: the text is no such configuration, one of another format, or lacks a setting.
    """
    values = versions.completed(checked(decode(text, source), source))
    missing = [name for name in FIELDS if name not in values]
    if missing:
        raise UserError(f"{source} lacks {', '.join(missing[:5])}{' and more' if len(missing) > 5 else ''}; "
                        "it is damaged or was not written by a run.")
    return Config(**values)


def read_run(workdir: str) -> Config:
    """Returns the configuration of the run in `workdir`, from its config.json; its workdir is this folder, wherever the
    run was begun.

    Raises:
      UserError: there is no run, or its configuration cannot be read.
    """
    path = os.path.join(workdir, "config.json")
    if not os.path.isfile(path):
        raise UserError(f"--workdir takes the folder of a run, with a config.json in it; {shown(workdir)} has none. "
                        "Train first, or give the folder that training named.")
    return dataclasses.replace(from_json(read_text(path), path), workdir=workdir)


def read_settings(path: str) -> dict[str, Any]:
    """Returns the settings in a JSON file: a plain object of them, or a run's config.json. Executes nothing.

    A workdir that followed from the file's other settings is left out, so that it follows from the new ones.

    Raises:
      UserError: the file cannot be read, is not JSON, or holds an unknown name or an illegal value.
    """
    source = f"config file {shown(path)}"
    values = checked(decode(read_text(path), source), source)
    if is_whole(values):  # of a run: what it does not name it did as `versions` says, whatever recipes say now
        values = versions.completed(values)
        if values.get("workdir") == default_workdir(Config(**values)):
            del values["workdir"]
    return values


def is_whole(values: Mapping[str, Any]) -> bool:
    """Whether these are all settings of a run, of this version or an earlier one."""
    return all(name in values or versions.is_added(name) or name == "workdir" for name in FIELDS)


def checked(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Settings of any version, each checked by itself and in its one form; `source` is what errors call them."""
    found = {}
    for name, value in versions.translated(values).items():
        if name in RunOptions.__dataclass_fields__:
            raise UserError(f"{source} has {name!r}, which is no part of an experiment; give it as a flag, --{name}.")
        if name not in FIELDS:
            raise UserError(f"{source} names an unknown setting, {shown(name)}."
                            f"{closest(str(name), FIELDS) or ' See --help for all settings.'}")
        try:
            found[name] = normalise(FIELDS[name], value)
        except UserError as error:
            raise UserError(str(error) if source == "the settings" else f"In {source}: {error}") from None
    return found
