"""A service as the server, the registry and the events see it."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from typing import Any, TypedDict

import msgspec
import pytest

from mesh import http
from mesh.calls.declared import BadDeclaration
from mesh.calls.signature import encode_arguments
from mesh.discovery.record import Instance, Subscription
from mesh.events.event import Event
from mesh.protocol.messages import JSON, MSGPACK
from mesh.service.decorators import every, on, rpc
from mesh.service.describe import handlers, methods, record, timers
from mesh.service.service import Service


class Order(msgspec.Struct):
    id: int
    note: str = ""


@dataclasses.dataclass
class Point:
    x: int


class Address(TypedDict):
    street: str


class Shop(Service):
    """Sells things.

    All day.
    """

    version = "1.2"
    meta = {"team": "a"}

    def __init__(self) -> None:
        self.seen: list[Any] = []

    @http.post("/orders")
    @rpc(idempotent=True, timeout=3, concurrency=2, queue=4)
    async def buy(self, order: Order, express: bool = False) -> Order:
        """Take an order."""
        return order

    @rpc
    async def watch(self, since: int = 0) -> AsyncIterator[Order]:
        yield Order(since)

    @rpc(offload="process")
    def resize(self, image: bytes, width: int = 1) -> bytes: ...

    @rpc
    async def search(self, text: str, *, limit: int = 10) -> list[str]:
        return [text] * limit

    @on("order.created")
    @on("order.*.paid", to="every")
    async def created(self, order: Order) -> None:
        self.seen.append(order)

    @on("a")
    async def both(self, spare: int = 5, /, *, event: Event, data: Any) -> None:
        self.seen.append((spare, event.topic, data))

    @on("b")
    async def nothing(self) -> None:
        self.seen.append("nothing")

    @on("c", to="every")
    async def whole(self, event: Event) -> None:
        self.seen.append(event)

    @every("10s")
    @every(0.5)
    async def tick(self) -> None:
        self.seen.append("tick")


def test_methods_are_made_for_the_server():
    """Everything that was declared, bound to the instance."""
    shop = Shop()
    found = {method.name: method for method in methods(shop)}
    assert list(found) == ["buy", "watch", "resize", "search"]
    buy = found["buy"]
    assert (buy.target, buy.service, buy.idempotent, buy.timeout_s) == ("shop.buy", "shop", True, 3.0)
    assert (buy.concurrency, buy.queue, buy.offload, buy.reference) == (2, 4, "", ())
    assert buy.run == shop.buy
    assert (buy.stream, buy.asynchronous) == (False, True)
    assert (found["watch"].stream, found["watch"].asynchronous) == (True, False)
    resize = found["resize"]
    assert (resize.offload, resize.asynchronous) == ("process", False)
    assert resize.reference == (__name__, "Shop", "resize")


async def test_a_method_runs_on_what_was_decoded():
    """From a body to an answer, as the server does it; keyword-only parameters too."""
    found = {method.name: method for method in methods(Shop())}
    buy = found["buy"]
    values = buy.decode_args(b'{"order": {"id": 7}}', JSON)
    assert buy.encode_result(await buy.run(*values), JSON) == (b'{"id":7,"note":""}', JSON)
    search = found["search"]
    assert await search.run(*search.decode_args(encode_arguments(("a",), {"limit": 2}), MSGPACK)) == ["a", "a"]
    watch = found["watch"]
    assert [item async for item in watch.run(*watch.decode_args(b"", MSGPACK))] == [Order(0)]


def test_the_record_tells_the_registry_everything():
    """And it survives the wire."""
    instance = record(
        Shop,
        id="shop-1",
        epoch=5,
        worker="w",
        host="h",
        pid=3,
        endpoint="mem://w",
        events="mem://e",
        meta={"zone": "b"},
    )
    assert (instance.service, instance.version, instance.meta) == ("shop", "1.2", {"team": "a", "zone": "b"})
    assert instance.doc == "Sells things.\n\nAll day."
    buy = instance.methods["buy"]
    assert (buy.doc, buy.idempotent, buy.timeout_s, buy.stream) == ("Take an order.", True, 3.0, False)
    assert list(buy.params["properties"]) == ["order", "express"]
    assert "Order" in buy.params["$defs"]
    assert instance.methods["watch"].stream
    assert instance.methods["resize"].binary
    (route,) = instance.routes
    assert (route.verb, route.path, route.method) == ("POST", "/orders", "buy")
    assert route.sources == {"order": "body", "express": "query"}
    assert instance.subscriptions == [
        Subscription("order.created", "created", "one"),
        Subscription("order.*.paid", "created", "every"),
        Subscription("a", "both", "one"),
        Subscription("b", "nothing", "one"),
        Subscription("c", "whole", "every"),
    ]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(instance), type=Instance) == instance


class Routes(Service):
    @http.get("/a/{x}")
    async def a(self, x: int, y: str = "", z: list[int] = []) -> None: ...  # noqa: B006

    @http.delete("/b")
    async def b(self, order: Order) -> None: ...

    @http.post("/c/{x}")
    async def c(self, x: int, name: str, age: int) -> None: ...

    @http.put("/d/{x}")
    async def d(self, x: int, point: Point, loud: bool = False) -> None: ...

    @http.patch("/e")
    async def e(self, address: Address | None = None) -> None: ...

    @http.post("/f")
    async def f(self, image: bytes, width: int) -> bytes: ...

    @http.post("/g")
    async def g(self, one: Order, two: dict[str, int], three: int) -> None: ...

    @http.post("/h")
    async def h(self, anything: Any) -> None: ...

    @http.get("/i/{rest...}")
    async def i(self, rest: str) -> None: ...


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("a", {"x": "path", "y": "query", "z": "query"}),
        ("b", {"order": "query"}),
        ("c", {"x": "path", "name": "field", "age": "field"}),
        ("d", {"x": "path", "point": "body", "loud": "query"}),
        ("e", {"address": "body"}),
        ("f", {"image": "body", "width": "query"}),
        ("g", {"one": "field", "two": "field", "three": "field"}),
        ("h", {"anything": "field"}),
        ("i", {"rest": "path"}),
    ],
)
def test_a_route_knows_where_each_parameter_comes_from(method, expected):
    """Path, query, a member of the JSON object, or the whole body."""
    (route,) = [r for r in record(Routes, id="r-1", epoch=1).routes if r.method == method]
    assert route.sources == expected
    assert list(route.sources) == list(expected)


async def test_a_handler_gets_the_data_the_event_both_or_nothing():
    """By its annotations; data arrives in the type that the handler names."""
    shop = Shop()
    found = {handler.pattern: handler for handler in handlers(shop)}
    assert list(found) == ["order.created", "order.*.paid", "a", "b", "c"]
    assert [handler.every for handler in found.values()] == [False, True, False, False, True]
    assert found["a"].label == "shop.both"
    data = found["order.created"].decode(b'{"id": 1}', JSON)
    assert data == Order(1)
    for pattern in ("order.created", "a", "b", "c"):
        await found[pattern].run(Event(pattern, data))
    assert shop.seen == [data, (5, "a", data), "nothing", Event("c", data)]


async def test_timers_are_bound_to_the_instance():
    """Each with its period."""
    shop = Shop()
    found = timers(shop)
    assert [(timer.label, timer.period_s) for timer in found] == [("shop.tick", 10.0), ("shop.tick", 0.5)]
    await found[0].run()
    assert shop.seen == ["tick"]


def test_types_that_cannot_travel_are_named():
    """When the service is described, which is before it takes a call."""

    class Opaque: ...

    class Bad(Service):
        @rpc
        async def take(self, thing: Any) -> None: ...

        take.__annotations__["thing"] = Opaque

    class BadPath(Service):
        @http.get("/{ids}")
        async def take(self, ids: list[int]) -> None: ...

    class BadHandler(Service):
        @on("a")
        async def take(self, one: int, two: int) -> None: ...

    with pytest.raises(BadDeclaration, match=r'bad\.take: argument "thing"'):
        record(Bad, id="x", epoch=1)
    with pytest.raises(BadDeclaration, match=r'bad_path\.take: "ids"'):
        record(BadPath, id="x", epoch=1)
    with pytest.raises(BadDeclaration, match=r"bad_handler\.take: "):
        handlers(BadHandler())


class Forward(Service):
    @rpc
    async def make(self) -> Later: ...


class Later(msgspec.Struct):
    x: int


def test_a_class_may_name_types_that_stand_below_it():
    """Types are resolved when the service is described, not when its class is created."""
    assert "Later" in str(record(Forward, id="x", epoch=1).methods["make"].returns)
