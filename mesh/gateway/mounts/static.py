"""[gateway.static]: directories of files, and single-page applications.

Owns: these mounts, from the settings; the answers for a file, and sending it.
Leaves to others: opening files (gateway.files), types and caching (gateway.file_types), conditions and ranges
(gateway.ranges).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from email.utils import formatdate
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from aiohttp import hdrs

from mesh.config import Settings
from mesh.config.edge_static import StaticSettings
from mesh.discovery.record import EdgePolicy
from mesh.errors import BadRequest, MeshError, MethodNotAllowed, TryLater, Unavailable, UnknownRoute
from mesh.gateway.entry import Entry, is_protected
from mesh.gateway.file_types import accepted_codings, cache_control, content_type
from mesh.gateway.files import INDEX, Directory, File, IsDirectory
from mesh.gateway.front import Front
from mesh.gateway.media import accepts
from mesh.gateway.mounts.contract import Answer, BadMount, Mount
from mesh.gateway.paths import split_path
from mesh.gateway.ports import Node
from mesh.gateway.ranges import UNSATISFIABLE, Span, span_of, status_of
from mesh.gateway.reply import NOSNIFF, HeadOnly, Reply
from mesh.gateway.request import Request
from mesh.gateway.transfer import Transfer

_T = TypeVar("_T")

#: `origin` of these mounts.
ORIGIN: Final = "gateway.static"

#: Threads that wait for the disk, for each directory.
THREADS: Final = 8
#: Files up to this size are read in the thread that opens them, and sent in one piece.
WHOLE_BYTES: Final = 64 * 1024
#: Larger ones are read in pieces of this size.
PIECE_BYTES: Final = 256 * 1024

_READ: Final = ("GET", "HEAD")
_ALLOW: Final = "GET, HEAD, OPTIONS"
_HTML: Final = frozenset({"text/html"})


class PreconditionFailed(BadRequest):
    """The file is not the version that If-Match or If-Unmodified-Since requires."""

    code = "precondition_failed"
    status = 412


class RangeNotSatisfiable(BadRequest):
    """The range begins behind the end of the file."""

    code = "range_not_satisfiable"
    status = 416


class FileChanged(TryLater):
    """A file was changed in place while it was sent; replace files by renaming new ones over them."""

    code = "file_changed"


def mounts(front: Front) -> Iterator[Mount]:
    """The mounts of the settings.

    Raises:
        BadMount: a directory is missing, or would expose the project.
    """
    for prefix, settings in front.settings.gateway.static.items():
        yield mount(front, prefix, settings)


def mount(front: Front, prefix: str, settings: StaticSettings) -> Mount:
    """The mount of one directory."""
    files = Files(front, prefix, settings, _checked(front.settings, prefix, settings.dir))
    entry = Entry(prefix, policy=EdgePolicy(auth=settings.auth))
    front.catalog.protected |= is_protected(entry.policy)

    @asynccontextmanager
    async def lifespan(_: Node) -> AsyncIterator[None]:
        try:
            yield
        finally:
            files.close()

    return Mount(prefix=prefix, handler=files.answer, methods=(), lifespan=lifespan, entry=lambda _: entry)


def _checked(settings: Settings, prefix: str, path: Path) -> Path:
    where = settings.root / path
    what = f'gateway.static "{prefix}"'
    if not where.is_dir():
        raise BadMount(f'{what}: "{path}" is not a directory; build the application first, or correct the path')
    if settings.root.resolve().is_relative_to(where.resolve()):
        raise BadMount(
            f'{what}: "{path}" holds the project itself, with mesh.toml; serve a directory inside of it, such as '
            '"web/dist"'
        )
    return where


class _Plan(NamedTuple):
    """What is to be sent for a file.

    Attributes:
        lines: header lines.
        body: all that is sent; None when `file` is to be sent.
        file, span: the open file, and the part of it.
        length: bytes of the body that GET would get.
    """

    status: int
    lines: bytes
    body: bytes | None
    length: int
    file: File | None = None
    span: Span = Span(0, 0)


class Files:
    """Answers the requests for one directory.

    Args:
        path: the directory.
    """

    def __init__(self, front: Front, prefix: str, settings: StaticSettings, path: Path) -> None:
        self._front = front
        self._prefix = prefix.rstrip("/")
        self._settings = settings
        self._directory = Directory(path)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="files")

    def close(self) -> None:
        """Stop reading."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def answer(self, request: Request) -> Answer:
        """Send a file.

        Raises:
            UnknownRoute: there is no such file.
            Unavailable: nor is there, yet, a service that declares the path.
            MethodNotAllowed: there is, but it can only be read.
            PreconditionFailed, RangeNotSatisfiable: the client wants another version, or a part that is not there.
        """
        verb = request.raw.method
        rest = request.path[len(self._prefix) :]
        slash = rest.endswith("/")
        try:
            segments = split_path(rest[:-1] if slash else rest)
        except BadRequest:
            # No file has such a name.
            raise self._unknown(request) from None
        if verb not in _READ:
            return await self._refuse(request, segments, slash)
        headers = request.raw.headers
        codings = accepted_codings(",".join(headers.getall(hdrs.ACCEPT_ENCODING, ())))
        spa = self._settings.spa and self._routes_known and accepts(",".join(headers.getall(hdrs.ACCEPT, ())), _HTML)
        try:
            plan = await self._run(partial(self._plan, request, segments, codings, slash, spa), _discard)
        except IsDirectory:
            query = f"?{request.query_string}" if request.query_string else ""
            location = f"Location: {request.path}/{query}\r\n".encode("ascii", "replace")
            return Reply(status=301, extra=location + b"Cache-Control: no-cache\r\n")
        if plan is None:
            raise self._unknown(request)
        if plan.status == 412:
            raise PreconditionFailed("the file is another version than the request requires")
        if plan.status == 416:
            request.raw.lines += plan.lines
            raise RangeNotSatisfiable("the range begins behind the end of the file")
        if verb == "HEAD" and plan.status == 200:
            return HeadOnly(plan.length, "", 200, plan.lines)
        if plan.file is None:
            return Reply(plan.body or b"", "", plan.status, plan.lines)
        return await self._send(request, plan, plan.file)

    async def _refuse(self, request: Request, segments: Sequence[str], slash: bool) -> Reply:
        """Answer a method other than GET and HEAD."""

        def exists() -> bool:
            try:
                file = self._directory.open(segments, (), slash=slash)
            except IsDirectory:
                return True
            if file is not None:
                file.close()
            return file is not None

        if not await self._run(exists, lambda _: None):
            raise self._unknown(request)
        if request.raw.method == "OPTIONS":
            return Reply(status=204, extra=b"Allow: %b\r\n" % _ALLOW.encode())
        raise MethodNotAllowed(f"{request.raw.method}: a file can only be read", details={"allow": _ALLOW})

    def _unknown(self, request: Request) -> MeshError:
        """The error for a path without a file."""
        if not self._routes_known:
            return Unavailable("no hub has reported the declared routes yet")
        return UnknownRoute(f"{request.path[:200]}: there is no such file, and no service declares this path")

    @property
    def _routes_known(self) -> bool:
        """Whether a path that leads nowhere does so for certain. Below a prefix of its own there are no routes."""
        return bool(self._prefix) or self._front.may_say_unknown()

    # --- in a thread ------------------------------------------------------------------------------

    def _plan(
        self, request: Request, segments: Sequence[str], codings: Sequence[tuple[str, str]], slash: bool, spa: bool
    ) -> _Plan | None:
        """Open the file, and decide what to send of it."""
        file = self._directory.open(segments, codings, slash=slash)
        if file is None and spa:
            file = self._directory.open((INDEX,), codings, slash=False)
        if file is None:
            return None
        try:
            plan = self._decide(request, file)
        except BaseException:
            file.close()
            raise
        if plan.file is None:
            file.close()
        return plan

    def _decide(self, request: Request, file: File) -> _Plan:
        headers = request.raw.headers
        is_get = request.raw.method == "GET"
        modified_s = file.modified_ns // 10**9
        etag = file.etag
        kind = content_type(file.path)
        cache = cache_control(file.path, kind, self._settings.cache, self._settings.immutable)
        lines = (
            f"ETag: {etag}\r\nLast-Modified: {formatdate(modified_s, usegmt=True)}\r\nCache-Control: {cache}\r\n"
            + ("Vary: Accept-Encoding\r\n" if file.varies else "")
        ).encode("ascii", "replace")
        status = status_of(headers, etag, modified_s)
        if status != 200:
            return _Plan(status, lines, b"", 0)
        lines += b"Content-Type: %b\r\nAccept-Ranges: bytes\r\n%b" % (kind.encode("ascii", "replace"), NOSNIFF)
        if file.coding:
            lines += b"Content-Encoding: %b\r\n" % file.coding.encode()
        span = span_of(headers, file.size, etag, modified_s) if is_get else None
        if span is UNSATISFIABLE:
            return _Plan(416, b"Content-Range: bytes */%d\r\n" % file.size, b"", 0)
        if span is not None:
            status = 206
            lines += b"Content-Range: bytes %d-%d/%d\r\n" % (span.start, span.stop - 1, file.size)
        else:
            span = Span(0, file.size)
        length = span.stop - span.start
        if not is_get:
            return _Plan(status, lines, b"", length)
        if length <= WHOLE_BYTES:
            body = os.pread(file.fd, length, span.start)
            if len(body) == length and file.is_unchanged():
                return _Plan(status, lines, body, length)
        return _Plan(status, lines, None, length, file, span)

    async def _run(self, work: Callable[[], _T], discard: Callable[[_T], object]) -> _T:
        """Run a function in a thread.

        Args:
            discard: releases a result that is no longer wanted, because the client has disconnected.
        """
        future = self._threads.submit(work)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:

            def release(done: Future[_T]) -> None:
                if not done.cancelled() and done.exception() is None:
                    discard(done.result())

            future.add_done_callback(release)
            raise

    # --- sending ----------------------------------------------------------------------------------

    async def _send(self, request: Request, plan: _Plan, file: File) -> Transfer:
        """Send an open file, and close it. One that changes meanwhile is broken off: the client never gets a mix."""
        transfer = Transfer(
            request.raw, plan.status, plan.lines, plan.length, keep_alive=self._front.keeps(request.raw)
        )
        reading: Future[bytes] | None = None
        at, stop = plan.span
        try:
            while at < stop:
                reading = self._threads.submit(_read, file, at, min(PIECE_BYTES, stop - at))
                data = await asyncio.wrap_future(reading)
                if not data:
                    break
                at += len(data)
                await transfer.write(data)
            if at < stop:
                request.failure = FileChanged("the file was changed while it was sent")
            transfer.end()
        except ConnectionError:
            transfer.fail()
        finally:
            if reading is None:
                file.close()
            else:
                # A thread may still be reading it.
                reading.add_done_callback(lambda _: file.close())
        return transfer


def _read(file: File, at: int, size: int) -> bytes:
    """A part of a file; empty when it has changed since it was opened."""
    data = os.pread(file.fd, size, at)
    return data if file.is_unchanged() else b""


def _discard(plan: _Plan | None) -> None:
    if plan is not None and plan.file is not None:
        plan.file.close()
