"""Calls that read like methods: by attribute and by class."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

import mesh
from mesh.testing import ManualClock, Mesh, no_leaks


class Order(msgspec.Struct):
    """What is ordered."""

    id: int
    items: list[str] = []


class Orders(mesh.Service):
    """Takes orders."""

    @mesh.rpc
    async def place(self, items: list[str], *, note: str = "") -> Order:
        return Order(len(items), [*items, note] if note else items)

    @mesh.rpc
    async def feed(self, n: int) -> AsyncIterator[Order]:
        for i in range(n):
            yield Order(i)

    @mesh.rpc
    async def options(self, timeout: int, key: str) -> list[Any]:
        call = mesh.current()
        assert call is not None
        left = call.deadline_at - self.node.clock.now()  # type: ignore[attr-defined]
        return [timeout, key, round(left), dict(call.meta)]

    async def helper(self) -> None:
        """Not for others."""


#: A call that is never answered fails its test soon, not after the run's own patience.
pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    async with no_leaks():
        yield


@pytest.fixture
async def m() -> AsyncIterator[Mesh]:
    async with Mesh(Orders, clock=ManualClock()) as m:
        yield m


async def test_by_attribute_answers_are_plain_values(m: Mesh):
    """Nobody has said what type they have."""
    assert await m.rpc.orders.place(["a"], note="b") == {"id": 1, "items": ["a", "b"]}
    assert [item async for item in m.rpc.orders.feed(2)] == [{"id": 0, "items": []}, {"id": 1, "items": []}]


async def test_by_class_answers_have_the_annotated_types(m: Mesh):
    """Of a call, and of each item of a stream."""
    assert await m.rpc[Orders].place(["a"]) == Order(1, ["a"])
    assert [item async for item in m.rpc[Orders].feed(2)] == [Order(0), Order(1)]


async def test_by_class_only_what_may_be_called_is_there(m: Mesh):
    """And the name of what is not stands in the error."""
    with pytest.raises(mesh.UnknownMethod, match=r"Orders\.helper .*@rpc"):
        m.rpc[Orders].helper()
    with pytest.raises(mesh.UnknownMethod, match=r"Orders\.plcae .*@rpc"):
        m.rpc[Orders].plcae()  # type: ignore[attr-defined]


async def test_a_shell_can_complete_services_and_methods(m: Mesh):
    """dir() is what is there."""
    assert "orders" in dir(m.rpc)
    assert dir(m.rpc.orders) == ["feed", "options", "place"]
    assert dir(m.rpc[Orders]) == ["feed", "options", "place"]
    assert m.rpc[Orders].place.__name__ == "orders.place"
    assert m.rpc[Orders].place.__doc__ == "orders.place(items, note)"


async def test_options_stand_apart_from_arguments(m: Mesh):
    """A parameter may be named as an option of `call` is: `using` fixes options for many calls."""
    assert await m.rpc.orders.options(timeout=7, key="k") == [7, "k", 10, {}]
    proxy = m.node.using(timeout=3.0, meta={"a": "b"})
    assert await proxy.orders.options(timeout=7, key="k") == [7, "k", 3, {"a": "b"}]
    assert await proxy[Orders].options(8, "l") == [8, "l", 3, {"a": "b"}]


async def test_private_names_are_no_services(m: Mesh):
    """So that copying and pickling tools do not make calls."""
    with pytest.raises(AttributeError):
        m.rpc._secret  # noqa: B018
    with pytest.raises(AttributeError):
        m.rpc.orders.__wrapped__  # noqa: B018
    with pytest.raises(AttributeError):
        m.rpc[Orders].__wrapped__  # type: ignore[attr-defined]  # noqa: B018


async def test_an_unknown_service_fails_when_it_is_asked(m: Mesh):
    """A proxy is only a way to say it."""
    proxy = m.rpc.nowhere
    with pytest.raises(mesh.UnknownService, match="nowhere"):
        await proxy.hello()
