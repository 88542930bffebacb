"""Firing schedules: every worker tries, one succeeds.

Owns: waking at due times, deferring the task of each and advancing the schedule, and recovering from an unreachable
engine, a changed clock, or a race that another worker won.
Leaves to others: when a schedule is due (plan), committing (Fire), running the task (tasks.runner).

There is no leader. Each worker of a schedule sleeps until it is due and then commits one unit: the task, and the
advance of the last due time from A to B. The first worker succeeds; for the others A is no longer the last due time, so
they read the schedule again and sleep. Even if a worker dies, either both are committed or neither.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec

from mesh import ids
from mesh.clock import Clock
from mesh.errors import Conflict, MeshError, TryLater, Uncertain
from mesh.policy.backoff import Backoff
from mesh.schedules.contract import Advance, Missed, Schedule, Schedules
from mesh.schedules.plan import MOST, BadPlan, Due, Plan, due, parse, stamp
from mesh.tasks.contract import DEFAULT_PRIORITY, NewTask
from mesh.tasks.engine import Queues
from mesh.telemetry.logs import get_logger
from mesh.telemetry.metrics import Counter, Recorder

log = get_logger("mesh.schedules")

#: Longest sleep, however far the next due time is: clocks are set, machines sleep, and another version may have changed
#: the plan.
LOOK_S: Final = 60.0
#: The workers of one schedule wake at random moments of this span, so that most of them find the work done.
SPREAD_S: Final = 0.25
#: Tasks in one commit, when many due times are run.
AT_ONCE: Final = 100
#: A last due time that is further in the future than this was written by a host with a wrong clock.
AHEAD_S: Final = 90.0

#: Defer the tasks and advance the schedule: both or neither, or, where an engine cannot, in this order (see `apart`).
#: (tasks, advance, timeout_s); raises Conflict when `advance.from_at` is not the last due time any more.
Fire = Callable[[Sequence[NewTask], Advance, float], Awaitable[None]]


class Recurring(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule, as its service declares it.

    Attributes:
        name: "service.method": the name of the schedule.
        plan: when it is due.
        missed: how to handle due times at which no worker was running.
        queue: the queue of its tasks; "" for a queue with the schedule's name.
        priority, keep_s, timeout_s: of its tasks, as NewTask has them.
    """

    name: str
    plan: Plan
    missed: Missed = "once"
    queue: str = ""
    priority: int = DEFAULT_PRIORITY
    keep_s: float = 3600.0
    timeout_s: float = 0.0


def apart(queues: Queues, schedules: Schedules) -> Fire:
    """`Fire` for engines that cannot commit both together: the tasks first, then the advance.

    When a worker dies in between, the next one defers the tasks again: no second job is made, because their keys, which
    contain the due time, are known.
    """

    async def fire(made: Sequence[NewTask], advance: Advance, timeout_s: float) -> None:
        if made:
            await queues.defer(made, timeout_s=timeout_s)
        if not await schedules.advance(advance, timeout_s=timeout_s):
            raise Conflict(f"schedule {advance.name} was advanced by another worker")

    return fire


class Driver:
    """Drives the schedules of one worker: run `run` in a task, and cancel it to end.

    ::

        async def fire(tasks, advance, timeout_s):
            await engine.commit(Unit(id=ids.job_id(), tasks=tasks, advance=(advance,)), timeout_s=timeout_s)

        driver = Driver(recurring, engine.schedules, fire, clock=clock, rng=rng, recorder=recorder)
        running = asyncio.create_task(driver.run())
    """

    def __init__(
        self,
        recurring: Sequence[Recurring],
        schedules: Schedules,
        fire: Fire,
        *,
        clock: Clock,
        rng: random.Random,
        recorder: Recorder,
        timeout_s: float = 10.0,
    ) -> None:
        """Args:
        fire: see `Fire`: one unit of an engine that has tasks and schedules, else `apart`.
        timeout_s: how long one request waits for an unreachable engine; after that it is repeated.
        """
        self._schedules = schedules
        self._fire = fire
        self._clock = clock
        self._rng = rng
        self._timeout_s = timeout_s
        # Resume within seconds of an engine's return, without all workers retrying at once.
        self._backoff = Backoff(0.5, 10.0)
        self._courses = {one.name: _Course(one, recorder) for one in recurring}

    async def run(self) -> None:
        """Declare the schedules, then fire them as they become due. Ends only by being cancelled."""
        if not self._courses:
            return
        failures = 0
        declared = False
        while True:
            try:
                if not declared:
                    await self._declare(list(self._courses))
                    declared = True
                else:
                    await self._read()
                await self._turn()
            except MeshError as exc:
                failures += 1
                if failures == 1:
                    log.warning("schedules.waiting", error=exc.message, code=exc.code)
            except Exception:
                failures += 1
                # Continue after any error: schedules that stop silently are worse.
                log.exception("schedules.failed")
            else:
                if failures:
                    log.info("schedules.resumed", failures=failures)
                failures = 0
            await self._rest(failures)

    # --- what the engine knows ----------------------------------------------------------------------------

    async def _declare(self, names: Sequence[str]) -> None:
        now = self._clock.wall()
        told = [self._courses[name].declared(now) for name in names]
        for row in await self._schedules.declare(told, timeout_s=self._timeout_s):
            if row.name in self._courses:
                self._courses[row.name].learn(row, now)

    async def _read(self) -> None:
        now = self._clock.wall()
        rows = {row.name: row for row in await self._schedules.schedules(timeout_s=self._timeout_s)}
        # A schedule is missing when the engine was restored from a backup made before it was declared.
        missing = [name for name in self._courses if name not in rows]
        if missing:
            await self._declare(missing)
        for name, course in self._courses.items():
            if name in rows:
                course.learn(rows[name], now)

    # --- firing -------------------------------------------------------------------------------------------

    async def _turn(self) -> None:
        """Fire the due schedules. One that another worker fired first is read again before the next round.

        Raises:
            TryLater, Uncertain: the engine is unreachable.
        """
        for course in self._courses.values():
            found = course.due(self._clock.wall())
            if found is None:
                continue
            try:
                await self._run(course, found)
            except Conflict:
                log.debug("schedule.fired_elsewhere", schedule=course.name)
            except (TryLater, Uncertain):
                raise
            except Exception:
                # An error of one schedule does not delay the others.
                course.failures += 1
                if course.failures == 1:
                    log.exception("schedule.failed", schedule=course.name)
                course.not_before = self._clock.wall() + self._backoff.delay(course.failures, self._rng.random())

    async def _run(self, course: _Course, found: Due) -> None:
        """Commit the runs, in parts; each part advances the schedule to its last run."""
        for start in range(0, max(len(found.run), 1), AT_ONCE):
            part = found.run[start : start + AT_ONCE]
            last = start + AT_ONCE >= len(found.run)
            to_at = found.to_at if last else part[-1]
            advance = Advance(name=course.name, from_at=course.last_at, to_at=to_at)
            await self._fire([course.task(at) for at in part], advance, self._timeout_s)
            course.fired(part, to_at)
        course.told_missed(found)

    # --- waiting ------------------------------------------------------------------------------------------

    async def _rest(self, failures: int) -> None:
        """Sleep until a schedule is due, or for LOOK_S at most."""
        clock, rng = self._clock, self._rng
        if failures:
            await clock.sleep(self._backoff.delay(failures, rng.random()))
            return
        now = clock.wall()
        due_in_s = min(
            (at - now for course in self._courses.values() if (at := course.next_at) is not None), default=LOOK_S
        )
        if due_in_s < LOOK_S:
            await clock.sleep(max(0.0, due_in_s) + rng.random() * SPREAD_S)
        else:
            # Spread these wake-ups too.
            await clock.sleep(LOOK_S * (1 - 0.1 * rng.random()))


