"""What a link and a call leave behind when they are over: nothing that only a search for cycles would find."""

from __future__ import annotations

import asyncio
import gc
import tempfile
import weakref
from pathlib import Path

import mesh
from mesh.calls.server import Conversation
from mesh.config import load
from mesh.discovery.hub import Peer
from mesh.service.node import Node
from mesh.service.worker import Worker
from mesh.clock import LoopClock
from mesh.discovery.hub import Hub
from mesh.transport.zmq_transport import from_settings


class Echo(mesh.Service):
    @mesh.rpc
    async def one(self, value: str) -> str:
        return value

    @mesh.rpc
    async def many(self, count: int) -> mesh.Items[int]:
        for number in range(count):
            yield number


async def test_sessions_that_are_over_are_freed_at_once() -> None:
    """Of a client that called and left, hub and worker keep no session: the collector is off."""
    with tempfile.TemporaryDirectory(prefix="mesh-") as directory:
        settings = load(None, env={}, flags={"mesh.run_dir": f"{directory}/run"})
        transport = from_settings(settings, "hub")
        hub = Hub(transport, LoopClock(), identity="hub-1", epoch=1)
        await hub.start(settings.mesh.hubs[0])
        worker = Worker(settings, [Echo])
        await worker.start()
        gc.collect()
        gc.disable()
        try:
            async with mesh.connect(settings=settings) as n:
                await n.wait_for("echo", timeout=10.0)
                assert await n.call("echo.one", "x") == "x"
                seen = [weakref.ref(each) for each in gc.get_objects() if isinstance(each, (Conversation, Peer))]
            mine = {id(each) for each in (*hub._peers, *worker.server._conversations)}
            async with asyncio.timeout(10.0):
                while sum(ref() is not None for ref in seen) > len(hub._peers) + len(worker.server._conversations):
                    await asyncio.sleep(0.01)
            assert mine is not None
        finally:
            gc.enable()
            await worker.stop()
            await hub.stop()
            await transport.close()
