"""The event log as a list.

Owns: offsets, finding events by topic, offset or instant, and retention.
Leaves to others: deliveries (memory: a subscription is a queue of deliveries).
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from mesh.engines.semantics.validation import check_events
from mesh.events.log import LoggedEvent, NewEvent
from mesh.events.topics import Matcher


class Record(NamedTuple):
    """An event, and when it was appended."""

    offset: int
    logged_at: float
    logged: LoggedEvent


class Log:
    """All kept events, in order.

    Attributes:
        last: the offset that was assigned last.
    """

    def __init__(self) -> None:
        self.last = 0
        self._records: list[Record] = []
        self._by_id: dict[str, LoggedEvent] = {}

    def look(self, events: Sequence[NewEvent]) -> None:
        """Raises:
        BadRequest: one of them is invalid.
        """
        check_events(events)

    def put(self, event: NewEvent, wall: float) -> tuple[LoggedEvent, bool]:
        """Append an event, unless it is known; return it and whether it is new."""
        known = self._by_id.get(event.id)
        if known is not None:
            return known, False
        self.last += 1
        logged = self._by_id[event.id] = LoggedEvent(self.last, event)
        self._records.append(Record(self.last, wall, logged))
        return logged, True

    def matching(self, topics: Matcher[None], *, offset: int = 0, since_at: float = 0.0) -> Iterator[LoggedEvent]:
        """The matching events, from an offset and an instant on."""
        for record in itertools.islice(self._records, self._index(offset), None):
            if record.logged_at >= since_at and topics.match(record.logged.event.topic):
                yield record.logged

    def page(self, topics: Matcher[None], after: int, limit: int) -> list[LoggedEvent]:
        """See EventLog.read."""
        return list(itertools.islice(self.matching(topics, offset=after + 1), max(0, limit)))

    def forget(self, before_at: float, spared: Collection[int]) -> None:
        """Delete the events that were appended before the instant, except the spared offsets."""
        if not self._records or self._records[0].logged_at >= before_at:
            return
        kept: list[Record] = []
        for record in self._records:
            if record.logged_at >= before_at or record.offset in spared:
                kept.append(record)
            else:
                del self._by_id[record.logged.event.id]
        self._records = kept

    def _index(self, offset: int) -> int:
        return bisect_left(self._records, offset, key=lambda record: record.offset)
