"""Tasks: what every engine promises of leases, of sessions that live long, and of those that die."""

from __future__ import annotations

import pytest
from engine_rig import T_S, Hand, Rig, needs, over_processes

from mesh.engines.contract import Engine
from mesh.errors import LeaseLost
from mesh.tasks.contract import Queue

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])
NEEDS = ("queues", "jobs", "flows")


@pytest.fixture
async def engine(rig: Rig) -> Engine:
    return await rig.engine()


async def death(rig: Rig, hand: Hand) -> None:
    """Its process is killed, and that is noticed: at once, or after a lease of silence."""
    await rig.kill(hand.engine)
    held = {id for id, _ in hand.holding}

    async def gone() -> bool:
        engine = await rig.observer()
        jobs = [await engine.jobs.find(id, timeout_s=T_S) for id in held]
        return not any(job is not None and job.worker == hand.name for job in jobs)

    if rig.longest_s:
        await rig.pass_time(rig.lease_s * 1.5)
    await rig.eventually(gone, f"the death of {hand.name} is noticed")


# --- a session that lives -----------------------------------------------------------------------------------


async def test_work_may_take_longer_than_any_lease(rig: Rig, engine: Engine) -> None:
    """While its worker lives nobody else gets it, however long it runs."""
    [id] = await rig.defer(rig.task())
    hand = await rig.hand("mail.send")
    lease = await hand.one()
    other = await rig.hand("mail.send")
    await rig.pass_time(30 * rig.lease_s)
    assert await other.nothing()
    job = await engine.jobs.find(id, timeout_s=T_S)
    assert job is not None
    assert (job.status, job.attempt, job.lost, job.worker) == ("running", 1, 0, hand.name)
    assert hand.lost_reasons == []
    await hand.done(lease)
    assert await rig.status(engine, id) == "done"


@needs("queues")
async def test_a_job_is_held_by_one_session(rig: Rig, engine: Engine) -> None:
    """With many workers waiting, each job is given out once."""
    hands = [await rig.hand("mail.send", credit=50) for _ in range(4)]
    every = await rig.defer(*rig.tasks(60))
    await rig.eventually(lambda: sum(len(hand.holding) for hand in hands) == 60, "everything is given out")
    await rig.quiet()
    held = [id for hand in hands for id, _ in hand.holding]
    assert sorted(held) == sorted(every)


@needs("queues")
async def test_a_stopped_session_finishes_what_it_has(rig: Rig, engine: Engine) -> None:
    """It gets nothing new, keeps what it has for as long as it takes, and others get the rest."""
    await rig.defer(*rig.tasks(3))
    hand = await rig.hand("mail.send", credit=2)
    leases = await hand.take(2)
    await hand.session.stop()
    await hand.session.stop()
    await rig.pass_time(5 * rig.lease_s)
    other = await rig.hand("mail.send")
    await other.one()
    await hand.done(*leases)
    await rig.defer(rig.task())
    await other.one()
    assert await hand.nothing()


@needs("queues")
async def test_a_closed_session_gives_back_what_it_has(rig: Rig, engine: Engine) -> None:
    """At once, and nothing is counted: nobody died."""
    every = await rig.defer(*rig.tasks(3))
    hand = await rig.hand("mail.send")
    leases = await hand.take(3)
    await hand.leave()
    await hand.session.close()
    other = await rig.hand("mail.send")
    again = await other.take(3)
    assert [lease.id for lease in again] == every
    assert [(lease.tries, lease.lost) for lease in again] == [(1, 0)] * 3
    with pytest.raises(LeaseLost):
        await hand.settle(leases[0], "done")


@needs("queues")
async def test_an_engine_that_is_closed_ends_its_sessions(rig: Rig, engine: Engine) -> None:
    """So that a worker that forgets to is nobody's trouble."""
    [id] = await rig.defer(rig.task())
    hand = await rig.hand("mail.send")
    await hand.one()
    hand.holding.clear()
    await hand.engine.close()
    await hand.engine.close()
    assert (await (await rig.hand("mail.send")).one()).id == id


