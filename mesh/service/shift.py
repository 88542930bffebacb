"""A worker's shift: it offers its workload to the engines, runs what they give, and leaves without losing any of it.

Owns: sessions and runners of one worker, one for each engine; its driver of schedules; the order of begin and end.
Leaves to others: what there is to do (workload), running leases (tasks.runner), due times (schedules.driver).

Begin: when the worker is registered. Engines that are away are tried again and again: calls are answered meanwhile.
End:   no new leases, no new runs of schedules → finish what runs → end the sessions, which gives the rest back at once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any, Final

from mesh import ids
from mesh.engines.contract import Engine, Unit
from mesh.errors import MeshError, NotOffered
from mesh.policy.backoff import Backoff
from mesh.schedules.contract import Advance
from mesh.schedules.driver import Driver, Fire, apart
from mesh.service.durable import AROUND
from mesh.service.node import Node
from mesh.service.service import Service
from mesh.service.workload import workload
from mesh.tasks.attempt import Work
from mesh.tasks.contract import NewTask, Offer, Queue, Session, Settlement
from mesh.tasks.runner import Runner
from mesh.telemetry.logs import get_logger

log = get_logger("mesh.tasks")

AGAIN: Final = Backoff(0.1, 5.0)
#: What was cut off when the stop timeout was over still has so long to be given back in good order.
PARTING_S: Final = 1.0


class Shift:
    """The durable half of a worker. One event loop owns it."""

    def __init__(self, node: Node, services: Sequence[Service]) -> None:
        """Raises:
        BadDeclaration: a task or durable handler cannot work as it is declared.
        """
        self._node = node
        self._load = workload(services, node.settings.tasks, check_results=node.settings.calls.check_results)
        self._services = tuple(type(service).name for service in services)
        self._seats: list[_Seat] = []
        self._driving: asyncio.Task[None] | None = None
        self._ended = False

    @property
    def in_hand(self) -> int:
        """Attempts that run or are not acknowledged yet."""
        return sum(seat.runner.in_hand for seat in self._seats)

    def begin(self) -> None:
        """Offer the workload. Returns at once; harmless when there is nothing to do."""
        engines = self._node.durable.engines
        load = self._load
        offers: dict[str, tuple[list[Work], list[Queue]]] = {}
        if load.tasks:
            offers[engines.name_of("tasks")] = ([*load.tasks], [*load.task_queues])
        if load.deliveries:
            works, queues = offers.setdefault(engines.name_of("events"), ([], []))
            works += load.deliveries
            queues += load.subscriptions
        for name, (works, queues) in offers.items():
            engine = engines.of("tasks") if name == engines.name_of("tasks") else engines.of("events")
            self._seats.append(_Seat(self._node, engine, works, self._offer(queues)))
        if load.schedules:
            driver = Driver(
                load.schedules,
                engines.schedules,
                self._fire(),
                clock=self._node.clock,
                rng=self._node.rng,
                recorder=self._node.recorder,
                timeout_s=self._node.durable.timeout_s,
            )
            self._driving = asyncio.create_task(driver.run(), name="mesh.schedules")

    def _offer(self, queues: Sequence[Queue]) -> Offer:
        node = self._node
        return Offer(
            session=f"{node.identity}@{node.epoch}",
            services=self._services,
            queues=tuple(queues),
            host=node.settings.mesh.host,
            pid=os.getpid(),
        )

    def _fire(self) -> Fire:
        engines = self._node.durable.engines
        try:
            engine = engines.joint(("tasks", "schedules"))
        except NotOffered:
            return apart(engines.tasks, engines.schedules)

        async def fire(tasks: Sequence[NewTask], advance: Advance, timeout_s: float) -> None:
            await engine.commit(Unit(ids.job_id(), tasks=tasks, advance=(advance,)), timeout_s=timeout_s)

        return fire

    # --- ending -------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """No new leases and no new runs of schedules; what runs goes on."""
        if self._driving is not None:
            self._driving.cancel()
            await asyncio.gather(self._driving, return_exceptions=True)
            self._driving = None
        await asyncio.gather(*(seat.stop() for seat in self._seats))

    async def drain(self, timeout_s: float) -> bool:
        """Finish what runs; whether that was done in time. What was not is stopped, and will run elsewhere."""
        await self.stop()
        return all(await asyncio.gather(*(seat.runner.drain(timeout_s) for seat in self._seats)))

    def abandon(self, reason: str) -> None:
        """Stop whatever runs without a word to the engines: for a process that is played dead."""
        for seat in self._seats:
            seat.runner.lost(reason)

    async def close(self) -> None:
        """Stop whatever still runs and end the sessions. Harmless the second time."""
        if self._ended:
            return
        self._ended = True
        await self.stop()
        await asyncio.gather(*(seat.close() for seat in self._seats))


class _Seat:
    """The worker's place at one engine."""

    def __init__(self, node: Node, engine: Engine, works: Sequence[Work], offer: Offer) -> None:
        self._node = node
        self._engine = engine
        self._offer = offer
        self._session: Session | None = None
        self.runner = Runner(
            works,
            self,
            clock=node.clock,
            offload=node.offload,
            recorder=node.recorder,
            rng=node.rng,
            identity=node.identity,
            max_result=node.settings.calls.max_body_bytes - AROUND,
        )
        self._attaching = asyncio.create_task(self._attach(), name="mesh.tasks attach")

    async def _attach(self) -> None:
        failures = 0
        while True:
            try:
                self._session = await self._engine.tasks.attach(self._offer, self.runner)
                return
            except MeshError as exc:
                failures += 1
                if failures == 1:
                    log.warning("tasks wait for their engine", engine=self._engine.name, error=exc.message)
            await self._node.clock.sleep(AGAIN.delay(failures, self._node.rng.random()))

    # --- asked by the runner ------------------------------------------------------------------------------

    async def settle(self, settlements: Sequence[Settlement], *, timeout_s: float) -> None:
        """See mesh.tasks.runner.Acknowledge."""
        await self._engine.tasks.settle(settlements, timeout_s=timeout_s)

    async def commit(self, settlement: Settlement, effects: Any, *, timeout_s: float) -> None:
        """See mesh.tasks.runner.Acknowledge."""
        await self._node.durable.acknowledge(effects, settlement, timeout_s)

    # --- ending -------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """No new leases."""
        if not self._attaching.done():
            self._attaching.cancel()
        await asyncio.gather(self._attaching, return_exceptions=True)
        if self._session is not None:
            await self._session.stop()

    async def close(self) -> None:
        """Stop what runs, and give it back."""
        await self.runner.close(PARTING_S if self.runner.in_hand else 0.0)
        if self._session is not None:
            await self._session.close()
