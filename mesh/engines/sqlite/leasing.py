"""Leasing ready jobs to workers, and releasing leases.

Owns: claiming (from the file, or a row that is not written yet), the contents of a lease, and making due jobs ready.
Leaves to others: which worker gets how many (the store's dispatch), how an attempt ends (settling).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from mesh.engines.sqlite import statements
from mesh.engines.sqlite.book import Book, Job, QueueBook
from mesh.engines.sqlite.deferring import Deferring, Fresh, delivery_id
from mesh.engines.sqlite.ending import Ending
from mesh.engines.sqlite.status import BODY, DELAYED, PRIORS, READY, RUNNING, SUSPECT_SORT
from mesh.tasks.contract import DEFAULT_PRIORITY, Lease

_SQL: Final = statements.named("tasks")
_CLAIM: Final = _SQL["claim"]

#: MessagePack's nil: stands for the answer of a task without one.
NIL: Final = b"\xc0"

_meta: Final = msgspec.msgpack.Decoder(dict[str, str])
_pack: Final = msgspec.msgpack.Encoder().encode
_NO_META: Final[dict[str, str]] = {}


class Leasing:
    """Leases, for one transaction after another."""

    def __init__(self, book: Book, deferring: Deferring, ending: Ending, flush: Callable[[], None]) -> None:
        """Args:
        flush: writes all pending rows, so that they can be found.
        """
        self._book: Final = book
        self._deferring: Final = deferring
        self._ending: Final = ending
        self._flush: Final = flush

    def claim(self, queue: str, n: int, session: str, *, solo: bool) -> list[Lease]:
        """See Turn.claim."""
        book = self._book
        lane = book.lanes.get(queue)
        if lane is None or n <= 0:
            return []
        fresh = self._deferring.fresh.get(lane)
        if fresh is not None:
            # Rows in the file are older but may have a lower priority: then both must be merged in order.
            if not solo and lane.counts[READY] - lane.suspects == len(fresh):
                return self._claim_fresh(lane, fresh, n, session)
            self._deferring.flush()
        if lane.topics is not None:
            # Deliveries refer to the rows of their events.
            self._flush()
        if not lane.counts[READY]:
            return []
        low, high = (SUSPECT_SORT, 2 * SUSPECT_SORT) if solo else (0, SUSPECT_SORT)
        rows = book.execute(_CLAIM, (session, lane.no, low, high, n)).fetchall()
        if not rows:
            return []
        # RETURNING does not preserve the order.
        rows.sort(key=_order)
        book.touch(lane)
        lane.counts[READY] -= len(rows)
        lane.counts[RUNNING] += len(rows)
        if solo:
            lane.suspects -= len(rows)
        events = self._events(rows) if lane.topics is not None or rows[0][12] is not None else {}
        return [self._lease(lane, row, session, events) for row in rows]

    def _lease(self, lane: QueueBook, row: tuple[Any, ...], session: str, events: dict[int, tuple[Any, ...]]) -> Lease:
        (
            seq,
            id,
            attempt,
            tries,
            lost,
            priority,
            key,
            line,
            feeds,
            place,
            keep_s,
            extra,
            event,
            created_at,
            gathers,
            timeout_s,
            trace,
            meta,
            body,
        ) = row
        self._book.hold(
            Job(
                lane,
                seq,
                id,
                RUNNING,
                attempt,
                tries,
                lost,
                session,
                priority,
                line,
                feeds,
                place,
                keep_s,
                extra,
                0,
                event,
            )
        )
        if event is not None:
            offset, event_id, topic, event_key, body, encoding, at, trace, meta = events.get(event) or _GONE
            return Lease(
                id,
                attempt,
                lane.name,
                body,
                encoding,
                event_key or "",
                created_at,
                b"",
                lost,
                trace or "",
                _meta.decode(meta) if meta is not None else _NO_META,
                timeout_s,
                topic,
                event_id,
                offset,
                at,
                tries,
            )
        if extra:
            if extra & BODY:
                (body,) = self._book.execute(_SQL["blob"], (2 * seq,)).fetchone()
            prior = self.prior(seq, gathers) if extra & PRIORS else b""
        else:
            prior = b""
        return Lease(
            id,
            attempt,
            lane.name,
            body,
            0,
            key or "",
            created_at,
            prior,
            lost,
            trace or "",
            _meta.decode(meta) if meta is not None else _NO_META,
            timeout_s,
            "",
            "",
            0,
            0.0,
            tries,
        )

    def prior(self, seq: int, gathers: bool) -> bytes:
        """The answers of the tasks that a task waited for, as in Lease.prior."""
        parts = [bytes(part) or NIL for (part,) in self._book.execute(_SQL["priors"], (seq,))]
        return _pack([msgspec.Raw(part) for part in parts]) if gathers else parts[0]

    def _events(self, rows: Sequence[tuple[Any, ...]]) -> dict[int, tuple[Any, ...]]:
        offsets = msgspec.json.encode([row[12] for row in rows]).decode()
        return {row[0]: row for row in self._book.execute(_SQL["events"], (offsets,))}

    def _claim_fresh(self, lane: QueueBook, fresh: list[Fresh], n: int, session: str) -> list[Lease]:
        """Lease jobs that were made in this transaction: their rows will be written as running."""
        book = self._book
        if len({each.priority for each in fresh}) > 1:
            fresh.sort(key=_fresh_order)
        given = fresh[:n]
        del fresh[:n]
        if not fresh:
            del self._deferring.fresh[lane]
        book.touch(lane)
        lane.counts[READY] -= len(given)
        lane.counts[RUNNING] += len(given)
        return [self._lease_fresh(lane, each, session) for each in given]

    def _lease_fresh(self, lane: QueueBook, fresh: Fresh, session: str) -> Lease:
        attempt, feeds, extra = fresh.lease(session)
        book = self._book
        task = fresh.task
        if task is not None:
            book.hold(
                Job(
                    lane,
                    fresh.seq,
                    task.id,
                    RUNNING,
                    attempt,
                    1,
                    0,
                    session,
                    task.priority,
                    None,
                    feeds,
                    task.place,
                    task.keep_s,
                    extra,
                    0,
                    None,
                )
            )
            return Lease(
                task.id,
                attempt,
                lane.name,
                task.body,
                0,
                task.key,
                book.wall,
                b"",
                0,
                task.trace,
                task.meta,
                task.timeout_s,
            )
        event = fresh.event
        assert event is not None
        id = delivery_id(event.id, lane)
        book.hold(
            Job(
                lane,
                fresh.seq,
                id,
                RUNNING,
                attempt,
                1,
                0,
                session,
                DEFAULT_PRIORITY,
                None,
                None,
                0,
                0.0,
                0,
                0,
                fresh.offset,
            )
        )
        return Lease(
            id,
            attempt,
            lane.name,
            event.body,
            event.encoding,
            event.key,
            book.wall,
            b"",
            0,
            event.trace,
            event.meta,
            0.0,
            event.topic,
            event.id,
            fresh.offset,
            event.at,
        )

    # --- time -------------------------------------------------------------------------------------------------

    def next_due(self) -> float | None:
        """See Core.next_due."""
        return min((lane.due_at for lane in self._book.lanes.values() if lane.counts[DELAYED]), default=None)

    def promote(self, limit: int) -> int:
        """See Turn.promote."""
        book = self._book
        count = 0
        for lane in tuple(book.lanes.values()):
            if not lane.counts[DELAYED] or lane.due_at > book.wall or count >= limit:
                continue
            self._deferring.flush()
            sorts = book.execute(_SQL["promote"], (lane.no, book.wall, limit - count)).fetchall()
            book.touch(lane)
            if sorts:
                lane.counts[DELAYED] -= len(sorts)
                lane.counts[READY] += len(sorts)
                lane.suspects += sum(1 for (sort,) in sorts if sort >= SUSPECT_SORT)
                book.woken.add(lane.name)
                count += len(sorts)
            first = book.execute(_SQL["next_due"], (lane.no,)).fetchone()
            lane.due_at = first[0] if first is not None else _NEVER
        return count

    # --- taking back ------------------------------------------------------------------------------------------

    def release(self, session: str, keep: Sequence[tuple[str, int]], *, lost: bool) -> list[tuple[str, int]]:
        """See Turn.release."""
        book = self._book
        of_session = book.sessions.get(session, {})
        kept = {(id, attempt) for id, attempt in keep}
        unknown = [
            (id, attempt) for id, attempt in keep if (job := of_session.get(id)) is None or job.attempt != attempt
        ]
        for job in tuple(of_session.values()):
            if (job.id, job.attempt) not in kept:
                if lost:
                    self._ending.lose(job)
                else:
                    self._ending.again(job, 0.0, tries=job.tries - 1)
        return unknown


_NEVER: Final = float("inf")
_GONE: Final = (0, "", "", "", b"", 0, 0.0, None, None)


def _order(row: tuple[Any, ...]) -> tuple[int, int]:
    return -row[5], row[0]


def _fresh_order(fresh: Fresh) -> tuple[int, int]:
    return -fresh.priority, fresh.seq
