"""Inspection of tasks, durable events and state of a mesh under test.

Owns: listing queues, jobs and dead letters, waiting until no work is left.
Leaves to others: the verbs (service.verbs), the engine (engines.memory, or another that the test chose).
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from mesh.clock import settle
from mesh.engines.work_view import WorkView
from mesh.errors import DeadlineExceeded
from mesh.node.node import Node
from mesh.service.verbs import DurableVerbs, Room
from mesh.tasks.contract import JobInfo, QueueInfo, Status

#: Rounds of the loop after which, with a manual clock, work that still runs is taken to wait for that clock.
MOST_TURNS: Final = 5000
STATUSES: Final[tuple[Status, ...]] = ("waiting", "delayed", "ready", "running", "done", "dead", "cancelled")
_PAGE: Final = 1000


class DurableView(DurableVerbs):
    """For `Mesh`: the durable verbs, and inspection of their effects."""

    @property
    def node(self) -> Node:
        raise NotImplementedError

    @property
    def _turned_by_hand(self) -> bool:
        raise NotImplementedError

    @property
    def _durable(self) -> Room:
        return self.node.durable

    @property
    def _work(self) -> WorkView:
        # A test sees everything, whatever [access] allows.
        durable = self.node.durable
        return WorkView(durable.engines, timeout_s=durable.timeout_s, unguarded=True)

    async def queues(self) -> list[QueueInfo]:
        """Every queue and durable subscription, with the number of its jobs in each status."""
        return await self._work.queues()

    async def jobs(self, queue: str, status: Status | None = None) -> list[JobInfo]:
        """The jobs of "orders.charge", or the deliveries of a durable handler, oldest first."""
        work = self._work
        found: list[JobInfo] = []
        for each in (status,) if status is not None else STATUSES:
            after = ""
            while page := await work.page(queue, each, after=after):
                found += page
                after = page[-1].id
        return sorted(found, key=lambda info: (info.created_at, info.id)) if status is None else found

    async def dead(self, queue: str = "") -> list[JobInfo]:
        """The dead letters of one queue, or of all."""
        names = [queue] if queue else [info.name for info in await self.queues() if info.dead]
        return [info for name in names for info in await self.jobs(name, "dead")]

    async def idle(self, *, timeout: float = 10.0) -> None:
        """Return when no task and no delivery is ready or running. Delayed and waiting ones may be left.

        Args:
            timeout: real seconds. With a manual clock it is ignored: the limit is MOST_TURNS rounds of the loop, after
                which running work must be waiting for the clock.

        Raises:
            DeadlineExceeded: some are not done; the message names their queues.
        """
        give_up_at = time.monotonic() + timeout
        turns = 0
        while busy := [info for info in await self.queues() if info.ready or info.running or info.backlog]:
            turns += 1
            if turns > MOST_TURNS if self._turned_by_hand else time.monotonic() > give_up_at:
                told = ", ".join(f"{info.name} ({info.ready} ready, {info.running} running)" for info in busy)
                remedy = "; the running tasks may wait for the clock: advance it" if self._turned_by_hand else ""
                raise DeadlineExceeded(f"not idle: {told}{remedy}")
            await settle(5)
            await asyncio.sleep(0 if self._turned_by_hand else 0.001)
