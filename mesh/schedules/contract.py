"""The contract of schedules: an engine stores, for each schedule, the due time that was handled last.

Owns: the data types and the Protocol that every engine implements.
Leaves to others: when a schedule is due (plan), firing it (driver: all workers try, one succeeds), storing (engines).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec

#: Missed due times: once: run once, for the last of them · all: run once for each · skip: do not run.
Missed = Literal["once", "all", "skip"]


class Schedule(msgspec.Struct, array_like=True, frozen=True):
    """A schedule as the engine stores it.

    Attributes:
        name: "service.method", which is also the queue of its tasks.
        plan: "0 3 * * * Asia/Tokyo" or "every 10s"; shown to people and compared to detect a change.
        last_at: the due time that was handled last; at first, the instant at which the schedule was declared.
    """

    name: str
    plan: str
    missed: Missed = "once"
    last_at: float = 0.0


class Advance(msgspec.Struct, array_like=True, frozen=True):
    """Mark due times up to `to_at` as handled, if `from_at` is still the last one handled."""

    name: str
    from_at: float
    to_at: float


class Schedules(Protocol):
    """The schedules of an engine; tests/contract/test_schedules.py checks every engine."""

    async def declare(self, schedules: Sequence[Schedule], *, timeout_s: float) -> list[Schedule]:
        """Declare schedules; return them as stored.

        A new schedule, or one with a changed plan, starts at the given `last_at`; any other keeps its stored `last_at`.
        """

    async def advance(self, advance: Advance, *, timeout_s: float) -> bool:
        """Set the last due time to `to_at` if it is still `from_at`. Return whether it was."""

    async def schedules(self, *, timeout_s: float) -> list[Schedule]:
        """All schedules, sorted by name."""
