"""Clients that do not read their answers.

Owns: finding connections with bytes that their clients read too slowly or not at all, and closing them; the limit on
all such bytes together.
Leaves to others: when to look (admission), waiting before more is written (reply, sse).

An answer that is being written waits while its connection is full, so a connection holds at most one answer and the
transport's buffer. That bounds each of them; `gateway.max_unsent_total` bounds all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final, Protocol

from mesh.config.settings import GatewaySettings
from mesh.gateway.limits import exceeded
from mesh.gateway.ports import Recorder
from mesh.telemetry.logs import get_logger

_log = get_logger(__name__)

#: How long a client may read at any rate: a bad line has moments without a byte.
RATE_GRACE_S: Final = 5.0

#: How often closed connections are logged.
TELL_EVERY_S: Final = 10.0


class Reader(Protocol):
    """The part of a connection that is used here; see mesh.gateway.admission.Connection."""

    wire: asyncio.Transport | None
    unsent: int
    moved_at: float
    stuck_at: float
    stuck_bytes: int
    _paused: bool
    _current_request: object


class Readers:
    """The clients of one gateway that have bytes to read.

    Attributes:
        unsent: bytes that wait for all clients, exact after each sweep.
    """

    def __init__(self, settings: GatewaySettings, recorder: Recorder) -> None:
        self._timeout_s = settings.write_timeout_s
        self._rate = settings.min_read_rate_bytes
        self._most = settings.max_unsent_total_bytes
        self._recorder = recorder
        self._told_at = -TELL_EVERY_S
        self.unsent = 0
        recorder.gauge(
            "http_unsent_bytes",
            lambda: self.unsent,
            "Bytes of answers that clients have not read, within the last second.",
        )

    def filled(self, size: int) -> bool:
        """Add the bytes of one client, between two sweeps; whether all of them have just become too many."""
        before = self.unsent
        self.unsent += size
        return before <= self._most < self.unsent

    def sweep(self, connections: Iterable[object], now: float) -> None:
        """Look at every connection, and close those to clients that read too slowly."""
        waiting: list[Reader] = []
        self.unsent = 0
        for connection in list(connections):
            wire = getattr(connection, "wire", None)
            size = wire.get_write_buffer_size() if wire is not None else 0
            reader: Reader = connection  # type: ignore[assignment]
            if not size:
                if wire is not None:
                    reader.unsent = 0
                continue
            self.unsent += size
            # While an answer is written and its connection has room, more may be added at any time: the size says
            # nothing about what the client reads.
            if not reader._paused and reader._current_request is not None:
                reader.unsent = 0
                continue
            self._note(reader, size, now)
            if why := self._fault(reader, now):
                self._close(reader, why, now)
            else:
                waiting.append(reader)
        if self.unsent > self._most:
            self._relieve(waiting, now)

    @staticmethod
    def _note(reader: Reader, size: int, now: float) -> None:
        if not reader.unsent:
            reader.stuck_at = reader.moved_at = now
            reader.stuck_bytes = size
        elif size < reader.unsent:
            reader.moved_at = now
        reader.unsent = size

    def _fault(self, reader: Reader, now: float) -> str:
        """The setting that a client violates; "" for none."""
        if self._timeout_s and now - reader.moved_at >= self._timeout_s:
            return "write_timeout"
        waited = now - reader.stuck_at
        if self._rate and waited >= RATE_GRACE_S and (reader.stuck_bytes - reader.unsent) / waited < self._rate:
            return "min_read_rate"
        return ""

    def _relieve(self, waiting: list[Reader], now: float) -> None:
        """Close the connections of the clients that have read nothing for the longest time, until the rest fits."""
        for reader in sorted(waiting, key=lambda each: (each.moved_at, -each.unsent)):
            if self.unsent <= self._most:
                return
            self._close(reader, "max_unsent_total", now)

    def _close(self, reader: Reader, limit: str, now: float) -> None:
        self.unsent -= reader.unsent
        exceeded(self._recorder, limit)
        if now - self._told_at >= TELL_EVERY_S:
            self._told_at = now
            _log.warning("gateway.reader_closed", limit=f"gateway.{limit}", unsent_bytes=reader.unsent)
        if reader.wire is not None:
            # Not `close`, which waits until the client has read everything.
            reader.wire.abort()
