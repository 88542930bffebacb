"""An upstream server that tells what it has received, and the proxy routes of tests."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from gateway_front import Front

from mesh.gateway.listeners.serving import Serving

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


def headers_of(told: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in told.json["headers"]:
        found.setdefault(name.lower(), []).append(value)
    return found


Open = Callable[..., Awaitable[Front]]


def headers_of_request(request: web.BaseRequest) -> dict[str, str]:
    return {name.lower(): value for name, value in request.headers.items()}


def listening(proxy: Front) -> Serving:
    """The listeners of the gateway, to be drained."""
    found = Serving(proxy.gateway)
    found.servers.append(proxy.server)
    found._accepting.append(proxy.accepting)
    return found
