"""Attributes and hooks that have names which the framework knows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import mesh
from mesh.calls.declared import BadDeclaration
from mesh.errors import SetupError
from mesh.testing import FakeNode, Mesh, unit

#: A call that is never answered fails its test soon.
pytestmark = pytest.mark.timeout(30)


class Taken(mesh.Service):
    """Uses names of the class for values of its own."""

    def __init__(self) -> None:
        self.queue: Any = asyncio.Queue()
        self.name = "mine"  # type: ignore[misc]
        self.started = False  # type: ignore[assignment, method-assign]
        self.stopped = asyncio.Event()  # type: ignore[assignment, method-assign]
        self.meta = {"a": 1}  # type: ignore[misc]
        self.needs = None  # type: ignore[misc, assignment]
        self.concurrency = "many"  # type: ignore[misc, assignment]
        self.version = 3  # type: ignore[misc, assignment]
        self.log = "my own"

    @mesh.rpc
    async def put(self, value: int) -> Any:
        await self.queue.put(value)
        return [await self.queue.get(), self.name, self.config["colour"], self.log]


async def test_names_that_the_class_declares_are_free_on_the_instance():
    """The worker reads them from the class: name, limits and settings are what they were."""
    async with Mesh(Taken, settings={"services.taken.config.colour": "red", "services.taken.concurrency": 7}) as m:
        assert await m.call("taken.put", 3) == [3, "mine", "red", "my own"]
        (instance,) = m.node.instances("taken")
        assert (instance.service, instance.places) == ("taken", 7)


VERBS = ["call", "emit", "rpc", "defer", "state", "lock", "map", "stream", "scatter", "job", "batch", "group", "step"]


@pytest.mark.parametrize("verb", VERBS)
def test_a_value_that_would_hide_a_verb_is_refused(verb: str):
    """Where it is set, by name: in the instance and in the class."""

    class Shop(mesh.Service):
        pass

    shop = unit(Shop)
    with pytest.raises(AttributeError, match=rf"Shop: self\.{verb} "):
        setattr(shop, verb, asyncio.Lock() if verb == "lock" else {})
    with pytest.raises(BadDeclaration, match=rf"Bad: Bad\.{verb} "):
        type("Bad", (mesh.Service,), {verb: {}})
    if verb != "rpc":
        setattr(shop, verb, lambda *args: "mocked")
        assert getattr(shop, verb)() == "mocked"


def test_a_configuration_is_not_lost():
    """Set in __init__ it would be; the class may give defaults."""

    class Lost(mesh.Service):
        def __init__(self) -> None:
            self.config = {"a": 1}

    with pytest.raises(BadDeclaration, match=r"Lost: .*self\.config"):
        unit(Lost)

    class Kept(mesh.Service):
        config = {"a": 1, "b": 2}

    assert unit(Kept, config={"b": 3}).config == {"a": 1, "b": 3}
    with pytest.raises(BadDeclaration, match="Bad: config "):
        type("Bad", (mesh.Service,), {"config": 3})


def test_an_init_with_arguments_is_refused():
    """With what to do instead."""

    class Shop(mesh.Service):
        def __init__(self, path: str) -> None:
            self.path = path

    with pytest.raises(BadDeclaration, match=r"Shop: .*path"):
        unit(Shop)


class Plain(mesh.Service):
    """Its hooks are plain functions."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def started(self) -> None:  # type: ignore[override]
        self.seen.append("started")

    def draining(self) -> None:
        self.seen.append("draining")

    def stopped(self) -> None:  # type: ignore[override]
        self.seen.append("stopped")


class Waiting(mesh.Service):
    """Its hooks are coroutines."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.leaving = asyncio.Event()

    async def started(self) -> None:
        await asyncio.sleep(0)
        self.seen.append("started")

    async def draining(self) -> None:
        self.seen.append("draining")
        self.leaving.set()
        await asyncio.sleep(0.02)
        self.seen.append("drained")

    async def stopped(self) -> None:
        await asyncio.sleep(0)
        self.seen.append("stopped")

    @mesh.rpc
    async def until_the_end(self) -> str:
        await self.leaving.wait()
        return "told"


async def test_hooks_may_be_plain_or_async():
    """Each runs at its time."""
    async with Mesh(Plain, Waiting) as m:
        (plain,), (waiting,) = m.instances(Plain), m.instances(Waiting)
        assert plain.seen == waiting.seen == ["started"]
        call = m.call("waiting.until_the_end")
        await m.call("$worker.info", instance=m.node.instances("waiting")[0].id)
        for worker in (*m.workers(Plain), *m.workers(Waiting)):
            assert await worker.drain()
            await worker.stop()
        assert await call == "told"
    assert plain.seen == ["started", "draining", "stopped"]
    assert waiting.seen == ["started", "draining", "drained", "stopped"]


class Slow(mesh.Service):
    def __init__(self) -> None:
        self.cut = False

    async def draining(self) -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            self.cut = True
            raise


async def test_a_draining_hook_has_the_time_of_the_drain():
    """It is cut off when that is over."""
    async with Mesh(Slow, settings={"worker.stop_timeout": 0.05}) as m:
        (service,) = m.instances(Slow)
        (worker,) = m.workers(Slow)
        await worker.drain()
        assert service.cut


class Leaky(mesh.Service):
    async def started(self) -> None:
        task = asyncio.ensure_future(asyncio.sleep(30))
        task.cancel()
        await task


async def test_a_cancellation_that_leaks_out_of_started_is_its_failure():
    """And not an end that somebody asked for."""
    with pytest.raises(SetupError, match=r"Leaky\.started"):
        async with Mesh(Leaky):
            pass


@pytest.mark.parametrize("name", ["started", "draining", "stopped"])
def test_hooks_that_cannot_work_are_refused(name: str):
    """A generator, an argument, or no function at all."""

    async def generator(self: Any) -> AsyncIterator[None]:
        yield

    async def greedy(self: Any, node: Any) -> None: ...

    for hook in (generator, greedy, True, staticmethod(greedy)):
        with pytest.raises(BadDeclaration, match=rf"Bad\.{name}"):
            type("Bad", (mesh.Service,), {name: hook})


async def test_using_stands_on_self_too():
    """Options for calls by attribute."""

    class Asker(mesh.Service):
        async def ask(self) -> Any:
            return await self.using(timeout="2s", key="k").users.get(7)

    node = FakeNode({"users.get": lambda id: id})
    assert await unit(Asker, node=node).ask() == 7
    assert node.calls[0].key == "k"
