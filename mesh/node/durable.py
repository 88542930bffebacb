"""The client side of the engines in one process: deferring, durable events, state, locks, and atomic blocks.

Owns: connecting tasks, events, state and locks to the chosen engines; passing writes to the current atomic block
instead of sending them; and sending durable events to plain subscribers after the commit.
Leaves to others: tasks, events, state and locks themselves; choosing engines (engines.choose); running tasks
(worker.task_worker).

Engines are opened on first use: a process that only makes calls has no connection to any engine.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextvars import Context
from typing import Any, Final, Protocol

from mesh import ids
from mesh.calls.answers import decode_any, typed_decoder
from mesh.calls.checks import check_meta
from mesh.calls.context import carrying
from mesh.clock import Clock
from mesh.config import Settings
from mesh.discovery.record import Instance
from mesh.engines.choose import Engines
from mesh.engines.collect import Collector, collecting
from mesh.engines.semantics.offering import lacking
from mesh.engines.work_view import WorkView
from mesh.errors import BadArguments, MeshError
from mesh.events.event import Event, encode_data
from mesh.events.log import LoggedEvent, NewEvent
from mesh.events.tail import Tail
from mesh.events.topics import Matcher, check_topic
from mesh.locks.lock import Lock
from mesh.node.targets import Targets
from mesh.protocol.codec import MAX_BIN
from mesh.service.atomic import Atomic
from mesh.state.namespace import Namespace
from mesh.state.watching import Watching
from mesh.tasks.batch import Batch, Told, chain_jobs, group_jobs, handle
from mesh.tasks.canvas import Part, compile
from mesh.tasks.contract import NewTask, Settlement, Ticket
from mesh.tasks.deferring import MAX_KEY, Deferred, Options, Target, arguments, check_size, new_task, weight
from mesh.tasks.engine import Jobs
from mesh.tasks.gathering import Gathering
from mesh.tasks.job import Group, Job
from mesh.telemetry.logs import get_logger
from mesh.telemetry.metrics import Recorder
from mesh.telemetry.traces import in_force

log = get_logger("mesh.durable")

#: Bytes reserved for the data that travels with the arguments of one task.
AROUND: Final = 64 * 1024
#: The maximum number of topics to warn about; it bounds the memory of `_warned`.
MOST_WARNED: Final = 1000


class Listeners(Protocol):
    """The part of discovery's Table that is used here."""

    version: int

    def services(self) -> list[str]: ...
    def instances(self, service: str) -> Any: ...


class EmitRaw(Protocol):
    """The bus, for events to plain subscribers."""

    async def __call__(
        self, topic: str, body: bytes, encoding: int, *, key: str | None, meta: dict[str, str] | None, trace: str | None
    ) -> None: ...


