"""Decorators in an order, or over things, that would lose a method without a word."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

import mesh
from mesh.calls.declared import BadDeclaration
from mesh.service.members import members

MARKS: dict[str, Callable[[Any], Any]] = {
    "rpc": mesh.rpc,
    "rpc()": mesh.rpc(idempotent=True),
    "http": mesh.http.get("/x"),
    "post": mesh.http.post("/x"),
    "on": mesh.on("a.b"),
    "durable": mesh.on("a.b", durable=True),
    "every": mesh.every("1s"),
    "once": mesh.every("1m", once=True),
    "task": mesh.task,
    "task()": mesh.task(retries=1),
    "cron": mesh.cron("0 3 * * *"),
}


def forgetful(function: Any) -> Any:
    """A decorator of the user's own, without functools.wraps."""

    async def wrapper(self: Any) -> Any:
        return await function(self)

    return wrapper


def careful(function: Any) -> Any:
    @functools.wraps(function)
    async def wrapper(self: Any) -> Any:
        return await function(self)

    return wrapper


class Callable_:
    def __init__(self, function: Any) -> None:
        self.function = function


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "staticmethod": staticmethod,
    "classmethod": classmethod,
    "property": property,
    "cached_property": functools.cached_property,
    "partial": functools.partial,
    "partialmethod": functools.partialmethod,
    "object": Callable_,
    "forgetful": forgetful,
    "nothing": lambda function: None,
}


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_mark_under_what_hides_it_is_refused(mark: str, wrapper: str):
    """With the place of the method."""
    with pytest.raises(BadDeclaration) as caught:

        class Shop(mesh.Service):
            @WRAPPERS[wrapper]
            @MARKS[mark]
            async def work(self) -> None: ...

    assert "Shop.work" in caught.value.message
    assert f"{__file__}:" in caught.value.message


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("wrapper", [name for name in WRAPPERS if name not in ("forgetful", "nothing")])
def test_a_mark_over_what_is_no_function_is_refused(mark: str, wrapper: str):
    """At once, where it stands."""

    async def work(self: Any) -> None: ...

    with pytest.raises(BadDeclaration) as caught:
        MARKS[mark](WRAPPERS[wrapper](work))
    if wrapper not in ("object", "cached_property", "partialmethod"):
        assert f"{__file__}:" in caught.value.message


def test_a_second_method_of_one_name_is_refused():
    """The first would be gone."""
    with pytest.raises(BadDeclaration) as caught:

        class Shop(mesh.Service):
            @mesh.on("a")
            async def hear(self) -> None: ...

            @mesh.on("b")
            async def hear(self) -> None: ...  # noqa: F811

    assert "Shop.hear" in caught.value.message


def test_a_wrapper_that_carries_its_marks_works():
    """functools.wraps, over and under the mark; and in a class that is mixed in."""

    class Mixed:
        @careful
        @mesh.rpc
        async def mixed(self) -> None: ...

    class Shop(Mixed, mesh.Service):
        @careful
        @mesh.rpc
        async def over(self) -> None: ...

        @mesh.rpc
        @careful
        async def under(self) -> None: ...

        @careful
        @careful
        @mesh.task
        async def twice(self) -> None: ...

    assert sorted(member.name for member in members(Shop)) == ["mixed", "over", "twice", "under"]


def test_a_class_that_was_refused_can_be_defined_again():
    """What it left behind does not count against the next."""

    def define(name: str) -> type:
        class Shop(mesh.Service):
            needs = (name,)

            @mesh.rpc
            async def work(self) -> None: ...

        return Shop

    for _ in range(2):
        with pytest.raises(BadDeclaration):
            define("Not a name")

    def half(error: bool) -> type:
        class Shop(mesh.Service):
            if error:

                @mesh.rpc
                async def before(self) -> None: ...

                raise ZeroDivisionError

            @mesh.rpc
            async def after(self) -> None: ...

        return Shop

    with pytest.raises(ZeroDivisionError):
        half(True)
    assert [member.name for member in members(half(False))] == ["after"]
    assert define("fine").__name__ == "Shop"


def test_every_refusal_names_the_place():
    """Of the method that it is about."""
    with pytest.raises(BadDeclaration) as caught:

        class Shop(mesh.Service):
            @mesh.rpc
            async def state(self) -> None: ...  # type: ignore[override]

    assert f"({__file__}:" in caught.value.message
