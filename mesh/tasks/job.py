"""A job as whoever deferred it holds it: its status, its answer, its end.

Owns: the handle, its typed answer, and the errors that a job's end becomes.
Leaves to others: deferring (deferring), the row behind it (engines).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar, cast

from mesh.calls.answers import decode_any
from mesh.calls.context import CURRENT
from mesh.clock import Clock
from mesh.errors import DeadlineExceeded, JobCancelled, JobFailed, SetupError, UnknownJob
from mesh.protocol.messages import MSGPACK
from mesh.tasks.contract import JobInfo, Status, Tasks, Ticket
from mesh.tasks.options import Duration, span

T = TypeVar("T")
Decode = Callable[[Any, int], Any]

#: One question to the engine waits at most so long; `result` asks again.
ASK_S: Final = 3600.0


class Desk(Protocol):
    """Where a handle asks: the tasks of an engine, chosen when they are first needed."""

    @property
    def tasks(self) -> Tasks: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def timeout_s(self) -> float:
        """How long a question waits for an engine that is away."""


class Job(Generic[T]):
    """One deferred task. `mesh.Job[Receipt]` in an annotation says what its result is."""

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
        """What `node.job(id)` finds it by, from any process.

        Raises:
            SetupError: it has a key and its block has not been committed yet.
        """
        if not self._known:
            raise SetupError(f"the job of {self.queue} has a key: its id is known when its block is over")
        return self._id

    @property
    def fresh(self) -> bool:
        """Whether it was made by this `defer`; False: another with the same key was there before."""
        return self._fresh

    def confirmed(self, ticket: Ticket) -> None:
        """It is durable, under this id. For the room that deferred it."""
        self._id, self._fresh, self._known = ticket.id, ticket.fresh, True

    async def info(self) -> JobInfo:
        """The job as it stands.

        Raises:
            UnknownJob: it was never confirmed, or is forgotten.
        """
        found = await self._desk.tasks.job(self.id, timeout_s=self._desk.timeout_s)
        if found is None:
            raise UnknownJob(f"no job {self.id} is known: it never was, or it was forgotten after its time")
        return found

    async def status(self) -> Status:
        """waiting, delayed, ready, running, done, dead or cancelled. Raises: as `info`."""
        return (await self.info()).status

    async def result(self, timeout: Duration | None = None) -> T:
        """Wait until it is over; its answer.

        Args:
            timeout: None waits as long as it takes, in a handler until its deadline.

        Raises:
            JobFailed: it is dead; `details` has reason, error, traceback and attempt.
            JobCancelled, UnknownJob.
            DeadlineExceeded: it is not over yet; it goes on.
            BadReply: its answer is not of the type that the task's annotation promises.
        """
        info = await self.wait(timeout)
        if info.status == "done":
            answer: Any = self._decode(info.result, MSGPACK) if info.result else None
            return cast(T, answer)
        raise ended_badly(info)

    async def wait(self, timeout: Duration | None = None) -> JobInfo:
        """Wait until it is over, however it ended; the job then.

        Arguments and errors as for `result`, without JobFailed and JobCancelled.
        """
        clock = self._desk.clock
        now = clock.now()
        until = math.inf if timeout is None else now + span(self.queue or "job", "timeout", timeout, zero=True)
        call = CURRENT.get()
        if call is not None:
            until = min(until, call.deadline_at)
        while True:
            left_s = until - clock.now()
            try:
                return await self._desk.tasks.wait(self.id, timeout_s=max(0.0, min(left_s, ASK_S)))
            except DeadlineExceeded:
                if clock.now() >= until or left_s <= ASK_S:
                    named = f"job {self.id}" + (f" of {self.queue}" if self.queue else "")
                    waited_s = clock.now() - now
                    raise DeadlineExceeded(f"{named} is not over after {waited_s:.3g} s; it goes on") from None

    async def cancel(self) -> JobInfo:
        """Cancel it, unless it is over; a running handler is stopped. The job as it stands.

        Raises:
            UnknownJob.
        """
        return await self._desk.tasks.cancel(self.id, timeout_s=self._desk.timeout_s)

    def __repr__(self) -> str:
        return f"<Job {self._id} of {self.queue or '?'}>"


class Progress(NamedTuple):
    """How far a group is.

    Attributes:
        total, done, failed: jobs; failed are those that are dead or cancelled.
    """

    total: int
    done: int
    failed: int

    @property
    def over(self) -> bool:
        """Whether none is left to run."""
        return self.done + self.failed == self.total


class Group(Generic[T]):
    """Jobs that were deferred together.

    Attributes:
        jobs: of its members, in order.
        then: the job of the callback; None without one.
    """

    __slots__ = ("jobs", "then")

    def __init__(self, jobs: Sequence[Job[T]], then: Job[Any] | None = None) -> None:
        self.jobs = tuple(jobs)
        self.then = then

    async def results(self, timeout: Duration | None = None) -> list[T]:
        """The answers of all members, in order. Arguments and errors as for `Job.result`; the first error ends it."""
        return list(await asyncio.gather(*(job.result(timeout) for job in self.jobs)))

    async def progress(self) -> Progress:
        """How many are done; one question for each, so keep a count in state for groups of thousands."""
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
