"""Crash loops: when a process that ends repeatedly is in one, and how long it then waits before each restart.

Owns: counting short runs, and the length of the wait.
Leaves to others: detecting that a process ended (supervisord.watch), delaying its restart (supervisord.plugin).

supervisor delays the restart of a process that dies within its first second, and restarts any other at once, forever. A
process that dies after three seconds, because a database is down, would cost the CPU time of a start every 3 s.

A process killed by SIGKILL did not fail by itself: an operator killed it, or the kernel for lack of memory. It is
reported like any crash loop, but restarted within a second, as a later restart has no better chance. The processes on
which all others depend, hub and store, never wait long: their absence costs more than their restarts.
"""

from __future__ import annotations

from typing import Final

from mesh.policy.backoff import Backoff

#: A run of at least this many seconds is steady and resets the count.
STEADY_S: Final = 60.0
#: This many consecutive short runs are a crash loop. Fewer may be an accident, or an operator who tests restarts.
LOOP_AFTER: Final = 5

#: The longest wait, in seconds, of processes on which others depend (hub and store).
GROUND_S: Final = 5.0

CALM: Final = "calm"
LOOPING: Final = "looping"

SHORT: Final = "a short life"
FIFTH: Final = "a short life too many"
STEADY: Final = "a long life"
ASKED: Final = "stopped on request"

LIVES: Final[dict[tuple[str, str], str]] = {
    (CALM, SHORT): CALM,
    (CALM, FIFTH): LOOPING,
    (CALM, STEADY): CALM,
    (CALM, ASKED): CALM,
    (LOOPING, FIFTH): LOOPING,
    (LOOPING, STEADY): CALM,
    (LOOPING, ASKED): CALM,
}

# No jitter: when processes of one service fail together, their restarts should show it.
_WAITS: Final = Backoff(1.0, 60.0, factor=2.0, jitter=0.0)
#: After a SIGKILL, in seconds: long enough to save CPU time, and short enough to go unnoticed.
_KILLED_S: Final = 1.0


class Lives:
    """The runs of one process, from each start to its end.

    Args:
        most_s: the longest wait.

    Attributes:
        state: CALM or LOOPING.
        short: consecutive short runs.
        failed: how many of those did not end by SIGKILL.
        crashes: how often the process has ended without being stopped.
        since: when the first of the consecutive short runs ended, by the clock of the caller of `ended`.
    """

    __slots__ = ("_most_s", "crashes", "failed", "short", "since", "state")

    def __init__(self, most_s: float = 60.0) -> None:
        self._most_s = most_s
        self.state = CALM
        self.short = 0
        self.failed = 0
        self.crashes = 0
        self.since = 0.0

    @property
    def wait_s(self) -> float:
        """How long to delay the restart after the next end, in seconds; 0.0: leave it to supervisor."""
        if self.state != LOOPING:
            return 0.0
        if self.failed < LOOP_AFTER:
            return _KILLED_S
        return min(self._most_s, _WAITS.delay(self.failed - LOOP_AFTER + 1, 0.0))

    def ended(self, lived_s: float, now: float, killed: bool = False) -> None:
        """The process ended without being stopped.

        Args:
            lived_s: how long it ran.
            killed: whether SIGKILL ended it.
        """
        self.crashes += 1
        if lived_s >= STEADY_S:
            self._enter(STEADY)
            return
        self.short += 1
        self.failed += not killed
        if self.short == 1:
            self.since = now
        self._enter(FIFTH if self.short >= LOOP_AFTER else SHORT)

    def steady(self) -> None:
        """The process has run for STEADY_S."""
        self._enter(STEADY)

    def asked(self) -> None:
        """An operator stopped the process, perhaps to repair it: earlier crashes no longer count."""
        self._enter(ASKED)

    def _enter(self, event: str) -> None:
        self.state = LIVES[self.state, event]
        if event in (STEADY, ASKED):
            self.short = 0
            self.failed = 0
            self.since = 0.0
