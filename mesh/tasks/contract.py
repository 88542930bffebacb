"""What an engine does with tasks: the shapes that cross to it, and the promises that each engine keeps.

Owns: the words (task, lease, settlement, job), their fields, and the Protocol that every engine fulfils.
Leaves to others: what users call (job, canvas), running a lease (runner), storing any of it (engines).

A task becomes a **job** when it is deferred: the job is the task's row, from the moment it is confirmed until it is
forgotten. A worker is given a **lease** on it: the right to run one attempt. A lease belongs to a worker's session and
is renewed with it; it ends when it is settled, or when the session does. Attempts are numbered from 1, and the number
fences: what an earlier attempt still says is refused. No number is given twice to a job, not even after a release or a
requeue; what is compared with a limit of retries is `tries`.

Instants here are wall-clock seconds since 1970 (they outlive processes); lengths are seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, Protocol

import msgspec

#: waiting: for other tasks: those that feed it, or one that comes before it in its `order` · delayed: for its time ·
#: ready: for a worker · running: a worker has a lease on it · done · dead: given up, kept until somebody looks ·
#: cancelled.
Status = Literal["waiting", "delayed", "ready", "running", "done", "dead", "cancelled"]
OVER: Final = frozenset({"done", "dead", "cancelled"})

#: done · retry: run again at `due_at` · dead: never again · release: it was not begun, the attempt does not count ·
#: cancelled: it was stopped because somebody asked for that.
Verdict = Literal["done", "retry", "dead", "release", "cancelled"]

#: Why a task ended in the dead letters.
Reason = Literal["", "failed", "undecodable", "unknown", "lost", "upstream"]

PRIORITIES: Final = range(10)
DEFAULT_PRIORITY: Final = 5


class NewTask(msgspec.Struct, array_like=True, frozen=True):
    """A task to be deferred.

    Attributes:
        id: made by whoever defers (mesh.ids.job_id), so that repeating an unanswered defer adds nothing.
        queue: "service.task".
        body: MessagePack arguments, as a call's.
        key: of two jobs of one queue with the same key, the second is not made: its ticket names the first. Known for
            as long as the first job is kept. "" for none. Of tasks that wait for each other only the last may have
            one; when it is known, none of those that feed it is made either.
        order: jobs of one queue with the same order run one after the other, as they were deferred. "" for none.
        priority: 0 to 9; of what is ready, the higher goes first, and then the older.
        due_at: not before this instant of the engine's wall clock; 0 for at once. Of older senders; see `delay_s`.
        keep_s: how long the finished job, its answer and its key are kept.
        waits: how many other tasks must be done first; it is `waiting` until then, and gets their answers as `prior`
            (nil for one that gave none).
        feeds: the id of the task that waits for this one; "" for none. It follows this one in the same unit.
        place: where this task's answer stands in the `prior` of the task that it feeds.
        gathers: `prior` is an array of answers, one for each task that it waited for; else the one answer itself.
        trace: W3C traceparent of what deferred it.
        meta: small map of text that travels with it.
        timeout_s: for one attempt, when this task is to have another than its queue; 0 for the queue's.
        delay_s: not before so much time has passed since the engine got it, whatever its wall clock says; counts
            instead of `due_at` when it is above 0.
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
    """What became of a deferred task.

    Attributes:
        id: of the job: the new one, or the first with the same key.
        fresh: whether the job was made by this unit (False: its key was known, or it feeds one whose key was). What is
            deferred again under the same id, in another unit, may be told either.
    """

    id: str
    fresh: bool = True


class Queue(msgspec.Struct, array_like=True, frozen=True):
    """What a worker says of one of its queues when it attaches; the last to say so is right.

    Attributes:
        name: "service.task", or "service.handler" of a durable `@on`.
        credit: how many leases this worker will hold at once.
        rate_per_s: leases given out per second over the whole mesh; 0 for no limit.
        burst: how many of them may go out at once after a pause; at least 1.
        concurrency: leases held at once over the whole mesh; 0 for no limit.
        most_lost: a task whose worker died this often while it ran is dead.
        patterns: topics, for a durable subscription; its tasks are made from the event log. () for tasks.
        start: where a subscription that was not known before begins: with "new" events, or with "all" that are kept.
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
        id, attempt: what a settlement names.
        queue, body, key, trace, meta, timeout_s: as deferred.
        encoding: of `body` (mesh.protocol.messages).
        created_at: when the job was made.
        prior: answers of the tasks that it waited for (MessagePack); b"" for none.
        lost: how many workers died while they ran it.
        topic, event, offset, at: of the durable event that it delivers; "" and 0 for a task.
        tries: which try of the handler this is, from 1: counts neither what was released nor what ended with its
            worker's death (that is `lost`), and begins anew when the job is requeued.
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
    """What became of a lease. Settling the same attempt twice in the same way changes nothing, until another begins.

    Attributes:
        verdict: see Verdict.
        result: the answer (MessagePack) of what is done.
        due_at: when to try again, by the engine's wall clock; 0 for at once. Of older senders; see `delay_s`.
        reason, error, traceback: why not; kept with the job, shown to people.
        delay_s: try again after so much time; counts instead of `due_at` when it is above 0.
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
    """A job as it stands, for people and for `Job`.

    Attributes:
        attempt: attempts begun so far.
        lost: how many of them ended with their worker's death.
        worker: the session that has the lease, while it is running.
        result: b"" until it is done.
        ends_at: when the finished job will be forgotten; 0 while it is not finished, or when it is dead.
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
    """A queue as it stands.

    Attributes:
        oldest_s: how long the oldest ready task has been ready; 0 when none is.
        workers: sessions that are attached to it.
        rate_per_s, concurrency: the limits in force; 0 for none.
        patterns, position, backlog: of a durable subscription: its topics, the offset up to which its tasks were made,
            and how many kept events stand after that.
        done: finished ever, over restarts of the store (the engine in memory: since it started).
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
    """What a worker offers to run, in one session.

    Attributes:
        session: unique for a process's life; the same when it attaches again.
        services: of which it knows every task: a ready task of theirs that no worker declares is unknown.
        queues: what it runs.
        held: (id, attempt) of the leases that it still has, when it attaches again.
        host, pid, pid_space: where it lives; an engine on the same host can see that it is dead. `pid_space` names the
            pid namespace, "" when unknown.
    """

    session: str
    services: tuple[str, ...]
    queues: tuple[Queue, ...]
    held: tuple[tuple[str, int], ...] = ()
    host: str = ""
    pid: int = 0
    pid_space: str = ""


