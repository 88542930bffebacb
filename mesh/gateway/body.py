"""Reads the body of a request from the connection.

Owns: the limit on one body and on all bodies together, and reading a whole body at a minimum rate.
Leaves to others: bodies chunk by chunk (body_stream), parsing HTTP (aiohttp), Content-Encoding (decompress),
interpreting the body (binding).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

from aiohttp import hdrs, web
from aiohttp.web_protocol import RequestPayloadError

from mesh.errors import Overloaded, TooLarge
from mesh.gateway.body_stream import (
    CHUNK_BYTES,
    RATE_GRACE_S,
    BadBody,
    BodyStream,
    SlowBody,
    announced_length,
    send_continue,
)
from mesh.gateway.decompress import check_transfer_coding, decompress, read_coding
from mesh.gateway.request import Request

_CONTENT_ENCODING: Final = hdrs.CONTENT_ENCODING
_TRANSFER_ENCODING: Final = hdrs.TRANSFER_ENCODING
#: A decoded body of this size is harmless, whatever its ratio.
INFLATION_GRACE: Final = 2**20


class BodiesFull(Overloaded):
    """The bodies of all requests together are at their limit; nothing was done."""


class Bodies:
    """The bodies that this gateway holds in memory.

    Args:
        most: maximum bytes of one body, both as received and decoded.
        most_together: maximum bytes of all bodies; a body counts from its arrival until its request is answered.
        rate: minimum average rate of a body after RATE_GRACE_S, in bytes per second.
        most_inflation: how many times larger than received a decoded body beyond INFLATION_GRACE may be.
        exceeded: counts a body that is refused.
    """

    def __init__(
        self,
        most: int,
        most_together: int,
        rate: int,
        most_inflation: int = 500,
        exceeded: Callable[[str], None] = lambda limit: None,
    ) -> None:
        self.most = most
        self.most_together = most_together
        self.rate = rate
        self.most_inflation = most_inflation
        self._exceeded = exceeded
        #: Current bytes of all bodies.
        self.held = 0

    def _take(self, request: Request, size: int) -> None:
        if self.held + size > self.most_together:
            self._exceeded("max_body_total")
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

    async def read(self, request: Request, timeout: float, most: int = 0) -> bytes:
        """Read and decode the whole body. It counts towards the limit on all bodies until `release`.

        Args:
            timeout: seconds to wait for it.
            most: maximum bytes, both as received and decoded; 0 takes the gateway's.

        Raises:
            TooLarge: the body is larger than the limit; when Content-Length announces this, it is not read at all.
            BodiesFull: all bodies together exceed their limit.
            SlowBody: the body did not arrive in time, or arrived too slowly.
            BadBody: its framing is broken.
            BadEncoding, UnsupportedEncoding: it cannot be decoded.
        """
        if request.early_body is not None:
            return request.early_body
        most = most or self.most
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
                if len(data) > most:
                    raise self._too_large(most)
                self._take(request, len(data))
            else:
                data = await self._receive(request, timeout, most)
        except (RequestPayloadError, web.PayloadAccessError) as exc:
            raise BadBody(f"the body cannot be read: {exc}") from exc
        request.body_bytes = len(data)
        if coding:
            packed = len(data)
            inflated = min(most, max(INFLATION_GRACE, packed * self.most_inflation))
            try:
                data = await decompress(data, coding, inflated, partial(self._take, request))
            except TooLarge:
                if inflated == most:
                    raise self._too_large(most) from None
                self._exceeded("max_inflation")
                raise TooLarge(
                    f"the body is more than {self.most_inflation} times larger when decoded; gateway.max_inflation in "
                    "mesh.toml raises the limit",
                    details={"limit": self.most_inflation},
                ) from None
            self._take(request, -packed)
        return data

    def stream(
        self, request: Request, *, max_bytes: int | None = None, timeout: float | None = None, decode: bool = True
    ) -> BodyStream:
        """The body of a request as an asynchronous iterator of chunks, for bodies of any size.

        The gateway reads from the connection only as fast as the chunks are taken. An open stream counts as
        `CHUNK_BYTES` towards the limit on all bodies, whatever the size of the body.

        Args:
            max_bytes: maximum bytes of the body, both as received and decoded; None is the gateway's own maximum.
            timeout: seconds for the whole body; None for as long as its rate suffices.
            decode: decompress the body; False passes it on as it was sent.

        Raises:
            TooLarge: Content-Length announces more than the maximum; nothing was read.
            BodiesFull: all bodies together exceed their limit.
            UnsupportedEncoding: the body cannot be decoded.

        The iterator raises TooLarge, SlowBody, BadBody and BadEncoding.
        """
        raw = request.raw
        headers = raw.headers
        coding = ""
        if decode and _CONTENT_ENCODING in headers:
            coding = read_coding(",".join(headers.getall(_CONTENT_ENCODING)))
        if _TRANSFER_ENCODING in headers:
            check_transfer_coding(headers[_TRANSFER_ENCODING])
        most = self.most if max_bytes is None else max_bytes
        announced = announced_length(raw)
        if announced is not None and announced > most:
            raise self._too_large(most)
        if not raw.content.at_eof():
            self._take(request, min(CHUNK_BYTES, announced or CHUNK_BYTES))
        return BodyStream(
            raw,
            most=most,
            rate=self.rate,
            timeout=timeout,
            coding=coding,
            received=request.progressed,
            done=partial(self.release, request),
        )

    async def _receive(self, request: Request, timeout: float, most: int) -> bytes:
        raw = request.raw
        if (announced_length(raw) or 0) > most:
            raise self._too_large(most)
        send_continue(raw)
        content = raw.content
        chunks: list[bytes] = []
        size = 0
        began_at = asyncio.get_running_loop().time()
        over_at = began_at + timeout
        try:
            async with asyncio.timeout_at(min(over_at, began_at + RATE_GRACE_S)) as limit:
                while chunk := await content.readany():
                    size += len(chunk)
                    if size > most:
                        raise self._too_large(most)
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

    def _too_large(self, most: int) -> TooLarge:
        self._exceeded("max_body")
        remedy = "gateway.max_body in mesh.toml" if most == self.most else "max_body of the route"
        return TooLarge(
            f"the body is larger than {most} bytes; {remedy} raises the limit", details={"limit_bytes": most}
        )
