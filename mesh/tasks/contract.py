"""The data types of tasks and leases that cross between a process and an engine.

Owns: the terms (task, lease, settlement, job), their fields, and the callbacks of a worker (Receiver, Session).
Leaves to others: what an engine implements and promises (engine), the user's API (job, canvas), running a lease
(runner), storing (engines).

A task becomes a **job** when it is deferred: the job is the task's row, from the moment it is confirmed until it is
deleted. A worker receives a **lease** on it: the right to run one attempt. A lease belongs to a worker's session and
is renewed with it; it ends when it is settled (ack or nack), or when the session ends. Attempts are numbered from 1.
The number is a fencing token: the settlement of an earlier attempt is rejected. A job never reuses a number, not even
after a release or a requeue; the limit of retries is compared with `tries`.

Instants are wall-clock seconds since 1970 (they outlive processes); durations are in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, Protocol

import msgspec

#: waiting: for the tasks that feed it, or for an earlier one with the same `order` · delayed: until its due time ·
#: ready: for a worker · running: a worker has a lease on it · done · dead: a dead letter, kept until it is requeued or
#: dropped · cancelled.
Status = Literal["waiting", "delayed", "ready", "running", "done", "dead", "cancelled"]
OVER: Final = frozenset({"done", "dead", "cancelled"})

#: done · retry: run again at `due_at` · dead: do not run again · release: it was not started, the attempt does not
#: count · cancelled: it was stopped on request.
Verdict = Literal["done", "retry", "dead", "release", "cancelled"]

#: Why a task became a dead letter.
Reason = Literal["", "failed", "undecodable", "unknown", "lost", "upstream"]

PRIORITIES: Final = range(10)
DEFAULT_PRIORITY: Final = 5


class NewTask(msgspec.Struct, array_like=True, frozen=True):
    """A task to be deferred.

    Attributes:
        id: made by the caller (mesh.ids.job_id), so that repeating an unanswered defer adds nothing.
        queue: "service.task".
        body: MessagePack arguments, as in a call.
        key: unique key of the job in its queue: a second job with the same key is not made, its ticket names the first.
            The key is known for as long as the first job is kept. "" for none. Of tasks that wait for each other only
            the last may have a key; when it is known, none of the tasks that feed it is made either.
        order: ordering key: jobs of one queue with the same order run one at a time, in the order in which they were
            deferred. "" for none.
        priority: 0 to 9; of the ready tasks, the highest priority runs first, then the oldest.
        due_at: the earliest start, by the engine's wall clock; 0 for at once. Used by older senders; see `delay_s`.
        keep_s: retention of the finished job, its answer and its key.
        waits: how many other tasks must be done first; this one is `waiting` until then, and gets their answers as
            `prior` (nil for a task without an answer).
        feeds: the id of the task that waits for this one; "" for none. It follows this one in the same unit.
        place: the position of this task's answer in the `prior` of the task that it feeds.
        gathers: `prior` is an array of answers, one for each task that it waited for; else the one answer itself.
        trace: W3C traceparent of the caller.
        meta: small map of text that travels with the task.
        timeout_s: of one attempt; 0 for the queue's timeout.
        delay_s: the earliest start, counted from the engine's receipt and independent of its wall clock; replaces
            `due_at` when it is above 0.
    """

    id: str
    queue: str
    body: bytes
    key: str = ""
    order: str = ""
    priority: int = DEFAULT_PRIORITY
    due_at: float = 0.0
    keep_s: float = 3600.0
    waits: int = 0
    feeds: str = ""
    place: int = 0
    gathers: bool = False
    trace: str = ""
    meta: dict[str, str] = {}
    timeout_s: float = 0.0
    delay_s: float = 0.0


class Ticket(msgspec.Struct, array_like=True, frozen=True):
    """The result of deferring a task.

    Attributes:
        id: the id of the new job, or of the first job with the same key.
        fresh: whether this unit made the job. False: its key was known, or the key of the task that it feeds was. When
            the same id is deferred again in another unit, either value is possible.
    """

    id: str
    fresh: bool = True


class Queue(msgspec.Struct, array_like=True, frozen=True):
    """One queue as a worker declares it when it subscribes; the latest declaration is in force.

    Attributes:
        name: "service.task", or "service.handler" of a durable `@on`.
        credit: the worker's prefetch: how many leases it holds at most at once.
        rate_per_s: leases granted per second over the whole mesh; 0 for no limit.
        burst: how many of them may be granted at once after a pause; at least 1.
        concurrency: leases held at once over the whole mesh; 0 for no limit.
        most_lost: a task is dead after so many workers have died while they ran it.
        patterns: topics, for a durable subscription; its tasks are made from the event log. () for tasks.
        start: where a new subscription begins: with "new" events, or with "all" that are kept.
    """

    name: str
    credit: int
    rate_per_s: float = 0.0
    burst: int = 1
    concurrency: int = 0
    most_lost: int = 3
    patterns: tuple[str, ...] = ()
    start: Literal["new", "all"] = "new"


class Lease(msgspec.Struct, array_like=True, frozen=True):
    """One attempt of one job, given to a worker.

    Attributes:
        id, attempt: identify the lease in a settlement.
        queue, body, key, trace, meta, timeout_s: as deferred.
        encoding: of `body` (mesh.protocol.messages).
        created_at: when the job was made.
        prior: answers of the tasks that it waited for (MessagePack); b"" for none.
        lost: how many workers died while they ran it.
        topic, event, offset, at: of the durable event that it delivers; "" and 0 for a task.
        tries: the number of this try of the handler, from 1. Attempts that were released or that ended with their
            worker's death (counted in `lost`) are not counted; a requeue restarts the count.
    """

    id: str
    attempt: int
    queue: str
    body: bytes
    encoding: int = 0
    key: str = ""
    created_at: float = 0.0
    prior: bytes = b""
    lost: int = 0
    trace: str = ""
    meta: dict[str, str] = {}
    timeout_s: float = 0.0
    topic: str = ""
    event: str = ""
    offset: int = 0
    at: float = 0.0
    tries: int = 1


class Settlement(msgspec.Struct, array_like=True, frozen=True):
    """The ack or nack of a lease. Repeating the same settlement changes nothing, until another attempt begins.

    Attributes:
        verdict: see Verdict.
        result: the answer (MessagePack) of a task that is done.
        due_at: when to try again, by the engine's wall clock; 0 for at once. Used by older senders; see `delay_s`.
        reason, error, traceback: of a failure; kept with the job, shown to people.
        delay_s: try again after so much time; replaces `due_at` when it is above 0.
    """

    id: str
    attempt: int
    verdict: Verdict
    result: bytes = b""
    due_at: float = 0.0
    reason: Reason = ""
    error: str = ""
    traceback: str = ""
    delay_s: float = 0.0


class JobInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The present state of a job, as `await job.info()` returns it.

    Attributes:
        attempt: attempts begun so far.
        lost: how many of them ended with their worker's death.
        worker: the session that has the lease, while the job is running.
        result: b"" until the job is done.
        ends_at: when the finished job will be deleted; 0 while it is not finished, or when it is dead.
        event, topic, offset: for the delivery of a durable event.
    """

    id: str
    queue: str
    status: Status
    key: str = ""
    order: str = ""
    priority: int = DEFAULT_PRIORITY
    attempt: int = 0
    lost: int = 0
    worker: str = ""
    created_at: float = 0.0
    due_at: float = 0.0
    finished_at: float = 0.0
    ends_at: float = 0.0
    body: bytes = b""
    result: bytes = b""
    reason: Reason = ""
    error: str = ""
    traceback: str = ""
    waits: int = 0
    feeds: str = ""
    event: str = ""
    topic: str = ""
    offset: int = 0
    meta: dict[str, str] = {}


class QueueInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The present state of a queue.

    Attributes:
        oldest_s: how long the oldest ready task has been ready; 0 when none is.
        workers: sessions that are subscribed to it.
        rate_per_s, concurrency: the limits in force; 0 for none.
        patterns, position, backlog: of a durable subscription: its topics, the offset up to which its tasks were made,
            and the number of kept events after that offset.
        done: jobs that were ever done, across restarts of the store (engine in memory: since its start).
    """

    name: str
    waiting: int = 0
    delayed: int = 0
    ready: int = 0
    running: int = 0
    dead: int = 0
    done: int = 0
    oldest_s: float = 0.0
    workers: int = 0
    rate_per_s: float = 0.0
    concurrency: int = 0
    patterns: tuple[str, ...] = ()
    position: int = 0
    backlog: int = 0


class Offer(msgspec.Struct, array_like=True, frozen=True):
    """The subscription of a worker, for one session.

    Attributes:
        session: unique for a process's life; the same when it subscribes again.
        services: the services that the worker runs with all of their tasks: a ready task of such a service in a queue
            that no worker declares is unknown.
        queues: the queues that it runs.
        held: (id, attempt) of the leases that it still has, when it subscribes again.
        host, pid, pid_space: the worker's process; an engine on the same host can detect its death. `pid_space` names
            the pid namespace, "" when unknown.
    """

    session: str
    services: tuple[str, ...]
    queues: tuple[Queue, ...]
    held: tuple[tuple[str, int], ...] = ()
    host: str = ""
    pid: int = 0
    pid_space: str = ""


class Receiver(Protocol):
    """A worker's callbacks for an engine. The methods are synchronous and do not raise."""

    def leased(self, leases: Sequence[Lease]) -> None:
        """Run these leases; they are within the worker's credit."""

    def cancel(self, jobs: Sequence[tuple[str, int]]) -> None:
        """Stop those of these attempts that still run, and settle them `cancelled`."""

    def lost(self, reason: str) -> None:
        """The session's leases are lost: stop all its attempts; their settlements would be rejected."""

    def held(self) -> Sequence[tuple[str, int]]:
        """(id, attempt) of the leases that the worker holds; called when the engine subscribes it again."""


class Session(Protocol):
    """A worker's session with an engine."""

    async def stop(self) -> None:
        """Receive no new leases; those that are held stay and are renewed. Idempotent."""

    async def close(self) -> None:
        """End the session: leases that are still held are released at once."""
