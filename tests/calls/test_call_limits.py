"""How much a worker takes on: places, queues and credit, and that each is given back whatever happens."""

from __future__ import annotations

import asyncio
import random
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
    """Hold runs 3 and lets 2 wait; its method `narrow` 1 and 2."""
    settings = {"services.hold.concurrency": 3, "services.hold.queue": 2}
    async with Mesh([Hold, Echo], clock=ManualClock(), settings=settings) as m:
        yield m


async def finish(m: Mesh, *calls: asyncio.Future[str]) -> list[str]:
    """Let all handlers go; who they were."""
    m.instances(Hold)[0].gate.set()
    return [(await call).partition(" ")[0] for call in calls]


async def test_past_the_places_calls_wait_in_order_and_past_the_queue_they_are_refused_at_once(m: Mesh):
    """Of a service."""
    (hold,) = m.instances(Hold)
    calls = [m.call("hold.once", str(i)) for i in range(6)]
    await m.settle()
    assert hold.began == ["0", "1", "2"]
    assert [call.done() for call in calls] == [False] * 5 + [True]
    with pytest.raises(mesh.Overloaded, match=r"hold\.once: hold-\w+ .*\(3 running, 2 queued\)") as caught:
        await calls[5]
    assert (caught.value.status, caught.value.retryable) == (503, True)
    assert await finish(m, *calls[:5]) == ["0", "1", "2", "3", "4"]
    assert hold.began == ["0", "1", "2", "3", "4"]


async def test_a_method_has_places_and_a_queue_of_its_own(m: Mesh):
    """The rest of the service goes on beside it."""
    (hold,) = m.instances(Hold)
    calls = [m.call("hold.narrow", str(i)) for i in range(4)]
    beside = m.call("hold.once", "beside")
    await m.settle()
    assert hold.began == ["0", "beside"]
    with pytest.raises(mesh.Overloaded, match=r"hold\.narrow: .*\(1 running, 2 queued\)"):
        await calls[3]
    assert await finish(m, *calls[:3], beside) == ["0", "1", "2", "beside"]
    assert hold.began == ["0", "beside", "1", "2"]


async def test_other_services_of_the_worker_and_its_own_methods_are_answered_while_one_is_full(m: Mesh):
    """A full worker can still be seen."""
    calls = [m.call("hold.once") for _ in range(5)]
    assert await m.call("echo.one", 1) == 1
    info = await m.call("$worker.info", instance=m.workers(Hold)[0].instance_ids[0])
    assert info["in_hand"] == 6
    await finish(m, *calls)


async def test_a_queued_call_that_is_cancelled_never_runs_and_makes_room(m: Mesh):
    """In both queues."""
    (hold,) = m.instances(Hold)
    calls = [m.call("hold.once", str(i)) for i in range(5)]
    narrow = [m.call("echo.one", 0)]
    await m.settle()
    calls[3].cancel()
    await m.settle()
    calls.append(m.call("hold.once", "5"))
    await m.settle()
    assert not calls[5].done()
    assert await finish(m, *calls[:3], *calls[4:]) == ["0", "1", "2", "4", "5"]
    assert hold.began == ["0", "1", "2", "4", "5"]
    await asyncio.gather(*narrow)


async def test_a_call_that_waits_behind_a_method_and_is_cancelled_never_runs(m: Mesh):
    """Its place in the queue is free again."""
    (hold,) = m.instances(Hold)
    calls = [m.call("hold.narrow", str(i)) for i in range(3)]
    await m.settle()
    calls[1].cancel()
    await m.settle()
    calls.append(m.call("hold.narrow", "3"))
    assert await finish(m, calls[0], *calls[2:]) == ["0", "2", "3"]
    assert hold.began == ["0", "2", "3"]


async def test_a_deadline_ends_waiting_in_the_queue(m: Mesh):
    """The handler never sees it."""
    (hold,) = m.instances(Hold)
    calls = [m.call("hold.once", str(i)) for i in range(3)]
    queued = m.call("hold.once", "late", timeout=1.0)
    await m.advance(1.1)
    assert isinstance(queued.exception(), mesh.DeadlineExceeded)
    await finish(m, *calls)
    await m.settle()
    assert "late" not in hold.began


