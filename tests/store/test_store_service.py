"""A store and its workers: sessions, leases, waits and locks, through cut links, partitions and restarts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from store_mesh import LEASE_S, QUEUE, Orders, Place, a_place

from mesh.engines.contract import Unit
from mesh.engines.sqlite.messages import WORK, encode
from mesh.errors import DeadlineExceeded, LeaseLost, LockTaken, Unavailable, UnknownJob
from mesh.service.service import Service
from mesh.store.service import Store
from mesh.tasks.contract import NewTask, Offer, Queue, Settlement


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with a_place(tmp_path, Orders) as place:
        yield place


@pytest.fixture
async def alone(tmp_path: Path) -> AsyncIterator[Place]:
    """Without any worker."""
    async with a_place(tmp_path) as place:
        yield place


# --- leases ---------------------------------------------------------------------------------------------------


async def test_a_task_goes_to_a_worker_and_is_over_when_it_says_so(place: Place) -> None:
    """Deferred, leased, settled: without anybody polling."""
    await place.defer("j1")
    [worker] = place.orders
    assert worker.given == [("j1", 1)]
    assert await place.status("j1") == ("running", 1, 0)
    await worker.end("j1", result=b"\x07")
    info = await place.engine.jobs.find("j1", timeout_s=1.0)
    assert info is not None
    assert (info.status, info.result) == ("done", b"\x07")


async def test_a_task_that_takes_longer_than_any_lease_runs_once(place: Place) -> None:
    """While its worker lives it is nobody else's."""
    await place.mesh.start_another(Orders)
    await place.defer("j1")
    await place.advance(LEASE_S * 20)
    assert sum(len(worker.given) for worker in place.orders) == 1
    [holder] = [worker for worker in place.orders if worker.in_hand]
    await holder.end("j1")
    assert await place.status("j1") == ("done", 1, 0)


async def test_a_worker_that_dies_loses_its_tasks_after_a_lease(place: Place) -> None:
    """In one process nobody can look whether it is dead; its silence tells."""
    await place.defer("j1")
    await place.mesh.faults.kill(Orders)
    other = await place.mesh.start_another(Orders, wait=False)
    await place.advance(LEASE_S * 0.8)
    [heir] = place.orders
    assert other.stage.value == "ready"
    assert heir.given == []
    await place.advance(LEASE_S * 0.5)
    assert heir.given == [("j1", 2)]
    assert await place.status("j1") == ("running", 2, 1)


async def test_a_cut_link_is_mended_and_nothing_is_given_twice(place: Place) -> None:
    """The worker attaches again with what it holds; what it settled meanwhile counts."""
    await place.defer("j1", "j2")
    [worker] = place.orders
    for _ in range(3):
        assert place.mesh.faults.cut(Store) > 0
        settling = asyncio.ensure_future(worker.end("j1")) if ("j1", 1) in worker.in_hand else None
        await place.advance(3.0)
        if settling is not None:
            await settling
    assert worker.given == [("j1", 1), ("j2", 1)]
    assert await place.status("j1") == ("done", 1, 0)
    await worker.end("j2")
    await place.defer("j3")
    assert worker.given[2:] == [("j3", 1)]
    assert worker.silences == []


async def test_leases_that_got_lost_on_the_way_are_given_again_at_once(place: Place) -> None:
    """The link broke between the commit and the worker: it never had them, and the attempt does not count."""
    [worker] = place.orders
    place.mesh.faults.drop(Store)
    store = place.store
    deferring = store.turns.apply([])
    await deferring
    place.mesh.faults.heal()
    # The store leases while the way to the worker loses everything.
    place.mesh.faults.drop(Store)
    await store.turns.apply([Unit("j1", tasks=[NewTask("j1", QUEUE, b"\x90")])])
    await place.mesh.settle()
    assert worker.given == []
    assert store.core.running(QUEUE) == 1
    place.mesh.faults.heal()
    place.mesh.faults.cut(Store)
    await place.advance(2.0)
    assert [id for id, _ in worker.given] == ["j1"]
    status, _, lost = await place.status("j1")
    assert (status, lost) == ("running", 0)
    await worker.end("j1")


