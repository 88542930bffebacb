"""Proxy routes: what reaches the upstream server, what comes back, and what becomes of its failures."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import psutil
import pytest
from aiohttp import web
from gateway_fakes import FakeNode
from gateway_front import Front, eventually
from gateway_shop import open_shop

from mesh.config import Settings, load
from mesh.config.edge_proxy import PROXIES
from mesh.errors import ConfigError
from mesh.gateway import app
from mesh.gateway.edge import registry
from mesh.gateway.edge.contract import Concern
from mesh.gateway.edge.identity import Identity
from mesh.gateway.forward_headers import rewrite_cookie, rewrite_location
from mesh.gateway.forwarding import Forwarder
from mesh.gateway.listeners.serving import Serving
from mesh.gateway.mounts import BadMount, Mount, Request
from mesh.gateway.mounts.serving import serve_counted
from mesh.gateway.server import Gateway
from mesh.gateway.upstreams import Upstreams

MIB = 2**20


class Upstream:
    """An aiohttp server that tells what it has received."""

    def __init__(self) -> None:
        self.requests: list[web.BaseRequest] = []
        self.gate = asyncio.Event()
        self.sent = 0
        self.ended = asyncio.Event()
        self.healthy = True
        self.connections = 0
        self.url = ""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append(request)
        what = request.path.rpartition("/")[2]
        found: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]] | None = getattr(self, f"on_{what}", None)
        if found is not None:
            return await found(request)
        return web.json_response(
            {
                "method": request.method,
                "target": request.raw_path,
                "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in request.raw_headers],
                "body": (await request.read()).decode("latin-1"),
            }
        )

    async def on_digest(self, request: web.BaseRequest) -> web.StreamResponse:
        digest, size = hashlib.sha256(), 0
        async for chunk in request.content.iter_any():
            digest.update(chunk)
            size += len(chunk)
        return web.json_response({"size": size, "digest": digest.hexdigest()})

    async def on_late(self, request: web.BaseRequest) -> web.StreamResponse:
        await self.gate.wait()
        return await self.on_digest(request)

    async def on_down(self, request: web.BaseRequest) -> web.StreamResponse:
        size = int(request.query["size"])
        response = web.StreamResponse()
        if "length" in request.query:
            response.content_length = size
        await response.prepare(request)
        block = bytes(MIB)
        try:
            while size > 0:
                await response.write(block[:size])
                self.sent += min(size, MIB)
                size -= MIB
        finally:
            self.ended.set()
        return response

    async def on_early(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=413, text="too much")

    async def on_head(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=bytes(5000), headers={"X-Own": "1"})

    async def on_odd(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.Response(text="odd")
        for name, value in (
            ("Connection", "close, X-Secret-Hop"),
            ("X-Secret-Hop", "1"),
            ("Keep-Alive", "timeout=5"),
            ("Server", "old/1.0"),
            ("traceparent", "00-" + "1" * 32 + "-" + "1" * 16 + "-01"),
            ("Alt-Svc", 'h3=":443"'),
            ("Set-Cookie", "a=1; Path=/; Domain=old.example; HttpOnly"),
            ("Set-Cookie", "b=2"),
            ("Location", f"{self.url}/next?x=1"),
        ):
            response.headers.add(name, value)
        return response

    async def on_unchanged(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=304, headers={"ETag": '"1"'})

    async def on_nothing(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=204)

    async def on_wait(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            await self.gate.wait()
        finally:
            self.ended.set()
        return web.Response(text="waited")

    async def on_stall(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"part")
        await self.gate.wait()
        return response

    async def on_events(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        try:
            await self.gate.wait()
        finally:
            self.ended.set()
        return response

    async def on_break(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = 100
        await response.prepare(request)
        await response.write(b"part")
        assert request.transport is not None
        request.transport.close()
        return response

    async def on_health(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=200 if self.healthy else 503)

    async def on_socket(self, request: web.BaseRequest) -> web.StreamResponse:
        ws = web.WebSocketResponse(protocols=("chat",), max_msg_size=8 * MIB)
        await ws.prepare(request)
        try:
            async for message in ws:
                if message.data == "close":
                    await ws.close(code=4001, message=b"asked")
                elif message.type is aiohttp.WSMsgType.TEXT:
                    await ws.send_str(f"{ws.ws_protocol}:{message.data}")
                else:
                    await ws.send_bytes(message.data)
        finally:
            self.ended.set()
        return ws

    async def on_refuses(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=426, text="no")


@asynccontextmanager
async def serving(upstream: Upstream, path: Path | None = None) -> AsyncIterator[str]:
    """The upstream on a port, or on a Unix socket."""
    runner = web.ServerRunner(web.Server(upstream.handle, handler_cancellation=True, auto_decompress=False))
    await runner.setup()
    site: web.BaseSite
    if path is not None:
        site = web.UnixSite(runner, str(path))
        await site.start()
        upstream.url = f"http+unix:{path}"
    else:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        upstream.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield upstream.url
    finally:
        await runner.cleanup()


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    found = Upstream()
    async with serving(found):
        yield found


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as found:
        yield found


Open = Callable[..., Awaitable[Front]]


@pytest.fixture
def opened(settings: Settings, stack: AsyncExitStack, node: FakeNode) -> Open:
    """Makes a gateway with proxy routes."""

    async def make(proxy: dict[str, Any], **limits: Any) -> Front:
        own = msgspec.structs.replace(settings.gateway, proxy=PROXIES.read(proxy), **limits)
        gateway = Gateway(node, msgspec.structs.replace(settings, gateway=own))
        server = gateway.make_server()
        listener = app.bind("127.0.0.1", 0)
        await stack.enter_async_context(gateway.mounts.lifespans())
        accepting = await asyncio.get_running_loop().create_server(server, sock=listener)
        session = await stack.enter_async_context(aiohttp.ClientSession(auto_decompress=False))
        front = Front(node, gateway, server, accepting, listener.getsockname(), session)

        async def close() -> None:
            for writer in front.opened:
                writer.close()
            accepting.close()
            await server.shutdown(0.2)

        stack.push_async_callback(close)
        return front

    return make


@pytest.fixture
async def proxy(opened: Open, upstream: Upstream) -> Front:
    return await opened(
        {
            "/old": {"to": upstream.url, "max_body": "1GiB"},
            "/cut": {"to": upstream.url, "strip": True, "rewrite": True, "host": "upstream"},
            "/hasty": {"to": upstream.url, "timeout": "200ms", "idle_timeout": "200ms", "max_body": "100B"},
        }
    )


def headers_of(told: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in told.json["headers"]:
        found.setdefault(name.lower(), []).append(value)
    return found


# --- what the upstream gets ---------------------------------------------------------------------


async def test_a_request_arrives_as_it_was_sent(proxy: Front) -> None:
    told = await proxy.ask("PATCH", "/old/a%20b;v=1//c?x=%2F&y", data=b"body", headers={"X-Own": "grüezi"})
    assert told.status == 200
    assert (told.json["method"], told.json["target"], told.json["body"]) == (
        "PATCH",
        "/old/a%20b;v=1//c?x=%2F&y",
        "body",
    )
    headers = headers_of(told)
    assert headers["x-own"] == ["grüezi".encode().decode("latin-1")]
    assert headers["content-length"] == ["4"]
    assert headers["host"] == [f"127.0.0.1:{proxy.address[1]}"]
    assert "accept-encoding" in headers  # the client's own


async def test_the_prefix_may_be_removed(proxy: Front, upstream: Upstream) -> None:
    told = await proxy.get("/cut/a?b=c")
    assert told.json["target"] == "/a?b=c"
    headers = headers_of(told)
    assert headers["x-forwarded-prefix"] == ["/cut"]
    assert headers["host"] == [upstream.url.removeprefix("http://")]
    assert (await proxy.get("/cut")).json["target"] == "/"


async def test_fields_of_the_connection_end_at_the_gateway(proxy: Front) -> None:
    """Those of RFC 9110, and those that Connection lists."""
    reader, _ = await proxy.raw(
        b"GET /old/x HTTP/1.1\r\nHost: localhost\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nTE: trailers\r\n"
        b"Keep-Alive: timeout=5\r\nProxy-Authorization: Basic eDp5\r\nProxy-Connection: keep-alive\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nTrailer: X-T\r\nX-Stays: 1\r\n\r\n"
    )
    _, _, body = (await reader.read()).partition(b"\r\n\r\n")
    names = {name.lower() for name, _ in msgspec.json.decode(body)["headers"]}
    assert "x-stays" in names
    assert not names & {
        "x-hop", "te", "keep-alive", "proxy-authorization", "proxy-connection", "upgrade", "http2-settings", "trailer",
        "transfer-encoding", "connection",
    }  # fmt: skip


async def test_a_client_cannot_claim_to_be_another(proxy: Front) -> None:
    """Under no spelling, unless it is a proxy of `gateway.proxies`."""
    forged = {
        "X-Forwarded-For": "6.6.6.6",
        "X_Forwarded_For": "6.6.6.6",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "evil.example",
        "Forwarded": "for=6.6.6.6;proto=https",
        "X-Real-IP": "6.6.6.6",
        "X-Forwarded-Prefix": "/evil",
        "X-Forwarded-Port": "1",
    }
    headers = headers_of(await proxy.get("/old/x", headers=forged))
    host = f"127.0.0.1:{proxy.address[1]}"
    assert headers["x-forwarded-for"] == ["127.0.0.1"]
    assert headers["x-forwarded-proto"] == ["http"]
    assert headers["x-forwarded-host"] == [host]
    assert headers["forwarded"] == [f'for=127.0.0.1;proto=http;host="{host}"']
    assert not headers.keys() & {"x_forwarded_for", "x-real-ip", "x-forwarded-prefix", "x-forwarded-port"}


async def test_a_trusted_proxy_is_believed(opened: Open, upstream: Upstream) -> None:
    front = await opened({"/old": upstream.url}, proxies=["127.0.0.1"])
    told = {"X-Forwarded-For": "9.9.9.9", "X-Forwarded-Proto": "https", "Forwarded": "for=9.9.9.9"}
    headers = headers_of(await front.get("/old/x", headers=told))
    assert headers["x-forwarded-for"] == ["9.9.9.9, 127.0.0.1"]
    assert headers["x-forwarded-proto"] == ["https"]
    assert headers["forwarded"][0].startswith("for=9.9.9.9, for=127.0.0.1;")


async def test_the_trace_goes_on_in_a_span_of_its_own(proxy: Front) -> None:
    parent = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    sent = {"traceparent": parent, "tracestate": "x=1", "X-Request-Id": "req-1", "X-Request-Timeout": "3"}
    headers = headers_of(await proxy.get("/old/x", headers=sent))
    assert headers["traceparent"][0].startswith(parent[:36])
    assert headers["traceparent"] != [parent]
    assert (headers["tracestate"], headers["x-request-id"]) == (["x=1"], ["req-1"])
    assert 0 < int(headers["x-request-timeout"][0].removesuffix("ms")) <= 3000
    headers = headers_of(await proxy.get("/old/x", headers={"tracestate": "x=1"}))
    assert "tracestate" not in headers
    assert len(headers["x-request-id"][0]) == 32


@pytest.mark.parametrize(
    "path",
    [
        "/old/../x", "/old/%2e%2e/x", "/old/.%2E/x", "/old/..%2fx", "/old/a%2f..%2f..%2fx", "/old/..%5cx", "/old/..\\x",
        "/old/./x", "/old/..;/x", "/old/%00", "/old/%ff",
    ],
)  # fmt: skip
async def test_no_path_leaves_the_prefix(proxy: Front, upstream: Upstream, path: str) -> None:
    """However the upstream would decode and normalize it."""
    reader, _ = await proxy.raw(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert (await reader.read())[9:12] == b"400"
    assert upstream.requests == []


@pytest.mark.parametrize("verb", ["TRACE", "CONNECT"])
async def test_methods_that_are_not_forwarded(proxy: Front, upstream: Upstream, verb: str) -> None:
    reader, _ = await proxy.raw(f"{verb} /old/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert (await reader.read())[9:12] in (b"405", b"400", b"404")
    assert upstream.requests == []


SMUGGLED = b"GET /old/smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        (b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n" % (5 + len(SMUGGLED)), b"0\r\n\r\n" + SMUGGLED),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", b"0\r\n\r\n" + SMUGGLED),
        (b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n" + SMUGGLED),
        (b"Transfer-Encoding : chunked\r\n", b"0\r\n\r\n" + SMUGGLED),
        (b"Transfer-Encoding: chunked, identity\r\n", b"0\r\n\r\n" + SMUGGLED),
        (b"Transfer-Encoding: identity\r\nContent-Length: 3\r\n", b"abc"),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", b"0\r\n\r\n" + SMUGGLED),
        (b"Transfer-Encoding:\x0bchunked\r\n", b"0\r\n\r\n" + SMUGGLED),
        (b"X: 1\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n" + SMUGGLED),
        (b"Content-Length: 0\r\nContent-Length: %d\r\n" % len(SMUGGLED), SMUGGLED),
        (b"Content-Length: +0\r\n", SMUGGLED),
        (b"Content-Length: 0x0\r\n", SMUGGLED),
        (b"Content-Length: -1\r\n", SMUGGLED),
        (b"Content-Length: 3\r\n Transfer-Encoding: chunked\r\n", b"abc"),
        (b"Transfer-Encoding: chunked\r\n", b"0x3\r\nabc\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"3\nabc\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"3\r\nabcX0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"-3\r\nabc\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"ffffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
    ],
)
async def test_no_request_is_smuggled(proxy: Front, upstream: Upstream, lines: bytes, body: bytes) -> None:
    """What the gateway does not refuse is framed anew: the upstream never sees more requests than the gateway has."""
    reader, writer = await proxy.raw(b"POST /old/digest HTTP/1.1\r\nHost: localhost\r\n" + lines + b"\r\n" + body)
    writer.write_eof()
    told = await reader.read()
    answers = told.count(b"HTTP/1.1 ") - told.count(b"HTTP/1.1 100 ")
    paths = [request.path for request in upstream.requests]
    assert len(paths) <= answers
    for request in upstream.requests:
        framing = [name for name, _ in request.raw_headers if name.lower() in (b"content-length", b"transfer-encoding")]
        assert len(framing) <= 1


# --- bodies -------------------------------------------------------------------------------------


async def _blocks(count: int) -> AsyncIterator[bytes]:
    block = bytes(MIB)
    for _ in range(count):
        yield block


async def test_a_large_upload_passes_through(proxy: Front) -> None:
    """100 MB in chunks: client, gateway and upstream, in this process, grow by 16 MB at most."""
    await proxy.ask("POST", "/old/digest", data=_blocks(4))
    process = psutil.Process()
    before = process.memory_info().rss
    told = await proxy.ask("POST", "/old/digest", data=_blocks(100))
    assert told.json == {"size": 100 * MIB, "digest": hashlib.sha256(bytes(100 * MIB)).hexdigest()}
    assert process.memory_info().rss - before <= 16 * MIB


@pytest.mark.parametrize("more", ["", "&length=1"])
async def test_a_large_answer_passes_at_the_speed_of_its_reader(proxy: Front, upstream: Upstream, more: str) -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    async with proxy.session.get(f"{proxy.url}/old/down?size={64 * MIB}{more}") as response:
        assert ("Content-Length" in response.headers) == bool(more)
        last = -1
        while upstream.sent != last:
            last = upstream.sent
            await asyncio.sleep(0.1)
        # The socket buffers of four ends on loopback are a few MB each.
        assert upstream.sent < 40 * MIB
        assert process.memory_info().rss - before <= 24 * MIB
        size = 0
        async for chunk in response.content.iter_any():
            size += len(chunk)
        assert size == 64 * MIB


async def test_a_server_that_reads_slowly_holds_the_client(proxy: Front, upstream: Upstream) -> None:
    """What it does not take is not read from the client."""
    sent = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal sent
        async for block in _blocks(64):
            yield block
            sent += len(block)

    asking = asyncio.create_task(proxy.ask("POST", "/old/late", data=counted()))
    await eventually(lambda: upstream.requests, "it has arrived")
    last = -1
    while sent != last:
        last = sent
        await asyncio.sleep(0.1)
    assert sent < 40 * MIB
    upstream.gate.set()
    assert (await asking).json["size"] == 64 * MIB


async def test_bodies_pass_as_they_are_coded(proxy: Front) -> None:
    told = await proxy.ask("POST", "/old/x", data=b"not gzip", headers={"Content-Encoding": "gzip"})
    assert (told.status, told.json["body"]) == (200, "not gzip")


async def test_a_body_beyond_the_limit_is_refused(proxy: Front, upstream: Upstream) -> None:
    told = await proxy.ask("POST", "/hasty/x", data=bytes(101))
    assert (told.status, told.json["code"]) == (413, "too_large")
    assert upstream.requests == []
    told = await proxy.ask("POST", "/hasty/digest", data=_blocks(1))
    assert (told.status, told.json["code"]) == (413, "too_large")


async def test_an_answer_may_come_before_the_body_has_ended(proxy: Front) -> None:
    """It reaches the client, and the connection is not used again."""
    reader, _ = await proxy.raw(b"POST /old/early HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nabc")
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413 ")
    assert b"Connection: close" in head


async def test_expectations_are_answered_by_the_gateway(proxy: Front) -> None:
    reader, writer = await proxy.raw(
        b"POST /old/digest HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    )
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"abc")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")


# --- answers ------------------------------------------------------------------------------------


async def test_fields_of_an_answer(proxy: Front, upstream: Upstream) -> None:
    told = await proxy.get("/old/odd", headers={"X-Request-Id": "1"})
    names = [name.lower() for name in told.headers]
    assert not {"x-secret-hop", "keep-alive", "alt-svc"} & set(names)
    assert (names.count("date"), told.headers.getall("Server"), names.count("traceparent")) == (1, ["mesh"], 1)
    assert told.headers.getall("Set-Cookie") == ["a=1; Path=/; Domain=old.example; HttpOnly", "b=2"]
    assert told.headers["Location"] == f"{upstream.url}/next?x=1"
    told = await proxy.get("/cut/odd")
    assert told.headers.getall("Set-Cookie") == ["a=1; Path=/cut; HttpOnly", "b=2"]
    assert told.headers["Location"] == "/cut/next?x=1"


async def test_answers_without_a_body(proxy: Front) -> None:
    told = await proxy.ask("HEAD", "/old/head")
    assert (told.status, told.headers["Content-Length"], told.headers["X-Own"], told.body) == (200, "5000", "1", b"")
    told = await proxy.get("/old/unchanged", headers={"If-None-Match": '"1"'})
    assert (told.status, told.headers["ETag"], told.body) == (304, '"1"', b"")
    told = await proxy.get("/old/nothing")
    assert (told.status, "Content-Length" in told.headers) == (204, False)
    assert (await proxy.ask("OPTIONS", "/old/x")).json["method"] == "OPTIONS"


# --- failures -----------------------------------------------------------------------------------


async def test_a_server_that_is_not_there(opened: Open, free_port: int) -> None:
    front = await opened({"/old": f"http://127.0.0.1:{free_port}", "/gone": "http+unix:/nowhere/app.sock"})
    for path in ("/old/x", "/gone/x"):
        told = await front.post(path, b"{}")
        assert (told.status, told.json["code"], told.json["retryable"]) == (502, "bad_gateway", True)
        assert str(free_port) not in told.json["detail"]


async def test_a_server_that_does_not_answer_in_time(proxy: Front, upstream: Upstream) -> None:
    told = await proxy.get("/hasty/wait")
    assert (told.status, told.json["code"]) == (504, "upstream_timeout")
    await asyncio.wait_for(upstream.ended.wait(), 5)
    told = await proxy.get("/old/wait", headers={"X-Request-Timeout": "200ms"})
    assert (told.status, told.json["code"]) == (504, "upstream_timeout")


async def test_an_answer_that_stalls_or_breaks_is_broken_off(proxy: Front) -> None:
    for path in ("/hasty/stall", "/old/break"):
        async with proxy.session.get(proxy.url + path) as response:
            assert response.status == 200
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()


@pytest.mark.parametrize(
    "target", [b"/old/x?a b", b"/old/x?a#b", b"/old/x#b", b"/old/x?\xff", b"/old/\xff", b"/old/x?\x01"]
)
async def test_a_target_that_must_be_encoded_is_refused(proxy: Front, upstream: Upstream, target: bytes) -> None:
    reader, _ = await proxy.raw(b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % target)
    assert (await reader.read())[9:12] == b"400"
    assert upstream.requests == []


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\nab",
    ],
)
async def test_an_answer_that_is_not_http(opened: Open, answer: bytes) -> None:
    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(answers, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        front = await opened({"/old": f"http://127.0.0.1:{port}"})
        told = await front.get("/old/x")
        assert (told.status, told.json["code"]) == (502, "bad_gateway")


@pytest.mark.parametrize(("verb", "body", "attempts"), [("GET", None, 2), ("POST", None, 1), ("PUT", b"x", 1)])
async def test_only_what_changes_nothing_is_repeated(
    opened: Open, verb: str, body: bytes | None, attempts: int
) -> None:
    """When the connection ends before the answer: once, and not with a body."""
    seen: list[bytes] = []

    async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.close()

    server = await asyncio.start_server(closes, "127.0.0.1", 0)
    async with server:
        front = await opened({"/old": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"})
        told = await front.ask(verb, "/old/x", data=body)
        assert (told.status, told.json["code"]) == (502, "bad_gateway")
    assert len(seen) == attempts


async def test_a_client_that_leaves_ends_the_request(proxy: Front, upstream: Upstream) -> None:
    _, writer = await proxy.raw(b"GET /old/wait HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await eventually(lambda: upstream.requests, "it has arrived")
    writer.close()
    await asyncio.wait_for(upstream.ended.wait(), 5)


async def test_what_the_metrics_and_the_log_get(proxy: Front) -> None:
    await proxy.get("/old/x")
    await proxy.get("/hasty/wait")
    text = (await proxy.get("/metrics")).body.decode()
    lines = [line for line in text.splitlines() if line.startswith("mesh_requests_total{") and 'side="http"' in line]
    assert any('service="/old"' in line and line.endswith(" 1.0") for line in lines), lines
    assert 'code="upstream_timeout"' in text


# --- several servers ----------------------------------------------------------------------------


async def test_requests_are_spread_and_pass_over_a_dead_server(
    opened: Open, upstream: Upstream, stack: AsyncExitStack, free_port: int
) -> None:
    other = Upstream()
    await stack.enter_async_context(serving(other))
    front = await opened({"/old": [upstream.url, other.url, f"http://127.0.0.1:{free_port}"]})
    for _ in range(12):
        assert (await front.post("/old/x", b"{}")).status == 200
    assert len(upstream.requests) >= 4
    assert len(other.requests) >= 4


async def test_an_unhealthy_server_gets_no_requests(opened: Open, upstream: Upstream, stack: AsyncExitStack) -> None:
    other = Upstream()
    await stack.enter_async_context(serving(other))
    front = await opened({"/old": {"to": [upstream.url, other.url], "health": "/health", "health_every": "20ms"}})

    async def share() -> set[str]:
        upstream.requests.clear()
        other.requests.clear()
        for _ in range(6):
            await front.get("/old/x")
        return {
            name
            for name, each in (("one", upstream), ("other", other))
            if any(request.path == "/old/x" for request in each.requests)
        }

    assert await share() == {"one", "other"}
    upstream.healthy = False
    await eventually(lambda: len([r for r in upstream.requests if r.path == "/health"]) >= 3, "checked")
    assert await share() == {"other"}
    other.healthy = False
    seen = len(other.requests)
    await eventually(lambda: len(other.requests) >= seen + 3, "checked")
    told = await front.get("/old/x")
    assert (told.status, told.json["code"]) == (503, "unavailable")
    upstream.healthy = True
    seen = len(upstream.requests)
    await eventually(lambda: len(upstream.requests) >= seen + 2, "checked")
    assert await share() == {"one"}


async def test_requests_beyond_the_limit_are_refused(opened: Open, upstream: Upstream) -> None:
    front = await opened({"/old": {"to": upstream.url, "connections": 1}})
    waiting = asyncio.create_task(front.get("/old/wait"))
    await eventually(lambda: upstream.requests, "the first one is there")
    told = await front.get("/old/x")
    assert (told.status, told.json["code"], told.headers["Retry-After"]) == (503, "overloaded", "1")
    upstream.gate.set()
    assert (await waiting).body == b"waited"


async def test_a_server_on_a_unix_socket(opened: Open, stack: AsyncExitStack, tmp_path: Path) -> None:
    upstream = Upstream()
    await stack.enter_async_context(serving(upstream, tmp_path / "app.sock"))
    front = await opened({"/old": upstream.url})
    assert (await front.get("/old/x")).json["target"] == "/old/x"


async def test_connections_to_the_server_are_kept(proxy: Front, upstream: Upstream) -> None:
    for _ in range(5):
        await proxy.get("/old/x")
        await proxy.ask("HEAD", "/old/head")
        await proxy.post("/old/digest", b"abc")
    assert (
        len({request.transport.get_extra_info("peername") for request in upstream.requests if request.transport}) == 1
    )


# --- precedence ---------------------------------------------------------------------------------


async def test_the_root_gets_what_nothing_else_answers(opened: Open, upstream: Upstream, node: FakeNode) -> None:
    open_shop(node)
    front = await opened({"/": upstream.url})
    assert (await front.get("/anything?x")).json["target"] == "/anything?x"
    assert (await front.get("/")).json["target"] == "/"
    assert (await front.ask("OPTIONS", "/anything")).json["method"] == "OPTIONS"
    assert (await front.get("/livez")).status == 200
    reader, _ = await front.raw(b"GET * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert (await reader.read())[9:12] == b"400"
    upstream.requests.clear()
    assert (await front.post("/measure", b"abc", "image/png")).json == 3
    assert upstream.requests == []


async def test_prefixes_that_overlap_are_refused(opened: Open, upstream: Upstream) -> None:
    for proxy in ({"/a": upstream.url, "/a/b": upstream.url}, {"/mesh": upstream.url}):
        with pytest.raises(BadMount):
            await opened(proxy)


# --- WebSocket ----------------------------------------------------------------------------------


async def test_a_websocket_passes_through(proxy: Front, upstream: Upstream) -> None:
    """Text, large messages, ping, subprotocol, compression and the close code."""
    async with proxy.session.ws_connect(
        f"{proxy.url}/old/socket", protocols=("chat",), compress=15, max_msg_size=8 * MIB, autoping=False
    ) as ws:
        await ws.send_str("hello")
        assert await ws.receive_str() == "chat:hello"
        large = bytes(3 * MIB)
        await ws.send_bytes(large)
        assert await ws.receive_bytes() == large
        await ws.ping(b"p")
        assert (await ws.receive()).type is aiohttp.WSMsgType.PONG
        await ws.send_str("close")
        assert (await ws.receive()).type is aiohttp.WSMsgType.CLOSE
        assert ws.close_code == 4001
    assert headers_of_request(upstream.requests[-1])["upgrade"] == "websocket"
    await asyncio.wait_for(upstream.ended.wait(), 5)


def headers_of_request(request: web.BaseRequest) -> dict[str, str]:
    return {name.lower(): value for name, value in request.headers.items()}


async def test_a_websocket_passes_through_a_proxy_at_the_root(opened: Open, upstream: Upstream) -> None:
    front = await opened({"/": upstream.url})
    async with front.session.ws_connect(f"{front.url}/any/socket", protocols=("chat",)) as ws:
        await ws.send_str("x")
        assert await ws.receive_str() == "chat:x"


async def test_a_client_that_leaves_closes_the_websocket(proxy: Front, upstream: Upstream) -> None:
    ws = await proxy.session.ws_connect(f"{proxy.url}/old/socket")
    await ws.send_str("x")
    await ws.receive()
    assert ws._response.connection is not None
    ws._response.connection.transport.abort()
    await asyncio.wait_for(upstream.ended.wait(), 5)
    await eventually(lambda: not proxy.gateway.connections.streams, "the tunnel is gone")


async def test_no_tunnel_without_101(proxy: Front, upstream: Upstream) -> None:
    """What follows an upgrade that the upstream refuses reaches nobody: the connection ends."""
    reader, writer = await proxy.raw(
        b"GET /old/refuses HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 7\r\n\r\n"
    )
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 426 ")
    writer.write(b"GET /old/secret HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert b"HTTP/1.1 " not in await reader.read()
    assert [request.path for request in upstream.requests] == ["/old/refuses"]


async def test_a_page_of_another_site_opens_no_websocket(proxy: Front, upstream: Upstream) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as error:
        await proxy.session.ws_connect(f"{proxy.url}/old/socket", origin="https://evil.example")
    assert error.value.status == 403
    assert upstream.requests == []


async def test_an_idle_websocket_is_closed(proxy: Front) -> None:
    async with proxy.session.ws_connect(f"{proxy.url}/hasty/socket") as ws:
        assert (await ws.receive(timeout=5)).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)


def listening(proxy: Front) -> Serving:
    """The listeners of the gateway, to be drained."""
    found = Serving(proxy.gateway)
    found.servers.append(proxy.server)
    found._accepting.append(proxy.accepting)
    return found


async def test_a_draining_gateway_closes_websockets_with_service_restart(proxy: Front) -> None:
    async with proxy.session.ws_connect(f"{proxy.url}/old/socket") as ws:
        await ws.send_str("x")
        await ws.receive()
        await app.drain(proxy.gateway, listening(proxy))
        message = await ws.receive(timeout=5)
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1012)


async def test_a_draining_gateway_lets_a_request_end(proxy: Front, upstream: Upstream) -> None:
    asking = asyncio.create_task(proxy.get("/old/wait"))
    await eventually(lambda: upstream.requests, "it has arrived")
    draining = asyncio.create_task(app.drain(proxy.gateway, listening(proxy)))
    await asyncio.sleep(0.1)
    upstream.gate.set()
    told = await asking
    assert (told.body, told.headers["Connection"]) == (b"waited", "close")
    await draining


async def test_a_draining_gateway_ends_forwarded_events(proxy: Front, upstream: Upstream) -> None:
    """Their clients reconnect: the answer ends as a complete one, and the upstream sees that nobody reads."""
    async with proxy.session.get(proxy.url + "/old/events") as response:
        assert await response.content.readuntil(b"\n\n") == b"data: 1\n\n"
        await app.drain(proxy.gateway, listening(proxy))
        assert await response.read() == b""
    await asyncio.wait_for(upstream.ended.wait(), 5)


# --- for other sources of addresses -------------------------------------------------------------


async def test_the_list_of_servers_may_change(proxy: Front, upstream: Upstream, stack: AsyncExitStack) -> None:
    """What is running ends at its server; what comes next goes to the new ones."""
    other = Upstream()
    await stack.enter_async_context(serving(other))
    settings = PROXIES.read({"/": upstream.url})["/"]
    upstreams = Upstreams([upstream.url], settings, asyncio.get_running_loop().time)
    forwarder = Forwarder(proxy.gateway.front, upstreams, settings)
    mount = Mount(prefix="/dynamic", handler=forwarder.forward, methods=())
    proxy.gateway.mounts._add(mount, "test", serve_counted(proxy.gateway.front, mount))
    running = asyncio.create_task(proxy.get("/dynamic/wait"))
    await eventually(lambda: upstream.requests, "it is running")
    old = upstreams.all[0]
    await upstreams.replace([other.url])
    assert (await proxy.get("/dynamic/x")).status == 200
    assert [request.path for request in other.requests] == ["/dynamic/x"]
    upstream.gate.set()
    assert (await running).body == b"waited"
    await eventually(lambda: old._session is None, "its connections are closed")
    await upstreams.replace([])
    told = await proxy.get("/dynamic/x")
    assert (told.status, told.json["code"]) == (503, "unavailable")
    await upstreams.close()


async def test_the_authenticated_caller_is_told(
    opened: Open, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only under the configured name, and never as the client says."""

    async def hook(request: Request, proceed: Any) -> Any:
        assert request.entry.policy.auth == "user"
        request.identity = (
            Identity(request.headers["Authorization"], "jwt") if "Authorization" in request.headers else None
        )
        return await proceed(request)

    monkeypatch.setattr(registry, "CONCERNS", (lambda front: Concern(name="auth", hook=hook),))
    front = await opened({"/old": {"to": upstream.url, "principal": "X-User", "auth": "user"}})
    for sent, told in (("anna@example.org", "anna@example.org"), ("ü %", "%C3%BC%20%25")):
        claims = {"X-User": "root", "X_User": "root", "Authorization": sent}
        headers = headers_of(await front.get("/old/x", headers=claims))
        assert (headers["x-user"], "x_user" in headers) == ([told], False)
    assert "x-user" not in headers_of(await front.get("/old/x", headers={"X-User": "root"}))


