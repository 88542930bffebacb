"""Schedules in a dict.

Owns: the due time of each that was handled last.
Leaves to others: when a schedule is due (mesh.schedules), committing an advance with its task (memory).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from mesh.engines.semantics.due_times import check_advances, declared
from mesh.schedules.contract import Advance, Schedule


class Schedules:
    """All schedules."""

    def __init__(self) -> None:
        self._known: dict[str, Schedule] = {}

    def declare(self, schedules: Sequence[Schedule]) -> list[Schedule]:
        """See mesh.schedules.contract.Schedules.declare."""
        stand: list[Schedule] = []
        for new in schedules:
            new = declared(new, self._known.get(new.name))
            self._known[new.name] = new
            stand.append(new)
        return stand

    def look(self, advances: Sequence[Advance]) -> None:
        """Raises:
        Conflict: the `from_at` of one is no longer the last due time.
        """
        check_advances(advances, self._known.get)

    def put(self, advances: Sequence[Advance]) -> None:
        """Apply advances that `look` has accepted."""
        for each in advances:
            self._known[each.name] = msgspec.structs.replace(self._known[each.name], last_at=each.to_at)

    def all(self) -> list[Schedule]:
        """All schedules, sorted by name."""
        return [self._known[name] for name in sorted(self._known)]
