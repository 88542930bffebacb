"""Schedules: the due time of each that was handled last.

Owns: their rows.
Leaves to others: when a schedule is due (mesh.schedules), committing an advance with its task (units).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mesh.engines.semantics.due_times import check_advances, declared
from mesh.engines.sqlite import statements
from mesh.engines.sqlite.book import Book
from mesh.schedules.contract import Advance, Schedule

_SQL: Final = statements.named("schedules")


class Schedules:
    """All schedules; there are few, and they are read from the file each time."""

    def __init__(self, book: Book) -> None:
        self._book: Final = book

    def declare(self, schedules: Sequence[Schedule]) -> list[Schedule]:
        """See mesh.schedules.contract.Schedules.declare."""
        stand: list[Schedule] = []
        for new in schedules:
            known = self._find(new.name)
            new = declared(new, known)
            if new != known:
                self._book.execute(_SQL["put"], (new.name, new.plan, new.missed, new.last_at))
            stand.append(new)
        return stand

    def look(self, advances: Sequence[Advance]) -> None:
        """Raises:
        Conflict: the `from_at` of one is no longer the last due time.
        """
        check_advances(advances, self._find)

    def put(self, advances: Sequence[Advance]) -> None:
        """Apply advances that `look` has accepted."""
        for each in advances:
            self._book.execute(_SQL["advance"], (each.to_at, each.name))

    def all(self) -> list[Schedule]:
        """All schedules, sorted by name."""
        return [Schedule(*row) for row in self._book.execute(_SQL["all"]).fetchall()]

    def _find(self, name: str) -> Schedule | None:
        row = self._book.execute(_SQL["find"], (name,)).fetchone()
        return Schedule(*row) if row is not None else None
