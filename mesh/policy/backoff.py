"""How long to wait before trying again.

Owns: the growth of the wait, its ceiling, and its jitter.
Leaves to others: sleeping (clock), whether a retry is allowed at all (policy.budget), drawing the random number.
"""

from __future__ import annotations

import math


class Backoff:
    """Waits that grow by `factor` from `first_s` to `most_s`, each shortened by a random share.

    Jitter only shortens a wait: `most_s` is an upper bound, and callers that failed together retry at different times.

    Args:
        first_s: the wait after the first failure, in seconds; more than 0.
        most_s: the longest wait, in seconds; at least `first_s`.
        factor: multiplies the wait with each further failure; at least 1.
        jitter: the share of a wait that may be removed at random, 0 (none) to 1 (all of it).

    Raises:
        ValueError: an argument is outside its range.
    """

    __slots__ = ("_steps", "factor", "first_s", "jitter", "most_s")

    def __init__(self, first_s: float, most_s: float, factor: float = 2.0, jitter: float = 0.5) -> None:
        if not 0 < first_s < math.inf:
            raise ValueError(f"first_s: {first_s!r} is not a number of seconds above 0")
        if not first_s <= most_s < math.inf:
            raise ValueError(f"most_s: {most_s!r} is not a number of seconds from first_s ({first_s!r}) up")
        if not 1 <= factor < math.inf:
            raise ValueError(f"factor: {factor!r} is not a number from 1 up")
        if not 0 <= jitter <= 1:
            raise ValueError(f"jitter: {jitter!r} is not between 0 and 1")
        self.first_s = first_s
        self.most_s = most_s
        self.factor = factor
        self.jitter = jitter
        # After this many steps the wait is `most_s`. Precomputed, so that the millionth failure of a peer that is away
        # for a week does not overflow a float.
        self._steps = math.log(most_s / first_s) / math.log(factor) if factor > 1 else math.inf

    def delay(self, attempt: int, rnd: float) -> float:
        """Seconds to wait after failure number `attempt`.

        Args:
            attempt: consecutive failures so far, counted from 1. Less is taken as 1.
            rnd: a fresh random number, 0 ≤ rnd < 1 (`rng.random()`).

        Returns:
            Between `(1 - jitter)` of the full wait and the full wait.
        """
        grown = max(attempt, 1) - 1
        if self.factor == 1:
            full = self.first_s
        elif grown >= self._steps:
            full = self.most_s
        else:
            full = min(self.first_s * self.factor**grown, self.most_s)
        return full * (1 - self.jitter * rnd)
