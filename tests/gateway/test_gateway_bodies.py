"""Compressed, slow and many bodies."""

from __future__ import annotations

import asyncio
import gzip
import time
import zlib
from collections.abc import Callable
from functools import partial

import msgspec
import pytest
from gateway_front import Front, Told, eventually
from gateway_shop import open_shop

from mesh.config import Settings
from mesh.gateway.body import BodiesFull
from mesh.gateway.decompress import decompress

#: Without the time of day in it: parameters of tests must not differ between processes.
GZIP = partial(gzip.compress, mtime=0)
DATA = b"".join(b"%d," % i for i in range(20_000))  # longer than one step of input, once packed
RAW_DEFLATE = zlib.compressobj(wbits=-15)
RAW = RAW_DEFLATE.compress(DATA) + RAW_DEFLATE.flush()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    limits = msgspec.structs.replace(
        settings.gateway, rpc="all", max_body_bytes=200_000, max_body_total_bytes=500_000, min_body_rate_bytes=1000
    )
    return msgspec.structs.replace(settings, gateway=limits)


@pytest.fixture
def shop(front: Front) -> Front:
    open_shop(front.node)
    return front


async def measure(shop: Front, body: bytes, coding: str, path: str = "/measure") -> Told:
    return await shop.ask(
        "POST", path, data=body, headers={"Content-Encoding": coding, "Content-Type": "application/octet-stream"}
    )


@pytest.mark.parametrize("path", ["/measure", "/rpc/shop/measure"])
@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", GZIP(DATA)),
        ("x-gzip", GZIP(DATA)),
        ("GZip", GZIP(DATA)),
        ("gzip, identity", GZIP(DATA)),
        ("gzip", GZIP(DATA[:1000]) + GZIP(DATA[1000:])),
        ("gzip", GZIP(b"") * 5 + GZIP(DATA)),
        ("deflate", zlib.compress(DATA)),
        ("deflate", RAW),
        ("identity", DATA),
    ],
)
async def test_what_is_compressed_arrives_whole(shop: Front, path: str, coding: str, body: bytes) -> None:
    """Both codings in all their forms."""
    assert (await measure(shop, body, coding, path)).json == len(DATA)


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", GZIP(DATA)[:-1]),
        ("gzip", GZIP(DATA)[: len(GZIP(DATA)) // 2]),
        ("gzip", GZIP(DATA)[:5]),
        ("gzip", GZIP(DATA)[:-8] + b"\0\0\0\0\0\0\0\0"),
        ("gzip", GZIP(DATA) + b"garbage"),
        ("gzip", GZIP(DATA) + bytes(8)),
        ("gzip", GZIP(DATA) + GZIP(DATA)[:50]),
        ("gzip", b"not compressed"),
        ("gzip", GZIP(b"") * 2000),
        ("deflate", zlib.compress(DATA)[:-1]),
        ("deflate", RAW[:-1]),
        ("deflate", zlib.compress(DATA) + b"x"),
        ("deflate", b"\xff\xff\xff"),
    ],
)
async def test_what_is_damaged_is_refused(shop: Front, coding: str, body: bytes) -> None:
    """Cut off, altered, or followed by something: never half of the data with 200."""
    told = await measure(shop, body, coding)
    assert (told.status, told.json["code"]) == (400, "bad_encoding")
    assert shop.node.calls == []


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, gzip", "gzip,deflate", "gzip;q=1", "nonsense"])
async def test_another_coding_is_a_415(shop: Front, coding: str) -> None:
    """It says which are read; the body is never passed on packed."""
    told = await measure(shop, GZIP(GZIP(DATA)), coding)
    assert (told.status, told.json["code"]) == (415, "unsupported_encoding")
    assert shop.node.calls == []


@pytest.mark.parametrize(
    ("lines", "body", "answer"),
    [
        (b"Content-Encoding: gzip\r\nContent-Encoding: gzip\r\n", GZIP(GZIP(b"abc")), b"415"),
        (b"Content-Encoding: gzip\r\nContent-Encoding: br\r\n", GZIP(b"abc"), b"415"),
        (b"Content-Encoding: identity\r\nContent-Encoding: br\r\n", b"abc", b"415"),
        (b"Content-Encoding: identity\r\nContent-Encoding: gzip\r\n", GZIP(b"abc"), b"200"),
        (b"Content-Encoding:\r\nContent-Encoding: gzip\r\n", GZIP(b"abc"), b"200"),
        (b"Transfer-Encoding: gzip, chunked\r\n", b"3\r\nabc\r\n0\r\n\r\n", b"415"),
        (b"Transfer-Encoding: Chunked\r\n", b"3\r\nabc\r\n0\r\n\r\n", b"200"),
    ],
)
@pytest.mark.parametrize("path", [b"/measure", b"/rpc/shop/measure"])
async def test_codings_in_several_lines_and_of_the_transfer(
    shop: Front, path: bytes, lines: bytes, body: bytes, answer: bytes
) -> None:
    """All lines of Content-Encoding count, and no transfer coding but chunked is taken for the data itself."""
    if b"Transfer" not in lines:
        lines += b"Content-Length: %d\r\n" % len(body)
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n%b\r\n" % (path, lines)
    reader, _ = await shop.raw(head + body)
    told = await reader.read()
    assert told[9:12] == answer
    if answer == b"200":
        assert told.endswith(b"\r\n\r\n3")
    else:
        assert b'"unsupported_encoding"' in told