# --- a session that dies ------------------------------------------------------------------------------------


async def test_what_a_dead_worker_had_runs_elsewhere(rig: Rig, engine: Engine) -> None:
    """With the next number; it was lost once, which is not a try of the handler."""
    every = await rig.defer(*rig.tasks(3))
    hand = await rig.hand("mail.send")
    await hand.take(3)
    await death(rig, hand)
    other = await rig.hand("mail.send")
    again = await other.take(3)
    assert {lease.id for lease in again} == set(every)
    assert [(lease.attempt, lease.tries, lease.lost) for lease in again] == [(2, 1, 1)] * 3
    await other.done(*again)


async def test_who_was_thought_dead_cannot_settle(rig: Rig, engine: Engine) -> None:
    """A worker that comes back from a long silence is told, and the attempt of another is not touched."""
    [id] = await rig.defer(rig.task())
    hand = await rig.hand("mail.send")
    late = await hand.one()
    await rig.cut(hand.engine)
    await rig.pass_time(rig.lease_s * 2)
    assert len(hand.lost_reasons) == 1, "it knows by itself that its time is over"
    other = await rig.hand("mail.send")
    lease = await other.one()
    assert (lease.id, lease.attempt) == (id, 2)
    await rig.mend(hand.engine)
    await rig.pass_time(rig.lease_s)
    for verdict in ("done", "retry", "dead", "release"):
        with pytest.raises(LeaseLost):
            await hand.settle(late, verdict)  # type: ignore[arg-type]
    await other.done(lease)
    job = await engine.jobs.find(id, timeout_s=T_S)
    assert job is not None
    assert (job.status, job.attempt) == ("done", 2)


async def test_who_comes_back_in_time_keeps_what_it_has(rig: Rig, engine: Engine) -> None:
    """A short silence costs nothing, and new work comes again."""
    await rig.defer(rig.task())
    hand = await rig.hand("mail.send", credit=2)
    lease = await hand.one()
    other = await rig.hand("mail.send")
    for _ in range(3):
        await rig.cut(hand.engine)
        await rig.pass_time(rig.lease_s * 0.4)
        await rig.mend(hand.engine)
        await rig.pass_time(rig.lease_s * 0.5)
    assert await other.nothing()
    assert hand.lost_reasons == []
    await hand.done(lease)
    await other.leave()
    [id] = await rig.defer(rig.task())
    assert (await hand.one()).id == id


async def test_who_was_thought_dead_gets_work_again(rig: Rig, engine: Engine) -> None:
    """It attaches again by itself."""
    hand = await rig.hand("mail.send")
    await rig.cut(hand.engine)
    await rig.pass_time(rig.lease_s * 2)
    await rig.mend(hand.engine)
    await rig.pass_time(rig.lease_s)
    [id] = await rig.defer(rig.task())
    lease = await hand.one()
    assert lease.id == id
    await hand.done(lease)


async def test_what_was_lost_too_often_is_dead(rig: Rig, engine: Engine) -> None:
    """After `most_lost` deaths, with that as the reason: a task that kills does not go on for ever."""
    [id] = await rig.defer(rig.task())
    for death_number in range(1, 4):
        hand = await rig.hand("mail.send", most_lost=3)
        assert (await hand.one()).lost == death_number - 1
        await death(rig, hand)
    info = await rig.until_status(engine, id, "dead")
    assert info is not None
    assert (info.reason, info.lost, info.attempt) == ("lost", 3, 3)
    assert info.error
    hand = await rig.hand("mail.send")
    assert await hand.nothing()
    await engine.leases.requeue("mail.send", [id], timeout_s=T_S)
    assert (await hand.one()).lost == 0


