"""A gateway on a real socket, in front of a node without a mesh."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from gateway_fakes import FakeNode
from gateway_front import Front

from mesh.config import GatewaySettings, MeshSettings, Settings
from mesh.gateway import app
from mesh.gateway.server import Gateway


@pytest.fixture
def settings(tmp_path: Any) -> Settings:
    return Settings(
        mesh=MeshSettings(run_dir=tmp_path, host="testhost"),
        gateway=GatewaySettings(port=0, max_body_bytes=64 * 1024, timeout_s=5.0, drain_s=2.0),
    )


@pytest.fixture
async def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
async def front(node: FakeNode, settings: Settings) -> AsyncIterator[Front]:
    """A gateway in front of `node`; services may be added to it before and while requests come."""
    async with AsyncExitStack() as stack:
        gateway = Gateway(node, settings)
        server = gateway.make_server()
        listener = app.bind("127.0.0.1", 0)
        accepting = await asyncio.get_running_loop().create_server(server, sock=listener)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        front = Front(node, gateway, server, accepting, listener.getsockname(), session)
        yield front
        for writer in front.opened:
            writer.close()
        await session.close()
        accepting.close()
        await server.shutdown(0.2)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
