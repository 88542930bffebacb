"""Jobs: what every engine promises those who wait for one, cancel it, look at it, or care for the dead."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from engine_rig import T_S, Rig, over_processes

from mesh import ids
from mesh.engines.contract import Engine
from mesh.errors import DeadlineExceeded, LeaseLost, UnknownJob
from mesh.tasks.contract import JobInfo, Lease, Status

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


# --- waiting for a job --------------------------------------------------------------------------------------


async def test_waiting_ends_with_the_job(rig: Rig, engine: Engine) -> None:
    """However it ends: the job is told as it is then, also when it is not kept."""
    kept, unkept, dead, cancelled = await rig.defer(
        rig.task(), rig.task(keep_s=0.0), rig.task(), rig.task("mail.never")
    )
    waiting = [asyncio.create_task(engine.jobs.wait(id, timeout_s=600.0)) for id in (kept, unkept, dead, cancelled)]
    await rig.quiet()
    hand = await rig.hand("mail.send")
    for lease in await hand.take(3):
        await (hand.dead(lease) if lease.id == dead else hand.done(lease, result=lease.id))
    await (await rig.engine()).jobs.cancel(cancelled, timeout_s=T_S)
    infos = await asyncio.gather(*waiting)
    assert [info.status for info in infos] == ["done", "done", "dead", "cancelled"]
    assert msgspec.msgpack.decode(infos[1].result) == unkept
    assert infos[2].error == "it failed for ever"
    assert await engine.jobs.find(unkept, timeout_s=T_S) is None


async def test_waiting_for_what_is_over_ends_at_once(rig: Rig, engine: Engine) -> None:
    """Nobody needs to be in time."""
    [id] = await rig.defer(rig.task())
    hand = await rig.hand("mail.send")
    await hand.done(await hand.one(), result=1)
    info = await engine.jobs.wait(id, timeout_s=T_S)
    assert (info.status, info.result) == ("done", b"\x01")


async def test_waiting_for_an_unknown_job_fails(engine: Engine) -> None:
    """It never was, or it was forgotten; waiting longer would not help."""
    with pytest.raises(UnknownJob):
        await engine.jobs.wait(ids.job_id(), timeout_s=T_S)


async def test_waiting_has_an_end(rig: Rig, engine: Engine) -> None:
    """After that the job goes on, and can be waited for again; a retry is no end."""
    [id] = await rig.defer(rig.task())
    hand = await rig.hand("mail.send")
    lease = await hand.one()
    waiting = asyncio.create_task(engine.jobs.wait(id, timeout_s=5.0))
    await hand.retry(lease)
    lease = await hand.one()
    await rig.pass_time(4.5)
    assert not waiting.done()
    await rig.pass_time(1.0)
    with pytest.raises(DeadlineExceeded):
        await waiting
    await hand.done(lease)
    assert (await engine.jobs.wait(id, timeout_s=T_S)).status == "done"


async def test_many_wait_for_one_job(rig: Rig, engine: Engine) -> None:
    """One that gives up takes nothing from the others."""
    [id] = await rig.defer(rig.task())
    engines = [engine, await rig.engine()]
    waiting = [asyncio.create_task(engines[number % 2].jobs.wait(id, timeout_s=600.0)) for number in range(6)]
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
    waiting = asyncio.create_task(engine.jobs.wait(id, timeout_s=600.0))
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
        info = await engine.jobs.cancel(id, timeout_s=T_S)
        assert info.status == "cancelled"
        assert info.finished_at > 0
    assert await (await rig.hand("mail.send", "mail.last")).nothing()
    assert [await rig.status(engine, id) for id in (ready.id, delayed.id, last.id)] == ["cancelled"] * 3


async def test_what_runs_is_told_to_stop(rig: Rig, engine: Engine) -> None:
    """It is cancelled when its worker says that it has stopped, not before."""
    [id] = await rig.defer(rig.task())
    hand = await rig.hand("mail.send")
    lease = await hand.one()
    assert (await engine.jobs.cancel(id, timeout_s=T_S)).status == "running"
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
        await engine.jobs.cancel(id, timeout_s=T_S)
    await hand.done(leases[0])
    await hand.dead(leases[1])
    assert [await rig.status(engine, id) for id in (done, dead)] == ["done", "dead"]


@pytest.mark.parametrize("verdict", ["retry", "release"])
async def test_what_was_asked_to_stop_does_not_run_again(rig: Rig, engine: Engine, verdict: str) -> None:
    """Whatever its worker says that would bring it back."""
    [id] = await rig.defer(rig.task())
    hand = await rig.hand("mail.send")
    lease = await hand.one()
    await engine.jobs.cancel(id, timeout_s=T_S)
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
        assert await engine.jobs.cancel(id, timeout_s=T_S) == before
        assert before.status == status
    with pytest.raises(UnknownJob):
        await engine.jobs.cancel(ids.job_id(), timeout_s=T_S)


async def test_a_cancelled_delay_frees_its_order(rig: Rig, engine: Engine) -> None:
    """What stood behind it goes on."""
    head, behind = await rig.defer(rig.task(order="o", due_at=rig.clock.wall() + 1e6), rig.task(order="o"))
    hand = await rig.hand("mail.send")
    assert await hand.nothing()
    await engine.jobs.cancel(head, timeout_s=T_S)
    assert (await hand.one()).id == behind


# --- dead letters -------------------------------------------------------------------------------------------


async def test_the_dead_run_again_when_somebody_wants_it(rig: Rig, engine: Engine) -> None:
    """With tries counted anew, under a number that no earlier attempt had."""
    [id] = await rig.defer(rig.task(body="again"))
    hand = await rig.hand("mail.send")
    await hand.retry(await hand.one())
    old = await hand.one()
    await hand.dead(old)
    assert await engine.leases.requeue("mail.send", [id], timeout_s=T_S) == 1
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
    assert await engine.leases.requeue("mail.send", timeout_s=T_S) == 3
    assert {lease.id for lease in await hand.take(3)} == set(every[:3])
    assert await rig.status(engine, every[4]) == "dead"
    assert await engine.leases.requeue("mail.nobody", timeout_s=T_S) == 0


async def test_only_the_dead_are_requeued(rig: Rig, engine: Engine) -> None:
    """Naming what runs, is done, is of another queue or unknown counts nothing and does nothing."""
    running, done, other = await rig.defer(*rig.tasks(2), rig.task("mail.other"))
    hand = await rig.hand("mail.send", "mail.other")
    for lease in await hand.take(3):
        if lease.id == done:
            await hand.done(lease)
        elif lease.id == other:
            await hand.dead(lease)
    assert await engine.leases.requeue("mail.send", [running, done, other, ids.job_id()], timeout_s=T_S) == 0
    assert [await rig.status(engine, id) for id in (running, done, other)] == ["running", "done", "dead"]
    assert await engine.leases.drop("mail.send", [running, done, other, ids.job_id()], timeout_s=T_S) == 0
    assert [await rig.status(engine, id) for id in (running, done, other)] == ["running", "done", "dead"]


async def test_the_dead_may_be_forgotten(rig: Rig, engine: Engine) -> None:
    """These, or all of the queue."""
    every = await rig.defer(*rig.tasks(5))
    hand = await rig.hand("mail.send")
    for lease in await hand.take(5):
        await hand.dead(lease)
    assert await engine.leases.drop("mail.send", every[:2], timeout_s=T_S) == 2
    assert [await rig.status(engine, id) for id in every] == [None, None, "dead", "dead", "dead"]
    assert await engine.leases.drop("mail.send", timeout_s=T_S) == 3
    assert await engine.jobs.page("mail.send", "dead", timeout_s=T_S) == []
    assert await engine.leases.drop("mail.send", timeout_s=T_S) == 0


async def test_a_requeued_job_is_waited_for_anew(rig: Rig, engine: Engine) -> None:
    """Its second end is told like a first one."""
    [id] = await rig.defer(rig.task())
    hand = await rig.hand("mail.send")
    await hand.dead(await hand.one())
    await engine.leases.requeue("mail.send", [id], timeout_s=T_S)
    waiting = asyncio.create_task(engine.jobs.wait(id, timeout_s=600.0))
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
    queues = {queue.name: queue for queue in await engine.leases.queues(timeout_s=T_S)}
    assert list(queues) == sorted(queues) == ["a.b", "mail.first", "mail.send"]
    send = queues["mail.send"]
    assert (send.waiting, send.delayed, send.ready, send.running, send.dead) == (1, 1, 3, 1, 1)
    assert (send.done, send.workers, queues["a.b"].workers) == (1, 1, 0)


async def test_a_queue_says_how_late_it_is(rig: Rig, engine: Engine) -> None:
    """oldest_s is the age of the oldest ready task: what is delayed is not late yet."""
    await rig.defer(rig.task("mail.later", due_at=rig.clock.wall() + 50.0), rig.task("mail.send"))
    await rig.pass_time(40.0)
    ages = {queue.name: queue.oldest_s for queue in await engine.leases.queues(timeout_s=T_S)}
    assert ages["mail.send"] == pytest.approx(40.0, abs=2.0)
    assert ages["mail.later"] == 0.0
    await rig.pass_time(20.0)
    ages = {queue.name: queue.oldest_s for queue in await engine.leases.queues(timeout_s=T_S)}
    assert ages["mail.later"] == pytest.approx(10.0, abs=2.0)


async def test_a_queue_tells_of_its_limits_and_workers(rig: Rig, engine: Engine) -> None:
    """Also when it is empty: what workers declare is there."""
    first = await rig.hand("mail.send", rate_per_s=50.0, burst=5, concurrency=7)
    await rig.hand("mail.send", rate_per_s=50.0, burst=5, concurrency=7)
    [queue] = await engine.leases.queues(timeout_s=T_S)
    assert (queue.name, queue.workers, queue.rate_per_s, queue.concurrency) == ("mail.send", 2, 50.0, 7)
    await first.leave()
    await rig.quiet()
    [queue] = await engine.leases.queues(timeout_s=T_S)
    assert queue.workers == 1


async def test_jobs_are_listed_page_by_page(rig: Rig, engine: Engine) -> None:
    """Each once, oldest first, those of one queue and status."""
    every = [(await rig.defer(rig.task(body=number)))[0] for number in range(25)]
    await rig.defer(rig.task("mail.other"), rig.task(due_at=rig.clock.wall() + 1e6))
    found: list[str] = []
    while True:
        after = found[-1] if found else ""
        page = await engine.jobs.page("mail.send", "ready", after=after, limit=10, timeout_s=T_S)
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
        while page := await engine.jobs.page(queue, status, after=found[-1] if found else "", limit=2, timeout_s=T_S):
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
    page = await engine.jobs.page("mail.send", "dead", limit=2, timeout_s=T_S)
    names = [info.id for info in page]
    await engine.leases.drop("mail.send", names, timeout_s=T_S)
    rest = await engine.jobs.page("mail.send", "dead", after=names[-1], timeout_s=T_S)
    assert {*names, *(info.id for info in rest)} == set(every)
