"""Tasks: what every engine promises of a job, from its defer until it is forgotten."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from engine_rig import T_S, Rig, over_processes

from mesh import ids
from mesh.engines.contract import Engine
from mesh.errors import BadRequest, DeadlineExceeded, LeaseLost, UnknownJob
from mesh.tasks.contract import JobInfo, Lease, NewTask, Status, Ticket

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])


@pytest.fixture
async def engine(rig: Rig) -> Engine:
    engine = await rig.engine()
    rig.offer(engine, "tasks")
    return engine


async def job(engine: Engine, id: str) -> JobInfo:
    found = await engine.tasks.job(id, timeout_s=T_S)
    assert found is not None, f"no job {id}"
    return found


def body(lease: Lease) -> object:
    return msgspec.msgpack.decode(lease.body)


# --- deferring ----------------------------------------------------------------------------------------------


async def test_a_deferred_task_is_ready(rig: Rig, engine: Engine) -> None:
    """It is a job with all that was said of it, whether or not anybody can run it."""
    task = rig.task(body={"to": "ujun"}, key="k1", order="o1", priority=7, meta={"tenant": "t1"})
    assert await engine.tasks.defer([task], timeout_s=T_S) == [Ticket(task.id, True)]
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


async def test_many_are_deferred_in_one_commit(rig: Rig, engine: Engine) -> None:
    """Their tickets come in the order in which they were given."""
    tasks = rig.tasks(500)
    tickets = await engine.tasks.defer(tasks, timeout_s=T_S)
    assert tickets == [Ticket(task.id, True) for task in tasks]
    assert await engine.tasks.defer([], timeout_s=T_S) == []


async def test_a_commit_with_one_bad_task_defers_none(rig: Rig, engine: Engine) -> None:
    """All or nothing."""
    good = rig.task()
    for bad in (rig.task(priority=10), rig.task(priority=-1), rig.task(queue="nodots"), rig.task(feeds=ids.job_id())):
        with pytest.raises(BadRequest):
            await engine.tasks.defer([good, bad], timeout_s=T_S)
    assert await engine.tasks.job(good.id, timeout_s=T_S) is None
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
    await engine.tasks.cancel(cancelled, timeout_s=T_S)
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
    assert await engine.tasks.defer([first], timeout_s=T_S) == [Ticket(first.id, True)]
    other = await rig.engine()
    for _ in range(2):
        assert await other.tasks.defer([rig.task(body=2, key="k1")], timeout_s=T_S) == [Ticket(first.id, False)]
    hand = await rig.hand("mail.send")
    assert body(await hand.one()) == 1
    assert await hand.nothing()


async def test_a_key_belongs_to_its_queue(rig: Rig, engine: Engine) -> None:
    """The same key of another queue is another job; no key is no key."""
    tasks = [rig.task("mail.send", key="k1"), rig.task("mail.sort", key="k1"), rig.task(), rig.task()]
    tickets = await engine.tasks.defer(tasks, timeout_s=T_S)
    assert [ticket.fresh for ticket in tickets] == [True] * 4


async def test_the_first_of_one_commit_has_the_key(rig: Rig, engine: Engine) -> None:
    """Also when both come at once."""
    first, second = rig.task(key="k1"), rig.task(key="k1")
    tickets = await engine.tasks.defer([first, second], timeout_s=T_S)
    assert tickets == [Ticket(first.id, True), Ticket(first.id, False)]
    together = await asyncio.gather(
        *(engine.tasks.defer([rig.task(key="k2")], timeout_s=T_S) for _ in range(20)),
    )
    assert sum(tickets[0].fresh for tickets in together) == 1
    assert len({tickets[0].id for tickets in together}) == 1


async def test_a_key_is_known_while_the_job_runs_and_when_it_is_done(rig: Rig, engine: Engine) -> None:
    """And forgotten with the job, `keep_s` after its end: then the same key is a new job."""
    first = rig.task(key="k1", keep_s=100.0)
    await engine.tasks.defer([first], timeout_s=T_S)
    hand = await rig.hand("mail.send")

    async def again() -> Ticket:
        return (await engine.tasks.defer([rig.task(key="k1")], timeout_s=T_S))[0]

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
    await engine.tasks.defer([first], timeout_s=T_S)
    hand = await rig.hand("mail.send")
    await hand.dead(await hand.one())
    assert await engine.tasks.defer([rig.task(key="k1")], timeout_s=T_S) == [Ticket(first.id, False)]
    assert await engine.tasks.drop("mail.send", [first.id], timeout_s=T_S) == 1
    assert (await engine.tasks.defer([rig.task(key="k1")], timeout_s=T_S))[0].fresh


async def test_a_key_of_a_job_that_is_not_kept_is_free_at_once(rig: Rig, engine: Engine) -> None:
    """keep_s=0: the key holds for as long as the job is not over."""
    first = rig.task(key="k1", keep_s=0.0)
    await engine.tasks.defer([first], timeout_s=T_S)
    hand = await rig.hand("mail.send")
    await hand.done(await hand.one())
    assert (await engine.tasks.defer([rig.task(key="k1", keep_s=0.0)], timeout_s=T_S))[0].fresh


@over_processes
async def test_keys_outlive_a_restart(rig: Rig, engine: Engine) -> None:
    """Of a job that waits, and of one that is done."""
    waits, done = rig.task(key="k1"), rig.task("mail.done", key="k2", keep_s=9e5)
    await engine.tasks.defer([waits, done], timeout_s=T_S)
    hand = await rig.hand("mail.done")
    await hand.done(await hand.one())
    await rig.restart()
    again = [rig.task(key="k1"), rig.task("mail.done", key="k2")]
    assert await engine.tasks.defer(again, timeout_s=T_S) == [Ticket(waits.id, False), Ticket(done.id, False)]


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
    await engine.tasks.cancel(cancelled, timeout_s=T_S)
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
    await hand.engine.tasks.settle(words, timeout_s=T_S)
    before = [await job(engine, id) for id in every]
    await hand.engine.tasks.settle(words, timeout_s=T_S)
    for word in words:
        await hand.engine.tasks.settle([word], timeout_s=T_S)
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
        await hand.engine.tasks.settle([hand.word(good), hand.word(stale)], timeout_s=T_S)
    assert [await rig.status(engine, each) for each in (stale_id, id)] == ["running", "running"]
    await hand.done(good, again)
    assert [await rig.status(engine, each) for each in (stale_id, id)] == ["done", "done"]


# --- waiting for a job --------------------------------------------------------------------------------------


async def test_waiting_ends_with_the_job(rig: Rig, engine: Engine) -> None:
    """However it ends: the job is told as it is then, also when it is not kept."""
    kept, unkept, dead, cancelled = await rig.defer(
        rig.task(), rig.task(keep_s=0.0), rig.task(), rig.task("mail.never")
    )
    waiting = [asyncio.create_task(engine.tasks.wait(id, timeout_s=600.0)) for id in (kept, unkept, dead, cancelled)]
    await rig.quiet()
    hand = await rig.hand("mail.send")
    for lease in await hand.take(3):
        await (hand.dead(lease) if lease.id == dead else hand.done(lease, result=lease.id))
    await (await rig.engine()).tasks.cancel(cancelled, timeout_s=T_S)
    infos = await asyncio.gather(*waiting)
    assert [info.status for info in infos] == ["done", "done", "dead", "cancelled"]
    assert msgspec.msgpack.decode(infos[1].result) == unkept
    assert infos[2].error == "it failed for ever"
    assert await engine.tasks.job(unkept, timeout_s=T_S) is None


async def test_waiting_for_what_is_over_ends_at_once(rig: Rig, engine: Engine) -> None:
    """Nobody needs to be in time."""
    [id] = await rig.defer(rig.task())
    hand = await rig.hand("mail.send")
    await hand.done(await hand.one(), result=1)
    info = await engine.tasks.wait(id, timeout_s=T_S)
    assert (info.status, info.result) == ("done", b"\x01")


async def test_waiting_for_an_unknown_job_fails(engine: Engine) -> None:
    """It never was, or it was forgotten; waiting longer would not help."""
    with pytest.raises(UnknownJob):
        await engine.tasks.wait(ids.job_id(), timeout_s=T_S)


async def test_waiting_has_an_end(rig: Rig, engine: Engine) -> None:
    """After that the job goes on, and can be waited for again; a retry is no end."""
    [id] = await rig.defer(rig.task())
    hand = await rig.hand("mail.send")
    lease = await hand.one()
    waiting = asyncio.create_task(engine.tasks.wait(id, timeout_s=5.0))
    await hand.retry(lease)
    lease = await hand.one()
    await rig.pass_time(4.5)
    assert not waiting.done()
    await rig.pass_time(1.0)
    with pytest.raises(DeadlineExceeded):
        await waiting
    await hand.done(lease)
    assert (await engine.tasks.wait(id, timeout_s=T_S)).status == "done"


async def test_many_wait_for_one_job(rig: Rig, engine: Engine) -> None:
    """One that gives up takes nothing from the others."""
    [id] = await rig.defer(rig.task())
    engines = [engine, await rig.engine()]
    waiting = [asyncio.create_task(engines[number % 2].tasks.wait(id, timeout_s=600.0)) for number in range(6)]
    await rig.quiet()
    for given_up in waiting[:2]:
        given_up.cancel()
    hand = await rig.hand("mail.send")
    await hand.done(await hand.one())
    assert [info.status for info in await asyncio.gather(*waiting[2:])] == ["done"] * 4


@over_processes
async def test_who_waits_through_a_restart_is_told(rig: Rig, engine: Engine) -> None:
    """The asker's own patience counts."""
    [id] = await rig.defer(rig.task())
    waiting = asyncio.create_task(engine.tasks.wait(id, timeout_s=600.0))
    await rig.quiet()
    await rig.restart()
    hand = await rig.hand("mail.send")
    await hand.done(await hand.one())
    assert (await rig.soon(waiting)).status == "done"


