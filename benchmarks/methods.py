"""Training methods side by side: the same network, data and images in the same order, the same processor time each.

    python -m benchmarks.methods --model=lenet --dataset=mnist_subset --methods=lee,deep,rueckauer --hours=0.05

Each method is trained by train.py (an ANN, where the method is a conversion, and converted), chosen on validation data
and tested by eval.py. Processor time is the user and system seconds of all threads of train.py, from its start to its
last validation: other work on the machine changes it little. A short probe of each method, which is not counted, says
how many steps fit into it, so that the learning rate ends where the time does.

In the folder --out are methods.md with the table, methods.png, methods.json, and under runs/ the run of every method
and seed. The same command goes on where it was stopped, tries again what failed, and adds methods and seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from benchmarks import budget, methods_page
from benchmarks.results import machine
from tfspike import files, output
from tfspike.config import commands, flags
from tfspike.config.config import Config
from tfspike.config.methods import METHODS
from tfspike.errors import UserError
from tfspike.runs import provenance, results, workdir

RECORD, PAGE, PICTURE = "methods.json", "methods.md", "methods.png"
SETTINGS = ("model", "dataset", "hours", "points", "windows", "images", "flags")  # what all runs of a page share
PROBES = (20, 200)  # steps of an epoch of a probe; the second, where the first was over too soon to tell
SHORTEST = 2.0  # processor seconds of half an epoch of a probe that tell
STOPPED = (129, 130, 143)  # exit codes of a command that was asked to stop
_QUIET = ("--notensorboard", "--export=none")


class Comparison:
    """The record of a comparison, which grows with every run.

    Args:
      args: of the command.

    Raises:
      UserError: the folder holds another comparison.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.path = os.path.join(args.out, RECORD)
        settings = {name: getattr(args, name) for name in SETTINGS}
        settings["flags"] = provenance.without_paths(args.flags)
        self.record: dict[str, Any] = {
            "settings": settings, "command": _without_paths(provenance.command()), "commit": provenance.commit(),
            "machine": machine(), "plans": {}, "runs": {}}
        if os.path.exists(self.path):
            with open(self.path, encoding="utf-8") as file:
                self.record = json.load(file)
        before = self.record["settings"]
        changed = [f"--{name} (was {before[name]}, now {settings[name]})" for name in SETTINGS
                   if before[name] != settings[name]]
        if changed:
            raise UserError(f"{args.out} holds a comparison with other settings: {', '.join(changed)}. Give another "
                            "--out, or the settings that it has.")

    def go_on(self) -> None:
        """Runs what is missing; what fails is noted, and the others go on."""
        for seed in self.args.seeds:
            for method in self.args.methods:
                key = f"{method}-seed{seed}"
                if "rows" in self.record["runs"].get(key, {}):
                    continue
                try:
                    self.record["runs"][key] = self._run(method, seed)
                except UserError as error:
                    self.record["runs"][key] = {"method": method, "seed": seed, "failed": str(error)}
                    output.line(f"{key} failed: {error}")
                self._save()

    def _save(self) -> None:
        os.makedirs(self.args.out, exist_ok=True)
        files.write_file(self.path, json.dumps(self.record, indent=1) + "\n")
        files.write_file(os.path.join(self.args.out, PAGE), methods_page.page(self.record, PICTURE))
        if (figure := methods_page.draw(self.record)) is not None:
            figure.savefig(os.path.join(self.args.out, PICTURE), dpi=150)

    def _run(self, method: str, seed: int) -> dict[str, Any]:
        """Trains, converts where there is something to convert, and tests."""
        given = [f"--model={self.args.model}", f"--dataset={self.args.dataset}", f"--method={method}",
                 *shlex.split(self.args.flags)]
        config = flags.parse(given)[0]
        given += self._plan(method, config, given)
        folder = os.path.join(self.args.out, "runs", f"{method}-seed{seed}")
        given += [f"--seed={seed}", *_QUIET, f"--workdir={folder}"]
        output.line(f"{method}, seed {seed}: {shlex.join(given)}")
        ran("train", given)
        found = {"method": method, "seed": seed, "ann": not config.is_spiking,
                 "command": provenance.without_paths(shlex.join([*commands.words("train"), *given])),
                 **trained(folder, config)}
        found["rows"] = self._rows(method, folder, config)
        for row in found["rows"]:
            output.line(f"  {row['name']}: {100 * row['test_accuracy']:.2f} % of the test images")
        return found

    def _plan(self, method: str, config: Config, given: list[str]) -> list[str]:
        """The flags that make a run last as long as it should; the same for all seeds and when it goes on."""
        plans = self.record["plans"]
        if method not in plans:
            output.line(f"{method}: a probe")
            cost = probed(given)
            fitting = budget.plan(config, cost, 3600 * self.args.hours, self.args.points)
            plans[method] = {"flags": fitting, "cost": cost._asdict()}
            self._save()
        return plans[method]["flags"]

    def _rows(self, method: str, folder: str, config: Config) -> list[dict[str, Any]]:
        """What was made of a run, tested: its network, or the ANN and the networks that it was converted to."""
        if config.is_spiking:
            return [tested(method, folder, self.args.images)]
        rows = []
        for timesteps in self.args.windows:
            # what the command itself would measure, eval.py does
            out, seconds = ran("convert", [f"--run={folder}", f"--method={method}", f"--timesteps={timesteps}",
                                           "--images=1", "--json"])
            rows.append({**tested(f"{method}, converted", json.loads(out)["out"], self.args.images),
                         "conversion_seconds": seconds})
        ann = {"name": f"{method}, the ANN", **_accuracy(folder), "timesteps": None, "spikes_per_image": None,
               "microjoules": rows[0]["ann_microjoules"]}
        return [ann, *rows]