async def test_the_narrow_method_waits_for_a_place_of_the_service_too(m: Mesh):
    """Both gates, in this order, and both given back."""
    (hold,) = m.instances(Hold)
    calls = [m.call("hold.once", str(i)) for i in range(3)]
    narrow = [m.call("hold.narrow", f"n{i}") for i in range(3)]
    await m.settle()
    assert hold.began == ["0", "1", "2"]
    calls[0].cancel()
    await m.settle()
    assert hold.began[3:] == ["n0"]
    assert await finish(m, *calls[1:], *narrow) == ["1", "2", "n0", "n1", "n2"]
    assert hold.began[3:] == ["n0", "n1", "n2"]


async def test_the_class_says_how_many_unless_it_says_nothing():
    """A class's own numbers go before the configured ones."""
    async with Mesh(Single, clock=ManualClock(), settings={"services.single.concurrency": 9}) as m:
        calls = [m.call("single.stay") for _ in range(3)]
        await m.settle()
        assert [call.done() for call in calls] == [False, False, True]
        assert isinstance(calls[2].exception(), mesh.Overloaded)
        m.instances(Single)[0].gate.set()
        await asyncio.gather(*calls[:2])


class Single(mesh.Service):
    """One at a time, and one more may wait."""

    concurrency = 1
    queue = 1

    def __init__(self) -> None:
        self.gate = asyncio.Event()

    @mesh.rpc
    async def stay(self) -> None:
        await self.gate.wait()


async def test_a_link_carries_no_more_than_its_credit():
    """Past it the caller is told at once, without asking the worker; answered ones make room."""
    async with Mesh(Hold, clock=ManualClock(), settings={"calls.credit": 2}) as m:
        (hold,) = m.instances(Hold)
        calls = [m.call("hold.once", str(i)) for i in range(2)]
        third = m.call("hold.once")
        assert third.done()
        with pytest.raises(mesh.Overloaded, match=" 2 calls"):
            await third
        await m.settle()
        calls[0].cancel()
        await m.settle()
        calls.append(m.call("hold.once", "2"))
        await m.settle()
        hold.gate.set()
        assert [await call for call in calls[1:]] == [f"{i} by {hold.node.identity}" for i in (1, 2)]


async def test_bodies_past_the_limit_are_refused_both_ways():
    """By name and size; the link and what else is on it go on."""
    async with Mesh(Echo, clock=ManualClock(), settings={"calls.max_body": "1MiB"}) as m:
        beside = m.call("echo.one", "beside")
        with pytest.raises(mesh.TooLarge, match=r"echo\.blob: .*\d{7} bytes.* 1048576"):
            await m.call("echo.blob", bytes((1 << 20) + 1))
        with pytest.raises(mesh.MeshError, match="1048577") as caught:
            await m.call("echo.zeros", (1 << 20) + 1)
        assert caught.value.code == "too_large"
        assert len(await m.call("echo.zeros", 1 << 20)) == 1 << 20
        assert await beside == "beside"


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_happens_every_place_is_given_back(seed: int):
    """A storm of calls that end, are cancelled at any moment, run out of time or lose their link; then all is free."""
    rng = random.Random(seed)
    settings = {"services.hold.concurrency": 3, "services.hold.queue": 3, "calls.credit": 12}
    async with Mesh(Hold, clock=ManualClock(), seed=seed, settings=settings) as m:
        (hold,) = m.instances(Hold)
        calls: list[asyncio.Future[str]] = []
        for _ in range(150):
            match rng.randrange(9):
                case 0 | 1 | 2:
                    calls.append(m.call(rng.choice(("hold.once", "hold.narrow")), timeout=rng.choice((0.05, 1.0, 9.0))))
                case 3 | 4 if calls:
                    rng.choice(calls).cancel()
                case 5:
                    await m.advance(rng.choice((0.0, 0.03, 0.3)))
                case 6:
                    await asyncio.sleep(0)
                case 7:
                    hold.gate.set()
                    await m.settle()
                    hold.gate.clear()
                case 8 if rng.random() < 0.3:
                    m.faults.cut(Hold)
        hold.gate.set()
        await m.advance(10.0)
        assert all(call.done() for call in calls)
        for call in calls:
            if not call.cancelled():
                call.exception()
        hold.gate.clear()
        hold.began.clear()
        fresh = [m.call("hold.once", str(i)) for i in range(6)]
        await m.settle()
        assert (hold.began, [call.done() for call in fresh]) == (["0", "1", "2"], [False] * 6)
        hold.gate.set()
        await m.settle()
        assert all(call.done() for call in fresh)
        narrow = m.call("hold.narrow")
        await m.settle()
        assert (await narrow).startswith("x by")
