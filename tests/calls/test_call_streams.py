"""Streams: order, flow control, and both ends leaving early."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from calls_services import Echo, Faulty, Hold

import mesh
from mesh.protocol.stream import WINDOW
from mesh.testing import ManualClock, Mesh, no_leaks

#: A call that is never answered fails its test soon, not after the run's own patience.
pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    async with no_leaks():
        yield


@pytest.fixture
async def m() -> AsyncIterator[Mesh]:
    async with Mesh(Echo, Hold, Faulty, Counting, clock=ManualClock()) as m:
        yield m


class Counting(mesh.Service):
    """Counts what leaves it."""

    def __init__(self) -> None:
        self.made = 0
        self.closed = False

    @mesh.rpc
    async def forever(self) -> AsyncIterator[int]:
        try:
            while True:
                self.made += 1
                yield self.made
        finally:
            self.closed = True


@pytest.mark.parametrize("transport", ["memory", "ipc"])
async def test_items_come_in_order_and_the_end_after_them(transport):
    """More than a window, several streams at once, on one link."""
    async with Mesh(Echo, transport=transport) as m:

        async def read(n: int) -> list[int]:
            return [item async for item in m.rpc.echo.count(n)]

        for n, items in zip((0, 1, 256, 5000), await asyncio.gather(*map(read, (0, 1, 256, 5000))), strict=True):
            assert items == list(range(n))
        assert [item async for item in m.rpc[Echo].count(3)] == [0, 1, 2]
        assert [item async for item in m.stream("echo.count", n=2)] == [0, 1]


async def test_a_slow_reader_holds_the_sender_back(m: Mesh):
    """The handler is never further ahead than the window; reading lets it go on."""
    (counting,) = m.instances(Counting)
    async with m.stream("counting.forever") as stream:
        await m.settle()
        # One more is made before the sender finds that it may not be sent.
        assert counting.made == WINDOW + 1
        for expected in range(1, WINDOW + 1):
            assert await anext(stream) == expected
        await m.settle()
        assert WINDOW + 1 < counting.made <= 2 * WINDOW + 1
    await m.settle()
    assert counting.closed


@pytest.mark.parametrize("how", ["aclose", "break", "cancel", "drop"])
async def test_leaving_early_stops_the_handler(m: Mesh, how: str):
    """By aclose, by leaving the loop within `async with`, by cancelling the reader, by forgetting the stream."""
    (hold,) = m.instances(Hold)
    if how == "aclose":
        stream = m.stream("hold.feed", 3)
        assert await anext(stream) == 0
        await stream.aclose()
        with pytest.raises((StopAsyncIteration, mesh.Cancelled)):
            await anext(stream)
    elif how == "break":
        async with m.stream("hold.feed", 3) as stream:
            async for _ in stream:
                break
    elif how == "drop":
        stream = m.stream("hold.feed", 3)
        assert await anext(stream) == 0
        del stream
    else:

        async def read() -> None:
            async for _ in m.stream("hold.feed", 3):
                pass

        reader = asyncio.ensure_future(read())
        await m.settle()
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
    await m.settle()
    assert (hold.began, hold.ended) == (["feed"], ["feed"])


async def test_an_error_comes_after_the_items_before_it(m: Mesh):
    """And with it the stream has ended."""
    stream = m.stream("faulty.feed", 3)
    assert [await anext(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(mesh.RemoteError):
        await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_a_stream_ends_with_its_deadline(m: Mesh):
    """Items that came are read first; the handler is stopped."""
    (hold,) = m.instances(Hold)
    stream = m.stream("hold.feed", 2, timeout=5.0)
    await m.advance(5.1)
    assert [await anext(stream), await anext(stream)] == [0, 1]
    with pytest.raises(mesh.DeadlineExceeded, match=r"hold\.feed: .*5 s"):
        await anext(stream)
    assert hold.ended == ["feed"]


async def test_a_killed_worker_ends_a_begun_stream_with_an_error(m: Mesh):
    """Never with silence, and never by beginning it anew elsewhere."""
    await m.start_another(Hold)
    stream = m.stream("hold.feed", 2)
    assert await anext(stream) == 0
    (index,) = [i for i, hold in enumerate(m.instances(Hold)) if hold.began]
    await m.faults.kill(Hold, index)
    assert await anext(stream) == 1
    with pytest.raises(mesh.LinkLost, match=r"hold-"):
        await anext(stream)


async def test_an_idempotent_stream_that_has_not_begun_goes_elsewhere(m: Mesh):
    """As an idempotent call does."""
    await m.start_another(Hold)
    stream = m.stream("hold.silent_feed")
    first = asyncio.ensure_future(anext(stream))
    await m.settle()
    (index,) = [i for i, hold in enumerate(m.instances(Hold)) if hold.began]
    await m.faults.kill(Hold, index)
    await m.settle()
    (left,) = m.instances(Hold)
    left.gate.set()
    assert await first == left.node.identity
    await stream.aclose()