async def test_a_partition_ends_the_leases_on_both_sides(place: Place) -> None:
    """The worker stops before the store gives its tasks to others; what it says afterwards is refused."""
    await place.defer("j1")
    [cut_off] = place.orders
    await place.mesh.start_another(Orders)
    [heir] = [worker for worker in place.orders if worker is not cut_off]
    place.mesh.faults.partition(Orders)
    for _ in range(200):
        await place.advance(0.1)
        if heir.given:
            break
        assert not (cut_off.silences and heir.given)
    assert cut_off.silences, "the heir began before the other one had stopped"
    assert heir.given == [("j1", 2)]
    place.mesh.faults.heal()
    await place.advance(3.0)
    with pytest.raises(LeaseLost):
        await cut_off.engine.leases.acknowledge([Settlement("j1", 1, "done")], timeout_s=5.0)
    await heir.end("j1")
    assert await place.status("j1") == ("done", 2, 1)


async def test_a_worker_that_leaves_gives_back_what_it_holds(place: Place) -> None:
    """No lease is waited for; it had its chance to settle."""
    await place.defer("j1")
    [worker] = place.orders
    await place.mesh.start_another(Orders)
    await place.eventually(asyncio.ensure_future(worker.session.close()))
    await place.mesh.settle()
    [heir] = [each for each in place.orders if each is not worker]
    assert [id for id, _ in heir.given] == ["j1"]
    assert (await place.status("j1"))[2] == 0


async def test_a_worker_that_stops_gets_nothing_new_and_keeps_what_it_has(place: Place) -> None:
    """A drain: what runs is finished in peace, also when the link breaks meanwhile."""
    await place.defer("j1")
    [worker] = place.orders
    await worker.session.stop()
    await worker.session.stop()
    await place.defer("j2")
    place.mesh.faults.cut(Store)
    await place.advance(LEASE_S * 2)
    assert worker.given == [("j1", 1)]
    await worker.end("j1")
    assert await place.status("j1") == ("done", 1, 0)
    assert await place.status("j2") == ("ready", 0, 0)


async def test_a_running_task_is_told_to_stop(place: Place) -> None:
    """At once when its worker is there, else when it comes back."""
    await place.defer("j1", "j2")
    [worker] = place.orders
    info = await place.engine.jobs.cancel("j1", timeout_s=1.0)
    await place.mesh.settle()
    assert info.status == "running"
    assert worker.told_to_stop == [("j1", 1)]
    place.mesh.faults.partition(Orders)
    await place.advance(5.0)
    await place.engine.jobs.cancel("j2", timeout_s=1.0)
    place.mesh.faults.heal()
    await place.advance(3.0)
    assert ("j2", 1) in worker.told_to_stop


async def test_a_store_that_restarts_gives_nothing_out_again(place: Place) -> None:
    """Whoever held something has a lease's time to come back with it."""
    await place.defer("j1", "j2")
    [worker] = place.orders
    await place.kill_store()
    await place.advance(1.0)
    settling = asyncio.ensure_future(worker.end("j2"))
    await place.start_store()
    await place.eventually(settling)
    await place.mesh.start_another(Orders)
    await place.advance(LEASE_S * 3)
    assert worker.silences == []
    assert sum(len(each.given) for each in place.orders) == 2
    await worker.end("j1")
    assert await place.status("j1") == ("done", 1, 0)
    assert await place.status("j2") == ("done", 1, 0)


async def test_after_a_restart_the_dead_lose_their_tasks_too(place: Place) -> None:
    """A worker that died while there was no store is given up after a lease."""
    await place.defer("j1")
    await place.kill_store()
    await place.mesh.faults.kill(Orders)
    await place.start_store()
    await place.mesh.start_another(Orders)
    [heir] = place.orders
    assert heir.given == []
    await place.advance(LEASE_S)
    assert heir.given == [("j1", 2)]
    assert await place.status("j1") == ("running", 2, 1)


