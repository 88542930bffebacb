"""Tasks: what every engine promises of who goes first, when, and how many at once."""

from __future__ import annotations

import msgspec
import pytest
from engine_rig import T_S, Hand, Rig, needs

from mesh.engines.contract import Engine
from mesh.tasks.contract import Lease, Queue

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])
NEEDS = ("queues", "jobs", "flows", "quotas")


@pytest.fixture
async def engine(rig: Rig) -> Engine:
    return await rig.engine()


def bodies(leases: list[Lease]) -> list[object]:
    return [msgspec.msgpack.decode(lease.body) for lease in leases]


# --- priority, then age -------------------------------------------------------------------------------------


@needs("queues")
async def test_the_older_goes_first(rig: Rig, engine: Engine) -> None:
    """In the order in which they were deferred, within one commit and over many."""
    await rig.defer(*rig.tasks(20))
    for number in range(20, 30):
        await rig.defer(rig.task(body=number), engine=engine)
    hand = await rig.hand("mail.send", credit=1)
    assert bodies(await hand.run(30)) == list(range(30))


@needs("queues")
async def test_the_higher_priority_goes_before_age(rig: Rig, engine: Engine) -> None:
    """9 before 0; of one priority the older."""
    for number, priority in enumerate([5, 0, 9, 5, 9, 1]):
        await rig.defer(rig.task(body=(priority, number), priority=priority), engine=engine)
    hand = await rig.hand("mail.send", credit=1)
    assert bodies(await hand.run(6)) == [[9, 2], [9, 4], [5, 0], [5, 3], [1, 5], [0, 1]]


@needs("queues")
async def test_what_comes_later_with_more_priority_is_next(rig: Rig, engine: Engine) -> None:
    """It need not wait for those that were there first."""
    await rig.defer(*rig.tasks(3))
    hand = await rig.hand("mail.send", credit=1)
    first = await hand.one()
    await rig.defer(rig.task(body="urgent", priority=8), engine=engine)
    await hand.done(first)
    assert bodies(await hand.run(3)) == ["urgent", 1, 2]


@needs("queues")
async def test_a_retry_keeps_its_age(rig: Rig, engine: Engine) -> None:
    """When it may run again, it goes before what was deferred after it."""
    await rig.defer(*rig.tasks(4))
    hand = await rig.hand("mail.send", credit=1)
    await hand.retry(await hand.one())
    assert bodies(await hand.run(4)) == [0, 1, 2, 3]


# --- due times ----------------------------------------------------------------------------------------------


async def test_a_delayed_task_waits_for_its_time(rig: Rig, engine: Engine) -> None:
    """And then runs at once, though nobody asked."""
    hand = await rig.hand("mail.send")
    [id] = await rig.defer(rig.task(due_at=rig.clock.wall() + 30.0))
    await rig.pass_time(29.0)
    assert await hand.nothing()
    assert await rig.status(engine, id) == "delayed"
    await rig.pass_time(1.5)
    assert (await hand.one()).id == id


@needs("queues")
async def test_a_delay_may_be_longer_than_anything(rig: Rig, engine: Engine) -> None:
    """Far beyond any lease or time-out: it runs once, on its day."""
    day_s = 86400.0
    every = await rig.defer(*(rig.task(due_at=rig.clock.wall() + days * day_s) for days in (365, 30)))
    for days, due in [(29.9, []), (0.2, every[1:]), (334.8, []), (0.2, every[:1])]:
        await rig.leap(days * day_s)
        hand = await rig.hand("mail.send")
        assert [lease.id for lease in await hand.run(len(due))] == due
        assert await hand.nothing()
        await hand.leave()


@needs("queues")
async def test_what_is_due_in_the_past_is_due_now(rig: Rig, engine: Engine) -> None:
    """A clock that is ahead does no harm."""
    hand = await rig.hand("mail.send")
    await rig.defer(rig.task(due_at=1.0), rig.task(due_at=rig.clock.wall() - 5.0))
    await hand.take(2)


