"""What libzmq's I/O thread saw happen to a socket's connections.

Owns: the monitor socket and its events as calls.
Leaves to others: what to do about them (dealer, router, pubsub).
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import zmq

from mesh.transport.sockets import Edge, Socket

#: A connection stood, and a peer to talk to did not come of it.
FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
)

#: Only what is acted on: each event costs a wake-up.
WATCHED = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
#: Of a bound socket and of a dialling one: also the descriptors of their connections.
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
    """Stop watching."""


class Monitor:
    """Watches one socket; must be made before it binds or connects, and closed before it is closed."""

    __slots__ = ("_ahead", "_edge", "_heard", "_pair", "_watched")

    def __init__(self, socket: Socket, heard: Callable[[int, int, str], None], events: int = WATCHED) -> None:
        """`heard(event, value, endpoint)`: value is a file descriptor or an error number, as libzmq has it."""
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
        """Whether this has happened already and is still to be told; asked from inside of `heard`."""
        with suppress(zmq.Again):
            while True:
                self._ahead.append(self._take())
        return any(each[0] == event and each[1] == value for each in self._ahead)

    def close(self) -> None:
        """Stop watching; harmless the second time."""
        self._ahead.clear()
        self._edge.close()
        self._heard = ignored  # its owner holds us
        if not self._watched.closed:
            self._watched.disable_monitor()
        self._pair.close()