async def test_a_store_that_is_away_too_long_costs_the_leases(place: Place) -> None:
    """A worker cannot know whether it is cut off: it stops in time, and gets its tasks anew."""
    await place.defer("j1")
    [worker] = place.orders
    await place.kill_store()
    await place.advance(LEASE_S * 1.2)
    assert len(worker.silences) == 1
    assert worker.in_hand == {}
    await place.start_store()
    await place.advance(1.0)
    assert [id for id, _ in worker.given] == ["j1", "j1"]
    await worker.end("j1")
    assert (await place.status("j1"))[0] == "done"


async def test_a_worker_whose_loop_was_blocked_keeps_its_leases(place: Place) -> None:
    """Busy is not dead: its link answered for it all the time."""
    await place.defer("j1")
    [worker] = place.orders
    place.clock._now += LEASE_S * 5  # nothing of the worker ran meanwhile
    await place.advance(2.0)
    assert worker.silences == []
    assert worker.given == [("j1", 1)]
    await worker.end("j1")
    assert await place.status("j1") == ("done", 1, 0)


async def test_a_worker_that_does_not_read_holds_up_nobody(alone: Place) -> None:
    """Its stream is full: it gets no more, and others get what it would have had."""
    place = alone
    offer = Offer("slow@1", ("orders",), (Queue(QUEUE, 100_000),))
    stream = place.mesh.node.client.stream(WORK, encode((offer,)))
    await place.mesh.settle()
    for number in range(300):
        await place.defer(f"j{number}")
    core = place.store.core
    stuck = core.running(QUEUE)
    assert 200 < stuck < 300
    assert core.ready(QUEUE) == 300 - stuck
    await place.mesh.start_another(Orders)
    await place.mesh.settle()
    [quick] = place.orders
    assert len(quick.given) == 10
    await stream.aclose()


class Idle(Service):
    """Has nothing that could be deferred."""

    name = "idle"


async def test_tasks_that_no_worker_knows_are_dead_after_a_while(tmp_path: Path) -> None:
    """A name that was mistyped, or a task that is gone, does not wait for ever; other services' tasks do."""
    async with a_place(tmp_path, Orders, Idle, tasks__unknown_after=20.0) as place:
        await place.defer(
            NewTask("j1", "orders.chrage", b"\x90"),
            NewTask("j2", "mail.send", b"\x90"),
            NewTask("j3", "idle.charge", b"\x90"),
        )
        await place.advance(15.0)
        assert await place.status("j1") == ("ready", 0, 0)
        await place.advance(10.0)
        info = await place.engine.jobs.find("j1", timeout_s=1.0)
        assert info is not None
        assert (info.status, info.reason) == ("dead", "unknown")
        assert "chrage" in info.error
        # A service that has no tasks is not attached; the registry knows that it is there.
        info = await place.engine.jobs.find("j3", timeout_s=1.0)
        assert info is not None
        assert (info.status, info.reason) == ("dead", "unknown")
        assert "idle" in info.error
        assert await place.status("j2") == ("ready", 0, 0)


async def test_delayed_tasks_run_when_they_are_due(place: Place) -> None:
    """However long the delay; nothing is asked meanwhile."""
    wall = place.clock.wall()
    await place.defer(
        NewTask("j1", QUEUE, b"\x90", due_at=wall + 90_000.0), NewTask("j2", QUEUE, b"\x90", due_at=wall + 7.0)
    )
    [worker] = place.orders
    await place.advance(6.9)
    assert worker.given == []
    await place.advance(0.2)
    assert worker.given == [("j2", 1)]


async def test_queues_tell_of_their_workers(place: Place) -> None:
    """What people look at."""
    await place.defer("j1")
    [queue] = await place.engine.leases.queues(timeout_s=1.0)
    assert (queue.name, queue.running, queue.workers) == (QUEUE, 1, 1)
    info = await place.engine.admin.info(timeout_s=1.0)
    assert info.writable
    assert info.sessions == 1
    assert info.turns > 0
    gauges = {}
    for _ in range(2):
        # The first look makes the series of queues that are new.
        for each in place.mesh.workers(Store)[0].node.recorder.snapshot()["gauges"]:
            gauges[each["name"], each.get("labels", {}).get("queue", "")] = each["value"]
    assert gauges["tasks_running", QUEUE] == 1
    assert gauges["store_sessions", ""] == 1
    assert gauges["store_writable", ""] == 1


