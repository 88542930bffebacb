"""The security schemes and requirements of the OpenAPI document."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
from gateway_auth import open_desk
from gateway_fakes import FakeNode
from openapi_spec_validator import validate

from mesh.config import Settings
from mesh.config.edge_auth import ApiKeySettings, AuthSettings, BasicSettings, JwtSettings, read_requirement
from mesh.config.secrets import Secret
from mesh.gateway.edge.auth import api_keys, passwords
from mesh.gateway.server import Gateway


def document(node: FakeNode, settings: Settings, **auth: object) -> dict[str, object]:
    made = Settings(mesh=settings.mesh, gateway=settings.gateway, auth=AuthSettings(**auth))  # type: ignore[arg-type]
    found: dict[str, object] = msgspec.json.decode(Gateway(node, made).openapi())
    validate(found)
    return found


def test_every_operation_says_what_it_requires(node: FakeNode, settings: Settings, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TOKENS", "s" * 32)
    monkeypatch.setattr(passwords, "COST", (2**10, 8, 1))
    open_desk(node)
    api_keys.create(tmp_path / "keys", "k", now=time.time())
    passwords.add(tmp_path / "users", "ann", "a long password", now=0)
    found = document(
        node,
        settings,
        jwt=JwtSettings(issuer="https://id.example", audience=["shop"], secret=Secret("env:TOKENS")),
        apikeys=ApiKeySettings(file=tmp_path / "keys"),
        basic=BasicSettings(file=tmp_path / "users"),
        mounts={"/rpc": read_requirement("role:operator")},
    )
    schemes = found["components"]["securitySchemes"]  # type: ignore[index]
    assert {name: (each["type"], each.get("scheme")) for name, each in schemes.items()} == {
        "jwt": ("http", "bearer"),
        "apikey": ("apiKey", None),
        "basic": ("http", "basic"),
    }
    paths = found["paths"]  # type: ignore[assignment]
    one_of = [{"jwt": []}, {"apikey": []}, {"basic": []}]
    assert [paths[path]["get"].get("security") for path in ("/plain", "/open", "/user")] == [one_of, None, one_of]
    assert paths["/write"]["get"]["security"][0] == {"jwt": ["orders:read", "orders:write"]}
    assert paths["/clerk"]["get"]["x-mesh-roles"] == ["clerk", "manager"]
    assert paths["/rpc/desk/whoami"]["post"]["x-mesh-roles"] == ["operator"]
    told = {path: {"401", "403"} & set(paths[path]["get"]["responses"]) for path in ("/open", "/user", "/write")}
    assert told == {"/open": set(), "/user": {"401"}, "/write": {"401", "403"}}


def test_without_authentication_the_document_is_as_before(node: FakeNode, settings: Settings):
    open_desk(node)
    found = document(node, settings)
    assert "securitySchemes" not in found["components"]  # type: ignore[operator]
    assert "Problem401" not in found["components"]["responses"]  # type: ignore[index]
