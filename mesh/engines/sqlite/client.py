"""The embedded engine as one process uses it: every capability by calls to the store.

Owns: the contracts' methods as requests to the store. Leaves to others: sending units (batching), a worker's session
(session), waiting for jobs (watching), retries (asking), the data (the store and its core).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Sequence
from typing import Any, Final

from mesh import ids
from mesh.calls.options import CallOptions
from mesh.clock import Clock
from mesh.engines.contract import CAPABILITIES, Capability, Outcome, Unit
from mesh.engines.sqlite.asking import Asker, StoreRequests, answer_of
from mesh.engines.sqlite.batching import Batcher
from mesh.engines.sqlite.messages import SERVICE, BackupInfo, StoreInfo, encode
from mesh.engines.sqlite.session import StoreSession
from mesh.engines.sqlite.watching import Watching
from mesh.errors import Conflict, LockTaken
from mesh.events.log import LoggedEvent, NewEvent
from mesh.locks.contract import Grant
from mesh.schedules.contract import Advance, Schedule
from mesh.state.contract import Entry, Write
from mesh.tasks.contract import JobInfo, NewTask, Offer, QueueInfo, Receiver, Settlement, Status, Ticket

_ALL: Final = frozenset(CAPABILITIES)
#: Timeout of operations on the whole file, such as a backup of many gigabytes.
LONG_S: Final = 3600.0

_job: Final = answer_of(JobInfo | None)
_jobs: Final = answer_of(list[JobInfo])
_one_job: Final = answer_of(JobInfo)
_queues: Final = answer_of(list[QueueInfo])
_number: Final = answer_of(int)
_yes: Final = answer_of(bool)
_events: Final = answer_of(list[LoggedEvent])
_entries: Final = answer_of(list[Entry | None])
_page: Final = answer_of(list[Entry])
_offset: Final = answer_of(int)
_names: Final = answer_of(list[tuple[str, int]])
_schedules: Final = answer_of(list[Schedule])
_grant: Final = answer_of(Grant)
_grants: Final = answer_of(list[Grant])
_faults: Final = answer_of(list[str])
_info: Final = answer_of(StoreInfo)
_backup: Final = answer_of(BackupInfo)


class StoreEngine:
    """See mesh.engines.contract.Engine. One event loop owns it.

    Attributes:
        leases, queues, jobs, events, state, schedules, locks: its contracts.
        admin: the operations that only this engine has: backup, check, info.
    """

    name: Final = "sqlite"
    authorizes: Final = True
    offers: Final[frozenset[Capability]] = _ALL
    together: Final[frozenset[Capability]] = _ALL

    def __init__(self, asker: Asker, clock: Clock, *, rng: random.Random | None = None) -> None:
        """Nothing is sent before the first use; the store need not run yet."""
        rng = rng or random.Random()
        self.clock = clock
        self._asker = asker
        self._rng = rng
        self.batcher = Batcher(asker, clock, rng)
        self.line = StoreRequests(asker, clock, rng)
        self.watching = Watching(asker, clock, rng)
        self._sessions: set[StoreSession] = set()
        self.leases = StoreLeases(self)
        self.queues = StoreQueues(self)
        self.jobs = StoreJobs(self)
        self.events = StoreEvents(self)
        self.state = StoreState(self)
        self.schedules = StoreSchedules(self)
        self.locks = StoreLocks(self, asker)
        self.admin = StoreAdmin(self.line)

    async def commit(self, unit: Unit, *, timeout_s: float) -> Outcome:
        """See Engine.commit."""
        outcome: Outcome = await self.batcher.commit(unit, timeout_s)
        return outcome

    async def begin_session(self, offer: Offer, receiver: Receiver) -> StoreSession:
        """See Leases.subscribe."""
        session = StoreSession(
            self._asker, self.clock, self._rng, offer, receiver, self.batcher.unsettled, self._sessions.discard
        )
        self._sessions.add(session)
        await session.first()
        return session

    async def close(self) -> None:
        """End sessions and running requests. Idempotent."""
        await asyncio.gather(*(session.close() for session in tuple(self._sessions)))
        await self.watching.close()
        self.batcher.close()


class StoreLeases:
    """See mesh.tasks.engine.Leases."""

    def __init__(self, engine: StoreEngine) -> None:
        self._engine = engine
        self._commit = engine.batcher.commit
        self._ask = engine.line.ask

    async def subscribe(self, offer: Offer, receiver: Receiver) -> StoreSession:
        """Return when the store has confirmed the subscription, or after two seconds: it keeps trying in background."""
        return await self._engine.begin_session(offer, receiver)

    async def acknowledge(self, settlements: Sequence[Settlement], *, timeout_s: float) -> None:
        if settlements:
            await self._commit(Unit(ids.job_id(), settle=settlements), timeout_s, gathered=True)

    async def queues(self, *, timeout_s: float) -> list[QueueInfo]:
        queues: list[QueueInfo] = await self._ask("queues", timeout_s=timeout_s, read=_queues)
        return queues

    async def dead(self, queue: str, *, after: str = "", limit: int = 100, timeout_s: float) -> list[JobInfo]:
        return await self._engine.jobs.page(queue, "dead", after=after, limit=limit, timeout_s=timeout_s)

    async def requeue(self, queue: str, ids: Sequence[str] = (), *, timeout_s: float) -> int:
        count: int = await self._ask("requeue", queue, ids, timeout_s=timeout_s, read=_number)
        return count

    async def drop(self, queue: str, ids: Sequence[str] = (), *, timeout_s: float) -> int:
        count: int = await self._ask("drop", queue, ids, timeout_s=timeout_s, read=_number)
        return count


class StoreQueues:
    """See mesh.tasks.engine.Queues."""

    def __init__(self, engine: StoreEngine) -> None:
        self._commit = engine.batcher.commit

    def defer(self, tasks: Sequence[NewTask], *, timeout_s: float) -> Awaitable[Sequence[Ticket]]:
        if not tasks:
            return _nothing()
        # The id of a single task also serves as that of its unit: making another costs a tenth of the whole request.
        unit = Unit(tasks[0].id if len(tasks) == 1 else ids.job_id(), tasks)
        return self._commit(unit, timeout_s, pick=_tickets, gathered=True)


class StoreJobs:
    """See mesh.tasks.engine.Jobs."""

    def __init__(self, engine: StoreEngine) -> None:
        self._watching = engine.watching
        self._ask = engine.line.ask

    async def find(self, id: str, *, timeout_s: float) -> JobInfo | None:
        found: JobInfo | None = await self._ask("find", id, timeout_s=timeout_s, read=_job)
        return found

    async def wait(self, id: str, *, timeout_s: float) -> JobInfo:
        return await self._watching.wait(id, timeout_s)

    async def cancel(self, id: str, *, timeout_s: float) -> JobInfo:
        job: JobInfo = await self._ask("cancel", id, timeout_s=timeout_s, read=_one_job)
        return job

    async def page(
        self, queue: str, status: Status, *, after: str = "", limit: int = 100, timeout_s: float
    ) -> list[JobInfo]:
        jobs: list[JobInfo] = await self._ask("jobs", queue, status, after, limit, timeout_s=timeout_s, read=_jobs)
        return jobs


class StoreEvents:
    """See mesh.events.log.EventLog."""

    def __init__(self, engine: StoreEngine) -> None:
        self._commit = engine.batcher.commit
        self._ask = engine.line.ask

    def append(self, events: Sequence[NewEvent], *, timeout_s: float) -> Awaitable[Sequence[int]]:
        if not events:
            return _nothing()
        unit = Unit(events[0].id if len(events) == 1 else ids.job_id(), events=events)
        return self._commit(unit, timeout_s, pick=_offsets, gathered=True)

    async def replay(
        self, subscription: str, *, offset: int | None = None, since_at: float | None = None, timeout_s: float
    ) -> int:
        count: int = await self._ask("replay", subscription, offset, since_at, timeout_s=timeout_s, read=_number)
        return count

    async def abandon(self, subscription: str, *, timeout_s: float) -> int:
        count: int = await self._ask("abandon", subscription, timeout_s=timeout_s, read=_number)
        return count

    async def read(self, pattern: str, *, after: int = 0, limit: int = 100, timeout_s: float) -> list[LoggedEvent]:
        events: list[LoggedEvent] = await self._ask("read", pattern, after, limit, timeout_s=timeout_s, read=_events)
        return events

    async def last(self, *, timeout_s: float) -> int:
        offset: int = await self._ask("last", timeout_s=timeout_s, read=_offset)
        return offset


class StoreState:
    """See mesh.state.contract.StateStore."""

    def __init__(self, engine: StoreEngine) -> None:
        self._commit = engine.batcher.commit
        self._ask = engine.line.ask

    async def get(self, namespace: str, keys: Sequence[str], *, timeout_s: float) -> list[Entry | None]:
        entries: list[Entry | None] = await self._ask("get", namespace, keys, timeout_s=timeout_s, read=_entries)
        return entries

    async def write(self, writes: Sequence[Write], *, timeout_s: float) -> list[Entry | None]:
        if not writes:
            return []
        outcome = await self._commit(Unit(ids.job_id(), writes=writes), timeout_s)
        return list(outcome.entries)

    async def page(
        self, namespace: str, *, prefix: str = "", after: str = "", limit: int = 100, timeout_s: float
    ) -> list[Entry]:
        entries: list[Entry] = await self._ask("page", namespace, prefix, after, limit, timeout_s=timeout_s, read=_page)
        return entries

    async def namespaces(self, *, timeout_s: float) -> list[tuple[str, int]]:
        names: list[tuple[str, int]] = await self._ask("namespaces", timeout_s=timeout_s, read=_names)
        return names


class StoreSchedules:
    """See mesh.schedules.contract.Schedules."""

    def __init__(self, engine: StoreEngine) -> None:
        self._commit = engine.batcher.commit
        self._ask = engine.line.ask

    async def declare(self, schedules: Sequence[Schedule], *, timeout_s: float) -> list[Schedule]:
        declared: list[Schedule] = await self._ask("declare", schedules, timeout_s=timeout_s, read=_schedules)
        return declared

    async def advance(self, advance: Advance, *, timeout_s: float) -> bool:
        try:
            await self._commit(Unit(ids.job_id(), advance=(advance,)), timeout_s)
        except Conflict:
            return False
        return True

    async def schedules(self, *, timeout_s: float) -> list[Schedule]:
        schedules: list[Schedule] = await self._ask("schedules", timeout_s=timeout_s, read=_schedules)
        return schedules


class StoreLocks:
    """See mesh.locks.contract.Locks."""

    def __init__(self, engine: StoreEngine, asker: Asker) -> None:
        self._ask = engine.line.ask
        self._asker = asker
        self._clock = engine.clock

    async def acquire(self, name: str, owner: str, *, ttl_s: float, wait_s: float, timeout_s: float) -> Grant:
        give_up_at = self._clock.now() + wait_s
        try:
            while True:
                wait_s = max(0.0, give_up_at - self._clock.now())
                try:
                    grant: Grant = await self._ask(
                        "acquire", name, owner, ttl_s, wait_s, timeout_s=wait_s + timeout_s, read=_grant
                    )
                    return grant
                except LockTaken:
                    # The store may have counted the wait from an earlier try.
                    if self._clock.now() >= give_up_at:
                        raise
        except asyncio.CancelledError:
            # The lock may have been granted, with the answer still in transit: release it.
            call = self._asker.call(
                f"{SERVICE}.release", encode((name, owner)), 0, CallOptions(timeout_s, idempotent=True)
            )
            call.add_done_callback(_looked_at)
            raise

    async def renew(self, name: str, owner: str, *, ttl_s: float, timeout_s: float) -> Grant:
        grant: Grant = await self._ask("renew_lock", name, owner, ttl_s, timeout_s=timeout_s, read=_grant)
        return grant

    async def release(self, name: str, owner: str, *, timeout_s: float) -> bool:
        released: bool = await self._ask("release", name, owner, timeout_s=timeout_s, read=_yes)
        return released

    async def locks(self, *, timeout_s: float) -> list[Grant]:
        grants: list[Grant] = await self._ask("locks", timeout_s=timeout_s, read=_grants)
        return grants


class StoreAdmin:
    """Administration of the store."""

    def __init__(self, line: StoreRequests) -> None:
        self._ask = line.ask

    async def backup(self, name: str = "", *, timeout_s: float = LONG_S) -> BackupInfo:
        """Copy the data to a new file in the store's directory of backups, while the store keeps running.

        Args:
            name: of the file; "" for a name made from the time.
        """
        info: BackupInfo = await self._ask("backup", name, timeout_s=timeout_s, read=_backup)
        return info

    async def check(self, *, timeout_s: float = LONG_S) -> list[str]:
        """Read and check all data; return the problems."""
        faults: list[str] = await self._ask("check", timeout_s=timeout_s, read=_faults)
        return faults

    async def info(self, *, timeout_s: float) -> StoreInfo:
        """The present state of the store."""
        info: StoreInfo = await self._ask("info", timeout_s=timeout_s, read=_info)
        return info


def _tickets(outcome: Outcome) -> Sequence[Ticket]:
    return outcome.tickets


def _offsets(outcome: Outcome) -> Sequence[int]:
    return outcome.offsets


def _nothing() -> asyncio.Future[Sequence[Any]]:
    """The answer to a request without items: nothing is sent."""
    done: asyncio.Future[Sequence[Any]] = asyncio.get_running_loop().create_future()
    done.set_result([])
    return done


def _looked_at(call: asyncio.Future[Any]) -> None:
    """Retrieve the error of a call that is not awaited, so that asyncio does not log it."""
    if not call.cancelled():
        call.exception()
