"""Proxy routes: bodies and answers of any size, at the speed of the slower side."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

import psutil
import pytest
from gateway_front import Front, eventually
from proxy_upstream import MIB, Upstream

# --- bodies -------------------------------------------------------------------------------------


async def _blocks(count: int) -> AsyncIterator[bytes]:
    block = bytes(MIB)
    for _ in range(count):
        yield block


async def test_a_large_upload_passes_through(proxy: Front) -> None:
    """100 MB in chunks: client, gateway and upstream, in this process, grow by 16 MB at most."""
    await proxy.ask("POST", "/old/digest", data=_blocks(4))
    process = psutil.Process()
    before = process.memory_info().rss
    told = await proxy.ask("POST", "/old/digest", data=_blocks(100))
    assert told.json == {"size": 100 * MIB, "digest": hashlib.sha256(bytes(100 * MIB)).hexdigest()}
    assert process.memory_info().rss - before <= 16 * MIB


@pytest.mark.parametrize("more", ["", "&length=1"])
async def test_a_large_answer_passes_at_the_speed_of_its_reader(proxy: Front, upstream: Upstream, more: str) -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    async with proxy.session.get(f"{proxy.url}/old/down?size={64 * MIB}{more}") as response:
        assert ("Content-Length" in response.headers) == bool(more)
        last = -1
        while upstream.sent != last:
            last = upstream.sent
            await asyncio.sleep(0.1)
        # The socket buffers of four ends on loopback are a few MB each.
        assert upstream.sent < 40 * MIB
        assert process.memory_info().rss - before <= 24 * MIB
        size = 0
        async for chunk in response.content.iter_any():
            size += len(chunk)
        assert size == 64 * MIB


async def test_a_server_that_reads_slowly_holds_the_client(proxy: Front, upstream: Upstream) -> None:
    """What it does not take is not read from the client."""
    sent = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal sent
        async for block in _blocks(64):
            yield block
            sent += len(block)

    asking = asyncio.create_task(proxy.ask("POST", "/old/late", data=counted()))
    await eventually(lambda: upstream.requests, "it has arrived")
    last = -1
    while sent != last:
        last = sent
        await asyncio.sleep(0.1)
    assert sent < 40 * MIB
    upstream.gate.set()
    assert (await asking).json["size"] == 64 * MIB


async def test_bodies_pass_as_they_are_coded(proxy: Front) -> None:
    told = await proxy.ask("POST", "/old/x", data=b"not gzip", headers={"Content-Encoding": "gzip"})
    assert (told.status, told.json["body"]) == (200, "not gzip")


async def test_a_body_beyond_the_limit_is_refused(proxy: Front, upstream: Upstream) -> None:
    told = await proxy.ask("POST", "/hasty/x", data=bytes(101))
    assert (told.status, told.json["code"]) == (413, "too_large")
    assert upstream.requests == []
    told = await proxy.ask("POST", "/hasty/digest", data=_blocks(1))
    assert (told.status, told.json["code"]) == (413, "too_large")


async def test_an_answer_may_come_before_the_body_has_ended(proxy: Front) -> None:
    """It reaches the client, and the connection is not used again."""
    reader, _ = await proxy.raw(b"POST /old/early HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nabc")
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413 ")
    assert b"Connection: close" in head


async def test_expectations_are_answered_by_the_gateway(proxy: Front) -> None:
    reader, writer = await proxy.raw(
        b"POST /old/digest HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    )
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"abc")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")


# --- answers ------------------------------------------------------------------------------------


async def test_fields_of_an_answer(proxy: Front, upstream: Upstream) -> None:
    told = await proxy.get("/old/odd", headers={"X-Request-Id": "1"})
    names = [name.lower() for name in told.headers]
    assert not {"x-secret-hop", "keep-alive", "alt-svc"} & set(names)
    assert (names.count("date"), told.headers.getall("Server"), names.count("traceparent")) == (1, ["mesh"], 1)
    assert told.headers.getall("Set-Cookie") == ["a=1; Path=/; Domain=old.example; HttpOnly", "b=2"]
    assert told.headers["Location"] == f"{upstream.url}/next?x=1"
    told = await proxy.get("/cut/odd")
    assert told.headers.getall("Set-Cookie") == ["a=1; Path=/cut; HttpOnly", "b=2"]
    assert told.headers["Location"] == "/cut/next?x=1"


async def test_answers_without_a_body(proxy: Front) -> None:
    told = await proxy.ask("HEAD", "/old/head")
    assert (told.status, told.headers["Content-Length"], told.headers["X-Own"], told.body) == (200, "5000", "1", b"")
    told = await proxy.get("/old/unchanged", headers={"If-None-Match": '"1"'})
    assert (told.status, told.headers["ETag"], told.body) == (304, '"1"', b"")
    told = await proxy.get("/old/nothing")
    assert (told.status, "Content-Length" in told.headers) == (204, False)
    assert (await proxy.ask("OPTIONS", "/old/x")).json["method"] == "OPTIONS"
