"""Closing a gateway's keep-alive connections without breaking a request.

Owns: which connections have a pending request, and closing the others without losing a request that is just arriving.
Leaves to others: when to stop accepting, and when to close (app).

A request may have arrived that no handler has seen yet: closing the connection would answer it with a reset. So an
idle connection first stops reading; bytes that were read before reach the handler within a few rounds of the loop;
later bytes are visible in the kernel's buffer. Only a connection with neither is closed.
"""

from __future__ import annotations

import asyncio
import select
from typing import Final, Protocol

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

#: From the bytes of a request to the first line of its handler aiohttp takes three rounds of the loop: parser, task of
#: the connection, task of the handler. Twice that is a margin for other releases of aiohttp.
TURNS: Final = 6


class Leaving(Protocol):
    """The part of a stream that is used here."""

    def leave(self) -> None: ...


class Connections:
    """The connections of one `web.Server`."""

    def __init__(self) -> None:
        #: Connections with a pending request. The handler adds and discards directly: this is on the hot path.
        self.busy: set[RequestHandler] = set()
        #: Streams that are being written.
        self.streams: set[Leaving] = set()
        #: While draining: when each connection without a pending request was first seen so, on the monotonic clock.
        self._idle_since: dict[RequestHandler, float] = {}

    def end_streams(self) -> None:
        """End every stream with a client that reconnects by itself (Server-Sent Events)."""
        for stream in list(self.streams):
            stream.leave()

    async def close_idle(self, server: web.Server, now: float = 0.0, idle_s: float = 0.0) -> int:
        """Close every connection that has had no pending request for `idle_s`, and none arriving.

        A stream that began before the gateway drained has not announced that its connection closes: the client may be
        about to send the next request on it, which gets `Connection: close`. So the time counts for each connection.

        A TLS connection is not paused: that would hold back what has been read and decrypted, and not stop reading. Its
        bytes reach the parser in the turn in which they are read, and `heard` tells of them.

        Args:
            now: the time, on the monotonic clock.
            idle_s: 0 closes connections that have only just become idle, too.

        Returns:
            How many connections remain.
        """
        idle: list[tuple[RequestHandler, asyncio.Transport]] = []
        for connection in server.connections:
            transport = connection.transport
            if transport is None or connection in self.busy or transport.is_closing():
                self._idle_since.pop(connection, None)
                continue
            if now - self._idle_since.setdefault(connection, now) < idle_s:
                continue
            if _is_tls(transport) or _pause(transport):
                idle.append((connection, transport))
        for _ in range(TURNS):
            await asyncio.sleep(0)
        waiting = _readable([transport for _, transport in idle])
        for connection, transport in idle:
            if transport.is_closing():
                continue
            if connection in self.busy or transport in waiting or (_is_tls(transport) and _heard(connection)):
                if not _is_tls(transport):
                    transport.resume_reading()
            else:
                transport.close()
        return len(server.connections)


def _is_tls(transport: asyncio.Transport) -> bool:
    return transport.get_extra_info("ssl_object") is not None


def _heard(connection: RequestHandler) -> bool:
    return bool(getattr(connection, "heard", False))


def _pause(transport: asyncio.Transport) -> bool:
    # Reading is already paused: aiohttp does so when the body of a request arrives faster than the handler reads it.
    if transport.is_closing() or not transport.is_reading():
        return False
    transport.pause_reading()
    return True


def _readable(transports: list[asyncio.Transport]) -> set[asyncio.Transport]:
    """The transports with bytes, or an end of file, in the kernel's buffer."""
    poll = select.poll()
    by_fd: dict[int, asyncio.Transport] = {}
    for transport in transports:
        if transport.is_closing():
            continue
        socket = transport.get_extra_info("socket")
        if socket is not None and (fd := socket.fileno()) >= 0:
            by_fd[fd] = transport
            poll.register(fd, select.POLLIN)
    return {by_fd[fd] for fd, _ in poll.poll(0)}
