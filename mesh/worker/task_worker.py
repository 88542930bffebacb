"""The task side of a worker: subscribes to its queues, runs the leases that engines grant, drains without losing any.

Owns: sessions and runners of one worker, one for each engine; its driver of schedules; the order of start and stop.
Leaves to others: tasks and handlers (workload), running leases (tasks.runner), due times (schedules.driver).

Start: when the worker is registered. Unreachable engines are retried; calls are answered meanwhile.
Stop:  no new leases, no new runs of schedules → finish running attempts → end the sessions, which returns the other
leases at once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any, Final

from mesh import ids
from mesh.engines.contract import Engine, Unit
from mesh.errors import MeshError
from mesh.node.durable import AROUND
from mesh.node.node import Node
from mesh.policy.backoff import Backoff
from mesh.schedules.contract import Advance
from mesh.schedules.driver import Driver, Fire, apart
from mesh.service.service import Service
from mesh.tasks.attempt import Work
from mesh.tasks.contract import NewTask, Offer, Queue, Session, Settlement
from mesh.tasks.runner import Runner
from mesh.telemetry.logs import get_logger
from mesh.worker import requirements
from mesh.worker.workload import workload

log = get_logger("mesh.tasks")

AGAIN: Final = Backoff(0.1, 5.0)
#: Seconds after the stop timeout in which leases of cut off attempts are returned.
PARTING_S: Final = 1.0


class Shift:
    """The tasks, durable events and schedules of a worker. One event loop owns it."""

    def __init__(self, node: Node, services: Sequence[Service]) -> None:
        """Raises:
        BadDeclaration: a task or durable handler cannot work as it is declared.
        NotOffered: an engine cannot give what a service declares.
        """
        self._node = node
        self._load = workload(
            services,
            node.settings.tasks,
            check_results=node.settings.calls.check_results,
            intercept=node.interceptors.work,
        )
        requirements.check(services, self._load, node.durable.engines)
        self._services = tuple(type(service).name for service in services)
        self._seats: list[_Seat] = []
        self._driving: asyncio.Task[None] | None = None
        self._ended = False

    @property
    def in_hand(self) -> int:
        """The number of attempts that run or are not acked yet."""
        return sum(seat.runner.in_hand for seat in self._seats)

    def begin(self) -> None:
        """Subscribe to the queues of the workload. Returns at once; has no effect when the workload is empty."""
        engines = self._node.durable.engines
        load = self._load
        # One session for each engine, also when the engine leases both tasks and deliveries.
        shares: dict[Engine, tuple[list[Work], list[Queue]]] = {}
        if load.tasks:
            shares[engines.of("queues")] = ([*load.tasks], [*load.task_queues])
        if load.deliveries:
            works, queues = shares.setdefault(engines.of("events"), ([], []))
            works += load.deliveries
            queues += load.subscriptions
        for engine, (works, queues) in shares.items():
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
        if not engines.commits(("queues", "schedules")):
            return apart(engines.queues, engines.schedules)
        engine = engines.joint(("queues", "schedules"))

        async def fire(tasks: Sequence[NewTask], advance: Advance, timeout_s: float) -> None:
            await engine.commit(Unit(ids.job_id(), tasks=tasks, advance=(advance,)), timeout_s=timeout_s)

        return fire

    # --- ending -------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Accept no new leases and no new runs of schedules; running attempts continue."""
        if self._driving is not None:
            self._driving.cancel()
            await asyncio.gather(self._driving, return_exceptions=True)
            self._driving = None
        await asyncio.gather(*(seat.stop() for seat in self._seats))

    async def drain(self, timeout_s: float) -> bool:
        """Finish running attempts; whether all finished in time. The others are stopped, and run again elsewhere."""
        await self.stop()
        return all(await asyncio.gather(*(seat.runner.drain(timeout_s) for seat in self._seats)))

    def abandon(self, reason: str) -> None:
        """Stop everything without notifying the engines: simulates the death of the process in tests."""
        for seat in self._seats:
            seat.runner.lost(reason)

    async def close(self) -> None:
        """Stop attempts that still run and end the sessions. A second call has no effect."""
        if self._ended:
            return
        self._ended = True
        await self.stop()
        await asyncio.gather(*(seat.close() for seat in self._seats))


class _Seat:
    """The worker's session and runner at one engine."""

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
            verifies=node.settings.access is not None and not getattr(engine, "authorizes", False),
        )
        self._subscribing = asyncio.create_task(self._subscribe(), name="mesh.tasks subscribe")

    async def _subscribe(self) -> None:
        failures = 0
        while True:
            try:
                self._session = await self._engine.leases.subscribe(self._offer, self.runner)
                return
            except MeshError as exc:
                failures += 1
                if failures == 1:
                    log.warning("engine.unavailable", engine=self._engine.name, error=exc.message)
            await self._node.clock.sleep(AGAIN.delay(failures, self._node.rng.random()))

    # --- asked by the runner ------------------------------------------------------------------------------

    async def acknowledge(self, settlements: Sequence[Settlement], *, timeout_s: float) -> None:
        """See mesh.tasks.runner.Acknowledge."""
        await self._engine.leases.acknowledge(settlements, timeout_s=timeout_s)

    async def commit(self, settlement: Settlement, effects: Any, *, timeout_s: float) -> None:
        """See mesh.tasks.runner.Acknowledge."""
        await self._node.durable.acknowledge(effects, settlement, timeout_s)

    # --- ending -------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Accept no new leases."""
        if not self._subscribing.done():
            self._subscribing.cancel()
        await asyncio.gather(self._subscribing, return_exceptions=True)
        if self._session is not None:
            await self._session.stop()

    async def close(self) -> None:
        """Stop running attempts, and return their leases."""
        await self.runner.close(PARTING_S if self.runner.in_hand else 0.0)
        if self._session is not None:
            await self._session.close()
