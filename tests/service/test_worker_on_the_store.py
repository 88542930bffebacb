"""The same on the embedded engine: a worker and a store, each a process of its own as far as they can tell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import mesh
from mesh import prior, step
from mesh.engines.capabilities import KEYS
from mesh.store.service import Store
from mesh.testing import Mesh, no_leaks

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    async with no_leaks():
        yield


class Bank(mesh.Service):
    """Tasks with effects."""

    runs = 0
    begun: asyncio.Event
    hold: asyncio.Event
    slow = False

    @mesh.task(retries=5, backoff="10ms..50ms")
    async def pay(self, amount: int) -> int:
        Bank.runs += 1
        async with self.atomic():
            await self.state("ledger").add("sum", amount)
            await self.emit("bank.paid", amount, key=str(amount), durable=True)
        if Bank.slow:
            Bank.begun.set()
            await Bank.hold.wait()
        return amount

    @mesh.on("bank.paid", durable=True)
    async def paid(self, event: mesh.Event) -> None:
        async with self.atomic():
            await self.state("ledger").add("heard", event.data)

    @mesh.task
    async def total(self, amounts: list[int]) -> int:
        return sum(amounts)

    @mesh.every("1s", once=True)
    async def tick(self) -> None:
        await self.state("ledger").add("ticks", 1)


@pytest.fixture(autouse=True)
async def fresh() -> None:
    Bank.runs, Bank.slow, Bank.begun, Bank.hold = 0, False, asyncio.Event(), asyncio.Event()


def on_the_store(directory: Path, **more: Any) -> dict[str, Any]:
    settings = {f"engines.{key}": "sqlite" for key in KEYS}
    return {**settings, "store.dir": str(directory / "data"), "store.lease": 1.0, **more}


async def value(m: Mesh, key: str) -> Any:
    return (await m.state("ledger").get(key)).value


async def test_tasks_events_state_and_schedules_meet_in_one_commit(tmp_path):
    """Many at once, each effect once."""
    async with Mesh(Store, Bank, replicas={Bank: 2}, settings=on_the_store(tmp_path)) as m:
        jobs = await asyncio.gather(*(m.defer(Bank.pay, n) for n in range(100)))
        assert await asyncio.gather(*(job.result(timeout=20) for job in jobs)) == list(range(100))
        await m.idle()
        assert (await value(m, "sum"), await value(m, "heard")) == (4950, 4950)
        group = await m.group(step(Bank.pay, 1), step(Bank.pay, 2), then=step(Bank.total, prior))
        assert group.then is not None
        assert await group.then.result(timeout=20) == 3
        async with m.lock("books", ttl="5s") as held:
            assert held.token == 1
        while not await value(m, "ticks"):  # noqa: ASYNC110  # nothing announces it
            await asyncio.sleep(0.05)


async def test_a_worker_is_killed_in_the_middle(tmp_path):
    """Its task runs elsewhere when the lease is over, and has its effects once."""
    async with Mesh(Store, Bank, settings=on_the_store(tmp_path)) as m:
        Bank.slow = True
        job = await m.defer(Bank.pay, 7)
        await Bank.begun.wait()
        await m.faults.kill(Bank)
        Bank.slow = False
        await m.start_another(Bank)
        assert await job.result(timeout=20) == 7
        await m.idle()
        assert (Bank.runs, await value(m, "sum"), await value(m, "heard")) == (2, 7, 7)


async def test_a_worker_starts_before_its_store(tmp_path):
    """It answers calls meanwhile, and runs what was deferred when the store is there."""
    async with Mesh(Store, Bank, replicas={Store: 0}, settings=on_the_store(tmp_path)) as m:
        deferring = asyncio.ensure_future(m.defer(Bank.pay, 7))
        await asyncio.sleep(0.1)
        assert not deferring.done()
        await m.start_another(Store)
        assert await (await deferring).result(timeout=20) == 7
        worker = m.workers(Bank)[0]
        assert await m.drain(worker) is True
