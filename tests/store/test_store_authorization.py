"""[access] at the store: a raw client asks for each of its operations, over a link, and may do what a rule says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import mesh
from mesh import ids
from mesh.calls.options import CallOptions
from mesh.engines.authorization import OPERATIONS
from mesh.engines.contract import Unit
from mesh.engines.sqlite.client import StoreEngine
from mesh.engines.sqlite.core import Core
from mesh.engines.sqlite.messages import encode
from mesh.errors import Forbidden, MeshError, SetupError
from mesh.events.log import NewEvent
from mesh.node.node import Node
from mesh.schedules.contract import Advance, Schedule
from mesh.state.contract import Write
from mesh.store.admission import check_table
from mesh.store.service import Store
from mesh.tasks.contract import Lease, NewTask, Offer, Queue, Settlement
from mesh.testing import Mesh

pytestmark = pytest.mark.timeout(60)

#: As a set-up has them that lets everybody use the store, and nobody what is in it.
STORE_ALONE = [{"caller": "*", "service": "mesh-store"}]
#: One rule for each right that the cases need; serving the vault's queues is [[access.serve]].
GRANTED = [
    {
        "caller": "client",
        "tasks": ["vault.*"],
        "events": {"publish": ["evil.#"], "subscribe": ["evil.#"]},
        "state": ["secrets"],
        "locks": ["vault.*"],
        "schedules": ["vault.*"],
    }
]
T_S = 5.0


class Vault(mesh.Service):
    """What must not run by anybody's word."""

    name = "vault"

    def __init__(self) -> None:
        self.wiped: list[str] = []
        self.heard: list[str] = []

    @mesh.task
    async def wipe(self, what: str = "") -> None:
        self.wiped.append(what)

    @mesh.on("vault.asked", durable=True)
    async def audit(self, event: mesh.Event) -> None:
        self.heard.append(event.topic)


class Case(NamedTuple):
    """One thing to ask for. Of a stream, the first item is awaited."""

    method: str
    args: Sequence[Any]
    stream: bool = False

    def __str__(self) -> str:
        return f"{self.method}{self.args}"[:120]


def unit(**parts: Any) -> list[Unit]:
    return [Unit(ids.job_id(), **parts)]


def task(queue: str = "vault.wipe", **options: Any) -> NewTask:
    return NewTask(ids.job_id(), queue, b"\x90", **options)


def chain() -> tuple[NewTask, NewTask]:
    last = task(waits=1)
    return task("client.harmless", feeds=last.id), last


def cases(seed: Seed) -> list[Case]:
    """Every operation of the table, in each of its forms, on what is the vault's."""
    offer = Offer(f"thief-{ids.job_id()}@1", (), ())
    return [
        Case("apply", [unit(tasks=(task(),))]),
        Case("apply", [unit(tasks=chain())]),
        Case("apply", [unit(tasks=(task(),), advance=(Advance("client.mine", 0.0, 1.0),))]),
        Case("apply", [unit(events=(NewEvent(ids.job_id(), "evil.x", b"\xc0"),))]),
        Case("apply", [unit(writes=(Write("secrets", "k", "set", ids.etag(), b"\xc0"),))]),
        Case("apply", [unit(writes=(Write("secrets", "k", "delete", ids.etag()),))]),
        Case("apply", [unit(advance=(Advance("vault.nightly", seed.wall, seed.wall + 1),))]),
        Case("apply", [[Unit("", settle=(Settlement(seed.ready, 1, "dead", reason="failed"),))]]),
        Case("work", [_with(offer, queues=(Queue("vault.wipe", 1),))], stream=True),
        Case("work", [_with(offer, queues=(Queue("vault.wipe0", 1, patterns=("evil.#",)),))], stream=True),
        Case("work", [_with(offer, services=("vault",))], stream=True),
        Case("follow", [seed.watch, [seed.ready]]),
        Case("find", [seed.ready]),
        Case("jobs", ["vault.gone", "ready"]),
        Case("requeue", ["vault.wipe", []]),
        Case("requeue", ["vault.wipe", [seed.ready]]),
        Case("drop", ["vault.wipe", []]),
        Case("replay", ["vault.audit", 0, None]),
        Case("abandon", ["vault.audit"]),
        Case("read", ["evil.#"]),
        Case("get", ["secrets", ["k"]]),
        Case("page", ["secrets"]),
        Case("declare", [[Schedule("vault.nightly", "every 1s")]]),
        Case("acquire", ["vault.door", "thief", 30.0, 0.0]),
        Case("renew_lock", ["vault.door", "owner", 30.0]),
        Case("release", ["vault.door", "owner"]),
        Case("cancel", [seed.ready]),
        Case("backup", ["stolen.db"]),
        Case("check", []),
    ]


