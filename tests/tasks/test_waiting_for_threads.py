"""Tasks and durable events whose handlers wait for a free thread or process: that is no time of theirs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from typing import ClassVar

import pytest

import mesh
from mesh.testing import Mesh, no_leaks

pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    async with no_leaks():
        yield


class Slow(mesh.Service):
    """Each run takes more than half of its time, so that two of them take longer than one may."""

    heard: ClassVar[list[int]] = []
    begun: ClassVar[list[float]] = []
    go: ClassVar = threading.Event()

    @mesh.task(timeout=0.9, retries=0)
    def work(self) -> float:
        time.sleep(0.5)
        task = mesh.current_task()
        assert task is not None
        return task.deadline_at - time.monotonic()

    @mesh.task(timeout=3.0, retries=0, offload="process")
    def compute(self) -> int:
        time.sleep(1.2)
        return 1

    @mesh.task(timeout=0.2, retries=0)
    def hang(self) -> None:
        time.sleep(0.6)

    @mesh.task
    def wait(self) -> None:
        self.begun.append(time.monotonic())
        self.go.wait(20.0)

    @mesh.on("slow.thing", durable=True, timeout=0.9, retries=0)
    def on_thing(self, number: int) -> None:
        time.sleep(0.5)
        self.heard.append(number)


@pytest.fixture
async def m() -> AsyncIterator[Mesh]:
    Slow.heard.clear()
    Slow.begun.clear()
    Slow.go.clear()
    async with Mesh(Slow, settings={"worker.threads": 1, "worker.processes": 1}) as m:
        yield m


async def test_a_task_that_waits_for_a_thread_has_its_whole_time_then(m: Mesh):
    """One thread, three tasks: each is done in its only attempt, and knows when its time is over."""
    jobs = [await m.defer("slow.work") for _ in range(3)]
    for left_s in await asyncio.gather(*(job.result(timeout=20.0) for job in jobs)):
        assert 0.0 < left_s <= 0.4


async def test_a_task_that_waits_for_a_process_has_its_whole_time_then(m: Mesh):
    """The same in a child process."""
    jobs = [await m.defer("slow.compute") for _ in range(3)]
    assert await asyncio.gather(*(job.result(timeout=20.0) for job in jobs)) == [1, 1, 1]


async def test_a_durable_event_that_waits_for_a_thread_has_its_whole_time_then(m: Mesh):
    """And each is handled once."""
    for number in range(3):
        await m.emit("slow.thing", number, durable=True)
    async with asyncio.timeout(10):
        while len(Slow.heard) < 3:  # noqa: ASYNC110  # nothing announces it
            await asyncio.sleep(0.01)
    assert Slow.heard == [0, 1, 2]
    assert await m.dead() == []


async def test_a_task_that_runs_for_too_long_is_still_told(m: Mesh):
    """Its time is over while its thread goes on; the next one waits for that thread."""
    first, second = [await m.defer("slow.hang"), await m.defer("slow.work")]
    with pytest.raises(mesh.JobFailed):
        await first.result(timeout=20.0)
    (dead,) = await m.dead()
    assert dead.error.startswith("DeadlineExceeded:")
    assert await second.result(timeout=20.0) > 0.0


async def test_a_worker_that_leaves_finishes_what_has_begun(m: Mesh):
    """What waits for its thread is given back at once, for others to run."""
    jobs = [await m.defer("slow.wait") for _ in range(3)]
    async with asyncio.timeout(10):
        while not Slow.begun:  # noqa: ASYNC110  # nothing announces it
            await asyncio.sleep(0.01)
    drain = asyncio.create_task(m.workers(Slow)[0].drain())
    async with asyncio.timeout(10):
        while sorted([await job.status() for job in jobs]) != ["ready", "ready", "running"]:  # noqa: ASYNC110  # as above
            await asyncio.sleep(0.01)
    Slow.go.set()
    assert await drain is True
    assert len(Slow.begun) == 1
    assert sorted([await job.status() for job in jobs]) == ["done", "ready", "ready"]
