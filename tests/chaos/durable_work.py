"""What the workers of the durable chaos tests run; copied into each test's project."""

from __future__ import annotations

import asyncio
import os
import random

import mesh


class Ledger(mesh.Service):
    """Each entry is written once, with the acknowledgement of its task; an event tells, and is counted."""

    # Few: so that work waits in the store, too, when something dies.
    @mesh.task(slots=16, backoff="50ms..1s", keep="1d", expose=True)
    async def book(self, entry: str) -> None:
        task = mesh.current_task()
        assert task is not None
        await asyncio.sleep(random.uniform(0, 0.02))
        async with self.atomic():
            # A second effect of the same entry is refused, and its job ends in the dead letters.
            await self.state("ledger").set(entry, task.job, etag="")
            await self.state("sums").add("booked")
            await self.emit("ledger.booked", entry, key=entry[-2:], durable=True)

    @mesh.on("ledger.booked", durable=True, start="all", slots=16, backoff="50ms..1s")
    async def heard(self, event: mesh.Event) -> None:
        async with self.atomic():
            await self.state("heard").set(event.data, event.id, etag="")
            await self.state("sums").add("heard")


class Slow(mesh.Service):
    """Work that is longer than its lease, and work that kills."""

    @mesh.task
    async def last(self, name: str, seconds: float) -> None:
        await self.state("pids").set(name, os.getpid())
        await self.state("begun").add(name)
        await asyncio.sleep(seconds)
        async with self.atomic():
            await self.state("ended").add(name)

    @mesh.task(slots=20)
    async def innocent(self, name: str) -> None:
        await asyncio.sleep(0.05)
        async with self.atomic():
            await self.state("innocents").set(name, 1, etag="")

    @mesh.task
    async def poison(self) -> None:
        os._exit(9)


class Ticks(mesh.Service):
    """Writes down each due time."""

    @mesh.every("1s", once=True, missed="all")
    async def tick(self) -> None:
        task = mesh.current_task()
        assert task is not None
        async with self.atomic():
            await self.state("ticks").set(task.meta["due"], task.job, etag="")
