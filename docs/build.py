"""The documentation as a site: the pages of this folder, parts of README.md, and every module from its docstrings.

    pip install -e ".[docs]" && python docs/build.py            # writes site/; open site/index.html

MkDocs with the theme Material and mkdocstrings does the work (`mkdocs.yml` has the settings); this file is its hook for
what they do not know: pages made from other files of the repository, links between those, equations as MathML, and the
order of the modules. The source is read and never imported, so neither TensorFlow nor an installed tfspike matters, and
the pages need no network. A warning is an error, a link or an anchor that leads nowhere among them.
"""

from __future__ import annotations

import argparse
import ast
import fnmatch
import importlib.util
import logging
import os
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NEEDED = {"mkdocs": "mkdocs", "material": "mkdocs-material", "mkdocstrings": "mkdocstrings[python]",
          "mkdocstrings_handlers.python": "mkdocstrings[python]", "latex2mathml": "latex2mathml"}

# Pages made of files that are not Markdown in this folder: {page: file}.
SOURCES = {"benchmarks.md": "benchmarks/README.md", "records.md": "results/README.md", "changelog.md": "CHANGELOG.md",
           "tutorial.md": "docs/tutorial.py", "data.md": "tfspike/data/README.md"}

# The modules by subject, in the direction of the imports. Patterns of names below `tfspike.`; every module matches one.
SUBJECTS = {
    "Neurons and layers": ["neurons", "neurons.*"],
    "Engine": ["engine", "engine.*"],
    "Networks": ["models", "models.*", "variants", "pretrained", "pretrained.*", "weights", "weights.*"],
    "Data": ["datasets", "datasets.*"],
    "Presets": ["config.presets", "config.presets.*"],
    "Settings": ["config", "config.*"],
    "Runs": ["runs", "runs.*"],
    "Looking at a network": ["analysis", "analysis.*"],
    "Training": ["training", "training.*"],
    "Evaluation and reports": ["evaluation", "evaluation.*"],
    "Before training": ["stdp", "stdp.*"],
    "Conversion": ["conversion", "conversion.*"],
    "Exports": ["export", "export.*"],
    "What all rooms share": ["checks", "distribution", "errors", "faces", "files", "output"],
}
_NO_PAGE = ("standalone", "__main__", "data")  # scripts that run without the library, and data


# ---- what the repository holds -----------------------------------------------------------------------------------


def modules() -> dict[str, str]:
    """{name: path in the repository} of all documented modules, the package first."""
    found = {}
    for path in sorted((ROOT / "tfspike").rglob("*.py")):
        inside = path.relative_to(ROOT)
        name = ".".join(inside.with_suffix("").parts).removesuffix(".__init__")
        if not any(part in _NO_PAGE or part.startswith("_") for part in name.split(".")):
            found[name] = inside.as_posix()
    return found


def by_subject() -> dict[str, list[str]]:
    """The names of all modules but the package itself, by subject.

    Raises:
      SystemExit: a module has no subject, or a pattern no module.
    """
    left = [name.removeprefix("tfspike.") for name in modules() if name != "tfspike"]
    found: dict[str, list[str]] = {}
    for subject, patterns in SUBJECTS.items():
        found[subject] = []
        for pattern in patterns:
            names = fnmatch.filter(left, pattern)
            if not names:
                raise SystemExit(f"docs/build.py: no module is called tfspike.{pattern}; take it out of SUBJECTS.")
            found[subject] += [f"tfspike.{name}" for name in names]
            left = [name for name in left if name not in names]
    if left:
        raise SystemExit(f"docs/build.py: add to SUBJECTS, where a reader looks for it: {', '.join(left)}.")
    return found


def api_page(module: str) -> str:
    return "api/index.md" if module == "tfspike" else f"api/{module.removeprefix('tfspike.')}.md"


def pages() -> dict[str, str]:
    """{path in the repository: page} of every file that has a page of its own."""
    found = {f"docs/{path.name}": path.name for path in (ROOT / "docs").glob("*.md")}
    found |= {source: page for page, source in SOURCES.items()}
    found |= {path: api_page(name) for name, path in modules().items()}
    return found


