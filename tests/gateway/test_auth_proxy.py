"""Header fields of a proxy that authenticates callers: trusted from its address, refused from all others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from gateway_auth import gateway_of, open_desk
from gateway_fakes import FakeNode
from gateway_front import Front

from mesh.config import GatewaySettings, Settings
from mesh.config.edge_auth import AuthSettings, ProxySettings
from mesh.errors import ConfigError
from mesh.gateway.server import Gateway

FIELDS = {"header": "X-Forwarded-User", "scopes": "X-Scopes", "roles": "X-Roles", "tenant": "X-Tenant"}


@pytest.fixture
def behind(settings: Settings) -> Callable[..., Settings]:
    def make(*proxies: str, **fields: str) -> Settings:
        gateway = GatewaySettings(port=0, proxies=list(proxies))
        return Settings(
            mesh=settings.mesh, gateway=gateway, auth=AuthSettings(proxy=ProxySettings(**(fields or FIELDS)))
        )

    return make


async def told(front: Front, headers: Any, path: str = "/user") -> tuple[int, Any]:
    answer = await front.get(path, headers=headers)
    return answer.status, answer.json if answer.status == 200 else answer.json["code"]


FORBIDDEN = (403, "forbidden")
UNKNOWN = (401, "unauthenticated")


async def test_a_proxy_names_the_caller(node: FakeNode, behind: Callable[..., Settings]):
    open_desk(node)
    async with gateway_of(node, behind("127.0.0.0/8")) as front:
        named = {"X-Forwarded-User": "ann@example", "X-Tenant": "acme"}
        assert await told(front, named) == (200, "ann@example@acme")
        assert await told(front, {}) == UNKNOWN
        assert await told(front, {"X-Forwarded-User": ""}) == UNKNOWN
        assert await told(front, {"X-Roles": "clerk"}) == UNKNOWN
        assert (await told(front, {**named, "X-Roles": "cook, clerk"}, "/clerk"))[0] == 200
        assert (await told(front, {**named, "X-Scopes": "orders:read orders:write"}, "/write"))[0] == 200
        assert await told(front, {**named, "X-Scopes": "orders:read"}, "/write") == FORBIDDEN
        # X-Forwarded-For, also behind several proxies, has no part in it.
        assert (await told(front, {**named, "X-Forwarded-For": "203.0.113.9"}))[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        [("X-Forwarded-User", "ann"), ("X-Forwarded-User", "admin")],
        [("X-Forwarded-User", "ann"), ("X-Roles", "clerk"), ("X-Roles", "admin")],
        [("X-Forwarded-User", "a" * 300)],
        [("X-Forwarded-User", "ann"), ("X-Tenant", "a" * 300)],
    ],
)
async def test_fields_that_name_two_callers_or_none_are_refused(
    node: FakeNode, behind: Callable[..., Settings], headers: list[tuple[str, str]]
):
    open_desk(node)
    async with gateway_of(node, behind("127.0.0.1")) as front:
        assert await told(front, headers) == UNKNOWN


async def test_two_fields_whose_names_differ_in_case_are_refused(node: FakeNode, behind: Callable[..., Settings]):
    open_desk(node)
    async with gateway_of(node, behind("127.0.0.1")) as front:
        reader, _ = await front.raw(
            b"GET /user HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"X-Forwarded-User: ann\r\nx-forwarded-user: admin\r\n\r\n"
        )
        assert (await reader.read()).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("spelling", ["X-Forwarded_User", "X_Forwarded_User", "x_forwarded-user", "X_ROLES"])
async def test_other_spellings_are_refused_also_from_a_proxy(
    node: FakeNode, behind: Callable[..., Settings], spelling: str
):
    """A proxy replaces the field with its exact name only, and WSGI programs cannot tell the two apart."""
    open_desk(node)
    async with gateway_of(node, behind("127.0.0.1")) as front:
        assert await told(front, {"X-Forwarded-User": "ann", spelling: "admin"}) == FORBIDDEN


@pytest.mark.parametrize("path", ["/user", "/open", "/livez", "/nowhere"])
@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-User": "admin"},
        {"x-forwarded-user": "admin"},
        {"X_Forwarded_User": "admin"},
        {"X-Roles": "admin"},
        {"X-Scopes": "orders:write"},
        {"X-Tenant": "acme"},
        {"X-Forwarded-User": ""},
        {"X-Forwarded-User": "admin", "X-Forwarded-For": "10.0.0.5"},
        {"X-Forwarded-User": "admin", "Forwarded": "for=10.0.0.5"},
        {"X-Forwarded-User": "admin", "X-Real-IP": "10.0.0.5"},
    ],
)
async def test_the_fields_are_refused_from_any_other_address(
    node: FakeNode, behind: Callable[..., Settings], headers: dict[str, str], path: str
):
    open_desk(node)
    async with gateway_of(node, behind("10.0.0.5")) as front:
        assert await told(front, headers, path) == FORBIDDEN
        assert (await told(front, {}, "/open"))[0] == 200


@pytest.mark.parametrize(
    "fields", [{"header": "X-User"}, {"roles": "X-Roles"}, {"header": "X-User", "roles": "x-user"}]
)
def test_settings_that_trust_nobody_or_say_two_things(
    node: FakeNode, behind: Callable[..., Settings], fields: dict[str, str]
):
    proxies = () if fields == {"header": "X-User"} else ("127.0.0.1",)
    if "header" in fields:
        with pytest.raises(ConfigError, match=r"^auth\.proxy\."):
            Gateway(node, behind(*proxies, **fields))
    else:
        from mesh.config.edge_auth_checks import problems

        assert [key for key, _ in problems(behind(*proxies, **fields))] == ["auth.proxy.roles"]
