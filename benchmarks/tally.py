"""How many tasks have run, and when the last one did: a few bytes that worker and publisher both map.

Owns: a file per worker process, and the sum over them.
Leaves to others: what a task is (queues), what is made of the figures (tasks_host).

Every contestant counts with this, so that seeing the end of a run costs all of them the same: a lock, a reading of the
clock and sixteen bytes of shared memory, together about a microsecond per task, and no message. The instant is
CLOCK_MONOTONIC, the same in all processes of a machine, so that nothing hangs on how often the publisher looks.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time
from pathlib import Path

#: Names the directory of the files in the environment of a worker.
VARIABLE = "BENCH_TALLY"

_ENTRY = struct.Struct("<Qd")


class Tally:
    """One process's count; a file of its own, since nothing else is atomic between processes."""

    def __init__(self, directory: Path) -> None:
        self._count = 0
        # A worker may run tasks on several threads.
        self._lock = threading.Lock()
        path = directory / f"{os.getpid()}.part"
        path.write_bytes(bytes(_ENTRY.size))
        with path.open("r+b") as file:
            self._bytes = mmap.mmap(file.fileno(), _ENTRY.size)
        path.rename(path.with_suffix(".tally"))

    def add(self) -> None:
        """One more has run, now."""
        with self._lock:
            self._count += 1
            _ENTRY.pack_into(self._bytes, 0, self._count, time.monotonic())


_mine: Tally | None = None


def add() -> None:
    """Count a task of this process; the first one makes the file, so that a worker that forks has one per child."""
    global _mine
    if _mine is None:
        _mine = Tally(Path(os.environ[VARIABLE]))
    _mine.add()


class Tallies:
    """The publisher's view of all files of a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._maps: dict[str, mmap.mmap] = {}

    def look(self) -> None:
        """Find the files of processes that have begun since."""
        for path in self._directory.glob("*.tally"):
            if path.name not in self._maps:
                with path.open("rb") as file:
                    self._maps[path.name] = mmap.mmap(file.fileno(), _ENTRY.size, access=mmap.ACCESS_READ)

    def read(self) -> tuple[int, float]:
        """How many tasks have run, and the instant of the last one; 0.0 where none has."""
        # A directory is seldom changed and often asked.
        self.look()
        entries = [_ENTRY.unpack_from(one) for one in self._maps.values()]
        return sum(count for count, _ in entries), max((at for _, at in entries), default=0.0)
