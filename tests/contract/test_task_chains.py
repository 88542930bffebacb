"""Tasks that wait for each other: what every engine promises of chains, groups and their ends."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from engine_rig import T_S, Hand, Rig, over_processes

from mesh import ids
from mesh.engines.contract import Engine
from mesh.errors import BadRequest
from mesh.tasks.contract import Lease, NewTask

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])
NEEDS = ("queues", "jobs", "flows")


@pytest.fixture
async def engine(rig: Rig) -> Engine:
    return await rig.engine()


def chain(rig: Rig, *queues: str, **last: object) -> list[NewTask]:
    """Tasks of these queues, each waiting for the one before."""
    names = [ids.job_id() for _ in queues]
    feeds = [*names[1:], ""]
    return [
        NewTask(
            name,
            queue,
            b"\x90",
            waits=int(place > 0),
            feeds=feeds[place],
            **(last if not feeds[place] else {}),  # type: ignore[arg-type]
        )
        for place, (name, queue) in enumerate(zip(names, queues, strict=True))
    ]


def group(rig: Rig, queues: Sequence[str], then: str, **last: object) -> list[NewTask]:
    """Members of these queues, and a last task that gathers their answers."""
    end = ids.job_id()
    members = [rig.task(queue, place=place, feeds=end) for place, queue in enumerate(queues)]
    return [*members, NewTask(end, then, b"\x90", waits=len(members), gathers=True, **last)]  # type: ignore[arg-type]


async def statuses(rig: Rig, engine: Engine, tasks: Sequence[NewTask]) -> list[str | None]:
    return [await rig.status(engine, task.id) for task in tasks]


def prior(lease: Lease) -> object:
    return msgspec.msgpack.decode(lease.prior)


# --- chains -------------------------------------------------------------------------------------------------


async def test_a_chain_runs_in_its_order(rig: Rig, engine: Engine) -> None:
    """Each task when the one before is done, with its answer."""
    tasks = chain(rig, "a.one", "a.two", "a.three")
    await rig.defer(*tasks)
    assert await statuses(rig, engine, tasks) == ["ready", "waiting", "waiting"]
    hand = await rig.hand("a.one", "a.two", "a.three")
    first = await hand.one()
    assert (first.id, first.prior) == (tasks[0].id, b"")
    assert await hand.nothing()
    await hand.done(first, result={"n": 1})
    second = await hand.one()
    assert (second.id, prior(second)) == (tasks[1].id, {"n": 1})
    await hand.done(second, result=[2])
    third = await hand.one()
    assert (third.id, prior(third)) == (tasks[2].id, [2])
    await hand.done(third)
    assert await statuses(rig, engine, tasks) == ["done", "done", "done"]


async def test_no_answer_is_an_answer(rig: Rig, engine: Engine) -> None:
    """A task that returns nothing hands on None, so that the next can tell that it waited."""
    tasks = chain(rig, "a.one", "a.two")
    await rig.defer(*tasks)
    hand = await rig.hand("a.one", "a.two")
    await hand.settle(await hand.one(), "done", result=b"")
    assert prior(await hand.one()) is None


async def test_the_answer_is_there_at_every_attempt(rig: Rig, engine: Engine) -> None:
    """Also after retries, a death, and when the task before is long forgotten."""
    tasks = [msgspec.structs.replace(task, keep_s=0.0) for task in chain(rig, "a.one", "a.two")]
    await rig.defer(*tasks)
    hand = await rig.hand("a.one", "a.two")
    await hand.done(await hand.one(), result="kept")
    assert await rig.status(engine, tasks[0].id) is None
    for _ in range(3):
        lease = await hand.one()
        assert prior(lease) == "kept"
        await hand.retry(lease)
    await hand.dead(await hand.one())
    await engine.leases.requeue("a.two", timeout_s=T_S)
    assert prior(await hand.one()) == "kept"


async def test_a_retry_holds_up_the_chain(rig: Rig, engine: Engine) -> None:
    """What waits does so until the answer is there."""
    tasks = chain(rig, "a.one", "a.two")
    await rig.defer(*tasks)
    hand = await rig.hand("a.one", "a.two")
    await hand.retry(await hand.one(), after_s=20.0)
    assert await rig.status(engine, tasks[1].id) == "waiting"
    await rig.pass_time(21.0)
    await hand.done(await hand.one(), result=2)
    assert prior(await hand.one()) == 2


async def test_a_delay_in_a_chain_is_kept(rig: Rig, engine: Engine) -> None:
    """A task that waited for another still waits for its own time."""
    first, last = chain(rig, "a.one", "a.two", due_at=rig.clock.wall() + 50.0)
    await rig.defer(first, last)
    hand = await rig.hand("a.one", "a.two")
    await hand.done(await hand.one(), result=1)
    assert await rig.status(engine, last.id) == "delayed"
    await rig.pass_time(51.0)
    assert prior(await hand.one()) == 1


@over_processes
async def test_a_chain_goes_on_after_a_restart(rig: Rig, engine: Engine) -> None:
    """Wherever it was: the answers are as durable as the tasks."""
    tasks = chain(rig, "a.one", "a.two", "a.three")
    await rig.defer(*tasks)
    hand = await rig.hand("a.one", "a.two", "a.three")
    for answer in ("first", "second", "third"):
        lease = await hand.one()
        await rig.restart()
        await hand.done(lease, result=answer)
        if answer == "first":
            await rig.restart()
    assert await statuses(rig, engine, tasks) == ["done", "done", "done"]


# --- groups -------------------------------------------------------------------------------------------------


async def test_a_group_gathers_its_answers(rig: Rig, engine: Engine) -> None:
    """The last task begins when all members are done, and gets their answers in their places, whoever was first."""
    tasks = group(rig, ["a.one"] * 5, "a.all")
    await rig.defer(*tasks)
    hand = await rig.hand("a.one", "a.all")
    leases = await hand.take(5)
    for lease in reversed(leases[1:]):
        await hand.done(lease, result=[leases.index(lease)])
    assert await hand.nothing()
    assert await rig.status(engine, tasks[-1].id) == "waiting"
    await hand.done(leases[0], result=None)
    assert prior(await hand.one()) == [None, [1], [2], [3], [4]]


async def test_a_group_of_one_still_gathers(rig: Rig, engine: Engine) -> None:
    """An array of one answer, not the answer."""
    await rig.defer(*group(rig, ["a.one"], "a.all"))
    hand = await rig.hand("a.one", "a.all")
    await hand.done(await hand.one(), result=7)
    assert prior(await hand.one()) == [7]


async def test_members_may_end_in_one_commit(rig: Rig, engine: Engine) -> None:
    """A large group, settled by several workers at once: the last task begins once, with everything."""
    tasks = group(rig, ["a.one"] * 300, "a.all")
    await rig.defer(*tasks)
    hands = [await rig.hand("a.one", credit=100) for _ in range(3)]
    await rig.eventually(lambda: sum(len(hand.holding) for hand in hands) == 300, "all members run")
    places = {task.id: task.place for task in tasks}
    for hand in hands:
        leases = await hand.take(len(hand.holding))
        words = [hand.word(lease, "done", result=msgspec.msgpack.encode(places[lease.id] * 2)) for lease in leases]
        await hand.engine.leases.acknowledge(words, timeout_s=T_S)
    last = await rig.hand("a.all")
    assert prior(await last.one()) == [2 * place for place in range(300)]
    assert await last.nothing()


async def test_groups_and_chains_may_be_mixed(rig: Rig, engine: Engine) -> None:
    """A group whose callback is the first of a chain, whose members are ends of chains."""
    end, after = ids.job_id(), ids.job_id()
    first = rig.task("a.first")
    tasks = [
        msgspec.structs.replace(first, feeds="m" * 28),
        NewTask("m" * 28, "a.member", b"\x90", waits=1, feeds=end, place=0),
        rig.task("a.member", feeds=end, place=1),
        NewTask(end, "a.all", b"\x90", waits=2, gathers=True, feeds=after),
        NewTask(after, "a.after", b"\x90", waits=1),
    ]
    await rig.defer(*tasks)
    hand = await rig.hand("a.first", "a.member", "a.all", "a.after")
    seen = {}
    for _ in range(5):
        lease = await hand.one()
        seen[lease.id] = prior(lease) if lease.prior else None
        await hand.done(lease, result=lease.queue)
    assert seen == {
        first.id: None,
        "m" * 28: "a.first",
        tasks[2].id: None,
        end: ["a.member", "a.member"],
        after: "a.all",
    }


# --- bad ends, and mending them -----------------------------------------------------------------------------


async def test_the_end_of_one_is_the_end_of_all_that_wait(rig: Rig, engine: Engine) -> None:
    """When it is dead: they are dead, too, saying so; what was done stays done."""
    tasks = chain(rig, "a.one", "a.two", "a.three", "a.four")
    await rig.defer(*tasks)
    hand = await rig.hand("a.one", "a.two", "a.three", "a.four")
    await hand.done(await hand.one())
    await hand.dead(await hand.one(), "no such order")
    assert await statuses(rig, engine, tasks) == ["done", "dead", "dead", "dead"]
    infos = [await engine.jobs.wait(task.id, timeout_s=T_S) for task in tasks]
    assert [info.reason for info in infos] == ["", "failed", "upstream", "upstream"]
    assert tasks[1].id in infos[2].error
    assert await hand.nothing()


@pytest.mark.parametrize("running", [False, True])
async def test_a_cancelled_task_ends_what_waits_for_it(rig: Rig, engine: Engine, running: bool) -> None:
    """Whether it ran or not."""
    tasks = chain(rig, "a.one", "a.two")
    await rig.defer(*tasks)
    if running:
        hand = await rig.hand("a.one", "a.two")
        lease = await hand.one()
        await engine.jobs.cancel(tasks[0].id, timeout_s=T_S)
        assert await rig.status(engine, tasks[1].id) == "waiting"
        await hand.settle(lease, "cancelled")
    else:
        await engine.jobs.cancel(tasks[0].id, timeout_s=T_S)
    assert await statuses(rig, engine, tasks) == ["cancelled", "dead"]
    info = await engine.jobs.wait(tasks[1].id, timeout_s=T_S)
    assert info.reason == "upstream"


async def test_a_death_upstream_is_seen_through_every_cause(rig: Rig, engine: Engine) -> None:
    """Also when it was lost with its workers."""
    tasks = chain(rig, "a.one", "a.two")
    await rig.defer(*tasks)
    hand = await rig.hand("a.one", most_lost=1)
    await hand.one()
    await rig.kill(hand.engine)
    if rig.longest_s:
        await rig.pass_time(rig.lease_s * 1.5)
    await rig.until_status(engine, tasks[0].id, "dead")
    await rig.until_status(engine, tasks[1].id, "dead")


async def test_requeueing_the_cause_mends_what_waits(rig: Rig, engine: Engine) -> None:
    """All the way down: the chain goes on from where it broke."""
    tasks = chain(rig, "a.one", "a.two", "a.three")
    await rig.defer(*tasks)
    hand = await rig.hand("a.one", "a.two", "a.three")
    await hand.done(await hand.one(), result=1)
    await hand.dead(await hand.one())
    assert await engine.leases.requeue("a.two", [tasks[1].id], timeout_s=T_S) == 1
    lease = await hand.one()
    assert (lease.id, prior(lease)) == (tasks[1].id, 1)
    assert await statuses(rig, engine, tasks) == ["done", "running", "waiting"]
    await hand.done(lease, result=2)
    last = await hand.one()
    assert (last.id, prior(last)) == (tasks[2].id, 2)
    await hand.done(last)
    info = await engine.jobs.wait(tasks[2].id, timeout_s=T_S)
    assert (info.status, info.reason, info.error) == ("done", "", "")


async def test_a_group_with_two_dead_members_is_mended_by_both(rig: Rig, engine: Engine) -> None:
    """Answers that were there already count; the last dead one still stands in the way."""
    tasks = group(rig, ["a.one"] * 3, "a.all")
    await rig.defer(*tasks)
    hand = await rig.hand("a.one", "a.all")
    leases = await hand.take(3)
    await hand.dead(leases[0])
    assert await rig.status(engine, tasks[3].id) == "dead"
    await hand.done(leases[1], result="b")
    await hand.dead(leases[2])
    assert await engine.leases.requeue("a.one", [tasks[0].id], timeout_s=T_S) == 1
    assert await rig.status(engine, tasks[3].id) == "dead"
    await hand.done(await hand.one(), result="a")
    assert await rig.status(engine, tasks[3].id) == "dead"
    assert await engine.leases.requeue("a.one", timeout_s=T_S) == 1
    assert await rig.status(engine, tasks[3].id) == "waiting"
    await hand.done(await hand.one(), result="c")
    assert prior(await hand.one()) == ["a", "b", "c"]


async def test_what_broke_twice_is_mended_twice(rig: Rig, engine: Engine) -> None:
    """A cause that dies again ends the chain again."""
    tasks = chain(rig, "a.one", "a.two")
    await rig.defer(*tasks)
    hand = await rig.hand("a.one", "a.two")
    for _ in range(3):
        await hand.dead(await hand.one())
        assert await statuses(rig, engine, tasks) == ["dead", "dead"]
        await engine.leases.requeue("a.one", timeout_s=T_S)
        assert await rig.status(engine, tasks[1].id) == "waiting"
    await hand.done(await hand.one(), result=1)
    assert prior(await hand.one()) == 1


async def test_what_waits_in_vain_does_not_run_before_its_cause(rig: Rig, engine: Engine) -> None:
    """Requeueing the end of a broken chain alone gives it nothing to work with: it is not run."""
    tasks = chain(rig, "a.one", "a.two")
    await rig.defer(*tasks)
    hand = await rig.hand("a.one", "a.two")
    await hand.dead(await hand.one())
    await engine.leases.requeue("a.two", timeout_s=T_S)
    assert await hand.nothing()
    assert await rig.status(engine, tasks[1].id) in ("dead", "waiting")
    await engine.leases.requeue("a.one", timeout_s=T_S)
    await hand.done(await hand.one(), result=1)
    assert prior(await hand.one()) == 1


async def test_a_broken_chain_of_one_queue_is_mended_at_once(rig: Rig, engine: Engine) -> None:
    """Requeueing all the dead of a queue that has cause and effect."""
    tasks = chain(rig, "a.one", "a.one", "a.one")
    await rig.defer(*tasks)
    hand = await rig.hand("a.one")
    await hand.dead(await hand.one())
    await engine.leases.requeue("a.one", timeout_s=T_S)
    assert [lease.id for lease in await hand.run(3)] == [task.id for task in tasks]


async def test_cancelling_what_waits_leaves_the_others(rig: Rig, engine: Engine) -> None:
    """The task before runs and is done, though nobody waits for its answer any more."""
    tasks = chain(rig, "a.one", "a.two", "a.three")
    await rig.defer(*tasks)
    await engine.jobs.cancel(tasks[1].id, timeout_s=T_S)
    hand = await rig.hand("a.one", "a.two", "a.three")
    await hand.done(await hand.one())
    assert await hand.nothing()
    assert await statuses(rig, engine, tasks) == ["done", "cancelled", "dead"]


# --- one key, and what does not fit together ----------------------------------------------------------------


@pytest.mark.parametrize("kind", [chain, group])
async def test_a_chain_whose_end_is_known_is_not_made(rig: Rig, engine: Engine, kind: object) -> None:
    """The key of the last task is that of the whole: the second time nothing runs, and its ticket names the first."""

    def made() -> list[NewTask]:
        if kind is chain:
            return chain(rig, "a.one", "a.one", "a.all", key="album-7")
        return group(rig, ["a.one", "a.one"], "a.all", key="album-7")

    first = made()
    assert [ticket.fresh for ticket in await engine.queues.defer(first, timeout_s=T_S)] == [True] * 3
    again = await engine.queues.defer(made(), timeout_s=T_S)
    assert [ticket.fresh for ticket in again] == [False] * 3
    assert again[-1].id == first[-1].id
    hand: Hand = await rig.hand("a.one", "a.all")
    assert sorted(lease.id for lease in await hand.run(3)) == sorted(task.id for task in first)
    assert await hand.nothing()
    assert [ticket.fresh for ticket in await engine.queues.defer(made(), timeout_s=T_S)] == [False] * 3


async def test_a_defer_of_a_chain_that_is_repeated_adds_nothing(rig: Rig, engine: Engine) -> None:
    """As for single tasks."""
    tasks = chain(rig, "a.one", "a.two")
    first = await engine.queues.defer(tasks, timeout_s=T_S)
    hand = await rig.hand("a.one", "a.two")
    await hand.run(1)
    assert [ticket.id for ticket in await engine.queues.defer(tasks, timeout_s=T_S)] == [ticket.id for ticket in first]
    await hand.run(1)
    assert await hand.nothing()


async def test_what_waits_and_what_feeds_fit_together(rig: Rig, engine: Engine) -> None:
    """A task that would wait for ever, or for what comes after it, is refused with its commit."""
    one, two, three = (ids.job_id() for _ in range(3))
    wrong: list[list[NewTask]] = [
        [NewTask(one, "a.one", b"", waits=1)],
        [NewTask(one, "a.one", b"", feeds=two)],
        [NewTask(one, "a.one", b"", feeds=two), NewTask(two, "a.two", b"")],
        [NewTask(one, "a.one", b"", feeds=two), NewTask(two, "a.two", b"", waits=2)],
        [NewTask(one, "a.one", b"", feeds=one, waits=1)],
        [NewTask(one, "a.one", b"", feeds=two, waits=1), NewTask(two, "a.two", b"", feeds=one, waits=1)],
        [NewTask(one, "a.one", b"", feeds=two), NewTask(two, "a.two", b"", feeds=three, waits=1)],
    ]
    for tasks in wrong:
        with pytest.raises(BadRequest):
            await engine.queues.defer(tasks, timeout_s=T_S)
    assert await engine.leases.queues(timeout_s=T_S) == []