class Receiver(Protocol):
    """A worker, as an engine sees it. The methods are synchronous and do not raise."""

    def leased(self, leases: Sequence[Lease]) -> None:
        """Run these; there was credit for them."""

    def cancel(self, jobs: Sequence[tuple[str, int]]) -> None:
        """Stop these attempts, if they still run, and settle them `cancelled`."""

    def lost(self, reason: str) -> None:
        """The session's leases are gone: whatever runs must stop, settling it would be refused."""

    def held(self) -> Sequence[tuple[str, int]]:
        """(id, attempt) of what it has in hand; asked when the engine attaches it again."""


class Session(Protocol):
    """A worker's standing order with an engine."""

    async def stop(self) -> None:
        """No new leases; those in hand stay and are renewed. Harmless the second time."""

    async def close(self) -> None:
        """End it: leases that are still held are released at once."""


class Tasks(Protocol):
    """The tasks of an engine.

    Every engine keeps these promises, and tests/contract/test_tasks.py holds it to them:

    - What `defer`, `settle`, `cancel`, `requeue` or `drop` returned from is durable.
    - A job is leased to one session at a time, and for as long as that lives; each lease has a new attempt number.
    - A session that is silent for the lease time has died. Its tasks become ready again, `lost` by one more; those
      that were lost `most_lost` times are dead ("lost"). A task that was lost twice runs alone in its worker, so that
      innocent tasks are not counted with one that kills.
    - Of one queue the order is: priority, then age; a job is as old as its defer, whatever it has been through since.
      `order` lets only the oldest of its jobs run, whatever its delay; when that is over, the next does. An older one
      that is requeued waits until the one whose turn it is is over.
    - `rate_per_s` and `concurrency` hold over all sessions together, as the last worker to declare the queue said.
    - Whom somebody asked to cancel does not run again, whatever its worker says or dies of; done and dead remain so.
    - A waiting task becomes ready in the same commit in which the last one it waits for is done. When one of those
      ends otherwise, it is dead ("upstream"), and so is what waits for it in turn. Requeueing the cause mends both; the
      cause is what counts as requeued, and what died of it is not requeued by itself.
    - A ready task of a service that is attached, in a queue that none of its workers declared for `unknown_after`, is
      dead ("unknown").
    - Methods wait for an engine that is away, until `timeout_s` is over; then they raise TryLater or Uncertain.

    Every method raises Unwritable when the disk takes nothing, where it writes.
    """

    async def defer(self, tasks: Sequence[NewTask], *, timeout_s: float) -> list[Ticket]:
        """All in one commit."""

    async def attach(self, offer: Offer, receiver: Receiver) -> Session:
        """Begin to receive leases. The engine attaches again by itself when its connection breaks."""

    async def settle(self, settlements: Sequence[Settlement], *, timeout_s: float) -> None:
        """All in one commit.

        Raises:
            LeaseLost: one of them is not of the current attempt; nothing was settled.
        """

    async def job(self, id: str, *, timeout_s: float) -> JobInfo | None: ...

    async def wait(self, id: str, *, timeout_s: float) -> JobInfo:
        """The job when it is over.

        Raises:
            UnknownJob, DeadlineExceeded.
        """

    async def cancel(self, id: str, *, timeout_s: float) -> JobInfo:
        """Cancel what is not over; what runs is told to stop, and is `cancelled` when it has. The job as it stands.

        Raises:
            UnknownJob.
        """

    async def queues(self, *, timeout_s: float) -> list[QueueInfo]:
        """Every queue and durable subscription with a job or a worker, by name."""

    async def jobs(
        self, queue: str, status: Status, *, after: str = "", limit: int = 100, timeout_s: float
    ) -> list[JobInfo]:
        """A page of jobs: oldest first; what is delayed by its time, what is done or cancelled by when it will be
        forgotten. `after` is the last id of the page before, which may have been dropped since.
        """

    async def requeue(self, queue: str, ids: Sequence[str] = (), *, timeout_s: float) -> int:
        """Dead jobs become ready again, as old as they are, with `tries` and `lost` counted anew: these, or all of the
        queue. How many.
        """

    async def drop(self, queue: str, ids: Sequence[str] = (), *, timeout_s: float) -> int:
        """Forget dead jobs: these, or all of the queue. How many."""
