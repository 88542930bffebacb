"""How much work is taken on at once, how much may wait, and when to say no.

Owns: counting what runs, the queue of what waits, and who is next.
Leaves to others: what an item is, running it, telling a refused caller `overloaded` (calls).
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


class Verdict(enum.Enum):
    """What `Gate.admit` says."""

    RUN = "run"
    WAIT = "wait"
    REFUSE = "refuse"


RUN: Final = Verdict.RUN
WAIT: Final = Verdict.WAIT
REFUSE: Final = Verdict.REFUSE


class Gate(Generic[Item]):
    """At most `concurrency` items run, at most `queue` more wait in order; the rest are refused at once.

    Synchronous, so that deciding and acting are one step of the event loop. Each item that was told RUN, or was
    returned by `release`, holds a place until it is given back by one `release`.

    Args:
        concurrency: places; 1 or more.
        queue: items that may wait when all places are taken; 0 or more.

    Raises:
        ValueError: an argument is outside its range.
    """

    # An OrderedDict and not a dict: taking the first of a dict again and again walks over all those taken before.
    __slots__ = ("_waiting", "concurrency", "queue", "running")

    def __init__(self, concurrency: int, queue: int) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency: {concurrency!r} lets nothing run; give 1 or more")
        if queue < 0:
            raise ValueError(f"queue: {queue!r} is not a number of items; give 0 or more")
        self.concurrency = concurrency
        self.queue = queue
        #: Places that are taken.
        self.running = 0
        self._waiting: OrderedDict[Item, None] = OrderedDict()

    @property
    def waiting(self) -> int:
        """How many items wait for a place."""
        return len(self._waiting)

    @property
    def load(self) -> float:
        """Places taken, as a share: 0.0 to 1.0."""
        return self.running / self.concurrency

    def admit(self, item: Item) -> Verdict:
        """Ask for a place.

        Args:
            item: what `release` gives back when its turn comes; hashable, not None, and not waiting already.

        Returns:
            RUN: it has a place. WAIT: a later `release` will return it, unless it is withdrawn. REFUSE: neither.

        Raises:
            ValueError: the item waits already; two of it could not be told apart.
        """
        if self.running < self.concurrency:
            self.running += 1
            return RUN
        waiting = self._waiting
        if len(waiting) >= self.queue:
            return REFUSE
        if item in waiting:
            raise ValueError(f"{item!r} waits already; admit each item once")
        waiting[item] = None
        return WAIT

    def release(self) -> Item | None:
        """Give a place back.

        Returns:
            The item that has waited longest and has the place now: run it. None when nobody waits.

        Raises:
            RuntimeError: nothing holds a place; something was released twice.
        """
        if self._waiting:
            return self._waiting.popitem(last=False)[0]
        if self.running < 1:
            raise RuntimeError("release without a place taken; each place is given back exactly once")
        self.running -= 1
        return None

    def withdraw(self, item: Item) -> bool:
        """Take a waiting item out of the queue, wherever it stands, in constant time.

        Returns:
            True when it was waiting. False when it was not: it runs (its place is still to be released), or is unknown.
        """
        try:
            del self._waiting[item]
        except KeyError:
            return False
        return True

    def evict(self) -> list[Item]:
        """Take everything out of the queue, in order: for a stop that refuses what has not begun."""
        evicted = list(self._waiting)
        self._waiting.clear()
        return evicted
