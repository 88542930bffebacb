"""Proxy routes: what becomes of the failures of upstream servers, and choosing among several."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
from gateway_front import Front, eventually
from proxy_upstream import Open, Upstream, serving

# --- failures -----------------------------------------------------------------------------------


async def test_a_server_that_is_not_there(opened: Open, free_port: int) -> None:
    front = await opened({"/old": f"http://127.0.0.1:{free_port}", "/gone": "http+unix:/nowhere/app.sock"})
    for path in ("/old/x", "/gone/x"):
        told = await front.post(path, b"{}")
        assert (told.status, told.json["code"], told.json["retryable"]) == (502, "bad_gateway", True)
        assert str(free_port) not in told.json["detail"]


async def test_a_server_that_does_not_answer_in_time(proxy: Front, upstream: Upstream) -> None:
    told = await proxy.get("/hasty/wait")
    assert (told.status, told.json["code"]) == (504, "upstream_timeout")
    await asyncio.wait_for(upstream.ended.wait(), 5)
    told = await proxy.get("/old/wait", headers={"X-Request-Timeout": "200ms"})
    assert (told.status, told.json["code"]) == (504, "upstream_timeout")


async def test_an_answer_that_stalls_or_breaks_is_broken_off(proxy: Front) -> None:
    for path in ("/hasty/stall", "/old/break"):
        async with proxy.session.get(proxy.url + path) as response:
            assert response.status == 200
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()


@pytest.mark.parametrize(
    "target", [b"/old/x?a b", b"/old/x?a#b", b"/old/x#b", b"/old/x?\xff", b"/old/\xff", b"/old/x?\x01"]
)
async def test_a_target_that_must_be_encoded_is_refused(proxy: Front, upstream: Upstream, target: bytes) -> None:
    reader, _ = await proxy.raw(b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % target)
    assert (await reader.read())[9:12] == b"400"
    assert upstream.requests == []


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\nab",
    ],
)
async def test_an_answer_that_is_not_http(opened: Open, answer: bytes) -> None:
    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(answers, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        front = await opened({"/old": f"http://127.0.0.1:{port}"})
        told = await front.get("/old/x")
        assert (told.status, told.json["code"]) == (502, "bad_gateway")


@pytest.mark.parametrize(("verb", "body", "attempts"), [("GET", None, 2), ("POST", None, 1), ("PUT", b"x", 1)])
async def test_only_what_changes_nothing_is_repeated(
    opened: Open, verb: str, body: bytes | None, attempts: int
) -> None:
    """When the connection ends before the answer: once, and not with a body."""
    seen: list[bytes] = []

    async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.close()

    server = await asyncio.start_server(closes, "127.0.0.1", 0)
    async with server:
        front = await opened({"/old": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"})
        told = await front.ask(verb, "/old/x", data=body)
        assert (told.status, told.json["code"]) == (502, "bad_gateway")
    assert len(seen) == attempts


async def test_a_client_that_leaves_ends_the_request(proxy: Front, upstream: Upstream) -> None:
    _, writer = await proxy.raw(b"GET /old/wait HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await eventually(lambda: upstream.requests, "it has arrived")
    writer.close()
    await asyncio.wait_for(upstream.ended.wait(), 5)


async def test_what_the_metrics_and_the_log_get(proxy: Front) -> None:
    await proxy.get("/old/x")
    await proxy.get("/hasty/wait")
    text = (await proxy.get("/metrics")).body.decode()
    lines = [line for line in text.splitlines() if line.startswith("mesh_requests_total{") and 'side="http"' in line]
    assert any('service="/old"' in line and line.endswith(" 1.0") for line in lines), lines
    assert 'code="upstream_timeout"' in text


# --- several servers ----------------------------------------------------------------------------


async def test_requests_are_spread_and_pass_over_a_dead_server(
    opened: Open, upstream: Upstream, stack: AsyncExitStack, free_port: int
) -> None:
    other = Upstream()
    await stack.enter_async_context(serving(other))
    front = await opened({"/old": [upstream.url, other.url, f"http://127.0.0.1:{free_port}"]})
    for _ in range(12):
        assert (await front.post("/old/x", b"{}")).status == 200
    assert len(upstream.requests) >= 4
    assert len(other.requests) >= 4


async def test_an_unhealthy_server_gets_no_requests(opened: Open, upstream: Upstream, stack: AsyncExitStack) -> None:
    other = Upstream()
    await stack.enter_async_context(serving(other))
    front = await opened({"/old": {"to": [upstream.url, other.url], "health": "/health", "health_every": "20ms"}})

    async def share() -> set[str]:
        upstream.requests.clear()
        other.requests.clear()
        for _ in range(6):
            await front.get("/old/x")
        return {
            name
            for name, each in (("one", upstream), ("other", other))
            if any(request.path == "/old/x" for request in each.requests)
        }

    assert await share() == {"one", "other"}
    upstream.healthy = False
    await eventually(lambda: len([r for r in upstream.requests if r.path == "/health"]) >= 3, "checked")
    assert await share() == {"other"}
    other.healthy = False
    seen = len(other.requests)
    await eventually(lambda: len(other.requests) >= seen + 3, "checked")
    told = await front.get("/old/x")
    assert (told.status, told.json["code"]) == (503, "unavailable")
    upstream.healthy = True
    seen = len(upstream.requests)
    await eventually(lambda: len(upstream.requests) >= seen + 2, "checked")
    assert await share() == {"one"}


async def test_requests_beyond_the_limit_are_refused(opened: Open, upstream: Upstream) -> None:
    front = await opened({"/old": {"to": upstream.url, "connections": 1}})
    waiting = asyncio.create_task(front.get("/old/wait"))
    await eventually(lambda: upstream.requests, "the first one is there")
    told = await front.get("/old/x")
    assert (told.status, told.json["code"], told.headers["Retry-After"]) == (503, "overloaded", "1")
    upstream.gate.set()
    assert (await waiting).body == b"waited"


async def test_a_server_on_a_unix_socket(opened: Open, stack: AsyncExitStack, tmp_path: Path) -> None:
    upstream = Upstream()
    await stack.enter_async_context(serving(upstream, tmp_path / "app.sock"))
    front = await opened({"/old": upstream.url})
    assert (await front.get("/old/x")).json["target"] == "/old/x"


async def test_connections_to_the_server_are_kept(proxy: Front, upstream: Upstream) -> None:
    for _ in range(5):
        await proxy.get("/old/x")
        await proxy.ask("HEAD", "/old/head")
        await proxy.post("/old/digest", b"abc")
    assert (
        len({request.transport.get_extra_info("peername") for request in upstream.requests if request.transport}) == 1
    )
