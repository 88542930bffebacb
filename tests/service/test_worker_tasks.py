"""Tasks of a whole mesh: deferred anywhere, run by workers, through whatever dies."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import msgspec
import pytest

import mesh
from mesh import prior, step
from mesh.clock import settle
from mesh.errors import BadArguments, BadReply, DeadlineExceeded, SetupError, TooLarge
from mesh.testing import ManualClock, Mesh, no_leaks

pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    async with no_leaks():
        yield


class Receipt(msgspec.Struct):
    """What a charge answers."""

    order: str
    amount: int


class Orders(mesh.Service):
    """Tasks of many kinds; `ran` is shared by all instances."""

    ran: list[object] = []
    running = 0
    most = 0
    broken = True

    @mesh.task(retries=2, backoff="1s")
    async def charge(self, order: str, amount: int = 1) -> Receipt:
        Orders.ran.append(order)
        if order == "bad" and Orders.broken:
            raise ValueError("no money")
        return Receipt(order, amount)

    @mesh.task(slots=2, timeout="1h")
    async def slow(self, seconds: float) -> str:
        Orders.ran.append("slow")
        Orders.running += 1
        Orders.most = max(Orders.most, Orders.running)
        try:
            await self.node.clock.sleep(seconds)  # type: ignore[attr-defined]
        finally:
            Orders.running -= 1
        return "slept"

    @mesh.task
    @mesh.rpc
    async def double(self, n: int) -> int:
        return n * 2

    @mesh.task
    async def total(self, numbers: list[int]) -> int:
        return sum(numbers)

    @mesh.rpc
    async def place(self, order: str) -> str:
        job = await self.defer(self.charge, order, 5, key=f"charge-{order}")
        return job.id

    @mesh.rpc
    async def double_later(self, n: int) -> int:
        return await (await self.defer(self.double, n)).result()

    @mesh.task(concurrency=1)
    async def alone(self) -> None:
        await self.slow(1.0)


class Crunch(mesh.Service):
    """Computes elsewhere."""

    @mesh.task(offload="process", retries=0)
    def square(self, n: int) -> int:
        return n * n

    @mesh.task(offload="thread")
    def where(self) -> str:
        context = mesh.current_task()
        assert context is not None
        return f"{threading.current_thread().name} {context.target}"


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    Orders.ran.clear()
    Orders.running = Orders.most = 0
    Orders.broken = True


@pytest.fixture
async def m() -> AsyncIterator[Mesh]:
    async with Mesh(Orders, clock=ManualClock()) as made:
        yield made


# --- deferring and answering ------------------------------------------------------------------------------


async def test_a_task_is_deferred_by_method_and_by_name_and_answers_typed(m):
    """The function's own annotation says of what type; by name it is plain."""
    by_method = await m.defer(Orders.charge, "o1", amount=3)
    by_name = await m.defer("orders.charge", "o2")
    assert await by_method.result() == Receipt("o1", 3)
    assert await by_name.result() == {"order": "o2", "amount": 1}
    assert await m.job(by_name.id, Receipt).result() == Receipt("o2", 1)
    assert (await by_name.info()).queue == "orders.charge"
    assert await by_name.status() == "done"


async def test_a_service_defers_in_a_call(m):
    """And waits for the answer, if it wants to."""
    id = await m.call("orders.place", "o1")
    assert await m.job(id, Receipt).result() == Receipt("o1", 5)
    assert await m.call("orders.double_later", 4) == 8


async def test_a_wrong_argument_is_refused_where_it_is_deferred(m):
    """When the method itself is given, which knows its types; by name it ends in the dead letters."""
    for args, kwargs, named in (
        (("o1", "much"), {}, '"amount"'),
        ((), {}, '"order"'),
        (("o1",), {"x": 1}, '"x"'),
        ((object(),), {}, "argument 1 "),
    ):
        with pytest.raises(BadArguments) as caught:
            await m.defer(Orders.charge, *args, **kwargs)
        assert all(word in caught.value.message for word in ("orders.charge", named))
    with pytest.raises(TooLarge, match=r"orders\.charge"):
        await m.defer("orders.charge", "x" * (64 * 2**20))
    job = await m.defer("orders.charge", "o1", "much")
    with pytest.raises(mesh.JobFailed) as failed:
        await job.result()
    assert failed.value.details["reason"] == "undecodable"
    assert Orders.ran == []


