"""Tasks: what every engine promises of a job, from its defer until it is forgotten."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from engine_rig import T_S, Rig, needs, over_processes

from mesh import ids
from mesh.engines.contract import Engine
from mesh.errors import BadRequest, LeaseLost
from mesh.tasks.contract import JobInfo, Lease, NewTask, Ticket

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])
NEEDS = ("queues", "jobs")


@pytest.fixture
async def engine(rig: Rig) -> Engine:
    return await rig.engine()


async def job(engine: Engine, id: str) -> JobInfo:
    found = await engine.jobs.find(id, timeout_s=T_S)
    assert found is not None, f"no job {id}"
    return found


def body(lease: Lease) -> object:
    return msgspec.msgpack.decode(lease.body)


# --- deferring ----------------------------------------------------------------------------------------------


async def test_a_deferred_task_is_ready(rig: Rig, engine: Engine) -> None:
    """It is a job with all that was said of it, whether or not anybody can run it."""
    task = rig.task(body={"to": "ujun"}, key="k1", order="o1", priority=7, meta={"tenant": "t1"})
    assert await engine.queues.defer([task], timeout_s=T_S) == [Ticket(task.id, True)]
    info = await job(await rig.engine(), task.id)
    assert (info.id, info.queue, info.status) == (task.id, "mail.send", "ready")
    assert (info.body, info.key, info.order, info.priority, info.meta) == (task.body, "k1", "o1", 7, {"tenant": "t1"})
    assert (info.attempt, info.lost, info.worker, info.finished_at, info.ends_at) == (0, 0, "", 0.0, 0.0)
    assert info.created_at == pytest.approx(rig.clock.wall(), abs=2.0)


async def test_a_lease_has_what_was_deferred(rig: Rig, engine: Engine) -> None:
    """Everything that a handler may need crosses unchanged."""
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    task = rig.task(body=["ü", 1, None], key="k1", trace=trace, meta={"tenant": "t1"}, timeout_s=7.5)
    await rig.defer(task)
    lease = await (await rig.hand("mail.send")).one()
    assert (lease.id, lease.attempt, lease.tries, lease.queue, lease.lost) == (task.id, 1, 1, "mail.send", 0)
    assert (lease.body, lease.key, lease.trace, lease.meta) == (task.body, "k1", trace, {"tenant": "t1"})
    assert (lease.timeout_s, lease.prior, lease.topic, lease.offset) == (7.5, b"", "", 0)
    assert lease.created_at == (await job(engine, task.id)).created_at


@needs("queues")
async def test_many_are_deferred_in_one_commit(rig: Rig, engine: Engine) -> None:
    """Their tickets come in the order in which they were given."""
    tasks = rig.tasks(500)
    tickets = await engine.queues.defer(tasks, timeout_s=T_S)
    assert tickets == [Ticket(task.id, True) for task in tasks]
    assert await engine.queues.defer([], timeout_s=T_S) == []


async def test_a_commit_with_one_bad_task_defers_none(rig: Rig, engine: Engine) -> None:
    """All or nothing."""
    good = rig.task()
    for bad in (rig.task(priority=10), rig.task(priority=-1), rig.task(queue="nodots"), rig.task(feeds=ids.job_id())):
        with pytest.raises(BadRequest):
            await engine.queues.defer([good, bad], timeout_s=T_S)
    assert await engine.jobs.find(good.id, timeout_s=T_S) is None
    assert await (await rig.hand("mail.send")).nothing()


async def test_a_defer_that_is_repeated_adds_nothing(rig: Rig, engine: Engine) -> None:
    """Whoever got no answer asks again with the same ids, and is told of the same jobs, also when they are done."""
    tasks = [rig.task(), rig.task(key="k1")]
    assert await rig.defer(*tasks, engine=engine) == [task.id for task in tasks]
    hand = await rig.hand("mail.send")
    assert await rig.defer(*tasks, engine=engine) == [task.id for task in tasks]
    await hand.done(*await hand.take(2))
    for again in (tasks, tasks[:1], tasks[1:]):
        assert await rig.defer(*again, engine=engine) == [task.id for task in again]
    assert await hand.nothing()


@over_processes
async def test_what_was_confirmed_outlives_a_restart(rig: Rig, engine: Engine) -> None:
    """In every status, after kill -9 of whatever keeps it."""
    now = rig.clock.wall()
    ready, done = await rig.defer(rig.task("mail.send", "ready"), rig.task("mail.done", keep_s=9e5))
    dead, cancelled, delayed = await rig.defer(
        rig.task("mail.dead"), rig.task("mail.cancelled", keep_s=9e5), rig.task("mail.later", due_at=now + 5e5)
    )
    first = rig.task("chain.first", feeds="f" * 28)
    await rig.defer(first, NewTask("f" * 28, "chain.second", b"", waits=1))
    hand = await rig.hand("mail.done", "mail.dead")
    for lease in await hand.take(2):
        await (hand.done(lease, result=42) if lease.id == done else hand.dead(lease))
    await engine.jobs.cancel(cancelled, timeout_s=T_S)
    await hand.leave()
    every = [ready, done, dead, cancelled, delayed, first.id, "f" * 28]
    before = [await job(engine, id) for id in every]
    await rig.restart()
    assert [await job(engine, id) for id in every] == before
    assert [info.status for info in before] == ["ready", "done", "dead", "cancelled", "delayed", "ready", "waiting"]
    assert body(await (await rig.hand("mail.send")).one()) == "ready"


# --- one key ------------------------------------------------------------------------------------------------


async def test_one_key_is_one_job(rig: Rig, engine: Engine) -> None:
    """The second defer is told of the first job, whoever asks."""
    first = rig.task(body=1, key="k1")
    assert await engine.queues.defer([first], timeout_s=T_S) == [Ticket(first.id, True)]
    other = await rig.engine()
    for _ in range(2):
        assert await other.queues.defer([rig.task(body=2, key="k1")], timeout_s=T_S) == [Ticket(first.id, False)]
    hand = await rig.hand("mail.send")
    assert body(await hand.one()) == 1
    assert await hand.nothing()


async def test_a_key_belongs_to_its_queue(rig: Rig, engine: Engine) -> None:
    """The same key of another queue is another job; no key is no key."""
    tasks = [rig.task("mail.send", key="k1"), rig.task("mail.sort", key="k1"), rig.task(), rig.task()]
    tickets = await engine.queues.defer(tasks, timeout_s=T_S)
    assert [ticket.fresh for ticket in tickets] == [True] * 4


async def test_the_first_of_one_commit_has_the_key(rig: Rig, engine: Engine) -> None:
    """Also when both come at once."""
    first, second = rig.task(key="k1"), rig.task(key="k1")
    tickets = await engine.queues.defer([first, second], timeout_s=T_S)
    assert tickets == [Ticket(first.id, True), Ticket(first.id, False)]
    together = await asyncio.gather(
        *(engine.queues.defer([rig.task(key="k2")], timeout_s=T_S) for _ in range(20)),
    )
    assert sum(tickets[0].fresh for tickets in together) == 1
    assert len({tickets[0].id for tickets in together}) == 1


async def test_a_key_is_known_while_the_job_runs_and_when_it_is_done(rig: Rig, engine: Engine) -> None:
    """And forgotten with the job, `keep_s` after its end: then the same key is a new job."""
    first = rig.task(key="k1", keep_s=100.0)
    await engine.queues.defer([first], timeout_s=T_S)
    hand = await rig.hand("mail.send")

    async def again() -> Ticket:
        return (await engine.queues.defer([rig.task(key="k1")], timeout_s=T_S))[0]

    lease = await hand.one()
    assert await again() == Ticket(first.id, False)
    await hand.done(lease)
    assert await again() == Ticket(first.id, False)
    await rig.pass_time(99.0)
    assert await again() == Ticket(first.id, False)
    await rig.pass_time(1.5)
    assert (await again()).fresh


async def test_a_key_is_known_while_its_job_is_dead(rig: Rig, engine: Engine) -> None:
    """However long nobody looks at it; when it is dropped, the key is free."""
    first = rig.task(key="k1", keep_s=1.0)
    await engine.queues.defer([first], timeout_s=T_S)
    hand = await rig.hand("mail.send")
    await hand.dead(await hand.one())
    assert await engine.queues.defer([rig.task(key="k1")], timeout_s=T_S) == [Ticket(first.id, False)]
    assert await engine.leases.drop("mail.send", [first.id], timeout_s=T_S) == 1
    assert (await engine.queues.defer([rig.task(key="k1")], timeout_s=T_S))[0].fresh


async def test_a_key_of_a_job_that_is_not_kept_is_free_at_once(rig: Rig, engine: Engine) -> None:
    """keep_s=0: the key holds for as long as the job is not over."""
    first = rig.task(key="k1", keep_s=0.0)
    await engine.queues.defer([first], timeout_s=T_S)
    hand = await rig.hand("mail.send")
    await hand.done(await hand.one())
    assert (await engine.queues.defer([rig.task(key="k1", keep_s=0.0)], timeout_s=T_S))[0].fresh


@over_processes
async def test_keys_outlive_a_restart(rig: Rig, engine: Engine) -> None:
    """Of a job that waits, and of one that is done."""
    waits, done = rig.task(key="k1"), rig.task("mail.done", key="k2", keep_s=9e5)
    await engine.queues.defer([waits, done], timeout_s=T_S)
    hand = await rig.hand("mail.done")
    await hand.done(await hand.one())
    await rig.restart()
    again = [rig.task(key="k1"), rig.task("mail.done", key="k2")]
    assert await engine.queues.defer(again, timeout_s=T_S) == [Ticket(waits.id, False), Ticket(done.id, False)]


# --- settling -----------------------------------------------------------------------------------------------


async def test_what_is_done_has_its_answer(rig: Rig, engine: Engine) -> None:
    """And says when it ended, and when it will be forgotten."""
    [id] = await rig.defer(rig.task(keep_s=60.0))
    hand = await rig.hand("mail.send")
    lease = await hand.one()
    running = await job(engine, id)
    assert (running.status, running.attempt, running.worker) == ("running", 1, hand.name)
    await hand.done(lease, result={"sent": 1})
    info = await job(engine, id)
    assert (info.status, info.attempt, info.worker) == ("done", 1, "")
    assert msgspec.msgpack.decode(info.result) == {"sent": 1}
    assert info.finished_at == pytest.approx(rig.clock.wall(), abs=2.0)
    assert info.ends_at == pytest.approx(info.finished_at + 60.0, abs=0.1)


async def test_a_finished_job_is_forgotten_when_its_time_is_over(rig: Rig, engine: Engine) -> None:
    """Whether it was done or cancelled; the dead stay."""
    done, cancelled, dead = await rig.defer(
        rig.task(keep_s=50.0), rig.task("mail.x", keep_s=50.0), rig.task(keep_s=50.0)
    )
    hand = await rig.hand("mail.send")
    for lease in await hand.take(2):
        await (hand.done(lease) if lease.id == done else hand.dead(lease))
    await engine.jobs.cancel(cancelled, timeout_s=T_S)
    await rig.pass_time(49.0)
    assert [await rig.status(engine, id) for id in (done, cancelled, dead)] == ["done", "cancelled", "dead"]
    await rig.pass_time(2.0)
    await rig.until_status(engine, done, None)
    await rig.until_status(engine, cancelled, None)
    assert await rig.status(engine, dead) == "dead"
    assert (await job(engine, dead)).ends_at == 0.0


async def test_what_failed_is_tried_again_when_it_says(rig: Rig, engine: Engine) -> None:
    """Not before `due_at`; with the next attempt, the next try, and the error in the job meanwhile."""
    [id] = await rig.defer(rig.task())
    hand = await rig.hand("mail.send")
    await hand.retry(await hand.one(), after_s=20.0)
    waits = await job(engine, id)
    assert (waits.status, waits.attempt, waits.error, waits.reason) == ("delayed", 1, "it failed", "failed")
    assert waits.due_at == pytest.approx(rig.clock.wall() + 20.0, abs=2.0)
    await rig.pass_time(19.0)
    assert await hand.nothing()
    await rig.pass_time(1.5)
    lease = await hand.one()
    assert (lease.id, lease.attempt, lease.tries) == (id, 2, 2)


async def test_what_is_to_be_tried_at_once_is(rig: Rig, engine: Engine) -> None:
    """due_at=0 waits for nothing but its turn."""
    [id] = await rig.defer(rig.task())
    hand = await rig.hand("mail.send")
    for attempt in range(1, 6):
        lease = await hand.one()
        assert (lease.attempt, lease.tries) == (attempt, attempt)
        await hand.retry(lease)
    await hand.done(await hand.one())
    assert (await job(engine, id)).attempt == 6


async def test_what_is_given_up_is_kept_with_its_error(rig: Rig, engine: Engine) -> None:
    """In the dead letters, for as long as nobody looks at it."""
    [id] = await rig.defer(rig.task(keep_s=1.0))
    hand = await rig.hand("mail.send")
    lease = await hand.one()
    await hand.settle(lease, "dead", reason="undecodable", error="not a map", traceback="Traceback …\n  line")
    info = await job(engine, id)
    assert (info.status, info.reason, info.error) == ("dead", "undecodable", "not a map")
    assert info.traceback == "Traceback …\n  line"
    assert info.finished_at > 0
    assert await hand.nothing()


async def test_a_released_attempt_does_not_count(rig: Rig, engine: Engine) -> None:
    """It was not begun: the next lease has another number, but it is the same try."""
    [id] = await rig.defer(rig.task())
    hand = await rig.hand("mail.send")
    for _ in range(3):
        lease = await hand.one()
        assert lease.tries == 1
        await hand.settle(lease, "release")
    await hand.retry(await hand.one())
    assert (await hand.one()).tries == 2
    assert (await job(engine, id)).lost == 0


async def test_settling_the_same_again_changes_nothing(rig: Rig, engine: Engine) -> None:
    """A worker that got no answer says it again, whatever it said."""
    every = await rig.defer(*rig.tasks(3))
    hand = await rig.hand("mail.send")
    done, retried, dead = await hand.take(3)
    words = [
        hand.word(done, "done", result=b"\x01"),
        hand.word(retried, "retry", due_at=rig.clock.wall() + 1e6),
        hand.word(dead, "dead", reason="failed", error="e"),
    ]
    await hand.engine.leases.acknowledge(words, timeout_s=T_S)
    before = [await job(engine, id) for id in every]
    await hand.engine.leases.acknowledge(words, timeout_s=T_S)
    for word in words:
        await hand.engine.leases.acknowledge([word], timeout_s=T_S)
    assert [await job(engine, id) for id in every] == before


async def test_settling_in_another_way_is_refused(rig: Rig, engine: Engine) -> None:
    """What an attempt came to is said once."""
    [id] = await rig.defer(rig.task())
    hand = await rig.hand("mail.send")
    lease = await hand.one()
    await hand.done(lease, result=1)
    for verdict in ("dead", "retry", "release"):
        with pytest.raises(LeaseLost):
            await hand.settle(lease, verdict)  # type: ignore[arg-type]
    assert await rig.status(engine, id) == "done"


async def test_what_was_never_leased_cannot_be_settled(rig: Rig, engine: Engine) -> None:
    """Neither an unknown job, nor one that is ready, nor an attempt to come."""
    [id] = await rig.defer(rig.task("mail.other"))
    hand = await rig.hand("mail.send")
    [leased] = await rig.defer(rig.task())
    lease = await hand.one()
    for name, attempt in [("nobody", 1), (id, 0), (id, 1), (leased, lease.attempt + 1), (leased, 0)]:
        strange = msgspec.structs.replace(lease, id=name, attempt=attempt)
        with pytest.raises(LeaseLost):
            await hand.settle(strange, "done")
    assert [await rig.status(engine, each) for each in (id, leased)] == ["ready", "running"]


async def test_one_stale_settlement_refuses_all_of_a_commit(rig: Rig, engine: Engine) -> None:
    """And the others can still be settled."""
    [stale_id, id] = await rig.defer(*rig.tasks(2))
    hand = await rig.hand("mail.send")
    stale, good = await hand.take(2)
    await hand.retry(stale)
    again = await hand.one()
    with pytest.raises(LeaseLost):
        await hand.engine.leases.acknowledge([hand.word(good), hand.word(stale)], timeout_s=T_S)
    assert [await rig.status(engine, each) for each in (stale_id, id)] == ["running", "running"]
    await hand.done(good, again)
    assert [await rig.status(engine, each) for each in (stale_id, id)] == ["done", "done"]
