"""Forwards one request to an HTTP server, and its answer back to the client.

Owns: the target, streaming of both bodies, time limits, further attempts, and the errors of a server that does not
answer.
Leaves to others: choosing the server (upstreams), header fields (forward_headers), WebSockets (tunnel), writing the
answer (transfer), which requests are forwarded (mounts.proxy).

A request is parsed, and written anew: how the client has framed it never reaches the upstream, so the two cannot
disagree about where it ends. Neither body is ever in memory as a whole.

::

    upstreams = Upstreams(["http://127.0.0.1:9000"], settings, node.clock.now)
    forwarder = Forwarder(front, upstreams, settings)
    answer = await forwarder.forward(request)           # in the handler of a mount
    await upstreams.replace(["http://127.0.0.1:9001"])  # at any time
    await upstreams.close()
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final, NamedTuple

import aiohttp
from aiohttp import hdrs
from multidict import CIMultiDict
from yarl import URL

from mesh.config.edge_proxy import ProxySettings
from mesh.errors import BadRequest, MeshError, MethodNotAllowed, Uncertain
from mesh.gateway.body_stream import BodyStream
from mesh.gateway.forward_headers import (
    Facts,
    for_client,
    for_upstream,
    lines_of,
    own_names,
    rewrite_cookie,
    rewrite_location,
)
from mesh.gateway.front import Front
from mesh.gateway.media import SSE_TYPE
from mesh.gateway.paths import decode_segment
from mesh.gateway.reply import HeadOnly, Reply
from mesh.gateway.request import TIMEOUT, Request
from mesh.gateway.routes import VERBS
from mesh.gateway.transfer import Transfer, Written
from mesh.gateway.tunnel import is_websocket, tunnel
from mesh.gateway.upstreams import Upstream, Upstreams
from mesh.telemetry.traces import child

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_REFUSED: Final = frozenset({"CONNECT", "TRACE"})
#: Answers up to this size that have arrived with their heads are sent in one piece.
_WHOLE_BYTES: Final = 64 * 1024


class BadGateway(Uncertain):
    """The server that a request was forwarded to could not be reached, or its answer could not be read."""

    code = "bad_gateway"


class UpstreamTimeout(Uncertain):
    """The server that a request was forwarded to could not be reached in time, or did not answer in time."""

    code = "upstream_timeout"
    status = 504


class _Again(Exception):
    """The request may be sent to another server.

    Attributes:
        sent: some of the request may have reached the server.
    """

    def __init__(self, error: MeshError, *, sent: bool) -> None:
        super().__init__(error)
        self.error = error
        self.sent = sent


class Outgoing(NamedTuple):
    """A request as it is sent on.

    Attributes:
        path, query: percent-encoded, as received.
        asked_host: the Host field as received.
    """

    path: str
    query: str
    asked_host: str
    prefix: str


class Forwarder:
    """Forwards requests to the servers of one list.

    Args:
        upstreams: the list; whoever makes it closes it.
        prefix: of the mount: `settings.strip` removes it, and `settings.rewrite` adds it.
    """

    def __init__(self, front: Front, upstreams: Upstreams, settings: ProxySettings, prefix: str = "") -> None:
        self._front = front
        self._upstreams = upstreams
        self._settings = settings
        self._prefix = prefix.rstrip("/") if settings.strip else ""
        self._timeout_s = settings.timeout_s or front.timeout_s
        self._max_body = settings.max_body_bytes or front.bodies.most

    async def forward(self, request: Request) -> Reply | Written:
        """Send a request on, and its answer to the client.

        Raises:
            BadRequest: the target may leave the prefix, or the request cannot be forwarded.
            TooLarge, SlowBody, BadBody, BodiesFull: as for other bodies.
            BadGateway, UpstreamTimeout: no server has answered.
            Unavailable, Overloaded: no server may be asked.
        """
        raw = request.raw
        if raw.method in _REFUSED:
            raise MethodNotAllowed(f"{raw.method} is not forwarded", details={"allow": ", ".join(VERBS)})
        outgoing = self._outgoing(request)
        websocket = is_websocket(raw)
        body: BodyStream | None = None
        if raw.body_exists and not websocket:
            timeout = request.remaining_s if TIMEOUT in raw.headers else None
            body = self._front.bodies.stream(request, max_bytes=self._max_body, timeout=timeout, decode=False)
        again = self._settings.retries if raw.method in _SAFE and body is None and not websocket else 0
        tried: list[Upstream] = []
        failure: MeshError | None = None
        while True:
            try:
                upstream = self._upstreams.choose(tried)
            except MeshError:
                if failure is not None:
                    raise failure from None
                raise
            upstream.in_flight += 1
            try:
                if websocket:
                    return await self._tunnel(request, upstream, outgoing)
                return await self._attempt(request, upstream, outgoing, body)
            except _Again as exc:
                failure = exc.error
                if exc.sent:
                    if not again:
                        raise failure from exc
                    # The connection had been idle, and the server closed it: it may be tried again itself.
                    again -= 1
                else:
                    tried.append(upstream)
            finally:
                await upstream.release()

    # --- the request ------------------------------------------------------------------------------

    def _outgoing(self, request: Request) -> Outgoing:
        path = request.path
        check_path(path)
        if self._prefix:
            path = path[len(self._prefix) :] or "/"
        return Outgoing(path, request.query_string, request.raw.headers.get(hdrs.HOST, ""), self._prefix)

    def _url(self, upstream: Upstream, outgoing: Outgoing) -> URL:
        base = upstream.base
        return URL.build(
            scheme=base.scheme,
            authority=base.raw_authority,
            path=base.raw_path.rstrip("/") + outgoing.path,
            query_string=outgoing.query,
            encoded=True,
        )

    def _headers(self, request: Request, upstream: Upstream, outgoing: Outgoing) -> CIMultiDict[str]:
        raw = request.raw
        transport = raw.transport
        identity = request.identity
        principal = (self._settings.principal, identity.principal if identity is not None else "")
        return for_upstream(
            raw.headers,
            Facts(
                host=outgoing.asked_host
                if self._settings.host == "client" and outgoing.asked_host
                else _host(upstream),
                peer=raw.remote or "",
                trusted=self._front.clients.is_proxy(raw.remote or ""),
                secure=transport is not None and transport.get_extra_info("sslcontext") is not None,
                asked_host=outgoing.asked_host,
                prefix=outgoing.prefix,
                traceparent=child(request.trace),
                request_id=_request_id(request),
                timeout_ms=max(1, int(request.remaining_s * 1000)) if TIMEOUT in raw.headers else None,
                principal=principal if principal[0] else ("", ""),
            ),
        )

    async def _attempt(
        self, request: Request, upstream: Upstream, outgoing: Outgoing, body: BodyStream | None
    ) -> Reply | Written:
        headers = self._headers(request, upstream, outgoing)
        upload = None
        if body is not None:
            upload = _Upload(body)
            if body.length is not None:
                headers[hdrs.CONTENT_LENGTH] = str(body.length)
        response = await self._ask(request, upstream, outgoing, headers, upload)
        try:
            return await self._relay(request, response, upload)
        finally:
            # No effect when the answer was read to its end: then its connection is in the pool already.
            response.close()

    async def _ask(
        self,
        request: Request,
        upstream: Upstream,
        outgoing: Outgoing,
        headers: CIMultiDict[str],
        upload: _Upload | None,
    ) -> aiohttp.ClientResponse:
        """Send the request, and wait for the head of the answer."""
        settings = self._settings
        verb = request.raw.method
        limit_s = min(self._timeout_s, request.remaining_s) if TIMEOUT in request.raw.headers else self._timeout_s
        try:
            async with asyncio.timeout(limit_s) as limit:
                if upload is not None:
                    upload.watch(limit, limit_s)
                response = await upstream.session.request(
                    verb,
                    self._url(upstream, outgoing),
                    headers=headers,
                    data=upload.chunks() if upload is not None else None,
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(
                        total=None,
                        sock_connect=settings.connect_timeout_s,
                        sock_read=max(settings.idle_timeout_s, self._timeout_s),
                    ),
                )
        except aiohttp.ConnectionTimeoutError as exc:
            self._upstreams.failed(upstream)
            timeout = UpstreamTimeout(f"{upstream.address}: no connection within {settings.connect_timeout_s:g} s")
            timeout.retryable = True
            raise _Again(timeout, sent=False) from exc
        except aiohttp.ClientConnectorError as exc:
            self._upstreams.failed(upstream)
            error = BadGateway(f"{upstream.address}: no connection: {exc.os_error.strerror or exc}")
            error.retryable = True
            raise _Again(error, sent=False) from exc
        except TimeoutError as exc:
            if upload is not None and upload.error is not None:
                raise upload.error from exc
            raise UpstreamTimeout(f"{upstream.address}: no answer within {limit_s:g} s") from exc
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionError) as exc:
            if upload is not None and upload.error is not None:
                raise upload.error from exc
            error = BadGateway(f"{upstream.address}: the connection ended before the answer: {exc}")
            raise _Again(error, sent=True) from exc
        except (aiohttp.ClientError, ValueError) as exc:
            if upload is not None and upload.error is not None:
                raise upload.error from exc
            raise BadGateway(
                f"{upstream.address}: the answer cannot be read: {type(exc).__name__}: {exc}"[:500]
            ) from exc
        finally:
            if upload is not None:
                upload.watch(None, 0.0)
        self._upstreams.succeeded(upstream)
        return response

    # --- the answer -------------------------------------------------------------------------------

    def _fields(self, request: Request, response: aiohttp.ClientResponse) -> list[tuple[bytes, bytes]]:
        fields = for_client(response.raw_headers, own_names(request.raw.lines))
        if not self._settings.rewrite:
            return fields
        base = str(response.url.origin())
        rewritten = []
        for name, value in fields:
            lower = name.lower()
            if lower in (b"location", b"content-location"):
                value = rewrite_location(value, base, self._prefix)
            elif lower == b"set-cookie":
                value = rewrite_cookie(value, self._prefix)
            rewritten.append((name, value))
        return rewritten

    async def _relay(
        self, request: Request, response: aiohttp.ClientResponse, upload: _Upload | None
    ) -> Reply | Written:
        raw = request.raw
        status = response.status
        lines = lines_of(self._fields(request, response))
        content = response.content
        keep_alive = upload is None or upload.at_end
        if raw.method == "HEAD" or status in (204, 304):
            head = HeadOnly(_length(response) if raw.method == "HEAD" else None, "", status, lines)
            head.keep_alive = keep_alive
            return head
        if content.is_eof() and content.total_bytes <= _WHOLE_BYTES:
            reply = Reply(content.read_nowait(-1), "", status, lines)
            reply.keep_alive = keep_alive
            return reply
        transfer = Transfer(
            raw,
            status,
            lines,
            _length(response),
            keep_alive=keep_alive and not self._front.health.draining,
            stall_s=self._settings.idle_timeout_s,
        )
        # A client that names a time for the answer means all of it.
        limit = asyncio.timeout(request.remaining_s if TIMEOUT in raw.headers else None)
        address = str(response.url.origin())
        streams = self._front.connections.streams
        leaving = _Leaving() if response.content_type == SSE_TYPE else None
        if leaving is not None:
            streams.add(leaving)
        try:
            async with limit:
                while True:
                    chunk = content.read_nowait(-1)
                    if not chunk:
                        if content.at_eof():
                            break
                        # The head goes out at once: the first piece may take long, as with events.
                        transfer.start()
                        chunk = await content.readany()
                    if chunk:
                        await transfer.write(chunk)
            transfer.end()
        except TimeoutError:
            request.failure = UpstreamTimeout(f"{address}: the answer did not end in time")
            transfer.fail()
        except (aiohttp.ClientError, ValueError) as exc:
            if upload is not None and upload.error is not None:
                request.failure = upload.error
            else:
                request.failure = BadGateway(f"{address}: the answer broke off: {exc}")
            transfer.fail()
        except ConnectionError:
            # The client disconnected, or does not read: no error can be sent.
            transfer.fail()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if leaving is None or not leaving.left or task is None or task.uncancel():
                raise
            # Its client reconnects, to another gateway.
            transfer.end()
        finally:
            if leaving is not None:
                streams.discard(leaving)
        return transfer

    async def _tunnel(self, request: Request, upstream: Upstream, outgoing: Outgoing) -> Reply | Written:
        headers = self._headers(request, upstream, outgoing)
        headers["Connection"] = "Upgrade"
        headers["Upgrade"] = "websocket"
        response = await self._ask(request, upstream, outgoing, headers, None)
        try:
            if response.status != 101:
                return await self._relay(request, response, None)
            return await tunnel(
                self._front,
                request,
                response,
                lines_of(self._fields(request, response)),
                self._settings.idle_timeout_s,
            )
        finally:
            response.close()


class _Leaving:
    """Ends forwarded Server-Sent Events when the gateway drains.

    Attributes:
        left: it has cancelled the task that forwards them.
    """

    def __init__(self) -> None:
        self.left = False
        self._task = asyncio.current_task()

    def leave(self) -> None:
        """End the answer."""
        if not self.left and self._task is not None:
            self.left = True
            self._task.cancel()


class _Upload:
    """The body of a forwarded request, as aiohttp's client takes it.

    Attributes:
        error: why reading it failed; aiohttp does not tell.
    """

    def __init__(self, body: BodyStream) -> None:
        self._body = body
        self.error: MeshError | None = None
        self._limit: asyncio.Timeout | None = None
        self._limit_s = 0.0

    @property
    def at_end(self) -> bool:
        """Whether the whole body has been read from the client."""
        return self._body.at_end

    def watch(self, limit: asyncio.Timeout | None, limit_s: float) -> None:
        """Move a time limit of `limit_s` with every chunk: the time for the answer begins after the last one."""
        self._limit, self._limit_s = limit, limit_s

    def _move(self, *, waits: bool) -> None:
        if self._limit is not None and not self._limit.expired():
            # While the gateway waits for the client, the body's own limits apply.
            self._limit.reschedule(None if waits else asyncio.get_running_loop().time() + self._limit_s)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The chunks, to be iterated once.

        Raises:
            MeshError: the body cannot be read; also in `error`.
        """
        try:
            while True:
                self._move(waits=True)
                chunk = await anext(self._body, b"")
                self._move(waits=False)
                if not chunk:
                    return
                yield chunk
        except MeshError as exc:
            self.error = exc
            raise


