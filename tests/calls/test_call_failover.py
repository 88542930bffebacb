"""What happens to a call that one instance did not answer: calls.failover's table, row by row."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from calls_services import Hold

import mesh
from mesh.calls.options import CallOptions
from mesh.testing import ManualClock, Mesh, no_leaks
from mesh.worker.worker import Worker
from tests.patience import until

#: A call that is never answered fails its test soon, not after the run's own patience.
pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    async with no_leaks():
        yield


class Tally(mesh.Service):
    """Counts who asks it; slow when told to be."""

    concurrency = 1
    queue = 0

    def __init__(self) -> None:
        self.asked = 0
        self.gate = asyncio.Event()

    @mesh.rpc
    async def stay(self) -> None:
        await self.gate.wait()

    @mesh.rpc
    async def who(self) -> str:
        self.asked += 1
        return str(self.node.identity)  # type: ignore[attr-defined]

    @mesh.rpc(idempotent=True)
    async def fail(self) -> None:
        self.asked += 1
        raise ValueError("no")


def mesh_of(*services: Any, n: int = 2, **settings: Any) -> Mesh:
    return Mesh(*services, replicas=dict.fromkeys(services, n), clock=ManualClock(), settings=settings)


def where_it_runs(m: Mesh) -> int:
    """The index of the Hold that has the call."""
    (index,) = [i for i, hold in enumerate(m.instances(Hold)) if len(hold.began) > len(hold.ended)]
    return index


def key_for(m: Mesh, worker: Worker) -> str:
    """A key that prefers this worker among those that can be called now."""
    from mesh.policy.balance import rendezvous

    ids = [instance.id for instance in m.node.instances(worker.services[0].name)]
    return next(key for key in map(str, range(1000)) if rendezvous(key, ids)[0] == worker.instance_ids[0])


async def test_lost_and_idempotent_another_instance_answers():
    """The link broke and the handler may have run: running it twice does no harm."""
    async with mesh_of(Hold) as m:
        call = m.call("hold.again")
        await m.settle()
        await m.faults.kill(Hold, where_it_runs(m))
        await m.settle()
        (left,) = m.instances(Hold)
        assert left.began == ["x"]
        left.gate.set()
        assert await call == f"x by {m.workers(Hold)[0].identity}"


async def test_lost_and_not_idempotent_fails_at_once():
    """It may have run, so it is not run again; the error says where it was."""
    async with mesh_of(Hold) as m:
        call = m.call("hold.once")
        await m.settle()
        index = where_it_runs(m)
        killed = m.workers(Hold)[index].identity
        await m.faults.kill(Hold, index)
        await m.settle()
        with pytest.raises(mesh.LinkLost, match=rf"hold\.once: .*{killed}") as caught:
            await call
        assert not caught.value.retryable
        assert m.instances(Hold)[0].began == []


async def test_idempotent_for_this_call_only():
    """The caller may know better than the declaration, both ways."""
    async with mesh_of(Hold, n=3) as m:
        repeated = m.node.client.call("hold.once", b"", 0, CallOptions(idempotent=True))
        kept = m.node.client.call("hold.again", b"", 0, CallOptions(idempotent=False))
        await m.settle()
        for _ in range(2):
            (index, *_) = [i for i, hold in enumerate(m.instances(Hold)) if hold.began]
            await m.faults.kill(Hold, index)
            await m.settle()
        assert isinstance(kept.exception(), mesh.LinkLost)
        assert not repeated.done()
        repeated.cancel()


async def test_unsent_another_instance_answers():
    """The link broke before the call was handed to it: it surely never ran, idempotent or not."""
    async with mesh_of(Tally) as m:
        for worker in m.workers(Tally):
            call = m.call("tally.who", key=key_for(m, worker))
            m.faults.cut(worker)
            assert await call != worker.identity
            await m.advance(1.0)


async def test_draining_another_instance_answers():
    """A call that crosses the goodbye is refused, and asked of another; idempotent or not."""
    async with mesh_of(Tally) as m:
        leaving, staying = m.workers(Tally)
        call = m.call("tally.who", key=key_for(m, leaving))
        leaving.node.server.goodbye("stopping")  # type: ignore[union-attr]
        assert await call == staying.identity
        assert [tally.asked for tally in m.instances(Tally)] == [0, 1]


async def test_draining_and_alone_waits_for_the_next():
    """There will be one soon: a restart looks like this."""
    async with mesh_of(Tally, n=1) as m:
        (leaving,) = m.workers(Tally)
        call = m.call("tally.who")
        leaving.node.server.goodbye("stopping")  # type: ignore[union-attr]
        await m.drain(leaving)
        assert not call.done()
        another = await m.start_another(Tally)
        assert await call == another.identity


async def test_overloaded_another_instance_answers():
    """One is full, the other is not."""
    async with mesh_of(Tally) as m:
        full, free = m.workers(Tally)
        stays = m.call("tally.stay", instance=full.instance_ids[0])
        await m.settle()
        assert await m.call("tally.who", key=key_for(m, full)) == free.identity
        m.instances(Tally)[0].gate.set()
        await stays


async def test_overloaded_everywhere_is_told_at_once():
    """Each is asked once; nobody waits."""
    async with mesh_of(Tally, n=3) as m:
        stays = [m.call("tally.stay", instance=worker.instance_ids[0]) for worker in m.workers(Tally)]
        await m.settle()
        call = m.call("tally.who")
        await m.settle()
        assert call.done()
        with pytest.raises(mesh.Overloaded, match=r"tally\.who: tally-\w+ .*\(1 running, 0 queued\)"):
            await call
        for tally in m.instances(Tally):
            tally.gate.set()
        await asyncio.gather(*stays)


async def test_a_handlers_error_is_final():
    """Idempotent or not: it ran, and failed."""
    async with mesh_of(Tally) as m:
        with pytest.raises(mesh.RemoteError):
            await m.call("tally.fail")
        assert sum(tally.asked for tally in m.instances(Tally)) == 1


async def test_a_call_to_one_instance_goes_nowhere_else():
    """Not when it is full, not when it is killed."""
    async with mesh_of(Tally) as m:
        own = m.workers(Tally)[0].instance_ids[0]
        stays = m.call("tally.stay", instance=own)
        await m.settle()
        with pytest.raises(mesh.Overloaded):
            await m.call("tally.who", instance=own)
        await m.faults.kill(Tally, 0)
        with pytest.raises(mesh.LinkLost):
            await stays
        lost = m.call("tally.who", instance=own, timeout=1.0)
        await m.advance(1.1)
        assert isinstance(lost.exception(), mesh.Unavailable)
        assert m.instances(Tally)[0].asked == 0


@pytest.mark.parametrize("trouble", ["lost", "overloaded"])
async def test_without_a_retry_budget_there_is_no_retry(trouble: str):
    """So that retries cannot double the load of a service that is ill."""
    async with mesh_of(Hold, Tally, **{"calls.retry_ratio": 0, "calls.retry_reserve": 0}) as m:
        if trouble == "lost":
            call = m.call("hold.again")
            await m.settle()
            await m.faults.kill(Hold, where_it_runs(m))
            with pytest.raises(mesh.LinkLost):
                await call
            assert m.instances(Hold)[0].began == []
        else:
            full = m.workers(Tally)[0]
            stays = m.call("tally.stay", instance=full.instance_ids[0])
            await m.settle()
            with pytest.raises(mesh.Overloaded):
                await m.call("tally.who", key=key_for(m, full))
            assert [tally.asked for tally in m.instances(Tally)] == [0, 0]
            stays.cancel()


async def test_attempts_are_bounded():
    """calls.attempts, the first included."""
    async with mesh_of(Hold, n=4, **{"calls.attempts": 2}) as m:
        call = m.call("hold.again")
        for _ in range(2):
            await m.settle()
            assert not call.done()
            await m.faults.kill(Hold, where_it_runs(m))
        await m.settle()
        assert isinstance(call.exception(), mesh.LinkLost)


@pytest.mark.parametrize("method", ["again", "once"])
async def test_a_cut_link_to_the_only_instance_is_dialled_again(method: str):
    """What may be repeated is asked again of the same instance, once it can be: there is no other to ask."""
    async with mesh_of(Hold, n=1) as m:
        (hold,) = m.instances(Hold)
        hold.gate.set()
        call = m.call(f"hold.{method}", timeout=8.0)
        if method == "again":
            hold.gate.clear()
            await m.settle()
            assert hold.began == ["x"]
            m.faults.cut(Hold)
            await m.settle()
            hold.gate.set()
        else:
            m.faults.cut(Hold)  # before it was handed to the link
        await m.advance(3.0)
        assert m.node.client.links("hold") == 1, "the link is back"
        assert call.done(), "the call waits for another instance, though this one can be asked again"
        assert await call == f"x by {m.workers(Hold)[0].identity}"


async def test_at_the_deadline_a_waiting_call_tells_its_last_trouble():
    """Not only that nobody was there."""
    async with mesh_of(Hold, n=1) as m:
        call = m.call("hold.again", timeout=5.0)
        await m.settle()
        await m.faults.kill(Hold)
        await m.advance(5.1)
        with pytest.raises(mesh.LinkLost):
            await call


async def test_failover_keeps_the_deadline():
    """The second attempt has what the first has left."""
    async with mesh_of(Hold) as m:
        call = m.call("hold.again", timeout=5.0)
        await m.advance(3.0)
        await m.faults.kill(Hold, where_it_runs(m))
        await m.settle()
        assert m.instances(Hold)[0].left_s == [pytest.approx(2.0, abs=0.05)]
        await m.advance(2.1)
        assert isinstance(call.exception(), mesh.DeadlineExceeded)


@pytest.mark.parametrize("transport", ["memory", "ipc"])
async def test_killing_one_of_three_under_load_loses_no_idempotent_call(transport):
    """Over real sockets too: each is answered, once, in time."""

    async with Mesh(Quick, replicas={Quick: 3}, transport=transport) as m:
        answered = 0

        async def caller() -> None:
            nonlocal answered
            for _ in range(100):
                await m.call("quick.who")
                answered += 1

        callers = [asyncio.ensure_future(caller()) for _ in range(16)]
        for _ in range(2):
            goal = answered + 300
            await until(lambda goal=goal: answered >= goal)  # type: ignore[misc]
            await m.faults.kill(Quick)
        await asyncio.gather(*callers)
        assert answered == 1600


class Quick(mesh.Service):
    """Answers."""

    @mesh.rpc(idempotent=True)
    async def who(self) -> str:
        await asyncio.sleep(0)
        return str(self.node.identity)  # type: ignore[attr-defined]
