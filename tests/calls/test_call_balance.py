"""Which instance gets a call: the power of two choices, keys, one instance, all of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from calls_services import Hold

import mesh
from mesh.testing import ManualClock, Mesh, no_leaks

#: A call that is never answered fails its test soon, not after the run's own patience.
pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    async with no_leaks():
        yield


class Paced(mesh.Service):
    """As slow as it is told to be."""

    def __init__(self) -> None:
        self.pace_s = 0.0
        self.asked = 0

    @mesh.rpc
    async def who(self) -> str:
        self.asked += 1
        if self.pace_s:
            await self.node.clock.sleep(self.pace_s)  # type: ignore[attr-defined]
        if self.pace_s < 0:
            raise ValueError("broken")
        return str(self.node.identity)  # type: ignore[attr-defined]


@pytest.fixture
async def m() -> AsyncIterator[Mesh]:
    async with Mesh(Paced, Hold, replicas={Paced: 3, Hold: 3}, clock=ManualClock()) as m:
        yield m


async def test_calls_under_way_are_spread_evenly(m: Mesh):
    """What is in flight decides between instances that are equally fast."""
    calls = [m.call("hold.once") for _ in range(60)]
    await m.settle()
    assert all(16 <= len(hold.began) <= 24 for hold in m.instances(Hold)), [len(h.began) for h in m.instances(Hold)]
    for hold in m.instances(Hold):
        hold.gate.set()
    await asyncio.gather(*calls)


async def test_one_caller_alone_is_served_by_all(m: Mesh):
    """One call after the other: every instance has its share, those that have never been asked among them."""
    for _ in range(90):
        await m.call("paced.who")
    assert all(15 <= paced.asked <= 45 for paced in m.instances(Paced)), [p.asked for p in m.instances(Paced)]


async def test_a_newcomer_gets_its_share(m: Mesh):
    """Of a caller alone, who knows the others to be fast and nothing of this one."""
    await met(m)
    await m.start_another(Paced)
    await m.advance(1.0)
    for _ in range(100):
        await m.call("paced.who")
    assert m.instances(Paced)[-1].asked >= 10, [paced.asked for paced in m.instances(Paced)]


async def met(m: Mesh) -> None:
    """Every instance has answered once, so that its latency is known."""
    for worker in m.workers(Paced):
        await m.call("paced.who", instance=worker.instance_ids[0])
    for paced in m.instances(Paced):
        paced.asked = 0


async def test_a_slow_instance_gets_less(m: Mesh):
    """Far less than its third; and its share again once it has recovered."""
    await met(m)
    slow, *others = m.instances(Paced)
    slow.pace_s = 0.2
    for _ in range(90):
        call = m.call("paced.who")
        await m.advance(0.02)
        if not call.done():
            await m.advance(0.2)
        await call
    assert 1 <= slow.asked <= 12, [paced.asked for paced in (slow, *others)]
    slow.pace_s, slow.asked = 0.0, 0
    await m.advance(30.0)
    for _ in range(90):
        await m.call("paced.who")
    assert slow.asked >= 15


async def test_a_hung_instance_gets_next_to_nothing(m: Mesh):
    """No answer within the deadline is an answer, too."""
    await met(m)
    hung, *others = m.instances(Paced)
    hung.pace_s = 1000.0
    late = 0
    for _ in range(90):
        call = m.call("paced.who", timeout=0.2)
        await m.advance(0.02)
        if not call.done():
            await m.advance(0.2)
        late += isinstance(call.exception(), mesh.DeadlineExceeded)
    assert late == hung.asked
    assert 1 <= late <= 12, [paced.asked for paced in (hung, *others)]


async def test_a_key_sticks_and_moves_only_with_its_instance(m: Mesh):
    """Drained or killed: only the keys of the one that goes find another."""

    async def owners() -> dict[str, str]:
        return {key: await m.call("paced.who", key=key) for key in map(str, range(60))}

    before = await owners()
    assert await owners() == before
    assert len(set(before.values())) == 3
    gone = m.workers(Paced)[0]
    await m.drain(gone)
    after = await owners()
    assert {key for key in before if before[key] != after[key]} == {
        k for k, who in before.items() if who == gone.identity
    }
    killed = m.workers(Paced)[0].identity
    await m.faults.kill(Paced)
    await m.settle()
    last = await owners()
    assert {key for key in after if after[key] != last[key]} == {key for key, who in after.items() if who == killed}


async def test_a_newcomer_takes_only_its_own_keys(m: Mesh):
    """Rendezvous: no key moves between those that were there."""
    before = {key: await m.call("paced.who", key=key) for key in map(str, range(60))}
    new = await m.start_another(Paced)
    after = {key: await m.call("paced.who", key=key) for key in before}
    moved = {after[key] for key in before if before[key] != after[key]}
    assert moved == {new.identity}


async def test_an_instance_may_be_chosen(m: Mesh):
    """That one and no other."""
    for worker in m.workers(Paced):
        for _ in range(3):
            assert await m.call("paced.who", instance=worker.instance_ids[0]) == worker.identity
            assert await m.node.using(instance=worker.instance_ids[0]).paced.who() == worker.identity


async def test_scatter_asks_all_and_keeps_what_failed(m: Mesh):
    """Values and errors, in the order of the registry."""
    one, two, three = m.instances(Paced)
    two.pace_s = -1
    three.pace_s = 100.0
    asking = asyncio.ensure_future(m.scatter("paced.who", timeout=2.0))
    await m.advance(2.1)
    outcomes = await asking
    by_worker = {outcome.instance.worker: outcome for outcome in outcomes}
    assert [outcome.instance.id for outcome in outcomes] == [each.id for each in m.node.instances("paced")]
    assert by_worker[one.node.identity].ok
    assert by_worker[one.node.identity].value == one.node.identity
    assert isinstance(by_worker[two.node.identity].error, mesh.RemoteError)
    assert isinstance(by_worker[three.node.identity].error, mesh.DeadlineExceeded)
    assert Counter(paced.asked for paced in (one, two, three)) == {1: 3}


async def test_scatter_tells_of_one_that_dies_meanwhile(m: Mesh):
    """The others have answered."""
    calls = asyncio.ensure_future(m.scatter("hold.once"))
    await m.settle()
    await m.faults.kill(Hold, 1)
    for hold in m.instances(Hold):
        hold.gate.set()
    outcomes = await calls
    assert [outcome.ok for outcome in outcomes].count(True) == 2
    assert [type(outcome.error) for outcome in outcomes if not outcome.ok] == [mesh.LinkLost]


async def test_a_scatter_that_is_cancelled_stops_every_handler(m: Mesh):
    """All of them."""
    asking = asyncio.ensure_future(m.scatter("hold.once"))
    await m.settle()
    asking.cancel()
    await m.settle()
    assert [hold.ended for hold in m.instances(Hold)] == [["x cancelled"]] * 3


async def test_scatter_waits_for_a_first_instance_as_a_call_does(m: Mesh):
    """And says that there is none in time."""
    for worker in m.workers(Paced):
        await m.drain(worker)
    asking = asyncio.ensure_future(m.scatter("paced.who", timeout=3.0))
    await m.advance(1.0)
    await m.start_another(Paced)
    assert [outcome.ok for outcome in await asking] == [True]
    await m.drain(m.workers(Paced)[0])
    asking = asyncio.ensure_future(m.scatter("paced.who", timeout=3.0))
    await m.advance(3.1)
    with pytest.raises(mesh.Unavailable):
        await asking


@pytest.mark.parametrize("full", [1, 2])
async def test_a_full_link_is_passed_over(full: int):
    """Callers are told `overloaded` only when every instance has its credit under way."""
    async with Mesh(Hold, replicas={Hold: 3}, clock=ManualClock(), settings={"calls.credit": 8}) as m:
        holding = [
            m.call("hold.once", instance=worker.instance_ids[0]) for worker in m.workers(Hold)[:full] for _ in range(8)
        ]
        await m.settle()
        calls = [m.call("hold.once") for _ in range(8 * (3 - full))]
        await m.settle()
        refused = [call for call in calls if call.done()]
        assert not refused, [str(call.exception()) for call in refused]
        assert isinstance(m.call("hold.once").exception(), mesh.Overloaded)
        for hold in m.instances(Hold):
            hold.gate.set()
        await asyncio.gather(*holding, *calls)
