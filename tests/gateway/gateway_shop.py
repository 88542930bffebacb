"""A service with one of everything, for tests that go through HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from gateway_fakes import FakeNode

from mesh.discovery.record import Instance, RouteRecord
from mesh.errors import Overloaded, ServiceError


class Address(msgspec.Struct):
    street: str
    city: str = "Bern"


class Item(msgspec.Struct):
    """What is sold."""

    name: str
    price: Annotated[float, msgspec.Meta(ge=0, description="in francs")]
    tags: list[str] = []
    to: Address | None = None


class OutOfStock(ServiceError):
    code = "out_of_stock"
    status = 409


async def hello(name: str) -> str:
    """Greet somebody.

    By name.
    """
    return f"Hello, {name}!"


async def search(q: str = "", limit: int = 10) -> dict[str, Any]:
    return {"q": q, "limit": limit}


async def create(item: Item) -> Item:
    return item


async def rename(id: int, name: str) -> dict[str, Any]:
    return {"id": id, "name": name}


async def remove(id: int) -> None:
    return None


async def shrink(data: bytes, width: int = 1) -> bytes:
    return data[:width]


async def measure(data: bytes) -> int:
    return len(data)


async def page() -> str:
    return "<h1>grüezi</h1>"


async def count(n: int, gap: float = 0.0) -> AsyncIterator[int]:
    """Count up."""
    for i in range(n):
        if gap:
            await asyncio.sleep(gap)
        yield i


async def breaks(after: int) -> AsyncIterator[int]:
    for i in range(after):
        yield i
    raise OutOfStock("nothing is left")


async def blobs(n: int) -> AsyncIterator[bytes]:
    for i in range(n):
        yield bytes([i]) * 3


async def fails() -> None:
    raise ZeroDivisionError("by zero")


async def sells_out() -> None:
    raise OutOfStock("nothing is left", details={"item": "bread"})


async def is_full() -> None:
    raise Overloaded("too much", details={"retry_after_s": 2.2})


async def sleeps(seconds: float = 60.0) -> str:
    await asyncio.sleep(seconds)
    return "awake"


ROUTES = [
    RouteRecord("GET", "/hello/{name}", "hello", {"name": "path"}),
    RouteRecord("GET", "/search", "search", {"q": "query", "limit": "query"}),
    RouteRecord("POST", "/items", "create", {"item": "body"}, status=201),
    RouteRecord("PATCH", "/items/{id}", "rename", {"id": "path", "name": "field"}),
    RouteRecord("DELETE", "/items/{id}", "remove", {"id": "path"}, status=204),
    RouteRecord("POST", "/shrink", "shrink", {"data": "body", "width": "query"}, produces="image/png"),
    RouteRecord("POST", "/measure", "measure", {"data": "body"}),
    RouteRecord("GET", "/page", "page", {}, produces="text/html"),
    RouteRecord("GET", "/count/{n}", "count", {"n": "path", "gap": "query"}),
    RouteRecord("GET", "/breaks/{after}", "breaks", {"after": "path"}),
    RouteRecord("GET", "/blobs/{n}", "blobs", {"n": "path"}, produces="video/raw"),
    RouteRecord("GET", "/sleeps", "sleeps", {"seconds": "query"}),
]
METHODS = {
    function.__name__: function
    for function in (
        hello, search, create, rename, remove, shrink, measure, page, count, breaks, blobs, fails, sells_out,
        is_full, sleeps,
    )
}  # fmt: skip


def open_shop(node: FakeNode) -> Instance:
    """Add the service "shop"."""
    return node.serve("shop", ROUTES, **METHODS)
