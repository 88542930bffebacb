"""docs/security.md: its complete example of [access], played."""

from __future__ import annotations

import asyncio
import re
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import mesh
from mesh.errors import Forbidden
from mesh.testing import Mesh

pytestmark = pytest.mark.timeout(30)

DOCUMENT = Path(__file__).parents[2] / "docs" / "security.md"


def example() -> dict[str, Any]:
    [text] = re.findall(r"```toml access\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    found: dict[str, Any] = tomllib.loads(text)["access"]
    return found


class Gateway(mesh.Service):
    """Asks in the gateway's name."""

    name = "gateway"

    @mesh.rpc
    async def ask(self, target: str) -> Any:
        try:
            return await self.call(target)
        except Forbidden as error:
            return error.code

    @mesh.rpc
    async def defer_to(self, target: str) -> str:
        try:
            return (await self.defer(target)).id
        except Forbidden as error:
            return error.code


class Orders(mesh.Service):
    name = "orders"

    @mesh.rpc
    async def get(self) -> str:
        return "an order"

    @mesh.rpc
    async def purge(self) -> None:
        raise AssertionError("no rule allows this")

    @mesh.task
    async def place(self) -> None:
        async with self.lock("orders.7"), self.atomic():
            await self.state("orders").set("7", "placed")
            await self.emit("order.paid", 7, durable=True)
            await self.defer("mail.send")

    @mesh.task
    async def send_elsewhere(self) -> None:
        await self.defer("reports.monthly")

    @mesh.on("payment.*", durable=True)
    async def paid(self, event: mesh.Event) -> None: ...


class Mail(mesh.Service):
    name = "mail"

    def __init__(self) -> None:
        self.said: list[str] = []

    @mesh.task
    async def send(self) -> None:
        self.said.append("sent")

    @mesh.on("order.paid", durable=True)
    async def thank(self, event: mesh.Event) -> None:
        found = await self.state("orders").get("7")
        self.said.append(f"thanks for {found.value if found is not None else None}")
        try:
            await self.state("orders").set("7", "thanked")
        except Forbidden:
            self.said.append("read only")


class Reports(mesh.Service):
    name = "reports"

    @mesh.task
    async def monthly(self) -> None: ...


@pytest.fixture
async def m() -> AsyncIterator[Mesh]:
    rules = example()
    # The test itself asks the gateway, as a user would over HTTP.
    rules["allow"] = [*rules["allow"], {"caller": "client", "service": "gateway"}]
    settings = {f"access.{key}": value for key, value in rules.items()}
    async with Mesh(Gateway, Orders, Mail, Reports, settings=settings) as m:
        yield m


async def test_the_example_allows_what_it_says(m: Mesh) -> None:
    """A call, a task, and what follows from it: state, lock, event, another service's task and handler."""
    assert await m.call("gateway.ask", "orders.get") == "an order"
    await m.call("gateway.defer_to", "orders.place")
    await m.call("gateway.defer_to", "reports.monthly")
    said = m.instances(Mail)[0].said
    for _ in range(2000):
        if len(said) == 3:
            break
        await asyncio.sleep(0.001)
    assert sorted(said) == ["read only", "sent", "thanks for placed"]
    assert await m.dead() == []


async def test_the_example_denies_what_it_does_not_say(m: Mesh) -> None:
    """Each by the code, whoever asks."""
    for verb, target in (
        ("ask", "orders.purge"),
        ("ask", "reports.monthly"),
        ("ask", "mail.send"),
        ("defer_to", "orders.send_elsewhere"),
        ("defer_to", "mail.send"),
    ):
        assert (target, await m.call(f"gateway.{verb}", target)) == (target, "forbidden")
    with pytest.raises(Forbidden):
        await m.defer("orders.place")
    with pytest.raises(Forbidden):
        await m.emit("order.paid", 7, durable=True)
