"""What the log has of calls: slow ones, and the trace and span of every line."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, ClassVar

import pytest

import mesh
from mesh.testing import Mesh
from tests.patience import until

#: A call that is never answered fails its test soon.
pytestmark = pytest.mark.timeout(30)


class Sleeper(mesh.Service):
    """Takes its time."""

    @mesh.rpc
    async def nap(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    @mesh.rpc(concurrency=1)
    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def test_a_slow_call_leaves_one_line_with_its_durations(log: Any):
    """What is quick leaves none at that level; the time in the queue is told apart."""
    async with Mesh(Sleeper, settings={"log.slow": 0.05}) as m:
        await asyncio.gather(m.call("sleeper.sleep", 0.08), m.call("sleeper.sleep", 0.0))
        await m.call("sleeper.sleep", 0.0)
        first, second = log.lines("call.slow")
        assert [line["target"] for line in (first, second)] == ["sleeper.sleep"] * 2
        assert first["level"] == "warning"
        assert first["took_s"] >= 0.08
        assert first["waited_s"] == 0
        assert second["waited_s"] >= 0.05
        with pytest.raises(mesh.DeadlineExceeded):
            await m.call("sleeper.sleep", 1.0, timeout=0.06)
        await until(lambda: len(log.lines("call.slow")) == 3)
        # By the caller's deadline or the callee's own, whichever was noticed first.
        assert log.lines("call.slow")[2]["code"] in ("deadline_exceeded", "cancelled")


class Depot(mesh.Service):
    @mesh.rpc
    async def item(self) -> None:
        raise ValueError("the shelf is broken")


class Desk(mesh.Service):
    @mesh.rpc
    async def ask(self) -> None:
        self.log.info("asking")
        await self.call("depot.item")


async def test_every_hop_has_a_span_of_its_own_in_one_trace(log: Any):
    """Also when the first caller brought no trace."""
    async with Mesh(Desk, Depot) as m:
        with pytest.raises(mesh.RemoteError):
            await m.call("desk.ask")
        (desk,) = log.lines("asking")
        (depot,) = log.lines("handler.failed")
        assert depot["target"] == "depot.item"
        assert depot["trace_id"] == desk["trace_id"]
        assert depot["span_id"] != desk["span_id"]


async def test_every_call_leaves_a_line_at_the_level_debug(log: Any):
    """With the trace of the caller."""
    async with Mesh(Sleeper, settings={"log.level": "debug"}) as m:
        await m.node.call_raw("sleeper.sleep", b"\x91\x00", 0, trace="00-" + "ab" * 16 + "-" + "cd" * 8 + "-01")
        (line,) = log.lines("call.ended")
        assert (line["target"], line["level"], line["code"]) == ("sleeper.sleep", "debug", "ok")
        assert line["trace_id"] == "ab" * 16
        assert line["span_id"] != "cd" * 8


async def test_many_slow_calls_leave_a_few_lines(log: Any):
    """When everything is slow, the log is not what makes it slower; what was left out is counted."""
    async with Mesh(Sleeper, settings={"log.slow": 0.001}) as m:
        await asyncio.gather(*(m.call("sleeper.nap", 0.02) for _ in range(100)))
        assert len(log.lines("call.slow")) == 10
        await asyncio.sleep(1.0)  # the second is over
        await m.call("sleeper.nap", 0.02)
        assert log.lines("call.slow")[10]["left_out"] == 90


class Blocking(mesh.Service):
    """Its handler is a plain def, which waits in a thread."""

    go: ClassVar = threading.Event()

    @mesh.on("paper.late", durable=True, retries=0, timeout=0.05)
    def late(self, data: int) -> None:
        self.go.wait(10.0)


async def test_a_handler_in_a_thread_that_is_late_is_told_with_its_place(log: Any):
    """Where it is defined, and not the thread's own code: the exception was never in the handler."""
    async with Mesh(Blocking) as m:
        await m.emit("paper.late", 1, durable=True)
        await until(lambda: log.lines("task.dead"))
        Blocking.go.set()
        line = log.lines("task.dead")[0]
        assert line["error"].startswith("DeadlineExceeded")
        assert line["at"].startswith(f"{__file__}:")
