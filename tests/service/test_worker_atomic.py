"""All of it or nothing: effects that happen exactly once, whatever dies or fails."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

import mesh
from mesh.clock import settle
from mesh.config import Settings
from mesh.config.settings import EngineSettings
from mesh.engines.choose import Engines
from mesh.engines.collect import collecting
from mesh.engines.contract import CAPABILITIES
from mesh.engines.memory import Memory, MemoryEngine
from mesh.engines.registry import EngineContext
from mesh.errors import NotOffered, SetupError
from mesh.telemetry.metrics import Recorder
from mesh.testing import ManualClock, Mesh, no_leaks

pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    async with no_leaks():
        yield


class Bank(mesh.Service):
    """Writes, emits and defers, and may fail in the middle."""

    runs = 0
    heard: list[object] = []
    fail = ""
    slow = 0.0

    @mesh.task(retries=3, backoff="1s")
    async def pay(self, amount: int) -> int:
        Bank.runs += 1
        async with self.atomic():
            await self.state("ledger").add("sum", amount)
            await self.emit("bank.paid", amount, key="a", durable=True)
            job = await self.defer(self.receipt, amount)
        if Bank.fail == "after" and Bank.runs < 3:
            raise ValueError("after the block")
        if Bank.slow:
            await self.node.clock.sleep(Bank.slow)  # type: ignore[attr-defined]
        assert collecting() is None
        return amount if job else 0

    @mesh.task(retries=0)
    async def caught(self) -> str:
        try:
            async with self.atomic():
                await self.state("ledger").set("lost", 1)
                raise ValueError("in the block")
        except ValueError:
            pass
        async with self.atomic(), self.atomic() as inner:
            await self.state("ledger").set("kept", 1)
            assert len(inner) == 1
        return "done"

    @mesh.task
    async def count(self, key: str) -> None:
        Bank.runs += 1
        value, etag = await self.state("ledger").get(key)
        if Bank.slow:
            await self.node.clock.sleep(Bank.slow)  # type: ignore[attr-defined]
        async with self.atomic():
            await self.state("ledger").set(key, (value or 0) + 1, etag=etag)

    @mesh.task
    async def receipt(self, amount: int) -> None:
        Bank.heard.append(("receipt", amount))

    @mesh.on("bank.paid", durable=True)
    async def paid(self, event: mesh.Event) -> None:
        async with self.atomic():
            await self.state("ledger").add("heard", event.data)

    @mesh.on("bank.paid")
    async def told(self, event: mesh.Event) -> None:
        Bank.heard.append(("told", event.data))

    @mesh.rpc
    async def both(self, first: str, second: str, etag: str = "") -> None:
        async with self.atomic():
            await self.state("ledger").set(first, 1)
            await self.state("other").set(second, 2, etag=etag)
            await self.emit("bank.paid", 5, durable=True)


@pytest.fixture(autouse=True)
def fresh() -> None:
    Bank.runs, Bank.fail, Bank.slow = 0, "", 0.0
    Bank.heard.clear()


@pytest.fixture
async def m() -> AsyncIterator[Mesh]:
    async with Mesh(Bank, clock=ManualClock()) as made:
        yield made


async def ledger(m, key):
    return (await m.state("ledger").get(key)).value


async def test_effects_are_committed_with_the_acknowledgement(m):
    """State, events and tasks; plain listeners hear of the event afterwards, durable ones once."""
    job = await m.defer(Bank.pay, 7)
    assert await job.result() == 7
    await m.idle()
    assert await ledger(m, "sum") == 7
    assert await ledger(m, "heard") == 7
    assert sorted(Bank.heard, key=str) == [("receipt", 7), ("told", 7)]


async def test_a_handler_that_raises_after_its_block_has_written_nothing(m):
    """Its next attempt writes once, for all of them."""
    Bank.fail = "after"
    job = await m.defer(Bank.pay, 7)
    await m.advance(0.4)
    assert Bank.runs == 1
    assert await ledger(m, "sum") is None
    await m.advance(5.0)
    assert await job.result() == 7
    assert (Bank.runs, await ledger(m, "sum"), await ledger(m, "heard")) == (3, 7, 7)


async def test_a_worker_that_dies_after_the_block_has_written_nothing():
    """And what its next run writes is written once."""
    async with Mesh(Bank, replicas={Bank: 2}, clock=ManualClock()) as m:
        Bank.slow = 5.0
        job = await m.defer(Bank.pay, 7)
        await m.advance(1.0)
        (holder,) = [worker for worker in m.workers(Bank) if worker.shift is not None and worker.shift.in_hand]
        await m.faults.kill(holder)
        await m.advance(20.0)
        assert await job.result() == 7
        await m.idle()
        assert (Bank.runs, await ledger(m, "sum"), await ledger(m, "heard")) == (2, 7, 7)
        assert [one for one in Bank.heard if one[0] == "receipt"] == [("receipt", 7)]


async def test_a_block_that_raises_leaves_nothing_though_the_handler_goes_on(m):
    """Only what was in it; a block inside of a block belongs to it."""
    assert await (await m.defer(Bank.caught)).result() == "done"
    assert await ledger(m, "lost") is None
    assert await ledger(m, "kept") == 1


async def test_who_meets_a_conflict_runs_again(m):
    """Ten that count at once count to ten, and none is dead for it."""
    Bank.slow = 0.01
    jobs = [await m.defer(Bank.count, "n") for _ in range(10)]
    for _ in range(40):
        await m.advance(0.25)
    assert await ledger(m, "n") == 10
    assert [await job.status() for job in jobs] == ["done"] * 10
    assert Bank.runs > 10
    assert [(await job.info()).attempt for job in jobs] == [1] * 10


async def test_outside_of_tasks_a_block_is_committed_at_its_end(m):
    """In a call: all, or, when an etag does not fit, nothing."""
    await m.call("bank.both", "a", "b")
    assert await ledger(m, "a") == 1
    with pytest.raises(mesh.Conflict):
        await m.call("bank.both", "c", "b")
    assert await ledger(m, "c") is None
    await m.idle()
    assert (Bank.heard, await ledger(m, "heard")) == ([("told", 5)], 5)


async def test_a_plain_node_has_blocks_too(m):
    """What is read inside of them is what they have written."""
    async with m.atomic() as block:
        assert await m.state("ledger").set("k", "v")
        assert await ledger(m, "k") == "v"
        job = await m.defer(Bank.receipt, 3)
        async with m.batch() as b:
            b.defer(Bank.receipt, 4)
        await settle()
        assert Bank.heard == []
        assert len(block) == 3
    assert await job.result() is None
    await m.idle()
    assert Bank.heard == [("receipt", 3), ("receipt", 4)]
    with pytest.raises(SetupError):
        async with block:
            pass


async def test_what_a_block_left_running_cannot_change_it_any_more(m):
    """It would be committed or not, as chance has it."""
    begun = asyncio.Event()

    async def late() -> None:
        await begun.wait()
        await m.state("ledger").set("late", 1)

    async with m.atomic():
        task = asyncio.ensure_future(late())
        await m.state("ledger").set("early", 1)
    begun.set()
    with pytest.raises(SetupError):
        await task


async def test_an_empty_block_asks_nobody(m):
    """Nor does one that only reads."""
    async with m.atomic():
        assert await ledger(m, "nothing") is None
    assert m.node.durable.engines.made != ()


# --- engines that cannot ----------------------------------------------------------------------------------


class Apart(MemoryEngine):
    """Commits nothing together with tasks."""

    together = frozenset(CAPABILITIES) - {"queues"}


async def test_an_engine_that_cannot_commit_both_says_so_at_the_line_that_asks():
    """And nothing of the block is written."""
    async with Mesh(clock=ManualClock()) as m:
        engines = m.node.durable.engines
        engines._makers = {"memory": lambda: Apart(Memory(m.clock))}

        async def both() -> None:
            async with m.atomic():
                await m.state("ledger").set("k", 1)
                await m.defer("bank.receipt", 1)

        with pytest.raises(NotOffered, match="tasks in memory, state in memory"):
            await both()
        assert await ledger(m, "k") is None


def engines_of(chosen: EngineSettings, **makers: Any) -> Engines:
    """The engines of a process that has only these settings."""
    clock = ManualClock()
    context = EngineContext(None, Settings(engines=chosen), None, clock, random.Random(1), Recorder(clock))
    return Engines(context, makers)


async def test_two_engines_never_commit_together():
    """The message names which is where, and what to do."""
    engines = engines_of(EngineSettings(tasks="memory", state="sqlite"))
    with pytest.raises(NotOffered, match=r"tasks in memory, state in sqlite"):
        engines.joint(("state", "queues"))


async def test_engines_are_made_when_they_are_used_and_shared_by_name():
    """One object for each name, closed with the node."""
    made = []

    def make() -> MemoryEngine:
        made.append(MemoryEngine(Memory(ManualClock())))
        return made[-1]

    engines = engines_of(EngineSettings(tasks="memory", state="memory"), memory=make)
    assert engines.made == ()
    assert engines.state is engines.of("queues").state
    assert engines.of("queues") is engines.joint(("queues", "state"))
    assert len(made) == 1
    await engines.close()
    await engines.close()
