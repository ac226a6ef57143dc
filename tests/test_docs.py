"""What README.md and docs/*.md say is true: examples give what they say, code runs, commands and links exist."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import runs
from tfspike import LIF, datasets, models
from tfspike.config import flags
from tfspike.errors import UserError
from tfspike.evaluation import options as eval_options
from tfspike.models import own
from tfspike.neurons import surrogates

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for path in sorted((ROOT / "tfspike").rglob("*.py")) if ">>>" in path.read_text(encoding="utf-8")}
PROSE = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ALL_PROSE = [*PROSE, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "results" / "README.md", ROOT / "benchmarks" / "README.md",
             ROOT / "tfspike" / "data" / "README.md"]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 4


@pytest.mark.parametrize("name", EXAMPLES.values())
def test_the_examples_in_docstrings_are_true(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried and not failed


# ---- code --------------------------------------------------------------------------------------------------------


def blocks(path: Path) -> list[str]:
    """The fenced Python of a file."""
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def ran(path: Path, names: dict[str, Any], but: str = "nothing") -> list[dict[str, Any]]:
    """Runs the Python of a file from top to bottom in the current folder, blocks that have the text `but` left out; returns the names
    after every block."""
    after = []
    for number, block in enumerate((block for block in blocks(path) if but not in block), 1):
        names = dict(names)
        after.append(names)
        if 'format="onnx"' not in block or importlib.util.find_spec("tf2onnx"):  # a package that the page names
            quick = re.sub(r"\bepochs=\d+", "epochs=1, verbose=0", block)
            quick = quick.replace('load("mnist_subset", "train")', 'load("mnist_subset", "train").first(2000)')
            exec(compile(quick, f"{name_of(path)}, block {number}", "exec"), names)
    return after


@pytest.fixture(scope="module")
def readme(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path]:
    """What all Python of README.md gave, and the folder in which it ran."""
    folder = tmp_path_factory.mktemp("readme")
    before = os.getcwd()
    os.chdir(folder)
    try:
        return ran(ROOT / "README.md", {}), folder
    finally:
        os.chdir(before)


def having(names: list[dict[str, Any]], text: str) -> dict[str, Any]:
    """The names after the block of README.md that has `text`."""
    return next(after for block, after in zip(blocks(ROOT / "README.md"), names) if text in block)


def test_the_network_of_the_readme_can_be_built(readme: tuple[list[dict[str, Any]], Path]) -> None:
    names = having(readme[0], "PoissonEncoder(")
    assert names["model"].output_shape == (None, 10)
    image = np.random.default_rng(0).uniform(0, 1, (2, 28, 28, 1)).astype("float32")
    assert all(np.sum(count) > 0 for count in names["model"].observe(image)[1].values())


@pytest.mark.parametrize("page, text", [("README.md", "PoissonEncoder("), ("docs/howto.md", "def network")])
def test_first_weights_of_a_stacked_network_follow_the_seed(page: str, text: str) -> None:
    """Keras' initialisers repeat themselves: layers that shared one would begin equal, under every seed."""
    names: dict[str, Any] = {}
    exec(next(block for block in blocks(ROOT / page) if text in block), names)

    def first_weights(seed: int) -> list[np.ndarray]:
        keras.utils.set_random_seed(seed)
        model = names["network"](LIF(leak=0.9)) if "network" in names else names["model"]
        synapses = [layer.layer for layer in model.layers if getattr(getattr(layer, "layer", None), "weights", ())]
        starts.extend(synapse.kernel_initializer for synapse in synapses)
        return [synapse.kernel.numpy() for synapse in synapses]

    starts: list[Any] = []
    once, again, other = (first_weights(seed) for seed in (0, 0, 1))
    if "network" in names:
        assert all(map(np.array_equal, once, again)) and not any(map(np.array_equal, once, other))
    else:
        starts = starts[:len(once)]
    assert len(set(map(id, starts))) == len(starts) > 1


