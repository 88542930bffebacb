"""Faults to order: each does what it says, and ends when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

import mesh
from mesh.errors import SetupError
from mesh.testing import ManualClock, Mesh, no_leaks

#: A call that is never answered fails its test soon, not after the run's own patience.
pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    async with no_leaks():
        yield


class Greeting(mesh.Service):
    """Says hello."""

    def __init__(self) -> None:
        self.asked = 0
        self.gone_on = False

    @mesh.rpc(idempotent=True)
    async def hello(self) -> str:
        self.asked += 1
        return "hello"

    @mesh.rpc
    async def stay(self) -> None:
        await asyncio.sleep(0)
        await self.node.clock.sleep(1.0)  # type: ignore[attr-defined]
        self.gone_on = True


class Caller(mesh.Service):
    """Asks greeting."""

    @mesh.rpc
    async def ask(self) -> str:
        return str(await self.call("greeting.hello", timeout=2.0))


@pytest.fixture
async def m() -> AsyncIterator[Mesh]:
    async with Mesh(Greeting, Caller, clock=ManualClock()) as m:
        yield m


async def test_drop_loses_what_is_sent_to_and_from_a_process(m: Mesh):
    """All of it, or a share; until it is healed."""
    m.faults.drop(Greeting)
    call = m.call("greeting.hello", timeout=1.0)
    await m.advance(1.1)
    assert isinstance(call.exception(), mesh.DeadlineExceeded)
    assert m.instances(Greeting)[0].asked == 0
    m.faults.drop(Greeting, 0.5)
    calls = []
    for _ in range(40):
        calls.append(m.call("greeting.hello", timeout=1.0))
        await m.settle()
    await m.advance(1.1)
    lost = sum(call.exception() is not None for call in calls)
    assert 20 <= lost <= 38, "both ways, half of it each"
    m.faults.heal()
    assert await m.call("greeting.hello") == "hello"


async def test_delay_takes_time_each_way(m: Mesh):
    """Of the mesh's clock; order is kept."""
    m.faults.delay("greeting", 0.5)
    call = m.call("greeting.hello")
    await m.advance(0.9)
    assert not call.done()
    await m.advance(0.2)
    assert await call == "hello"


async def test_cut_breaks_the_links_to_a_process(m: Mesh):
    """Those that wait are told; the next call finds a new link."""
    call = m.call("greeting.stay")
    await m.settle()
    assert m.faults.cut(Greeting) >= 1
    with pytest.raises(mesh.LinkLost, match="cut"):
        await call
    again = m.call("greeting.hello")
    await m.advance(1.0)
    assert await again == "hello"


async def test_a_killed_worker_does_nothing_more(m: Mesh):
    """Its handlers stop where they are, its callers are told at once, its calls to others end."""
    (greeting,) = m.instances(Greeting)
    call = m.call("greeting.stay")
    await m.settle()
    await m.faults.kill(Greeting)
    await m.settle()
    assert isinstance(call.exception(), mesh.LinkLost)
    await m.advance(5.0)
    assert not greeting.gone_on


async def test_a_partition_separates_both_ways_and_heals(m: Mesh):
    """Within the silence nothing is lost; past it links are, and are dialled again after it."""
    m.faults.partition(Greeting)
    held = m.call("greeting.hello", timeout=2.0)
    await m.advance(1.0)
    assert not held.done()
    m.faults.heal()
    assert await held == "hello"
    m.faults.partition(Greeting)
    lost = m.call("greeting.stay", timeout=20.0)
    asked = m.call("caller.ask", timeout=20.0)
    await m.advance(3.1)
    assert isinstance(lost.exception(), mesh.LinkLost)
    assert isinstance(asked.exception(), mesh.MeshError)
    m.faults.heal()
    await m.advance(10.0)
    assert await m.call("caller.ask") == "hello"


async def test_the_client_can_be_struck_too(m: Mesh):
    """By its node."""
    m.faults.partition(m.node)
    call = m.call("greeting.hello", timeout=1.0)
    await m.advance(1.1)
    assert isinstance(call.exception(), mesh.DeadlineExceeded)
    with pytest.raises(SetupError):
        m.faults.cut(m.node)


async def test_a_dead_hub_and_its_return(m: Mesh):
    """Calls go on without it; newcomers are found when it is back."""
    await m.faults.kill("hub")
    assert await m.call("caller.ask") == "hello"
    await m.start_another(Greeting, wait=False)
    with pytest.raises(mesh.Unavailable):
        await m.start_another(Greeting)
    await m.drain(m.workers(Greeting)[2])
    await m.advance(2.0)
    assert len(m.node.instances("greeting")) == 1
    await m.restart_hub()
    await m.advance(2.0)
    assert len(m.node.instances("greeting")) == 2


async def test_a_target_that_is_not_there_is_told(m: Mesh):
    """By name and number."""
    for target, index, message in (("nowhere", 0, "^nowhere: 0 "), (Greeting, 1, "^greeting: 1 ")):
        with pytest.raises(SetupError, match=message):
            m.faults.cut(target, index=index)


async def test_over_real_sockets_only_kill_works():
    """And says so; a killed worker's callers are told by the socket."""
    async with Mesh(Greeting, replicas={Greeting: 2}, transport="ipc") as m:
        with pytest.raises(SetupError, match='transport="memory"'):
            m.faults.drop(Greeting)
        with pytest.raises(SetupError, match='transport="memory"'):
            m.faults.partition(Greeting)
        call = m.call("greeting.stay", instance=m.workers(Greeting)[0].instance_ids[0])
        await m.call("greeting.hello", instance=m.workers(Greeting)[0].instance_ids[0])
        await m.faults.kill(Greeting)
        with pytest.raises(mesh.LinkLost):
            await call
        assert await m.call("greeting.hello") == "hello"
