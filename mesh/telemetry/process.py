"""Data of the operating system about this process: memory, processor time, descriptors.

Owns: reading /proc, and working without it.
Leaves to others: when to read it (metrics), the names of the metrics (exposition).
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from mesh.telemetry.snapshot import ProcessSample

PROC = Path("/proc/self")


def _kilobytes(path: Path, wanted: tuple[str, ...]) -> dict[str, int]:
    """The lines `Name:   123 kB` of a file in /proc, in bytes; {} when it cannot be read."""
    found: dict[str, int] = {}
    try:
        with path.open(encoding="ascii", errors="replace") as lines:
            for line in lines:
                name, colon, rest = line.partition(":")
                if colon and name in wanted:
                    found[name] = int(rest.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        # No /proc (not Linux), no permission (a hardened container), or an unknown format.
        return {}
    return found


def _open_fds(proc: Path) -> int | None:
    try:
        # Subtract the descriptor that listing the directory opens.
        return len(os.listdir(proc / "fd")) - 1
    except OSError:
        return None


def read_process(uptime_s: float, proc: Path = PROC) -> ProcessSample:
    """Sample this process. Takes about a millisecond, mostly for the kernel's walk over the memory map.

    Args:
        uptime_s: how long it has run, by the caller's clock.
        proc: the directory of this process in /proc.
    """
    memory = _kilobytes(proc / "smaps_rollup", ("Rss", "Pss"))
    resident = memory.get("Rss")
    if resident is None:
        resident = _kilobytes(proc / "status", ("VmRSS",)).get("VmRSS")
    cpu = os.times()
    return ProcessSample(
        pid=os.getpid(),
        uptime_s=uptime_s,
        cpu_s=cpu.user + cpu.system,
        threads=threading.active_count(),
        resident_bytes=resident,
        pss_bytes=memory.get("Pss"),
        open_fds=_open_fds(proc),
    )
