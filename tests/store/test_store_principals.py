"""Rules for principals about tasks and durable events: the engine in memory and the store decide alike."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import mesh
from mesh import ids
from mesh.calls.propagation import PRINCIPAL, ROLES, UNVERIFIED
from mesh.engines.contract import Engine, Unit
from mesh.engines.memory.engine import MemoryEngine
from mesh.errors import Forbidden
from mesh.events.log import NewEvent
from mesh.store.service import Store
from mesh.tasks.contract import NewTask
from mesh.testing import Mesh
from tests.patience import until

pytestmark = pytest.mark.timeout(60)

T_S = 5.0
RULES: list[dict[str, Any]] = [
    {"caller": ["gateway", "evil"], "tasks": ["mail.open"], "events": {"publish": "open.*"}},
    {"caller": "*", "tasks": ["mail.send"], "principals": ["alice"]},
    {"caller": "*", "service": "mail", "methods": ["purge"], "roles": ["admin"]},
    {"caller": "*", "events": {"publish": "order.#"}, "principals": ["alice"]},
    {"caller": "mail", "events": {"subscribe": "#"}},
]


class Mail(mesh.Service):
    name = "mail"

    def __init__(self) -> None:
        self.heard: list[tuple[str, bool]] = []

    @mesh.task
    async def send(self) -> list[Any]:
        return _seen()

    @mesh.task
    async def open(self) -> list[Any]:
        return _seen()

    @mesh.task
    async def purge(self) -> list[Any]:
        return _seen()

    @mesh.task
    async def again(self) -> list[Any]:
        """Another task, deferred on behalf of the same principal by this worker, which may not assert one."""
        return list(await (await self.defer(self.send)).result())

    @mesh.on("#", durable=True)
    async def hear(self, event: mesh.Event) -> None:
        principal, _, verified = _seen()
        self.heard.append((principal, verified))


def _seen() -> list[Any]:
    context = mesh.current()
    assert context is not None
    return [context.principal, sorted(context.roles), context.verified]


class Gateway(mesh.Service):
    name = "gateway"


class Evil(mesh.Service):
    name = "evil"


@pytest.fixture(params=["memory", "sqlite"])
async def m(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Mesh]:
    settings: dict[str, Any] = {"access.allow": RULES, "store.dir": str(tmp_path)}
    services: list[Any] = [Mail, Gateway, Evil]
    if request.param == "sqlite":
        services.insert(0, Store)
        settings |= {f"engines.{capability}": "sqlite" for capability in ("tasks", "events")}
    async with Mesh(*services, settings=settings) as m:
        yield m


def node(m: Mesh, cls: type[mesh.Service]) -> Any:
    (worker,) = m.workers(cls)
    return worker.node


async def defer(m: Mesh, cls: type[mesh.Service], task: str, principal: str, roles: tuple[str, ...] = ()) -> Any:
    """The answer of a task that this service defers for a principal; "forbidden" when it may not."""
    with mesh.scope(principal=principal, roles=roles):
        try:
            job = await node(m, cls).defer(task)
        except Forbidden as error:
            return error.code
    return await job.result(timeout=T_S)


async def test_a_task_is_deferred_for_the_principals_of_a_rule(m: Mesh) -> None:
    """One link and one queue; each task by its own principal. Roles likewise, with `service` as with `tasks`."""
    assert await defer(m, Gateway, "mail.send", "alice") == ["alice", [], True]
    assert await defer(m, Gateway, "mail.send", "bob") == "forbidden"
    assert await defer(m, Gateway, "mail.send", "alice") == ["alice", [], True]
    assert await defer(m, Gateway, "mail.send", "") == "forbidden"
    assert await defer(m, Gateway, "mail.purge", "bob", ("admin",)) == ["bob", ["admin"], True]
    assert await defer(m, Gateway, "mail.purge", "alice", ("clerk",)) == "forbidden"


async def test_a_forged_principal_is_not_believed(m: Mesh) -> None:
    """It reaches the task all the same, marked, and stays marked in what the task causes."""
    assert await defer(m, Evil, "mail.send", "alice") == "forbidden"
    assert await defer(m, Evil, "mail.purge", "alice", ("admin",)) == "forbidden"
    assert await defer(m, Evil, "mail.open", "alice", ("admin",)) == ["alice", ["admin"], False]
    assert await defer(m, Gateway, "mail.open", "alice", ("admin",)) == ["alice", ["admin"], True]


async def test_an_engine_that_does_not_authorize_verifies_no_principal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever can write to it could have written any name."""
    monkeypatch.setattr(MemoryEngine, "authorizes", False)
    async with Mesh(Mail, Gateway, Evil, settings={"access.allow": RULES}) as m:
        assert await defer(m, Gateway, "mail.send", "alice") == ["alice", [], False]
    async with Mesh(Mail, Gateway, Evil) as m:
        assert await defer(m, Gateway, "mail.send", "alice") == ["alice", [], True]


