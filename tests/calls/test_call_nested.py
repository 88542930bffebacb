"""Errors of the calls that a handler makes: what its own caller is told, and what the log has of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from calls_patience import one_line

import mesh
from mesh.testing import Mesh

#: A call that is never answered fails its test soon.
pytestmark = pytest.mark.timeout(30)


class Missing(mesh.ServiceError):
    code = "item_missing"
    status = 404


class Depot(mesh.Service):
    """Asked by Desk."""

    @mesh.rpc
    async def item(self, number: int) -> str:
        if number < 0:
            raise mesh.BadArguments("a number is at least 0")
        if number == 0:
            raise Missing("there is no item 0")
        if number == 500:
            raise ValueError("the shelf is broken")
        return f"item {number}"

    @mesh.rpc
    async def busy(self) -> None:
        raise mesh.Overloaded("later")

    @mesh.rpc
    async def slow(self) -> None:
        await asyncio.sleep(30)

    @mesh.rpc
    async def unsendable(self) -> Any:
        return object()

    @mesh.rpc
    async def items(self, number: int) -> AsyncIterator[int]:
        yield number


class Desk(mesh.Service):
    """Asks Depot, rightly and wrongly."""

    @mesh.rpc
    async def ask(self, kind: str) -> Any:
        return await MISTAKES[kind](self)

    @mesh.rpc
    async def feed(self, kind: str) -> AsyncIterator[Any]:
        yield 1
        yield await MISTAKES[kind](self)

    @mesh.rpc
    async def own(self) -> None:
        raise mesh.BadArguments("the caller's own mistake")


async def _first(items: Any) -> Any:
    return await anext(aiter(items))


MISTAKES: dict[str, Callable[[Desk], Awaitable[Any]]] = {
    "argument": lambda desk: desk.call("depot.item", "seven"),
    "missing argument": lambda desk: desk.rpc.depot.item(),
    "unsendable argument": lambda desk: _late(lambda: desk.call("depot.item", object())),
    "method": lambda desk: desk.call("depot.itme", 1),
    "service": lambda desk: desk.call("depto.item", 1),
    "target": lambda desk: _late(lambda: desk.call("depot", 1)),
    "shape": lambda desk: desk.call("depot.items", 1),
    "stream argument": lambda desk: _first(desk.stream("depot.items", "x")),
    "raised bad arguments": lambda desk: desk.call("depot.item", -1),
    "topic": lambda desk: desk.emit("no topic!"),
    "cancelled": lambda desk: _cancelled(desk),
    "application": lambda desk: desk.call("depot.item", 0),
    "failure": lambda desk: desk.call("depot.item", 500),
    "bad result": lambda desk: desk.call("depot.unsendable"),
    "busy": lambda desk: desk.call("depot.busy"),
    "deadline": lambda desk: desk.call("depot.slow", timeout=0.05),
}

OWN_FAULTS = [
    ("argument", "bad_arguments"),
    ("missing argument", "bad_arguments"),
    ("unsendable argument", "bad_arguments"),
    ("method", "unknown_method"),
    ("service", "unknown_service"),
    ("target", "bad_request"),
    ("shape", "shape_mismatch"),
    ("stream argument", "bad_arguments"),
    ("raised bad arguments", "bad_arguments"),
    ("topic", "bad_topic"),
]

PASSES = [
    ("application", "item_missing", 404),
    ("busy", "overloaded", 503),
    ("deadline", "deadline_exceeded", 504),
    ("failure", "handler_error", 500),
]


async def _late(begin: Callable[[], Awaitable[Any]]) -> Any:
    return await begin()


async def _cancelled(desk: Desk) -> Any:
    call = asyncio.ensure_future(desk.call("depot.slow"))
    call.cancel()
    return await call


@pytest.fixture
async def m() -> AsyncIterator[Mesh]:
    async with Mesh(Desk, Depot) as m:
        yield m


@pytest.mark.parametrize(("kind", "code"), OWN_FAULTS)
async def test_a_mistake_in_a_nested_call_is_the_handlers_failure(m: Mesh, log: Any, kind: str, code: str):
    """500 for its caller, and one line with the place of the mistake."""
    with pytest.raises(mesh.RemoteError) as caught:
        await m.call("desk.ask", kind)
    assert (caught.value.code, caught.value.status, caught.value.details) == ("handler_error", 500, {"nested": code})
    (line,) = log.lines("handler.failed")
    assert (line["target"], line["level"]) == ("desk.ask", "error")
    assert line["at"].startswith(f"{__file__}:")
    assert "Traceback" in line["exception"]
    assert len(line["trace_id"]) == 32


@pytest.mark.parametrize(("kind", "code", "status"), PASSES)
async def test_what_the_caller_can_act_on_passes(m: Mesh, log: Any, kind: str, code: str, status: int):
    """The application's own errors, time and load: with their code, and logged by the process that failed alone."""
    with pytest.raises(mesh.MeshError) as caught:
        await m.call("desk.ask", kind)
    assert (caught.value.code, caught.value.status) == (code, status)
    assert [line["target"] for line in log.lines("handler.failed")] == (["depot.item"] if kind == "failure" else [])


