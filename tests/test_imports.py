"""One direction of imports, only public names of Keras and TensorFlow, and a package that loads at once."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tfspike"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# From the bottom up: a module may import what stands on an earlier line, or leaves; never its own line or a later one.
# Every other part of the package (training, analysis, export, reports, ...) stands above them all.
CORE = (("surrogates",), ("gradients",), ("cells", "layers", "kernels", "normalisation", "convolution"), ("plan",),
        ("engine",), ("diagnosis",), ("callbacks",), ("models",))
LEAVES = {"variants", "config", "configs", "datasets", "events", "archives", "encoders", "errors", "flags", "checks",
          "noise", "recipes", "data", "checkpoints", "weight_files", "streams", "tfds_source", "image_files", "settings",
          "config_files", "output"}
READERS = {"analysis", "export", "report"}  # they look at models; a model is trained without them
WITHOUT_TENSORFLOW = ("variants", "config", "configs", "events", "flags", "errors", "recipes", "checks",
                      "checkpoints", "weight_files", "pretrained", "model_cards", "settings", "config_files", "datasets",
                      "tfds_source", "streams", "image_files", "signals", "output")


def name_of(path: Path) -> str:
    """The part of the package a file belongs to: `models` for all of models/."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Absolute names of everything a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parts(path: Path) -> set[str]:
    """The parts of the package that a file imports."""
    found = set()
    known = {name_of(source) for source in SOURCES}
    for name in imports(path):
        if name.startswith("tfspike."):
            part = name.split(".")[1]
            if part in known:
                found.add(part)
    return found - {name_of(path)}


def refused(path: Path) -> set[str]:
    """What a file imports against the rule."""
    name = name_of(path)
    core = {other for row in CORE for other in row}
    if name == "__init__":
        return parts(path)
    if name in LEAVES:
        return parts(path) - LEAVES
    if name in core:
        row = next(i for i, names in enumerate(CORE) if name in names)
        return parts(path) - LEAVES - {other for names in CORE[:row] for other in names}
    return parts(path) & {"training", "train_step"} if name in READERS else set()


def test_the_rule_knows_the_parts_it_names() -> None:
    assert {name for row in CORE for name in row} | (LEAVES - {"data"}) <= {name_of(path) for path in SOURCES}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    assert not refused(path)


def test_no_parts_import_each_other() -> None:
    graph: dict[str, set[str]] = {}
    for path in SOURCES:
        graph.setdefault(name_of(path), set()).update(parts(path))
    graph["training"].discard("dry_run")  # one way to run a command, loaded when --dry_run asks for it
    list(TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize(("name", "line"), [
    ("gradients", "from tfspike import layers"), ("layers", "def f():\n    from tfspike.models import blocks"),
    ("variants", "import tfspike.gradients"), ("models", "from tfspike.training import Trainer"),
    ("engine", "from tfspike import analysis"), ("report", "from tfspike import training")])
def test_the_rule_notices_a_wrong_import(name: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = sys.modules[__name__]
    for other in ("gradients", "layers", "models", "training", "analysis", "report", "variants", "engine"):
        (tmp_path / f"{other}.py").write_text("")
    (tmp_path / f"{name}.py").write_text(line)
    monkeypatch.setattr(here, "PACKAGE", tmp_path)
    monkeypatch.setattr(here, "SOURCES", sorted(tmp_path.glob("*.py")))
    assert len(refused(tmp_path / f"{name}.py")) == 1


@pytest.mark.parametrize("path", [*SOURCES, *sorted(ROOT.glob("*.py"))], ids=lambda path: str(path.relative_to(ROOT)))
def test_only_public_names_of_keras_and_tensorflow(path: Path) -> None:
    private = [name for name in imports(path)
               if name.startswith(("keras.src", "tensorflow.python", "tensorflow.core", "tensorflow.compiler"))]
    assert not private
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in ("keras.src", "tf.python", "keras._tf_keras"), node.lineno


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_branches_on_the_name_of_a_network(path: Path) -> None:
    if name_of(path) in ("variants", "recipes", "config", "flags"):
        pytest.skip("tables of networks, their recipes and defaults")
    sys.path.insert(0, str(ROOT))
    from tfspike.variants import VARIANTS

    compared = [ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Compare)
                for part in ast.walk(node) if isinstance(part, ast.Constant) and part.value in VARIANTS]
    assert not compared


@pytest.mark.parametrize("module", ["", *(f".{name}" for name in WITHOUT_TENSORFLOW)])
def test_importing_it_imports_no_tensorflow(module: str) -> None:
    code = f"import sys, tfspike{module}; print({{'tensorflow', 'keras'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


def test_an_export_loads_tensorflow_when_it_is_used() -> None:
    code = "import sys, tfspike; tfspike.UserError; assert 'keras' not in sys.modules; tfspike.LIF; " \
           "assert 'keras' in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, timeout=120)
