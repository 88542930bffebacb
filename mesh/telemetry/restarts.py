"""How often the workers of each service were restarted, and why, in a file that outlives all of them.

Owns: the format of the file, adding to it, reading it.
Leaves to others: detecting that a process ended and why (supervisord.watch), showing it (/metrics, `mesh doctor`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

FILE: Final = "restarts.json"
NAME: Final = "worker_restarts"
HELP: Final = "Processes that ended unexpectedly and were restarted, by reason."

#: The reasons for which mesh itself restarts a worker.
REPLACED: Final = frozenset(("blocked", "silent", "start_timeout", "memory"))

#: service -> reason -> how often.
Counts = dict[str, dict[str, int]]


def read(run_dir: Path) -> Counts:
    """All restarts since the run directory was created."""
    try:
        return msgspec.json.decode((run_dir / FILE).read_bytes(), type=Counts)
    except (OSError, msgspec.MsgspecError):
        return {}


def add(run_dir: Path, service: str, reason: str) -> None:
    """Count one restart. There is only one writer, `mesh watch`."""
    counts = read(run_dir)
    reasons = counts.setdefault(service, {})
    reasons[reason] = reasons.get(reason, 0) + 1
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = run_dir / f".{FILE}.new"
    new.touch(mode=0o600)
    new.write_bytes(msgspec.json.encode(counts))
    os.replace(new, run_dir / FILE)


def told(reasons: dict[str, int]) -> str:
    """`blocked 2, memory 1`."""
    return ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
