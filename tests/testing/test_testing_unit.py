"""One service by itself, on a node of fakes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

import mesh
from mesh.testing import Emitted, Fake, FakeNode, ManualClock, no_leaks, unit

#: A call that is never answered fails its test soon, not after the run's own patience.
pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    async with no_leaks():
        yield


class User(msgspec.Struct):
    """Somebody."""

    id: int
    name: str = "ujun"


class Users(mesh.Service):
    """The real thing."""

    @mesh.rpc
    async def get(self, id: int) -> User:
        raise NotImplementedError

    @mesh.rpc
    async def all(self) -> AsyncIterator[User]:
        raise NotImplementedError
        yield


class Orders(mesh.Service):
    """Under test."""

    def __init__(self) -> None:
        self.open = False

    async def started(self) -> None:
        self.open = True

    @mesh.rpc
    async def place(self, user: int) -> str:
        found = await self.rpc[Users].get(user)
        await self.call("mail.send", found.name, key=str(user), meta={"tenant": "blue"})
        await self.emit("order.placed", {"user": found, "limit": self.config.get("limit")})
        return found.name

    @mesh.rpc
    async def untyped(self, user: int) -> Any:
        return await self.call("users.get", user)

    @mesh.rpc
    async def names(self) -> list[str]:
        return [user.name async for user in self.rpc[Users].all()] + [u["name"] async for u in self.rpc.users.all()]

    @mesh.rpc
    async def everywhere(self) -> list[Any]:
        return [outcome.value if outcome.ok else outcome.error.code for outcome in await self.scatter("users.get", 1)]


async def everybody() -> AsyncIterator[User]:
    yield User(1, "a")
    yield User(2, "b")


async def test_methods_are_called_directly_and_fakes_answer():
    """Typed and untyped calls get what they would get from another process."""
    orders = unit(Orders, Fake(Users, get=lambda id: User(id), all=everybody), {"mail.send": None})
    assert await orders.place(7) == "ujun"
    assert await orders.untyped(7) == {"id": 7, "name": "ujun"}
    assert await orders.names() == ["a", "b", "a", "b"]
    assert await orders.everywhere() == [{"id": 1, "name": "ujun"}]


async def test_calls_and_events_are_recorded():
    """By the node and by each fake."""
    mail = Fake("mail", send=None)
    node = FakeNode(Fake(Users, get=lambda id: User(id)), mail)
    orders = unit(Orders, node=node, config={"limit": 5})
    await orders.place(7)
    (call,) = node.calls_of("mail.send")
    assert (call.args, call.key, call.meta) == (("ujun",), "7", {"tenant": "blue"})
    assert mail.calls == [call]
    assert [each.target for each in node.calls] == ["users.get", "mail.send"]
    assert node.emitted == [Emitted("order.placed", {"user": {"id": 7, "name": "ujun"}, "limit": 5})]


async def test_errors_come_as_a_caller_sees_them():
    """Never as the object that a handler raised, unless it is one of the framework's."""

    class Gone(mesh.ServiceError):
        code = "gone"
        status = 410

    for does, expected, code in (
        (Gone("away"), mesh.RemoteError, "gone"),
        (ValueError("bad"), mesh.RemoteError, "handler_error"),
        (mesh.Unavailable, mesh.Unavailable, "unavailable"),
    ):
        orders = unit(Orders, {"users.get": does})
        with pytest.raises(expected) as caught:
            await orders.untyped(1)
        assert caught.value.code == code
        assert await orders.everywhere() == [code]


async def test_what_would_fail_between_processes_fails_here():
    """Unknown targets, wrong arguments, what cannot travel, a stream taken for a call."""
    orders = unit(Orders, Fake(Users, get=lambda id: User(id), all=everybody))
    with pytest.raises(mesh.UnknownService, match=r"unit\(…, Fake\(\"mail\", send=…\)\)"):
        await orders.place(7)
    with pytest.raises(mesh.BadArguments, match="Expected int"):
        await orders.untyped("seven")  # type: ignore[arg-type]
    with pytest.raises(mesh.BadArguments):
        await orders.untyped(object())  # type: ignore[arg-type]
    with pytest.raises(mesh.BadArguments):
        await orders.emit("a", object())
    with pytest.raises(mesh.BadRequest, match=r"users\.all"):
        await orders.call("users.all")
    with pytest.raises(mesh.BadRequest, match=r"users\.get"):
        async for _ in orders.stream("users.get", 1):
            pass
    with pytest.raises(mesh.UnknownMethod):
        await orders.call("users.nothing")


async def test_hooks_and_the_clock_are_the_tests():
    """Nothing runs by itself."""
    clock = ManualClock()
    orders = unit(Orders, clock=clock)
    assert not orders.open
    await orders.started()
    assert orders.open
    assert orders.node.clock is clock  # type: ignore[attr-defined]
    assert dir(orders.rpc) == []
