"""Limits of requests: heads, bodies, JSON, connections. Each is refused with its code, and counted."""

from __future__ import annotations

import asyncio
import gzip
import io
import zlib
from typing import Any

import msgspec
import pytest
from gateway_fakes import FakeNode
from gateway_front import Front
from gateway_shop import create, hello, measure, open_shop

from mesh.config import Settings
from mesh.discovery.record import EdgePolicy, RouteRecord
from mesh.errors import BadArguments
from mesh.gateway.depth import check_depth, may_be_deep

HEAD = b"GET /hello/x HTTP/1.1\r\nHost: localhost\r\n"
BINARY = "application/octet-stream"


def with_gateway(settings: Settings, **changes: Any) -> Settings:
    return msgspec.structs.replace(settings, gateway=msgspec.structs.replace(settings.gateway, **changes))


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return with_gateway(
        settings,
        max_uri_bytes=1000,
        max_header_bytes=2000,
        max_headers=20,
        max_requests_per_connection=3,
        max_json_depth=10,
        max_body_bytes=4 * 2**20,
        max_inflation=100,
        keep_alive_s=0.2,
    )


@pytest.fixture
def shop(front: Front) -> Front:
    open_shop(front.node)
    return front


def exceeded(node: FakeNode, limit: str) -> float:
    return node.recorder.counter("http_limits_exceeded", limit=limit).value


async def send(shop: Front, *parts: bytes) -> bytes:
    """The whole answer to a request that is sent in pieces, each on its own."""
    reader, writer = await shop.raw()
    for part in parts:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(0.01)
    return await asyncio.wait_for(reader.read(), 5)