def _with(offer: Offer, **fields: Any) -> Offer:
    return Offer(offer.session, fields.get("services", ()), fields.get("queues", ()))


class Seed(NamedTuple):
    """What the vault has at the store: a ready job of a queue without a worker, and an instant."""

    ready: str
    wall: float
    watch: str


@asynccontextmanager
async def a_mesh(directory: Path, **access: Any) -> AsyncIterator[Mesh]:
    """A store and its vault, over real sockets, with a client whose role is "client"."""
    access["allow"] = [*access["allow"], {"caller": "vault", "events": {"subscribe": ["vault.asked"]}}]
    settings = {"store.dir": str(directory / "data"), **{f"access.{key}": value for key, value in access.items()}}
    settings |= {f"engines.{capability}": "sqlite" for capability in ("tasks", "events", "state", "locks", "schedules")}
    async with Mesh(Store, Vault, transport="ipc", settings=settings) as m:
        store = the_store(m)
        await eventually(lambda: len(store.sessions) == 1, "the vault is attached")
        yield m


async def eventually(condition: Callable[[], object], what: str) -> None:
    give_up_at = asyncio.get_running_loop().time() + 10.0
    while not condition():
        assert asyncio.get_running_loop().time() < give_up_at, what
        await asyncio.sleep(0.005)


def the_store(m: Mesh) -> Store:
    [store] = m.instances(Store)
    return store


async def seeded(m: Mesh) -> Seed:
    """Put in by the store itself."""
    store = the_store(m)
    job = task("vault.gone")
    wall = store.clock.wall()
    parts = {
        "tasks": (job,),
        "writes": (Write("secrets", "k", "set", ids.etag(), b"\xc0"),),
        "events": (NewEvent(ids.job_id(), "evil.old", b"\xc0"),),
    }
    [outcome] = await store.turns.apply(unit(**parts))
    assert outcome.error is None
    await store.turns.do(lambda turn: turn.declare_schedules([Schedule("vault.nightly", "every 1h", last_at=wall)]))
    await store.turns.do(lambda turn: turn.acquire("vault.door", "owner", 60.0))
    store.watches.open("a-watch", "client")
    return Seed(job.id, wall, "a-watch")


def picture(store: Store) -> dict[str, Any]:
    """All that an operation could have changed."""
    wall = store.clock.wall()
    return {
        "queues": [(info.name, info.ready, info.dead, info.done, info.patterns) for info in store.list_queues()],
        "secrets": store.core.page("secrets", prefix="", after="", limit=10, wall=wall),
        "schedules": store.core.schedules(),
        "locks": store.core.locks(wall),
        "events": store.core.read("#", after=0, limit=100)[0],
        "sessions": len(store.sessions),
        "followed": store.watches.jobs,
        "files": sorted(path.name for path in store.core.path.parent.iterdir() if not path.name.startswith("mesh.db")),
    }


