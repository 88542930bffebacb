"""What a handler leaves running when it returns."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from calls_services import Echo

import mesh
from mesh.testing import Mesh

#: A call that is never answered fails its test soon.
pytestmark = pytest.mark.timeout(30)

TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


class Starter(mesh.Service):
    """Leaves work behind."""

    def __init__(self) -> None:
        self.going = asyncio.Event()
        self.seen: asyncio.Queue[Any] = asyncio.Queue()
        self.kept: set[asyncio.Task[None]] = set()

    async def later(self) -> None:
        await self.going.wait()
        try:
            answer = await self.call("echo.context")
        except mesh.MeshError as exc:
            answer = exc
        call = mesh.current()
        assert call is not None
        self.seen.put_nowait((answer, call.caller))

    @mesh.rpc
    async def begin(self) -> None:
        self.kept.add(asyncio.create_task(self.later()))

    @mesh.rpc
    async def begin_and_hang(self) -> None:
        self.kept.add(asyncio.create_task(self.later()))
        await asyncio.sleep(30)

    @mesh.task(timeout="50ms")
    async def begin_in_task(self) -> None:
        self.kept.add(asyncio.create_task(self.later()))


@pytest.mark.parametrize("how", ["call", "expired", "task"])
async def test_background_work_has_no_deadline_of_the_handler(how: str):
    """Once the handler has ended; trace and caller stay what they were."""
    async with Mesh(Starter, Echo) as m:
        (service,) = m.instances(Starter)
        if how == "task":
            await (await m.defer(Starter.begin_in_task)).result(5)
        elif how == "expired":
            with pytest.raises(mesh.DeadlineExceeded):
                await m.node.call_raw("starter.begin_and_hang", b"", 0, timeout=0.05, trace=TRACE)
        else:
            await m.node.call_raw("starter.begin", b"", 0, timeout=0.05, trace=TRACE)
        await asyncio.sleep(0.08)  # past the deadline that it had
        service.going.set()
        answer, caller = await asyncio.wait_for(service.seen.get(), 5)
        assert answer["target"] == "echo.context"
        assert how == "task" or answer["trace"][:36] == TRACE[:36]
        assert len(answer["trace"]) == len(TRACE)
        assert caller == ("" if how == "task" else m.node.identity)
