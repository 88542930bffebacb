"""Protects the process from peers that fill its memory faster than it reads: finds their connections and cuts them.

Owns: watching resident memory, finding the connections that fill it, returning memory to the system afterwards.
Leaves to others: cutting a connection (router, dealer, pubsub), limits on calls and messages (protocol, policy).

libzmq's receive limit must be off: at the limit it stops reading a connection, and a peer that closes such a connection
aborts the process (libzmq #4841, 4.3.5: stream_engine_base.cpp, out_event). The limit would not bound memory anyway: it
counts complete messages of any size, but no frames of a message that never ends. libzmq does not report either how much
it buffers. So the growth of the process is the signal, and the kernel shows on which connections data still arrives.
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

#: Seconds between checks of memory, which take 20 µs each. A peer on the same host sends at most some 100 MB meanwhile.
LOOK_S: Final = 0.1
#: The same while connections are examined.
CLOSE_LOOK_S: Final = 0.02
#: Growth from which connections are examined. Less is normal for any process.
GROWTH_BYTES: Final = 32 * 2**20
#: Growth by complete unread messages at which the peer that sends most of them is cut.
UNREAD_BYTES: Final = 256 * 2**20
#: The same for a peer that sends many small messages: to discard a million of them later takes seconds.
UNREAD_SMALL_BYTES: Final = 48 * 2**20
#: A peer sends many messages if this many were read from it since memory began to grow.
MANY: Final = 100
#: Checks in which a connection must receive an incomplete message before it is cut. On a legitimate connection, one
#: check may happen in the middle of a message.
POURING_LOOKS: Final = 3
#: Bytes that must wait in the kernel at each of these checks: more than a heartbeat or an answer that libzmq's thread
#: has not read yet.
POURING_BYTES: Final = 2048
#: Bytes that on average wait in the kernel for a peer that sends faster than libzmq reads. For others it is a few KB.
WAITING_BYTES: Final = 16 * 1024
#: Checks without growth after which the examination ends: the growth came from the application.
CALM_LOOKS: Final = 10
#: Growth between two checks that counts as none.
STILL_BYTES: Final = 2**20
#: Seconds from a cut until freed memory is returned to the system: by then libzmq has freed its buffers.
TRIM_AFTER_S: Final = 0.5
#: When to return memory again after the end of a growth, in seconds.
TRIM_AGAIN_S: Final = (1.0, 5.0)

_PAGE: Final = resource.getpagesize()


class Source(Protocol):
    """A socket through which peers send."""

    #: The largest frame that the socket accepts, in bytes.
    largest: int

    def intake(self) -> Mapping[int, int]:
        """Descriptor of each connection -> how many messages were read from it."""

    @property
    def unread(self) -> bool:
        """Whether messages wait to be read."""

    def relieve(self, fd: int, reason: str) -> None:
        """Cut this connection now."""


class Pressure:
    """Watches the memory of this process for its sockets. Starts with the first socket."""

    def __init__(self) -> None:
        self._sources: dict[Source, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._statm = -1
        self._calm_bytes = 0
        self._last_bytes = 0
        self._still = 0
        # While memory grows, for each connection: how many messages were read from it, now and at the beginning; in how
        # many checks data arrived although no complete message was left to read; and the sum of the bytes that waited
        # in the kernel at the checks with unread messages.
        self._counts: dict[tuple[Source, int], int] = {}
        self._first: dict[tuple[Source, int], int] = {}
        self._poured: dict[tuple[Source, int], int] = {}
        self._waited: dict[tuple[Source, int], int] = {}
        self._looks = 0

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
            # The growth came from the application; or it is over, and the allocator keeps the freed memory. Messages of
            # a peer that was cut are discarded gradually, so memory is returned again later.
            give_back()
            for later_s in TRIM_AGAIN_S:
                loop.call_later(later_s, give_back)
            self._calm_bytes = now_bytes = self._resident()
            self._acquit()
        self._last_bytes = now_bytes
        # `relieve` may have closed the last source.
        if self._timer is not None:
            self._timer = loop.call_later(CLOSE_LOOK_S, self._look)

    def _begin(self) -> None:
        self._still = self._looks = 0
        self._counts = {(source, fd): count for source in self._sources for fd, count in source.intake().items()}
        self._first = dict(self._counts)

    def _acquit(self) -> None:
        self._counts, self._poured, self._waited = {}, {}, {}

    def _examine(self, now_bytes: int) -> None:
        grown = now_bytes - self._calm_bytes
        self._looks += 1
        silent: list[tuple[Source, int]] = []
        loudest: tuple[int, tuple[Source, int] | None] = (0, None)
        for source in list(self._sources):
            unread = source.unread
            for fd, count in source.intake().items():
                key = (source, fd)
                waiting = waiting_in(fd)
                if unread:
                    # Complete messages wait. Their sender is unknown, but its next messages fill the kernel's buffer.
                    self._waited[key] = self._waited.get(key, 0) + waiting
                    if self._waited[key] > loudest[0]:
                        loudest = (self._waited[key], key)
                if self._counts.get(key) != count:
                    self._counts[key] = count
                    self._poured[key] = 0
                elif waiting > POURING_BYTES and not unread:
                    # Data arrives, and all complete messages were read: this connection sends an incomplete message.
                    self._poured[key] = self._poured.get(key, 0) + 1
                if self._poured.get(key, 0) >= POURING_LOOKS:
                    silent.append(key)
        if silent and grown > GROWTH_BYTES + sum(source.largest for source, _ in silent):
            for source, fd in silent:
                self._cut(source, fd, f"the peer sends a message without end: this process has grown by {grown} bytes")
        elif loudest[1] is not None and loudest[0] > self._looks * WAITING_BYTES and self._looks > POURING_LOOKS:
            many = self._counts[loudest[1]] - self._first.get(loudest[1], 0) >= MANY
            if grown < (UNREAD_SMALL_BYTES if many else UNREAD_BYTES):
                return
            self._cut(
                *loudest[1], f"the peer sends faster than messages are read: this process has grown by {grown} bytes"
            )

    def _cut(self, source: Source, fd: int, reason: str) -> None:
        self._counts.pop((source, fd), None)
        self._poured.pop((source, fd), None)
        self._waited.pop((source, fd), None)
        source.relieve(fd, reason)
        asyncio.get_running_loop().call_later(TRIM_AFTER_S, give_back)


def waiting_in(fd: int) -> int:
    """Bytes that the kernel has received and this process has not read."""
    return _count(fd, termios.FIONREAD)


def unsent_in(fd: int) -> int:
    """Bytes that this process has sent and the peer has not read (ipc) or its kernel has not acknowledged (tcp)."""
    return _count(fd, termios.TIOCOUTQ)


def _count(fd: int, request: int) -> int:
    answer = bytearray(4)
    try:
        fcntl.ioctl(fd, request, answer)
    except (OSError, ValueError):
        return 0  # the connection has ended
    return int.from_bytes(answer, sys.byteorder)


def give_back() -> None:
    """Return freed memory to the system, which the allocator would keep. Does nothing without glibc."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
