"""Exceptions that a handler's TaskGroup raises together, and exceptions that have a cause."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import mesh
from mesh.testing import Mesh

#: A call that is never answered fails its test soon.
pytestmark = pytest.mark.timeout(30)


class Missing(mesh.ServiceError):
    code = "item_missing"
    status = 404


class Depot(mesh.Service):
    """Asked with a wrong argument."""

    @mesh.rpc
    async def item(self, number: int) -> int:
        return number


class Crowd(mesh.Service):
    """Does things side by side."""

    @mesh.rpc
    async def together(self, kinds: list[str]) -> None:
        async with asyncio.TaskGroup() as group:
            for kind in kinds:
                group.create_task(self.one(kind))

    @mesh.task(retries=0)
    async def later(self, kinds: list[str]) -> None:
        await self.together(kinds)

    @mesh.rpc
    async def caused(self) -> None:
        try:
            raise ConnectionError("refused")
        except ConnectionError as exc:
            raise RuntimeError("no bank") from exc

    async def one(self, kind: str) -> None:
        if kind == "value":
            raise ValueError("no such order")
        if kind == "key":
            raise KeyError("name")
        if kind == "missing":
            raise Missing("gone")
        if kind == "reject":
            raise mesh.Reject("never")
        await self.call("depot.item", object() if kind == "unsendable" else "seven")


@pytest.fixture
async def crowd() -> AsyncIterator[Mesh]:
    async with Mesh(Crowd, Depot) as m:
        yield m


async def test_a_group_of_one_is_that_exception(crowd: Mesh, log: Any):
    """By its type and message."""
    with pytest.raises(mesh.RemoteError) as caught:
        await crowd.call("crowd.together", ["value"])
    assert (caught.value.type_name, caught.value.message) == ("ValueError", "no such order")
    (line,) = log.lines("handler.failed")
    assert line["at"].startswith(f"{__file__}:")


async def test_a_group_names_its_leaves(crowd: Mesh):
    """Types and messages, a few of them."""
    with pytest.raises(mesh.RemoteError) as caught:
        await crowd.call("crowd.together", ["value", "key"] * 5)
    assert caught.value.type_name == "ExceptionGroup"
    assert "ValueError: no such order; KeyError: 'name'" in caught.value.message
    assert "5 more" in caught.value.message


async def test_a_group_of_one_code_keeps_it(crowd: Mesh):
    """It is the same answer, however often it was found."""
    for kinds in (["missing"], ["missing", "missing"]):
        with pytest.raises(mesh.RemoteError) as caught:
            await crowd.call("crowd.together", kinds)
        assert (caught.value.code, caught.value.status) == ("item_missing", 404)


async def test_a_group_of_mistakes_is_the_handlers_failure(crowd: Mesh, log: Any):
    """As each of them alone."""
    for kinds in (["nested"], ["nested", "nested"], ["unsendable"], ["unsendable", "unsendable"]):
        with pytest.raises(mesh.RemoteError) as caught:
            await crowd.call("crowd.together", kinds)
        assert (caught.value.status, caught.value.details) == (500, {"nested": "bad_arguments"})
    assert len(log.lines("handler.failed")) == 4


async def test_a_dead_letter_names_the_leaves_of_a_group(crowd: Mesh):
    """And what one of them makes useless is not tried again."""
    await crowd.defer(Crowd.later, ["value", "key"])
    await crowd.defer(Crowd.later, ["value"])
    await crowd.idle()
    first, second = sorted((dead.error for dead in await crowd.dead()), key=len, reverse=True)
    assert "ValueError: no such order; KeyError: 'name'" in first
    assert second == "ValueError: no such order"


async def test_the_cause_of_an_exception_is_named(crowd: Mesh):
    """Of `raise … from …`."""
    with pytest.raises(mesh.RemoteError) as caught:
        await crowd.call("crowd.caused")
    assert caught.value.message == "no bank (from ConnectionError: refused)"
