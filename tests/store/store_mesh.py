"""A store and its workers in one process, with a clock that a test turns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mesh.clock import ManualClock
from mesh.engines.sqlite.client import StoreEngine
from mesh.errors import MeshError
from mesh.node.node import Node
from mesh.service.service import Service
from mesh.store.service import Store
from mesh.tasks.contract import Lease, NewTask, Offer, Queue, Session, Settlement, Verdict
from mesh.testing.whole import Mesh

LEASE_S = 10.0
QUEUE = "orders.charge"


class Orders(Service):
    """A worker that holds what it is given until the test says what becomes of it."""

    name = "orders"
    #: What the next one offers.
    queues: tuple[Queue, ...] = (Queue(QUEUE, 10),)

    async def started(self) -> None:
        node = self.node
        assert isinstance(node, Node)
        self.engine = StoreEngine(node.client, node.clock)
        self.in_hand: dict[tuple[str, int], Lease] = {}
        self.given: list[tuple[str, int]] = []
        self.told_to_stop: list[tuple[str, int]] = []
        self.silences: list[str] = []
        offer = Offer(f"{node.identity}@{node.epoch}", ("orders",), self.queues, host="here", pid=0)
        self.session: Session = await self.engine.leases.subscribe(offer, self)

    async def stopped(self) -> None:
        await self.engine.close()

    def leased(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            self.in_hand[lease.id, lease.attempt] = lease
            self.given.append((lease.id, lease.attempt))

    def cancel(self, jobs: Sequence[tuple[str, int]]) -> None:
        self.told_to_stop += jobs
        for job in jobs:
            self.in_hand.pop(job, None)

    def lost(self, reason: str) -> None:
        self.silences.append(reason)
        self.in_hand.clear()

    def held(self) -> list[tuple[str, int]]:
        return list(self.in_hand)

    async def end(self, id: str, verdict: Verdict = "done", **what: Any) -> None:
        """Settle what it has of a job."""
        attempt = next(attempt for job, attempt in self.in_hand if job == id)
        await self.engine.leases.acknowledge([Settlement(id, attempt, verdict, **what)], timeout_s=5.0)
        del self.in_hand[id, attempt]


class Place:
    """One mesh with a store.

    Attributes:
        engine: of the test itself.
    """

    def __init__(self, mesh: Mesh, clock: ManualClock) -> None:
        self.mesh = mesh
        self.clock = clock
        self.engine = StoreEngine(mesh.node.client, clock)

    @property
    def store(self) -> Store:
        [store] = self.mesh.instances(Store)
        return store

    @property
    def orders(self) -> list[Orders]:
        return self.mesh.instances(Orders)

    async def defer(self, *tasks: NewTask | str) -> None:
        wanted = [NewTask(task, QUEUE, b"\x90") if isinstance(task, str) else task for task in tasks]
        await self.engine.queues.defer(wanted, timeout_s=5.0)
        await self.mesh.settle()

    async def advance(self, seconds: float) -> None:
        await self.mesh.advance(seconds)

    async def kill_store(self) -> None:
        """As by kill -9: nothing of it is left but the file."""
        store = self.store
        await self.mesh.faults.kill(Store)
        store.turns.close()
        store.core.close()

    async def start_store(self) -> None:
        await self.mesh.start_another(Store, wait=False)
        await self.advance(2.5)

    async def eventually(self, waiting: asyncio.Future[Any]) -> Any:
        """Turn the clock until it is done."""
        for _ in range(200):
            if waiting.done():
                break
            await self.advance(0.1)
        return await waiting

    async def status(self, id: str) -> tuple[str, int, int]:
        """(status, attempt, lost) of a job."""
        info = await self.engine.jobs.find(id, timeout_s=5.0)
        assert info is not None
        return info.status, info.attempt, info.lost


@asynccontextmanager
async def a_place(directory: Path, *services: type[Service], **settings: Any) -> AsyncIterator[Place]:
    """A mesh with a store in this directory, and these services."""
    clock = ManualClock()
    overrides = {"store.dir": str(directory), "store.lease": LEASE_S, "calls.timeout": 5.0}
    overrides |= {name.replace("__", "."): value for name, value in settings.items()}
    async with Mesh(Store, *services, clock=clock, settings=overrides) as mesh:
        place = Place(mesh, clock)
        try:
            yield place
        finally:
            closing = asyncio.ensure_future(place.engine.close())
            while not closing.done():
                await clock.advance(0.05)


def refused(error: MeshError | None) -> str:
    return error.code if error is not None else ""