@pytest.mark.parametrize(
    ("parts", "status", "code", "limit"),
    [
        ([b"GET /hello/" + b"x" * 1000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"], 414, "uri_too_long", "max_uri"),
        ([b"GET /hello/" + b"x" * 600, b"x" * 600], 414, "uri_too_long", "max_uri"),
        ([HEAD + b"X: " + b"y" * 9000 + b"\r\n\r\n"], 431, "head_too_large", "max_header"),
        ([HEAD + b"".join(b"X-%d: y\r\n" % n for n in range(20)) + b"\r\n"], 431, "head_too_large", "max_header"),
        ([HEAD + b"X: " + b"y" * 1500 + b"\r\nY: " + b"y" * 1500 + b"\r\n\r\n"], 431, "head_too_large", "max_header"),
        ([HEAD + b"X: " + b"y" * 1500, b"y" * 1500], 431, "head_too_large", "max_header"),
        ([HEAD + b"X: " + b"y" * 1500, b"y" * 1500 + b"\r\n\r\n"], 431, "head_too_large", "max_header"),
    ],
)
async def test_a_head_is_bounded(shop: Front, parts: list[bytes], status: int, code: str, limit: str) -> None:
    """In one piece or in several; the connection ends, and nothing behind it is read."""
    answer = await send(shop, *parts)
    assert int(answer[9:12]) == status
    assert f'"code":"{code}"'.encode() in answer
    assert answer.count(b"HTTP/1.1 ") == 1
    assert exceeded(shop.node, limit) == 1
    assert shop.node.calls == []


async def test_a_small_head_with_a_large_body_is_no_large_head(shop: Front) -> None:
    head = b"POST /measure HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\nConnection: close\r\n\r\n"
    assert (await send(shop, head + bytes(100_000))).endswith(b"\r\n\r\n100000")
    assert (await send(shop, head, bytes(50_000), bytes(50_000))).endswith(b"\r\n\r\n100000")


async def test_many_pipelined_heads_are_no_large_head(shop: Front) -> None:
    reader, _ = await shop.raw((HEAD + b"X: " + b"y" * 900 + b"\r\n\r\n") * 3)
    assert (await asyncio.wait_for(reader.read(), 5)).count(b"HTTP/1.1 200 ") == 3


async def test_a_connection_serves_so_many_requests(shop: Front) -> None:
    reader, writer = await shop.raw()
    for number in (1, 2, 3):
        writer.write(HEAD + b"\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert (b"Connection: close" in head) is (number == 3)
        await reader.readuntil(b'"')
        await reader.readuntil(b'"')
    assert await reader.read() == b""


async def test_the_last_answer_of_a_connection_says_so_in_the_head_of_a_stream(shop: Front) -> None:
    """A head that promises a further request is kept, so that no client sends one into a closed connection."""
    reader, writer = await shop.raw()
    for number in (1, 2, 3):
        writer.write(b"GET /count/2 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert (b"Connection: close" in head) is (number == 3)
        await reader.readuntil(b"\r\n0\r\n\r\n")
    assert await reader.read() == b""


async def test_an_idle_connection_is_closed(shop: Front) -> None:
    reader, _ = await shop.raw(HEAD + b"\r\n")
    assert (await asyncio.wait_for(reader.read(), 5)).endswith(b'"Hello, x!"')


# --- bodies -------------------------------------------------------------------------------------------


@pytest.fixture
def uploads(front: Front) -> Front:
    records = [
        RouteRecord("POST", "/small", "measure", {"data": "body"}, edge=EdgePolicy(max_body_bytes=1000)),
        RouteRecord("POST", "/large", "measure", {"data": "body"}, edge=EdgePolicy(max_body_bytes=6 * 2**20)),
        RouteRecord("POST", "/items", "create", {"item": "body"}),
        RouteRecord("GET", "/hello/{name}", "hello", {"name": "path"}),
    ]
    front.node.serve("shop", records, measure=measure, create=create, hello=hello)
    return front


@pytest.mark.parametrize(
    ("path", "size", "status"),
    [("/small", 1000, 200), ("/small", 1001, 413), ("/large", 5 * 2**20, 200), ("/large", 6 * 2**20 + 1, 413)],
)
async def test_a_route_has_its_own_limit(uploads: Front, path: str, size: int, status: int) -> None:
    told = await uploads.ask("POST", path, data=io.BytesIO(bytes(size)), headers={"Content-Type": BINARY})
    assert told.status == status
    if status == 413:
        assert told.json["details"]["limit_bytes"] in (1000, 6 * 2**20)
        assert exceeded(uploads.node, "max_body") == 1


async def test_an_announced_body_is_not_read(uploads: Front) -> None:
    """The answer comes although no byte of the body is sent; also for a compressed one."""
    for more in (b"", b"Expect: 100-continue\r\n", b"Content-Encoding: gzip\r\n"):
        head = b"POST /small HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1001\r\n" + more
        reader, _ = await uploads.raw(head + b"\r\n")
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 413 ")


async def test_chunks_are_counted_as_they_arrive(uploads: Front) -> None:
    head = b"POST /small HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    reader, _ = await uploads.raw(head + b"200\r\n" + bytes(512) + b"\r\n200\r\n" + bytes(512) + b"\r\n")
    assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("coding", "body", "path", "status", "limit"),
    [
        ("gzip", gzip.compress(bytes(100_000), mtime=0), "/small", 413, "max_body"),
        ("gzip", gzip.compress(bytes(1_000_000), mtime=0), "/large", 200, ""),
        ("gzip", gzip.compress(bytes(3_000_000), mtime=0), "/large", 413, "max_inflation"),
        ("deflate", zlib.compress(bytes(3_000_000)), "/large", 413, "max_inflation"),
        ("gzip", gzip.compress(gzip.compress(bytes(100_000_000), mtime=0), mtime=0), "/large", 200, ""),
        ("gzip, gzip", gzip.compress(gzip.compress(bytes(100_000_000), mtime=0), mtime=0), "/large", 415, ""),
        ("br", b"\x0b\x02\x80", "/large", 415, ""),
        ("zstd", b"(\xb5/\xfd", "/large", 415, ""),
    ],
)
async def test_a_bomb_is_refused(uploads: Front, coding: str, body: bytes, path: str, status: int, limit: str) -> None:
    """By its size, by its ratio beyond 1 MiB, or because nothing decodes it here."""
    told = await uploads.ask("POST", path, data=body, headers={"Content-Encoding": coding, "Content-Type": BINARY})
    assert told.status == status
    if limit:
        assert exceeded(uploads.node, limit) == 1


# --- JSON ---------------------------------------------------------------------------------------------


def nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


@pytest.mark.parametrize(
    ("body", "fits"),
    [
        (nested(10), True),
        (nested(11), False),
        (nested(10) * 1, True),
        (b"[" + b",".join([nested(9)] * 5000) + b"]", True),
        (b"[" + b",".join([nested(9)] * 5000 + [nested(10)]) + b"]", False),
        (b'{"a":' * 10 + b"1" + b"}" * 10, True),
        (b'{"a":' * 11 + b"1" + b"}" * 11, False),
        (b'["' + b"[" * 50 + b'"]', True),
        (b'["' + b"]" * 50 + b'",' + nested(10) + b"]", False),
        (b'["\\"' + b"[" * 50 + b'"]', True),
        (b'["\\\\",' + nested(10) + b"]", False),
        (b'["\\\\\\"' + b"[" * 50 + b'"]', True),
        (b"[" * 100_000, False),
        (b'{"' + b"[" * 100 + b'":"' + b"{" * 100 + b'"}', True),
    ],
)
async def test_the_depth_of_json(node: FakeNode, body: bytes, fits: bool) -> None:
    """Exact; brackets in strings do not count, and no string hides one."""
    if not may_be_deep(body, 10):
        assert fits
        return
    if fits:
        await check_depth(body, 10, node.recorder)
    else:
        with pytest.raises(BadArguments):
            await check_depth(body, 10, node.recorder)


@pytest.mark.parametrize("path", ["/items", "/rpc/shop/create"])
async def test_deep_json_does_not_reach_a_worker(uploads: Front, path: str) -> None:
    told = await uploads.post(path, b'{"item": ' + nested(50) + b"}")
    assert (told.status, told.json["code"]) == (400, "bad_arguments")
    assert told.json["details"] == {"path": "body", "limit": 10}
    assert exceeded(uploads.node, "max_json_depth") == 1
    assert uploads.node.calls == []


async def test_other_requests_run_while_a_large_body_is_measured(node: FakeNode) -> None:
    """16 MB of brackets take a third of a second, in steps."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await check_depth(b"[]" * 1_000_000, 10, node.recorder)
    counting.cancel()
    assert turns > 30
