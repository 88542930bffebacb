"""A service with a route of each kind, for requests by chance from its own OpenAPI document."""

from __future__ import annotations

from collections.abc import AsyncIterator
from enum import Enum
from typing import Annotated, Literal

import msgspec

import mesh
from mesh import http, rpc, task


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Address(msgspec.Struct):
    street: str
    city: str = "Bern"


class Item(msgspec.Struct):
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=50)]
    price: Annotated[float, msgspec.Meta(ge=0)]
    tags: list[str] = []
    to: Address | None = None
    colour: Colour = Colour.RED


class Shop(mesh.Service):
    """Sells things."""

    name = "shop"
    expose = True

    @http.get("/items/{id}")
    @rpc(idempotent=True)
    async def item(
        self, id: int, side: Literal["left", "right"] = "left", ratio: float | None = None
    ) -> dict[str, str]:
        return {"id": str(id), "side": side, "ratio": str(ratio)}

    @http.post("/items")
    @rpc
    async def add(self, item: Item) -> Item:
        return item

    @http.put("/items/{id}/name")
    @rpc
    async def rename(self, id: int, name: str, tags: list[str] = []) -> str:  # noqa: B006
        return f"{id} {name} {len(tags)}"

    @http.post("/items/{id}/login")
    async def login(
        self, id: int, user: Annotated[str, http.Form], age: Annotated[int, http.Form] = 3, stay: bool = False
    ) -> list[str | int]:
        return [id, user, age]

    @http.post("/items/{id}/photo")
    async def photo(
        self,
        id: int,
        title: Annotated[str, http.Form],
        photo: http.File,
        ratio: Annotated[float | None, http.Form] = None,
    ) -> list[str | int]:
        # No list: in a form one value is a list of one, which the checks take for a value of another type.
        return [id, title, photo.size]

    @http.delete("/items/{id}")
    @rpc
    async def remove(self, id: int) -> None:
        return None

    @http.get("/search")
    @rpc(idempotent=True)
    async def search(self, q: str = "", limit: Annotated[int, msgspec.Meta(ge=0, le=100)] = 10) -> list[str]:
        return [q] * min(limit, 3)

    @http.post("/size")
    @rpc
    async def size(self, data: bytes) -> int:
        return len(data)

    @http.get("/count/{most}")
    @rpc
    async def count(self, most: Annotated[int, msgspec.Meta(ge=0, le=10)]) -> AsyncIterator[int]:
        for number in range(most):
            yield number

    @http.post("/orders", status=201, responses={200: "It was there already."})
    @rpc
    async def order(
        self,
        item: Item,
        depth: Annotated[int, http.Header("X-Depth"), msgspec.Meta(ge=0)],
        side: Annotated[Literal["left", "right"], http.Header] = "left",
        visits: Annotated[int | None, http.Cookie] = None,
    ) -> http.Response[Item]:
        status = 200 if depth > 100 else None
        return http.Response(item, status=status, headers={"Location": f"/orders/{depth}"})

    @task
    async def pack(self, item: Item, count: int = 1) -> int:
        return count
