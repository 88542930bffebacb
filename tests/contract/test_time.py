"""A wall clock that is set, forward or back: times last as long as they say, and what people read follows the clock."""

from __future__ import annotations

import math

import pytest
from engine_rig import T_S, Rig

from mesh import ids
from mesh.clock import ManualClock
from mesh.engines.contract import Engine
from mesh.errors import BadRequest, LockTaken
from mesh.events.log import NewEvent
from mesh.locks.contract import Grant
from mesh.schedules.contract import Schedule
from mesh.state.contract import Write
from mesh.tasks.contract import NewTask

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])
NEEDS = ("queues", "jobs", "events", "state", "schedules", "locks")

jumps = pytest.mark.parametrize("by", [60.0, 86_400.0, -3600.0], ids=["a minute on", "a day on", "an hour back"])


def set_wall(rig: Rig, by: float) -> None:
    if not isinstance(rig.clock, ManualClock):
        pytest.skip("the clock of real processes is set in tests/store/test_store_time.py")
    rig.clock.set_wall(by)


async def acquire(engine: Engine, owner: str) -> Grant:
    return await engine.locks.acquire("nightly", owner, ttl_s=30.0, wait_s=0.0, timeout_s=T_S)


@jumps
@pytest.mark.parametrize("restarts", [False, True])
async def test_a_lock_lasts_as_long_as_it_was_granted_for(rig: Rig, by: float, restarts: bool) -> None:
    """Also over a restart of the engine: no one else gets it before, and no one waits for longer."""
    engine = await rig.engine()
    set_wall(rig, 0.0)
    await acquire(engine, "a")
    set_wall(rig, by)
    if restarts:
        await rig.restart()
    await rig.pass_time(28.0)
    with pytest.raises(LockTaken):
        await acquire(engine, "b")
    await rig.pass_time(3.0)
    assert (await acquire(engine, "b")).owner == "b"


@jumps
async def test_people_read_the_wall_clock(rig: Rig, by: float) -> None:
    engine = await rig.engine()
    if engine.name != "sqlite":
        pytest.skip("the engine in memory tells its own time")
    set_wall(rig, by)
    grant = await acquire(engine, "a")
    assert grant.until_at == pytest.approx(rig.clock.wall() + 30.0, abs=2.0)
    [id] = await rig.defer(rig.task(delay_s=100.0), engine=engine)
    job = await engine.jobs.find(id, timeout_s=T_S)
    assert job is not None
    assert job.due_at == pytest.approx(rig.clock.wall() + 100.0, abs=2.0)


@jumps
async def test_a_delay_lasts_as_long_as_it_says(rig: Rig, by: float) -> None:
    engine = await rig.engine()
    set_wall(rig, 0.0)
    [id] = await rig.defer(rig.task(delay_s=100.0), engine=engine)
    set_wall(rig, by)
    await rig.pass_time(95.0)
    assert await rig.status(engine, id) == "delayed"
    await rig.pass_time(10.0)
    assert await rig.status(engine, id) == "ready"


@jumps
async def test_a_retry_waits_as_long_as_it_says(rig: Rig, by: float) -> None:
    engine = await rig.engine()
    set_wall(rig, 0.0)
    hand = await rig.hand("mail.send", engine=engine)
    await rig.defer(rig.task(), engine=engine)
    lease = await hand.one()
    set_wall(rig, by)
    await hand.settle(lease, "retry", delay_s=50.0)
    await rig.pass_time(45.0)
    assert await hand.nothing()
    await rig.pass_time(10.0)
    await hand.done(await hand.one())


@jumps
async def test_a_key_lives_as_long_as_it_says(rig: Rig, by: float) -> None:
    engine = await rig.engine()
    set_wall(rig, 0.0)
    await engine.state.write([Write("carts", "u1", "set", ids.etag(), value=b"\x01", ttl_s=100.0)], timeout_s=T_S)
    set_wall(rig, by)
    await rig.pass_time(90.0)
    assert (await engine.state.get("carts", ["u1"], timeout_s=T_S))[0] is not None
    await rig.pass_time(15.0)
    assert (await engine.state.get("carts", ["u1"], timeout_s=T_S))[0] is None


# --- the same values are refused everywhere -------------------------------------------------------------------

NAN = math.nan

BAD_TASKS = {
    "due_at": {"due_at": NAN},
    "delay_s": {"delay_s": NAN},
    "endless": {"delay_s": math.inf},
    "negative": {"delay_s": -1.0},
    "keep_s": {"keep_s": NAN},
    "timeout_s": {"timeout_s": -1.0},
    "key": {"key": "k" * 1025},
    "order": {"order": "o" * 1025},
    "priority": {"priority": 10},
    "queue": {"queue": "nodot"},
    "long queue": {"queue": "a." + "b" * 1024},
    "id": {"id": "i" * 1025},
    "line feed": {"id": "a\nb"},
}


@pytest.mark.parametrize("what", BAD_TASKS)
async def test_a_task_that_cannot_be_kept_is_refused(rig: Rig, what: str) -> None:
    engine = await rig.engine()
    fields = {"id": ids.job_id(), "queue": "mail.send", "body": b"\x90", **BAD_TASKS[what]}
    with pytest.raises(BadRequest):
        await engine.queues.defer([NewTask(**fields)], timeout_s=T_S)  # type: ignore[arg-type]


async def test_other_values_that_cannot_be_kept_are_refused(rig: Rig) -> None:
    engine = await rig.engine()
    hand = await rig.hand("mail.send", engine=engine)
    await rig.defer(rig.task(), engine=engine)
    lease = await hand.one()
    with pytest.raises(BadRequest):
        await hand.settle(lease, "retry", delay_s=NAN)
    with pytest.raises(BadRequest):
        await hand.settle(lease, "retry", due_at=NAN)
    await hand.done(lease)
    for event in (
        NewEvent("e" * 1025, "order.created", b"\x90"),
        NewEvent("e1", "order.created", b"\x90", key="k" * 1025),
        NewEvent("e2", "order.created", b"\x90", at=NAN),
        NewEvent("", "order.created", b"\x90"),
    ):
        with pytest.raises(BadRequest):
            await engine.events.append([event], timeout_s=T_S)
    with pytest.raises(BadRequest):
        await engine.state.write([Write("carts", "u1", "set", ids.etag(), value=b"\x01", ttl_s=NAN)], timeout_s=T_S)
    with pytest.raises(BadRequest):
        await engine.schedules.declare([Schedule("orders.close", "every 10s", "once", NAN)], timeout_s=T_S)
    for name, ttl_s in (("n" * 1025, 30.0), ("nightly", NAN), ("nightly", 0.0), ("", 30.0)):
        with pytest.raises(BadRequest):
            await engine.locks.acquire(name, "a", ttl_s=ttl_s, wait_s=0.0, timeout_s=T_S)