def trained(folder: str, config: Config) -> dict[str, Any]:
    """What the log of a finished run says: its course, its best validation, the passes over the data, its cost."""
    events = results.read_events(os.path.join(folder, results.METRICS))
    best = results.best_epoch(events, config)
    if best is None:
        raise UserError("The best weights are chosen on validation data; leave --val_fraction=0 out.")
    images = workdir.run_metadata(folder)["data"]["split"]["num_train"]
    curve = [[event[results.PROCESSOR_SECONDS], event["epoch/val_accuracy"]] for event in events
             if event["event"] == "epoch"]
    return {"curve": curve, "val_accuracy": best["epoch/val_accuracy"], "steps": events[-1]["step"],
            "epochs": events[-1]["step"] * config.batch_size / images, "processor_seconds": curve[-1][0]}


def probed(given: Sequence[str]) -> budget.Cost:
    """What training costs with such flags.

    Raises:
      UserError: it cannot be trained.
    """
    for steps in PROBES:
        with tempfile.TemporaryDirectory() as folder:
            run = os.path.join(folder, "run")
            ran("train", [*given, *budget.probe_flags(steps), *_QUIET, f"--workdir={run}"])
            cost = budget.cost_of(results.read_events(os.path.join(run, results.METRICS)))
        if cost.step * steps / 2 >= SHORTEST:
            break
    return cost


def tested(name: str, folder: str, images: int) -> dict[str, Any]:
    """A row: accuracy on all test images, spikes and energy on the first `images`."""
    out, _ = ran("eval", [f"--workdir={folder}", "--report", f"--images={images}", "--seeds=1", "--json"])
    energy = json.loads(out.splitlines()[-1])["energy"]
    with open(os.path.join(folder, "report", "analysis.json"), encoding="utf-8") as file:
        shown = json.load(file)
    return {"name": name, **_accuracy(folder), "timesteps": shown["timesteps"],
            "spikes_per_image": shown["spikes_per_image"], "microjoules": 1e-6 * energy["snn_pj_per_image"],
            "ann_microjoules": 1e-6 * energy["ann_pj_per_image"]}


def _accuracy(folder: str) -> dict[str, Any]:
    out, _ = ran("eval", [f"--workdir={folder}", "--json"])
    found = json.loads(out.splitlines()[-1])
    return {name: found[name] for name in ("test_accuracy", "test_accuracy_std", "records")}


def ran(name: str, arguments: Sequence[str]) -> tuple[str, float]:
    """Runs a command of the library; returns what it printed, and its processor seconds.

    Raises:
      UserError: it failed; its sentence.
      SystemExit: it was asked to stop.
    """
    before = _of_children()
    done = subprocess.run([sys.executable, *commands.words(name)[1:], *arguments], capture_output=True, text=True)
    if done.returncode in STOPPED:
        raise SystemExit(done.returncode)
    if done.returncode < 0:
        raise UserError(f"{name} was ended by {signal.Signals(-done.returncode).name}")
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(([line for line in said if line.startswith("Error: ")] or said)[-1].removeprefix("Error: "))
    return done.stdout, _of_children() - before


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _without_paths(command: str) -> str:
    """This command without the places of the machine, those in the words of --flags included."""
    name = "--flags="
    words = [name + provenance.without_paths(word.removeprefix(name)) if word.startswith(name) else word
             for word in shlex.split(command)]
    return provenance.without_paths(shlex.join(word for word in words if word != name))


def _stop(number: int, frame: Any) -> None:
    """SIGTERM as Ctrl-C: the command that is running ends, too."""
    raise SystemExit(128 + number)


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _numbers(text: str) -> list[int]:
    return [int(word) for word in _words(text)]


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"takes a whole number above 0; received {text}")
    return number


def _methods(text: str) -> list[str]:
    unknown = [name for name in _words(text) if name not in METHODS]
    if unknown or not _words(text):
        raise argparse.ArgumentTypeError(f"takes {', '.join(METHODS)}, separated by commas; received {text!r}")
    return _words(text)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lenet", help="of train.py; default: lenet")
    parser.add_argument("--dataset", default="mnist_subset", help="of train.py; default: mnist_subset")
    parser.add_argument("--methods", type=_methods, default=list(METHODS), metavar="a,b,c", help="default: all")
    parser.add_argument("--hours", type=float, required=True, help="processor hours of training, for each method")
    parser.add_argument("--seeds", type=_numbers, default=[0], metavar="0,1,2", help="default: 0")
    parser.add_argument("--points", type=_count, default=20,
                        help="most validations of a run, the epochs of train.py; default: 20")
    parser.add_argument("--windows", type=_numbers, default=[8, 32], metavar="T,T",
                        help="time steps of converted networks; default: 8,32")
    parser.add_argument("--images", type=_count, default=200,
                        help="test images that spikes and energy are measured on, the first ones; default: 200")
    parser.add_argument("--flags", default="",
                        help="more flags for every train.py, in one word: --flags=\"--data_dir=DIR --extra\"")
    parser.add_argument("--out", default="methods", help="folder; default: methods")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    args = _arguments(arguments)
    with flags.user_errors():
        comparison = Comparison(args)
        try:
            comparison.go_on()
        except (KeyboardInterrupt, SystemExit) as stopped:
            output.line("Stopped. The same command goes on.")
            return int(stopped.code or 0) if isinstance(stopped, SystemExit) else 130
        output.line(f"\n{methods_page.table(comparison.record)}\n\n{os.path.join(args.out, PAGE)}")
        return 0
    return 2


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(main())
