"""A circuit breaker: it stops calls to a method that fails or is too slow, and tries it again after a while.

Owns: the window of outcomes, the states, and their transitions.
Leaves to others: what counts as a failure, making calls (resilience.breaker), the time.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Final

#: Steps in which the window moves.
SLOTS: Final = 10


class State(Enum):
    """The states of a breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Cause(Enum):
    """What can change the state."""

    TRIPPED = "tripped"  # the shares of the window are reached
    WAITED = "waited"  # `open_s` has passed
    PROBED = "probed"  # all probes have succeeded
    FAILED = "failed"  # a probe has failed


#: (state, cause) -> the next state. All others change nothing.
TRANSITIONS: Final = {
    (State.CLOSED, Cause.TRIPPED): State.OPEN,
    (State.OPEN, Cause.WAITED): State.HALF_OPEN,
    (State.HALF_OPEN, Cause.PROBED): State.CLOSED,
    (State.HALF_OPEN, Cause.FAILED): State.OPEN,
}


class Breaker:
    """The breaker of one method.

    Closed, it admits all calls and counts them over `window_s`. When at least `minimum` calls count, and the share of
    failed ones reaches `failures` or that of slow ones `slow`, it opens: it refuses calls for `open_s`. Then it is
    half-open: it admits `probes` calls at once, and closes when that many have succeeded; the first that fails opens it
    again, for twice as long, up to `OPEN_MOST` times `open_s`.

    A call that was admitted before the last change of state changes nothing when it ends.

    Args:
        failures, slow: shares from 0 to 1; above 1 never.
        window_s, open_s: seconds, more than 0.
        minimum, probes: 1 or more.

    Attributes:
        state: now, as of the last call of a method.
        opened: how often it has opened.
        refused: calls that it has refused.
    """

    #: How much longer than `open_s` it stays open at most, when probes fail again and again.
    OPEN_MOST: Final = 8

    __slots__ = (
        "_admitted",
        "_calls",
        "_failed",
        "_failures",
        "_generation",
        "_minimum",
        "_open_s",
        "_open_until",
        "_opens",
        "_place",
        "_probes",
        "_slot_ends_at",
        "_slot_s",
        "_slow",
        "_slow_share",
        "_succeeded",
        "opened",
        "refused",
        "state",
    )

    def __init__(
        self,
        *,
        failures: float = 0.5,
        slow: float = math.inf,
        window_s: float = 10.0,
        minimum: int = 20,
        open_s: float = 5.0,
        probes: int = 3,
    ) -> None:
        self._failures = failures
        self._slow_share = slow
        self._slot_s = window_s / SLOTS
        self._minimum = minimum
        self._open_s = open_s
        self._probes = probes
        self.state = State.CLOSED
        self.opened = self.refused = 0
        self._generation = 0
        self._open_until = 0.0
        #: How often it has opened since it was closed.
        self._opens = 0
        self._admitted = self._succeeded = 0
        self._empty(-math.inf)

    def admit(self, now: float) -> int | None:
        """Ask for a call at the instant `now`; None when it is refused.

        Returns:
            What `ended` wants to know.
        """
        if self.state is State.CLOSED:
            return self._generation
        if self.state is State.OPEN and now >= self._open_until:
            self._change(Cause.WAITED, now)
        if self.state is State.HALF_OPEN and self._admitted < self._probes:
            self._admitted += 1
            return self._generation
        self.refused += 1
        return None

    def ended(self, admission: int, now: float, *, failed: bool, slow: bool = False) -> None:
        """Count a call that was admitted."""
        if admission != self._generation:
            return
        if self.state is State.HALF_OPEN:
            if failed or (slow and self._slow_share <= 1):
                self._change(Cause.FAILED, now)
                return
            self._succeeded += 1
            if self._succeeded >= self._probes:
                self._change(Cause.PROBED, now)
            return
        self._turn(now)
        place = self._place
        self._calls[place] += 1
        self._failed[place] += failed
        self._slow[place] += slow
        if not (failed or slow):
            return
        calls = sum(self._calls)
        if calls >= self._minimum and (
            sum(self._failed) >= self._failures * calls or sum(self._slow) >= self._slow_share * calls
        ):
            self._change(Cause.TRIPPED, now)

    def abandoned(self, admission: int) -> None:
        """Forget a call that was admitted and was cancelled by its caller: it says nothing about the method."""
        if admission == self._generation and self.state is State.HALF_OPEN:
            self._admitted -= 1

    def wait_s(self, now: float) -> float:
        """Seconds until it may admit a call again; 0 when it may now."""
        return max(0.0, self._open_until - now) if self.state is State.OPEN else 0.0

    def _change(self, cause: Cause, now: float) -> None:
        self.state = TRANSITIONS[self.state, cause]
        self._generation += 1
        self._admitted = self._succeeded = 0
        if self.state is State.OPEN:
            self.opened += 1
            self._open_until = now + self._open_s * min(2**self._opens, self.OPEN_MOST)
            self._opens = min(self._opens + 1, self.OPEN_MOST)
        elif self.state is State.CLOSED:
            self._opens = 0
            self._empty(now)

    def _empty(self, now: float) -> None:
        self._calls = [0] * SLOTS
        self._failed = [0] * SLOTS
        self._slow = [0] * SLOTS
        self._place = 0
        self._slot_ends_at = now + self._slot_s

    def _turn(self, now: float) -> None:
        """Begin the slot that contains `now`, and forget the oldest ones."""
        if now - self._slot_ends_at >= self._slot_s * SLOTS:
            self._empty(now)
        while now >= self._slot_ends_at:
            self._place = place = (self._place + 1) % SLOTS
            self._calls[place] = self._failed[place] = self._slow[place] = 0
            self._slot_ends_at += self._slot_s
