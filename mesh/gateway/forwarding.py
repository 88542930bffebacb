"""Forwards one request to an HTTP server, and its answer back to the client.

Owns: sending the request, time limits, further attempts, and the errors of a server that does not answer.
Leaves to others: choosing the server (upstreams), the target (forward_target), header fields (forward_headers), the
body (forward_upload), the answer (forward_answer), WebSockets (tunnel), which requests are forwarded (mounts.proxy).

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
from typing import Final
from urllib.parse import quote

import aiohttp
from aiohttp import hdrs
from multidict import CIMultiDict

from mesh.config.edge_proxy import ProxySettings
from mesh.errors import MeshError, MethodNotAllowed
from mesh.gateway.body_stream import BodyStream
from mesh.gateway.forward_answer import Answers
from mesh.gateway.forward_errors import BadGateway, UpstreamTimeout
from mesh.gateway.forward_headers import Facts, for_upstream
from mesh.gateway.forward_target import Target, target_of
from mesh.gateway.forward_upload import Upload
from mesh.gateway.front import Front
from mesh.gateway.reply import Reply
from mesh.gateway.request import TIMEOUT, Request
from mesh.gateway.routes import VERBS
from mesh.gateway.transfer import Written
from mesh.gateway.tunnel import is_websocket, tunnel
from mesh.gateway.upstreams import Upstream, Upstreams
from mesh.telemetry.traces import child

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
#: Characters of a principal that are sent as they are: printable ASCII but the space and "%".
_PLAIN: Final = "!\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"
_REFUSED: Final = frozenset({"CONNECT", "TRACE"})


class _Again(Exception):
    """The request may be sent to another server.

    Attributes:
        sent: some of the request may have reached the server.
    """

    def __init__(self, error: MeshError, *, sent: bool) -> None:
        super().__init__(error)
        self.error = error
        self.sent = sent


class Forwarder:
    """Forwards requests to the servers of one list.

    Args:
        upstreams: the list, which the caller closes.
        prefix: of the mount: `settings.strip` removes it, and `settings.rewrite` adds it.
    """

    def __init__(self, front: Front, upstreams: Upstreams, settings: ProxySettings, prefix: str = "") -> None:
        self._front = front
        self._upstreams = upstreams
        self._settings = settings
        self._prefix = prefix.rstrip("/") if settings.strip else ""
        self._answers = Answers(front, settings, self._prefix)
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
        target = target_of(request, self._prefix)
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
                    return await self._tunnel(request, upstream, target)
                return await self._attempt(request, upstream, target, body)
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

    def _headers(self, request: Request, upstream: Upstream, target: Target) -> CIMultiDict[str]:
        raw = request.raw
        transport = raw.transport
        name, identity = self._settings.principal, request.identity
        # Percent-encoded: the subject of a token may hold anything, a line break too.
        told = quote(identity.principal, safe=_PLAIN) if name and identity is not None else ""
        return for_upstream(
            raw.headers,
            Facts(
                host=target.host if self._settings.host == "client" and target.host else upstream.host,
                peer=raw.remote or "",
                trusted=self._front.clients.is_proxy(raw.remote or ""),
                secure=transport is not None and transport.get_extra_info("sslcontext") is not None,
                asked_host=target.host,
                prefix=target.prefix,
                traceparent=child(request.trace),
                request_id=_request_id(request),
                timeout_ms=max(1, int(request.remaining_s * 1000)) if TIMEOUT in raw.headers else None,
                principal=(name, told),
            ),
        )

    async def _attempt(
        self, request: Request, upstream: Upstream, target: Target, body: BodyStream | None
    ) -> Reply | Written:
        headers = self._headers(request, upstream, target)
        upload = None
        if body is not None:
            upload = Upload(body)
            if body.length is not None:
                headers[hdrs.CONTENT_LENGTH] = str(body.length)
        response = await self._ask(request, upstream, target, headers, upload)
        try:
            if response.status < 200:
                raise BadGateway(f"{upstream.address}: status {response.status} in answer to a plain request")
            return await self._answers.relay(request, response, upload)
        finally:
            # No effect when the answer was read to its end: then its connection is in the pool already.
            response.close()

    async def _ask(
        self,
        request: Request,
        upstream: Upstream,
        target: Target,
        headers: CIMultiDict[str],
        upload: Upload | None,
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
                    target.url(upstream.base),
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

    async def _tunnel(self, request: Request, upstream: Upstream, target: Target) -> Reply | Written:
        headers = self._headers(request, upstream, target)
        headers["Connection"] = "Upgrade"
        headers["Upgrade"] = "websocket"
        response = await self._ask(request, upstream, target, headers, None)
        try:
            if response.status != 101:
                return await self._answers.relay(request, response, None)
            return await tunnel(
                self._front,
                request,
                response,
                self._answers.lines(request, response),
                self._settings.idle_timeout_s,
            )
        finally:
            response.close()


def _request_id(request: Request) -> str:
    told = request.raw.headers.get("X-Request-Id", "")
    return (
        told
        if 0 < len(told) <= 128 and told.isascii() and told.isprintable() and " " not in told
        else request.trace[3:35]
    )
