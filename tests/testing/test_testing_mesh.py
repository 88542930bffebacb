"""A whole mesh in one process: who there is, time, settings, and that it always ends."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import mesh
from mesh.errors import SetupError
from mesh.testing import ManualClock, Mesh, no_leaks

#: A call that is never answered fails its test soon, not after the run's own patience.
pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    async with no_leaks():
        yield
        gc.collect()


class Greeting(mesh.Service):
    """Says hello."""

    def __init__(self) -> None:
        self.stopped_at: list[str] = []

    @mesh.rpc
    async def hello(self, name: str) -> str:
        return f"Hello, {name}!"

    @mesh.rpc
    async def late(self, seconds: float) -> float:
        await self.node.clock.sleep(seconds)  # type: ignore[attr-defined]
        return seconds

    @mesh.rpc
    async def count(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    async def stopped(self) -> None:
        self.stopped_at.append("stopped")


class Orders(mesh.Service):
    """Needs greeting."""

    needs = ["greeting"]

    @mesh.on("order.*")
    async def ordered(self) -> None: ...

    @mesh.rpc
    async def place(self) -> str:
        return str(await self.rpc.greeting.hello("order"))


@pytest.mark.parametrize("transport", ["memory", "ipc"])
async def test_all_verbs_work_at_once(transport):
    """Everybody is known to everybody when the block begins."""
    async with Mesh(Greeting, Orders, replicas={Greeting: 3}, transport=transport) as m:
        assert await m.call("greeting.hello", "ujun") == "Hello, ujun!"
        assert await m.rpc.orders.place() == "Hello, order!"
        assert await m.rpc[Greeting].hello("x") == "Hello, x!"
        assert [i async for i in m.stream("greeting.count", 3)] == [0, 1, 2]
        assert [outcome.value for outcome in await m.scatter("greeting.hello", "x")] == ["Hello, x!"] * 3
        heard = await m.listen("order.#")
        await m.emit("order.created", 1, key="a", meta={"b": "c"})
        (event,) = await heard.wait(1)
        assert (event.topic, event.data, event.meta) == ("order.created", 1, {"b": "c"})
        assert len(m.workers(Greeting)) == len(m.workers("greeting")) == len(m.instances(Greeting)) == 3


async def test_several_services_may_share_a_worker():
    """A list of classes is one process."""
    async with Mesh([Greeting, Orders], replicas={Orders: 2}, clock=ManualClock()) as m:
        assert m.workers(Greeting) == m.workers(Orders)
        assert len(m.workers(Orders)) == 2
        assert await m.call("orders.place") == "Hello, order!"


async def test_workers_come_and_go():
    """Started, drained, killed: lists and calls follow."""
    async with Mesh(Greeting, replicas={Greeting: 0}, clock=ManualClock()) as m:
        assert m.workers(Greeting) == []
        one = await m.start_another(Greeting)
        two = await m.start_another(Greeting)
        assert m.workers(Greeting) == [one, two]
        (first, second) = m.instances(Greeting)
        assert await m.drain(one) is True
        assert first.stopped_at == ["stopped"]
        assert m.workers(Greeting) == [two]
        await m.faults.kill(two)
        assert second.stopped_at == [], "the dead run no hooks"
        assert m.workers(Greeting) == []
        assert len(m.node.instances("greeting")) == 1, "registered until its lease runs out"
        await m.advance(6.0)
        assert len(m.node.instances("greeting")) == 0


async def test_one_clock_turns_everything():
    """Handlers, deadlines, leases; real time stands beside it."""
    async with Mesh(Greeting, clock=ManualClock()) as m:
        call = m.call("greeting.late", 5.0)
        await m.advance(4.9)
        assert not call.done()
        await m.advance(0.1)
        assert call.done()
        assert await call == 5.0
    async with Mesh(Greeting) as m:
        assert await m.call("greeting.late", 0.001) == 0.001
        with pytest.raises(SetupError, match="ManualClock"):
            await m.advance(1.0)


def test_parts_that_do_not_fit_are_refused():
    """Before anything begins, with the mend."""
    with pytest.raises(SetupError, match='transport="memory"'):
        Mesh(Greeting, transport="ipc", clock=ManualClock())
    with pytest.raises(SetupError, match="Greeting"):
        Mesh(Orders, replicas={Greeting: 2})
    with pytest.raises(mesh.ConfigError, match=r"calls\.timeuot: .*calls\.timeout"):
        Mesh(Greeting, settings={"calls.timeuot": 1.0})
    with pytest.raises(mesh.ConfigError, match=r"services\.greeting\.size: "):
        Mesh(Greeting, settings={"services.greeting.size": 1})
    m = Mesh(Greeting)
    for ask in (lambda: m.node, lambda: m.faults, lambda: m.call("greeting.hello")):
        with pytest.raises(SetupError, match="async with"):
            ask()


async def test_a_need_that_nobody_fills_is_told():
    """Instead of waiting for ever."""
    with pytest.raises(SetupError, match=r"Orders .*Fake\('greeting', …\)"):
        async with Mesh(Orders, clock=ManualClock()):
            pass


async def test_settings_reach_every_process_and_nothing_else_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Neither mesh.toml nor the environment."""
    (tmp_path / "mesh.toml").write_text('[calls]\ntimeout = "1s"\nwait_limit = 1\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MESH_CALLS_CREDIT", "7")
    overrides = {"calls.timeout": 3.0, "services.greeting.queue": 5, "services.greeting.config.a": "b"}
    async with Mesh(Greeting, clock=ManualClock(), settings=overrides) as m:
        for settings in (m.node.settings, m.workers(Greeting)[0].settings):
            assert (settings.calls.timeout_s, settings.calls.wait_limit, settings.calls.credit) == (3.0, 1024, 4096)
            assert settings.service("greeting").queue == 5
        assert m.instances(Greeting)[0].config == {"a": "b"}


async def test_real_sockets_stand_in_a_private_directory_that_goes():
    """With everything in it."""
    async with Mesh(Greeting, transport="ipc") as m:
        run_dir = m.settings.mesh.run_dir
        assert run_dir.stat().st_mode & 0o777 == 0o700
        assert any(run_dir.iterdir())
    assert not run_dir.exists()


class Stubborn(mesh.Service):
    """Fails wherever it can."""

    where: str = ""

    async def started(self) -> None:
        if Stubborn.where == "started":
            raise RuntimeError("not today")

    async def stopped(self) -> None:
        if Stubborn.where == "stopped":
            raise RuntimeError("not yet")

    @mesh.rpc
    async def stay(self) -> None:
        await asyncio.Event().wait()


@pytest.mark.parametrize("transport", ["memory", "ipc"])
@pytest.mark.parametrize("where", ["started", "stopped", "body", "cancelled", "in hand"])
async def test_it_always_ends(where: str, transport):
    """Whatever fails: nothing is left (the fixture looks), and the test's own error is the one that is told."""
    Stubborn.where = where

    async def a_test() -> None:
        async with Mesh(Greeting, Stubborn, transport=transport) as m:
            calls = [m.call("stubborn.stay"), m.stream("greeting.count", 1000)]
            await m.call("greeting.hello", "x")
            if where == "body":
                raise KeyError("of the test")
            if where == "cancelled":
                asyncio.current_task().cancel()  # type: ignore[union-attr]
                await asyncio.sleep(1)
            if where == "in hand":
                calls[0].add_done_callback(lambda call: call.exception())  # type: ignore[union-attr]

    expected = {"started": RuntimeError, "body": KeyError, "cancelled": asyncio.CancelledError}.get(where)
    task = asyncio.ensure_future(a_test())
    await asyncio.wait([task])
    if expected is None:
        task.result()
    else:
        with pytest.raises(expected):
            task.result()


async def test_it_ends_under_a_hand_turned_clock_with_everything_dead():
    """What waits for a time-out at the end is given the time."""
    async with Mesh(Greeting, Orders, replicas={Greeting: 2}, clock=ManualClock(), hubs=2) as m:
        m.faults.partition("hub", index=1)
        await m.faults.kill("hub", 0)
        m.faults.partition(Greeting)
        m.faults.delay(Orders, 30.0)


async def test_the_same_seed_makes_the_same_choices():
    """Of instances, in order."""

    async def choices(seed: int) -> list[int]:
        async with Mesh(Greeting, replicas={Greeting: 4}, clock=ManualClock(), seed=seed) as m:
            order = [worker.identity for worker in m.workers(Greeting)]
            calls = [m.call("greeting.late", 1.0) for _ in range(20)]
            await m.settle()
            chosen = [call.order.handle.instance.id for call in calls]
            await m.advance(1.1)
            return [order.index(each) for each in chosen]

    assert await choices(3) == await choices(3)
    assert await choices(3) != await choices(4)
