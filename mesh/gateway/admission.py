"""Connection limits, and the limits on the size and the time of the head of a request.

Owns: the limits on connections and heads, the sweep that finds connections which take too long, and the answer to bytes
that are not an HTTP request.
Leaves to others: requests (server), clients that do not read (readers), closing connections without loss
(connections), parsing (aiohttp).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, HttpProcessingError, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from mesh.config.settings import GatewaySettings
from mesh.errors import BadRequest, MeshError, Overloaded, TooLarge
from mesh.gateway.clients import Clients
from mesh.gateway.edge.identity import Identity
from mesh.gateway.limits import exceeded
from mesh.gateway.listeners.proxy_protocol import Told
from mesh.gateway.ports import Recorder
from mesh.gateway.problems import Problems
from mesh.gateway.readers import Readers
from mesh.gateway.reply import date_line, head_of
from mesh.telemetry.logs import get_logger

_log = get_logger(__name__)

#: How often a flood of refused connections is logged.
TELL_EVERY_S: Final = 10.0


#: Heads that one sweep refuses, and when the next one follows if there are more: refusing one takes some 0.1 ms, and
#: thousands of clients that began together would otherwise stop everything else.
MOST_AT_ONCE: Final = 50
AGAIN_S: Final = 0.02


class MalformedRequest(BadRequest):
    """The bytes are not a request of HTTP/1.1 or HTTP/1.0."""

    code = "malformed_request"


class HeadTooLarge(TooLarge):
    """A header field is longer than 8 KiB, or the head exceeds gateway.max_header or gateway.max_headers."""

    code = "head_too_large"
    status = 431


class UriTooLong(TooLarge):
    """The request target is longer than gateway.max_uri."""

    code = "uri_too_long"
    status = 414


class UnsupportedVersion(BadRequest):
    """The HTTP version of the request is not supported."""

    code = "unsupported_version"
    status = 505


class HeadTimeout(BadRequest):
    """The head of a request did not arrive within gateway.header_timeout."""

    code = "head_timeout"
    status = 408


class Connection(RequestHandler):
    """One connection, as aiohttp serves it.

    Attributes:
        heard: bytes have arrived since the last request was answered.
        since: when a sweep first found bytes without a complete request; 0.0 if none did.
        head_bytes: the bytes of an incomplete head.
        served: how many requests have been answered, if there is a limit.
        wire: the transport; aiohttp forgets it when it closes the connection, also while bytes remain to be sent.
        unsent, moved_at, stuck_at, stuck_bytes: what `readers` knows about bytes that the client has not read.
        identity: who its client certificate names; None until an authentication method has looked.
        told: what a proxy has said about the connection in a PROXY header; None without one.
    """

    __slots__ = (
        "head_bytes",
        "heard",
        "identity",
        "limits",
        "moved_at",
        "served",
        "since",
        "stuck_at",
        "stuck_bytes",
        "told",
        "unsent",
        "wire",
    )

    def __init__(self, manager: Server, **options: Any) -> None:
        super().__init__(manager, **options)
        self.limits = manager
        self.heard = False
        self.since = 0.0
        self.head_bytes = self.served = 0
        self.wire: asyncio.Transport | None = None
        self.unsent = self.stuck_bytes = 0
        self.moved_at = self.stuck_at = 0.0
        self.identity: Identity | None = None
        self.told: Told | None = None

    def data_received(self, data: bytes) -> None:
        """Parse, and note that bytes have arrived. Bound the size of the head that they belong to."""
        self.heard = True
        waiting = self._waiter is not None
        RequestHandler.data_received(self, data)
        if waiting:
            size = self.head_bytes + len(data)
            if size > self.limits.most_head:
                self._check_head(size)
            self.head_bytes = 0 if self._messages else size

    def _check_head(self, size: int) -> None:
        """Refuse a head that is too large. So many bytes may also be a small head with a body."""
        error = HeadOverLimit(f"the head is larger than {self.limits.most_head} bytes")
        if not self._messages:
            self.limits.exceeded("max_header")
            self.refuse(_parse_error(error, self.limits))
            return
        for at, (message, _) in enumerate(self._messages):
            fields = getattr(message, "raw_headers", ())
            head = len(getattr(message, "path", "")) + sum(len(name) + len(value) + 4 for name, value in fields)
            if head > self.limits.most_head:
                self._messages[at] = (_ErrInfo(status=431, exc=error, message=error.message), EMPTY_PAYLOAD)

    def pause_writing(self) -> None:
        """More is waiting for the client than the transport should hold."""
        super().pause_writing()
        if self.wire is not None:
            self.limits.filled(self.wire.get_write_buffer_size())

    def resume_writing(self) -> None:
        """The client has read most of what was waiting for it."""
        self.unsent = 0
        super().resume_writing()

    @property
    def is_waiting(self) -> bool:
        """Whether no request is being answered and none is complete: the received bytes are at most part of a head."""
        return self._waiter is not None and not self._messages and self._current_request is None

    def refuse(self, error: MeshError) -> None:
        """Answer with an error, and close. No more bytes are read."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        transport.write(self.limits.answer(error))
        self.close()
        transport.close()

    def handle_error(
        self, request: Any, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> Any:
        """The answer to bytes that cannot be parsed: a problem, counted and not logged."""
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        error = _parse_error(exc, self.limits)
        if isinstance(error, UriTooLong):
            self.limits.exceeded("max_uri")
        elif isinstance(error, HeadTooLarge):
            self.limits.exceeded("max_header")
        else:
            self.limits.recorder.counter("http_malformed_requests", "Bytes that are not a request.").value += 1
        reply = self.limits.problems.reply(error)
        reply.keep_alive = False
        return reply


class HeadOverLimit(BadHttpMessage):
    """The fields of a head are each short enough, and together too large."""


#: The longest header field, as of most servers. The parser's errors do not say which of two limits was exceeded, except
#: by its number, so that of request targets differs.
FIELD_BYTES: Final = 8192


def field_bytes(settings: GatewaySettings) -> int:
    """The longest header field, which always differs from the longest request target."""
    return FIELD_BYTES + 1 if settings.max_uri_bytes == FIELD_BYTES else FIELD_BYTES


def _parse_error(exc: HttpProcessingError, limits: Server) -> MeshError:
    text = " ".join(str(exc.message).rstrip("^ \n").split())
    if isinstance(exc, LineTooLong):
        if f"more than {limits.most_target} bytes" in text:
            return UriTooLong(f"the request target is longer than {limits.most_target} bytes (gateway.max_uri)")
        return HeadTooLarge("a header field is longer than 8 KiB")
    if isinstance(exc, HeadOverLimit):
        return HeadTooLarge(f"{exc.message} (gateway.max_header)")
    if "Too many headers" in text:
        return HeadTooLarge(f"the request has more than {limits.most_fields} header fields (gateway.max_headers)")
    if "HTTP version" in text:
        return UnsupportedVersion("the request is of a version of HTTP other than 1.1 and 1.0")
    return MalformedRequest(f"the request cannot be read: {text[:200]}")


class Server(web.Server):
    """The protocol factory of one gateway: makes connections, counts them, and closes those beyond the limits.

    Args:
        settings: the limits.

    Attributes:
        kind: of the listener that its connections come from; see mesh.gateway.listeners.listener.
    """

    kind = "public"

    def __init__(
        self,
        handler: Any,
        settings: GatewaySettings,
        clients: Clients,
        problems: Problems,
        recorder: Recorder,
        **options: Any,
    ) -> None:
        super().__init__(handler, **options)
        self.problems = problems
        self.recorder = recorder
        self._clients = clients
        self._most = settings.max_connections
        self._most_per_client = settings.max_connections_per_client
        self._header_timeout_s = settings.header_timeout_s
        self.most_head = settings.max_header_bytes
        self.most_target = settings.max_uri_bytes
        self.most_fields = settings.max_headers
        self._readers = Readers(settings, recorder)
        self._addresses: dict[RequestHandler, str] = {}
        self._by_address: Counter[str] = Counter()
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._told_at = -TELL_EVERY_S

    def __call__(self) -> RequestHandler:
        """A connection that has just been accepted."""
        return Connection(self, loop=self._loop, **self._kwargs)

    def answer(self, error: MeshError) -> bytes:
        """A complete answer for a connection without a request, with `Connection: close`."""
        reply = self.problems.reply(error)
        body = bytes(reply.body)
        return b"%bContent-Length: %d\r\n%b%bConnection: close\r\n\r\n%b" % (
            head_of(reply.status, reply.content_type)[0],
            len(body),
            reply.extra,
            date_line(),
            body,
        )

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """Count the connection; refuse it beyond the limits."""
        super().connection_made(handler, transport)
        if isinstance(handler, Connection):
            handler.wire = transport
        peer = transport.get_extra_info("peername")
        address = peer[0] if isinstance(peer, tuple) else ""
        if isinstance(handler, Connection) and handler.told is not None:
            address = handler.told.address
        self._addresses[handler] = address
        self._by_address[address] += 1
        if len(self._addresses) > self._most:
            self._refuse(handler, transport, address, "max_connections", self._most)
        elif 0 < self._most_per_client < self._by_address[address] and not self._clients.is_exempt(address):
            self._refuse(handler, transport, address, "max_connections_per_client", self._most_per_client)
        elif self._sweep_timer is None:
            self._sweep_timer = self._loop.call_later(self._sweep_every_s, self._sweep)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """Stop counting the connection."""
        super().connection_lost(handler, exc)
        address = self._addresses.pop(handler, None)
        if address is not None:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]

    def exceeded(self, limit: str) -> None:
        """Count a request that was refused because of a limit."""
        exceeded(self.recorder, limit)

    async def shutdown(self, timeout: float | None = None) -> None:
        """Close every connection."""
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        await super().shutdown(timeout)

    def _refuse(self, handler: RequestHandler, transport: asyncio.Transport, address: str, key: str, most: int) -> None:
        self.recorder.counter("http_connections_refused", "Connections beyond a limit.", limit=key).value += 1
        now = self._loop.time()
        if now - self._told_at >= TELL_EVERY_S:
            self._told_at = now
            _log.warning("gateway.connection_refused", client=address, limit=f"gateway.{key}", most=most)
        error = Overloaded("there are too many connections", details={"retry_after_s": 1})
        transport.write(self.answer(error))
        handler.close()
        transport.close()

    def filled(self, size: int) -> None:
        """So many bytes wait for one more client; look at all of them when that is too much together."""
        if self._readers.filled(size):
            self._loop.call_soon(lambda: self._readers.sweep(self._addresses, self._loop.time()))

    # --- what takes too long ----------------------------------------------------------------------

    @property
    def _sweep_every_s(self) -> float:
        return min(1.0, self._header_timeout_s / 4)

    def _sweep(self) -> None:
        """Find connections that have begun a head and not completed it in time, and those to clients that do not read.

        One timer serves all connections."""
        self._sweep_timer = None
        now = self._loop.time()
        self._readers.sweep(self._addresses, now)
        refused = 0
        for connection in list(self._addresses):
            if not isinstance(connection, Connection):
                continue
            if not connection.heard or not connection.is_waiting:
                connection.since = 0.0
            elif not connection.since:
                connection.since = now
            elif now - connection.since >= self._header_timeout_s and refused < MOST_AT_ONCE:
                refused += 1
                self.recorder.counter("http_heads_timed_out", "Heads that did not arrive in time.").value += 1
                connection.refuse(HeadTimeout("the head of the request did not arrive in time"))
        if self._addresses:
            wait_s = AGAIN_S if refused == MOST_AT_ONCE else self._sweep_every_s
            self._sweep_timer = self._loop.call_later(wait_s, self._sweep)
