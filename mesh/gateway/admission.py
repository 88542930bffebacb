"""Connection limits, and the time limit for sending the head of a request.

Owns: the limits on connections, the time-out of heads, and the answer to bytes that are not an HTTP request.
Leaves to others: requests (server), closing connections without loss (connections), parsing (aiohttp).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.web_protocol import RequestHandler

from mesh.config.settings import GatewaySettings
from mesh.errors import BadRequest, MeshError, Overloaded, TooLarge
from mesh.gateway.clients import Clients
from mesh.gateway.edge.identity import Identity
from mesh.gateway.listeners.proxy_protocol import Told
from mesh.gateway.ports import Recorder
from mesh.gateway.problems import Problems
from mesh.gateway.reply import date_line, head_of
from mesh.telemetry.logs import get_logger

_log = get_logger(__name__)

#: How often a flood of refused connections is logged.
TELL_EVERY_S: Final = 10.0


class MalformedRequest(BadRequest):
    """The bytes are not a request of HTTP/1.1 or HTTP/1.0."""

    code = "malformed_request"


class HeadTooLarge(TooLarge):
    """The request line or a header field is longer than 8 KiB."""

    code = "head_too_large"
    status = 431


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
        identity: who its client certificate names; None until an authentication method has looked.
        told: what a proxy has said about the connection in a PROXY header; None without one.
    """

    __slots__ = ("heard", "identity", "limits", "since", "told")

    def __init__(self, manager: Server, **options: Any) -> None:
        super().__init__(manager, **options)
        self.limits = manager
        self.heard = False
        self.since = 0.0
        self.identity: Identity | None = None
        self.told: Told | None = None

    def data_received(self, data: bytes) -> None:
        """Parse, and note that bytes have arrived."""
        self.heard = True
        RequestHandler.data_received(self, data)

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
        self.limits.recorder.count("http_malformed_requests")
        reply = self.limits.problems.reply(_parse_error(exc))
        reply.keep_alive = False
        return reply


def _parse_error(exc: HttpProcessingError) -> MeshError:
    text = " ".join(str(exc.message).rstrip("^ \n").split())
    if isinstance(exc, LineTooLong):
        return HeadTooLarge("the request line or a header field is longer than 8 KiB")
    if "HTTP version" in text:
        return UnsupportedVersion("the request is of a version of HTTP other than 1.1 and 1.0")
    return MalformedRequest(f"the request cannot be read: {text[:200]}")


class Server(web.Server):
    """The protocol factory of one gateway: makes connections, counts them, and closes those beyond the limits.

    Args:
        settings: the limits.

    Attributes:
        kind: of the listener whose connections it serves; see mesh.gateway.listeners.listener.
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

    async def shutdown(self, timeout: float | None = None) -> None:
        """Close every connection."""
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        await super().shutdown(timeout)

    def _refuse(self, handler: RequestHandler, transport: asyncio.Transport, address: str, key: str, most: int) -> None:
        self.recorder.count("http_connections_refused", limit=key)
        now = self._loop.time()
        if now - self._told_at >= TELL_EVERY_S:
            self._told_at = now
            _log.warning("gateway.connection_refused", client=address, limit=f"gateway.{key}", most=most)
        error = Overloaded("there are too many connections", details={"retry_after_s": 1})
        transport.write(self.answer(error))
        handler.close()
        transport.close()

    # --- heads that do not come -----------------------------------------------------------------

    @property
    def _sweep_every_s(self) -> float:
        return min(1.0, self._header_timeout_s / 4)

    def _sweep(self) -> None:
        """Find connections that have begun a head and not completed it in time. One timer serves all connections."""
        self._sweep_timer = None
        now = self._loop.time()
        for connection in list(self._addresses):
            if not isinstance(connection, Connection):
                continue
            if not connection.heard or not connection.is_waiting:
                connection.since = 0.0
            elif not connection.since:
                connection.since = now
            elif now - connection.since >= self._header_timeout_s:
                self.recorder.count("http_heads_timed_out")
                connection.refuse(HeadTimeout("the head of the request did not arrive in time"))
        if self._addresses:
            self._sweep_timer = self._loop.call_later(self._sweep_every_s, self._sweep)
