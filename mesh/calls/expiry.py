"""Deadlines of many calls watched with one timer.

Owns: who is due when. Leaves to others: what happens to them (`expire`).

A timer per call would cost more than sending it does; nearly all calls are answered in time, so watching must be
cheap and firing may be coarse: deadlines are gathered in slots of 5 ms, and only the earliest slot has a timer.
"""

from __future__ import annotations

from typing import Protocol

from mesh.clock import Clock, Timer

#: Slots per second. A deadline fires up to one slot late, never early.
SLOTS = 200


class Expires(Protocol):
    """What can be watched: it remembers its slot for us."""

    slot: int

    def expire(self) -> None:
        """Its deadline is over. Called at most once per `watch`."""


class Expiries:
    """The deadlines of one process."""

    __slots__ = ("_armed", "_clock", "_slots", "_timer")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._slots: dict[int, dict[Expires, None]] = {}
        self._armed = 0  # the slot that the timer is set for; 0 when there is no timer
        self._timer: Timer | None = None

    def watch(self, item: Expires, at: float) -> None:
        """Call `item.expire()` soon after the instant `at`."""
        item.slot = slot = int(at * SLOTS) + 1
        watched = self._slots.get(slot)
        if watched is None:
            self._slots[slot] = {item: None}
            if self._armed == 0 or slot < self._armed:
                self._arm(slot)
        else:
            watched[item] = None

    def forget(self, item: Expires) -> None:
        """It is done; harmless when it was never watched or has expired."""
        watched = self._slots.get(item.slot)
        if watched is not None:
            watched.pop(item, None)
            # An empty slot goes with its last item; the timer finds nothing and moves on.
            if not watched:
                del self._slots[item.slot]

    def close(self) -> None:
        """Forget everything."""
        self._slots.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._armed = 0

    def __len__(self) -> int:
        return sum(map(len, self._slots.values()))

    def _arm(self, slot: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed = slot
        self._timer = self._clock.call_at(slot / SLOTS, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._armed = 0
        # A timer may come a hair early; the slot it was set for is due all the same.
        now_slot = int(self._clock.now() * SLOTS + 1e-6)
        for slot in sorted(slot for slot in self._slots if slot <= now_slot):
            for item in list(self._slots.pop(slot, ())):
                item.expire()
        if self._slots and self._armed == 0:
            self._arm(min(self._slots))