def test_the_first_lines_of_python_in_the_readme_learn(readme: tuple[list[dict[str, Any]], Path]) -> None:
    names = having(readme[0], ".fit(")
    assert names["model"].history.history["accuracy"][0] > 0.5
    assert list(names["counts"]) == names["model"].spiking_layers
    # As a user does it: another process, which knows of the file alone
    code = ("import keras, tfspike, numpy as np\n"
            "model = keras.models.load_model('lenet.keras')\n"
            "print(type(model).__name__, model(np.zeros((1, 28, 28, 1), 'float32')).shape)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, cwd=readme[1],
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0 and "SpikingModel (1, 10)" in done.stdout, done.stderr[-1000:]


def test_the_code_of_the_model_cards_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ran(ROOT / "docs" / "models.md", {"NAME": "lenet_mnist"})
    assert names[0]["model"].output_shape == (None, 10) and len(names) >= 4


def test_a_keras_network_of_ones_own_is_converted_as_the_page_says() -> None:
    with pytest.warns(UserWarning, match="MaxPoolGate"):
        (names,) = ran(ROOT / "docs" / "conversion.md", {})
    assert names["scores"].shape == (20, 10) and all(np.sum(count) > 0 for count in names["spikes"].values())


def test_the_answers_of_the_page_how_to_are_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(surrogates, "DERIVATIVES", dict(surrogates.DERIVATIVES))
    shutil.copytree(ROOT / "tests" / "goldens" / "run", tmp_path / "runs" / "mine")
    with pytest.warns(UserWarning, match="learnt .* has a `call` of its own"), \
            pytest.warns(UserWarning, match="readout.* is called with more than its input"):
        *_, names = ran(ROOT / "docs" / "howto.md", {"__name__": "howto"})
    potentials, spikes = names["potentials"], names["spikes"]
    assert potentials.shape == names["membranes"].shape == spikes.shape == (6, 2, 12, 12, 8)
    assert ((potentials > 1.0) == spikes).all() and spikes.any() and names["output"].shape == (6, 2, 10)
    assert Path("raster.png").stat().st_size > 10_000 and list(Path("logs").rglob("events.*"))
    assert names["tuned"].engine is not None and names["tuned"].output_shape == (None, 5)
    assert names["vgg"].plan.spiking[0].layer.neuron.threshold == 0.5 and np.isfinite(names["loss"])
    assert 0.0 < names["history"]["rate/lif"][0] < 1.0
    assert names["longer"].timesteps == 12 and 0.0 < names["nanojoules"] < 1e4
    assert np.ptp(names["leaks"]) > 0.0, "leaks began equal"
    assert names["tracker"].output_shape == (None, 20, 1) and np.isfinite(names["tracker"].history.history["loss"])
    assert len(names["answers"]) == 20 and set(names["answers"]) <= set(range(10))


def test_the_module_of_the_page_how_to_is_what_its_commands_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(surrogates, "DERIVATIVES", dict(surrogates.DERIVATIVES))
    page = ROOT / "docs" / "howto.md"
    (tmp_path / "my_neurons.py").write_text("\n".join(block for block in blocks(page) if "def superspike" in block or "class Eager" in block))
    given = [flags.parse(words[2:])[0] for words in commands(page.read_text(encoding="utf-8")) if any("my_neurons" in word for word in words)]
    assert [(made.surrogate, made.neuron) for made in given] == [("my_neurons:superspike", "lif"), ("leak_aware", "my_neurons:Eager")]
    neuron = own.load(given[0].surrogate, given[1].neuron)
    model = models.create("lenet", (12, 12, 1), 3, 2, hidden=0, surrogate=given[0].surrogate, neuron=neuron)
    assert model.plan.spiking[0].layer.neuron.threshold == 0.5


class Recordings(list):  # type: ignore[type-arg]
    """Pairs of events and label of a sensor of 64 x 64 pixels, as a data set of tonic."""

    sensor_size = (64, 64, 2)


def moving_dot(seed: int) -> np.ndarray:
    """What a camera sees of a dot that moves to the left (odd seeds) or to the right for a second."""
    events = np.zeros(640, [("x", "<i2"), ("y", "<i2"), ("p", "?"), ("t", "<i8")])
    events["t"] = np.arange(640) * 1500
    events["x"] = (63 - np.arange(640) // 10) if seed % 2 else np.arange(640) // 10
    events["y"], events["p"] = 8 * (seed // 2) + np.arange(640) % 5, np.arange(640) % 2
    return events


@pytest.mark.slow
def test_recordings_of_a_camera_are_trained_on_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recordings = Recordings((moving_dot(i), "left" if i % 2 else "right") for i in range(8))
    with pytest.warns(UserWarning, match="share their pixel"):
        names = ran(ROOT / "docs" / "own_data.md", {"recordings": recordings}, but="onnxruntime")[-1]
    assert names["model"].output_shape == (None, 2) and names["train"].images.shape == (8, 10, 32, 32, 2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:recordings. of:UserWarning")
def test_the_way_from_own_data_to_an_export_is_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All commands of the page in their order, on a small folder of pictures; a few steps in place of minutes."""
    from PIL import Image

    from tfspike import pretrained, training
    from tfspike.evaluation import command

    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for place, count in (("pictures/cat", 10), ("pictures/dog", 10), ("new_pictures", 2)):
        Path(place).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(random.integers(0, 256, (36, 36, 3), dtype=np.uint8)).save(f"{place}/{i}.{'jpg' if 'new' in place else 'png'}")
    elsewhere, *writing = blocks(ROOT / "docs" / "own_data.md")
    for block in writing[:2]:  # the file of arrays and the folder of recordings
        exec(block, {"recordings": [(moving_dot(i), "left" if i % 2 else "right") for i in range(16)]})
    done: list[str] = []
    for words in commands((ROOT / "docs" / "own_data.md").read_text(encoding="utf-8")):
        program, arguments = words[1], words[2:]
        if not any(word.startswith("--") for word in words):  # the name of a command, in prose
            continue
        if program == "train.py":
            config, options, *_ = flags.parse([*arguments, "--epochs=1", "--steps_per_epoch=2", "--batch_size=4", "--hidden=0",
                                               "--notensorboard", "--export=none"])
            assert config.data_dir is not None and Path(config.data_dir).exists()
            assert training.run(config, options, lambda line: None) == 0
        elif program == "eval.py":
            assert command.run(eval_options.parse_eval(arguments), pretrained.load) == 0
        else:
            assert words[1:3] == ["-m", "tfspike.export"]
            reports = runs.exported("runs/pictures", [name for name in ("onnx", "nir") if importlib.util.find_spec(name)])
            assert all(report["path"] for report in reports.values())
            if importlib.util.find_spec("tf2onnx") and importlib.util.find_spec("onnxruntime"):
                names: dict[str, Any] = {}
                exec(elsewhere, names)
                assert names["scores"].shape == (1, 2)
            program = words[2]
        done.append(program)
    assert done == ["train.py", "train.py", "eval.py", "eval.py", "tfspike.export", *["train.py", "eval.py"] * 2]
    assert "cat" in Path("runs/pictures/report/index.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_code_of_the_page_on_exports_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow as tf

    from tfspike import datasets, models

    model = models.create("lenet", (28, 28, 1), 10, 4, encoder="direct")
    info = datasets.describe(datasets.load("mnist_subset", "test"))
    image = np.random.default_rng(0).uniform(0, 1, (1, 28, 28, 1)).astype("float32")
    spikes = tf.constant(np.random.default_rng(1).integers(0, 2, (1, 6, 28, 28, 1)), tf.float32)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved_model").symlink_to(tmp_path / "folder" / "saved_model")
    names = ran(ROOT / "docs" / "exports.md", {"model": model, "info": info, "one_batch": image, "tf": tf,
                                               "pieces": [spikes[:, :4], spikes[:, 4:]]})
    assert set(names[0]["report"]) == {"saved_model", "nir"}
    assert names[1]["out"]["scores"].shape == (1, 10)


def test_all_python_of_the_pages_is_run() -> None:
    """A page that gets its first Python gets a test here."""
    assert {name_of(path) for path in PROSE if blocks(path)} <= {"README.md", "docs/howto.md", "docs/models.md", "docs/exports.md",
                                                                 "docs/own_data.md", "docs/conversion.md"}


# ---- commands ----------------------------------------------------------------------------------------------------

PLACEHOLDERS = {"N": "1", "T": "1", "TIMESTEPS": "1", "NAME": "lenet_mnist"}
WITH_COMMANDS = [path for path in ALL_PROSE if path.name != "CHANGELOG.md"]  # which names flags, and begins no run
# Of these the values are read, too, as the command itself reads them.
READERS: dict[str, Callable[[list[str]], Any]] = {
    "train.py": flags.parse, "eval.py": eval_options.parse_eval,
    "tfspike.conversion": lambda words: importlib.import_module("tfspike.conversion.options").parse(words),
    "tfspike.stdp": lambda words: importlib.import_module("tfspike.stdp.options").parse(words),
    "tfspike.export": lambda words: importlib.import_module("tfspike.export.options").parse(words),
    "tfspike.pretrained": lambda words: flags.parse_as(importlib.import_module("tfspike.pretrained").PackOptions, words, ""),
    "tfspike.results": lambda words: flags.parse_as(importlib.import_module("tfspike.results").ResultOptions, words, "")}
# `tfspike train` takes what train.py does.
READERS |= {"tfspike train": READERS["train.py"], "tfspike eval": READERS["eval.py"], "tfspike export": READERS["tfspike.export"],
            "tfspike stdp": READERS["tfspike.stdp"], "tfspike convert": READERS["tfspike.conversion"], "tfspike results": READERS["tfspike.results"]}


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command in shell blocks, fenced or indented, and in `code` that begins with python."""
    fenced = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    code = [block for language, block in fenced.findall(text) if language == "bash"]
    plain = fenced.sub("", text)
    code += re.findall(r"(?:(?<=\n\n)|^)((?:    .+\n)+)", plain, re.MULTILINE)
    code += [" ".join(words.split()) for words in re.findall(r"`([^`]+)`", plain) if words.startswith(("python ", "tfspike "))]
    for block in code:
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"TF_CONFIG='.*?'\s(?=\s*python)", "", line.partition(" # ")[0]).replace("[", "").replace("]", "")
            for part in re.split(r"&&|\||;|&(?=\s|$)", line):
                words = [word for word in shlex.split(part, posix=True) if word not in ("...", "do", "for")]
                if words and re.search(r"python|PYTHON|\.py$|^tfspike$", words[0]) and "<-" not in words:
                    yield [re.sub(r"(?<==)[A-Z]+$", lambda word: PLACEHOLDERS.get(word[0], word[0]), word)
                           for word in words]


def flags_of(source: Path) -> set[str]:
    """The flags of a script of argparse; what scripts share is in process.py and hlo/plan.py."""
    text = source.read_text(encoding="utf-8")
    shared = {"benchmarks": "process.py", "hlo": "plan.py"}.get(source.parent.name)
    if "add_arguments(" in text and shared:
        text += (source.parent / shared).read_text(encoding="utf-8")
    return set(re.findall(r"add_argument\(\s*\"(--[\w-]+)", text))


def complaint(words: list[str]) -> str | None:
    """What is wrong with a command, or None."""
    arguments = words if words[0].endswith((".py", "tfspike")) else words[1:]
    if not arguments or arguments[0] == "-c":
        return None
    program, arguments = (arguments[1], arguments[2:]) if arguments[0] == "-m" else (arguments[0], arguments[1:])
    program = program.removeprefix("./")
    if "--" in arguments:  # what follows are flags of train.py
        place = arguments.index("--")
        return complaint(["python", program, *arguments[:place]]) or complaint(
            ["python", "train.py", *arguments[place + 1:]])
    if program == "tfspike" and arguments:
        if arguments[0] not in ("--help", "--version") and f"tfspike {arguments[0]}" not in READERS:
            return f"tfspike has no {arguments[0]}"
        program, arguments = f"tfspike {arguments[0]}", arguments[1:]
        if program not in READERS or not arguments:
            return None
    if program in ("venv", "pip", "pytest", "build"):
        return None
    if program in READERS and arguments:
        try:
            READERS[program](arguments)
        except UserError as error:
            return str(error)
        except SystemExit as ended:
            return None if ended.code in (0, None) else f"exit code {ended.code}"
        return None
    source = ROOT / program if program.endswith(".py") else ROOT / (program.replace(".", "/") + ".py")
    if not source.exists():
        source = source.with_suffix("") / "__main__.py"
    if not source.exists():
        return f"no program {program}"
    unknown = {word.partition("=")[0] for word in arguments if word.startswith("--")} - flags_of(source) - {"--help"}
    return f"{program} has no {', '.join(sorted(unknown))}" if unknown else None


@pytest.mark.parametrize("path", WITH_COMMANDS, ids=name_of)
def test_the_commands_of_the_pages_exist(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lenet_mnist", "stdp", "lee_vgg9", "vgg9"):
        (tmp_path / "runs" / name).mkdir(parents=True)  # weights of --init_from must be there
    monkeypatch.chdir(tmp_path)
    wrong = {" ".join(words): complaint(words) for words in commands(path.read_text(encoding="utf-8"))}
    assert not {words: why for words, why in wrong.items() if why}


def test_there_are_commands_to_check() -> None:
    assert sum(len(list(commands(path.read_text(encoding="utf-8")))) for path in WITH_COMMANDS) > 50


@pytest.mark.parametrize("text", ["```bash\npython train.py --model=lenet --no_such=1\n```\n", "    python eval.py --seeds=0\n",
                                  "Say `python -m tfspike.export --wrong`.", "`python -m tfspike.nowhere`",
                                  "```bash\ntfspike trian\n```\n", "Say `python -m tfspike eval --wrong`.",
                                  "```bash\nTF_CONFIG='{}' \\\n  python train.py --model=vgg12 &\n```\n"])
def test_a_wrong_command_is_noticed(text: str) -> None:
    [words] = commands(text)
    assert complaint(words)


def test_the_flags_that_the_pages_name_exist() -> None:
    """`--name` in prose: a flag of one of our programs, or of a tool that is named with it."""
    known = {f"--{name}" for cls in (flags.Config, flags.RunOptions, eval_options.EvalOptions)
             for name in cls.__dataclass_fields__}
    known |= {f"--no{name[2:]}" for name in known} | {"--help", "--logdir"}  # the last is TensorBoard's
    for source in [*(ROOT / "tfspike").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "docs").glob("*.py"),
                   ROOT / "tests" / "kill_harness.py"]:
        known |= flags_of(source)
        known |= {f"--{name}" for name in re.findall(r"^    (\w+): .*setting\(", source.read_text(encoding="utf-8"), re.MULTILINE)}
    for path in PROSE:
        text = re.sub(r"^```.*?^```|^    .*$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        named: set[str] = {flag for code in re.findall(r"`([^`]+)`", text) for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", code)}
        assert named <= known, f"{name_of(path)}: {sorted(named - known)}"


# ---- links -------------------------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """The anchors that a page of Markdown has on the web: its headings in lower case, without signs, with hyphens."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
            for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


def dead_links(path: Path) -> list[str]:
    """The relative links of a Markdown page that lead nowhere."""
    dead = []
    for link in re.findall(r"\]\(([^()\s]+)\)", path.read_text(encoding="utf-8")):
        if re.match(r"\w+:", link):
            continue
        target, _, anchor = link.partition("#")
        there = (path.parent / target).resolve() if target else path
        if not there.exists() or (anchor and anchor not in anchors(there)):
            dead.append(link)
    return dead


@pytest.mark.parametrize("path", ALL_PROSE, ids=name_of)
def test_the_links_of_the_pages_lead_somewhere(path: Path) -> None:
    assert not dead_links(path)


def test_a_dead_link_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# The paper's table\n")
    (tmp_path / "a.md").write_text("[1](b.md#the-papers-table) [2](b.md#gone) [3](c.md) [4](https://x.org) [5](#no)")
    assert dead_links(tmp_path / "a.md") == ["b.md#gone", "c.md", "#no"]


# ---- the measurement by depth ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_measurement_by_depth_runs_and_shows_what_its_page_says(tmp_path: Path) -> None:
    """ResNet20 at four steps, on noise: without normalisation the gradient explodes or dies, with it it does neither."""
    runpy.run_path(str(ROOT / "docs" / "depth.py"))["main"](["--nets", "resnet20", "--timesteps", "4", "--images", "2",
                                                             "--out", str(tmp_path)])
    found = json.loads((tmp_path / "depth.json").read_text())["resnet20"]["4"]
    normalised = found["tdBN and arctan"]
    assert len(normalised) == 19 and all(row["rate"] > 0.02 for row in normalised)
    assert 1e-2 < normalised[0]["gradient"] < 1e2
    assert not 1e-2 < found["paper"][0]["gradient"] < 1e2
    assert found["rate-targeted weights"][0]["gradient"] > 20 * normalised[0]["gradient"]
    assert (tmp_path / "depth_resnet20.png").stat().st_size > 10_000


def test_the_measurement_by_depth_reads_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = datasets.describe(datasets.load("mnist_subset", "train"))
    folder = runs.untrained(tmp_path / "run", info, dataset="mnist_subset", timesteps=10, hidden=20, kappa=8.0)
    runpy.run_path(str(ROOT / "docs" / "depth.py"))["main"](["--runs", folder, "--images", "3"])
    name, columns, *rows = capsys.readouterr().out.splitlines()
    assert name == folder and columns.split() == ["layer", "rate", "true_slope", "taken_slope", "silent", "gradient"]
    found = {row.split()[0]: [float(x) for x in row.split()[1:]] for row in rows}
    assert list(found) == ["conv1_1_lif", "pool1", "conv2_1_lif", "pool2", "hidden_lif"]
    assert all(0 < rate < 1 and 0 <= silent < 1 for rate, _, _, silent, _ in found.values())
    assert found["hidden_lif"][-1] == 1 and found["conv1_1_lif"][-1] > 0