async def test_no_body_needs_no_decoding(shop: Front) -> None:
    """A client that always says gzip may have nothing to send."""
    assert (await measure(shop, b"", "gzip", "/rpc/shop/search")).status == 200


@pytest.mark.parametrize("pack", [GZIP, zlib.compress])
async def test_a_bomb_costs_no_more_than_the_limit(shop: Front, pack: Callable[[bytes], bytes]) -> None:
    """100 MB in 100 KB: inflated up to the limit of 200 KB and not beyond."""
    bomb = pack(bytes(100_000_000))
    coding = "gzip" if pack is GZIP else "deflate"
    began = time.process_time()
    for _ in range(5):
        told = await measure(shop, bomb, coding)
        assert (told.status, told.json["code"]) == (413, "too_large")
    # Inflating all of them takes more than a second; this is client and server together.
    assert time.process_time() - began < 0.25


async def test_what_comes_out_of_many_bombs_counts_while_it_comes() -> None:
    """Not only when all of it is there: each of many bodies is within its own limit, and together they are not."""
    most, most_together = 1_000_000, 3_000_000
    held = peak = 0

    def take(size: int) -> None:
        nonlocal held, peak
        if held + size > most_together:
            raise BodiesFull("full")
        held += size
        peak = max(peak, held)

    bombs = [decompress(GZIP(bytes(most)), "gzip", most, take) for _ in range(20)]
    done = await asyncio.gather(*bombs, return_exceptions=True)
    assert peak > most
    assert sum(isinstance(each, BodiesFull) for each in done) >= 17
    assert all(isinstance(each, BodiesFull) or each == bytes(most) for each in done)


async def test_others_are_answered_while_a_large_body_is_inflated(front: Front) -> None:
    """Decoding gives others their turn at each step."""
    open_shop(front.node)
    front.gateway.bodies.most = front.gateway.bodies.most_together = 64 * 2**20
    large = asyncio.create_task(measure(front, GZIP(bytes(48 * 2**20), 1), "gzip"))
    answered = 0
    while not large.done():
        assert (await front.get("/hello/x")).status == 200
        answered += 1
    assert large.result().json == 48 * 2**20
    assert answered > 5


async def test_all_bodies_together_are_limited(shop: Front) -> None:
    """What would not fit is refused with a time to come back; what was held is given back, whatever the end."""
    head = b"POST /measure HTTP/1.1\r\nHost: localhost\r\nContent-Length: 190000\r\n\r\n"
    held = [await shop.raw(head + bytes(189_000)) for _ in range(2)]
    await eventually(lambda: shop.gateway.bodies.held == 378_000, "both are read")
    third, _ = await shop.raw(head + bytes(189_000))
    answer = await third.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: 1\r\n" in answer
    held[0][1].close()
    held[1][1].write(bytes(1000))
    assert (await held[1][0].readline()).startswith(b"HTTP/1.1 200 ")
    await eventually(lambda: shop.gateway.bodies.held == 0, "all is given back")
    assert (await shop.post("/measure", bytes(190_000), "image/png")).json == 190_000


async def test_a_body_that_trickles_is_given_up(shop: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with a deadline of a day: after the grace, it comes with the least rate or not at all."""
    monkeypatch.setattr("mesh.gateway.body.RATE_GRACE_S", 0.1)
    reader, writer = await shop.raw(
        b"POST /measure HTTP/1.1\r\nHost: localhost\r\nX-Request-Timeout: 86400\r\nContent-Length: 1000\r\n\r\n"
    )
    trickle = asyncio.create_task(_trickle(writer))
    began = time.monotonic()
    assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - began < 2
    trickle.cancel()
    await asyncio.gather(trickle, return_exceptions=True)


async def _trickle(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"x")
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("length", "status"), [(b"0" * 5000 + b"3", 200), (b"9" * 17, 413), (b"0000003", 200), (b"+3", 400), (b"3, 3", 400)]
)
async def test_odd_lengths_are_read_or_refused(shop: Front, length: bytes, status: int) -> None:
    """Padded with zeros, or longer than any number."""
    reader, _ = await shop.raw(
        b"POST /measure HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %b\r\n\r\nabc" % length
    )
    assert (await reader.read())[9:12] == b"%d" % status
