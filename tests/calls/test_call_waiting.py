"""Calls for which no instance is there: who waits, for how long, and who is told at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from calls_services import Echo, Hold

import mesh
from mesh.testing import ManualClock, Mesh, no_leaks

#: A call that is never answered fails its test soon, not after the run's own patience.
pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    async with no_leaks():
        yield


@pytest.fixture
async def m() -> AsyncIterator[Mesh]:
    """A mesh whose only Echo has just left."""
    async with Mesh(Echo, Hold, clock=ManualClock(), settings={"calls.wait_limit": 3}) as m:
        await m.drain(m.workers(Echo)[0])
        yield m


async def test_an_unknown_service_is_told_at_once_with_the_nearest(m: Mesh):
    """A hub that has learned does not list it, so waiting would be in vain."""
    call = m.call("hodl.once")
    assert call.done()
    with pytest.raises(mesh.UnknownService, match=r"'hodl'.*\"hold\"\?"):
        await call


async def test_while_the_hub_learns_nothing_is_unknown(m: Mesh):
    """It may be about to register: the call waits, and is answered when it has."""
    await m.restart_hub()
    await m.advance(1.5)
    call = m.call("late.hello", timeout=3.0)
    await m.settle()
    assert not call.done()
    await m.start_another(Late)
    assert await call == "hello"
    call = m.call("later.hello", timeout=3.0)
    await m.advance(3.1)
    assert isinstance(call.exception(), mesh.Unavailable)
    await m.advance(1.0)
    assert isinstance(m.call("later.hello").exception(), mesh.UnknownService)


class Late(mesh.Service):
    """Comes later."""

    @mesh.rpc
    async def hello(self) -> str:
        return "hello"


async def test_a_call_waits_for_an_instance_and_is_answered(m: Mesh):
    """First come, first served."""
    calls = [m.call("echo.one", i) for i in range(3)]
    await m.advance(1.0)
    assert not any(call.done() for call in calls)
    assert m.node.client.parked() == 3
    await m.start_another(Echo)
    assert await asyncio.gather(*calls) == [0, 1, 2]
    assert m.node.client.parked() == 0


async def test_waiting_ends_with_the_deadline(m: Mesh):
    """And is retryable: nothing was done."""
    call = m.call("echo.one", 1, timeout=2.0)
    await m.advance(1.9)
    assert not call.done()
    await m.advance(0.2)
    with pytest.raises(mesh.Unavailable, match=r"echo\.one: .* 2 s") as caught:
        await call
    assert (caught.value.status, caught.value.retryable) == (503, True)
    assert m.node.client.parked() == 0


async def test_a_bounded_number_wait(m: Mesh):
    """Past calls.wait_limit callers are told at once; one that gives up makes room."""
    calls = [m.call("echo.one", i) for i in range(4)]
    assert [call.done() for call in calls] == [False, False, False, True]
    with pytest.raises(mesh.Overloaded, match="3 calls"):
        await calls[3]
    calls[1].cancel()
    calls[3] = m.call("echo.one", 3)
    await m.start_another(Echo)
    assert [await calls[0], await calls[2], await calls[3]] == [0, 2, 3]


async def test_a_stream_waits_as_a_call_does(m: Mesh):
    """And is delivered in full."""
    stream = m.stream("echo.count", 3)
    await m.settle()
    await m.start_another(Echo)
    assert [item async for item in stream] == [0, 1, 2]


async def test_closing_the_node_ends_who_waits_and_who_is_under_way(m: Mesh):
    """With an error, never with silence; a call made afterwards too."""
    waiting, under_way = m.call("echo.one", 1), m.call("hold.once")
    stream = m.stream("hold.feed", 0)
    await m.settle()
    await m.node.close()
    for pending in (waiting, under_way, anext(stream), m.call("hold.once")):
        with pytest.raises(mesh.MeshError) as caught:
            await pending
        assert caught.value.code in ("unavailable", "link_lost")


async def test_an_unknown_instance_is_told_at_once(m: Mesh):
    """There is no other that would do."""
    call = m.call("hold.once", instance="hold-nowhere")
    assert call.done()
    with pytest.raises(mesh.Unavailable, match="hold-nowhere"):
        await call


async def test_an_instance_that_leaves_while_a_call_waits_for_it_ends_the_wait(m: Mesh):
    """Nobody else would do, so there is nothing to wait for."""
    worker = await m.start_another(Echo)
    (own,) = worker.instance_ids
    worker.node.server.goodbye("stopping")  # type: ignore[union-attr]
    await m.settle()
    call = m.call("echo.one", 1, instance=own)
    await m.settle()
    await worker.node.agent.leave(own)
    await m.settle()
    assert call.done()
    with pytest.raises(mesh.Unavailable):
        await call


async def test_a_misspelt_service_is_named_when_the_hub_has_learned(m: Mesh):
    """A call made while the hub learned is judged again as soon as it has, not at its deadline."""
    await m.restart_hub()
    call = m.call("hodl.once", timeout=60.0)
    stream = m.stream("ehco.count", timeout=60.0)
    await m.settle()
    assert not call.done()
    for _ in range(6):
        await m.advance(1.0)
    with pytest.raises(mesh.UnknownService, match=r'"hold"\?'):
        await call
    with pytest.raises(mesh.UnknownService):
        await anext(aiter(stream))
    assert m.node.client.parked() == 0


async def test_a_service_that_is_gone_is_waited_for_shortly(m: Mesh):
    """It was known: it may come back, and callers do not wait longer than [calls] wait."""
    call = m.call("echo.one", 1, timeout=60.0)
    await m.advance(2.9)
    assert not call.done()
    await m.advance(0.2)
    with pytest.raises(mesh.Unavailable) as caught:
        await call
    assert (caught.value.code, caught.value.retryable) == ("unavailable", True)
    assert "echo" in caught.value.message
    assert m.node.client.parked() == 0


async def test_after_the_only_worker_was_killed_calls_end_soon(m: Mesh):
    """Also before its lease has run out: it is listed, and cannot be reached."""
    m.instances(Hold)[0].gate.set()
    assert await m.call("hold.once")
    await m.faults.kill(Hold)
    began = m.node.clock.now()
    call = m.call("hold.once", timeout=60.0)
    while not call.done():
        await m.advance(0.5)
    assert call.exception().code == "unavailable"
    assert m.node.clock.now() - began <= 4.0


async def test_while_no_hub_can_tell_a_call_waits_on(m: Mesh):
    """What a hub that is away or learns does not list proves nothing."""
    m.faults.partition("hub")
    call = m.call("echo.one", 1, timeout=60.0)
    await m.advance(10.0)
    assert not call.done()
    m.faults.heal()
    for _ in range(12):
        await m.advance(1.0)
    assert call.exception().code == "unavailable"


async def test_waiting_as_long_as_the_deadline_can_be_chosen():
    """A [calls] wait that is longer than every deadline."""
    async with Mesh(Echo, clock=ManualClock(), settings={"calls.wait": 3600.0}) as m:
        await m.drain(m.workers(Echo)[0])
        call = m.call("echo.one", 1, timeout=20.0)
        await m.advance(19.0)
        assert not call.done()
        await m.start_another(Echo)
        assert await call == 1
