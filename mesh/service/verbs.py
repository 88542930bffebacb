"""The durable verbs of a node, of a service's `self`, and of a mesh under test.

Owns: their signatures and documentation.
Leaves to others: the implementation (durable; in a unit test, testing.unit).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, TypeVarTuple, overload

from mesh.errors import BadArguments
from mesh.events.event import Event
from mesh.locks.lock import Lock
from mesh.service.atomic import Atomic
from mesh.state.namespace import Namespace
from mesh.tasks import canvas
from mesh.tasks.batch import Batch
from mesh.tasks.canvas import Part, Step
from mesh.tasks.deferring import NO_OPTIONS, Options, options
from mesh.tasks.job import Group, Job
from mesh.tasks.options import Duration

T = TypeVar("T")
P = ParamSpec("P")
Ts = TypeVarTuple("Ts")
# The type of the first parameter (the service) of `Orders.charge`.
S = TypeVar("S", bound="DurableVerbs")

#: Accepted as a step: a step, a chain or group of steps, or a task that takes no arguments.
Parts = Part | Callable[..., Any] | str


class Room(Protocol):
    """The implementation of the verbs: mesh.node.durable.Durable."""

    def defer(self, task: Any, args: tuple[Any, ...], kwargs: dict[str, Any], how: Options) -> Awaitable[Job[Any]]: ...
    def batch(self) -> Batch: ...
    async def chain(self, part: Part) -> Job[Any]: ...
    async def group(self, part: Part) -> Group[Any]: ...
    def job(self, id: str, type: Any = Any) -> Job[Any]: ...
    def state(self, namespace: str, type: Any = Any) -> Namespace[Any]: ...
    def lock(self, name: str, ttl: Any, wait: Any) -> Lock: ...
    def tail(self, pattern: str, after: int | None) -> AsyncIterator[Event]: ...
    def atomic(self) -> Atomic: ...


class DurableVerbs:
    """Tasks, state, locks and atomic blocks. What a verb has confirmed survives the death of any process."""

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
        """Enqueue a background task: `job = await self.defer(self.charge, order.id, delay="5m")`.

        The task is durable when the `await` returns. A parameter of the task with the name of an option is passed by
        position, or in a step: `self.defer(self.step(self.charge, key="k"), delay="5m")`. A type checker checks the
        arguments; when options are given, it checks those that are passed by position or in a step.

        Args:
            task: a method marked @task (`self.charge`, or `Orders.charge` of another service), its name,
                "orders.charge", or a step with its arguments.
            args, kwargs: the arguments of the task. When the method itself is given, they are checked here.
            key: deduplication key: of two jobs of one task with the same key only the first is created, and the second
                `defer` returns that job. The key is known for as long as the first job is kept.
            delay: the job becomes ready after this time; seconds, or text like "5m"; of any length.
            at: the job becomes ready at this instant, a datetime with a time zone or seconds since 1970.
            priority: 0 to 9, overrides that of the task; of the ready jobs, the highest priority runs first, then the
                oldest.
            order: jobs of one task with the same order run one after the other, as they were deferred.
            keep: how long the finished job, its answer and its key are kept; overrides that of the task.
            timeout: of one attempt; overrides that of the task.
            meta: strings that travel with the task; read them in `mesh.current_task().meta`.

        Raises:
            BadArguments, TooLarge: the task cannot be deferred; raised at once.
            Unwritable: the store cannot be written. TryLater: the engine was away for `tasks.defer_timeout`; nothing
            was deferred. Uncertain: the task may have been deferred; with a key, deferring again is harmless. These
            three are raised when awaited.
        """
        how = options(key, delay, at, priority, order, keep, timeout, meta)
        if type(task) is Step:
            if args or kwargs:
                raise BadArguments(
                    "a step already has its arguments: write self.defer(self.step(self.charge, order), key=…)"
                )
            return self._durable.defer(task.task, task.args, task.kwargs, task.how if how is NO_OPTIONS else how)
        return self._durable.defer(task, args, kwargs, how)

    def batch(self) -> Batch:
        """Defer tasks in one commit: `async with self.batch() as b: b.defer(…)`. A block that raises defers nothing.

        `b.defer`, `b.chain` and `b.group` return jobs at once; the jobs may be used after the block.
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
        """Defer tasks together that run one after the other; returns the job of the last.

        ::

            await self.chain(step(self.fetch, url), step(self.resize, mesh.prior, 256))

        Each task begins when the previous one is done; `mesh.prior` among its arguments stands for the previous answer.
        When one becomes a dead letter, the later ones do, too; requeueing it requeues them all.

        Raises: as `defer`.
        """
        return await self._durable.chain(canvas.chain(*parts))

    async def group(self, *parts: Parts, then: Parts | None = None) -> Group[Any]:
        """Defer tasks together that run in parallel; `then` begins when all are done.

        ::

            thumbs = await self.group(*(step(self.thumb, name) for name in names), then=step(self.finish, mesh.prior))
            await thumbs.results()

        In `then`, `mesh.prior` stands for the list of the answers, in the order of the parts. The parts may be chains.

        Raises: as `defer`.
        """
        return await self._durable.group(canvas.group(*parts, then=then))

    @overload
    def job(self, id: str) -> Job[Any]: ...
    @overload
    def job(self, id: str, type: type[T]) -> Job[T]: ...
    def job(self, id: str, type: Any = Any) -> Job[Any]:
        """The job with this id, deferred by any process: its status, its answer (decoded as `type`), cancelling it."""
        return self._durable.job(id, type)

    # --- events -------------------------------------------------------------------------------------------

    def tail(self, topics: str, *, after: int | None = None) -> AsyncIterator[Event]:
        """The durable events of some topics, each once and in order; then new ones as they come, without end.

        ::

            async for event in self.tail(f"order.{id}.#", after=last):
                yield http.ServerSentEvent(event.data, id=str(event.offset), event=event.topic)

        It needs no subscription and leaves nothing behind. While the engine restarts, it waits.

        Args:
            topics: a topic pattern: `*` is one word, `#` any number.
            after: the offset of the last event that the caller has; 0 begins with the oldest event that is kept, None
                with the next one.

        Raises, when iterated:
            BadTopic: the pattern is malformed.
            Forbidden: `[access]` does not allow all topics of the pattern.
        """
        return self._durable.tail(topics, after)

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
            ttl: how long the lock outlives a holder that dies; while the block runs, the lock is renewed.
            wait: how long to wait for the current holder: 0 tries once; None waits until the deadline of the current
                call or task, and without limit outside of one.

        Raises:
            LockTaken: when entered: another holder kept it all the time.
            LockLost: when left: the lock was lost, and the block was cancelled for that.
        """
        return self._durable.lock(name, ttl, wait)

    # --- all of it at once --------------------------------------------------------------------------------

    def atomic(self) -> Atomic:
        """A transaction: `async with self.atomic():` around state writes, durable events and defers.

        In the handler of a task or durable event, the effects of the block are committed together with the ack when the
        handler returns, so that they happen exactly once; when the handler raises, nothing is written. Elsewhere they
        are committed at the end of the block. A block that raises writes nothing. Reads in the block see its own writes
        (see state); jobs may be used after the commit.

        Raises:
            NotOffered: where the block is used: the engines chosen in [engines] cannot commit these together.
            Conflict: at the end of the block, outside of tasks: an etag did not match. In a task the handler runs
                again.
        """
        return self._durable.atomic()
