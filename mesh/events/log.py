"""The contract of durable events: a log of topics, and subscriptions that each have a position in it.

Owns: the data types and the Protocol that every engine implements.
Leaves to others: emitting (service), running a handler (tasks.runner: a delivery is a lease), storing (engines).

A durable subscription is a queue of its own, named like its handler ("orders.audit"). The engine makes one task for
each matching event, in the order of the log; its `order` is the event's key. So deliveries are leased, retried,
counted, cancelled and dead-lettered exactly as tasks are.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol

import msgspec


class NewEvent(msgspec.Struct, array_like=True, frozen=True):
    """An event to be appended.

    Attributes:
        id: made by the publisher (mesh.ids.job_id), so that repeating an unanswered append adds nothing.
        key: events with the same key reach each subscription one at a time, in order. "" for none.
        body, encoding: the data, as in an event that is not durable.
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
    """An event in the log. Offsets grow over all topics together, with gaps."""

    offset: int
    event: NewEvent


class EventLog(Protocol):
    """The durable events of an engine. tests/contract/test_event_log.py checks these promises of every engine:

    - When `append` returns, the events are durable; each existing subscription gets them at least once.
    - A subscription's deliveries with the same key come in the order of the log, each after the previous one was
      settled.
    - A dead delivery does not block the next one with the same key.
    - A subscription resumes at its position, however long no worker was subscribed; changed patterns apply from then.
    - Retention: an event is deleted when it was appended longer than `events.retention` ago, unless a delivery of it
      is outstanding or dead, or a subscription has yet to receive it.
    """

    def append(self, events: Sequence[NewEvent], *, timeout_s: float) -> Awaitable[Sequence[int]]:
        """Append the events in one commit; their offsets."""

    async def replay(
        self, subscription: str, *, offset: int | None = None, since_at: float | None = None, timeout_s: float
    ) -> int:
        """Deliver the matching events of the log to one subscription again, from an offset or from an instant (of the
        append) on; return how many. Outstanding and dead deliveries stay as they are and are not made twice; an event
        that is being handled now may be delivered once more. The settlement of an earlier delivery is rejected.

        Raises:
            BadRequest: there is no such subscription, or not exactly one of `offset` and `since_at` was given.
        """

    async def abandon(self, subscription: str, *, timeout_s: float) -> int:
        """Delete a subscription that no worker has any more: it gets no events and no longer prevents their deletion;
        its outstanding deliveries are cancelled and its dead ones dropped. Return how many those were. A worker that
        declares it again starts a new subscription.

        Raises:
            BadRequest: there is no such subscription, or a worker is subscribed to it.
        """

    async def read(self, pattern: str, *, after: int = 0, limit: int = 100, timeout_s: float) -> list[LoggedEvent]:
        """A page of the log, in order; `after` is the last offset of the previous page."""

    async def last(self, *, timeout_s: float) -> int:
        """The offset of the newest event, or a number below that of the next one; 0 for a log that was never used."""
