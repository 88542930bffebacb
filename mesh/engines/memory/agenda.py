"""Scheduled callbacks: many instants, one timer of the clock.

Owns: the order of the callbacks, and that no timer is set while there are none.
Leaves to others: the callbacks (jobs, queues, sessions, locks).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any, Final

from mesh.clock import Clock, Timer

#: An instant this close counts as reached: wall-clock instants as floats are exact to a quarter of this.
HAIR_S: Final = 1e-6


class Appointment:
    """A scheduled callback."""

    __slots__ = ("args", "callback")

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.callback: Callable[..., object] | None = callback
        self.args = args

    def cancel(self) -> None:
        """Cancel it; harmless when it has run."""
        self.callback = None
        self.args = ()


class Agenda:
    """Callbacks, run in the order of their instants. They are synchronous and do not raise."""

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
        """Stop the timer: no callback runs until `open`; due ones wait until then."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def open(self) -> None:
        """Resume after `close`; harmless otherwise."""
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
