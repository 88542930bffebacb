"""Workers on engines that offer only some capabilities: what works, and what is refused, at start or at the use."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest

import mesh
from mesh.calls.declared import BadDeclaration
from mesh.clock import LoopClock
from mesh.errors import NotOffered, UnknownJob
from mesh.gateway import app
from mesh.gateway.server import Gateway
from mesh.store.service import Store
from mesh.testing import ManualClock, Mesh, no_leaks
from tests.partial_engines import shared_data

pytestmark = pytest.mark.timeout(30)

QUEUES = "tests.partial_engines:QUEUES"
EVENTS = "tests.partial_engines:EVENTS"

heard: list[object] = []


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    heard.clear()
    async with no_leaks():
        yield


class Audit(mesh.Service):
    """Hears durable events, and has a task."""

    @mesh.on("order.*", durable=True, retries=0)
    async def write(self, event: mesh.Event) -> None:
        if event.data == "bad":
            raise ValueError("no such order")
        heard.append((event.topic, event.data))

    @mesh.task(retries=0)
    async def report(self, number: int) -> int:
        if number < 0:
            raise ValueError("no such number")
        heard.append(number)
        return number


# --- what works -----------------------------------------------------------------------------------------


async def test_durable_events_need_no_tasks_of_their_engine() -> None:
    """An engine of events alone delivers, retries nothing more than it should, and has dead letters."""
    clock = ManualClock()
    with shared_data(clock):
        async with Mesh(Audit, clock=clock, settings={"engines.events": EVENTS}) as m:
            for data in ("good", "bad"):
                await m.emit("order.placed", data, durable=True)
            await m.defer("audit.report", 7)
            await m.idle()
            assert sorted(map(str, heard)) == ["('order.placed', 'good')", "7"]
            assert [(info.name, info.done, info.dead) for info in await m.queues()] == [
                ("audit.report", 1, 0),
                ("audit.write", 1, 1),
            ]
            [letter] = await m.dead()
            assert (letter.queue, letter.topic, letter.reason) == ("audit.write", "order.placed", "failed")
            work = m.node.durable.work
            assert await work.requeue("audit.write") == 1
            await m.idle()
            assert await work.drop("audit.write") == 1
            assert await m.dead("audit.write") == []


async def test_tasks_need_no_jobs_of_their_engine() -> None:
    """An engine of queues alone runs tasks, later ones too, and has dead letters; nothing asks for a job by its id."""
    clock = ManualClock()
    with shared_data(clock):
        settings = {"engines.default": QUEUES, "engines.events": EVENTS}
        async with Mesh(Audit, clock=clock, settings=settings) as m:
            job = await m.defer("audit.report", 1)
            await m.defer("audit.report", 2, delay="1m")
            await m.defer("audit.report", -1)
            async with m.batch() as batch:
                batch.defer("audit.report", 3)
            await m.emit("order.placed", "good", durable=True)
            await m.idle()
            assert sorted(map(str, heard)) == ["('order.placed', 'good')", "1", "3"]
            await m.advance(61.0)
            await m.idle()
            assert heard[-1] == 2
            [letter] = await m.dead()
            assert (letter.queue, letter.status) == ("audit.report", "dead")
            with pytest.raises(NotOffered) as caught:
                await job.result()
            assert (caught.value.details["capability"], caught.value.details["engine"]) == ("jobs", "onlyqueues")


async def test_work_is_found_in_whichever_engine_has_it() -> None:
    """Tasks in memory, events in the store: both have queues, jobs by id and dead letters."""
    begun = asyncio.Event()

    class Both(mesh.Service):
        @mesh.on("order.*", durable=True, retries=0)
        async def hear(self, event: mesh.Event) -> None:
            if event.data == "slow":
                begun.set()
                await asyncio.Event().wait()
            raise ValueError("no such order")

        @mesh.task(retries=0)
        async def fail(self) -> None:
            raise ValueError("out of paper")

    with tempfile.TemporaryDirectory() as directory:
        settings = {"engines.events": "sqlite", "store.dir": f"{directory}/data"}
        async with Mesh(Store, Both, settings=settings) as m:
            work = m.node.durable.work
            job = await m.defer("both.fail")
            await m.emit("order.placed", "bad", durable=True)
            await m.idle()
            letters = await m.dead()
            assert [letter.queue for letter in letters] == ["both.fail", "both.hear"]
            for letter in letters:
                found = await work.wait(letter.id, 5.0)
                assert (found.id, found.status) == (letter.id, "dead")
                assert await work.page(letter.queue, "dead") == [found]
                assert await work.drop(letter.queue, [letter.id]) == 1
            assert await work.find(job.id) is None
            await m.emit("order.placed", "slow", durable=True)
            await begun.wait()
            [running] = await m.jobs("both.hear", "running")
            assert (await work.cancel(running.id)).queue == "both.hear"
            await m.idle()
            with pytest.raises(UnknownJob):
                await work.cancel("unknown")


async def test_work_of_a_killed_worker_runs_in_another() -> None:
    """Deliveries too: the engine of events notices the death by itself."""
    clock = ManualClock()
    started = asyncio.Event()

    class Slow(mesh.Service):
        @mesh.on("order.*", durable=True)
        async def hear(self, event: mesh.Event) -> None:
            if not started.is_set():
                started.set()
                await asyncio.Event().wait()
            heard.append(event.data)

    with shared_data(clock):
        async with Mesh(Slow, clock=clock, replicas={Slow: 2}, settings={"engines.events": EVENTS}) as m:
            await m.emit("order.placed", 7, durable=True)
            await asyncio.wait_for(started.wait(), 10)
            busy = next(worker for worker in m.workers(Slow) if worker.shift is not None and worker.shift.in_hand)
            await m.faults.kill(busy)
            assert heard == []
            await m.advance(11.0)
            await m.idle()
            assert heard == [7]


# --- what is refused at start ---------------------------------------------------------------------------


class Limited(mesh.Service):
    @mesh.task(rate="5/s")
    async def send(self) -> None: ...


class Single(mesh.Service):
    @mesh.on("order.*", durable=True, concurrency=1)
    async def hear(self, event: mesh.Event) -> None: ...


class Nightly(mesh.Service):
    @mesh.cron("0 3 * * *")
    async def clean(self) -> None: ...


class Keys(mesh.Service):
    uses = ("jobs",)


class Chains(mesh.Service):
    uses = ("flows", "locks")


class Whole(mesh.Service):
    uses = ("atomic", "state")

    @mesh.task
    async def pay(self) -> None: ...


REFUSED: list[tuple[type[mesh.Service], dict[str, str], str, str, str, str]] = [
    (Limited, {"engines.tasks": QUEUES}, "limited", "send", "quotas", "onlyqueues"),
    (Single, {"engines.events": EVENTS}, "single", "hear", "quotas", "onlyevents"),
    (Audit, {"engines.default": QUEUES}, "audit", "write", "events", "onlyqueues"),
    (Audit, {"engines.default": EVENTS}, "audit", "report", "queues", "onlyevents"),
    (Nightly, {"engines.default": QUEUES}, "nightly", "clean", "schedules", "onlyqueues"),
    (Nightly, {"engines.tasks": QUEUES}, "nightly", "clean", "jobs", "onlyqueues"),
    (Keys, {"engines.tasks": QUEUES}, "keys", "", "jobs", "onlyqueues"),
    (Chains, {"engines.tasks": QUEUES}, "chains", "", "flows", "onlyqueues"),
]


@pytest.mark.parametrize(("cls", "settings", "service", "method", "capability", "engine"), REFUSED)
async def test_a_service_that_declares_what_its_engine_lacks_does_not_start(
    cls: type[mesh.Service], settings: dict[str, str], service: str, method: str, capability: str, engine: str
) -> None:
    """The error has the service, the method, the capability, and the engines that could."""
    with shared_data(LoopClock()), pytest.raises(NotOffered) as caught:
        async with Mesh(cls, settings=settings):
            pass
    details = caught.value.details
    assert (details["service"], details["method"]) == (service, method)
    assert (details["capability"], details["engine"]) == (capability, engine)
    assert details["offered_by"] == ["memory", "sqlite"]
    assert all(name in caught.value.message for name in (service, method, capability, engine, "sqlite"))


async def test_all_that_is_missing_is_told_at_once() -> None:
    """A line for each."""
    with shared_data(LoopClock()), pytest.raises(NotOffered) as caught:
        async with Mesh(Chains, settings={"engines.default": QUEUES}):
            pass
    assert len(caught.value.message.splitlines()) == 2


async def test_what_is_to_be_committed_together_is_in_one_engine() -> None:
    """`uses` atomic: the tasks and the state of the service, which are in two."""
    with shared_data(LoopClock()), pytest.raises(NotOffered) as caught:
        async with Mesh(Whole, settings={"engines.tasks": QUEUES}):
            pass
    details = caught.value.details
    assert (details["service"], details["capability"]) == ("whole", "atomic")
    assert details["engines"] == {"tasks": "onlyqueues", "state": "memory"}
    assert details["offered_by"] == ["memory", "sqlite"]


async def test_what_an_engine_is_chosen_for_it_must_offer() -> None:
    """Said by name in [engines]; a default need not."""
    with shared_data(LoopClock()), pytest.raises(NotOffered) as caught:
        async with Mesh(settings={"engines.locks": QUEUES, "engines.events": QUEUES}):
            pass
    assert caught.value.details["key"] == "engines.events"
    assert len(caught.value.message.splitlines()) == 2


def test_uses_names_what_engines_give() -> None:
    for wrong in ("jobs", ["tasks"], ["everything"]):
        with pytest.raises(BadDeclaration):
            type("Wrong", (mesh.Service,), {"uses": wrong})


# --- what is refused at the use -------------------------------------------------------------------------

USES: dict[str, tuple[str, Callable[[Mesh], Awaitable[Any]]]] = {
    "a key": ("jobs", lambda m: m.defer("audit.report", 1, key="k")),
    "an ordering key": ("flows", lambda m: m.defer("audit.report", 1, order="o")),
    "a chain": ("flows", lambda m: m.chain(m.step("audit.report", 1), m.step("audit.report", 2))),
    "a group": ("flows", lambda m: m.group(m.step("audit.report", 1), then=m.step("audit.report", mesh.prior))),
    "a batch": ("jobs", lambda m: in_a_batch(m)),
    "a job": ("jobs", lambda m: m.job("some").info()),
    "state": ("state", lambda m: m.state("carts").get("a")),
    "a lock": ("locks", lambda m: in_a_lock(m)),
    "atomic": ("atomic", lambda m: in_a_block(m)),
}


async def in_a_batch(m: Mesh) -> None:
    async with m.batch() as batch:
        batch.defer("audit.report", 1)
        batch.defer("audit.report", 2, key="k")


async def in_a_lock(m: Mesh) -> None:
    async with m.lock("nightly"):
        pass


async def in_a_block(m: Mesh) -> None:
    async with m.atomic():
        await m.defer("audit.report", 1)


@pytest.mark.parametrize("what", USES)
async def test_a_use_that_no_engine_serves_is_refused_and_does_nothing(what: str) -> None:
    """With the same error as at start."""
    capability, use = USES[what]
    clock = ManualClock()
    with shared_data(clock):
        async with Mesh(Audit, clock=clock, settings={"engines.default": QUEUES, "engines.events": EVENTS}) as m:
            with pytest.raises(NotOffered) as caught:
                await use(m)
            assert (caught.value.code, caught.value.details["capability"]) == ("not_offered", capability)
            assert caught.value.details["offered_by"] == ["memory", "sqlite"]
            await m.idle()
            assert heard == []


async def test_over_http_it_is_not_implemented() -> None:
    """501 for a key and for a job; the text of the set-up is not shown to clients."""

    class Shop(mesh.Service):
        expose = True

        @mesh.task
        async def charge(self, order: str) -> None: ...

    with shared_data(LoopClock()):
        async with Mesh(Shop, settings={"engines.default": QUEUES}) as m:
            gateway = Gateway(m.node, m.settings)
            server = gateway.make_server()
            listener = app.bind("127.0.0.1", 0)
            accepting = await asyncio.get_running_loop().create_server(server, sock=listener)
            async with aiohttp.ClientSession(app.shown(listener)) as http:
                async with http.post("/tasks/shop/charge", json={"order": "o"}) as answer:
                    assert answer.status == 202
                key = {"Idempotency-Key": "k"}
                async with http.post("/tasks/shop/charge", json={"order": "o"}, headers=key) as answer:
                    assert (answer.status, (await answer.json(content_type=None))["code"]) == (501, "not_offered")
                async with http.get("/jobs/some") as answer:
                    assert answer.status == 501
                    assert "onlyqueues" not in await answer.text()
            accepting.close()
            await server.shutdown(0.2)
