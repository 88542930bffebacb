"""Schedules: what every engine promises to remember of them."""

from __future__ import annotations

import asyncio

import pytest
from engine_rig import T_S, Rig, over_processes

from mesh.engines.contract import Engine
from mesh.errors import Conflict
from mesh.schedules.contract import Advance, Schedule

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])
NEEDS = ("schedules",)

NIGHTLY = Schedule("orders.close_day", "0 3 * * * Asia/Tokyo", "once", 1000.0)
OFTEN = Schedule("mail.sweep", "every 10s", "skip", 1003.0)


@pytest.fixture
async def engine(rig: Rig) -> Engine:
    return await rig.engine()


async def declare(engine: Engine, *schedules: Schedule) -> list[Schedule]:
    return await engine.schedules.declare(schedules, timeout_s=T_S)


async def advance(engine: Engine, from_at: float, to_at: float, name: str = NIGHTLY.name) -> bool:
    return await engine.schedules.advance(Advance(name, from_at, to_at), timeout_s=T_S)


async def test_a_new_schedule_begins_where_it_is_declared(engine: Engine) -> None:
    """Its `last_at` is the declarer's, to the last bit; all are listed by name."""
    exact = Schedule("orders.close_day", "0 3 * * *", "all", 1_700_000_000.123456)
    assert await declare(engine, exact, OFTEN) == [exact, OFTEN]
    assert await engine.schedules.schedules(timeout_s=T_S) == [OFTEN, exact]


async def test_a_known_schedule_keeps_its_place(rig: Rig, engine: Engine) -> None:
    """A worker that starts later does not move it, and is told where it stands."""
    await declare(engine, NIGHTLY)
    assert await advance(engine, 1000.0, 2000.0)
    later = Schedule(NIGHTLY.name, NIGHTLY.plan, "once", 5000.0)
    stands = Schedule(NIGHTLY.name, NIGHTLY.plan, "once", 2000.0)
    assert await declare(await rig.engine(), later) == [stands]
    assert await engine.schedules.schedules(timeout_s=T_S) == [stands]


async def test_a_changed_plan_begins_anew(engine: Engine) -> None:
    """Due times of the old plan are nothing to catch up with."""
    await declare(engine, NIGHTLY)
    await advance(engine, 1000.0, 2000.0)
    changed = Schedule(NIGHTLY.name, "0 4 * * * Asia/Tokyo", "once", 5000.0)
    assert await declare(engine, changed) == [changed]
    assert not await advance(engine, 2000.0, 6000.0)
    assert await advance(engine, 5000.0, 6000.0)


async def test_what_to_do_about_missed_runs_may_change(engine: Engine) -> None:
    """Without another plan it does not begin anew; the last to say so is right."""
    await declare(engine, NIGHTLY)
    await advance(engine, 1000.0, 2000.0)
    stands = Schedule(NIGHTLY.name, NIGHTLY.plan, "all", 2000.0)
    assert await declare(engine, Schedule(NIGHTLY.name, NIGHTLY.plan, "all", 9000.0)) == [stands]
    assert await engine.schedules.schedules(timeout_s=T_S) == [stands]


async def test_only_from_the_last_due_time_it_goes_on(engine: Engine) -> None:
    """Whoever was late is told so, and changes nothing."""
    await declare(engine, NIGHTLY)
    assert await advance(engine, 1000.0, 2000.0)
    assert not await advance(engine, 1000.0, 2000.0)
    assert not await advance(engine, 1500.0, 3000.0)
    assert await advance(engine, 2000.0, 3000.0)


async def test_of_many_who_advance_one_does(rig: Rig, engine: Engine) -> None:
    """All workers see the same due time; it is dealt with once."""
    await declare(engine, NIGHTLY)
    engines = [await rig.engine() for _ in range(3)]
    answers = await asyncio.gather(*(advance(each, 1000.0, 2000.0) for each in engines * 3))
    assert sorted(answers) == [False] * 8 + [True]


async def test_what_was_never_declared_does_not_advance(engine: Engine) -> None:
    """It is no error either: somebody else may have changed the set of schedules."""
    assert not await advance(engine, 0.0, 1.0, "nobody.knows")
    assert await engine.schedules.schedules(timeout_s=T_S) == []


async def test_a_due_time_and_its_task_are_one_commit(rig: Rig, engine: Engine) -> None:
    """Of all workers that see it due, one makes the task; the others are refused as a whole."""
    rig.together(engine, "schedules", "queues")
    await declare(engine, NIGHTLY)
    engines = [await rig.engine() for _ in range(3)]

    async def fire(of: Engine) -> bool:
        unit = rig.unit(advance=[Advance(NIGHTLY.name, 1000.0, 2000.0)], tasks=[rig.task(NIGHTLY.name)])
        try:
            await of.commit(unit, timeout_s=T_S)
        except Conflict:
            return False
        return True

    answers = await asyncio.gather(*(fire(each) for each in engines * 3))
    assert sorted(answers) == [False] * 8 + [True]
    hand = await rig.hand(NIGHTLY.name)
    assert len(await hand.run(1)) == 1
    assert await hand.nothing()


@over_processes
async def test_schedules_outlive_a_restart(rig: Rig, engine: Engine) -> None:
    """Nothing that was dealt with is dealt with again."""
    await declare(engine, NIGHTLY, OFTEN)
    await advance(engine, 1000.0, 2000.5)
    before = await engine.schedules.schedules(timeout_s=T_S)
    await rig.restart()
    assert await engine.schedules.schedules(timeout_s=T_S) == before
    assert not await advance(engine, 1000.0, 2000.5)
