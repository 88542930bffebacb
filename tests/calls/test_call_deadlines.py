"""Deadlines and cancellation: whose counts, and that the handler is told."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator

import pytest
from calls_services import Echo, Hold

import mesh
from mesh.testing import ManualClock, Mesh, no_leaks
from tests.patience import until

#: A call that is never answered fails its test soon, not after the run's own patience.
pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    async with no_leaks():
        yield


class Middle(mesh.Service):
    """Calls on."""

    @mesh.rpc
    async def ask(self, timeout: float | None = None) -> str:
        answer: str = await self.call("hold.once", timeout=timeout)
        return answer

    @mesh.rpc
    async def ask_later(self) -> str:
        await self.node.clock.sleep(3.0)  # type: ignore[attr-defined]
        answer: str = await self.call("hold.once")
        return answer


@pytest.fixture
async def m() -> AsyncIterator[Mesh]:
    async with Mesh(Hold, Echo, Middle, clock=ManualClock()) as m:
        yield m


@pytest.mark.parametrize(
    ("target", "options", "seconds"),
    [
        ("hold.once", {}, 10.0),
        ("hold.hasty", {}, 2.0),
        ("hold.hasty", {"timeout": 4.0}, 4.0),
        ("hold.once", {"timeout": 0.5}, 0.5),
    ],
)
async def test_a_call_ends_with_its_deadline_and_the_handler_is_stopped(m: Mesh, target, options, seconds):
    """The caller's own word, else the method's, else the configured one."""
    (hold,) = m.instances(Hold)
    call = m.call(target, **options)
    await m.advance(seconds - 0.1)
    assert not call.done()
    assert hold.ended == []
    await m.advance(0.2)
    assert call.done()
    with pytest.raises(mesh.DeadlineExceeded, match=f"{seconds:g} s"):
        await call
    assert hold.ended == ["x cancelled"]
    assert hold.left_s == [pytest.approx(seconds, abs=0.01)]


async def test_the_configured_default_counts():
    """calls.timeout."""
    async with Mesh(Hold, clock=ManualClock(), settings={"calls.timeout": 3.0}) as m:
        call = m.call("hold.once")
        await m.advance(2.9)
        assert not call.done()
        await m.advance(0.2)
        assert isinstance(call.exception(), mesh.DeadlineExceeded)


@pytest.mark.parametrize("timeout", [0, -1.0])
async def test_a_call_without_time_is_not_sent(m: Mesh, timeout: float):
    """It fails at once."""
    with pytest.raises(mesh.DeadlineExceeded):
        await m.call("hold.once", timeout=timeout)
    await m.settle()
    assert m.instances(Hold)[0].began == []


@pytest.mark.parametrize("timeout", [math.inf, math.nan, 1e300])
async def test_no_call_waits_for_ever(m: Mesh, timeout: float):
    """What is no span of time is refused as such, and harms nothing; an absurd one is cut to the longest there is."""
    try:
        call = m.call("hold.once", timeout=timeout)
    except mesh.BadRequest:
        pass
    else:
        call.cancel()
    (stats,) = [
        each
        for each in m.node.recorder.snapshot()["methods"]
        if (each["side"], each["service"], each["method"]) == ("client", "hold", "once")
    ] or [{"in_flight": 0}]
    assert stats["in_flight"] == 0
    await m.settle()
    assert await m.call("echo.one", 1) == 1


async def test_nested_calls_end_no_later_than_the_outer_one(m: Mesh):
    """What is left shrinks on the way, whatever the inner call asks for."""
    (hold,) = m.instances(Hold)
    call = m.call("middle.ask", 60.0, timeout=2.0)
    await m.settle()
    assert hold.left_s == [pytest.approx(2.0, abs=0.01)]
    later = m.call("middle.ask_later", timeout=5.0)
    await m.advance(2.1)
    assert isinstance(call.exception(), mesh.DeadlineExceeded)
    await m.advance(1.0)
    assert hold.left_s[1:] == [pytest.approx(2.0, abs=0.05)]
    shorter = m.call("middle.ask", 0.5, timeout=5.0)
    await m.advance(0.6)
    with pytest.raises(mesh.DeadlineExceeded, match=r"hold\.once: .*0\.5 s"):
        await shorter
    await m.advance(5.0)
    assert isinstance(later.exception(), mesh.DeadlineExceeded)


async def test_cancelling_a_call_stops_its_handler_and_what_that_calls(m: Mesh):
    """All the way down."""
    (hold,) = m.instances(Hold)
    call = m.call("middle.ask")
    await m.settle()
    assert hold.began == ["x"]
    call.cancel()
    await m.settle()
    assert hold.ended == ["x cancelled"]
    with pytest.raises(asyncio.CancelledError):
        await call


@pytest.mark.parametrize("target", ["hold.once", "hold.narrow"])
async def test_a_call_cancelled_in_the_moment_it_was_made_leaves_no_trace(m: Mesh, target: str):
    """Call and cancel leave in one frame: the handler's place is given back, and the link's credit too."""
    for _ in range(5):
        m.call(target, "gone").cancel()
    await m.settle()
    info = await m.call("$worker.info", instance=m.workers(Hold)[0].instance_ids[0])
    assert info["in_hand"] == 1, "only the call that asks is in hand"
    call = m.call(target, "after")
    await m.settle()
    assert m.instances(Hold)[0].began[-1:] == ["after"]
    m.instances(Hold)[0].gate.set()
    await m.settle()
    assert (await call).startswith("after")


async def test_a_stream_closed_in_the_moment_it_was_made_leaves_no_trace(m: Mesh):
    """As a call."""
    await m.stream("hold.feed").aclose()
    await m.settle()
    info = await m.call("$worker.info", instance=m.workers(Hold)[0].instance_ids[0])
    assert info["in_hand"] == 1


async def test_an_answer_that_crosses_a_cancel_is_ignored(m: Mesh):
    """The link goes on."""
    (hold,) = m.instances(Hold)
    call = m.call("hold.once")
    await m.settle()
    hold.gate.set()
    call.cancel()
    await m.settle()
    assert call.cancelled()
    assert await m.call("echo.one", 1) == 1


async def test_a_caller_that_vanishes_stops_its_handlers(m: Mesh):
    """Nobody waits for them any more."""
    (hold,) = m.instances(Hold)
    call = m.call("middle.ask")
    await m.settle()
    await m.faults.kill(Middle)
    await m.settle()
    assert hold.ended == ["x cancelled"]
    with pytest.raises(mesh.LinkLost):
        await call


async def test_over_sockets_a_deadline_and_a_cancel_reach_the_handler():
    """Real time, real links."""
    async with Mesh(Hold, transport="ipc") as m:
        (hold,) = m.instances(Hold)
        with pytest.raises(mesh.DeadlineExceeded):
            await m.call("hold.once", "a", timeout=0.05)
        call = m.call("hold.once", "b")
        await until(lambda: "b" in hold.began)
        call.cancel()
        await until(lambda: len(hold.ended) == 2)
        assert hold.ended == ["a cancelled", "b cancelled"]