async def test_an_option_that_is_nonsense_is_refused(m):
    """With its name and that of the task."""
    for options, named in (
        ({"priority": 10}, "priority=10"),
        ({"priority": True}, "priority=True"),
        ({"key": "k" * 2000}, "orders.charge: key "),
        ({"order": 5}, "orders.charge: order "),
        ({"keep": "never"}, "keep='never'"),
        ({"timeout": 0}, "timeout=0"),
        ({"delay": "1m", "at": 5.0}, "(at)"),
        ({"meta": {"a": 1}}, "'a'"),
    ):
        with pytest.raises(mesh.BadRequest) as caught:
            await m.defer("orders.charge", "o1", **options)
        assert named in caught.value.message


async def test_many_defers_of_one_tick_are_confirmed_one_by_one(m):
    """Each gets its own job, whoever stands beside it."""
    jobs = await asyncio.gather(*(m.defer(Orders.double, n) for n in range(300)))
    assert len({job.id for job in jobs}) == 300
    assert await asyncio.gather(*(job.result() for job in jobs)) == [n * 2 for n in range(300)]


async def test_the_second_job_of_a_key_is_the_first(m):
    """Also when it is over, for as long as it is kept."""
    first, second = await asyncio.gather(m.defer(Orders.charge, "o1", key="k"), m.defer(Orders.charge, "o2", key="k"))
    assert first.id == second.id
    assert (first.fresh, second.fresh) == (True, False)
    await m.idle()
    third = await m.defer(Orders.charge, "o3", key="k")
    assert await third.result() == Receipt("o1", 1)
    assert Orders.ran == ["o1"]


async def test_a_delay_and_an_instant_are_kept(m):
    """Of any length: nothing runs before."""
    wall = m.clock.wall()
    await m.defer(Orders.charge, "delayed", delay="5m")
    await m.defer(Orders.charge, "at", at=datetime.fromtimestamp(wall + 400, UTC))
    await m.defer(Orders.charge, "past", at=wall - 10)
    await m.idle()
    assert Orders.ran == ["past"]
    await m.advance(299.0)
    assert Orders.ran == ["past"]
    await m.advance(2.0)
    await m.advance(100.0)
    assert Orders.ran == ["past", "delayed", "at"]


async def test_a_batch_is_one_commit_and_a_block_that_raises_defers_nothing(m):
    """Its jobs may be used when it is over."""
    async with m.batch() as b:
        jobs = [b.defer(Orders.double, n) for n in range(3)]
        keyed = b.defer(Orders.double, 9, key="nine")
        last = b.chain(step(Orders.double, 1), step(Orders.double, prior))
        both = b.group(step(Orders.double, 5), then=step(Orders.total, prior))
        with pytest.raises(SetupError, match=r"orders\.double"):
            _ = keyed.id
        assert len(b) == 8
        await settle()
        assert not any(info.ready or info.done for info in await m.queues())
    assert [await job.result() for job in (*jobs, keyed, last)] == [0, 2, 4, 18, 4]
    assert await both.then.result() == 10
    lost = []

    async def stopped() -> None:
        async with m.batch() as b:
            lost.append(b.defer(Orders.double, 1))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        await stopped()
    with pytest.raises(mesh.UnknownJob):
        await lost[0].info()
    with pytest.raises(SetupError):
        b.defer(Orders.double, 1)


# --- failing ----------------------------------------------------------------------------------------------


async def test_a_task_that_always_fails_ends_in_the_dead_letters(m):
    """After its retries, with the last error; others go on meanwhile. Requeued, it has all of its retries again."""
    job = await m.defer(Orders.charge, "bad")
    assert await (await m.defer(Orders.charge, "good")).result() == Receipt("good", 1)
    await m.advance(5.0)
    (dead,) = await m.dead()
    assert (dead.id, dead.attempt, dead.reason, dead.error) == (job.id, 3, "failed", "ValueError: no money")
    with pytest.raises(mesh.JobFailed, match="3 attempts: ValueError: no money") as caught:
        await job.result()
    assert "charge" in caught.value.details["traceback"]
    assert await m.node.durable.engines.of("queues").leases.requeue("orders.charge", timeout_s=1.0) == 1
    await m.advance(5.0)
    assert Orders.ran.count("bad") == 6
    assert len(await m.dead("orders.charge")) == 1


async def test_a_task_that_nobody_knows_is_buried(m):
    """With the reason, after a while; it stops nobody."""
    job = await m.defer("orders.chrage", "o1")
    await m.advance(61.0)
    with pytest.raises(mesh.JobFailed) as caught:
        await job.result()
    assert caught.value.details["reason"] == "unknown"


