"""Proxy routes: WebSockets, and what a draining gateway does."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from gateway_front import Front, eventually
from proxy_upstream import MIB, Open, Upstream, headers_of_request, listening

from mesh.gateway import app


async def test_a_websocket_passes_through(proxy: Front, upstream: Upstream) -> None:
    """Text, large messages, ping, subprotocol, compression and the close code."""
    async with proxy.session.ws_connect(
        f"{proxy.url}/old/socket", protocols=("chat",), compress=15, max_msg_size=8 * MIB, autoping=False
    ) as ws:
        await ws.send_str("hello")
        assert await ws.receive_str() == "chat:hello"
        large = bytes(3 * MIB)
        await ws.send_bytes(large)
        assert await ws.receive_bytes() == large
        await ws.ping(b"p")
        assert (await ws.receive()).type is aiohttp.WSMsgType.PONG
        await ws.send_str("close")
        assert (await ws.receive()).type is aiohttp.WSMsgType.CLOSE
        assert ws.close_code == 4001
    assert headers_of_request(upstream.requests[-1])["upgrade"] == "websocket"
    await asyncio.wait_for(upstream.ended.wait(), 5)


async def test_a_websocket_passes_through_a_proxy_at_the_root(opened: Open, upstream: Upstream) -> None:
    front = await opened({"/": upstream.url})
    async with front.session.ws_connect(f"{front.url}/any/socket", protocols=("chat",)) as ws:
        await ws.send_str("x")
        assert await ws.receive_str() == "chat:x"


async def test_a_client_that_leaves_closes_the_websocket(proxy: Front, upstream: Upstream) -> None:
    ws = await proxy.session.ws_connect(f"{proxy.url}/old/socket")
    await ws.send_str("x")
    await ws.receive()
    assert ws._response.connection is not None
    ws._response.connection.transport.abort()
    await asyncio.wait_for(upstream.ended.wait(), 5)
    await eventually(lambda: not proxy.gateway.connections.streams, "the tunnel is gone")


async def test_no_tunnel_without_101(proxy: Front, upstream: Upstream) -> None:
    """What follows an upgrade that the upstream refuses reaches no server: the connection ends."""
    reader, writer = await proxy.raw(
        b"GET /old/refuses HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 7\r\n\r\n"
    )
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 426 ")
    writer.write(b"GET /old/secret HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert b"HTTP/1.1 " not in await reader.read()
    assert [request.path for request in upstream.requests] == ["/old/refuses"]


async def test_a_page_of_another_site_opens_no_websocket(proxy: Front, upstream: Upstream) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as error:
        await proxy.session.ws_connect(f"{proxy.url}/old/socket", origin="https://evil.example")
    assert error.value.status == 403
    assert upstream.requests == []


async def test_an_idle_websocket_is_closed(proxy: Front) -> None:
    async with proxy.session.ws_connect(f"{proxy.url}/hasty/socket") as ws:
        assert (await ws.receive(timeout=5)).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)


async def test_a_draining_gateway_closes_websockets_with_service_restart(proxy: Front) -> None:
    async with proxy.session.ws_connect(f"{proxy.url}/old/socket") as ws:
        await ws.send_str("x")
        await ws.receive()
        await app.drain(proxy.gateway, listening(proxy))
        message = await ws.receive(timeout=5)
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1012)


async def test_a_draining_gateway_lets_a_request_end(proxy: Front, upstream: Upstream) -> None:
    asking = asyncio.create_task(proxy.get("/old/wait"))
    await eventually(lambda: upstream.requests, "it has arrived")
    draining = asyncio.create_task(app.drain(proxy.gateway, listening(proxy)))
    await asyncio.sleep(0.1)
    upstream.gate.set()
    told = await asking
    assert (told.body, told.headers["Connection"]) == (b"waited", "close")
    await draining


async def test_a_draining_gateway_ends_forwarded_events(proxy: Front, upstream: Upstream) -> None:
    """Their clients reconnect: the answer ends as a complete one, and the upstream sees that it is not read."""
    async with proxy.session.get(proxy.url + "/old/events") as response:
        assert await response.content.readuntil(b"\n\n") == b"data: 1\n\n"
        await app.drain(proxy.gateway, listening(proxy))
        assert await response.read() == b""
    await asyncio.wait_for(upstream.ended.wait(), 5)
