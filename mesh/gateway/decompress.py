"""Decodes request bodies with a Content-Encoding.

Owns: the supported codings, the limit on the decoded size, and not blocking the event loop while inflating.
Leaves to others: reading the body from the connection (body).

aiohttp could do it, but it accepts a truncated gzip stream as complete, passes unknown codings on undecoded, and
continues to inflate a body that is over the limit.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Iterator
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


class Decoder:
    """Decodes one body piece by piece, so that neither form of it has to be in memory as a whole.

    Args:
        coding: "gzip" (any number of members) or "deflate" (with or without the zlib header).
        most: maximum size of the result in bytes; nothing beyond is inflated.
    """

    def __init__(self, coding: str, most: int) -> None:
        self._coding = coding
        self._most = most
        self._size = 0
        self._members = 0
        #: The member that is being inflated; None before the first and between two.
        self._stream: Any = None
        #: The first byte of a deflate body: only with the second it shows whether there is a zlib header.
        self._head = b""

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        """Decode the next part of the body into pieces of at most 256 KiB. Exhaust the iterator before the next call.

        Raises:
            TooLarge: the result is longer than `most`.
            BadEncoding: the data is damaged, or followed by other data.
        """
        if self._head:
            data, self._head = self._head + bytes(data), b""
        while True:
            if self._stream is None:
                if not data:
                    return
                if self._members and (self._coding != "gzip" or self._members >= MOST_MEMBERS):
                    raise BadEncoding(f"something follows the {self._coding} data in the body", details=_DETAILS)
                if self._coding == "deflate" and len(data) == 1:
                    self._head = bytes(data)
                    return
                self._stream = _stream(self._coding, data)
            stream = self._stream
            try:
                piece = stream.decompress(data, min(_STEP_OUT, self._most - self._size + 1))
            except zlib.error as exc:
                raise BadEncoding(f"the {self._coding} data in the body is damaged ({exc})", details=_DETAILS) from exc
            self._size += len(piece)
            if self._size > self._most:
                raise TooLarge(
                    f"the body is larger than {self._most} bytes when decoded; gateway.max_body in mesh.toml raises "
                    "the limit",
                    details={"limit_bytes": self._most},
                )
            if piece:
                yield piece
            data = stream.unconsumed_tail
            if stream.eof:
                self._members += 1
                self._stream = None
                data = stream.unused_data
            elif not data and not piece:
                # zlib has consumed all input, and holds no more output.
                return

    def finish(self) -> None:
        """End the body.

        Raises:
            BadEncoding: it is cut off.
        """
        if self._stream is not None or self._head:
            raise BadEncoding(f"the {self._coding} data in the body is cut off", details=_DETAILS)


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
    view = memoryview(data)
    decoder = Decoder(coding, most)
    out: list[bytes] = []
    for at in range(0, len(view), _STEP_IN):
        for piece in decoder.feed(view[at : at + _STEP_IN]):
            take(len(piece))
            out.append(piece)
            if len(view) > _STEP_IN or len(out) > 1:
                await asyncio.sleep(0)
    decoder.finish()
    return out[0] if len(out) == 1 else b"".join(out)


_DETAILS: Final = {"path": "body"}


def _stream(coding: str, data: bytes | memoryview) -> Any:
    if coding == "gzip":
        return zlib.decompressobj(zlib.MAX_WBITS | 16)
    # RFC 9110 requires the zlib header, but senders that omit it are common enough to be supported.
    has_header = data[0] & 0x0F == 8 and len(data) > 1 and (data[0] << 8 | data[1]) % 31 == 0
    return zlib.decompressobj(zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)