async def test_a_task_is_cancelled_before_and_while_it_runs(m):
    """What runs is stopped."""
    pending = await m.defer(Orders.slow, 5.0, delay="1h")
    running = await m.defer(Orders.slow, 5.0)
    await settle()
    assert await running.status() == "running"
    assert (await pending.cancel()).status == "cancelled"
    await running.cancel()
    await settle()
    assert await running.status() == "cancelled"
    assert Orders.running == 0
    for job in (pending, running):
        with pytest.raises(mesh.JobCancelled):
            await job.result()
    with pytest.raises(mesh.UnknownJob):
        await m.job("nothing").cancel()


async def test_waiting_for_an_answer_has_its_time(m):
    """The task goes on."""
    job = await m.defer(Orders.slow, 100.0)
    waiting = asyncio.ensure_future(job.result(timeout="30s"))
    await m.advance(31.0)
    with pytest.raises(DeadlineExceeded, match="30 s"):
        await waiting
    await m.advance(100.0)
    assert await job.result(timeout=0) == "slept"
    with pytest.raises(BadReply):
        await m.job(job.id, int).result()


# --- chains and groups ------------------------------------------------------------------------------------


async def test_a_chain_passes_answers_on(m):
    """Each step when the one before is done."""
    job = await m.chain(step(Orders.double, 3), step(Orders.double, prior), step("orders.double", n=prior))
    assert await job.result() == 24


async def test_a_group_gathers(m):
    """The callback gets the answers in the members' order."""
    group = await m.group(*(step(Orders.double, n) for n in range(4)), then=step(Orders.total, prior))
    assert await group.results() == [0, 2, 4, 6]
    assert await group.then.result() == 12
    progress = await group.progress()
    assert (progress.total, progress.done, progress.failed, progress.over) == (4, 4, 0, True)
    alone = await m.group(step(Orders.double, 1), step(Orders.double, 2))
    assert await alone.results() == [2, 4]
    assert alone.then is None


async def test_what_waits_for_a_dead_task_is_dead_too(m):
    """And runs after all when the cause is requeued."""
    job = await m.chain(step(Orders.charge, "bad"), step(Orders.double, 1))
    await m.advance(5.0)
    with pytest.raises(mesh.JobFailed) as caught:
        await job.result()
    assert caught.value.details["reason"] == "upstream"
    assert {info.queue for info in await m.dead()} == {"orders.charge", "orders.double"}
    Orders.broken = False
    await m.node.durable.engines.of("queues").leases.requeue("orders.charge", timeout_s=1.0)
    assert await job.result() == 2
    assert await m.dead() == []


# --- limits -----------------------------------------------------------------------------------------------


async def test_a_worker_runs_as_many_as_it_has_slots_for():
    """Two workers run twice as many."""
    async with Mesh(Orders, replicas={Orders: 2}, clock=ManualClock()) as m:
        for _ in range(6):
            await m.defer(Orders.slow, 1.0)
        await m.advance(0.5)
        assert Orders.most == 4
        await m.advance(2.0)
        assert len(Orders.ran) == 6


async def test_concurrency_holds_over_the_whole_mesh():
    """One at a time, whoever runs it."""
    async with Mesh(Orders, replicas={Orders: 3}, clock=ManualClock()) as m:
        for _ in range(3):
            await m.defer(Orders.alone)
        await m.advance(2.5)
        assert (len(Orders.ran), Orders.most) == (3, 1)
        await m.advance(2.0)


async def test_a_task_may_run_in_a_thread_or_a_process():
    """With its arguments checked there, also those that another step answered."""
    async with Mesh([Crunch, Orders], settings={"worker.processes": 1, "worker.threads": 1}) as m:
        job = await m.chain(step(Orders.double, 3), step(Crunch.square, prior))
        assert await job.result(timeout=20) == 36
        assert (await (await m.defer(Crunch.where)).result()).endswith(" crunch.where")
        wrong = await m.defer("crunch.square", "x")
        with pytest.raises(mesh.JobFailed) as failed:
            await wrong.result(timeout=20)
        assert failed.value.details["reason"] == "undecodable"


# --- what dies --------------------------------------------------------------------------------------------


