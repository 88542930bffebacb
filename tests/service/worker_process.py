"""A worker as a process of its own: `worker_process.py RUN_DIR TMP [needs|broken|KEY=VALUE]`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import mesh
from mesh import config
from mesh.worker import worker

TMP = Path(sys.argv[2])


class Worked(mesh.Service):
    """Stays until a file is there."""

    @mesh.rpc
    async def stay(self) -> str:
        (TMP / "staying").touch()
        while not (TMP / "go").exists():  # noqa: ASYNC110  # another process makes it
            await asyncio.sleep(0.002)
        return "stayed"

    async def stopped(self) -> None:
        (TMP / "stopped").touch()


class Needing(mesh.Service):
    """Never ready."""

    needs = ["nowhere"]

    def __init__(self) -> None:
        (TMP / "made").touch()


class Broken(mesh.Service):
    """Cannot start."""

    async def started(self) -> None:
        raise RuntimeError("no database")


CLASSES: dict[str, type[mesh.Service]] = {"needs": Needing, "broken": Broken}

if __name__ == "__main__":
    word = sys.argv[3] if len(sys.argv) > 3 else ""
    flags: dict[str, object] = {"mesh.run_dir": Path(sys.argv[1])}
    if "=" in word:
        key, _, value = word.partition("=")
        flags[key] = value
    settings = config.load(flags=flags)
    sys.exit(asyncio.run(worker.run([CLASSES.get(word, Worked)], settings)))
