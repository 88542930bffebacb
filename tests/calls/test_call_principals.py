"""Rules for principals at the callee: decided for each call, believed from the gateway alone, and never laundered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

import mesh
from mesh.calls.authorization import REMEMBERED_PRINCIPALS
from mesh.calls.options import CallOptions
from mesh.calls.propagation import PRINCIPAL, ROLES, UNVERIFIED
from mesh.events.event import Parcel
from mesh.testing import Mesh, no_leaks
from tests.patience import until

pytestmark = pytest.mark.timeout(60)


def seen() -> dict[str, Any]:
    context = mesh.current()
    assert context is not None
    return {
        "principal": context.principal,
        "roles": sorted(context.roles),
        "scopes": sorted(context.scopes),
        "verified": context.verified,
    }


class Ledger(mesh.Service):
    name = "ledger"

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []

    @mesh.rpc
    async def read(self) -> dict[str, Any]:
        return seen()

    @mesh.rpc
    async def write(self, amount: int) -> dict[str, Any]:
        return seen()

    @mesh.rpc
    async def rows(self) -> AsyncIterator[dict[str, Any]]:
        yield seen()

    @mesh.rpc
    async def open(self) -> dict[str, Any]:
        return seen()

    @mesh.rpc(offload="process")
    def in_process(self) -> dict[str, Any]:
        return seen()

    @mesh.on("ledger.one")
    async def one(self, event: mesh.Event) -> None:
        self.heard.append(seen())

    @mesh.on("ledger.every", to="every")
    async def every(self, event: mesh.Event) -> None:
        self.heard.append(seen())


class Asks(mesh.Service):
    """Calls the ledger as another process would: with a scope, with forged metadata, or passing on what it received."""

    @mesh.rpc
    async def ask(self, target: str, args: list[Any], meta: dict[str, str] | None) -> Any:
        try:
            return await self.call(target, *args, meta=meta)
        except mesh.Forbidden as error:
            return error.code

    @mesh.rpc
    async def ask_as(self, target: str, args: list[Any], principal: str, roles: list[str]) -> Any:
        context = mesh.current()
        assert context is not None
        context.principal = principal
        context.roles = roles
        return await self.ask(target, args, None)

    @mesh.rpc
    async def first(self, target: str, principal: str) -> Any:
        context = mesh.current()
        assert context is not None
        context.principal = principal
        try:
            async for item in self.node.stream(target):
                return item
        except mesh.Forbidden as error:
            return error.code

    @mesh.rpc
    async def tell(self, topic: str, principal: str) -> None:
        context = mesh.current()
        assert context is not None
        context.principal = principal
        await self.emit(topic, 1)


class Gateway(Asks):
    name = "gateway"


class Evil(Asks):
    """Has a key of its own, and rules that name it."""

    name = "evil"


class Relay(Asks):
    """Is trusted to assert principals, and passes on those of its callers."""

    name = "relay"


RULES = [
    {"caller": "client", "service": ["gateway", "evil", "relay"]},
    {"caller": "evil", "service": "relay"},
    {"caller": "gateway", "service": "relay"},
    {"caller": "*", "service": "ledger", "methods": ["open", "$on", "in_process"]},
    {"caller": "*", "service": "ledger", "methods": ["read", "rows"], "principals": ["alice", "svc-*"]},
    {"caller": "*", "service": "ledger", "methods": ["write"], "roles": ["clerk"]},
]


@pytest.fixture(params=["memory", "ipc"])
async def m(request: pytest.FixtureRequest) -> AsyncIterator[Mesh]:
    settings = {"access.allow": RULES, "access.assert": ["gateway", "relay"]}
    async with no_leaks(), Mesh(Ledger, Gateway, Evil, Relay, settings=settings, transport=request.param) as m:
        yield m


async def test_each_call_is_decided_by_its_principal(m: Mesh) -> None:
    """Over one link, in any order: a decision about one principal is no decision about another."""
    for _ in range(2):
        for principal, allowed in (("alice", True), ("bob", False), ("svc-mail", True), ("", False)):
            found = await m.call("gateway.ask_as", "ledger.read", [], principal, [])
            assert (found != "forbidden") is allowed
            if allowed:
                assert found == {"principal": principal, "roles": [], "scopes": [], "verified": True}


async def test_each_call_is_decided_by_its_roles(m: Mesh) -> None:
    for roles, allowed in ((["clerk"], True), (["admin", "clerk"], True), (["admin"], False), ([], False)):
        found = await m.call("gateway.ask_as", "ledger.write", [1], "alice", roles)
        assert (found != "forbidden") is allowed
    assert await m.call("gateway.ask_as", "ledger.write", [1], "alice", ["clerk", "a"]) == {
        "principal": "alice",
        "roles": ["a", "clerk"],
        "scopes": [],
        "verified": True,
    }


async def test_streams_are_decided_likewise(m: Mesh) -> None:
    assert (await m.call("gateway.first", "ledger.rows", "alice"))["principal"] == "alice"
    assert await m.call("gateway.first", "ledger.rows", "bob") == "forbidden"
    assert await m.call("evil.first", "ledger.rows", "alice") == "forbidden"


@pytest.mark.parametrize(
    "meta",
    [
        {PRINCIPAL: "alice"},
        {PRINCIPAL: "svc-x"},
        {PRINCIPAL: "alice", ROLES: "clerk"},
        {PRINCIPAL: "alice", UNVERIFIED: ""},
        {PRINCIPAL: "*"},
        {ROLES: "clerk"},
        {PRINCIPAL: "alice\n"},
        {"mesh.user": "gateway", PRINCIPAL: "alice"},
    ],
)
async def test_a_process_that_may_not_assert_principals_cannot_forge_one(m: Mesh, meta: dict[str, str]) -> None:
    """It has links and rules of its own; a rule for principals applies to none of its calls."""
    assert await m.call("evil.ask", "ledger.read", [], meta) == "forbidden"
    assert await m.call("evil.ask", "ledger.write", [1], meta) == "forbidden"
    found = await m.call("evil.ask", "ledger.open", [], meta)
    assert found["verified"] is False


@pytest.mark.parametrize("meta", [{PRINCIPAL: "alice", UNVERIFIED: "1"}, {ROLES: "clerk"}, {PRINCIPAL: "x" * 257}])
async def test_malformed_or_marked_values_count_for_nothing(m: Mesh, meta: dict[str, str]) -> None:
    """From the gateway too."""
    assert await m.call("gateway.ask", "ledger.read", [], meta) == "forbidden"
    assert await m.call("gateway.ask", "ledger.write", [1], meta) == "forbidden"


async def test_a_trusted_process_does_not_launder_a_forged_principal(m: Mesh) -> None:
    """The relay asserts principals; those that it received from another process stay unverified."""
    asked = ["relay.ask", ["ledger.read", [], None]]
    assert (await m.call("gateway.ask_as", *asked, "alice", []))["verified"] is True
    assert await m.call("evil.ask_as", *asked, "alice", []) == "forbidden"
    asked = ["relay.ask", ["ledger.open", [], None]]
    assert await m.call("evil.ask_as", *asked, "alice", ["clerk"]) == {
        "principal": "alice",
        "roles": ["clerk"],
        "scopes": [],
        "verified": False,
    }


async def test_a_trusted_process_may_name_another_principal(m: Mesh) -> None:
    """It has authenticated it by itself. The roles of the principal before are not those of this one."""
    asked = ["relay.ask_as", ["ledger.read", [], "alice", []]]
    found = await m.call("evil.ask_as", *asked, "mallory", ["clerk"])
    assert found == {"principal": "alice", "roles": [], "scopes": [], "verified": True}


async def test_child_processes_know_whether_the_principal_is_verified(m: Mesh) -> None:
    asked = ["ledger.in_process", [], "alice", ["clerk"]]
    assert (await m.call("gateway.ask_as", *asked)) == {
        "principal": "alice",
        "roles": ["clerk"],
        "scopes": [],
        "verified": True,
    }
    assert (await m.call("evil.ask_as", *asked))["verified"] is False


async def test_events_do_not_verify_a_principal(m: Mesh) -> None:
    """To one instance: as the call that delivers it. To every instance: never, anyone may publish."""
    heard = m.instances(Ledger)[0].heard
    await m.call("gateway.tell", "ledger.one", "alice")
    await m.call("evil.tell", "ledger.one", "alice")
    assert [each["verified"] for each in heard] == [True, False]
    heard.clear()
    await m.call("gateway.tell", "ledger.every", "alice")
    await until(lambda: heard, "the event")
    assert heard == [{"principal": "alice", "roles": [], "scopes": [], "verified": False}]


async def test_the_parcel_of_an_event_cannot_bring_another_principal(m: Mesh) -> None:
    """A raw call of `$on` whose event names a principal that the call does not."""
    (evil,) = m.workers(Evil)
    parcel = msgspec.msgpack.encode(Parcel("ledger.one", "evil", 1, 0, b"\xc0", 0, "", {PRINCIPAL: "alice"}))
    await evil.node.client.call("ledger.$on", parcel, 0, CallOptions(5.0))
    assert [each["verified"] for each in m.instances(Ledger)[0].heard] == [False]


async def test_a_denial_names_the_principal_and_no_rule(m: Mesh) -> None:
    (gateway,) = m.workers(Gateway)
    with mesh.scope(principal="bob"), pytest.raises(mesh.Forbidden) as caught:
        await gateway.node.call("ledger.read")
    assert (caught.value.code, caught.value.status) == ("forbidden", 403)
    assert caught.value.details == {"caller": "gateway", "target": "ledger.read", "principal": "bob"}
    (worker,) = m.workers(Ledger)
    counted = [
        (one["labels"], one["value"])
        for one in worker.node.recorder.snapshot()["counters"]
        if one["name"] == "calls_forbidden"
    ]
    assert counted == [({"caller": "gateway", "service": "ledger"}, 1)]


async def test_many_principals_take_bounded_memory(m: Mesh) -> None:
    (gateway,) = m.workers(Gateway)
    (worker,) = m.workers(Ledger)
    server = worker.node.server
    assert server is not None
    assert server._authorization is not None
    server._authorization._principals.update(
        {("x", "y", str(number), ""): None for number in range(REMEMBERED_PRINCIPALS - 1)}
    )
    for number in range(3):
        with mesh.scope(principal=f"svc-{number}"):
            await gateway.node.call("ledger.read")
    assert len(server._authorization._principals) <= REMEMBERED_PRINCIPALS
    with mesh.scope(principal="svc-1", roles=[f"{number:0100}" for number in range(20)]):
        await gateway.node.call("ledger.read")
    assert not any(len(key[3]) > 512 for key in server._authorization._principals)


async def test_without_access_every_principal_is_verified() -> None:
    async with Mesh(Ledger, Evil) as m:
        assert (await m.call("evil.ask_as", "ledger.read", [], "alice", ["clerk"])) == {
            "principal": "alice",
            "roles": ["clerk"],
            "scopes": [],
            "verified": True,
        }
        assert (await m.call("ledger.read"))["verified"] is False
