"""Live streams: over Server-Sent Events and WebSockets, resumed by id, while everything restarts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

import aiohttp
import pytest

import mesh
from mesh import http
from mesh.calls.declared import BadDeclaration
from mesh.testing import Mesh
from tests.gateway.gateway_served import Served, served
from tests.patience import until

pytestmark = pytest.mark.timeout(60)


class Orders(mesh.Service):
    @http.live("/orders/{id}/live")
    async def live(
        self, id: str, last: Annotated[str, http.Header("Last-Event-ID")] = "", after: int | None = None
    ) -> AsyncIterator[http.ServerSentEvent[Any]]:
        async for event in self.tail(f"order.{id}.#", after=int(last) if last else after):
            yield http.ServerSentEvent(event.data, id=str(event.offset), event=event.topic)

    @http.get("/fixed")
    async def fixed(self) -> AsyncIterator[http.ServerSentEvent[dict[str, int]]]:
        yield http.ServerSentEvent({"x": 1}, id="a", event="first")
        yield http.ServerSentEvent({"x": 2})


@pytest.fixture
async def mesh_() -> AsyncIterator[Mesh]:
    async with Mesh(Orders, transport="ipc", settings={"log": {"level": "error"}}) as m:
        yield m


@pytest.fixture
async def web(mesh_: Mesh) -> AsyncIterator[Served]:
    async with served(mesh_) as web:
        await until(lambda: web.gateway.catalog.offers)
        yield web


async def events_of(answer: aiohttp.ClientResponse) -> AsyncIterator[dict[str, str]]:
    """The events of an answer, parsed as a browser does."""
    found: dict[str, str] = {}
    async for line in answer.content:
        text = line.decode().rstrip("\n")
        if not text:
            if "data" in found:
                yield found
            found = {}
        elif not text.startswith(":"):
            name, _, value = text.partition(": ")
            found[name] = found.get(name, "") + value


async def test_ids_and_names_in_every_form(web: Served, mesh_: Mesh):
    async with web.http.get("/fixed", headers={"Accept": "text/event-stream"}) as answer:
        first, second, end = [each async for each in events_of(answer)]
        assert first == {"id": "a", "event": "first", "data": '{"x":1}'}
        assert second == {"data": '{"x":2}'}
        assert end["id"] == "mesh-end"
    async with web.http.get("/fixed", headers={"Accept": "application/x-ndjson"}) as answer:
        assert (await answer.text()).splitlines() == [
            '{"id":"a","event":"first","data":{"x":1}}',
            '{"id":"","event":"","data":{"x":2}}',
        ]
    # A caller from Python gets the data alone.
    assert [each async for each in mesh_.stream("orders.fixed")] == [{"x": 1}, {"x": 2}]


async def test_a_stream_is_resumed_where_it_was_cut(web: Served, mesh_: Mesh):
    for n in range(5):
        await mesh_.node.emit("order.7.step", n, durable=True)
        await mesh_.node.emit("order.8.step", n, durable=True)
    seen: list[tuple[str, str]] = []
    async with web.http.get("/orders/7/live?after=0", headers={"Accept": "text/event-stream"}) as answer:
        async for event in events_of(answer):
            seen.append((event["id"], event["data"]))
            if len(seen) == 3:
                break
    headers = {"Accept": "text/event-stream", "Last-Event-ID": seen[-1][0]}
    async with web.http.get("/orders/7/live?after=0", headers=headers) as answer:
        events = events_of(answer)
        seen += [(event["id"], event["data"]) for event in [await anext(events), await anext(events)]]
        await mesh_.node.emit("order.7.step", 5, durable=True)
        event = await anext(events)
        assert event["event"] == "order.7.step"
        seen.append((event["id"], event["data"]))
    assert [data for _, data in seen] == ["0", "1", "2", "3", "4", "5"]
    async with web.http.ws_connect(f"/orders/7/live?after={seen[3][0]}") as ws:
        assert [(await ws.receive_json())["data"] for _ in range(2)] == [4, 5]


async def test_the_gateway_and_the_worker_restart(mesh_: Mesh):
    """A client that reconnects as a browser does gets everything, once and in order."""
    seen: list[int] = []
    over = asyncio.Event()
    address: list[str] = []

    async def browser() -> None:
        last = ""
        async with aiohttp.ClientSession() as session:
            while not over.is_set():
                headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {})}
                try:
                    async with session.get(f"{address[0]}/orders/7/live?after=0", headers=headers) as answer:
                        async for event in events_of(answer):
                            if event.get("event", "").startswith("order."):
                                seen.append(int(event["data"]))
                                last = event["id"]
                            if seen and seen[-1] == 199:
                                return
                except aiohttp.ClientError:
                    await asyncio.sleep(0.05)

    async def publish(first: int, count: int) -> None:
        for n in range(first, first + count):
            await mesh_.node.emit("order.7.step", n, durable=True)
            await asyncio.sleep(0.002)

    async with served(mesh_) as web:
        address.append(web.url)
        await until(lambda: web.gateway.catalog.offers)
        client = asyncio.create_task(browser())
        await publish(0, 50)
    async with served(mesh_) as web:
        address[0] = web.url
        await until(lambda: web.gateway.catalog.offers)
        await publish(50, 50)
        await mesh_.faults.kill(Orders)
        await mesh_.start_another(Orders)
        await publish(100, 50)
        mesh_.faults.lose_engine()
        writing = asyncio.create_task(publish(150, 50))
        await asyncio.sleep(0.3)
        mesh_.faults.heal()
        await writing
        await client
    assert seen == list(range(200))


@pytest.mark.parametrize("values", [{"id": "a\nb"}, {"event": "a\rb"}, {"id": 7}, {"id": "x" * 2000}])
def test_wrong_ids_are_refused(values: Any):
    with pytest.raises(ValueError, match="ServerSentEvent"):
        http.ServerSentEvent(1, **values)


async def test_only_a_stream_sends_events():
    class Odd(mesh.Service):
        @http.get("/x")
        async def one(self) -> http.ServerSentEvent[int]:
            return http.ServerSentEvent(1)

    with pytest.raises(BadDeclaration):
        async with Mesh(Odd):
            pass