async def test_no_field_is_invented(proxy: Front) -> None:
    reader, _ = await proxy.raw(b"GET /old/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    _, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert {name.lower() for name, _ in msgspec.json.decode(body)["headers"]} == {
        "host", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded", "traceparent", "x-request-id",
    }  # fmt: skip


async def test_a_server_cannot_split_an_answer(opened: Open) -> None:
    """Fields that aiohttp's lenient parser lets in do not get out."""
    odd = b"X-Good: 1\r\nX Bad: 1\r\nX-Ctl: a\x01b\r\nX-Fold: a\r\n b\r\nX(): 1\r\n"

    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 200 OK\r\n"
            + odd
            + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
        )
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answers, "127.0.0.1", 0)
    async with server:
        front = await opened({"/old": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"})
        reader, _ = await front.raw(b"GET /old/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 502 "):
        return
    framing = [
        line for line in head.lower().split(b"\r\n") if line.startswith((b"content-length", b"transfer-encoding"))
    ]
    assert len(framing) == 1
    assert b"X Bad" not in head
    assert b"\x01" not in head
    assert b"ok" in body


# --- pure parts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "prefix", "expected"),
    [
        (b"http://a:1/x", "", b"/x"),
        (b"http://a:1", "/p", b"/p/"),
        (b"http://a:1?q", "/p", b"/p/?q"),
        (b"http://a:12/x", "/p", b"http://a:12/x"),
        (b"/x", "/p", b"/p/x"),
        (b"//evil/x", "/p", b"//evil/x"),
        (b"x", "/p", b"x"),
        (b"https://other/", "/p", b"https://other/"),
    ],
)
def test_locations(value: bytes, prefix: str, expected: bytes) -> None:
    assert rewrite_location(value, "http://a:1", prefix) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"a=1; Domain=x; Path=/a; Secure", b"a=1; Path=/p/a; Secure"),
        (b"domain=1; path=/", b"domain=1; Path=/p"),
        (b"a=1", b"a=1"),
    ],
)
def test_cookies(value: bytes, expected: bytes) -> None:
    assert rewrite_cookie(value, "/p") == expected


