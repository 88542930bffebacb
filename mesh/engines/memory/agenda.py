"""What is to be done later: many instants, one timer of the clock.

Owns: the order of what is due, and that nothing is armed while nothing is.
Leaves to others: what is done (jobs, queues, sessions, locks).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any, Final

from mesh.clock import Clock, Timer

#: What is due so soon is due: wall-clock instants as floats are exact to a quarter of this.
HAIR_S: Final = 1e-6


class Appointment:
    """Something that will be done, unless it is called off."""

    __slots__ = ("args", "callback")

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.callback: Callable[..., object] | None = callback
        self.args = args

    def cancel(self) -> None:
        """Call it off; harmless when it is over."""
        self.callback = None
        self.args = ()


class Agenda:
    """Callbacks in the order of their instants. They are synchronous and do not raise."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._order: Final = itertools.count()
        self._heap: list[tuple[float, int, Appointment]] = []
        self._timer: Timer | None = None
        self._timer_at = 0.0
        self._closed = False

    def at(self, when: float, callback: Callable[..., object], *args: Any) -> Appointment:
        """Run `callback(*args)` at this instant of the clock's `now`, or as soon as possible after it."""
        made = Appointment(callback, args)
        heapq.heappush(self._heap, (when, next(self._order), made))
        self._arm()
        return made

    def at_wall(self, when: float, callback: Callable[..., object], *args: Any) -> Appointment:
        """The same, at an instant of the wall clock."""
        return self.at(self._clock.now() + (when - self._clock.wall()), callback, *args)

    def close(self) -> None:
        """Disarm: nothing is done any more until `open`; what is due then waits."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def open(self) -> None:
        """Go on after `close`; harmless otherwise."""
        self._closed = False
        self._arm()

    def _arm(self) -> None:
        heap = self._heap
        while heap and heap[0][2].callback is None:
            heapq.heappop(heap)
        if self._closed or not heap:
            return
        when = heap[0][0]
        if self._timer is not None:
            if self._timer_at <= when:
                return
            self._timer.cancel()
        self._timer_at = when
        self._timer = self._clock.call_at(when, self._fire)

    def _fire(self) -> None:
        self._timer = None
        now = self._clock.now()
        heap = self._heap
        while heap and heap[0][0] <= now:
            _, _, due = heapq.heappop(heap)
            callback, args = due.callback, due.args
            due.cancel()
            if callback is not None:
                callback(*args)
        self._arm()
