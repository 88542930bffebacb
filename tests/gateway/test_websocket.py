"""WebSockets of services: messages both ways, the ends of a connection, and events for many clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import WSMsgType

import mesh
from mesh import http
from mesh.calls.declared import BadDeclaration
from mesh.errors import SetupError
from mesh.gateway.websocket import closing
from mesh.gateway.websocket.frames import BINARY, TEXT, frame
from mesh.testing import Mesh, no_leaks
from tests.gateway.gateway_served import Served, served
from tests.patience import until

pytestmark = pytest.mark.timeout(60)


class Move(msgspec.Struct):
    x: int
    y: int = 0


class Chat(mesh.Service):
    def __init__(self) -> None:
        self.left: list[str] = []
        self.cancelled = 0
        self.silent_began = asyncio.Event()
        self.read = 0
        self.tenants: list[str] = []

    @http.websocket("/chat/{room}", topics=["room.*"])
    async def chat(self, room: str, messages: AsyncIterator[str], name: str = "anon") -> AsyncIterator[str]:
        await http.join(f"room.{room}")
        yield f"welcome {name}"
        try:
            async for message in messages:
                if message == "leave":
                    await http.leave(f"room.{room}")
                    yield "left"
                elif message == "other":
                    await http.join("elsewhere.1")
                else:
                    await self.emit(f"room.{room}", f"{name}: {message}")
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.left.append(name)

    @http.websocket("/echo")
    async def echo(self, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for message in messages:
            yield message

    @http.websocket("/moves", subprotocols=["moves.v2", "moves.v1"])
    async def moves(self, moves: AsyncIterator[Move]) -> AsyncIterator[Move]:
        async for move in moves:
            yield Move(move.y, move.x)

    @http.websocket("/ticks/{n}")
    async def ticks(self, n: int) -> AsyncIterator[int]:
        for number in range(n):
            yield number

    @http.websocket("/silent")
    async def silent(self) -> AsyncIterator[int]:
        self.silent_began.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        yield 0

    @http.websocket("/slow")
    async def slow(self, messages: AsyncIterator[bytes]) -> AsyncIterator[int]:
        async for _ in messages:
            self.read += 1
            await asyncio.sleep(3600)
        yield 0

    @http.websocket("/fails/{how}")
    async def fails(self, how: str) -> AsyncIterator[int]:
        if how == "forbidden":
            raise mesh.Forbidden("no")
        if how == "overloaded":
            raise mesh.Overloaded("full")
        if how == "bug":
            raise ZeroDivisionError
        yield 0

    @http.get("/plain")
    async def plain(self) -> int:
        return 1

    @http.get("/both")
    async def both(self) -> str:
        return "by GET"

    @http.websocket("/both")
    async def both_socket(self) -> AsyncIterator[str]:
        yield "by WebSocket"


SETTINGS = {"gateway": {"websocket": {"max_message": "64KiB", "backlog": "256KiB"}}, "log": {"level": "error"}}


@pytest.fixture
async def mesh_() -> AsyncIterator[Mesh]:
    async with no_leaks(), Mesh(Chat, transport="ipc", settings=SETTINGS) as m:
        yield m


@pytest.fixture
async def web(mesh_: Mesh) -> AsyncIterator[Served]:
    async with served(mesh_) as web:
        await until(lambda: web.gateway.catalog.offers)
        yield web


async def close_of(ws: aiohttp.ClientWebSocketResponse) -> tuple[int | None, str]:
    """The code and the reason with which the server closes."""
    message = await ws.receive()
    assert message.type is WSMsgType.CLOSE
    return message.data, str(message.extra).partition(";")[0]


# --- messages -------------------------------------------------------------------------------------------


async def test_text_binary_and_json(web: Served):
    async with web.http.ws_connect("/chat/1?name=ann") as ws:
        assert await ws.receive_str() == "welcome ann"
    async with web.http.ws_connect("/echo") as ws:
        for size in (0, 1, 125, 126, 65_000):
            await ws.send_bytes(bytes(size))
            assert await ws.receive_bytes() == bytes(size)
    async with web.http.ws_connect("/moves") as ws:
        await ws.send_json({"x": 1, "y": 2})
        assert await ws.receive_json() == {"x": 2, "y": 1}
        await ws.send_bytes(msgspec.msgpack.encode(Move(3, 4)))
        assert await ws.receive_json() == {"x": 4, "y": 3}
    async with web.http.ws_connect("/ticks/3") as ws:
        assert [await ws.receive_str() for _ in range(3)] == ["0", "1", "2"]
        assert await close_of(ws) == (closing.NORMAL, "")


async def test_the_handshake_has_the_header_lines_of_every_answer(web: Served):
    trace = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    async with web.http.ws_connect(
        "/moves", protocols=["moves.v1", "moves.v2"], headers={"traceparent": trace, "X-Request-Id": "abc"}
    ) as ws:
        headers = ws._response.headers
        assert (headers["traceparent"], headers["X-Request-Id"], headers["Server"]) == (trace, "abc", "mesh")
        assert ws.protocol == "moves.v1"


async def test_the_client_closes_and_the_handler_ends(web: Served, mesh_: Mesh):
    (chat,) = mesh_.instances(Chat)
    async with web.http.ws_connect("/chat/1?name=ann") as ws:
        await ws.receive_str()
    await until(lambda: chat.left == ["ann"])
    async with web.http.ws_connect("/silent"):
        await chat.silent_began.wait()
    await until(lambda: chat.cancelled == 1)
    await until(lambda: not web.gateway.front.sockets)


async def test_a_client_that_disappears_cancels_the_handler(web: Served, mesh_: Mesh):
    (chat,) = mesh_.instances(Chat)
    ws = await web.http.ws_connect("/chat/1")
    await ws.receive_str()
    transport = ws._response.connection.transport  # type: ignore[union-attr]
    transport.abort()  # type: ignore[union-attr]
    await until(lambda: chat.cancelled == 1)
    assert chat.left == []


async def test_a_slow_handler_holds_the_client_back(web: Served, mesh_: Mesh):
    (chat,) = mesh_.instances(Chat)
    async with web.http.ws_connect("/slow") as ws:
        await ws.send_bytes(b"x")
        await until(lambda: chat.read == 1)
        sent = 0

        async def send() -> None:
            nonlocal sent
            while True:
                await ws.send_bytes(bytes(60_000))
                sent += 1

        sending = asyncio.create_task(send())
        before = -1
        while before < sent:
            before = sent
            await asyncio.sleep(0.3)
        sending.cancel()
        assert chat.read == 1
        assert sent * 60_000 < 30 * 2**20
        ws._response.connection.transport.abort()  # type: ignore[union-attr]


# --- ends -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "send", "code", "reason"),
    [
        ("/fails/forbidden", None, closing.POLICY, "forbidden"),
        ("/fails/overloaded", None, closing.LATER, "overloaded"),
        ("/fails/bug", None, closing.INTERNAL, "handler_error"),
        ("/moves", '{"x": "one"}', closing.INVALID, "bad_arguments"),
        ("/moves", "{", closing.INVALID, "bad_arguments"),
        ("/echo", "text", closing.UNSUPPORTED, "unsupported_message"),
        ("/silent", "text", closing.UNSUPPORTED, "unsupported_message"),
    ],
)
async def test_an_error_is_the_code_of_the_close_frame(
    web: Served, path: str, send: str | None, code: int, reason: str
):
    async with web.http.ws_connect(path) as ws:
        if send is not None:
            await ws.send_str(send)
        assert await close_of(ws) == (code, reason)


async def test_a_message_above_the_limit_ends_the_connection(web: Served, mesh_: Mesh):
    async with web.http.ws_connect("/echo", max_msg_size=0) as ws:
        await ws.send_bytes(bytes(2**17))
        assert (await close_of(ws))[0] == closing.TOO_BIG
    async with web.http.ws_connect("/echo") as ws:
        await ws.send_bytes(b"1")
        assert await ws.receive_bytes() == b"1"


@pytest.mark.parametrize(
    ("path", "headers", "status", "code"),
    [
        ("/plain", {}, 405, "method_not_allowed"),
        ("/nowhere", {}, 404, "unknown_route"),
        ("/ticks/many", {}, 400, "bad_arguments"),
        ("/chat/1?name=a&name=b", {}, 400, "bad_arguments"),
        ("/echo", {"Origin": "https://evil.example"}, 403, "cross_site"),
        ("/echo", {"Sec-Fetch-Site": "cross-site"}, 403, "cross_site"),
        ("/echo", {"Host": "evil.example"}, 421, "wrong_host"),
        ("/echo", {"Sec-WebSocket-Version": "9"}, 426, "upgrade_required"),
        ("/echo", {"Sec-WebSocket-Key": "short"}, 400, "bad_handshake"),
        ("/echo", {"Sec-WebSocket-Key": ""}, 400, "bad_handshake"),
    ],
)
async def test_a_refused_handshake_is_a_problem(
    web: Served, path: str, headers: dict[str, str], status: int, code: str
):
    wanted = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        **headers,
    }
    async with web.http.get(path, headers=wanted) as answer:
        assert (answer.status, (await answer.json())["code"]) == (status, code)
        assert answer.headers["Connection"] == "close"


async def test_the_same_path_may_be_a_route_too(web: Served):
    async with web.http.get("/both") as answer:
        assert await answer.json() == "by GET"
    async with web.http.ws_connect("/both") as ws:
        assert await ws.receive_str() == "by WebSocket"
    async with web.http.get("/echo") as answer:
        assert (answer.status, answer.headers["Upgrade"]) == (426, "websocket")
    async with web.http.get("/openapi.json") as answer:
        paths = (await answer.json())["paths"]
    assert "/both" in paths
    assert "/echo" not in paths


async def test_a_gateway_that_drains_closes_with_a_hint(mesh_: Mesh):
    async with served(mesh_) as web:
        await until(lambda: web.gateway.catalog.offers)
        ws = await web.http.ws_connect("/chat/1", autoclose=False)
        assert await ws.receive_str() == "welcome anon"
        web.drain()
        message = await ws.receive()
    assert (message.type, message.data) == (WSMsgType.CLOSE, closing.RESTART)
    reason, _, hint = str(message.extra).partition(";")
    assert reason == "draining"
    name, _, wait_ms = hint.partition("=")
    assert name == "retry_ms"
    assert 0 <= int(wait_ms) <= closing.SPREAD_MS


async def test_a_worker_that_drains_closes_with_a_hint(web: Served, mesh_: Mesh):
    async with web.http.ws_connect("/chat/1") as ws:
        await ws.receive_str()
        (worker,) = mesh_.workers(Chat)
        await mesh_.drain(worker)
        assert await close_of(ws) == (closing.RESTART, "draining")


async def test_a_worker_that_dies_closes_with_a_hint(web: Served, mesh_: Mesh):
    async with web.http.ws_connect("/chat/1") as ws:
        await ws.receive_str()
        await mesh_.faults.kill(Chat)
        assert await close_of(ws) == (closing.RESTART, "link_lost")


# --- events for many ------------------------------------------------------------------------------------


async def test_an_event_reaches_every_client_of_its_room_and_no_other(mesh_: Mesh):
    async with served(mesh_) as one, served(mesh_) as two:
        for web in (one, two):
            await until(lambda web=web: web.gateway.front.rooms.patterns == ("room.*",))
        await until(lambda: len(mesh_.node.table.instances("gateway")) == 2)
        sockets = [await web.http.ws_connect(f"/chat/7?name=c{n}") for n, web in enumerate((one, one, two))]
        other = await one.http.ws_connect("/chat/8")
        for ws in (*sockets, other):
            await ws.receive_str()
        await sockets[0].send_str("hello")
        assert [await ws.receive_str() for ws in sockets] == ["c0: hello"] * 3
        # In order, and the room that it left sends nothing.
        await sockets[1].send_str("leave")
        assert await sockets[1].receive_str() == "left"
        for n in range(20):
            await mesh_.emit("room.7", str(n))
        assert [await sockets[2].receive_str() for _ in range(20)] == [str(n) for n in range(20)]
        await mesh_.emit("room.8", {"x": 1})
        await mesh_.emit("room.8", b"bytes")
        assert await other.receive_json() == {"x": 1}
        assert await other.receive_bytes() == b"bytes"
        await mesh_.emit("room.8", "text")
        assert await other.receive_str() == "text"
        await sockets[1].send_str("other")
        assert await close_of(sockets[1]) == (closing.POLICY, "forbidden")
        for ws in (*sockets, other):
            await ws.close()
        await until(lambda: not one.gateway.front.rooms._members and not two.gateway.front.rooms._members)


async def test_a_client_that_does_not_read_is_disconnected_and_others_are_not(web: Served, mesh_: Mesh):
    await until(lambda: mesh_.node.table.instances("gateway"))
    host, port = web.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    writer.write(
        b"GET /chat/1 HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert (await reader.readline()).startswith(b"HTTP/1.1 101 ")
    async with web.http.ws_connect("/chat/1") as ws:
        await ws.receive_str()

        sockets = web.gateway.front.sockets
        sent = 0
        while len(sockets) == 2 and sent < 2000:
            await mesh_.emit("room.1", "x" * 30_000)
            assert len(await ws.receive_str()) == 30_000
            sent += 1
        assert sent < 2000
        await mesh_.emit("room.1", "last")
        assert await ws.receive_str() == "last"
    writer.close()


def test_frames():
    assert frame(TEXT, b"") == b"\x81\x00"
    assert frame(TEXT, b"x" * 125)[:2] == b"\x81\x7d"
    assert frame(BINARY, b"x" * 126)[:4] == b"\x82\x7e\x00\x7e"
    assert frame(BINARY, b"x" * 65_536)[:10] == b"\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00"


# --- declarations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"topics": "a..b"}, {"topics": ["#.#x"]}, {"subprotocols": ["a b"]}, {"auth": "nobody"}, {"colour": 1}],
)
def test_wrong_options_are_refused(options: Any):
    with pytest.raises(BadDeclaration):
        http.websocket("/x", **options)


@pytest.mark.parametrize("path", ["x", "/a//b", "/{a}/{a}"])
def test_wrong_paths_are_refused(path: str):
    with pytest.raises(BadDeclaration):
        http.websocket(path)


async def test_the_handler_must_yield():
    class Odd(mesh.Service):
        @http.websocket("/x")
        async def one(self) -> int:
            return 1

    with pytest.raises(BadDeclaration):
        async with Mesh(Odd):
            pass


async def test_join_works_in_the_handler_of_a_websocket_only(mesh_: Mesh):
    with pytest.raises(SetupError):
        await http.join("room.1")
    with pytest.raises(mesh.RemoteError):
        async for _ in mesh_.stream("chat.chat", "1", _nothing()):
            pass


async def _nothing() -> AsyncIterator[str]:
    for each in ():
        yield each