async def ask(n: Node, case: Case) -> str:
    """The code of its error; "" for none."""
    target, body = f"mesh-store.{case.method}", encode(tuple(case.args))
    try:
        if case.stream:
            async with n.client.stream(target, body, 0, CallOptions(T_S), decode=lambda body, encoding: None) as stream:
                await anext(aiter(stream))
        else:
            outcomes = await n.client.call(target, body, 0, CallOptions(T_S), decode=_outcomes)
            for outcome in outcomes if case.method == "apply" else ():
                if outcome[0]:
                    return str(outcome[0]["code"])
    except MeshError as error:
        return error.code
    return ""


def _outcomes(body: Any, encoding: int) -> Any:
    import msgspec

    return msgspec.msgpack.decode(body)


async def test_every_operation_is_denied_without_a_rule(tmp_path: Path) -> None:
    """A rule for the store itself gives no right to anything in it: `forbidden`, and nothing is done."""
    async with a_mesh(tmp_path, allow=STORE_ALONE) as m:
        seed = await seeded(m)
        before = picture(the_store(m))
        asked = cases(seed)
        found = {str(case): await ask(m.node, case) for case in asked}
        assert {case: code for case, code in found.items() if code != "forbidden"} == {}
        assert picture(the_store(m)) == before
        assert m.instances(Vault)[0].wiped == []


async def test_listings_show_what_a_caller_may_know(tmp_path: Path) -> None:
    """They are answered, and empty for one that may know nothing."""
    for allow, count in ((STORE_ALONE, 0), (GRANTED, 1)):
        async with a_mesh(tmp_path / str(count), allow=allow) as m:
            await seeded(m)
            engine = StoreEngine(m.node.client, m.node.clock)
            assert [name for name, _ in await engine.state.namespaces(timeout_s=T_S)] == ["secrets"] * count
            assert [one.name for one in await engine.schedules.schedules(timeout_s=T_S)] == ["vault.nightly"] * count
            assert [one.name for one in await engine.locks.locks(timeout_s=T_S)] == ["vault.door"] * count
            # Jobs of a durable handler are events: deferring gives no right to them.
            names = [info.name for info in await engine.leases.queues(timeout_s=T_S)]
            assert names == ["vault.gone", "vault.wipe"] * count
            await engine.close()


async def test_each_operation_is_allowed_by_its_rule(tmp_path: Path) -> None:
    """Rules for names, and [[access.serve]] for the work of a service; operators need none."""
    serve = [{"worker": ["vault", "client"], "service": "vault"}]
    serve += [{"worker": "*", "service": name} for name in ("mesh-store", "client")]
    for access in ({"allow": GRANTED, "serve": serve}, {"allow": [], "operators": ["client"]}):
        async with a_mesh(tmp_path / str(len(access["allow"])), **access) as m:
            found = [(case.method, await ask(m.node, case)) for case in cases(await seeded(m))]
            forbidden = {method for method, code in found if code == "forbidden"}
            assert forbidden == (set() if access.get("operators") else {"backup", "check"})


def test_the_table_names_every_method() -> None:
    """What it does not name does not start; nothing in it is made up."""
    from mesh.service.members import members

    methods = [member.name for member in members(Store) if member.rpc is not None]
    assert set(methods) == set(OPERATIONS)
    with pytest.raises(SetupError):
        check_table([*methods, "added_later"])


# --- what was possible ----------------------------------------------------------------------------------------------


async def test_a_subscription_runs_no_task_of_another_service(tmp_path: Path) -> None:
    """Neither as a new subscription nor over the queue of a task: the event is published, and the vault rests."""
    allow = [{"caller": "client", "events": {"publish": ["evil.#"], "subscribe": ["evil.#"]}}]
    async with a_mesh(tmp_path, allow=allow) as m:
        for name in ("vault.wipe", "vault.wipe0"):
            offer = Offer("thief@1", (), (Queue(name, 1, patterns=("evil.#",)),))
            assert await ask(m.node, Case("work", [offer], stream=True)) == "forbidden"
        await m.emit("evil.now", 1, durable=True)
        done = {info.name: info for info in the_store(m).list_queues()}
        assert "vault.wipe0" not in done
        assert done["vault.wipe"].patterns == ()
        assert (done["vault.wipe"].ready, m.instances(Vault)[0].wiped) == (0, [])


