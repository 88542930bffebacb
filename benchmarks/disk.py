"""The disk under the durable half: where its data lies, and what waiting for it costs.

Owns: refusing a file system in memory, on which every sync is free; the figure that a reader needs to compare disks.
Leaves to others: everything that is measured on it (publish, tasks).
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.children import ChildFailed

#: Not /tmp, which is memory on many systems.
DIRECTORY = "/var/tmp"
IN_MEMORY = ("tmpfs", "ramfs")
#: Enough for a median that a few disturbed ones do not move.
SYNCS = 200


def kind(directory: Path, mounts: str) -> str:
    """The type of the file system that holds `directory`; "" where `mounts` does not tell.

    Args:
        mounts: the text of /proc/self/mounts.
    """
    found, depth = "", -1
    for line in mounts.splitlines():
        _, where, what, *_ = line.split()
        point = Path(where)
        # The last one mounted at a point hides the others.
        if directory.is_relative_to(point) and len(point.parts) >= depth:
            found, depth = what, len(point.parts)
    return found


def sync_us(directory: Path) -> float:
    """The median time of a write of 4 KiB and its fdatasync, in microseconds."""
    took = []
    with tempfile.NamedTemporaryFile(dir=directory) as file:
        page = bytes(4096)
        for _ in range(SYNCS):
            begin = time.perf_counter()
            os.write(file.fileno(), page)
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - begin)
    return statistics.median(took) * 1e6


def disk() -> dict[str, str | float]:
    """{"file_system", "sync_us"} of `DIRECTORY`.

    Raises:
        ChildFailed: it lies in memory.
    """
    directory = Path(DIRECTORY).resolve()
    found = kind(directory, Path("/proc/self/mounts").read_text())
    if found in IN_MEMORY:
        raise ChildFailed(f"{DIRECTORY} is memory ({found}): nothing is durable there; mount a disk at it")
    return {"file_system": found, "sync_us": sync_us(directory)}
