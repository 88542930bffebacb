"""Managing jobs: cancelling, burying unknown tasks, requeueing and dropping dead letters.

Owns: finding the rows, in steps where there may be many; abandoning a whole queue.
Leaves to others: the effects on these jobs and on those that wait for them (ending).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from mesh.engines.sqlite import statements
from mesh.engines.sqlite.book import Book, QueueBook
from mesh.engines.sqlite.ending import Ending
from mesh.engines.sqlite.status import (
    CANCELLED,
    DEAD,
    DELAYED,
    FAILURE,
    FORGOTTEN,
    PROOF_S,
    READY,
    RUNNING,
    WAITING,
    rank,
)
from mesh.errors import UnknownJob

_SQL: Final = statements.named("tasks")

#: Dead jobs that one step of `requeue` or `drop` reads.
_PAGE: Final = 1000


class Burial:
    """These operations, for one transaction after another."""

    def __init__(self, book: Book, ending: Ending, flush: Callable[[], None]) -> None:
        """Args:
        flush: writes all pending rows, so that they can be found.
        """
        self._book: Final = book
        self._ending: Final = ending
        self._flush: Final = flush

    def cancel(self, id: str) -> None:
        """See Turn.cancel.

        Raises:
            UnknownJob.
        """
        self._flush()
        book = self._book
        row = book.execute(_SQL["by_id"], (id,)).fetchone()
        if row is None or row[3] == FORGOTTEN:
            raise UnknownJob(f"no job {id} is known: it never existed, or its retention is over")
        job = self._ending.job(row)
        if job.status < RUNNING:
            self._ending.end(job, CANCELLED)
        elif job.status == RUNNING:
            if not job.asked:
                book.undo(setattr, job, "asked", 0)
                job.asked = 1
                book.execute(_SQL["ask"], (job.seq,))
            book.stopping.append((job.session, job.id, job.attempt))

    def bury(self, queue: str, error: str, limit: int) -> int:
        """See Turn.bury."""
        lane = self._book.lanes.get(queue)
        if lane is None or not lane.counts[READY]:
            return 0
        self._flush()
        rows = self._book.execute(_SQL["unknown"], (lane.no, limit)).fetchall()
        for row in rows:
            self._ending.bury(self._ending.job(row), "unknown", error)
        return len(rows)

    def requeue(self, queue: str, ids: Sequence[str], limit: int) -> int:
        """See Turn.requeue."""
        count = 0
        for row in self._dead(queue, ids):
            # A job that died of another is requeued with that one, and not by itself.
            if row[-1]:
                continue
            self._revive(row)
            count += 1
            if not ids and count >= limit:
                break
        return count

    def _revive(self, row: tuple[Any, ...]) -> None:
        book = self._book
        job = self._ending.job(row)
        self._ending.tidy(job.seq, job.extra & FAILURE)
        extra = job.extra & ~FAILURE
        if job.line is None:
            book.moved(job.lane, DEAD, READY)
            book.execute(_SQL["revive"], (READY, rank(job.priority, 0), book.wall, extra, job.seq))
        else:
            book.moved(job.lane, DEAD, WAITING)
            book.execute(_SQL["revive"], (WAITING, 0, 0, extra, job.seq))
            self._ending.advance(job)
        self._ending.mend(job)

    def drop(self, queue: str, ids: Sequence[str], limit: int) -> int:
        """See Turn.drop."""
        book = self._book
        count = 0
        for row in self._dead(queue, ids):
            job = self._ending.job(row)
            self._ending.tidy(job.seq, job.extra)
            book.moved(job.lane, DEAD, FORGOTTEN)
            ends_at = book.wall + PROOF_S
            book.execute(_SQL["drop"], (ends_at, 0, job.seq))
            job.lane.ends_at = min(job.lane.ends_at, ends_at)
            count += 1
            if not ids and count >= limit:
                break
        return count

    def abandon(self, queue: str, limit: int) -> int:
        """See Turn.abandon."""
        book = self._book
        lane = book.lanes.get(queue)
        if lane is None:
            return 0
        self._flush()
        book.touch(lane)
        if lane.said is not None or lane.position is not None:
            lane.said = lane.topics = lane.position = None
            lane.level = False
            book.execute(_SQL["undeclare"], (lane.no,))
            book.resubscribe()
        count = 0
        for status in (WAITING, DELAYED, READY):
            if lane.counts[status] and count < limit:
                rows = book.execute(_SQL["of_status"], (lane.no, status, limit - count)).fetchall()
                for row in rows:
                    job = self._ending.job(row)
                    # The end of another job may have ended this one too.
                    if self._status(job.seq) == status:
                        self._ending.end(job, CANCELLED)
                count += len(rows)
        return count + (self.drop(queue, (), limit - count) if count < limit else 0)

    def _status(self, seq: int) -> int:
        (status,) = self._book.execute(_SQL["status"], (seq,)).fetchone()
        return int(status)

    def _dead(self, queue: str, ids: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        """Rows of dead jobs: the named ones, or all of the queue by age."""
        lane = self._book.lanes.get(queue)
        if lane is None or not lane.counts[DEAD]:
            return
        self._flush()
        if ids:
            for id in dict.fromkeys(ids):
                row = self._book.execute(_SQL["dead_by_id"], (id, lane.no)).fetchone()
                if row is not None:
                    yield row
            return
        yield from self._all_dead(lane)

    def _all_dead(self, lane: QueueBook) -> Iterator[tuple[Any, ...]]:
        after = 0
        while rows := self._book.execute(_SQL["dead"], (lane.no, after, _PAGE)).fetchall():
            yield from rows
            after = rows[-1][1]
