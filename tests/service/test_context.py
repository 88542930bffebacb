"""The context of work: tenant, principal, baggage and trace reach everything that the work causes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

import mesh
from mesh.calls.context import PlainContext
from mesh.calls.propagation import BAGGAGE, PRINCIPAL, ROLES, SCOPES, TENANT, TRACESTATE, UNVERIFIED, split, take
from mesh.errors import BadArguments, SetupError
from mesh.telemetry import baggage
from mesh.telemetry.traces import root
from mesh.testing import Mesh
from tests.patience import until
from tests.service.interceptor_services import Tell

CARRIED: dict[str, Any] = {
    "tenant": "acme",
    "principal": "ann",
    "roles": ["clerk", "team:7"],
    "scopes": ["orders:write"],
    "baggage": {"plan": "free of charge"},
}
NOTHING: dict[str, Any] = {"tenant": "", "principal": "", "roles": [], "scopes": [], "baggage": {}}


@pytest.fixture(params=["memory", "ipc"])
async def m(request: pytest.FixtureRequest) -> AsyncIterator[Mesh]:
    async with Mesh(Tell, transport=request.param) as mesh_under_test:
        yield mesh_under_test


def carried(seen: dict[str, Any]) -> dict[str, Any]:
    return {name: seen[name] for name in CARRIED}


async def test_a_call_and_the_calls_of_its_handler_have_the_context(m: Mesh):
    trace = root()
    with mesh.scope(trace=trace, **CARRIED):
        here, following = await m.call("tell.here"), await m.call("tell.next")
    assert carried(here) == carried(following) == CARRIED
    assert here["trace"] == following["trace"] == trace[3:35]
    assert here["target"] == "tell.here"
    assert here["attempt"] == 1


async def test_work_without_a_context_has_empty_values(m: Mesh):
    seen = await m.call("tell.next")
    assert carried(seen) == NOTHING


async def test_one_caller_does_not_leave_its_context_to_the_next(m: Mesh):
    with mesh.scope(**CARRIED):
        await m.call("tell.here")
    assert carried(await m.call("tell.here"))["tenant"] == ""


async def test_a_handler_changes_the_context_of_what_it_causes(m: Mesh):
    with mesh.scope(**CARRIED):
        assert carried(await m.call("tell.change", "other")) == {**CARRIED, "tenant": "other"}
        assert carried(await m.call("tell.change", "")) == {**CARRIED, "tenant": ""}


async def test_streams_threads_and_processes_have_the_context(m: Mesh):
    trace = root()
    with mesh.scope(trace=trace, **CARRIED):
        items = [item async for item in m.stream("tell.items")]
        thread, process = await m.call("tell.in_thread"), await m.call("tell.in_process")
    for seen in (*items, thread, process):
        assert carried(seen) == CARRIED
        assert seen["trace"] == trace[3:35]
    assert process["target"] == "tell.in_process"


async def test_tasks_and_chains_have_the_context(m: Mesh):
    trace = root()
    with mesh.scope(trace=trace, **CARRIED):
        job = await m.defer(Tell.later)
        child = await m.defer(Tell.later_in_process)
        last = await m.chain(mesh.step(Tell.later), mesh.step(Tell.following, mesh.prior))
        group = await m.group(mesh.step(Tell.later), mesh.step(Tell.later))
        async with m.batch() as batch:
            batched = batch.defer(Tell.later)
    in_process = await child.result()
    assert in_process.pop("job") == child.id
    for seen in (await job.result(), in_process, *await last.result(), *await group.results(), await batched.result()):
        assert carried(seen) == CARRIED
        assert seen["trace"] == trace[3:35]
        assert seen["attempt"] == 1


async def test_events_have_the_context_and_the_users_metadata_without_it(m: Mesh):
    with mesh.scope(**CARRIED):
        for topic in ("plain", "all"):
            await m.emit(topic, 1, meta={"own": "yes"})
        await m.emit("kept", 1, durable=True, meta={"own": "yes"})
    heard = m.instances(Tell)[0].heard
    await until(lambda: len(heard) == 3)
    for seen in heard.values():
        assert carried(seen) == CARRIED
        assert seen["meta"] == {"own": "yes"}
    assert carried(heard["kept"]["next"]) == CARRIED


async def test_a_scope_inherits_from_the_scope_around_it_and_ends(m: Mesh):
    with mesh.scope(tenant="acme"):
        with mesh.scope(principal="bob"):
            assert carried(await m.call("tell.here")) == {**NOTHING, "tenant": "acme", "principal": "bob"}
        assert carried(await m.call("tell.here"))["principal"] == ""
    assert mesh.current() is None


async def test_a_scope_in_a_handler_is_refused():
    class Asks(mesh.Service):
        @mesh.rpc
        async def scope(self) -> str:
            with pytest.raises(SetupError), mesh.scope(tenant="x"):
                pass
            return mesh.current().tenant  # type: ignore[union-attr]

    async with Mesh(Asks) as m:
        assert await m.call("asks.scope") == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [("tenant", "a\nb"), ("tenant", "x" * 257), ("principal", 7), ("baggage", {"a b": "c"}), ("baggage", {"a": 1})],
)
def test_invalid_values_are_refused_where_they_are_set(name: str, value: Any):
    with pytest.raises(BadArguments), mesh.scope(**{name: value}):
        pass
    assert mesh.current() is None


@pytest.mark.parametrize(
    "names",
    ["clerk", b"clerk", ["a b"], [""], ["a\n"], ["ä"], ["x" * 129], [f"{n:0100}" for n in range(21)], [7], 7, [None]],
)
@pytest.mark.parametrize("which", ["roles", "scopes"])
def test_names_that_are_none_are_refused(which: str, names: Any) -> None:
    """A text is refused too: its letters would be taken for names."""
    context = PlainContext()
    context.principal = "ann"
    with pytest.raises(BadArguments):
        setattr(context, which, names)
    assert context.carried == {PRINCIPAL: "ann"}


def test_roles_belong_to_the_principal() -> None:
    """There are none without one, and another principal does not take them over."""
    context = PlainContext()
    context.roles = ()
    with pytest.raises(BadArguments):
        context.roles = ["clerk"]
    context.principal = "ann"
    context.roles, context.scopes = {"clerk", "admin"}, ("b", "a", "a")
    assert context.carried == {PRINCIPAL: "ann", ROLES: "admin clerk", SCOPES: "a b"}
    assert context.roles == {"admin", "clerk"}
    context.principal = "ann"
    assert context.scopes == {"a", "b"}
    context.principal = "bob"
    assert (context.roles, context.scopes, context.principal) == (frozenset(), frozenset(), "bob")
    context.roles = ["clerk"]
    context.principal = ""
    assert context.carried is None
    assert not context.verified


def test_a_scope_with_another_principal_has_not_the_roles_of_the_one_around_it() -> None:
    with mesh.scope(principal="ann", roles=["clerk"]):
        with mesh.scope(tenant="acme") as same:
            assert same.roles == {"clerk"}
        with mesh.scope(principal="bob") as other:
            assert other.roles == frozenset()


def test_received_roles_without_a_principal_are_dropped() -> None:
    assert split({ROLES: "clerk", SCOPES: "a", UNVERIFIED: "1", TENANT: "acme"}) == ({}, {TENANT: "acme"})
    assert split({ROLES: "clerk"}) == ({}, None)
    assert split({PRINCIPAL: "ann", ROLES: "a  b", SCOPES: " a"}) == ({}, {PRINCIPAL: "ann"})
    assert split({PRINCIPAL: "ann", ROLES: "a b", UNVERIFIED: "no"}) == (
        {},
        {PRINCIPAL: "ann", ROLES: "a b", UNVERIFIED: "1"},
    )


def test_too_much_baggage_is_refused():
    with pytest.raises(BadArguments):
        baggage.render({str(n): "x" for n in range(181)})
    with pytest.raises(BadArguments):
        baggage.render({"a": "x" * 8192})


def test_received_values_that_are_not_valid_are_dropped():
    """The rest of the metadata is kept."""
    meta = {TENANT: "a\nb", PRINCIPAL: "x" * 300, BAGGAGE: "a=\x00", TRACESTATE: "x" * 600, "own": "1"}
    assert split(meta) == ({"own": "1"}, None)
    assert TENANT in meta
    assert take(meta) is None
    assert meta == {"own": "1"}


def test_values_that_are_no_text_are_dropped():
    assert split({TENANT: 7, BAGGAGE: ["a"], "own": "1"}) == ({"own": "1"}, None)  # type: ignore[dict-item]


def test_a_baggage_is_read_as_the_specification_says():
    """W3C Baggage, section 3.3.1: properties are not part of the value, values are percent-encoded."""
    assert baggage.parse("userId=Am%C3%A9lie, serverNode=DF%2028;p=1;q , isProduction=false") == {
        "userId": "Amélie",
        "serverNode": "DF 28",
        "isProduction": "false",
    }
    assert baggage.parse(" , =x, a b=c, key, ok=1") == {"ok": "1"}
    entries = {"a": 'quote " comma , semi ; percent % ü'}
    assert baggage.parse(baggage.render(entries)) == entries
