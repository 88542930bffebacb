"""The engine in memory: what is its own, beside the contracts that tests/contract holds it to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from mesh import ids
from mesh.clock import ManualClock, settle
from mesh.engines.contract import Unit
from mesh.engines.memory import Memory, MemoryEngine
from mesh.engines.memory.agenda import Agenda
from mesh.errors import LeaseLost, Unavailable
from mesh.events.log import NewEvent
from mesh.state.contract import Write
from mesh.tasks.contract import Lease, NewTask, Offer, Queue, Settlement

T_S = 5.0


class Worker:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.leases: list[Lease] = []
        self.lost_reasons: list[str] = []

    def leased(self, leases: Sequence[Lease]) -> None:
        self.leases += leases

    def cancel(self, jobs: Sequence[tuple[str, int]]) -> None: ...

    def lost(self, reason: str) -> None:
        self.lost_reasons.append(reason)

    def held(self) -> list[tuple[str, int]]:
        return [(lease.id, lease.attempt) for lease in self.leases]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def memory(clock: ManualClock) -> Memory:
    return Memory(clock, lease_s=10.0)


def task(**fields: object) -> NewTask:
    return NewTask(ids.job_id(), "mail.send", b"\x90", **fields)  # type: ignore[arg-type]


async def attach(engine: MemoryEngine, session: str = "w@1") -> Worker:
    worker = Worker()
    await engine.leases.subscribe(Offer(session, ("mail",), (Queue("mail.send", 10),)), worker)
    await settle()
    return worker


def armed(clock: ManualClock) -> int:
    """Timers that would fire."""
    return sum(not timer.cancelled for _, _, timer in clock._timers)


# --- at rest ------------------------------------------------------------------------------------------------


async def test_nothing_is_armed_while_nothing_is_due(memory: Memory, clock: ManualClock) -> None:
    """A mesh at rest has no timer and no task of this engine, whatever it keeps."""
    tasks = asyncio.all_tasks()
    engine = MemoryEngine(memory)
    worker = await attach(engine)
    await engine.queues.defer([task(), task(keep_s=1e6)], timeout_s=T_S)
    await engine.state.write([Write("carts", "u1", "set", ids.etag(), b"\x01", ttl_s=60.0)], timeout_s=T_S)
    await engine.events.append([NewEvent(ids.job_id(), "order.created", b"")], timeout_s=T_S)
    await engine.locks.acquire("nightly", "me", ttl_s=60.0, wait_s=0.0, timeout_s=T_S)
    await settle()
    await engine.leases.acknowledge([Settlement(lease.id, 1, "done") for lease in worker.leases], timeout_s=T_S)
    await settle()
    assert armed(clock) == 0
    assert asyncio.all_tasks() == tasks


async def test_one_timer_serves_all_that_is_due(memory: Memory, clock: ManualClock) -> None:
    """However much is delayed."""
    engine = MemoryEngine(memory)
    await engine.queues.defer([task(due_at=clock.wall() + 50.0 - number) for number in range(40)], timeout_s=T_S)
    worker = await attach(engine)
    assert armed(clock) == 1
    await clock.advance(60.0)
    assert len(worker.leases) == 10
    assert armed(clock) == 0


async def test_what_is_over_is_forgotten_for_good(memory: Memory, clock: ManualClock) -> None:
    """Its memory is given back: what lives long does not grow with what has been."""
    engine = MemoryEngine(memory)
    worker = await attach(engine)
    for number in range(200):
        await engine.queues.defer([task(keep_s=float(number % 2), key=f"k{number}")], timeout_s=T_S)
        await settle()
        lease = worker.leases.pop()
        write = Write("carts", f"u{number}", "set", ids.etag(), b"\x01", ttl_s=5.0)
        unit = Unit(ids.job_id(), writes=[write], settle=[Settlement(lease.id, 1, "done")])
        await engine.commit(unit, timeout_s=T_S)
        await engine.events.append([NewEvent(ids.job_id(), "order.created", b"")], timeout_s=T_S)
    await clock.advance(8 * 86400.0)
    await engine.commit(Unit(""), timeout_s=T_S)
    jobs = memory.jobs
    assert (len(jobs.by_id), len(jobs._gone), len(jobs._ending), len(memory._units)) == (0, 0, 0, 0)
    assert (len(jobs.queues["mail.send"].jobs), len(jobs.queues["mail.send"].keys)) == (0, 0)
    assert (memory.state._spaces, memory.log._records, memory.log._by_id) == ({}, [], {})


async def test_the_memory_lets_go_of_clock_and_loop(memory: Memory, clock: ManualClock) -> None:
    """After `close` nothing happens by itself."""
    engine = MemoryEngine(memory)
    worker = await attach(engine)
    await engine.queues.defer([task(due_at=clock.wall() + 5.0)], timeout_s=T_S)
    memory.close()
    assert armed(clock) == 0
    await clock.advance(10.0)
    assert worker.leases == []


# --- faults -------------------------------------------------------------------------------------------------


async def test_a_cut_way_is_waited_for(memory: Memory, clock: ManualClock) -> None:
    """Until it is mended, or the time is over: then nothing was done."""
    near, far = MemoryEngine(memory), MemoryEngine(memory)
    far.cut()
    far.cut()
    first = asyncio.ensure_future(far.queues.defer([task()], timeout_s=5.0))
    await clock.advance(4.9)
    assert not first.done()
    await clock.advance(0.2)
    with pytest.raises(Unavailable):
        await first
    second = asyncio.ensure_future(far.queues.defer([task()], timeout_s=5.0))
    await clock.advance(1.0)
    assert await near.leases.queues(timeout_s=T_S) == []
    far.mend()
    far.mend()
    assert (await second)[0].fresh
    assert armed(clock) == 0


async def test_a_worker_that_begins_while_it_is_cut_off_begins_later(memory: Memory, clock: ManualClock) -> None:
    """It has no lease to lose meanwhile, and gets its work when the way is mended."""
    near, far = MemoryEngine(memory), MemoryEngine(memory)
    far.cut()
    worker = await attach(far)
    await near.queues.defer([task()], timeout_s=T_S)
    await clock.advance(60.0)
    assert (worker.leases, worker.lost_reasons) == ([], [])
    far.mend()
    await settle()
    assert len(worker.leases) == 1


async def test_a_killed_process_is_told_nothing(memory: Memory, clock: ManualClock) -> None:
    """Its leases go to others a lease later, and whatever its remains do is not heard."""
    dead, alive = MemoryEngine(memory), MemoryEngine(memory)
    worker = await attach(dead, "dead@1")
    await alive.queues.defer([task(), task()], timeout_s=T_S)
    await settle()
    dead.kill()
    await dead.close()
    other = await attach(alive, "alive@1")
    await clock.advance(9.9)
    assert other.leases == []
    await clock.advance(0.2)
    assert [lease.lost for lease in other.leases] == [1, 1]
    assert worker.lost_reasons == []
    late = asyncio.ensure_future(dead.leases.acknowledge([Settlement(worker.leases[0].id, 1, "done")], timeout_s=5.0))
    await clock.advance(6.0)
    with pytest.raises(Unavailable):
        await late


async def test_who_was_cut_off_for_too_long_begins_anew(memory: Memory, clock: ManualClock) -> None:
    """It is told that its leases are gone when they are, and gets others when it is back."""
    engine, other = MemoryEngine(memory), MemoryEngine(memory)
    worker = await attach(engine)
    await other.queues.defer([task()], timeout_s=T_S)
    await settle()
    engine.cut()
    await clock.advance(10.1)
    assert len(worker.lost_reasons) == 1
    late = worker.leases.pop()
    engine.mend()
    await settle()
    [again] = worker.leases
    assert (again.id, again.attempt, again.lost) == (late.id, 2, 1)
    with pytest.raises(LeaseLost):
        await engine.leases.acknowledge([Settlement(late.id, late.attempt, "done")], timeout_s=T_S)


async def test_each_process_ends_its_own_sessions(memory: Memory) -> None:
    """Closing one engine leaves what the others hold."""
    first, second = MemoryEngine(memory), MemoryEngine(memory)
    await attach(first, "a@1")
    await attach(second, "b@1")
    await first.queues.defer([task() for _ in range(10)], timeout_s=T_S)
    await settle()
    await first.close()
    await settle()
    [queue] = await second.leases.queues(timeout_s=T_S)
    assert (queue.workers, queue.running) == (1, 10)


# --- the agenda ---------------------------------------------------------------------------------------------


async def test_the_agenda_goes_by_its_instants(clock: ManualClock) -> None:
    """What was called off is not done; what is asked for while something is done comes in its turn."""
    agenda = Agenda(clock)
    done: list[object] = []
    agenda.at(clock.now() + 3.0, done.append, 3)
    agenda.at(clock.now() + 1.0, lambda: agenda.at(clock.now() + 1.0, done.append, 2))
    agenda.at_wall(clock.wall() + 1.0, done.append, 1)
    off = agenda.at(clock.now() + 2.5, done.append, "never")
    off.cancel()
    off.cancel()
    await clock.advance(2.9)
    assert done == [1, 2]
    agenda.close()
    await clock.advance(5.0)
    assert done == [1, 2]
    agenda.open()
    await clock.advance(0.0)
    assert done == [1, 2, 3]
