"""A worker's life: what it waits for, its hooks, its timers, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

import mesh
from mesh.errors import SetupError
from mesh.testing import ManualClock, Mesh, no_leaks
from mesh.worker.worker import Stage, Worker

#: A call that is never answered fails its test soon, not after the run's own patience.
pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    async with no_leaks():
        yield


class Users(mesh.Service):
    """Is needed by others."""

    @mesh.rpc
    async def first(self) -> str:
        return "ujun"


class Orders(mesh.Service):
    """Needs users."""

    needs = ["users"]

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def started(self) -> None:
        self.seen.append("started with " + await self.call("users.first"))

    async def stopped(self) -> None:
        self.seen.append("stopped")

    @mesh.rpc
    async def place(self) -> str:
        return "placed"


# --- starting ---------------------------------------------------------------------------------------------


async def test_a_worker_is_ready_only_when_what_it_needs_is_there():
    """Not registered before; its `started` hook may already call what it needs."""
    async with Mesh(Users, replicas={Users: 0}, clock=ManualClock()) as m:
        starting = asyncio.ensure_future(m.start_another(Orders))
        await m.advance(12.0)
        assert not starting.done()
        assert m.node.service_names() == []
        await m.start_another(Users)
        worker = await starting
        assert worker.stage is Stage.READY
        assert await m.call("orders.place") == "placed"
        assert m.instances(Orders)[0].seen == ["started with ujun"]


async def test_services_of_one_worker_may_need_each_other():
    """They come up together; needing one another is no deadlock."""

    class First(mesh.Service):
        needs = ["second"]

        @mesh.rpc
        async def hello(self) -> str:
            return str(await self.call("second.hello"))

    class Second(mesh.Service):
        needs = ["first"]

        @mesh.rpc
        async def hello(self) -> str:
            return "second"

    async with Mesh([First, Second], clock=ManualClock()) as m:
        assert await m.call("first.hello") == "second"
        one, two = m.node.instances("first")[0], m.node.instances("second")[0]
        assert one.endpoint == two.endpoint
        assert one.id != two.id
        assert one.worker == two.worker == m.workers(First)[0].identity == one.id


class Broken(mesh.Service):
    """Cannot start."""

    seen: list[str] = []  # of the class: the instance is gone when the test looks

    async def started(self) -> None:
        raise RuntimeError("no database")

    async def stopped(self) -> None:
        Broken.seen.append("stopped")


async def test_an_error_in_started_stops_the_worker():
    """It never registers; what had begun is stopped, the last first; the error is the author's own."""
    Broken.seen.clear()
    async with Mesh(Users, clock=ManualClock()) as m:
        with pytest.raises(RuntimeError, match="no database"):
            await m.start_another([Orders, Broken])
        assert Broken.seen == ["stopped"]
        assert m.node.service_names() == ["users"]
        assert m.workers(Orders) == []


class Sloppy(mesh.Service):
    """Fails to stop."""

    async def stopped(self) -> None:
        raise RuntimeError("already closed")


async def test_an_error_in_stopped_keeps_nobody_else_from_stopping():
    """It is logged; the other services' hooks run, and the worker is gone."""
    async with Mesh(Users, [Orders, Sloppy], clock=ManualClock()) as m:
        (orders,) = m.instances(Orders)
        (worker,) = m.workers(Orders)
        assert await m.drain(worker) is True
        assert orders.seen == ["started with ujun", "stopped"]
        assert worker.stage is Stage.STOPPED


async def test_stopped_runs_after_the_last_answer_and_may_still_call_others():
    """What it holds is needed until then."""

    class Last(mesh.Service):
        def __init__(self) -> None:
            self.gate = asyncio.Event()
            self.seen: list[str] = []

        @mesh.rpc
        async def stay(self) -> None:
            await self.gate.wait()
            self.seen.append("answered")

        async def stopped(self) -> None:
            self.seen.append("stopped, and " + await self.call("users.first"))

    async with Mesh(Users, Last, clock=ManualClock()) as m:
        (last,) = m.instances(Last)
        call = m.call("last.stay")
        await m.settle()
        draining = asyncio.ensure_future(m.drain(m.workers(Last)[0]))
        await m.settle()
        assert last.seen == []
        last.gate.set()
        await draining
        await call
        assert last.seen == ["answered", "stopped, and ujun"]


async def test_what_cannot_be_a_worker_is_refused_before_anything_begins():
    """By name."""
    settings = mesh.Settings()
    with pytest.raises(SetupError):
        Worker([], settings)
    with pytest.raises(SetupError, match="'users'"):
        Worker([Users, Users], settings)


