"""Leaving without a broken request: the end of a gateway's keep-alive connections.

Owns: which connections have a request in hand, and closing those that have none without losing one that is just
coming in.
Leaves to others: stopping to accept, and when it is time (app).

The danger is a request that has arrived but that no handler has yet seen: closing then answers it with a reset. So an
idle connection is first told to read no further; what was read before reaches its handler within a few turns of the
loop; what has come since is seen in the kernel's buffer. Only a connection with neither is closed.
"""

from __future__ import annotations

import asyncio
import select
from typing import Final, Protocol

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

#: From the bytes of a request to the first line of its handler aiohttp takes three turns: parser, connection's task,
#: handler's task. Twice that leaves room for another release.
TURNS: Final = 6


class Leaving(Protocol):
    """What is asked of a stream."""

    def leave(self) -> None: ...


class Connections:
    """The connections of one `web.Server`."""

    def __init__(self) -> None:
        #: Those with a request in hand. The handler adds and discards: it is on the path of every request.
        self.busy: set[RequestHandler] = set()
        #: Streams that are being written.
        self.streams: set[Leaving] = set()

    def end_streams(self) -> None:
        """Have each stream ended whose client knows how to connect again."""
        for stream in list(self.streams):
            stream.leave()

    async def close_idle(self, server: web.Server) -> int:
        """Close every connection that has no request in hand and none coming in.

        Returns:
            How many connections remain.
        """
        idle: list[tuple[RequestHandler, asyncio.Transport]] = []
        for connection in server.connections:
            transport = connection.transport
            if transport is not None and connection not in self.busy and _pause(transport):
                idle.append((connection, transport))
        for _ in range(TURNS):
            await asyncio.sleep(0)
        waiting = _readable([transport for _, transport in idle])
        for connection, transport in idle:
            if transport.is_closing():
                continue
            if connection in self.busy or transport in waiting:
                transport.resume_reading()
            else:
                transport.close()
        return len(server.connections)


def _pause(transport: asyncio.Transport) -> bool:
    # Not reading already: aiohttp holds it back because a request's body is ahead of its handler.
    if transport.is_closing() or not transport.is_reading():
        return False
    transport.pause_reading()
    return True


def _readable(transports: list[asyncio.Transport]) -> set[asyncio.Transport]:
    """Those with bytes, or an end, in the kernel's buffer."""
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
