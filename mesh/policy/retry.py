"""Whether a failed call is tried again, and when.

Owns: the decision. Leaves to others: waiting and calling (resilience.retry), the retry budget (policy.budget), which
errors leave it unknown whether the handler ran (mesh.errors).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from mesh.policy.backoff import Backoff


class Failure(NamedTuple):
    """How an attempt ended.

    Attributes:
        code: of the error.
        passing: the same call may succeed later: nothing has happened.
        uncertain: the handler may have run.
        wait_s: how long the other side asks to wait; 0 when it does not.
    """

    code: str
    passing: bool
    uncertain: bool
    wait_s: float = 0.0


class Retrying:
    """The retries of one method.

    Args:
        retries: attempts after the first one.
        codes: of the errors that are retried; None: those that may pass by themselves.
    """

    __slots__ = ("_backoff", "_codes", "_retries")

    def __init__(self, retries: int, backoff: Backoff, codes: Collection[str] | None = None) -> None:
        self._retries = retries
        self._backoff = backoff
        self._codes = None if codes is None else frozenset(codes)

    def delay(self, attempt: int, failure: Failure, *, idempotent: bool, left_s: float, rnd: float) -> float | None:
        """Seconds to wait before the next attempt; None when there is none.

        A call that may have run its handler is repeated only when it is idempotent, whatever `codes` lists.

        Args:
            attempt: the number of attempts so far.
            left_s: until the deadline of the call.
            rnd: a fresh random number, 0 ≤ rnd < 1.
        """
        if attempt > self._retries or (failure.uncertain and not idempotent):
            return None
        wanted = failure.passing or failure.uncertain if self._codes is None else failure.code in self._codes
        if not wanted:
            return None
        wait_s = max(self._backoff.delay(attempt, rnd), failure.wait_s)
        return wait_s if wait_s < left_s else None