async def test_a_worker_starts_once():
    """The table of its life says what may follow what."""
    async with Mesh(Users, clock=ManualClock()) as m:
        (worker,) = m.workers(Users)
        with pytest.raises(SetupError, match=r"users-\w+ is ready"):
            await worker.start()
        await worker.stop()
        await worker.stop()
        with pytest.raises(SetupError, match="is stopped"):
            await worker.drain()


async def test_a_service_is_given_its_own_configuration():
    """[services.<name>.config]."""
    async with Mesh(Users, clock=ManualClock(), settings={"services.users.config.greeting": "hi"}) as m:
        assert m.instances(Users)[0].config == {"greeting": "hi"}


async def test_load_reaches_the_registry():
    """With the next renewal, as a share of the places."""

    class Slow(mesh.Service):
        concurrency = 4

        @mesh.rpc
        async def stay(self) -> None:
            await asyncio.Event().wait()

    async with Mesh(Slow, clock=ManualClock()) as m:
        calls = [m.call("slow.stay", timeout=60.0) for _ in range(3)]
        await m.advance(3.0)
        assert m.node.instances("slow")[0].load == 0.75
        for call in calls:
            call.cancel()
        await m.advance(3.0)
        assert m.node.instances("slow")[0].load == 0.0


# --- timers -----------------------------------------------------------------------------------------------


class Ticker(mesh.Service):
    """Ticks."""

    def __init__(self) -> None:
        self.ticks: list[float] = []
        self.slow: list[float] = []
        self.failures = 0
        self.cut_off = False

    def _now(self) -> float:
        return float(self.node.clock.now()) - 1000.0  # type: ignore[attr-defined]

    @mesh.every("10s")
    async def tick(self) -> None:
        self.ticks.append(self._now())

    @mesh.every(2.0)
    async def longer_than_its_period(self) -> None:
        self.slow.append(self._now())
        try:
            await self.node.clock.sleep(5.0)  # type: ignore[attr-defined]
        except asyncio.CancelledError:
            self.cut_off = True
            raise

    @mesh.every("1s")
    async def failing(self) -> None:
        self.failures += 1
        raise ValueError("not this time")


async def test_timers_run_from_start_to_start():
    """On the mesh's clock; one that takes longer than its period delays itself and nobody else."""
    async with Mesh(Ticker, clock=ManualClock()) as m:
        (ticker,) = m.instances(Ticker)
        await m.advance(35.0)
        assert ticker.ticks == [10.0, 20.0, 30.0]
        assert ticker.slow == [2.0, 7.0, 12.0, 17.0, 22.0, 27.0, 32.0], "never twice at once, none caught up on"
        assert ticker.failures == 35, "an error does not end a timer"
        stats = m.workers(Ticker)[0].node.recorder.method("timer", "ticker", "failing")
        assert (stats.count, stats.errors) == (35, {"handler_error": 35})


async def test_timers_end_with_a_drain():
    """None begins while the worker leaves."""
    async with Mesh(Ticker, clock=ManualClock()) as m:
        (ticker,) = m.instances(Ticker)
        await m.advance(1.0)
        await m.drain(m.workers(Ticker)[0])
        await m.advance(30.0)
        assert (ticker.ticks, ticker.slow, ticker.failures) == ([], [], 1)


async def test_a_drain_waits_for_a_timer_that_is_in_the_middle_of_a_run():
    """It is in hand, like a call: it ends by itself, and does not begin again."""
    async with Mesh(Ticker, clock=ManualClock()) as m:
        (ticker,) = m.instances(Ticker)
        await m.advance(3.0)
        draining = asyncio.ensure_future(m.drain(m.workers(Ticker)[0]))
        await m.advance(1.0)
        assert not draining.done()
        await m.advance(10.0)
        assert await draining
        assert (ticker.slow, ticker.cut_off) == ([2.0], False)


async def test_a_timer_that_outlasts_the_stop_timeout_is_cut_off():
    """So that a worker always ends."""
    async with Mesh(Ticker, clock=ManualClock(), settings={"worker.stop_timeout": 2.0}) as m:
        (ticker,) = m.instances(Ticker)
        await m.advance(2.5)
        draining = asyncio.ensure_future(m.drain(m.workers(Ticker)[0]))
        await m.advance(3.0)
        assert not await draining
        assert ticker.cut_off


async def test_timers_of_the_killed_are_still():
    """As everything of theirs."""
    async with Mesh(Ticker, clock=ManualClock()) as m:
        (ticker,) = m.instances(Ticker)
        await m.faults.kill(Ticker)
        await m.advance(30.0)
        assert (ticker.ticks, ticker.failures) == ([], 0)
