"""WebSockets of applications: the application accepts or refuses them itself.

Owns: one connection, from the handshake to the close frame.
Leaves to others: the protocol (aiohttp), the messages between gateway and worker (mesh.apps.messages), scopes (apps).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
from aiohttp import WSMsgType, hdrs, web

from mesh.apps.messages import read_ws
from mesh.errors import BadReply, Cancelled, Draining, Forbidden, MeshError
from mesh.gateway.apps import WINDOW, let_end, scope_of
from mesh.gateway.front import Front
from mesh.gateway.ports import Answer, Buffer, Items
from mesh.gateway.problems import Unforeseen
from mesh.gateway.request import Request
from mesh.gateway.routes import Route
from mesh.gateway.transfer import Written
from mesh.gateway.websocket import closing
from mesh.gateway.websocket.session import CLOSE_S, FINISH_S, BadHandshake
from mesh.protocol.messages import MSGPACK, RAW, RECONNECTS
from mesh.telemetry.logs import get_logger

_log = get_logger("mesh.gateway")
_pack: Final = msgspec.msgpack.Encoder().encode


async def serve(front: Front, request: Request, route: Route) -> Written:
    """Serve a WebSocket of an application to its end, and count it.

    Raises:
        BadHandshake: the handshake is malformed.
        Forbidden: the application refuses the connection.
    """
    stats = front.node.recorder.method("http", route.service, route.name)
    request.target = route.target
    code = "cancelled"
    stats.begin()
    try:
        written, code = await AppSocket(front, request, route).run()
        return written
    except MeshError as exc:
        code = exc.code
        raise
    except Exception:
        code = Unforeseen.code
        raise
    finally:
        request.seconds = front.node.clock.now() - request.began_at
        stats.end(request.seconds, code)


class AppSocket:
    """One connection."""

    def __init__(self, front: Front, request: Request, route: Route) -> None:
        self._front = front
        self._request = request
        self._route = route
        self._ws: web.WebSocketResponse | None = None
        #: It was accepted or refused.
        self._decided = asyncio.Event()
        self._task: asyncio.Task[Any] | None = None
        self._reason: MeshError | None = None
        #: The client has closed the connection properly.
        self._closed = False
        #: The application has closed the connection, or refused it.
        self._over = False
        self.size = 0

    async def run(self) -> tuple[Written, str]:
        """Serve it; returns the answer for the log, and the error code to count."""
        front, request, route = self._front, self._request, self._route
        if not web.WebSocketResponse().can_prepare(request.raw).ok:
            raise BadHandshake("the handshake is not one of version 13 of the WebSocket protocol")
        self._task = asyncio.current_task()
        scope = scope_of(request, route.prefix, "websocket")
        protocols = request.headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL, "")
        scope["subprotocols"] = [each.strip() for each in protocols.split(",") if each.strip()]
        items = front.node.stream_raw(
            route.target,
            _pack((scope,)),
            MSGPACK,
            timeout=front.settings.gateway.websocket.lifetime_s,
            meta={RECONNECTS: "1"},
            trace=request.trace,
            source=self._messages(),
            window=WINDOW,
        )
        front.connections.streams.add(self)
        front.sockets.add(self)
        error: MeshError | None = None
        try:
            try:
                if await self._forward(items):
                    return Written(101, self.size), ""
            finally:
                if self._over:
                    let_end(front, items)
                else:
                    await items.aclose()
        except (ConnectionError, TimeoutError):
            return Written(101, self.size), Cancelled.code
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
        finally:
            front.connections.streams.discard(self)
            front.sockets.discard(self)
        if self._ws is None:
            raise error or BadReply(f"{route.service}: the application neither accepted nor refused the WebSocket")
        code, reason = (closing.NORMAL, b"") if error is None else closing.close_of(error, random.random())
        if code == closing.INTERNAL:
            request.failure = error
        await self._close(code, reason)
        return Written(101, self.size), "" if error is None else error.code

    async def _forward(self, items: Items) -> bool:
        """Carry out the messages of the application, to its end; returns whether it has closed the connection."""
        try:
            async for answer in items:
                if await self._take(answer):
                    return True
        except (asyncio.CancelledError, ConnectionError) as exc:
            task = asyncio.current_task()
            if not self._closed or self._reason is not None or task is None:
                raise
            # The client has sent its close frame, and the application knows: it may finish.
            if isinstance(exc, asyncio.CancelledError):
                task.uncancel()
            async with asyncio.timeout(FINISH_S):
                async for _ in items:
                    pass
        return False

    def leave(self) -> None:
        """End the connection, because this gateway drains: the client connects to another one."""
        if self._reason is None and self._task is not None:
            self._reason = Draining("the gateway is draining")
            self._task.cancel()

    async def _messages(self) -> AsyncIterator[tuple[Buffer, int]]:
        await self._decided.wait()
        ws = self._ws
        if ws is None:
            # It was refused.
            yield _pack((1006, "")), MSGPACK
            return
        while True:
            message = await ws.receive()
            if message.type is WSMsgType.TEXT:
                yield _pack(message.data), MSGPACK
            elif message.type is WSMsgType.BINARY:
                yield message.data, RAW
            else:
                self._closed = message.type is WSMsgType.CLOSE
                yield _pack((ws.close_code or 1006, str(message.extra or ""))), MSGPACK
                return

    async def _take(self, answer: Answer) -> bool:
        """Carry out one message of the application; returns whether it was the last."""
        ws = self._ws
        if answer.encoding == RAW:
            if ws is None:
                raise BadReply(f"{self._route.service}: the application sent a message before it accepted")
            self.size += len(answer.body)
            await ws.send_bytes(bytes(answer.body))
            return False
        try:
            kind, *values = read_ws(answer.body)
        except ValueError as exc:
            raise BadReply(f"{self._route.service}: {exc}") from exc
        if kind == "accept" and ws is None:
            await self._accept(*values)
        elif kind == "close" and ws is None:
            self._over = True
            self._decided.set()
            raise Forbidden(f"{self._route.service} refused the WebSocket")
        elif kind == "close":
            code, reason = values
            self._over = True
            await self._close(code, reason.encode())
            return True
        elif kind == "text" and ws is not None:
            self.size += len(values[0])
            await ws.send_str(values[0])
        else:
            raise BadReply(f'{self._route.service}: the application sent "{kind}" at the wrong time')
        return False

    async def _accept(self, subprotocol: str | None, headers: list[list[bytes]]) -> None:
        settings = self._front.settings.gateway.websocket
        raw = self._request.raw
        ws = web.WebSocketResponse(
            timeout=CLOSE_S,
            heartbeat=settings.ping_s or None,
            protocols=[subprotocol] if subprotocol else [],
            compress=settings.compress,
            max_msg_size=settings.max_message_bytes,
        )
        for line in raw.lines.decode("latin-1").splitlines():
            name, _, value = line.partition(": ")
            ws.headers.add(name, value)
        for field, text in headers:
            ws.headers.add(field.decode("latin-1"), text.decode("latin-1"))
        ws.headers[hdrs.SERVER] = "mesh"
        await ws.prepare(raw)
        self._ws = ws
        self._decided.set()

    async def _close(self, code: int, reason: bytes) -> None:
        assert self._ws is not None
        try:
            async with asyncio.timeout(2 * CLOSE_S):
                await self._ws.close(code=code, message=reason[:120])
        except (TimeoutError, ConnectionError):
            transport = self._request.raw.transport
            if transport is not None:
                transport.abort()
