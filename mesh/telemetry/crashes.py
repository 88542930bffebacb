"""Which processes of this host end again and again, as a file that all of its processes can read.

Owns: the shape of the file, writing it whole, reading it with a grain of salt.
Leaves to others: seeing it (supervision.watch), showing it (gateway's /readyz, `mesh ps`, `mesh top`).
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

import msgspec

FILE: Final = "crashes.json"
#: The watch writes at least each 5 s while there is something to tell; what is older comes from one that died.
FRESH_S: Final = 30.0


class Crash(msgspec.Struct, frozen=True, omit_defaults=True):
    """One process that ended lately without having been asked to.

    Attributes:
        process: as supervisorctl writes it.
        crashes: how often it has, since the watch began.
        short: how many short lives in a row.
        looping: that is a crash loop: it waits before each further try.
        since, last_at: of the first of them, and of the last; seconds since 1970.
        next_at: when it is tried again; 0.0 when it runs.
        how: "exit status 1", "killed by a signal", …
        words: the last line that it wrote.
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
        """A line for people."""
        return f"{self.process} {self.what(now)}"

    def what(self, now: float | None = None) -> str:
        """The same, where its name has been said."""
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
    """Say what there is to say now; an empty list is news, too."""
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = run_dir / FILE
    new = run_dir / f".{FILE}.new"
    new.touch(mode=0o600)
    new.write_bytes(msgspec.json.encode(_File(time.time(), crashes)))
    os.replace(new, path)


def read(run_dir: Path) -> list[Crash]:
    """What was said lately; empty when nothing was, or nobody watches."""
    try:
        found = msgspec.json.decode((run_dir / FILE).read_bytes(), type=_File)
    except (OSError, msgspec.MsgspecError):
        return []
    return found.crashes if time.time() - found.written_at < FRESH_S else []


def remove(run_dir: Path) -> None:
    """Nobody watches any more."""
    (run_dir / FILE).unlink(missing_ok=True)
