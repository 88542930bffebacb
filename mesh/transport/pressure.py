"""Memory that peers fill faster than it is read: noticed by what the process holds, and the peers are cut.

Owns: watching resident memory, finding the connections that fill it, giving memory back afterwards.
Leaves to others: how one connection is cut (router, dealer, pubsub), what may be in hand (protocol, policy).

libzmq's receive limit must be off: it stops reading a connection, and a peer that closes one that is not read aborts
the process (libzmq #4841, 4.3.5: stream_engine_base.cpp, out_event). The limit would not bound memory anyway. It counts
whole messages of any size, and none of the frames of a message that never ends. libzmq does not tell how much waits
inside of it either; so the growth of the process is the sign, and the kernel tells which connections still pour.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import resource
import sys
import termios
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, Protocol

from mesh.telemetry.logs import get_logger

log = get_logger("mesh.transport")

#: How often memory is looked at: 20 µs each time. A peer on the same host fills some 100 MB meanwhile, at most.
LOOK_S: Final = 0.1
#: The same while connections are under suspicion.
CLOSE_LOOK_S: Final = 0.02
#: Growth from which on connections are examined. Less is what any process gains and loses.
GROWTH_BYTES: Final = 32 * 2**20
#: Whole messages may wait up to this; then the peer that sent most of them is cut.
UNREAD_BYTES: Final = 256 * 2**20
#: Looks without growth that end a suspicion: the growth was the application's own.
CALM_LOOKS: Final = 10
#: Growth in one look that counts as none.
STILL_BYTES: Final = 2**20
#: How long after a cut freed memory is given back to the system: libzmq has dropped what it held by then.
TRIM_AFTER_S: Final = 0.5

_PAGE: Final = resource.getpagesize()


class Source(Protocol):
    """A socket through which peers send."""

    #: The largest frame that it takes, in bytes.
    largest: int

    def intake(self) -> Mapping[int, int]:
        """Descriptor of each connection -> how many messages were read from it."""

    @property
    def unread(self) -> bool:
        """Whether messages wait to be read."""

    def relieve(self, fd: int, reason: str) -> None:
        """Cut this connection now."""


class Pressure:
    """Watches the memory of this process for its sockets. Starts with the first of them."""

    def __init__(self) -> None:
        self._sources: dict[Source, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._statm = -1
        self._calm_bytes = 0
        self._last_bytes = 0
        self._still = 0
        # While memory grows: how many messages each connection had given at first, and how often it was seen to pour.
        self._counts: dict[tuple[Source, int], int] = {}
        self._poured: dict[tuple[Source, int], int] = {}
        self._always_unread: dict[Source, None] = {}

    def watch(self, source: Source) -> None:
        self._sources[source] = None
        if self._timer is None:
            with suppress(OSError):
                self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
                self._calm_bytes = self._last_bytes = self._resident()
                self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def forget(self, source: Source) -> None:
        """The socket is closed."""
        self._sources.pop(source, None)
        if not self._sources:
            self.close()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            os.close(self._statm)

    def _resident(self) -> int:
        return int(os.pread(self._statm, 100, 0).split()[1]) * _PAGE

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now_bytes = self._resident()
        if now_bytes - self._calm_bytes < GROWTH_BYTES:
            if now_bytes < self._calm_bytes:
                self._calm_bytes = now_bytes
            if self._counts:
                self._acquit()
            self._last_bytes = now_bytes
            self._timer = loop.call_later(LOOK_S, self._look)
            return
        if not self._counts:
            self._begin()
        self._examine(now_bytes)
        self._still = self._still + 1 if now_bytes - self._last_bytes < STILL_BYTES else 0
        if self._still > CALM_LOOKS:
            # The growth was the application's own; or it is over, and the allocator keeps what was freed.
            give_back()
            self._calm_bytes = now_bytes = self._resident()
            self._acquit()
        self._last_bytes = now_bytes
        # `relieve` may have closed the last source.
        if self._timer is not None:
            self._timer = loop.call_later(CLOSE_LOOK_S, self._look)

    def _begin(self) -> None:
        self._still = 0
        self._counts = {(source, fd): count for source in self._sources for fd, count in source.intake().items()}
        self._poured = dict.fromkeys(self._counts, 0)
        self._always_unread = {source: None for source in self._sources if source.unread}

    def _acquit(self) -> None:
        self._counts, self._poured, self._always_unread = {}, {}, {}

    def _examine(self, now_bytes: int) -> None:
        grown = now_bytes - self._calm_bytes
        silent: list[tuple[Source, int]] = []  # pour, and no message of theirs was read
        loudest: tuple[int, Source, int] | None = None
        for source in list(self._sources):
            if source in self._always_unread and not source.unread:
                del self._always_unread[source]
            for fd, count in source.intake().items():
                key = (source, fd)
                before = self._counts.setdefault(key, 0)
                if waiting_in(fd):
                    self._poured[key] = self._poured.get(key, 0) + 1
                if count == before:
                    if self._poured.get(key, 0) > 1:
                        silent.append(key)
                elif source in self._always_unread and (loudest is None or count - before > loudest[0]):
                    loudest = (count - before, source, fd)
        if silent and grown > GROWTH_BYTES + sum(source.largest for source, _ in silent):
            for source, fd in silent:
                self._cut(source, fd, f"a message that does not end: the process has grown by {grown} bytes")
        elif loudest is not None and grown > UNREAD_BYTES:
            _, source, fd = loudest
            self._cut(source, fd, f"sends faster than it is read: the process has grown by {grown} bytes")

    def _cut(self, source: Source, fd: int, reason: str) -> None:
        self._counts.pop((source, fd), None)
        self._poured.pop((source, fd), None)
        source.relieve(fd, reason)
        asyncio.get_running_loop().call_later(TRIM_AFTER_S, give_back)


def waiting_in(fd: int) -> int:
    """Bytes that the kernel holds and this process has not read."""
    return _count(fd, termios.FIONREAD)


def unsent_in(fd: int) -> int:
    """Bytes that this process has sent and the other end has not taken (ipc) or not acknowledged (tcp)."""
    return _count(fd, termios.TIOCOUTQ)


def _count(fd: int, request: int) -> int:
    answer = bytearray(4)
    try:
        fcntl.ioctl(fd, request, answer)
    except (OSError, ValueError):
        return 0  # it has ended
    return int.from_bytes(answer, sys.byteorder)


def give_back() -> None:
    """Return freed memory to the system; the allocator keeps it otherwise. Does nothing where glibc is not."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
