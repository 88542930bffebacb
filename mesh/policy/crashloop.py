"""When a process that ends again and again is in a crash loop, and how long it should then wait before each try.

Owns: counting short lives, and the length of the wait.
Leaves to others: seeing that a process ended (supervision.watch), making it wait (supervision.plugin).

supervisor makes a process wait that dies within its first second, and starts any other again at once, for ever. What
dies after three seconds, because a database is away, would cost a start-up's worth of processor every three seconds.
"""

from __future__ import annotations

from typing import Final

from mesh.policy.backoff import Backoff

#: A life of at least so long is a good one: what ended it is a new story.
STEADY_S: Final = 60.0
#: So many short lives in a row are a loop. Fewer are an accident, or somebody who kills processes to see what happens.
LOOP_AFTER: Final = 5

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


class Lives:
    """The lives of one process.

    Attributes:
        state: CALM or LOOPING.
        short: short lives in a row.
        crashes: how often it ended unasked, ever.
        since: when the first of the short lives in a row ended, by whoever's clock tells `ended`.
    """

    __slots__ = ("crashes", "short", "since", "state")

    def __init__(self) -> None:
        self.state = CALM
        self.short = 0
        self.crashes = 0
        self.since = 0.0

    @property
    def wait_s(self) -> float:
        """How long it should wait before the try after its next end; 0.0: as supervisor has it."""
        return _WAITS.delay(self.short - LOOP_AFTER + 1, 0.0) if self.state == LOOPING else 0.0

    def ended(self, lived_s: float, now: float) -> None:
        """It ended, and nobody had asked it to."""
        self.crashes += 1
        if lived_s >= STEADY_S:
            self._enter(STEADY)
            return
        self.short += 1
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
            self.since = 0.0
