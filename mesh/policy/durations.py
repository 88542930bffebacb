"""The durations of the last calls to a method, and their percentiles.

Owns: which durations count, and when a percentile is computed anew.
Leaves to others: measuring, using the percentile (resilience.hedge).
"""

from __future__ import annotations

from typing import Final

#: The number of durations that count.
KEPT: Final = 256
#: Below this number no percentile is known.
FEWEST: Final = 20
#: A percentile is computed anew after this many further durations.
EVERY: Final = 32


class Durations:
    """The last KEPT durations, and one percentile of them.

    Args:
        share: 0.95 for the 95th percentile.
    """

    __slots__ = ("_known", "_new", "_next", "_share", "_values")

    def __init__(self, share: float) -> None:
        self._share = share
        self._values: list[float] = []
        self._next = 0
        self._new = 0
        self._known: float | None = None

    def add(self, seconds: float) -> None:
        """Count one duration."""
        if len(self._values) < KEPT:
            self._values.append(seconds)
        else:
            self._values[self._next] = seconds
            self._next = (self._next + 1) % KEPT
        self._new += 1

    @property
    def percentile(self) -> float | None:
        """Seconds; None while too few durations are known."""
        if len(self._values) < FEWEST:
            return None
        if self._known is None or self._new >= EVERY:
            self._new = 0
            found = sorted(self._values)
            self._known = found[min(len(found) - 1, int(len(found) * self._share))]
        return self._known
