"""The retry budget: how many retries a caller may add to its own load.

Owns: counting calls and retries over a sliding window, and refusing retries.
Leaves to others: which failures are retried (calls), how long to wait before one (policy.backoff), the time.
"""

from __future__ import annotations

import math
from typing import Final

#: Steps in which the window moves. With ten, one step changes the budget by about a tenth.
SLOTS: Final = 10


class RetryBudget:
    """Retries within any window: at most `ratio` × calls + `reserve_per_s` × `window_s`.

    When a service is overloaded, callers that try three times triple its load and keep it overloaded. With a budget,
    the retries of a caller are limited to a fraction of its calls. The reserve allows retries to a caller with few
    calls.

    The limit holds for each window and over all time: a retry uses the budget of calls in its own window, and is
    counted for at least as long as they are.

    Args:
        ratio: retries earned by one call, 0 or more; 0.2 means one retry for five calls.
        reserve_per_s: retries per second allowed without any calls. The reserve of a whole window may be used at once,
            as all calls in flight to a process that dies fail together.
        window_s: seconds for which a call or a retry counts; more than 0.

    Raises:
        ValueError: an argument is outside its range.
    """

    __slots__ = (
        "_calls",
        "_old_calls",
        "_old_retries",
        "_place",
        "_reserve",
        "_retries",
        "_slot_calls",
        "_slot_ends_at",
        "_slot_retries",
        "_slot_s",
        "ratio",
        "refused",
    )

    def __init__(self, ratio: float = 0.2, reserve_per_s: float = 100.0, window_s: float = 10.0) -> None:
        if not 0 <= ratio < math.inf:
            raise ValueError(f"ratio: {ratio!r} is not a number from 0 up")
        if not 0 <= reserve_per_s < math.inf:
            raise ValueError(f"reserve_per_s: {reserve_per_s!r} is not a number from 0 up")
        if not 0 < window_s < math.inf:
            raise ValueError(f"window_s: {window_s!r} is not a number of seconds above 0")
        self.ratio = ratio
        #: Retries refused since the start.
        self.refused = 0
        self._reserve = reserve_per_s * window_s
        self._slot_s = window_s / SLOTS
        self._slot_ends_at = -math.inf
        # The current slot, separate from the finished ones, so that a deposit is one addition.
        self._slot_calls = 0
        self._slot_retries = 0
        # Finished slots as a ring (the one at _place is the oldest), and their sums.
        self._calls = [0] * (SLOTS - 1)
        self._retries = [0] * (SLOTS - 1)
        self._old_calls = 0
        self._old_retries = 0
        self._place = 0

    def deposit(self, now: float) -> None:
        """Count a call (a first attempt, not a retry) at the instant `now`."""
        if now >= self._slot_ends_at:
            self._turn(now)
        self._slot_calls += 1

    def withdraw(self, now: float) -> bool:
        """Use one retry at the instant `now`; returns False when the budget is exhausted."""
        if self.left(now) < 1:
            self.refused += 1
            return False
        self._slot_retries += 1
        return True

    def left(self, now: float) -> int:
        """Retries that would be allowed at the instant `now`."""
        if now >= self._slot_ends_at:
            self._turn(now)
        earned = self.ratio * (self._old_calls + self._slot_calls) + self._reserve
        # Floor, with a tolerance for five deposits of 0.2 that add up to 0.9999….
        return math.floor(earned + 1e-9) - self._old_retries - self._slot_retries

    def _turn(self, now: float) -> None:
        """Begin the slot that contains `now`, and drop slots older than the window."""
        behind = now - self._slot_ends_at
        if behind >= self._slot_s * SLOTS:
            # All slots are older than the window (or this is the first one).
            self._calls = [0] * (SLOTS - 1)
            self._retries = [0] * (SLOTS - 1)
            self._old_calls = self._old_retries = self._slot_calls = self._slot_retries = 0
            self._slot_ends_at = now + self._slot_s
            return
        while now >= self._slot_ends_at:
            place = self._place
            self._old_calls += self._slot_calls - self._calls[place]
            self._old_retries += self._slot_retries - self._retries[place]
            self._calls[place] = self._slot_calls
            self._retries[place] = self._slot_retries
            self._place = (place + 1) % (SLOTS - 1)
            self._slot_calls = self._slot_retries = 0
            self._slot_ends_at += self._slot_s
