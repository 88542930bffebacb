"""Links that keys did not allow: each one is counted, but repetitions are not logged.

Owns: the counter, when to log the same refusal again, and the error for calls that need the link.
Leaves to others: why a link is refused (curve), reporting it to the session (dealer, router).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final

from mesh.clock import Clock, LoopClock
from mesh.errors import Unavailable
from mesh.telemetry.logs import get_logger
from mesh.telemetry.metrics import Recorder
from mesh.transport.curve.key_files import ADVICE

log = get_logger("mesh.transport")

#: Seconds until the same refusal of the same peer is logged again.
AGAIN_S: Final = 60.0
#: Refusals that are remembered. With more different peers, the oldest are forgotten, and so logged more often.
MOST: Final = 1024


#: This many consecutive refusals are attributed to keys; a single one may come from a peer that died in its handshake.
#: Diallers reach this number in half a second (calls.pool and discovery.agent back off from 0.05 and 0.1 s), and the
#: directory of keys is checked again in between.
IN_A_ROW: Final = 3


class KeysRefused(Unavailable):
    """Keys do not allow the necessary link: waiting cannot help until the keys are corrected. On the wire:
    Unavailable."""

    advice = ADVICE


class Refusals:
    """The refused links of one transport."""

    def __init__(self, recorder: Recorder | None = None, clock: Clock | None = None) -> None:
        self._clock: Clock = clock or LoopClock()
        self._recorder = recorder or Recorder(self._clock)
        self._said: OrderedDict[tuple[str, str], float] = OrderedDict()

    def note(self, reason: str, who: str, text: str, **fields: Any) -> None:
        """Count a link that was refused by this end or by the other, and log it if it is new.

        Args:
            reason: one of a few words, for the metric.
            who: identifies the peer, to detect repetitions.
            text: a sentence for the log.
            fields: further fields of the log line.
        """
        self._recorder.counter("links_refused", "Links that keys did not allow.", reason=reason).add()
        now = self._clock.now()
        said_at = self._said.get((reason, who))
        if said_at is None or now - said_at >= AGAIN_S:
            self._said[reason, who] = now
            self._said.move_to_end((reason, who))
            if len(self._said) > MOST:
                self._said.popitem(last=False)
            log.warning("link.refused", reason=text, **fields)

    def over(self, who: str) -> None:
        """A link to `who` was established: log its next refusal."""
        for key in [key for key in self._said if key[1] == who]:
            del self._said[key]
