"""The connections of one bound socket: tracks them, and closes single ones.

Owns: descriptors from accept to disconnection, the limits on connections without a first message, the shutdown.
Leaves to others: what a peer may send (sessions), memory that a peer fills (pressure), keys (guard).

libzmq has no call that closes one connection of a bound socket. But the monitor reports the descriptor of a connection,
which this process can shut down itself: libzmq then handles it as a disconnection by the peer.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import struct
from collections.abc import Callable
from typing import Final

import zmq

from mesh.telemetry.logs import get_logger
from mesh.transport.endpoints import Endpoint
from mesh.transport.sockets import borrowed

log = get_logger("mesh.transport")

#: A mesh peer sends its hello as soon as the connection is open. One that is silent for so long is not a mesh peer.
SILENT_S: Final = 10.0
#: A bound socket keeps connections without a first message up to 1/SILENT_SHARE of the files that the process may open,
#: so that strangers cannot use them up, and at least LEAST, as the whole mesh dials a hub at once when it starts.
SILENT_SHARE: Final = 4
LEAST: Final = 256
#: SO_LINGER: on, 0 s.
ABRUPT: Final = struct.pack("ii", 1, 0)


def shut(fd: int, where: Endpoint) -> bool:
    """Shut down the connection of a descriptor if it belongs to the listener at `where`; returns whether it did.

    The local address is compared, because another file may already have the number when the monitor reports the end.

    A tcp peer gets a reset when libzmq closes the descriptor. After an orderly shutdown, a peer that only sends into a
    full window would not notice the end for a minute: the kernel does not reopen the window of such a connection.
    """
    try:
        with borrowed(fd) as connection:
            if _is_of(connection, where):
                if where.kind != "ipc":
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABRUPT)
                connection.shutdown(socket.SHUT_RDWR)
                return True
    except (OSError, IndexError, TypeError, ValueError):
        pass  # the connection has ended, and the descriptor may be another file by now
    return False


def _is_of(connection: socket.socket, where: Endpoint) -> bool:
    name = connection.getsockname()
    if where.kind == "ipc":
        return bool(name == where.address)
    return bool(name[1] == where.port)


class Connections:
    """The connections of one bound socket, updated from the events of its monitor."""

    def __init__(self, where: Endpoint, *, all_speak: bool) -> None:
        """Args:
        where: the endpoint as bound.
        all_speak: whether each peer of this socket sends a message at once, so that silent ones are cut.
        """
        self.where = where
        #: Whether the peer of this descriptor has sent a message. Needed besides `spoke`, because the monitor may
        #: report a connection only after its first message was read.
        self.has_spoken: Callable[[int], bool] = lambda fd: False
        self._all_speak = all_speak
        #: The open connections.
        self.descriptors: set[int] = set()
        #: Descriptor -> when it was accepted, of the connections without a first message, oldest first.
        self._silent: dict[int, float] = {}
        self._suspects: set[int] = set()
        self._doomed: dict[int, asyncio.TimerHandle] = {}
        self._loop = asyncio.get_running_loop()
        self._sweeping: asyncio.TimerHandle | None = None
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most_silent = max(LEAST, files // SILENT_SHARE) if files != resource.RLIM_INFINITY else LEAST * 64

    def heard(self, event: int, value: int) -> None:
        """Handle one event of the monitor."""
        if event == zmq.EVENT_ACCEPTED:
            self.descriptors.add(value)
            self._pardon(value)
            if self._all_speak:
                self._silent.pop(value, None)
                self._silent[value] = self._loop.time()
                if len(self._silent) > self._most_silent:
                    self._cut_silent(next(iter(self._silent)), "too many connections that send nothing")
                if self._sweeping is None:
                    self._sweeping = self._loop.call_later(SILENT_S / 2, self._sweep)
        elif event == zmq.EVENT_DISCONNECTED:
            self.descriptors.discard(value)
            self._pardon(value)
            self._silent.pop(value, None)

    def spoke(self, fd: int) -> None:
        """The first message of a connection arrived."""
        self._silent.pop(fd, None)

    def _sweep(self) -> None:
        """Cut connections that are silent for too long, at the second sweep that finds them so: the first message may
        still be unread."""
        self._sweeping = None
        before = self._loop.time() - SILENT_S
        late = {fd for fd, accepted_at in self._silent.items() if accepted_at <= before}
        for fd in late & self._suspects:
            self._cut_silent(fd, f"no message within {SILENT_S:g} s")
        self._suspects = late
        if self._silent:
            self._sweeping = self._loop.call_later(SILENT_S / 2, self._sweep)

    def _cut_silent(self, fd: int, why: str) -> None:
        del self._silent[fd]
        if not self.has_spoken(fd) and self.cut(fd):
            log.info("connection.cut", endpoint=self.where.where, reason=why)

    def cut(self, fd: int) -> bool:
        """Shut down a connection; libzmq closes the descriptor when it notices. Returns whether there was one."""
        return shut(fd, self.where)

    def cut_later(self, fd: int, after_s: float) -> None:
        """Shut down a connection after `after_s` seconds, unless it ends before."""
        if fd in self.descriptors and fd not in self._doomed:
            self._doomed[fd] = self._loop.call_later(after_s, self._execute, fd)

    def _execute(self, fd: int) -> None:
        self._pardon(fd)
        self.cut(fd)

    def _pardon(self, fd: int) -> None:
        timer = self._doomed.pop(fd, None)
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        """Cancel all timers."""
        for timer in self._doomed.values():
            timer.cancel()
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
