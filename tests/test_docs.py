"""The documentation is built without a warning, and its examples give what they say."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for path in sorted((ROOT / "tfspike").rglob("*.py")) if ">>>" in path.read_text(encoding="utf-8")}


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 4


@pytest.mark.parametrize("name", EXAMPLES.values())
def test_the_examples_in_docstrings_are_true(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried and not failed


def test_the_network_of_the_readme_can_be_built() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    own = next(block for block in blocks if "PoissonEncoder(" in block)
    names: dict[str, Any] = {}
    exec(own, names)
    assert names["model"].output_shape == (None, 10)
    image = np.random.default_rng(0).uniform(0, 1, (2, 28, 28, 1)).astype("float32")
    assert all(np.sum(count) > 0 for count in names["model"].observe(image)[1].values())


def test_the_first_lines_of_python_in_the_readme_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if ".fit(" in block)
    assert first.count("epochs=2") == 1
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(first.replace("epochs=2", "epochs=1, verbose=0"), names)
    assert names["model"].history.history["accuracy"][0] > 0.5
    assert list(names["spikes"]) == names["model"].spiking_layers
    # As a user does it: another process, which knows of the file alone
    code = ("import keras, tfspike, numpy as np\n"
            "model = keras.models.load_model('lenet.keras')\n"
            "print(type(model).__name__, model(np.zeros((1, 28, 28, 1), 'float32')).shape)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0 and "SpikingModel (1, 10)" in done.stdout, done.stderr[-1000:]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built documentation; in a process of its own, because building changes the package."""
    for tool in ("pdoc", "latex2mathml"):
        if importlib.util.find_spec(tool) is None:
            pytest.skip(f"{tool} is not installed")
    out = tmp_path_factory.mktemp("api")
    done = subprocess.run([sys.executable, "-W", "ignore", "docs/build.py", "--out", str(out)], cwd=ROOT,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Warn" not in done.stderr
    return out


def test_every_module_has_a_page(pages: Path) -> None:
    assert {"index.html", "mathematics.html", "exports.html", "tfspike.html"} <= {path.name for path in pages.iterdir()}
    for module in ("layers", "gradients", "models/spiking_model", "export/nir_import"):
        assert (pages / "tfspike" / f"{module}.html").exists(), module
    assert 'id="PoissonEncoder"' in (pages / "tfspike.html").read_text(encoding="utf-8")  # a name that is loaded lazily


def test_equations_need_no_network(pages: Path) -> None:
    page = (pages / "mathematics.html").read_text(encoding="utf-8")
    assert page.count("<math") > 40 and "$" not in page and "FORMULA" not in page
    assert not re.search(r'(?:src|<link[^>]*href)="http', page)


def test_pages_link_to_pages_and_pictures_that_are_there(pages: Path) -> None:
    assert 'src="images/' in (pages / "depth.html").read_text(encoding="utf-8")
    for page in pages.glob("*.html"):
        for target in re.findall(r'(?:href|src)="([\w./-]+\.(?:html|png))', page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_measurement_by_depth_runs_and_shows_what_its_page_says(tmp_path: Path) -> None:
    """ResNet20 at four steps, on noise: without normalisation the gradient explodes or dies, with it it does neither."""
    script = ROOT / "docs" / "depth.py"
    subprocess.run([sys.executable, str(script), "--nets", "resnet20", "--timesteps", "4", "--images", "2", "--out",
                    str(tmp_path)], check=True, capture_output=True, timeout=300)
    found = json.loads((tmp_path / "depth.json").read_text())["resnet20"]["4"]
    normalised = found["tdBN and arctan"]
    assert len(normalised) == 19 and all(row["rate"] > 0.02 for row in normalised)
    assert 1e-2 < normalised[0]["gradient"] < 1e2
    assert not 1e-2 < found["paper"][0]["gradient"] < 1e2
    assert found["rate-targeted weights"][0]["gradient"] > 20 * normalised[0]["gradient"]
    assert (tmp_path / "depth_resnet20.png").stat().st_size > 10_000
