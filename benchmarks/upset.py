"""The whole set of this checkout under supervisor, as `mesh up` starts it, in a directory and on a port of its own.

Owns: a copy of supervisord.conf and mesh.toml, `mesh up`, and `mesh down` whatever happens.
Leaves to others: what is made of it (startup, memory).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.children import ROOT, ChildFailed, Children, free_ports, python

CONF = ROOT / "supervisord.conf"
MESH = "mesh.cli.main"


@dataclass(frozen=True)
class Up:
    """What `mesh up` did: in how many seconds from exec to exit, and the pids by program's name."""

    seconds: float
    pids: dict[str, list[int]]


def _copied(directory: Path) -> None:
    (port,) = free_ports(1)
    settings = ROOT / "mesh.toml"
    text, changed = re.subn(r"^port = \d+$", f"port = {port}", settings.read_text(), flags=re.MULTILINE)
    if changed != 1:
        raise ChildFailed(f"{settings.name} has {changed} ports for HTTP, one was expected")
    (directory / settings.name).write_text(text)
    shutil.copy(CONF, directory)
    (directory / "services").symlink_to(ROOT / "services")


async def _said(children: Children) -> str:
    try:
        return await children.run("up", python(MESH, "up", "--json"), timeout=40)
    except ChildFailed as exc:
        # The command tells its errors as JSON, in which the message is what a reader wants.
        told = re.search(r'"message": ("(?:[^"\\]|\\.)*")', str(exc))
        if told is None:
            raise
        raise ChildFailed(f"`mesh up`: {json.loads(told[1])}") from exc


def _kill(directory: Path) -> None:
    """The last resort, when `mesh down` failed: supervisord leads a session of its own, beyond our reach otherwise."""
    with contextlib.suppress(OSError, ValueError):
        os.kill(int((directory / "run" / "supervisord.pid").read_text()), signal.SIGTERM)


@asynccontextmanager
async def up() -> AsyncIterator[Up]:
    """Everything runs inside; nothing of it afterwards.

    Raises:
        ChildFailed: this checkout has no set, or it does not come up.
    """
    if not CONF.exists():
        raise ChildFailed(f"there is no {CONF.name}")
    # /tmp, not TMPDIR: a socket's path may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="mb-", dir="/tmp") as name:
        directory = Path(name)
        _copied(directory)
        async with Children(directory) as children:
            try:
                began = time.monotonic()
                said = await _said(children)
                seconds = time.monotonic() - began
                pids: dict[str, list[int]] = {}
                for process in json.loads(said)["processes"]:
                    pids.setdefault(process["program"], []).append(process["pid"])
                yield Up(seconds, pids)
            finally:
                try:
                    await children.run("down", python(MESH, "down"), timeout=60)
                except ChildFailed:
                    _kill(directory)
                    raise
