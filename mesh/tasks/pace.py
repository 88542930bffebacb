"""Whether many askers at once are better served by one request after the other, or by two at a time.

Owns: that choice, from what was measured. Leaves to others: requests (gathering), the clock: `now` is passed in.

With one request at a time, the engine waits while the askers are answered and ask again, and they wait while it works.
With two halves in turn neither waits; but what a request costs by itself, however much is in it, is then spent twice:
waiting for the disk, above all, and processor time where that is scarce. With 64 callers halves carried between 0.6 and
1.5 times as much, by the machine and by what else ran on it. So both are tried, and the better one is kept for a while.
"""

from __future__ import annotations

from typing import Final

#: From so many items on halves may be worth it: a request is as much work for the store as 25 tasks in it.
CROWD: Final = 48
#: A measurement is over when everybody has asked so many times: some 50 ms, in which one slow commit does not count.
TURNS: Final = 24
#: So many measurements with the better one, then one with the other: a twentieth of the time.
KEEP: Final = 20
#: A pause that is longer was not the engine's: a measurement with one in it says nothing. Where requests themselves
#: take longer, they go whole.
PAUSE_S: Final = 0.1
#: The weight of the newest measurement in what is known.
NEWEST: Final = 0.5


class Pace:
    """Of one kind of request.

    Attributes:
        halves: two requests at a time now.
        joining: the next request waits until nothing is under way.
    """

    __slots__ = ("_begun_at", "_items", "_kept", "_last_at", "_rates", "halves", "joining")

    def __init__(self) -> None:
        self.halves = False
        self.joining = False
        # Items per second with whole requests and with halves; 0 before it was measured.
        self._rates = [0.0, 0.0]
        self._kept = 0
        self._begun_at = 0.0
        self._last_at = 0.0
        self._items = 0

    def share(self, count: int, under_way: int, now: float) -> int:
        """Of `count` items that wait, how many go now; the others go right after them, in a request of their own.

        Args:
            under_way: items of requests that are not answered yet.
        """
        crowd = count + under_way
        paused, self._last_at = now - self._last_at > PAUSE_S, now
        if paused:
            self._begun_at = 0.0
            self.halves = self.joining = False
        if crowd < CROWD:
            self.joining = False
            self._begun_at = 0.0
            return count
        if not under_way:
            self.joining = False
        if self.joining:
            return count
        if not self._begun_at:
            self._begun_at = now
            self._items = 0
        elif self._items >= TURNS * crowd and now > self._begun_at:
            self._measured(self._items / (now - self._begun_at), under_way)
        self._items += count
        return min(count, (crowd + 1) // 2) if self.halves else count

    def _measured(self, rate: float, under_way: int) -> None:
        """Choose for the next while."""
        rates = self._rates
        known = rates[self.halves]
        rates[self.halves] = rate if not known else known + NEWEST * (rate - known)
        self._kept += 1
        other = not self.halves
        if not rates[other] or rates[other] > rates[self.halves] or self._kept >= KEEP:
            self.halves = other
            self.joining = not other and under_way > 0
            # The first measurement after a long while decides by itself: much may have changed.
            self._kept = 0
        # What goes now is still a step from one to the other.
        self._begun_at = 0.0
