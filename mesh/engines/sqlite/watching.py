"""Waiting for jobs to be over: one stream for all that this process waits for.

Owns: the waiting callers of each job, subscribing at the store, and doing so again after the stream was lost.
Leaves to others: when a job is over (the store).

A separate call for each awaited job would use up the link's credit, and a thousand of them would block other calls.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence
from contextvars import Context
from typing import Final

from mesh import ids
from mesh.calls.expiry import Expiries
from mesh.calls.options import CallOptions
from mesh.clock import Clock
from mesh.engines.sqlite.asking import Asker, answer_of, passing
from mesh.engines.sqlite.messages import DAY_S, FOLLOW, UNFOLLOW, WATCH, Over, encode
from mesh.errors import Cancelled, DeadlineExceeded, Forbidden, MeshError, Unavailable, UnknownJob
from mesh.policy.backoff import Backoff
from mesh.tasks.contract import JobInfo
from mesh.telemetry.logs import get_logger

log = get_logger("mesh.engines.sqlite")

AGAIN: Final = Backoff(0.05, 1.0)
#: Ids in one message to the store.
MOST_IDS: Final = 1000
#: Timeout of one request to the store; it is then repeated.
ASK_S: Final = 5.0

_read_over: Final = answer_of(Over)
_read_nothing: Final = answer_of(None)


class Waiting(asyncio.Future[JobInfo]):
    """One wait for a job."""

    __slots__ = ("job", "slot", "timeout_s")

    job: str
    slot: int
    timeout_s: float

    def expire(self) -> None:
        """The timeout is over."""
        if not self.done():
            self.set_exception(DeadlineExceeded(f"job {self.job} did not end within {self.timeout_s:.3g} s"))


class Watching:
    """All waits of this process. One event loop owns it."""

    def __init__(self, asker: Asker, clock: Clock, rng: random.Random) -> None:
        self._asker = asker
        self._clock = clock
        self._random = rng.random
        self._loop = asyncio.get_running_loop()
        self._expiries = Expiries(clock)
        self._context = Context()
        self._waiting: dict[str, set[Waiting]] = {}
        # Ids to follow and to unfollow, not yet sent to the store, in order.
        self._new: dict[str, None] = {}
        self._old: dict[str, None] = {}
        self._scheduled = False
        self._name = ""
        self._task: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None

    def wait(self, job: str, timeout_s: float) -> Waiting:
        """An awaitable for the job when it is over.

        Raises, when awaited: UnknownJob, DeadlineExceeded.
        """
        waiting = Waiting(loop=self._loop)
        waiting.job = job
        waiting.timeout_s = timeout_s
        waiting.slot = 0
        self._expiries.watch(waiting, self._clock.now() + timeout_s)
        others = self._waiting.get(job)
        if others is None:
            self._waiting[job] = {waiting}
            self._old.pop(job, None)
            self._new[job] = None
            self._schedule()
        else:
            others.add(waiting)
        waiting.add_done_callback(self._ended, context=self._context)
        if self._task is None:
            self._task = self._loop.create_task(self._run(), name="mesh.watch", context=self._context)
        return waiting

    def __len__(self) -> int:
        """How many jobs are awaited."""
        return len(self._waiting)

    async def close(self) -> None:
        """End every wait with an error."""
        self._expiries.close()
        tasks = [task for task in (self._task, self._telling) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for waiting in [each for others in self._waiting.values() for each in others]:
            if not waiting.done():
                waiting.set_exception(Unavailable("this engine was closed before the job ended"))

    # --- here ---------------------------------------------------------------------------------------------------

    def _ended(self, waiting: asyncio.Future[JobInfo]) -> None:
        """Remove a wait that was answered, timed out or cancelled."""
        assert isinstance(waiting, Waiting)
        self._expiries.forget(waiting)
        others = self._waiting.get(waiting.job)
        if others is not None:
            others.discard(waiting)
            if not others:
                del self._waiting[waiting.job]
                if self._new.pop(waiting.job, 0) == 0:
                    self._old[waiting.job] = None
                    self._schedule()

    def _over(self, news: Over) -> None:
        for info in news.jobs:
            for waiting in self._take(info.id):
                if not waiting.done():
                    waiting.set_result(info)
        for job in news.gone:
            for waiting in self._take(job):
                if not waiting.done():
                    waiting.set_exception(
                        UnknownJob(f"there is no job {job}: it never existed, or its retention is over")
                    )

    def _refused(self, jobs: Sequence[str], error: Forbidden) -> None:
        """The store denied access to one of these jobs: end its waits if it is the only one, else send all again (the
        caller then sends fewer at a time).
        """
        if len(jobs) > 1:
            self._new.update((job, None) for job in jobs if job in self._waiting)
            return
        for waiting in self._take(jobs[0]):
            if not waiting.done():
                waiting.set_exception(error)

    def _take(self, job: str) -> Iterable[Waiting]:
        # After reporting a job the store no longer follows it.
        self._new.pop(job, None)
        self._old.pop(job, None)
        return self._waiting.pop(job, ())

    # --- there --------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Read one stream after another."""
        failures = 0
        while True:
            began_at = self._clock.now()
            try:
                await self._attend()
            except MeshError as error:
                if not passing(error):
                    log.error("watch.refused", reason=error.message)
            self._name = ""
            failures = 1 if self._clock.now() - began_at > AGAIN.most_s else failures + 1
            await self._clock.sleep(AGAIN.delay(failures, self._random()))

    async def _attend(self) -> None:
        # A new name for each stream, so that late messages for the previous one do not affect it.
        name = ids.job_id()
        stream = self._asker.stream(WATCH, encode((name,)), 0, CallOptions(DAY_S), decode=_read_over)
        async with stream:
            async for news in stream:
                if not self._name:
                    self._name = name
                    self._old.clear()
                    self._new = dict.fromkeys(self._waiting)
                    self._schedule()
                self._over(news)

    def _schedule(self) -> None:
        if not self._scheduled and self._name and (self._new or self._old):
            self._scheduled = True
            self._loop.call_soon(self._tell, context=self._context)

    def _tell(self) -> None:
        """Send the changes of this tick, one message at a time, so that they arrive in order."""
        self._scheduled = False
        if self._telling is None or self._telling.done():
            self._telling = self._loop.create_task(self._tell_all(), name="mesh.watch tell", context=self._context)

    async def _tell_all(self) -> None:
        most = MOST_IDS
        while self._name and (self._new or self._old):
            name = self._name
            target, said = (FOLLOW, self._new) if self._new else (UNFOLLOW, self._old)
            some = list(said)[:most]
            for job in some:
                del said[job]
            try:
                await self._asker.call(
                    target, encode((name, some)), 0, CallOptions(ASK_S, idempotent=False), decode=_read_nothing
                )
            except Forbidden as error:
                self._refused(some, error)
                most = max(1, len(some) // 2)
            except MeshError as error:
                if not passing(error) and not isinstance(error, Cancelled):
                    log.error("watch.follow_failed", reason=error.message)
                if target == FOLLOW and name == self._name:
                    self._new.update((job, None) for job in some if job in self._waiting)
                await self._clock.sleep(AGAIN.delay(1, self._random()))