def check_path(path: str) -> None:
    """Check that a path cannot leave the prefix of its mount, however the upstream decodes it.

    Raises:
        BadRequest: a segment is "." or ".." once decoded, or a character is not allowed in a path.
    """
    if not path.isascii() or not path.isprintable() or " " in path or "#" in path:
        raise BadRequest("the path holds a character that must be percent-encoded", details={"path": "path"})
    if "/." not in path and "%" not in path and "\\" not in path:
        return
    for part in path.split("/"):
        decoded = decode_segment(part)
        if "\0" in decoded or any(
            each.partition(";")[0] in (".", "..") for each in decoded.replace("\\", "/").split("/")
        ):
            raise BadRequest(
                f'path: {part[:80]!a} is not forwarded: a segment may not be "." or "..", nor hold NUL, even '
                "percent-encoded",
                details={"path": "path"},
            )


def _host(upstream: Upstream) -> str:
    base = upstream.base
    return base.raw_authority.rpartition("@")[2] or "localhost"


def _request_id(request: Request) -> str:
    told = request.raw.headers.get("X-Request-Id", "")
    return (
        told
        if 0 < len(told) <= 128 and told.isascii() and told.isprintable() and " " not in told
        else request.trace[3:35]
    )


def _length(response: aiohttp.ClientResponse) -> int | None:
    """The Content-Length of an answer that has one, and no other framing."""
    told = response.headers.get(hdrs.CONTENT_LENGTH, "")
    if hdrs.TRANSFER_ENCODING in response.headers or not told.isdecimal() or len(told) > 18:
        return None
    return int(told)
