"""Authorizes the caller of an engine that runs within its process, as the store does for its callers.

Owns: checking the authorization before each method of the contracts. Leaves to others: the decision (authorization),
the engine itself. The store has callers over links and checks in its own methods (mesh.store.admission).
"""

from __future__ import annotations

from collections.abc import Sequence

from mesh.engines.authorization import Authorization
from mesh.engines.contract import Unit
from mesh.events.log import EventLog, LoggedEvent, NewEvent
from mesh.locks.contract import Grant, Locks
from mesh.schedules.contract import Advance, Schedule, Schedules
from mesh.state.contract import Entry, StateStore, Write
from mesh.tasks.contract import JobInfo, NewTask, Offer, QueueInfo, Receiver, Session, Settlement, Status, Ticket
from mesh.tasks.engine import Jobs, Leases, Queues


class Guard:
    """The authorization of one caller for one engine."""

    def __init__(self, authorization: Authorization, caller: str, jobs: Jobs, owners: dict[str, str]) -> None:
        """Args:
        jobs: the engine's own, unguarded, to find the queues of jobs.
        owners: session → the caller that owns it; shared by all guards of the engine.
        """
        self._owners = owners
        self._authorization = authorization
        self._caller = caller
        self._jobs = jobs

    def check(self, operation: str, *names: str) -> None:
        """Raises: Forbidden."""
        self._authorization.check(self._caller, operation, *names)

    def shown(self, operation: str, name: str) -> bool:
        """See Authorization.shown."""
        return self._authorization.shown(self._caller, operation, name)

    def offer(self, offer: Offer) -> None:
        """Raises: Forbidden."""
        if refusal := self._authorization.offer(self._caller, offer):
            raise refusal.error()
        if self._owners.setdefault(offer.session, self._caller) != self._caller:
            raise self._authorization.stranger(self._caller, offer.session)

    async def job(self, operation: str, id: str, timeout_s: float) -> JobInfo | None:
        """The job, if there is one.

        Raises:
            Forbidden: this caller may not look at jobs of its queue.
        """
        info = await self._jobs.find(id, timeout_s=timeout_s)
        if info is not None:
            self.check(operation, info.queue)
        return info

    async def unit(self, unit: Unit, timeout_s: float) -> Unit:
        """The unit to commit, in which principals are marked that this caller may not assert.

        Raises:
            Forbidden: this caller may not commit it.
        """
        queues = {}
        for settlement in unit.settle:
            info = await self._jobs.find(settlement.id, timeout_s=timeout_s)
            queues[settlement.id] = info.queue if info is not None else ""
        if refusal := self._authorization.unit(self._caller, unit, lambda id: queues.get(id, "")):
            raise refusal.error()
        return self._authorization.verified(self._caller, unit)


class GuardedLeases:
    """See mesh.tasks.engine.Leases.

    Attributes:
        unguarded: the engine's own leases.
    """

    def __init__(self, unguarded: Leases, guard: Guard) -> None:
        self.unguarded = unguarded
        self._guard = guard

    async def subscribe(self, offer: Offer, receiver: Receiver) -> Session:
        self._guard.offer(offer)
        return await self.unguarded.subscribe(offer, receiver)

    async def acknowledge(self, settlements: Sequence[Settlement], *, timeout_s: float) -> None:
        await self._guard.unit(Unit("", settle=settlements), timeout_s)
        await self.unguarded.acknowledge(settlements, timeout_s=timeout_s)

    async def queues(self, *, timeout_s: float) -> list[QueueInfo]:
        found = await self.unguarded.queues(timeout_s=timeout_s)
        return [info for info in found if self._guard.shown("queues", info.name)]

    async def dead(self, queue: str, *, after: str = "", limit: int = 100, timeout_s: float) -> list[JobInfo]:
        self._guard.check("jobs", queue)
        return await self.unguarded.dead(queue, after=after, limit=limit, timeout_s=timeout_s)

    async def requeue(self, queue: str, ids: Sequence[str] = (), *, timeout_s: float) -> int:
        self._guard.check("requeue", queue)
        return await self.unguarded.requeue(queue, ids, timeout_s=timeout_s)

    async def drop(self, queue: str, ids: Sequence[str] = (), *, timeout_s: float) -> int:
        self._guard.check("drop", queue)
        return await self.unguarded.drop(queue, ids, timeout_s=timeout_s)


class GuardedQueues:
    """See mesh.tasks.engine.Queues."""

    def __init__(self, unguarded: Queues, guard: Guard) -> None:
        self._unguarded = unguarded
        self._guard = guard

    async def defer(self, tasks: Sequence[NewTask], *, timeout_s: float) -> Sequence[Ticket]:
        unit = await self._guard.unit(Unit("", tasks=tasks), timeout_s)
        return await self._unguarded.defer(unit.tasks, timeout_s=timeout_s)


