"""What a link leaves behind when it is over: nothing that only a search for cycles would find."""

from __future__ import annotations

import asyncio
import gc
import tempfile
import weakref
from collections.abc import AsyncIterator

import mesh
from mesh.calls.server import Conversation
from mesh.clock import LoopClock
from mesh.config import load
from mesh.discovery.hub import Hub, Peer
from mesh.transport.zmq_transport import from_settings
from mesh.worker.worker import Worker


class Echo(mesh.Service):
    @mesh.rpc
    async def one(self, value: str) -> str:
        return value

    @mesh.rpc
    async def many(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number


class Watched:
    """Remembers every session of one class without keeping it."""

    def __init__(self, monkeypatch, cls: type) -> None:
        self.made: list[weakref.ref] = []
        begin = cls.__init__

        def init(session, *args):
            begin(session, *args)
            self.made.append(weakref.ref(session))

        monkeypatch.setattr(cls, "__init__", init)

    @property
    def alive(self) -> int:
        return sum(ref() is not None for ref in self.made)


async def test_sessions_that_are_over_are_freed_without_the_collector(monkeypatch):
    """Of clients that called, streamed and left, the hub keeps no session and the worker nothing of their calls."""
    peers = Watched(monkeypatch, Peer)
    with tempfile.TemporaryDirectory(prefix="mesh-") as directory:
        settings = load(None, env={}, flags={"mesh.run_dir": f"{directory}/run"})
        transport = from_settings(settings, "hub")
        hub = Hub(transport, LoopClock(), identity="hub-1", epoch=1)
        await hub.start(settings.mesh.hubs[0])
        worker = Worker([Echo], settings)
        await worker.start()
        gc.collect()
        earlier = conversations()  # a thread of another test may still hold one
        gc.disable()
        try:
            for _ in range(3):
                async with mesh.connect(settings=settings) as n:
                    await n.wait_for("echo", timeout=30.0)
                    assert await n.call("echo.one", "x") == "x"
                    assert [item async for item in n.stream("echo.many", 3)] == [0, 1, 2]
            async with asyncio.timeout(60.0):
                while peers.alive > 1 or len(conversations()) > len(earlier) + 1:  # noqa: ASYNC110  # nothing announces it
                    await asyncio.sleep(0.02)
            assert len(peers.made) >= 4
        finally:
            gc.enable()
            await worker.stop()
            await hub.stop()
            await transport.close()


def conversations() -> list[Conversation]:
    """Those that exist, reachable or not: the collector tracks them all."""
    return [each for each in gc.get_objects() if type(each) is Conversation]
