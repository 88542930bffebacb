"""Reports what happens to a socket's connections, from libzmq's socket monitor.

Owns: the monitor socket, and calling back for each event.
Leaves to others: reacting to events (dealer, router, pubsub).
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import zmq

from mesh.transport.sockets import Edge, Socket

#: A connection was made, but its handshake failed.
FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
)

#: Only events that are used: each one costs a wake-up.
WATCHED = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
#: For bound and for dialling sockets: also the descriptors of their connections.
ACCEPTING = WATCHED | zmq.EVENT_ACCEPTED
DIALLING = WATCHED | zmq.EVENT_CONNECTED

#: Source: zmq_socket_monitor(3): frame 1 is a 16-bit event and a 32-bit value, in the machine's byte order.
_EVENT = struct.Struct("=HI")

REASONS = {
    zmq.EVENT_DISCONNECTED: "connection lost",
    zmq.EVENT_CLOSED: "connection refused",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "handshake failed",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "handshake failed: the other end does not speak ZMTP",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "handshake failed: not authorised",
}


def ignored(event: int, value: int, endpoint: str) -> None:
    """Discard an event."""


class Monitor:
    """Watches one socket. Make it before the socket binds or connects, and close it before the socket."""

    __slots__ = ("_ahead", "_edge", "_heard", "_pair", "_watched")

    def __init__(self, socket: Socket, heard: Callable[[int, int, str], None], events: int = WATCHED) -> None:
        """`heard(event, value, endpoint)` is called for each event; `value`: a descriptor or a libzmq error number."""
        self._ahead: deque[tuple[int, int, str]] = deque()
        self._watched = socket
        self._heard = heard
        self._pair: Socket = socket.get_monitor_socket(events)
        self._pair.linger = 0
        self._edge = Edge(self._pair, self._read)

    def _read(self) -> None:
        self._heard(*(self._ahead.popleft() if self._ahead else self._take()))

    def _take(self) -> tuple[int, int, str]:
        frames = self._pair.recv_multipart(zmq.NOBLOCK)
        event, value = _EVENT.unpack(frames[0])
        return event, value, frames[1].decode("utf-8", "replace")

    def has(self, event: int, value: int) -> bool:
        """Whether this event has happened already but was not reported yet; called from inside `heard`."""
        with suppress(zmq.Again):
            while True:
                self._ahead.append(self._take())
        return any(each[0] == event and each[1] == value for each in self._ahead)

    def close(self) -> None:
        """Stop watching. Harmless when called again."""
        self._ahead.clear()
        self._edge.close()
        self._heard = ignored  # breaks a reference cycle with the owner
        if not self._watched.closed:
            self._watched.disable_monitor()
        self._pair.close()
