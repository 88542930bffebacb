"""Where in a request a route finds the parameters of its method: one rule, and markers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import msgspec
import pytest

import mesh
from mesh import http
from mesh.calls.declared import BadDeclaration
from mesh.service.describe import record


class Visit(msgspec.Struct):
    name: str


def sources_of(decorate: Callable[..., Any], method: Callable[..., Any]) -> dict[str, str]:
    service = type("Shop", (mesh.Service,), {"visit": decorate(method)})
    return dict(record(service, id="shop-1", epoch=1).routes[0].sources)


async def one_struct(self: Any, visit: Visit, loud: bool = False) -> None: ...
async def two_structs(self: Any, visit: Visit, tags: list[str], loud: bool = False) -> None: ...
async def scalars(self: Any, name: str, loud: bool = False) -> None: ...
async def data(self: Any, id: str, body: bytes, width: int = 1) -> None: ...
async def field(self: Any, visit: Annotated[Visit, http.Field], loud: bool = False) -> None: ...
async def query(self: Any, name: str, loud: Annotated[bool, http.Query] = False) -> None: ...
async def whole(self: Any, name: Annotated[str, http.Body], loud: bool = False) -> None: ...
async def chosen(self: Any, visit: Annotated[Visit, http.Body], tags: Annotated[list[str], http.Query]) -> None: ...
async def many(self: Any, tags: Annotated[list[str], http.Query]) -> None: ...


@pytest.mark.parametrize(
    ("decorate", "method", "expected"),
    [
        (http.post("/"), one_struct, {"visit": "body", "loud": "query"}),
        (http.put("/"), two_structs, {"visit": "field", "tags": "field", "loud": "field"}),
        (http.patch("/"), scalars, {"name": "field", "loud": "field"}),
        (http.get("/"), scalars, {"name": "query", "loud": "query"}),
        (http.post("/{id}"), data, {"id": "path", "body": "body", "width": "query"}),
        (http.post("/"), field, {"visit": "field", "loud": "field"}),
        (http.post("/"), query, {"name": "field", "loud": "query"}),
        (http.post("/"), whole, {"name": "body", "loud": "query"}),
        (http.post("/"), chosen, {"visit": "body", "tags": "query"}),
        (http.delete("/"), many, {"tags": "query"}),
    ],
)
def test_each_parameter_has_one_place(
    decorate: Callable[..., Any], method: Callable[..., Any], expected: dict[str, str]
):
    assert sources_of(decorate, method) == expected


async def two_bodies(self: Any, a: Annotated[str, http.Body], b: Annotated[str, http.Body]) -> None: ...
async def body_and_field(self: Any, a: Annotated[str, http.Body], b: Annotated[str, http.Field]) -> None: ...
async def two_markers(self: Any, a: Annotated[str, http.Body, http.Query]) -> None: ...
async def of_the_path(self: Any, id: Annotated[str, http.Query]) -> None: ...


@pytest.mark.parametrize(
    ("decorate", "method"),
    [
        (http.post("/"), two_bodies),
        (http.post("/"), body_and_field),
        (http.post("/"), two_markers),
        (http.post("/{id}"), of_the_path),
        (http.get("/"), whole),
        (http.delete("/"), field),
    ],
)
def test_markers_that_cannot_be_are_refused_by_name(decorate: Callable[..., Any], method: Callable[..., Any]):
    with pytest.raises(BadDeclaration) as caught:
        sources_of(decorate, method)
    assert "shop.visit" in caught.value.message
