"""Answers HTTP requests.

Owns: the order of the steps for every request: trace and request id, the checks of host and origin, the mount, errors
as problems, the log, and the header lines of every answer; which concerns of the edge are in the chain.
Leaves to others: answering (mounts), the concerns (edge), sockets and signals (app), HTTP itself (aiohttp).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Any, Final, cast

from aiohttp import hdrs
from aiohttp.http import HttpVersion10, HttpVersion11
from multidict import istr

from mesh.calls.context import CURRENT, CallContext, PlainContext
from mesh.calls.interceptors import Hook, Proceed, compose
from mesh.calls.propagation import BAGGAGE, TRACESTATE, take
from mesh.config import Settings
from mesh.errors import MeshError, SetupError, TooLarge, Unauthenticated
from mesh.gateway.admission import Server, UnsupportedVersion, field_bytes
from mesh.gateway.body import BodiesFull
from mesh.gateway.body_stream import READ_AHEAD_BYTES, SlowBody
from mesh.gateway.edge.registry import concerns
from mesh.gateway.framing import TRANSFER_ENCODING, BadFraming, check_framing, check_target
from mesh.gateway.front import Front
from mesh.gateway.headers import read_request_id
from mesh.gateway.malformed import http_logger
from mesh.gateway.mounts.contract import Answer
from mesh.gateway.mounts.external import External, load
from mesh.gateway.mounts.health import PROBED
from mesh.gateway.mounts.openapi import openapi
from mesh.gateway.mounts.registry import Mounts
from mesh.gateway.mounts.status import status
from mesh.gateway.ports import Node
from mesh.gateway.problems import Unforeseen
from mesh.gateway.reply import Reply
from mesh.gateway.request import RawRequest, Request
from mesh.gateway.request_log import RequestLog
from mesh.gateway.sites import SAFE, CrossSite
from mesh.gateway.sse import StreamReply
from mesh.gateway.transfer import Written
from mesh.telemetry.logs import get_logger
from mesh.telemetry.traces import accept as accept_trace
from mesh.telemetry.traces import current as current_trace
from mesh.telemetry.traces import root as new_trace

_log = get_logger(__name__)

_HOST: Final = hdrs.HOST
_TRANSFER_ENCODING: Final = TRANSFER_ENCODING
_TRACEPARENT: Final = istr("traceparent")
_REQUEST_ID: Final = istr("X-Request-Id")
_TRACESTATE: Final = istr("tracestate")
_BAGGAGE: Final = istr("baggage")

#: Errors after which nothing more is read from the connection.
_CLOSING: Final = (TooLarge, SlowBody, BodiesFull, BadFraming, UnsupportedVersion)

_SPOKEN: Final = frozenset({HttpVersion10, HttpVersion11})

#: How long to discard the unread rest of a body, so that the client can read its answer before the connection closes.
LINGER_S: Final = 1.0


class Gateway:
    """One HTTP front end. `make_server` creates the `web.Server`, which calls `handler`.

    Args:
        mounts: of other packages; None loads those that `gateway.mounts` lists.

    Raises:
        ConfigError: a setting is wrong, or a mount cannot be used; the message names it.
    """

    def __init__(self, node: Node, settings: Settings, mounts: Sequence[External] | None = None) -> None:
        self.node = node
        self.settings = settings
        self.front = front = Front(node, settings)
        self.catalog = front.catalog
        self.health = front.health
        self.connections = front.connections
        self.problems = front.problems
        self.bodies = front.bodies
        self.sites = front.sites
        # Behind a proxy every request is checked: the host that the proxy was asked for is in another field.
        self._known_hosts: Collection[str] = () if front.clients.behind else self.sites.known
        self.log = RequestLog(settings, front.clients, node.clock.now)
        self._most_requests = self.front.most_requests
        self._slow_s = self.log.slow_s
        self._logs_every = self.log.every
        self._now = node.clock.now
        self.mounts = front.mounts = Mounts(front)
        for each in load(settings) if mounts is None else mounts:
            self.mounts.add(each.mount, each.origin)
        front.concerns = concerns(front)
        self._hooks: tuple[Hook, ...] | None = None
        self._compose()
        front.rooms.subscribe(self.catalog.topics())
        node.agent.on_change(self._on_change)
        node.recorder.gauge(
            "http_connections_busy", lambda: len(self.connections.busy), "Connections with a request in progress."
        )
        node.recorder.gauge("http_body_bytes", lambda: self.bodies.held, "Bytes of request bodies held in memory.")
        node.recorder.gauge("websockets_open", lambda: len(front.sockets), "Open WebSockets.")

    def _on_change(self, change: Any) -> None:
        version = self.catalog.version
        self.catalog.on_change(change)
        if self.catalog.version != version:
            self._compose()
            self.front.rooms.subscribe(self.catalog.topics())

    def _compose(self) -> None:
        """Compose the chain of the concerns that are wanted now and the HTTP interceptors."""
        wanted = [each.hook for each in self.front.concerns if each.wanted is None or each.wanted()]
        intercepting = self.node.interceptors.hooks("http")
        hooks = (*wanted, *intercepting)
        if hooks == self._hooks:
            return
        self._hooks = hooks
        #: Whether code of applications, which may ask for `mesh.current()`, runs around the mounts.
        self._intercepted = bool(intercepting)
        #: Whether concerns of the edge or HTTP interceptors wrap the mounts.
        self._wrapped = bool(hooks)
        #: Answers a request that has passed the checks, inside of the edge and the HTTP interceptors. Every request of
        #: every mount goes through it. (Not a method, so that it costs nothing without interceptors.)
        self._answer: Callable[[Request], Awaitable[Answer]] = compose(
            wanted, _checked(compose(intercepting, self.mounts.serve), intercepting)
        )

    def make_server(self, **options: Any) -> Server:
        """The protocol factory for `loop.create_server`. Call it on the running loop."""
        return Server(
            # A Reply has the methods that aiohttp uses, without being a Response.
            cast(Any, self.handler),
            self.settings.gateway,
            self.front.clients,
            self.problems,
            self.node.recorder,
            request_factory=partial(RawRequest, loop=asyncio.get_running_loop()),
            # When the client disconnects, its request is cancelled, down to the worker's handler.
            handler_cancellation=True,
            # `Bodies` decompresses, within its limits.
            auto_decompress=False,
            access_log=None,
            logger=http_logger(self.node.recorder),
            keepalive_timeout=self.settings.gateway.keep_alive_s,
            lingering_time=LINGER_S,
            read_bufsize=READ_AHEAD_BYTES,
            max_line_size=self.settings.gateway.max_uri_bytes,
            max_field_size=field_bytes(self.settings.gateway),
            max_headers=self.settings.gateway.max_headers,
            **options,
        )

    async def handler(self, raw: RawRequest) -> Reply | StreamReply:
        """Answer one request of any kind. Raises only CancelledError."""
        protocol: Any = raw.protocol
        busy = self.connections.busy
        busy.add(protocol)
        request = Request(raw, self.front, self._now())
        reply: Any = None
        error: MeshError | None = None
        try:
            headers = raw.headers
            # Every request gets a trace, so that everything that it causes can be correlated.
            told = headers.get(_TRACEPARENT)
            trace = request.trace = (accept_trace(told) if told is not None else "") or new_trace()
            current_trace.set(trace)
            if self._intercepted or _TRACESTATE in headers or _BAGGAGE in headers:
                CURRENT.set(_context(raw, trace, told is not None))
            # The only place that decides which header lines every answer has.
            lines = b"traceparent: %b\r\n" % trace.encode()
            if _REQUEST_ID in headers:
                lines += read_request_id(headers[_REQUEST_ID])
            raw.lines = lines
            if _TRANSFER_ENCODING in headers or raw._message.upgrade:
                check_framing(raw)
            target = raw.raw_path
            request.path, _, request.query_string = target.partition("?")
            if target[:1] != "/" or "#" in target:
                self._read_odd_target(request)
            if (
                raw.version is not HttpVersion11
                or headers.get(_HOST) not in self._known_hosts
                or raw.method not in SAFE
                or raw._message.upgrade
            ):
                self._check(request)
            reply = await self._answer(request)
        except MeshError as exc:
            error = exc
            if request.challenges is not None and isinstance(exc, Unauthenticated):
                raw.lines += request.challenges(request)
            reply = self.problems.reply(exc, request.trace or None)
            if isinstance(exc, _CLOSING) or raw.method == "CONNECT" or raw._message.upgrade:
                # The rest of the body, the data for a tunnel or another protocol, or another version is not read.
                reply.keep_alive = False
        except Exception:
            _log.exception("gateway.failed", verb=raw.method, path=raw.raw_path[:200], mount=request.prefix or "/")
            error = Unforeseen()
            reply = self.problems.reply(error, request.trace or None)
        finally:
            busy.discard(protocol)
            protocol.heard = False
            if request.held:
                self.bodies.release(request)
            seconds = request.seconds or self._now() - request.began_at
            if (
                reply is None
                or seconds > self._slow_s
                or reply.status >= 500
                or error is not None
                or request.failure is not None
                or self._logs_every
            ):
                self._log_request(request, reply, seconds, error)
            if CURRENT.get() is not None:
                # The next request of the connection is answered in the same asyncio task.
                CURRENT.set(None)
        # The head of a stream has announced whether the connection stays open. If it does, the client may already be
        # sending its next request, which is then the one that ends the connection.
        if (self.health.draining or (self._most_requests and self._is_last(protocol))) and not reply.begun:
            reply.keep_alive = False
        return cast("Reply | StreamReply", reply)

    def _is_last(self, connection: Any) -> bool:
        """Count an answer; whether the connection has had as many as it may have."""
        connection.served += 1
        return bool(connection.served >= self._most_requests)

    def _check(self, request: Request) -> None:
        """Reject requests with another version of HTTP, for another host, or from a page of another site."""
        raw = request.raw
        version = raw.version
        if version not in _SPOKEN:
            raise UnsupportedVersion(f"HTTP/{version.major}.{version.minor} is not supported; send HTTP/1.1")
        sites = self.sites
        host = raw.headers.get(hdrs.HOST)
        if host not in sites.known:
            path, _, query = raw.raw_path.partition("?")
            if path not in PROBED or "verbose" in query:
                sites.check_host(host)
        forwarded = self.front.clients.host(raw)
        if forwarded:
            sites.check_host(forwarded)
        # A page of any site may open a WebSocket, with the cookies of this one.
        if raw.method not in SAFE or raw._message.upgrade:
            try:
                sites.check_origin(raw, lambda: request.entry.policy, forwarded)
            except CrossSite:
                raw.lines += b"Vary: Origin\r\n"
                raise

    def _read_odd_target(self, request: Request) -> None:
        """Path and query of a request target that is not a path: `http://host/path`, `*`."""
        check_target(request.raw.raw_path)
        if request.path == "*":
            request.query_string = ""
            return
        self.sites.check_target(request.raw)
        url = request.raw.rel_url
        request.path, request.query_string = url.raw_path or "/", url.raw_query_string

    def _log_request(
        self, request: Request, reply: Reply | StreamReply | Written | None, seconds: float, error: MeshError | None
    ) -> None:
        if reply is None:
            # The client has disconnected, and the handler was cancelled.
            self.log.write(request, 499, 0, seconds, None, slow=False)
            return
        size = len(reply.body) if isinstance(reply, Reply) else reply.size
        # Streams, and requests that wait for a job, may take long without being slow.
        slow = seconds > self._slow_s and isinstance(reply, Reply) and request.prefix != "/jobs"
        self.log.write(request, reply.status, size, seconds, error or request.failure, slow=slow)

    def status(self) -> dict[str, Any]:
        """The content of /mesh."""
        return status(self.front)

    def openapi(self) -> bytes:
        """The OpenAPI document."""
        return openapi(self.front)


#: A constant: `Reply | StreamReply` would be built for each request.
_ANSWERS: Final = (Reply, StreamReply, Written)


def _checked(chain: Proceed[Request], hooks: Sequence[Hook]) -> Callable[[Request], Awaitable[Answer]]:
    """The chain, with a check of what the outermost interceptor returns; the chain itself when there are none."""
    if not hooks:
        return chain

    async def answer(request: Request) -> Answer:
        found = await chain(request)
        if not isinstance(found, _ANSWERS):
            raise SetupError(f"an HTTP interceptor returned {type(found).__name__}; return a mesh.gateway.mounts.Reply")
        return found

    return answer


def _context(raw: RawRequest, trace: str, traced: bool) -> CallContext:
    """The context of a request: what all work that it causes inherits.

    Args:
        traced: the request has a traceparent; a tracestate without one is dropped (W3C Trace Context, section 4.3).
    """
    headers = raw.headers
    meta: dict[str, str] = {}
    if traced and (states := headers.getall(_TRACESTATE, ())):
        meta[TRACESTATE] = ",".join(states)
    if lists := headers.getall(_BAGGAGE, ()):
        meta[BAGGAGE] = ",".join(lists)
    path = raw.raw_path.partition("?")[0]
    return PlainContext(f"{raw.method} {path[:200]}", trace=trace, carried=take(meta))
