"""The body of a request as the items of a client stream: an upload that is never in memory as a whole.

Owns: which Content-Type each kind of stream takes, and cutting a body into items.
Leaves to others: reading the body within the limits (body_stream), making the call (calling).

A stream of `bytes` gets the body as it arrives, in chunks of up to 256 KiB whose borders mean nothing. Any other stream
gets one item for each line of NDJSON, which passes through unread.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from aiohttp import hdrs

from mesh.discovery.record import MethodRecord
from mesh.errors import BadArguments, TooLarge, UnsupportedMedia
from mesh.gateway.body_stream import BodyStream
from mesh.gateway.media import BINARY_TYPE, NDJSON_TYPE, check_body_kind, essence, is_ndjson, kind_of
from mesh.gateway.ports import Buffer
from mesh.gateway.request import Request
from mesh.protocol.messages import JSON, RAW

#: The longest line of NDJSON: one item, which is in memory as a whole.
LINE_BYTES: Final = 2**20

Source = AsyncIterator[tuple[Buffer, int]]


def takes_bytes(inbound: dict[str, Any]) -> bool:
    """Whether the items of a client stream are bytes."""
    return inbound.get("contentMediaType") == BINARY_TYPE


class Upload:
    """The body of one request, for a method with a client stream.

    Args:
        most: the largest body; 0 is `gateway.max_body`.

    Raises:
        UnsupportedMedia: the method does not take a body of this type.
        TooLarge: Content-Length announces more than the limit.
    """

    def __init__(self, request: Request, method: MethodRecord, *, forms: bool, most: int) -> None:
        inbound = method.inbound or {}
        content_type = request.headers.get(hdrs.CONTENT_TYPE)
        binary = takes_bytes(inbound)
        if binary:
            kind = kind_of(content_type)
            if kind == "form" and not forms:
                check_body_kind(kind, binary=True)
        elif request.raw.body_exists and not is_ndjson(content_type):
            raise UnsupportedMedia(
                f"the body is a stream of items: send one JSON value per line, with Content-Type: {NDJSON_TYPE}, not "
                f'"{essence(content_type or "")[:80]}"'
            )
        self._body: BodyStream = request.stream(max_bytes=most or None)
        self.items: Source = self._chunks() if binary else self._lines()

    @property
    def complete(self) -> bool:
        """Whether the whole body has been read; otherwise the connection cannot be used again."""
        return self._body.at_end

    async def _chunks(self) -> Source:
        async for chunk in self._body:
            yield chunk, RAW

    async def _lines(self) -> Source:
        rest = b""
        async for chunk in self._body:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if line := line.strip():
                    yield line, JSON
            if len(rest) > LINE_BYTES:
                raise TooLarge(
                    f"a line of the body is longer than {LINE_BYTES} bytes", details={"limit_bytes": LINE_BYTES}
                )
        if rest := rest.strip():
            yield rest, JSON


def refuse_by_name(target: str) -> BadArguments:
    """The error for a method with a client stream at /rpc, whose body has the arguments."""
    return BadArguments(f"{target} takes a stream of items: it needs a route of its own, such as @http.post")