# --- cancelling ---------------------------------------------------------------------------------------------


async def test_what_is_not_begun_is_cancelled_at_once(rig: Rig, engine: Engine) -> None:
    """Ready, delayed or waiting: no worker ever sees it."""
    later = rig.clock.wall() + 1000.0
    last = rig.task("mail.last", waits=1)
    ready, delayed, first = rig.task(), rig.task(due_at=later), rig.task("mail.first", feeds=last.id)
    await rig.defer(ready, delayed, first, last)
    for id in (ready.id, delayed.id, last.id):
        info = await engine.tasks.cancel(id, timeout_s=T_S)
        assert info.status == "cancelled"
        assert info.finished_at > 0
    assert await (await rig.hand("mail.send", "mail.last")).nothing()
    assert [await rig.status(engine, id) for id in (ready.id, delayed.id, last.id)] == ["cancelled"] * 3


async def test_what_runs_is_told_to_stop(rig: Rig, engine: Engine) -> None:
    """It is cancelled when its worker says that it has stopped, not before."""
    [id] = await rig.defer(rig.task())
    hand = await rig.hand("mail.send")
    lease = await hand.one()
    assert (await engine.tasks.cancel(id, timeout_s=T_S)).status == "running"
    await rig.eventually(lambda: (id, 1) in hand.cancels, "the worker is told to stop")
    await hand.settle(lease, "cancelled")
    info = await job(engine, id)
    assert (info.status, info.worker) == ("cancelled", "")
    assert await hand.nothing()


