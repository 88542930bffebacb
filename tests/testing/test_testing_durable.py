"""Testing what is durable: a mesh with its engine, and one service by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

import mesh
from mesh.errors import DeadlineExceeded, LockTaken
from mesh.testing import FakeNode, ManualClock, Mesh, no_leaks, unit

pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    async with no_leaks():
        yield


class Orders(mesh.Service):
    """Does a bit of everything."""

    @mesh.task
    async def charge(self, id: str) -> str:
        async with self.atomic():
            await self.state("orders").set(id, "charged", etag="")
            await self.emit("order.charged", {"id": id}, key=id, durable=True)
            await self.defer("mail.send", id, to="ujun", key=f"mail-{id}", delay="5m")
        return "charged"

    @mesh.rpc
    async def place(self, id: str) -> str:
        job = await self.defer(self.charge, id, priority=9)
        await self.emit("order.placed", id)
        async with self.batch() as b:
            b.defer(self.charge, id + "-2")
        await self.chain(self.step(self.charge, id + "-3"), self.step("mail.send", mesh.prior))
        return job.id

    @mesh.task(retries=0)
    async def sleep(self, seconds: float) -> None:
        await self.node.clock.sleep(seconds)  # type: ignore[attr-defined]

    @mesh.rpc
    async def locked(self) -> int:
        async with self.lock("orders", wait=0) as held:
            return held.token


# --- one service by itself --------------------------------------------------------------------------------


async def test_what_a_service_defers_is_recorded():
    """With its arguments as they travel; nobody runs it."""
    node = FakeNode()
    orders = unit(Orders, node=node)
    id = await orders.place("o1")
    assert [(one.target, one.args, one.kwargs) for one in node.deferred] == [
        ("orders.charge", ("o1",), {}),
        ("orders.charge", ("o1-2",), {}),
        ("orders.charge", ("o1-3",), {}),
        ("mail.send", (None,), {}),
    ]
    assert (node.deferred[0].priority, node.deferred[0].task.id) == (9, id)
    assert await node.job(id).status() == "ready"
    assert [(one.topic, one.durable) for one in node.emitted] == [("order.placed", False)]


async def test_blocks_and_state_work_as_in_a_mesh():
    """Effects are there when the block is over; a Conflict is one."""
    node = FakeNode(clock=ManualClock())
    orders = unit(Orders, node=node)
    assert await orders.charge("o1") == "charged"
    assert (await node.state("orders").get("o1")).value == "charged"
    (event,) = node.emitted
    assert (event.topic, event.data, event.key, event.durable) == ("order.charged", {"id": "o1"}, "o1", True)
    (mail,) = node.deferred
    assert (mail.target, mail.args, mail.kwargs, mail.key) == ("mail.send", ("o1",), {"to": "ujun"}, "mail-o1")
    assert mail.due_at == node.clock.wall() + 300
    with pytest.raises(mesh.Conflict):
        await orders.charge("o1")
    assert len(node.emitted) == len(node.deferred) == 1


async def test_locks_work_in_a_unit_test():
    """Held once at a time; the token grows."""
    orders = unit(Orders)
    first = await orders.locked()
    assert await orders.locked() > first
    async with orders.lock("orders"):
        with pytest.raises(LockTaken):
            await orders.locked()


# --- a whole mesh -----------------------------------------------------------------------------------------


async def test_a_test_looks_at_queues_and_jobs():
    """And waits until nothing is left to do."""
    async with Mesh(Orders, clock=ManualClock()) as m:
        await m.defer(Orders.charge, "o1")
        await m.defer("orders.sleep", "long")
        await m.idle()
        assert {info.name: (info.done, info.delayed, info.dead) for info in await m.queues()} == {
            "mail.send": (0, 1, 0),
            "orders.charge": (1, 0, 0),
            "orders.sleep": (0, 0, 1),
        }
        assert [job.status for job in await m.jobs("orders.charge")] == ["done"]
        assert [job.queue for job in await m.jobs("mail.send", "delayed")] == ["mail.send"]
        assert await m.jobs("mail.send", "ready") == await m.dead("mail.send") == []
        (dead,) = await m.dead()
        assert (dead.queue, dead.reason) == ("orders.sleep", "undecodable")


async def test_idle_says_what_is_not():
    """With a hand-turned clock: that it must be turned."""
    async with Mesh(Orders, clock=ManualClock()) as m:
        await m.defer(Orders.sleep, 5.0)
        with pytest.raises(DeadlineExceeded, match=r"orders\.sleep \(0 ready, 1 running\)"):
            await m.idle()
        await m.advance(5.0)
        await m.idle()
    async with Mesh(Orders) as m:
        await m.defer(Orders.sleep, 0.01)
        with pytest.raises(DeadlineExceeded):
            await m.idle(timeout=0.0)
        await m.idle()


@pytest.mark.parametrize("transport", ["memory", "ipc"])
async def test_the_engine_is_shared_whatever_the_transport(transport):
    """What one process writes, all see."""
    async with Mesh(Orders, replicas={Orders: 2}, transport=transport) as m:
        id = await m.call("orders.place", "o1")
        assert await m.job(id).result(timeout=5) == "charged"
        assert ("o1", "charged") in [item async for item in m.state("orders").items()]
        async with m.lock("orders"):
            with pytest.raises(LockTaken):
                await m.call("orders.locked")
