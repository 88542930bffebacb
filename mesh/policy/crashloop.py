"""When a process that ends again and again is in a crash loop, and how long it should then wait before each try.

Owns: counting short lives, and the length of the wait.
Leaves to others: seeing that a process ended (supervision.watch), making it wait (supervision.plugin).

supervisor makes a process wait that dies within its first second, and starts any other again at once, for ever. What
dies after three seconds, because a database is away, would cost a start-up's worth of processor every three seconds.

Who is killed with SIGKILL has not failed by itself: a person did that, or the kernel for want of memory. It is told and
shown like any loop, and it is back within a second: the next try is as good as the one in a minute. And what all others
stand on, hub and store, never waits long: its absence costs more than its tries.
"""

from __future__ import annotations

from typing import Final

from mesh.policy.backoff import Backoff

#: A life of at least so long is a good one: what ended it is a new story.
STEADY_S: Final = 60.0
#: So many short lives in a row are a loop. Fewer are an accident, or somebody who kills processes to see what happens.
LOOP_AFTER: Final = 5

#: The longest wait of what others stand on.
GROUND_S: Final = 5.0

CALM: Final = "calm"
LOOPING: Final = "looping"

SHORT: Final = "a short life"
FIFTH: Final = "a short life too many"
STEADY: Final = "a long life"
ASKED: Final = "somebody stopped it"

LIVES: Final[dict[tuple[str, str], str]] = {
    (CALM, SHORT): CALM,
    (CALM, FIFTH): LOOPING,
    (CALM, STEADY): CALM,
    (CALM, ASKED): CALM,
    (LOOPING, FIFTH): LOOPING,
    (LOOPING, STEADY): CALM,
    (LOOPING, ASKED): CALM,
}

# No jitter: processes of one service that fail together shall also be seen to.
_WAITS: Final = Backoff(1.0, 60.0, factor=2.0, jitter=0.0)
#: After a SIGKILL: no processor is spent on starting all the time, and nobody notices the wait.
_KILLED_S: Final = 1.0


class Lives:
    """The lives of one process.

    Args:
        most_s: it never waits longer.

    Attributes:
        state: CALM or LOOPING.
        short: short lives in a row.
        failed: how many of those ended otherwise than by SIGKILL.
        crashes: how often it ended unasked, ever.
        since: when the first of the short lives in a row ended, by whoever's clock tells `ended`.
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
        """How long it should wait before the try after its next end; 0.0: as supervisor has it."""
        if self.state != LOOPING:
            return 0.0
        if self.failed < LOOP_AFTER:
            return _KILLED_S
        return min(self._most_s, _WAITS.delay(self.failed - LOOP_AFTER + 1, 0.0))

    def ended(self, lived_s: float, now: float, killed: bool = False) -> None:
        """It ended, and nobody had asked it to.

        Args:
            killed: by SIGKILL.
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
        """It has run for STEADY_S."""
        self._enter(STEADY)

    def asked(self) -> None:
        """Somebody stopped it, perhaps to mend it: what was before does not count."""
        self._enter(ASKED)

    def _enter(self, event: str) -> None:
        self.state = LIVES[self.state, event]
        if event in (STEADY, ASKED):
            self.short = 0
            self.failed = 0
            self.since = 0.0
