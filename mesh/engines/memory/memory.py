"""The data that all processes of one mesh share, in one object.

Owns: committing a unit as a whole, remembering committed units, subscriptions, and retention.
Leaves to others: each capability (state, locks, schedules, log, jobs, sessions), the Engine of a process (engine).

Nothing here waits: a unit is first validated in full, which may reject it, and then applied in full, which cannot fail.
"""

from __future__ import annotations

import asyncio
from typing import Final, Literal

import msgspec

from mesh.clock import Clock, LoopClock
from mesh.engines.contract import Outcome, Unit
from mesh.engines.memory.agenda import Agenda
from mesh.engines.memory.job import Job
from mesh.engines.memory.jobs import Jobs
from mesh.engines.memory.letters import Letters
from mesh.engines.memory.locks import Locks
from mesh.engines.memory.log import Log
from mesh.engines.memory.queue import MemoryQueue
from mesh.engines.memory.schedules import Schedules
from mesh.engines.memory.sessions import Sessions
from mesh.engines.memory.state import State
from mesh.engines.semantics.acknowledgements import REMEMBERED_S
from mesh.engines.steady import SteadyClock
from mesh.errors import BadRequest
from mesh.events.log import LoggedEvent, NewEvent
from mesh.events.topics import Matcher
from mesh.tasks.contract import JobInfo, QueueInfo

#: Expired data is invisible at once; the first activity after so long frees its memory.
SWEEP_S: Final = 60.0


