"""Choosing between one request at a time and two at a time, when many callers send at once.

Owns: that choice, from measurements. Leaves to others: requests (gathering), the clock: `now` is passed in.

With one request at a time, the engine is idle while the callers receive their answers and send again, and they wait
while it works. With two alternating halves neither waits; but the fixed cost of a request is then paid twice: above all
waiting for the disk, and processor time where that is scarce. With 64 callers, halves had between 0.6 and 1.5 times the
throughput, depending on the machine and its load. So both are tried, and the better one is kept for a while.

They are compared by the median time of a round. Every 60 ms or so the store copies its log into the database, which
takes as long as several rounds. A mean over a few rounds depends mostly on whether it contains such a pause.
"""

from __future__ import annotations

from typing import Final

#: From so many items on halves may be worth it: a request is as much work for the store as 25 tasks in it.
CROWD: Final = 48
#: Rounds of one measurement; in a round each caller sends once. Some 20 ms with 64 callers.
ROUNDS: Final = 15
#: So many measurements with the better mode, then one with the other: a twentieth of the time.
KEEP: Final = 20
#: A longer pause was not caused by the engine: a measurement that contains one is discarded. Where requests themselves
#: take longer, they are not halved.
PAUSE_S: Final = 0.1
#: The weight of the newest measurement in the running average.
NEWEST: Final = 0.5


class Pace:
    """The choice for one kind of request.

    Attributes:
        halves: two requests at a time are sent now.
        joining: the next request waits until no request is running.
    """

    __slots__ = ("_begun_at", "_items", "_kept", "_last_at", "_rates", "_rounds", "halves", "joining")

    def __init__(self) -> None:
        self.halves = False
        self.joining = False
        # Items per second with whole requests and with halves; 0 before the first measurement.
        self._rates = [0.0, 0.0]
        self._kept = 0
        # The present round: when it began (0 between two measurements), and its items so far.
        self._begun_at = 0.0
        self._items = 0
        # Seconds per item of the finished rounds of this measurement.
        self._rounds: list[float] = []
        self._last_at = 0.0

    def share(self, count: int, under_way: int, now: float) -> int:
        """How many of `count` waiting items to send now; the others follow at once in a request of their own.

        Args:
            under_way: items of requests that are not answered yet.
        """
        crowd = count + under_way
        paused, self._last_at = now - self._last_at > PAUSE_S, now
        if paused:
            self._start_over()
            self.halves = self.joining = False
        if crowd < CROWD:
            self.joining = False
            self._start_over()
            return count
        if not under_way:
            self.joining = False
        if self.joining:
            return count
        if not self._begun_at:
            self._begun_at = now
            self._items = 0
        elif self._items >= crowd and now > self._begun_at:
            self._rounds.append((now - self._begun_at) / self._items)
            self._begun_at = now
            self._items = 0
            if len(self._rounds) >= ROUNDS:
                self._measured(under_way)
        self._items += count
        return min(count, (crowd + 1) // 2) if self.halves else count

    def _start_over(self) -> None:
        """Discard the present measurement."""
        self._begun_at = 0.0
        self._rounds.clear()

    def _measured(self, under_way: int) -> None:
        """Choose the mode for the next measurement."""
        rates = self._rates
        rate = 1 / sorted(self._rounds)[ROUNDS // 2]
        known = rates[self.halves]
        rates[self.halves] = rate if not known else known + NEWEST * (rate - known)
        self._kept += 1
        other = not self.halves
        if not rates[other] or rates[other] > rates[self.halves] or self._kept >= KEEP:
            self.halves = other
            self.joining = not other and under_way > 0
            # The first measurement after a long time decides alone: conditions may have changed.
            self._kept = 0
        # The request that is sent now still belongs to the transition: do not measure it.
        self._start_over()
