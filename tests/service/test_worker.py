"""A worker's life: what it waits for, its hooks, its timers, its events, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

import mesh
from mesh.errors import SetupError
from mesh.service.worker import Stage, Worker
from mesh.testing import ManualClock, Mesh, no_leaks

HERE = Path(__file__).parent


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
    for classes, message in (
        ([], "at least one service class"),
        ([Users, Users], "two of the classes are named 'users'"),
    ):
        with pytest.raises(SetupError, match=message):
            Worker(classes, settings)


async def test_a_worker_starts_once():
    """The table of its life says what may follow what."""
    async with Mesh(Users, clock=ManualClock()) as m:
        (worker,) = m.workers(Users)
        with pytest.raises(SetupError, match=r"worker users-\w+ is ready: it cannot start"):
            await worker.start()
        await worker.stop()
        await worker.stop()
        with pytest.raises(SetupError, match="is stopped: it cannot drain"):
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


async def test_timers_of_the_killed_are_still():
    """As everything of theirs."""
    async with Mesh(Ticker, clock=ManualClock()) as m:
        (ticker,) = m.instances(Ticker)
        await m.faults.kill(Ticker)
        await m.advance(30.0)
        assert (ticker.ticks, ticker.failures) == ([], 0)


# --- events -----------------------------------------------------------------------------------------------


class Mail(mesh.Service):
    """Hears of orders: one instance of each, and every instance of news."""

    def __init__(self) -> None:
        self.ones: list[str] = []
        self.news: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    @mesh.on("order.*")
    async def ordered(self, data: str) -> None:
        self.ones.append(data)
        await self.gate.wait()

    @mesh.on("news.#", to="every")
    async def heard(self, data: str) -> None:
        self.news.append(data)


class Shop(mesh.Service):
    """Tells."""

    @mesh.rpc
    async def sell(self, what: str) -> None:
        await self.emit("order.created", what)
        await self.emit("news.sold.shoes", what)

    @mesh.on("order.#")
    async def count(self, data: str) -> None: ...


@pytest.mark.parametrize("transport", ["memory", "ipc"])
async def test_one_of_each_service_or_every_instance_hears(transport):
    """Emitted by a client and by a service."""
    async with Mesh(Mail, Shop, replicas={Mail: 3}, transport=transport) as m:
        heard = await m.listen("news.#")
        await m.call("shop.sell", "a")
        await m.emit("order.created", "b")
        await m.emit("news.b", "b")
        await m.emit("nobody.listens")
        await heard.wait(2)
        await until(lambda: all(len(mail.news) == 2 for mail in m.instances(Mail)))
        mails = m.instances(Mail)
        assert sorted(one for mail in mails for one in mail.ones) == ["a", "b"]
        assert [sorted(mail.news) for mail in mails] == [["a", "b"]] * 3


async def test_an_event_goes_to_another_instance_when_the_first_dies_before_acknowledging():
    """The emitter notices nothing."""
    async with Mesh(Mail, replicas={Mail: 2}, clock=ManualClock()) as m:
        for mail in m.instances(Mail):
            mail.gate.clear()
        emitting = asyncio.ensure_future(m.emit("order.created", "a"))
        await m.settle()
        (index,) = [i for i, mail in enumerate(m.instances(Mail)) if mail.ones]
        await m.faults.kill(Mail, index)
        await m.settle()
        (left,) = m.instances(Mail)
        assert left.ones == ["a"]
        assert not emitting.done()
        left.gate.set()
        await emitting


async def test_an_event_that_nobody_acknowledges_names_the_service():
    """And only that one."""

    class Bad(mesh.Service):
        @mesh.on("order.*")
        async def ordered(self, data: int) -> None: ...

    async with Mesh(Mail, Bad, clock=ManualClock()) as m:
        with pytest.raises(mesh.MeshError, match=r"not acknowledged by bad \(bad_arguments") as caught:
            await m.emit("order.created", "a")
        assert list(caught.value.details["services"]) == ["bad"]
        assert m.instances(Mail)[0].ones == ["a"]


async def test_an_event_finds_the_release_that_listens_to_it():
    """Of two releases of one service only the newer asks for the topic: the older passes it on."""

    class Newer(Mail):
        name = "mail"

        @mesh.on("payment.*")
        async def paid(self, data: str) -> None:
            self.ones.append(data)

    async with Mesh(Mail, clock=ManualClock()) as m:
        await m.start_another(Newer)
        for i in range(12):
            await m.emit("payment.done", str(i), key=str(i))
        (newer,) = m.instances(Newer)
        assert newer.ones == [str(i) for i in range(12)]


async def test_an_event_in_hand_is_finished_before_the_worker_leaves():
    """Both ways of hearing."""

    class Slow(mesh.Service):
        def __init__(self) -> None:
            self.gate = asyncio.Event()
            self.done: list[str] = []

        @mesh.on("a")
        async def one(self) -> None:
            await self.gate.wait()
            self.done.append("one")

        @mesh.on("a", to="every")
        async def every(self) -> None:
            await self.gate.wait()
            self.done.append("every")

    async with Mesh(Slow, clock=ManualClock()) as m:
        (slow,) = m.instances(Slow)
        emitting = asyncio.ensure_future(m.emit("a"))
        await m.settle()
        draining = asyncio.ensure_future(m.drain(m.workers(Slow)[0]))
        await m.settle()
        slow.gate.set()
        assert await draining is True
        await emitting
        assert sorted(slow.done) == ["every", "one"]


# --- processes and signals ----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def process(m: Mesh, tmp_path: Path, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker as a process of its own, in the mesh of this test."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        str(HERE / "worker_process.py"),
        str(m.settings.mesh.run_dir),
        str(tmp_path),
        *words,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


async def until(condition: Callable[[], object]) -> None:
    """Return once it is true: a socket or another process is about to make it so."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # nothing announces it
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains(tmp_path: Path, number: signal.Signals):
    """The call in hand is answered, hooks run, and the process leaves with 0 and no socket behind."""
    async with Mesh(transport="ipc") as m, process(m, tmp_path) as child:
        await m.node.wait_for("worked", 20.0)
        call = m.call("worked.stay", timeout=20.0)
        await until((tmp_path / "staying").exists)
        child.send_signal(number)
        await until(lambda: not m.node.instances("worked"))
        assert not call.done()
        (tmp_path / "go").touch()
        assert await call == "stayed"
        assert await child.wait() == 0
        assert (tmp_path / "stopped").exists()
        left = [path.name for path in m.settings.mesh.run_dir.iterdir() if "worked" in path.name]
        assert left == []