@needs("queues")
async def test_delays_come_due_in_their_order(rig: Rig, engine: Engine) -> None:
    """Not in that of their defers."""
    hand = await rig.hand("mail.send")
    now = rig.clock.wall()
    await rig.defer(*(rig.task(body=due, due_at=now + due) for due in (30, 10, 20)))
    seen = []
    for _ in range(3):
        await rig.pass_time(10.5)
        seen += bodies([await hand.one()])
    assert seen == [10, 20, 30]


@needs("queues")
async def test_what_came_due_while_nobody_was_there_runs_later(rig: Rig, engine: Engine) -> None:
    """Nothing is skipped; age decides, not the due time."""
    now = rig.clock.wall()
    await rig.defer(rig.task(body="a", due_at=now + 20.0), rig.task(body="b", due_at=now + 10.0), rig.task(body="c"))
    await rig.pass_time(100.0)
    hand = await rig.hand("mail.send", credit=1)
    assert bodies(await hand.run(3)) == ["a", "b", "c"]


async def test_delays_outlive_a_restart(rig: Rig, engine: Engine) -> None:
    """What came due meanwhile runs, the rest waits for its time."""
    now = rig.clock.wall()
    await rig.defer(rig.task(body="soon", due_at=now + 20.0), rig.task(body="late", due_at=now + 300.0))
    await rig.restart()
    hand = await rig.hand("mail.send")
    assert await hand.nothing()
    await rig.pass_time(21.0)
    assert bodies([await hand.one()]) == ["soon"]
    assert await hand.nothing()
    await rig.pass_time(280.0)
    assert bodies([await hand.one()]) == ["late"]


# --- one order ----------------------------------------------------------------------------------------------


async def test_jobs_of_one_order_run_one_after_the_other(rig: Rig, engine: Engine) -> None:
    """As they were deferred, over all workers; other orders do not wait."""
    await rig.defer(*(rig.task(body=(order, number), order=order) for number in range(4) for order in "ab"))
    hands = [await rig.hand("mail.send"), await rig.hand("mail.send")]
    ran: dict[str, list[int]] = {"a": [], "b": []}
    while sum(map(len, ran.values())) < 8:
        await rig.eventually(lambda: any(hand.holding for hand in hands), "the next of an order")
        await rig.quiet()
        held = [order for hand in hands for order, _ in bodies(list(hand.holding.values()))]  # type: ignore[misc]
        assert len(held) == len(set(held)), "two of one order run"
        assert set(held) == {order for order in "ab" if len(ran[order]) < 4}
        hand = next(hand for hand in hands if hand.holding)
        [lease] = await hand.run(1)
        order, number = msgspec.msgpack.decode(lease.body, type=tuple[str, int])
        ran[order].append(number)
    assert ran == {"a": [0, 1, 2, 3], "b": [0, 1, 2, 3]}


async def test_a_delayed_head_holds_up_its_order(rig: Rig, engine: Engine) -> None:
    """What was deferred first runs first, whatever its delay; what has no order, or another, passes by."""
    later = rig.clock.wall() + 50.0
    head, behind, free, other = await rig.defer(
        rig.task(order="o", due_at=later), rig.task(order="o"), rig.task(), rig.task(order="p")
    )
    hand = await rig.hand("mail.send")
    assert {lease.id for lease in await hand.take(2)} == {free, other}
    assert await hand.nothing()
    await rig.pass_time(51.0)
    lease = await hand.one()
    assert lease.id == head
    assert await hand.nothing()
    await hand.done(lease)
    assert (await hand.one()).id == behind


async def test_a_failing_head_holds_up_its_order(rig: Rig, engine: Engine) -> None:
    """Through its retries, also those at once; the next goes on when it is done or dead."""
    head, second, third = await rig.defer(*(rig.task(order="o") for _ in range(3)))
    hand = await rig.hand("mail.send")
    await hand.retry(await hand.one(), after_s=20.0)
    assert await hand.nothing()
    await rig.pass_time(21.0)
    await hand.retry(await hand.one())
    lease = await hand.one()
    assert (lease.id, lease.attempt) == (head, 3)
    assert await hand.nothing()
    await hand.dead(lease)
    lease = await hand.one()
    assert lease.id == second
    await hand.done(lease)
    assert (await hand.one()).id == third


