"""Which programs and peers are measured on a GPU, and where programs lie; needs no framework."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks import cases
from benchmarks.cases import Case, Cell

FOLDER = Path(__file__).resolve().parent / "programs"
# The four nets, and a batch that fills a card, the most important ones first: what the time does not reach is left out.
CASES = (Case("vgg9", 100, 16), Case("lenet", 50, 64), Case("resnet20", 25, 32), Case("resnet11", 50, 8),
         Case("vgg9", 100, 128))
PEERS = ("authors", "plain", "authors-compiled", "plain-compiled")  # what compiles for minutes comes last


def programs(nets: Iterable[str], precisions: Iterable[str]) -> Iterator[tuple[Case, str, str]]:
    """What there is to export: case, gradient, precision. Inference is the same under both gradients."""
    for case in CASES:
        for precision in precisions if case.net in nets else ():
            for gradient in ("event", "rate"):
                yield case, gradient, precision
            yield dataclasses.replace(case, mode="inference"), "rate", precision


def cells(nets: Iterable[str], precisions: Iterable[str]) -> list[Cell]:
    """What is measured, in this order: training in float32, training in other precisions, inference."""
    found = []
    for mode in ("train", "inference"):
        libraries = (*(("tfspike-event", "tfspike-rate") if mode == "train" else ("tfspike-rate",)), *PEERS)
        for precision in precisions:
            found += [Cell(dataclasses.replace(case, mode=mode), library, precision) for case in CASES
                      if case.net in nets for library in libraries]
    return found


def path(folder: Path, case: Case, gradient: str, precision: str) -> Path:
    """The description of a program; its HLO lies beside it."""
    return Path(folder) / f"{case.net}-T{case.timesteps}-B{case.batch}-{case.mode}-{gradient}-{precision}.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say which programs."""
    nets = ",".join(dict.fromkeys(case.net for case in CASES))
    parser.add_argument("--nets", default=nets, help="default: %(default)s")
    parser.add_argument("--precisions", default=",".join(cases.PRECISIONS), help="default: %(default)s")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the programs; default: beside this file")
