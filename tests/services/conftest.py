"""A real set in one process: a hub, workers over ipc, a gateway over tcp, and a client."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest

import mesh
from mesh.clock import LoopClock
from mesh.config import GatewaySettings, MeshSettings, Settings, WorkerSettings
from mesh.discovery.hub import Hub
from mesh.gateway import app
from mesh.gateway.server import Gateway
from mesh.service.worker import Worker
from mesh.transport.zmq_transport import from_settings


class Running(NamedTuple):
    """What a test is given.

    Attributes:
        node: a client that knows all instances.
        http: a client session whose base is the gateway.
        workers: one for each replica.
    """

    node: mesh.Node
    http: aiohttp.ClientSession
    workers: list[Worker]


Start = Callable[[type[mesh.Service], int], Awaitable[Running]]


async def until_seen(nodes: list[mesh.Node], service: str, count: int) -> None:
    """Return when each node knows `count` instances of the service."""
    news = asyncio.Event()
    for node in nodes:
        node.agent.on_change(lambda _: news.set())
    async with asyncio.timeout(10):
        while any(len(node.instances(service)) != count for node in nodes):
            news.clear()
            await news.wait()


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start one service, some replicas of it, with everything around; the test's end stops it."""
    async with AsyncExitStack() as stack:
        # Not tmp_path: an ipc path holds at most 107 characters.
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="mesh-"))
        settings = Settings(
            mesh=MeshSettings(run_dir=Path(directory)),
            worker=WorkerSettings(stop_timeout_s=5.0, processes=1),
            gateway=GatewaySettings(timeout_s=20.0),
        )

        async def begin(service: type[mesh.Service], replicas: int) -> Running:
            transport = from_settings(settings)
            stack.push_async_callback(transport.close)
            hub = Hub(transport, LoopClock(), identity="hub", epoch=1, learn_s=0.0)
            stack.push_async_callback(hub.stop)
            await hub.start(settings.mesh.hubs[0])
            workers = [Worker([service], settings) for _ in range(replicas)]
            for worker in workers:
                stack.push_async_callback(worker.stop)
                await worker.start()
            node = await stack.enter_async_context(mesh.connect(settings))
            front, _ = await app.connect_node(settings)
            stack.push_async_callback(front.close)
            server = Gateway(front, settings).make_server()
            listener = app.bind("127.0.0.1", 0)
            accepting = await asyncio.get_running_loop().create_server(server, sock=listener)
            stack.push_async_callback(server.shutdown, 0.2)
            stack.callback(accepting.close)
            http = await stack.enter_async_context(aiohttp.ClientSession(app.shown(listener)))
            await until_seen([node, front, *(worker.node for worker in workers)], service.name, replicas)
            return Running(node, http, workers)

        yield begin
