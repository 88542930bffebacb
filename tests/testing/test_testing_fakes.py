"""Fakes in a mesh: what they do, what they record, and that they cannot drift from the real thing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from unittest.mock import AsyncMock

import msgspec
import pytest

import mesh
from mesh.errors import SetupError
from mesh.testing import Fake, ManualClock, Mesh, no_leaks

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

    @mesh.rpc(idempotent=True, timeout=3.0)
    async def get(self, id: int, *, full: bool = False) -> User:
        raise NotImplementedError

    @mesh.rpc
    async def all(self) -> AsyncIterator[User]:
        raise NotImplementedError
        yield


class Orders(mesh.Service):
    """Under test."""

    needs = ["users"]

    @mesh.rpc
    async def place(self, user: int) -> Any:
        found = await self.rpc[Users].get(user)
        await self.rpc.mail.send(found.name, text=f"order of {found.id}")
        return found


async def test_a_fake_answers_as_it_is_told():
    """A value, a function, an async one, an exception, a stream."""

    async def slowly(x: int) -> int:
        await asyncio.sleep(0)
        return x + 1

    async def numbers(n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    m = Mesh(clock=ManualClock())
    m.fake(
        "odd",
        value={"a": 1},
        function=lambda x: x * 2,
        slowly=slowly,
        error=mesh.Unavailable("down"),
        error_class=KeyError,
        numbers=numbers,
        letters=lambda: iter("ab"),
        nothing=None,
    )
    async with m:
        assert await m.call("odd.value") == {"a": 1}
        assert await m.call("odd.function", 2) == 4
        assert await m.call("odd.function", x=2) == 4
        assert await m.call("odd.slowly", 2) == 3
        assert await m.call("odd.nothing") is None
        assert [i async for i in m.rpc.odd.numbers(3)] == [0, 1, 2]
        with pytest.raises(mesh.Unavailable, match="down"):
            await m.call("odd.error")
        with pytest.raises(mesh.RemoteError) as caught:
            await m.call("odd.error_class")
        assert caught.value.type_name == "KeyError"
        with pytest.raises(mesh.BadArguments, match=r"odd\.function"):
            await m.call("odd.function", 1, 2)
        with pytest.raises(mesh.UnknownMethod, match='"value"'):
            await m.call("odd.valeu")


async def test_a_fake_records_who_asked_for_what():
    """In order, by target, with arguments as they were sent, metadata and caller."""
    m = Mesh(clock=ManualClock())
    mail = m.fake("mail", send=lambda to, text="": None, check=True)
    async with m:
        await m.call("mail.send", "a", text="b", meta={"tenant": "blue"})
        await m.call("mail.check")
        await m.call("mail.send", to="c")
        one, two = m.calls_of("mail.send")
        assert (one.target, one.args, one.kwargs, one.meta) == ("mail.send", ("a",), {"text": "b"}, {"tenant": "blue"})
        assert one.caller == m.node.identity
        assert (two.args, two.kwargs) == ((), {"to": "c"})
        assert [call.target for call in mail.calls] == ["mail.send", "mail.check", "mail.send"]
        assert mail.calls_of("check") == m.calls_of("mail.check")
        assert m.calls_of("mail.nothing") == []


async def test_a_service_is_tested_with_its_neighbours_faked():
    """It needs one of them to start; both are faked before the mesh runs."""
    m = Mesh(Orders, Fake("mail", send=None), clock=ManualClock())
    m.fake(Users, get=lambda id, *, full: User(id))
    async with m:
        assert await m.call("orders.place", 7) == {"id": 7, "name": "ujun"}
        assert m.calls_of("users.get")[0].args == (7,)
        assert m.calls_of("users.get")[0].kwargs == {"full": False}
        assert (m.calls_of("mail.send")[0].args, m.calls_of("mail.send")[0].kwargs) == (
            ("ujun",),
            {"text": "order of 7"},
        )


async def test_a_fake_of_a_class_keeps_to_its_declaration():
    """Methods, arguments, answers, and what the registry tells of them."""
    with pytest.raises(SetupError, match=r"users\.git.*\ball, get\b"):
        Fake(Users, git=None)
    with pytest.raises(SetupError, match="yield"):
        Fake(Users, all=list)
    m = Mesh(clock=ManualClock())
    fake = m.fake(Users, get=lambda id, full: {"id": "seven"})
    async with m:
        with pytest.raises(mesh.BadArguments, match="Expected int, got str"):
            await m.call("users.get", "seven")
        with pytest.raises(mesh.MeshError) as caught:
            await m.call("users.get", 7)
        assert caught.value.code == "bad_result"
        fake.does(get=lambda id, full: {"id": id})
        assert await m.rpc[Users].get(7) == User(7)
        record = m.node.method("users.get")
        assert record is not None
        assert (record.idempotent, record.timeout_s) == (True, 3.0)


async def test_a_fake_may_be_an_object_a_class_or_functions():
    """Its public methods; as a decorator, or as an argument."""

    class Mail:
        def send(self, to: str) -> str:
            return self._sign(to)

        def _sign(self, to: str) -> str:
            return f"to {to}"

    m = Mesh(clock=ManualClock())
    m.fake("mail", Mail())
    m.fake("post")(Mail)
    letters = m.fake("letters")

    @letters
    def send(to: str) -> str:
        return f"letter to {to}"

    async with m:
        assert [await m.call(f"{name}.send", "a") for name in ("mail", "post", "letters")] == [
            "to a",
            "to a",
            "letter to a",
        ]


async def test_a_mock_can_be_a_fake():
    """Whatever it is called with."""
    send = AsyncMock(return_value="sent")
    m = Mesh(Fake("mail", send=send), clock=ManualClock())
    async with m:
        assert await m.call("mail.send", "a", b=1) == "sent"
        send.assert_awaited_once_with("a", b=1)


@pytest.mark.parametrize("transport", ["memory", "ipc"])
async def test_a_fake_may_come_and_change_while_the_mesh_runs(transport):
    """Awaited, everybody knows it; what it does may become other, also its methods."""
    async with Mesh(transport=transport) as m:
        mail = await m.fake("mail", send="one")
        assert await m.call("mail.send") == "one"
        mail.does(send="two", check=True)
        assert await m.call("mail.send") == "two"
        assert await m.call("mail.check") is True


async def test_a_fake_can_be_struck_by_faults():
    """As any process."""
    m = Mesh(clock=ManualClock())
    mail = m.fake("mail", send=lambda: asyncio.Event().wait())
    async with m:
        call = m.call("mail.send")
        await m.settle()
        await m.faults.kill(mail)
        with pytest.raises(mesh.LinkLost):
            await call


class Payments(mesh.Service):
    """Has a task, one with a plain function, and a method that is not faked."""

    @mesh.task(retries=0)
    async def charge(self, order: str, amount: int = 1) -> str:
        raise AssertionError("the real one")

    @mesh.task(offload="thread")
    def refund(self, order: str) -> str:
        raise AssertionError("the real one")

    @mesh.rpc
    async def total(self) -> int:
        raise AssertionError("the real one")

    @mesh.cron("* * * * *")
    async def tidy(self) -> None:
        raise AssertionError("the real one")


async def test_a_fake_stands_in_for_tasks():
    """It is given them by the engine, and its answer, or what it raises, is the job's end."""
    m = Mesh(clock=ManualClock())
    fake = m.fake(Payments, charge=lambda order, amount: f"charged {order}", refund=ValueError("no"), total=7)
    async with m:
        job = await m.defer(Payments.charge, "o1")
        await m.idle()
        assert await job.result(1) == "charged o1"
        assert fake.calls_of("charge")[0].args == ("o1", 1)
        assert m.calls_of("payments.charge")[0].args == ("o1", 1)
        assert await m.call("payments.total") == 7
        with pytest.raises(mesh.UnknownMethod):
            await m.call("payments.charge", "o1")
        fake.does(charge=ValueError("no money"))
        await m.defer("payments.charge", "o2")
        await m.idle()
        assert [dead.error for dead in await m.dead()] == ["ValueError: no money"]
        fake.does(charge=lambda order, amount: 3)
        await m.defer(Payments.charge, "o3")
        await m.idle()
        assert "str" in max((dead.error for dead in await m.dead()), key=len)
    with pytest.raises(SetupError, match="charge, refund, tidy, total"):
        Fake(Payments, chrage=None)
