"""Pages for operators: where they are served, and where not."""

from __future__ import annotations

from pathlib import Path

import pytest
from listener_set import free_port, served, settings_of

from mesh.config.exposure import OPERATORS, withheld
from mesh.gateway.listeners.listener import Listener
from mesh.gateway.listeners.opening import as_bound
from mesh.gateway.listeners.sockets import bind, bind_unix

PAGES = {
    "GET /metrics": 200,
    "GET /mesh": 200,
    "GET /docs": 200,
    "GET /docs/docs.css": 200,
    "GET /openapi.json": 200,
    "POST /rpc/shop/search\nContent-Type: application/json\nContent-Length: 0": 200,
    "POST /tasks/shop/none\nContent-Length: 0": 404,
    "GET /jobs": 404,
}
AUTH = '[auth.jwt]\nissuer = "https://id.example"\naudience = ["shop"]\nsecret = "env:KEY"\n[auth]\n'
ALWAYS = {"GET /livez": 200, "GET /readyz": 200, "GET /client": 200}


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("", ()),
        ('host = "localhost"', ()),
        ('host = "127.0.0.2"', ()),
        ('host = "::1"', ()),
        ('proxies = ["127.0.0.1"]', ()),
        ('host = "0.0.0.0"', OPERATORS),
        ('host = "::"', OPERATORS),
        ('host = "10.0.0.1"', OPERATORS),
        ('host = "shop.example"', OPERATORS),
        ('unix = "run/gateway.sock"', OPERATORS),
        ('proxy_protocol = true\nproxies = ["127.0.0.1"]', OPERATORS),
        ('admin = "127.0.0.1:9090"', OPERATORS),
        ('host = "0.0.0.0"\npublic = ["*"]', ()),
        # With authentication, a page is public where a requirement names it.
        (f'host = "0.0.0.0"\n{AUTH}default = "role:operator"', OPERATORS),
        (f'host = "0.0.0.0"\n{AUTH}mounts = {{ "/docs" = "none" }}', OPERATORS),
        (
            f'host = "0.0.0.0"\n{AUTH}mounts = {{ "/metrics" = "role:operator", "/rpc" = "user" }}',
            ("/mesh", "/docs", "/openapi.json", "/tasks", "/jobs"),
        ),
        (f'host = "0.0.0.0"\nadmin = "127.0.0.1:9090"\n{AUTH}mounts = {{ "/metrics" = "user" }}', OPERATORS),
        ('host = "0.0.0.0"\npublic = ["/docs", "/openapi.json", "/rpc"]', ("/metrics", "/mesh", "/tasks", "/jobs")),
    ],
)
def test_what_is_withheld(tmp_path: Path, text: str, hidden: tuple[str, ...]):
    assert withheld(settings_of(tmp_path, f"[gateway]\n{text}\n")) == set(hidden)


@pytest.mark.parametrize(
    ("text", "bound", "hidden"),
    [
        ("", "127.0.0.1", ()),
        ("", "0.0.0.0", OPERATORS),
        ("", "unix", OPERATORS),
        ('[gateway]\nhost = "0.0.0.0"\n', "127.0.0.1", OPERATORS),
    ],
)
async def test_what_is_withheld_follows_the_socket(tmp_path: Path, text: str, bound: str, hidden: tuple[str, ...]):
    """supervisord may hold another socket than mesh.toml names."""
    sock = bind_unix(tmp_path / "own.sock", 0o600) if bound == "unix" else bind(bound, 0)
    settings = as_bound(settings_of(tmp_path, text), Listener("public", sock))
    sock.close()
    assert withheld(settings) == set(hidden)


async def test_on_loopback_everything_is_served(tmp_path: Path):
    async with served(settings_of(tmp_path, "")) as front:
        assert {each: (await front.ask(each)).status for each in (PAGES | ALWAYS)} == PAGES | ALWAYS


@pytest.mark.parametrize("where", ["tcp", "unix"])
async def test_the_admin_listener_serves_what_the_public_one_does_not(tmp_path: Path, where: str):
    admin = f"127.0.0.1:{free_port()}" if where == "tcp" else "unix:run/admin.sock"
    async with served(settings_of(tmp_path, f'[gateway]\nhost = "0.0.0.0"\nadmin = "{admin}"\n')) as front:
        for each in PAGES:
            answer = await front.ask(each)
            assert (answer.status, b'"not_public"' in answer.body) == (404, True), each
        assert {each: (await front.ask(each)).status for each in ALWAYS} == ALWAYS
        assert {each: (await front.ask(each, "admin")).status for each in (PAGES | ALWAYS)} == PAGES | ALWAYS


async def test_authentication_applies_on_the_admin_listener_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What it lets anyone see there stays hidden on the public one."""
    monkeypatch.setenv("KEY", "k" * 64)
    text = f'[gateway]\nadmin = "127.0.0.1:{free_port()}"\n{AUTH}mounts = {{ "/metrics" = "none" }}\n'
    async with served(settings_of(tmp_path, text)) as front:
        assert (await front.ask("GET /metrics", "admin")).status == 200
        assert (await front.ask("GET /mesh", "admin")).status == 401
        assert (await front.ask("GET /metrics")).status == 404
        assert (await front.ask("GET /livez")).status == 200


async def test_pages_can_be_made_public(tmp_path: Path):
    text = '[gateway]\nhost = "0.0.0.0"\npublic = ["/docs", "/openapi.json"]\n'
    async with served(settings_of(tmp_path, text)) as front:
        assert (await front.ask("GET /docs")).status == 200
        assert (await front.ask("GET /openapi.json")).status == 200
        assert (await front.ask("GET /metrics")).status == 404


async def test_the_root_leads_to_the_documentation_only_where_it_is(tmp_path: Path):
    text = f'[gateway]\nhost = "0.0.0.0"\nadmin = "127.0.0.1:{free_port()}"\n'
    async with served(settings_of(tmp_path, text)) as front:
        assert (await front.ask("GET /")).status == 404
        assert (await front.ask("GET /", "admin")).headers["location"] == "/docs"


async def test_the_admin_listener_works_while_the_public_one_is_full(tmp_path: Path):
    text = f'[gateway]\nmax_connections = 2\nadmin = "127.0.0.1:{free_port()}"\n'
    async with served(settings_of(tmp_path, text)) as front:
        opened = [await front.connect() for _ in range(3)]
        assert (await front.ask("GET /metrics", "admin")).status == 200
        for _, writer in opened:
            writer.close()


async def test_the_admin_listener_is_reached_by_its_own_host(tmp_path: Path):
    """Its address is one of the gateway's names; other names are refused there, too."""
    port = free_port()
    async with served(settings_of(tmp_path, f'[gateway]\nadmin = "127.0.0.2:{port}"\n')) as front:
        assert (await front.ask(f"GET /mesh\nHost: 127.0.0.2:{port}", "admin")).status == 200
        assert (await front.ask("GET /mesh\nHost: evil.example", "admin")).status == 421
