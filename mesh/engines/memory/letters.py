"""Listing jobs, and managing dead letters.

Owns: pages of jobs; requeueing dead jobs, with the jobs that died of them; dropping them.
Leaves to others: the life cycle of a job (jobs).
"""

from __future__ import annotations

from collections.abc import Iterable

from mesh.clock import Clock
from mesh.engines.memory.job import Job
from mesh.engines.memory.jobs import Jobs
from mesh.engines.semantics.acknowledgements import REMEMBERED_S
from mesh.tasks.contract import Status


class Letters:
    """The dead letters, and the pages of jobs."""

    def __init__(self, jobs: Jobs, clock: Clock) -> None:
        self._jobs = jobs
        self._clock = clock
        self._dropped: dict[str, tuple[float, int]] = {}

    # --- looking ------------------------------------------------------------------------------------------

    def page(self, queue: str, status: Status, after: str, limit: int) -> list[Job]:
        """See Jobs.page."""
        found = self._jobs.queues.get(queue)
        if found is None:
            return []
        wall = self._clock.wall()
        start = (
            self._place(self._jobs.by_id[after], status) if after in self._jobs.by_id else (-1.0, self._age_of(after))
        )
        those = [job for job in found.jobs.values() if job.status == status and not job.over(wall)]
        those.sort(key=lambda job: self._place(job, status))
        return [job for job in those if self._place(job, status) > start][: max(0, limit)]

    def _place(self, job: Job, status: Status) -> tuple[float, int]:
        """The sort key of a job in the pages of a status, even when it no longer has that status."""
        if status == "delayed":
            return job.due_at, job.age
        return (job.ends_at, job.age) if status in ("done", "cancelled") else (-1.0, job.age)

    def _age_of(self, id: str) -> int:
        """The age of a deleted job; when it was deleted long ago, derived from its id, which begins with the time."""
        dropped = self._dropped.get(id)
        if dropped is not None:
            return dropped[1]
        return max((job.age for job in self._jobs.by_id.values() if job.id <= id), default=0) if id else 0

    # --- the dead -----------------------------------------------------------------------------------------

    def requeue(self, queue: str, ids: Iterable[str]) -> int:
        """Make dead jobs ready again, and those that died of them; return how many were requeued themselves."""
        count = 0
        for job in self._dead(queue, ids):
            if job.status == "dead" and not job.failed:
                self._revive(job)
                job.due_at = 0.0
                self._jobs.begin(job)
                self._mend(job)
                count += 1
        return count

    def drop(self, queue: str, ids: Iterable[str]) -> int:
        """Delete dead jobs; return how many."""
        dead = self._dead(queue, ids)
        for job in dead:
            # For callers that list and drop page by page.
            self._dropped[job.id] = (self._clock.wall() + REMEMBERED_S, job.age)
            self._jobs.forget(job)
        return len(dead)

    def _dead(self, queue: str, ids: Iterable[str]) -> list[Job]:
        found = self._jobs.queues.get(queue)
        if found is None:
            return []
        named = dict.fromkeys(ids)
        jobs = [found.jobs[id] for id in named if id in found.jobs] if named else list(found.jobs.values())
        return [job for job in jobs if job.status == "dead"]

    def _revive(self, job: Job) -> None:
        job.tries = job.lost = 0
        job.reason = ""
        job.error = job.traceback = ""
        job.finished_at = 0.0
        job.move("requeue")
        self._jobs.queues[job.task.queue].add(job)

    def _mend(self, job: Job) -> None:
        """After a requeue: revive the task that waits for this job, unless another of its tasks has failed too."""
        waiting = self._jobs.by_id.get(job.task.feeds) if job.task.feeds else None
        if waiting is None or not waiting.failed:
            return
        waiting.failed -= 1
        if not waiting.failed and waiting.status == "dead":
            self._revive(waiting)
            self._mend(waiting)

    def sweep(self) -> None:
        """Delete the places of jobs that were dropped long ago."""
        wall = self._clock.wall()
        for id in [id for id, (until, _) in self._dropped.items() if until <= wall]:
            del self._dropped[id]
