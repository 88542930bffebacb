"""Services that block their loop, hang at their start, or take memory."""

from __future__ import annotations

import asyncio
import os
import time

import mesh

if os.environ.get("HANGS") == "import":
    time.sleep(60.0)


class Hangs(mesh.Service):
    """Blocks on request."""

    kept: list[bytearray] = []

    async def started(self) -> None:
        if os.environ.get("HANGS") == "started":
            await asyncio.Event().wait()
        if os.environ.get("HANGS") == "blocked":
            time.sleep(60.0)  # noqa: ASYNC251  # what is tested
        if os.environ.get("HANGS") == "slow":
            time.sleep(0.6)  # noqa: ASYNC251  # what is tested

    @mesh.rpc
    async def block(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251  # what is tested

    @mesh.rpc(idempotent=True)
    async def pid(self) -> int:
        return os.getpid()

    @mesh.rpc
    async def keep(self, mib: int) -> int:
        """Take memory and keep it, a MiB at a time."""
        for _ in range(mib):
            self.kept.append(bytearray(2**20))
        return len(self.kept)

    @mesh.rpc
    async def take(self, mib: int) -> int:
        """Take memory at once."""
        return len(bytearray(mib * 2**20))
