"""A process's place in the mesh: finding others, being seen, and closing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

import mesh
from mesh.clock import settle
from mesh.node.node import Node
from mesh.telemetry import traces
from mesh.testing import ManualClock, Mesh, no_leaks
from mesh.testing.overrides import settings_for
from mesh.transport.memory import MemoryNetwork, MemoryTransport

TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


class Greeting(mesh.Service):
    """Says hello."""

    @mesh.rpc(idempotent=True, timeout=2.0)
    async def hello(self, name: str) -> str:
        return f"Hello, {name}!"

    @mesh.rpc
    async def count(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    @mesh.rpc
    async def trace(self) -> str | None:
        call = mesh.current()
        return call.trace if call is not None else "none"


class Fan(mesh.Service):
    """Hears, and calls on."""

    def __init__(self) -> None:
        self.traces: list[str | None] = []

    @mesh.on("told", to="every")
    async def told(self) -> None:
        self.traces.append(await self.rpc.greeting.trace())

    @mesh.on("asked")
    async def asked(self) -> None:
        self.traces.append(await self.rpc.greeting.trace())


#: A call that is never answered fails its test soon, not after the run's own patience.
pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    async with no_leaks():
        yield


@pytest.fixture
async def m() -> AsyncIterator[Mesh]:
    async with Mesh(Greeting, clock=ManualClock()) as m:
        yield m


async def test_connect_joins_a_mesh_as_a_client():
    """Over real sockets, with nothing but the address of a hub."""
    async with (
        Mesh(Greeting, transport="ipc") as m,
        mesh.connect(hubs=m.settings.mesh.hubs, flags={"mesh.run_dir": m.settings.mesh.run_dir}) as n,
    ):
        assert n.agent.synced
        assert await n.call("greeting.hello", "ujun", timeout=2.0) == "Hello, ujun!"
        assert await n.rpc.greeting.hello("ujun") == "Hello, ujun!"
        assert await n.rpc[Greeting].hello("ujun") == "Hello, ujun!"
        assert [i async for i in n.rpc.greeting.count(3)] == [0, 1, 2]
        assert [outcome.value for outcome in await n.scatter("greeting.hello", "x")] == ["Hello, x!"]


async def test_on_a_bare_transport_two_nodes_find_each_other():
    """Without mesh.testing between them: what `opened` writes must leave by itself."""
    clock = ManualClock()
    network = MemoryNetwork(clock)
    settings = settings_for({}, hubs=["mem://none"], run_dir=mesh.Settings().mesh.run_dir)
    worker = Node(settings, transport=MemoryTransport(network), clock=clock)
    caller = Node(settings, transport=MemoryTransport(network), clock=clock)
    endpoint = await worker.listen()
    # As if a hub had told of it.
    record = mesh.Instance(service="bare", id="bare-1", epoch=1, worker=worker.identity, endpoint=endpoint)
    change = caller.table.snapshot("mem://none", 1, 1, False, [record])
    assert change.joined == (record,)
    call = caller.call("$worker.info", instance="bare-1")
    await settle()
    done = call.done()
    for node in (caller, worker):
        await node.close()
    assert done, "the call never left: the link was connected, but its hello was not sent"
    assert (await call)["identity"] == worker.identity


async def test_wait_for_returns_with_the_first_instance(m: Mesh):
    """And says that none came in time."""
    await m.node.wait_for("greeting", 0.0)
    waiting = asyncio.ensure_future(m.node.wait_for("fan", 5.0))
    await m.advance(4.0)
    assert not waiting.done()
    await m.start_another(Fan)
    await waiting
    waiting = asyncio.ensure_future(m.node.wait_for("nobody", 5.0))
    await m.advance(5.1)
    with pytest.raises(mesh.Unavailable, match="nobody within 5 s"):
        await waiting


async def test_waiting_may_be_cancelled(m: Mesh):
    """Nothing stays behind."""
    waiting = asyncio.ensure_future(m.node.wait_for("nobody", 5.0))
    await m.settle()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await m.start_another(Fan)


async def test_a_node_knows_what_the_registry_says(m: Mesh):
    """Services, instances, methods, which of them are streams."""
    assert m.node.service_names() == ["greeting"]
    assert m.node.method_names("greeting") == ["count", "hello", "trace"]
    assert (m.node.is_stream("greeting.count"), m.node.is_stream("greeting.hello")) == (True, False)
    assert m.node.method("greeting.nothing") is None
    record = m.node.method("greeting.hello")
    assert record is not None
    assert (record.idempotent, record.timeout_s) == (True, 2.0)


async def test_every_worker_can_be_asked_what_it_is(m: Mesh):
    """$worker.info, by instance; also of an instance that is one of several in its worker."""
    (worker,) = m.workers(Greeting)
    info = await m.call("$worker.info", instance=worker.instance_ids[0])
    assert info["identity"] == worker.identity
    assert (info["in_hand"], info["leaving"], info["waiting"]) == (1, False, 0)
    assert m.node.identity in info["callers"]
    assert [(hub["endpoint"], hub["link"], hub["view"]) for hub in info["hubs"]] == [("mem://hub-1", "open", "learned")]


async def test_every_worker_can_be_asked_what_it_counts(m: Mesh):
    """$worker.metrics: calls answered, by method."""
    for _ in range(3):
        await m.call("greeting.hello", "x")
    with pytest.raises(mesh.BadArguments):
        await m.call("greeting.hello")
    snapshot = await m.call("$worker.metrics", instance=m.workers(Greeting)[0].instance_ids[0])
    (hello,) = [each for each in snapshot["methods"] if (each["side"], each["method"]) == ("server", "hello")]
    assert (hello["count"], hello["in_flight"], hello["errors"]) == (4, 0, {"bad_arguments": 1})
    mine = m.node.recorder.snapshot()["methods"]
    (hello,) = [each for each in mine if (each["side"], each["method"]) == ("client", "hello")]
    assert (hello["count"], hello["in_flight"], hello["errors"]) == (4, 0, {"bad_arguments": 1})


async def test_control_methods_can_be_scattered_over_every_worker(m: Mesh):
    """For pages that show the whole set."""
    await m.start_another(Fan)
    calls = [m.call("$worker.info", instance=each.id) for each in m.node.table]
    assert {info["identity"] for info in await asyncio.gather(*calls)} == {
        worker.identity for service in (Greeting, Fan) for worker in m.workers(service)
    }


async def test_closing_twice_is_harmless(m: Mesh):
    """And whatever is asked afterwards fails as such."""
    await m.node.close()
    await m.node.close()
    with pytest.raises(mesh.Unavailable):
        await m.call("greeting.hello", "x")


@pytest.mark.parametrize(("topic", "how"), [("asked", "acknowledged"), ("told", "to every instance")])
async def test_calls_made_by_a_handler_of_events_belong_to_the_events_trace(topic: str, how: str):
    """Whichever way the event came."""
    async with Mesh(Greeting, Fan, clock=ManualClock()) as m:
        token = traces.current.set(TRACE)
        try:
            await m.emit(topic)
        finally:
            traces.current.reset(token)
        await m.settle()
        assert [trace[:36] for trace in m.instances(Fan)[0].traces] == [TRACE[:36]], how
