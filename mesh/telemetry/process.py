"""What the operating system says of this process: memory, processor time, descriptors.

Owns: reading /proc, and doing without it.
Leaves to others: when to look (metrics), what to call it (exposition).
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
        # No /proc (not Linux), no right to it (a hardened container), or a form that is not known: say nothing.
        return {}
    return found


def _open_fds(proc: Path) -> int | None:
    try:
        # Less the one that listing the directory opens.
        return len(os.listdir(proc / "fd")) - 1
    except OSError:
        return None


def read_process(uptime_s: float, proc: Path = PROC) -> ProcessSample:
    """Look at this process now. Takes about a millisecond, most of it the kernel's walk over the memory map.

    Args:
        uptime_s: how long it has run, which the caller knows by its own clock.
        proc: where the kernel shows this process.
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
