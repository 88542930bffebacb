"""Leases, delays, schedules and poison through real deaths; and the order in which a set is taken down."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime

import pytest

import mesh
from mesh.engines.sqlite.core import Core

from .conftest import Set
from .durable_set import LEASE_S, PATIENCE_S, Killer, all_jobs, durable_set, said, until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]


#: What a worker says that has not reached the store for a lease.
LOST = "attempt.leases_lost"


@pytest.fixture(scope="module")
def slow_set() -> Iterator[Set]:
    """Two workers that have long work, three that tick."""
    with durable_set({"Slow": 2, "Ticks": 3}) as made:
        yield made


@pytest.fixture
async def n(slow_set: Set) -> AsyncIterator[mesh.Node]:
    async with mesh.connect(path=slow_set.root / "mesh.toml", wait_s=PATIENCE_S) as node:
        yield node


async def number(n: mesh.Node, namespace: str, key: str) -> int:
    return (await n.state(namespace).get(key)).value or 0


async def test_work_longer_than_its_lease_runs_once(slow_set: Set, n: mesh.Node) -> None:
    """Two leases long, and the store is killed in the middle of it: one attempt, one effect."""
    told = len(said(slow_set, LOST))
    job = await n.defer("slow.last", "long", 2 * LEASE_S)
    began = time.monotonic()

    async def begun() -> bool:
        return await number(n, "begun", "long") == 1

    await until(begun)
    # A delay that is longer than any lease, while the same store dies.
    later = await n.defer("slow.last", "later", 0.0, delay=1.75 * LEASE_S)
    deferred = time.monotonic()
    await asyncio.to_thread(Killer(slow_set, 1).kill, "store")
    assert await later.status() == "delayed"
    assert await number(n, "ended", "long") == 0
    await later.result(timeout=PATIENCE_S)
    assert time.monotonic() - deferred >= 1.75 * LEASE_S - 0.1
    await job.result(timeout=PATIENCE_S)
    assert time.monotonic() - began >= 2 * LEASE_S
    assert [await number(n, "ended", name) for name in ("long", "later")] == [1, 1]
    if len(said(slow_set, LOST)) > told:
        # Promised is one attempt when the store is back within a lease; on a machine that is busy enough it is not.
        return
    for each, name in ((job, "long"), (later, "later")):
        info = await each.info()
        assert (info.attempt, info.lost) == (1, 0), name
        assert await number(n, "begun", name) == 1


async def test_a_frozen_worker_changes_nothing_when_it_wakes(slow_set: Set, n: mesh.Node) -> None:
    """SIGSTOP for longer than its lease: the task runs elsewhere, and what the sleeper then says is refused."""
    job = await n.defer("slow.last", "frozen", 0.8 * LEASE_S)

    async def begun() -> bool:
        return await number(n, "begun", "frozen") == 1

    await until(begun)
    pid = await number(n, "pids", "frozen")
    (name,) = [name for name, each in slow_set.pids().items() if each == pid]
    log = slow_set.root / "logs" / f"{name.partition(':')[2]}.log"
    os.kill(pid, signal.SIGSTOP)
    try:
        await job.result(timeout=PATIENCE_S)
        assert await number(n, "pids", "frozen") != pid
    finally:
        os.kill(pid, signal.SIGCONT)

    async def noticed() -> bool:
        text = log.read_text()
        return "session.leases_lost" in text or "attempt.leases_lost" in text or "ack.refused" in text

    await until(noticed)
    info = await job.info()
    assert (info.status, info.attempt, info.lost) == ("done", 2, 1)
    assert (await number(n, "begun", "frozen"), await number(n, "ended", "frozen")) == (2, 1)


async def test_a_store_that_is_restarted_in_order_disturbs_nobody(slow_set: Set, n: mesh.Node) -> None:
    """supervisorctl restart store, while tasks run: each is run once, and acknowledged to the new one."""
    names = [f"restart-{number}" for number in range(20)]
    async with n.batch() as b:
        jobs = [b.defer("slow.last", name, 1.0) for name in names]

    async def all_begun() -> bool:
        return len([name async for name in n.state("begun").keys("restart-")]) == len(jobs)

    await until(all_begun)
    await asyncio.to_thread(slow_set.run, "supervisorctl", "restart", "store")
    for job in jobs:
        await job.result(timeout=PATIENCE_S)
        assert (await job.info()).attempt == 1
    assert {await number(n, "ended", name) for name in names} == {1}


async def test_a_schedule_fires_once_per_due_time(slow_set: Set, n: mesh.Node) -> None:
    """Three workers, one schedule: each second is there once, through a worker's and the store's death."""
    killer = Killer(slow_set, 2)
    ticks = n.state("ticks")

    async def reach(count: int) -> None:
        wanted = len([due async for due in ticks.keys("")]) + count

        async def there() -> bool:
            return len([due async for due in ticks.keys("")]) >= wanted

        await until(there, what=f"{wanted} ticks")

    await reach(2)
    ticking = [name for name in slow_set.pids() if name.startswith("ticks:")]
    assert len(ticking) == 3
    os.kill(slow_set.pids()[ticking[0]], signal.SIGKILL)
    await reach(2)
    await asyncio.to_thread(killer.kill, "store")
    await reach(2)
    # Of what was due so far: what is not acknowledged yet is done by whoever comes back.
    await settled_ticks(n)
    written = {due: job async for due, job in ticks.items()}
    dues = sorted(datetime.fromisoformat(due).astimezone(UTC).timestamp() for due in written)
    assert dues == [dues[0] + step for step in range(len(dues))], "a due time is missing"
    jobs = await all_jobs(n, "ticks.tick", "done")
    by_due = {job.meta["due"]: job.id for job in jobs}
    assert len(by_due) == len(jobs), "a due time made two jobs"
    assert written.items() <= by_due.items()
    assert not await all_jobs(n, "ticks.tick", "dead")


async def settled_ticks(n: mesh.Node) -> None:
    """What is running now has ended."""
    running = await all_jobs(n, "ticks.tick", "running")
    for job in running:
        await n.job(job.id).result(timeout=PATIENCE_S)


async def test_poison_is_buried_and_the_innocent_are_not(slow_set: Set, n: mesh.Node) -> None:
    """A task that ends its process is dead as lost after the third; all others are done, each once."""
    names = [f"i-{number:03d}" for number in range(300)]
    async with n.batch() as b:
        jobs = [b.defer("slow.innocent", name) for name in names[:150]]
        poison = b.defer("slow.poison")
        jobs += [b.defer("slow.innocent", name) for name in names[150:]]
    assert (await poison.wait(PATIENCE_S)).status == "dead"
    info = await poison.info()
    assert (info.reason, info.lost) == ("lost", 3)
    infos = [await job.wait(PATIENCE_S) for job in jobs]
    assert {info.status for info in infos} == {"done"}
    assert [name async for name in n.state("innocents").keys("")] == names
    assert await all_jobs(n, "slow.innocent", "dead") == []
    # No innocent task is counted with it more than twice: from then on poison runs alone.
    assert max(info.lost for info in infos) <= 2
    shown = slow_set.run("mesh", "tasks", "dead", "list", "slow.poison")
    assert poison.id in shown.stdout
    assert "lost" in shown.stdout


async def test_the_store_stops_after_those_who_use_it() -> None:
    """`mesh down` under work: workers acknowledge before the store ends, so nothing waits and nothing runs twice."""
    with durable_set({"Slow": 2}) as made:
        async with mesh.connect(path=made.root / "mesh.toml", wait_s=PATIENCE_S) as n:
            async with n.batch() as b:
                jobs = [b.defer("slow.last", f"down-{number}", 1.0) for number in range(20)]

            async def all_begun() -> bool:
                return len([name async for name in n.state("begun").keys("down-")]) == len(jobs)

            await until(all_begun)
        began = time.monotonic()
        await asyncio.to_thread(made.run, "mesh", "down")
        took = time.monotonic() - began
        stopped = re.findall(r"stopped: (\S+)", (made.root / "logs/supervisord.log").read_text())
        assert stopped.index("store") > max(stopped.index(f"slow_{number}") for number in range(2))
        assert stopped.index("store") > stopped.index("gateway_0")
        for log in (made.root / "logs").glob("slow_*.log"):
            assert "ack.refused" not in log.read_text()
        # A second of work, and no time for waiting: the least patience in the way is 10 s.
        assert took < 9, f"mesh down took {took:.1f} s"
        core = Core(made.root / "data")
        core.open()
        try:
            infos = [core.job(job.id, time.time()) for job in jobs]
        finally:
            core.close()
        assert {info and (info.status, info.attempt) for info in infos} == {("done", 1)}
