"""Making ZeroMQ sockets with every option that must be set before bind or connect.

Owns: the options, and reading a socket from an event loop without missing an edge.
Leaves to others: what is read (dealer, router, pubsub), where to bind (endpoints).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from socket import socket as PlainSocket

import zmq

#: The accepting side's last word: ROUTER cannot close one connection, so it asks the dialler to. 0xc1 is the one byte
#: that begins no MessagePack value, so no message of a session can be mistaken for it.
CUT = b"\xc1"
#: Asks whether a peer is still there: the send fails when it is not, and whoever gets it drops it.
PROOF = b"\xc1?"

#: What may wait in our memory for one peer that does not read; past it the peer is cut. Answers are bounded by the
#: credit of the link, so only a peer that asks for much and reads nothing comes here.
MAX_BACKLOG_BYTES = 128 * 1024 * 1024
#: What one message costs in that memory beside its bytes; small ones would otherwise count as nothing.
MESSAGE_BYTES = 200
#: Messages longer than this are counted when libzmq is given them; shorter ones are bounded by their number (SNDHWM).
COUNTED_BYTES = 8 * 1024
#: So many counted bytes are given to libzmq for one peer; more only when the kernel has sent all of it.
WINDOW_BYTES = 64 * 1024 * 1024

#: How many messages one drain takes before the loop's other work has its turn. A message holds a tick's worth of
#: calls, so 64 of them are plenty; benchmarks/rpc.py shows no gain beyond 32.
DRAIN_BUDGET = 64

#: A tick's messages leave together, but not later than this many: while the other end works on the first lot, this
#: end makes the second, and two processes that wait for each other use two cores.
EARLY_FLUSH = 16

Context = zmq.Context[zmq.Socket[bytes]]
Socket = zmq.Socket[bytes]


@dataclass(frozen=True)
class LinkOptions:
    """What every socket of a transport is made with.

    Attributes:
        heartbeat_s: how often libzmq's I/O thread asks an idle peer for a sign of life.
        heartbeat_timeout_s: silence after which it calls the connection dead.
        connect_timeout_s: how long a dialled connection may take to stand.
        max_message_bytes: a larger frame cuts the connection that it came on.
        max_received_bytes: the same for sockets that peers connect to; None takes `max_message_bytes`.
        linger_s: how long a closed socket may still hand over what was sent.
    """

    heartbeat_s: float = 1.0
    heartbeat_timeout_s: float = 3.0
    connect_timeout_s: float = 2.0
    max_message_bytes: int = 66 * 1024 * 1024
    max_received_bytes: int | None = None
    linger_s: float = 0.25

    @property
    def largest_received(self) -> int:
        """The largest frame that a bound ROUTER takes."""
        return self.max_message_bytes if self.max_received_bytes is None else self.max_received_bytes


def make(context: Context, kind: int, options: LinkOptions, endpoint: str = "") -> Socket:
    """A socket with no lingering, bounded messages and heartbeats; not yet bound or connected to `endpoint`."""
    socket = context.socket(kind)
    socket.linger = 0
    socket.setsockopt(zmq.MAXMSGSIZE, options.max_message_bytes)
    # No limit: libzmq stops reading a connection at its limit, and aborts the process when the peer then closes and a
    # heartbeat is due (libzmq #4841). What a peer may fill is bounded by `pressure` and by the sessions instead.
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.HEARTBEAT_IVL, int(options.heartbeat_s * 1000))
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, int(options.heartbeat_timeout_s * 1000))
    # The peer, too, forgets us when we fall silent: TTL is in units of 100 ms on the wire.
    socket.setsockopt(zmq.HEARTBEAT_TTL, int(options.heartbeat_timeout_s * 1000))
    socket.setsockopt(zmq.HANDSHAKE_IVL, int(options.connect_timeout_s * 1000))
    # A publisher connects by itself: not with the kernel's patience, whose tries soon are a minute apart.
    socket.setsockopt(zmq.CONNECT_TIMEOUT, int(options.connect_timeout_s * 1000))
    # libzmq sends no ping while a message is half sent, and each message that comes ends the wait for the next sign of
    # life (4.3.5, stream_engine_base.cpp: out_event, decode_and_push). So a link that is cut in the middle of large
    # bodies may last until TCP gives up, a quarter of an hour later. Twice the silence, since a peer that is busy and
    # lets its buffers fill takes nothing either, and busy is not dead.
    socket.setsockopt(zmq.TCP_MAXRT, int(options.heartbeat_timeout_s * 2000))
    allow_ipv6(socket, endpoint)
    return socket


def allow_ipv6(socket: Socket, endpoint: str) -> None:
    """Before bind or connect to an IPv6 address. Not for all: an IPv4 one is then reported as ::ffff:127.0.0.1."""
    if "[" in endpoint:
        socket.setsockopt(zmq.IPV6, 1)


@contextmanager
def borrowed(fd: int) -> Iterator[PlainSocket]:
    """A descriptor of our own for the connection behind one of libzmq's; that one stays open when this is closed.

    Raises:
        OSError: there is no connection behind it any more.
    """
    own = os.dup(fd)
    try:
        connection = PlainSocket(fileno=own)
    except OSError:  # the number is a file's by now
        os.close(own)
        raise
    with connection:
        yield connection


def nothing() -> None:
    """There is no message, and none will come."""
    raise zmq.Again


class Edge:
    """Calls `read` until there is nothing left, whenever a socket may have become readable.

    ZMQ_FD is edge-triggered: it wakes once for many messages, and not at all for those that arrive while we send. So
    whoever sends calls `look` afterwards.
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
        # The edge of what came before we listened is gone.
        self._again = self._loop.call_soon(self.drain)

    def drain(self) -> None:
        """Read until the socket is empty or the budget is used; then go on in the next tick."""
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
            # Closed by what we just read, or by the context's end.
            if self._socket.closed or self._fd < 0:
                return
            raise
        except Exception as exc:
            # One message that its reader could not bear must not leave the rest unread for ever.
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
        return bool(events & zmq.POLLIN)

    @property
    def unread(self) -> bool:
        """The same, for those who do not read on: asking consumes an edge, so a drain follows."""
        more = self.more
        if more and self._again is None:
            self._again = self._loop.call_soon(self.drain)
        return more

    def look(self) -> None:
        """After a send: an edge may have been consumed by it; read what is there."""
        if self._again is None and self._fd >= 0:
            events: int = self._socket.getsockopt(zmq.EVENTS)  # type: ignore[assignment]  # typed for every option
            if events & zmq.POLLIN:
                self.drain()

    def close(self) -> None:
        """Stop watching; call it before the socket is closed."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._fd = -1
            self._read = nothing  # its owner holds us
            if self._again is not None:
                self._again.cancel()
                self._again = None