async def test_how_often_is_the_queues_own_affair(rig: Rig, engine: Engine) -> None:
    """most_lost=1: what must not be begun twice by a crash is dead at once."""
    [id] = await rig.defer(rig.task())
    hand = await rig.hand("mail.send", most_lost=1)
    await hand.one()
    await death(rig, hand)
    info = await rig.until_status(engine, id, "dead")
    assert info is not None
    assert info.reason == "lost"


async def test_what_was_asked_to_stop_ends_with_its_worker(rig: Rig, engine: Engine) -> None:
    """It is cancelled, and does not run elsewhere."""
    [id] = await rig.defer(rig.task())
    hand = await rig.hand("mail.send")
    await hand.one()
    await engine.jobs.cancel(id, timeout_s=T_S)
    await death(rig, hand)
    await rig.until_status(engine, id, "cancelled")
    assert await (await rig.hand("mail.send")).nothing()


async def test_a_death_does_not_break_an_order(rig: Rig, engine: Engine) -> None:
    """What was lost is still the head."""
    every = await rig.defer(*(rig.task(order="o") for _ in range(2)))
    hand = await rig.hand("mail.send")
    await hand.one()
    await death(rig, hand)
    other = await rig.hand("mail.send")
    assert [lease.id for lease in await other.run(2)] == every


# --- what kills its worker ----------------------------------------------------------------------------------


async def test_what_was_lost_twice_runs_alone(rig: Rig, engine: Engine) -> None:
    """With nothing beside it, before and after, until it is settled; so that innocents are not counted with it."""
    every = await rig.defer(*rig.tasks(4))
    for _ in range(2):
        hand = await rig.hand("mail.send")
        await hand.take(4)
        await death(rig, hand)
    hand = await rig.hand("mail.send", "mail.other")
    await rig.defer(*rig.tasks(3, "mail.other", priority=0))
    seen = set()
    while len(seen) < 4:
        lease = await hand.one()
        await rig.quiet()
        if lease.lost >= 2:
            assert len(hand.holding) == 1, "a suspect has company"
            seen.add(lease.id)
        else:
            assert all(lease.lost < 2 for lease in hand.holding.values()), "a suspect has company"
        await hand.done(lease)
    assert seen == set(every)
    await rig.eventually(lambda: len(hand.history) == 7, "the others, too")


async def test_innocents_do_not_die_with_a_task_that_kills(rig: Rig, engine: Engine) -> None:
    """Twenty ordinary tasks beside one that kills whoever runs it: it dies, and only it; all others are done."""
    tasks = rig.tasks(21)
    poison = tasks[7].id
    await rig.defer(*tasks)
    innocent = {task.id for task in tasks} - {poison}
    done: set[str] = set()
    deaths = 0
    while len(done) < len(innocent) or await rig.status(engine, poison) != "dead":
        assert deaths <= 3, "it goes on killing"
        hand = await rig.hand("mail.send", credit=30)
        while True:
            await rig.eventually(lambda hand=hand: hand.holding or len(done) == len(innocent), "the next lease")
            await rig.quiet()
            if any(id == poison for id, _ in hand.holding):
                deaths += 1
                await death(rig, hand)
                break
            if not hand.holding:
                await hand.leave()
                break
            lease = next(iter(hand.holding.values()))
            await hand.done(lease)
            done.add(lease.id)
    assert done == innocent
    info = await engine.jobs.find(poison, timeout_s=T_S)
    assert info is not None
    assert (info.reason, info.lost, deaths) == ("lost", 3, 3)
    assert await engine.jobs.page("mail.send", "dead", timeout_s=T_S) == [info]


