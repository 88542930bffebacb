"""Concurrency limiter: how many items run at once, how many may wait, and when to refuse.

Owns: counting running items, and the queue of waiting items.
Leaves to others: the order of waiting items (fair_queue), what an item is, running it, refusing the caller with
`overloaded` (calls).
"""

from __future__ import annotations

import enum
from collections.abc import Hashable, Mapping
from typing import Final, Generic, TypeVar

from mesh.policy.fair_queue import FairQueue

Item = TypeVar("Item", bound=Hashable)


class Verdict(enum.Enum):
    """The result of `Gate.admit`."""

    RUN = "run"
    WAIT = "wait"
    REFUSE = "refuse"


RUN: Final = Verdict.RUN
WAIT: Final = Verdict.WAIT
REFUSE: Final = Verdict.REFUSE


class Gate(Generic[Item]):
    """At most `concurrency` items run, at most `queue` more wait; the rest are refused at once.

    Tenants that wait take turns; without tenants, items run in order of arrival.

    Synchronous, so that deciding and acting are one step of the event loop. Each item for which `admit` returned RUN,
    or that `release` returned, holds a place until one `release` frees it.

    Args:
        concurrency: places; 1 or more.
        queue: items that may wait when all places are taken; 0 or more.

    Raises:
        ValueError: an argument is outside its range.
    """

    __slots__ = ("_queue", "_waiting", "concurrency", "queue", "running")

    def __init__(self, concurrency: int, queue: int) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency: {concurrency!r} is not a number of calls from 1 up")
        if queue < 0:
            raise ValueError(f"queue: {queue!r} is not a number of items from 0 up")
        self.concurrency = concurrency
        self.queue = queue
        #: Places in use.
        self.running = 0
        self._queue: FairQueue[Item] = FairQueue()
        # Asked after every call whether it is empty, so without a method call.
        self._waiting: Mapping[Item, str] = self._queue.tenants

    @property
    def waiting(self) -> int:
        """How many items wait for a place."""
        return len(self._waiting)

    @property
    def load(self) -> float:
        """The share of places in use: 0.0 to 1.0."""
        return self.running / self.concurrency

    def admit(self, item: Item, tenant: str = "") -> Verdict:
        """Request a place.

        Args:
            item: what a later `release` returns when its turn comes; hashable, not None, and not waiting already.
            tenant: the tenant for which it waits.

        Returns:
            RUN: it has a place. WAIT: a later `release` will return it, unless it is withdrawn. REFUSE: neither.

        Raises:
            ValueError: the item is waiting already.
        """
        if self.running < self.concurrency:
            self.running += 1
            return RUN
        waiting = self._waiting
        if len(waiting) >= self.queue:
            return REFUSE
        if item in waiting:
            raise ValueError(f"{item!r} is queued already; admit each item once")
        self._queue.push(item, tenant)
        return WAIT

    def displace(self, tenant: str) -> Item | None:
        """Make room in a full queue for an item of `tenant`: remove the newest item of the tenant with the most.

        Returns:
            The removed item: refuse it, and `admit` the other one. None when no tenant has so many more items that one
            of them has to give way.
        """
        item = self._queue.displaceable(tenant)
        if item is not None:
            self._queue.remove(item)
        return item

    def release(self) -> Item | None:
        """Free a place.

        Returns:
            The next item, which now holds the place: run it. None when no item waits.

        Raises:
            RuntimeError: no place is in use, so a place was released twice.
        """
        if self._waiting:
            return self._queue.pop()
        if self.running < 1:
            raise RuntimeError("release without an admission; release each admitted item exactly once")
        self.running -= 1
        return None

    def withdraw(self, item: Item) -> bool:
        """Remove a waiting item from any position of the queue, in constant time.

        Returns:
            True when it was waiting. False when it runs (its place must still be released), or is unknown.
        """
        return self._queue.remove(item)

    def evict(self) -> list[Item]:
        """Remove and return all waiting items, in order of arrival: for a stop that refuses work that has not begun."""
        return self._queue.clear()
