"""Makes the call that a request asks for: binds the arguments, calls, and converts the answer.

Owns: the steps of one call or stream over HTTP, and counting it.
Leaves to others: which method it is (mounts.routes, mounts.rpc), each of the steps (the modules imported here).

The path of a plain GET is kept short: no extra task, no timer (the node has the deadline), no multi-dict of headers,
one write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from aiohttp import hdrs
from multidict import istr

from mesh.errors import BadArguments, BadReply, Draining, MeshError
from mesh.gateway.answers import to_reply
from mesh.gateway.binding import Binding, Call, RpcBinding, relocate
from mesh.gateway.catalog import Target
from mesh.gateway.depth import check_depth, may_be_deep
from mesh.gateway.front import Front
from mesh.gateway.headers import read_timeout
from mesh.gateway.media import kind_of, stream_form, wants_msgpack
from mesh.gateway.ports import MethodStats
from mesh.gateway.problems import Unforeseen
from mesh.gateway.reply import Reply
from mesh.gateway.request import TIMEOUT, Request
from mesh.gateway.routes import Route
from mesh.gateway.sse import END_ID, StreamReply
from mesh.gateway.uploads import Upload, refuse_by_name
from mesh.protocol.http_head import SESSION
from mesh.protocol.messages import ANSWER, JSON, MSGPACK, MSGPACK_ANSWER, RECONNECTS
from mesh.telemetry.logs import get_logger

_log = get_logger("mesh.gateway")

_LAST_EVENT_ID: Final = istr("Last-Event-ID")


class Calls:
    """Calls on behalf of HTTP requests."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._node = front.node
        self._timeout_s = front.timeout_s
        self._most_deep = front.settings.gateway.max_json_depth
        self._now = front.node.clock.now
        self._stats: dict[str, MethodStats] = {}

    async def call(self, request: Request, to: Route | Target, values: list[str] | None) -> Reply | StreamReply:
        """Make the call and count it.

        Args:
            values: of the parameters in a route's path; None for /rpc.
        """
        stats = self._stats.get(to.target)
        if stats is None:
            stats = self._stats[to.target] = self._node.recorder.method("http", to.service, to.name)
        code = "cancelled"
        binding = to.binding
        upload: Upload | None = None
        request.target = to.target
        stats.begin()
        try:
            headers = request.raw.headers
            told = headers.get(TIMEOUT)
            timeout = read_timeout(told) if told is not None else to.method.timeout_s
            if isinstance(binding, Binding) and not binding.reads_body and not request.query_string:
                # Nearly all requests: no coroutine for them.
                body, encoding = binding.bind(values or [], "", headers=headers)
            else:
                body, encoding = await self._bind(request, binding, values, timeout, to.max_body_bytes)
            msgpack = wants_msgpack(headers.get(hdrs.ACCEPT))
            if to.method.inbound is not None:
                upload = self._upload(request, to)
            if to.method.stream:
                reply, code = await self._stream(request, to, body, encoding, timeout, upload)
                return reply
            if upload is not None:
                answered = await self._answer_upload(request, to, body, encoding, timeout, upload)
                code = ""
                return answered
            answer = await self._node.call_raw(
                to.target,
                body,
                encoding,
                timeout=timeout if timeout is not None else self._timeout_s,
                # Ask the worker for MessagePack: converting JSON here would lose bytes, integer keys and NaN.
                meta={ANSWER: MSGPACK_ANSWER} if msgpack and encoding != MSGPACK else None,
                trace=request.trace,
                idempotent=to.idempotent,
            )
            answered = to_reply(answer, to.status, to.produces, msgpack=msgpack)
            if answer.meta:
                await self._apply_session(request, to.target, answer.meta, answered)
            code = ""
            return answered
        except MeshError as exc:
            code = exc.code
            relocate(exc, binding)
            raise
        except Exception:
            code = Unforeseen.code
            raise
        finally:
            seconds = request.seconds = self._now() - request.began_at
            stats.end(seconds, code)

    def _upload(self, request: Request, to: Route | Target) -> Upload:
        if isinstance(to, Target):
            raise refuse_by_name(to.target)
        edge = to.record.edge
        most = 0 if edge is None else edge.max_body_bytes
        return Upload(request, to.method, forms=to.record.forms, most=most)

    async def _answer_upload(
        self, request: Request, to: Route | Target, body: bytes, encoding: int, timeout: float | None, upload: Upload
    ) -> Reply:
        """The answer of a method that takes a client stream. Without an explicit timeout it has the default of streams,
        and the body must arrive at `gateway.min_body_rate`."""
        headers = request.raw.headers
        msgpack = wants_msgpack(headers.get(hdrs.ACCEPT))
        answer = await self._node.call_raw(
            to.target,
            body,
            encoding,
            timeout=timeout,
            meta={ANSWER: MSGPACK_ANSWER, **upload.meta} if msgpack else upload.meta or None,
            trace=request.trace,
            source=upload.items,
        )
        reply = to_reply(answer, to.status, to.produces, msgpack=msgpack)
        if not upload.complete:
            # The method answered without reading to the end: the rest of the body is not read.
            reply.keep_alive = False
        return reply

    async def _apply_session(self, request: Request, target: str, meta: Mapping[str, str], reply: Reply) -> None:
        """Begin or end a login session, when the handler asks for it.

        Raises:
            BadReply: it may not, or this gateway has no sessions: its client would believe to be logged in.
        """
        sessions = self._front.sessions
        if sessions is not None:
            await sessions.apply(request, target, meta, reply)
        elif SESSION in meta:
            raise BadReply(f"{target} begins or ends a login session, and this gateway has none: set [auth.sessions]")

    async def _bind(
        self,
        request: Request,
        binding: Binding | RpcBinding,
        values: list[str] | None,
        timeout: float | None,
        most: int,
    ) -> Call:
        body = b""
        if binding.reads_body:
            body = await self._front.bodies.read(request, timeout if timeout is not None else self._timeout_s, most)
        query = request.query_string
        headers = request.raw.headers
        kind = kind_of(headers.get(hdrs.CONTENT_TYPE))
        if kind == "json" and may_be_deep(body, self._most_deep):
            await check_depth(body, self._most_deep, self._node.recorder)
        try:
            if isinstance(binding, Binding):
                return binding.bind(values or [], query, body, kind, headers)
            return binding.bind(query, body, kind, headers)
        except RecursionError:
            raise BadArguments("the arguments are nested too deeply to be read", details={"path": "$"}) from None

    async def _stream(
        self,
        request: Request,
        to: Route | Target,
        body: bytes,
        encoding: int,
        timeout: float | None,
        upload: Upload | None = None,
    ) -> tuple[Reply | StreamReply, str]:
        """Write a stream to its end; returns the answer, and the error code to count."""
        front = self._front
        raw = request.raw
        form = stream_form(raw.headers.get(hdrs.ACCEPT), binary=to.method.binary, produces=to.produces)
        reply = StreamReply(
            raw,
            self._node.clock,
            form,
            status=to.status,
            produces=to.produces,
            keep_alive=front.keeps(raw),
            problems=front.problems,
            events=to.method.events and encoding == JSON,
        )
        streams = front.connections.streams
        try:
            if raw.method == "HEAD":
                return reply.head_only(), ""
            if form == "sse" and raw.headers.get(_LAST_EVENT_ID) == END_ID:
                return reply.over(), ""
            streams.add(reply)
            # Without an explicit timeout a stream has the node's default for streams.
            meta = {RECONNECTS: "1"} if form == "sse" else None
            if upload is not None and upload.meta:
                meta = {**(meta or {}), **upload.meta}
            items = self._node.stream_raw(
                to.target,
                body,
                encoding,
                timeout=timeout,
                meta=meta,
                trace=request.trace,
                source=None if upload is None else upload.items,
            )
            try:
                async for answer in items:
                    await reply.item(answer)
            finally:
                await items.aclose()
            reply.end()
            if upload is not None and not upload.complete:
                reply.keep_alive = False
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
                _log.exception("stream.failed", target=to.target)
                error = Unforeseen()
            request.failure = error
            reply.fail(error, request.trace)
            return reply, error.code
        finally:
            streams.discard(reply)
            reply.stop()
        return reply, ""
