"""Heartbeat files: each supervised worker writes its health once a second, for other processes to read.

Owns: the format of a file, writing it in place, reading all of them.
Leaves to others: measuring (worker.watchdog), judging (policy.liveness), acting (supervisord.watch).

Times are those of the monotonic clock, which all processes of a host share.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

import msgspec

DIRECTORY: Final = "heartbeats"
#: Every write has this length, so that a reader sees either the old or the new contents.
_LENGTH: Final = 1024
_encode: Final = msgspec.json.Encoder().encode


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True):
    """The health of one worker.

    Attributes:
        process: its name as supervisorctl writes it.
        started: when it started, in the kernel's ticks since boot: together with the pid, it identifies a process.
        at: when this was written.
        liveness_s: how old it may become.
        blocked_s: how long its loop has been blocked.
        where: the line at which its loop is blocked.
        memory_bytes, soft_bytes, hard_bytes: its memory and the limits; 0: no limit.
        leaves: why it drains to be replaced; "" when it does not.
    """

    process: str
    pid: int
    started: int
    at: float
    stage: str
    liveness_s: float
    blocked_s: float = 0.0
    where: str = ""
    memory_bytes: int = 0
    soft_bytes: int = 0
    hard_bytes: int = 0
    leaves: str = ""

    def trouble(self, now: float | None = None) -> str:
        """A readable description of its current problem; "" when there is none."""
        silent_s = (time.monotonic() if now is None else now) - self.at
        if silent_s > 5.0:
            return f"stopped or blocked in C code: no heartbeat for {silent_s:.0f} s"
        if self.blocked_s >= 1.0:
            return f"its event loop is blocked for {self.blocked_s:.0f} s" + (f" at {self.where}" if self.where else "")
        if self.leaves:
            return f"drains to be replaced: {self.leaves}"
        return ""


class Writer:
    """The file of this process.

    Raises:
        OSError: it cannot be written there.
    """

    def __init__(self, run_dir: Path) -> None:
        directory = run_dir / DIRECTORY
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = directory / f"{os.getpid()}.json"
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def write(self, heartbeat: Heartbeat) -> None:
        """Write this heartbeat."""
        os.pwrite(self._file, _encode(heartbeat)[:_LENGTH].ljust(_LENGTH), 0)

    def close(self) -> None:
        """Remove the file, when the process ends normally."""
        self._path.unlink(missing_ok=True)
        os.close(self._file)


def read(run_dir: Path) -> list[Heartbeat]:
    """The last heartbeat of each worker, sorted by process; files of ended workers are removed."""
    found = []
    try:
        paths = sorted((run_dir / DIRECTORY).iterdir())
    except OSError:
        return []
    for path in paths:
        try:
            heartbeat = msgspec.json.decode(path.read_bytes(), type=Heartbeat)
        except (OSError, msgspec.MsgspecError):
            continue
        if started(heartbeat.pid) in (heartbeat.started, None):
            found.append(heartbeat)
        else:
            try:
                path.unlink(missing_ok=True)
            except OSError:
                pass  # it belongs to another user
    return sorted(found, key=lambda each: each.process)


def started(pid: int) -> int | None:
    """When a process started, in ticks since boot; -1 when there is no such process, None when unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[19])
    except (OSError, IndexError, ValueError):
        return -1 if Path("/proc/self/stat").exists() else None