def _tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def _first_paragraph(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> str:
    """What the docstring begins with, for a cell of a table."""
    return (ast.get_docstring(node) or "").partition("\n\n")[0].replace("\n", " ").replace("|", r"\|")


def _constant(path: str, name: str) -> Any:
    """The literal that a module gives to one of its names."""
    for node in _tree(path).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    raise SystemExit(f"docs/build.py: {path} has no {name}.")


def _definition(name: str, part: str) -> tuple[str, ast.ClassDef | ast.FunctionDef]:
    """A class or function that `tfspike.part` offers: (its full name by the module that defines it, its definition)."""
    for module, path in modules().items():
        if module == f"tfspike.{part}" or module.startswith(f"tfspike.{part}."):
            for node in _tree(path).body:
                if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
                    return f"{module}.{name}", node
    raise SystemExit(f"docs/build.py: tfspike.{name} is not defined in tfspike.{part}.")


# ---- pages made of other files -----------------------------------------------------------------------------------


def readme_section(title: str) -> str:
    """The text below a heading `## title` of README.md, or for "" the text before the first of them."""
    parts = re.split(r"^## (.+)\n", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = {"": re.sub(r"^# .+\n", "", parts[0])} | dict(zip(parts[1::2], parts[2::2]))
    if title not in found:
        raise SystemExit(f"docs/: a page includes the section {title!r} of README.md, which has: {sorted(found)}.")
    return found[title].strip()


def tutorial() -> str:
    """`docs/tutorial.py` as a page: its code, cut where its numbered comments begin."""
    source = (ROOT / "docs" / "tutorial.py").read_text(encoding="utf-8")
    title, _, text = (ast.get_docstring(ast.parse(source)) or "").partition("\n")
    code = source.split('"""\n', 1)[1].partition("\n\n\nif __name__")[0].strip()  # what follows the docstring
    parts = re.split(r"^    # (\d\.) (.+)\n", code, flags=re.MULTILINE)
    page = [f"# Tutorial\n\n{title}\n{text}\n\nAll of it in one file: [`docs/tutorial.py`](tutorial.py).\n",
            f"## The network\n\n```python\n{parts[0].rstrip()}\n```\n"]
    for number, comment, body in zip(parts[1::3], parts[2::3], parts[3::3]):
        heading = re.split(r"[:,.]| while ", comment)[0]
        body = re.sub(r"^    ", "", body, flags=re.MULTILINE).rstrip()
        page.append(f"## {number} {heading}\n\n{comment}\n\n```python\n{body}\n```\n")
    return "\n".join(page)


def api_index() -> str:
    lines = ["# API", "", "The modules by subject, from the bottom up: neurons, the engine that runs them through "
             "time, networks of them, what looks at networks, and what trains them.", "",
             "## Names of the package", "", ast.get_docstring(_tree("tfspike/__init__.py")) or "", "",
             "| `from tfspike import` | |", "|---|---|"]
    for name, part in _constant("tfspike/__init__.py", "_HOME").items():
        home, node = _definition(name, part)
        lines.append(f"| [`{name}`][{home}] | {_first_paragraph(node)} |")
    for subject, names in by_subject().items():
        lines += ["", f"## {subject}", "", "| module | |", "|---|---|"]
        lines += [f"| [`{name}`][{name}] | {_first_paragraph(_tree(modules()[name]))} |" for name in names]
    return "\n".join(lines)


def linked(text: str, source: str, page: str, files: Any, config: Any) -> str:
    """Markdown whose relative links, true in the repository's file `source`, lead to pages and files of the site."""
    from mkdocs.structure.files import File

    def replace(match: re.Match[str]) -> str:
        target, hash_, anchor = match[2].partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if not target or re.match(r"\w+:", target) or not (ROOT / path).exists():
            return match[0]  # the anchor of a page, an address, or a link that MkDocs refuses
        index = posixpath.join(path, "__init__.py")
        found = pages().get(path) or pages().get(index)
        if found is None and (ROOT / path).is_dir():
            found = pages().get(posixpath.join(path, "README.md"), path)
        if found is None and path.endswith(".md"):
            return match[0]  # a page that the site has not, which MkDocs refuses
        if found is None or (found == page and not path.endswith(".md")):  # a page made of code links to the code
            found = path.removeprefix("docs/") if path.startswith("docs/images/") else f"files/{path}"
            if files.get_file_from_path(found) is None:
                files.append(File.generated(config, found, abs_src_path=str(ROOT / path)))
        return f"{match[1]}({posixpath.relpath(found, posixpath.dirname(page) or '.')}{hash_}{anchor})"

    return re.sub(r"(\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^()\s]+)\)", replace, text)


# ---- MkDocs' hooks -----------------------------------------------------------------------------------------------

_formulas: list[str] = []


def _short(module: str) -> str:
    """A module's name beside its neighbours: `layers`, `export`, `litert`."""
    parent, _, name = module.rpartition(".")
    return module.removeprefix("tfspike.") if parent in ("tfspike", "tfspike.models") else name


def on_config(config: Any) -> Any:
    version = _constant("tfspike/__init__.py", "__version__")
    config.copyright = f"tfspike {version}. Apache License 2.0."
    api: list[Any] = ["api/index.md"]
    for subject, names in by_subject().items():
        api.append({subject: [{_short(name): api_page(name)} for name in names]})
    config.nav.insert(len(config.nav) - 2, {"API": api})
    return config


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    made = {page: (ROOT / source).read_text(encoding="utf-8") for page, source in SOURCES.items()}
    made["tutorial.md"] = tutorial()
    made["api/index.md"] = api_index()
    made |= {api_page(name): f"::: {name}\n" for name in modules() if name != "tfspike"}
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Sections of README.md in place of `<!-- README.md: title -->`, links of the repository as links of the site."""
    name = page.file.src_uri
    source = SOURCES.get(name, f"docs/{name}")
    if not name.startswith("api/"):
        markdown = linked(markdown, source, name, files, config)
    markdown = re.sub(r"<!-- README\.md: ?(.*?) -->",
                      lambda match: linked(readme_section(match[1]), "README.md", name, files, config), markdown)
    return _without_formulas(markdown) if "$$" in markdown else markdown


def _without_formulas(markdown: str) -> str:
    import latex2mathml.converter

    def keep(match: re.Match[str]) -> str:
        block = match[1] is not None
        _formulas.append(latex2mathml.converter.convert(match[1] or match[2], display="block" if block else "inline"))
        return f"FORMULA{len(_formulas) - 1}END"  # a word that Markdown leaves alone

    return re.sub(r"\$\$(.+?)\$\$|\$([^$\n]+(?:\n[^$\n]+)?)\$", keep, markdown, flags=re.DOTALL)


def on_post_build(config: Any) -> None:
    Path(config.site_dir, "404.html").unlink()  # for servers at the root of a host; its links would be dead elsewhere


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    return re.sub(r"FORMULA(\d+)END", lambda match: _formulas[int(match[1])], html)


# ---- the command -------------------------------------------------------------------------------------------------


def missing() -> list[str]:
    """The packages that are needed and not there, as pip calls them."""
    def there(module: str) -> bool:
        try:
            return importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:
            return False

    return sorted({package for module, package in NEEDED.items() if not there(module)})


def build(out: str) -> int:
    """Writes the site into the folder `out`; returns the number of its pages.

    Raises:
      SystemExit: a package is missing, or `out` holds something else than a site.
      mkdocs.exceptions.Abort: a warning, such as a link that leads nowhere; MkDocs has printed it.
    """
    if missing():
        raise SystemExit(f"The documentation needs {', '.join(missing())}, which this Python does not have: "
                         "`pip install -e \".[docs]\"` in the folder of the repository.")
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / "sitemap.xml").exists())):
        raise SystemExit("--out must be a new or empty folder or an earlier site, because it is emptied. "
                         f"Received: {out}")
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)  # of MkDocs
    from mkdocs.commands.build import build as mkdocs_build
    from mkdocs.config import load_config

    mkdocs_build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder.resolve())))
    return len(list(folder.rglob("*.html")))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(ROOT / "site"), help="folder to write into (default: site)")
    options = parser.parse_args()
    print(f"{build(options.out)} pages: {os.path.join(options.out, 'index.html')}")
    sys.exit(0)
