"""Events from real nodes to real workers: one instance of each service, or every one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

import mesh
from mesh.testing import ManualClock, Mesh, no_leaks
from tests.patience import until

#: A call that is never answered fails its test soon, not after the run's own patience.
pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    async with no_leaks():
        yield


class Mail(mesh.Service):
    """Hears of orders: one instance of each, and every instance of news."""

    def __init__(self) -> None:
        self.ones: list[str] = []
        self.news: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    @mesh.on("order.*")
    async def ordered(self, data: str) -> None:
        self.ones.append(data)
        await self.gate.wait()

    @mesh.on("news.#", to="every")
    async def heard(self, data: str) -> None:
        self.news.append(data)


class Shop(mesh.Service):
    """Tells."""

    @mesh.rpc
    async def sell(self, what: str) -> None:
        await self.emit("order.created", what)
        await self.emit("news.sold.shoes", what)

    @mesh.on("order.#")
    async def count(self, data: str) -> None: ...


@pytest.mark.parametrize("transport", ["memory", "ipc"])
async def test_one_of_each_service_or_every_instance_hears(transport):
    """Emitted by a client and by a service."""
    async with Mesh(Mail, Shop, replicas={Mail: 3}, transport=transport) as m:
        heard = await m.listen("news.#")
        await m.call("shop.sell", "a")
        await m.emit("order.created", "b")
        await m.emit("news.b", "b")
        await m.emit("nobody.listens")
        await heard.wait(2)
        await until(lambda: all(len(mail.news) == 2 for mail in m.instances(Mail)))
        mails = m.instances(Mail)
        assert sorted(one for mail in mails for one in mail.ones) == ["a", "b"]
        assert [sorted(mail.news) for mail in mails] == [["a", "b"]] * 3


async def test_an_event_goes_to_another_instance_when_the_first_dies_before_acknowledging():
    """The emitter notices nothing."""
    async with Mesh(Mail, replicas={Mail: 2}, clock=ManualClock()) as m:
        for mail in m.instances(Mail):
            mail.gate.clear()
        emitting = asyncio.ensure_future(m.emit("order.created", "a"))
        await m.settle()
        (index,) = [i for i, mail in enumerate(m.instances(Mail)) if mail.ones]
        await m.faults.kill(Mail, index)
        await m.settle()
        (left,) = m.instances(Mail)
        assert left.ones == ["a"]
        assert not emitting.done()
        left.gate.set()
        await emitting


async def test_an_event_that_nobody_acknowledges_names_the_service():
    """And only that one."""

    class Bad(mesh.Service):
        @mesh.on("order.*")
        async def ordered(self, data: int) -> None: ...

    async with Mesh(Mail, Bad, clock=ManualClock()) as m:
        with pytest.raises(mesh.MeshError, match=r"bad \(bad_arguments") as caught:
            await m.emit("order.created", "a")
        assert list(caught.value.details["services"]) == ["bad"]
        assert m.instances(Mail)[0].ones == ["a"]


async def test_an_event_finds_the_release_that_listens_to_it():
    """Of two releases of one service only the newer asks for the topic: the older passes it on."""

    class Newer(Mail):
        name = "mail"

        @mesh.on("payment.*")
        async def paid(self, data: str) -> None:
            self.ones.append(data)

    async with Mesh(Mail, clock=ManualClock()) as m:
        await m.start_another(Newer)
        for i in range(12):
            await m.emit("payment.done", str(i), key=str(i))
        (newer,) = m.instances(Newer)
        assert newer.ones == [str(i) for i in range(12)]


async def test_an_event_in_hand_is_finished_before_the_worker_leaves():
    """Both ways of hearing."""

    class Slow(mesh.Service):
        def __init__(self) -> None:
            self.gate = asyncio.Event()
            self.done: list[str] = []

        @mesh.on("a")
        async def one(self) -> None:
            await self.gate.wait()
            self.done.append("one")

        @mesh.on("a", to="every")
        async def every(self) -> None:
            await self.gate.wait()
            self.done.append("every")

    async with Mesh(Slow, clock=ManualClock()) as m:
        (slow,) = m.instances(Slow)
        emitting = asyncio.ensure_future(m.emit("a"))
        await m.settle()
        draining = asyncio.ensure_future(m.drain(m.workers(Slow)[0]))
        await m.settle()
        slow.gate.set()
        assert await draining is True
        await emitting
        assert sorted(slow.done) == ["every", "one"]
