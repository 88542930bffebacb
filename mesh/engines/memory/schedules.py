"""Schedules in a dict.

Owns: the due time of each that was handled last.
Leaves to others: when a schedule is due (mesh.schedules), committing an advance with its task (memory).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from mesh.engines.semantics.validation import check_schedule
from mesh.errors import Conflict
from mesh.schedules.contract import Advance, Schedule


class Schedules:
    """All schedules."""

    def __init__(self) -> None:
        self._known: dict[str, Schedule] = {}

    def declare(self, schedules: Sequence[Schedule]) -> list[Schedule]:
        """See mesh.schedules.contract.Schedules.declare."""
        stand: list[Schedule] = []
        for new in schedules:
            check_schedule(new.name, new.last_at)
            known = self._known.get(new.name)
            if known is not None and known.plan == new.plan:
                new = msgspec.structs.replace(new, last_at=known.last_at)
            self._known[new.name] = new
            stand.append(new)
        return stand

    def look(self, advances: Sequence[Advance]) -> None:
        """Raises:
        Conflict: the `from_at` of one is no longer the last due time.
        """
        ahead: dict[str, float] = {}
        for each in advances:
            known = self._known.get(each.name)
            last_at = ahead.get(each.name, known.last_at if known is not None else None)
            if last_at != each.from_at:
                stands = "is not declared" if last_at is None else f"has dealt with {last_at}"
                raise Conflict(
                    f"schedule {each.name} {stands}; the advance assumes {each.from_at}", details={"name": each.name}
                )
            check_schedule(each.name, each.to_at)
            ahead[each.name] = each.to_at

    def put(self, advances: Sequence[Advance]) -> None:
        """Apply advances that `look` has accepted."""
        for each in advances:
            self._known[each.name] = msgspec.structs.replace(self._known[each.name], last_at=each.to_at)

    def all(self) -> list[Schedule]:
        """All schedules, sorted by name."""
        return [self._known[name] for name in sorted(self._known)]