async def test_a_subscription_needs_all_of_its_topics(tmp_path: Path) -> None:
    """A pattern is covered by the rules as a whole; one that only meets them is not."""
    allow = [{"caller": "client", "events": {"subscribe": ["order.*", "payment.#"]}}]
    async with a_mesh(tmp_path, allow=allow) as m:
        codes = {}
        for pattern in ("order.made", "order.*", "payment.eu.*", "order.#", "#", "*.made", "payment"):
            offer = Offer(f"client@{pattern}", (), (Queue("client.hear", 1, patterns=(pattern,)),))
            codes[pattern] = await ask(m.node, Case("work", [offer], stream=True))
        assert [pattern for pattern, code in codes.items() if not code] == [
            "order.made",
            "order.*",
            "payment.eu.*",
            "payment",
        ]
        assert {code for code in codes.values() if code} == {"forbidden"}


async def test_an_event_is_not_deferred_as_a_task(tmp_path: Path) -> None:
    """A rule for all of a service's methods gives no way around publishing."""
    async with a_mesh(tmp_path, allow=[{"caller": "client", "service": "vault"}]) as m:
        assert await ask(m.node, Case("apply", [unit(tasks=(task("vault.wipe"),))])) == ""
        assert await ask(m.node, Case("apply", [unit(tasks=(task("vault.audit"),))])) == "forbidden"
        assert m.instances(Vault)[0].heard == []


async def test_a_task_that_was_deferred_before_there_was_a_handler_is_no_event(tmp_path: Path) -> None:
    """Until a worker has declared the queue of a durable handler, it looks like that of any task."""
    core = Core(tmp_path / "data")
    core.open()
    forged = task("vault.audit")
    with core.turn(time.time()) as turn:
        turn.apply(unit(tasks=(forged,)))
    core.close()
    async with a_mesh(tmp_path, allow=[]) as m:
        store = the_store(m)

        def dead() -> bool:
            found = store.core.job(forged.id, store.clock.wall())
            return found is not None and found.status == "dead"

        await eventually(dead, "it is a dead letter")
        assert m.instances(Vault)[0].heard == []


async def test_a_job_is_settled_by_no_other_before_it_is_known(tmp_path: Path) -> None:
    """One request makes a job, more than the store does in one turn, and settles that job, which is leased by then."""
    async with a_mesh(tmp_path, allow=[{"caller": "client", "tasks": ["vault.wipe"]}]) as m:
        made = task()
        filling = [Unit(ids.job_id(), tasks=tuple(task(delay_s=1000.0) for _ in range(20))) for _ in range(300)]
        forged = Unit("", settle=(Settlement(made.id, 1, "done", result=b"\xa6forged"),))
        units = [Unit(ids.job_id(), tasks=(made,)), *filling, forged]
        outcomes = await m.node.client.call(
            "mesh-store.apply", encode((units,)), 0, CallOptions(30.0), decode=_outcomes
        )
        assert [outcome[0]["code"] for outcome in outcomes if outcome[0]] == ["lease_lost"]
        store = the_store(m)
        await eventually(lambda: m.instances(Vault)[0].wiped == [""], "the vault ran it")

        def over() -> bool:
            found = store.core.job(made.id, store.clock.wall())
            return found is not None and found.status == "done"

        await eventually(over, "the vault settled it")
        found = store.core.job(made.id, store.clock.wall())
        assert found is not None
        assert found.result != b"\xa6forged"


