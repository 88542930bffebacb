"""A running gateway and the means to talk to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from gateway_fakes import FakeNode
from yarl import URL

from mesh.gateway import app
from mesh.gateway.server import Gateway

PATIENCE_S = 10.0


async def eventually(condition: Callable[[], object], what: str) -> None:
    """Return once `condition()` is true; fail with `what` when patience ends."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110  # nothing announces it
                await asyncio.sleep(0.002)
    except TimeoutError:
        pytest.fail(f"never happened: {what}")


@dataclass
class Front:
    """A running gateway and the means to talk to it."""

    node: FakeNode
    gateway: Gateway
    server: web.Server
    accepting: asyncio.AbstractServer
    address: tuple[str, int]
    session: aiohttp.ClientSession
    opened: list[asyncio.StreamWriter] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.address[1]}"

    async def ask(self, verb: str, path: str, **options: Any) -> Told:
        """One request through aiohttp's client; the path is sent as it is written."""
        async with self.session.request(
            verb, URL(self.url + path, encoded=True), allow_redirects=False, **options
        ) as response:
            return Told(response.status, response.headers, await response.read())

    async def get(self, path: str, **options: Any) -> Told:
        return await self.ask("GET", path, **options)

    async def post(self, path: str, body: bytes = b"", kind: str = "application/json", **headers: str) -> Told:
        return await self.ask("POST", path, data=body, headers={"Content-Type": kind, **headers})

    async def raw(self, data: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection of one's own, with `data` sent."""
        reader, writer = await asyncio.open_connection(*self.address)
        self.opened.append(writer)
        writer.write(data)
        await writer.drain()
        return reader, writer


async def open_front(stack: AsyncExitStack, node: FakeNode, gateway: Gateway) -> Front:
    """Serve a gateway until the stack is closed; its client leaves answers compressed."""
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


@dataclass
class Told:
    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def kind(self) -> str:
        return str(self.headers["Content-Type"])