class Durable:
    """The implementation of the durable verbs in one process. One event loop owns it.

    Attributes:
        engines: the chosen engines.
        clock, timeout_s: see mesh.tasks.job.Desk.
    """

    def __init__(
        self,
        settings: Settings,
        engines: Engines,
        *,
        identity: str,
        publisher: str,
        clock: Clock,
        rng: random.Random,
        recorder: Recorder,
        table: Listeners,
        emit_raw: EmitRaw,
    ) -> None:
        """Args:
        identity: of this process; the owner of its locks.
        publisher: of its events: the identity with the epoch of this run.
        table: the subscribers of events, and the declarations of services.
        emit_raw: sends an event to plain subscribers.
        """
        self.engines = engines
        offered = engines.capabilities("tasks")
        #: What the engine of tasks offers; None where that is all that a task can need, so that nothing is checked.
        self._offered = None if offered.issuperset(("queues", "jobs", "flows")) else offered
        self.clock = clock
        self.timeout_s = settings.tasks.defer_timeout_s
        self._identity = identity
        self._publisher = publisher
        self._rng = rng
        self._recorder = recorder
        self._table = table
        self._emit_raw = emit_raw
        self._max_bytes = settings.calls.max_body_bytes
        self._targets = Targets(table, settings.tasks)
        self._find = self._targets.find
        self._deferring: Gathering[NewTask, Ticket] | None = None
        self._appending: Gathering[NewEvent, int] | None = None
        self._tail: Tail | None = None
        self._watching: Watching | None = None
        self._durable_topics: Matcher[None] = Matcher((pattern, None) for pattern in settings.events.durable)
        self._subscribed: tuple[int, Matcher[str]] = (-1, Matcher())
        self._warned: set[str] = set()
        self._telling: set[asyncio.Task[None]] = set()

    @property
    def jobs(self) -> Jobs:
        """The jobs of the engine that is chosen for tasks."""
        return self.engines.jobs

    @property
    def work(self) -> WorkView:
        """All queues, jobs and dead letters, for people who inspect and repair."""
        return WorkView(self.engines, timeout_s=self.timeout_s)

    # --- tasks --------------------------------------------------------------------------------------------

    def defer(self, task: Any, args: tuple[Any, ...], kwargs: dict[str, Any], how: Options) -> Deferred:
        """See DurableVerbs.defer."""
        target = self._find(task)
        return self._defer(target, arguments(target, args, kwargs, self._max_bytes - AROUND), how)

    def defer_encoded(self, task: str, body: bytes, how: Options) -> Deferred:
        """Defer a task with encoded arguments.

        Args:
            body: an array or a map, in JSON (without leading white space) or in MessagePack.

        Raises:
            TooLarge: the arguments are longer than allowed for a task.
        """
        target = self._find(task)
        return self._defer(target, check_size(target, body, self._max_bytes - AROUND), how)

    def _defer(self, target: Target, body: bytes, how: Options) -> Deferred:
        row = new_task(target, body, how, self.clock.wall())
        if self._offered is not None:
            self._check_offered((row,))
        job = handle(self, row, target)
        deferred = Deferred(loop=asyncio.get_running_loop())
        block = collecting()
        if block is not None:
            block.defer((row,), (job.confirmed,))
            deferred.set_result(job)
            return deferred
        gathering = self._deferring
        if gathering is None:
            gathering = self._deferring = Gathering(self._defer_all, halves=True)

        def told(answer: Ticket | BaseException) -> None:
            if deferred.done():
                return
            if isinstance(answer, Ticket):
                job.confirmed(answer)
                deferred.set_result(job)
            else:
                deferred.set_exception(answer)

        gathering.add(row, weight(row), told)
        return deferred

    def _defer_all(self, tasks: list[NewTask]) -> Awaitable[Sequence[Ticket]]:
        return self.engines.queues.defer(tasks, timeout_s=self.timeout_s)

    def _check_offered(self, tasks: Sequence[NewTask]) -> None:
        """Raises: NotOffered: the engine lacks what a task needs: a key, an ordering key, tasks that it waits for."""
        assert self._offered is not None
        for task in tasks:
            if missing := lacking(task, self._offered):
                raise self.engines.not_offered(missing, f"this defer of {task.queue} needs {missing}")

    async def defer_together(self, tasks: Sequence[NewTask], told: Sequence[Told]) -> None:
        """Defer all tasks in one commit, or add them to the current atomic block."""
        if self._offered is not None:
            self._check_offered(tasks)
        block = collecting()
        if block is not None:
            block.defer(tasks, told)
            return
        tickets = await self.engines.queues.defer(tasks, timeout_s=self.timeout_s)
        for tell, ticket in zip(told, tickets, strict=True):
            tell(ticket)

    def batch(self) -> Batch:
        """See DurableVerbs.batch."""
        return Batch(self, self.clock, self._find, self.defer_together, self._max_bytes - AROUND)

    async def chain(self, part: Part) -> Job[Any]:
        """See DurableVerbs.chain."""
        async with self.batch() as batch:
            return chain_jobs(self._compiled(part), batch.add)

    async def group(self, part: Part) -> Group[Any]:
        """See DurableVerbs.group."""
        async with self.batch() as batch:
            return group_jobs(self._compiled(part), batch.add)

    def _compiled(self, part: Part) -> Any:
        return compile(part, self._find, self.clock.wall(), self._max_bytes - AROUND)

    def job(self, id: str, type: Any = Any) -> Job[Any]:
        """See DurableVerbs.job."""
        if not isinstance(id, str) or not id:
            raise BadArguments(f"a job's id is text, as in job.id, not {id!r}")
        self.engines.check("jobs", f"job {id}")
        return Job(self, id, decode=decode_any if type is Any else typed_decoder(f"job {id}", type))

    # --- events -------------------------------------------------------------------------------------------

    def is_durable(self, topic: str) -> bool:
        """Whether a pattern in [events] durable matches the topic."""
        return bool(self._durable_topics) and bool(self._durable_topics.match(topic))

    async def emit(self, topic: str, data: Any, key: str | None, meta: dict[str, str] | None) -> None:
        """See Node.emit with durable=True."""
        body, encoding = encode_data(check_topic(topic), data, MAX_BIN)
        meta = carrying(meta)
        if meta is not None:
            check_meta(meta)
        if key is not None and len(key) > MAX_KEY:
            raise BadArguments(f"event {topic!r}: the key is {len(key)} characters long; the limit is {MAX_KEY}")
        event = NewEvent(
            id=ids.job_id(),
            topic=topic,
            body=body,
            encoding=encoding,
            key=key or "",
            at=self.clock.wall(),
            publisher=self._publisher,
            trace=in_force(),
            meta=meta or {},
        )
        block = collecting()
        if block is not None:
            block.append((event,))
            return
        await self._append(event)
        await self._tell(event)

    async def _append(self, event: NewEvent) -> None:
        gathering = self._appending
        if gathering is None:
            gathering = self._appending = Gathering(self._append_all, halves=True)
        stored: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def told(answer: int | BaseException) -> None:
            if stored.done():
                return
            if isinstance(answer, BaseException):
                stored.set_exception(answer)
            else:
                stored.set_result(answer)

        gathering.add(event, 300 + len(event.body), told)
        await stored

    def _append_all(self, events: list[NewEvent]) -> Awaitable[Sequence[int]]:
        return self.engines.events.append(events, timeout_s=self.timeout_s)

    async def _tell(self, event: NewEvent) -> None:
        """Send a durable event to plain subscribers, like any other event."""
        try:
            await self._emit_raw(
                event.topic,
                event.body,
                event.encoding,
                key=event.key or None,
                meta=event.meta or None,
                trace=event.trace,
            )
        except MeshError as exc:
            # The event is in the log, as promised. An error here would make callers emit it a second time.
            log.warning("event.partly_delivered", topic=event.topic, error=exc.message)

    def warn_of_loss(self, topic: str) -> None:
        """Warn, once for each topic, that a durable handler does not receive events that are not emitted durable."""
        version, subscribed = self._subscribed
        if version != self._table.version:
            version, subscribed = self._subscribed = self._table.version, self._subscriptions()
        if not subscribed or topic in self._warned or len(self._warned) >= MOST_WARNED:
            return
        handlers = subscribed.match(topic)
        if handlers:
            self._warned.add(topic)
            log.warning(
                "event.not_durable",
                topic=topic,
                handlers=list(handlers),
                remedy="emit it with durable=True, or list its topic in [events] durable",
            )

    def _subscriptions(self) -> Matcher[str]:
        found: dict[tuple[str, str], None] = {}
        for service in self._table.services():
            instances: Sequence[Instance] = self._table.instances(service)
            for instance in instances:
                for one in instance.durable:
                    found[one.topic, f"{service}.{one.method}"] = None
        try:
            return Matcher(found, distinct=True)
        except MeshError:
            return Matcher()  # a record in the registry is malformed; only a warning is lost

    # --- state and locks ----------------------------------------------------------------------------------

    def state(self, namespace: str, type: Any = Any) -> Namespace[Any]:
        """See DurableVerbs.state."""
        return Namespace(
            namespace,
            self.engines.state,
            clock=self.clock,
            timeout_s=self.timeout_s,
            max_bytes=self._max_bytes,
            type=type,
            collecting=collecting,
            watching=self._watched,
        )

    def _watched(self) -> Watching:
        if self._watching is None:
            self._watching = Watching(lambda: self.engines.state, self.clock, self.timeout_s)
        return self._watching

    async def tail(self, pattern: str, after: int | None) -> AsyncIterator[Event]:
        """See DurableVerbs.tail."""
        if self._tail is None:
            self._tail = Tail(lambda: self.engines.events, self.clock, self.timeout_s)
        async for logged in self._tail.follow(pattern, after):
            yield event_of(logged)

    def lock(self, name: str, ttl: Any, wait: Any) -> Lock:
        """See DurableVerbs.lock."""
        return Lock(
            name,
            self.engines.locks,
            owner=self._identity,
            clock=self.clock,
            timeout_s=self.timeout_s,
            rng=self._rng,
            recorder=self._recorder,
            ttl=ttl,
            wait=wait,
        )

    # --- all of it at once --------------------------------------------------------------------------------

    def atomic(self) -> Atomic:
        """See DurableVerbs.atomic."""
        return Atomic(self.engines.joint, self._commit_block)

    async def _commit_block(self, collector: Collector) -> None:
        """Commit a block outside of tasks; its events are sent as by `emit`."""
        await self._commit(collector, (), self.timeout_s)
        await self._tell_all(collector.events)

    async def acknowledge(self, collector: Collector, settlement: Settlement, timeout_s: float) -> None:
        """Commit the block of a task's handler together with the ack.

        Raises:
            MeshError: see Engine.commit; nothing was committed, or the commit may be repeated.
        """
        await self._commit(collector, (settlement,), timeout_s)
        if collector.events:
            # The lease has ended and does not wait for subscribers. Use a new context, so that the deadline of the
            # task does not cut off the sending.
            telling = asyncio.get_running_loop().create_task(
                self._tell_all(collector.events), name="mesh.events tell", context=Context()
            )
            self._telling.add(telling)
            telling.add_done_callback(self._telling.discard)

    async def _tell_all(self, events: Sequence[NewEvent]) -> None:
        for event in events:
            await self._tell(event)

    async def _commit(self, collector: Collector, settle: Sequence[Settlement], timeout_s: float) -> None:
        engine = self.engines.joint(collector.uses)
        collector.tell(await engine.commit(collector.unit(settle), timeout_s=timeout_s))

    async def close(self) -> None:
        """End pending operations, and close every engine that was opened. A second call has no effect."""
        for gathering in (self._deferring, self._appending):
            if gathering is not None:
                await gathering.close()
        if self._tail is not None:
            await self._tail.close()
        if self._watching is not None:
            await self._watching.close()
        telling = list(self._telling)
        for task in telling:
            task.cancel()
        await asyncio.gather(*telling, return_exceptions=True)
        await self.engines.close()


def event_of(logged: LoggedEvent) -> Event:
    """An event of the log as users see it; its data are plain values."""
    event = logged.event
    return Event(
        topic=event.topic,
        data=decode_any(event.body, event.encoding),
        publisher=event.publisher,
        at=event.at,
        trace=event.trace,
        meta=event.meta,
        id=event.id,
        key=event.key,
        offset=logged.offset,
    )
