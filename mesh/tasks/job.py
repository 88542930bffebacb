"""The handle of a deferred job: its status, its answer, waiting for its end.

Owns: the handle, its typed answer, and the errors for a job that ended badly.
Leaves to others: deferring (deferring), the row behind it (engines).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar, cast

from mesh.calls.answers import decode_any
from mesh.calls.context import inherited
from mesh.clock import Clock
from mesh.errors import DeadlineExceeded, JobCancelled, JobFailed, SetupError, UnknownJob
from mesh.protocol.messages import MSGPACK
from mesh.tasks.contract import JobInfo, Status, Ticket
from mesh.tasks.engine import Jobs
from mesh.tasks.options import Duration, span

T = TypeVar("T")
Decode = Callable[[Any, int], Any]

#: Longest wait of one request to the engine; `result` repeats the request.
ASK_S: Final = 3600.0


class Desk(Protocol):
    """What a handle needs: the jobs of an engine, which is chosen at the first use."""

    @property
    def jobs(self) -> Jobs: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def timeout_s(self) -> float:
        """How long a request waits for an unreachable engine, in seconds."""


class Job(Generic[T]):
    """One deferred task. The annotation `mesh.Job[Receipt]` declares the type of its result."""

    __slots__ = ("_decode", "_desk", "_fresh", "_id", "_known", "queue")

    def __init__(
        self, desk: Desk, id: str, queue: str = "", *, decode: Decode = decode_any, known: bool = True
    ) -> None:
        """Args:
        queue: "service.task"; "" when only the id is known.
        known: whether `id` is for sure the job's: with a key it may become that of an earlier job.
        """
        self._desk = desk
        self._id = id
        self.queue = queue
        self._decode = decode
        self._known = known
        self._fresh = True

    @property
    def id(self) -> str:
        """The id by which `node.job(id)` finds the job, from any process.

        Raises:
            SetupError: the job has a key and its `atomic` block has not been committed yet.
        """
        if not self._known:
            raise SetupError(f"the job of {self.queue} has a key: its id is not known before its block has ended")
        return self._id

    @property
    def fresh(self) -> bool:
        """Whether this `defer` made the job; False: a job with the same key existed already."""
        return self._fresh

    def confirmed(self, ticket: Ticket) -> None:
        """Record that the job is durable, under the ticket's id. For internal use."""
        self._id, self._fresh, self._known = ticket.id, ticket.fresh, True

    async def info(self) -> JobInfo:
        """The present state of the job.

        Raises:
            UnknownJob: it was never confirmed, or its retention is over.
        """
        found = await self._desk.jobs.find(self.id, timeout_s=self._desk.timeout_s)
        if found is None:
            raise UnknownJob(f"no job {self.id}: it never existed, or its retention is over")
        return found

    async def status(self) -> Status:
        """The present status: waiting, delayed, ready, running, done, dead or cancelled. Raises: as `info`."""
        return (await self.info()).status

    async def result(self, timeout: Duration | None = None) -> T:
        """Wait until the job is over; return its answer.

        Args:
            timeout: None waits without limit, or in a handler until its deadline.

        Raises:
            JobFailed: it is dead; `details` has reason, error, traceback and attempt.
            JobCancelled, UnknownJob.
            DeadlineExceeded: the job is not over yet; it continues.
            BadReply: its answer is not of the type that the task's annotation declares.
        """
        info = await self.wait(timeout)
        if info.status == "done":
            answer: Any = self._decode(info.result, MSGPACK) if info.result else None
            return cast(T, answer)
        raise ended_badly(info)

    async def wait(self, timeout: Duration | None = None) -> JobInfo:
        """Wait until the job is over, however it ended; return its state.

        Arguments and errors as for `result`, without JobFailed and JobCancelled.
        """
        clock = self._desk.clock
        now = clock.now()
        until = math.inf if timeout is None else now + span(self.queue or "job", "timeout", timeout, zero=True)
        until = inherited(until)
        while True:
            left_s = until - clock.now()
            try:
                return await self._desk.jobs.wait(self.id, timeout_s=max(0.0, min(left_s, ASK_S)))
            except DeadlineExceeded:
                if clock.now() >= until or left_s <= ASK_S:
                    named = f"job {self.id}" + (f" of {self.queue}" if self.queue else "")
                    waited_s = clock.now() - now
                    raise DeadlineExceeded(f"{named} has not ended after {waited_s:.3g} s; it continues") from None

    async def cancel(self) -> JobInfo:
        """Cancel the job, unless it is over; a running handler is stopped. Return its present state.

        Raises:
            UnknownJob.
        """
        return await self._desk.jobs.cancel(self.id, timeout_s=self._desk.timeout_s)

    def __repr__(self) -> str:
        return f"<Job {self._id} of {self.queue or '?'}>"


class Progress(NamedTuple):
    """The progress of a group.

    Attributes:
        total, done, failed: numbers of jobs; dead and cancelled jobs count as failed.
    """

    total: int
    done: int
    failed: int

    @property
    def over(self) -> bool:
        """Whether all jobs are over."""
        return self.done + self.failed == self.total


class Group(Generic[T]):
    """Jobs that were deferred together by `defer(mesh.group(…))`. See docs/durable.md.

    Attributes:
        jobs: the jobs of its members, in order.
        then: the job of the callback; None without a callback.
    """

    __slots__ = ("jobs", "then")

    def __init__(self, jobs: Sequence[Job[T]], then: Job[Any] | None = None) -> None:
        self.jobs = tuple(jobs)
        self.then = then

    async def results(self, timeout: Duration | None = None) -> list[T]:
        """The answers of all members, in order. Arguments and errors as for `Job.result`; the first error is raised."""
        return list(await asyncio.gather(*(job.result(timeout) for job in self.jobs)))

    async def progress(self) -> Progress:
        """Count the finished jobs, with one request per job; for groups of thousands, keep a count in state instead."""
        infos = await asyncio.gather(*(job.info() for job in self.jobs))
        done = sum(info.status == "done" for info in infos)
        return Progress(len(infos), done, sum(info.status in ("dead", "cancelled") for info in infos))


def ended_badly(info: JobInfo) -> JobFailed | JobCancelled:
    """The error of a job that is dead or cancelled."""
    if info.status == "cancelled":
        return JobCancelled(f"job {info.id} of {info.queue} was cancelled", details={"job": info.id})
    why = info.error or info.reason
    return JobFailed(
        f"job {info.id} of {info.queue} failed after {info.attempt} attempts: {why}",
        details={
            "job": info.id,
            "queue": info.queue,
            "reason": info.reason,
            "error": info.error,
            "traceback": info.traceback,
            "attempt": info.attempt,
        },
    )