async def test_what_was_finished_meanwhile_is_done(rig: Rig, engine: Engine) -> None:
    """A handler that was quicker than the news has done its work."""
    done, dead = await rig.defer(*rig.tasks(2))
    hand = await rig.hand("mail.send")
    leases = await hand.take(2)
    for id in (done, dead):
        await engine.tasks.cancel(id, timeout_s=T_S)
    await hand.done(leases[0])
    await hand.dead(leases[1])
    assert [await rig.status(engine, id) for id in (done, dead)] == ["done", "dead"]


@pytest.mark.parametrize("verdict", ["retry", "release"])
async def test_what_was_asked_to_stop_does_not_run_again(rig: Rig, engine: Engine, verdict: str) -> None:
    """Whatever its worker says that would bring it back."""
    [id] = await rig.defer(rig.task())
    hand = await rig.hand("mail.send")
    lease = await hand.one()
    await engine.tasks.cancel(id, timeout_s=T_S)
    await hand.settle(lease, verdict)  # type: ignore[arg-type]
    assert await rig.status(engine, id) == "cancelled"
    assert await hand.nothing()


async def test_cancelling_what_is_over_changes_nothing(rig: Rig, engine: Engine) -> None:
    """The job is told as it stands; one that nobody knows is an error."""
    done, dead = await rig.defer(*rig.tasks(2))
    hand = await rig.hand("mail.send")
    leases = await hand.take(2)
    await hand.done(leases[0])
    await hand.dead(leases[1])
    for id, status in [(done, "done"), (dead, "dead")]:
        before = await job(engine, id)
        assert await engine.tasks.cancel(id, timeout_s=T_S) == before
        assert before.status == status
    with pytest.raises(UnknownJob):
        await engine.tasks.cancel(ids.job_id(), timeout_s=T_S)


