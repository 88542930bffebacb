"""A whole mesh over tcp with keys: hub, workers and clients with real sockets, each with a key of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import mesh
from mesh import config, ids
from mesh.clock import LoopClock
from mesh.config import AccessRule, AccessSettings, ServeRule, Settings
from mesh.discovery.hub import Hub
from mesh.errors import AddressInUse, Forbidden, Unavailable
from mesh.node.node import Node
from mesh.policy.access import Access
from mesh.transport.curve import key_store
from mesh.transport.zmq_transport import ZmqTransport, from_settings
from mesh.worker.worker import Worker
from tests.patience import until

PATIENCE_S = 10.0


class Greeting(mesh.Service):
    """Says hello, and to whom."""

    name = "greeting"

    def __init__(self) -> None:
        self.heard: list[Any] = []

    @mesh.rpc
    async def hello(self, name: str) -> str:
        return f"Hello, {name}!"

    @mesh.rpc
    async def who(self) -> list[str]:
        """The name that the caller has proved, and the role that it claims."""
        call = mesh.current()
        assert call is not None
        return [call.user, call.caller.rpartition("-")[0]]

    @mesh.on("news.*", to="every")
    async def news(self, event: mesh.Event) -> None:
        self.heard.append(event.data)

    @mesh.on("order.*")
    async def order(self, event: mesh.Event) -> None:
        self.heard.append(event.data)


class Secure:
    """The mesh: everything in it runs in this process, over 127.0.0.1."""

    def __init__(self, directory: Path) -> None:
        self.keys = directory / "keys"
        self.run = directory / "run"
        self.hub_endpoint = ""
        self.hub: Hub
        self._ends: list[Callable[[], Awaitable[object]]] = []
        for name in ("hub", "greeting", "client", "gateway"):
            key_store.make(self.keys, name)

    def settings(self, access: AccessSettings | None = None, **flags: Any) -> Settings:
        flags = {
            "mesh.run_dir": str(self.run),
            "mesh.bind": "tcp://127.0.0.1:*",
            "mesh.hubs": self.hub_endpoint or "tcp://127.0.0.1:1",
            "keys.dir": str(self.keys),
            "worker.stop_timeout": "5s",
        } | {name.replace("__", "."): value for name, value in flags.items()}
        made = config.load(Path("/dev/null"), env={}, flags=flags)
        return msgspec.structs.replace(made, access=access)

    async def start_hub(self) -> ZmqTransport:
        transport = from_settings(self.settings(), "hub")
        self._ends.append(transport.close)
        self.hub = Hub(transport, LoopClock(), identity=ids.instance_id("hub"), epoch=ids.epoch(), learn_s=0.0)
        self._ends.append(self.hub.stop)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    endpoint = await self.hub.start(self.hub_endpoint or "tcp://127.0.0.1:*")
                    break
                except AddressInUse:  # the hub before it has closed, and libzmq's thread has not yet
                    await asyncio.sleep(0.01)
        self.hub_endpoint = endpoint.partition("?")[0]
        return transport

    async def worker(self, access: AccessSettings | None = None) -> Worker:
        worker = Worker([Greeting], self.settings(access))
        self._ends.append(worker.stop)
        listed = len(self.hub.registry)
        await worker.start()
        await until(lambda: len(self.hub.registry) > listed, "the hub knows it")
        return worker

    async def client(self, role: str = "client", wait_s: float = 2.0, **flags: Any) -> Node:
        node = Node(self.settings(**flags), identity=ids.instance_id(role))
        self._ends.append(node.close)
        await node.start(wait_s)
        return node

    async def close(self) -> None:
        for end in reversed(self._ends):
            await end()


@pytest.fixture
async def secure(tmp_path: Path) -> AsyncIterator[Secure]:
    made = Secure(tmp_path)
    try:
        await made.start_hub()
        yield made
    finally:
        await made.close()


# --- working ------------------------------------------------------------------------------------------


async def test_calls_and_events_cross_with_keys(secure: Secure):
    """Calls, events to one and events to every instance, over links that nobody else can read."""
    worker = await secure.worker()
    n = await secure.client()
    assert await n.call("greeting.hello", "ujun") == "Hello, ujun!"
    await n.emit("news.today", 1)
    await n.emit("order.created", 2)
    service = worker.services[0]
    assert isinstance(service, Greeting)
    await until(lambda: sorted(service.heard) == [1, 2], "both events")
    (instance,) = n.instances("greeting")
    assert "?key=" in instance.endpoint
    assert "?key=" in instance.events


async def test_the_callee_knows_the_proved_name_of_its_caller(secure: Secure):
    """Whatever a process calls itself: its key says who it is."""
    await secure.worker()
    honest = await secure.client("gateway")
    assert await honest.call("greeting.who") == ["gateway", "gateway"]
    liar = await secure.client("gateway", keys__name="client")
    assert await liar.call("greeting.who") == ["client", "gateway"]


# --- access -------------------------------------------------------------------------------------------

RULES = AccessSettings(
    allow=(
        AccessRule(callers=("gateway",), services=("greeting",), methods=("hello", "$on")),
        AccessRule(callers=("cl*",), services=("greeting",), methods=("wh?",)),
    )
)


async def test_what_no_rule_allows_is_forbidden(secure: Secure, capsys: pytest.CaptureFixture[str]):
    """By the proved name, by method; the caller gets a clear error at once, the callee logs and counts it."""
    worker = await secure.worker(RULES)
    gateway, client = await secure.client("gateway"), await secure.client("client")
    assert await gateway.call("greeting.hello", "x") == "Hello, x!"
    assert await client.call("greeting.who") == ["client", "client"]
    with pytest.raises(Forbidden) as caught:
        await client.call("greeting.hello", "x", timeout=5.0)
    assert (caught.value.code, caught.value.status, caught.value.retryable) == ("forbidden", 403, False)
    for word in ("'client'", "greeting.hello", "[[access.allow]]", worker.identity):
        assert word in caught.value.message
    for target in ("greeting.who", "greeting.no_such_method"):
        with pytest.raises(Forbidden):
            await gateway.call(target)
    said = capsys.readouterr().err
    assert said.count("call.forbidden") == 3
    assert "target=greeting.hello" in said
    counted = {
        tuple(sorted(one["labels"].items())): one["value"]
        for one in worker.node.recorder.snapshot()["counters"]
        if one["name"] == "calls_forbidden"
    }
    assert counted == {
        (("caller", "client"), ("service", "greeting")): 1,
        (("caller", "gateway"), ("service", "greeting")): 2,
    }


async def test_events_to_one_are_calls_and_need_a_rule(secure: Secure):
    """`$on` is what they call; who may not is told which service did not take it."""
    await secure.worker(RULES)
    gateway, client = await secure.client("gateway"), await secure.client("client")
    await gateway.emit("order.created", 1)
    with pytest.raises(mesh.MeshError) as caught:
        await client.emit("order.created", 2)
    assert caught.value.details["services"]["greeting"]["code"] == "forbidden"


async def test_who_calls_itself_something_else_gains_nothing(secure: Secure):
    """With keys, rules look at the key alone."""
    await secure.worker(RULES)
    liar = await secure.client("gateway", keys__name="client")
    with pytest.raises(Forbidden, match=r"'client'.* greeting\.hello"):
        await liar.call("greeting.hello", "x")


async def test_a_hub_lists_only_who_may_run_what_it_runs(secure: Secure, capsys: pytest.CaptureFixture[str]):
    """A key for one service is not a key for all: others' calls do not come to it."""
    secure.hub.access = Access((), [ServeRule(workers=("orders",), services=("greeting",))])
    worker = Worker([Greeting], secure.settings())
    secure._ends.append(worker.stop)
    await worker.start()
    await until(lambda: worker.node.agent.hubs_status()[0].reason, "the hub has refused it")
    reason, logged = worker.node.agent.hubs_status()[0].reason, capsys.readouterr().err
    for word in ("'greeting'", "[[access.serve]]", secure.hub.identity):
        assert word in reason
        assert word in logged
    assert len(secure.hub.registry) == 0


