"""The documentation's site: built from the source alone, without a dead link, in a reader's order, for any window."""

from __future__ import annotations

import html.parser
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("index", "mathematics", "tutorial", "howto", "depth", "results", "models", "exports", "benchmarks", "changelog",
         "api/index", "api/neurons.layers", "api/config", "api/config.presets.paper_vgg9_cifar10")


def build_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site: elsewhere than in the checkout, and where another tfspike and no TensorFlow can be imported."""
    if build_module().missing():
        pytest.skip(f"not installed: {', '.join(build_module().missing())}")
    folder = tmp_path_factory.mktemp("docs")
    for package in ("tfspike", "tensorflow", "keras"):
        (folder / "other" / package).mkdir(parents=True)
        (folder / "other" / package / "__init__.py").write_text("raise ImportError('must not be imported')\n")
    out = folder / "site"
    done = subprocess.run([sys.executable, str(ROOT / "docs" / "build.py"), "--out", str(out)], cwd=folder, timeout=300,
                          env={**os.environ, "PYTHONPATH": str(folder / "other")}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "pages: " in done.stdout and not re.search("warning|error", done.stderr, re.IGNORECASE), done.stderr
    return out


# ---- links -------------------------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """What a page refers to, and the anchors that it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value is not None:
                self.links.append(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def dead_links(folder: Path) -> list[tuple[str, str]]:
    """(page, link) of every link, anchor, picture, style and script of a site that is not in it."""
    pages = {path.resolve(): Page(path) for path in folder.rglob("*.html")}
    dead = []
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"(https?|mailto|data):", link):
                continue
            target, _, anchor = link.partition("#")
            there = (path.parent / unquote(target.partition("?")[0])).resolve() if target else path
            if not there.is_file() or (anchor and there.suffix == ".html" and unquote(anchor) not in pages[there].anchors):
                dead.append((str(path.relative_to(folder.resolve())), link))
    return dead


@pytest.mark.slow
def test_no_link_and_no_anchor_is_dead(site: Path) -> None:
    assert sum(len(Page(path).links) for path in site.rglob("*.html")) > 5000
    assert not dead_links(site)


def test_a_dead_link_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="b.html#here">1</a><a href="b.html#gone">2</a><img src="no.png">'
                                     '<a href="c.html">3</a><a href="#top">4</a><a href="https://example.org/x">5</a>')
    (tmp_path / "b.html").write_text('<h1 id="here">b</h1>')
    assert dead_links(tmp_path) == [("a.html", "b.html#gone"), ("a.html", "no.png"), ("a.html", "c.html"),
                                    ("a.html", "#top")]


def test_a_link_to_a_page_that_the_site_has_not_is_left_to_mkdocs_which_names_it() -> None:
    linked = build_module().linked
    for link in ("[main](../README.md#layout)", "[a](../tests/goldens/README.md)"):
        assert linked(link, "docs/own_data.md", "own_data.md", None, None) == link
    assert linked("[b](../benchmarks/README.md)", "docs/own_data.md", "own_data.md", None, None) == "[b](benchmarks.md)"


