"""Sending acknowledgements (ack or nack) to an engine until they are confirmed.

Owns: sending settlements in batches, retrying while the engine is unreachable, and giving up when a lease is lost.
Leaves to others: the contents of a settlement (runner, verdicts), the engine.

A settlement is sent again for as long as the lease lives: without it, work that is done would be done again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from mesh.clock import Clock, Timer
from mesh.errors import LeaseLost, MeshError, TryLater, Uncertain
from mesh.policy.backoff import Backoff
from mesh.tasks.contract import Settlement
from mesh.tasks.gathering import Gathering
from mesh.telemetry.logs import get_logger

log = get_logger("mesh.tasks")

#: How long one request waits for an unreachable engine before it counts as failed and is sent again.
ASK_S: Final = 10.0
RETRY: Final = Backoff(0.05, 2.0)


class Acknowledge(Protocol):
    """The methods of an engine that are used here."""

    async def acknowledge(self, settlements: Sequence[Settlement], *, timeout_s: float) -> None:
        """As mesh.tasks.engine.Leases.acknowledge."""

    async def commit(self, settlement: Settlement, effects: Any, *, timeout_s: float) -> None:
        """Commit the acknowledgement and all effects, or nothing. Idempotent.

        Raises:
            Conflict, LeaseLost and others: as Engine.commit.
        """


def worth_repeating(error: BaseException) -> bool:
    """Whether the same settlement may be accepted later."""
    return isinstance(error, TryLater | Uncertain) and not isinstance(error, LeaseLost)


class Acknowledging:
    """The settlements of one session."""

    def __init__(self, engine: Acknowledge, clock: Clock, random: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock
        self._random = random
        self._gathering: Gathering[Settlement, None] = Gathering(self._send)
        self._waiting: dict[int, Timer] = {}
        self._number = 0
        self._closed = False

    async def _send(self, settlements: list[Settlement]) -> Sequence[None]:
        await self._engine.acknowledge(settlements, timeout_s=ASK_S)
        return [None] * len(settlements)

    def add(self, settlement: Settlement, alive: Callable[[], bool], done: Callable[[MeshError | None], None]) -> None:
        """Send a settlement until it is confirmed.

        Args:
            alive: whether this worker still holds the lease; called before each retry.
            done: called once: with None when the settlement was confirmed, else with the error.
        """
        failures = 0

        def told(answer: BaseException | None) -> None:
            nonlocal failures
            if answer is None:
                done(None)
            elif worth_repeating(answer) and not self._closed:
                failures += 1
                if failures == 1:
                    log.warning("ack.delayed", job=settlement.id, error=str(answer))
                self._later(RETRY.delay(failures, self._random()), again)
            else:
                done(answer if isinstance(answer, MeshError) else MeshError(repr(answer)))

        def again() -> None:
            if alive():
                self._gathering.add(settlement, weight(settlement), told)

        self._gathering.add(settlement, weight(settlement), told)

    async def commit(self, settlement: Settlement, effects: Any) -> None:
        """Send a settlement with its effects until both are confirmed, or until cancelled.

        Raises:
            Conflict, LeaseLost, BadRequest and others: nothing was done, and a retry would not help.
        """
        failures = 0
        while True:
            try:
                await self._engine.commit(settlement, effects, timeout_s=ASK_S)
                return
            except MeshError as exc:
                if not worth_repeating(exc):
                    raise
                failures += 1
                if failures == 1:
                    log.warning("ack.delayed", job=settlement.id, error=exc.message)
            await self._clock.sleep(RETRY.delay(failures, self._random()))

    def _later(self, delay_s: float, again: Callable[[], None]) -> None:
        self._number += 1
        number = self._number

        def go() -> None:
            self._waiting.pop(number, None)
            again()

        self._waiting[number] = self._clock.call_at(self._clock.now() + delay_s, go)

    async def close(self) -> None:
        """Send nothing more; unconfirmed settlements end with an error."""
        self._closed = True
        for timer in self._waiting.values():
            timer.cancel()
        self._waiting.clear()
        await self._gathering.close()


def weight(settlement: Settlement) -> int:
    """The approximate size of a settlement in a message, in bytes."""
    return 100 + len(settlement.result) + len(settlement.error) + len(settlement.traceback)
