"""Running leases: from an engine's push to the acknowledgement of each attempt.

Owns: the running attempts, their timeouts, stopping them, and the verdict of each.
Leaves to others: scheduling (engines), the rule for failures (verdicts), sending acknowledgements until they are
confirmed (acknowledging), the function of a task (attempt.Work, made by worker.workload).

The worker declares how many attempts run at once when it subscribes (`Queue.credit`): nothing is queued here.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Iterable, Sequence
from contextvars import copy_context
from typing import Final

import msgspec

from mesh.calls.context import CURRENT
from mesh.calls.exhaustion import note
from mesh.calls.expiry import Expiries
from mesh.calls.failures import failure_of, location, reduced
from mesh.calls.offload import Offload, RefusedInChild
from mesh.calls.propagation import split, unverified
from mesh.clock import Clock
from mesh.errors import BadRequest, Conflict, DeadlineExceeded, LeaseLost, MeshError, TooLarge
from mesh.forking import end_forked_child
from mesh.policy.backoff import Backoff
from mesh.tasks.acknowledging import Acknowledge, Acknowledging
from mesh.tasks.attempt import Attempt, Stop, Work, begin, run_offloaded
from mesh.tasks.contract import Lease, Reason, Settlement, Verdict
from mesh.tasks.exceptions import MOST_ERROR, code, sentence, trace
from mesh.tasks.verdicts import judge
from mesh.telemetry.logs import get_logger
from mesh.telemetry.metrics import Recorder
from mesh.telemetry.traces import accept, child
from mesh.telemetry.traces import current as TRACE

log = get_logger("mesh.tasks")

#: A Conflict at the commit means that a concurrent write came first: the handler runs again soon, on the same lease.
#: After so many conflicts it counts as a failure, so that handlers in permanent conflict do not loop for ever.
MOST_CONFLICTS: Final = 20
AFTER_CONFLICT: Final = Backoff(0.01, 0.5)


class Runner:
    """The Receiver of one session. One event loop owns it."""

    def __init__(
        self,
        works: Iterable[Work],
        acknowledge: Acknowledge,
        *,
        clock: Clock,
        offload: Offload | None,
        recorder: Recorder,
        rng: random.Random,
        identity: str = "",
        max_result: int = 64 * 2**20,
        verifies: bool = False,
    ) -> None:
        """Args:
        max_result: maximum size of an answer that an engine accepts, in bytes.
        verifies: [access] is declared, and the engine does not check who names a principal: mark all of them.
        """
        self._verifies = verifies
        self.works = {work.queue: work for work in works}
        self._clock = clock
        self._now = clock.now
        self._offload = offload
        self._random = rng.random
        self._identity = identity
        self._max_result = max_result
        self._loop = asyncio.get_running_loop()
        self._expiries = Expiries(clock)
        self._settling = Acknowledging(acknowledge, clock, rng.random)
        self._held: dict[tuple[str, int], Attempt] = {}
        self._stats = {queue: recorder.method("task", *_parted(queue)) for queue in self.works}
        self._dead = recorder.counter("tasks_dead", "Attempts that sent their task to the dead letters.")
        self._retried = recorder.counter("tasks_retried", "Attempts that failed and are retried.")
        self._lost = recorder.counter("tasks_lost", "Attempts that lost their lease while they ran.")
        # Handlers that have lost their lease and have not stopped yet.
        self._strays: set[asyncio.Task[None]] = set()
        self._idle: asyncio.Future[None] | None = None
        self._leaving = False
        # The context of a push (a call, an atomic block) does not apply to the handlers that it starts.
        self._surroundings = copy_context()
        self._surroundings.run(_forget_surroundings)

    @property
    def in_hand(self) -> int:
        """The number of attempts that run or are not acknowledged yet."""
        return len(self._held)

    # --- the engine's side --------------------------------------------------------------------------------

    def leased(self, leases: Sequence[Lease]) -> None:
        """Run these leases."""
        for lease in leases:
            self._begin(lease)

    def cancel(self, jobs: Sequence[tuple[str, int]]) -> None:
        """Stop those of these attempts that still run."""
        for job in jobs:
            attempt = self._held.get(job)
            if attempt is not None:
                self.stop_one(attempt, Stop.CANCELLED)

    def lost(self, reason: str) -> None:
        """All leases are lost: stop all attempts; their acknowledgements would be rejected."""
        attempts = list(self._held.values())
        if attempts:
            log.warning("attempt.leases_lost", count=len(attempts), reason=reason)
        for attempt in attempts:
            self._lost.add()
            self.stop_one(attempt, Stop.LOST)
            self._over(attempt, "lease_lost")
            if attempt.task is not None and not attempt.task.done():
                self._strays.add(attempt.task)
                attempt.task.add_done_callback(self._strays.discard)

    def held(self) -> Sequence[tuple[str, int]]:
        """(id, attempt) of all held leases, including those that are being acknowledged."""
        return list(self._held)

    # --- from a lease to a running handler ----------------------------------------------------------------

    def _begin(self, lease: Lease) -> None:
        key = (lease.id, lease.attempt)
        if key in self._held:
            return  # pushed twice, by an engine that did not know whether the first push arrived
        work = self.works.get(lease.queue)
        now = self._now()
        timeout_s = lease.timeout_s or (work.timeout_s if work is not None else 0.0)
        carried = None
        if lease.meta:
            meta, carried = split(lease.meta)
            if carried is not None:
                if self._verifies:
                    carried = dict(unverified(carried))
                # The event of a durable handler is made from the lease.
                lease = msgspec.structs.replace(lease, meta=meta)
        attempt = Attempt(
            lease=lease,
            target=lease.queue,
            deadline_at=now + timeout_s,
            trace=child(accept(lease.trace)),
            meta=lease.meta,
            carried=carried,
            runner=self,
            work=work or _NOTHING,
            stats=self._stats.get(lease.queue) or _NO_STATS,
            began_at=now,
        )
        self._held[key] = attempt
        attempt.stats.begin()
        if work is None:
            self._bury(attempt, "unknown", f"{self._identity or 'this worker'} has no task {lease.queue}")
        elif self._leaving:
            self._finish(attempt, "release", code="draining")
        else:
            self._launch(attempt, work)

    def _launch(self, attempt: Attempt, work: Work) -> None:
        try:
            if work.offload != "process":
                attempt.values = work.read(attempt.lease)
        # A type's own checks may raise anything, and another attempt would fail in the same way.
        except BaseException as exc:
            self._bury(attempt, "undecodable", exc.message if isinstance(exc, MeshError) else sentence(exc))
            return
        self._expiries.watch(attempt, attempt.deadline_at)
        context = self._surroundings.copy()
        task = begin(self._run(attempt, work), self._loop, work.queue, context)
        if not task.done():
            attempt.task = task

    async def _run(self, attempt: Attempt, work: Work) -> None:
        attempt.begun = True
        CURRENT.set(attempt)
        TRACE.set(attempt.trace or "")
        while True:
            try:
                if attempt.conflicts:
                    await self._clock.sleep(AFTER_CONFLICT.delay(attempt.conflicts, self._random()))
                if work.offload:
                    result = await run_offloaded(self._offload, attempt, self._now)
                else:
                    answer = work.run(*attempt.values)
                    if work.asynchronous:
                        answer = await answer
                    result = work.write(answer)
                if len(result) > self._max_result:
                    raise TooLarge(
                        f"{work.queue} returned {len(result):,} bytes; the limit is {self._max_result:,}. "
                        "Store the result elsewhere and return a reference"
                    )
            except BaseException as exc:
                self._expiries.forget(attempt)
                note(exc)
                if not isinstance(exc, Exception):
                    end_forked_child(exc)
                # Even on SystemExit and KeyboardInterrupt only the attempt fails; the worker and other attempts go on.
                self._failed(attempt, exc)
                return
            self._expiries.forget(attempt)
            if attempt.stopped is Stop.LOST:
                return
            attempt.settling = True
            if not attempt.effects:
                self._finish(attempt, "done", result=result)
                return
            if not await self._commit(attempt, Settlement(*_key(attempt), "done", result=result)):
                return
            # Run the attempt again, as if it had just begun.
            attempt.settling = False
            attempt.effects = None
            attempt.deadline_at = self._now() + attempt.timeout_s
            self._expiries.watch(attempt, attempt.deadline_at)

    # --- how an attempt ends ------------------------------------------------------------------------------

    async def _commit(self, attempt: Attempt, settlement: Settlement) -> bool:
        """Commit the acknowledgement with the effects of the handler's `atomic` blocks. Return whether to run the
        handler again.
        """
        try:
            await self._settling.commit(settlement, attempt.effects)
        except asyncio.CancelledError:
            # The lease is lost or the worker ends: the next attempt, if any, finds whether this one was committed.
            self._over(attempt, "cancelled")
            raise
        except LeaseLost as exc:
            self._refused(attempt, exc)
        except Exception as exc:
            if isinstance(exc, Conflict):
                attempt.conflicts += 1
                if attempt.conflicts < MOST_CONFLICTS:
                    return True
            self._failed(attempt, exc)
        else:
            self._over(attempt, "")
        return False

    def _failed(self, attempt: Attempt, exc: BaseException) -> None:
        """The handler raised, or was stopped."""
        stopped = attempt.stopped
        if stopped is Stop.LOST:
            self._over(attempt, "lease_lost")
            return
        if isinstance(exc, asyncio.CancelledError):
            if stopped is Stop.CANCELLED:
                self._finish(attempt, "cancelled", code="cancelled")
                return
            if stopped is Stop.LEAVING:
                # The task did not fail: it runs again at once, regardless of its retries.
                error = f"{self._identity} stopped before it was done"
                self._finish(attempt, "retry", code="draining", error=error)
                return
            if stopped is Stop.TIMEOUT:
                exc = DeadlineExceeded(f"{attempt.target}: not done within {attempt.timeout_s:.3g} s")
        if isinstance(exc, RefusedInChild):
            self._bury(attempt, "undecodable", str(exc))
            return
        work = attempt.work
        failure = failure_of(exc, attempt.target)
        ruling = judge(
            exc,
            failed=attempt.lease.tries,
            retries=work.retries,
            backoff=work.backoff,
            fatal=work.fatal,
            rnd=self._random(),
        )
        exc = reduced(exc)
        if isinstance(exc, asyncio.CancelledError):
            exc = failure.error.with_traceback(exc.__traceback__)
        told = {
            "target": attempt.target,
            "job": attempt.job,
            "attempt": attempt.attempt,
            "error": sentence(exc),
            "at": location(exc, work.run),
        }
        if ruling.verdict == "dead":
            self._dead.add()
            log.error("task.dead", **told, exc_info=exc if failure.unexpected else None)
        else:
            self._retried.add()
            log.warning("attempt.failed", **told, after_s=round(ruling.delay_s, 3))
        self._finish(
            attempt,
            ruling.verdict,
            code=code(exc),
            delay_s=ruling.delay_s if ruling.verdict == "retry" else 0.0,
            reason=ruling.reason,
            error=sentence(exc),
            trace=trace(exc),
        )

    def _bury(self, attempt: Attempt, reason: Reason, error: str) -> None:
        """Send the task to the dead letters: it cannot run, or its end was rejected."""
        self._dead.add()
        log.error("task.dead", target=attempt.target, job=attempt.job, reason=reason, error=error)
        self._finish(attempt, "dead", code=reason, reason=reason, error=error[:MOST_ERROR])

    def _finish(
        self,
        attempt: Attempt,
        verdict: Verdict,
        *,
        code: str = "",
        result: bytes = b"",
        delay_s: float = 0.0,
        reason: Reason = "",
        error: str = "",
        trace: str = "",
    ) -> None:
        """Acknowledge without effects."""
        attempt.settling = True
        lease = attempt.lease
        # For a store of an older release, which does not know `delay_s`.
        due_at = self._clock.wall() + delay_s if delay_s else 0.0
        settlement = Settlement(lease.id, lease.attempt, verdict, result, due_at, reason, error, trace, delay_s)

        def heard(failure: MeshError | None) -> None:
            if failure is None:
                self._over(attempt, code)
            elif isinstance(failure, BadRequest) and verdict != "dead":
                # This worker still holds the lease, and would hold it for ever.
                self._bury(attempt, "failed", f"its acknowledgement ({verdict}) was rejected: {failure.message}")
            else:
                self._refused(attempt, failure)

        self._settling.add(settlement, lambda: attempt.stopped is not Stop.LOST, heard)

    def _refused(self, attempt: Attempt, failure: MeshError) -> None:
        """The acknowledgement was rejected: another worker has the task, or will get it."""
        log.warning("ack.refused", target=attempt.target, job=attempt.job, error=failure.message)
        self._over(attempt, failure.code)

    def _over(self, attempt: Attempt, code: str) -> None:
        """Remove the attempt and record its end."""
        # The attempt's deadline no longer applies to work that the handler left running in the background.
        attempt.deadline_at = math.inf
        if self._forget(attempt):
            attempt.stats.end(self._now() - attempt.began_at, code)

    def _forget(self, attempt: Attempt) -> bool:
        known = self._held.pop(_key(attempt), None) is not None
        if self._idle is not None and not self._held and not self._idle.done():
            self._idle.set_result(None)
        return known

    # --- stopping -----------------------------------------------------------------------------------------

    def stop_one(self, attempt: Attempt, why: Stop) -> None:
        """Stop a handler by cancelling its task. A handler that has returned is still acknowledged."""
        if attempt.stopped is not Stop.NO and why is not Stop.LOST:
            return
        if attempt.settling and why is not Stop.LOST:
            return
        if why is Stop.TIMEOUT and self._has_time(attempt):
            return
        attempt.stopped = why
        self._expiries.forget(attempt)
        if attempt.hold is not None:
            attempt.hold.cancel()
        task = attempt.task
        if task is None:
            return
        task.cancel()
        if not attempt.begun:
            # An asyncio task that is cancelled before its first step never runs: handle its end here.
            if why is Stop.LEAVING:
                self._finish(attempt, "release", code="draining")
            else:
                self._failed(attempt, asyncio.CancelledError())

    def _has_time(self, attempt: Attempt) -> bool:
        """Whether the attempt has time left: waiting for a thread or process of a pool does not count."""
        if attempt.hold is None:
            return False
        now = self._now()
        due_at = attempt.deadline_at if attempt.taken_up else now + attempt.timeout_s
        if due_at <= now:
            return False
        self._expiries.watch(attempt, due_at)
        return True

    async def drain(self, timeout_s: float) -> bool:
        """Drain: finish the running attempts; return whether they ended in time. New leases are released.

        Attempts that have not begun are released. After `timeout_s` the remaining ones are stopped and will run again
        elsewhere; their acknowledgements are not awaited.
        """
        self._leaving = True
        for attempt in list(self._held.values()):
            # Work that waits for a thread or process can be taken back; work that has started there cannot.
            if not attempt.begun or (attempt.hold is not None and attempt.hold.cancel()):
                self.stop_one(attempt, Stop.LEAVING)
        if await self._until_idle(timeout_s):
            return True
        for attempt in list(self._held.values()):
            self.stop_one(attempt, Stop.LEAVING)
        return False

    async def _until_idle(self, timeout_s: float) -> bool:
        if not self._held:
            return True
        self._idle = self._loop.create_future()
        timer = self._clock.call_at(self._now() + timeout_s, _wake, self._idle)
        try:
            await self._idle
        finally:
            timer.cancel()
            self._idle = None
        return not self._held

    async def close(self, patience_s: float = 0.0) -> None:
        """Stop all attempts; wait at most `patience_s` for the acknowledgements."""
        self._leaving = True
        for attempt in list(self._held.values()):
            self.stop_one(attempt, Stop.LEAVING)
        if patience_s > 0:
            await self._until_idle(patience_s)
        await self._settling.close()
        self.lost("the worker ends")
        await asyncio.gather(*self._strays, return_exceptions=True)
        self._expiries.close()


_NOTHING: Final = Work("", lambda: None, lambda lease: (), lambda answer: b"", 0, Backoff(1.0, 1.0), 0.0)
_NO_STATS: Final = Recorder().method("task", "other", "other")


def _key(attempt: Attempt) -> tuple[str, int]:
    lease = attempt.lease
    return lease.id, lease.attempt


def _parted(queue: str) -> tuple[str, str]:
    service, _, name = queue.rpartition(".")
    return service, name


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _forget_surroundings() -> None:
    CURRENT.set(None)
    TRACE.set("")
