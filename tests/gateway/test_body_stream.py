"""Bodies as streams of chunks: their memory, limits, rate and deadline, and answers that a client reads slowly."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import zlib
from collections.abc import AsyncIterator
from functools import partial

import msgspec
import psutil
import pytest
from gateway_front import Front, eventually

from mesh.config import Settings
from mesh.gateway.mounts import Mount, Reply, Request, Stream

MIB = 2**20
GZIP = partial(gzip.compress, mtime=0)
DATA = b"".join(b"%d," % i for i in range(20_000))
HEAD = b"POST /up/%b HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    limits = msgspec.structs.replace(
        settings.gateway, max_body_bytes=200_000, max_body_total_bytes=600_000, min_body_rate_bytes=1000, timeout_s=0.4
    )
    return msgspec.structs.replace(settings, gateway=limits)


class Uploads:
    """A mount that reads bodies in every way; `gate` holds it between two chunks."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.largest = 0
        self.received = 0

    async def handle(self, request: Request) -> Reply | Stream:
        how = request.segments[0]
        if how == "ignored":
            return Reply.of(b"not read")
        if how == "refused":
            return Reply.json(request.stream(max_bytes=10).length)
        if how == "down":
            size, announced = int(request.segments[1]), request.segments[2:]
            return Stream(_zeros(size), length=int(announced[0]) if announced else None)
        body = request.stream(max_bytes=2**40 if how == "large" else None, decode=how != "packed")
        if how == "echo":
            return Stream(body)
        digest = hashlib.sha256()
        async for chunk in body:
            self.largest = max(self.largest, len(chunk))
            self.received += len(chunk)
            digest.update(chunk)
            await self.gate.wait()
        return Reply.json(
            {"length": body.length, "size": body.size, "digest": digest.hexdigest(), "left": request.remaining_s > 0}
        )


async def _zeros(size: int) -> AsyncIterator[bytes]:
    block = bytes(MIB)
    while size > 0:
        yield block[:size]
        size -= MIB


@pytest.fixture
def uploads(front: Front) -> Uploads:
    found = Uploads()
    front.gateway.mounts.add(Mount(prefix="/up", handler=found.handle, methods=("GET", "POST")), "test")
    return found


async def _blocks(count: int) -> AsyncIterator[bytes]:
    block = bytes(MIB)
    for _ in range(count):
        yield block


