"""Streams over HTTP: events, lines, bytes; clients that leave, that are slow, that wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
from gateway_fakes import FakeNode
from gateway_front import Front, eventually
from gateway_shop import open_shop

from mesh.calls.answers import Answer
from mesh.clock import ManualClock
from mesh.discovery.record import RouteRecord
from mesh.errors import Draining, MeshError, Overloaded, RemoteError
from mesh.protocol.messages import JSON

GET = b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def shop(front: Front) -> Front:
    open_shop(front.node)
    return front


def events(body: bytes) -> list[tuple[str, str]]:
    """(event, data) of each, in order."""
    found = []
    for block in body.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append((fields.get("event", "message"), fields["data"]))
    return found


async def test_a_stream_is_server_sent_events(shop: Front) -> None:
    """One event per item, and one that says that it was the last, lest an EventSource begins anew."""
    told = await shop.get("/count/3")
    assert (told.status, told.kind) == (200, "text/event-stream")
    assert told.headers["Cache-Control"] == "no-store"
    assert events(told.body) == [("message", "0"), ("message", "1"), ("message", "2"), ("end", "{}")]
    assert (await shop.get("/hello/x")).status == 200


async def test_an_empty_stream_is_a_complete_answer(shop: Front) -> None:
    """A head and its end."""
    assert events((await shop.get("/count/0")).body) == [("end", "{}")]


async def test_ndjson_is_written_when_asked_for(shop: Front) -> None:
    """One line per item, over /rpc as well."""
    told = await shop.get("/count/3", headers={"Accept": "application/x-ndjson"})
    assert (told.kind, told.body) == ("application/x-ndjson", b"0\n1\n2\n")
    told = await shop.post("/rpc/shop/count", b'{"n": 2}', Accept="application/x-ndjson")
    assert told.body == b"0\n1\n"


async def test_bytes_are_streamed_as_they_are_when_the_route_names_their_type(shop: Front) -> None:
    """And as base64 where text is wanted."""
    told = await shop.get("/blobs/2")
    assert (told.kind, told.body) == ("video/raw", b"\0\0\0\1\1\1")
    told = await shop.get("/blobs/1", headers={"Accept": "text/event-stream"})
    assert events(told.body)[0] == ("message", '"AAAA"')


async def test_an_error_before_the_first_item_has_its_status(shop: Front) -> None:
    """As long as the head has not left."""
    told = await shop.get("/breaks/0")
    assert (told.status, told.json["code"]) == (409, "out_of_stock")
    assert (await shop.get("/count/x")).status == 400


async def test_an_error_in_the_middle_is_the_last_event(shop: Front) -> None:
    """A problem, readable, and the answer ends properly; counted under its code."""
    told = await shop.get("/breaks/2")
    kind, data = events(told.body)[-1]
    assert (told.status, kind, msgspec.json.decode(data)["code"]) == (200, "error", "out_of_stock")
    told = await shop.get("/breaks/1", headers={"Accept": "application/x-ndjson"})
    assert msgspec.json.decode(told.body.splitlines()[-1])["error"]["status"] == 409
    samples = {each["method"]: each for each in shop.node.recorder.snapshot()["methods"] if each["side"] == "http"}
    assert samples["breaks"]["errors"] == {"out_of_stock": 2}


async def test_an_event_source_that_had_the_whole_stream_is_told_to_stop(shop: Front) -> None:
    """It connects again after every answer; 204 ends it, and the method does not run a second time."""
    told = await shop.get("/count/1")
    assert b"id: mesh-end\nevent: end\n" in told.body
    asked = len(shop.node.calls)
    told = await shop.get("/count/1", headers={"Last-Event-ID": "mesh-end", "Accept": "text/event-stream"})
    assert (told.status, told.body) == (204, b"")
    assert len(shop.node.calls) == asked
    # Only there: another id, and another form of the stream, are answered as ever.
    assert (await shop.get("/count/1", headers={"Last-Event-ID": "7"})).status == 200
    lines = {"Last-Event-ID": "mesh-end", "Accept": "application/x-ndjson"}
    assert (await shop.get("/count/1", headers=lines)).body == b"0\n"


async def test_an_event_source_does_not_repeat_what_fails_for_good(front: Front) -> None:
    """An error that would come again ends it; after one that may pass it tries again; of a leaving worker it hears
    nothing."""
    errors: dict[str, MeshError] = {
        "final": RemoteError("broken"),
        "passing": Overloaded("full"),
        "leaving": Draining("the worker leaves"),
    }

    async def breaks(how: str) -> AsyncIterator[int]:
        yield 1
        raise errors[how]

    front.node.serve("s", [RouteRecord("GET", "/breaks/{how}", "breaks", {"how": "path"})], breaks=breaks)
    bodies = {how: (await front.get(f"/breaks/{how}")).body for how in errors}
    assert b"id: mesh-end\nevent: error\n" in bodies["final"]
    assert b"retry:" not in bodies["final"]
    assert b"event: error\n" in bodies["passing"]
    assert bodies["passing"].endswith(b"retry: 1000\n\n")
    assert b"mesh-end" not in bodies["passing"]
    assert bodies["leaving"] == b"data: 1\n\nretry: 1000\n\n"


async def test_an_error_in_the_middle_of_bytes_cuts_the_answer(front: Front) -> None:
    """Bytes have no place for an error: the client sees that the answer is not complete."""

    async def half() -> AsyncIterator[bytes]:
        yield b"half"
        raise RuntimeError("broken")

    front.node.serve("s", [RouteRecord("GET", "/half", "half", produces="video/raw")], half=half)
    reader, _ = await front.raw(GET % b"/half")
    told = await reader.read()
    assert told.endswith(b"half\r\n")


async def test_a_client_that_leaves_cancels_the_stream(shop: Front) -> None:
    """Down to its source, also while nothing is being sent."""
    reader, writer = await shop.raw(GET % b"/count/1000000?gap=0.001")
    await reader.readuntil(b"data: 2\n\n")
    writer.close()
    await eventually(lambda: shop.node.cancelled == ["shop.count"], "the stream was cancelled")
    await eventually(lambda: not shop.gateway.connections.busy, "nothing is in hand")


async def test_a_slow_reader_slows_the_stream(front: Front) -> None:
    """What the client does not take is not fetched from the worker: memory stays bounded."""
    given = 0

    async def flood() -> AsyncIterator[str]:
        nonlocal given
        while True:
            given += 1
            yield "x" * 10_000

    front.node.serve("s", [RouteRecord("GET", "/flood", "flood")], flood=flood)
    reader, _writer = await front.raw(GET % b"/flood")
    await reader.readuntil(b"data: ")
    seen = -1

    def stands_still() -> bool:
        nonlocal seen
        before, seen = seen, given
        return before == given

    reader._transport.pause_reading()  # type: ignore[attr-defined]
    await eventually(stands_still, "the stream waits for its reader")
    # The kernel's buffers on both sides take some megabytes; an unbounded queue would take all there is.
    assert given < 5_000


async def test_items_that_are_at_hand_together_leave_together(shop: Front) -> None:
    """A thousand small items are not a thousand writes."""

    async def at_hand(*_: object, **__: object) -> AsyncIterator[Answer]:
        for number in range(1000):
            yield Answer(b"%d" % number, JSON)

    shop.node.stream_raw = at_hand  # type: ignore[method-assign, assignment]
    reader, _ = await shop.raw(GET % b"/count/1000")
    told = await reader.readuntil(b"\r\n0\r\n\r\n")
    assert told.count(b"data: ") == 1001
    chunks = [line for line in told.split(b"\r\n") if line and all(c in b"0123456789abcdef" for c in line)]
    assert len(chunks) < 10


async def test_an_old_client_gets_a_stream_without_chunks(shop: Front) -> None:
    """HTTP/1.0 knows only the end of the connection."""
    reader, _ = await shop.raw(b"GET /count/2 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    head, body = (await reader.read()).split(b"\r\n\r\n", 1)
    assert b"chunked" not in head
    assert b"Connection: close" in head
    assert events(body)[-1] == ("end", "{}")


async def test_head_of_a_stream_does_not_open_it(shop: Front) -> None:
    """The type is told, nothing is called."""
    told = await shop.ask("HEAD", "/count/3")
    assert (told.status, told.kind) == (200, "text/event-stream")
    assert shop.node.calls == []


class TestWaiting:
    """With a clock that is turned by hand."""

    @pytest.fixture
    async def node(self) -> FakeNode:
        return FakeNode(ManualClock())

    async def test_a_silent_stream_shows_its_head_and_then_beats(self, front: Front) -> None:
        """The client learns within a second that it is connected, and proxies see life later on."""
        go = asyncio.Event()

        async def silent() -> AsyncIterator[int]:
            await go.wait()
            yield 1

        clock = front.node.clock
        assert isinstance(clock, ManualClock)
        front.node.serve("s", [RouteRecord("GET", "/silent", "silent")], silent=silent)
        reader, _ = await front.raw(GET % b"/silent")
        await eventually(lambda: front.node.calls, "the stream was opened")
        clock.turn(1.0)
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        clock.turn(15.0)
        assert await reader.readuntil(b": beat\n\n")
        go.set()
        assert await reader.readuntil(b"data: 1\n\n")
        assert await reader.readuntil(b"id: mesh-end\nevent: end\ndata: {}\n\n")
