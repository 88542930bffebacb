"""A WebSocket between a client and an upstream server: the bytes of both directions, unchanged.

Owns: which requests may become one, back-pressure in both directions, the idle limit, and its end when the gateway
drains.
Leaves to others: the handshake's header fields (forward_headers), connecting (forwarding), who may open one (edge).

Frames pass as they are, so that extensions, ping and pong, and close codes are those of the two ends. Nothing passes
before the upstream has answered 101: a request that only claims to open a WebSocket gets its ordinary answer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aiohttp
from aiohttp import hdrs
from aiohttp.http import HttpVersion11, StreamWriter
from aiohttp.streams import EMPTY_PAYLOAD

from mesh.gateway.forward_errors import BadGateway
from mesh.gateway.front import Front
from mesh.gateway.reply import date_line
from mesh.gateway.request import RawRequest, Request
from mesh.gateway.transfer import Written

#: Bytes of one direction that may wait for the other end; then the gateway stops reading.
BUFFER_BYTES: Final = 64 * 1024

#: "Service Restart": clients connect again (RFC 6455, section 7.4.2 and the registry of close codes).
_RESTART: Final = b"\x88\x02" + (1012).to_bytes(2, "big")


def is_websocket(raw: RawRequest) -> bool:
    """Whether a request asks for a WebSocket; other upgrades, such as h2c, are never forwarded."""
    headers = raw.headers
    return (
        headers.get(hdrs.UPGRADE, "").lower() == "websocket"
        and raw.method == "GET"
        and raw.version == HttpVersion11
        and not raw.body_exists
        and hdrs.SEC_WEBSOCKET_KEY in headers
        and any(part.strip().lower() == "upgrade" for part in headers.get(hdrs.CONNECTION, "").split(","))
    )


async def tunnel(
    front: Front, request: Request, response: aiohttp.ClientResponse, lines: bytes, idle_s: float
) -> Written:
    """Answer 101, and pass bytes until one end closes, nothing has passed for `idle_s`, or the gateway drains.

    Args:
        response: of the upstream, with status 101.
        lines: its header lines for the client.

    Raises:
        BadGateway: the upstream has switched to another protocol.
    """
    raw = request.raw
    connection, client = response.connection, raw.transport
    if response.headers.get(hdrs.UPGRADE, "").lower() != "websocket" or connection is None:
        raise BadGateway("the upstream has answered 101 for another protocol than websocket")
    upstream = connection.transport
    protocol = connection.protocol
    if client is None or upstream is None or protocol is None:
        raise ConnectionResetError("one end has disconnected")
    client.write(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n%b%b%b\r\n"
        % (lines, raw.lines, date_line())
    )
    loop = asyncio.get_running_loop()
    up = _Direction(client, upstream, StreamWriter(protocol, loop).drain)
    down = _Direction(upstream, client, raw.writer.drain)
    down.edge = FrameEdge()
    raw.protocol.set_parser(up)  # type: ignore[arg-type]  # as aiohttp's own WebSocketReader
    protocol.set_parser(down, EMPTY_PAYLOAD)
    directions = (up, down)
    tasks = [asyncio.create_task(each.run()) for each in directions]
    streams = front.connections.streams
    streams.add(down)
    try:
        while True:
            moved_at = max(each.moved_at for each in directions)
            left_s = moved_at + idle_s - loop.time()
            if left_s <= 0:
                break
            done, _ = await asyncio.wait(tasks, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if done:
                break
    finally:
        streams.discard(down)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    answer = Written(101)
    answer.size = down.size
    return answer


class _Direction:
    """One direction: takes bytes as aiohttp's parsers do, and writes them to the other end.

    Attributes:
        size: bytes that have passed.
        moved_at: when the last ones passed, by the loop's clock.
        edge: where frames end; None when nothing is ever added to this direction.
    """

    def __init__(
        self, source: asyncio.Transport, target: asyncio.Transport, drain: Callable[[], Awaitable[Any]]
    ) -> None:
        self._source = source
        self._target = target
        self._drain = drain
        self._chunks: deque[bytes] = deque()
        self._waiting = 0
        self._paused = False
        self._ended = False
        self._leaving = False
        self._wake = asyncio.Event()
        self._now = asyncio.get_running_loop().time
        self.size = 0
        self.moved_at = self._now()
        self.edge: FrameEdge | None = None

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Bytes have arrived: called by the connection's protocol."""
        if data:
            self._chunks.append(data)
            self._waiting += len(data)
            if self._waiting > BUFFER_BYTES and not self._paused:
                self._paused = True
                self._source.pause_reading()
            self._wake.set()
        return False, b""

    def feed_eof(self) -> None:
        """The source has disconnected: called by the connection's protocol."""
        self._ended = True
        self._wake.set()

    def leave(self) -> None:
        """End the WebSocket with "Service Restart", as soon as no frame is half sent. The gateway drains."""
        self._leaving = True
        self._wake.set()

    async def run(self) -> None:
        """Pass bytes until the source disconnects."""
        while True:
            while self._chunks:
                data = self._chunks.popleft()
                self._waiting -= len(data)
                self.size += len(data)
                self.moved_at = self._now()
                if self.edge is not None:
                    self.edge.feed(data)
                self._target.write(data)
                await self._drain()
            if self._ended:
                return
            if self._leaving and self.edge is not None and self.edge.reached:
                self._target.write(_RESTART)
                return
            if self._paused:
                self._paused = False
                self._source.resume_reading()
            self._wake.clear()
            await self._wake.wait()


class FrameEdge:
    """Finds where the frames of a WebSocket end, without reading their payload (RFC 6455, section 5.2)."""

    def __init__(self) -> None:
        self._head = b""
        self._left = 0

    @property
    def reached(self) -> bool:
        """Whether the bytes so far end with a complete frame."""
        return not self._head and not self._left

    def feed(self, data: bytes) -> None:
        """Follow further bytes."""
        at = 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                continue
            needed = self._needed()
            step = min(needed - len(self._head), len(data) - at)
            self._head += data[at : at + step]
            at += step
            if len(self._head) == self._needed():
                self._left = self._payload()
                self._head = b""

    def _needed(self) -> int:
        """The length of the head, as far as it is known."""
        if len(self._head) < 2:
            return 2
        extended = {126: 2, 127: 8}.get(self._head[1] & 0x7F, 0)
        return 2 + extended + (4 if self._head[1] & 0x80 else 0)

    def _payload(self) -> int:
        short = self._head[1] & 0x7F
        if short < 126:
            return short
        return int.from_bytes(self._head[2 : 4 if short == 126 else 10], "big")
