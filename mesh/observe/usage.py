"""Resource usage of processes: processor time and memory, each with all its descendants.

Owns: reading the usage of other processes from /proc. (telemetry.process reads that of its own process.)
Leaves to others: evaluating it (sampling).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Usage(NamedTuple):
    """One process and its descendants.

    Attributes:
        cpu_s: processor time since their start; that of ended processes is included in the parent that reaped them.
        queued_s: how long their threads were ready to run without a processor; 0.0 when unknown.
        memory_bytes: proportional set size (shared pages divided among their users) if available; else resident.
        processes: the number of processes.
    """

    cpu_s: float
    queued_s: float
    memory_bytes: int
    processes: int


class _Stat(NamedTuple):
    parent: int
    cpu_s: float
    resident: int


def usage(pids: Iterable[int]) -> dict[int, Usage]:
    """The current usage of each of these processes. Ended processes are left out; {} without /proc."""
    stats = _stats()
    children: dict[int, list[int]] = {}
    for pid, stat in stats.items():
        children.setdefault(stat.parent, []).append(pid)
    found = {}
    for root in pids:
        if root not in stats:
            continue
        tree, at = [root], 0
        while at < len(tree):
            tree += children.get(tree[at], ())
            at += 1
        found[root] = Usage(
            cpu_s=sum(stats[pid].cpu_s for pid in tree),
            queued_s=sum(_queued_s(pid) for pid in tree),
            memory_bytes=sum(_pss(pid) or stats[pid].resident for pid in tree),
            processes=len(tree),
        )
    return found


def host_cpu_s() -> tuple[float, float]:
    """(busy, all) processor seconds of this machine since its start, over all cores; (0.0, 0.0) when unknown."""
    try:
        words = Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]
    except OSError:
        return 0.0, 0.0
    ticks = [int(word) for word in words]
    return (sum(ticks) - ticks[3] - ticks[4]) / _TICKS, sum(ticks) / _TICKS


def _stats() -> dict[int, _Stat]:
    found = {}
    try:
        names = os.listdir("/proc")
    except OSError:
        return {}
    for name in names:
        if not name.isdigit():
            continue
        try:
            # "pid (name) state ppid …"; the name may hold spaces and brackets. Source: proc(5).
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        ticks = sum(int(field) for field in fields[11:15])
        found[int(name)] = _Stat(int(fields[1]), ticks / _TICKS, int(fields[21]) * _PAGE)
    return found


def _pss(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as lines:
            return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
    except (OSError, ValueError, IndexError):
        return 0


def _queued_s(pid: int) -> float:
    """How long its threads waited on a run queue, added up. Source: the kernel's scheduler/sched-stats."""
    total = 0
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as line:
                total += int(line.read().split()[1])
    except (OSError, ValueError, IndexError):
        return 0.0
    return total / 1e9
