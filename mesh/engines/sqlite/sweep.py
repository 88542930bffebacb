"""Deleting expired rows, a few at a time.

Owns: finished jobs with an expired retention, records of units, and returning pages to the disk.
Leaves to others: other rows (log, state, locks), when to sweep (the store).
"""

from __future__ import annotations

from typing import Final

from mesh.engines.sqlite import statements
from mesh.engines.sqlite.book import Book, QueueBook
from mesh.engines.sqlite.ending import Ending
from mesh.engines.sqlite.locks import Locks
from mesh.engines.sqlite.log import Log
from mesh.engines.sqlite.state import State
from mesh.engines.sqlite.status import CANCELLED, DONE, FORGOTTEN, PROOF_S

_SQL: Final = statements.named("sweep")
_UNITS: Final = statements.named("units")

#: Free pages are kept for later rows, unless there are more than this number and this share of the file.
SPARE_PAGES: Final = 2500
SPARE_SHARE: Final = 0.25
#: Pages that one sweep returns to the disk: each costs a page read and a page written.
_VACUUMED: Final = 64


class Sweep:
    """Sweeps, for one transaction after another."""

    def __init__(self, book: Book, ending: Ending, log: Log, state: State, locks: Locks) -> None:
        self._book: Final = book
        self._ending: Final = ending
        self._rooms = [self._jobs, state.sweep, log.sweep, self._units, locks.sweep]

    def sweep(self, limit: int) -> int:
        """See Turn.sweep."""
        left = limit
        for room in self._rooms:
            if left > 0:
                left -= room(left)
        # Rotate the order, so that a kind of row with a permanent backlog does not starve the others.
        self._rooms.append(self._rooms.pop(0))
        if left > 0:
            left -= self._vacuum(min(left, _VACUUMED))
        return limit - left

    def _units(self, limit: int) -> int:
        book = self._book
        return book.execute(_UNITS["sweep"], (book.wall - PROOF_S, limit)).rowcount

    # --- jobs -------------------------------------------------------------------------------------------------

    def _jobs(self, limit: int) -> int:
        book = self._book
        count = 0
        # Queues with the longest expired rows first.
        for lane in sorted((lane for lane in book.lanes.values() if lane.ends_at <= book.wall), key=_ends_at):
            if count >= limit:
                break
            for status in (DONE, CANCELLED, FORGOTTEN):
                if lane.counts[status] and count < limit:
                    count += self._ended(lane, status, limit - count)
            book.touch(lane)
            lane.ends_at = min(self._next_end(lane, status) for status in (DONE, CANCELLED, FORGOTTEN))
        for lane in tuple(book.lanes.values()):
            if lane.said is None and not any(lane.counts) and lane.turn is not book.turn:
                self._drop(lane)
        if count:
            book.execute(_SQL["mark"], (book.seq,))
        return count

    def _ended(self, lane: QueueBook, status: int, limit: int) -> int:
        book = self._book
        wall = book.wall
        rows = book.execute(_SQL["ended"], (lane.no, status, wall, limit)).fetchall()
        book.touch(lane)
        gone: list[tuple[int]] = []
        for seq, _, ends_at, _, keep_s, extra in rows:
            if extra:
                self._ending.tidy(seq, extra)
            finished_at = ends_at - keep_s
            if status != FORGOTTEN and finished_at + PROOF_S > wall:
                # Its retention is over, but a repeated unit must still find it.
                book.execute(_SQL["forget"], (finished_at + PROOF_S, seq))
                book.moved(lane, status, FORGOTTEN)
            else:
                gone.append((seq,))
        if gone:
            book.executemany(_SQL["delete"], gone)
            lane.counts[status] -= len(gone)
        return len(rows)

    def _next_end(self, lane: QueueBook, status: int) -> float:
        if not lane.counts[status]:
            return float("inf")
        row = self._book.execute(_SQL["next_end"], (lane.no, status)).fetchone()
        return float(row[0]) if row is not None else float("inf")

    def _drop(self, lane: QueueBook) -> None:
        """Delete a queue without jobs that no worker ever declared, such as a mistyped name."""
        book = self._book
        book.execute(_SQL["drop_queue"], (lane.no,))
        del book.lanes[lane.name]
        del book.by_no[lane.no]
        book.undo(book.lanes.__setitem__, lane.name, lane)
        book.undo(book.by_no.__setitem__, lane.no, lane)

    # --- pages ------------------------------------------------------------------------------------------------

    def _vacuum(self, most: int) -> int:
        """Return pages to the disk, if very many are free; return how many."""
        execute = self._book.execute
        (free,) = execute("PRAGMA freelist_count").fetchone()
        if free <= SPARE_PAGES:
            return 0
        (pages,) = execute("PRAGMA page_count").fetchone()
        if free <= pages * SPARE_SHARE:
            return 0
        execute(f"PRAGMA incremental_vacuum({most:d})").fetchall()
        return most


def _ends_at(lane: QueueBook) -> float:
    return lane.ends_at
