"""What an engine does with schedules: it remembers, for each, the due time that was dealt with last.

Owns: the shapes and the Protocol that every engine fulfils.
Leaves to others: when a schedule is due (plan), firing it (driver: all workers try, one succeeds), storing (engines).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec

#: once: however many due times were missed, run once for the last of them · all: once for each · skip: not at all.
Missed = Literal["once", "all", "skip"]


class Schedule(msgspec.Struct, array_like=True, frozen=True):
    """A schedule as the engine knows it.

    Attributes:
        name: "service.method", which is also the queue of its tasks.
        plan: for people, and to see that it changed: "0 3 * * * Asia/Tokyo" or "every 10s".
        last_at: the due time that was dealt with last; when the schedule was first declared, that instant.
    """

    name: str
    plan: str
    missed: Missed = "once"
    last_at: float = 0.0


class Advance(msgspec.Struct, array_like=True, frozen=True):
    """Say that due times up to `to_at` are dealt with, if `from_at` is still the last."""

    name: str
    from_at: float
    to_at: float


class Schedules(Protocol):
    """The schedules of an engine; tests/contract/test_schedules.py holds it to this."""

    async def declare(self, schedules: Sequence[Schedule], *, timeout_s: float) -> list[Schedule]:
        """As they stand: a new one begins at its `last_at`; a known one keeps its own; a changed plan begins anew."""

    async def advance(self, advance: Advance, *, timeout_s: float) -> bool:
        """Whether `from_at` was still the last; then `to_at` is."""

    async def schedules(self, *, timeout_s: float) -> list[Schedule]:
        """All, by name."""
