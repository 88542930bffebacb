"""Links that keys did not allow: counted each time, said once.

Owns: the counter, when the same thing is said again, and the error for whoever needed the link.
Leaves to others: what is wrong with a link (curve), who hears it through the session (dealer, router).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final

from mesh.clock import Clock, LoopClock
from mesh.errors import Unavailable
from mesh.telemetry.logs import get_logger
from mesh.telemetry.metrics import Recorder
from mesh.transport.curve_files import ADVICE

log = get_logger("mesh.transport")

#: A peer that tries again each second is said again after so long.
AGAIN_S: Final = 60.0
#: Different troubles that are remembered; a flood of strangers forgets the oldest, and is said more often.
MOST: Final = 1024


#: One that is told in the middle of a handshake may be a peer that just died; so many in a row are a matter of keys.
#: Diallers come to them in half a second (calls.pool and discovery.agent back off from 0.05 and 0.1 s), and the
#: directory of keys is looked at again in between.
IN_A_ROW: Final = 3


class KeysRefused(Unavailable):
    """Keys allow no link to whom it takes: waiting is in vain until somebody mends them. On the wire: Unavailable."""

    advice = ADVICE


class Refusals:
    """Of one transport."""

    def __init__(self, recorder: Recorder | None = None, clock: Clock | None = None) -> None:
        self._clock: Clock = clock or LoopClock()
        self._recorder = recorder or Recorder(self._clock)
        self._said: OrderedDict[tuple[str, str], float] = OrderedDict()

    def note(self, reason: str, who: str, text: str, **fields: Any) -> None:
        """A link was refused, by this end or by the other.

        Args:
            reason: one of a few words, for the metric.
            who: tells this peer's trouble from another's.
            text: a sentence, for the log; `fields` stand beside it.
        """
        self._recorder.counter("links_refused", "Links that keys did not allow.", reason=reason).add()
        now = self._clock.now()
        said_at = self._said.get((reason, who))
        if said_at is None or now - said_at >= AGAIN_S:
            self._said[reason, who] = now
            self._said.move_to_end((reason, who))
            if len(self._said) > MOST:
                self._said.popitem(last=False)
            log.warning("link refused", reason=text, **fields)

    def over(self, who: str) -> None:
        """A link to `who` stands: its next trouble is news."""
        for key in [key for key in self._said if key[1] == who]:
            del self._said[key]
