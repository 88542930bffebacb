"""A real gateway in this process, registered with the hub of a test's mesh: over sockets, found by services."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from mesh.gateway import app
from mesh.gateway.edge.registry import lifespans
from mesh.gateway.listeners.opening import Listeners
from mesh.gateway.server import Gateway
from mesh.testing import Mesh
from tests.patience import until


class Leaving:
    """Stands in for the signals of the process, which tests share."""

    def __init__(self) -> None:
        self.leave = asyncio.Event()


class Served:
    """A running gateway.

    Attributes:
        url: where it listens.
        gateway: its parts.
        http: a client whose addresses begin at `url`.
    """

    def __init__(self, url: str, gateway: Gateway, http: aiohttp.ClientSession, leaving: Leaving) -> None:
        self.url = url
        self.gateway = gateway
        self.http = http
        self._leaving = leaving

    def drain(self) -> None:
        """Begin to drain, as SIGTERM does."""
        self._leaving.leave.set()


@asynccontextmanager
async def served(m: Mesh, fd: int | None = None) -> AsyncIterator[Served]:
    """Serve a mesh that has transport="ipc", until the block ends; then drain.

    Args:
        fd: a listening socket; None opens one.
    """
    node, endpoint = await app.connect_node(m.settings)
    gateway = Gateway(node, m.settings)
    leaving: Any = Leaving()
    listeners = Listeners(m.settings, fd=fd, host="127.0.0.1", port=0)
    addresses: list[str] = []
    try:
        await node.interceptors.start(node)
        async with lifespans(gateway.front), gateway.mounts.lifespans():
            running = asyncio.create_task(app._run(gateway, endpoint, listeners, leaving, addresses.append, False))
            try:
                await until(lambda: addresses or running.done(), "the gateway listens")
                async with aiohttp.ClientSession(addresses[0]) as http:
                    yield Served(addresses[0], gateway, http, leaving)
            finally:
                leaving.leave.set()
                await running
    finally:
        await node.interceptors.stop()
        await node.close()
        listeners.close()
