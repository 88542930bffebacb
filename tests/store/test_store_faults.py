"""Anything may break at any time: what was confirmed is done, and done once. Seeded, with a clock that is turned."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest
from store_mesh import LEASE_S, QUEUE, Place, a_place

from mesh.engines.sqlite.client import StoreEngine
from mesh.errors import LeaseLost, MeshError
from mesh.node.node import Node
from mesh.service.service import Service
from mesh.store.service import Store
from mesh.tasks.contract import Lease, NewTask, Offer, Queue, Settlement


class Busy(Service):
    """A worker that takes its time, settles, and stops at once when it is told that its leases are gone."""

    name = "orders"
    #: Confirmed settlements of each job, over all workers of a test; what runs now, by job.
    done: ClassVar[Counter[str]] = Counter()
    running: ClassVar[Counter[str]] = Counter()
    overlaps: ClassVar[list[str]] = []
    rng: ClassVar[random.Random] = random.Random(0)

    async def started(self) -> None:
        node = self.node
        assert isinstance(node, Node)
        self.clock = node.clock
        self.engine = StoreEngine(node.client, node.clock)
        self.in_hand: dict[tuple[str, int], asyncio.Task[None]] = {}
        self.alive = True
        offer = Offer(f"{node.identity}@{node.epoch}", ("orders",), (Queue(QUEUE, 5),))
        self.session = await self.engine.leases.subscribe(offer, self)

    def leased(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            self.in_hand[lease.id, lease.attempt] = asyncio.ensure_future(self._run(lease))

    async def _run(self, lease: Lease) -> None:
        key = lease.id, lease.attempt
        self.running[lease.id] += 1
        if self.running[lease.id] > 1:
            self.overlaps.append(lease.id)
        try:
            await self.clock.sleep(self.rng.expovariate(0.5))
        finally:
            self.running[lease.id] -= 1
        while self.alive:
            try:
                await self.engine.leases.acknowledge([Settlement(*key, "done")], timeout_s=3.0)
            except LeaseLost:
                break
            except MeshError:
                continue
            self.done[lease.id] += 1
            break
        self.in_hand.pop(key, None)

    def cancel(self, jobs: Sequence[tuple[str, int]]) -> None:
        for job in jobs:
            if job in self.in_hand:
                self.in_hand.pop(job).cancel()

    def lost(self, reason: str) -> None:
        self.cancel(tuple(self.in_hand))

    def held(self) -> list[tuple[str, int]]:
        return list(self.in_hand)

    async def dead(self) -> None:
        """Nothing of it goes on: the rest of a kill -9 in one process."""
        self.alive = False
        tasks = list(self.in_hand.values())
        self.lost("killed")
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.engine.close()

    async def stopped(self) -> None:
        await self.dead()


class Story:
    """One mesh, and what befalls it."""

    def __init__(self, place: Place, rng: random.Random) -> None:
        self.place = place
        self.rng = rng
        self.confirmed: list[str] = []
        self.deferring: set[asyncio.Task[None]] = set()
        self.made = 0

    def workers(self) -> list[Busy]:
        return self.place.mesh.instances(Busy)

    async def _defer(self, ids: list[str]) -> None:
        try:
            await self.place.engine.queues.defer([NewTask(id, QUEUE, b"\x90") for id in ids], timeout_s=600.0)
        except MeshError as error:
            pytest.fail(f"not confirmed in ten minutes: {error}")
        self.confirmed += ids

    def defer(self) -> None:
        ids = [f"job-{self.made + number:05}" for number in range(self.rng.randint(1, 12))]
        self.made += len(ids)
        task = asyncio.ensure_future(self._defer(ids))
        self.deferring.add(task)
        task.add_done_callback(self.deferring.discard)

    async def unfinished(self) -> list[str]:
        """Confirmed tasks that are not done."""
        return [id for id in self.confirmed if id not in Busy.done and (await self.place.status(id))[0] != "done"]

    async def cut(self) -> None:
        self.place.mesh.faults.cut(Store)

    async def kill_worker(self) -> None:
        victim = self.workers()[0]
        await self.place.mesh.faults.kill(Busy)
        dying = asyncio.ensure_future(victim.dead())
        await self.place.eventually(asyncio.ensure_future(self.place.mesh.start_another(Busy, wait=False)))
        await self.place.eventually(dying)

    async def restart_store(self) -> None:
        await self.place.kill_store()
        await self.place.advance(self.rng.choice([0.1, 1.0, 5.0, LEASE_S * 1.3]))
        await self.place.start_store()

    async def restart_hub(self) -> None:
        await self.place.mesh.restart_hub()

    async def partition(self) -> None:
        self.place.mesh.faults.partition(Busy, index=self.rng.randrange(len(self.workers())))
        await self.place.advance(self.rng.choice([1.0, 4.0, LEASE_S * 2]))
        self.place.mesh.faults.heal()

    async def lose_messages(self) -> None:
        self.place.mesh.faults.drop(Store, 0.3)
        await self.place.advance(1.0)
        self.place.mesh.faults.heal()
        # What was lost would be missed for ever on a link that stands; real links lose nothing before they break.
        self.place.mesh.faults.cut(Store)

    async def nothing(self) -> None:
        await self.place.advance(self.rng.random() * 3)


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_breaks_each_confirmed_task_is_done_once(tmp_path: Path, seed: int) -> None:
    """Links, workers, the hub and the store, in any order, while tasks come and run."""
    Busy.done, Busy.running, Busy.overlaps, Busy.rng = Counter(), Counter(), [], random.Random(seed)
    async with a_place(tmp_path, Busy) as place:
        story = Story(place, random.Random(seed))
        await place.mesh.start_another(Busy)
        happenings = [story.cut, story.kill_worker, story.restart_store, story.restart_hub, story.partition]
        happenings += [story.lose_messages, story.nothing, story.nothing]
        for _ in range(15):
            for _ in range(story.rng.randint(0, 3)):
                story.defer()
            await story.rng.choice(happenings)()
            await place.advance(story.rng.random() * 2)
        for _ in range(400):
            if not story.deferring and not await story.unfinished():
                break
            await place.advance(1.0)
        assert len(story.confirmed) == story.made
        assert await story.unfinished() == [], "some were never done"
        # A worker that died with its word on the way does not count: the store has heard it all the same.
        assert set(Busy.done.values()) <= {1}, "some were done twice"
        assert Busy.overlaps == [], "some ran in two places at once"
