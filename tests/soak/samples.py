"""What each process of a set takes, read from /proc."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

_PSS: Final = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)
_THREADS: Final = re.compile(r"^Threads:\s+(\d+)", re.MULTILINE)


class Sample(msgspec.Struct, frozen=True):
    """Attributes:
    at: seconds since the beginning of the run.
    name: of the process, as supervisor knows it; pid: of this life of it.
    memory_kib: proportional set size (Pss), so that pages which processes share count once.
    files: open descriptors.
    """

    at: float
    name: str
    pid: int
    memory_kib: int
    files: int
    threads: int


class Folders(msgspec.Struct, frozen=True):
    """Attributes:
    files: folder -> files in it.
    log_bytes: size of all logs.
    requests: answered so far.
    """

    at: float
    files: dict[str, int]
    log_bytes: int
    requests: int


def sample(at: float, pids: Mapping[str, int]) -> list[Sample]:
    """One sample of each process; those that have just ended are left out."""
    found = []
    for name, pid in pids.items():
        process = Path("/proc", str(pid))
        try:
            memory = _PSS.search((process / "smaps_rollup").read_text())
            threads = _THREADS.search((process / "status").read_text())
            files = len(os.listdir(process / "fd"))
        except OSError:
            continue
        if memory and threads:
            found.append(Sample(at, name, pid, int(memory[1]), files, int(threads[1])))
    return found


def folders(at: float, root: Path, names: Iterable[str], requests: int) -> Folders:
    """The files below these folders of a project, of which "logs" is one."""
    files = {name: [path for path in (root / name).rglob("*") if not path.is_dir()] for name in names}
    log_bytes = 0
    for path in files["logs"]:
        try:
            log_bytes += path.stat().st_size
        except OSError:
            continue  # rotated away meanwhile
    return Folders(at, {name: len(found) for name, found in files.items()}, log_bytes, requests)
