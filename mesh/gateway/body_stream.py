"""The body of a request chunk by chunk, for uploads that do not fit into memory.

Owns: back-pressure, the minimum rate, the deadline and the limit of such a body, and `Expect: 100-continue`.
Leaves to others: parsing HTTP, and when to stop reading from the socket (aiohttp's StreamReader), decoding
(decompress), the limit on all bodies together (body).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Final

from aiohttp import hdrs, web
from aiohttp.web_protocol import RequestPayloadError

from mesh.errors import BadRequest, TooLarge
from mesh.gateway.decompress import Decoder

#: aiohttp stops reading from the socket when it holds twice as much of a body that is not read. (Its default is four
#: times as much, for each connection, and uploads are no faster with it.)
READ_AHEAD_BYTES: Final = 64 * 1024
#: The largest chunk: what aiohttp may hold, when a burst has arrived.
CHUNK_BYTES: Final = 256 * 1024

#: How long a body may arrive at any rate: a client on a bad line has moments without a byte.
RATE_GRACE_S: Final = 5.0

#: The most patience that a client gains by sending fast: one that has sent gigabytes may not pause for days.
PATIENCE_S: Final = 30.0

#: The maximum number of digits of a Content-Length to parse; longer numbers exceed every limit.
_LENGTH_DIGITS: Final = 18
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class BadBody(BadRequest):
    """The body's framing is broken, or the client closed before it was complete."""

    code = "bad_body"


class SlowBody(BadRequest):
    """The body did not arrive within the request's time, or arrived more slowly than gateway.min_body_rate."""

    code = "slow_body"
    status = 408


def announced_length(raw: web.BaseRequest) -> int | None:
    """The Content-Length of a request; None without one."""
    announced = raw.headers.get(hdrs.CONTENT_LENGTH, "")
    if not announced.isdecimal():
        return None
    digits = announced.lstrip("0")
    return int(digits or 0) if len(digits) <= _LENGTH_DIGITS else 10**_LENGTH_DIGITS


def send_continue(raw: web.BaseRequest) -> None:
    """Ask for the body of a client that waits for it."""
    if raw.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
        transport = raw.transport
        if transport is not None:
            transport.write(_CONTINUE)


class BodyStream:
    """The chunks of a body, as `async for` takes them. Each has 1 to `CHUNK_BYTES` bytes.

    The minimum rate concerns the client alone: only the time that the stream waits for it counts.

    Args:
        most: maximum bytes, both as received and decoded.
        rate: minimum bytes per second, on average, after RATE_GRACE_S.
        timeout: seconds for the whole body; None for no limit.
        coding: "gzip" or "deflate" to decode it; "" to pass it on as it was sent.
        received: called with the size of each part that has arrived.
        done: called once, at the end of the body.

    Attributes:
        length: the length of the body as received, if the client has announced it; None for a chunked body.
        size: bytes received so far.

    Raises:
        TooLarge: the body is larger than `most`.
        SlowBody: it arrives too slowly, or not in time.
        BadBody: its framing is broken, or the client closed the connection.
        BadEncoding: it cannot be decoded.
    """

    def __init__(
        self,
        raw: web.BaseRequest,
        *,
        most: int,
        rate: int,
        timeout: float | None,
        coding: str = "",
        received: Callable[[int], object] = lambda size: None,
        done: Callable[[], object] = lambda: None,
    ) -> None:
        self._raw = raw
        self._content = raw.content
        self._most = most
        self._rate = rate
        self._timeout = timeout
        self._over_at = None if timeout is None else asyncio.get_running_loop().time() + timeout
        self._decoder = Decoder(coding, most) if coding else None
        self._pieces: Iterator[bytes] = iter(())
        self._received = received
        self._done = done
        self._asked = False
        self._ended = False
        #: How long the client may still be waited for.
        self._patience_s = RATE_GRACE_S
        self._waited_s = 0.0
        self.length = announced_length(raw) if raw.body_exists else 0
        self.size = 0

    def __aiter__(self) -> BodyStream:
        return self

    async def __anext__(self) -> bytes:
        if self._decoder is None:
            chunk = await self._receive()
            if chunk:
                return chunk
        else:
            while True:
                for piece in self._pieces:
                    return piece
                chunk = await self._receive()
                if not chunk:
                    self._decoder.finish()
                    break
                self._pieces = self._decoder.feed(chunk)
        if not self._ended:
            self._ended = True
            self._done()
        raise StopAsyncIteration

    @property
    def at_end(self) -> bool:
        """Whether all of the body has been taken."""
        return self._content.at_eof() and self._decoder is None

    async def _receive(self) -> bytes:
        """The next part as received; empty at the end."""
        content = self._content
        try:
            chunk = content.read_nowait(CHUNK_BYTES)
            if not chunk and not content.at_eof():
                chunk = await self._wait()
        except (RequestPayloadError, web.PayloadAccessError, ConnectionError) as exc:
            raise BadBody(f"the body cannot be read: {exc}") from exc
        if chunk:
            self.size += len(chunk)
            if self.size > self._most:
                raise TooLarge(f"the body is larger than {self._most} bytes", details={"limit_bytes": self._most})
            self._patience_s = min(PATIENCE_S, self._patience_s + len(chunk) / self._rate)
            self._received(len(chunk))
        return chunk

    async def _wait(self) -> bytes:
        if not self._asked:
            self._asked = True
            send_continue(self._raw)
        now = asyncio.get_running_loop().time
        began_at = now()
        until = began_at + self._patience_s
        if self._over_at is not None:
            until = min(until, self._over_at)
        try:
            async with asyncio.timeout_at(until):
                return await self._content.read(CHUNK_BYTES)
        except TimeoutError as exc:
            waited_s = self._waited_s + now() - began_at
            time = "" if self._timeout is None else f"the request's time is {self._timeout:g} s, and "
            raise SlowBody(
                f"{self.size} bytes of the body arrived, and the gateway has waited {waited_s:.1f} s for them; {time}"
                f"gateway.min_body_rate is {self._rate} bytes per second"
            ) from exc
        finally:
            waited_s = now() - began_at
            self._waited_s += waited_s
            self._patience_s -= waited_s
