"""Rate limits at the edge: by whom they count, what clients are told, and what is not limited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest
from edge_rates_front import Client, Shop, serving

from mesh.discovery.record import EdgePolicy, MethodRecord
from mesh.errors import ConfigError, Unavailable
from mesh.gateway.edge.identity import Identity
from mesh.gateway.edge.rate_plans import LATE, Plans, caller_by
from mesh.gateway.entry import Entry
from mesh.gateway.server import Gateway
from mesh.policy.access import Access
from mesh.testing import Mesh
from tests.patience import PATIENCE_S


@pytest.fixture
async def client(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    async with serving(monkeypatch) as client:
        yield client


async def test_a_limit_by_address_counts_each_address(client: Client):
    assert await client.statuses(4, "/guess", address="192.0.2.1") == [200, 200, 200, 429]
    assert await client.statuses(4, "/guess", address="192.0.2.2") == [200, 200, 200, 429]
    await client.mesh.advance(60)
    assert await client.statuses(4, "/guess", address="192.0.2.1") == [200, 200, 200, 429]


async def test_a_limit_by_address_counts_before_authentication(client: Client):
    """Wrong passwords are limited, whatever names they are tried for."""
    assert await client.statuses(4, "/guess", "nobody", "192.0.2.1") == [403, 403, 403, 429]
    assert await client.statuses(1, "/guess", "alice", "192.0.2.1") == [429]
    assert await client.statuses(1, "/guess", "alice", "192.0.2.2") == [200]


async def test_an_ipv6_client_has_one_limit_for_its_network(client: Client):
    found = [(await client.get("/guess", address=f"2001:db8:0:1::{number}")).status for number in range(1, 5)]
    assert found == [200, 200, 200, 429]
    assert await client.statuses(1, "/guess", address="2001:db8:0:2::1") == [200]
    # The same machine over IPv4, in both ways of writing its address.
    found = [(await client.get("/guess", address=each)).status for each in ("192.0.2.9", "::ffff:192.0.2.9") * 2]
    assert found == [200, 200, 200, 429]


async def test_a_limit_by_principal_counts_each_principal_wherever_it_comes_from(client: Client):
    assert await client.statuses(2, "/orders", "alice", "192.0.2.1") == [200, 200]
    assert await client.statuses(1, "/orders", "alice", "192.0.2.2") == [429]
    assert await client.statuses(2, "/orders", "bob", "192.0.2.1") == [200, 200]


async def test_a_caller_without_a_name_counts_by_its_address(client: Client):
    assert await client.statuses(3, "/orders", address="192.0.2.1") == [200, 200, 429]
    assert await client.statuses(1, "/orders", address="192.0.2.2") == [200]
    # A principal may have the name of an address: they are counted apart.
    assert await client.statuses(1, "/orders", "192.0.2.1", "192.0.2.7") == [200]


async def test_tenants_and_keys(client: Client):
    assert await client.statuses(2, "/reports", "alice/acme") == [200, 200]
    assert await client.statuses(1, "/reports", "bob/acme") == [429]
    assert await client.statuses(2, "/reports", "carol/other") == [200, 200]
    assert await client.statuses(3, "/keyed", "alice//key-1") == [200, 200, 429]
    assert await client.statuses(3, "/keyed", "alice//key-2") == [200, 200, 429]
    # Without a key, and without a tenant: by principal.
    assert await client.statuses(3, "/keyed", "dora") == [200, 200, 429]
    assert await client.statuses(3, "/reports", "dora") == [200, 200, 429]


async def test_a_route_has_one_limit_for_all_callers_and_all_its_paths(client: Client):
    assert await client.statuses(2, "/rare", "alice", "192.0.2.1") == [200, 200]
    assert (await client.get("/rpc/shop/rare", "bob", "192.0.2.2", method="POST")).status == 200
    assert await client.statuses(1, "/rare", "carol", "192.0.2.3") == [429]


async def test_several_limits_all_apply_and_a_refused_request_is_not_counted(client: Client):
    found = []
    for _ in range(4):
        found += await client.statuses(3, "/orders", "alice")
        await client.mesh.advance(1)
    assert found == [200, 200, 429, 200, 200, 429, 200, 429, 429, 429, 429, 429]


async def test_clients_are_told_the_limits_and_what_is_left(client: Client):
    answer = await client.get("/orders", "alice")
    assert answer.headers["RateLimit-Policy"] == '"route 2/s";q=2;w=1, "route 5/m by principal";q=5;w=60'
    assert answer.headers["RateLimit"] == '"route 2/s";r=1;t=1, "route 5/m by principal";r=4;t=60'
    assert "Retry-After" not in answer.headers
    answer = await client.get("/free", "alice")
    assert "RateLimit-Policy" not in answer.headers


async def test_a_refusal_says_when_to_come_back(client: Client):
    await client.statuses(3, "/guess")
    await client.mesh.advance(20.5)
    answer = await client.get("/guess")
    problem = await answer.json()
    assert (answer.status, problem["code"], problem["retryable"]) == (429, "rate_limited", True)
    assert problem["details"] == {"limit": "route 3/m by address", "retry_after_s": 40}
    assert answer.headers["Retry-After"] == "40"
    assert answer.headers["RateLimit"] == '"route 3/m by address";r=0;t=40'
    await client.mesh.advance(39)
    assert await client.statuses(1, "/guess") == [429]
    await client.mesh.advance(0.5)
    assert await client.statuses(1, "/guess") == [200]


async def test_refusals_are_counted_by_limit(client: Client):
    await client.statuses(5, "/guess")
    await client.statuses(3, "/orders", "alice")
    assert client.counted("http_rate_limited") == {"shop.guess 3/m by address": 2.0, "shop.orders 2/s": 1.0}


async def test_preflights_have_no_caller_and_do_not_count_for_one(client: Client):
    for _ in range(5):
        assert (await client.get("/orders", method="OPTIONS")).status == 204
    assert await client.statuses(1, "/orders") == [200]


async def test_streams_are_limited_when_they_begin(client: Client):
    assert await client.statuses(3, "/ticks") == [200, 200, 429]


async def test_limits_of_the_settings_apply_to_all_routes_together(monkeypatch: pytest.MonkeyPatch):
    async with serving(monkeypatch, rate=["4/m by address", "2/s by principal"], scope="local") as client:
        assert await client.statuses(2, "/free", "alice") == [200, 200]
        assert await client.statuses(1, "/mesh", "alice") == [429]
        assert await client.statuses(1, "/nowhere", "bob") == [404]
        answer = await client.get("/free", "bob")
        assert (answer.status, answer.headers.getall("RateLimit")) == (429, ['"4/m by address";r=0;t=60'])
        # Probes are answered whatever others of the same address have sent.
        assert await client.statuses(3, "/livez") == [200] * 3
        shown = {each["name"]: each for each in client.gateway.status()["edge"]}
        assert shown["rates by address"] == {
            "name": "rates by address",
            "limits": ["4/m by address"],
            "scope": "local",
        }


async def test_the_limits_of_a_route_and_of_the_settings_add_up(monkeypatch: pytest.MonkeyPatch):
    async with serving(monkeypatch, rate=["3/m"]) as client:
        assert await client.statuses(2, "/orders", "alice") == [200, 200]
        answer = await client.get("/free", "alice")
        assert answer.headers["RateLimit"] == '"3/m";r=0;t=60'
        await client.mesh.advance(1)
        answer = await client.get("/orders", "alice")
        assert answer.headers["RateLimit"] == ('"3/m";r=0;t=59, "route 2/s";r=2;t=0, "route 5/m by principal";r=3;t=59')
        assert answer.headers["Retry-After"] == "59"


async def test_concurrent_requests_of_a_tenant(monkeypatch: pytest.MonkeyPatch):
    async with serving(monkeypatch, concurrency="2 by tenant") as client:
        held = [asyncio.create_task(client.get("/hold", f"{who}/acme")) for who in ("alice", "bob")]
        concern = next(each for each in client.gateway.front.concerns if each.name == "concurrency")
        counted = concern.hook.__self__
        while len(counted) < 1 or max(counted._busy.values()) < 2:  # noqa: ASYNC110  # nothing announces it
            await asyncio.sleep(0.001)
        answer = await client.get("/free", "carol/acme")
        assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
        assert (await answer.json())["details"]["limit"] == "concurrency 2 by tenant"
        assert await client.statuses(1, "/free", "dora/other") == [200]
        Shop.held.set()
        assert [(await each).status for each in held] == [200, 200]
        assert await client.statuses(1, "/free", "carol/acme") == [200]
        assert len(counted) == 0
        assert client.counted("http_rate_limited") == {"concurrency 2 by tenant": 1.0}


async def test_tenants_share_the_queue_of_a_full_service(monkeypatch: pytest.MonkeyPatch):
    """40 requests of one tenant fill it; those of another one are answered all the same."""
    async with serving(monkeypatch, {"concurrency": 2, "queue": 10}) as client:
        flood = [asyncio.create_task(client.get("/hold", "alice/flood")) for _ in range(40)]
        async with asyncio.timeout(PATIENCE_S):
            while sum(each.done() for each in flood) < 28:  # noqa: ASYNC110  # nothing announces it
                await asyncio.sleep(0.001)
        modest = [asyncio.create_task(client.get("/hold", "bob/modest")) for _ in range(5)]
        async with asyncio.timeout(PATIENCE_S):
            while sum(each.done() for each in flood) < 33:  # noqa: ASYNC110  # nothing announces it
                await asyncio.sleep(0.001)
        Shop.held.set()
        assert [(await each).status for each in modest] == [200] * 5
        answers = [await each for each in flood]
        assert sorted(each.status for each in answers) == [200] * 7 + [503] * 33
        assert {each.headers["Retry-After"] for each in answers if each.status == 503} == {"1"}


async def test_without_limits_no_concern_is_in_the_chain():
    """A route that declares one, in a service that starts later, brings the concern in."""
    async with Mesh() as m:
        gateway = Gateway(m.node, m.settings)  # type: ignore[arg-type]
        assert (gateway._wrapped, gateway._answer) == (False, gateway.mounts.serve)
        await m.start_another(Shop)
        assert gateway._wrapped


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        ({"rate": ["100"]}, "gateway.limits.rate"),
        ({"rate": ["0/s"]}, "gateway.limits.rate"),
        ({"rate": ["5/0s"]}, "gateway.limits.rate"),
        ({"rate": ["5/s by name"]}, "gateway.limits.rate"),
        ({"concurrency": "5/s"}, "gateway.limits.concurrency"),
        ({"scope": "world"}, "gateway.limits.scope"),
        ({"keys": 1}, "gateway.limits.keys"),
        ({"rates": ["5/s"]}, "gateway.limits.rates"),
    ],
)
def test_wrong_limits_are_refused_by_name(limits: dict[str, object], named: str):
    with pytest.raises(ConfigError) as caught:
        Mesh(settings={"gateway": {"limits": limits}})
    assert named in caught.value.message


def test_gateways_may_ask_each_other_without_a_rule():
    access = Access([])
    assert access.allows("gateway", "gateway", "$decide_rates")
    assert access.allows("gateway@host-1", "gateway", "$join_rates")
    assert not access.allows("orders", "gateway", "$decide_rates")


async def test_a_limit_that_cannot_be_read_closes_its_route_and_no_other():
    """A newer release may declare limits that this gateway does not know."""
    async with Mesh(Shop) as m:
        gateway = Gateway(m.node, m.settings)  # type: ignore[arg-type]
        plans = Plans([], LATE)
        with pytest.raises(Unavailable):
            plans.of(Entry("/", "shop.new", EdgePolicy(rates=["5/s", "3/week by moon"])))
        assert plans.of(Entry("/", "shop.free")) == ()
        assert gateway.catalog.offers
        offer = gateway.catalog.offers["shop"]
        odd = {"new": MethodRecord("new", edge=EdgePolicy(rates=["3/week by moon"]))}
        gateway.catalog.offers = {"shop": offer._replace(methods=odd, routes=())}
        assert all(
            each.wanted()
            for each in gateway.front.concerns
            if each.wanted is not None and each.name.startswith("rates")
        )


def test_one_method_may_have_routes_with_different_limits():
    plans = Plans([], LATE)
    steps = [plans.of(Entry("/", "shop.x", EdgePolicy(rates=[rate])))[0] for rate in ("1/s", "2/s", "1/s")]
    assert [step.quotas[0].most for step in steps] == [1, 2, 1]
    assert steps[0] is steps[2]


def test_long_names_of_callers_take_little_memory():
    request = SimpleNamespace(identity=Identity("x" * 10_000, "test"), client="192.0.2.1")
    other = SimpleNamespace(identity=Identity("x" * 9_999, "test"), client="192.0.2.1")
    names = {caller_by("principal", each) for each in (request, other)}  # type: ignore[arg-type]
    assert len(names) == 2
    assert max(map(len, names)) < 64
