"""Decodes request bodies with a Content-Encoding.

Owns: the supported codings, the limit on the decoded size, and not blocking the event loop while inflating.
Leaves to others: reading the body from the connection (body).

aiohttp could do it, but it accepts a truncated gzip stream as complete, passes unknown codings on undecoded, and
continues to inflate a body that is over the limit.
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

#: Input and output bytes of one step, after which other requests may run: inflating 256 KiB takes about 1 ms.
_STEP_IN: Final = 16 * 1024
_STEP_OUT: Final = 256 * 1024

#: gzip allows any number of members in a row. Tools that compress in parallel write one per 128 KiB or more.
MOST_MEMBERS: Final = 1000


class BadEncoding(BadRequest):
    """The body does not match its Content-Encoding: it is damaged, cut off, or followed by other data."""

    code = "bad_encoding"


class UnsupportedEncoding(UnsupportedMedia):
    """The Content-Encoding is not one that the gateway decodes."""

    code = "unsupported_encoding"


def read_coding(header: str) -> str:
    """The coding that a Content-Encoding header names: "gzip", "deflate", or "" for none.

    Raises:
        UnsupportedEncoding: it names another coding, or several.
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
    """Reject a Transfer-Encoding other than `chunked`: aiohttp decodes only that; `gzip, chunked` stays compressed.

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
        most: maximum size of the result in bytes; nothing beyond is inflated.
        take: called with the number of bytes of each step; it may raise to stop, as many bodies are inflated at once.

    Raises:
        TooLarge: the result would be longer than `most`.
        BadEncoding: the data is damaged, cut off, or followed by other data.
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
        # No input is left, and no output was produced: the stream is incomplete.
        elif not pending and not piece and at >= len(view):
            raise BadEncoding(f"the {coding} data in the body is cut off", details=_DETAILS)
        if len(view) > _STEP_IN or size > _STEP_OUT:
            await asyncio.sleep(0)


_DETAILS: Final = {"path": "body"}


def _stream(coding: str, data: bytes) -> Any:
    if coding == "gzip":
        return zlib.decompressobj(zlib.MAX_WBITS | 16)
    # RFC 9110 requires the zlib header, but senders that omit it are common enough to be supported.
    has_header = data[0] & 0x0F == 8 and len(data) > 1 and (data[0] << 8 | data[1]) % 31 == 0
    return zlib.decompressobj(zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)