async def test_the_task_of_a_killed_worker_runs_elsewhere():
    """When its lease is over; whoever waits for the answer gets it."""
    async with Mesh(Orders, replicas={Orders: 2}, clock=ManualClock()) as m:
        job = await m.defer(Orders.slow, 5.0)
        await settle()
        (holder,) = [worker for worker in m.workers(Orders) if worker.shift is not None and worker.shift.in_hand]
        await m.faults.kill(holder)
        await m.advance(9.0)
        assert Orders.ran == ["slow"]
        await m.advance(2.0)
        assert Orders.ran == ["slow"] * 2
        waiting = asyncio.ensure_future(job.result())
        await m.advance(5.0)
        assert await waiting == "slept"
        assert ((await job.info()).attempt, (await job.info()).lost) == (2, 1)


async def test_a_task_that_kills_its_worker_again_and_again_is_buried():
    """It takes no more than three with it."""
    async with Mesh(Orders, clock=ManualClock()) as m:
        job = await m.defer(Orders.slow, 1000.0)
        for _ in range(3):
            await m.advance(0.1)
            await m.faults.kill(Orders)
            await m.advance(11.0)
            await m.start_another(Orders)
        await m.advance(1.0)
        assert Orders.ran == ["slow"] * 3
        assert (await m.dead())[0].reason == "lost"
        assert (await job.info()).lost == 3


async def test_a_draining_worker_finishes_its_tasks_and_gives_the_others_back():
    """Nothing runs twice, nothing waits for a lease to end."""
    async with Mesh(Orders, clock=ManualClock()) as m:
        (worker,) = m.workers(Orders)
        for _ in range(3):
            await m.defer(Orders.slow, 5.0)
        await m.advance(1.0)
        draining = asyncio.ensure_future(m.drain(worker))
        await m.advance(1.0)
        await m.start_another(Orders)
        await m.advance(0.1)
        assert Orders.ran == ["slow"] * 3, "the third waited for a slot, and runs in the new worker"
        await m.advance(3.0)
        assert await draining is True
        await m.advance(5.0)
        assert len(Orders.ran) == 3
        assert [info.done for info in await m.queues() if info.name == "orders.slow"] == [3]


async def test_a_drain_that_takes_too_long_hands_its_tasks_over():
    """They are stopped and run elsewhere at once; it is not counted against them."""
    async with Mesh(Orders, clock=ManualClock(), settings={"worker.stop_timeout": 2.0}) as m:
        (worker,) = m.workers(Orders)
        job = await m.defer(Orders.slow, 5.0)
        await m.advance(1.0)
        draining = asyncio.ensure_future(m.drain(worker))
        await m.advance(2.5)
        assert await draining is False
        await m.start_another(Orders)
        await m.advance(5.1)
        assert await job.result() == "slept"
        assert (await job.info()).attempt == 2


async def test_a_worker_is_ready_while_the_engine_is_away():
    """It answers calls, and runs tasks when the engine is back; who defers meanwhile waits, then is told."""
    async with Mesh(Orders, clock=ManualClock(), replicas={Orders: 0}) as m:
        m.faults.lose_engine()
        await m.start_another(Orders)
        assert await m.call("orders.double", 2) == 4
        patient = asyncio.ensure_future(m.defer(Orders.charge, "o1"))
        await m.advance(5.0)
        assert not patient.done()
        m.faults.heal()
        assert await (await patient).result() == Receipt("o1", 1)
        m.faults.lose_engine()
        impatient = asyncio.ensure_future(m.defer(Orders.charge, "o2"))
        await m.advance(11.0)
        with pytest.raises(mesh.TryLater):
            await impatient


async def test_a_worker_that_was_cut_off_for_a_lease_stops_what_it_ran():
    """Somebody else runs it by then; it is done once."""
    async with Mesh(Orders, replicas={Orders: 2}, clock=ManualClock()) as m:
        job = await m.defer(Orders.slow, 30.0)
        await settle()
        (holder,) = [worker for worker in m.workers(Orders) if worker.shift is not None and worker.shift.in_hand]
        m.faults.partition(holder)
        await m.advance(15.0)
        assert Orders.running == 1
        assert holder.shift is not None
        assert holder.shift.in_hand == 0
        m.faults.heal()
        await m.advance(30.0)
        assert await job.result() == "slept"


async def test_a_process_that_asks_for_nothing_durable_opens_nothing(m):
    """No session, no connection to any engine."""

    class Plain(mesh.Service):
        @mesh.rpc
        async def hello(self) -> str:
            return "hello"

    worker = await m.start_another(Plain)
    assert await m.call("plain.hello") == "hello"
    assert worker.node.durable.engines.made == ()
