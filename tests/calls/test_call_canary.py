"""A canary gets the share of calls that it is given, and none without a lease; copies of calls are only compared."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

import mesh
from mesh import http
from mesh.calls.mirroring import compare, difference
from mesh.discovery.record import Instance
from mesh.discovery.share import Share, declaring, share_meta, share_of
from mesh.policy.balance import place_of
from mesh.protocol.messages import JSON, MIRROR, MSGPACK
from mesh.testing import ManualClock, Mesh, no_leaks
from mesh.worker.worker import Worker

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    async with no_leaks():
        yield


class Shop(mesh.Service):
    """Says whether it is a canary."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fails = False
        self.takes_s = 0.0

    @property
    def release(self) -> str:
        records = self.node.table  # type: ignore[attr-defined]
        mine = records.get(self.node.identity)  # type: ignore[attr-defined]
        return "old" if mine is None or share_of(mine.meta) is None else "new"

    async def _answer(self, method: str) -> str:
        context = mesh.current()
        assert context is not None
        self.asked.append(f"{method}{' copy' if MIRROR in context.meta else ''}")
        if self.takes_s:
            await self.node.clock.sleep(self.takes_s)  # type: ignore[attr-defined]
        if self.fails:
            raise RuntimeError("it fails")
        return self.release

    @mesh.rpc(idempotent=True)
    async def look(self) -> str:
        return await self._answer("look")

    @mesh.rpc
    async def buy(self) -> str:
        return await self._answer("buy")

    @http.put("/price/{n}")
    @mesh.rpc(idempotent=True)
    async def price(self, n: int) -> str:
        return await self._answer("price")

    @mesh.rpc(idempotent=True)
    async def parts(self) -> dict[str, Any]:
        return {"a": [1, {"release": await self._answer("parts")}]}

    @mesh.rpc
    async def count(self, n: int) -> AsyncIterator[str]:
        for _ in range(n):
            yield self.release

    @mesh.on("order.*")
    async def order(self, event: mesh.Event) -> None:
        self.asked.append("order")


@pytest.fixture
async def m() -> AsyncIterator[Mesh]:
    async with Mesh(Shop, replicas={Shop: 2}, clock=ManualClock()) as m:
        yield m


async def canary(m: Mesh, share: float, name: str = "one", **options: Any) -> Worker:
    worker = await m.start_another(Shop, canary=True)
    await give(m, worker, share, name, **options)
    return worker


async def give(m: Mesh, worker: Worker, share: float, name: str = "one", lease_s: float = 60.0, **options: Any) -> None:
    await m.call("$worker.share", share, name, lease_s, instance=worker.identity, **options)
    await m.settle()


def shop_of(m: Mesh, worker: Worker) -> Shop:
    return next(each for each in m.instances(Shop) if each.node is worker.node)


async def asked(m: Mesh, count: int = 400, target: str = "shop.look", **options: Any) -> Counter[str]:
    return Counter([await m.call(target, **options) for _ in range(count)])


# --- the share ------------------------------------------------------------------------------------------


async def test_a_canary_without_a_share_gets_no_calls(m: Mesh):
    """Neither calls nor streams nor events, until it is given a share; it answers calls that name it."""
    worker = await m.start_another(Shop, canary=True)
    assert await asked(m, 50) == {"old": 50}
    assert [item async for item in m.stream("shop.count", 3)] == ["old"] * 3
    await m.emit("order.created", 1)
    assert shop_of(m, worker).asked == []
    assert await m.call("shop.look", instance=worker.identity) == "new"


async def test_a_canary_gets_its_share(m: Mesh):
    """Of calls, streams and events; a larger one when it is raised, all with 1.0, none with 0."""
    worker = await canary(m, 0.2)
    shares = await asked(m)
    assert 50 <= shares["new"] <= 115, shares
    await give(m, worker, 1.0)
    assert await asked(m, 50) == {"new": 50}
    assert [item async for item in m.stream("shop.count", 2)] == ["new"] * 2
    await m.emit("order.created", 1)
    assert "order" in shop_of(m, worker).asked
    await give(m, worker, 0.0)
    assert await asked(m, 50) == {"old": 50}


async def test_the_share_ends_with_its_lease(m: Mesh, log: Any):
    """When nothing renews it, as after `kill -9` of the controller; a renewal keeps it."""
    worker = await canary(m, 1.0, lease_s=5.0)
    await m.advance(4.0)
    await give(m, worker, 1.0, lease_s=5.0)
    await m.advance(4.0)
    assert await asked(m, 5) == {"new": 5}
    await m.advance(1.5)
    await m.settle()
    assert await asked(m, 50) == {"old": 50}


