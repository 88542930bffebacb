"""A gateway with authentication, in front of services of plain functions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from gateway_fakes import FakeNode
from gateway_front import Front

from mesh.calls.context import current
from mesh.config import Settings
from mesh.discovery.record import EdgePolicy, RouteRecord
from mesh.gateway import app
from mesh.gateway.edge.registry import lifespans
from mesh.gateway.server import Gateway


async def whoami() -> str:
    """Who the caller is, as a service sees it."""
    context = current()
    return f"{context.principal}@{context.tenant}" if context is not None else "-"


#: path -> what its route declares.
POLICIES = {
    "/plain": None,
    "/open": EdgePolicy(auth="none"),
    "/user": EdgePolicy(auth="user"),
    "/write": EdgePolicy(auth="user", scopes=["orders:read", "orders:write"]),
    "/clerk": EdgePolicy(auth="user", roles=["clerk", "manager"]),
}


def open_desk(node: FakeNode) -> None:
    """The service "desk": one method behind a route for each of POLICIES, /rpc and /tasks."""
    node.serve(
        "desk",
        [
            RouteRecord("GET", path, "whoami", edge=policy) if policy else RouteRecord("GET", path, "whoami")
            for path, policy in POLICIES.items()
        ],
        whoami=whoami,
    )


@asynccontextmanager
async def gateway_of(node: FakeNode, settings: Settings) -> AsyncIterator[Front]:
    """A running gateway, with what its concerns start."""
    gateway = Gateway(node, settings)
    async with lifespans(gateway.front), aiohttp.ClientSession() as session:
        server = gateway.make_server()
        listener = app.bind("127.0.0.1", 0)
        accepting = await asyncio.get_running_loop().create_server(server, sock=listener)
        front = Front(node, gateway, server, accepting, listener.getsockname(), session)
        try:
            yield front
        finally:
            for writer in front.opened:
                writer.close()
            await session.close()
            accepting.close()
            await server.shutdown(0.2)