async def test_leases_belong_to_keys(secure: Secure):
    """Whoever gives itself another's identity can neither end nor prolong what that one has registered."""
    worker = await secure.worker()
    liar = await secure.client("client")
    liar.agent._uplinks[0].leave([(worker.instance_ids[0], worker.node.epoch)])
    impostor = Node(secure.settings(keys__name="client"), identity=worker.identity)
    secure._ends.append(impostor.close)
    await impostor.start(2.0)
    impostor.agent._uplinks[0].leave([(worker.instance_ids[0], worker.node.epoch)])
    assert await impostor.call("greeting.who") == ["client", "greeting"]
    assert len(secure.hub.registry) == 1


# --- rotating -----------------------------------------------------------------------------------------


async def test_a_service_is_given_a_new_key_under_load(secure: Secure):
    """Rotate, replace the worker, revoke the old key: no call fails, and the old worker would be nobody now."""
    old = await secure.worker()
    n = await secure.client()
    assert await n.call("greeting.hello", "x") == "Hello, x!"
    stop = asyncio.Event()
    answered = 0

    async def calls() -> None:
        nonlocal answered
        while not stop.is_set():
            assert await n.call("greeting.hello", "x", timeout=5.0) == "Hello, x!"
            answered += 1
            await asyncio.sleep(0.001)

    load = [asyncio.create_task(calls()) for _ in range(8)]
    try:
        key_store.rotate(secure.keys, "greeting")
        new = await secure.worker()
        await until(lambda: n.client.links("greeting") == 2, "the new one is called as well")
        await old.drain()
        await old.stop()
        key_store.revoke(secure.keys, "greeting", retiring=True)
        before = answered
        await until(lambda: n.transport._ring.name_of(old.node.transport._ring.own.public) is None, "known", 3.0)
        await until(lambda: answered > before + 50, "it goes on")
    finally:
        stop.set()
        await asyncio.gather(*load)
    (instance,) = n.instances("greeting")
    assert instance.endpoint.endswith(new.node.transport._ring.own.public.hex())