async def test_a_cancelled_delay_frees_its_order(rig: Rig, engine: Engine) -> None:
    """What stood behind it goes on."""
    head, behind = await rig.defer(rig.task(order="o", due_at=rig.clock.wall() + 1e6), rig.task(order="o"))
    hand = await rig.hand("mail.send")
    assert await hand.nothing()
    await engine.tasks.cancel(head, timeout_s=T_S)
    assert (await hand.one()).id == behind


# --- dead letters -------------------------------------------------------------------------------------------


async def test_the_dead_run_again_when_somebody_wants_it(rig: Rig, engine: Engine) -> None:
    """With tries counted anew, under a number that no earlier attempt had."""
    [id] = await rig.defer(rig.task(body="again"))
    hand = await rig.hand("mail.send")
    await hand.retry(await hand.one())
    old = await hand.one()
    await hand.dead(old)
    assert await engine.tasks.requeue("mail.send", [id], timeout_s=T_S) == 1
    lease = await hand.one()
    assert (lease.id, body(lease), lease.tries, lease.lost) == (id, "again", 1, 0)
    assert lease.attempt > old.attempt
    info = await job(engine, id)
    assert (info.status, info.finished_at, info.ends_at, info.lost) == ("running", 0.0, 0.0, 0)
    with pytest.raises(LeaseLost):
        await hand.settle(old, "done")
    await hand.done(lease)
    info = await job(engine, id)
    assert (info.status, info.reason, info.error, info.traceback) == ("done", "", "", "")


async def test_all_the_dead_of_a_queue_run_again(rig: Rig, engine: Engine) -> None:
    """Those of others stay; nobody else is counted."""
    every = await rig.defer(*rig.tasks(4), rig.task("mail.other"))
    hand = await rig.hand("mail.send", "mail.other")
    for lease in await hand.take(5):
        await (hand.done(lease) if lease.id == every[3] else hand.dead(lease))
    assert await engine.tasks.requeue("mail.send", timeout_s=T_S) == 3
    assert {lease.id for lease in await hand.take(3)} == set(every[:3])
    assert await rig.status(engine, every[4]) == "dead"
    assert await engine.tasks.requeue("mail.nobody", timeout_s=T_S) == 0


async def test_only_the_dead_are_requeued(rig: Rig, engine: Engine) -> None:
    """Naming what runs, is done, is of another queue or unknown counts nothing and does nothing."""
    running, done, other = await rig.defer(*rig.tasks(2), rig.task("mail.other"))
    hand = await rig.hand("mail.send", "mail.other")
    for lease in await hand.take(3):
        if lease.id == done:
            await hand.done(lease)
        elif lease.id == other:
            await hand.dead(lease)
    assert await engine.tasks.requeue("mail.send", [running, done, other, ids.job_id()], timeout_s=T_S) == 0
    assert [await rig.status(engine, id) for id in (running, done, other)] == ["running", "done", "dead"]
    assert await engine.tasks.drop("mail.send", [running, done, other, ids.job_id()], timeout_s=T_S) == 0
    assert [await rig.status(engine, id) for id in (running, done, other)] == ["running", "done", "dead"]


