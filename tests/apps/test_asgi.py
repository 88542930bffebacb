"""Applications of other frameworks as services, behind a real gateway."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import WSMsgType

import mesh
from mesh.apps.loading import is_application, load, make
from mesh.errors import SetupError
from mesh.testing import Mesh
from tests.apps import site
from tests.gateway.gateway_served import Served, served
from tests.patience import until

pytestmark = pytest.mark.timeout(60)


class Greeter(mesh.Service):
    @mesh.rpc
    async def hello(self, name: str) -> str:
        return f"Hello, {name}!"


Shop = make(site.app, "shop", prefixes=("/shop",))
Old = make(site.flask, "old", "wsgi", prefixes=("/old", "/older"))
Plain = make(site.refuses_lifespan, "plain", prefixes=("/plain", "/bad"))
Nothing = make(site.says_nothing, "nothing", prefixes=("/nothing",))


@pytest.fixture
async def web() -> AsyncIterator[Served]:
    site.EVENTS.clear()
    async with (
        Mesh(Shop, Old, Plain, Nothing, Greeter, transport="ipc", settings={"log": {"level": "error"}}) as m,
        served(m) as web,
    ):
        await until(lambda: len(web.gateway.catalog.offers) >= 5)
        yield web


async def chunks_of(count: int, size: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield bytes(size)


# --- FastAPI --------------------------------------------------------------------------------------------


async def test_requests_and_errors(web: Served):
    async with web.http.get("/shop/items/7?q=a%20b") as answer:
        assert (answer.status, await answer.json()) == (200, {"id": 7, "q": "a b"})
        assert "traceparent" in answer.headers
        assert answer.headers.getall("Server") == ["mesh"]
    async with web.http.get("/shop/items/x") as answer:
        assert (answer.status, (await answer.json())["detail"][0]["loc"]) == (422, ["path", "id"])
    async with web.http.get("/shop/none") as answer:
        assert (answer.status, await answer.json()) == (404, {"detail": "Not Found"})
    async with web.http.get("/shop/fails") as answer:
        assert (answer.status, (await answer.text())) == (500, "Internal Server Error")
    async with web.http.head("/shop/items/7") as answer:
        assert answer.status == 405
    async with web.http.get("/shop/elsewhere", allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (307, "/items/1")
    async with web.http.options("/shop/items/7") as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "GET")
    async with web.http.get("/shop/docs") as answer:
        assert "Shop" in await answer.text()


async def test_what_the_application_sees(web: Served):
    trace = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    headers = {"traceparent": trace, "Cookie": "x=1; y=2"}
    async with web.http.get("/shop/scope", headers=headers) as answer:
        seen = await answer.json()
        assert [each.split(";")[0] for each in answer.headers.getall("Set-Cookie")] == ["a=1", "b=2"]
        assert answer.headers["X-Many"] == "yes"
    assert seen.pop("trace")[3:35] == "1" * 32
    assert seen == {
        "path": "/shop/scope",
        "root_path": "/shop",
        "scheme": "http",
        "client": "127.0.0.1",
        "cookies": {"x": "1", "y": "2"},
        "state": "a pool",
        "target": "shop.asgi",
    }
    async with web.http.get("/shop/call") as answer:
        assert await answer.json() == "Hello, you!"


async def test_what_the_application_sees_behind_a_proxy():
    """The proxy speaks TLS; the application builds its addresses from that."""
    settings = {"log": {"level": "error"}, "gateway": {"proxies": ["127.0.0.1"]}}
    async with Mesh(Shop, transport="ipc", settings=settings) as m, served(m) as web:
        await until(lambda: web.gateway.catalog.offers)
        headers = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.7"}
        async with web.http.get("/shop/scope", headers=headers) as answer:
            seen = await answer.json()
        assert (seen["scheme"], seen["client"]) == ("https", "192.0.2.7")


@pytest.mark.parametrize(("count", "size"), [(1, 10), (5, 100_000), (100, 100_000)])
@pytest.mark.parametrize("chunked", [False, True])
async def test_bodies_both_ways(web: Served, count: int, size: int, chunked: bool):
    data = chunks_of(count, size) if chunked else io.BytesIO(bytes(count * size))
    async with web.http.post("/shop/echo", data=data) as answer:
        assert (answer.status, answer.content_type) == (200, "application/x-echo")
        assert len(await answer.read()) == count * size


async def test_uploads_and_streams(web: Served):
    form = aiohttp.FormData()
    form.add_field("file", io.BytesIO(bytes(300_000)), filename="a.bin")
    async with web.http.post("/shop/upload", data=form) as answer:
        assert await answer.json() == {"name": "a.bin", "size": 300_000}
    async with web.http.get("/shop/stream/1000") as answer:
        assert (await answer.text()).splitlines() == [str(n) for n in range(1000)]
    with pytest.raises(aiohttp.ClientPayloadError):
        async with web.http.get("/shop/breaks") as answer:
            await answer.read()


async def test_a_client_that_disappears_cancels_the_application(web: Served):
    host, port = web.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /shop/waits HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await until(lambda: "waiting" in site.EVENTS)
    writer.close()
    await until(lambda: "cancelled" in site.EVENTS)


async def test_background_tasks_run_to_their_end(web: Served):
    """The client has the response, and has gone."""
    async with web.http.get("/shop/later") as answer:
        assert await answer.json() == "now"
    await until(lambda: "done later" in site.EVENTS)


async def test_a_streamed_response_ends_before_background_tasks(web: Served):
    async with web.http.get("/shop/later/stream") as answer:
        assert await answer.read() == b"ab"
        assert "done later" not in site.EVENTS
    await until(lambda: "done later" in site.EVENTS)


async def test_a_body_that_the_application_does_not_read(web: Served):
    """It answers at once; the stream to it is closed, and the gateway answers others."""
    for _ in range(3):
        async with web.http.post("/shop/early", data=chunks_of(3, 100_000)) as answer:
            assert await answer.json() == "early"
    assert not web.gateway.front.endings
    async with web.http.get("/shop/items/7") as answer:
        assert answer.status == 200


async def test_a_worker_that_stops_lets_background_tasks_end():
    site.EVENTS.clear()
    async with Mesh(Shop, transport="ipc", settings={"log": {"level": "error"}}) as m, served(m) as web:
        await until(lambda: web.gateway.catalog.offers)
        async with web.http.get("/shop/later") as answer:
            assert answer.status == 200
    assert site.EVENTS == ["startup", "done later", "shutdown"]


async def test_the_lifespan_is_that_of_the_worker():
    site.EVENTS.clear()
    async with Mesh(Shop):
        assert site.EVENTS == ["startup"]
    assert site.EVENTS == ["startup", "shutdown"]
    with pytest.raises(Exception, match="no database"):
        async with Mesh(make(site.fails_to_start, "broken")):
            pass


async def test_websockets(web: Served):
    async with web.http.ws_connect("/shop/ws/7", protocols=["chat"]) as ws:
        assert ws.protocol == "chat"
        assert await ws.receive_str() == "welcome to 7"
        await ws.send_str("hello")
        assert await ws.receive_str() == "HELLO"
        await ws.send_str("bytes")
        assert await ws.receive_bytes() == b"\x00\x01"
        await ws.send_str("bye")
        message = await ws.receive()
        assert (message.type, message.data, message.extra) == (WSMsgType.CLOSE, 4001, "bye")
    # What it does after it has closed is not cancelled.
    await until(lambda: "closed" in site.EVENTS)
    async with web.http.ws_connect("/shop/ws/7") as ws:
        await ws.receive_str()
        await ws.send_str("fail")
        message = await ws.receive()
        assert (message.type, message.data) == (WSMsgType.CLOSE, 1011)
    site.EVENTS.clear()
    async with web.http.ws_connect("/shop/ws/7") as ws:
        await ws.receive_str()
    await until(lambda: "left" in site.EVENTS)
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await web.http.ws_connect("/shop/ws/closed")
    assert caught.value.status == 403
    await until(lambda: "refused" in site.EVENTS)
    async with web.http.get("/shop/ws/7", headers={"Origin": "https://evil.example", **UPGRADE}) as answer:
        assert answer.status == 403


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


# --- others ---------------------------------------------------------------------------------------------


async def test_flask(web: Served):
    async with web.http.get("/old/hello/ann") as answer:
        assert await answer.json() == {
            "name": "ann",
            "method": "GET",
            "size": 0,
            "script": "/old",
            "target": "old.asgi",
        }
    async with web.http.post("/older/hello/ann", data=chunks_of(3, 100_000)) as answer:
        assert (await answer.json())["size"] == 300_000


async def test_applications_without_a_lifespan_and_with_faults(web: Served):
    async with web.http.get("/plain/x") as answer:
        assert (answer.status, await answer.text()) == (200, "plain")
    async with web.http.get("/bad") as answer:
        assert (answer.status, (await answer.json())["code"]) == (502, "bad_reply")
    async with web.http.get("/nothing") as answer:
        assert (answer.status, (await answer.json())["code"]) == (500, "handler_error")


# --- words ----------------------------------------------------------------------------------------------


def test_words_name_applications():
    assert not is_application("services.greeting:Greeting")
    cls = load("asgi:tests.apps.site:app@/a,/b", Path.cwd())
    assert (cls.name, cls.prefixes, cls.__doc__) == ("site", ("/a", "/b"), "Shop")
    assert load("asgi:tests.apps.site:factory()", Path.cwd()).prefixes == ("/",)


@pytest.mark.parametrize(
    "word",
    [
        "asgi:tests.apps.site:none",
        "asgi:tests.apps.none:app",
        "asgi:tests.apps.site:not_an_application",
        "asgi:tests.apps.site:broken_factory()",
    ],
)
def test_wrong_words_are_refused_by_name(word: str):
    with pytest.raises(SetupError) as caught:
        load(word, Path.cwd())
    assert "site" in str(caught.value) or "none" in str(caught.value)
