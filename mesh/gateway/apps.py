"""Requests for applications (ASGI, WSGI): the whole request goes to a worker, and its response comes back unread.

Owns: the scope of a request, and writing the response.
Leaves to others: the messages between gateway and worker (mesh.apps.messages), WebSockets (app_sockets), finding the
route (gateway.routes).

A request with a small body is one message to the worker, and a response in one piece is one message back. Everything
larger is streamed, with back-pressure in both directions; an empty item follows the last part of a response.

When the response is complete, the stream is left to end by itself: closing it would cancel what the application does
afterwards, such as background tasks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextvars import Context
from typing import Any, Final
from urllib.parse import unquote

import msgspec
from aiohttp import hdrs
from aiohttp.http import HttpVersion11

from mesh.apps.messages import BODY, MORE, Head, Headers, read_head
from mesh.calls.answers import Answer
from mesh.errors import BadReply, MeshError
from mesh.gateway.body_stream import BodyStream, announced_length
from mesh.gateway.front import Front
from mesh.gateway.ports import Buffer, Items
from mesh.gateway.problems import Unforeseen
from mesh.gateway.reply import Reply
from mesh.gateway.request import TIMEOUT, Request
from mesh.gateway.routes import Route
from mesh.gateway.sse import StreamReply
from mesh.protocol import http_head
from mesh.protocol.messages import MSGPACK, RAW
from mesh.telemetry.logs import get_logger

_log = get_logger("mesh.gateway")

#: Bodies up to this size are sent with the request.
WHOLE_BYTES: Final = 64 * 1024
#: Parts of a response that a worker may send ahead of the client.
WINDOW: Final = 16

#: Fields of a response that belong to the connection, or that the gateway writes itself.
_DROPPED: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"te", b"trailer"}
    | {b"date", b"server", b"content-length", b"content-type"}
)

_pack: Final = msgspec.msgpack.Encoder().encode


def scope_of(request: Request, prefix: str, kind: str) -> dict[str, Any]:
    """The ASGI scope of a request, without what the worker adds.

    Args:
        prefix: the path below which the application is; "" for "/".
        kind: "http" or "websocket".
    """
    raw = request.raw
    path = request.path
    peer = raw.transport.get_extra_info("peername") if raw.transport is not None else None
    client = request.client
    scheme = request.scheme
    host, port = _server(raw.headers.get(hdrs.HOST) or "")
    # A WebSocket has no method: Litestar refuses one that has.
    own = {"method": raw.method} if kind == "http" else {}
    if kind == "websocket":
        scheme = "wss" if scheme == "https" else "ws"
    return {
        "type": kind,
        "http_version": "1.1" if raw.version == HttpVersion11 else "1.0",
        **own,
        "scheme": scheme,
        "path": unquote(path),
        "raw_path": path.encode("latin-1", "replace"),
        "query_string": request.query_string.encode("latin-1", "replace"),
        "root_path": prefix,
        "headers": [(name.lower(), value) for name, value in raw.raw_headers],
        "client": (client, peer[1] if isinstance(peer, tuple) else 0) if client != "-" else None,
        "server": (host, port),
    }


def _server(host: str) -> tuple[str, int | None]:
    """Host and port of a Host field; an IPv6 address without its brackets."""
    name, _, port = host.rpartition(":")
    if not name or not port.isdecimal():
        name, port = host, ""
    return name.strip("[]"), int(port) if port else None


async def serve(front: Front, request: Request, route: Route) -> Reply | StreamReply:
    """Answer a request with an application, and count it.

    Raises:
        MeshError: the request or its body is refused, or the application fails before its response begins.
    """
    stats = front.node.recorder.method("http", route.service, route.name)
    request.target = route.target
    code = "cancelled"
    stats.begin()
    try:
        reply, code = await _serve(front, request, route)
        return reply
    except MeshError as exc:
        code = exc.code
        raise
    except Exception:
        code = Unforeseen.code
        raise
    finally:
        request.seconds = front.node.clock.now() - request.began_at
        stats.end(request.seconds, code)


async def _serve(front: Front, request: Request, route: Route) -> tuple[Reply | StreamReply, str]:
    scope = scope_of(request, route.prefix, "http")
    source: AsyncIterator[tuple[Buffer, int]] | None = None
    streamed: BodyStream | None = None
    if request.raw.body_exists:
        length = announced_length(request.raw)
        # What the application declares in its own way is not known here; the limit is that of the gateway.
        body = request.stream(decode=False)
        if length is not None and length <= WHOLE_BYTES:
            scope[BODY] = b"".join([chunk async for chunk in body])
        else:
            scope[MORE] = True
            streamed, source = body, _chunks(body)
    else:
        scope[BODY] = b""
    items = front.node.stream_raw(
        route.target,
        _pack((scope,)),
        MSGPACK,
        timeout=request.timeout_s if TIMEOUT in request.headers else None,
        trace=request.trace,
        source=source,
        window=WINDOW,
    )
    complete = False
    try:
        try:
            first = await anext(items)
        except StopAsyncIteration:
            raise BadReply(f"{route.service}: the application sent no response") from None
        if first.encoding != MSGPACK:
            raise BadReply(f"{route.service}: the response has no head")
        head = _read(first.body, route)
        content_type, length, extra = _fields(head.headers, route)
        if not head.more:
            complete = True
            return Reply(head.body, content_type, head.status, extra), ""
        reply, code = await _write(front, request, head, items, content_type, length, extra)
        complete = not code
        return reply, code
    finally:
        # The rest of a body is not read once the request has been answered.
        if complete and (streamed is None or streamed.at_end):
            let_end(front, items)
        else:
            await items.aclose()


def let_end(front: Front, items: Items) -> None:
    """Read a stream to its end in the background: closing it would cancel the application."""
    ending = asyncio.get_running_loop().create_task(_finish(items), context=Context())
    front.endings.add(ending)
    ending.add_done_callback(front.endings.discard)


async def _finish(items: Items) -> None:
    """Read a stream, and drop what it still has."""
    try:
        async for _ in items:
            pass
    except MeshError:
        pass  # the application failed after its response, which its worker logs
    finally:
        await items.aclose()


async def _chunks(body: AsyncIterator[bytes]) -> AsyncIterator[tuple[Buffer, int]]:
    async for chunk in body:
        yield chunk, RAW


def _read(body: Buffer, route: Route) -> Head:
    try:
        head = read_head(body)
        http_head.check_status(head.status)
    except (msgspec.DecodeError, ValueError) as exc:
        raise BadReply(f"{route.service}: the head of the response is invalid: {exc}") from exc
    return head


def _fields(headers: Headers, route: Route) -> tuple[str, int | None, bytes]:
    """The Content-Type, the Content-Length and the other header lines of a response.

    Raises:
        BadReply: a name or a value is malformed: it would break the framing.
    """
    content_type, length = "", None
    lines = b""
    for name, value in headers:
        lower = name.lower()
        if b"\r" in value or b"\n" in value or b"\0" in value or not http_head.is_token(name.decode("latin-1")):
            raise BadReply(f"{route.service}: the header field {name[:80]!r} of the response is malformed")
        if lower not in _DROPPED:
            lines += b"%b: %b\r\n" % (name, value)
        elif lower == b"content-type":
            content_type = value.decode("latin-1")
        elif lower == b"content-length" and value.isdigit():
            length = int(value)
    return content_type, length, lines


async def _write(
    front: Front, request: Request, head: Head, items: Items, content_type: str, length: int | None, extra: bytes
) -> tuple[StreamReply, str]:
    reply = StreamReply(
        request.raw,
        front.node.clock,
        "raw",
        status=head.status,
        produces=content_type or "application/octet-stream",
        extra=extra,
        keep_alive=front.keeps(request.raw),
        problems=front.problems,
        length=length,
    )
    try:
        if head.body:
            await reply.item(Answer(head.body, RAW))
        async for answer in items:
            if not answer.body:
                break
            await reply.item(answer)
        reply.end()
    except ConnectionError:
        # The client disconnected while the gateway waited for it to read: no error can be sent.
        return reply, "cancelled"
    except Exception as exc:
        error = exc if isinstance(exc, MeshError) else Unforeseen()
        if not isinstance(exc, MeshError):
            _log.exception("stream.failed", target=request.target)
        request.failure = error
        reply.fail(error, request.trace)
        return reply, error.code
    finally:
        reply.stop()
    return reply, ""
