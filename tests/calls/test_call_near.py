"""Two hosts: who is asked first, when it goes across, and when it comes back."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

import mesh
from mesh import config
from mesh.node.node import Node
from mesh.testing import ManualClock, Mesh, no_leaks
from mesh.worker.worker import Worker

pytestmark = pytest.mark.timeout(60)

HERE = "here"
THERE = "there"


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    async with no_leaks():
        yield


class Placed(mesh.Service):
    """Says on which host it is, after the time that it is told to take."""

    def __init__(self) -> None:
        self.takes_s = 0.0
        self.heard: list[Any] = []

    @property
    def host(self) -> str:
        return str(self.node.settings.mesh.host)  # type: ignore[attr-defined]

    @mesh.rpc
    async def where(self) -> str:
        if self.takes_s:
            await self.node.clock.sleep(self.takes_s)  # type: ignore[attr-defined]
        return self.host

    @mesh.rpc
    async def count(self, n: int) -> AsyncIterator[str]:
        for _ in range(n):
            yield self.host

    @mesh.on("order.*")
    async def order(self, event: mesh.Event) -> None:
        self.heard.append(event.data)


class Narrow(Placed):
    """Does four things at a time."""

    concurrency = 4


def move(m: Mesh, host: str, **calls: Any) -> None:
    """What is started from here on stands on that host, with these settings of [calls]."""
    population = m._population
    assert population is not None
    settings = population._settings
    population._settings = msgspec.structs.replace(
        settings,
        mesh=msgspec.structs.replace(settings.mesh, host=host),
        calls=msgspec.structs.replace(settings.calls, **calls),
    )


async def start(m: Mesh, service: type[Placed], hosts: Sequence[str]) -> list[Worker]:
    """A worker of the service for each word."""
    workers = []
    for host in hosts:
        move(m, host)
        workers.append(await m.start_another(service))
    move(m, HERE)
    return workers


async def client(m: Mesh, host: str = HERE, **calls: Any) -> Node:
    """One more process that only calls."""
    move(m, host, **calls)
    population = m._population
    assert population is not None
    node = await population.start_client()
    await population.until_known(node)
    move(m, HERE, prefer_local=True)
    return node


async def asked(m: Mesh | Node, count: int = 60, target: str = "placed.where", **options: Any) -> Counter[str]:
    """Who answered, of so many calls one after the other."""
    return Counter([await m.call(target, **options) for _ in range(count)])


@pytest.fixture
async def m() -> AsyncIterator[Mesh]:
    replicas = {Placed: 0, Narrow: 0}
    async with Mesh(Placed, Narrow, replicas=replicas, clock=ManualClock(), settings={"mesh.host": HERE}) as m:
        yield m


# --- who is asked ---------------------------------------------------------------------------------------


async def test_those_on_the_own_host_are_asked(m: Mesh):
    """All calls, shared among them; and from the other host those over there."""
    workers = await start(m, Placed, [HERE, THERE, HERE, THERE])
    other = await client(m, THERE)
    assert await asked(m) == {HERE: 60}
    assert await asked(other) == {THERE: 60}
    assert all(worker.node.recorder.method("server", "placed", "where").count >= 15 for worker in workers)


async def test_many_at_a_time_stay_as_well(m: Mesh):
    """As long as there are places: being under way is no load."""
    await start(m, Placed, [HERE, THERE])
    for placed in m.instances(Placed):
        placed.takes_s = 0.5
    calls = [m.call("placed.where") for _ in range(500)]
    await m.advance(0.6)
    assert Counter(await asyncio.gather(*calls)) == {HERE: 500}


async def test_without_any_on_the_own_host_it_goes_across(m: Mesh):
    """Drained, killed, back again: each at once."""
    here, _ = await start(m, Placed, [HERE, THERE])
    await m.drain(here)
    assert await asked(m, 5) == {THERE: 5}
    await start(m, Placed, [HERE])
    assert await asked(m, 5) == {HERE: 5}
    await m.faults.kill(Placed, 1)
    await m.settle()
    assert await asked(m, 5) == {THERE: 5}


async def test_streams_and_events_stay_too(m: Mesh):
    """They are given to an instance as a call is."""
    await start(m, Placed, [HERE, THERE])
    assert [item async for item in m.stream("placed.count", 3)] == [HERE] * 3
    for number in range(10):
        await m.emit("order.created", number)
    assert {each.host: len(each.heard) for each in m.instances(Placed)} == {HERE: 10, THERE: 0}


async def test_a_key_does_not_look_at_hosts(m: Mesh):
    """Callers on all hosts find the same instance: that is what a key is for."""
    await start(m, Placed, [HERE, THERE, HERE, THERE])
    other = await client(m, THERE)
    keys = [str(number) for number in range(40)]
    mine = [await m.call("placed.where", key=key) for key in keys]
    assert mine == [await other.call("placed.where", key=key) for key in keys]
    assert set(mine) == {HERE, THERE}


async def test_one_instance_and_all_instances_are_found_across(m: Mesh):
    """By its name, and by scatter."""
    _, there = await start(m, Placed, [HERE, THERE])
    assert await m.call("placed.where", instance=there.instance_ids[0]) == THERE
    assert sorted(outcome.value for outcome in await m.scatter("placed.where")) == [HERE, THERE]


@pytest.mark.parametrize("settings", [{"calls.prefer_local": False}])
async def test_it_can_be_switched_off(settings: dict[str, Any]):
    """Then all are alike."""
    replicas = {Placed: 0}
    settings = {**settings, "mesh.host": HERE}
    async with Mesh(Placed, replicas=replicas, clock=ManualClock(), settings=settings) as m:
        await start(m, Placed, [HERE, THERE])
        shares = await asked(m)
        assert 15 <= shares[HERE] <= 45, shares


def test_a_service_can_differ_from_the_rest(tmp_path: Path):
    """[calls] says it for all, [services.NAME] for one."""
    text = "[calls]\nprefer_local = false\n[services.near]\nprefer_local = true\n[services.other]\n"
    (tmp_path / "mesh.toml").write_text(text)
    settings = config.load(tmp_path / "mesh.toml", env={})
    assert settings.service("near").prefer_local
    assert not settings.service("other").prefer_local
    assert not settings.service("unnamed").prefer_local
    assert config.load(env={"MESH_SERVICES_NEAR_PREFER_LOCAL": "no"}).service("unnamed").prefer_local


# --- when those on the own host are not well ------------------------------------------------------------


async def test_what_has_no_place_goes_across(m: Mesh):
    """The first four stay, the next four cross, and what is more waits on both hosts, none by itself."""
    await start(m, Narrow, [HERE, THERE])
    for narrow in m.instances(Narrow):
        narrow.takes_s = 1.0
    calls = [m.call("narrow.where") for _ in range(8)]
    await m.advance(1.0)
    assert Counter(call.result() for call in calls) == {HERE: 4, THERE: 4}
    calls = [m.call("narrow.where") for _ in range(40)]
    await m.advance(6.0)
    shares = Counter(await asyncio.gather(*calls))
    assert 16 <= shares[HERE] <= 24, shares
    await m.advance(3.0)  # the end of the load is news, too
    assert await asked_slowly(m, 5) == {HERE: 5}


async def asked_slowly(m: Mesh, count: int) -> Counter[str]:
    shares: Counter[str] = Counter()
    for _ in range(count):
        call = m.call("narrow.where")
        await m.advance(1.1)
        shares[await call] += 1
    return shares


async def test_one_that_others_keep_busy_is_spared(m: Mesh):
    """This caller has nothing under way: what it hears of the load makes it spread its calls, and come back later."""
    await start(m, Narrow, [HERE, THERE])
    other = await client(m, HERE)
    for narrow in m.instances(Narrow):
        narrow.takes_s = 1.0
    held = [other.call("narrow.where", timeout=60.0) for _ in range(40)]
    await m.advance(2.5)  # by then the load has been told
    shares = await spread(m)
    assert shares[THERE] >= 3, shares
    await m.advance(12.0)
    await asyncio.gather(*held)
    assert await asked_slowly(m, 5) == {HERE: 5}


async def spread(m: Mesh) -> Counter[str]:
    calls = [m.call("narrow.where", timeout=60.0) for _ in range(8)]
    await m.advance(15.0)
    return Counter(await asyncio.gather(*calls))


async def test_one_that_does_not_answer_is_left_after_three(m: Mesh):
    """Its link is open and it looks well. After that it is asked now and then, and once it answers, it is back."""
    await start(m, Placed, [HERE, THERE])
    hung, _ = m.instances(Placed)
    assert hung.host == HERE
    hung.takes_s = 1000.0
    late = 0
    for _ in range(100):
        call = m.call("placed.where", timeout=0.2)
        await m.advance(0.0)
        if not call.done():
            await m.advance(0.21)
        late += isinstance(call.exception(), mesh.DeadlineExceeded)
    assert 3 <= late <= 12
    hung.takes_s = 0.0
    await m.advance(30.0)  # bad news fades: policy.balance.HALF_LIFE_S
    await asked(m, 40)
    assert await asked(m, 20) == {HERE: 20}


async def test_a_ramp_spreads_and_comes_back(m: Mesh):
    """2 → 16 → 2 callers, 4 places on each host: at first nobody leaves, at the top both hosts work, then all come."""
    await start(m, Narrow, [HERE, THERE])
    for narrow in m.instances(Narrow):
        narrow.takes_s = 0.1

    async def phase(callers: int, seconds: float) -> Counter[str]:
        shares: Counter[str] = Counter()
        over = False

        async def call_on() -> None:
            while not over:
                shares[await m.call("narrow.where", timeout=60.0)] += 1

        tasks = [asyncio.ensure_future(call_on()) for _ in range(callers)]
        await m.advance(seconds)
        over = True
        await m.advance(2.0)
        await asyncio.gather(*tasks)
        return shares

    low = await phase(2, 10)
    assert low[THERE] == 0
    top = await phase(16, 10)
    # Two hosts of 4 places and 0.1 s each do 80 a second.
    assert sum(top.values()) >= 0.9 * 80 * 10
    assert top[THERE] >= 0.4 * sum(top.values())
    await m.advance(3.0)
    assert (await phase(2, 10))[THERE] == 0
