"""services.greeting: the hello of the tutorial, by call, by stream and over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from services.greeting import Greeting

Start = Callable[..., Any]


async def test_hello_is_answered_by_name_by_attribute_typed_and_over_http(start: Start) -> None:
    """One method, reached in every way that the documents show."""
    running = await start(Greeting, 2)
    n = running.node
    assert await n.call("greeting.hello", "ujun", timeout=2.0) == "Hello, ujun!"
    assert await n.rpc.greeting.hello("ujun") == "Hello, ujun!"
    assert await n.rpc[Greeting].hello("ujun") == "Hello, ujun!"
    async with running.http.get("/hello/ujun") as told:
        assert (told.status, await told.json()) == (200, "Hello, ujun!")
    async with running.http.post("/rpc/greeting/hello", json={"name": "ujun"}) as told:
        assert (told.status, await told.json()) == (200, "Hello, ujun!")


async def test_every_replica_greets(start: Start) -> None:
    """A scatter hears from all of them."""
    running = await start(Greeting, 3)
    outcomes = await running.node.scatter("greeting.hello", "all")
    assert [outcome.value for outcome in outcomes] == ["Hello, all!"] * 3
    assert len({outcome.instance.id for outcome in outcomes}) == 3


async def test_count_streams_in_order_by_call_and_as_server_sent_events(start: Start) -> None:
    """The same stream as Python items and as events of an HTTP answer."""
    running = await start(Greeting, 1)
    assert [i async for i in running.node.rpc.greeting.count(100)] == list(range(100))
    async with running.http.get("/count/3") as told:
        assert told.headers["Content-Type"].startswith("text/event-stream")
        lines = (await told.text()).splitlines()
    assert [line for line in lines if line.startswith("data:")][:3] == ["data: 0", "data: 1", "data: 2"]


async def test_a_worker_that_dies_unheard_is_replaced_by_another_within_the_call(start: Start) -> None:
    """`hello` is idempotent: with one replica gone, every call is still answered."""
    running = await start(Greeting, 2)
    await running.mesh.faults.kill(Greeting)
    for _ in range(20):
        assert await running.node.rpc.greeting.hello("x") == "Hello, x!"


async def test_its_words_are_in_the_openapi_document(start: Start) -> None:
    """Docstrings of class and method are what a reader of /openapi.json sees."""
    running = await start(Greeting, 1)
    async with running.http.get("/openapi.json") as told:
        document = await told.json()
    told_of = document["paths"]["/hello/{name}"]["get"]
    assert "Greet somebody by name." in (told_of.get("summary", "") + told_of.get("description", ""))
    assert "/count/{n}" in document["paths"]