@pytest.mark.parametrize(
    "value",
    [
        {"old": "http://a"},
        {"/old": "ftp://a"},
        {"/old": "http://a/?x"},
        {"/old": "http://user@a"},
        {"/old": []},
        {"/old": {"strip": True}},
        {"/old": {"to": "http://a", "stripe": True}},
        {"/old": {"to": "http://a", "timeout": 3}},
        {"/a/../b": "http://a"},
        {"/old/": "http://a"},
        "nothing",
        3,
    ],
)
def test_wrong_settings_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^(it |$)"):
        PROXIES.read(value)


def test_settings_are_read_from_the_file_and_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "mesh.toml"
    file.write_text(
        """[gateway.static]
"/" = "web/dist"
[gateway.proxy]
"/old" = { to = ["http://127.0.0.1:1", "http+unix:/run/x"], timeout = "3s", max_body = "1GiB" }
"/new" = "http://[::1]:9000/base"
"""
    )
    gateway = load(file, env={}).gateway
    assert gateway.static["/"].dir == Path("web/dist")
    assert (gateway.proxy["/old"].timeout_s, gateway.proxy["/old"].max_body_bytes) == (3.0, 2**30)
    assert gateway.proxy["/new"].to == ["http://[::1]:9000/base"]
    gateway = load(file, env={"MESH_GATEWAY_PROXY": "/env=http://a"}).gateway
    assert list(gateway.proxy) == ["/env"]
    file.write_text('[gateway]\nport = 1\n[gateway.proxy]\n"/old" = { to = "http://a", timeuot = "3s" }\n')
    with pytest.raises(ConfigError) as error:
        load(file, env={})
    assert "mesh.toml:3: gateway.proxy" in error.value.message
    assert "timeout" in error.value.message


def test_settings_are_shown_as_they_are_written() -> None:
    value = {"/a": ["http://a"], "/b": {"to": ["http+unix:/x"], "strip": True, "timeout": "3s"}}
    assert PROXIES.show(PROXIES.read(value)) == value
    assert PROXIES.read("/a=http://a,/b=http://b")["/b"].to == ["http://b"]
