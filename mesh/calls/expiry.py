"""Watches the deadlines of many calls with one timer.

Owns: which deadlines are due. Leaves to others: what happens then (`expire`).

A timer per call would cost more than sending the call. Nearly all calls are answered in time, so watching must be
cheap and firing may be coarse: deadlines are collected in slots of 5 ms, and only the earliest slot has a timer.
"""

from __future__ import annotations

from typing import Protocol

from mesh.clock import Clock, Timer

#: Slots per second. A deadline fires up to one slot late, never early.
SLOTS = 200


class Expires(Protocol):
    """An object with a deadline. `Expiries` stores the slot in it."""

    slot: int

    def expire(self) -> None:
        """The deadline has passed. Called at most once per `watch`."""


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
        """Stop watching. Harmless when the item was never watched or has expired."""
        watched = self._slots.get(item.slot)
        if watched is not None:
            watched.pop(item, None)
            # Remove an empty slot; when its timer fires, it finds nothing and sets the next one.
            if not watched:
                del self._slots[item.slot]

    def close(self) -> None:
        """Stop watching all items."""
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
        # A timer may fire slightly early; the slot for which it was set counts as due nevertheless.
        now_slot = int(self._clock.now() * SLOTS + 1e-6)
        for slot in sorted(slot for slot in self._slots if slot <= now_slot):
            for item in list(self._slots.pop(slot, ())):
                item.expire()
        if self._slots and self._armed == 0:
            self._arm(min(self._slots))
