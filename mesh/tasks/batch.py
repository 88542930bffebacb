"""Many tasks in one commit: `async with self.batch() as b:`.

Owns: collecting tasks, their handles, and that a block which raises defers nothing.
Leaves to others: making the rows (deferring, canvas), the commit (`commit`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, TypeVar, overload

from mesh.clock import Clock
from mesh.errors import BadArguments, SetupError
from mesh.tasks.canvas import Part, Rows, chain, compile, group
from mesh.tasks.contract import NewTask, Ticket
from mesh.tasks.deferring import Target, arguments, new_task, options
from mesh.tasks.job import Desk, Group, Job
from mesh.tasks.options import Duration

T = TypeVar("T")

#: Called with the result of one deferred task.
Told = Callable[[Ticket], None]
#: (tasks, a callback for each): returns when the tasks are durable, or added to an atomic block.
Commit = Callable[[Sequence[NewTask], Sequence[Told]], Awaitable[None]]


class Batch:
    """Tasks that are deferred together when the block ends. One event loop owns it."""

    def __init__(
        self, desk: Desk, clock: Clock, resolve: Callable[[Any], Target], commit: Commit, max_bytes: int
    ) -> None:
        self._desk = desk
        self._clock = clock
        self._resolve = resolve
        self._commit = commit
        self._max_bytes = max_bytes
        self._tasks: list[NewTask] = []
        self._told: list[Told] = []
        self._open = True

    def __len__(self) -> int:
        return len(self._tasks)

    @overload
    def defer(self, task: str, /, *args: Any, **how: Any) -> Job[Any]: ...
    @overload
    def defer(self, task: Callable[..., Awaitable[T]], /, *args: Any, **how: Any) -> Job[T]: ...
    @overload
    def defer(self, task: Callable[..., T], /, *args: Any, **how: Any) -> Job[T]: ...
    def defer(
        self,
        task: Any,
        /,
        *args: Any,
        key: str = "",
        delay: Duration | None = None,
        at: datetime | float | None = None,
        priority: int | None = None,
        order: str = "",
        keep: Duration | None = None,
        timeout: Duration | None = None,
        meta: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> Job[Any]:
        """Add a task; arguments as for `Node.defer`. Its job may be used when the block is over."""
        target = self._resolve(task)
        how = options(key, delay, at, priority, order, keep, timeout, meta)
        body = arguments(target, args, kwargs, self._max_bytes)
        return self.add(new_task(target, body, how, self._clock.wall()), target)

    def chain(self, *parts: Part | Callable[..., Any] | str) -> Job[Any]:
        """As `Node.chain`; return the job of the last step."""
        return chain_jobs(self._compiled(chain(*parts)), self.add)

    def group(
        self, *parts: Part | Callable[..., Any] | str, then: Part | Callable[..., Any] | str | None = None
    ) -> Group[Any]:
        """As `Node.group`."""
        return group_jobs(self._compiled(group(*parts, then=then)), self.add)

    def _compiled(self, part: Part) -> Rows:
        return compile(part, self._resolve, self._clock.wall(), self._max_bytes)

    def add(self, task: NewTask, target: Target) -> Job[Any]:
        if not self._open:
            raise SetupError("this batch has ended: defer inside its block")
        job = handle(self._desk, task, target)
        self._tasks.append(task)
        self._told.append(job.confirmed)
        return job

    async def __aenter__(self) -> Batch:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        if value is None and self._tasks:
            await self._commit(self._tasks, self._told)


def handle(desk: Desk, task: NewTask, target: Target) -> Job[Any]:
    """The job of a task that is not confirmed yet."""
    return Job(desk, task.id, target.queue, decode=target.decode, known=not task.key)


Add = Callable[[NewTask, Target], Job[Any]]


def chain_jobs(rows: Rows, add: Add) -> Job[Any]:
    """Add the rows of a chain; return the job of its last step.

    Raises:
        BadArguments: the chain ends in a group, which has several jobs.
    """
    if rows.fan:
        raise BadArguments("this chain ends in a group: defer it with group(…), which returns the jobs of its members")
    jobs = [add(row.task, row.target) for row in rows.rows]
    return jobs[-1]


def group_jobs(rows: Rows, add: Add) -> Group[Any]:
    """Add the rows of a group; return its members' jobs, and the callback's job when there is one."""
    jobs = [add(row.task, row.target) for row in rows.rows]
    if rows.fan:
        return Group([jobs[tail] for tail in rows.tails])
    # The members feed the callback, the last row that gathers; further steps may follow it.
    first = max(at for at, row in enumerate(rows.rows) if row.task.gathers)
    members = [jobs[at] for at, row in enumerate(rows.rows) if row.task.feeds == rows.rows[first].task.id]
    return Group(members, jobs[-1])
