"""Locks as services have them: between processes, on each engine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import mesh
from mesh.engines.capabilities import KEYS
from mesh.store.service import Store
from mesh.testing import ManualClock, Mesh


class Keeper(mesh.Service):
    """Works under a lock, for as long as it is told."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    @mesh.rpc
    async def work(self, seconds: float, wait: float | None = None) -> int:
        try:
            async with self.lock("books", ttl="6s", wait=wait) as held:
                await self.node.clock.sleep(seconds)  # type: ignore[attr-defined]
                return held.token
        except mesh.LockLost:
            self.ended.append("lost")
            raise


def on(engine: str, tmp_path: Path) -> tuple[list[Any], dict[str, Any]]:
    """The services and settings of a mesh on this engine."""
    settings: dict[str, Any] = {f"engines.{key}": engine for key in KEYS}
    return ([Store] if engine == "sqlite" else []), settings | {"store.dir": tmp_path / "data"}


@pytest.mark.parametrize("engine", ["memory", "sqlite"])
async def test_a_call_whose_time_is_over_gives_its_lock_back(engine: str, tmp_path: Path) -> None:
    """Although nothing may be asked in its name any more; the next one need not wait for the lock's own time."""
    own, settings = on(engine, tmp_path)
    async with Mesh(*own, Keeper, settings=settings) as m:
        with pytest.raises(mesh.DeadlineExceeded):
            await m.call("keeper.work", 60.0, timeout=0.3)
        token = await asyncio.wait_for(m.call("keeper.work", 0.0, timeout=5.0), 3)
        assert token == 2


async def test_a_lock_that_is_released_in_the_transaction_of_a_refusal_is_granted(tmp_path: Path) -> None:
    """The request joins the queue after that transaction, and need not wait for the end of the released lock."""
    own, settings = on("sqlite", tmp_path)
    async with Mesh(*own, settings=settings) as m:
        await m.call("mesh-store.acquire", "books", "one", 60.0, 0.0)
        waiting = m.call("mesh-store.acquire", "books", "two", 60.0, 30.0)
        assert await m.call("mesh-store.release", "books", "one")
        async with asyncio.timeout(10):
            assert (await waiting)[:3] == ["books", "two", 2]


async def test_of_two_processes_one_works() -> None:
    """The other waits, or is told who does."""
    async with Mesh(Keeper, replicas={Keeper: 2}, clock=ManualClock(1000.0)) as m:
        one, two = (instance.id for instance in m.node.instances("keeper"))
        first = m.call("keeper.work", 30.0, instance=one, timeout=100)
        await m.advance(1)
        with pytest.raises(mesh.LockTaken, match=one):
            await m.call("keeper.work", 1.0, 0.0, instance=two, timeout=100)
        second = m.call("keeper.work", 1.0, instance=two, timeout=100)
        await m.advance(28)
        assert not first.done()
        await m.advance(3)
        assert (await first, await second) == (1, 2)


async def test_a_killed_holder_is_followed_when_its_lock_ends(tmp_path: Path) -> None:
    """Not before, and not much later."""
    own, settings = on("sqlite", tmp_path)
    async with Mesh(*own, Keeper, replicas={Keeper: 2}, settings=settings, clock=ManualClock(1000.0)) as m:
        one, two = (instance.id for instance in m.node.instances("keeper"))
        first = m.call("keeper.work", 1000.0, instance=one, timeout=2000)
        await m.advance(20)
        second = m.call("keeper.work", 0.0, instance=two, timeout=100)
        await m.faults.kill(next(worker for worker in m.workers(Keeper) if one in worker.instance_ids))
        await m.advance(3)
        assert not second.done()
        await m.advance(4)
        assert await second == 2
        with pytest.raises(mesh.MeshError):
            await first


async def test_a_store_that_is_away_for_too_long_loses_locks(tmp_path: Path) -> None:
    """The body is stopped when its lock is over by its own clock; a restart costs nothing."""
    own, settings = on("sqlite", tmp_path)
    async with Mesh(*own, Keeper, settings=settings, clock=ManualClock(1000.0)) as m:
        (keeper,) = m.instances(Keeper)

        async def away(seconds: float) -> None:
            (store,) = m.workers("mesh-store")
            await m.drain(store)
            await m.advance(seconds)
            await m.start_another(Store)
            await m.advance(3)

        working = m.call("keeper.work", 30.0, timeout=100)
        await m.advance(5)
        await away(2)
        assert not working.done()
        await m.advance(30)
        assert await working == 1
        working = m.call("keeper.work", 30.0, timeout=100)
        await m.advance(5)
        await away(7)
        with pytest.raises(mesh.LockLost):
            await working
        assert keeper.ended == ["lost"]
