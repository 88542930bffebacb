"""The durable verbs of a service under test: real state, locks and commits in memory; tasks and events are recorded.

Owns: recording, after the commit. Leaves to others: the node (unit), the engine (engines.memory).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mesh.clock import Clock
from mesh.config import Settings
from mesh.config.settings import EngineSettings
from mesh.engines.choose import Engines
from mesh.engines.collect import Collector, collecting
from mesh.engines.memory import Memory, MemoryEngine
from mesh.engines.registry import EngineContext
from mesh.events.log import NewEvent
from mesh.node.durable import Durable
from mesh.tasks.batch import Told
from mesh.tasks.contract import NewTask, Settlement, Ticket
from mesh.tasks.deferring import encoding_of
from mesh.telemetry.metrics import Recorder
from mesh.testing.fakes import taken_apart


class DeferredTask(NamedTuple):
    """One task that the service under test deferred.

    Attributes:
        target: "orders.charge".
        args, kwargs: after encoding and decoding.
        key, order, priority, due_at: as it was deferred; `due_at` in seconds since 1970, 0 for at once.
        task: the complete task, as an engine stores it.
    """

    target: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    key: str
    order: str
    priority: int
    due_at: float
    task: NewTask


class UnitDurable(Durable):
    """The durable verbs on a private engine."""

    def __init__(self, clock: Clock, deferred: list[DeferredTask], emitted: Callable[[NewEvent], None]) -> None:
        """Args:
        deferred: deferred tasks are appended to this list.
        emitted: called with each durable event after it is appended to the log.
        """
        settings = Settings(engines=EngineSettings(default="memory"))
        memory = Memory(clock)
        rng, recorder = random.Random(1), Recorder(clock)
        super().__init__(
            settings,
            Engines(
                EngineContext(None, settings, None, clock, rng, recorder), {"memory": lambda: MemoryEngine(memory)}
            ),
            identity="unit",
            publisher="unit@0",
            clock=clock,
            rng=rng,
            recorder=recorder,
            table=_Nobody(),
            emit_raw=_nobody_hears,
        )
        self._deferred = deferred
        self._emitted = emitted

    async def _defer_all(self, tasks: list[NewTask]) -> Sequence[Ticket]:
        tickets = await super()._defer_all(tasks)
        self._record(tasks)
        return tickets

    async def defer_together(self, tasks: Sequence[NewTask], told: Sequence[Told]) -> None:
        await super().defer_together(tasks, told)
        if collecting() is None:
            self._record(tasks)

    async def _tell(self, event: NewEvent) -> None:
        self._emitted(event)

    async def _commit(self, collector: Collector, settle: Sequence[Settlement], timeout_s: float) -> None:
        await super()._commit(collector, settle, timeout_s)
        self._record(collector.tasks)

    def _record(self, tasks: Sequence[NewTask]) -> None:
        for task in tasks:
            args, kwargs = taken_apart(task.body, encoding_of(task.body))
            self._deferred.append(
                DeferredTask(task.queue, args, kwargs, task.key, task.order, task.priority, task.due_at, task)
            )


class _Nobody:
    """A registry without instances."""

    version = 0

    def services(self) -> list[str]:
        return []

    def instances(self, service: str) -> tuple[()]:
        return ()


async def _nobody_hears(topic: str, body: bytes, encoding: int, **how: Any) -> None: ...
