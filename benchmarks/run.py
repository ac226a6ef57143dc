"""Measures whole training steps side by side: `python -m benchmarks.run --suite headline`.

Every cell (network, window, batch, library, precision) is a process of its own, and the libraries take turns within
a round, so that a slow minute of the machine falls on all of them. Results are added to a JSON file after every
process; a run that was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from typing import Any

from benchmarks import cases
from benchmarks.process import add_arguments, failure, run_worker
from benchmarks.results import Results
from benchmarks.table import markdown


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    args = _arguments(arguments)
    results = Results(args.out)
    plan = list(dict.fromkeys(cell for suite in args.suite for cell in
                              cases.cells(suite, tuple(args.libraries), tuple(args.precisions))))
    if not plan:
        print(f"Nothing to do: suite {', '.join(args.suite)} does not measure {', '.join(args.libraries)}.",
              file=sys.stderr)
        return 2
    for round_ in range(args.rounds):
        for number, cell in enumerate(plan, 1):
            label = f"round {round_ + 1}/{args.rounds}, {number}/{len(plan)}  {cell.key}"
            if not args.force and results.answer(cell, round_):
                print(f"{label}  already measured", flush=True)
                continue
            begin = time.monotonic()
            record = _measure(cell, args)
            results.put(cell, round_, record)
            print(f"{label}  {_line(record)}  ({time.monotonic() - begin:.0f} s in all)", flush=True)
    print()
    print(markdown(results))
    return 0


def _measure(cell: cases.Cell, args: argparse.Namespace) -> dict[str, Any]:
    peer = cell.library in cases.PEERS
    order = {**dataclasses.asdict(cell.case), "library": cell.library, "precision": cell.precision,
             "steps": args.steps, "threads": args.threads, "dataset": args.dataset, "data_dir": args.data_dir}
    python, worker = (args.peers_python, "torch_worker") if peer else (sys.executable, "tfspike_worker")
    return run_worker(python, f"benchmarks.{worker}", order, args.cap_gb, args.timeout)


def _line(record: dict[str, Any]) -> str:
    if record["status"] != "ok":
        return failure(record)
    dead = "" if record["alive"] is not False else "  (a layer is silent)"
    return f"{record['seconds']:.4g} s, {record['peak_above_bare_mb']:.0f} MB above the bare framework{dead}"


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.partition("\n")[0])
    parser.add_argument("--suite", nargs="+", choices=tuple(cases.SUITES), default=["headline"],
                        help="what to measure (see cases.py); default: headline")
    parser.add_argument("--libraries", nargs="+", choices=cases.LIBRARIES, default=list(cases.LIBRARIES))
    parser.add_argument("--precisions", nargs="+", choices=cases.PRECISIONS, default=list(cases.PRECISIONS))
    parser.add_argument("--rounds", type=_positive, default=3, help="processes per cell; default: 3")
    parser.add_argument("--steps", type=_positive, default=3, help="timed steps per process, after two others")
    parser.add_argument("--threads", type=_positive, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--out", default="benchmarks.json", help="results file, added to; default: benchmarks.json")
    parser.add_argument("--force", action="store_true", help="measure again what the results file has already")
    add_arguments(parser, timeout=1800.0)
    parser.add_argument("--dataset", default="mnist_subset", help="of suite pipeline; default: the embedded digits")
    parser.add_argument("--data-dir", default=None, help="where suite pipeline finds its data set")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, received {text}")
    return number


if __name__ == "__main__":
    sys.exit(main())
