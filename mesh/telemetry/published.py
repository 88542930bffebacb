"""Metrics of processes that answer no calls (the hub, supervisor's watch), as files that the gateway's page takes in.

A process writes its snapshot every few seconds into the run directory, whole; the gateway reads all of them for each
page.
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
#: What is older was written by a process that has ended, or hangs.
FRESH_S: Final = 20.0
#: What is older than this is not shown at all: the process is gone on purpose.
FORGOTTEN_S: Final = 300.0

_NAME: Final = re.compile(r"[^a-zA-Z0-9_.-]")


class Published(NamedTuple):
    """What one process wrote.

    Attributes:
        role: what it is: "hub", "watch".
        identity: unique among the living: "hub-0647b7ac".
        snapshot: as `Recorder.snapshot` made it; None when it is too old to be shown.
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
    """Remove what this process wrote, when it ends in order."""
    _path(run_dir, identity).unlink(missing_ok=True)


def published(run_dir: Path) -> list[Published]:
    """What the processes of this host wrote lately."""
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
    # Its name is the same after a restart, so that a killed process leaves no file behind that is never written again.
    name = this_process().name or identity
    return run_dir / DIRECTORY / f"{_NAME.sub('_', name)}.json"
