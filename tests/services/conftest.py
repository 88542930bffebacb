"""One of the project's services and all around it: replicas and a hub over real sockets, a gateway, a client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import NamedTuple

import aiohttp
import pytest

import mesh
from mesh.gateway import app
from mesh.gateway.server import Gateway
from mesh.testing import Mesh
from mesh.worker.worker import Worker

#: A bound for what surely comes.
PATIENCE_S = 10.0


class Running(NamedTuple):
    """What a test is given.

    Attributes:
        mesh: the whole of it.
        node: its client.
        http: a client session whose base is the gateway.
        workers: one for each replica.
    """

    mesh: Mesh
    node: mesh.Node
    http: aiohttp.ClientSession
    workers: list[Worker]


Start = Callable[[type[mesh.Service], int], Awaitable[Running]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start a number of replicas of one service; the test's end stops them."""
    async with AsyncExitStack() as stack:

        async def begin(service: type[mesh.Service], replicas: int) -> Running:
            m = Mesh(service, replicas={service: replicas}, transport="ipc", settings={"worker.processes": 1})
            await stack.enter_async_context(m)
            front, _ = await app.connect_node(m.settings)
            stack.push_async_callback(front.close)
            server = Gateway(front, m.settings).make_server()
            listener = app.bind("127.0.0.1", 0)
            accepting = await asyncio.get_running_loop().create_server(server, sock=listener)
            stack.push_async_callback(server.shutdown, 0.2)
            stack.callback(accepting.close)
            http = await stack.enter_async_context(aiohttp.ClientSession(app.shown(listener)))
            await front.wait_for(service.name, PATIENCE_S)
            return Running(m, m.node, http, m.workers(service))

        yield begin