async def test_a_hub_is_given_a_new_key(secure: Secure):
    """Processes that know both keys find it again, whichever it has: nothing that runs is restarted."""
    await secure.worker()
    n = await secure.client()
    assert await n.call("greeting.hello", "x") == "Hello, x!"
    key_store.rotate(secure.keys, "hub")
    await asyncio.gather(*(until(lambda r=r: len(r.hubs("", "")) == 2, "both keys", 3.0) for r in rings(secure)))
    first = secure.hub.identity
    await secure.hub.stop()
    await secure.start_hub()
    assert secure.hub.identity != first
    await until(lambda: len(secure.hub.registry) == 1, "the worker has registered with the new one")
    late = await secure.client("gateway")
    assert await late.call("greeting.hello", "y") == "Hello, y!"
    assert await n.call("greeting.hello", "x") == "Hello, x!"


def rings(secure: Secure) -> list[Any]:
    nodes = [end.__self__ for end in secure._ends if isinstance(getattr(end, "__self__", None), (Node, Worker))]
    return [(each.node if isinstance(each, Worker) else each).transport._ring for each in nodes]


# --- wrong keys ---------------------------------------------------------------------------------------


async def test_a_client_whose_key_is_unknown_is_told_why(secure: Secure, tmp_path: Path):
    """It does not look like a dead hub: the reason says whose key, and what is the matter with it."""
    theirs = tmp_path / "theirs"
    key_store.make(theirs, "client")
    (theirs / "hub.public").write_text((secure.keys / "hub.public").read_text())
    (theirs / "hub.public").chmod(0o600)
    stranger = await secure.client("client", wait_s=0.0, keys__dir=str(theirs))
    await until(lambda: stranger.agent.hubs_status()[0].reason, "a reason", 5.0)
    assert "key 'client'" in stranger.agent.hubs_status()[0].reason


async def test_a_worker_whose_key_is_unknown_to_its_caller_is_named(secure: Secure, tmp_path: Path):
    """The hub knows it, the caller does not: calls say so, within a second and not at their deadline, and go through as
    soon as the key is there. The worker's log tells as well."""
    partial = some_keys(secure, tmp_path / "partial", "hub.public", "client.public", "client.secret")
    worker = await secure.worker()
    n = await secure.client("client", keys__dir=str(partial))
    for kind in ({}, {"instance": worker.instance_ids[0]}, {"key": "x"}):
        async with asyncio.timeout(5.0):
            with pytest.raises(
                Unavailable,
                match=rf"{worker.identity}: tcp://127.*: .*key \w+ .*{partial}",
            ) as caught:
                await n.call("greeting.hello", "x", timeout=30.0, **kind)
        assert (caught.value.to_wire()["code"], caught.value.retryable) == ("unavailable", True)
    await until(lambda: refused(worker.node).get("other_key_expected"), "the worker has noticed", 5.0)
    some_keys(secure, partial, "greeting.public")
    await until(lambda: n.client.links("greeting") == 1, "it is believed now", 5.0)
    assert await n.call("greeting.hello", "x") == "Hello, x!"


async def test_a_caller_whose_key_is_unknown_to_its_callee_alone_is_told_within_a_second(
    secure: Secure, tmp_path: Path
):
    """The hub lets it in; the worker does not, and says whose key it was; a call does not wait for its deadline."""
    theirs = some_keys(secure, tmp_path / "theirs", "hub.public", "greeting.public", "greeting.secret")
    worker = Worker([Greeting], secure.settings(keys__dir=str(theirs)))
    secure._ends.append(worker.stop)
    await worker.start()
    n = await secure.client()
    await until(lambda: n.instances("greeting"), "it is listed")
    async with asyncio.timeout(5.0):
        with pytest.raises(Unavailable, match=r"greeting-.* key 'client'"):
            await n.call("greeting.hello", "x", timeout=30.0)
    assert refused(worker.node)["unknown_key"] >= 1


async def test_a_call_that_keys_keep_from_every_hub_says_so_within_a_second(secure: Secure, tmp_path: Path):
    """Neither joining nor calling waits for what cannot come."""
    theirs = some_keys(secure, tmp_path / "theirs", "client.public", "client.secret")
    async with asyncio.timeout(5.0):
        n = await secure.client("client", wait_s=30.0, keys__dir=str(theirs))
        assert not n.agent.synced
        with pytest.raises(Unavailable, match=r"tcp://.*: .*key of 'hub'"):
            await n.call("greeting.hello", "x", timeout=30.0)
    some_keys(secure, theirs, "hub.public")
    await until(lambda: n.agent.synced, "it is let in now", 5.0)
    assert n.agent.refused == ""


def some_keys(secure: Secure, to: Path, *files: str) -> Path:
    """A directory with these files of the mesh's keys."""
    to.mkdir(mode=0o700, exist_ok=True)
    for name in files:
        (to / name).touch(0o600)
        (to / name).write_text((secure.keys / name).read_text())
    return to


def refused(node: Node) -> dict[str, float]:
    """Links refused so far, by reason."""
    samples = node.recorder.snapshot()["counters"]
    return {one["labels"]["reason"]: one["value"] for one in samples if one["name"] == "links_refused"}
