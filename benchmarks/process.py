"""One worker process under a cap on memory and time."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
POLL_SECONDS = 0.1
ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "",
    "TORCHINDUCTOR_COMPILE_THREADS": "1"}  # torch.compile in the process itself, so that its memory is counted
OF_LIBRARY = {
    # Keeps freed memory instead of giving it back to the system after every step: measured 4-15 % faster for
    # SpikingJelly, whose tensors hold whole windows, at 8 % more memory; no difference for peers that go step by step.
    "spikingjelly": {"MALLOC_MMAP_THRESHOLD_": "8000000000", "MALLOC_TRIM_THRESHOLD_": "30000000000"}}


def run_worker(python: str, module: str, order: dict[str, Any], cap_gb: float, timeout: float,
               environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Runs `python -m module` with the order and returns its record: `run_command`.

    Args:
      python: interpreter of the environment that has what the worker imports.
      module: the worker.
      order: what to measure, JSON.
      cap_gb, timeout, environment: see `run_command`.
    """
    given = {**OF_LIBRARY.get(order["library"], {}), "OMP_NUM_THREADS": str(order["threads"]), **(environment or {})}
    return run_command([python, "-m", module, json.dumps(order)], cap_gb, timeout, given)


def run_command(command: list[str], cap_gb: float, timeout: float, environment: dict[str, str]) -> dict[str, Any]:
    """Runs a command that prints a record as its last line of JSON.

    A limit on the address space is of no use (TensorFlow reserves far more than it touches), so the resident size is
    watched and the process ended beyond the cap.

    Args:
      command: with its arguments.
      cap_gb: resident memory at which the process is ended, GB (2^30 bytes).
      timeout: seconds until it is ended.
      environment: variables besides this process's and `ENVIRONMENT`.

    Returns:
      What the command reported, with "load" (processes that ran or waited in the minute before); or
      "status" "out of memory", "timeout", "unusable" (exit code 2) or "error", the peak seen from outside and the end
      of its error output.
    """
    load = os.getloadavg()[0]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=errors,
                                   env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT), **environment})
        status, peak_mb = _watch(process, cap_gb * 1024, timeout)
        out.seek(0)
        errors.seek(0)
        lines = [line for line in out.read().splitlines() if line.startswith("{")]
        if status == "ended" and process.returncode == 0 and lines:
            return {**json.loads(lines[-1]), "load": load}
        if status == "ended":
            status = {-9: "out of memory", 2: "unusable"}.get(process.returncode, "error")  # -9: ended by the kernel
        return {"status": status, "peak_mb": peak_mb, "error": errors.read().strip().splitlines()[-3:]}


def failure(record: dict[str, Any]) -> str:
    """What a record whose status is not "ok" says, on one line."""
    return " ".join([record["status"].upper(), *record.get("error", [])[-1:]])


def add_arguments(parser: argparse.ArgumentParser, timeout: float) -> None:
    """The options of a command that starts workers: where the peers are, and the caps of a process."""
    parser.add_argument("--peers-python", default=os.environ.get("TFSPIKE_PEERS_PYTHON", sys.executable),
                        help="interpreter of the environment with requirements-peers.txt; default: "
                             "$TFSPIKE_PEERS_PYTHON, else this one")
    parser.add_argument("--cap-gb", type=float, default=20.0, help="resident memory per process, GB; default: 20")
    parser.add_argument("--timeout", type=float, default=timeout, help=f"seconds per process; default: {timeout:g}")


def _watch(process: subprocess.Popen, cap_mb: float, timeout: float) -> tuple[str, float]:
    """Waits for the end; returns "ended", "out of memory" or "timeout", and the largest resident size seen, MB."""
    deadline = time.monotonic() + timeout
    peak = 0.0
    try:
        while process.poll() is None:
            peak = max(peak, _resident_mb(process.pid))
            if peak > cap_mb:
                return "out of memory", peak
            if time.monotonic() > deadline:
                return "timeout", peak
            time.sleep(POLL_SECONDS)
        return "ended", peak
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _resident_mb(pid: int) -> float:
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return 0.0
