"""Answers that are not what the annotation promises."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from calls_services import Point

import mesh
from mesh.calls.results import SMALL, BadResult
from mesh.calls.signature import Signature
from mesh.protocol.messages import JSON, MSGPACK, RAW
from mesh.testing import Mesh

#: A call that is never answered fails its test soon.
pytestmark = pytest.mark.timeout(30)


@dataclass
class Size:
    width: int
    height: int


def signature(hint: Any) -> Signature:
    async def method(self: Any) -> Any: ...

    method.__annotations__["return"] = hint
    return Signature(method, "shop.method")


FITS = [
    (int, 3),
    (float, 3),
    (float, 2.5),
    (str, "x"),
    (None, None),
    (bool, True),
    (int | None, None),
    (str | int, 3),
    (list[int], [1, 2]),
    (list[int], (1, 2)),
    (list[int], {1}),
    (dict[str, int], {"a": 1}),
    (dict[str, Any], {"a": object}),
    (Point, Point(1)),
    (Point, {"x": 1}),
    (list[Point], [Point(1), {"x": 2}]),
    (Size, Size(1, 2)),
    (datetime, datetime.now(UTC)),
    (bytes, b"x"),
    (bytes | None, b"x"),
    (bytes, bytearray(b"x")),
    (Any, "whatever"),
]


@pytest.mark.parametrize(("hint", "value"), [each for each in FITS if each[1] != {"a": object}])
@pytest.mark.parametrize("encoding", [MSGPACK, JSON, RAW])
def test_what_a_typed_caller_can_read_is_sent(hint: Any, value: Any, encoding: int):
    """The check is that of the caller who decodes it into the annotation."""
    assert signature(hint).encode_checked(value, encoding) == signature(hint).encode_result(value, encoding)


DOES_NOT_FIT = [
    (int, "3", "int", "str", "$"),
    (int, 2.5, "int", "float", "$"),
    (int, True, "int", "bool", "$"),
    (int, None, "int", "NoneType", "$"),
    (str, 3, "str", "int", "$"),
    (str, b"x", "str", "bytes", "$"),
    (None, 3, "None", "int", "$"),
    (float, "x", "float", "str", "$"),
    (list[int], [1, "2"], "list[int]", "list", "$[1]"),
    (list[int], 3, "list[int]", "int", "$"),
    (dict[str, int], {"a": "b"}, "dict[str, int]", "dict", "$[...]"),
    (Point, {"x": "1"}, "Point", "dict", "$.x"),
    (Point, Point("1"), "Point", "Point", "$.x"),
    (Point, Size(1, 2), "Point", "Size", "$"),
    (list[Point], [Point(1)] * SMALL + [Size(1, 2)], "list[Point]", "list", f"$[{SMALL}]"),
]


@pytest.mark.parametrize(("hint", "value", "expected", "got", "path"), DOES_NOT_FIT)
@pytest.mark.parametrize("encoding", [MSGPACK, JSON])
def test_what_it_cannot_read_is_refused(hint: Any, value: Any, expected: str, got: str, path: str, encoding: int):
    """With the type that was promised, the one that came, and where."""
    with pytest.raises(BadResult) as caught:
        signature(hint).encode_checked(value, encoding)
    found = caught.value
    assert (found.details["expected"].rpartition(".")[2].rpartition("[")[2], found.details["got"]) == (
        expected.rpartition("[")[2],
        got,
    )
    if not (hint is Point and isinstance(value, Size)):
        assert found.details["path"] == path
    assert "shop.method" in found.message


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_has_no_word_for_some_numbers(value: float):
    """null would be a lie; MessagePack has them."""
    for hint, answer in [
        (float, value),
        (float | None, value),
        (Any, {"a": [1, None, value]}),
        (list[float], [0.0, value]),
        (dict[str, Any], {"x": Size(value, 1)}),  # type: ignore[arg-type]
        (Any, msgspec.structs.replace(Point(1), y=value)),
    ]:
        with pytest.raises(BadResult) as caught:
            signature(hint).encode_checked(answer, JSON)
        assert caught.value.details["got"] == repr(value)
        body, used = signature(hint).encode_checked(answer, MSGPACK)
        assert used == MSGPACK
        assert body
    assert signature(float | None).encode_checked(None, JSON) == (b"null", JSON)


class Shop(mesh.Service):
    """Promises one thing, and returns another."""

    @mesh.rpc
    async def price(self) -> int:
        return "9.50"  # type: ignore[return-value]

    @mesh.rpc
    async def forgotten(self) -> int:
        return self.price()  # type: ignore[return-value]

    @mesh.rpc
    async def forgotten_call(self) -> Any:
        return self.call("shop.fine")

    @mesh.rpc
    async def forgotten_in_a_list(self) -> Any:
        return [asyncio.sleep(0)]

    @mesh.rpc
    async def fine(self) -> int:
        return 3

    @mesh.rpc
    async def prices(self) -> AsyncIterator[int]:
        yield 1
        yield "2"  # type: ignore[misc]

    @mesh.rpc(check_result=False)
    async def unchecked(self) -> int:
        return "9.50"  # type: ignore[return-value]

    @mesh.rpc(offload="thread")
    def in_thread(self) -> int:
        return "9.50"  # type: ignore[return-value]

    @mesh.task
    async def count(self) -> int:
        return "many"  # type: ignore[return-value]

    @mesh.task(check_result=False)
    async def count_unchecked(self) -> int:
        return "many"  # type: ignore[return-value]


@pytest.mark.parametrize("method", ["price", "in_thread"])
async def test_a_call_ends_with_bad_result(log: Any, method: str):
    """500, and one line with the place of the handler."""
    async with Mesh(Shop) as m:
        with pytest.raises(mesh.RemoteError) as caught:
            await m.call(f"shop.{method}")
    error = caught.value
    assert (error.code, error.status) == ("bad_result", 500)
    assert error.details == {"expected": "int", "got": "str", "path": "$"}
    (line,) = log.lines("handler.failed")
    assert line["target"] == f"shop.{method}"
    assert line["at"].startswith(f"{__file__}:")


@pytest.mark.parametrize("method", ["forgotten", "forgotten_call", "forgotten_in_a_list"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_forgotten_await_is_named(log: Any, method: str):
    """A coroutine or a call is not its result."""
    async with Mesh(Shop) as m:
        with pytest.raises(mesh.RemoteError) as caught:
            await m.call(f"shop.{method}")
    assert caught.value.code == "bad_result"
    assert "await" in caught.value.message
    (line,) = log.lines("handler.failed")
    assert line["at"].startswith(f"{__file__}:")


async def test_streams_and_tasks_are_checked_too():
    """Each item; and a task is not tried again for it."""
    async with Mesh(Shop) as m:
        items = aiter(m.stream("shop.prices"))
        assert await anext(items) == 1
        with pytest.raises(mesh.RemoteError) as caught:
            await anext(items)
        assert (caught.value.code, caught.value.details["got"]) == ("bad_result", "str")
        await m.defer(Shop.count)
        await m.idle()
        (dead,) = await m.dead()
        assert "BadResult" in dead.error
        assert dead.attempt == 1


async def test_the_check_can_be_turned_off():
    """For one method, and for all."""
    async with Mesh(Shop) as m:
        assert await m.call("shop.unchecked") == "9.50"
        job = await m.defer("shop.count_unchecked")
        await job.wait(5)
        assert await job.status() == "done"
    async with Mesh(Shop, settings={"calls.check_results": False}) as m:
        assert await m.call("shop.price") == "9.50"
        assert [item async for item in m.stream("shop.prices")] == [1, "2"]


async def test_values_of_state_are_of_the_type_that_is_read():
    """Refused where they are written, not where they are read."""
    async with Mesh(Shop) as m:
        points = m.state("points", Point)
        await points.set("a", Point(1))
        with pytest.raises(mesh.BadArguments):
            await points.set("b", "no point")  # type: ignore[arg-type]
        with pytest.raises(mesh.BadArguments):
            await points.set("b", Point("1"))  # type: ignore[arg-type]
        assert (await points.get("b")).exists is False
