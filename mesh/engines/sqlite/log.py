"""The log of durable events.

Owns: offsets, appending, reading in steps, finding an instant, and retention.
Leaves to others: deliveries (subscriptions).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from mesh.engines.semantics.validation import check_events
from mesh.engines.sqlite import statements
from mesh.engines.sqlite.book import Book, QueueBook
from mesh.engines.sqlite.deferring import delivery_id
from mesh.engines.sqlite.inserting import Insert
from mesh.engines.sqlite.status import PROOF_S
from mesh.engines.sqlite.subscriptions import Subscriptions
from mesh.events.log import LoggedEvent, NewEvent
from mesh.events.topics import Matcher

_SQL: Final = statements.named("log")
_INSERT: Final = _SQL["insert"]
_INSERTED: Final = Insert(_INSERT)

#: A statement for many rows holds a copy of all their values: not for bodies that are larger than this.
_SMALL_BYTES: Final = 16 * 1024

#: Deliveries that one step of retention looks up: one for each event and subscription.
_LOOK_UPS: Final = 2000

_pack: Final = msgspec.msgpack.Encoder().encode
_meta: Final = msgspec.msgpack.Decoder(dict[str, str])


class Log:
    """All kept events, in the order of their offsets."""

    def __init__(self, book: Book, subscriptions: Subscriptions, retention_s: float) -> None:
        self._book: Final = book
        self._subscriptions: Final = subscriptions
        # The row of an event proves that its unit was committed.
        self._retention_s: Final = max(retention_s, PROOF_S)
        self._known: dict[str, int] = {}
        self._rows: list[tuple[Any, ...]] = []
        # One of the rows has a large body.
        self._large = False
        # The greatest id of all events; None before it is first read.
        self._last_id: str | None = None
        # Where and when the next step of retention starts: it pauses when only events kept for a delivery are left.
        self._swept = 0
        self._swept_until_at = 0.0

    def begin(self) -> None:
        """Begin a transaction."""
        self._known = {}
        self._rows = []
        self._large = False

    def flush(self) -> None:
        """Write pending rows."""
        if self._rows:
            if self._large:
                self._book.executemany(_INSERT, self._rows)
            else:
                _INSERTED.write(self._book.execute, self._rows)
            self._rows = []
            self._large = False

    # --- appending --------------------------------------------------------------------------------------------

    def learn(self, ids: Iterable[str]) -> None:
        """Find out which of these events were appended before; called once for all units of a transaction."""
        last_id = self._last_id
        if last_id is None:
            last_id = self._last_id = self._book.execute(_SQL["last_id"]).fetchone()[0] or ""
        # As with tasks: new ids mostly sort after all existing ones.
        doubtful = [id for id in ids if id <= last_id]
        if doubtful:
            found = self._book.execute(_SQL["known"], (_json(doubtful),))
            self._known.update(found.fetchall())

    def look(self, events: Sequence[NewEvent]) -> None:
        """Raises:
        BadRequest: a topic is malformed, an event has no id, or a value in it cannot be stored.
        """
        check_events(events)

    def put(self, events: Sequence[NewEvent]) -> list[int]:
        """Append the new events; return the offsets of all."""
        book = self._book
        offsets: list[int] = []
        topic: str | None = None
        lanes: Sequence[QueueBook] = ()
        for event in events:
            offset = self._known.get(event.id)
            if offset is None:
                book.offset += 1
                offset = self._known[event.id] = book.offset
                if self._last_id is None or event.id > self._last_id:
                    self._last_id = event.id
                self._rows.append(
                    (
                        offset,
                        event.id,
                        book.wall,
                        event.topic,
                        event.body,
                        event.encoding,
                        event.key or None,
                        event.at,
                        event.publisher or None,
                        event.trace or None,
                        _pack(event.meta) if event.meta else None,
                    )
                )
                if len(event.body) > _SMALL_BYTES:
                    self._large = True
                if event.topic != topic:
                    topic = event.topic
                    lanes = book.subscriptions.match(topic)
                if lanes:
                    self._subscriptions.offer(lanes, offset, event)
            offsets.append(offset)
        return offsets

    # --- reading ----------------------------------------------------------------------------------------------

    def read(self, topics: Matcher[None], after: int, limit: int, scan: int) -> tuple[list[LoggedEvent], int | None]:
        """See Core.read."""
        rows = self._book.execute(_SQL["scan"], (after, scan)).fetchall()
        offsets: list[int] = []
        for offset, topic in rows:
            if len(offsets) == limit:
                break
            after = offset
            if topics.match(topic):
                offsets.append(offset)
        else:
            if len(rows) < scan:
                return self._events(offsets), None
        return self._events(offsets), after

    def count(self, topics: Matcher[None], after: int, scan: int) -> tuple[int, int | None]:
        """See Core.count."""
        rows = self._book.execute(_SQL["scan"], (after, scan)).fetchall()
        count = sum(1 for _, topic in rows if topics.match(topic))
        return count, (rows[-1][0] if len(rows) == scan else None)

    def _events(self, offsets: list[int]) -> list[LoggedEvent]:
        if not offsets:
            return []
        return [
            LoggedEvent(
                offset,
                NewEvent(
                    id,
                    topic,
                    body,
                    encoding,
                    key or "",
                    at,
                    publisher or "",
                    trace or "",
                    _meta.decode(meta) if meta is not None else {},
                ),
            )
            for offset, id, topic, body, encoding, key, at, publisher, trace, meta in self._book.execute(
                _SQL["events"], (_json(offsets),)
            ).fetchall()
        ]

    def first(self) -> int:
        """The offset of the first kept event; the next offset when there is none."""
        (first,) = self._book.execute(_SQL["first"]).fetchall()[0]
        return self._book.offset + 1 if first is None else int(first)

    def offset_at(self, since_at: float) -> int:
        """See Core.offset_at."""
        low, high = self.first(), self._book.offset + 1
        # Bisection: a later event has a larger offset. (After a clock was set back it finds one of several places.)
        while low < high:
            middle = (low + high) // 2
            rows = self._book.execute(_SQL["logged_at"], (middle,)).fetchall()
            if not rows or rows[0][1] >= since_at:
                high = middle
            else:
                low = rows[0][0] + 1
        return low

    # --- forgetting -------------------------------------------------------------------------------------------

    def sweep(self, limit: int) -> int:
        """Delete events with an expired retention if all their deliveries are made and settled; return how many."""
        book = self._book
        if book.wall < self._swept_until_at:
            return 0
        lanes = [lane for lane in book.lanes.values() if lane.position is not None]
        limit = max(1, min(limit, _LOOK_UPS // max(1, len(lanes))))
        old = book.execute(_SQL["old"], (self._swept, book.wall - self._retention_s, limit)).fetchall()
        forgotten = 0
        if old:
            ids = [delivery_id(id, lane) for _, id, _ in old for lane in lanes]
            spared = {id for (id,) in book.execute(_SQL["outstanding"], (_json(ids),)).fetchall()} if ids else set()
            gone = [
                offset
                for offset, id, topic in old
                if not any(delivery_id(id, lane) in spared for lane in lanes)
                and not any(_awaits(lane, offset, topic) for lane in book.behind)
            ]
            book.execute(_SQL["mark"], (book.offset,))
            book.execute(_SQL["forget"], (_json(gone),))
            forgotten = len(gone)
        if len(old) < limit:
            # All old events were checked: start over, but not at once for the few that must be kept.
            self._swept, pause = 0, True
        else:
            self._swept, pause = old[-1][0], not forgotten
        if pause:
            self._swept_until_at = book.wall + 10.0
        return forgotten


def _awaits(lane: QueueBook, offset: int, topic: str) -> bool:
    """Whether a subscription that is behind has yet to receive an event."""
    return (lane.position or 0) < offset and lane.topics is not None and bool(lane.topics.match(topic))


def _json(values: Iterable[object]) -> str:
    return msgspec.json.encode(list(values)).decode()
