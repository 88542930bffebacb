"""The store as a service: the methods that other processes call.

Owns: these methods, and assembling the parts when the worker starts.
Leaves to others: each part (turns, attending, dispatch, watches, queueing), the data (the core), links (worker).

The store is an ordinary worker of the mesh: registered at the hubs, called by name, drained by SIGTERM. Processes use
it only through mesh.engines.sqlite.client.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Final, TypeVar

from mesh.engines.contract import Outcome, Unit
from mesh.engines.sqlite import liveness
from mesh.engines.sqlite.core import Core, Turn
from mesh.engines.sqlite.disk import Fatal
from mesh.engines.sqlite.messages import SERVICE, BackupInfo, Over, Push, StoreInfo
from mesh.engines.steady import SteadyClock
from mesh.errors import BadRequest, Draining, LockTaken, Unwritable
from mesh.events.log import LoggedEvent
from mesh.locks.contract import Grant
from mesh.node.node import Node
from mesh.policy.access import Access
from mesh.schedules.contract import Schedule
from mesh.service.decorators import rpc
from mesh.service.members import members
from mesh.service.service import Service
from mesh.state.contract import Entry
from mesh.store import measures
from mesh.store.admission import Admission, check_table
from mesh.store.aside import in_thread
from mesh.store.attending import Attending
from mesh.store.backups import Backups
from mesh.store.dispatch import Dispatch
from mesh.store.logbook import STEP, Logbook
from mesh.store.maintenance import Deaths, Delayed, Deliveries, Locks, Sweeping, Unknown
from mesh.store.queueing import LockQueues
from mesh.store.sessions import Sessions
from mesh.store.shown import shown
from mesh.store.standby import open_in_turn
from mesh.store.turns import Chore, Turns
from mesh.store.watches import Watches
from mesh.tasks.contract import JobInfo, Offer, QueueInfo, Status

T = TypeVar("T")

#: Maximum length of a page, whatever limit is requested.
LONGEST_PAGE: Final = 10_000


class Store(Service):
    """Owns the files of the embedded engine: tasks, durable events, state, schedules and locks."""

    name = SERVICE
    # Calls that wait for a lock cost almost nothing; requests that wait for the disk are bounded by [store] backlog.
    concurrency = 1_000_000
    queue = 0

    #: How long to wait for a folder that another store has locked.
    wait_s: ClassVar[float] = 0.0
    clock: SteadyClock
    #: The file is open, and all parts are made.
    _begun = False

    async def started(self) -> None:
        """Raises:
        SetupError: another store has the directory, or the file cannot be used; the message describes the remedy.
        """
        node = self.node
        assert isinstance(node, Node)
        settings = node.settings
        self.host = settings.mesh.host
        self.began_at = node.clock.now()
        check_table([member.name for member in members(Store) if member.rpc is not None])
        self.core = Core(
            settings.store.dir,
            cache_bytes=settings.store.cache_bytes,
            retention_s=settings.events.retention_s,
        )
        self.backups = Backups(self.core, settings.store.backups_dir, node.clock, self.host)
        await open_in_turn(self.core, self.wait_s, node.clock)
        clock = self.clock = SteadyClock(node.clock, self.core.time_mark(), liveness.boot_id())
        time_is_kept = self._keep_time()
        self.dispatch = Dispatch()
        self.sessions = Sessions(
            settings.store.lease_s, pid_space=liveness.pid_space(), born=liveness.born, dead=liveness.dead
        )
        self.watches = Watches()
        self.lines = LockQueues(clock)
        access = Access.of(settings.access)
        self.admission = (
            Admission(
                access,
                node.recorder,
                node.identity,
                core=self.core,
                clock=clock,
                dispatch=self.dispatch,
                sessions=self.sessions,
                watches=self.watches,
            )
            if access is not None
            else None
        )
        self.attending = Attending(self.core, clock, self.sessions, self.dispatch, self.watches, self.damaged)
        chores: Sequence[Chore] = (
            Deaths(self.sessions, self.dispatch, self.attending.gone),
            Delayed(self.core),
            Deliveries(self.core),
            Locks(self.lines),
            Unknown(self.core, self.sessions, self.dispatch, settings.tasks.unknown_after_s, self._registered_tasks),
            Sweeping(),
        )
        self.turns = Turns(self.core, clock, self.dispatch, self.attending, chores, backlog=settings.store.backlog)
        if not time_is_kept:
            # The locks in the file are in the stored time: store this clock's mark before any other change.
            self.turns.first = self._keep_time_in
        self.attending.turns = self.turns
        self.logbook = Logbook(self.core, self.turns, self.dispatch, self._reading)
        # Sessions that held leases when the last store ended have one lease time to subscribe again.
        for session in self.core.held():
            self.sessions.found(session, clock.now())
        self.turns.recall()
        self._begun = True
        self.turns.wake()
        measures.register(node.recorder, self)

    def _keep_time(self) -> bool:
        """Store this clock's mark, so that the next store on this boot continues its time; return whether it is set."""
        clock = self.clock
        if not clock.goes_on or self.core.time_mark() != clock.mark:
            try:
                with self.core.turn(clock.wall()) as turn:
                    self._keep_time_in(turn)
            except Unwritable as error:
                self.log.warning("store.time_unsaved", reason=error.message)
                return False
        return True

    def _keep_time_in(self, turn: Turn) -> None:
        turn.keep_time(self.clock.mark, goes_on=self.clock.goes_on)

    def _registered_tasks(self, service: str) -> set[str] | None:
        node = self.node
        assert isinstance(node, Node)
        instances = list(node.table.instances(service))
        return {task for instance in instances for task in instance.tasks} if instances else None

    #: The error that stops the store, and the callback that then ends the process.
    fatal: Fatal | None = None
    on_fatal: Callable[[], None] | None = None

    def damaged(self, error: Fatal) -> None:
        """The file is corrupt: stop before anything else is written."""
        if self.fatal is None:
            self.fatal = error
            self.log.critical("store.failed", reason=error.message)
            self.turns.close()
            if self.on_fatal is not None:
                self.on_fatal()

    def draining(self) -> None:
        """The worker drains: end the streams; callers that wait for a lock try again at the next store."""
        if not self._begun:
            return
        self.attending.end()
        self.watches.end()
        self.lines.end(Draining(f"{SERVICE} is draining"))

    async def stopped(self) -> None:
        if self._begun:
            self.turns.close()
            self.lines.end(Draining(f"{SERVICE} has stopped"))
        self.core.close()
        found = self.core.fatal
        if found is not None and self.core.rescued:
            self.log.warning("store.rescued", path=str(self.core.path))
            whole = f"{found.message}. Everything that was confirmed is in {self.core.path}"
            self.fatal = type(found)(whole, details=found.details)
        elif found is not None and self.fatal is None:
            # Found on closing, after the last transaction; the process is ending already.
            self.log.critical("store.files_changed", reason=found.message)
            self.fatal = found

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except Fatal as error:
            self.damaged(error)
            raise

    def _may(self, operation: str, *names: str) -> None:
        """Raises:
        Forbidden: [access] does not let the caller do this with one of these names (engines.authorization).
        """
        if self.admission is not None:
            self.admission.check(operation, *names)

    def _shown(self, operation: str) -> Callable[[str], bool]:
        """A predicate for the names that a listing shows to the caller."""
        return self.admission.shown(operation) if self.admission is not None else lambda name: True

    # --- units and sessions -------------------------------------------------------------------------------------

    @rpc
    async def apply(self, units: list[Unit]) -> list[Outcome]:
        """Commit units, each as a whole or not at all; return their outcomes in order, when they are durable."""
        refused = self.admission.refusals(units) if self.admission is not None else None
        if not refused:
            return await self.turns.apply(units)
        done = iter(await self.turns.apply([unit for place, unit in enumerate(units) if place not in refused]))
        return [refused.get(place) or next(done) for place in range(len(units))]

    @rpc
    async def work(self, offer: Offer) -> AsyncIterator[Push]:
        """A worker's subscription: leases, within its credit."""
        if self.admission is not None:
            self.admission.attach(offer)
        stream = await self.attending.attach(offer)
        try:
            async for push in stream.items():
                yield push
        finally:
            self.attending.detach(stream)

    @rpc(idempotent=True)
    async def renew(self, session: str) -> bool:
        """Renew a worker's session; return whether it is known."""
        if self.admission is not None:
            self.admission.session(session)
        return self.sessions.renew(session, self.clock.now())

    @rpc(idempotent=True)
    async def stop(self, session: str) -> bool:
        """Send a worker no more leases; return whether its session is known."""
        if self.admission is not None:
            self.admission.session(session)
        return self.attending.stop(session)

    @rpc(idempotent=True)
    async def leave(self, session: str) -> bool:
        """End a worker's session and release its leases at once; return whether the session was known."""
        if self.admission is not None:
            self.admission.session(session)
        return await self.attending.leave(session)

    # --- jobs ---------------------------------------------------------------------------------------------------

    @rpc(idempotent=True)
    async def watch(self, name: str) -> AsyncIterator[Over]:
        """Stream the jobs that are over, of those that are followed under this name."""
        watch = self.admission.open_watch(name) if self.admission is not None else self.watches.open(name)
        try:
            async for news in watch.items(lambda job: self._job(job, forgotten=True)):
                yield news
        finally:
            self.watches.close(watch)

    @rpc(idempotent=True)
    async def follow(self, name: str, jobs: list[str]) -> None:
        """Report to the watch of this name when these jobs are over or unknown."""
        watch = self.watches.find(name)
        if watch is None:
            # The watch's stream was lost; the next one has another name.
            return
        if self.admission is not None:
            self.admission.watch(watch)
        infos = {job: self._job(job, forgotten=True) for job in jobs}
        self._may("follow", *{info.queue for info in infos.values() if info is not None})
        for job, info in infos.items():
            if info is None or info.status in ("done", "dead", "cancelled"):
                watch.over(job)
            else:
                self.watches.follow(watch, job)

    @rpc(idempotent=True)
    async def unfollow(self, name: str, jobs: list[str]) -> None:
        """Stop following these jobs."""
        watch = self.watches.find(name)
        if watch is not None:
            if self.admission is not None:
                self.admission.watch(watch)
            self.watches.unfollow(watch, jobs)

    def _job(self, id: str, *, forgotten: bool = False) -> JobInfo | None:
        with self._reading():
            found = self.core.job(id, self.clock.wall(), forgotten=forgotten)
        return shown(found, self.clock.ahead()) if found is not None else None

    @rpc(idempotent=True)
    async def find(self, id: str) -> JobInfo | None:
        """The present state of a job; null when there is none."""
        info = self._job(id)
        if info is not None:
            self._may("find", info.queue)
        return info

    @rpc(idempotent=True)
    async def cancel(self, id: str) -> JobInfo:
        """Cancel a job that is not over; return its present state."""
        info = self._job(id) if self.admission is not None else None
        if info is not None:
            self._may("cancel", info.queue)
        return shown(await self.turns.do(lambda turn: turn.cancel(id)), self.clock.ahead())

    @rpc(idempotent=True)
    async def queues(self) -> list[QueueInfo]:
        """The present state of every queue."""
        shown = self._shown("queues")
        return [info for info in self.list_queues() if shown(info.name)]

    def list_queues(self) -> list[QueueInfo]:
        """Every queue with its number of workers."""
        with self._reading():
            return measures.with_workers(self.core.queues(self.clock.wall()), self.dispatch)

    @rpc(idempotent=True)
    async def jobs(self, queue: str, status: Status, after: str = "", limit: int = 100) -> list[JobInfo]:
        """A page of jobs of a queue, oldest first."""
        self._may("jobs", queue)
        with self._reading():
            found = self.core.jobs(queue, status, after=after, limit=bounded(limit), wall=self.clock.wall())
        ahead = self.clock.ahead()
        return [shown(job, ahead) for job in found]

    @rpc
    async def requeue(self, queue: str, ids: list[str]) -> int:
        """Make dead jobs ready again, these or all of the queue; return how many."""
        self._may("requeue", queue)
        return await self._steps(lambda turn: turn.requeue(queue, ids, limit=STEP), bool(ids))

    @rpc
    async def drop(self, queue: str, ids: list[str]) -> int:
        """Delete dead jobs, these or all of the queue; return how many."""
        self._may("drop", queue)
        return await self._steps(lambda turn: turn.drop(queue, ids, limit=STEP), bool(ids))

    async def _steps(self, act: Callable[[Turn], int], at_once: bool) -> int:
        """Do it in steps, each in a transaction, so that other requests run in between; return the sum."""
        total = 0
        while True:
            count: int = await self.turns.do(act)
            total += count
            if at_once or count < STEP:
                return total

    # --- events -------------------------------------------------------------------------------------------------

    @rpc
    async def replay(self, subscription: str, offset: int | None = None, since_at: float | None = None) -> int:
        """Deliver the events of the log to a subscription again, from an offset or instant on; return how many."""
        self._may("replay", subscription)
        since = None if since_at is None else since_at - self.clock.ahead()
        return await self.logbook.replay(subscription, offset, since)

    @rpc
    async def abandon(self, subscription: str) -> int:
        """Delete a subscription that no worker has any more; return how many deliveries were removed."""
        self._may("abandon", subscription)
        return await self.logbook.abandon(subscription)

    @rpc(idempotent=True)
    async def read(self, pattern: str, after: int = 0, limit: int = 100) -> list[LoggedEvent]:
        """A page of the log."""
        self._may("read", pattern)
        return await self.logbook.read(pattern, after, bounded(limit))

    @rpc(idempotent=True)
    async def last(self) -> int:
        """The offset of the newest event."""
        with self._reading():
            return self.core.last_offset

    # --- state --------------------------------------------------------------------------------------------------

    @rpc(idempotent=True)
    async def get(self, namespace: str, keys: list[str]) -> list[Entry | None]:
        """Entries in the order of the keys."""
        self._may("get", namespace)
        with self._reading():
            found = self.core.get(namespace, keys, self.clock.wall())
        ahead = self.clock.ahead()
        return [shown(entry, ahead) if entry is not None else None for entry in found]

    @rpc(idempotent=True)
    async def page(self, namespace: str, prefix: str = "", after: str = "", limit: int = 100) -> list[Entry]:
        """A page of entries in the order of their keys."""
        self._may("page", namespace)
        with self._reading():
            found = self.core.page(namespace, prefix=prefix, after=after, limit=bounded(limit), wall=self.clock.wall())
        ahead = self.clock.ahead()
        return [shown(entry, ahead) for entry in found]

    @rpc(idempotent=True)
    async def namespaces(self) -> list[tuple[str, int]]:
        """(namespace, number of keys)."""
        with self._reading():
            found = self.core.namespaces(self.clock.wall())
        shown = self._shown("namespaces")
        return [(name, count) for name, count in found if shown(name)]

    # --- schedules ----------------------------------------------------------------------------------------------

    @rpc(idempotent=True)
    async def declare(self, schedules: list[Schedule]) -> list[Schedule]:
        """Declare schedules; return them as stored."""
        self._may("declare", *(one.name for one in schedules))
        return await self.turns.do(lambda turn: turn.declare_schedules(schedules))

    @rpc(idempotent=True)
    async def schedules(self) -> list[Schedule]:
        """All schedules."""
        with self._reading():
            found = self.core.schedules()
        shown = self._shown("schedules")
        return [one for one in found if shown(one.name)]

    # --- locks --------------------------------------------------------------------------------------------------

    @rpc(idempotent=True)
    async def acquire(self, name: str, owner: str, ttl_s: float, wait_s: float) -> Grant:
        """Acquire a lock, waiting for at most `wait_s`."""
        self._may("acquire", name)
        give_up_at = self.clock.now() + wait_s

        def act(turn: Turn) -> Grant:
            holder = self.core.lock(name, turn.wall)
            if self.lines.waits(name, owner) and (holder is None or holder.owner != owner):
                until_at = holder.until_at if holder is not None else turn.wall
                details = {"owner": holder.owner if holder is not None else "", "until_at": until_at}
                raise LockTaken(f"other callers already wait for lock {name!r}", details=details)
            return turn.acquire(name, owner, ttl_s)

        try:
            return shown(await self.turns.do(act), self.clock.ahead())
        except LockTaken as taken:
            if wait_s <= 0:
                raise
            waiter = self.lines.enter(name, owner, ttl_s, taken, give_up_at)
        if self.core.lock(name, self.clock.wall()) is None:
            # Released in the transaction that refused it, before it joined the queue.
            self.lines.freed(name)
        self.turns.wake()
        try:
            return shown(await waiter.answer, self.clock.ahead())
        except asyncio.CancelledError:
            if waiter.answer.done() and not waiter.answer.cancelled() and waiter.answer.exception() is None:
                # Granted while its caller left: release it, so that the next one need not wait for its expiry.
                self.turns.do(lambda turn: turn.release_lock(name, owner)).add_done_callback(_looked_at)
            raise
        finally:
            self.lines.leave(waiter)

    @rpc(idempotent=True)
    async def renew_lock(self, name: str, owner: str, ttl_s: float) -> Grant:
        """Extend the grant of a lock."""
        self._may("renew_lock", name)
        return shown(await self.turns.do(lambda turn: turn.renew_lock(name, owner, ttl_s)), self.clock.ahead())

    @rpc(idempotent=True)
    async def release(self, name: str, owner: str) -> bool:
        """Release a lock; return whether this owner held it."""
        self._may("release", name)
        return await self.turns.do(lambda turn: turn.release_lock(name, owner))

    @rpc(idempotent=True)
    async def locks(self) -> list[Grant]:
        """The locks that are held now."""
        with self._reading():
            held = self.core.locks(self.clock.wall())
        may_read = self._shown("locks")
        ahead = self.clock.ahead()
        return [shown(grant, ahead) for grant in held if may_read(grant.name)]

    # --- the files ----------------------------------------------------------------------------------------------

    @rpc(timeout="1h")
    async def backup(self, name: str = "") -> BackupInfo:
        """Copy a snapshot of the data to a new file in the store's directory of backups."""
        self._may("backup", "backup")
        return await self.backups.make(name)

    @rpc(timeout="1h", idempotent=True)
    async def check(self) -> list[str]:
        """Read and check all data; return a description of each problem."""
        self._may("check", "check")
        return await in_thread(self.core.check)

    @rpc(idempotent=True)
    async def info(self) -> StoreInfo:
        """The present state of the store."""
        self._may("info", "info")
        return measures.info(self)


def bounded(limit: int) -> int:
    """The limit of a page, at most LONGEST_PAGE.

    Raises:
        BadRequest: the limit is less than 1.
    """
    if limit < 1:
        raise BadRequest(f"limit {limit} is not a number of rows; use 1 or more")
    return min(limit, LONGEST_PAGE)


def _looked_at(done: asyncio.Future[Any]) -> None:
    if not done.cancelled():
        done.exception()
