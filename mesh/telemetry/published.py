"""Metrics of processes that answer no calls (the hub, supervisor's watch), as files for the gateway's page.

A process writes its snapshot atomically every few seconds into the run directory; the gateway reads all snapshots for
each page.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from mesh.telemetry.identity import this_process

DIRECTORY: Final = "metrics"
#: How often a process writes.
EVERY_S: Final = 5.0
#: An older file is from a process that has ended, or hangs.
FRESH_S: Final = 20.0
#: A file older than this is not shown at all: the process was ended on purpose.
FORGOTTEN_S: Final = 300.0

_NAME: Final = re.compile(r"[^a-zA-Z0-9_.-]")


class Published(NamedTuple):
    """The published metrics of one process.

    Attributes:
        role: "hub", "watch".
        identity: unique among the running processes: "hub-0647b7ac".
        snapshot: from `Recorder.snapshot`; None when it is too old to be shown.
    """

    role: str
    identity: str
    snapshot: dict[str, Any] | None


class _File(msgspec.Struct):
    written_at: float
    role: str
    identity: str
    snapshot: dict[str, Any]


def publish(run_dir: Path, role: str, identity: str, snapshot: dict[str, Any]) -> None:
    """Write the metrics of this process.

    Raises:
        OSError: the run directory cannot be written.
    """
    path = _path(run_dir, identity)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.touch(mode=0o600)
    new.write_bytes(msgspec.json.encode(_File(time.time(), role, identity, snapshot)))
    os.replace(new, path)


def withdraw(run_dir: Path, identity: str) -> None:
    """Remove the metrics of this process, when it ends normally."""
    _path(run_dir, identity).unlink(missing_ok=True)


def published(run_dir: Path) -> list[Published]:
    """The recently published metrics of the processes of this host."""
    found = []
    now = time.time()
    for path in sorted((run_dir / DIRECTORY).glob("*.json")):
        try:
            file = msgspec.json.decode(path.read_bytes(), type=_File)
        except (OSError, msgspec.MsgspecError):
            continue
        age_s = now - file.written_at
        if age_s < FORGOTTEN_S:
            found.append(Published(file.role, file.identity, file.snapshot if age_s < FRESH_S else None))
    return found


def _path(run_dir: Path, identity: str) -> Path:
    # The name is the same after a restart, so that the file of a killed process is overwritten.
    name = this_process().name or identity
    return run_dir / DIRECTORY / f"{_NAME.sub('_', name)}.json"
