"""Durable subscriptions: matching events, and the position of each subscription.

Owns: positions in the log, and making deliveries: at once for a subscription that has all earlier events, else in
batches while few of its deliveries are ready (so that a backlog of a million events does not become a million jobs).
Leaves to others: the log itself (log), the rows of deliveries (deferring), their life cycle (leasing, ending).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from mesh.engines.semantics.validation import is_queue
from mesh.engines.sqlite import statements
from mesh.engines.sqlite.book import Book, QueueBook, matcher
from mesh.engines.sqlite.deferring import Deferring, delivery_id
from mesh.engines.sqlite.ending import Ending
from mesh.engines.sqlite.status import CANCELLED, DELAYED, DONE, FORGOTTEN, READY, RUNNING, WAITING
from mesh.errors import BadRequest
from mesh.events.log import NewEvent
from mesh.tasks.contract import Queue
from mesh.telemetry.logs import get_logger

log = get_logger("mesh.store")

_SQL: Final = statements.named("log")

#: Limits of ready deliveries, and of all outstanding ones (most of which then wait for another with the same key).
MOST_READY: Final = 2000
MOST_MADE: Final = 20_000
#: With fewer ready deliveries than this, more are made. Half of the limit, so that batches are large.
FEW_READY: Final = MOST_READY // 2

_meta: Final = msgspec.msgpack.Decoder(dict[str, str])


class Subscriptions:
    """All subscriptions, for one transaction after another."""

    def __init__(self, book: Book, deferring: Deferring, ending: Ending) -> None:
        self._book: Final = book
        self._deferring: Final = deferring
        self._ending: Final = ending
        # Subscriptions with deliveries made in this transaction: their positions must be written with it.
        self._moved: set[QueueBook] = set()

    def begin(self) -> None:
        """Begin a transaction."""
        self._moved = set()

    def flush(self) -> None:
        """Write the positions that this transaction changed."""
        book = self._book
        for lane in self._moved:
            if lane.level:
                lane.position = book.offset
            book.execute(_SQL["position"], (lane.position, lane.replays, lane.no))
        self._moved = set()

    def note(self) -> None:
        """Write the position of every subscription that has received the whole log."""
        self._moved = {lane for lane in self._book.lanes.values() if lane.level}

    def declare(self, said: Queue, first: int) -> None:
        """Apply a worker's declaration of a queue.

        Args:
            first: the first kept offset.

        Raises:
            BadRequest: its name is invalid, or a pattern is malformed.
        """
        book = self._book
        if not is_queue(said.name):
            raise BadRequest(f'queue {said.name[:80]!r}: a name "service.task" is needed')
        known = book.lanes.get(said.name)
        if known is not None and known.said == said:
            return
        topics = matcher(said.patterns) if said.patterns else None
        before = known.said.patterns if known is not None and known.said is not None else ()
        lane = book.declare(said)
        if said.patterns == before:
            return
        if lane.level:
            # It has received all events until now by its previous patterns.
            lane.position = book.offset
        if topics is None:
            lane.level = False
        elif lane.position is None:
            lane.position = book.offset if said.start == "new" else first - 1
        lane.topics = topics
        if topics is not None:
            lane.level = lane.position is not None and lane.position >= book.offset
        book.execute(_SQL["position"], (lane.position, lane.replays, lane.no))
        book.resubscribe()

    # --- new events -------------------------------------------------------------------------------------------

    def offer(self, lanes: Sequence[QueueBook], offset: int, event: NewEvent) -> None:
        """Deliver an appended event to those of the matching subscriptions that have all earlier events."""
        for lane in lanes:
            if not lane.level:
                continue
            self._book.touch(lane)
            self._moved.add(lane)
            if lane.counts[READY] >= MOST_READY or _made(lane) >= MOST_MADE:
                self._fall_back(lane, offset - 1)
            else:
                self._deferring.deliver(lane, offset, event)

    def _fall_back(self, lane: QueueBook, position: int) -> None:
        lane.level = False
        lane.position = position
        self._book.behind.add(lane)

    # --- old events -------------------------------------------------------------------------------------------

    def pumpable(self) -> bool:
        """See Core.pumpable."""
        return any(_hungry(lane) for lane in self._book.behind)

    def pump(self, limit: int, flush: Callable[[], None]) -> int:
        """See Turn.pump."""
        count = 0
        for lane in tuple(self._book.behind):
            if count >= limit:
                break
            if _hungry(lane):
                flush()
                count += self._pump(lane, limit - count)
        return count

    def _pump(self, lane: QueueBook, limit: int) -> int:
        book = self._book
        assert lane.topics is not None
        assert lane.position is not None
        limit = min(limit, MOST_MADE - _made(lane))
        rows = book.execute(_SQL["scan"], (lane.position, limit)).fetchall()
        book.touch(lane)
        self._moved.add(lane)
        offsets = [offset for offset, topic in rows if lane.topics.match(topic)]
        if offsets:
            events = book.execute(_SQL["events"], (msgspec.json.encode(offsets).decode(),)).fetchall()
            ids = [delivery_id(row[1], lane) for row in events]
            there = book.execute(_SQL["delivered"], (msgspec.json.encode(ids).decode(),)).fetchall()
            self._deliver(lane, events, {row[0]: row for row in there})
        if len(rows) < limit:
            lane.level = True
            book.behind.discard(lane)
        else:
            lane.position = rows[-1][0]
        return max(len(rows), 1)

    def _deliver(self, lane: QueueBook, events: list[tuple[Any, ...]], there: dict[str, tuple[Any, ...]]) -> None:
        for offset, id, topic, body, encoding, key, at, publisher, trace, meta in events:
            attempt = 0
            before = there.get(delivery_id(id, lane))
            if before is not None:
                _, seq, status, attempt, extra, place, queue = before
                if queue != lane.no:
                    # A task had this id before the event did: the row does not belong to this subscription.
                    log.warning("delivery.skipped", id=before[0], reason="a task already has the id of this delivery")
                    continue
                # The delivery is outstanding or dead, or was outstanding when the replay was requested.
                if status not in (DONE, CANCELLED, FORGOTTEN) or (place and place == lane.replays):
                    continue
                # Repeat the delivery as a new row, in the order of the log.
                self._ending.tidy(seq, extra)
                self._book.execute(_SQL["remove"], (seq,))
                lane.counts[status] -= 1
            event = NewEvent(
                id,
                topic,
                body,
                encoding,
                key or "",
                at,
                publisher or "",
                trace or "",
                _meta.decode(meta) if meta is not None else {},
            )
            self._deferring.deliver(lane, offset, event, attempt)

    def replay(self, name: str, offset: int) -> None:
        """See Turn.replay."""
        lane = self.find(name)
        book = self._book
        book.touch(lane)
        at = max(0, offset - 1)
        position = book.offset if lane.level else lane.position
        if position is None or at < position:
            self._moved.add(lane)
            if lane.level:
                self._fall_back(lane, at)
            lane.position = at
            lane.replays += 1
            book.execute(_SQL["outstanding_at_replay"], (lane.replays, lane.no))

    def find(self, name: str) -> QueueBook:
        """The subscription. Raises: BadRequest: there is none of this name."""
        lane = self._book.lanes.get(name)
        if lane is None or lane.topics is None:
            known = ", ".join(sorted(lane.name for lane in self._book.lanes.values() if lane.topics is not None))
            raise BadRequest(f"there is no durable subscription {name!r}; there are: {known or 'none'}")
        return lane


def _made(lane: QueueBook) -> int:
    counts = lane.counts
    return counts[WAITING] + counts[DELAYED] + counts[READY] + counts[RUNNING]


def _hungry(lane: QueueBook) -> bool:
    return lane.counts[READY] < FEW_READY and _made(lane) < MOST_MADE
