"""The recent crashes of this host's processes, in a file that all of its processes can read.

Owns: the format of the file, writing it atomically, reading it defensively.
Leaves to others: detecting crashes (supervisord.watch), showing them (gateway's /readyz, `mesh ps`, `mesh top`).
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

import msgspec

FILE: Final = "crashes.json"
#: The watch writes at least every 5 s while there are crashes to report; an older file is from a watch that died.
FRESH_S: Final = 30.0


class Crash(msgspec.Struct, frozen=True, omit_defaults=True):
    """One process that has recently ended unexpectedly.

    Attributes:
        process: its name as supervisorctl writes it.
        crashes: the number of crashes since the watch began.
        short: the number of consecutive short runs.
        looping: it is in a crash loop: its restarts are delayed.
        since, last_at: the time of the first and of the last crash; seconds since 1970.
        next_at: when it is restarted; 0.0 when it runs.
        how: "exit status 1", "killed by a signal", …
        words: the last line of its output.
    """

    process: str
    crashes: int
    short: int = 0
    looping: bool = False
    since: float = 0.0
    last_at: float = 0.0
    next_at: float = 0.0
    how: str = ""
    words: str = ""

    def told(self, now: float | None = None) -> str:
        """A readable line."""
        return f"{self.process} {self.what(now)}"

    def what(self, now: float | None = None) -> str:
        """The same line without the name of the process."""
        now = time.time() if now is None else now
        text = f"ends again and again: {self.short} times in {max(1, round(self.last_at - self.since))} s"
        text += f", {self.how}" if self.how else ""
        if self.next_at > now:
            text += f"; next try in {max(1, round(self.next_at - now))} s"
        return text


class _File(msgspec.Struct):
    written_at: float
    crashes: list[Crash]


def write(run_dir: Path, crashes: list[Crash]) -> None:
    """Write the current crashes; an empty list is written, too."""
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = run_dir / FILE
    new = run_dir / f".{FILE}.new"
    new.touch(mode=0o600)
    new.write_bytes(msgspec.json.encode(_File(time.time(), crashes)))
    os.replace(new, path)


def read(run_dir: Path) -> list[Crash]:
    """The recent crashes; empty when there are none, or no watch runs."""
    try:
        found = msgspec.json.decode((run_dir / FILE).read_bytes(), type=_File)
    except (OSError, msgspec.MsgspecError):
        return []
    return found.crashes if time.time() - found.written_at < FRESH_S else []


def remove(run_dir: Path) -> None:
    """Remove the file, when the watch ends."""
    (run_dir / FILE).unlink(missing_ok=True)
