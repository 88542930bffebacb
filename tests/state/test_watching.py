"""Watched keys: the present value, then each change that is found; one reader for all watchers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

import aiohttp
import pytest

import mesh
from mesh import http
from mesh.clock import LoopClock
from mesh.errors import BadReply, Forbidden, TooLarge, Unavailable
from mesh.state.contract import Entry
from mesh.state.watching import Watching
from mesh.testing import Mesh, no_leaks
from tests.gateway.gateway_served import served
from tests.patience import until

pytestmark = pytest.mark.timeout(60)


class Store:
    """State in memory that counts its readers, fails on demand, and answers when it is let."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.asked: list[list[str]] = []
        self.error: Exception | None = None
        self.most = 1000
        self.held: asyncio.Event | None = None

    def write(self, key: str, etag: str) -> None:
        self.entries[key] = Entry(key, etag.encode(), etag)

    async def get(self, namespace: str, keys: Sequence[str], *, timeout_s: float) -> list[Entry | None]:
        self.asked.append(list(keys))
        found = [self.entries.get(key) for key in keys]
        held = self.held
        await (asyncio.sleep(random.random() / 500) if held is None else held.wait())
        if self.error is not None:
            raise self.error
        if len(keys) > self.most:
            raise TooLarge("too large")
        return found


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    async with no_leaks():
        yield Store()


@pytest.fixture
async def watching(store: Store) -> AsyncIterator[Watching]:
    watching = Watching(lambda: store, LoopClock(), 1.0)  # type: ignore[arg-type, return-value]
    yield watching
    await watching.close()


async def etag_of(entries: AsyncIterator[Entry | None]) -> str:
    entry = await anext(entries)
    return entry.etag if entry is not None else ""


async def test_it_begins_with_what_is_not_known_yet(store: Store, watching: Watching):
    store.write("a", "1")
    fresh = watching.follow("n", "a", "")
    assert await etag_of(fresh) == "1"
    knowing = watching.follow("n", "a", "1")
    absent = watching.follow("n", "b", "")
    waiting = [asyncio.create_task(etag_of(each)) for each in (fresh, knowing, absent)]
    await until(lambda: len(store.asked) > 6, "the keys are polled")
    assert not any(task.done() for task in waiting)
    store.write("a", "2")
    store.write("b", "3")
    assert await asyncio.gather(*waiting) == ["2", "2", "3"]
    del store.entries["a"]
    assert await etag_of(fresh) == ""
    deleted = watching.follow("n", "a", "2")
    assert await etag_of(deleted) == ""
    for each in (fresh, knowing, absent, deleted):
        await each.aclose()
    await until(lambda: not watching._watchers, "nothing is watched")


async def test_one_reader_serves_all(store: Store, watching: Watching):
    """However many watch a key; the keys of a namespace are read together, in halves when they are too large."""
    for key in "abcd":
        store.write(key, "1")
    watchers = [watching.follow("n", key, "") for key in "abcd" for _ in range(50)]
    assert await asyncio.gather(*map(etag_of, watchers)) == ["1"] * 200
    store.asked.clear()
    store.most = 2
    for key in "abcd":
        store.write(key, "2")
    assert await asyncio.gather(*map(etag_of, watchers)) == ["2"] * 200
    assert [sorted(keys) for keys in store.asked[:1]] == [["a", "b", "c", "d"]]
    assert len(store.asked) < 30
    for each in watchers:
        await each.aclose()


async def test_an_older_read_does_not_bring_back_an_older_value(store: Store, watching: Watching):
    """The poll has read the key, and is told late; meanwhile a watcher has read a newer value by itself."""
    store.write("a", "1")
    first = watching.follow("n", "a", "")
    assert await etag_of(first) == "1"
    store.held = held = asyncio.Event()
    asked = len(store.asked)
    await until(lambda: len(store.asked) > asked, "the poll reads")
    store.held = None
    store.write("a", "2")
    second = watching.follow("n", "a", "")
    assert await etag_of(second) == "2"
    held.set()
    following = asyncio.create_task(etag_of(second))
    assert await etag_of(first) == "2"
    store.write("a", "3")
    assert await following == "3"
    await first.aclose()
    await second.aclose()


async def test_a_store_that_restarts_is_waited_for_and_a_refusal_is_told(store: Store, watching: Watching):
    store.error = Unavailable("down")
    entries = watching.follow("n", "a", "")
    waiting = asyncio.create_task(etag_of(entries))
    await until(lambda: len(store.asked) > 2, "it asks again")
    store.write("a", "1")
    store.error = None
    assert await waiting == "1"
    store.error = Unavailable("down")
    waiting = asyncio.create_task(etag_of(entries))
    asked = len(store.asked)
    await until(lambda: len(store.asked) > asked + 2, "it asks again")
    store.error = Forbidden("no longer")
    with pytest.raises(Forbidden):
        await waiting
    with pytest.raises(Forbidden):
        await etag_of(watching.follow("n", "a", ""))


# --- a service ------------------------------------------------------------------------------------------


class Orders(mesh.Service):
    @http.live("/orders/{id}/live")
    async def live(
        self, id: str, last: Annotated[str, http.Header("Last-Event-ID")] = ""
    ) -> AsyncIterator[http.ServerSentEvent[Any]]:
        async for order, etag in self.state("orders").watch(id, etag=last):
            yield http.ServerSentEvent(order, id=etag)


async def test_the_verb_of_services_and_nodes():
    async with Mesh() as m:
        orders = m.node.state("orders")
        etag = await orders.set("7", {"paid": False})
        async with asyncio.timeout(10):
            values = orders.watch("7")
            assert await anext(values) == ({"paid": False}, etag)
            other = await orders.set("7", {"paid": True})
            assert await anext(values) == ({"paid": True}, other)
            await orders.delete("7")
            assert await anext(values) == (None, "")
            await orders.set("7", "text", ttl=0.2)
            assert (await anext(values)).value == "text"
            assert await anext(values) == (None, "")
            await orders.set("7", "no number")
            with pytest.raises(BadReply):
                await anext(m.node.state("orders", type=int).watch("7"))
            await values.aclose()  # type: ignore[attr-defined]


async def event_of(answer: aiohttp.ClientResponse) -> dict[str, str]:
    lines = (await answer.content.readuntil(b"\n\n")).decode().splitlines()
    return dict(line.split(": ", 1) for line in lines if line)


async def test_a_browser_sees_the_state_and_resumes():
    async with no_leaks(), Mesh(Orders, transport="ipc") as m, served(m) as web:
        await until(lambda: web.gateway.catalog.offers)
        orders = m.node.state("orders")
        await orders.set("7", 1)
        headers = {"Accept": "text/event-stream"}
        async with web.http.get("/orders/7/live", headers=headers) as answer:
            assert (await event_of(answer))["data"] == "1"
            await orders.set("7", 2)
            seen = await event_of(answer)
            assert seen["data"] == "2"
        await orders.set("7", 3)
        headers["Last-Event-ID"] = seen["id"]
        async with web.http.get("/orders/7/live", headers=headers) as answer:
            told = await event_of(answer)
            assert told["data"] == "3"
        headers["Last-Event-ID"] = told["id"]
        async with web.http.get("/orders/7/live", headers=headers) as answer:
            # It knows this value: the next one comes first.
            await orders.set("7", 4)
            assert (await event_of(answer))["data"] == "4"
