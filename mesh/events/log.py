"""What an engine does with durable events: a log of topics, and subscriptions that each have a position in it.

Owns: the shapes and the Protocol that every engine fulfils.
Leaves to others: emitting (service), running a handler (tasks.runner: a delivery is a lease), storing (engines).

A durable subscription is a queue of its own, named like its handler ("orders.audit"). The engine makes one task of each
event that matches, in the order of the log; its `order` is the event's key. So deliveries are leased, retried, counted,
cancelled and buried exactly as tasks are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec


class NewEvent(msgspec.Struct, array_like=True, frozen=True):
    """An event to be appended.

    Attributes:
        id: made by whoever emits (mesh.ids.job_id), so that repeating an unanswered append adds nothing.
        key: events of one key reach each subscription one after the other. "" for none.
        body, encoding: the data, as an event's.
        at: when it was emitted, wall clock.
    """

    id: str
    topic: str
    body: bytes
    encoding: int = 0
    key: str = ""
    at: float = 0.0
    publisher: str = ""
    trace: str = ""
    meta: dict[str, str] = {}


class LoggedEvent(msgspec.Struct, array_like=True, frozen=True):
    """An event as it stands in the log; offsets grow over all topics together, with holes."""

    offset: int
    event: NewEvent


class EventLog(Protocol):
    """The durable events of an engine; tests/contract/test_event_log.py holds it to this.

    - What `append` returned from is durable, and each subscription that exists will get it at least once.
    - A subscription's deliveries of one key come in the order of the log, each after the one before was settled.
    - A dead delivery lets the next of its key go on.
    - A subscription goes on where it was, however long nobody was attached to it; other patterns hold from then on.
    - Retention: what was appended longer than `events.retention` ago is forgotten, unless a delivery of it is
      outstanding or dead, or a subscription has still to get it.
    """

    async def append(self, events: Sequence[NewEvent], *, timeout_s: float) -> list[int]:
        """All in one commit; their offsets."""

    async def replay(
        self, subscription: str, *, offset: int | None = None, since_at: float | None = None, timeout_s: float
    ) -> int:
        """Deliver again to one subscription what stands in the log and matches, from an offset on, or from what was
        appended at an instant on; how many events that are. Deliveries that are outstanding or dead stay as they are,
        and are not made twice; one that is in hand now may come once more. What an earlier delivery still says is
        refused.

        Raises:
            BadRequest: there is no such subscription, or not one of the two places was given.
        """

    async def abandon(self, subscription: str, *, timeout_s: float) -> int:
        """End a subscription that no worker has any more: it gets no events, keeps none from being forgotten, its
        outstanding deliveries are cancelled and its dead ones dropped. How many those were. A worker that declares it
        again begins anew.

        Raises:
            BadRequest: there is no such subscription, or a worker is attached to it.
        """

    async def read(self, pattern: str, *, after: int = 0, limit: int = 100, timeout_s: float) -> list[LoggedEvent]:
        """A page of the log, in order; `after` is the last offset of the page before."""
