"""A request body with a Content-Encoding, decoded.

Owns: which codings are read, the limit on what comes out, and not keeping the event loop while a body is inflated.
Leaves to others: reading the body off the connection (body).

aiohttp could do it, but it takes a truncated gzip stream for a whole one, passes codings that it does not know on as
they are, and goes on inflating a body that is over the limit.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import Any, Final

from mesh.errors import BadRequest, TooLarge, UnsupportedMedia

#: For the Accept-Encoding header of a 415 (RFC 9110, section 12.5.3).
READ: Final = "gzip, deflate, identity"

_GZIP: Final = frozenset({"gzip", "x-gzip"})

#: Bytes in and out of one step, after which other requests have their turn: inflating 256 KiB takes about 1 ms.
_STEP_IN: Final = 16 * 1024
_STEP_OUT: Final = 256 * 1024

#: gzip allows any number of members in a row. Tools that compress in parallel write one per 128 KiB or more.
MOST_MEMBERS: Final = 1000


class BadEncoding(BadRequest):
    """The body is not what its Content-Encoding says: damaged, cut off, or followed by something else."""

    code = "bad_encoding"


class UnsupportedEncoding(UnsupportedMedia):
    """The Content-Encoding is not one that the gateway decodes."""

    code = "unsupported_encoding"


def read_coding(header: str) -> str:
    """The coding that a Content-Encoding header names: "gzip", "deflate", or "" for none.

    Raises:
        UnsupportedEncoding: it is another, or several in a row.
    """
    names = [name for part in header.split(",") if (name := part.strip().lower()) not in ("", "identity")]
    if not names:
        return ""
    if len(names) == 1 and (names[0] in _GZIP or names[0] == "deflate"):
        return "deflate" if names[0] == "deflate" else "gzip"
    raise UnsupportedEncoding(
        f"Content-Encoding: {header[:80]!a} is not decoded here; send one of {READ}",
        details={"path": "header.Content-Encoding"},
    )


def check_transfer_coding(header: str) -> None:
    """Refuse a Transfer-Encoding other than `chunked`, which aiohttp decodes: it passes `gzip, chunked` on compressed.

    Raises:
        UnsupportedEncoding: it names another coding.
    """
    if header.strip().lower() != "chunked":
        raise UnsupportedEncoding(
            f"Transfer-Encoding: {header[:80]!a} is not decoded here; send chunked alone, and gzip as Content-Encoding",
            details={"path": "header.Transfer-Encoding"},
        )


async def decompress(data: bytes, coding: str, most: int, take: Callable[[int], None] = lambda size: None) -> bytes:
    """Decode a body.

    Args:
        coding: "gzip" (any number of members) or "deflate" (with or without the zlib header).
        most: bytes that may come out; nothing beyond is inflated.
        take: is told of bytes as they come out, and may refuse more by raising: many bodies are inflated at once.

    Raises:
        TooLarge: more than `most` would come out.
        BadEncoding: the data is damaged, cut off, or followed by something else.
    """
    if not data:
        return b""
    view = memoryview(data)
    out: list[bytes] = []
    size = at = members = 0
    stream = _stream(coding, data)
    pending: bytes | memoryview = b""
    while True:
        if not pending and at < len(view):
            pending = view[at : at + _STEP_IN]
            at += len(pending)
        try:
            piece = stream.decompress(pending, min(_STEP_OUT, most - size + 1))
        except zlib.error as exc:
            raise BadEncoding(f"the {coding} data in the body is damaged ({exc})", details=_DETAILS) from exc
        size += len(piece)
        if size > most:
            raise TooLarge(
                f"the body is larger than {most} bytes when decoded; gateway.max_body in mesh.toml raises the limit",
                details={"limit_bytes": most},
            )
        if piece:
            take(len(piece))
            out.append(piece)
        pending = stream.unconsumed_tail
        if stream.eof:
            members += 1
            pending = stream.unused_data
            if not pending and at >= len(view):
                return out[0] if len(out) == 1 else b"".join(out)
            if coding != "gzip" or members >= MOST_MEMBERS:
                raise BadEncoding(f"something follows the {coding} data in the body", details=_DETAILS)
            stream = _stream(coding, data)
        # Without input and without output there is nothing left to come.
        elif not pending and not piece and at >= len(view):
            raise BadEncoding(f"the {coding} data in the body is cut off", details=_DETAILS)
        if len(view) > _STEP_IN or size > _STEP_OUT:
            await asyncio.sleep(0)


_DETAILS: Final = {"path": "body"}


def _stream(coding: str, data: bytes) -> Any:
    if coding == "gzip":
        return zlib.decompressobj(zlib.MAX_WBITS | 16)
    # RFC 9110 wants the zlib header, but senders that leave it out are common enough to be read.
    has_header = data[0] & 0x0F == 8 and len(data) > 1 and (data[0] << 8 | data[1]) % 31 == 0
    return zlib.decompressobj(zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)