async def test_a_canary_that_dies_is_replaced_by_the_old_release(m: Mesh):
    """Calls under way that may be repeated are answered by the old release, and so are all calls afterwards."""
    worker = await canary(m, 1.0)
    shop_of(m, worker).takes_s = 5.0
    call = m.call("shop.look")
    await m.advance(0.1)
    assert shop_of(m, worker).asked == ["look"]
    await m.faults.kill(Shop, 2)
    await m.advance(0.1)
    assert await call == "old"
    assert await asked(m, 20) == {"old": 20}


async def test_a_canary_that_drains_loses_no_call(m: Mesh):
    """This is how a canary leaves after its promotion."""
    worker = await canary(m, 1.0)
    assert await asked(m, 5) == {"new": 5}
    calls = [m.call("shop.buy") for _ in range(20)]
    assert await m.drain(worker)
    assert len(await asyncio.gather(*calls)) == 20
    assert await asked(m, 5) == {"old": 5}


async def test_without_the_old_release_a_canary_with_a_share_answers(m: Mesh):
    """It is better than nothing; one without a share was not allowed any call."""
    worker = await canary(m, 0.01)
    await m.faults.kill(Shop, 0)
    await m.faults.kill(Shop, 0)
    await m.settle()
    assert await asked(m, 5) == {"new": 5}
    await give(m, worker, 0.0)
    call = m.call("shop.look", timeout=0.5)
    await m.advance(1.0)
    with pytest.raises(mesh.Unavailable):
        await call


async def test_a_regular_worker_has_no_share(m: Mesh):
    """No call can move its part of the traffic."""
    with pytest.raises(mesh.MeshError) as caught:
        await give(m, m.workers(Shop)[0], 0.5)
    assert caught.value.code == "unknown_method"


@pytest.mark.parametrize(
    "arguments", [(1.5, "x", 5.0), (-0.1, "x", 5.0), (0.1, "x", 0.0), (0.1, "x", 1e9), (0.1, "x" * 101, 5.0)]
)
async def test_impossible_shares_are_refused(m: Mesh, arguments: tuple[Any, ...]):
    worker = await m.start_another(Shop, canary=True)
    with pytest.raises(mesh.BadArguments):
        await m.call("$worker.share", *arguments, instance=worker.identity)


async def test_what_a_canary_declares_does_not_apply_to_the_old_release(m: Mesh):
    """A method that it allows to repeat, and one that it adds."""
    worker = await canary(m, 0.01)
    (record,) = (each for each in m.node.table if each.id == worker.identity)
    methods = {**record.methods, "extra": record.methods["look"]}
    methods["buy"] = msgspec.structs.replace(methods["buy"], idempotent=True, timeout_s=0.001)
    worker.node.agent.register(msgspec.structs.replace(record, methods=methods))
    await m.settle()
    assert m.node.method("shop.extra") is None
    assert await m.call("shop.buy") in ("old", "new")
    route = m.node.client._routes["shop.buy"]
    assert (route.idempotent, route.timeout_s) == (False, None)


def test_a_gateway_keeps_to_what_the_regular_release_declares():
    """Its routes and parameters; those of canaries only where there is nothing else."""
    regular = Instance("shop", "a", 1)
    new = Instance("shop", "b", 2, meta=share_meta(Share(0.5)))
    assert declaring([regular, new]) == [regular]
    assert declaring([new]) == [new]
    both = [regular, regular]
    assert declaring(both) is both


# --- who stays where ------------------------------------------------------------------------------------


async def test_a_key_stays_on_one_release(m: Mesh):
    """Every caller agrees, and a raised share keeps those that were on the new release."""
    worker = await canary(m, 0.3)
    keys = [f"user-{number}" for number in range(200)]
    first = {key: await m.call("shop.look", key=key) for key in keys}
    again = {key: await m.call("shop.look", key=key) for key in keys}
    assert first == again
    taken = {key for key, release in first.items() if release == "new"}
    assert taken == {key for key in keys if place_of("shop one", key) < 0.3}
    assert 35 <= len(taken) <= 85
    await give(m, worker, 0.6)
    assert taken <= {key for key in keys if await m.call("shop.look", key=key) == "new"}


async def test_a_principal_stays_on_one_release(m: Mesh):
    """All calls on behalf of one user, however many; and another roll begins with other users."""
    worker = await canary(m, 0.5)
    users: dict[str, str] = {}
    for number in range(40):
        with mesh.scope(principal=f"user-{number}"):
            (users[f"user-{number}"],) = await asked(m, 5)
    assert 8 <= list(users.values()).count("new") <= 32
    await give(m, worker, 0.5, "two")
    others = {}
    for user in users:
        with mesh.scope(principal=user):
            (others[user],) = await asked(m, 3)
    assert others != users


def test_places_are_even():
    """A share of 5 % of the keys is 5 % of the keys."""
    places = [place_of("s", str(n)) for n in range(20_000)]
    assert sum(place < 0.05 for place in places) == pytest.approx(1000, abs=120)
    assert all(0 <= place < 1 for place in places)


