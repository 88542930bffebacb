"""Operations on the log of durable events: reading pages, replay, and deleting a subscription.

Owns: doing them in steps, so that other requests run in between.
Leaves to others: each step (the core), the present subscribers (dispatch), the callers (service).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from mesh.engines.sqlite.core import Core, Turn
from mesh.errors import BadRequest
from mesh.events.log import LoggedEvent
from mesh.store.dispatch import Dispatch
from mesh.store.turns import Turns

#: Rows that one transaction handles of a request for all rows of a queue.
STEP: Final = 1000


class Logbook:
    """The operations of one store.

    Args:
        reading: wraps each read outside of a transaction, to report a corrupt file.
    """

    def __init__(
        self, core: Core, turns: Turns, dispatch: Dispatch, reading: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._core = core
        self._turns = turns
        self._dispatch = dispatch
        self._reading = reading

    async def replay(self, subscription: str, offset: int | None, since_at: float | None) -> int:
        """See EventLog.replay."""
        if (offset is None) == (since_at is None):
            raise BadRequest("replay needs either an offset or an instant")
        start = offset if offset is not None else self._core.offset_at(since_at or 0.0)
        total = 0
        at: int | None = max(0, start - 1)
        while at is not None:
            with self._reading():
                count, at = self._core.count(subscription, after=at)
            total += count
            if at is not None:
                await asyncio.sleep(0)
        await self._turns.do(lambda turn: turn.replay(subscription, offset=start))
        return total

    async def abandon(self, subscription: str) -> int:
        """See EventLog.abandon."""
        core = self._core

        def step(turn: Turn) -> int:
            # Checked in each step: a worker may return in between.
            said = core.declared(subscription)
            if total == 0 and (said is None or not said.patterns):
                names = (name for name in core.names() if (one := core.declared(name)) is not None and one.patterns)
                known = ", ".join(sorted(names)) or "none"
                raise BadRequest(f"there is no durable subscription {subscription!r}; there are: {known}")
            if workers := self._dispatch.workers(subscription):
                raise BadRequest(
                    f"{subscription} has {workers} subscribed worker(s); stop them first, or remove the handler from "
                    "the service: a subscription is deleted when no worker uses it"
                )
            return turn.abandon(subscription, limit=STEP)

        total = 0
        while count := await self._turns.do(step):
            total += count
        return total

    async def read(self, pattern: str, after: int, limit: int) -> list[LoggedEvent]:
        """See EventLog.read."""
        found: list[LoggedEvent] = []
        at: int | None = after
        while at is not None and len(found) < limit:
            with self._reading():
                events, at = self._core.read(pattern, after=at, limit=limit - len(found))
            found += events
            if at is not None and len(found) < limit:
                await asyncio.sleep(0)
        return found
