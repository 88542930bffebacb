"""The error gate of a roll: it checks, after readiness, whether the new processes answer calls with errors.

A process can register and answer `/readyz` and still fail each call. So the failures among the calls that the new
processes of this host have answered are compared with a limit, and with those of the processes before them. Without
traffic there is nothing to judge.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from mesh.calls.mirroring import NOT_RUN
from mesh.deploy.processes import Crew, now
from mesh.errors import MeshError, SetupError

LOOK_EVERY_S: Final = 0.25
ANSWER_S: Final = 2.0
#: After so many seconds without a call, there is no traffic to wait for.
QUIET_S: Final = 2.0
#: With so many times the required number of calls there is no need to wait for more.
PLENTY: Final = 10
#: A service that failed before the roll may fail up to so many times as often.
WORSE: Final = 2.0
#: Error codes that are the instance's own fault. Errors that a service declares are answers; overload is no fault.
FAULTS: Final = frozenset({"handler_error", "bad_result", "bad_reply", "deadline_exceeded", "crashed", "internal"})
SIDES: Final = ("server", "task", "http")


class ErrorsRise(SetupError):
    """The new processes answer with errors; `details` hold the service, its calls and its failures."""

    code = "errors_rise"


class Limits(NamedTuple):
    """The limits of the gate.

    Attributes:
        seconds: how long to observe after everything was replaced; 0 disables the gate.
        ratio: the share of the calls that may fail.
        calls: the minimum number of calls for a decision.
    """

    seconds: float = 5.0
    ratio: float = 0.05
    calls: int = 10


class Count(NamedTuple):
    """The number of calls that were run, and of those that failed with one of FAULTS."""

    calls: int = 0
    failed: int = 0

    @property
    def ratio(self) -> float:
        return self.failed / self.calls if self.calls else 0.0


class ErrorGate:
    """The gate of one roll."""

    def __init__(self, crew: Crew, limits: Limits) -> None:
        self._crew = crew
        self._limits = limits
        self._before: dict[str, Count] = {}
        self._earlier: set[str] = set()

    async def begin(self) -> None:
        """Record the current workers and their counts, before anything is replaced."""
        if self._limits.seconds:
            self._earlier = set(self._workers())
            self._before = await self._counts(self._earlier)

    async def check(self) -> dict[str, Count]:
        """Check the new workers once; returns the counts of their calls, by service.

        Raises:
            ErrorsRise: too many calls failed.
        """
        if not self._limits.seconds:
            return {}
        found = await self._counts(set(self._workers()) - self._earlier)
        for service, count in sorted(found.items()):
            before = self._before.get(service, Count())
            if count.calls >= self._limits.calls and count.ratio > max(self._limits.ratio, WORSE * before.ratio):
                raise ErrorsRise(
                    f"{service} answers with errors: {count.failed} of the first {count.calls} calls failed, "
                    f"before the roll {before.failed} of {before.calls}; `mesh logs {service}` shows why",
                    details={"service": service, "calls": count.calls, "failed": count.failed},
                )
        return found

    async def stay(self) -> None:
        """Observe the current workers for `Limits.seconds`.

        Raises:
            ErrorsRise: as `check`.
        """
        began = now()
        while self._limits.seconds and (passed := now() - began) < self._limits.seconds:
            found = await self.check()
            plenty = found and all(count.calls >= PLENTY * self._limits.calls for count in found.values())
            if plenty or (not found and passed >= QUIET_S):
                return
            await asyncio.sleep(LOOK_EVERY_S)

    # --- inside -------------------------------------------------------------------------------------------

    def _workers(self) -> dict[str, str]:
        """The instance to ask, by worker."""
        return {
            instance.worker or instance.id: instance.id for each in self._crew.instances().values() for instance in each
        }

    async def _counts(self, workers: set[str]) -> dict[str, Count]:
        asked = [instance for worker, instance in self._workers().items() if worker in workers]
        found: dict[str, Count] = {}
        for snapshot in await asyncio.gather(*map(self._ask, asked)):
            for sample in snapshot.get("methods", ()):
                if sample["side"] in SIDES and not sample["method"].startswith("$"):
                    calls, failed = found.get(sample["service"], Count())
                    errors = sample.get("errors", {})
                    faults = sum(number for code, number in errors.items() if code in FAULTS)
                    # A gateway that has just started may not know an instance yet: such a request judges nothing.
                    refused = sum(number for code, number in errors.items() if code in NOT_RUN)
                    found[sample["service"]] = Count(calls + sample["count"] - refused, failed + faults)
        return {service: count for service, count in found.items() if count.calls}

    async def _ask(self, instance: str) -> Mapping[str, Any]:
        try:
            told = await self._crew.node.call("$worker.metrics", instance=instance, timeout=ANSWER_S)
        except MeshError:
            return {}  # it is just leaving
        return told if isinstance(told, Mapping) else {}