async def test_the_dead_may_be_forgotten(rig: Rig, engine: Engine) -> None:
    """These, or all of the queue."""
    every = await rig.defer(*rig.tasks(5))
    hand = await rig.hand("mail.send")
    for lease in await hand.take(5):
        await hand.dead(lease)
    assert await engine.tasks.drop("mail.send", every[:2], timeout_s=T_S) == 2
    assert [await rig.status(engine, id) for id in every] == [None, None, "dead", "dead", "dead"]
    assert await engine.tasks.drop("mail.send", timeout_s=T_S) == 3
    assert await engine.tasks.jobs("mail.send", "dead", timeout_s=T_S) == []
    assert await engine.tasks.drop("mail.send", timeout_s=T_S) == 0


async def test_a_requeued_job_is_waited_for_anew(rig: Rig, engine: Engine) -> None:
    """Its second end is told like a first one."""
    [id] = await rig.defer(rig.task())
    hand = await rig.hand("mail.send")
    await hand.dead(await hand.one())
    await engine.tasks.requeue("mail.send", [id], timeout_s=T_S)
    waiting = asyncio.create_task(engine.tasks.wait(id, timeout_s=600.0))
    await rig.quiet()
    await hand.done(await hand.one())
    assert (await waiting).status == "done"


# --- what nobody knows --------------------------------------------------------------------------------------


async def test_a_task_that_its_service_does_not_know_dies(rig: Rig, engine: Engine) -> None:
    """After `unknown_after`, with the reason: it does not wait for ever where nobody looks."""
    await rig.hand("mail.send", services=["mail"])
    [id] = await rig.defer(rig.task("mail.sned"))
    await rig.pass_time(rig.unknown_after_s - 5.0)
    assert await rig.status(engine, id) == "ready"
    await rig.pass_time(10.0)
    info = await rig.until_status(engine, id, "dead")
    assert info is not None
    assert info.reason == "unknown"
    assert "sned" in info.error


async def test_a_task_of_a_service_that_is_away_waits(rig: Rig, engine: Engine) -> None:
    """For days: a service that is down has not forgotten its tasks. When it is back it has its time to declare them."""
    [id] = await rig.defer(rig.task("mail.send"))
    await rig.leap(3 * 86400.0)
    await rig.hand("orders.charge", services=["orders"])
    await rig.pass_time(rig.unknown_after_s * 2)
    assert await rig.status(engine, id) == "ready"
    await rig.hand("mail.other", services=["mail"])
    await rig.pass_time(rig.unknown_after_s / 2)
    hand = await rig.hand("mail.send")
    assert (await hand.one()).id == id


async def test_one_release_that_knows_it_is_enough(rig: Rig, engine: Engine) -> None:
    """While some workers of a service declare a queue, others need not: releases differ during a roll-out."""
    await rig.hand("mail.old", services=["mail"])
    new = await rig.hand("mail.new", credit=0, services=["mail"])
    [id] = await rig.defer(rig.task("mail.new"))
    await rig.pass_time(rig.unknown_after_s * 3)
    assert await rig.status(engine, id) == "ready"
    await new.leave()
    await rig.pass_time(rig.unknown_after_s + 5.0)
    await rig.until_status(engine, id, "dead")


# --- looking ------------------------------------------------------------------------------------------------


async def test_queues_are_counted(rig: Rig, engine: Engine) -> None:
    """Each status, and how old the oldest ready task is; by name."""
    now = rig.clock.wall()
    last = rig.task("mail.send", waits=1)
    await rig.defer(
        *rig.tasks(6), rig.task(due_at=now + 1e6), rig.task("mail.first", feeds=last.id), last, rig.task("a.b")
    )
    hand = await rig.hand("mail.send", credit=3)
    done, dead, _ = await hand.take(3)
    await hand.session.stop()
    await hand.done(done)
    await hand.dead(dead)
    await rig.quiet()
    queues = {queue.name: queue for queue in await engine.tasks.queues(timeout_s=T_S)}
    assert list(queues) == sorted(queues) == ["a.b", "mail.first", "mail.send"]
    send = queues["mail.send"]
    assert (send.waiting, send.delayed, send.ready, send.running, send.dead) == (1, 1, 3, 1, 1)
    assert (send.done, send.workers, queues["a.b"].workers) == (1, 1, 0)


