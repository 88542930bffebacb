"""Workers that share schedules, an engine in memory, and a clock that is turned by hand."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from mesh import ids
from mesh.clock import ManualClock
from mesh.engines.contract import Unit
from mesh.engines.memory import Memory, MemoryEngine
from mesh.schedules.contract import Advance
from mesh.schedules.driver import Driver, Fire, Recurring
from mesh.schedules.plan import Cron, Every, Plan
from mesh.tasks.contract import JobInfo, NewTask
from mesh.telemetry.metrics import Recorder

NAME = "shop.close_day"


class SetClock(ManualClock):
    """One whose time of day can be set, as a person or NTP does it: no timer notices."""

    def __init__(self) -> None:
        super().__init__()
        self.set_by = 0.0

    def wall(self) -> float:
        return super().wall() + self.set_by


class Worker:
    """One process with a driver."""

    def __init__(self, bench: Bench, recurring: Sequence[Recurring], seed: int, fire: Fire | None) -> None:
        self.engine = MemoryEngine(bench.memory)
        self.recorder = Recorder(bench.clock)
        driver = Driver(
            recurring,
            self.engine.schedules,
            fire or self._fire,
            clock=bench.clock,
            rng=random.Random(seed),
            recorder=self.recorder,
            timeout_s=5.0,
        )
        self.running = asyncio.create_task(driver.run())

    async def _fire(self, tasks: Sequence[NewTask], advance: Advance, timeout_s: float) -> None:
        await self.engine.commit(Unit(ids.job_id(), tasks=tasks, advance=(advance,)), timeout_s=timeout_s)

    def counted(self, name: str) -> float:
        return self.recorder.counter(name, schedule=NAME).value

    async def die(self) -> None:
        """It is not there any more."""
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)


class Bench:
    """All of it.

    Attributes:
        began_at: the wall clock when the bench was made: a full half hour.
    """

    def __init__(self) -> None:
        self.clock = SetClock()
        self.memory = Memory(self.clock)
        self.engine = MemoryEngine(self.memory)
        self.began_at = self.clock.wall()
        self.workers: list[Worker] = []

    def worker(self, plan: str | Plan = "every 10s", *, fire: Fire | None = None, **options: Any) -> Worker:
        """Start one more."""
        if isinstance(plan, str):
            first, _, rest = plan.partition(" ")
            plan = Every(rest) if first == "every" else Cron(plan)
        worker = Worker(self, [Recurring(name=NAME, plan=plan, **options)], len(self.workers), fire)
        self.workers.append(worker)
        return worker

    async def jobs(self) -> list[JobInfo]:
        """What was deferred, by due time."""
        jobs = await self.engine.jobs.page(NAME, "ready", limit=10_000, timeout_s=1)
        return sorted(jobs, key=lambda job: job.meta["due"])

    async def due(self) -> list[float]:
        """The due times of what was deferred, in seconds since the bench was made."""
        return [round(_instant(job.meta["due"]) - self.began_at, 3) for job in await self.jobs()]

    async def close(self) -> None:
        for worker in self.workers:
            await worker.die()


def _instant(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
