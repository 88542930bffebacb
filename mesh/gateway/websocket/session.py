"""One WebSocket: from the handshake to the close frame.

Owns: messages in both directions between a client and a handler's stream, orders of the handler, published frames, and
the end.
Leaves to others: the protocol (aiohttp), codes of ends (closing), topics (rooms), the call (node).

Each message of the client is an item of a client stream, and each item of the handler's stream is a message. Nothing is
read from the client faster than the handler reads, and nothing from the handler faster than the client reads.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
from aiohttp import WSMsgType, hdrs, web

from mesh.calls.push import WEBSOCKET, read_order
from mesh.calls.server_event import envelope_of, shown
from mesh.errors import BadRequest, Cancelled, Draining, MeshError
from mesh.gateway.front import Front
from mesh.gateway.ports import Answer, Buffer, Items
from mesh.gateway.problems import Unforeseen
from mesh.gateway.request import Request
from mesh.gateway.routes import Route
from mesh.gateway.transfer import Written
from mesh.gateway.websocket import closing
from mesh.protocol.messages import JSON, MSGPACK, RAW, RECONNECTS
from mesh.telemetry.logs import get_logger

_log = get_logger("mesh.gateway")

#: How long to wait for the client's half of the closing handshake.
CLOSE_S: Final = 1.0

#: How long a handler may go on after its client has closed the connection.
FINISH_S: Final = 10.0

_pack: Final = msgspec.msgpack.Encoder().encode
_read_text: Final = msgspec.json.Decoder(str).decode
_TEXT_SCHEMA: Final = {"type": "string"}
_BINARY_TYPE: Final = "application/octet-stream"


class BadHandshake(BadRequest):
    """The request is not a valid handshake of a WebSocket."""

    code = "bad_handshake"


class UpgradeRequired(BadRequest):
    """The address is a WebSocket; the request does not ask for one."""

    code = "upgrade_required"
    status = 426


class UnsupportedMessage(BadRequest):
    """The client sent a message of a kind that the handler does not take: text instead of bytes, or the opposite."""

    code = "unsupported_message"


class SlowReader(MeshError):
    """The client reads more slowly than messages are published to it."""

    code = "slow_reader"
    status = 503


class Session:
    """One connection.

    Args:
        body, encoding: the encoded arguments of the handler.
    """

    def __init__(self, front: Front, request: Request, route: Route, body: bytes, encoding: int) -> None:
        self._front = front
        self._request = request
        self._route = route
        self._arguments = (body, encoding)
        settings = front.settings.gateway.websocket
        self._lifetime_s = settings.lifetime_s
        self._backlog_bytes = settings.backlog_bytes
        self._ws = web.WebSocketResponse(
            timeout=CLOSE_S,
            heartbeat=settings.ping_s or None,
            protocols=route.record.subprotocols,
            compress=settings.compress,
            max_msg_size=settings.max_message_bytes,
        )
        inbound = route.method.inbound
        self._takes_text = inbound == _TEXT_SCHEMA
        self._takes_bytes = inbound is not None and inbound.get("contentMediaType") == _BINARY_TYPE
        self._sends_text = route.method.returns == _TEXT_SCHEMA
        self._topics: set[str] = set()
        self._task: asyncio.Task[Any] | None = None
        #: Why this gateway ends the connection; it has cancelled the task then.
        self._reason: MeshError | None = None
        self._over = False
        #: The client has closed the connection properly.
        self._closed = False
        self.size = 0

    # --- its life -------------------------------------------------------------------------------------

    async def run(self) -> tuple[Written, str]:
        """Serve the connection to its end; returns the answer for the log, and the error code to count.

        Raises:
            BadHandshake: the handshake is malformed; nothing was sent.
        """
        await self._accept()
        front = self._front
        self._task = asyncio.current_task()
        front.connections.streams.add(self)
        front.sockets.add(self)
        watch: asyncio.Task[None] | None = None
        if self._route.method.inbound is None:
            watch = asyncio.create_task(self._watch(), name="mesh.websocket")
        try:
            return Written(101, self.size), await self._serve()
        finally:
            self._over = True
            front.connections.streams.discard(self)
            front.sockets.discard(self)
            for topic in self._topics:
                front.rooms.leave(topic, self)
            if watch is not None:
                watch.cancel()

    async def _accept(self) -> None:
        raw = self._request.raw
        ws = self._ws
        ready = ws.can_prepare(raw)
        if not ready.ok:
            version = raw.headers.get(hdrs.SEC_WEBSOCKET_VERSION, "13")
            if version != "13":
                raw.lines += b"Sec-WebSocket-Version: 13\r\n"
                raise UpgradeRequired(f"version {version[:20]!a} of the WebSocket protocol is not supported; use 13")
            raise BadHandshake("the handshake lacks Upgrade: websocket or a valid Sec-WebSocket-Key")
        for line in raw.lines.decode("latin-1").splitlines():
            name, _, value = line.partition(": ")
            ws.headers.add(name, value)
        ws.headers[hdrs.SERVER] = "mesh"
        await ws.prepare(raw)

    async def _serve(self) -> str:
        route = self._route
        body, encoding = self._arguments
        meta = {RECONNECTS: "1", WEBSOCKET: self._ws.ws_protocol or ""}
        items = self._front.node.stream_raw(
            route.target,
            body,
            encoding,
            timeout=self._lifetime_s,
            meta=meta,
            trace=self._request.trace,
            source=None if route.method.inbound is None else self._messages(),
        )
        error: MeshError | None = None
        try:
            try:
                await self._forward(items)
            finally:
                await items.aclose()
        except (ConnectionError, TimeoutError):
            return Cancelled.code
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._reason is None or task is None or task.uncancel():
                raise
            error = self._reason
        except MeshError as exc:
            error = exc
        except Exception:
            _log.exception("websocket.failed", target=route.target)
            error = Unforeseen()
        self._over = True
        if error is None or isinstance(error, Cancelled):
            await self._close(closing.NORMAL, b"")
            return "" if error is None else error.code
        code, reason = closing.close_of(error, random.random())
        if isinstance(error, UnsupportedMessage):
            code = closing.UNSUPPORTED
        if code == closing.INTERNAL:
            self._request.failure = error
        await self._close(code, reason)
        return error.code

    async def _close(self, code: int, reason: bytes) -> None:
        """Send the close frame, and wait for the client's; a client that does not read is cut off."""
        try:
            async with asyncio.timeout(2 * CLOSE_S):
                await self._ws.close(code=code, message=reason)
        except (TimeoutError, ConnectionError):
            transport = self._request.raw.transport
            if transport is not None:
                transport.abort()

    async def _forward(self, items: Items) -> None:
        """Send what the handler yields, to its end."""
        try:
            async for answer in items:
                await self._take(answer)
        except (asyncio.CancelledError, ConnectionError) as exc:
            task = asyncio.current_task()
            if not self._closed or self._reason is not None or task is None:
                raise
            # The client has sent its close frame, and nothing else: its handler has been told, and may finish.
            if isinstance(exc, asyncio.CancelledError):
                task.uncancel()
            async with asyncio.timeout(FINISH_S):
                async for _ in items:
                    pass

    def _end(self, reason: MeshError) -> None:
        if self._reason is None and not self._over and self._task is not None:
            self._reason = reason
            self._task.cancel()

    def leave(self) -> None:
        """End the connection, because this gateway drains: the client connects to another one."""
        self._end(Draining("the gateway is draining"))

    # --- from the client ------------------------------------------------------------------------------

    async def _messages(self) -> AsyncIterator[tuple[Buffer, int]]:
        """The messages of the client, as items for the handler. They end with the client's close frame."""
        ws = self._ws
        while True:
            message = await ws.receive()
            kind = message.type
            if kind is WSMsgType.TEXT:
                if self._takes_text:
                    yield _pack(message.data), MSGPACK
                elif self._takes_bytes:
                    raise UnsupportedMessage("the handler takes binary messages")
                else:
                    yield message.data.encode(), JSON
            elif kind is WSMsgType.BINARY:
                if self._takes_text:
                    raise UnsupportedMessage("the handler takes text messages")
                yield message.data, RAW if self._takes_bytes else MSGPACK
            elif kind is WSMsgType.ERROR:
                # A violation of the protocol, or a message above the limit: aiohttp has sent its close frame.
                raise Cancelled("the connection was closed for a violation of the WebSocket protocol")
            else:
                self._closed = kind is WSMsgType.CLOSE
                return

    async def _watch(self) -> None:
        """Notice that the client closes, for a handler that takes no messages."""
        message = await self._ws.receive()
        if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
            self._end(UnsupportedMessage("the handler takes no messages"))
        else:
            self._end(Cancelled("the client has closed the connection"))

    # --- to the client --------------------------------------------------------------------------------

    async def _take(self, answer: Answer) -> None:
        """Send one item of the handler, or carry out its order.

        Raises:
            ConnectionError: the client has disconnected.
        """
        body = answer.body
        if answer.encoding == RAW:
            await self._send(bytes(body), WSMsgType.BINARY)
        elif answer.encoding == JSON:
            if self._sends_text:
                body = _read_text(body).encode("utf-8", "replace")
            await self._send(bytes(body), WSMsgType.TEXT)
        elif self._route.method.events and (envelope := envelope_of(body)) is not None:
            await self._send(shown(envelope), WSMsgType.TEXT)
        else:
            order = read_order(body)
            rooms = self._front.rooms
            if order.verb == "join":
                rooms.join(order.topic, self, self._route.record.topics)
                self._topics.add(order.topic)
            else:
                self._topics.discard(order.topic)
                rooms.leave(order.topic, self)

    async def _send(self, data: bytes, kind: WSMsgType) -> None:
        self.size += len(data)
        await self._ws.send_frame(data, kind)

    def published(self, data: bytes) -> None:
        """Send a frame that is the same for every client of a topic. Never waits: a client that is too far behind is
        disconnected."""
        transport = self._request.raw.transport
        if self._over or self._reason is not None or transport is None or transport.is_closing():
            return
        if transport.get_write_buffer_size() + len(data) > self._backlog_bytes:
            self._front.rooms.dropped()
            self._end(SlowReader("the client reads more slowly than messages are published"))
            # At once: it would not read a close frame either, and what waits for it takes memory.
            transport.abort()
            return
        self.size += len(data)
        transport.write(data)