async def test_a_released_head_stays_the_head(rig: Rig, engine: Engine) -> None:
    """It was not begun, so nothing behind it may be."""
    head, _ = await rig.defer(rig.task(order="o"), rig.task(order="o"))
    hand = await rig.hand("mail.send")
    await hand.settle(await hand.one(), "release")
    assert (await hand.one()).id == head
    assert await hand.nothing()


async def test_priority_does_not_break_an_order(rig: Rig, engine: Engine) -> None:
    """Of one order the older goes first, whatever their priorities; between orders the head's own counts."""
    await rig.defer(
        rig.task(body="o1", order="o", priority=1),
        rig.task(body="o2", order="o", priority=9),
        rig.task(body="p1", order="p", priority=5),
    )
    hand = await rig.hand("mail.send", credit=1)
    assert bodies(await hand.run(3)) == ["p1", "o1", "o2"]


async def test_a_requeued_head_does_not_run_beside_another(rig: Rig, engine: Engine) -> None:
    """It is the oldest again, but what runs is not disturbed."""
    head, second, third = await rig.defer(*(rig.task(order="o") for _ in range(3)))
    hand = await rig.hand("mail.send")
    await hand.dead(await hand.one())
    running = await hand.one()
    assert running.id == second
    await engine.leases.requeue("mail.send", [head], timeout_s=T_S)
    assert await hand.nothing()
    await hand.done(running)
    lease = await hand.one()
    assert lease.id == head
    assert await hand.nothing()
    await hand.done(lease)
    assert (await hand.one()).id == third


async def test_an_order_belongs_to_its_queue(rig: Rig, engine: Engine) -> None:
    """The same order of two queues is two orders."""
    await rig.defer(rig.task("mail.send", order="o"), rig.task("mail.sort", order="o"))
    await (await rig.hand("mail.send", "mail.sort")).take(2)


async def test_orders_outlive_a_restart(rig: Rig, engine: Engine) -> None:
    """The head is still the head, whatever its status was."""
    every = await rig.defer(*(rig.task(order="o") for _ in range(3)))
    hand = await rig.hand("mail.send")
    await hand.retry(await hand.one(), after_s=1e5)
    await hand.leave()
    await rig.restart()
    hand = await rig.hand("mail.send")
    assert await hand.nothing()
    await engine.jobs.cancel(every[0], timeout_s=T_S)
    assert [lease.id for lease in await hand.run(2)] == every[1:]


async def test_a_long_order_is_run_through(rig: Rig, engine: Engine) -> None:
    """Hundreds of one order, one at a time, by several workers."""
    every = await rig.defer(*(rig.task(order="o") for _ in range(120)))
    hands = [await rig.hand("mail.send") for _ in range(2)]
    ran: list[str] = []
    while len(ran) < len(every):
        await rig.eventually(lambda: any(hand.holding for hand in hands), "the next of the order")
        assert sum(len(hand.holding) for hand in hands) == 1
        hand = next(hand for hand in hands if hand.holding)
        ran += [lease.id for lease in await hand.run(1)]
    assert ran == every


# --- how many at once, and how fast -------------------------------------------------------------------------


@needs("queues")
async def test_a_worker_gets_as_much_as_it_has_credit(rig: Rig, engine: Engine) -> None:
    """Per queue; each settlement makes room for one more."""
    await rig.defer(*rig.tasks(10), *rig.tasks(10, "mail.sort"))
    hand = await rig.hand(Queue("mail.send", 3), Queue("mail.sort", 2))
    leases = await hand.take(5)
    assert sorted(lease.queue for lease in leases) == ["mail.send"] * 3 + ["mail.sort"] * 2
    assert await hand.nothing()
    for lease in leases:
        await hand.done(lease)
        assert (await hand.one()).queue == lease.queue
        assert await hand.nothing()


@needs("queues")
async def test_work_is_shared_among_workers(rig: Rig, engine: Engine) -> None:
    """With room for all at each of them, none gets everything."""
    hands = [await rig.hand("mail.send", credit=100) for _ in range(4)]
    await rig.defer(*rig.tasks(40))
    await rig.eventually(lambda: sum(len(hand.holding) for hand in hands) == 40, "everything is given out")
    assert min(len(hand.holding) for hand in hands) >= 5


