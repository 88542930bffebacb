"""Calls the handler of a mount, with what its declaration asks for.

Owns: HTTP methods and OPTIONS, and for mounts of other packages deadline, metrics, streams, and wrong answers.
Leaves to others: finding the mount (registry), problems and the log (server), writing (reply, sse).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing, nullcontext
from typing import Any, Final

from mesh.calls.answers import Answer as Item
from mesh.errors import DeadlineExceeded, MeshError, MethodNotAllowed
from mesh.gateway.front import Front
from mesh.gateway.mounts.contract import Answer, Mount, Stream
from mesh.gateway.problems import Unforeseen
from mesh.gateway.reply import Reply
from mesh.gateway.request import TIMEOUT, Request
from mesh.gateway.routes import VERBS, allow_header
from mesh.gateway.sse import StreamReply
from mesh.protocol.messages import RAW
from mesh.telemetry.logs import get_logger

_log = get_logger("mesh.gateway")

Serve = Callable[[Request], Awaitable[Answer]]

#: The label `method` of requests with a method that is not one of the usual ones: clients may send any word.
OTHER: Final = "other"


def serve_own(mount: Mount) -> Serve:
    """The handler of a mount of mesh, which counts its requests itself."""
    if not mount.methods:
        return mount.handler
    allow = allow_header(mount.methods)

    async def serve(request: Request) -> Answer:
        other = answer_method(request, allow)
        return other if other is not None else await mount.handler(request)

    return serve


def answer_method(request: Request, allow: str, remedy: str = "not allowed here") -> Reply | None:
    """The answer to OPTIONS; None for a method that is allowed.

    Args:
        allow: the Allow header.
        remedy: the end of the error's message.

    Raises:
        MethodNotAllowed: the method is another one.
    """
    verb = request.raw.method
    if verb == "OPTIONS":
        return Reply(status=204, extra=b"Allow: %b\r\n" % allow.encode())
    if verb not in allow.split(", "):
        raise MethodNotAllowed(f"{verb} {request.path[:200]}: {remedy}", details={"allow": allow})
    return None


def serve_foreign(front: Front, mount: Mount) -> Serve:
    """The handler of a mount of another package, with deadline, metrics and streams."""
    return _Counted(front, mount, _Foreign(front, mount).handle).serve


def serve_counted(front: Front, mount: Mount) -> Serve:
    """The handler of a mount of mesh that has deadlines of its own and writes its answers, with metrics."""

    async def handle(request: Request) -> tuple[Answer, str]:
        answer = await mount.handler(request)
        return answer, request.failure.code if request.failure is not None else ""

    return _Counted(front, mount, handle).serve


class _Counted:
    """The methods and the metrics of a mount.

    Args:
        handle: returns the answer, and the error code to count.
    """

    def __init__(self, front: Front, mount: Mount, handle: Callable[[Request], Awaitable[tuple[Answer, str]]]) -> None:
        self._front = front
        self._mount = mount
        self._handle = handle
        self._allow = allow_header(mount.methods) if mount.methods else ""
        self._stats: dict[str, Any] = {}

    async def serve(self, request: Request) -> Answer:
        """Answer a request, and count it."""
        front = self._front
        mount = self._mount
        verb = request.raw.method
        name = verb if verb in VERBS else OTHER
        stats = self._stats.get(name)
        if stats is None:
            stats = self._stats[name] = front.node.recorder.method("http", mount.prefix, name)
        request.target = mount.prefix
        code = "cancelled"
        stats.begin()
        try:
            answer: Answer | None = answer_method(request, self._allow) if self._allow else None
            if answer is None:
                answer, code = await self._handle(request)
            else:
                code = ""
            return answer
        except MeshError as exc:
            code = exc.code
            raise
        except Exception:
            code = Unforeseen.code
            raise
        finally:
            request.seconds = front.node.clock.now() - request.began_at
            stats.end(request.seconds, code)


class _Foreign:
    def __init__(self, front: Front, mount: Mount) -> None:
        self._front = front
        self._mount = mount

    async def handle(self, request: Request) -> tuple[Answer, str]:
        """Call the handler within the deadline, and write its stream."""
        timeout_s = request.remaining_s
        try:
            async with asyncio.timeout(timeout_s) as limit:
                # Reading a streamed body moves it.
                request.limit = limit
                answer = await self._mount.handler(request)
                request.limit = None
        except TimeoutError as exc:
            if not limit.expired():
                raise
            raise DeadlineExceeded(f"{self._mount.prefix}: no answer within {timeout_s:.2g} s") from exc
        if isinstance(answer, Reply):
            # A copy: a mount may keep its answer for many requests, and writing one notes how its connection goes on.
            return Reply(answer.body, answer.content_type, answer.status, answer.extra), ""
        if isinstance(answer, Stream):
            return await self._write(request, answer)
        raise TypeError(
            f"the handler of the mount {self._mount.prefix} returned {type(answer).__name__}, not a Reply or a Stream"
        )

    async def _write(self, request: Request, stream: Stream) -> tuple[Answer, str]:
        """Write a stream to its end; returns the answer, and the error code to count."""
        front = self._front
        if request.raw.defaults and stream.extra:
            request.raw.override(stream.extra)
        reply = StreamReply(
            request.raw,
            front.node.clock,
            "raw",
            status=stream.status,
            produces=stream.content_type,
            extra=stream.extra,
            keep_alive=front.keeps(request.raw),
            problems=front.problems,
            length=stream.length,
        )
        items: Any = aiter(stream.items)
        # A client that names a time for the answer means all of it.
        limit = asyncio.timeout(request.remaining_s if TIMEOUT in request.raw.headers else None)
        try:
            async with aclosing(items) if hasattr(items, "aclose") else nullcontext():
                if request.raw.method == "HEAD":
                    return reply.head_only(), ""
                async with limit:
                    async for chunk in items:
                        await reply.item(Item(chunk, RAW))
            reply.end()
            return reply, ""
        except ConnectionError:
            # The client disconnected while the gateway waited for it to read: no error can be sent.
            return reply, "cancelled"
        except Exception as exc:
            error = exc
            if isinstance(exc, TimeoutError) and limit.expired():
                error = DeadlineExceeded(f"{self._mount.prefix}: the stream did not end in time")
            if not reply.begun:
                raise error from exc
            if not isinstance(error, MeshError):
                _log.exception("stream.failed", mount=self._mount.prefix)
                error = Unforeseen()
            request.failure = error
            reply.fail(error, request.trace)
            return reply, error.code
        finally:
            reply.stop()