def test_shares_survive_their_way_through_a_record():
    """And what cannot be read is no share, but still a canary."""
    share = Share(0.05, "abc", 0.1, frozenset({"a", "b"}))
    assert share_of(share_meta(share)) == share
    assert share_of({"other": "1"}) is None
    for text in ("", "x", "nan", "2", "-1"):
        assert share_of({"mesh.share": text}) == Share()


# --- copies ---------------------------------------------------------------------------------------------


async def test_copies_of_reading_calls_go_to_the_canary(m: Mesh):
    """Not of those that change anything: a method that may not be repeated, or one behind a PUT."""
    worker = await canary(m, 0.0, mirror=1.0)
    for target, args in (("shop.look", ()), ("shop.buy", ()), ("shop.price", (1,))):
        assert await m.call(target, *args) == "old"
    await m.settle()
    assert shop_of(m, worker).asked == ["look copy"]
    await give(m, worker, 0.0, mirror=1.0, methods=["buy"])
    assert await m.call("shop.buy") == "old"
    await m.settle()
    assert shop_of(m, worker).asked == ["look copy", "buy copy"]
    stats = worker.node.recorder
    assert stats.method("mirror", "shop", "look").count == 1
    assert stats.method("server", "shop", "look").count == 0


async def results(m: Mesh) -> dict[str, float]:
    await m.settle()
    return {
        each["labels"]["result"]: each["value"]
        for each in m.node.recorder.snapshot()["counters"]
        if each["name"] == "mirrored"
    }


async def test_answers_are_compared(m: Mesh, log: Any):
    """Equal, different, or an error where there was none; the path of the difference is logged, and no value."""
    worker = await canary(m, 0.0, mirror=1.0)
    assert await m.call("shop.parts") == {"a": [1, {"release": "old"}]}
    assert await results(m) == {"differs": 1}
    (line,) = log.lines("mirror.differed")
    assert (line["target"], line["where"]) == ("shop.parts", "$.a[1].release")
    shop_of(m, worker).fails = True
    await m.call("shop.parts")
    assert await results(m) == {"differs": 1, "failed": 1}
    assert len(log.lines("mirror.differed")) == 1  # once in 10 s for each method
    for each in m.instances(Shop):
        each.fails = True
    with pytest.raises(mesh.MeshError) as caught:
        await m.call("shop.parts")
    assert caught.value.code == "handler_error"
    assert await results(m) == {"differs": 1, "failed": 1, "equal": 1}


async def test_copies_delay_no_caller_and_are_limited(m: Mesh):
    """The canary hangs: callers do not notice, 32 copies are under way at most, and the others are dropped."""
    worker = await canary(m, 0.0, mirror=1.0)
    shop_of(m, worker).takes_s = 1000.0
    assert await asked(m, 50) == {"old": 50}
    await m.settle()
    assert len(shop_of(m, worker).asked) == 32
    assert await results(m) == {"dropped": 18}
    await m.advance(11.0)
    assert await results(m) == {"dropped": 18, "failed": 32}


async def test_a_copy_for_a_canary_that_has_left_is_no_difference(m: Mesh):
    """It is counted as dropped: the canary has not answered it."""
    worker = await canary(m, 0.0, mirror=1.0)
    old = m.instances(Shop)[:2]
    for each in old:
        each.takes_s = 1.0
    call = m.call("shop.look")
    await m.advance(0.1)
    assert await m.drain(worker)
    await m.advance(1.0)
    assert await call == "old"
    assert await results(m) == {"dropped": 1}


async def test_a_share_of_the_calls_is_copied(m: Mesh):
    worker = await canary(m, 0.0, mirror=0.25)
    await asked(m, 400)
    await m.settle()
    assert 65 <= len(shop_of(m, worker).asked) <= 140


def test_differences_are_named_by_their_path():
    assert difference({"a": 1}, {"a": 1}) == ""
    assert difference({"a": 1}, {"a": 1, "b": 2}) == "$.b"
    assert difference({"a": 1, "b": 2}, {"a": 1}) == "$.b"
    assert difference([1, 2], [1, 3]) == "$[1]"
    assert difference([1], [1, 3]) == "$[1]"
    assert difference(1, 1.0) == "$"
    assert difference(True, 1) == "$"
    assert compare(("", b'{"a":1, "b":2}', JSON), ("", b'{"b":2,"a":1}', JSON)) == ("equal", "")
    assert compare(("", b"\xc1", MSGPACK), ("", b"\x01", MSGPACK)) == ("differs", "$")
    assert compare(("not_found", b"", 0), ("", b"\x01", 0)) == ("differs", "not_found before")
    assert compare(("not_found", b"", 0), ("not_found", b"", 0)) == ("equal", "")
