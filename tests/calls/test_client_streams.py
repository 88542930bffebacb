"""Client streams: items from the caller to the handler, with one answer or a stream of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

import mesh
from mesh.calls.declared import BadDeclaration
from mesh.calls.inbound import WINDOW
from mesh.errors import (
    BadArguments,
    Cancelled,
    DeadlineExceeded,
    LinkLost,
    Overloaded,
    ProtocolViolation,
    RemoteError,
    ShapeMismatch,
    TooLarge,
)
from mesh.protocol.callee import Callee
from mesh.protocol.caller import Caller
from mesh.protocol.codec import one
from mesh.protocol.messages import CREDIT, END, ITEM, REPLY
from mesh.testing import ManualClock, Mesh, no_leaks
from tests.patience import until

pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    async with no_leaks():
        yield


class Line(msgspec.Struct):
    number: int
    text: str = ""


class Files(mesh.Service):
    def __init__(self) -> None:
        self.read = 0
        self.reading = asyncio.Event()
        self.cancelled = False

    @mesh.rpc
    async def size(self, name: str, chunks: AsyncIterator[bytes], factor: int = 1) -> tuple[str, int]:
        return name, factor * sum([len(chunk) async for chunk in chunks])

    @mesh.rpc
    async def double(self, numbers: AsyncIterator[int]) -> AsyncIterator[int]:
        async for number in numbers:
            yield 2 * number

    @mesh.rpc
    async def lines(self, lines: AsyncIterator[Line]) -> list[int]:
        return [line.number async for line in lines]

    @mesh.rpc
    async def first(self, numbers: AsyncIterator[int], *, wanted: int = 1) -> list[int]:
        found = []
        async for number in numbers:
            found.append(number)
            if len(found) == wanted:
                break
        return found

    @mesh.rpc
    async def ignores(self, numbers: AsyncIterator[int]) -> str:
        return "not read"

    @mesh.rpc
    async def slow(self, numbers: AsyncIterator[int]) -> int:
        try:
            async for _ in numbers:
                self.read += 1
                self.reading.set()
                await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return self.read

    @mesh.rpc
    async def fails(self, numbers: AsyncIterator[int]) -> int:
        async for number in numbers:
            raise ValueError(number)
        return 0

    @mesh.rpc(concurrency=1, queue=0)
    async def narrow(self, numbers: AsyncIterator[int]) -> int:
        return sum([number async for number in numbers])

    @mesh.rpc
    async def plain(self, number: int) -> int:
        return number


class Source:
    """Counts what is taken from it, and whether it was closed."""

    def __init__(self, count: int, size: int = 0) -> None:
        self.count = count
        self.size = size
        self.taken = 0
        self.closed = False

    async def items(self) -> AsyncIterator[Any]:
        try:
            for number in range(self.count):
                self.taken += 1
                yield bytes(self.size) if self.size else number
        finally:
            self.closed = True


@pytest.fixture
async def m() -> AsyncIterator[Mesh]:
    async with Mesh(Files) as m:
        yield m


@pytest.mark.parametrize("transport", ["memory", "ipc"])
@pytest.mark.parametrize(("count", "size"), [(0, 1), (1, 10), (WINDOW, 100), (1000, 1000), (40, 300_000)])
async def test_items_reach_the_handler_and_one_answer_comes_back(transport: Any, count: int, size: int):
    async with Mesh(Files, transport=transport) as m:
        source = Source(count, size)
        assert await m.call("files.size", "a", source.items(), 2) == ["a", 2 * count * size]
        assert (source.taken, source.closed) == (count, True)


@pytest.mark.parametrize("transport", ["memory", "ipc"])
async def test_both_directions_at_once(transport: Any):
    async with Mesh(Files, transport=transport) as m:
        assert [each async for each in m.stream("files.double", Source(2000).items())] == [2 * n for n in range(2000)]
        assert [each async for each in m.rpc.files.double(Source(3).items())] == [0, 2, 4]


async def test_every_way_of_calling_takes_an_iterator(m: Mesh):
    assert await m.rpc.files.size("a", Source(3, 5).items()) == ["a", 15]
    assert await m.rpc[Files].size("a", Source(3, 5).items(), factor=3) == ("a", 45)
    assert await m.rpc[Files].size(chunks=Source(3, 5).items(), name="b") == ("b", 15)
    assert [each async for each in m.rpc[Files].double(Source(3).items())] == [0, 2, 4]
    assert await m.node.using(timeout="5s").files.lines(
        line async for line in _each(Line(1), {"number": 2, "text": "x"})
    ) == [1, 2]
    assert await m.rpc[Files].first(Source(10).items(), wanted=3) == [0, 1, 2]


async def _each(*items: Any) -> AsyncIterator[Any]:
    for item in items:
        yield item


async def test_a_conversation_alternates(m: Mesh):
    """Each item is answered before the next is sent."""
    asked: asyncio.Queue[int | None] = asyncio.Queue()

    async def ask() -> AsyncIterator[int]:
        while (number := await asked.get()) is not None:
            yield number

    stream = m.rpc[Files].double(ask())
    for number in range(5):
        asked.put_nowait(number)
        assert await anext(stream) == 2 * number
    asked.put_nowait(None)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_a_slow_handler_holds_the_caller_back(m: Mesh):
    (files,) = m.instances(Files)
    source = Source(1000)
    call = m.call("files.slow", source.items())
    await files.reading.wait()
    await m.settle()
    # The window, and one more that waits for credit is not taken before there is some.
    assert source.taken <= WINDOW + 1
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await m.settle()
    assert (files.cancelled, source.closed) == (True, True)


async def test_a_handler_that_does_not_read_receives_nothing(m: Mesh):
    source = Source(10)
    assert await m.call("files.ignores", source.items()) == "not read"
    await m.settle()
    assert source.taken == 0


async def test_a_handler_that_stops_reading_ends_the_source(m: Mesh):
    source = Source(1000)
    assert await m.call("files.first", source.items(), wanted=2) == [0, 1]
    await m.settle()
    assert source.closed
    assert source.taken <= WINDOW + 1
    assert await m.call("files.plain", 1) == 1


async def test_an_error_of_the_handler_reaches_the_caller(m: Mesh):
    source = Source(1000)
    with pytest.raises(RemoteError) as caught:
        await m.call("files.fails", source.items())
    assert caught.value.type_name == "ValueError"
    await m.settle()
    assert source.closed


async def test_an_error_of_the_source_reaches_the_caller_and_cancels_the_handler(m: Mesh):
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise ZeroDivisionError("here")

    (files,) = m.instances(Files)
    with pytest.raises(ZeroDivisionError):
        await m.call("files.slow", broken())
    await m.settle()
    assert files.cancelled
    with pytest.raises(ZeroDivisionError):
        async for _ in m.stream("files.double", broken()):
            pass


@pytest.mark.parametrize(
    ("method", "items", "path"),
    [("lines", [{"number": "x"}], "$.lines"), ("double", ["x"], "$.numbers"), ("size", [1], "$.chunks")],
)
async def test_an_item_of_another_type_is_a_wrong_argument(m: Mesh, method: str, items: list[Any], path: str):
    arguments = ["a"] if method == "size" else []

    async def send() -> None:
        if method == "double":
            [each async for each in m.stream("files.double", _each(*items))]
        else:
            await m.call(f"files.{method}", *arguments, _each(*items))

    with pytest.raises(BadArguments) as caught:
        await send()
    assert caught.value.details["path"] == path


async def test_what_cannot_be_sent_is_refused_here(m: Mesh):
    with pytest.raises(BadArguments):
        await m.call("files.lines", _each(Line(1), object()))
    with pytest.raises(BadArguments):
        m.call("files.lines", _each(1), _each(2))
    with pytest.raises(BadArguments):
        m.call("files.plain", object())
    with pytest.raises(TooLarge):
        await m.call("files.size", "a", _each(bytes(m.settings.calls.max_body_bytes + 1)))


async def test_the_shape_must_match(m: Mesh):
    with pytest.raises(ShapeMismatch):
        await m.call("files.size", "a")
    with pytest.raises(ShapeMismatch):
        await m.call("files.plain", 1, _each(1))
    with pytest.raises(BadArguments):
        await m.call("files.size", "a", _each(b"x"), 1, 2)


async def test_the_deadline_ends_both_ends():
    clock = ManualClock()
    async with Mesh(Files, clock=clock) as m:
        (files,) = m.instances(Files)
        source = Source(1000)
        call = m.call("files.slow", source.items(), timeout=2)
        await files.reading.wait()
        await m.advance(2.1)
        with pytest.raises(DeadlineExceeded):
            await call
        await m.settle()
        assert (files.cancelled, source.closed) == (True, True)


async def test_a_stream_that_its_reader_closes_ends_the_source(m: Mesh):
    source = Source(10_000)
    async with m.stream("files.double", source.items()) as stream:
        assert await anext(stream) == 0
    await m.settle()
    assert source.closed
    with pytest.raises(Cancelled):
        await anext(stream)


async def test_limits_refuse_before_an_item_is_taken(m: Mesh):
    hold: asyncio.Queue[int] = asyncio.Queue()

    async def held() -> AsyncIterator[int]:
        yield await hold.get()

    first = m.call("files.narrow", held())
    await m.settle()
    source = Source(5)
    with pytest.raises(Overloaded):
        await m.call("files.narrow", source.items())
    assert source.taken == 0
    hold.put_nowait(3)
    assert await first == 3


async def test_a_lost_link_ends_a_call_that_has_begun():
    """It is not repeated elsewhere: the items are gone."""
    async with Mesh(Files, replicas={Files: 2}) as m:
        source = Source(10_000)
        call = m.call("files.slow", source.items())
        await until(lambda: any(each.reading.is_set() for each in m.instances(Files)))
        (index,) = [at for at, each in enumerate(m.instances(Files)) if each.reading.is_set()]
        await m.faults.kill(Files, index)
        with pytest.raises(LinkLost):
            await call
        await m.settle()
        assert source.closed


async def test_interceptors_see_the_call_and_its_items_arrive():
    seen: list[tuple[str, bool]] = []

    class Watch(mesh.Interceptor):
        async def outgoing(self, call: Any, proceed: Any) -> Any:
            seen.append((call.target, call.source is not None))
            return await proceed(call)

        async def incoming(self, call: Any, proceed: Any) -> Any:
            seen.append((call.target, call.stream))
            return await proceed(call)

    class Watched(Files):
        name = "watched"
        interceptors = [Watch()]

    async with Mesh(Watched) as m:
        assert await m.call("watched.size", "a", Source(3, 5).items()) == ["a", 15]
        assert [each async for each in m.stream("watched.double", Source(2).items())] == [0, 2]
    assert seen == [("watched.size", False), ("watched.double", True)]


# --- declarations ---------------------------------------------------------------------------------------


async def test_what_cannot_be_declared():
    async def two(self, a: AsyncIterator[int], b: AsyncIterator[int]) -> None: ...

    async def by_name(self, *, a: AsyncIterator[int]) -> None: ...

    def blocks(self, a: AsyncIterator[int]) -> None: ...

    async def odd(self, a: AsyncIterator[complex]) -> None: ...

    for function, decorator in (
        (two, mesh.rpc),
        (by_name, mesh.rpc),
        (blocks, mesh.rpc),
        (odd, mesh.rpc),
        (by_name, mesh.task),
        (Files.first, mesh.task),
    ):
        service = type("Odd", (mesh.Service,), {"method": decorator(_fresh(function)), "name": "odd"})
        with pytest.raises(BadDeclaration):
            async with Mesh(service):
                pass


def _fresh(function: Any) -> Any:
    import types

    made = types.FunctionType(function.__code__, function.__globals__, "method", function.__defaults__)
    made.__annotations__ = function.__annotations__
    made.__kwdefaults__ = function.__kwdefaults__
    made.__qualname__ = "Odd.method"
    return made


async def test_the_record_has_the_schema_of_an_item(m: Mesh):
    def inbound(name: str) -> Any:
        record = m.node.method(f"files.{name}")
        assert record is not None
        return record.inbound

    assert inbound("size") == {"type": "string", "contentMediaType": "application/octet-stream"}
    assert inbound("double") == {"type": "integer"}
    assert inbound("plain") is None


# --- the protocol -----------------------------------------------------------------------------------------


def _linked() -> tuple[Caller, Callee]:
    caller, callee = Caller("ann-1", 1, 1 << 20), Callee("bob-1", 2, 10, 1 << 20)
    caller.connected()
    callee.connected()
    callee.receive(caller.data_to_send()[0])
    caller.receive(callee.data_to_send()[0])
    return caller, callee


def test_messages_of_a_client_stream_are_legal_in_their_order():
    caller, callee = _linked()
    call = caller.open("files.size", 1000, b"", 1, sends=True)
    callee.receive(caller.data_to_send()[0])
    callee.grant(call, 2)
    assert caller.receive(callee.data_to_send()[0]) == [[CREDIT, call, 2]]
    caller.item(call, b"x", 2)
    caller.end(call)
    assert callee.receive(caller.data_to_send()[0]) == [[ITEM, call, b"x", 2], [END, call]]
    callee.reply(call, b"y")
    # Items that cross the answer are discarded.
    caller.item(call, b"z", 2)
    assert caller.receive(callee.data_to_send()[0]) == [[REPLY, call, b"y"]]
    assert callee.receive(caller.data_to_send()[0]) == []
    assert callee.idle


@pytest.mark.parametrize("message", [(ITEM, 1, b"x"), (END, 1)])
def test_items_of_a_call_are_a_violation(message: Any):
    from mesh.protocol.messages import CALL

    _, callee = _linked()
    callee.receive([one(CALL, 1, "files.plain", 1000, b"")])
    with pytest.raises(ProtocolViolation):
        callee.receive([one(*message)])


def test_items_before_the_hello_are_a_violation():
    callee = Callee("bob-1", 2, 10, 1 << 20)
    callee.connected()
    with pytest.raises(ProtocolViolation):
        callee.receive([one(ITEM, 1, b"x")])
