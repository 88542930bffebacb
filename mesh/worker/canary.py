"""The share of calls that a canary worker gets: 0 at its start, and 0 again when nothing renews it.

Owns: the method `$worker.share`, the lease of the share, and the records that announce it.
Leaves to others: choosing by the share (calls.cohorts), deciding it (deploy.canary).

Only workers that were started as canaries have the method, so no call can change which share a regular worker gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from mesh.calls.client import WORKER
from mesh.calls.method import Method
from mesh.calls.signature import Signature
from mesh.clock import Clock, Timer
from mesh.discovery.agent import Agent
from mesh.discovery.record import Instance
from mesh.discovery.share import MOST_METHODS, NONE, Share, share_meta
from mesh.errors import BadArguments, Draining
from mesh.telemetry.logs import get_logger

log = get_logger("mesh.worker")

#: The longest lease of a share, in seconds.
LONGEST_S: Final = 600.0
#: The longest id of a roll, and name of a method, in characters.
LONGEST_NAME: Final = 100


class CanaryShare:
    """The share of all instances of one worker."""

    def __init__(self, agent: Agent, clock: Clock) -> None:
        self._agent = agent
        self._clock = clock
        self._records: tuple[Instance, ...] = ()
        self._share = NONE
        self._expiring: Timer | None = None
        self._closed = False

    def announced(self, records: Sequence[Instance]) -> None:
        """These records were registered."""
        self._records = tuple(records)

    def set(self, share: Share, lease_s: float) -> None:
        """Announce a share, for `lease_s` seconds unless it is set again.

        Raises:
            BadArguments: a value is out of range.
            Draining: the worker is stopping.
        """
        if not (0.0 <= share.share <= 1.0 and 0.0 <= share.mirror <= 1.0):
            raise BadArguments(f"share {share.share!r} and mirror {share.mirror!r} are not both between 0.0 and 1.0")
        if not 0.0 < lease_s <= LONGEST_S:
            raise BadArguments(f"lease_s: {lease_s!r} is not above 0 and at most {LONGEST_S:g} s")
        names = (share.canary, *share.methods)
        if len(names) > MOST_METHODS + 1 or any(len(name) > LONGEST_NAME or "," in name for name in names):
            raise BadArguments(
                f"at most {MOST_METHODS} methods, and names of at most {LONGEST_NAME} characters without a comma"
            )
        if self._closed:
            raise Draining("the worker is stopping")
        if self._expiring is not None:
            self._expiring.cancel()
        self._expiring = self._clock.call_at(self._clock.now() + lease_s, self._expire)
        self._announce(share)

    def close(self) -> None:
        """The worker is stopping: change no record from now on."""
        self._closed = True
        if self._expiring is not None:
            self._expiring.cancel()
            self._expiring = None

    def methods(self) -> list[Method]:
        """`$worker.share`, to be hosted with the other control methods."""

        async def share(
            share: float, canary: str, lease_s: float, mirror: float = 0.0, methods: list[str] | None = None
        ) -> None:
            """Set the share of calls of this canary for some seconds; see mesh.discovery.share.Share."""
            self.set(Share(share, canary, mirror, frozenset(methods or ())), lease_s)

        signature = Signature(share, f"{WORKER}.share", bound=True)
        return [
            Method(
                target=f"{WORKER}.share",
                service=WORKER,
                name="share",
                run=share,
                decode_args=signature.decode_args,
                encode_result=signature.encode_result,
                idempotent=True,
            )
        ]

    def _expire(self) -> None:
        self._expiring = None
        if self._share != NONE:
            log.warning("canary.lease_expired", share=self._share.share, mirror=self._share.mirror)
            self._announce(NONE)

    def _announce(self, share: Share) -> None:
        if share == self._share:
            return
        self._share = share
        # The present records are those of the start: only the share in them changes.
        told = share_meta(share)
        self._agent.register(*(msgspec.structs.replace(one, meta={**_own(one), **told}) for one in self._records))
        log.info("canary.share_set", share=share.share, mirror=share.mirror)


def _own(record: Instance) -> dict[str, str]:
    """The entries of a record that are not about its share."""
    none = share_meta(NONE)
    return {key: value for key, value in record.meta.items() if key not in none}
