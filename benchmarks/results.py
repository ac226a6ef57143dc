"""The results file: written after every process, so that an interrupted run loses nothing and goes on where it was."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
from pathlib import Path
from typing import Any

from benchmarks.cases import Case, Cell
from tfspike import files

FINAL = ("ok", "out of memory")
"""Statuses that are an answer; anything else is tried again on the next run."""


class Results:
    """Records by cell and round, in one JSON file.

    Args:
      path: the file; read if it is there.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.data: dict[str, Any] = {"machine": machine(), "records": []}
        if self.path.exists():
            self.data = json.loads(self.path.read_text(encoding="utf-8"))

    @property
    def records(self) -> list[dict[str, Any]]:
        return self.data["records"]

    def answer(self, cell: Cell, round_: int) -> dict[str, Any] | None:
        """The final record of a cell in a round, if there is one. Out of memory in one round stands for all."""
        return next((record for record in self.records if record["key"] == cell.key and record["status"] in FINAL
                     and (record["round"] == round_ or record["status"] == "out of memory")), None)

    def put(self, cell: Cell, round_: int, record: dict[str, Any]) -> None:
        """Adds a record, in place of an earlier one of the same cell and round, and writes the file."""
        case = cell.case
        entry = {"key": cell.key, "round": round_, "library": cell.library, "precision": cell.precision,
                 **dataclasses.asdict(case), **record}
        kept = [old for old in self.records if (old["key"], old["round"]) != (cell.key, round_)]
        self.data["records"] = [*kept, entry]
        files.write_file(str(self.path), json.dumps(self.data, indent=1))

    def summary(self, cell: Cell) -> dict[str, Any] | None:
        """All rounds of a cell in one: median, smallest and largest of the rounds' medians; None if not measured."""
        found = [record for record in self.records if record["key"] == cell.key and record["status"] in FINAL]
        if not found:
            return None
        good = [record for record in found if record["status"] == "ok"]
        if not good:
            return {"status": "out of memory"}
        seconds = [record["seconds"] for record in good]
        return {"status": "ok", "rounds": len(good), "seconds": statistics.median(seconds), "low": min(seconds),
                "high": max(seconds),
                "peak_above_bare_mb": statistics.median(record["peak_above_bare_mb"] for record in good),
                "peak_mb": statistics.median(record["peak_mb"] for record in good),
                "first_step_seconds": statistics.median(record["first_step_seconds"] for record in good),
                "alive": good[-1]["alive"], "rates": good[-1]["rates"]}

    def cases(self, mode: str | None = None) -> list[Case]:
        """Every case with a record, in order of network, window and batch."""
        found = {Case(r["net"], r["timesteps"], r["batch"], r["mode"]) for r in self.records}
        return sorted((case for case in found if mode in (None, case.mode)),
                      key=lambda case: (case.mode, case.net, case.timesteps, case.batch))


def machine() -> dict[str, Any]:
    """CPU model, cores, memory and system, read from the kernel."""
    model = platform.processor() or platform.machine()
    flags: list[str] = []
    with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
        for line in cpuinfo:
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                model = value.strip()
            elif name.strip() == "flags":
                flags = value.split()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "memory_gb": round(memory, 1),
            "instructions": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags],
            "system": f"{platform.system()} {platform.release()}", "python": platform.python_version()}
