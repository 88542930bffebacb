"""Processes that wait for jobs to be over.

Owns: following jobs for many processes, and what to report to each.
Leaves to others: which jobs are over (reported by each transaction), reading them, the streams themselves (service).

A wait is cheap: an entry in two maps for each job and waiting process, no task, no timer. The process itself enforces
its timeout.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Final

from mesh.engines.sqlite.messages import Over
from mesh.tasks.contract import JobInfo

#: Maximum number of jobs, and bytes of their data, in one item.
MOST_JOBS: Final = 256
MOST_BYTES: Final = 1024 * 1024


class Watch:
    """One process that waits for jobs.

    Attributes:
        owner: the caller that opened it, by its name in [access]; "" without authorization.
    """

    __slots__ = ("_ended", "_over", "_waiter", "follows", "name", "owner")

    def __init__(self, name: str, owner: str = "") -> None:
        self.name = name
        self.owner = owner
        self.follows: set[str] = set()
        self._over: dict[str, None] = {}
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None

    def over(self, job: str) -> None:
        """Report a job that is over, or unknown."""
        self._over[job] = None
        self._wake()

    def end(self) -> None:
        self._ended = True
        self._wake()

    async def items(self, read: Callable[[str], JobInfo | None]) -> AsyncIterator[Over]:
        """The jobs that are over, as they end; an empty item first. `read` returns the present state of a job."""
        yield Over()
        while True:
            if self._over:
                yield self._take(read)
            elif self._ended:
                return
            else:
                self._waiter = asyncio.get_running_loop().create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None

    def _take(self, read: Callable[[str], JobInfo | None]) -> Over:
        jobs: list[JobInfo] = []
        gone: list[str] = []
        size = 0
        for job in tuple(self._over):
            if len(jobs) + len(gone) >= MOST_JOBS or size > MOST_BYTES:
                break
            del self._over[job]
            info = read(job)
            if info is None:
                gone.append(job)
            else:
                jobs.append(info)
                size += len(info.body) + len(info.result) + len(info.traceback)
        return Over(jobs, gone)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Watches:
    """All watches of one store."""

    def __init__(self) -> None:
        self._watches: dict[str, Watch] = {}
        self._by_job: dict[str, list[Watch]] = {}

    def __len__(self) -> int:
        return len(self._watches)

    @property
    def jobs(self) -> int:
        """How many jobs are followed."""
        return len(self._by_job)

    def open(self, name: str, owner: str = "") -> Watch:
        """Open a watch for a process."""
        watch = self._watches[name] = Watch(name, owner)
        return watch

    def close(self, watch: Watch) -> None:
        """Close a watch."""
        if self._watches.get(watch.name) is watch:
            del self._watches[watch.name]
        self._leave(watch, tuple(watch.follows))

    def find(self, name: str) -> Watch | None:
        return self._watches.get(name)

    def follow(self, watch: Watch, job: str) -> None:
        """Report to the watch when the job is over."""
        if job not in watch.follows:
            watch.follows.add(job)
            self._by_job.setdefault(job, []).append(watch)

    def unfollow(self, watch: Watch, jobs: Iterable[str]) -> None:
        """Stop following these jobs."""
        self._leave(watch, [job for job in jobs if job in watch.follows])

    def over(self, jobs: Iterable[str]) -> None:
        """Report jobs that are over to the watches that follow them."""
        by_job = self._by_job
        if not by_job:
            return
        for job in jobs:
            for watch in by_job.pop(job, ()):
                watch.follows.discard(job)
                watch.over(job)

    def end(self) -> None:
        """End every stream after its waiting items."""
        for watch in self._watches.values():
            watch.end()

    def _leave(self, watch: Watch, jobs: Iterable[str]) -> None:
        for job in jobs:
            watch.follows.discard(job)
            watching = self._by_job.get(job)
            if watching is not None:
                watching.remove(watch)
                if not watching:
                    del self._by_job[job]
