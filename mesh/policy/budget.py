"""How many retries a caller may add to its own load.

Owns: counting calls and retries over a sliding window, and saying no.
Leaves to others: which failures are worth a retry (calls), how long to wait before one (policy.backoff), the time.
"""

from __future__ import annotations

import math
from typing import Final

#: The window moves in this many steps. Ten keep a step's jump at a tenth of the budget.
SLOTS: Final = 10


class RetryBudget:
    """Retries within any window: at most `ratio` × calls + `reserve_per_s` × `window_s`.

    When a service is ill, each caller that tries three times triples its load and keeps it ill. With a budget the
    whole of one caller's retries stays a fraction of its calls. The reserve lets a caller with few calls retry at all.

    The bound holds for each window and for all time: a retry is paid by calls of its own window, and is
    remembered for at least as long as they are.

    Args:
        ratio: retries earned by one call, 0 or more; 0.2 means one retry for five calls.
        reserve_per_s: retries per second allowed without any calls. A whole window's reserve may be used at once:
            the calls in flight to a process that dies all fail together.
        window_s: seconds that a call or a retry is remembered; more than 0.

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
        #: Retries that were asked for and not allowed, since the start.
        self.refused = 0
        self._reserve = reserve_per_s * window_s
        self._slot_s = window_s / SLOTS
        self._slot_ends_at = -math.inf
        # The slot that is being filled, apart from the finished ones, so that a deposit is one addition.
        self._slot_calls = 0
        self._slot_retries = 0
        # Finished slots as a ring (the one at _place is the oldest), and their sums.
        self._calls = [0] * (SLOTS - 1)
        self._retries = [0] * (SLOTS - 1)
        self._old_calls = 0
        self._old_retries = 0
        self._place = 0

    def deposit(self, now: float) -> None:
        """A call is made (a first attempt, not a retry) at the instant `now`."""
        if now >= self._slot_ends_at:
            self._turn(now)
        self._slot_calls += 1

    def withdraw(self, now: float) -> bool:
        """Ask for one retry at the instant `now`; True has spent it."""
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
        # Floor, with a hair's breadth for five deposits of 0.2 that add up to 0.9999….
        return math.floor(earned + 1e-9) - self._old_retries - self._slot_retries

    def _turn(self, now: float) -> None:
        """Begin the slot that `now` lies in, forgetting what is a window old."""
        behind = now - self._slot_ends_at
        if behind >= self._slot_s * SLOTS:
            # Nothing is young enough (or this is the first slot ever).
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
