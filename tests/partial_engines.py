"""Two small engines that offer only some capabilities: one with queues and nothing else, one with durable events and
nothing else. They keep their data in memory, shared by all processes of a test.

They are held to the contract suites for what they offer (tests/contract), and to be refused by name for the rest.
`QUEUES` and `EVENTS` are their specs, as a project's own: `[engines] tasks = "tests.partial_engines:QUEUES"`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from mesh import ids
from mesh.clock import Clock
from mesh.engines.contract import PartialEngine, not_offered
from mesh.engines.registry import EngineContext, EngineSpec
from mesh.engines.semantics.acknowledgements import REMEMBERED_S, due_at
from mesh.engines.semantics.offering import check_queues_offered, check_tasks_offered
from mesh.engines.semantics.validation import check_events, check_tasks
from mesh.errors import BadRequest
from mesh.events.log import LoggedEvent, NewEvent
from mesh.events.topics import Matcher, check_pattern
from mesh.tasks.contract import JobInfo, NewTask, Offer, Queue, QueueInfo, Receiver, Settlement, Ticket
from tests.partial_work import Work, Worker


class SmallLeases:
    """See mesh.tasks.engine.Leases."""

    def __init__(self, engine: SmallEngine) -> None:
        self._engine = engine
        self._work = engine.work
        self.workers: list[Worker] = []

    async def subscribe(self, offer: Offer, receiver: Receiver) -> Worker:
        check_queues_offered(offer.queues, self._engine.name, self._engine.offers)
        for queue in offer.queues:
            for pattern in queue.patterns:
                check_pattern(pattern)
        worker = Worker(self._work, offer, receiver)
        self.workers.append(worker)
        self._work.join(worker)
        self._engine.subscribed(offer.queues)
        return worker

    async def acknowledge(self, settlements: Sequence[Settlement], *, timeout_s: float) -> None:
        self._work.settle(settlements)

    async def queues(self, *, timeout_s: float) -> list[QueueInfo]:
        work = self._work
        wall = work.clock.wall()
        found = []
        for name in sorted({*work.queues, *(item.task.queue for item in work.items.values())}):
            counts = Counter(item.status for item in work.of(name))
            workers = sum(name in worker.credit for worker in work.workers.values())
            patterns = work.queues[name].patterns if name in work.queues else ()
            if not (counts or workers or patterns):
                continue
            oldest = min((item.ready_at for item in work.of(name, "ready")), default=wall)
            found.append(
                QueueInfo(
                    name=name,
                    delayed=counts["delayed"],
                    ready=counts["ready"],
                    running=counts["running"],
                    dead=counts["dead"],
                    done=work.done[name],
                    oldest_s=wall - oldest,
                    workers=workers,
                    patterns=patterns,
                    position=self._engine.position,
                )
            )
        return found

    async def dead(self, queue: str, *, after: str = "", limit: int = 100, timeout_s: float) -> list[JobInfo]:
        dead = [item.info() for item in self._work.of(queue, "dead")]
        start = next((at + 1 for at, info in enumerate(dead) if info.id == after), 0)
        return dead[start : start + limit]

    async def requeue(self, queue: str, ids: Sequence[str] = (), *, timeout_s: float) -> int:
        self._no_ids(ids)
        return self._work.requeue(queue)

    async def drop(self, queue: str, ids: Sequence[str] = (), *, timeout_s: float) -> int:
        self._no_ids(ids)
        return self._work.drop(queue)

    def _no_ids(self, ids: Sequence[str]) -> None:
        if ids:
            raise not_offered(self._engine.name, "jobs")


class SmallEngine(PartialEngine):
    """The part that both engines have, for one process.

    Attributes:
        position: the last offset of the log.
    """

    position = 0

    def __init__(self, work: Work) -> None:
        self.work = work
        self.leases = SmallLeases(self)

    def subscribed(self, queues: Sequence[Queue]) -> None:
        """These queues have one more worker."""

    async def close(self) -> None:
        for worker in self.leases.workers:
            await worker.close()

    # --- faults -------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """The process cannot be reached."""
        for worker in self.leases.workers:
            self.work.silence(worker)

    def mend(self) -> None:
        """It can be reached again."""
        for worker in self.leases.workers:
            self.work.speak(worker)

    def kill(self) -> None:
        """As kill -9 of the process."""
        for worker in self.leases.workers:
            self.work.silence(worker)
        self.leases.workers.clear()


class QueuesEngine(SmallEngine):
    """Queues, and nothing else."""

    name = "onlyqueues"
    offers = frozenset(("queues",))

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self.queues = self

    async def defer(self, tasks: Sequence[NewTask], *, timeout_s: float) -> list[Ticket]:
        check_tasks(tasks)
        check_tasks_offered(tasks, self.name, self.offers)
        for task in tasks:
            self.work.add(task, due_at(task.due_at, task.delay_s, self.work.clock.wall()))
        return [Ticket(task.id) for task in tasks]


class Log:
    """The log that all processes share."""

    def __init__(self, work: Work, retention_s: float) -> None:
        self.work = work
        self.retention_s = max(retention_s, REMEMBERED_S)
        self.kept: list[tuple[float, LoggedEvent]] = []
        self.offsets: dict[str, int] = {}
        self.patterns: dict[str, Matcher[None]] = {}

    def append(self, event: NewEvent) -> int:
        if event.id in self.offsets:
            return self.offsets[event.id]
        offset = self.offsets[event.id] = len(self.offsets) + 1
        logged = LoggedEvent(offset, event)
        self.kept.append((self.work.clock.wall(), logged))
        for name, matcher in self.patterns.items():
            if matcher.match(event.topic):
                self.deliver(name, logged)
        return offset

    def deliver(self, name: str, logged: LoggedEvent) -> None:
        if any(item.logged is not None and item.logged.offset == logged.offset for item in self.work.of(name)):
            return
        event = logged.event
        task = NewTask(ids.job_id(), name, event.body, trace=event.trace, meta=event.meta, keep_s=0.0)
        self.work.add(task, 0.0, logged)

    def sweep(self) -> None:
        """Forget what is old, and neither outstanding nor dead."""
        needed = {item.logged.offset for item in self.work.items.values() if item.logged is not None}
        until = self.work.clock.wall() - self.retention_s
        self.kept = [(at, logged) for at, logged in self.kept if at > until or logged.offset in needed]


class EventsEngine(SmallEngine):
    """Durable events, and nothing else."""

    name = "onlyevents"
    offers = frozenset(("events",))

    def __init__(self, work: Work, log: Log) -> None:
        super().__init__(work)
        self.log = log
        self.events = self

    @property
    def position(self) -> int:  # type: ignore[override]
        return len(self.log.offsets)

    def subscribed(self, queues: Sequence[Queue]) -> None:
        for queue in queues:
            new = queue.name not in self.log.patterns
            matcher = self.log.patterns[queue.name] = Matcher([(pattern, None) for pattern in queue.patterns])
            if new and queue.start == "all":
                for _, logged in self.log.kept:
                    if matcher.match(logged.event.topic):
                        self.log.deliver(queue.name, logged)

    async def append(self, events: Sequence[NewEvent], *, timeout_s: float) -> list[int]:
        check_events(events)
        self.log.sweep()
        return [self.log.append(event) for event in events]

    async def replay(
        self, subscription: str, *, offset: int | None = None, since_at: float | None = None, timeout_s: float
    ) -> int:
        matcher = self._matcher(subscription)
        if (offset is None) == (since_at is None):
            raise BadRequest("give an offset or an instant")
        chosen = [
            logged
            for at, logged in self.log.kept
            if logged.offset >= (offset or 0) and at >= (since_at or 0.0) and matcher.match(logged.event.topic)
        ]
        for logged in chosen:
            self.log.deliver(subscription, logged)
        return len(chosen)

    async def abandon(self, subscription: str, *, timeout_s: float) -> int:
        self._matcher(subscription)
        if any(subscription in worker.credit for worker in self.work.workers.values()):
            raise BadRequest(f"a worker is subscribed to {subscription}")
        del self.log.patterns[subscription]
        del self.work.queues[subscription]
        left = self.work.of(subscription)
        for item in left:
            del self.work.items[item.task.id]
        return len(left)

    async def last(self, *, timeout_s: float) -> int:
        return max((logged.offset for _, logged in self.log.kept), default=0)

    def _matcher(self, subscription: str) -> Matcher[None]:
        if subscription not in self.log.patterns:
            known = ", ".join(self.log.patterns)
            raise BadRequest(f"there is no durable subscription {subscription!r}; there are: {known}")
        return self.log.patterns[subscription]

    async def read(self, pattern: str, *, after: int = 0, limit: int = 100, timeout_s: float) -> list[LoggedEvent]:
        matcher = Matcher([(check_pattern(pattern), None)])
        self.log.sweep()
        found = [each for _, each in self.log.kept if each.offset > after and matcher.match(each.event.topic)]
        return found[:limit]


# --- as [engines] can choose them -----------------------------------------------------------------------

#: What all processes of a test share: by the name of the engine.
_shared: dict[str, tuple[Work, Log]] = {}


@contextmanager
def shared_data(clock: Clock) -> Iterator[None]:
    """The engines that are made in this block share their data, by this clock."""
    _shared.clear()
    for name in (QueuesEngine.name, EventsEngine.name):
        work = Work(clock, lease_s=10.0, unknown_after_s=60.0)
        _shared[name] = work, Log(work, 7 * 86400.0)
    try:
        yield
    finally:
        for work, _ in _shared.values():
            work.close()
        _shared.clear()


def _queues(context: EngineContext) -> QueuesEngine:
    return QueuesEngine(_shared[QueuesEngine.name][0])


def _events(context: EngineContext) -> EventsEngine:
    return EventsEngine(*_shared[EventsEngine.name])


QUEUES: Final = EngineSpec(name=QueuesEngine.name, capabilities=QueuesEngine.offers, make=_queues)
EVENTS: Final = EngineSpec(name=EventsEngine.name, capabilities=EventsEngine.offers, make=_events)
