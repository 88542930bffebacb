"""So many per second, over the whole mesh: a token bucket.

Owns: counting tokens. Leaves to others: what a token buys (dispatch), and the time.
"""

from __future__ import annotations

import math
from typing import Final

#: A queue that waits for a token is not looked at more often than this: at 1,000 a second tokens are taken by fives.
SHORTEST_WAIT_S: Final = 0.005


class Bucket:
    """Holds at most `burst` tokens and gets `rate_per_s` new ones each second. A rate of 0 knows no limit.

    In any window of t seconds at most `burst + rate_per_s × t` tokens are taken.
    """

    __slots__ = ("_at", "_tokens", "burst", "rate_per_s")

    def __init__(self, rate_per_s: float, burst: int, now: float) -> None:
        self.rate_per_s = max(0.0, rate_per_s)
        self.burst = max(1, burst)
        self._tokens = float(self.burst)
        self._at = now

    def change(self, rate_per_s: float, burst: int, now: float) -> None:
        """Take other limits; what has been taken stays taken."""
        self._fill(now)
        # Without a limit nothing was counted: it begins full.
        tokens = self._tokens if self.rate_per_s else math.inf
        self.rate_per_s = max(0.0, rate_per_s)
        self.burst = max(1, burst)
        self._tokens = min(tokens, float(self.burst))

    def left(self, now: float, most: int) -> int:
        """How many may be taken now, at most `most`."""
        if not self.rate_per_s:
            return most
        self._fill(now)
        # A hair's breadth for ten deposits of 0.1 that add up to 0.9999….
        return min(most, math.floor(self._tokens + 1e-9))

    def take(self, count: int) -> None:
        """Use what `left` has promised."""
        self._tokens -= count

    def next_at(self, now: float) -> float:
        """When there is a token again."""
        if not self.rate_per_s:
            return now
        self._fill(now)
        return now + max(SHORTEST_WAIT_S, (1.0 - self._tokens) / self.rate_per_s)

    def _fill(self, now: float) -> None:
        if now > self._at:
            self._tokens = min(float(self.burst), self._tokens + (now - self._at) * self.rate_per_s)
        self._at = now
