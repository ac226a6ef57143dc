"""One direction of imports, only public names of Keras and TensorFlow, and a package that loads at once."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tfspike"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# From the top down: a room imports only rooms on later lines, and itself.
ROOMS = (("__main__",), ("training", "pretrained"), ("export", "conversion", "evaluation", "stdp"),
         ("analysis", "runs"), ("models",), ("engine",), ("neurons", "config"), ("datasets",),
         ("checks", "files", "distribution", "output"), ("errors", "variants", "faces", "weights"))
WITHOUT_TENSORFLOW = ("__main__", "checks", "config", "config.commands", "config.flags", "config.recipes", "conversion.options", "datasets",
                      "datasets.catalogue", "datasets.events", "datasets.folder_source", "datasets.image_files",
                      "datasets.npz_source", "datasets.pump", "datasets.recordings", "datasets.sampling", "datasets.streams",
                      "datasets.tfds_source", "errors", "evaluation.options", "export.formats", "export.options",
                      "files", "models", "neurons", "output", "pretrained", "pretrained.cards",
                      "runs", "runs.checkpoints", "runs.library", "runs.loading", "runs.results", "runs.standing", "runs.starting",
                      "runs.workdir", "stdp", "stdp.options", "training", "training.schedule", "training.signals", "variants", "weights")
LARGEST_FACE = 40  # lines of a package's __init__


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


def for_type_checkers(path: Path) -> dict[str, str]:
    """`{name: module}` of what a face imports for type checkers alone."""
    return {alias.name: str(line.module) for block in ast.parse(path.read_text()).body
            if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
            for line in block.body if isinstance(line, ast.ImportFrom) for alias in line.names
            if alias.asname == alias.name}  # `as` says that the name is handed on


def refused(path: Path) -> set[str]:
    """What a file imports against the rule."""
    name = name_of(path)
    if name == "__init__":  # whatever else it hands on is loaded when it is used
        return parts(path) - {"faces"} - {module.split(".")[1] for module in for_type_checkers(path).values()}
    row = next(i for i, rooms in enumerate(ROOMS) if name in rooms)
    return parts(path) - {other for rooms in ROOMS[row + 1:] for other in rooms}


def test_every_part_has_its_line() -> None:
    named = [name for rooms in ROOMS for name in rooms]
    assert sorted(named) == sorted({name_of(path) for path in SOURCES} - {"__init__"})


def test_the_rooms_of_the_readme_are_these() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Layout")[2]
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| .+ \|$", page, re.MULTILINE)
    assert [sorted(re.findall(r"\w+", row)) for row in rows] == [sorted(rooms) for rooms in ROOMS]
    assert len(page.splitlines()) <= 20, "Layout says the rooms in fifteen lines"


def test_few_modules_lie_outside_of_rooms() -> None:
    assert len([path for path in PACKAGE.glob("*.py") if not path.name.startswith("__")]) <= 7


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    assert not refused(path)


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*/__init__.py")), ids=lambda path: path.parent.name)
def test_the_face_of_a_room_only_hands_names_on(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= LARGEST_FACE
    assert not [node for node in ast.parse(source).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]


@pytest.mark.parametrize("path", [path for path in sorted(PACKAGE.rglob("__init__.py")) if "_HOME =" in path.read_text()],
                         ids=lambda path: path.parent.name)
def test_type_checkers_are_told_of_every_name_that_is_handed_on(path: Path) -> None:
    name = ".".join(path.parent.relative_to(ROOT).parts)
    face = importlib.import_module(name)
    home = {part: f"{name}.{module}" for part, module in face._HOME.items()}
    if name == "tfspike":
        home |= {part: f"{name}.{face._MODULES[part]}" for part in face.__all__ if part in face._MODULES}
    assert for_type_checkers(path) == home


@pytest.mark.parametrize(("room", "line"), [
    ("neurons", "from tfspike import models"), ("neurons", "def f():\n    from tfspike.models import blocks"),
    ("files", "import tfspike.neurons.gradients"), ("models", "from tfspike.training import Trainer"),
    ("engine", "from tfspike import analysis"), ("evaluation", "from tfspike import training"),
    ("datasets", "from tfspike.config.config import Config"), ("config", "from tfspike.neurons import surrogates")])
def test_the_rule_notices_a_wrong_import(room: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = sys.modules[__name__]
    for other in (name for rooms in ROOMS for name in rooms):
        (tmp_path / f"{other}.py").write_text("")
    (tmp_path / f"{room}.py").write_text(line)
    monkeypatch.setattr(here, "PACKAGE", tmp_path)
    monkeypatch.setattr(here, "SOURCES", sorted(tmp_path.glob("*.py")))
    assert len(refused(tmp_path / f"{room}.py")) == 1


@pytest.mark.parametrize("path", [*SOURCES, *sorted(ROOT.glob("*.py"))], ids=lambda path: str(path.relative_to(ROOT)))
def test_only_public_names_of_keras_and_tensorflow(path: Path) -> None:
    private = [name for name in imports(path)
               if name.startswith(("keras.src", "tensorflow.python", "tensorflow.core", "tensorflow.compiler"))]
    assert not private
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in ("keras.src", "tf.python", "keras._tf_keras"), node.lineno


# `variants` and `config` hold the tables of networks, their recipes and defaults.
@pytest.mark.parametrize("path", [path for path in SOURCES if name_of(path) not in ("variants", "config")],
                         ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_branches_on_the_name_of_a_network(path: Path) -> None:
    sys.path.insert(0, str(ROOT))
    from tfspike.variants import VARIANTS

    compared = [ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Compare)
                for part in ast.walk(node) if isinstance(part, ast.Constant) and part.value in VARIANTS]
    assert not compared


@pytest.fixture(scope="module")
def heavy() -> dict[str, list[str]]:
    """`{module: which of TensorFlow and Keras it loads that those before it had not}`, all in one process."""
    code = ("import importlib, json, sys\nfound, before = {}, set()\n"
            "for name in sys.argv[1:]:\n"
            "    importlib.import_module(name)\n"
            "    now = {'tensorflow', 'keras'} & set(sys.modules)\n"
            "    found[name], before = sorted(now - before), now\n"
            "import tfspike\ntfspike.UserError\nassert 'keras' not in sys.modules\n"
            "tfspike.LIF\nfound['tfspike.LIF'] = sorted({'tensorflow', 'keras'} & set(sys.modules))\n"
            "print(json.dumps(found))")
    names = ["tfspike", *(f"tfspike.{name}" for name in WITHOUT_TENSORFLOW)]
    done = subprocess.run([sys.executable, "-c", code, *names], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("module", ["", *(f".{name}" for name in WITHOUT_TENSORFLOW)])
def test_importing_it_imports_no_tensorflow(module: str, heavy: dict[str, list[str]]) -> None:
    assert heavy[f"tfspike{module}"] == []


def test_an_export_loads_tensorflow_when_it_is_used(heavy: dict[str, list[str]]) -> None:
    assert heavy["tfspike.LIF"] == ["keras", "tensorflow"]


@pytest.mark.parametrize("command", ["", ".conversion", ".export", ".pretrained", ".stdp", ".results", ".runs.results"])
def test_commands_are_found_by_their_module(command: str) -> None:
    done = subprocess.run([sys.executable, "-m", f"tfspike{command}", "--help"], cwd=ROOT, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0 and "sage: " in done.stdout and not done.stderr, done.stderr


# What has moved is found under its former name.
MOVED = "import pickle, tfspike.layers, tfspike.neurons.layers as layers\n" \
        "from tfspike.gradients import Neuron\nfrom tfspike.neurons import gradients\n" \
        "assert tfspike.layers is layers and Neuron is gradients.Neuron\n" \
        "assert layers.__spec__.name == layers.__name__ == 'tfspike.neurons.layers'\n" \
        "assert pickle.loads(b'ctfspike.layers\\nLIF\\n.') is layers.LIF\n" \
        "assert all(getattr(tfspike, name) for name in dir(tfspike) if name[0] != '_')\n" \
        "import keras"


@pytest.mark.parametrize("first", [
    pytest.param("import tfspike, keras", marks=pytest.mark.slow), "import keras, tfspike",
    pytest.param("import tfspike, tensorflow as tf; tf.keras.models; import keras", marks=pytest.mark.slow),
    pytest.param(MOVED, id="what has moved", marks=pytest.mark.slow),
    pytest.param("from tfspike import encoders; import keras", marks=pytest.mark.slow)])
def test_keras_knows_our_classes_whatever_is_imported_first(first: str) -> None:
    code = f"{first}\nfor name in ('SpikingModel', 'LIF', 'LIFCell', 'PoissonEncoder', 'ReluModel', 'ThresholdNorm'):\n" \
           "    assert keras.saving.get_registered_object(f'tfspike>{name}') is not None, name"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_saved_model_is_found_and_pickled_by_keras_alone(tmp_path: Path) -> None:
    import keras

    import tfspike

    path = tmp_path / "model.keras"
    x = keras.Input((3, 4))
    tfspike.SpikingModel(x, tfspike.Readout()(tfspike.LIF()(tfspike.SpikeInput(3)(x)))).save(path)
    again = f"import tfspike, keras, pickle\nmodel = keras.models.load_model({str(path)!r})\n" \
            "assert type(model).__name__ == 'SpikingModel'\n" \
            "for copy in (keras.models.clone_model(model), pickle.loads(pickle.dumps(model)),\n" \
            "             keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model))):\n" \
            "    assert type(copy) is type(model) and [v.name for v in copy.layers] == [v.name for v in model.layers]"
    done = subprocess.run([sys.executable, "-c", again], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_backend_other_than_tensorflow_is_refused_in_one_sentence() -> None:
    environment = {**os.environ, "KERAS_BACKEND": "numpy"}
    for command in (["train.py", "--dry_run"], ["eval.py", "--workdir=nowhere"]):
        done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True,
                              timeout=60)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "KERAS_BACKEND" in done.stderr, done.stderr


def test_a_backend_of_kerasjson_is_refused_when_the_layers_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    from tfspike.errors import UserError
    from tfspike.neurons import backend

    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(UserError, match="KERAS_BACKEND=tensorflow"):
        importlib.reload(backend)
    monkeypatch.undo()
    importlib.reload(backend)
