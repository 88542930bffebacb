"""Workers that leave, and hubs that die, while calls go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from calls_services import Hold

import mesh
from mesh.protocol.messages import RECONNECTS
from mesh.testing import ManualClock, Mesh, no_leaks
from tests.patience import until

#: A call that is never answered fails its test soon, not after the run's own patience.
pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    async with no_leaks():
        yield


class Once(mesh.Service):
    """Not idempotent: what is asked twice is counted twice."""

    total = 0

    @mesh.rpc
    async def add(self) -> str:
        await asyncio.sleep(0)
        Once.total += 1
        return str(self.node.identity)  # type: ignore[attr-defined]

    @mesh.rpc
    async def feed(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            await asyncio.sleep(0)
            yield i


class Load:
    """Callers that never pause; what they were answered, and what failed."""

    def __init__(self, m: Mesh, callers: int = 16) -> None:
        self.answered = 0
        self.failed: list[BaseException] = []
        self._m = m
        self._stop = False
        Once.total = 0
        self._tasks = [asyncio.ensure_future(self._call()) for _ in range(callers)]
        self._tasks += [asyncio.ensure_future(self._read()) for _ in range(2)]

    async def _call(self) -> None:
        while not self._stop:
            try:
                await self._m.call("once.add")
                self.answered += 1
            except mesh.MeshError as error:
                self.failed.append(error)

    async def _read(self) -> None:
        while not self._stop:
            try:
                assert [item async for item in self._m.stream("once.feed", 50)] == list(range(50))
            except mesh.MeshError as error:
                self.failed.append(error)
            await asyncio.sleep(0)

    async def more(self, count: int) -> None:
        """Return when so many more were answered."""
        goal = self.answered + count
        await until(lambda: self.answered >= goal)

    async def end(self) -> None:
        """Stop; none failed, and each was done once."""
        self._stop = True
        await asyncio.gather(*self._tasks)
        assert self.failed == []
        assert Once.total == self.answered


@pytest.mark.parametrize("transport", ["memory", "ipc"])
async def test_draining_under_load_loses_nothing(transport):
    """Every worker is replaced, one after the other; calls that must not run twice are answered once each."""
    async with Mesh(Once, replicas={Once: 3}, transport=transport) as m:
        load = Load(m)
        await load.more(200)
        for worker in m.workers(Once):
            assert await m.drain(worker)
            await load.more(200)
            await m.start_another(Once)
            await load.more(200)
        await load.end()


@pytest.mark.parametrize("transport", ["memory", "ipc"])
async def test_the_only_worker_may_be_replaced_too(transport):
    """Callers wait for the next, and are answered."""
    async with Mesh(Once, transport=transport) as m:
        load = Load(m, callers=4)
        await load.more(50)
        await m.drain(m.workers(Once)[0])
        await m.start_another(Once)
        await load.more(50)
        await load.end()


@pytest.mark.parametrize("transport", ["memory", "ipc"])
async def test_a_hub_may_die_and_come_back_under_load(transport):
    """No call notices; nobody who lives is forgotten, and newcomers are found again."""
    async with Mesh(Once, replicas={Once: 2}, transport=transport, settings={"discovery.renew": "100ms"}) as m:
        load = Load(m)
        await load.more(200)
        await m.faults.kill("hub")
        await load.more(300)
        await m.restart_hub()
        await load.more(300)
        await m.start_another(Once)
        assert len(m.node.instances("once")) == 3
        await load.end()


async def test_ten_seconds_without_a_hub_change_nothing():
    """Leases run nowhere, calls go on, and its return takes nobody away."""
    async with Mesh(Hold, replicas={Hold: 2}, clock=ManualClock()) as m:
        for hold in m.instances(Hold):
            hold.gate.set()
        await m.faults.kill("hub")
        for _ in range(10):
            await m.advance(1.0)
            assert (await m.call("hold.once")).startswith("x by")
        await m.restart_hub()
        for _ in range(12):
            await m.advance(1.0)
            assert (await m.call("hold.once")).startswith("x by")
            assert len(m.node.instances("hold")) == 2


async def test_of_two_hubs_one_is_enough():
    """Who starts while one of them is dead is found through the other."""
    async with Mesh(Hold, clock=ManualClock(), hubs=2) as m:
        await m.faults.kill("hub", 0)
        await m.start_another(Hold)
        await m.faults.kill(Hold)
        m.instances(Hold)[0].gate.set()
        assert (await m.call("hold.once")).startswith("x by")
        await m.advance(6.0)
        assert len(m.node.instances("hold")) == 1, "the killed one's lease ran out"


async def test_a_drain_waits_for_what_is_in_hand_and_takes_nothing_new():
    """The call under way is answered, a new one goes elsewhere, and the worker leaves the registry at once."""
    async with Mesh(Hold, replicas={Hold: 2}, clock=ManualClock()) as m:
        leaving, staying = m.workers(Hold)
        first, second = m.instances(Hold)
        under_way = m.call("hold.once", "old", instance=leaving.instance_ids[0])
        reading = m.stream("hold.feed", 2, instance=leaving.instance_ids[0])
        await m.settle()
        draining = asyncio.ensure_future(m.drain(leaving))
        await m.settle()
        assert [each.id for each in m.node.instances("hold")] == staying.instance_ids
        new = m.call("hold.once", "new")
        await m.settle()
        assert (second.began, draining.done()) == (["new"], False)
        first.gate.set()
        await m.settle()
        assert await under_way == f"old by {leaving.identity}"
        assert [item async for item in reading] == [0, 1]
        assert await draining is True
        second.gate.set()
        await new


async def test_a_drain_ends_with_the_stop_timeout():
    """What is not done by then is cut off, and told as what it is."""
    async with Mesh(Hold, clock=ManualClock(), settings={"worker.stop_timeout": 5.0}) as m:
        call = m.call("hold.once", timeout=60.0)
        await m.settle()
        draining = asyncio.ensure_future(m.drain(m.workers(Hold)[0]))
        await m.advance(4.9)
        assert not draining.done()
        await m.advance(0.2)
        assert await draining is False
        with pytest.raises((mesh.Draining, mesh.LinkLost)):
            await call


async def test_a_caller_that_is_cut_off_does_not_hold_up_a_drain_for_ever():
    """A link without a sign of life is lost after links.heartbeat_timeout."""
    async with Mesh(Hold, Idle, clock=ManualClock()) as m:
        await m.call("idle.ask")
        m.faults.partition(Idle)
        draining = asyncio.ensure_future(m.drain(m.workers(Hold)[0]))
        await m.advance(3.5)
        assert await draining is True


class Idle(mesh.Service):
    """Has a link to Hold."""

    @mesh.rpc
    async def ask(self) -> None:
        call = self.call("hold.once")
        await asyncio.sleep(0)
        call.cancel()  # type: ignore[attr-defined]


class Endless(mesh.Service):
    @mesh.rpc
    async def ticks(self) -> AsyncIterator[int]:
        number = 0
        while True:
            yield number
            number += 1
            await asyncio.sleep(0.01)


async def test_a_stream_whose_reader_connects_again_does_not_hold_a_worker_up():
    """It is ended within moments with a code that says why; another one may go on until the stop timeout."""
    async with Mesh(Endless, settings={"worker.stop_timeout": "4s"}) as m:
        resumable = m.node.stream("endless.ticks", meta={RECONNECTS: "1"})
        other = m.node.stream("endless.ticks")
        assert (await anext(resumable), await anext(other)) == (0, 0)
        draining = asyncio.create_task(m.drain(m.workers(Endless)[0]))

        async def read(stream: AsyncIterator[int]) -> float:
            with pytest.raises(mesh.Draining):
                async for _ in stream:
                    pass
            return asyncio.get_running_loop().time()

        began_at = asyncio.get_running_loop().time()
        first, last = await asyncio.gather(read(resumable), read(other))
        assert first - began_at < 3.0 < 3.9 < last - began_at
        assert not await draining
