"""One queue: its ready jobs, their order, and their rate.

Owns: priority, age, ordering keys, the rate and the concurrency over all workers.
Leaves to others: which worker gets a job (sessions), the life cycle of a job (jobs).
"""

from __future__ import annotations

import heapq
from typing import Final

from mesh.clock import Clock
from mesh.engines.memory.agenda import Appointment
from mesh.engines.memory.job import Job
from mesh.engines.semantics.suspects import rank
from mesh.engines.semantics.token_bucket import Bucket
from mesh.events.topics import Matcher
from mesh.tasks.contract import Queue


class OrderedJobs:
    """The jobs with one ordering key: one of them is active (delayed, ready or running), the others wait.

    Attributes:
        active: the active job: the oldest, unless an older one was requeued meanwhile.
    """

    __slots__ = ("_waiting", "active")

    def __init__(self) -> None:
        self._waiting: list[tuple[int, int, Job]] = []
        self.active: Job | None = None

    def join(self, job: Job) -> None:
        heapq.heappush(self._waiting, (job.age, id(job), job))

    def turn(self) -> Job | None:
        """Activate the next job if none is active: the oldest, unless it still waits for tasks that feed it."""
        waiting = self._waiting
        while waiting and waiting[0][2].status != "waiting":
            heapq.heappop(waiting)
        if self.active is not None or not waiting or waiting[0][2].waits:
            return None
        self.active = heapq.heappop(waiting)[2]
        return self.active

    def __bool__(self) -> bool:
        return self.active is not None or bool(self._waiting)


class MemoryQueue:
    """A queue with all of its jobs.

    Attributes:
        jobs: all kept jobs, by id, in the order in which they were made.
        keys: the jobs with a key, by key.
        said: the latest declaration; a queue that no worker has declared yet has no limits.
        topics: of a durable subscription: the topics that it gets; None for a queue of tasks.
        position: the last offset that was offered to a subscription.
        running, done: how many jobs are leased; how many were done since the engine started.
        missing_at: since when its service has a worker but none declares the queue (the clock's `now`); else None.
        alarm: the callback that looks at it again even if nothing happens.
    """

    def __init__(self, name: str, clock: Clock) -> None:
        self.name: Final = name
        self.service: Final = name.rpartition(".")[0]
        self.jobs: dict[str, Job] = {}
        self.keys: dict[str, Job] = {}
        self.said = Queue(name, 0)
        self.topics: Matcher[None] | None = None
        self.position = 0
        self.running = 0
        self.done = 0
        self.missing_at: float | None = None
        self.alarm: Appointment | None = None
        self._clock = clock
        self._ready: list[tuple[int, int, int, Job]] = []
        self._lines: dict[str, OrderedJobs] = {}
        self._bucket = Bucket(0.0, 1, clock.now())

    def declare(self, said: Queue) -> None:
        """Set a worker's declaration; the latest one is in force."""
        self.said = said
        self._bucket.change(said.rate_per_s, said.burst, self._clock.now())

    # --- what is in it ------------------------------------------------------------------------------------

    def add(self, job: Job) -> None:
        """Add a waiting job: a new one, or one that is requeued."""
        self.jobs[job.id] = job
        if job.task.key:
            self.keys[job.task.key] = job
        if job.task.order:
            self._lines.setdefault(job.task.order, OrderedJobs()).join(job)

    def forget(self, job: Job) -> None:
        """Remove a job."""
        del self.jobs[job.id]
        if self.keys.get(job.task.key) is job:
            del self.keys[job.task.key]

    def turn(self, order: str) -> Job | None:
        """Activate the next job with this ordering key, if none is active; return it."""
        line = self._lines.get(order)
        found = line.turn() if line is not None else None
        if not line:
            self._lines.pop(order, None)
        return found

    def over(self, job: Job) -> None:
        """The job is no longer active."""
        line = self._lines.get(job.task.order)
        if line is not None and line.active is job:
            line.active = None

    # --- what goes out ------------------------------------------------------------------------------------

    def ready(self, job: Job) -> None:
        """The job may be leased."""
        if not job.listed:
            job.listed = True
            heapq.heappush(self._ready, (rank(job.task.priority), job.age, id(job), job))

    def first(self) -> Job | None:
        """The next job to lease; it stays the first until it is leased, or set `aside`."""
        while self._ready:
            job = self._ready[0][3]
            if job.status == "ready":
                return job
            self.aside()
        return None

    def aside(self) -> Job:
        """Remove the first of the ready jobs; `ready` adds it again."""
        job = heapq.heappop(self._ready)[3]
        job.listed = False
        return job

    def open_at(self) -> float | None:
        """When the next lease may be granted; None when a lease must end first (`concurrency`)."""
        if self.said.concurrency and self.running >= self.said.concurrency:
            return None
        now = self._clock.now()
        return now if self._bucket.left(now, 1) else self._bucket.next_at(now)

    def give(self, job: Job, session: str) -> None:
        """Start an attempt of any ready job; its entry in the heap is removed later, when it becomes the first."""
        job.listed = False
        job.move("lease")
        job.session = session
        job.attempt += 1
        job.tries += 1
        self.running += 1
        self._bucket.take(1)