class _Course:
    """One schedule and its progress."""

    def __init__(self, declaration: Recurring, recorder: Recorder) -> None:
        self._declaration = declaration
        self.name = declaration.name
        self.last_at = 0.0
        #: The plan in force: the engine's, so that two versions of a service with different plans agree.
        self._plan: Plan | None = None
        self._plan_text = ""
        self._missed = declaration.missed
        self._ahead = False
        #: Consecutive errors of this schedule, and the end of the wait after the last one.
        self.failures = 0
        self.not_before = 0.0
        name = declaration.name
        self._fired: Counter = recorder.counter(
            "schedule_fired", "Due times for which this process deferred the task.", schedule=name
        )
        self._skipped: Counter = recorder.counter(
            "schedule_missed", "Due times that were missed and not caught up on.", schedule=name
        )

    def declared(self, now: float) -> Schedule:
        """The declaration for the engine."""
        one = self._declaration
        return Schedule(name=one.name, plan=one.plan.text, missed=one.missed, last_at=now)

    def learn(self, row: Schedule, now: float) -> None:
        """Adopt the engine's row."""
        self.last_at = row.last_at
        self._missed = row.missed
        if row.plan != self._plan_text:
            self._plan_text = row.plan
            self._plan = self._read(row.plan)
        if (ahead := row.last_at - now > AHEAD_S) and not self._ahead:
            log.warning(
                "schedule.ahead",
                schedule=self.name,
                last=stamp(row.last_at),
                reason="the last run is in the future, so the schedule waits: a host's clock is or was wrong",
            )
        self._ahead = ahead

    def _read(self, text: str) -> Plan | None:
        mine = self._declaration.plan
        if text == mine.text:
            return mine
        try:
            plan = parse(text)
        except BadPlan as exc:
            log.error("schedule.plan_unreadable", schedule=self.name, error=exc.message)
            return None
        log.warning(
            "schedule.plan_replaced",
            schedule=self.name,
            declared=text,
            mine=mine.text,
        )
        return plan

    @property
    def next_at(self) -> float | None:
        """The next due time, or the end of a wait after an error if that is later; None when unknown."""
        at = None if self._plan is None else self._plan.after(self.last_at)
        return at if at is None else max(at, self.not_before)

    def due(self, now: float) -> Due | None:
        """The due times to handle at `now`."""
        # The wait after an error does not become longer when the clock is set back.
        if self._plan is None or now < self.not_before < now + LOOK_S:
            return None
        return due(self._plan, self.last_at, now, self._missed)

    def task(self, due_at: float) -> NewTask:
        """The task of one due time."""
        one = self._declaration
        return NewTask(
            id=ids.job_id(),
            queue=one.queue or one.name,
            body=b"",
            key=f"{one.name}@{stamp(due_at)}",
            priority=one.priority,
            keep_s=one.keep_s,
            timeout_s=one.timeout_s,
            meta={"schedule": one.name, "due": stamp(due_at)},
        )

    def fired(self, run: Sequence[float], to_at: float) -> None:
        """Record that the engine committed the runs."""
        self.last_at = to_at
        self.failures = 0
        self._fired.add(len(run))
        if run:
            log.debug("schedule.fired", schedule=self.name, due=stamp(run[-1]), runs=len(run))

    def told_missed(self, found: Due) -> None:
        """Log and count missed due times."""
        if found.missed:
            self._skipped.add(found.missed)
            log.warning(
                "schedule.missed",
                schedule=self.name,
                policy=self._missed,
                runs=len(found.run),
                not_run=found.missed if found.missed < MOST else f"{MOST} or more",
                until=stamp(found.to_at),
            )
