"""A CancelledError that leaks out of a handler, told apart from a call that was cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from calls_patience import one_line

import mesh
from mesh.testing import Mesh
from tests.patience import until

#: A call that is never answered fails its test soon.
pytestmark = pytest.mark.timeout(30)


class Leaky(mesh.Service):
    """Awaits what it has cancelled."""

    def __init__(self) -> None:
        self.ticks = 0

    async def leak(self) -> None:
        task = asyncio.ensure_future(asyncio.sleep(30))
        task.cancel()
        await task

    @mesh.rpc
    async def call_it(self) -> None:
        await self.leak()

    @mesh.rpc
    async def stream_it(self) -> AsyncIterator[int]:
        yield 1
        await self.leak()

    @mesh.rpc(offload="thread")
    def in_thread(self) -> None:
        raise asyncio.CancelledError

    @mesh.task(retries=0)
    async def task_it(self) -> None:
        await self.leak()

    @mesh.on("leak.one")
    async def one(self) -> None:
        await self.leak()

    @mesh.on("leak.every", to="every")
    async def every(self) -> None:
        await self.leak()

    @mesh.on("leak.durable", durable=True, retries=0)
    async def durable(self) -> None:
        await self.leak()

    @mesh.every("10ms")
    async def tick(self) -> None:
        self.ticks += 1
        await self.leak()

    @mesh.rpc
    async def stay(self) -> None:
        await asyncio.sleep(30)


async def test_a_leaked_cancellation_is_a_failure(log: Any):
    """500 and a line; in calls, streams, threads, tasks, events and timers."""
    async with Mesh(Leaky) as m:
        for target in ("leaky.call_it", "leaky.in_thread"):
            with pytest.raises(mesh.RemoteError) as caught:
                await m.call(target)
            assert (caught.value.code, caught.value.status) == ("handler_error", 500)
        with pytest.raises(mesh.RemoteError) as caught:
            _ = [item async for item in m.stream("leaky.stream_it")]
        assert (caught.value.code, caught.value.status) == ("handler_error", 500)
        assert [line["target"] for line in log.lines("handler.failed")] == [
            "leaky.call_it",
            "leaky.in_thread",
            "leaky.stream_it",
        ]
        with pytest.raises(mesh.MeshError) as failed:
            await m.emit("leak.one")
        assert failed.value.details["services"]["leaky"]["code"] == "handler_error"
        await m.emit("leak.every")
        await one_line(log, "event.handler_failed")
        await m.emit("leak.durable", durable=True)
        await m.defer(Leaky.task_it)
        await m.idle()
        assert all("leaky." in dead.error for dead in await m.dead())
        assert len(await m.dead()) == 2
        (service,) = m.instances(Leaky)
        await until(lambda: service.ticks >= 3)


async def test_a_call_that_its_caller_cancels_or_whose_time_is_over_is_no_failure(log: Any):
    """Nothing is wrong with the handler."""
    async with Mesh(Leaky) as m:
        with pytest.raises(mesh.DeadlineExceeded):
            await m.call("leaky.stay", timeout=0.05)
        call = m.call("leaky.stay")
        (server,) = [worker.node.server for worker in m.workers(Leaky)]
        assert server is not None
        await until(lambda: server.in_hand == 1)
        call.cancel()
        await until(lambda: server.in_hand == 0)
        assert log.lines("handler.failed") == []