# --- waiting for jobs -------------------------------------------------------------------------------------------


MANY = 3000


async def test_thousands_wait_for_jobs_at_once(place: Place) -> None:
    """Each is told when its own is over; no call of its own, no credit of the link."""
    ids = [f"j{number:05}" for number in range(MANY)]
    await place.defer(*(NewTask(id, "mail.send", b"\x90") for id in ids))
    waits = [asyncio.ensure_future(place.engine.jobs.wait(id, timeout_s=100.0)) for id in ids]
    while place.store.watches.jobs < MANY:
        await place.mesh.settle()
    await asyncio.gather(*(place.engine.jobs.cancel(id, timeout_s=1.0) for id in ids[::2]))
    await place.mesh.settle()
    assert all(wait.done() for wait in waits[::2])
    assert not any(wait.done() for wait in waits[1::2])
    assert (await waits[0]).status == "cancelled"
    for wait in waits:
        wait.cancel()
    await place.advance(0.1)
    assert place.store.watches.jobs == 0


async def test_a_wait_outlives_the_store(place: Place) -> None:
    """The store restarts; who waits notices nothing."""
    await place.defer("j1")
    [worker] = place.orders
    waiting = asyncio.ensure_future(place.engine.jobs.wait("j1", timeout_s=60.0))
    await place.mesh.settle()
    await place.kill_store()
    await place.start_store()
    assert not waiting.done()
    await worker.end("j1", result=b"\x05")
    assert (await place.eventually(waiting)).result == b"\x05"


async def test_a_wait_ends_with_its_time(place: Place) -> None:
    """Too late, or for nothing: the word is clear."""
    await place.defer("j1")
    waiting = asyncio.ensure_future(place.engine.jobs.wait("j1", timeout_s=2.0))
    unknown = asyncio.ensure_future(place.engine.jobs.wait("nothing", timeout_s=2.0))
    await place.mesh.settle()
    with pytest.raises(UnknownJob):
        await unknown
    await place.advance(2.1)
    with pytest.raises(DeadlineExceeded):
        await waiting
    assert place.store.watches.jobs == 0


async def test_a_job_that_is_over_already_is_told_at_once(place: Place) -> None:
    """Also when several wait for the same."""
    await place.defer("j1")
    [worker] = place.orders
    await worker.end("j1")
    waits = [asyncio.ensure_future(place.engine.jobs.wait("j1", timeout_s=2.0)) for _ in range(3)]
    assert {(await place.eventually(wait)).status for wait in waits} == {"done"}


async def test_a_job_that_is_not_kept_is_told_to_who_waited(place: Place) -> None:
    """Forgotten in the very commit in which it is done, and yet its answer arrives."""
    await place.defer(NewTask("j1", QUEUE, b"\x90", keep_s=0.0))
    [worker] = place.orders
    waiting = asyncio.ensure_future(place.engine.jobs.wait("j1", timeout_s=60.0))
    await place.mesh.settle()
    await worker.end("j1", result=b"\x05")
    assert (await place.eventually(waiting)).result == b"\x05"


# --- locks ------------------------------------------------------------------------------------------------------


def acquiring(place: Place, owner: str, wait_s: float = 100.0, ttl_s: float = 5.0) -> asyncio.Future[object]:
    return asyncio.ensure_future(place.engine.locks.acquire("door", owner, ttl_s=ttl_s, wait_s=wait_s, timeout_s=5.0))


async def test_a_lock_goes_to_those_who_wait_in_order(alone: Place) -> None:
    """First come, first served; who has had it and asks again stands behind."""
    place = alone
    first = acquiring(place, "a")
    await place.mesh.settle()
    assert first.done()
    waits = {}
    for owner in "bcd":
        waits[owner] = acquiring(place, owner)
        await place.mesh.settle()
    order = []
    for owner in "abcd":
        assert await place.engine.locks.release("door", owner, timeout_s=1.0)
        await place.mesh.settle()
        order += [name for name, wait in waits.items() if wait.done() and name not in order]
    assert order == ["b", "c", "d"]
    tokens = [(await first).token, *[(await waits[name]).token for name in "bcd"]]  # type: ignore[attr-defined]
    assert tokens == sorted(set(tokens))