async def test_concurrency_holds_over_all_workers(rig: Rig, engine: Engine) -> None:
    """However many there are, and whatever their credit."""
    await rig.defer(*rig.tasks(12))
    hands = [await rig.hand("mail.send", concurrency=3) for _ in range(3)]

    def running() -> int:
        return sum(len(hand.holding) for hand in hands)

    for left in range(12, 0, -1):
        await rig.eventually(lambda left=left: running() == min(3, left), "as many run as may")
        await rig.quiet()
        assert running() == min(3, left)
        hand = next(hand for hand in hands if hand.holding)
        await hand.run(1)


async def test_concurrency_counts_what_is_retried_or_lost_as_free(rig: Rig, engine: Engine) -> None:
    """Whatever ends an attempt makes room."""
    await rig.defer(*rig.tasks(5))
    hand = await rig.hand("mail.send", concurrency=1)
    await hand.retry(await hand.one(), after_s=1e6)
    await hand.dead(await hand.one())
    await hand.settle(await hand.one(), "release")
    lease = await hand.one()
    await engine.jobs.cancel(lease.id, timeout_s=T_S)
    await hand.settle(lease, "cancelled")
    await hand.one()
    await rig.kill(hand.engine)
    await rig.pass_time(rig.lease_s * 1.5)
    other = await rig.hand("mail.send", concurrency=1)
    await other.one()
    assert await other.nothing()


async def test_the_rate_holds_over_all_workers(rig: Rig, engine: Engine) -> None:
    """In any stretch of time at most burst + rate × length are given out, and no fewer than the rate when there is
    enough to do."""
    await rig.defer(*rig.tasks(200))
    hands = [await rig.hand("mail.send", credit=50, rate_per_s=2.0, burst=3) for _ in range(3)]
    given = [0]
    for _ in range(20):
        await rig.pass_time(1.0)
        for hand in hands:
            await hand.run(len(hand.holding))
        given.append(sum(len(hand.history) for hand in hands))
    for begin in range(len(given)):
        for end in range(begin + 1, len(given)):
            assert given[end] - given[begin] <= 3 + 2.0 * (end - begin) + 1e-9, f"second {begin} to {end}"
    assert given[-1] >= 2.0 * 20 - 1


async def test_what_a_pause_saved_up_is_a_burst_at_most(rig: Rig, engine: Engine) -> None:
    """After a time with nothing to do, `burst` go out at once and the rest at the rate."""
    hand = await rig.hand("mail.send", credit=100, rate_per_s=1.0, burst=5)
    await rig.pass_time(60.0)
    await rig.defer(*rig.tasks(20))
    assert len(await hand.take(5)) == 5
    assert await hand.nothing()
    await rig.pass_time(3.0)
    assert 2 <= len(hand.history) - 5 <= 4


async def test_limits_are_those_that_were_said_last(rig: Rig, engine: Engine) -> None:
    """A newer release changes them for all workers."""
    await rig.defer(*rig.tasks(10))
    old = await rig.hand("mail.send", concurrency=1)
    await old.one()
    assert await old.nothing()
    await rig.hand("mail.send", credit=0, concurrency=4)
    await old.take(3)
    assert await old.nothing()


async def test_one_queue_does_not_wait_for_another(rig: Rig, engine: Engine) -> None:
    """A worker that is full of one kind, or a kind that is at its limit, leaves the others their way."""
    await rig.defer(*rig.tasks(50, "mail.slow"), *rig.tasks(50, "mail.limited"), *rig.tasks(50, "mail.rated"))
    hand: Hand = await rig.hand(
        Queue("mail.slow", 2),
        Queue("mail.limited", 50, concurrency=1),
        Queue("mail.rated", 50, rate_per_s=0.001),
        Queue("mail.send", 5),
    )
    # Two slow ones, one limited, and at most the one that a fresh rate allows.
    await hand.take(3)
    await rig.quiet()
    await rig.defer(*rig.tasks(20, priority=0), engine=engine)
    for _ in range(20):
        await rig.eventually(lambda: any(lease.queue == "mail.send" for lease in hand.holding.values()), "the next")
        lease = next(lease for lease in hand.holding.values() if lease.queue == "mail.send")
        await hand.done(lease)
