"""Answers HTTP requests.

Owns: the order of the steps: find the page, method or route, set deadline and trace, make the call, write the answer or
the problem, and count it.
Leaves to others: each of these steps (the modules imported here), sockets and signals (app), HTTP itself (aiohttp).

The path of a plain GET is kept short: no extra task, no timer (the node has the deadline), no multi-dict of headers,
one write.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Final, cast
from urllib.parse import unquote

from aiohttp import hdrs
from aiohttp.http import HttpVersion10, HttpVersion11
from multidict import istr

from mesh.config import Settings
from mesh.errors import (
    BadArguments,
    Draining,
    MeshError,
    MethodNotAllowed,
    TooLarge,
    Unavailable,
    UnknownRoute,
    UnknownService,
)
from mesh.gateway.admission import Server, UnsupportedVersion
from mesh.gateway.answers import to_reply
from mesh.gateway.binding import Binding, Call, relocate
from mesh.gateway.body import Bodies, BodiesFull, Request, SlowBody
from mesh.gateway.catalog import Catalog, Target
from mesh.gateway.clients import Clients
from mesh.gateway.connections import Connections
from mesh.gateway.headers import read_request_id, read_timeout
from mesh.gateway.health import Health
from mesh.gateway.jobs import Jobs
from mesh.gateway.malformed import http_logger
from mesh.gateway.media import STREAM_TYPES, Kind, accepts, kind_of, stream_form, wants_msgpack
from mesh.gateway.pages import OWN, Pages
from mesh.gateway.ports import MethodStats, Node
from mesh.gateway.problems import Problems, Unforeseen
from mesh.gateway.reply import Reply
from mesh.gateway.request_log import RequestLog
from mesh.gateway.routes import VERBS, Route
from mesh.gateway.sites import SAFE, Sites
from mesh.gateway.sse import END_ID, StreamReply
from mesh.protocol.messages import ANSWER, MSGPACK, MSGPACK_ANSWER, RECONNECTS
from mesh.telemetry.logs import get_logger
from mesh.telemetry.traces import accept as accept_trace
from mesh.telemetry.traces import current as current_trace
from mesh.telemetry.traces import root as new_trace

_log = get_logger(__name__)

_HOST: Final = hdrs.HOST
_TIMEOUT: Final = istr("X-Request-Timeout")
_TRACEPARENT: Final = istr("traceparent")
_REQUEST_ID: Final = istr("X-Request-Id")
_LAST_EVENT_ID: Final = istr("Last-Event-ID")
_IDEMPOTENCY_KEY: Final = istr("Idempotency-Key")
_READABLE: Final = frozenset({"GET", "HEAD"})

_SPOKEN: Final = frozenset({HttpVersion10, HttpVersion11})

#: Answered for any host name: load balancers and supervisors request them by address. With `?verbose` the answers name
#: services and processes, and the host name must be this gateway's.
_PROBED: Final = frozenset({"/livez", "/readyz"})

#: How long an idle keep-alive connection is kept open: longer than the usual 60 s of a proxy in front, so that it is
#: the proxy that closes it.
KEEP_ALIVE_S: Final = 75.0

#: How long to discard the unread rest of a body, so that the client can read its answer before the connection closes.
LINGER_S: Final = 1.0


class Gateway:
    """One HTTP front end. `make_server` creates the `web.Server`, which calls `handler`."""

    def __init__(self, node: Node, settings: Settings) -> None:
        limits = settings.gateway
        self.node = node
        self.settings = settings
        self.catalog = Catalog(node.table, settings.gateway.rpc)
        self.health = Health(node.agent, settings.mesh.run_dir)
        self._pages = Pages(node, settings, self.catalog, self.health)
        self.connections = Connections()
        self.sites = Sites(settings)
        self._hosts = self.sites.known
        self.problems = Problems(debug=limits.debug)
        self.jobs = Jobs(node.durable, self.catalog, debug=limits.debug)
        self._clients = Clients(limits.proxies)
        self.log = RequestLog(settings, self._clients, node.clock.now)
        self._slow_s = self.log.slow_s
        self._logs_every = self.log.every
        self._timeout_s = settings.gateway.timeout_s
        self.bodies = Bodies(limits.max_body_bytes, limits.max_body_total_bytes, limits.min_body_rate_bytes)
        self._stats: dict[str, MethodStats] = {}
        self._now = node.clock.now
        self._certain = False
        node.agent.on_change(self.catalog.on_change)
        node.recorder.gauge(
            "http_connections_busy", lambda: len(self.connections.busy), "Connections with a request in hand."
        )
        node.recorder.gauge("http_body_bytes", lambda: self.bodies.held, "Bytes of request bodies held in memory.")

    def make_server(self, **options: Any) -> Server:
        """The protocol factory for `loop.create_server`. Call it on the running loop."""
        return Server(
            # A Reply has the methods that aiohttp uses, without being a Response.
            cast(Any, self.handler),
            self.settings.gateway,
            self._clients,
            self.problems,
            self.node.recorder,
            request_factory=partial(Request, loop=asyncio.get_running_loop()),
            # When the client disconnects, its request is cancelled, down to the worker's handler.
            handler_cancellation=True,
            # `Bodies` decompresses, within its limits.
            auto_decompress=False,
            access_log=None,
            logger=http_logger(self.node.recorder),
            keepalive_timeout=KEEP_ALIVE_S,
            lingering_time=LINGER_S,
            **options,
        )

    async def handler(self, request: Request) -> Reply | StreamReply:
        """Answer one request of any kind. Raises only CancelledError."""
        protocol: Any = request.protocol
        busy = self.connections.busy
        busy.add(protocol)
        request.began_at = self._now()
        extra = b""
        trace: str | None = None
        reply: Reply | StreamReply | None = None
        error: MeshError | None = None
        try:
            headers = request.headers
            # Every request gets a trace, so that everything that it causes can be correlated.
            told = headers.get(_TRACEPARENT)
            trace = (accept_trace(told) if told is not None else "") or new_trace()
            current_trace.set(trace)
            extra = b"traceparent: %b\r\n" % trace.encode()
            if _REQUEST_ID in headers:
                extra += read_request_id(headers[_REQUEST_ID])
            if self.sites.shares:
                extra += self.sites.shared(request)
            if (
                request.version is not HttpVersion11
                or headers.get(_HOST) not in self._hosts
                or request.method not in SAFE
            ):
                self._check(request)
            reply = await self._answer(request, trace, extra)
        except MeshError as exc:
            error = exc
            reply = self.problems.reply(exc, trace)
            if isinstance(exc, (TooLarge, SlowBody, BodiesFull)) or request.method == "CONNECT":
                # The rest of the body, or the data for the tunnel, is not read.
                reply.keep_alive = False
            reply.extra += extra
        except Exception:
            _log.exception("a request failed", verb=request.method, path=request.raw_path[:200])
            error = Unforeseen()
            reply = self.problems.reply(error, trace)
            reply.extra += extra
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
        if self.health.draining:
            reply.keep_alive = False
        return reply

    def _check(self, request: Request) -> None:
        """Reject requests with another version of HTTP, for another host, or from a page of another site."""
        version = request.version
        if version not in _SPOKEN:
            raise UnsupportedVersion(f"HTTP/{version.major}.{version.minor} is not spoken here; send HTTP/1.1")
        sites = self.sites
        host = request.headers.get(hdrs.HOST)
        if host not in sites.known:
            path, _, query = request.raw_path.partition("?")
            if path not in _PROBED or "verbose" in query:
                sites.check_host(host)
        if request.method not in SAFE:
            sites.check_origin(request)

    def _log_request(
        self, request: Request, reply: Reply | StreamReply | None, seconds: float, error: MeshError | None
    ) -> None:
        if reply is None:
            # The client has disconnected, and the handler was cancelled.
            self.log.write(request, 499, 0, seconds, None, slow=False)
            return
        size = reply.size if isinstance(reply, StreamReply) else len(reply.body)
        # Streams, and requests that wait for a job, may take long without being slow.
        slow = seconds > self._slow_s and isinstance(reply, Reply) and not request.raw_path.startswith("/jobs/")
        self.log.write(request, reply.status, size, seconds, error or request.failure, slow=slow)

    # --- which address --------------------------------------------------------------------------

    async def _answer(self, request: Request, trace: str, extra: bytes) -> Reply | StreamReply:
        path, _, query = request.raw_path.partition("?")
        if not path.startswith("/"):
            if path != "*":
                self.sites.check_target(request)
            path, query = _odd_form(request, path)
        if path in OWN:
            reply = await self._pages.answer(request, path, query)
            reply.extra += extra
            return reply
        verb = request.method
        if path.startswith("/rpc/"):
            return await self._rpc(request, path, query, trace, extra)
        if path.startswith(("/tasks/", "/jobs/")):
            reply = await self._durable(request, path, query)
            reply.extra += extra
            return reply
        if verb == "OPTIONS":
            allow = ", ".join(VERBS) if path == "*" else self.catalog.routes.allow(path)
            return Reply(status=204, extra=b"Allow: %b\r\n%b" % (allow.encode(), extra))
        try:
            route, values = self.catalog.routes.find(verb, path)
        except UnknownRoute:
            if path == "/" and verb in _READABLE:
                return Reply(status=302, extra=b"Location: /docs\r\n" + extra)
            if not self._may_say_unknown():
                raise Unavailable("no hub has told yet which routes there are") from None
            raise
        if route.stream is not None and accepts(request.headers.get(hdrs.ACCEPT), STREAM_TYPES):
            route = route.stream
        return await self._call(request, route, values, query, trace, extra)

    def _may_say_unknown(self) -> bool:
        """Whether "no such route" is certain: only after some hub has a complete registry."""
        self._certain = self._certain or self.node.table.certain
        return self._certain

    # --- tasks ----------------------------------------------------------------------------------

    async def _durable(self, request: Request, path: str, query: str) -> Reply:
        verb = request.method
        if path.startswith("/jobs/"):
            return await self.jobs.job(verb, path[6:], query, msgpack=wants_msgpack(request.headers.get(hdrs.ACCEPT)))
        try:
            service, name, record = self.jobs.task(path[7:])
        except UnknownService:
            if not self._may_say_unknown():
                raise Unavailable("no hub has told yet which services there are") from None
            raise
        if verb != "POST":
            allow = "POST, OPTIONS"
            if verb == "OPTIONS":
                return Reply(status=204, extra=b"Allow: %b\r\n" % allow.encode())
            raise MethodNotAllowed(f"{verb} {path}: tasks are deferred with POST", details={"allow": allow})
        target = f"{service}.{name}"
        stats = self.node.recorder.method("http", service, name)
        code = "cancelled"
        request.target = target
        began_at = self._now()
        stats.begin()
        try:
            body = await self._body(request, None)
            idempotency = request.headers.getall(_IDEMPOTENCY_KEY, ())
            reply = await self.jobs.defer(target, record, query, body, self._kind(request), idempotency)
            code = ""
            return reply
        except MeshError as exc:
            code = exc.code
            raise
        finally:
            stats.end(self._now() - began_at, code)

    # --- calls ----------------------------------------------------------------------------------

    async def _rpc(self, request: Request, path: str, query: str, trace: str, extra: bytes) -> Reply | StreamReply:
        service, slash, method = path[5:].partition("/")
        if not slash or not method or "/" in method:
            raise UnknownRoute(f"{path}: call a method with POST /rpc/SERVICE/METHOD")
        if request.method != "POST":
            allow = "POST, OPTIONS"
            if request.method == "OPTIONS":
                return Reply(status=204, extra=b"Allow: %b\r\n%b" % (allow.encode(), extra))
            raise MethodNotAllowed(f"{request.method} {path}: methods are called with POST", details={"allow": allow})
        try:
            target = self.catalog.target(unquote(service), unquote(method))
        except UnknownService:
            if not self._may_say_unknown():
                raise Unavailable("no hub has told yet which services there are") from None
            raise
        return await self._call(request, target, None, query, trace, extra)

    async def _call(
        self,
        request: Request,
        to: Route | Target,
        values: list[str] | None,
        query: str,
        trace: str,
        extra: bytes,
    ) -> Reply | StreamReply:
        """Make the call and count it. `values` are the parameters in a route's path; None for /rpc."""
        stats = self._stats.get(to.target)
        if stats is None:
            stats = self._stats[to.target] = self.node.recorder.method("http", to.service, to.name)
        code = "cancelled"
        request.target = to.target
        stats.begin()
        try:
            headers = request.headers
            told = headers.get(_TIMEOUT)
            timeout = read_timeout(told) if told is not None else to.method.timeout_s
            body, encoding = await self._bind(request, to, values, query, timeout)
            msgpack = wants_msgpack(headers.get(hdrs.ACCEPT))
            if to.method.stream:
                reply, code = await self._stream(request, to, body, encoding, timeout, trace, extra)
                return reply
            answer = await self.node.call_raw(
                to.target,
                body,
                encoding,
                timeout=timeout if timeout is not None else self._timeout_s,
                # Ask the worker for MessagePack: converting JSON here would lose bytes, integer keys and NaN.
                meta={ANSWER: MSGPACK_ANSWER} if msgpack and encoding != MSGPACK else None,
                trace=trace,
                idempotent=to.idempotent,
            )
            answered = to_reply(answer, to.status, to.produces, msgpack=msgpack)
            answered.extra += extra
            code = ""
            return answered
        except MeshError as exc:
            code = exc.code
            relocate(exc, to.binding)
            raise
        except Exception:
            code = Unforeseen.code
            raise
        finally:
            seconds = request.seconds = self._now() - request.began_at
            stats.end(seconds, code)

    async def _bind(
        self, request: Request, to: Route | Target, values: list[str] | None, query: str, timeout: float | None
    ) -> Call:
        binding = to.binding
        if isinstance(binding, Binding) and not binding.reads_body and not query:
            return binding.bind(values or [], query)
        body = await self._body(request, timeout) if not isinstance(binding, Binding) or binding.reads_body else b""
        try:
            if isinstance(binding, Binding):
                return binding.bind(values or [], query, body, self._kind(request))
            return binding.bind(query, body, self._kind(request))
        except RecursionError:
            raise BadArguments("the arguments are nested too deeply to be read", details={"path": "$"}) from None

    async def _body(self, request: Request, timeout: float | None) -> bytes:
        return await self.bodies.read(request, timeout if timeout is not None else self._timeout_s)

    @staticmethod
    def _kind(request: Request) -> Kind:
        return kind_of(request.headers.get(hdrs.CONTENT_TYPE))

    async def _stream(
        self,
        request: Request,
        to: Route | Target,
        body: bytes,
        encoding: int,
        timeout: float | None,
        trace: str,
        extra: bytes,
    ) -> tuple[Reply | StreamReply, str]:
        """Write a stream to its end; returns the answer, and the error code to count."""
        form = stream_form(request.headers.get(hdrs.ACCEPT), binary=to.method.binary, produces=to.produces)
        reply = StreamReply(
            request,
            self.node.clock,
            form,
            status=to.status,
            produces=to.produces,
            extra=extra,
            keep_alive=not self.health.draining,
            problems=self.problems,
        )
        streams = self.connections.streams
        try:
            if request.method == "HEAD":
                return reply.head_only(), ""
            if form == "sse" and request.headers.get(_LAST_EVENT_ID) == END_ID:
                return reply.over(), ""
            streams.add(reply)
            # Without an explicit timeout a stream has the node's default for streams.
            meta = {RECONNECTS: "1"} if form == "sse" else None
            items = self.node.stream_raw(to.target, body, encoding, timeout=timeout, meta=meta, trace=trace)
            try:
                async for answer in items:
                    await reply.item(answer)
            finally:
                await items.aclose()
            reply.end()
        except ConnectionError:
            # The client disconnected while the gateway waited for it to read: no error can be sent.
            return reply, "cancelled"
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not reply.left or task is None or task.uncancel():
                raise
            return reply, Draining.code
        except Exception as exc:
            if not reply.begun:
                raise
            error = exc
            if not isinstance(error, MeshError):
                _log.exception("a stream failed", target=to.target)
                error = Unforeseen()
            request.failure = error
            reply.fail(error, trace)
            return reply, error.code
        finally:
            streams.discard(reply)
            reply.stop()
        return reply, ""

    def status(self) -> dict[str, Any]:
        """The content of /mesh."""
        return self._pages.status()

    def openapi(self) -> bytes:
        """The OpenAPI document."""
        return self._pages.openapi()


def _odd_form(request: Request, target: str) -> tuple[str, str]:
    """Path and query of a request target that is not a path: `http://host/path`, `*`."""
    if target == "*":
        return target, ""
    url = request.rel_url
    return url.raw_path or "/", url.raw_query_string
