"""Services and interceptors of test_interceptors. In a module of their own: a child process finds them by name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec

import mesh
from mesh import http, on, rpc, task

#: What the interceptors and handlers did, in order. Each test clears it.
LOG: list[str] = []


class Point(msgspec.Struct):
    """A value with a type."""

    x: int
    y: int = 0


class Noting(mesh.Interceptor):
    """Notes before and after, at each point."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def _around(self, point: str, call: Any, proceed: Any) -> Any:
        LOG.append(f"{self.name}.{point} {call.target}")
        try:
            return await proceed(call)
        finally:
            LOG.append(f"{self.name}.{point} done")

    async def outgoing(self, call: mesh.OutgoingCall, proceed: Any) -> Any:
        return await self._around("outgoing", call, proceed)

    async def incoming(self, call: mesh.IncomingCall, proceed: Any) -> Any:
        return await self._around("incoming", call, proceed)

    async def delivery(self, call: mesh.Delivery, proceed: Any) -> Any:
        return await self._around("delivery", call, proceed)

    async def started(self, node: Any) -> None:
        LOG.append(f"{self.name}.started")

    async def stopped(self) -> None:
        LOG.append(f"{self.name}.stopped")


class Deployed(Noting):
    """As mesh.toml names it: made without arguments."""

    def __init__(self) -> None:
        super().__init__("toml")


class Doubling(mesh.Interceptor):
    """Changes arguments and answers: numbers and points are doubled on the way in and on the way out."""

    async def incoming(self, call: mesh.IncomingCall, proceed: Any) -> Any:
        call.args = tuple(_doubled(value) for value in call.args)
        answer = await proceed(call)
        return self._items(answer) if call.stream else _doubled(answer)

    async def delivery(self, call: mesh.Delivery, proceed: Any) -> Any:
        if call.kind == "task":
            call.args = tuple(_doubled(value) for value in call.args)
        return _doubled(await proceed(call))

    async def _items(self, items: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for item in items:
            yield _doubled(item)


def _doubled(value: Any) -> Any:
    if isinstance(value, Point):
        return Point(value.x * 2, value.y * 2)
    return value * 2 if isinstance(value, int) else value


class Base(mesh.Service):
    """A class whose interceptors its subclasses have too."""

    interceptors = [Noting("base")]


class Shop(Base):
    """Every kind of method, with interceptors of the class and of methods."""

    interceptors = [Noting("class")]

    @rpc
    @mesh.intercept(Noting("method"))
    async def buy(self, what: str) -> str:
        LOG.append(f"buy {what}")
        return f"bought {what}"

    @rpc
    async def relay(self, what: str) -> str:
        return str(await self.call("stock.take", what))

    @rpc
    @mesh.intercept(Noting("method"))
    async def relay_inside(self, what: str) -> str:
        return str(await asyncio.create_task(self._take(what)))

    async def _take(self, what: str) -> Any:
        return await self.rpc.stock.take(what)

    @rpc
    async def lines(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    @task(retries=1, backoff=0.01)
    async def pack(self, what: str) -> str:
        attempt = mesh.current_task().attempt
        LOG.append(f"pack {what} {attempt}")
        if what == "glass" and attempt == 1:
            raise ValueError("broken")
        return f"packed {what}"

    @on("sold", durable=True)
    async def sold(self, event: mesh.Event) -> None:
        LOG.append(f"sold {event.data}")

    @on("seen")
    async def seen(self, event: mesh.Event) -> None:
        LOG.append(f"seen {event.data}")

    @on("shout", to="every")
    async def shout(self, event: mesh.Event) -> None:
        LOG.append(f"shout {event.data}")


class Stock(mesh.Service):
    """Called by the shop."""

    @rpc
    async def take(self, what: str) -> str:
        return f"took {what}"


class Twice(mesh.Service):
    """Under an interceptor that changes arguments and answers, in every executor."""

    interceptors = [Doubling()]

    @rpc
    async def here(self, x: int) -> int:
        return x

    @rpc
    def in_thread(self, x: int) -> int:
        return x

    @rpc(offload="process")
    def in_process(self, point: Point) -> Point:
        return point

    @rpc
    async def lines(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    @task
    async def task_here(self, x: int) -> int:
        return x

    @task
    def task_in_thread(self, x: int) -> int:
        return x

    @task(offload="process")
    def task_in_process(self, x: int) -> int:
        return x


def seen_context() -> dict[str, Any]:
    """The context as a handler sees it."""
    context = mesh.current()
    if context is None:
        return {}
    return {
        "target": context.target,
        "tenant": context.tenant,
        "principal": context.principal,
        "roles": sorted(context.roles),
        "scopes": sorted(context.scopes),
        "baggage": dict(context.baggage),
        "attempt": context.attempt,
        "trace": (context.trace or "")[3:35],
    }


class Tell(mesh.Service):
    """Answers with its context, from everywhere."""

    def __init__(self) -> None:
        self.heard: dict[str, dict[str, Any]] = {}

    @rpc
    async def here(self) -> dict[str, Any]:
        return seen_context()

    @rpc
    async def next(self) -> dict[str, Any]:
        return await self.rpc.tell.here()  # type: ignore[no-any-return]

    @http.get("/tell")
    async def over_http(self) -> dict[str, Any]:
        context = mesh.current()
        assert context is not None
        return {
            **seen_context(),
            "tracestate": context.tracestate,
            "task": await (await self.defer(self.later)).result(),
        }

    @rpc
    async def change(self, tenant: str) -> dict[str, Any]:
        context = mesh.current()
        assert context is not None
        context.tenant = tenant
        return await self.rpc.tell.here()  # type: ignore[no-any-return]

    @rpc
    async def items(self) -> AsyncIterator[dict[str, Any]]:
        yield seen_context()
        yield await self.rpc.tell.here()

    @rpc
    def in_thread(self) -> dict[str, Any]:
        return seen_context()

    @rpc(offload="process")
    def in_process(self) -> dict[str, Any]:
        return seen_context()

    @task
    async def later(self) -> dict[str, Any]:
        return seen_context()

    @task
    async def following(self, prior: Any) -> list[Any]:
        return [*(prior if isinstance(prior, list) else [prior]), seen_context()]

    @task(offload="process")
    def later_in_process(self) -> dict[str, Any]:
        task = mesh.current_task()
        return {**seen_context(), "job": task.job}

    @on("plain")
    async def plain(self, event: mesh.Event) -> None:
        self.heard["plain"] = {**seen_context(), "meta": dict(event.meta)}

    @on("all", to="every")
    async def all(self, event: mesh.Event) -> None:
        self.heard["all"] = {**seen_context(), "meta": dict(event.meta)}

    @on("kept", durable=True)
    async def kept(self, event: mesh.Event) -> None:
        self.heard["kept"] = {**seen_context(), "meta": dict(event.meta), "next": await self.rpc.tell.here()}