async def test_a_session_belongs_to_its_caller(tmp_path: Path) -> None:
    """Others neither take its place nor end it, also after the store was restarted; its leases stay."""
    serve = [{"worker": name, "service": name} for name in ("vault", "client", "mesh-store")]
    async with a_mesh(tmp_path, allow=STORE_ALONE, serve=serve) as m:
        vault = m.workers(Vault)[0]
        session = f"{vault.identity}@{vault.node.epoch}"
        offer = Offer(session, ("client",), (Queue("client.hear", 1),))
        for case in (
            Case("work", [offer], stream=True),
            *(Case(method, [session]) for method in ("renew", "stop", "leave")),
        ):
            assert await ask(m.node, case) == "forbidden"
        assert session in the_store(m).sessions
        assert the_store(m).sessions.takes(session)


async def test_a_session_that_is_known_by_its_leases_is_not_anybodys(tmp_path: Path) -> None:
    """After a restart of the store, before its worker is back."""
    async with a_mesh(tmp_path, allow=STORE_ALONE) as m:
        store = the_store(m)
        lease = await _leased_to(store, "vault-1@1")
        store.admission._owners.clear()  # type: ignore[union-attr]
        assert await ask(m.node, Case("leave", ["vault-1@1"])) == "forbidden"
        assert await ask(m.node, Case("work", [Offer("vault-1@1", (), ())], stream=True)) == "forbidden"
        found = store.core.job(lease.id, store.clock.wall())
        assert found is not None
        assert found.status == "running"


async def _leased_to(store: Store, session: str) -> Lease:
    job = task("vault.slow")
    await store.turns.apply(unit(tasks=(job,)))
    [lease] = await store.turns.do(lambda turn: turn.claim("vault.slow", 1, session))
    store.sessions.found(session, store.clock.now())
    store.turns.recall()
    return lease


async def test_a_watch_belongs_to_its_caller(tmp_path: Path) -> None:
    """Its stream is not taken over, and nothing is followed or forgotten in its name."""
    async with a_mesh(tmp_path, allow=STORE_ALONE) as m:
        the_store(m).watches.open("another's", "vault")
        for case in (
            Case("watch", ["another's"], stream=True),
            Case("follow", ["another's", []]),
            Case("unfollow", ["another's", []]),
        ):
            assert await ask(m.node, case) == "forbidden"


async def test_a_wait_that_is_forbidden_ends_and_no_other(tmp_path: Path) -> None:
    """Of many that are asked for together, each has its own answer."""
    allow = [{"caller": "client", "tasks": ["vault.wipe"]}]
    async with a_mesh(tmp_path, allow=allow) as m:
        seed = await seeded(m)
        engine = StoreEngine(m.node.client, m.node.clock)
        await engine.queues.defer([mine := task()], timeout_s=T_S)
        waits = [engine.jobs.wait(id, timeout_s=T_S) for id in (mine.id, seed.ready, mine.id)]
        first, second, third = await asyncio.gather(*waits, return_exceptions=True)
        assert not isinstance(first, BaseException)
        assert not isinstance(third, BaseException)
        assert (first.status, third.status) == ("done", "done")
        assert isinstance(second, Forbidden)
        await engine.close()


async def test_what_a_service_needs_for_itself_needs_no_rule(tmp_path: Path) -> None:
    """A process named like its service leases, defers, lists, settles and fires its own."""
    async with a_mesh(tmp_path, allow=[{"caller": "x", "service": "x"}]) as m:
        vault = m.workers(Vault)[0].node
        for case in (
            Case("apply", [unit(tasks=(task(),))]),
            Case("declare", [[Schedule("vault.nightly", "every 1h")]]),
            Case("jobs", ["vault.wipe", "done"]),
            Case("requeue", ["vault.wipe", []]),
            Case("replay", ["vault.audit", 0, None]),
        ):
            assert (case, await ask(vault, case)) == (case, "")
        await eventually(lambda: m.instances(Vault)[0].wiped == [""], "the task ran")
