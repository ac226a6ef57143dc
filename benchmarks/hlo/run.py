"""Measures the exported programs and PyTorch's peers on one card, and prints a table: on a GPU in less than 8 minutes.

    python -m benchmarks.hlo.run                             # all; what 7.5 minutes do not reach is left out, and named
    python -m benchmarks.hlo.run --nets vgg9 --minutes=3     # some
    python -m benchmarks.hlo.run --platform=cpu --nets lenet # to see that it runs

Every cell is a process of its own. Nothing is installed: without JAX or without PyTorch their rows are left out, and a
sentence says so. Results are added to one JSON file after every process, and the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import cases
from benchmarks.hlo import plan
from benchmarks.process import failure, run_command, run_worker
from benchmarks.results import Results

MOST_SECONDS, FEWEST_SECONDS = 150.0, 20.0  # of one process; with less left, none is started
CAP_GB = 64.0  # resident memory of one process
LABELS = {"tfspike-event": 'tfspike "event", XLA', "tfspike-rate": 'tfspike "rate" *, XLA',
          "authors": "authors' algorithm, PyTorch", "authors-compiled": "authors' algorithm, compiled",
          "plain": "plain LIF, PyTorch", "plain-compiled": "plain LIF, compiled"}
NOTE = ('\\* "rate" is a different gradient; inference is the same under both. Milliseconds: median (smallest - '
        "largest) of the timed steps, each waited for. float32 is multiplied as TF32 on cards that have it. Compiled "
        "PyTorch: every neuron's step by torch.compile, on a GPU the whole step as one CUDA graph. MB: on a GPU what "
        "the card held. Kernels and their time: of one step, as XLA's profiler saw them.")


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code: 0 where anything was measured, 2 where nothing can be."""
    given = _arguments(argv)
    results = Results(given.out)
    deadline = time.monotonic() + 60 * given.minutes
    sides = {"tfspike": _without("jax", "JAX"), "PyTorch": _without("torch", "PyTorch")}
    missing = {side: why for side, why in sides.items() if why}
    for why in missing.values():
        print(why, file=sys.stderr)
    left = []
    for cell in plan.cells(given.nets.split(","), given.precisions.split(",")):
        side = "tfspike" if cell.library in cases.TFSPIKE else "PyTorch"
        if side in missing or results.answer(cell, 0):
            continue
        seconds = deadline - time.monotonic()
        if seconds < FEWEST_SECONDS:
            left.append(cell.key)
            continue
        record = _measured(cell, given, min(seconds, given.most))
        if record["status"] == "unusable":
            missing[side] = " ".join(record["error"])
            print(f"The rows of {side} are left out: {missing[side]}", file=sys.stderr)
            continue
        results.put(cell, 0, record)
        print(f"{cell.key}  {_line(record)}", flush=True)
    if left:
        print(f"The time did not reach {len(left)} of them; the same command goes on: {', '.join(left)}",
              file=sys.stderr)
    if not results.records:
        print("Nothing was measured.", file=sys.stderr)
        return 2
    text = table(results)
    Path(given.out).with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}")
    return 0


def _without(module: str, name: str) -> str | None:
    """A sentence where a module is not installed."""
    return None if importlib.util.find_spec(module) else f"{name} is not installed here: its rows are left out."


def _measured(cell: cases.Cell, given: argparse.Namespace, timeout: float) -> dict[str, Any]:
    """The record of one process, in the fields of the table."""
    case = cell.case
    on_gpu = given.platform == "gpu"
    environment = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0" if on_gpu else "")}
    if cell.library in cases.TFSPIKE:
        program = plan.path(given.folder, case, cell.library.removeprefix("tfspike-"), cell.precision)
        command = [sys.executable, str(Path(__file__).with_name("runner.py")), str(program), "--json",
                   f"--platform={given.platform}", f"--steps={given.steps}"]
        record = run_command(command, CAP_GB, timeout, {**environment, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"})
        if record["status"] in ("ok", "wrong"):
            record["first_step_seconds"] = record["compile_s"]
        return record
    if on_gpu:  # memory of the card is what counts, so compiling may take processes of its own
        environment["TORCHINDUCTOR_COMPILE_THREADS"] = str(len(os.sched_getaffinity(0)))
    order = {**dataclasses.asdict(case), "library": cell.library, "precision": cell.precision, "steps": given.steps,
             "threads": len(os.sched_getaffinity(0)), "device": "cuda" if on_gpu else "cpu"}
    record = run_worker(sys.executable, "benchmarks.torch_worker", order, CAP_GB, timeout, environment)
    if record["status"] == "ok":
        record |= {"low": min(record["times"]), "high": max(record["times"]),
                   "images_per_s": case.batch / record["seconds"]}
        record.setdefault("card", "cpu")
    return record


def _line(record: dict[str, Any]) -> str:
    if record["status"] not in ("ok", "wrong"):
        return failure(record)
    wrong = f"  WRONG: {', '.join(record['wrong'])}" if record.get("wrong") else ""
    return (f"{1e3 * record['seconds']:.3g} ms, {record['images_per_s']:.4g} images/s, "
            f"{record['peak_mb']:.0f} MB{wrong}")


def table(results: Results) -> str:
    """The records as Markdown, the card above them."""
    good = [record for record in results.records if record["status"] in ("ok", "wrong")]
    cards = sorted({record["card"] for record in good})
    machine = results.data["machine"]
    parts = [f"Card: {', '.join(cards) or 'none'}; {machine['cpu']}, {machine['cores']} cores."]
    for mode in ("train", "inference"):
        rows = [_row(record) for record in good if record["mode"] == mode]
        if rows:
            head = ["net, T, batch", "library", "precision", "ms", "images/s", "MB", "compiling or first step, s",
                    "kernels, their ms", "largest difference from TensorFlow"]
            parts += [f"### {mode.capitalize()}",
                      "\n".join(["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *rows])]
    bad = [f"{record['key']}: {failure(record)}" for record in results.records if record not in good]
    if bad:
        parts.append("Not measured: " + "; ".join(bad))
    return "\n\n".join([*parts, NOTE])


def _row(record: dict[str, Any]) -> str:
    kernels = f"{record['kernels']}, {1e3 * record['busy_s']:.3g}" if "kernels" in record else ""
    worst = f"{record['worst']:.1e}" + " WRONG" * bool(record["wrong"]) if "worst" in record else ""
    values = (f"{record['net']}, {record['timesteps']}, {record['batch']}", LABELS[record["library"]],
              record["precision"],
              f"{1e3 * record['seconds']:.3g} ({1e3 * record['low']:.3g} - {1e3 * record['high']:.3g})",
              f"{record['images_per_s']:.4g}", f"{record['peak_mb']:.0f}", f"{record['first_step_seconds']:.1f}",
              kernels, worst)
    return "| " + " | ".join(values) + " |"


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    plan.add_arguments(parser)
    parser.add_argument("--platform", choices=("gpu", "cpu"), default="gpu", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=20, help="timed steps; default: %(default)s")
    parser.add_argument("--minutes", type=float, default=7.5, help="for all of it; default: %(default)s")
    parser.add_argument("--most", type=float, default=MOST_SECONDS, help="seconds of one process; default: %(default)s")
    parser.add_argument("--out", default="gpu.json", help="results, the table beside it; default: %(default)s")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