async def test_a_suspect_gets_its_turn_among_the_busy(rig: Rig, engine: Engine) -> None:
    """A worker that always has something in hand makes room for it in the end."""
    [suspect] = await rig.defer(rig.task(body="suspect"))
    killed = await rig.hand("mail.send")
    await killed.one()
    await death(rig, killed)
    killed = await rig.hand("mail.send")
    await killed.one()
    await rig.defer(*rig.tasks(60, "mail.other"))
    hand = await rig.hand(Queue("mail.other", 4), Queue("mail.send", 4))
    leases = await hand.take(4)
    await death(rig, killed)
    for _ in range(50):
        await rig.quiet()
        if any(id == suspect for id, _ in hand.holding):
            break
        await hand.done(leases.pop(0))
        await rig.quiet()
        known = {lease.id for lease in leases}
        leases += [lease for lease in hand.holding.values() if lease.id not in known]
    assert [id for id, _ in hand.holding] == [suspect]
    await hand.settle(next(iter(hand.holding.values())))
    await rig.eventually(lambda: len(hand.holding) == 4, "it works on")


# --- attaching again ----------------------------------------------------------------------------------------


async def there_and_back(rig: Rig, hand: Hand) -> None:
    """Part a worker for a short while."""
    await rig.cut(hand.engine)
    await rig.pass_time(rig.lease_s * 0.4)
    await rig.mend(hand.engine)
    await rig.pass_time(rig.lease_s * 0.5)


async def test_a_lease_that_was_lost_on_the_way_is_given_again(rig: Rig, engine: Engine) -> None:
    """A worker that comes back keeps what it says it holds; what it never got counts for nothing."""
    await rig.defer(*rig.tasks(2))
    hand = await rig.hand("mail.send")
    kept, lost = await hand.take(2)
    del hand.holding[lost.id, lost.attempt]
    await there_and_back(rig, hand)
    again = await hand.one()
    assert (again.id, again.tries, again.lost) == (lost.id, 1, 0)
    assert again.attempt > lost.attempt
    await hand.done(kept, again)


async def test_who_comes_back_is_told_what_to_stop(rig: Rig, engine: Engine) -> None:
    """What somebody cancelled while it was away, and what is not its own: the rest goes on."""
    cancelled, _ = await rig.defer(*rig.tasks(2))
    hand = await rig.hand("mail.send")
    asked, stays = await hand.take(2)
    assert asked.id == cancelled
    hand.holding["f" * 28, 3] = asked
    await rig.cut(hand.engine)
    await engine.jobs.cancel(cancelled, timeout_s=T_S)
    await rig.pass_time(rig.lease_s * 0.4)
    await rig.mend(hand.engine)
    await rig.pass_time(rig.lease_s * 0.5)
    await rig.eventually(lambda: len(set(hand.cancels)) >= 2, "the worker is told")
    assert set(hand.cancels) == {(asked.id, asked.attempt), ("f" * 28, 3)}
    del hand.holding["f" * 28, 3]
    await hand.settle(asked, "cancelled")
    await hand.done(stays)
    assert await rig.status(engine, cancelled) == "cancelled"


@over_processes
async def test_a_worker_keeps_its_leases_through_a_restart(rig: Rig, engine: Engine) -> None:
    """Whatever keeps the data died and is back: what runs goes on, is settled once, and nothing is given out twice."""
    await rig.defer(*rig.tasks(5))
    hand = await rig.hand("mail.send", credit=3)
    leases = await hand.take(3)
    await rig.restart()
    other = await rig.hand("mail.send", credit=1)
    assert (await other.one()).attempt == 1
    assert {lease.id for lease in other.holding.values()}.isdisjoint({lease.id for lease in leases})
    await hand.done(*leases)
    last = await hand.one()
    await hand.done(last)
    assert hand.lost_reasons == []
    assert await hand.nothing()


async def test_a_worker_that_died_with_the_engine_is_noticed(rig: Rig, engine: Engine) -> None:
    """Its leases were durable: somebody else gets the work, after a lease of silence at most."""
    [id] = await rig.defer(rig.task())
    hand = await rig.hand("mail.send")
    await hand.one()
    await rig.kill(hand.engine)
    await rig.restart()
    other = await rig.hand("mail.send")
    if rig.longest_s:
        await rig.pass_time(rig.lease_s * 2)
    lease = await other.one()
    assert (lease.id, lease.attempt) == (id, 2)