class Memory:
    """The engine that all processes of one mesh share; each has a MemoryEngine of it. One event loop owns it.

    Attributes:
        state, locks, schedules, log, jobs, letters, sessions: the capabilities.
    """

    def __init__(
        self,
        clock: Clock | None = None,
        *,
        lease_s: float = 10.0,
        unknown_after_s: float = 60.0,
        retention_s: float = 7 * 86400.0,
    ) -> None:
        """Args: see [store], [tasks] and [events] in mesh.toml."""
        self.clock: Final = SteadyClock(clock or LoopClock())
        self.agenda = Agenda(self.clock)
        self.state = State()
        self.locks = Locks(self.clock, self.agenda)
        self.schedules = Schedules()
        self.log = Log()
        self.sessions = Sessions(self.clock, self.agenda, lease_s=lease_s, unknown_after_s=unknown_after_s)
        self.jobs = self.sessions.jobs = Jobs(
            self.clock, self.agenda, stir=self.sessions.stir, freed=self.sessions.freed, told=self._told
        )
        self.letters = Letters(self.jobs, self.clock)
        self._retention_s = retention_s
        self._units: dict[str, tuple[float, Outcome]] = {}
        self._subscriptions: dict[str, MemoryQueue] = {}
        #: session → the caller that owns it, where callers are authorized (engines.guarded).
        self.owners: dict[str, str] = {}
        self._waiting: dict[str, list[asyncio.Future[JobInfo]]] = {}
        self._sweep_at = self.clock.now() + SWEEP_S

    def commit(self, unit: Unit) -> Outcome:
        """Commit a unit: all of it, or nothing.

        Raises:
            Conflict, LeaseLost, BadRequest: nothing was done.
        """
        self.sweep()
        known = self._units.get(unit.id)
        if known is not None:
            return known[1]
        wall = self.clock.wall()
        self.jobs.look_settle(unit.settle, alone=not (unit.tasks or unit.events or unit.writes or unit.advance))
        self.schedules.look(unit.advance)
        self.jobs.look_tasks(unit.tasks)
        self.log.look(unit.events)
        sheet = self.state.look(unit.writes, wall)
        # Nothing below can fail. Settlements come first, so that jobs that wait for their ends can start at once.
        self.jobs.put_settle(unit.settle)
        self.schedules.put(unit.advance)
        outcome = Outcome(
            entries=self.state.put(sheet),
            offsets=[self._append(event, wall) for event in unit.events],
            tickets=self.jobs.put_tasks(unit.tasks),
        )
        if unit.id:
            self._units[unit.id] = (wall + REMEMBERED_S, outcome)
        return outcome

    # --- events -------------------------------------------------------------------------------------------

    def subscribe(self, name: str, patterns: tuple[str, ...], start: Literal["new", "all"]) -> None:
        """Make deliveries from now on; a new subscription with start "all" also gets the kept events."""
        queue = self.jobs.queue(name)
        queue.topics = Matcher([(pattern, None) for pattern in patterns])
        if name not in self._subscriptions:
            self._subscriptions[name] = queue
            queue.position = self.log.last
            if start == "all":
                self._deliver_from(queue, 0)

    def subscribed(self, name: str) -> bool:
        """Whether this is a durable subscription."""
        return name in self._subscriptions

    def replay(self, name: str, offset: int | None, since_at: float | None) -> int:
        """See EventLog.replay."""
        queue = self._subscription(name)
        if (offset is None) == (since_at is None):
            raise BadRequest(f"replay of {name}: give either an offset or an instant")
        return self._deliver_from(queue, offset or 0, since_at or 0.0)

    def abandon(self, name: str) -> int:
        """See EventLog.abandon."""
        queue = self._subscription(name)
        if workers := self.sessions.workers(name):
            raise BadRequest(f"{name} has {workers} subscribed worker(s): stop them first")
        del self._subscriptions[name]
        queue.topics = None
        queue.said = msgspec.structs.replace(queue.said, patterns=())
        waiting = [job.id for job in queue.jobs.values() if job.status in ("waiting", "delayed", "ready")]
        for id in waiting:
            self.jobs.cancel(id)
        return len(waiting) + self.letters.drop(name, ())

    def _subscription(self, name: str) -> MemoryQueue:
        """Raises: BadRequest: there is none of this name."""
        queue = self._subscriptions.get(name)
        if queue is None:
            known = ", ".join(sorted(self._subscriptions)) or "none"
            raise BadRequest(f"there is no durable subscription {name!r}; there are: {known}")
        return queue

    def _append(self, event: NewEvent, wall: float) -> int:
        logged, new = self.log.put(event, wall)
        if new:
            for queue in self._subscriptions.values():
                self._offer(queue, logged)
        return logged.offset

    def _offer(self, queue: MemoryQueue, logged: LoggedEvent) -> None:
        queue.position = logged.offset
        if queue.topics is not None and queue.topics.match(logged.event.topic):
            self.jobs.deliver(queue, logged)

    def _deliver_from(self, queue: MemoryQueue, offset: int, since_at: float = 0.0) -> int:
        assert queue.topics is not None
        events = list(self.log.matching(queue.topics, offset=offset, since_at=since_at))
        for logged in events:
            self.jobs.deliver(queue, logged)
        return len(events)

    # --- jobs ---------------------------------------------------------------------------------------------

    def wait(self, id: str) -> asyncio.Future[JobInfo]:
        """A future for the job when it is over. It may be cancelled.

        Raises:
            UnknownJob.
        """
        job = self.jobs.get(id)
        over: asyncio.Future[JobInfo] = asyncio.get_running_loop().create_future()
        if job.status in ("done", "dead", "cancelled"):
            over.set_result(job.info())
        else:
            self._waiting.setdefault(id, []).append(over)
        return over

    def _told(self, job: Job) -> None:
        for over in self._waiting.pop(job.id, ()):
            if not over.done():
                over.set_result(job.info())

    def queues(self) -> list[QueueInfo]:
        """See Leases.queues."""
        self.sweep()
        found = (self._info(queue) for _, queue in sorted(self.jobs.queues.items()))
        return [info for info in found if info is not None]

    def _info(self, queue: MemoryQueue) -> QueueInfo | None:
        wall = self.clock.wall()
        jobs = [job for job in queue.jobs.values() if not job.over(wall)]
        workers = self.sessions.workers(queue.name)
        if not (jobs or workers or queue.topics):
            return None
        counts = dict.fromkeys(("waiting", "delayed", "ready", "running", "dead"), 0)
        for job in jobs:
            if job.status in counts:
                counts[job.status] += 1
        oldest_at = min((job.ready_at for job in jobs if job.status == "ready"), default=wall)
        return QueueInfo(
            name=queue.name,
            **counts,
            done=queue.done,
            oldest_s=wall - oldest_at,
            workers=workers,
            rate_per_s=queue.said.rate_per_s,
            concurrency=queue.said.concurrency,
            patterns=queue.said.patterns,
            position=queue.position,
        )

    # --- forgetting ---------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Free the memory of expired data, every SWEEP_S."""
        now, wall = self.clock.now(), self.clock.wall()
        if now < self._sweep_at:
            return
        self._sweep_at = now + SWEEP_S
        self.jobs.sweep()
        self.letters.sweep()
        self.state.sweep(wall)
        self.locks.sweep()
        self.log.forget(wall - self._retention_s, {offset for _, offset in self.jobs.deliveries})
        for id in [id for id, (until, _) in self._units.items() if until <= wall]:
            del self._units[id]
        for id in [id for id, waiting in self._waiting.items() if all(each.done() for each in waiting)]:
            del self._waiting[id]

    def close(self) -> None:
        """Stop all timers and callbacks."""
        self.agenda.close()
        self.sessions.close()
