"""Files of settings: versioned JSON, read as data and never executed. What the settings mean is `tfspike.config`'s."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from tfspike.config.settings import shown
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
        raise UserError(f"{shown(path)} is not a file; a JSON file of settings is needed.")
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
