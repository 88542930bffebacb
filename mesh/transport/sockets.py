"""Makes ZeroMQ sockets, with every option that must be set before bind or connect.

Owns: the options, and reading a socket from an event loop without missing an edge.
Leaves to others: handling the messages (dealer, router, pubsub), where to bind (endpoints).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from socket import socket as PlainSocket

import zmq

#: The last message of the accepting side: a ROUTER cannot close one connection, so it asks the dialler to close it.
#: 0xc1 is the only byte that begins no MessagePack value, so no message of a session can be mistaken for it.
CUT = b"\xc1"
#: Tests whether a peer is still connected: the send fails when it is not, and a peer that receives it discards it.
PROOF = b"\xc1?"

#: Bytes that may wait in this process for one peer that does not read; beyond it the peer is cut. The credit of the
#: link bounds the answers, so only a peer that requests much and reads nothing reaches this.
MAX_BACKLOG_BYTES = 128 * 1024 * 1024
#: The overhead counted for each message, in bytes; otherwise small messages would count as almost nothing.
MESSAGE_BYTES = 200
#: Messages longer than this are counted when they are given to libzmq; SNDHWM limits the number of shorter ones.
COUNTED_BYTES = 8 * 1024
#: Counted bytes given to libzmq for one peer; more only after the kernel has sent all of them.
WINDOW_BYTES = 64 * 1024 * 1024

#: For all parts of a message but the last. As integers: an operation on two of zmq's flags takes a microsecond.
NOBLOCK_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_READABLE = int(zmq.POLLIN)

#: How many messages one drain reads before other work of the loop runs. A message contains the calls of a whole tick,
#: so 64 are enough; benchmarks/rpc.py shows no gain beyond 32.
DRAIN_BUDGET = 64

#: The messages of a tick are sent together, but after this many wakes a part is sent early: while the peer processes
#: the first part, this end makes the second, and two processes that wait for each other use two cores.
EARLY_FLUSH = 16

Context = zmq.Context[zmq.Socket[bytes]]
Socket = zmq.Socket[bytes]


@dataclass(frozen=True)
class LinkOptions:
    """The options of all sockets of a transport.

    Attributes:
        heartbeat_s: how often libzmq's I/O thread sends heartbeats to an idle peer.
        heartbeat_timeout_s: silence after which it closes the connection.
        connect_timeout_s: how long connecting and the handshake may take.
        max_message_bytes: the largest frame; a larger one closes its connection.
        max_received_bytes: the same for ROUTER sockets that peers connect to; None takes `max_message_bytes`.
        linger_s: how long a closed socket may still deliver sent messages.
    """

    heartbeat_s: float = 1.0
    heartbeat_timeout_s: float = 3.0
    connect_timeout_s: float = 2.0
    max_message_bytes: int = 66 * 1024 * 1024
    max_received_bytes: int | None = None
    linger_s: float = 0.25

    @property
    def largest_received(self) -> int:
        """The largest frame that a bound ROUTER accepts."""
        return self.max_message_bytes if self.max_received_bytes is None else self.max_received_bytes


def make(context: Context, kind: int, options: LinkOptions, endpoint: str = "") -> Socket:
    """A socket with no lingering, bounded messages and heartbeats; not yet bound or connected to `endpoint`."""
    socket = context.socket(kind)
    socket.linger = 0
    socket.setsockopt(zmq.MAXMSGSIZE, options.max_message_bytes)
    # No limit: libzmq stops reading a connection at its limit, and aborts the process when the peer then closes and a
    # heartbeat is due (libzmq #4841). `pressure` and the sessions bound the memory of a peer instead.
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.HEARTBEAT_IVL, int(options.heartbeat_s * 1000))
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, int(options.heartbeat_timeout_s * 1000))
    # The peer also closes the connection when this end is silent: TTL has units of 100 ms on the wire.
    socket.setsockopt(zmq.HEARTBEAT_TTL, int(options.heartbeat_timeout_s * 1000))
    socket.setsockopt(zmq.HANDSHAKE_IVL, int(options.connect_timeout_s * 1000))
    # For publishers, which reconnect by themselves: the kernel's own retries would soon be a minute apart.
    socket.setsockopt(zmq.CONNECT_TIMEOUT, int(options.connect_timeout_s * 1000))
    # libzmq sends no ping while a message is half sent, and each received message ends the wait for the next heartbeat
    # (4.3.5, stream_engine_base.cpp: out_event, decode_and_push). So a link that breaks in the middle of large bodies
    # may last until TCP gives up, 15 minutes later. Twice the heartbeat timeout, because a busy peer with full buffers
    # acknowledges nothing either, although it is alive.
    socket.setsockopt(zmq.TCP_MAXRT, int(options.heartbeat_timeout_s * 2000))
    allow_ipv6(socket, endpoint)
    return socket


def allow_ipv6(socket: Socket, endpoint: str) -> None:
    """Before bind or connect: enable IPv6 for an IPv6 address. Not for IPv4, which libzmq would then report as
    ::ffff:127.0.0.1."""
    if "[" in endpoint:
        socket.setsockopt(zmq.IPV6, 1)


@contextmanager
def borrowed(fd: int) -> Iterator[PlainSocket]:
    """A duplicate of one of libzmq's descriptors, as a socket; closing it leaves libzmq's descriptor open.

    Raises:
        OSError: the descriptor is not a connection any more.
    """
    own = os.dup(fd)
    try:
        connection = PlainSocket(fileno=own)
    except OSError:  # the number belongs to a file by now
        os.close(own)
        raise
    with connection:
        yield connection


def nothing() -> None:
    """The `read` of a closed Edge: there is no message."""
    raise zmq.Again


class Edge:
    """Calls `read` until there is nothing left, whenever a socket may have become readable.

    ZMQ_FD is edge-triggered: it wakes once for many messages, and not at all for messages that arrive during a send. So
    code that sends must call `look` afterwards.
    """

    __slots__ = ("_again", "_fd", "_loop", "_read", "_socket")

    def __init__(self, socket: Socket, read: Callable[[], None]) -> None:
        """`read` takes one message from the socket and raises `zmq.Again` when there is none."""
        self._socket = socket
        self._read = read
        self._loop = asyncio.get_running_loop()
        self._fd: int = socket.getsockopt(zmq.FD)  # type: ignore[assignment]  # typed for every option at once
        self._again: asyncio.Handle | None = None
        self._loop.add_reader(self._fd, self.drain)
        # Messages that arrived before add_reader cause no edge.
        self._again = self._loop.call_soon(self.drain)

    def drain(self) -> None:
        """Read until the socket is empty, or continue in the next tick when the budget is used."""
        if self._fd < 0:
            return
        self._again = None
        read = self._read
        try:
            for _ in range(DRAIN_BUDGET):
                read()
        except zmq.Again:
            return
        except zmq.ZMQError:
            # Closed by the handler of the message just read, or by the end of the context.
            if self._socket.closed or self._fd < 0:
                return
            raise
        except Exception as exc:
            # If reading one message fails, the rest must still be read.
            context = {"message": "mesh: reading a socket failed", "exception": exc}
            self._loop.call_exception_handler(context)
        if self._fd >= 0:
            self._again = self._loop.call_soon(self.drain)

    @property
    def more(self) -> bool:
        """Whether something may still be unread."""
        if self._fd < 0:
            return False
        if self._again is not None:
            return True
        events: int = self._socket.getsockopt(zmq.EVENTS)  # type: ignore[assignment]  # typed for every option
        return bool(events & _READABLE)

    @property
    def unread(self) -> bool:
        """The same, for callers that do not read afterwards: the check may consume an edge, so it schedules a drain."""
        more = self.more
        if more and self._again is None:
            self._again = self._loop.call_soon(self.drain)
        return more

    def look(self) -> None:
        """Read what has arrived. Call it after each send, which may consume an edge."""
        if self._again is None and self._fd >= 0:
            events: int = self._socket.getsockopt(zmq.EVENTS)  # type: ignore[assignment]  # typed for every option
            if events & _READABLE:
                self.drain()

    def close(self) -> None:
        """Stop watching; call it before the socket is closed."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._fd = -1
            self._read = nothing  # breaks a reference cycle with the owner
            if self._again is not None:
                self._again.cancel()
                self._again = None
