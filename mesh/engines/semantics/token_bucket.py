"""A token bucket: a rate limit over the whole mesh.

Owns: counting tokens. Leaves to others: what needs a token (dispatch), and the time.
"""

from __future__ import annotations

import math
from typing import Final

#: A queue that waits for a token is checked at most this often: at 1,000 a second tokens are taken five at a time.
SHORTEST_WAIT_S: Final = 0.005


class Bucket:
    """Holds at most `burst` tokens and gets `rate_per_s` new ones each second. A rate of 0 means no limit.

    In any window of t seconds at most `burst + rate_per_s × t` tokens are taken.
    """

    __slots__ = ("_at", "_tokens", "burst", "rate_per_s")

    def __init__(self, rate_per_s: float, burst: int, now: float) -> None:
        self.rate_per_s = max(0.0, rate_per_s)
        self.burst = max(1, burst)
        self._tokens = float(self.burst)
        self._at = now

    def change(self, rate_per_s: float, burst: int, now: float) -> None:
        """Change the limits; tokens that were taken stay taken."""
        self._fill(now)
        # Without a limit nothing was counted: the bucket starts full.
        tokens = self._tokens if self.rate_per_s else math.inf
        self.rate_per_s = max(0.0, rate_per_s)
        self.burst = max(1, burst)
        self._tokens = min(tokens, float(self.burst))

    def left(self, now: float, most: int) -> int:
        """How many tokens may be taken now, at most `most`."""
        if not self.rate_per_s:
            return most
        self._fill(now)
        # Tolerate rounding: ten deposits of 0.1 add up to 0.9999….
        return min(most, math.floor(self._tokens + 1e-9))

    def take(self, count: int) -> None:
        """Take tokens; at most as many as `left` returned."""
        self._tokens -= count

    def next_at(self, now: float) -> float:
        """When a token is available again."""
        if not self.rate_per_s:
            return now
        self._fill(now)
        return now + max(SHORTEST_WAIT_S, (1.0 - self._tokens) / self.rate_per_s)

    def _fill(self, now: float) -> None:
        if now > self._at:
            self._tokens = min(float(self.burst), self._tokens + (now - self._at) * self.rate_per_s)
        self._at = now