async def test_a_queue_says_how_late_it_is(rig: Rig, engine: Engine) -> None:
    """oldest_s is the age of the oldest ready task: what is delayed is not late yet."""
    await rig.defer(rig.task("mail.later", due_at=rig.clock.wall() + 50.0), rig.task("mail.send"))
    await rig.pass_time(40.0)
    ages = {queue.name: queue.oldest_s for queue in await engine.tasks.queues(timeout_s=T_S)}
    assert ages["mail.send"] == pytest.approx(40.0, abs=2.0)
    assert ages["mail.later"] == 0.0
    await rig.pass_time(20.0)
    ages = {queue.name: queue.oldest_s for queue in await engine.tasks.queues(timeout_s=T_S)}
    assert ages["mail.later"] == pytest.approx(10.0, abs=2.0)


async def test_a_queue_tells_of_its_limits_and_workers(rig: Rig, engine: Engine) -> None:
    """Also when it is empty: what workers declare is there."""
    first = await rig.hand("mail.send", rate_per_s=50.0, burst=5, concurrency=7)
    await rig.hand("mail.send", rate_per_s=50.0, burst=5, concurrency=7)
    [queue] = await engine.tasks.queues(timeout_s=T_S)
    assert (queue.name, queue.workers, queue.rate_per_s, queue.concurrency) == ("mail.send", 2, 50.0, 7)
    await first.leave()
    await rig.quiet()
    [queue] = await engine.tasks.queues(timeout_s=T_S)
    assert queue.workers == 1


async def test_jobs_are_listed_page_by_page(rig: Rig, engine: Engine) -> None:
    """Each once, oldest first, those of one queue and status."""
    every = [(await rig.defer(rig.task(body=number)))[0] for number in range(25)]
    await rig.defer(rig.task("mail.other"), rig.task(due_at=rig.clock.wall() + 1e6))
    found: list[str] = []
    while True:
        after = found[-1] if found else ""
        page = await engine.tasks.jobs("mail.send", "ready", after=after, limit=10, timeout_s=T_S)
        assert all(info.queue == "mail.send" and info.status == "ready" for info in page)
        assert len(page) <= 10
        if not page:
            break
        found += [info.id for info in page]
    assert found == every


async def test_what_is_delayed_is_listed_by_its_time_and_what_is_over_by_its_end(rig: Rig, engine: Engine) -> None:
    """The next that will be due, or forgotten, is the first."""
    now = rig.clock.wall()
    delayed = await rig.defer(*(rig.task(due_at=now + due) for due in (3e5, 1e5, 2e5)))
    done = await rig.defer(*(rig.task("mail.sort", keep_s=keep_s) for keep_s in (900.0, 300.0, 600.0)))
    hand = await rig.hand("mail.sort")
    await hand.done(*await hand.take(3))

    async def paged(queue: str, status: Status) -> list[str]:
        found: list[str] = []
        while page := await engine.tasks.jobs(queue, status, after=found[-1] if found else "", limit=2, timeout_s=T_S):
            found += [info.id for info in page]
        return found

    assert await paged("mail.send", "delayed") == [delayed[1], delayed[2], delayed[0]]
    assert await paged("mail.sort", "done") == [done[1], done[2], done[0]]


async def test_a_page_may_go_on_after_a_job_that_is_gone(rig: Rig, engine: Engine) -> None:
    """Whoever drops a page of dead letters finds the next one."""
    every = [(await rig.defer(rig.task()))[0] for _ in range(6)]
    hand = await rig.hand("mail.send")
    for lease in await hand.take(6):
        await hand.dead(lease)
    page = await engine.tasks.jobs("mail.send", "dead", limit=2, timeout_s=T_S)
    names = [info.id for info in page]
    await engine.tasks.drop("mail.send", names, timeout_s=T_S)
    rest = await engine.tasks.jobs("mail.send", "dead", after=names[-1], timeout_s=T_S)
    assert {*names, *(info.id for info in rest)} == set(every)