def digest_of(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


async def test_a_large_upload_never_is_in_memory(front: Front, uploads: Uploads) -> None:
    """200 MB through one connection; client and gateway, in this process, grow by at most 16 MB."""
    await front.ask("POST", "/up/large", data=_blocks(8))
    process = psutil.Process()
    before = process.memory_info().rss
    told = await front.ask("POST", "/up/large", data=_blocks(200))
    assert told.json["size"] == 200 * MIB
    assert told.json["digest"] == digest_of(bytes(200 * MIB))
    assert uploads.largest <= 256 * 1024
    assert process.memory_info().rss - before <= 16 * MIB
    assert front.gateway.bodies.held == 0


async def test_a_handler_that_does_not_read_holds_the_client(front: Front, uploads: Uploads) -> None:
    """The gateway stops reading from the socket; what the kernel and the buffers hold is all that it has received."""
    uploads.gate.clear()
    sent = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal sent
        async for block in _blocks(64):
            yield block
            sent += len(block)

    asking = asyncio.create_task(front.ask("POST", "/up/large", data=counted(), headers={"X-Request-Timeout": "20"}))
    await eventually(lambda: uploads.received > 0, "the handler has a chunk")
    last = -1
    while sent != last:
        last = sent
        await asyncio.sleep(0.05)
    # The socket buffers of both ends on loopback are a few MB.
    assert sent < 32 * MIB
    uploads.gate.set()
    assert (await asking).json["size"] == 64 * MIB


@pytest.mark.parametrize(
    ("coding", "body", "path", "received"),
    [
        ("gzip", GZIP(DATA), "decoded", DATA),
        ("gzip", GZIP(DATA[:9]) + GZIP(DATA[9:]), "decoded", DATA),
        ("deflate", zlib.compress(DATA), "decoded", DATA),
        ("gzip", GZIP(DATA), "packed", GZIP(DATA)),
        ("br", b"anything", "packed", b"anything"),
        ("identity", DATA, "decoded", DATA),
    ],
)
@pytest.mark.parametrize("piece", [1000, 10**6])
async def test_a_stream_is_decoded_or_passed_on(
    front: Front, uploads: Uploads, coding: str, body: bytes, path: str, received: bytes, piece: int
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield body[:1]
        for at in range(1, len(body), piece):
            yield body[at : at + piece]

    told = await front.ask("POST", f"/up/{path}", data=pieces(), headers={"Content-Encoding": coding})
    assert told.json == {"length": None, "size": len(body), "digest": digest_of(received), "left": True}


@pytest.mark.parametrize(
    ("coding", "body", "status", "code"),
    [
        ("gzip", GZIP(DATA)[:-1], 400, "bad_encoding"),
        ("deflate", b"x", 400, "bad_encoding"),
        ("gzip", GZIP(DATA) + b"rest", 400, "bad_encoding"),
        ("gzip", b"no gzip at all", 400, "bad_encoding"),
        ("br", b"brotli", 415, "unsupported_encoding"),
        ("gzip", GZIP(bytes(50 * MIB)), 413, "too_large"),
    ],
)
async def test_what_cannot_be_decoded_is_an_error(
    front: Front, uploads: Uploads, coding: str, body: bytes, status: int, code: str
) -> None:
    told = await front.ask("POST", "/up/decoded", data=body, headers={"Content-Encoding": coding})
    assert (told.status, told.json["code"]) == (status, code)
    assert front.gateway.bodies.held == 0


async def test_an_announced_length_beyond_the_limit_is_refused_unread(front: Front, uploads: Uploads) -> None:
    """No 100 Continue, and no byte of the body is awaited."""
    reader, _ = await front.raw(HEAD % b"refused" + b"Content-Length: 11\r\nExpect: 100-continue\r\n\r\n")
    told = await reader.read()
    assert told.startswith(b"HTTP/1.1 413 ")
    assert b"Connection: close" in told


async def test_a_chunked_body_beyond_the_limit_is_refused_where_it_passes_it(front: Front, uploads: Uploads) -> None:
    told = await front.ask("POST", "/up/plain", data=_blocks(1))
    assert (told.status, told.json["code"], told.headers["Connection"]) == (413, "too_large", "close")


async def test_the_body_is_asked_for_when_it_is_read(front: Front, uploads: Uploads) -> None:
    reader, writer = await front.raw(HEAD % b"plain" + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"abc")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    reader, _ = await front.raw(HEAD % b"ignored" + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("body", [b"5\r\nab", b"zz\r\nab\r\n", b"2\r\nabcd\r\n"])
async def test_broken_framing_ends_the_stream(front: Front, uploads: Uploads, body: bytes) -> None:
    """Never a short body taken for a whole one."""
    reader, writer = await front.raw(HEAD % b"plain" + b"Transfer-Encoding: chunked\r\n\r\n" + body)
    writer.write_eof()
    told = await reader.read()
    assert not told.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(("timeout", "trickles"), [(b"", True), (b"X-Request-Timeout: 0.2\r\n", False)])
async def test_a_stream_that_does_not_arrive_is_given_up(
    front: Front, uploads: Uploads, monkeypatch: pytest.MonkeyPatch, timeout: bytes, trickles: bool
) -> None:
    """By its rate, although `gateway.timeout` begins anew with each chunk; and by the client's own deadline."""
    monkeypatch.setattr("mesh.gateway.body_stream.RATE_GRACE_S", 0.3)
    reader, writer = await front.raw(HEAD % b"plain" + timeout + b"Content-Length: 1000\r\n\r\n")

    async def trickle() -> None:
        while trickles:
            writer.write(b"x")
            await asyncio.sleep(0.02)

    sending = asyncio.create_task(trickle())
    told = await reader.readuntil(b"\r\n\r\n")
    assert told[9:12] in ((b"408",) if trickles else (b"408", b"504"))
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)


async def test_an_upload_may_take_longer_than_the_timeout(front: Front, uploads: Uploads) -> None:
    """`gateway.timeout` is 0.4 s, and counts from the last chunk."""

    async def slowly() -> AsyncIterator[bytes]:
        for _ in range(6):
            yield bytes(1000)
            await asyncio.sleep(0.1)

    told = await front.ask("POST", "/up/plain", data=slowly())
    assert (told.status, told.json["size"], told.json["left"]) == (200, 6000, True)


async def test_open_streams_count_towards_all_bodies(front: Front, uploads: Uploads) -> None:
    """Each as one chunk, until its end."""
    head = HEAD % b"large" + b"Content-Length: 300000\r\n\r\n"
    held = [await front.raw(head + bytes(1000)) for _ in range(2)]
    await eventually(lambda: front.gateway.bodies.held == 2 * 262_144, "both are open")
    reader, _ = await front.raw(head)
    assert (await reader.readline()).startswith(b"HTTP/1.1 503 ")
    for _, writer in held:
        writer.close()
    await eventually(lambda: front.gateway.bodies.held == 0, "all is given back")


async def test_a_body_streams_out_while_it_streams_in(front: Front, uploads: Uploads) -> None:
    """The answer begins before the body has ended."""
    reader, writer = await front.raw(HEAD % b"echo" + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    assert b"\r\n\r\n" in await reader.readuntil(b"\r\n\r\n")
    assert await reader.readexactly(8) == b"3\r\nabc\r\n"
    writer.write(b"2\r\nde\r\n0\r\n\r\n")
    assert await reader.readexactly(12) == b"2\r\nde\r\n0\r\n\r\n"


# --- answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("announced", ["", f"/{64 * MIB}"])
async def test_a_slow_reader_holds_the_answer(front: Front, uploads: Uploads, announced: str) -> None:
    """Only what fits the buffers is produced ahead; memory stays as it is."""
    process = psutil.Process()
    reader, writer = await front.raw(
        b"GET /up/down/%d%b HTTP/1.1\r\nHost: localhost\r\n\r\n" % (64 * MIB, announced.encode())
    )
    await reader.readuntil(b"\r\n\r\n")
    before = process.memory_info().rss
    await asyncio.sleep(0.3)
    assert process.memory_info().rss - before <= 8 * MIB
    size = 0
    while size < 64 * MIB:
        size += len(await reader.read(MIB))
    writer.close()


async def test_a_known_length_is_announced_and_kept(front: Front, uploads: Uploads) -> None:
    """Content-Length instead of chunks, for HEAD too; HTTP/1.0 keeps its connection."""
    told = await front.get("/up/down/3000/3000")
    assert (told.headers["Content-Length"], "Transfer-Encoding" in told.headers) == ("3000", False)
    assert told.body == bytes(3000)
    told = await front.ask("HEAD", "/up/down/3000/3000")
    assert (told.status, told.headers["Content-Length"], told.body) == (200, "3000", b"")
    told = await front.ask("HEAD", "/up/down/3000")
    assert "Content-Length" not in told.headers
    reader, _ = await front.raw(b"GET /up/down/3/3 HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n")
    assert b"Connection: keep-alive\r\n" in await reader.readuntil(b"\r\n\r\n")
    assert await reader.readexactly(3) == bytes(3)


@pytest.mark.parametrize(("size", "announced"), [(3_000_000, 4_000_000), (3_000_000, 2_000_000)])
async def test_a_length_that_is_not_kept_breaks_the_answer(
    front: Front, uploads: Uploads, size: int, announced: int
) -> None:
    """Too short or too long: the client sees that the answer is incomplete, and never reads more than announced."""
    reader, _ = await front.raw(b"GET /up/down/%d/%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % (size, announced))
    _head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert len(body) < announced
