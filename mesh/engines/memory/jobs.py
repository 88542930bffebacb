"""All jobs: from the unit that makes them until they are deleted.

Owns: the effects of a defer, a settlement, a cancel and a worker's death on a job, and on jobs that wait for it.
Leaves to others: the order within a queue (queue), leasing (sessions), dead letters (letters), committing (memory).

Changes are validated first (`look_…`, which may raise) and then applied (`put_…`, which cannot fail).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from typing import Final

from mesh import ids
from mesh.engines.memory.agenda import HAIR_S, Agenda
from mesh.engines.memory.job import NIL, Job
from mesh.engines.memory.queue import MemoryQueue
from mesh.engines.semantics import acknowledgements
from mesh.engines.semantics.acknowledgements import REMEMBERED_S, given_up, stale
from mesh.engines.semantics.chains import not_made
from mesh.engines.semantics.lifecycle import Event
from mesh.engines.semantics.validation import check_settlement, check_tasks
from mesh.engines.steady import SteadyClock
from mesh.errors import UnknownJob
from mesh.events.log import LoggedEvent
from mesh.tasks.contract import OVER, NewTask, Reason, Settlement, Status, Ticket, Verdict

#: How a job ends -> the event.
_ENDS: Final[dict[Status, Event]] = {"done": "done", "dead": "bury", "cancelled": "cancel"}


class Jobs:
    """Every job of the engine, and its queues.

    Attributes:
        queues: by name; a queue exists from its first job or worker on.
        deliveries: outstanding and dead ones: (subscription, offset) -> job.
        by_id: all jobs, possibly some with an expired retention.
    """

    def __init__(
        self,
        clock: SteadyClock,
        agenda: Agenda,
        *,
        stir: Callable[[MemoryQueue], object],
        freed: Callable[[str, Job], object],
        told: Callable[[Job], object],
    ) -> None:
        """Args:
        stir: called when a job of the queue may be leased now.
        freed: called when a session no longer holds a job.
        told: called when a job is over.
        """
        self.queues: dict[str, MemoryQueue] = {}
        self.deliveries: dict[tuple[str, int], Job] = {}
        self._clock = clock
        self._agenda = agenda
        self._stir = stir
        self._freed = freed
        self._told = told
        self.by_id: dict[str, Job] = {}
        self._ages = itertools.count(1)
        self._ending: list[tuple[float, str]] = []
        self._gone: dict[tuple[str, int], tuple[float, Verdict]] = {}

    # --- finding ------------------------------------------------------------------------------------------

    def find(self, id: str) -> Job | None:
        """The job, unless it is unknown or its retention is over."""
        job = self.by_id.get(id)
        return job if job is not None and not job.over(self._clock.wall()) else None

    def get(self, id: str) -> Job:
        """Raises:
        UnknownJob.
        """
        job = self.find(id)
        if job is None:
            raise UnknownJob(f"no job {id} is known: it never existed, or its retention is over")
        return job

    def queue(self, name: str) -> MemoryQueue:
        """The queue, made at first use."""
        found = self.queues.get(name)
        if found is None:
            found = self.queues[name] = MemoryQueue(name, self._clock)
        return found

    # --- making -------------------------------------------------------------------------------------------

    def look_tasks(self, tasks: Sequence[NewTask]) -> None:
        """Raises:
        BadRequest: a task is invalid, or `feeds` and `waits` are inconsistent.
        """
        check_tasks(tasks, self.queues)

    def put_tasks(self, tasks: Sequence[NewTask]) -> list[Ticket]:
        """Make the new jobs; return the tickets of all tasks."""
        wall = self._clock.wall()
        known: dict[str, Ticket] = {}
        new_keys: dict[tuple[str, str], str] = {}
        for task in tasks:
            first = self._first(task, new_keys)
            if first:
                known[task.id] = Ticket(first, False)
        dropped = not_made(tasks, known)
        tickets = []
        for task in tasks:
            ticket = known.get(task.id) or Ticket(task.id, task.id not in dropped)
            tickets.append(ticket)
            if ticket.fresh:
                job = Job(task, next(self._ages), wall)
                job.due_at = self._due_at(task.due_at, task.delay_s)
                self._make(job)
        return tickets

    def _first(self, task: NewTask, new_keys: dict[tuple[str, str], str]) -> str:
        """The id of an existing job with the same key or the same id; "" for none."""
        if self.find(task.id) is not None:
            return task.id
        if not task.key:
            return ""
        queue = self.queues.get(task.queue)
        keyed = queue.keys.get(task.key) if queue is not None else None
        if keyed is not None and keyed.over(self._clock.wall()):
            self.forget(keyed)
            keyed = None
        if keyed is not None:
            return keyed.id
        first = new_keys.setdefault((task.queue, task.key), task.id)
        return first if first != task.id else ""

    def deliver(self, queue: MemoryQueue, logged: LoggedEvent) -> bool:
        """Make the delivery of an event, unless there is one; return whether it was made."""
        place = (queue.name, logged.offset)
        if place in self.deliveries:
            return False
        event = logged.event
        task = NewTask(
            id=ids.job_id(),
            queue=queue.name,
            body=event.body,
            order=event.key,
            keep_s=0.0,
            trace=event.trace,
            meta=event.meta,
        )
        job = self.deliveries[place] = Job(task, logged.offset, self._clock.wall(), logged)
        self._make(job)
        return True

    def _make(self, job: Job) -> None:
        stale = self.by_id.get(job.id)
        if stale is not None:
            self.forget(stale)
        self.by_id[job.id] = job
        self.queue(job.task.queue).add(job)
        self.begin(job)

    # --- running ------------------------------------------------------------------------------------------

    def begin(self, job: Job) -> None:
        """Start the job, or the next one with its ordering key, unless it waits for other tasks."""
        order = job.task.order
        begins = self.queues[job.task.queue].turn(order) if order else job
        if begins is not None and not begins.waits:
            begins.move("begin")
            self._go(begins)

    def _go(self, job: Job) -> None:
        """Make a delayed job ready, at its due time or at once."""
        wall = self._clock.wall()
        if job.due_at > wall + HAIR_S:
            job.alarm = self._agenda.at_wall(job.due_at, self._go, job)
            return
        queue = self.queues[job.task.queue]
        job.move("due")
        job.ready_at = wall
        queue.ready(job)
        self._stir(queue)

    def look_settle(self, settlements: Sequence[Settlement], *, alone: bool = True) -> None:
        """Args:
        alone: nothing else is committed with them. Otherwise a repeated settlement is rejected too, because the other
            changes would be made twice.

        Raises:
            LeaseLost: one of them is not of the current attempt.
            BadRequest: one is invalid.
        """
        said: dict[tuple[str, int], Verdict] = {}
        for each in settlements:
            check_settlement(each)
            lease = (each.id, each.attempt)
            job = self.find(each.id)
            verdict = said.get(lease) or self._settled(job, lease)
            if verdict is not None:
                if verdict != each.verdict or not alone:
                    raise stale(each, f"it was already acknowledged as {verdict}")
            elif job is None or job.status != "running" or job.attempt != each.attempt:
                stands = f"it is {job.status} (attempt {job.attempt})" if job is not None else "it is no longer kept"
                raise stale(each, stands)
            said[lease] = each.verdict

    def put_settle(self, settlements: Sequence[Settlement]) -> None:
        """Apply settlements that `look_settle` has accepted."""
        for each in settlements:
            job = self.by_id.get(each.id)
            if job is None or job.status != "running" or job.attempt != each.attempt:
                continue
            job.settled = (each.attempt, each.verdict)
            if each.verdict == "done" or each.reason or each.error:
                # A release has no error of its own: keep that of the previous attempt.
                job.reason, job.error, job.traceback = each.reason, each.error, each.traceback
            if each.verdict == "done":
                job.result = bytes(each.result)
                self._end(job, "done")
            elif each.verdict == "dead":
                self.bury(job, each.reason or "failed", each.error, each.traceback)
            elif each.verdict == "cancelled" or job.stopping:
                self._end(job, "cancelled")
            else:
                self._again(job, self._due_at(each.due_at, each.delay_s), counts=each.verdict == "retry")

    def release(self, job: Job) -> None:
        """Take the job back from its session: the attempt does not count."""
        if job.stopping:
            self._end(job, "cancelled")
        else:
            self._again(job, 0.0, counts=False)

    def lose(self, job: Job) -> None:
        """Handle the death of its session while it ran."""
        queue = self.queues[job.task.queue]
        job.lost += 1
        if job.stopping:
            self._end(job, "cancelled")
        elif error := given_up(job.lost, queue.said.most_lost):
            self.bury(job, "lost", error)
        else:
            self._again(job, 0.0, counts=False)

    def bury(self, job: Job, reason: Reason, error: str, traceback: str = "") -> None:
        """Send the job to the dead letters."""
        job.reason, job.error, job.traceback = reason, error, traceback
        self._end(job, "dead")

    def _due_at(self, due_at: float, delay_s: float) -> float:
        """The due time in the engine's own time, from an instant of the wall clock or a delay; 0 for at once."""
        return acknowledgements.due_at(due_at, delay_s, self._clock.wall(), self._clock.ahead())

    def _again(self, job: Job, due_at: float, *, counts: bool) -> None:
        self._leave(job)
        job.tries -= not counts
        job.due_at = due_at
        job.move("again")
        self._go(job)

    def _leave(self, job: Job) -> None:
        """Remove the job's lease, if it is running."""
        if job.status == "running":
            self.queues[job.task.queue].running -= 1
            session, job.session = job.session, ""
            self._freed(session, job)

    # --- ending -------------------------------------------------------------------------------------------

    def _end(self, job: Job, how: Status) -> None:
        wall = self._clock.wall()
        queue = self.queues[job.task.queue]
        self._leave(job)
        job.move(_ENDS[how])
        job.stopping = False
        job.finished_at = wall
        queue.done += how == "done"
        if how != "dead":
            job.ends_at = wall + job.task.keep_s
            if job.event is not None:
                del self.deliveries[queue.name, job.event.offset]
        self._told(job)
        self._pass_on(job)
        if job.task.order:
            queue.over(job)
            self.begin(job)
        self._stir(queue)
        if how != "dead":
            self._ends_later(job)

    def _ends_later(self, job: Job) -> None:
        if job.task.keep_s > 0:
            heapq.heappush(self._ending, (job.ends_at, job.id))
            return
        if job.settled is not None:
            self._gone[job.id, job.settled[0]] = (self._clock.wall() + REMEMBERED_S, job.settled[1])
        self.forget(job)

    def _pass_on(self, job: Job) -> None:
        """Pass the answer or the failure on to the task that waits for this job."""
        waiting = self.by_id.get(job.task.feeds) if job.task.feeds else None
        if waiting is None or (waiting.status in OVER and waiting.reason != "upstream"):
            return
        if job.status == "done":
            waiting.parts[job.task.place] = job.result or NIL
            waiting.waits -= 1
            if not waiting.waits and waiting.status == "waiting":
                self.begin(waiting)
            return
        waiting.failed += 1
        if waiting.status == "waiting":
            self.bury(waiting, "upstream", f"job {job.id} of {job.task.queue}, on which it depends, is {job.status}")

    def forget(self, job: Job) -> None:
        del self.by_id[job.id]
        queue = self.queues[job.task.queue]
        queue.forget(job)
        if job.event is not None:
            self.deliveries.pop((queue.name, job.event.offset), None)

    def _settled(self, job: Job | None, lease: tuple[str, int]) -> Verdict | None:
        """How this attempt was settled, if it was the last settled one of the job."""
        if job is not None and job.settled is not None and job.settled[0] == lease[1]:
            return job.settled[1]
        gone = self._gone.get(lease)
        return gone[1] if gone is not None else None

    def sweep(self) -> None:
        """Delete finished jobs with an expired retention."""
        wall = self._clock.wall()
        while self._ending and self._ending[0][0] <= wall:
            _, id = heapq.heappop(self._ending)
            job = self.by_id.get(id)
            if job is not None and job.over(wall):
                self.forget(job)
        for lease in [lease for lease, (until, _) in self._gone.items() if until <= wall]:
            del self._gone[lease]

    def cancel(self, id: str) -> tuple[Job, bool]:
        """Cancel a job; return it and whether its worker must be asked to stop.

        Raises:
            UnknownJob.
        """
        job = self.get(id)
        if job.status == "running":
            job.stopping = True
            return job, True
        if job.status not in OVER:
            self._end(job, "cancelled")
        return job, False
