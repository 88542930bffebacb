"""Schedules as services have them: in whole meshes, through the deaths of workers and a restart of the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import mesh
from mesh.engines.capabilities import KEYS
from mesh.store.service import Store
from mesh.testing import ManualClock, Mesh


class Ticks(mesh.Service):
    """Notes each due time, exactly as often as it was run."""

    @mesh.every("10s", once=True, missed="all")
    async def tick(self) -> None:
        task = mesh.current_task()
        assert task is not None
        async with self.atomic():
            await self.state("ticks").add(task.meta["due"])


async def counted(m: Mesh) -> list[int]:
    """How often each due time was run, in order."""
    await m.idle()
    return [count async for _, count in m.state("ticks").items()]


async def test_three_workers_run_each_due_time_once() -> None:
    """And go on when one is killed, and another one comes."""
    async with Mesh(Ticks, replicas={Ticks: 3}, clock=ManualClock(1000.0)) as m:
        await m.advance(35)
        assert await counted(m) == [1] * 3
        await m.faults.kill(Ticks)
        await m.advance(30)
        await m.start_another(Ticks)
        await m.faults.kill(Ticks)
        await m.advance(30)
        # What a killed worker was given is run by another when its lease is over.
        await m.advance(15)
        assert (await counted(m))[:9] == [1] * 9


@pytest.mark.parametrize("away_s", [1, 45])
async def test_each_due_time_is_run_once_although_the_store_restarts(away_s: int, tmp_path: Path) -> None:
    """On the embedded engine: what was dealt with is known to the next store, what was missed meanwhile is run."""
    settings: dict[str, Any] = {f"engines.{key}": "sqlite" for key in KEYS}
    settings["store.dir"] = tmp_path / "data"
    async with Mesh(Store, Ticks, replicas={Ticks: 3}, clock=ManualClock(1000.0), settings=settings) as m:
        await m.advance(35)
        assert await counted(m) == [1] * 3
        (store,) = m.workers("mesh-store")
        await m.drain(store)
        await m.advance(away_s)
        await m.start_another(Store)
        await m.advance(60 - away_s)
        await m.faults.kill(Ticks)
        await m.advance(30)
        runs = await counted(m)
        assert runs == [1] * len(runs)
        assert len(runs) == 12
