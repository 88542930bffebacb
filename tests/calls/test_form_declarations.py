"""Forms in the signature of a method: what is refused when it is declared, and calling such a method in a unit test."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest

import mesh
from mesh import http
from mesh.calls.declared import BadDeclaration
from mesh.calls.forms.errors import BadForm, FormTooLarge
from mesh.errors import SetupError
from mesh.service.describe import handlers, record
from mesh.testing import multipart, unit


def declared(function: Any, mark: Any = None) -> Any:
    """The record of a service with this method."""
    function = (http.post("/x") if mark is None else mark)(function)
    return record(type("Shop", (mesh.Service,), {"method": function}), id="i", epoch=1)


async def two_forms(self: Any, a: http.Multipart, b: http.Multipart) -> int: ...


async def form_and_field(self: Any, a: http.Multipart, b: Annotated[str, http.Form]) -> int: ...


async def form_and_file(self: Any, a: http.Multipart, b: http.File) -> int: ...


async def form_and_stream(self: Any, a: http.Multipart, b: AsyncIterator[bytes]) -> int: ...


async def field_and_body(self: Any, a: Annotated[str, http.Form], b: Annotated[bytes, http.Body]) -> int: ...


async def field_and_member(self: Any, a: http.File, b: Annotated[str, http.Field]) -> int: ...


async def two_markers(self: Any, a: Annotated[str, http.Form, http.Query]) -> int: ...


async def file_in_a_header(self: Any, a: Annotated[http.File, http.Header("X")]) -> int: ...


async def one_name(self: Any, a: Annotated[str, http.Form("x")], x: http.File) -> int: ...


async def form_with_default(self: Any, a: http.Multipart = None) -> int: ...  # type: ignore[assignment]


async def file_or_text(self: Any, a: http.File | str) -> int: ...


async def no_text(self: Any, a: Annotated[object, http.Form("\n")]) -> int: ...


async def unreadable(self: Any, a: Annotated[type[int], http.Form]) -> int: ...


def plain(self: Any, a: http.File) -> int: ...


@pytest.mark.parametrize(
    "function",
    [
        two_forms,
        form_and_field,
        form_and_file,
        form_and_stream,
        field_and_body,
        field_and_member,
        two_markers,
        file_in_a_header,
        one_name,
        form_with_default,
        file_or_text,
        no_text,
        unreadable,
        plain,
    ],
)
def test_a_declaration_that_cannot_work(function: Any):
    with pytest.raises(BadDeclaration):
        declared(function)


async def fine(self: Any, a: Annotated[int, http.Form] = 3, *, b: list[http.File] | None = None, c: str = "") -> int:
    return a + len(b or [])


@pytest.mark.parametrize(
    "mark",
    [
        http.get("/x"),
        http.delete("/x"),
        http.post("/x", forms=True),
        mesh.rpc,
        mesh.task,
        http.post("/x/{a}"),
    ],
)
def test_a_place_without_forms(mark: Any):
    async def method(self: Any, a: Annotated[int, http.Form] = 3) -> int: ...

    with pytest.raises(BadDeclaration):
        declared(method, mark)


def test_an_event_has_no_form():
    class Shop(mesh.Service):
        @mesh.on("topic")
        async def method(self, a: Annotated[int, http.Form] = 3) -> None: ...

    with pytest.raises(BadDeclaration):
        handlers(Shop())


def test_a_websocket_has_no_form():
    async def method(self: Any, a: http.File) -> AsyncIterator[str]:
        yield ""

    with pytest.raises(BadDeclaration):
        declared(method, http.websocket("/x"))


def test_the_record_has_the_form():
    made = declared(fine)
    assert made.routes[0].sources == {"c": "query"}
    assert made.methods["method"].inbound == {
        "type": "object",
        "contentMediaType": "multipart/form-data",
        "properties": {
            "a": {"type": "integer", "default": 3},
            "b": {"type": "array", "items": {"type": "string", "format": "binary"}},
        },
        "required": [],
        "additionalProperties": False,
    }


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("python_multipart"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SetupError, match=r"zeromesh\[forms\]"):
        declared(fine)


# --- unit tests of a service -------------------------------------------------------------------------------


class Photos(mesh.Service):
    @http.post("/photos")
    async def save(self, title: Annotated[str, http.Form], photo: http.File) -> list[Any]:
        return [title, photo.filename, photo.size, await photo.read(), [chunk async for chunk in photo.chunks(2)]]

    @http.post("/all")
    async def all(self, form: http.Multipart) -> list[Any]:
        return [[part.name, part.filename, part.content_type, await part.read()] async for part in form]

    @http.post("/small")
    async def small(self, form: http.Multipart) -> int:
        async for part in form:
            try:
                await part.read(3)
            except FormTooLarge:
                return part.size
        return 0

    @http.post("/late")
    async def late(self, form: http.Multipart) -> bytes:
        first, _ = [part async for part in form]
        return await first.read()


async def test_a_method_with_fields_is_called_directly():
    photo = http.File(b"12345", filename="a.png", content_type="image/png")
    assert await unit(Photos).save("t", photo) == ["t", "a.png", 5, b"12345", [b"12", b"34", b"5"]]


async def test_a_method_with_a_whole_form_is_called_directly():
    form = multipart([("title", "ä"), ('a"b', http.File(b"x" * 100_000, filename='"c".png'))])
    assert await unit(Photos).all(form) == [
        ["title", None, "", "ä".encode()],
        ["a%22b", "%22c%22.png", "application/octet-stream", b"x" * 100_000],
    ]


async def test_a_handler_limits_what_it_reads():
    assert await unit(Photos).small(multipart([("a", "123"), ("b", "12345")])) == 5


async def test_a_part_is_read_before_the_next_one():
    with pytest.raises(RuntimeError):
        await unit(Photos).late(multipart([("a", "1"), ("b", "2")]))


async def test_a_broken_form_stays_broken():
    async def chunks() -> AsyncIterator[bytes]:
        yield b"no form"

    form = http.Multipart(chunks(), "multipart/form-data; boundary=x")
    for _ in range(2):
        with pytest.raises(BadForm):
            await anext(form)
