"""A store whose wall clock is set while it runs (libfaketime): locks and delays last as long as they say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import store_process
from store_process import PATIENCE_S, Project, new_task

from mesh.engines.sqlite.client import StoreEngine
from mesh.engines.sqlite.core import Core, Turn
from mesh.errors import LockTaken, Unwritable
from mesh.store.service import Store
from mesh.testing import Mesh

pytestmark = pytest.mark.asyncio(loop_scope="function")

#: Debian's package `faketime`; `make hosts` installs it.
LIBRARY = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)


async def test_locks_of_an_earlier_boot_last_also_when_the_disk_was_full_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How much time passed between two boots is not known: each holder has all of its time again, from the first
    transaction on that the disk takes."""
    core = Core(tmp_path / "data")
    core.open()
    with core.turn(time.time() - 3600.0) as turn:
        turn.keep_time("another-boot 0.0", goes_on=True)
        turn.acquire("nightly", "a", 60.0)
    core.close()
    begin = Core.turn
    full = [True]

    def turn_on(self: Core, wall: float, ahead: float = 0.0) -> Turn:
        if full:
            full.clear()
            raise Unwritable("the disk is full")
        return begin(self, wall, ahead)

    monkeypatch.setattr(Core, "turn", turn_on)
    settings = {"store.dir": str(tmp_path / "data"), "engines.locks": "sqlite"}
    async with Mesh(Store, transport="ipc", settings=settings) as m:
        engine = StoreEngine(m.node.client, m.node.clock)
        assert not full
        with pytest.raises(LockTaken):
            await engine.locks.acquire("nightly", "b", ttl_s=4.0, wait_s=0.0, timeout_s=PATIENCE_S)
        assert (await engine.locks.renew("nightly", "a", ttl_s=60.0, timeout_s=PATIENCE_S)).token == 1
        [store] = m.instances(Store)
        assert store.core.time_mark() == store.clock.mark
        await engine.close()


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    if LIBRARY is None:
        pytest.skip("libfaketime is missing: apt install faketime")
    project = Project({"log.format": '"json"'})
    offset = project.root / "offset"
    offset.write_text("+0s\n")
    before = store_process.environment
    faked = {
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    monkeypatch.setattr(store_process, "environment", lambda: {**before(), **faked})
    try:
        yield project
    finally:
        project.end()


async def set_wall(project: Project, engine: StoreEngine, by: str) -> None:
    """Set the store's clock; return when it reads it so."""
    (project.root / "offset").write_text(f"{by}\n")
    wanted = float(by[:-1])
    end = time.monotonic() + PATIENCE_S
    number = 0
    while True:
        number += 1
        grant = await engine.locks.acquire(f"probe-{number}", "probe", ttl_s=1.0, wait_s=0.0, timeout_s=PATIENCE_S)
        if abs(grant.until_at - time.time() - wanted) < 5.0:
            return
        assert time.monotonic() < end, "the store's clock was not set"
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("by", ["+60s", "-3600s"])
async def test_a_lock_belongs_to_its_holder_for_its_time(project: Project, by: str) -> None:
    """Nobody gets it before, over a restart of the store as well; and nobody waits for longer."""
    await asyncio.to_thread(project.start_store)
    async with project.engine() as engine:
        locks = engine.locks
        began_at = time.monotonic()
        await locks.acquire("nightly", "a", ttl_s=4.0, wait_s=0.0, timeout_s=PATIENCE_S)
        await engine.queues.defer([new_task("later", delay_s=4.0)], timeout_s=PATIENCE_S)
        await set_wall(project, engine, by)
        with pytest.raises(LockTaken):
            await locks.acquire("nightly", "b", ttl_s=4.0, wait_s=0.0, timeout_s=PATIENCE_S)
        project.kill()
        await asyncio.to_thread(project.start_store)
        if time.monotonic() < began_at + 3.5:
            with pytest.raises(LockTaken):
                await locks.acquire("nightly", "b", ttl_s=4.0, wait_s=0.0, timeout_s=PATIENCE_S)
            job = await engine.jobs.find("later", timeout_s=PATIENCE_S)
            assert job is not None
            assert job.status == "delayed"
        await locks.acquire("nightly", "b", ttl_s=4.0, wait_s=20.0, timeout_s=PATIENCE_S)
        assert 3.9 < time.monotonic() - began_at < 15.0
        end = time.monotonic() + 10.0
        while (job := await engine.jobs.find("later", timeout_s=PATIENCE_S)) is not None and job.status != "ready":
            assert time.monotonic() < end, "the delayed task is not given out"
            await asyncio.sleep(0.05)
