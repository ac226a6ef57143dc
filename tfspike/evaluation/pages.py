"""Pages of pictures and tables: one HTML file with everything inside, and every picture as a file beside it."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import os
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from tfspike import files
from tfspike.errors import UserError
from tfspike.evaluation import plots


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure with its file name and the sentence that goes under it."""

    name: str
    figure: Figure
    caption: str


def written(sections: Sequence[tuple[str, str, Sequence[Picture]]], out: str) -> list[dict[str, Any]]:
    """Writes the pictures and gives what the template needs."""
    found = []
    for title, text, pictures in sections:
        shown = []
        for picture in pictures:
            content = plots.png(picture.figure)
            write_file(os.path.join(out, f"{picture.name}.png"), content)
            width, height = picture.figure.get_size_inches()
            shown.append({"name": picture.name, "caption": picture.caption, "width": round(96 * width),
                          "height": round(96 * height), "data": base64.b64encode(content).decode()})
        found.append({"title": title, "text": text, "id": title.lower().replace(" ", "-"), "pictures": shown})
    return found


def render(template: str, **values: Any) -> str:
    """A page from a template of `tfspike/templates`; raises UserError where Jinja2 is not installed."""
    try:
        import jinja2
    except ImportError:
        raise UserError("Reports need the package Jinja2; install it with `pip install jinja2`.") from None
    environment = jinja2.Environment(loader=jinja2.PackageLoader("tfspike", "templates"), autoescape=True,
                                     trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters["setting"] = _setting
    return environment.get_template(template).render(**values)


def _setting(value: Any) -> str:
    """A setting's value in words."""
    if value is None or value == ():
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def now() -> str:
    """The time in UTC, as 2026-01-31 12:00 UTC."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def write_file(path: str, content: str | bytes) -> str:
    """Writes a file, and the folder that it lies in; returns its path. Raises UserError where that cannot be done."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        files.write_file(path, content)
    except OSError as error:
        raise UserError(f"Cannot write the report to {path}: {error.strerror or error}.") from None
    return path


def count(value: float) -> str:
    """A count, or a mean of counts: whole where it is whole or large."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.2f}"


def fires(kind: str, spikes: float) -> bool:
    """Whether a layer has spikes to speak of: the readout never fires, and direct coding has values for spikes."""
    return kind != "readout" and not (kind == "input" and spikes == 0)
