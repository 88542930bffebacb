"""The contracts that an engine implements for work: leases, queues, jobs.

Owns: the three Protocols and their promises. Leaves to others: the data types (contract), durable events (events.log).

Leases are one contract for everything that is leased: the tasks of a queue and the deliveries of a durable
subscription. An engine with only one of the two implements the same `Leases`. Capabilities refine the contracts:

- `queues`: `Queues`, and `Leases` for their tasks. `jobs`: `Jobs`, unique keys, and the ids of `requeue` and `drop`.
- `flows`: the fields `waits`, `feeds` and `order` of a task. `quotas`: `rate_per_s` and `concurrency` of a queue.

An engine without a capability raises NotOffered for a task or a queue that needs it (mesh.engines.semantics.offering).
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol

from mesh.tasks.contract import JobInfo, NewTask, Offer, QueueInfo, Receiver, Session, Settlement, Status, Ticket


class Leases(Protocol):
    """Leases on tasks and on deliveries of durable events.

    Every engine keeps these promises; tests/contract/test_leases.py and the suites of tasks and events check them:

    - When `acknowledge`, `requeue` or `drop` returns, its changes are durable.
    - A job is leased to one session at a time, for as long as the session lives; each lease has a new attempt number.
    - A session that is silent for the lease time has died. Its jobs become ready again, with `lost` increased by one;
      a job that was lost `most_lost` times is dead ("lost"). A job that was lost twice runs alone in its worker, so
      that a job that kills its worker does not raise `lost` of other jobs.
    - The jobs of a queue run by priority, then by age. The age of a job counts from its defer, even after a retry or a
      requeue.
    - `rate_per_s` and `concurrency` hold for all sessions together; the latest declaration of the queue is in force.
    - A ready task of a subscribed service, in a queue that none of its workers declared for `unknown_after`, is dead
      ("unknown").
    - Methods wait for an unreachable engine until `timeout_s` is over; then they raise TryLater or Uncertain.

    Every method that writes raises Unwritable when the engine is read-only or its disk is full.
    """

    async def subscribe(self, offer: Offer, receiver: Receiver) -> Session:
        """Subscribe to leases. The engine subscribes again by itself when its connection breaks.

        Raises:
            NotOffered: the engine has no durable subscriptions, no queues, or no quotas, and a queue needs them.
        """

    async def acknowledge(self, settlements: Sequence[Settlement], *, timeout_s: float) -> None:
        """Acknowledge (ack or nack) leases in one commit.

        Raises:
            LeaseLost: one settlement is not of the job's current attempt; nothing was acknowledged.
        """

    async def queues(self, *, timeout_s: float) -> list[QueueInfo]:
        """Every queue and durable subscription with a job or a worker, sorted by name."""

    async def dead(self, queue: str, *, after: str = "", limit: int = 100, timeout_s: float) -> list[JobInfo]:
        """A page of the dead letters of a queue or durable subscription, oldest first. `after`: see Jobs.page."""

    async def requeue(self, queue: str, ids: Sequence[str] = (), *, timeout_s: float) -> int:
        """Make dead jobs ready again, these or all of the queue; return how many. They keep their age; `tries` and
        `lost` restart.

        Raises:
            NotOffered: `ids` were given, and the engine has no `jobs`.
        """

    async def drop(self, queue: str, ids: Sequence[str] = (), *, timeout_s: float) -> int:
        """Delete dead jobs, these or all of the queue; return how many. Raises: as `requeue`."""


class Queues(Protocol):
    """Enqueueing of tasks. tests/contract/test_tasks.py checks these promises of every engine:

    - When `defer` returns, the tasks are durable; of tasks with an id that is known none is made again.
    - `flows`: of the jobs with the same `order` only the oldest may run; the others wait until it is over, even while
      it is delayed. An older job that is requeued waits until the present one is over.
    - `flows`: a waiting task becomes ready in the same commit in which the last task that it waits for is done. When
      one of those ends otherwise, the waiting task is dead ("upstream"), and so are the tasks that wait for it in turn.
      Requeueing the cause restores them all; only the cause counts as requeued, and a task that died of it cannot be
      requeued by itself.
    """

    def defer(self, tasks: Sequence[NewTask], *, timeout_s: float) -> Awaitable[Sequence[Ticket]]:
        """Enqueue the tasks in one commit."""


class Jobs(Protocol):
    """Jobs by their ids: status, result, cancelling. tests/contract/test_jobs.py checks this promise of every engine:

    - A cancelled job never runs again, whatever its worker reports and even if the worker dies; jobs that are done or
      dead remain so.
    """

    async def find(self, id: str, *, timeout_s: float) -> JobInfo | None:
        """The job; None when it is unknown or its retention is over."""

    async def wait(self, id: str, *, timeout_s: float) -> JobInfo:
        """Wait until the job is over; return it.

        Raises:
            UnknownJob, DeadlineExceeded.
        """

    async def cancel(self, id: str, *, timeout_s: float) -> JobInfo:
        """Cancel a job that is not over; return its present state. A running attempt is asked to stop, and the job
        is `cancelled` when it has stopped.

        Raises:
            UnknownJob.
        """

    async def page(
        self, queue: str, status: Status, *, after: str = "", limit: int = 100, timeout_s: float
    ) -> list[JobInfo]:
        """A page of jobs, oldest first; delayed jobs sorted by due time, done and cancelled ones by the end of their
        retention. `after` is the last id of the previous page; that job may have been dropped since.
        """
