"""Queues, jobs and dead letters of one mesh, whichever engines have them.

Owns: which engine has a queue or a job, where tasks and durable events are in different engines.
Leaves to others: the contracts (tasks.engine), choosing engines (choose), showing (the command line, mesh.testing).
"""

from __future__ import annotations

from collections.abc import Sequence

from mesh.engines.choose import Engines
from mesh.engines.contract import Engine
from mesh.errors import NotOffered, UnknownJob
from mesh.tasks.contract import JobInfo, QueueInfo, Status
from mesh.tasks.engine import Jobs, Leases


class WorkView:
    """All leased work: the tasks of queues, and the deliveries of durable subscriptions."""

    def __init__(self, engines: Engines, *, timeout_s: float, unguarded: bool = False) -> None:
        """Args:
        timeout_s: how long a request waits for an unreachable engine.
        unguarded: see everything, whatever [access] allows; only for engines that run in this process.
        """
        self._engines = engines
        self._timeout_s = timeout_s
        self._unguarded = unguarded

    async def queues(self) -> list[QueueInfo]:
        """Every queue and durable subscription, sorted by name."""
        found = [info for engine in self._sources() for info in await self._queues(engine)]
        return sorted(found, key=lambda info: info.name)

    async def find(self, id: str) -> JobInfo | None:
        """The task's job, or the event's delivery, with this id.

        Raises:
            NotOffered: no engine in use finds jobs by id.
        """
        found = await self._search(id)
        return found[1] if found is not None else None

    async def wait(self, id: str, wait_s: float) -> JobInfo:
        """Wait until a job, or a delivery, is over. Raises: see Jobs.wait."""
        return await (await self._holder(id)).wait(id, timeout_s=wait_s)

    async def cancel(self, id: str) -> JobInfo:
        """Cancel a job, or a delivery. Raises: see Jobs.cancel."""
        return await (await self._holder(id)).cancel(id, timeout_s=self._timeout_s)

    async def page(self, queue: str, status: Status, *, after: str = "", limit: int = 100) -> list[JobInfo]:
        """See Jobs.page; dead letters are listed by every engine.

        Raises:
            NotOffered: the engine of the queue lists dead letters only.
        """
        engine = await self._source(queue)
        if "jobs" in engine.offers:
            return await self._jobs(engine).page(queue, status, after=after, limit=limit, timeout_s=self._timeout_s)
        if status == "dead":
            return await self._leases(engine).dead(queue, after=after, limit=limit, timeout_s=self._timeout_s)
        raise NotOffered(
            f'{queue}: the engine "{engine.name}" lists dead letters only',
            details={"engine": engine.name, "capability": "jobs"},
        )

    async def requeue(self, queue: str, ids: Sequence[str] = ()) -> int:
        """See Leases.requeue."""
        return await self._leases(await self._source(queue)).requeue(queue, ids, timeout_s=self._timeout_s)

    async def drop(self, queue: str, ids: Sequence[str] = ()) -> int:
        """See Leases.drop."""
        return await self._leases(await self._source(queue)).drop(queue, ids, timeout_s=self._timeout_s)

    # --- which engine -------------------------------------------------------------------------------------

    def _sources(self) -> list[Engine]:
        """The engines that lease work, each once."""
        engines = self._engines
        wanted = [engines.of(capability) for capability in ("queues", "events") if engines.offers(capability)]
        return list(dict.fromkeys(wanted))

    async def _source(self, queue: str) -> Engine:
        """The engine of a queue; that of tasks when no engine knows the queue."""
        first, *others = self._sources()
        for engine in others:
            if any(info.name == queue for info in await self._queues(engine)):
                return engine
        return first

    async def _search(self, id: str) -> tuple[Jobs, JobInfo] | None:
        """The jobs of the engine that knows an id, and what it knows."""
        sources = [engine for engine in self._sources() if "jobs" in engine.offers]
        if not sources:
            raise self._engines.not_offered("jobs", f"job {id}")
        for engine in sources:
            jobs = self._jobs(engine)
            found = await jobs.find(id, timeout_s=self._timeout_s)
            if found is not None:
                return jobs, found
        return None

    async def _holder(self, id: str) -> Jobs:
        """The jobs of the engine that has an id; the only engine is not asked first.

        Raises:
            UnknownJob: there are several engines, and none knows the id.
        """
        sources = self._sources()
        if len(sources) == 1 and "jobs" in sources[0].offers:
            return self._jobs(sources[0])
        found = await self._search(id)
        if found is None:
            raise UnknownJob(f"no job has the id {id}: it never existed, or its retention is over")
        return found[0]

    async def _queues(self, engine: Engine) -> list[QueueInfo]:
        return await self._leases(engine).queues(timeout_s=self._timeout_s)

    def _leases(self, engine: Engine) -> Leases:
        leases = engine.leases
        return getattr(leases, "unguarded", leases) if self._unguarded else leases

    def _jobs(self, engine: Engine) -> Jobs:
        jobs = engine.jobs
        return getattr(jobs, "unguarded", jobs) if self._unguarded else jobs
