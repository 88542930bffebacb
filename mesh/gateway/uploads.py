"""The body of a request as the items of a client stream: an upload that is never in memory as a whole.

Owns: which Content-Type each kind of stream takes, and cutting a body into items.
Leaves to others: reading the body within the limits (body_stream), making the call (calling).

A stream of `bytes` gets the body as it arrives, in chunks of up to 256 KiB with arbitrary borders. Any other stream
gets one item for each line of NDJSON, which passes through unread. The body of a form passes through as bytes, and its
Content-Type, which has the boundary, is metadata of the call: the worker parses it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from aiohttp import hdrs

from mesh.discovery.record import MethodRecord
from mesh.errors import BadArguments, BadRequest, TooLarge, UnsupportedMedia
from mesh.gateway.body_stream import CHUNK_BYTES, BodyStream
from mesh.gateway.media import (
    BINARY_TYPE,
    MULTIPART_TYPE,
    NDJSON_TYPE,
    URLENCODED_TYPE,
    check_body_kind,
    essence,
    is_ndjson,
    kind_of,
)
from mesh.gateway.ports import Buffer
from mesh.gateway.request import Request
from mesh.protocol.messages import FORM, JSON, RAW

#: The longest line of NDJSON: one item, which is in memory as a whole.
LINE_BYTES: Final = 2**20

Source = AsyncIterator[tuple[Buffer, int]]


#: The types of body for a form, by the one that its schema names.
_FORM_TYPES: Final = {
    MULTIPART_TYPE: (MULTIPART_TYPE,),
    URLENCODED_TYPE: (URLENCODED_TYPE, MULTIPART_TYPE),
}


def form_types(inbound: dict[str, Any]) -> tuple[str, ...]:
    """The types of body that a method takes as a form; empty when its client stream is no form."""
    return _FORM_TYPES.get(inbound.get("contentMediaType", ""), ())


def takes_bytes(inbound: dict[str, Any]) -> bool:
    """Whether the items of a client stream are bytes."""
    return inbound.get("contentMediaType") == BINARY_TYPE


class Upload:
    """The body of one request, for a method with a client stream.

    Args:
        most: the largest body; 0 is `gateway.max_body`.

    Attributes:
        items: the items to send, encoded.
        meta: metadata that the call needs.

    Raises:
        UnsupportedMedia: the method does not take a body of this type.
        TooLarge: Content-Length announces more than the limit.
    """

    def __init__(self, request: Request, method: MethodRecord, *, forms: bool, most: int) -> None:
        inbound = method.inbound or {}
        content_type = request.headers.get(hdrs.CONTENT_TYPE)
        self.meta: dict[str, str] = {}
        form = form_types(inbound)
        binary = bool(form) or takes_bytes(inbound)
        if form:
            self.meta[FORM] = _form_type(content_type or "", form)
        elif binary:
            kind = kind_of(content_type)
            if kind == "form" and not forms:
                check_body_kind(kind, binary=True)
        elif request.raw.body_exists and not is_ndjson(content_type):
            raise UnsupportedMedia(
                f"the body is a stream of items: send one JSON value per line, with Content-Type: {NDJSON_TYPE}, not "
                f'"{essence(content_type or "")[:80]}"'
            )
        self._body: BodyStream = request.stream(max_bytes=most or None)
        # The token of a login session may have been looked for in the body: see edge.auth.sessions.csrf.
        self._early = request.early_body or b""
        self.items: Source = self._chunks() if binary else self._lines()

    @property
    def complete(self) -> bool:
        """Whether the whole body has been read; otherwise the connection cannot be used again."""
        return self._body.at_end

    async def _chunks(self) -> Source:
        for at in range(0, len(self._early), CHUNK_BYTES):
            yield self._early[at : at + CHUNK_BYTES], RAW
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


def _form_type(content_type: str, allowed: tuple[str, ...]) -> str:
    if essence(content_type) not in allowed:
        raise UnsupportedMedia(
            f'the body is an HTML form: send {" or ".join(allowed)}, not "{essence(content_type)[:80]}"'
        )
    if not content_type.isascii():
        raise BadRequest("Content-Type: is not ASCII", details={"path": "header.Content-Type"})
    return content_type


def refuse_by_name(target: str) -> BadArguments:
    """The error for a method with a client stream at /rpc, where the body has the arguments."""
    return BadArguments(f"{target} takes a stream of items: it needs a route of its own, such as @http.post")
