"""The leased work of an instance: its tasks and handlers of durable events, in the form that runner and engine need.

Owns: deriving works (what runs), queues (what to subscribe to) and schedules from marks.
Leaves to others: types (service.describe), running (tasks.runner), subscribing and firing (task_worker), the registry
(service.describe).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from mesh.calls.importing import reference_of
from mesh.config.settings import TaskSettings
from mesh.errors import BadArguments
from mesh.events.event import Decode, Event
from mesh.schedules.driver import Recurring
from mesh.service.decorators import DurableMark
from mesh.service.describe import Typed, listening, typed
from mesh.service.members import Member, members
from mesh.service.service import Service
from mesh.service.threads import blocks
from mesh.tasks.attempt import Work, reader, writer
from mesh.tasks.contract import Lease, Queue
from mesh.tasks.options import Attempts


class Workload(NamedTuple):
    """The workload of one worker, or of one instance.

    Attributes:
        tasks, deliveries: the works for tasks, and for durable events.
        task_queues, subscriptions: what the worker subscribes to at the engines of tasks and of events.
        schedules: the schedules that defer some of the tasks.
    """

    tasks: list[Work]
    task_queues: list[Queue]
    deliveries: list[Work]
    subscriptions: list[Queue]
    schedules: list[Recurring]


class Intercept(Protocol):
    """Puts the interceptors around a work; see mesh.service.interceptors."""

    def __call__(
        self, work: Work, cls: type[Service], member: Member, kind: Literal["task", "event"], returns: Any
    ) -> Work: ...


def workload(
    services: Sequence[Service],
    settings: TaskSettings,
    *,
    check_results: bool = True,
    intercept: Intercept | None = None,
) -> Workload:
    """The workload of these instances together.

    Args:
        check_results: the setting [calls] check_results.
        intercept: puts the interceptors around each work; None: there are none.

    Raises:
        BadDeclaration: a method cannot work as it is declared.
    """
    load = Workload([], [], [], [], [])
    for service in services:
        for each in typed(type(service)):
            if each.member.task is not None:
                _add_task(load, service, each, settings, check_results, intercept)
        for member in members(type(service)):
            if member.durable:
                _add_subscription(load, service, member, settings, intercept)
    return load


def _add_task(
    load: Workload,
    service: Service,
    each: Typed,
    settings: TaskSettings,
    check_results: bool,
    intercept: Intercept | None,
) -> None:
    member, signature = each
    mark = member.task
    assert mark is not None
    cls = type(service)
    name = f"{cls.name}.{member.name}"
    retries, timeout_s, slots = mark.attempts.filled(settings)
    keep_s = settings.keep_s if mark.keep_s is None else mark.keep_s
    check = check_results if mark.check_result is None else mark.check_result
    work = Work(
        queue=name,
        run=signature.by_position(getattr(service, member.name)),
        read=reader(signature),
        write=writer(signature, check=check),
        retries=retries,
        backoff=mark.attempts.backoff,
        timeout_s=timeout_s,
        fatal=mark.attempts.fatal,
        asynchronous=signature.asynchronous,
        offload=mark.offload or ("thread" if blocks(member.function) else ""),
        reference=reference_of(cls, member.name) if mark.offload else (),
        check_result=check,
    )
    load.tasks.append(work if intercept is None else intercept(work, cls, member, "task", signature.returns))
    load.task_queues.append(_queue(name, mark.attempts, slots))
    for number, schedule in enumerate(member.marks.schedules):
        load.schedules.append(
            Recurring(
                name=f"{name}#{number + 1}" if number else name,
                plan=schedule.plan,
                missed=schedule.missed,
                queue=name,
                priority=mark.priority,
                keep_s=keep_s,
            )
        )


def _add_subscription(
    load: Workload, service: Service, member: Member, settings: TaskSettings, intercept: Intercept | None
) -> None:
    marks = [mark for mark in member.marks.topics if mark.durable is not None]
    options = marks[0].durable
    assert isinstance(options, DurableMark)
    name = f"{type(service).name}.{member.name}"
    retries, timeout_s, slots = options.attempts.filled(settings)
    decode, run = listening(service, member)
    work = Work(
        queue=name,
        run=run,
        read=_event_reader(decode),
        write=_nothing,
        retries=retries,
        backoff=options.attempts.backoff,
        timeout_s=timeout_s,
        fatal=options.attempts.fatal,
        offload="thread" if blocks(member.function) else "",
        kind="event",
    )
    load.deliveries.append(work if intercept is None else intercept(work, type(service), member, "event", Any))
    patterns = tuple(dict.fromkeys(mark.topic for mark in marks))
    load.subscriptions.append(_queue(name, options.attempts, slots, patterns, options))


def _queue(
    name: str, attempts: Attempts, slots: int, patterns: tuple[str, ...] = (), options: DurableMark | None = None
) -> Queue:
    return Queue(
        name=name,
        credit=slots,
        rate_per_s=attempts.rate_per_s,
        burst=attempts.burst,
        concurrency=attempts.concurrency,
        most_lost=attempts.most_lost,
        patterns=patterns,
        start=options.start if options is not None else "new",
    )


def _event_reader(decode: Decode) -> Callable[[Lease], tuple[Any, ...]]:
    def read(lease: Lease) -> tuple[Event]:
        if not lease.topic:
            # Engines reject this too, once they know that the queue is a subscription: permission to defer does not
            # include permission to publish.
            raise BadArguments(
                f"job {lease.id} of {lease.queue} is a task, not an event: it was deferred before this handler existed"
            )
        return (
            Event(
                topic=lease.topic,
                data=decode(lease.body, lease.encoding),
                at=lease.at,
                trace=lease.trace,
                meta=lease.meta,
                id=lease.event,
                key=lease.key,
                offset=lease.offset,
            ),
        )

    return read


def _nothing(answer: Any) -> bytes:
    """The empty result of an event handler: its answer is never read."""
    return b""
