"""Mutual exclusion between deployments and commands that are called by hand.

A host that the playbooks deploy to has two lock files beside its releases (playbooks/module_utils/mesh_alone.py):
`.deployment` is locked for as long as a deployment lasts, and `.deployment.work`, shared, while a command changes
processes. Commands of the deployment itself have its token in the environment. Other hosts have no such files.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import time
from pathlib import Path
from typing import BinaryIO, Final

from mesh.clock import LoopClock
from mesh.errors import LockTaken
from mesh.supervisord.layout import Layout

now = LoopClock.now

LOCK: Final = ".deployment"
WORK: Final = ".deployment.work"
VARIABLE: Final = "MESH_DEPLOYMENT"
#: A deployment that has just ended releases its lock within a second or two.
PATIENCE_S: Final = 10.0
LOOK_EVERY_S: Final = 0.1


def directory(layout: Layout) -> Path | None:
    """The directory of a deployed project's lock files; None when the project is not in a directory of releases."""
    releases = layout.root.resolve().parent
    return releases.parent if releases.name == "releases" and (releases.parent / LOCK).exists() else None


class Working:
    """The shared lock of a command that changes processes; a context manager, held from its creation."""

    def __init__(self, file: BinaryIO | None = None) -> None:
        self._file = file

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exc: object) -> None:
        if self._file is not None:
            self._file.close()


def enter(layout: Layout) -> Working:
    """Take the lock of a command that changes processes, without waiting.

    Raises:
        LockTaken: a deployment is running, and this command is not part of it.
    """
    where = directory(layout)
    if where is None:
        return Working()
    try:
        work = (where / WORK).open("rb")
    except OSError:
        # Another user deployed this mesh. Only that user can change anything there.
        return Working()
    try:
        # The keeper holds an exclusive lock only for the moment of its check.
        fcntl.flock(work, fcntl.LOCK_SH)
        _check(where / LOCK)
    except PermissionError:
        work.close()
        return Working()
    except BaseException:
        work.close()
        raise
    return Working(work)


async def entered(layout: Layout) -> Working:
    """As `enter`, but wait for up to PATIENCE_S."""
    until = now() + PATIENCE_S
    while True:
        try:
            return enter(layout)
        except LockTaken:
            if now() >= until:
                raise
        await asyncio.sleep(LOOK_EVERY_S)


def enter_patiently(layout: Layout) -> Working:
    """As `entered`, for code without an event loop."""
    until = now() + PATIENCE_S
    while True:
        try:
            return enter(layout)
        except LockTaken:
            if now() >= until:
                raise
        time.sleep(LOOK_EVERY_S)


def _check(path: Path) -> None:
    with path.open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            return
        holder = _read(lock.read())
    if holder.get("token") and holder["token"] == os.environ.get(VARIABLE):
        return
    words = [holder.get("what") or "a deployment", *([f"of {holder['who']}"] if holder.get("who") else [])]
    since = f", since {holder['since']}" if holder.get("since") else ""
    raise LockTaken(f"{' '.join(words)} is in progress{since}; wait until it is done", details=holder_details(holder))


def holder_details(holder: dict[str, str]) -> dict[str, str]:
    """The public part of a lock's text: everything but the token."""
    return {name: holder[name] for name in ("what", "who", "since") if holder.get(name)}


def _read(text: bytes) -> dict[str, str]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}
