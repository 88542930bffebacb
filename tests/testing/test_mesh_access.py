"""[access] and durable data in a mesh under test: the engine in memory and the store judge alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import mesh
from mesh import ids
from mesh.engines.contract import Engine, Unit
from mesh.errors import Forbidden
from mesh.events.log import NewEvent
from mesh.schedules.contract import Advance, Schedule
from mesh.state.contract import Write
from mesh.store.service import Store
from mesh.tasks.contract import NewTask, Offer, Queue, Settlement
from mesh.testing import Mesh

pytestmark = pytest.mark.timeout(60)

T_S = 5.0
#: What the services need for themselves, and the client to see that they do.
RULES: list[dict[str, Any]] = [
    {"caller": "client", "tasks": ["shop.order"], "events": {"publish": "shop.*"}},
    {"caller": "shop", "events": {"publish": "order.*"}, "state": ["orders"], "locks": ["orders.*"]},
    {"caller": "mail", "events": {"subscribe": "order.#"}},
]


class Shop(mesh.Service):
    name = "shop"

    @mesh.task
    async def order(self, number: int) -> int:
        async with self.lock(f"orders.{number}"), self.atomic():
            await self.state("orders", int).set(str(number), number)
            await self.emit("order.made", number, durable=True)
        return number

    @mesh.task
    async def purge(self) -> None:
        raise AssertionError("nobody may ask for this")


class Mail(mesh.Service):
    name = "mail"

    def __init__(self) -> None:
        self.heard: list[int] = []

    @mesh.on("order.made", durable=True)
    async def send(self, event: mesh.Event) -> None:
        self.heard.append(event.data)


@pytest.fixture(params=["memory", "sqlite"])
async def m(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Mesh]:
    settings: dict[str, Any] = {"access.allow": RULES, "store.dir": str(tmp_path)}
    if request.param == "sqlite":
        settings |= {
            f"engines.{capability}": "sqlite" for capability in ("tasks", "events", "state", "locks", "schedules")
        }
        async with Mesh(Store, Shop, Mail, settings=settings) as m:
            yield m
    else:
        async with Mesh(Shop, Mail, settings=settings) as m:
            yield m


class Nobody:
    """A worker that takes nothing."""

    def leased(self, leases: object) -> None: ...
    def cancel(self, jobs: object) -> None: ...
    def lost(self, reason: str) -> None: ...
    def held(self) -> list[tuple[str, int]]:
        return []


def engine_of(m: Mesh) -> Engine:
    return m.node.durable.engines.of("queues")


async def test_what_rules_allow_goes_through(m: Mesh) -> None:
    """From the client's task to the handler of the event that it emitted: each with its own right."""
    job = await m.defer("shop.order", 7)
    assert await job.result(timeout=T_S) == 7
    mail = m.instances(Mail)[0]
    for _ in range(1000):
        if mail.heard:
            break
        await m.settle()
        await asyncio.sleep(0.001)
    assert mail.heard == [7]


async def test_what_no_rule_allows_is_forbidden_in_each_form(m: Mesh) -> None:
    """By verbs and by the engine itself, alone or in a unit."""
    engine = engine_of(m)
    ready = NewTask(ids.job_id(), "shop.order", b"\x91\x01")
    await engine.queues.defer([ready], timeout_s=T_S)
    purge = NewTask(ids.job_id(), "shop.purge", b"\x90")
    event = NewEvent(ids.job_id(), "order.made", b"\x01")
    write = Write("orders", "1", "set", ids.etag(), b"\x01")
    asked = [
        engine.queues.defer([purge], timeout_s=T_S),
        engine.leases.acknowledge([Settlement(ready.id, 1, "dead")], timeout_s=T_S),
        engine.jobs.page("shop.order", "done", timeout_s=T_S),
        engine.leases.requeue("shop.order", timeout_s=T_S),
        engine.leases.drop("shop.order", timeout_s=T_S),
        engine.events.append([event], timeout_s=T_S),
        engine.events.replay("mail.send", offset=0, timeout_s=T_S),
        engine.events.abandon("mail.send", timeout_s=T_S),
        engine.events.read("order.#", timeout_s=T_S),
        engine.state.get("orders", ["1"], timeout_s=T_S),
        engine.state.write([write], timeout_s=T_S),
        engine.state.page("orders", timeout_s=T_S),
        engine.schedules.declare([Schedule("shop.nightly", "every 1h")], timeout_s=T_S),
        engine.schedules.advance(Advance("shop.nightly", 0.0, 1.0), timeout_s=T_S),
        engine.locks.acquire("orders.1", "me", ttl_s=1.0, wait_s=0.0, timeout_s=T_S),
        engine.locks.renew("orders.1", "me", ttl_s=1.0, timeout_s=T_S),
        engine.locks.release("orders.1", "me", timeout_s=T_S),
        *(
            engine.commit(Unit(ids.job_id(), **parts), timeout_s=T_S)
            for parts in ({"tasks": (purge,)}, {"events": (event,)}, {"writes": (write,)})
        ),
    ]
    for number, each in enumerate(asked):
        with pytest.raises(Forbidden):
            raise AssertionError(f"number {number} was allowed: {await each}")
    assert await engine.state.namespaces(timeout_s=T_S) == []
    assert await engine.locks.locks(timeout_s=T_S) == []
    assert await engine.schedules.schedules(timeout_s=T_S) == []
    assert [info.name for info in await engine.leases.queues(timeout_s=T_S)] in (["shop.order"], [])


async def test_a_job_is_seen_by_those_who_may_defer_to_its_queue(m: Mesh) -> None:
    """Found, waited for and cancelled; by others not."""
    job = await m.defer("shop.order", 1)
    await job.result(timeout=T_S)
    engine = engine_of(m)
    found = await engine.jobs.find(job.id, timeout_s=T_S)
    assert found is not None
    assert found.queue == "shop.order"
    mail = m.workers(Mail)[0].node.durable.engines.of("queues")
    for asked in (
        mail.jobs.find(job.id, timeout_s=T_S),
        mail.jobs.wait(job.id, timeout_s=T_S),
        mail.jobs.cancel(job.id, timeout_s=T_S),
    ):
        with pytest.raises(Forbidden):
            await asked


async def test_no_worker_takes_what_it_does_not_serve(tmp_path: Path) -> None:
    """In memory at once; the store says so to a stream, which is asked again (see the store's own tests)."""
    async with Mesh(Shop, settings={"access.allow": RULES}) as m:
        for queue in (Queue("shop.order", 1), Queue("shop.x", 1, patterns=("order.#",))):
            with pytest.raises(Forbidden):
                await engine_of(m).leases.subscribe(Offer("thief@1", (), (queue,)), Nobody())
        with pytest.raises(Forbidden):
            await engine_of(m).leases.subscribe(Offer("thief@1", ("shop",), ()), Nobody())
        shop = m.workers(Shop)[0]
        session = f"{shop.identity}@{shop.node.epoch}"
        with pytest.raises(Forbidden):
            await engine_of(m).leases.subscribe(Offer(session, ("client",), (Queue("client.x", 1),)), Nobody())
