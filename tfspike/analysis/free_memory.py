"""How much memory a process may still take: of its machine, and of the container or service that it runs in."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

PROC, GROUPS = "/proc", "/sys/fs/cgroup"
# By version of Linux' control groups: files of the limit and of what is used, both in bytes, and the line of
# memory.stat that says how much of the latter is files kept in memory, which make room when they must.
_V1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
_V2 = "memory.max", "memory.current", "inactive_file"


def free_memory() -> int | None:
    """Bytes, the least of what the machine and all groups around this process have left; None where nothing says so."""
    return min((*_of_machine(), *_of_groups()), default=None)


def _of_machine() -> Iterator[int]:
    for line in _lines(os.path.join(PROC, "meminfo")):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _of_groups() -> Iterator[int]:
    """Of every group that limits this process. A container may see its own as the root, whatever path it is told."""
    for line in _lines(os.path.join(PROC, "self", "cgroup")):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, names = (os.path.join(GROUPS, "memory"), _V1) if controllers else (GROUPS, _V2)
        parts = path.strip("/").split("/")
        for depth in range(len(parts) + 1):
            # a limit that is no number is none: "max"
            with contextlib.suppress(ValueError, IndexError):
                yield _left(os.path.join(root, *parts[:depth]), *names)


def _left(folder: str, limit: str, used: str, reclaimable: str) -> int:
    allowed, taken = (int(_lines(os.path.join(folder, name))[0]) for name in (limit, used))
    kept = sum(int(line.split()[1]) for line in _lines(os.path.join(folder, "memory.stat"))
               if line.startswith(f"{reclaimable} "))
    return max(allowed - taken + kept, 0)


def _lines(path: str) -> list[str]:
    """Of a file; none where it cannot be read."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
