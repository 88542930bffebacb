"""Listing jobs and queues.

Owns: reading them from the file, a page at a time, in the order that Jobs.page promises.
Leaves to others: all changes.
"""

from __future__ import annotations

import heapq
from typing import Any, Final

import msgspec

from mesh.engines.sqlite import statements
from mesh.engines.sqlite.book import Book, QueueBook
from mesh.engines.sqlite.status import (
    BODY,
    CANCELLED,
    CODES,
    DEAD,
    DELAYED,
    DONE,
    FORGOTTEN,
    NAMES,
    READY,
    RESULT,
    RUNNING,
    SUSPECT_SORT,
    VERDICTS,
    WAITING,
)
from mesh.tasks.contract import JobInfo, QueueInfo, Status

_SQL: Final = statements.named("jobs")

_RANKS: Final = (*range(10), *range(SUSPECT_SORT, SUSPECT_SORT + 10))
_meta: Final = msgspec.msgpack.Decoder(dict[str, str])


class Jobs:
    """Reads of the file's jobs and queues, between transactions."""

    def __init__(self, book: Book) -> None:
        self._book: Final = book

    def find(self, id: str, wall: float, *, forgotten: bool = False) -> JobInfo | None:
        """See Core.job."""
        rows = self._book.execute(_SQL["by_id"], (id,)).fetchall()
        return self._info(rows[0], wall, forgotten=forgotten) if rows else None

    def queue_of(self, id: str) -> str:
        """See Core.queue_of."""
        row = self._book.execute(_SQL["queue_of"], (id,)).fetchone()
        return str(row[0]) if row is not None else ""

    def page(self, queue: str, status: Status, after: str, limit: int, wall: float) -> list[JobInfo]:
        """See Core.jobs."""
        lane = self._book.lanes.get(queue)
        if lane is None or limit <= 0 or not lane.counts[CODES[status]]:
            return []
        code = CODES[status]
        if code in (DELAYED, DONE, CANCELLED):
            seqs = self._by_sort(lane, code, after, limit, wall)
        else:
            seqs = self._by_age(lane, code, after, limit)
        found: list[JobInfo] = []
        for seq in seqs:
            info = self._info(self._book.execute(_SQL["by_seq"], (seq,)).fetchall()[0], wall)
            if info is not None:
                found.append(info)
        return found

    def _by_age(self, lane: QueueBook, code: int, after: str, limit: int) -> list[int]:
        seq = self._age(after)
        sorts = _RANKS if code == READY else (0,)
        pages = [self._book.execute(_SQL["page"], (lane.no, code, sort, seq, limit)).fetchall() for sort in sorts]
        return [seq for (seq,) in heapq.merge(*pages)][:limit]

    def _age(self, after: str) -> int:
        """The seq after which a page begins, even if the job `after` was deleted."""
        if not after:
            return 0
        rows = self._book.execute(_SQL["position"], (after,)).fetchall()
        if rows:
            return int(rows[0][0])
        rows = self._book.execute(_SQL["position_near"], (after,)).fetchall()
        return int(rows[0][0]) - 1 if rows else self._book.seq

    def _by_sort(self, lane: QueueBook, code: int, after: str, limit: int, wall: float) -> list[int]:
        # Rows with an expired retention may not be swept yet; they are not listed.
        at: tuple[float, int] = (0.0, 0) if code == DELAYED else (wall, 2**62)
        rows = self._book.execute(_SQL["position"], (after,)).fetchall() if after else []
        if rows:
            seq, status, sort, due_at = rows[0]
            if status == code:
                at = max(at, (sort, seq))
            elif code == DELAYED:
                at = (due_at, seq)
        found = self._book.execute(_SQL["page_by_sort"], (lane.no, code, *at, limit)).fetchall()
        return [seq for (seq,) in found]

    def _info(self, row: tuple[Any, ...], wall: float, *, forgotten: bool = False) -> JobInfo | None:
        (
            seq,
            id,
            queue,
            code,
            sort,
            key,
            line,
            priority,
            attempt,
            lost,
            owner,
            created_at,
            due_at,
            keep_s,
            extra,
            body,
            result,
            waits,
            feeds,
            meta,
            event,
            topic,
            offset,
            event_body,
            event_meta,
            failed_at,
            reason,
            error,
            traceback,
            verdict,
        ) = row
        finished_at = ends_at = 0.0
        if code == FORGOTTEN:
            if not forgotten:
                return None
            code = DONE if verdict == VERDICTS["done"] else CANCELLED
            finished_at = ends_at = wall
        elif code in (DONE, CANCELLED):
            if sort <= wall and not forgotten:
                return None
            finished_at, ends_at = sort - keep_s, sort
        elif code == DEAD:
            finished_at = failed_at or 0.0
        if extra & BODY:
            body = self._blob(2 * seq)
        if extra & RESULT:
            result = self._blob(2 * seq + 1)
        return JobInfo(
            id=id,
            queue=queue,
            status=NAMES[code],
            key=key or "",
            order=line or "",
            priority=priority,
            attempt=attempt,
            lost=lost,
            worker=owner or "",
            created_at=created_at,
            due_at=due_at,
            finished_at=finished_at,
            ends_at=ends_at,
            body=(event_body if event is not None else body) or b"",
            result=result or b"",
            reason=reason or "",
            error=error or "",
            traceback=traceback or "",
            waits=waits,
            feeds=feeds or "",
            event=event or "",
            topic=topic or "",
            offset=offset or 0,
            meta=_meta.decode(found) if (found := event_meta if event is not None else meta) else {},
        )

    def _blob(self, id: int) -> bytes:
        rows = self._book.execute(_SQL["blob"], (id,)).fetchall()
        return bytes(rows[0][0]) if rows else b""

    # --- queues -----------------------------------------------------------------------------------------------

    def queues(self, wall: float, first: int) -> list[QueueInfo]:
        """See Core.queues.

        Args:
            first: the first kept offset.
        """
        return [
            self._queue(lane, wall, first)
            for lane in sorted(self._book.lanes.values(), key=lambda lane: lane.name)
            if lane.said is not None or any(lane.counts[:FORGOTTEN])
        ]

    def _queue(self, lane: QueueBook, wall: float, first: int) -> QueueInfo:
        counts, said = lane.counts, lane.said
        position = backlog = 0
        if lane.topics is not None:
            end = self._book.offset
            position = end if lane.level or lane.position is None else lane.position
            backlog = max(0, end - max(position, first - 1))
        return QueueInfo(
            name=lane.name,
            waiting=counts[WAITING],
            delayed=counts[DELAYED],
            ready=counts[READY],
            running=counts[RUNNING],
            dead=counts[DEAD],
            done=lane.done,
            oldest_s=self._oldest_s(lane, wall) if counts[READY] else 0.0,
            rate_per_s=said.rate_per_s if said is not None else 0.0,
            concurrency=said.concurrency if said is not None else 0,
            patterns=said.patterns if said is not None else (),
            position=position,
            backlog=backlog,
        )

    def _oldest_s(self, lane: QueueBook, wall: float) -> float:
        ready_at = wall
        for sort in _RANKS if lane.suspects else _RANKS[:10]:
            for (at,) in self._book.execute(_SQL["heads"], (lane.no, sort)).fetchall():
                ready_at = min(ready_at, at)
        return max(0.0, wall - ready_at)
