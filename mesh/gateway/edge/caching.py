"""Caching of answers by clients and proxies: Cache-Control, ETag, conditional requests and ranges.

Owns: which answers get them, and making the ETag.
Leaves to others: comparing validators (validators), ranges (ranges), and compression (compression), which comes after
this and marks the ETag of a compressed answer as weak.

For routes with the option `cache`, and for all with `gateway.etag`. Nothing is stored here: an answer is made anew each
time, and saves its bytes on the way. Preconditions of methods that change something are left to their handlers, which
know the state before (`http.Header("If-Match")`).
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Final

from aiohttp import hdrs

from mesh.gateway.edge.answer_fields import lines_of, names_in, value_of
from mesh.gateway.edge.contract import Concern, Proceed
from mesh.gateway.edge.ranges import RangeNotSatisfiable, content_range, multipart, read_ranges
from mesh.gateway.edge.validators import Validators, range_applies, read_date, unchanged
from mesh.gateway.front import Front
from mesh.gateway.mounts.contract import Answer
from mesh.gateway.openapi import Document
from mesh.gateway.reply import Buffer, Reply
from mesh.gateway.request import Request

_READS: Final = frozenset({"GET", "HEAD"})

#: Larger bodies are hashed in a thread: BLAKE2b takes about 1 ms for 1 MiB.
INLINE_BYTES: Final = 512 * 1024

#: Fields that a 304 leaves out: they describe a body that it does not have (RFC 9110, section 15.4.5).
_OF_A_BODY: Final = frozenset(
    {b"content-type", b"content-encoding", b"content-language", b"content-range", b"content-disposition"}
)
_CONDITIONS: Final = (
    hdrs.IF_NONE_MATCH,
    hdrs.IF_MODIFIED_SINCE,
    hdrs.RANGE,
    hdrs.IF_MATCH,
    hdrs.IF_UNMODIFIED_SINCE,
)
_RANGES: Final = b"Accept-Ranges: bytes\r\n"
#: JSON or MessagePack: the gateway answers as Accept says.
_VARY: Final = b"Vary: Accept\r\n"


def make(front: Front) -> Concern:
    """The concern; it is in the chain with `gateway.etag`, or while a route has the option `cache`."""
    return Caching(front).concern


class Caching:
    """Caching of one gateway."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._every = front.settings.gateway.etag
        self._most_ranges = front.settings.gateway.max_ranges
        self.concern = Concern(
            name="caching", hook=self.hook, wanted=self._wanted, openapi=self._openapi, facts={"etag": self._every}
        )

    def _wanted(self) -> bool:
        return self._every or any(policy.cache for policy in self._front.catalog.policies())

    def _openapi(self, document: Document) -> None:
        for route in self._front.catalog.routes.routes:
            edge = route.record.edge
            if route.record.verb == "GET" and (self._every or (edge is not None and edge.cache)):
                document.add_answers(route, (206, 304, 412, 416))

    async def hook(self, request: Request, proceed: Proceed) -> Answer:
        """Answer with the validators, or with less than the whole answer when that is enough."""
        cache = request.entry.policy.cache
        if not cache and not self._every:
            return await proceed(request)
        reply = await proceed(request)
        # A subclass, such as the answer to a HEAD for a stream, has no complete body.
        if type(reply) is not Reply or not 200 <= reply.status <= 299:
            return reply
        method = request.raw.method
        if method == "HEAD" and not reply.body:
            # The answer to a HEAD for a stream: its GET has no validators.
            return reply
        extra = reply.extra
        names = names_in(extra) if extra else set()
        if cache and b"cache-control" not in names:
            # A cookie is for one client: no cache may give it to another one.
            control = cache if b"set-cookie" not in names else "no-store"
            extra += b"Cache-Control: %b\r\n" % control.encode()
        extra += _VARY
        if method not in _READS or reply.status != 200 or b"content-range" in names:
            return Reply(reply.body, reply.content_type, reply.status, extra)
        if b"etag" not in names:
            extra += b"ETag: %b\r\n" % await _etag(reply.body)
        return self._reduce(request, reply, extra)

    def _reduce(self, request: Request, reply: Reply, extra: bytes) -> Reply:
        """The whole answer, a part of it, or none of it.

        Raises:
            PreconditionFailed, RangeNotSatisfiable: see there.
        """
        headers = request.raw.headers
        if not any(name in headers for name in _CONDITIONS):
            return Reply(reply.body, reply.content_type, 200, extra + _RANGES)
        modified = value_of(extra, b"last-modified")
        validators = Validators(
            (value_of(extra, b"etag") or b"").decode(), read_date(modified.decode() if modified is not None else None)
        )
        if unchanged(headers, validators):
            kept = b"".join(line for name, line in lines_of(extra) if name not in _OF_A_BODY)
            return Reply(b"", "", 304, kept)
        size = len(reply.body)
        asked = headers.get(hdrs.RANGE) if request.raw.method == "GET" else None
        # An answer in a coding of its own has ranges of that coding: left to the code that made it.
        if asked is not None and range_applies(headers, validators) and value_of(extra, b"content-encoding") is None:
            try:
                parts = read_ranges(asked, size, self._most_ranges)
            except RangeNotSatisfiable:
                request.raw.lines += b"Content-Range: bytes */%d\r\n" % size
                raise
            if parts:
                extra += _RANGES
                view = memoryview(reply.body)
                if len(parts) == 1:
                    [part] = parts
                    body: Buffer = view[part.start : part.end]
                    return Reply(body, reply.content_type, 206, extra + content_range(part, size))
                body, content_type = multipart(view, parts, reply.content_type)
                return Reply(body, content_type, 206, extra)
        return Reply(reply.body, reply.content_type, 200, extra + _RANGES)


async def _etag(body: Buffer) -> bytes:
    """A strong ETag: equal on every gateway, and different for different bytes."""
    if len(body) <= INLINE_BYTES:
        return b'"%b"' % _hash(body)
    return b'"%b"' % await asyncio.to_thread(_hash, body)


def _hash(body: Buffer) -> bytes:
    return hashlib.blake2b(body, digest_size=16).hexdigest().encode()