async def test_a_worker_that_passes_a_principal_on_does_not_verify_it(m: Mesh) -> None:
    """`mail` may defer its own tasks without a rule, and may not assert principals."""
    with mesh.scope(principal="alice"):
        job = await node(m, Mail).defer("mail.again")
    assert await job.result(timeout=T_S) == ["alice", [], False]


async def test_an_event_is_published_for_the_principals_of_a_rule(m: Mesh) -> None:
    heard = m.instances(Mail)[0].heard
    for cls, topic, principal, allowed in (
        (Gateway, "order.made", "alice", True),
        (Gateway, "order.made", "bob", False),
        (Gateway, "order.made", "", False),
        (Evil, "order.made", "alice", False),
        (Evil, "open.door", "alice", True),
    ):
        with mesh.scope(principal=principal):
            if allowed:
                await node(m, cls).emit(topic, 1, durable=True)
            else:
                with pytest.raises(Forbidden) as caught:
                    await node(m, cls).emit(topic, 1, durable=True)
                assert caught.value.details.get("principal") == (principal if cls is Gateway and principal else None)
    await until(lambda: len(heard) == 2)
    assert heard == [("alice", True), ("alice", False)]


def task(meta: dict[str, str], queue: str = "mail.send") -> NewTask:
    return NewTask(ids.job_id(), queue, b"\x90", meta=meta)


@pytest.mark.parametrize(
    "meta",
    [{}, {PRINCIPAL: "bob"}, {PRINCIPAL: "alice", UNVERIFIED: "1"}, {ROLES: "admin"}, {PRINCIPAL: "alice\x00"}],
)
async def test_one_wrong_principal_refuses_the_whole_unit(m: Mesh, meta: dict[str, str]) -> None:
    """As raw units, in which each task and event names its own."""
    good = task({PRINCIPAL: "alice"})
    for unit in (
        Unit(ids.job_id(), tasks=(good, task(meta))),
        Unit(ids.job_id(), tasks=(good,), events=(NewEvent(ids.job_id(), "order.made", b"\xc0", meta=meta),)),
    ):
        with pytest.raises(Forbidden):
            await engine(m, Gateway).commit(unit, timeout_s=T_S)
    assert m.instances(Mail)[0].heard == []


async def test_the_rule_lets_its_callers_look_at_the_jobs_of_the_queue(m: Mesh) -> None:
    """Requests about jobs name no principal: gateways decide who sees which job."""
    with mesh.scope(principal="alice"):
        job = await node(m, Gateway).defer("mail.send")
    assert await engine(m, Gateway).jobs.find(job.id, timeout_s=T_S) is not None
    with pytest.raises(Forbidden):
        await engine(m, Evil).jobs.find(job.id, timeout_s=T_S)


def engine(m: Mesh, cls: type[mesh.Service]) -> Engine:
    found: Engine = node(m, cls).durable.engines.of("queues")
    return found
