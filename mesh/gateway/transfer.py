"""An answer that is written piece by piece under a head that is known in full: forwarded answers and files.

Owns: its framing, back-pressure, and how an incomplete answer ends.
Leaves to others: where the bytes come from (forwarding, mounts.static), answers in one piece (reply), streams of items
(sse).

It is written while its handler runs, so that the request counts as unanswered, and the gateway does not close the
connection, until the last byte has been sent.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Final

from aiohttp.http import HttpVersion11

from mesh.gateway.reply import Buffer, date_line, head_of
from mesh.gateway.request import RawRequest

#: CVE-2024-12254: in these versions of Python, asyncio's own loop does not tell a writer to pause after `writelines`.
_WRITELINES_IS_UNBOUNDED: Final = (3, 12) <= sys.version_info < (3, 12, 9) or (3, 13) <= sys.version_info < (3, 13, 2)


class Written:
    """An answer that has been written when its handler returns; replaces aiohttp's Response, like `reply.Reply`.

    Attributes:
        size: bytes of the body that have been written.
        keep_alive: aiohttp reads it after the answer.
        begun: the head has been sent: the status can no longer change.
    """

    keep_alive = False
    begun = True

    def __init__(self, status: int, size: int = 0) -> None:
        self.status = status
        self.size = size

    async def prepare(self, request: RawRequest) -> None:
        """Everything has been written already; wait until the connection has sent it."""
        await request.writer.drain()

    async def write_eof(self) -> None:
        """Nothing is left to write."""


class Transfer(Written):
    """An answer in pieces.

    Args:
        lines: header lines, each ended by CR LF, without those about framing and the connection.
        length: bytes of the body; None when it is not known.
        stall_s: how long the client may read nothing before the answer is broken off.

    """

    def __init__(
        self,
        request: RawRequest,
        status: int,
        lines: bytes,
        length: int | None,
        *,
        keep_alive: bool = True,
        stall_s: float = 60.0,
    ) -> None:
        super().__init__(status)
        self._request = request
        self._lines = lines
        self._length = length
        self._chunked = length is None and request.version == HttpVersion11
        self._stall_s = stall_s
        # HTTP/1.0 has no chunks: closing the connection ends an answer of unknown length.
        self.keep_alive = keep_alive and request.keep_alive and (self._chunked or length is not None)
        self.begun = False

    async def write(self, data: Buffer) -> None:
        """Send a piece; waits while the client reads too slowly.

        Raises:
            ConnectionError: the client has disconnected, or has read nothing for `stall_s`.
            ValueError: the body is longer than its announced length.
        """
        size = len(data)
        if not size:
            return
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has disconnected")
        if self._length is not None and self.size + size > self._length:
            raise ValueError(f"the body is longer than the {self._length} bytes that it announced")
        self.size += size
        if self._chunked:
            parts = (self._head(), b"%x\r\n" % size, data, b"\r\n")
            if _WRITELINES_IS_UNBOUNDED:
                transport.write(b"".join(parts))
            else:
                transport.writelines(parts)
        else:
            if not self.begun:
                transport.write(self._head())
            transport.write(data)
        if self._request.protocol.writing_paused:
            try:
                async with asyncio.timeout(self._stall_s):
                    await self._request.writer.drain()
            except TimeoutError as exc:
                transport.abort()
                raise ConnectionAbortedError("the client does not read its answer") from exc

    def start(self) -> None:
        """Send the head now, before the first piece is there."""
        transport = self._request.transport
        if not self.begun and transport is not None and not transport.is_closing():
            transport.write(self._head())

    def end(self) -> None:
        """End the answer after its last piece; one that is shorter than announced fails."""
        if self._length is not None and self.size < self._length:
            self.fail()
            return
        transport = self._request.transport
        if transport is not None and not transport.is_closing():
            transport.write(self._head() + (b"0\r\n\r\n" if self._chunked else b""))

    def fail(self) -> None:
        """Break the answer off, so that the client sees that it is incomplete."""
        self.keep_alive = False
        transport = self._request.transport
        if transport is not None:
            transport.close()

    def _head(self) -> bytes:
        if self.begun:
            return b""
        self.begun = True
        version = self._request.version
        if self._length is not None:
            framing = b"Content-Length: %d\r\n" % self._length
        else:
            framing = b"Transfer-Encoding: chunked\r\n" if self._chunked else b""
        connection = b"Connection: close\r\n" if not self.keep_alive else b""
        if self.keep_alive and version != HttpVersion11:
            connection = b"Connection: keep-alive\r\n"
        return b"%b%b%b%b%b%b\r\n" % (
            head_of(self.status, "")[1],
            framing,
            self._lines,
            self._request.lines,
            date_line(),
            connection,
        )
