"""The connections of one bound socket: which there are, who has said nothing yet, and ending one.

Owns: descriptors from accept to disconnection, the limits on connections without a first message, the shutdown.
Leaves to others: what a peer may send (sessions), memory that a peer fills (pressure), keys (curve_guard).

libzmq has no call that ends one connection of a bound socket. But the monitor reports the descriptor of a connection,
and a descriptor is this process's own to shut down: libzmq then finds that the peer has left, and cleans up as always.
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

#: A dialler sends its hello as soon as the connection stands. This much later it is not a dialler of ours.
SILENT_S: Final = 10.0
#: Connections without a first message that a bound socket keeps: this share of the files that the process may open,
#: so that strangers cannot use them up, and at least LEAST, since a hub that starts is dialled by a whole mesh at once.
SILENT_SHARE: Final = 4
LEAST: Final = 256
#: SO_LINGER: on, 0 s.
ABRUPT: Final = struct.pack("ii", 1, 0)


def shut(fd: int, where: Endpoint) -> bool:
    """Shut down the connection behind a descriptor if it is one of the listener at `where`; whether it was.

    The monitor reports an end a little later than the number is free for another file, so the address is compared.

    A peer on tcp is told by a reset when libzmq closes the descriptor. One that only sends, into a full window, would
    not learn of an orderly end for a minute: the kernel reopens no window of a connection that was shut down.
    """
    try:
        with borrowed(fd) as connection:
            if _is_of(connection, where):
                if where.kind != "ipc":
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABRUPT)
                connection.shutdown(socket.SHUT_RDWR)
                return True
    except (OSError, IndexError, TypeError, ValueError):
        pass  # it has ended by itself, and is something else now
    return False


def _is_of(connection: socket.socket, where: Endpoint) -> bool:
    name = connection.getsockname()
    if where.kind == "ipc":
        return bool(name == where.address)
    return bool(name[1] == where.port)


class Connections:
    """Of one bound socket; told of what its monitor sees."""

    def __init__(self, where: Endpoint, *, all_speak: bool) -> None:
        """Args:
        where: as the socket was bound.
        all_speak: whether each peer of this socket sends something at once, so that a silent one is cut.
        """
        self.where = where
        #: Whether a peer behind this descriptor has sent a message. The monitor may report a connection only after its
        #: first message was read, so `spoke` alone does not tell.
        self.has_spoken: Callable[[int], bool] = lambda fd: False
        self._all_speak = all_speak
        #: Those that stand now.
        self.descriptors: set[int] = set()
        #: Descriptor -> when it was accepted, oldest first, of those that have sent nothing.
        self._silent: dict[int, float] = {}
        self._suspects: set[int] = set()
        self._doomed: dict[int, asyncio.TimerHandle] = {}
        self._loop = asyncio.get_running_loop()
        self._sweeping: asyncio.TimerHandle | None = None
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most_silent = max(LEAST, files // SILENT_SHARE) if files != resource.RLIM_INFINITY else LEAST * 64

    def heard(self, event: int, value: int) -> None:
        """One event of the monitor."""
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
        """The first message of a connection came."""
        self._silent.pop(fd, None)

    def _sweep(self) -> None:
        """Cut those that were silent for too long, in two looks: the first message may wait to be read."""
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
            log.info("connection cut", endpoint=self.where.where, reason=why)

    def cut(self, fd: int) -> bool:
        """Shut one down; libzmq closes the descriptor when it notices. Whether there was one."""
        return shut(fd, self.where)

    def cut_later(self, fd: int, after_s: float) -> None:
        """Shut one down then, unless it ends by itself before."""
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
        """Look no more."""
        for timer in self._doomed.values():
            timer.cancel()
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
