"""Gateways with proxy routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import msgspec
import pytest
from gateway_fakes import FakeNode
from gateway_front import Front
from proxy_upstream import Open, Upstream, serving

from mesh.config import Settings
from mesh.config.edge_proxy import PROXIES
from mesh.gateway import app
from mesh.gateway.server import Gateway


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    found = Upstream()
    async with serving(found):
        yield found


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as found:
        yield found


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
