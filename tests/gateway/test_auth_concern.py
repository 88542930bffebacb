"""The concern `auth`: which requests require a caller, refusals, and the identity that services see.

With a method of the test's own, `X-Caller: name[;role,role[;scope,scope]]`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from gateway_auth import gateway_of, open_desk
from gateway_fakes import FakeNode
from gateway_front import Front

from mesh.config import Settings
from mesh.config.edge_auth import AuthSettings, read_requirement, show_requirement
from mesh.discovery.record import EdgePolicy, RouteRecord, TaskRecord
from mesh.errors import ConfigError, Unauthenticated
from mesh.gateway.edge.auth import registry
from mesh.gateway.edge.auth.contract import Authenticator, AuthUnavailable
from mesh.gateway.edge.identity import Identity
from mesh.gateway.request import Request
from mesh.gateway.server import Gateway


async def authenticate(request: Request) -> Identity | None:
    told = request.headers.get("X-Caller")
    if told is None:
        return None
    if told == "down":
        raise AuthUnavailable("the provider is down")
    if told == "wrong":
        raise Unauthenticated("wrong")
    name, roles, scopes, tenant = [*told.split(";"), "", "", ""][:4]
    return Identity(name, "test", frozenset(scopes.split(",")), frozenset(roles.split(",")), tenant)


METHOD = Authenticator(name="test", authenticate=authenticate, challenge='Test realm="mesh"')
OTHER = Authenticator(name="other", authenticate=lambda request: _none(), challenge='Other realm="mesh"')


async def _none() -> None:
    return None


@pytest.fixture
def auth(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> Callable[..., Settings]:
    monkeypatch.setattr(registry, "AUTHENTICATORS", (lambda _: METHOD, lambda _: None, lambda _: OTHER))

    def make(**values: Any) -> Settings:
        return Settings(mesh=settings.mesh, gateway=settings.gateway, auth=AuthSettings(**values))

    return make


@pytest.fixture
async def secured(node: FakeNode, auth: Callable[..., Settings]) -> AsyncIterator[Front]:
    open_desk(node)
    node.snapshots["desk-1"] = None
    async with gateway_of(node, auth(mounts={"/metrics": read_requirement("role:operator")})) as front:
        yield front


@pytest.mark.parametrize(
    ("path", "caller", "status"),
    [
        ("/plain", None, 401),
        ("/plain", "ann", 200),
        ("/user", None, 401),
        ("/user", "ann", 200),
        ("/open", None, 200),
        ("/open", "ann", 200),
        ("/write", "ann", 403),
        ("/write", "ann;;orders:read", 403),
        ("/write", "ann;;orders:read,orders:write", 200),
        ("/clerk", "ann;cook", 403),
        ("/clerk", "ann;cook,manager", 200),
        ("/nowhere", None, 401),
        ("/nowhere", "ann", 404),
        ("/rpc/desk/whoami", None, 401),
        ("/rpc/desk/none", None, 401),
        ("/rpc/desk/whoami", "ann", 405),
        ("/tasks/desk/none", None, 401),
        ("/jobs/1", None, 401),
        ("/mesh", None, 401),
        ("/docs", None, 401),
        ("/openapi.json", None, 401),
        ("/openapi.json", "ann", 200),
        ("/metrics", "ann", 403),
        ("/metrics", "ann;operator", 200),
        ("/livez", None, 200),
        ("/readyz", None, 200),
        ("/readyz?verbose", None, 401),
        ("/livez?verbose", "ann", 200),
        ("/", None, 401),
        ("/", "ann", 302),
        # A wrong credential: refused where one is required, ignored where none is.
        ("/plain", "wrong", 401),
        ("/open", "wrong", 200),
        ("/plain", "down", 503),
        ("/open", "down", 200),
        ("/plain", "x" * 300, 401),
        ("/plain", "ann;;;" + "x" * 300, 401),
    ],
)
async def test_who_may_do_what(secured: Front, path: str, caller: str | None, status: int):
    answer = await secured.get(path, headers={} if caller is None else {"X-Caller": caller})
    assert answer.status == status
    if status in (401, 403):
        assert answer.json["code"] == {401: "unauthenticated", 403: "forbidden"}[status]
        assert ("WWW-Authenticate" in answer.headers) == (status == 401)
    if caller == "down" and status == 503:
        assert answer.json["code"] == "auth_unavailable"


async def test_a_refusal_names_all_methods_or_the_one_that_refused(secured: Front):
    missing = await secured.get("/user")
    assert missing.headers.getall("WWW-Authenticate") == ['Test realm="mesh"', 'Other realm="mesh"']
    wrong = await secured.get("/user", headers={"X-Caller": "wrong"})
    assert wrong.headers.getall("WWW-Authenticate") == ['Test realm="mesh"']


async def test_a_service_may_refuse_a_caller_with_the_challenges_of_the_gateway(secured: Front):
    async def refuse() -> None:
        raise Unauthenticated("log in again")

    secured.node.serve("strict", [RouteRecord("GET", "/strict", "refuse")], refuse=refuse)
    answer = await secured.get("/strict", headers={"X-Caller": "ann"})
    assert (answer.status, answer.json["code"]) == (401, "unauthenticated")
    assert answer.headers.getall("WWW-Authenticate") == ['Test realm="mesh"', 'Other realm="mesh"']


async def test_services_see_principal_and_tenant_of_their_own_request_only(secured: Front):
    """Also on one connection, whose requests are answered by one asyncio task."""
    assert (await secured.get("/user", headers={"X-Caller": "ann;;;acme"})).json == "ann@acme"
    assert (await secured.get("/open")).json in ("@", "-")
    assert (await secured.get("/user", headers={"X-Caller": "bob"})).json == "bob@"
    assert (await secured.get("/open", headers={"X-Caller": "wrong"})).json in ("@", "-")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://app.example", "Access-Control-Request-Method": "GET"}, 204),
        ({"Access-Control-Request-Method": "GET"}, 401),
        ({"Origin": "https://app.example"}, 401),
        ({}, 401),
    ],
)
async def test_only_preflights_pass_without_a_credential(secured: Front, headers: dict[str, str], status: int):
    assert (await secured.ask("OPTIONS", "/user", headers=headers)).status == status


async def test_the_default_can_be_none_and_decorators_still_hold(node: FakeNode, auth: Callable[..., Settings]):
    open_desk(node)
    mounts = {"/mesh": read_requirement("user"), "/livez": read_requirement("user")}
    async with gateway_of(node, auth(default=read_requirement("none"), mounts=mounts)) as front:
        found = {path: (await front.get(path)).status for path in ("/plain", "/open", "/user", "/mesh", "/livez", "/x")}
        assert found == {"/plain": 200, "/open": 200, "/user": 401, "/mesh": 401, "/livez": 401, "/x": 404}


async def test_what_authenticates_is_shown_without_secrets(secured: Front):
    edge = (await secured.get("/mesh", headers={"X-Caller": "ann"})).json["edge"]
    assert edge == [{"name": "auth", "methods": [{"name": "test"}, {"name": "other"}]}]


async def test_refusals_are_counted(secured: Front):
    await secured.get("/user")
    await secured.get("/user", headers={"X-Caller": "wrong"})
    await secured.get("/clerk", headers={"X-Caller": "ann"})
    counter = secured.node.recorder.counter
    for method, code in (("", "unauthenticated"), ("test", "unauthenticated"), ("test", "forbidden")):
        assert counter("http_auth_refused", method=method, code=code).value == 1


def test_a_mount_that_there_is_not_is_an_error(node: FakeNode, auth: Callable[..., Settings]):
    with pytest.raises(ConfigError, match=r'auth\.mounts: there is no mount "/metric"'):
        Gateway(node, auth(mounts={"/metric": read_requirement("none")}))


# --- a gateway without a method ------------------------------------------------------------------------


async def test_without_a_method_protected_routes_are_refused_and_all_others_are_as_before(
    node: FakeNode, settings: Settings
):
    async with gateway_of(node, settings) as front:
        assert (await front.get("/nowhere")).status == 404
        assert not front.gateway._wrapped
        open_desk(node)
        for path in ("/user", "/write", "/clerk"):
            answer = await front.get(path)
            assert (answer.status, answer.json["code"]) == (500, "auth_not_configured")
        assert [(await front.get(path)).status for path in ("/plain", "/open", "/mesh")] == [200, 200, 200]


async def test_services_without_protected_routes_add_nothing_to_the_path_of_requests(
    node: FakeNode, settings: Settings
):
    node.serve("free", [RouteRecord("GET", "/free", "get", edge=EdgePolicy(auth="none"))], get=_none)
    async with gateway_of(node, settings) as front:
        assert (await front.get("/free")).status == 200
        assert not front.gateway._wrapped


# --- the syntax of a requirement -----------------------------------------------------------------------


@pytest.mark.parametrize("text", ["none", "user", "role:ops", "scope:a:b", "role:a role:b scope:c"])
def test_requirements_are_read_and_shown(text: str):
    assert show_requirement(read_requirement(text)) == text


@pytest.mark.parametrize("text", ["", "all", "role:", "role:ä", "none user", "ops", 3, None])
def test_other_texts_are_no_requirements(text: Any):
    with pytest.raises(ValueError):  # noqa: PT011  # the caller has the message
        read_requirement(text)


# --- routes that appear while a caller is authenticated --------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "path"), [("GET", "/clerk"), ("POST", "/rpc/desk/whoami"), ("POST", "/tasks/desk/pack")]
)
async def test_a_route_that_appears_meanwhile_is_not_reached_without_its_policy(
    node: FakeNode, auth: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, verb: str, path: str
):
    """Authentication may wait for keys; meanwhile a service starts, whose route requires a role."""
    clerk = EdgePolicy(auth="user", roles=["clerk"])

    async def slow(request: Request) -> Identity:
        if "desk-1" not in node.instances:
            assert request.entry.name == ""
            open_desk(node)
            desk = node.instances["desk-1"]
            whoami = msgspec.structs.replace(desk.methods["whoami"], edge=clerk)
            node.join(
                msgspec.structs.replace(
                    desk, methods={"whoami": whoami}, tasks={"pack": TaskRecord("pack", exposed=True, edge=clerk)}
                )
            )
        return Identity("ann", "slow")

    monkeypatch.setattr(registry, "AUTHENTICATORS", (lambda _: Authenticator(name="slow", authenticate=slow),))
    async with gateway_of(node, auth()) as front:
        first = await front.ask(verb, path)
        assert (first.status, first.json["code"]) == (503, "unavailable")
        second = await front.ask(verb, path)
        assert (second.status, second.json["code"]) == (403, "forbidden")
