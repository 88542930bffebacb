"""Reads the body of a request from the connection.

Owns: the limit on one body and on all bodies together, `Expect: 100-continue`, and the minimum rate of a body.
Leaves to others: parsing HTTP (aiohttp), Content-Encoding (decompress), interpreting the body (binding).
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

from aiohttp import hdrs, web
from aiohttp.web_protocol import RequestPayloadError

from mesh.errors import BadRequest, Overloaded, TooLarge
from mesh.gateway.decompress import check_transfer_coding, decompress, read_coding
from mesh.gateway.request import Request

_CONTENT_ENCODING: Final = hdrs.CONTENT_ENCODING
_TRANSFER_ENCODING: Final = hdrs.TRANSFER_ENCODING
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

#: How long a body may arrive at any rate: a client on a bad line has moments without a byte.
RATE_GRACE_S: Final = 5.0

#: The maximum number of digits of a Content-Length to parse; longer numbers exceed every limit.
_LENGTH_DIGITS: Final = 18


class BadBody(BadRequest):
    """The body's framing is broken, or the client closed before it was complete."""

    code = "bad_body"


class SlowBody(BadRequest):
    """The body did not arrive within the request's time, or arrived more slowly than gateway.min_body_rate."""

    code = "slow_body"
    status = 408


class BodiesFull(Overloaded):
    """The bodies of all requests together are at their limit; nothing was done."""


class Bodies:
    """The bodies that this gateway holds in memory.

    Args:
        most: maximum bytes of one body, both as received and decoded.
        most_together: maximum bytes of all bodies; a body counts from its arrival until its request is answered.
        rate: minimum average rate of a body after RATE_GRACE_S, in bytes per second.
    """

    def __init__(self, most: int, most_together: int, rate: int) -> None:
        self.most = most
        self.most_together = most_together
        self.rate = rate
        #: Current bytes of all bodies.
        self.held = 0

    def _take(self, request: Request, size: int) -> None:
        if self.held + size > self.most_together:
            raise BodiesFull(
                f"the gateway holds {self.held} bytes of request bodies, and gateway.max_body_total is "
                f"{self.most_together}; send the request again later",
                details={"retry_after_s": 1},
            )
        self.held += size
        request.held += size

    def release(self, request: Request) -> None:
        """Stop counting the body of an answered request. No effect when there is none."""
        self.held -= request.held
        request.held = 0

    async def read(self, request: Request, timeout: float) -> bytes:
        """Read and decode the whole body. It counts towards the limit on all bodies until `release`.

        Args:
            timeout: seconds to wait for it.

        Raises:
            TooLarge: the body is larger than the limit; when Content-Length announces this, it is not read at all.
            BodiesFull: all bodies together exceed their limit.
            SlowBody: the body did not arrive in time, or arrived too slowly.
            BadBody: its framing is broken.
            BadEncoding, UnsupportedEncoding: it cannot be decoded.
        """
        if request.early_body is not None:
            return request.early_body
        raw = request.raw
        headers = raw.headers
        content = raw.content
        # Several lines of one field are one list (RFC 9110, section 5.3).
        coding = read_coding(",".join(headers.getall(_CONTENT_ENCODING))) if _CONTENT_ENCODING in headers else ""
        if _TRANSFER_ENCODING in headers:
            check_transfer_coding(headers[_TRANSFER_ENCODING])
        try:
            if content.is_eof():
                # The whole body arrived with the head, as small bodies do.
                data = content.read_nowait(-1)
                if len(data) > self.most:
                    raise self._too_large()
                self._take(request, len(data))
            else:
                data = await self._receive(request, timeout)
        except (RequestPayloadError, web.PayloadAccessError) as exc:
            raise BadBody(f"the body cannot be read: {exc}") from exc
        request.body_bytes = len(data)
        if coding:
            packed = len(data)
            data = await decompress(data, coding, self.most, partial(self._take, request))
            self._take(request, -packed)
        return data

    async def _receive(self, request: Request, timeout: float) -> bytes:
        raw = request.raw
        announced = raw.headers.get(hdrs.CONTENT_LENGTH, "").lstrip("0")
        if announced.isdecimal() and (len(announced) > _LENGTH_DIGITS or int(announced) > self.most):
            raise self._too_large()
        if hdrs.EXPECT in raw.headers and raw.headers[hdrs.EXPECT].lower() == "100-continue":
            transport = raw.transport
            if transport is not None:
                transport.write(_CONTINUE)
        content = raw.content
        chunks: list[bytes] = []
        size = 0
        began_at = asyncio.get_running_loop().time()
        over_at = began_at + timeout
        try:
            async with asyncio.timeout_at(min(over_at, began_at + RATE_GRACE_S)) as limit:
                while chunk := await content.readany():
                    size += len(chunk)
                    if size > self.most:
                        raise self._too_large()
                    self._take(request, len(chunk))
                    chunks.append(chunk)
                    limit.reschedule(min(over_at, began_at + RATE_GRACE_S + size / self.rate))
        except TimeoutError as exc:
            waited = asyncio.get_running_loop().time() - began_at
            raise SlowBody(
                f"{size} bytes of the body arrived within {waited:.1f} s; the request's time is {timeout:g} s, and "
                f"gateway.min_body_rate is {self.rate} bytes per second"
            ) from exc
        return b"".join(chunks)

    def _too_large(self) -> TooLarge:
        return TooLarge(
            f"the body is larger than {self.most} bytes; gateway.max_body in mesh.toml raises the limit",
            details={"limit_bytes": self.most},
        )
