"""The largest value of the last minute, for a gauge; any number of readers may read it without changing it."""

from __future__ import annotations

from typing import Final

SLOT_S: Final = 10.0
#: With ten-second slots, a value counts for 50 to 60 s.
SLOTS: Final = 6


class RecentMaximum:
    """A maximum over a sliding window, kept in slots of ten seconds."""

    __slots__ = ("_slots",)

    def __init__(self) -> None:
        self._slots: dict[int, float] = {}

    def note(self, value: float, now: float) -> None:
        """Record a value at `now`, in seconds of any monotonic clock."""
        slot = int(now // SLOT_S)
        if value > self._slots.get(slot, 0.0):
            self._slots[slot] = value
            for old in [each for each in self._slots if each <= slot - SLOTS]:
                del self._slots[old]

    def read(self, now: float) -> float:
        """The largest value of the last minute; 0.0 when there was none."""
        first = int(now // SLOT_S) - SLOTS
        return max((value for slot, value in self._slots.items() if slot > first), default=0.0)
