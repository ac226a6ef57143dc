"""The documentation as HTML: one page per module from its docstrings, and the Markdown pages of this folder.

    pip install -e ".[docs]" && python docs/build.py            # writes docs/api; open docs/api/index.html

The pages need no network: equations become MathML, which browsers draw themselves. A warning is an error.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import re
import shutil
import typing
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's notes on its own start

import keras
import latex2mathml.converter
import markupsafe
import pdoc
import pdoc.render
import pdoc.render_helpers
import tensorflow as tf

import tfspike

HERE = Path(__file__).resolve().parent
PAGES = {"mathematics": "The mathematics", "depth": "Why deep networks stop learning", "exports": "Exports",
         "distributed": "Several devices, exact resume", "results": "Results", "models": "Trained weights"}
_SKIPPED = ("data", "standalone", "__main__")  # no code, or scripts that run without the library
_FRAME = """{% extends "frame.html.jinja2" %}
{% block title %}{{ title }} - tfspike{% endblock %}
{% block nav %}<h2><a href="tfspike.html">tfspike</a></h2>
<ul>{% for name, text in pages.items() %}<li><a href="{{ name }}.html">{{ text }}</a></li>{% endfor %}</ul>
{% endblock %}
{% block content %}<main class="pdoc"><section class="module-info"><div class="docstring">{{ body }}</div></section>
</main>{% endblock %}"""
_CSS = "math[display=block] { margin: 1.2em 0 } math[display=block], table { overflow-x: auto }"


def modules() -> list[str]:
    """Names of all documented modules, the package first."""
    found = [tfspike.__name__]
    for module in pkgutil.walk_packages(tfspike.__path__, "tfspike."):
        if not any(part in _SKIPPED or part.startswith("_") for part in module.name.split(".")):
            found.append(module.name)
    return found


def prepare(names: list[str]) -> None:
    """Resolves what the package loads lazily, so that the pages show it."""
    tf.Tensor.__module__, keras.Model.__module__, keras.Layer.__module__ = "tf", "keras", "keras"  # as one writes them
    for name in names:
        for value in vars(importlib.import_module(name)).values():
            # a named tuple keeps its annotations as words of a module that pdoc would not find them in
            if isinstance(value, type) and issubclass(value, tuple) and value.__module__ == name:
                value.__new__.__annotations__ = typing.get_type_hints(value)
    for name in names:  # a list of exports would hide the modules of a package that are not in it
        package = importlib.import_module(name)
        for export in getattr(package, "__all__", ()):
            setattr(package, export, getattr(package, export))
        inside = {other.removeprefix(f"{name}.") for other in names if other.rpartition(".")[0] == name}
        if inside and hasattr(package, "__all__"):
            package.__all__ = sorted({*package.__all__, *inside})
    links = "".join(f"- [{text}]({name}.html)\n" for name, text in PAGES.items())
    tfspike.__doc__ = f"{tfspike.__doc__}\n\n{links}"


def page(name: str) -> str:
    """A Markdown page of this folder as HTML, equations as MathML."""
    source = (HERE / f"{name}.md").read_text(encoding="utf-8")
    formulas: list[str] = []

    def keep(match: re.Match[str]) -> str:
        block = match[1] is not None
        formulas.append(latex2mathml.converter.convert(match[1] or match[2], display="block" if block else "inline"))
        return f"FORMULA{len(formulas) - 1}END"  # a word that Markdown leaves alone

    if name == "mathematics":
        source = re.sub(r"\$\$(.+?)\$\$|\$([^$\n]+(?:\n[^$\n]+)?)\$", keep, source, flags=re.DOTALL)
    html = str(pdoc.render_helpers.to_html(source))
    html = re.sub(r"FORMULA(\d+)END", lambda match: formulas[int(match[1])], html)
    return re.sub(r'href="(?:docs/)?(\w+)\.md', r'href="\1.html', html)


def build(out: str) -> list[str]:
    """Writes all pages into the folder `out`; returns the names of the files.

    Raises:
      Warning: a name, an annotation or a page that cannot be documented.
    """
    names = modules()
    with warnings.catch_warnings():
        prepare(names)
        warnings.simplefilter("error")
        pdoc.render.configure(docformat="google", footer_text=f"tfspike {tfspike.__version__}")
        pdoc.pdoc(tfspike.__name__, output_directory=Path(out))
        frame = pdoc.render.env.from_string(_FRAME)
        for name, title in PAGES.items():
            body = markupsafe.Markup(page(name))
            html = frame.render(title=title, pages=PAGES, body=body).replace("</head>", f"<style>{_CSS}</style></head>")
            Path(out, f"{name}.html").write_text(html, encoding="utf-8")
    shutil.copytree(HERE / "images", Path(out, "images"), dirs_exist_ok=True)
    return sorted(str(path.relative_to(out)) for path in Path(out).rglob("*.html"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(HERE / "api"), help="folder to write into (default: docs/api)")
    folder = parser.parse_args().out
    print(f"{len(build(folder))} pages: {os.path.join(folder, 'index.html')}")
