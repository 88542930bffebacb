"""One queue: what of it is ready, in which order it goes out, and how fast.

Owns: priority, age, order per key, the rate and the concurrency over all workers.
Leaves to others: which worker gets it (sessions), what becomes of it (jobs).
"""

from __future__ import annotations

import heapq
from typing import Final

from mesh.clock import Clock
from mesh.engines.memory.agenda import Appointment
from mesh.engines.memory.job import Job
from mesh.events.topics import Matcher
from mesh.tasks.contract import Queue

#: A task that was lost so often runs alone in its worker: it may be what kills.
SUSPECT: Final = 2


class Line:
    """The jobs of one order: one of them is under way (delayed, ready or running), the others wait.

    Attributes:
        active: the one that is under way. The oldest, unless an older one was requeued meanwhile.
    """

    __slots__ = ("_waiting", "active")

    def __init__(self) -> None:
        self._waiting: list[tuple[int, int, Job]] = []
        self.active: Job | None = None

    def join(self, job: Job) -> None:
        heapq.heappush(self._waiting, (job.age, id(job), job))

    def turn(self) -> Job | None:
        """Whose turn it is now, if nobody is under way: the oldest, unless that waits for what feeds it."""
        waiting = self._waiting
        while waiting and waiting[0][2].status != "waiting":
            heapq.heappop(waiting)
        if self.active is not None or not waiting or waiting[0][2].waits:
            return None
        self.active = heapq.heappop(waiting)[2]
        return self.active

    def __bool__(self) -> bool:
        return self.active is not None or bool(self._waiting)


class Bucket:
    """Leases that may still go out: `rate_per_s` more each second, at most `burst` saved up."""

    __slots__ = ("_at", "_left", "burst", "rate_per_s")

    def __init__(self) -> None:
        self.rate_per_s = 0.0
        self.burst = 1
        self._left = 1.0
        self._at = 0.0

    def limit(self, rate_per_s: float, burst: int, now: float) -> None:
        """The limits from now on. What is saved up stays, a first limit begins with all of the burst."""
        first = not self.rate_per_s
        self._fill(now)
        self.rate_per_s, self.burst = rate_per_s, max(1, burst)
        self._left = float(self.burst) if first else min(self._left, self.burst)

    def next_at(self, now: float) -> float:
        """When the next lease may go out; not after `now` for at once."""
        if not self.rate_per_s:
            return now
        self._fill(now)
        # A billionth of a lease is the rounding of floats, not a limit.
        return now if self._left >= 1 - 1e-9 else now + (1 - self._left) / self.rate_per_s

    def take(self) -> None:
        if self.rate_per_s:
            self._left -= 1

    def _fill(self, now: float) -> None:
        self._left = min(self.burst, self._left + (now - self._at) * self.rate_per_s)
        self._at = now


class QueueState:
    """A queue with everything that is in it.

    Attributes:
        jobs: all that are kept, by id, in the order of their coming.
        keys: those with a key.
        said: what a worker said of it last; a queue that no worker declared yet has no limits.
        topics: of a durable subscription: what it gets; None for a queue of tasks.
        position: the last offset of which a subscription was told.
        running, done: how many hold a lease; how many were done since the engine started.
        missing_at: since when its service is there and nobody declares it (the clock's `now`); None when it is not.
        alarm: when to look at it again though nothing happens.
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
        self._lines: dict[str, Line] = {}
        self._bucket = Bucket()

    def declare(self, said: Queue) -> None:
        """A worker says what it is: the last to say so is right."""
        self.said = said
        self._bucket.limit(said.rate_per_s, said.burst, self._clock.now())

    # --- what is in it ------------------------------------------------------------------------------------

    def add(self, job: Job) -> None:
        """A new job, or one that was over and is to run after all. It waits."""
        self.jobs[job.id] = job
        if job.task.key:
            self.keys[job.task.key] = job
        if job.task.order:
            self._lines.setdefault(job.task.order, Line()).join(job)

    def forget(self, job: Job) -> None:
        """It is no more."""
        del self.jobs[job.id]
        if self.keys.get(job.task.key) is job:
            del self.keys[job.task.key]

    def turn(self, order: str) -> Job | None:
        """Whose turn it is now of an order; it is under way from now on."""
        line = self._lines.get(order)
        found = line.turn() if line is not None else None
        if not line:
            self._lines.pop(order, None)
        return found

    def over(self, job: Job) -> None:
        """It is under way no longer."""
        line = self._lines.get(job.task.order)
        if line is not None and line.active is job:
            line.active = None

    # --- what goes out ------------------------------------------------------------------------------------

    def ready(self, job: Job) -> None:
        """It may be given out."""
        if not job.listed:
            job.listed = True
            heapq.heappush(self._ready, (-job.task.priority, job.age, id(job), job))

    def first(self) -> Job | None:
        """The next to go out; it stays the first until it is given, or set `aside`."""
        while self._ready:
            job = self._ready[0][3]
            if job.status == "ready":
                return job
            self.aside()
        return None

    def aside(self) -> Job:
        """Take the first out of what is ready; `ready` brings it back."""
        job = heapq.heappop(self._ready)[3]
        job.listed = False
        return job

    def open_at(self) -> float | None:
        """When the next lease may go out; None when only a lease that ends makes room."""
        if self.said.concurrency and self.running >= self.said.concurrency:
            return None
        return self._bucket.next_at(self._clock.now())

    def give(self, job: Job, session: str) -> None:
        """It begins an attempt. It may have been any that may run; the heap forgets it when it comes to it."""
        job.listed = False
        job.move("give")
        job.session = session
        job.attempt += 1
        job.tries += 1
        self.running += 1
        self._bucket.take()
