"""One rate limit of one caller: a sliding window.

Owns: counting admitted requests, and when the next one is admitted.
Leaves to others: the time, windows by caller (policy.rate_table).

**At most `most` requests are admitted in any span of `window_s` seconds**, wherever the span begins. (A token bucket
allows up to twice as many: a full bucket at once, and its refill within the same span.) The price is memory: a window
remembers up to SLICES + 1 groups of admissions. A group counts until its last admission is `window_s` old, so under
constant overload up to 1/SLICES fewer than `most` requests are admitted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

#: Slices of a window; the admissions of one slice are one group.
SLICES: Final = 16


class Window:
    """The admissions of the last `window_s` seconds.

    Attributes:
        most: how many are admitted.
        used: how many count now; call `expire` first.
    """

    __slots__ = ("_counts", "_lasts", "_slice", "most", "used", "window_s")

    def __init__(self, most: int, window_s: float) -> None:
        self.most = most
        self.window_s = window_s
        self.used = 0
        self._lasts: list[float] = []
        self._counts: list[int] = []
        self._slice = -1

    def expire(self, now: float) -> None:
        """Forget admissions that are `window_s` old."""
        lasts = self._lasts
        while lasts and lasts[0] + self.window_s <= now:
            del lasts[0]
            self.used -= self._counts.pop(0)

    def take(self, now: float) -> None:
        """Count one admission."""
        at = int(now * SLICES / self.window_s)
        if at == self._slice and self._lasts:
            self._lasts[-1] = now
            self._counts[-1] += 1
        else:
            self._lasts.append(now)
            self._counts.append(1)
            self._slice = at
        self.used += 1

    def admit(self, now: float) -> tuple[int, float] | None:
        """Count one admission, in one step: (further ones that would be admitted now, `next_s`); None when it is not
        admitted, and nothing has changed."""
        lasts = self._lasts
        if lasts and lasts[0] + self.window_s <= now:
            self.expire(now)
        left = self.most - self.used - 1
        if left < 0:
            return None
        self.used += 1
        at = int(now * SLICES / self.window_s)
        if at == self._slice and lasts:
            lasts[-1] = now
            self._counts[-1] += 1
        else:
            lasts.append(now)
            self._counts.append(1)
            self._slice = at
        return left, lasts[0] + self.window_s - now

    def next_s(self, now: float) -> float:
        """Seconds until fewer count than now; 0.0 when nothing counts."""
        return max(0.0, self._lasts[0] + self.window_s - now) if self._lasts else 0.0

    def free_s(self, most: int, now: float) -> float:
        """Seconds until fewer than `most` count; 0.0 when that is so now."""
        left = self.used
        if left < most:
            return 0.0
        for last, count in zip(self._lasts, self._counts, strict=True):
            left -= count
            if left < most:
                return max(0.0, last + self.window_s - now)
        return 0.0

    def ages(self, now: float) -> list[tuple[float, int]]:
        """(seconds since the last admission, admissions) of the groups, the oldest first, for another process."""
        return [(now - last, count) for last, count in zip(self._lasts, self._counts, strict=True)]

    def add(self, ages: Iterable[tuple[float, int]], now: float) -> None:
        """Count the admissions of another window, too."""
        own = zip(self._lasts, self._counts, strict=True)
        groups = sorted([*own, *((now - max(0.0, age), max(0, count)) for age, count in ages)])
        # A group is joined to the next later one, so that no admission counts for too short a time.
        while len(groups) > SLICES:
            (_, first), (last, second) = groups[:2]
            groups[:2] = [(last, first + second)]
        self._lasts = [last for last, _ in groups]
        self._counts = [count for _, count in groups]
        self._slice = -1
        self.used = sum(self._counts)
        self.expire(now)
