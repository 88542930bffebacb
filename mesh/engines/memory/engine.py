"""The Engine of one process, on the memory that all processes share.

Owns: the Engine, and its contracts.
Leaves to others: the connection, which tests may cut, and sessions (connection), all data (memory).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, TypeVar

from mesh import ids
from mesh.engines.authorization import Authorization
from mesh.engines.contract import CAPABILITIES, Capability, Outcome, Unit
from mesh.engines.guarded import (
    Guard,
    GuardedEvents,
    GuardedJobs,
    GuardedLeases,
    GuardedLocks,
    GuardedQueues,
    GuardedSchedules,
    GuardedState,
)
from mesh.engines.memory.connection import MemorySession, Way
from mesh.engines.memory.memory import Memory
from mesh.engines.semantics.grants import taken
from mesh.errors import Conflict, DeadlineExceeded
from mesh.events.log import EventLog, LoggedEvent, NewEvent
from mesh.events.topics import Matcher, check_pattern
from mesh.locks.contract import Grant, Locks
from mesh.schedules.contract import Advance, Schedule, Schedules
from mesh.state.contract import Entry, StateStore, Write
from mesh.tasks.contract import JobInfo, NewTask, Offer, QueueInfo, Receiver, Settlement, Status, Ticket
from mesh.tasks.engine import Jobs, Leases, Queues

T = TypeVar("T")


class MemoryEngine:
    """See mesh.engines.contract.Engine. It has all capabilities and commits them together."""

    name: Final = "memory"
    authorizes: Final = True
    offers: Final[frozenset[Capability]] = frozenset(CAPABILITIES)
    together: Final[frozenset[Capability]] = frozenset(CAPABILITIES)

    def __init__(self, memory: Memory, authorization: Authorization | None = None, caller: str = "") -> None:
        """Args:
        authorization: decides by [access] for `caller`, the process that has this engine; None: allow everything.
        """
        self._memory = memory
        self._way = Way(memory)
        self._sessions: list[MemorySession] = []
        leases: Leases = MemoryLeases(self._way, self._sessions)
        queues: Queues = MemoryQueues(self._way)
        jobs: Jobs = MemoryJobs(self._way)
        events: EventLog = MemoryEvents(self._way)
        state: StateStore = MemoryState(self._way)
        schedules: Schedules = MemorySchedules(self._way)
        locks: Locks = MemoryLocks(self._way)
        self._guard = guard = Guard(authorization, caller, jobs, memory.owners) if authorization is not None else None
        self.leases = GuardedLeases(leases, guard) if guard else leases
        self.queues = GuardedQueues(queues, guard) if guard else queues
        self.jobs = GuardedJobs(jobs, guard) if guard else jobs
        self.events = GuardedEvents(events, guard) if guard else events
        self.state = GuardedState(state, guard) if guard else state
        self.schedules = GuardedSchedules(schedules, guard) if guard else schedules
        self.locks = GuardedLocks(locks, guard) if guard else locks

    async def commit(self, unit: Unit, *, timeout_s: float) -> Outcome:
        """See Engine."""
        if self._guard is not None:
            unit = await self._guard.unit(unit, timeout_s)
        await self._way.clear(timeout_s)
        return self._memory.commit(unit)

    async def close(self) -> None:
        """See Engine."""
        for session in list(self._sessions):
            await session.close()

    # --- faults, for tests --------------------------------------------------------------------------------

    def cut(self) -> None:
        """Cut the connection to the memory until `mend`. Its sessions die if that takes longer than a lease."""
        self._way.cut()
        for session in self._sessions:
            session.cut()

    def mend(self) -> None:
        """End a cut: live sessions continue, dead ones subscribe again."""
        if not self._way.open:
            self._way.mend()
            for session in self._sessions:
                session.mend()

    def kill(self) -> None:
        """Simulate kill -9 of the process: its sessions fall silent, and it receives nothing any more."""
        self._way.cut()
        for session in self._sessions:
            session.kill()
        self._sessions.clear()


class MemoryLeases:
    """See mesh.tasks.engine.Leases."""

    def __init__(self, way: Way, sessions: list[MemorySession]) -> None:
        self._way = way
        self._memory = way.memory
        self._sessions = sessions

    async def subscribe(self, offer: Offer, receiver: Receiver) -> MemorySession:
        for queue in offer.queues:
            for pattern in queue.patterns:
                check_pattern(pattern)
        return MemorySession(self._way, offer, receiver, self._sessions)

    async def acknowledge(self, settlements: Sequence[Settlement], *, timeout_s: float) -> None:
        await self._way.clear(timeout_s)
        self._memory.commit(Unit("", settle=settlements))

    async def queues(self, *, timeout_s: float) -> list[QueueInfo]:
        await self._way.clear(timeout_s)
        return self._memory.queues()

    async def dead(self, queue: str, *, after: str = "", limit: int = 100, timeout_s: float) -> list[JobInfo]:
        await self._way.clear(timeout_s)
        return [job.info() for job in self._memory.letters.page(queue, "dead", after, limit)]

    async def requeue(self, queue: str, ids: Sequence[str] = (), *, timeout_s: float) -> int:
        await self._way.clear(timeout_s)
        return self._memory.letters.requeue(queue, ids)

    async def drop(self, queue: str, ids: Sequence[str] = (), *, timeout_s: float) -> int:
        await self._way.clear(timeout_s)
        return self._memory.letters.drop(queue, ids)


class MemoryQueues:
    """See mesh.tasks.engine.Queues."""

    def __init__(self, way: Way) -> None:
        self._way = way
        self._memory = way.memory

    async def defer(self, tasks: Sequence[NewTask], *, timeout_s: float) -> list[Ticket]:
        await self._way.clear(timeout_s)
        # The id of a single task also serves as that of its unit: deferring it again gets the same ticket.
        name = tasks[0].id if len(tasks) == 1 else ids.job_id()
        return list(self._memory.commit(Unit(name, tasks=tasks)).tickets) if tasks else []


class MemoryJobs:
    """See mesh.tasks.engine.Jobs."""

    def __init__(self, way: Way) -> None:
        self._way = way
        self._memory = way.memory

    async def find(self, id: str, *, timeout_s: float) -> JobInfo | None:
        await self._way.clear(timeout_s)
        job = self._memory.jobs.find(id)
        return job.info() if job is not None else None

    async def wait(self, id: str, *, timeout_s: float) -> JobInfo:
        clock = self._memory.clock
        until = clock.now() + timeout_s
        await self._way.clear(timeout_s)
        over = self._memory.wait(id)
        if not await self._way.within(over, until - clock.now()):
            raise DeadlineExceeded(f"job {id} did not end within {timeout_s:g} s; it continues")
        return over.result()

    async def cancel(self, id: str, *, timeout_s: float) -> JobInfo:
        await self._way.clear(timeout_s)
        job, told = self._memory.jobs.cancel(id)
        if told:
            self._memory.sessions.must_stop(job)
        return job.info()

    async def page(
        self, queue: str, status: Status, *, after: str = "", limit: int = 100, timeout_s: float
    ) -> list[JobInfo]:
        await self._way.clear(timeout_s)
        return [job.info() for job in self._memory.letters.page(queue, status, after, limit)]


class MemoryEvents:
    """See mesh.events.log.EventLog."""

    def __init__(self, way: Way) -> None:
        self._way = way
        self._memory = way.memory

    async def append(self, events: Sequence[NewEvent], *, timeout_s: float) -> list[int]:
        await self._way.clear(timeout_s)
        return list(self._memory.commit(Unit(ids.job_id(), events=events)).offsets) if events else []

    async def replay(
        self, subscription: str, *, offset: int | None = None, since_at: float | None = None, timeout_s: float
    ) -> int:
        await self._way.clear(timeout_s)
        return self._memory.replay(subscription, offset, since_at)

    async def abandon(self, subscription: str, *, timeout_s: float) -> int:
        await self._way.clear(timeout_s)
        return self._memory.abandon(subscription)

    async def read(self, pattern: str, *, after: int = 0, limit: int = 100, timeout_s: float) -> list[LoggedEvent]:
        await self._way.clear(timeout_s)
        self._memory.sweep()
        return self._memory.log.page(Matcher([(check_pattern(pattern), None)]), after, limit)

    async def last(self, *, timeout_s: float) -> int:
        await self._way.clear(timeout_s)
        return self._memory.log.last


class MemoryState:
    """See mesh.state.contract.StateStore."""

    def __init__(self, way: Way) -> None:
        self._way = way
        self._memory = way.memory

    async def get(self, namespace: str, keys: Sequence[str], *, timeout_s: float) -> list[Entry | None]:
        await self._way.clear(timeout_s)
        wall = self._memory.clock.wall()
        return [self._memory.state.get(namespace, key, wall) for key in keys]

    async def write(self, writes: Sequence[Write], *, timeout_s: float) -> list[Entry | None]:
        await self._way.clear(timeout_s)
        return list(self._memory.commit(Unit(ids.job_id(), writes=writes)).entries)

    async def page(
        self, namespace: str, *, prefix: str = "", after: str = "", limit: int = 100, timeout_s: float
    ) -> list[Entry]:
        await self._way.clear(timeout_s)
        return self._memory.state.page(namespace, prefix, after, limit, self._memory.clock.wall())

    async def namespaces(self, *, timeout_s: float) -> list[tuple[str, int]]:
        await self._way.clear(timeout_s)
        return self._memory.state.namespaces(self._memory.clock.wall())


class MemorySchedules:
    """See mesh.schedules.contract.Schedules."""

    def __init__(self, way: Way) -> None:
        self._way = way
        self._memory = way.memory

    async def declare(self, schedules: Sequence[Schedule], *, timeout_s: float) -> list[Schedule]:
        await self._way.clear(timeout_s)
        return self._memory.schedules.declare(schedules)

    async def advance(self, advance: Advance, *, timeout_s: float) -> bool:
        await self._way.clear(timeout_s)
        try:
            self._memory.commit(Unit(ids.job_id(), advance=(advance,)))
        except Conflict:
            return False
        return True

    async def schedules(self, *, timeout_s: float) -> list[Schedule]:
        await self._way.clear(timeout_s)
        return self._memory.schedules.all()


class MemoryLocks:
    """See mesh.locks.contract.Locks."""

    def __init__(self, way: Way) -> None:
        self._way = way
        self._memory = way.memory

    async def acquire(self, name: str, owner: str, *, ttl_s: float, wait_s: float, timeout_s: float) -> Grant:
        await self._way.clear(timeout_s)
        locks = self._memory.locks
        grant = locks.take(name, owner, ttl_s)
        if grant is not None:
            return grant
        if wait_s > 0:
            waiter = locks.wait(name, owner, ttl_s)
            try:
                if await self._way.within(waiter.granted, wait_s):
                    return waiter.granted.result()
            except asyncio.CancelledError:
                locks.give_up(name, waiter)
                raise
            locks.give_up(name, waiter)
        raise taken(name, locks.holder(name), wait_s)

    async def renew(self, name: str, owner: str, *, ttl_s: float, timeout_s: float) -> Grant:
        await self._way.clear(timeout_s)
        return self._memory.locks.renew(name, owner, ttl_s)

    async def release(self, name: str, owner: str, *, timeout_s: float) -> bool:
        await self._way.clear(timeout_s)
        return self._memory.locks.release(name, owner)

    async def locks(self, *, timeout_s: float) -> list[Grant]:
        await self._way.clear(timeout_s)
        return self._memory.locks.all()