async def test_a_lock_that_is_not_renewed_goes_on_at_once(alone: Place) -> None:
    """The next one has it when its time is over, and not before; a renewal holds it."""
    place = alone
    await acquiring(place, "a")
    waiting = acquiring(place, "b")
    await place.advance(4.0)
    await place.engine.locks.renew("door", "a", ttl_s=5.0, timeout_s=1.0)
    await place.advance(4.9)
    assert not waiting.done()
    await place.advance(0.2)
    assert waiting.done()


async def test_who_waits_too_long_is_told_who_has_it(alone: Place) -> None:
    """And the next in line is not held up by it."""
    place = alone
    await acquiring(place, "a", ttl_s=60.0)
    hasty, patient = acquiring(place, "b", wait_s=2.0), acquiring(place, "c")
    with pytest.raises(LockTaken) as caught:
        await acquiring(place, "d", wait_s=0.0)
    assert caught.value.details["owner"] == "a"
    await place.advance(2.5)
    with pytest.raises(LockTaken) as caught:
        await hasty
    assert caught.value.details["owner"] == "a"
    await place.engine.locks.release("door", "a", timeout_s=1.0)
    await place.mesh.settle()
    assert patient.done()


async def test_who_gives_up_leaves_the_line(alone: Place) -> None:
    """A cancelled wait is not served, also when the lock becomes free in the same moment."""
    place = alone
    await acquiring(place, "a")
    gone, next_one = acquiring(place, "b"), acquiring(place, "c")
    await place.mesh.settle()
    releasing = asyncio.ensure_future(place.engine.locks.release("door", "a", timeout_s=1.0))
    await asyncio.sleep(0)
    gone.cancel()
    await place.mesh.settle()
    await releasing
    await place.advance(0.5)
    assert next_one.done()


async def test_a_wait_for_a_lock_outlives_the_store(alone: Place) -> None:
    """Who has it still has it, and who waits still waits."""
    place = alone
    held = await acquiring(place, "a", ttl_s=30.0)
    waiting = acquiring(place, "b")
    await place.mesh.settle()
    await place.kill_store()
    await place.start_store()
    again = await acquiring(place, "a", ttl_s=30.0)
    assert again.token == held.token  # type: ignore[attr-defined]
    assert not waiting.done()
    assert await place.engine.locks.release("door", "a", timeout_s=1.0)
    assert (await place.eventually(waiting)).token > held.token  # type: ignore[attr-defined]


# --- the store's own life -----------------------------------------------------------------------------------------


async def test_a_drain_ends_streams_and_waits(place: Place) -> None:
    """Nothing that would stand for ever keeps a store from leaving; the next one goes on."""
    await place.defer("j1")
    [worker] = place.orders
    waiting = asyncio.ensure_future(place.engine.jobs.wait("j1", timeout_s=60.0))
    await acquiring(place, "a", ttl_s=60.0)
    in_line = acquiring(place, "b")
    await place.mesh.settle()
    [running] = place.mesh.workers(Store)
    draining = asyncio.ensure_future(place.mesh.drain(running))
    assert await place.eventually(draining) is True
    assert not waiting.done()
    assert not in_line.done()
    await place.start_store()
    await worker.end("j1")
    assert (await place.eventually(waiting)).status == "done"
    await place.engine.locks.release("door", "a", timeout_s=1.0)
    await place.eventually(in_line)
    assert worker.given == [("j1", 1)]


async def test_without_a_store_the_word_is_that_there_is_none(tmp_path: Path) -> None:
    """Nobody waits longer than asked, and the message says what to do."""
    async with a_place(tmp_path) as place:
        await place.kill_store()
        asking = asyncio.ensure_future(place.engine.jobs.find("j1", timeout_s=3.0))
        deferring = asyncio.ensure_future(place.engine.queues.defer([NewTask("j1", QUEUE, b"\x90")], timeout_s=3.0))
        await place.advance(3.5)
        for waiting in (asking, deferring):
            with pytest.raises(Unavailable, match="mesh store"):
                await waiting