async def test_a_bad_result_of_a_nested_call_is_logged_once(m: Mesh, log: Any):
    """By the process whose handler returned it, with its file and line."""
    with pytest.raises(mesh.RemoteError) as caught:
        await m.call("desk.ask", "bad result")
    assert (caught.value.status, caught.value.details) == (500, {"nested": "bad_result"})
    (line,) = log.lines("handler.failed")
    assert line["target"] == "depot.unsendable"
    assert line["at"].startswith(f"{__file__}:")


@pytest.mark.parametrize(("kind", "code"), [OWN_FAULTS[0], OWN_FAULTS[4]])
async def test_streams_fail_in_the_same_way(m: Mesh, log: Any, kind: str, code: str):
    """After the items before the mistake."""
    items = aiter(m.stream("desk.feed", kind))
    assert await anext(items) == 1
    with pytest.raises(mesh.RemoteError) as caught:
        await anext(items)
    assert (caught.value.status, caught.value.details) == (500, {"nested": code})
    assert len(log.lines("handler.failed")) == 1


async def test_what_a_handler_itself_raises_is_a_statement_about_its_call(m: Mesh, log: Any):
    """The class says whose mistake it is, and nothing failed here."""
    with pytest.raises(mesh.BadArguments):
        await m.call("desk.own")
    assert log.lines("handler.failed") == []


class Clerk(mesh.Service):
    """Makes mistakes where no caller waits."""

    @mesh.task(retries=0)
    async def file(self) -> None:
        await self.call("depot.item", "seven")

    @mesh.on("paper.came")
    async def paper(self, data: int) -> None:
        await self.call("depot.item", "seven")

    @mesh.on("paper.for.all", to="every")
    async def for_all(self, data: int) -> None:
        await self.call("depot.item", "seven")

    @mesh.on("paper.durable", durable=True, retries=0)
    async def durable(self, data: int) -> None:
        await self.call("depot.item", "seven")

    @mesh.on("paper.ends")
    def ends(self, data: int) -> None:
        next(iter([]))

    @mesh.every("20ms")
    async def tick(self) -> None:
        await self.call("depot.item", "seven")


async def test_tasks_events_and_timers_log_the_place_of_the_mistake(log: Any):
    """One line each, with the trace that it belongs to."""
    async with Mesh(Clerk, Depot) as m:
        await m.defer(Clerk.file)
        line = await one_line(log, "task.dead")
        assert line["at"].startswith(f"{__file__}:")
        assert len(line["trace_id"]) == 32
        with pytest.raises(mesh.MeshError) as caught:
            await m.emit("paper.came", 1)
        assert caught.value.details["services"]["clerk"]["code"] == "handler_error"
        assert (await one_line(log, "handler.failed"))["at"].startswith(f"{__file__}:")
        await m.emit("paper.for.all", 1)
        line = await one_line(log, "event.handler_failed")
        assert line["at"].startswith(f"{__file__}:")
        assert len(line["trace_id"]) == 32
        await m.emit("paper.durable", 1, durable=True)
        await m.idle()
        assert [line["at"].startswith(f"{__file__}:") for line in log.lines("task.dead")] == [True, True]
        line = await one_line(log, "timer.failed")
        assert line["at"].startswith(f"{__file__}:")
        assert len(line["trace_id"]) == 32


async def test_what_the_only_handler_of_an_event_raises_is_told_once(log: Any):
    """With what it was raised from, and at its line; it is not its own cause."""
    async with Mesh(Clerk, Depot) as m:
        with pytest.raises(mesh.MeshError) as caught:
            await m.emit("paper.ends", 1)
        assert caught.value.details["services"]["clerk"]["code"] == "handler_error"
        line = await one_line(log, "handler.failed")
        assert line["error"].count("RuntimeError") == 1
        assert line["error"].endswith("(from StopIteration)")
        assert line["at"].startswith(f"{__file__}:")


async def test_data_of_the_wrong_type_is_still_the_emitters_mistake(log: Any):
    """The handler never saw it."""
    async with Mesh(Clerk, Depot) as m:
        with pytest.raises(mesh.MeshError) as caught:
            await m.emit("paper.came", "not a number")
        assert caught.value.details["services"]["clerk"]["code"] == "bad_arguments"
        assert log.lines("handler.failed") == []