async def test_a_second_signal_ends_it_at_once(tmp_path: Path):
    """Whatever is in hand; the caller is told."""
    async with Mesh(transport="ipc") as m, process(m, tmp_path) as child:
        await m.node.wait_for("worked", 20.0)
        call = m.call("worked.stay", timeout=20.0)
        await until((tmp_path / "staying").exists)
        child.terminate()
        await until(lambda: not m.node.instances("worked"))
        child.terminate()
        assert await child.wait() == 1
        with pytest.raises(mesh.LinkLost):
            await call
        assert not (tmp_path / "stopped").exists()


async def test_a_stop_timeout_ends_with_1(tmp_path: Path):
    """What was cut off is told, and so is whoever started the process."""
    async with Mesh(transport="ipc") as m, process(m, tmp_path, "worker.stop_timeout=200ms") as child:
        await m.node.wait_for("worked", 20.0)
        call = m.call("worked.stay", timeout=20.0)
        await until((tmp_path / "staying").exists)
        child.terminate()
        assert await child.wait() == 1
        with pytest.raises(mesh.MeshError) as caught:
            await call
        assert caught.value.code in ("draining", "link_lost")
        assert (tmp_path / "stopped").exists()


async def test_a_signal_while_it_waits_for_what_it_needs_ends_it(tmp_path: Path):
    """It has nothing in hand yet."""
    async with Mesh(transport="ipc") as m, process(m, tmp_path, "needs") as child:
        await until((tmp_path / "made").exists)
        await until(lambda: m.hubs[0].stats().watchers == 2)
        child.terminate()
        assert await child.wait() == 0


async def test_a_start_that_fails_says_why(tmp_path: Path):
    """With the author's own error, and an exit code that is not 0."""
    async with Mesh(transport="ipc") as m, process(m, tmp_path, "broken") as child:
        _, errors = await child.communicate()
        assert child.returncode == 1
        assert b"RuntimeError: no database" in errors
