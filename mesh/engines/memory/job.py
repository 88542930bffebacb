"""One job.

Owns: the data of a job.
Leaves to others: its transitions (semantics.lifecycle), when one happens (jobs), when a job may run (queue), which
worker runs it (sessions).
"""

from __future__ import annotations

from typing import Final

import msgspec

from mesh.engines.memory.agenda import Appointment
from mesh.engines.semantics.lifecycle import LIFECYCLE, Event
from mesh.events.log import LoggedEvent
from mesh.tasks.contract import JobInfo, Lease, NewTask, Reason, Status, Verdict

#: MessagePack's nil: stands for the answer of a task without one.
NIL: Final = b"\xc0"
_pack: Final = msgspec.msgpack.Encoder().encode


class Job:
    """A deferred task, or the delivery of an event, until it is deleted.

    Attributes:
        task: as it was deferred.
        age: smaller for older jobs of the queue; of a delivery, the event's offset.
        event: the delivered event, or None.
        failed: how many of the tasks that it waits for have ended otherwise than done.
        parts: answers of the tasks that it waits for, by place.
        stopping: it was cancelled while it ran.
        settled: (attempt, verdict) of the last settlement.
        listed: it is in the heap of ready jobs.
        alarm: the callback that makes it ready.
    """

    __slots__ = (
        "age",
        "alarm",
        "attempt",
        "created_at",
        "due_at",
        "ends_at",
        "error",
        "event",
        "failed",
        "finished_at",
        "listed",
        "lost",
        "parts",
        "ready_at",
        "reason",
        "result",
        "session",
        "settled",
        "status",
        "stopping",
        "task",
        "traceback",
        "tries",
        "waits",
    )

    def __init__(self, task: NewTask, age: int, wall: float, event: LoggedEvent | None = None) -> None:
        self.task = task
        self.age = age
        self.event = event
        self.status: Status = "waiting"
        self.created_at = wall
        self.due_at = task.due_at
        self.ready_at = 0.0
        self.finished_at = 0.0
        self.ends_at = 0.0
        self.attempt = 0
        self.tries = 0
        self.lost = 0
        self.session = ""
        self.result = b""
        self.reason: Reason = ""
        self.error = ""
        self.traceback = ""
        self.waits = task.waits
        self.failed = 0
        self.parts: dict[int, bytes] = {}
        self.stopping = False
        self.settled: tuple[int, Verdict] | None = None
        self.listed = False
        self.alarm: Appointment | None = None

    @property
    def id(self) -> str:
        return self.task.id

    def move(self, event: Event) -> None:
        """Raises:
        KeyError: the transition is illegal; a bug of this engine.
        """
        self.status = LIFECYCLE[self.status, event]
        if self.alarm is not None:
            self.alarm.cancel()
            self.alarm = None

    def over(self, wall: float) -> bool:
        """Whether its retention as a finished job is over."""
        return self.status in ("done", "cancelled") and self.ends_at <= wall

    def prior(self) -> bytes:
        """The answers of the tasks that it waited for, as in Lease.prior."""
        if not self.parts:
            return b""
        if self.task.gathers:
            return _pack([msgspec.Raw(part) for _, part in sorted(self.parts.items())])
        return next(iter(self.parts.values()))

    def lease(self) -> Lease:
        """The attempt that begins now."""
        task, logged = self.task, self.event
        return Lease(
            id=task.id,
            attempt=self.attempt,
            queue=task.queue,
            body=task.body,
            encoding=logged.event.encoding if logged is not None else 0,
            key=task.key if logged is None else logged.event.key,
            created_at=self.created_at,
            prior=self.prior(),
            lost=self.lost,
            trace=task.trace,
            meta=task.meta,
            timeout_s=task.timeout_s,
            topic=logged.event.topic if logged is not None else "",
            event=logged.event.id if logged is not None else "",
            offset=logged.offset if logged is not None else 0,
            at=logged.event.at if logged is not None else 0.0,
            tries=self.tries,
        )

    def info(self) -> JobInfo:
        """Its present state."""
        task, logged = self.task, self.event
        return JobInfo(
            id=task.id,
            queue=task.queue,
            status=self.status,
            key=task.key,
            order=task.order,
            priority=task.priority,
            attempt=self.attempt,
            lost=self.lost,
            worker=self.session,
            created_at=self.created_at,
            due_at=self.due_at,
            finished_at=self.finished_at,
            ends_at=self.ends_at,
            body=task.body,
            result=self.result,
            reason=self.reason,
            error=self.error,
            traceback=self.traceback,
            waits=self.waits,
            feeds=task.feeds,
            event=logged.event.id if logged is not None else "",
            topic=logged.event.topic if logged is not None else "",
            offset=logged.offset if logged is not None else 0,
            meta=task.meta,
        )