class GuardedJobs:
    """See mesh.tasks.engine.Jobs.

    Attributes:
        unguarded: the engine's own jobs.
    """

    def __init__(self, unguarded: Jobs, guard: Guard) -> None:
        self.unguarded = unguarded
        self._guard = guard

    async def find(self, id: str, *, timeout_s: float) -> JobInfo | None:
        return await self._guard.job("find", id, timeout_s)

    async def wait(self, id: str, *, timeout_s: float) -> JobInfo:
        await self._guard.job("find", id, timeout_s)
        return await self.unguarded.wait(id, timeout_s=timeout_s)

    async def cancel(self, id: str, *, timeout_s: float) -> JobInfo:
        await self._guard.job("cancel", id, timeout_s)
        return await self.unguarded.cancel(id, timeout_s=timeout_s)

    async def page(
        self, queue: str, status: Status, *, after: str = "", limit: int = 100, timeout_s: float
    ) -> list[JobInfo]:
        self._guard.check("jobs", queue)
        return await self.unguarded.page(queue, status, after=after, limit=limit, timeout_s=timeout_s)


class GuardedEvents:
    """See mesh.events.log.EventLog."""

    def __init__(self, unguarded: EventLog, guard: Guard) -> None:
        self._unguarded = unguarded
        self._guard = guard

    async def append(self, events: Sequence[NewEvent], *, timeout_s: float) -> Sequence[int]:
        unit = await self._guard.unit(Unit("", events=events), timeout_s)
        return await self._unguarded.append(unit.events, timeout_s=timeout_s)

    async def replay(
        self, subscription: str, *, offset: int | None = None, since_at: float | None = None, timeout_s: float
    ) -> int:
        self._guard.check("replay", subscription)
        return await self._unguarded.replay(subscription, offset=offset, since_at=since_at, timeout_s=timeout_s)

    async def abandon(self, subscription: str, *, timeout_s: float) -> int:
        self._guard.check("abandon", subscription)
        return await self._unguarded.abandon(subscription, timeout_s=timeout_s)

    async def read(self, pattern: str, *, after: int = 0, limit: int = 100, timeout_s: float) -> list[LoggedEvent]:
        self._guard.check("read", pattern)
        return await self._unguarded.read(pattern, after=after, limit=limit, timeout_s=timeout_s)

    async def last(self, *, timeout_s: float) -> int:
        return await self._unguarded.last(timeout_s=timeout_s)


class GuardedState:
    """See mesh.state.contract.StateStore."""

    def __init__(self, unguarded: StateStore, guard: Guard) -> None:
        self._unguarded = unguarded
        self._guard = guard

    async def get(self, namespace: str, keys: Sequence[str], *, timeout_s: float) -> list[Entry | None]:
        self._guard.check("get", namespace)
        return await self._unguarded.get(namespace, keys, timeout_s=timeout_s)

    async def write(self, writes: Sequence[Write], *, timeout_s: float) -> list[Entry | None]:
        await self._guard.unit(Unit("", writes=writes), timeout_s)
        return await self._unguarded.write(writes, timeout_s=timeout_s)

    async def page(
        self, namespace: str, *, prefix: str = "", after: str = "", limit: int = 100, timeout_s: float
    ) -> list[Entry]:
        self._guard.check("page", namespace)
        return await self._unguarded.page(namespace, prefix=prefix, after=after, limit=limit, timeout_s=timeout_s)

    async def namespaces(self, *, timeout_s: float) -> list[tuple[str, int]]:
        found = await self._unguarded.namespaces(timeout_s=timeout_s)
        return [(name, count) for name, count in found if self._guard.shown("namespaces", name)]


class GuardedSchedules:
    """See mesh.schedules.contract.Schedules."""

    def __init__(self, unguarded: Schedules, guard: Guard) -> None:
        self._unguarded = unguarded
        self._guard = guard

    async def declare(self, schedules: Sequence[Schedule], *, timeout_s: float) -> list[Schedule]:
        self._guard.check("declare", *(one.name for one in schedules))
        return await self._unguarded.declare(schedules, timeout_s=timeout_s)

    async def advance(self, advance: Advance, *, timeout_s: float) -> bool:
        await self._guard.unit(Unit("", advance=(advance,)), timeout_s)
        return await self._unguarded.advance(advance, timeout_s=timeout_s)

    async def schedules(self, *, timeout_s: float) -> list[Schedule]:
        found = await self._unguarded.schedules(timeout_s=timeout_s)
        return [one for one in found if self._guard.shown("schedules", one.name)]


class GuardedLocks:
    """See mesh.locks.contract.Locks."""

    def __init__(self, unguarded: Locks, guard: Guard) -> None:
        self._unguarded = unguarded
        self._guard = guard

    async def acquire(self, name: str, owner: str, *, ttl_s: float, wait_s: float, timeout_s: float) -> Grant:
        self._guard.check("acquire", name)
        return await self._unguarded.acquire(name, owner, ttl_s=ttl_s, wait_s=wait_s, timeout_s=timeout_s)

    async def renew(self, name: str, owner: str, *, ttl_s: float, timeout_s: float) -> Grant:
        self._guard.check("renew_lock", name)
        return await self._unguarded.renew(name, owner, ttl_s=ttl_s, timeout_s=timeout_s)

    async def release(self, name: str, owner: str, *, timeout_s: float) -> bool:
        self._guard.check("release", name)
        return await self._unguarded.release(name, owner, timeout_s=timeout_s)

    async def locks(self, *, timeout_s: float) -> list[Grant]:
        found = await self._unguarded.locks(timeout_s=timeout_s)
        return [grant for grant in found if self._guard.shown("locks", grant.name)]
