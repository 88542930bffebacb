"""schedules.driver: each due time is fired once, by whichever worker, whatever happens to the others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from schedules_bench import NAME, Bench, Worker

from mesh.clock import settle
from mesh.errors import BadRequest, Conflict, TryLater
from mesh.schedules.contract import Advance, Schedule
from mesh.schedules.driver import SPREAD_S, Recurring, apart
from mesh.schedules.plan import MOST, Cron, Every, stamp
from mesh.tasks.contract import NewTask
from mesh.telemetry import logs

DAY = 86400.0


# --- firing -----------------------------------------------------------------------------------------------


async def test_a_task_is_deferred_at_each_due_time(bench: Bench) -> None:
    """Within the moment that workers are apart; it tells which due time it is for."""
    worker = bench.worker("every 10s")
    await bench.clock.advance(9.9)
    assert await bench.due() == []
    await bench.clock.advance(0.1 + SPREAD_S)
    assert await bench.due() == [10]
    await bench.clock.advance(30)
    assert await bench.due() == [10, 20, 30, 40]
    first = (await bench.jobs())[0]
    due = stamp(bench.began_at + 10)
    assert first.key == f"{NAME}@{due}"
    assert first.body == b""
    assert first.meta == {"schedule": NAME, "due": due}
    assert worker.counted("schedule_fired") == 4


async def test_many_workers_fire_once(bench: Bench) -> None:
    """Every one of them has the schedule; each due time has one task, however it was shared out."""
    for _ in range(5):
        bench.worker("every 10s")
    await bench.clock.advance(3600.5)
    assert await bench.due() == list(range(10, 3601, 10))
    fired = [worker.counted("schedule_fired") for worker in bench.workers]
    assert sum(fired) == len(await bench.jobs())
    assert min(fired) > 0, "nobody leads"


async def test_workers_that_wake_together_fire_once(bench: Bench) -> None:
    """Of those who offer at the same moment the engine takes one; the others go on."""
    barrier = asyncio.Event()

    def together(worker: int) -> Any:
        async def fire(tasks: Sequence[NewTask], advance: Advance, timeout_s: float) -> None:
            await barrier.wait()
            await bench.workers[worker]._fire(tasks, advance, timeout_s)

        return fire

    for number in range(3):
        bench.worker("every 10s", fire=together(number))
    await bench.clock.advance(10 + SPREAD_S)
    barrier.set()
    await settle()
    assert await bench.due() == [10]
    await bench.clock.advance(10)
    assert await bench.due() == [10, 20]


async def test_what_a_task_is_given(bench: Bench) -> None:
    """Queue and options are those of the declaration."""
    bench.worker("every 10s", queue="shop.other", priority=9, keep_s=77.0)
    await bench.clock.advance(11)
    (job,) = await bench.engine.jobs.page("shop.other", "ready", timeout_s=1)
    assert job.priority == 9
    assert job.key.startswith(NAME)


async def test_a_worker_without_schedules_has_nothing_to_drive(bench: Bench) -> None:
    """Its driver ends at once."""
    worker = Worker(bench, [], 0, None)
    await settle()
    assert worker.running.done()


# --- who dies -----------------------------------------------------------------------------------------


async def test_the_others_go_on_when_a_worker_dies(bench: Bench) -> None:
    """At any moment; and when the last one dies, whoever comes next."""
    for _ in range(3):
        bench.worker("every 10s")
    await bench.clock.advance(25)
    await bench.workers[0].die()
    await bench.clock.advance(10)
    await bench.workers[1].die()
    await bench.clock.advance(10)
    await bench.workers[2].die()
    bench.worker("every 10s")
    await bench.clock.advance(10.5)
    assert await bench.due() == [10, 20, 30, 40, 50]


async def test_a_schedule_begins_when_it_is_first_declared(bench: Bench) -> None:
    """What would have been due before that was not missed; what is due after that is, by whoever comes next."""
    bench.worker("0 3 * * *")
    await bench.clock.advance(1)
    assert await bench.due() == []
    await bench.workers[-1].die()
    await bench.clock.advance(3.5 * DAY)
    bench.worker("0 3 * * *")
    await bench.clock.advance(1)
    assert await bench.due() == [3 * DAY + 4.5 * 3600], "03:00 after half past ten in the evening"


@pytest.mark.parametrize(
    ("missed", "runs", "not_run"),
    [("once", [3600], 5), ("all", [600, 1200, 1800, 2400, 3000, 3600], 0), ("skip", [], 6)],
)
async def test_due_times_that_pass_while_nobody_is_there(
    bench: Bench, missed: Any, runs: list[float], not_run: int
) -> None:
    """By what the schedule says about them."""
    before = bench.worker("every 10m", missed=missed)
    await bench.clock.advance(1)
    await before.die()
    await bench.clock.advance(3600 + 299)
    after = bench.worker("every 10m", missed=missed)
    await bench.clock.advance(1)
    assert await bench.due() == runs
    assert after.counted("schedule_missed") == not_run
    await bench.clock.advance(600)
    assert await bench.due() == [*runs, 4200]
    assert after.counted("schedule_missed") == not_run


async def test_very_many_missed_runs_are_bounded(bench: Bench) -> None:
    """The newest of them, in parts that an engine takes in its stride."""
    parts: list[int] = []
    before = bench.worker("every 10s", missed="all")
    await bench.clock.advance(1)
    await before.die()
    await bench.clock.advance(DAY)

    async def fire(tasks: Sequence[NewTask], advance: Advance, timeout_s: float) -> None:
        parts.append(len(tasks))
        await bench.workers[-1]._fire(tasks, advance, timeout_s)

    bench.worker("every 10s", missed="all", fire=fire)
    await bench.clock.advance(1)
    due = await bench.due()
    assert len(due) == MOST
    assert due[-1] == DAY
    assert parts == [100] * 10


# --- an engine that is away ---------------------------------------------------------------------------


async def test_an_engine_that_is_away_at_the_start_is_waited_for(bench: Bench) -> None:
    """The worker starts all the same."""
    worker = bench.worker("every 10s")
    worker.engine.cut()
    await bench.clock.advance(100)
    worker.engine.mend()
    await bench.clock.advance(25)
    assert (await bench.due())[-1] == 120


async def test_an_engine_that_goes_away_is_survived(bench: Bench) -> None:
    """Due times that pass meanwhile are missed ones."""
    worker = bench.worker("every 10s")
    await bench.clock.advance(12)
    worker.engine.cut()
    await bench.clock.advance(60)
    assert await bench.due() == [10]
    worker.engine.mend()
    await bench.clock.advance(12)
    assert await bench.due() == [10, 70, 80]
    assert worker.counted("schedule_missed") == 5


async def test_whatever_goes_wrong_schedules_go_on(bench: Bench) -> None:
    """Also after an error that nobody thought of."""
    errors: list[Exception] = [TryLater("full"), ZeroDivisionError("a mistake"), Conflict("no reason")]

    async def fire(tasks: Sequence[NewTask], advance: Advance, timeout_s: float) -> None:
        if errors:
            raise errors.pop(0)
        await bench.workers[0]._fire(tasks, advance, timeout_s)

    bench.worker("every 10s", fire=fire)
    await bench.clock.advance(15)
    assert await bench.due() == [10]


async def test_one_that_cannot_be_fired_does_not_hold_up_the_others(bench: Bench) -> None:
    """Whatever is wrong with it."""

    async def fire(tasks: Sequence[NewTask], advance: Advance, timeout_s: float) -> None:
        if advance.name == "shop.broken":
            raise BadRequest("it cannot be")
        await worker._fire(tasks, advance, timeout_s)

    recurring = [Recurring(name=name, plan=Every("10s")) for name in ("shop.broken", NAME)]
    worker = Worker(bench, recurring, 0, fire)
    bench.workers.append(worker)
    await bench.clock.advance(60.5)
    assert await bench.due() == [10, 20, 30, 40, 50, 60]


async def test_an_engine_that_always_refuses_is_not_stormed(bench: Bench) -> None:
    """A few requests per second, not as many as it can answer."""
    asked = 0

    async def fire(tasks: Sequence[NewTask], advance: Advance, timeout_s: float) -> None:
        nonlocal asked
        asked += 1
        raise Conflict("never")

    bench.worker("every 10s", fire=fire)
    await bench.clock.advance(20)
    assert 10 < asked < 200


# --- engines that cannot commit both together -----------------------------------------------------------


async def test_apart_the_task_comes_first(bench: Bench) -> None:
    """Who dies in between leaves a task that the next one does not make again: its key is known."""
    both = apart(bench.engine.queues, bench.engine.schedules)

    async def dying(tasks: Sequence[NewTask], advance: Advance, timeout_s: float) -> None:
        await bench.engine.queues.defer(tasks, timeout_s=timeout_s)
        await asyncio.get_running_loop().create_future()

    bench.worker("every 10s", fire=dying)
    await bench.clock.advance(11)
    assert await bench.due() == [10]
    bench.worker("every 10s", fire=both)
    await bench.clock.advance(30)
    assert await bench.due() == [10, 20, 30, 40]


async def test_apart_many_workers_fire_once(bench: Bench) -> None:
    """An advance that comes second is refused."""
    for _ in range(4):
        bench.worker("every 10s", fire=apart(bench.engine.queues, bench.engine.schedules))
    await bench.clock.advance(600.5)
    assert await bench.due() == list(range(10, 601, 10))


# --- what the engine knows ------------------------------------------------------------------------------


async def test_two_versions_agree_on_one_plan(bench: Bench) -> None:
    """The last to declare is right, for the workers of both; no due time is run by two plans."""
    bench.worker("every 10s")
    await bench.clock.advance(15)
    bench.worker("every 1m")
    await bench.clock.advance(180)
    assert await bench.due() == [10, 60, 120, 180]
    await bench.workers[1].die()
    await bench.clock.advance(65)
    assert (await bench.due())[-1] == 240, "the older one goes by the newer plan"


async def test_a_plan_that_cannot_be_read_is_left_alone(bench: Bench) -> None:
    """A later version of mesh may know more kinds."""
    bench.worker("every 10s")
    await bench.clock.advance(1)
    await bench.engine.schedules.declare([Schedule(NAME, "sunrise 52.5N", "once", bench.clock.wall())], timeout_s=1)
    await bench.clock.advance(100)
    assert await bench.due() in ([], [10])
    bench.worker("every 10s")
    await bench.clock.advance(10.5)
    assert (await bench.due())[-1] == 110


async def test_an_engine_that_has_forgotten_is_told_again(bench: Bench) -> None:
    """It was put back to a time before this schedule was declared."""
    bench.worker("every 10s")
    await bench.clock.advance(15)
    bench.memory.schedules._known.clear()
    await bench.clock.advance(100)
    assert (await bench.due())[-1] == 110


# --- clocks -----------------------------------------------------------------------------------------------


async def test_a_clock_that_is_set_ahead_is_noticed(bench: Bench) -> None:
    """Within a minute, although the next due time was far."""
    bench.worker("0 * * * *")
    await bench.clock.advance(5)
    bench.clock.set_by = 1800.0
    await bench.clock.advance(61)
    assert await bench.due() == [1800]


async def test_a_clock_that_is_set_back_runs_nothing_twice(bench: Bench) -> None:
    """What was run is not due again."""
    bench.worker("every 10m")
    await bench.clock.advance(601)
    bench.clock.set_by = -300.0
    await bench.clock.advance(301)
    assert await bench.due() == [600]
    await bench.clock.advance(602)
    assert await bench.due() == [600, 1200]


async def test_a_last_run_in_the_future_is_told(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """A host with a wrong clock wrote it; nothing can be done but say so."""
    logs.configure("warning", "json")
    try:
        await bench.engine.schedules.declare(
            [Schedule(NAME, "every 10s", "once", bench.clock.wall() + 3600)], timeout_s=1
        )
        bench.worker("every 10s")
        await bench.clock.advance(200)
    finally:
        logs.reset()
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["event"] for line in told] == ["schedule.ahead"]
    assert await bench.due() == []


async def test_a_night_of_turned_clocks_is_run_through(bench: Bench) -> None:
    """In Berlin, autumn 2024: once each night, also when it has 02:30 twice."""
    bench.clock.set_by = 1729987200.0 - bench.clock.wall()  # 2024-10-27 00:00 UTC
    bench.worker(Cron("30 2 * * *", "Europe/Berlin"))
    await bench.clock.advance(1.1 * DAY)
    keys = [job.key.rpartition("@")[2] for job in await bench.jobs()]
    assert keys == ["2024-10-27T00:30:00Z", "2024-10-28T01:30:00Z"]
