"""Calls by every form of argument and answer, in memory and over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from calls_services import Echo, Point

import mesh
from mesh.protocol.messages import JSON, MSGPACK, RAW
from mesh.telemetry import traces
from mesh.testing import Mesh, no_leaks

TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


#: A call that is never answered fails its test soon, not after the run's own patience.
pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    async with no_leaks():
        yield


@pytest.fixture(params=["memory", "ipc"])
async def m(request: pytest.FixtureRequest) -> AsyncIterator[Mesh]:
    async with Mesh(Echo, transport=request.param) as m:
        yield m


async def test_arguments_go_by_position_by_name_and_mixed(m: Mesh):
    """As the method takes them, defaults included."""
    assert await m.call("echo.three", 1) == [1, "b", "c"]
    assert await m.call("echo.three", 1, 2) == [1, 2, "c"]
    assert await m.call("echo.three", a=1, c=3) == [1, "b", 3]
    assert await m.call("echo.three", 1, c=3) == [1, "b", 3]
    assert await m.call("echo.three", 1, b=2, c=3) == [1, 2, 3]
    assert await m.call("echo.nothing") is None
    assert await m.call("echo.plain", "x") == "X", "a plain def is answered as well"


async def test_wrong_arguments_are_refused_by_name(m: Mesh):
    """With the path of the wrong one, and the handler is not run."""
    for args, path in (((), "$.point"), (({"x": "one"},), "$.point.x"), (({"x": 1}, 2), "$[1]")):
        with pytest.raises(mesh.BadArguments) as caught:
            await m.call("echo.turn", *args)
        assert caught.value.details["path"] == path
    with pytest.raises(mesh.BadArguments, match=r'"vlue".*"value"\?'):
        await m.call("echo.one", vlue=1)


async def test_what_cannot_travel_fails_where_the_call_is_made(m: Mesh):
    """Before anything is sent."""
    with pytest.raises(mesh.BadArguments, match=r"argument 1 .*echo\.one"):
        m.call("echo.one", object())
    with pytest.raises(mesh.BadRequest, match="metadata"):
        m.call("echo.one", 1, meta={"n": 1})  # type: ignore[dict-item]
    with pytest.raises(mesh.BadRequest, match=r"metadata .*16384"):
        m.call("echo.one", 1, meta={"n": "x" * 20_000})
    with pytest.raises(mesh.BadRequest, match=r"service\.method"):
        m.call("echo", 1)


async def test_typed_calls_bring_the_annotated_types(m: Mesh):
    """By class: Structs come back as Structs; by name: as plain values."""
    assert await m.rpc[Echo].turn(Point(1, 2)) == Point(2, 1)
    assert await m.rpc.echo.turn(Point(1, 2)) == {"x": 2, "y": 1}


async def test_bytes_travel_as_they_are(m: Mesh):
    """Empty, small, and past the size at which a body becomes a frame of its own."""
    for size in (0, 1, 64 * 1024, 64 * 1024 + 1, 1024 * 1024):
        data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        assert await m.call("echo.blob", data) == data
        assert await m.rpc[Echo].blob(data) == data


async def test_a_mebibyte_of_text_goes_both_ways(m: Mesh):
    """Large bodies among small ones, many at once."""
    big = "x" * (1 << 20)
    answers = await asyncio.gather(*(m.call("echo.one", big if i % 4 == 0 else i) for i in range(16)))
    assert answers == [big if i % 4 == 0 else i for i in range(16)]


async def test_who_asks_in_json_is_answered_in_json(m: Mesh):
    """And bytes are answered raw, whoever asks."""
    answer = await m.node.call_raw("echo.turn", b'{"point": {"x": 1}}', JSON)
    assert (bytes(answer.body), answer.encoding) == (b'{"x":0,"y":1}', JSON)
    answer = await m.node.call_raw("echo.blob", b"\x00\xff", RAW)
    assert (bytes(answer.body), answer.encoding) == (b"\x00\xff", RAW)
    answer = await m.node.call_raw("echo.nothing", b"", MSGPACK)
    assert (bytes(answer.body), answer.encoding) == (b"\xc0", MSGPACK)


async def test_metadata_and_trace_reach_the_handler(m: Mesh):
    """With the target and the caller's identity."""
    seen = await m.call("echo.context", meta={"tenant": "blue"})
    assert seen == {"target": "echo.context", "caller": m.node.identity, "trace": None, "meta": {"tenant": "blue"}}
    answer = await m.node.call_raw("echo.context", b"", MSGPACK, trace=TRACE)
    trace = msgspec.msgpack.decode(answer.body)["trace"]
    # The same trace and flags; the run of a handler is a span of its own.
    assert (trace[:36], trace[52:]) == (TRACE[:36], TRACE[52:])
    assert trace[36:52] != TRACE[36:52]


async def test_many_calls_of_one_moment_are_answered_each_with_its_own(m: Mesh):
    """A thousand callers, no mix-up."""
    assert await asyncio.gather(*(m.call("echo.one", i) for i in range(1000))) == list(range(1000))


class Front(mesh.Service):
    """Calls on."""

    @mesh.rpc
    async def ask(self) -> dict[str, Any]:
        result: dict[str, Any] = await self.rpc.echo.context()
        return result | {"here": traces.current.get()}


async def test_nested_calls_belong_to_the_same_trace():
    """What a handler calls carries the trace of the call that it answers; metadata stays with its own call."""
    async with Mesh(Echo, Front) as m:
        answer = await m.node.call_raw("front.ask", b"", JSON, trace=TRACE, meta={"tenant": "blue"})
        seen = msgspec.json.decode(answer.body)
        assert seen["meta"] == {}
        assert seen["trace"][:36] == seen["here"][:36] == TRACE[:36]
        assert len({seen["trace"], seen["here"], TRACE}) == 3
