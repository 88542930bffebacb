"""The durable verbs, as they stand on a node, on a service's `self`, and on a mesh under test.

Owns: their signatures and what users are told of them.
Leaves to others: doing them (durable; in a unit test, testing.unit).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, TypeVarTuple, overload

from mesh.errors import BadArguments
from mesh.locks.lock import Lock
from mesh.service.atomic import Atomic
from mesh.state.namespace import Namespace
from mesh.tasks import canvas
from mesh.tasks.batch import Batch
from mesh.tasks.canvas import Part, Step
from mesh.tasks.deferring import NO_OPTIONS, Options, options
from mesh.tasks.job import Group, Job
from mesh.tasks.options import Duration

if TYPE_CHECKING:
    from mesh.service.service import Service

T = TypeVar("T")
P = ParamSpec("P")
Ts = TypeVarTuple("Ts")
# Of `Orders.charge`, whose first parameter is the service.
S = TypeVar("S", bound="Service")

#: What may stand where a step is wanted: a step, a chain or group of them, or a task that takes no arguments.
Parts = Part | Callable[..., Any] | str


class Room(Protocol):
    """What does it: mesh.service.durable.Durable."""

    def defer(self, task: Any, args: tuple[Any, ...], kwargs: dict[str, Any], how: Options) -> Awaitable[Job[Any]]: ...
    def batch(self) -> Batch: ...
    async def chain(self, part: Part) -> Job[Any]: ...
    async def group(self, part: Part) -> Group[Any]: ...
    def job(self, id: str, type: Any = Any) -> Job[Any]: ...
    def state(self, namespace: str, type: Any = Any) -> Namespace[Any]: ...
    def lock(self, name: str, ttl: Any, wait: Any) -> Lock: ...
    def atomic(self) -> Atomic: ...


class DurableVerbs:
    """Tasks, state, locks, and all or nothing. What a verb has confirmed survives the death of any process."""

    @property
    def _durable(self) -> Room:
        raise NotImplementedError

    # --- tasks --------------------------------------------------------------------------------------------

    @overload
    def defer(
        self,
        task: str,
        /,
        *args: Any,
        key: str = ...,
        delay: Duration | None = ...,
        at: datetime | float | None = ...,
        priority: int | None = ...,
        order: str = ...,
        keep: Duration | None = ...,
        timeout: Duration | None = ...,
        meta: dict[str, str] | None = ...,
        **kwargs: Any,
    ) -> Awaitable[Job[Any]]: ...
    @overload
    def defer(
        self,
        task: Step,
        /,
        *,
        key: str = ...,
        delay: Duration | None = ...,
        at: datetime | float | None = ...,
        priority: int | None = ...,
        order: str = ...,
        keep: Duration | None = ...,
        timeout: Duration | None = ...,
        meta: dict[str, str] | None = ...,
    ) -> Awaitable[Job[Any]]: ...
    @overload
    def defer(
        self,
        task: Callable[P, Awaitable[T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Awaitable[Job[T]]: ...
    @overload
    def defer(
        self,
        task: Callable[Concatenate[S, P], Awaitable[T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Awaitable[Job[T]]: ...
    @overload
    def defer(
        self,
        task: Callable[P, T],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Awaitable[Job[T]]: ...
    @overload
    def defer(
        self,
        task: Callable[Concatenate[S, P], T],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Awaitable[Job[T]]: ...
    @overload
    def defer(
        self,
        task: Callable[[*Ts], Awaitable[T]],
        /,
        *args: *Ts,
        key: str = ...,
        delay: Duration | None = ...,
        at: datetime | float | None = ...,
        priority: int | None = ...,
        order: str = ...,
        keep: Duration | None = ...,
        timeout: Duration | None = ...,
        meta: dict[str, str] | None = ...,
    ) -> Awaitable[Job[T]]: ...
    @overload
    def defer(
        self,
        task: Callable[[S, *Ts], Awaitable[T]],
        /,
        *args: *Ts,
        key: str = ...,
        delay: Duration | None = ...,
        at: datetime | float | None = ...,
        priority: int | None = ...,
        order: str = ...,
        keep: Duration | None = ...,
        timeout: Duration | None = ...,
        meta: dict[str, str] | None = ...,
    ) -> Awaitable[Job[T]]: ...
    @overload
    def defer(
        self,
        task: Callable[[*Ts], T],
        /,
        *args: *Ts,
        key: str = ...,
        delay: Duration | None = ...,
        at: datetime | float | None = ...,
        priority: int | None = ...,
        order: str = ...,
        keep: Duration | None = ...,
        timeout: Duration | None = ...,
        meta: dict[str, str] | None = ...,
    ) -> Awaitable[Job[T]]: ...
    @overload
    def defer(
        self,
        task: Callable[[S, *Ts], T],
        /,
        *args: *Ts,
        key: str = ...,
        delay: Duration | None = ...,
        at: datetime | float | None = ...,
        priority: int | None = ...,
        order: str = ...,
        keep: Duration | None = ...,
        timeout: Duration | None = ...,
        meta: dict[str, str] | None = ...,
    ) -> Awaitable[Job[T]]: ...
    def defer(  # type: ignore[misc]  # it takes what any overload does
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
    ) -> Awaitable[Job[Any]]:
        """Do this later, surely: `job = await self.defer(self.charge, order.id, delay="5m")`.

        It is durable when the `await` returns. A parameter of the task that is named like an option here is passed by
        position, or in a step: `self.defer(self.step(self.charge, key="k"), delay="5m")`. A type checker checks the
        arguments; beside options, those that are given by position or in a step.

        Args:
            task: a method marked @task (`self.charge`, or `Orders.charge` of another service), its name,
                "orders.charge", or a step with its arguments.
            args, kwargs: as the task takes them. When the method itself is given, they are checked here.
            key: of two jobs of one task with the same key only the first is made; the second `defer` gives that one.
                Known for as long as the first is kept.
            delay: not before this time has passed. `at`: not before this instant, a datetime with a time zone or
                seconds since 1970. Of any length.
            priority: 0 to 9, above that of the task; of what is ready, the higher goes first, then the older.
            order: jobs of one task with the same order run one after the other, as they were deferred.
            keep: how long the finished job, its answer and its key are kept; above that of the task.
            timeout: of one attempt; above that of the task.
            meta: strings that travel with it; `mesh.current_task().meta`.

        Raises:
            BadArguments, TooLarge: it cannot be deferred; raised at once.
            Unwritable: the disk takes nothing. TryLater: the engine was away for `tasks.defer_timeout`; nothing was
            done. Uncertain: it may have been done; with a key, deferring again is harmless. Raised when awaited.
        """
        how = options(key, delay, at, priority, order, keep, timeout, meta)
        if type(task) is Step:
            if args or kwargs:
                raise BadArguments("a step has its arguments already: self.defer(self.step(self.charge, order), key=…)")
            return self._durable.defer(task.task, task.args, task.kwargs, task.how if how is NO_OPTIONS else how)
        return self._durable.defer(task, args, kwargs, how)

    def batch(self) -> Batch:
        """Many tasks in one commit: `async with self.batch() as b: b.defer(…)`. A block that raises defers nothing.

        `b.defer`, `b.chain` and `b.group` return jobs at once, which may be used when the block is over.
        """
        return self._durable.batch()

    @overload
    @staticmethod
    def step(task: str, /, *args: Any, **kwargs: Any) -> Step: ...
    @overload
    @staticmethod
    def step(task: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> Step: ...
    @staticmethod
    def step(task: Any, /, *args: Any, **kwargs: Any) -> Step:
        """A task with its arguments, for `chain` and `group`; the same as `mesh.step`."""
        return Step(task, args, kwargs)

    async def chain(self, *parts: Parts) -> Job[Any]:
        """Tasks one after the other, deferred together; the job of the last.

        ::

            await self.chain(step(self.fetch, url), step(self.resize, mesh.prior, 256))

        Each begins when the one before is done; `mesh.prior` among its arguments stands for the answer of that. When
        one goes to the dead letters, those behind it do, too; requeueing it mends them all.

        Raises: as `defer`.
        """
        return await self._durable.chain(canvas.chain(*parts))

    async def group(self, *parts: Parts, then: Parts | None = None) -> Group[Any]:
        """Tasks side by side, deferred together; `then` begins when all are done.

        ::

            thumbs = await self.group(*(step(self.thumb, name) for name in names), then=step(self.finish, mesh.prior))
            await thumbs.results()

        In `then`, `mesh.prior` stands for the list of the members' answers, in their order. The parts may be chains.

        Raises: as `defer`.
        """
        return await self._durable.group(canvas.group(*parts, then=then))

    @overload
    def job(self, id: str) -> Job[Any]: ...
    @overload
    def job(self, id: str, type: type[T]) -> Job[T]: ...
    def job(self, id: str, type: Any = Any) -> Job[Any]:
        """The job of an id, from whatever process: its status, its answer (decoded as `type`), cancelling it."""
        return self._durable.job(id, type)

    # --- state and locks ----------------------------------------------------------------------------------

    @overload
    def state(self, namespace: str) -> Namespace[Any]: ...
    @overload
    def state(self, namespace: str, type: type[T]) -> Namespace[T]: ...
    def state(self, namespace: str, type: Any = Any) -> Namespace[Any]:
        """Keys and values of a namespace, read as `type`: `value, etag = await self.state("carts").get("u1")`."""
        return self._durable.state(namespace, type)

    def lock(self, name: str, ttl: Duration = 60.0, *, wait: Duration | None = None) -> Lock:
        """A lock over the whole mesh: `async with self.lock("nightly", ttl="1m") as held:`.

        Args:
            ttl: how long the lock outlives a process that dies with it; while the block runs, it is renewed.
            wait: how long to wait when somebody else has it: 0 tries once; None waits for as long as the call or task
                that is being answered has left, outside of one without end.

        Raises, when entered:
            LockTaken: somebody else held it all the time. When left: LockLost, after the block was cancelled for that.
        """
        return self._durable.lock(name, ttl, wait)

    # --- all of it at once --------------------------------------------------------------------------------

    def atomic(self) -> Atomic:
        """All of it or nothing: `async with self.atomic():` around state writes, durable events and defers.

        In the handler of a task or durable event what was asked for in the block is committed together with the
        acknowledgement when the handler returns, so that it happens exactly once; when the handler raises, nothing is
        written. Elsewhere it is committed at the end of the block. A block that raises writes nothing. Reading inside
        sees what the block has written (see state); jobs may be used after the commit.

        Raises:
            NotOffered: where the block is used: [engines] has chosen engines that do not commit these together.
            Conflict: at the end of the block, outside of tasks: an etag did not fit. In a task the handler runs again.
        """
        return self._durable.atomic()