@pytest.mark.slow
def test_the_build_itself_refuses_a_dead_link(tmp_path: Path) -> None:
    """The checkout's documentation with one word changed."""
    if build_module().missing():
        pytest.skip(f"not installed: {', '.join(build_module().missing())}")
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("images", "__pycache__"))
    for name in ("mkdocs.yml", "README.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("benchmarks/README.md", "results/README.md", "tfspike/data/README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "tfspike", tmp_path / "tfspike", dirs_exist_ok=True,
                    ignore=lambda folder, names: [n for n in names if not n.endswith(".py") and "." in n])
    page = tmp_path / "docs" / "method.md"
    page.write_text(page.read_text(encoding="utf-8").replace("(depth.md)", "(deep.md)"), encoding="utf-8")
    done = subprocess.run([sys.executable, "docs/build.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "deep.md" in done.stderr


# ---- what it shows -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_module_has_a_page_and_a_subject(site: Path) -> None:
    build = build_module()
    for module in build.modules():
        assert (site / build.api_page(module)).with_suffix(".html").exists(), module
    assert 'id="tfspike.neurons.encoders.PoissonEncoder"' in (site / "api" / "neurons.encoders.html").read_text(encoding="utf-8")
    assert 'href="neurons.layers.html#tfspike.neurons.layers.LIF"' in (site / "api" / "index.html").read_text(encoding="utf-8")


def test_a_module_without_a_subject_is_named() -> None:
    build = build_module()
    del build.SUBJECTS["Engine"]
    with pytest.raises(SystemExit, match="SUBJECTS.*engine[.]kernels"):
        build.by_subject()
    build = build_module()
    build.SUBJECTS["Engine"].append("nowhere")
    with pytest.raises(SystemExit, match="tfspike.nowhere"):
        build.by_subject()


@pytest.mark.slow
def test_the_index_is_in_the_order_of_a_reader(site: Path) -> None:
    nav = (site / "index.html").read_text(encoding="utf-8").partition("md-nav--primary")[2]
    order = ("Quick start", "The method", "Tutorial", "How deep networks learn", "Results", "Trained weights",
             "Several devices", "Benchmarks", "Neurons and layers", "gradients", "layers",
             "Engine", "kernels", "Networks", "Looking at a network", "Training", "Evaluation and reports", "Changelog")
    places = [re.search(rf">\s*{re.escape(name)}", nav) for name in order]
    assert all(places) and [place.start() for place in places if place] == sorted(place.start() for place in places if place)


@pytest.mark.slow
def test_the_quick_start_is_that_of_the_readme(site: Path) -> None:
    page = re.sub(r"<[^>]+>", "", (site / "index.html").read_text(encoding="utf-8"))
    assert all(words in page for words in ("pip install -r requirements.txt", "python eval.py --workdir",
                                           "model.observe(images[:100])", "from tfspike import LIF"))
    assert "<!-- README" not in "".join(path.read_text(encoding="utf-8") for path in site.glob("*.html"))


def test_a_section_that_the_readme_has_no_more_is_named() -> None:
    with pytest.raises(SystemExit, match="'Nowhere' of README.md, which has: .*'In Python'"):
        build_module().readme_section("Nowhere")


@pytest.mark.slow
def test_the_tutorial_has_all_of_its_code(site: Path) -> None:
    shown = re.findall(r"^```python\n(.*?)\n```", build_module().tutorial(), re.DOTALL | re.MULTILINE)
    source = (ROOT / "docs" / "tutorial.py").read_text(encoding="utf-8")
    assert len(shown) == 6
    for line in "\n".join(shown).splitlines():
        assert line in source
    assert len("".join(shown).splitlines()) > 60 and 'id="the-network"' in (site / "tutorial.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_search_finds_prose_and_names(site: Path) -> None:
    entries = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    places = {entry["location"].partition("#")[0] for entry in entries}
    assert {str(path.relative_to(site)) for path in site.rglob("*.html")} <= places
    text = {entry["location"]: entry["title"] + entry["text"] for entry in entries}
    assert any("SVHN" in words for place, words in text.items() if place.startswith("results.html"))
    assert "api/neurons.layers.html#tfspike.neurons.layers.LIF" in text


@pytest.mark.slow
def test_equations_and_pages_need_no_network(site: Path) -> None:
    page = (site / "mathematics.html").read_text(encoding="utf-8")
    assert page.count("<math") > 40 and "FORMULA" not in page
    assert "$" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    for path in site.rglob("*.html"):
        assert not re.search(r'(?:src|<link[^>]*href)="?http', path.read_text(encoding="utf-8")), path


@pytest.mark.slow
def test_examples_are_shown_as_code(site: Path) -> None:
    """`>>>` outside a section "Examples" of a docstring would be three quotations in each other."""
    for path in (site / "api").glob("*.html"):
        assert not re.search(r"<blockquote>\s*<blockquote>", path.read_text(encoding="utf-8")), path


# ---- the command -------------------------------------------------------------------------------------------------


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    build = build_module()
    build.NEEDED["no_such_package"] = "no-such-package"
    with pytest.raises(SystemExit, match=r"needs .*no-such-package.*pip install -e"):
        build.build(str(tmp_path / "site"))


def test_a_folder_of_other_things_is_not_emptied(tmp_path: Path) -> None:
    build = build_module()
    build.NEEDED = {}
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SystemExit, match="emptied"):
        build.build(str(tmp_path))
    assert (tmp_path / "thesis.txt").exists()


# ---- windows -----------------------------------------------------------------------------------------------------

_HARNESS = """<body><pre id=found></pre><script>
const pages = %s, widths = [400, 1280], found = [];
async function look() {
  for (const width of widths) for (const page of pages) {
    const frame = document.createElement("iframe");
    frame.style = `width:${width}px;height:900px;border:0`;
    await new Promise(ready => { frame.onload = ready; frame.src = page; document.body.append(frame); });
    await new Promise(ready => setTimeout(ready, 50));
    found.push([page, width, frame.contentDocument.documentElement.scrollWidth]);
    frame.remove();
  }
  document.getElementById("found").textContent = JSON.stringify(found);
}
look();
</script></body>"""


def widths(folder: Path, pages: list[str]) -> list[tuple[str, int, int]]:
    """(page, width of the window, width of what is in it) in a browser."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium")
    (folder / "harness.html").write_text(_HARNESS % json.dumps(pages))
    try:
        done = subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
                               "--window-size=1400,1000", "--virtual-time-budget=60000", "--dump-dom",
                               f"file://{folder / 'harness.html'}"], capture_output=True, text=True, timeout=200)
    finally:
        (folder / "harness.html").unlink()
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found and found[1], done.stderr[-2000:]
    return [tuple(row) for row in json.loads(found[1])]


@pytest.mark.equipped
@pytest.mark.slow
def test_pages_fit_a_telephone_and_a_laptop(site: Path) -> None:
    found = widths(site, [f"{kind}.html" for kind in KINDS])
    assert len(found) == 2 * len(KINDS)
    assert not [row for row in found if row[2] > row[1]]


@pytest.mark.equipped
@pytest.mark.slow
def test_a_page_wider_than_the_window_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "wide.html").write_text("<!doctype html><div style='width:700px'>wide</div>")
    assert [row[2] > row[1] for row in widths(tmp_path, ["wide.html"])] == [True, False]
